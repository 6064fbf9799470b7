"""Where text comes from: the built-in sources, plain text files, and JSON lines; and what is held out for validation.

A source has a name, a weight, a size (about the bytes of its text), a fingerprint of its content, and yields documents
`(side, chunks, bits)`: side is "train" or "val"; chunks is an iterable of str that joins to one document, a tuple of one for a
document that is in memory anyway; bits is the document's exact information if it is known (the built-in sources), else None.

What is held out, and why it never overlaps the training text: a plain text file is one document, cut once, its end held out.
From a collection, complete documents are held out, chosen by the hash of their text, so that two equal documents always
fall on the same side.
"""
import codecs
import hashlib
import heapq
import itertools
import json
from pathlib import Path

from ..errors import InputError
from ..files import check_name, check_regular
from . import corpus

MAX_WEIGHT = 1e9  # the sum of all must be finite
CHUNK = 1 << 20  # bytes of a file read at a time
BOM = codecs.BOM_UTF8  # the bytes that Windows programs put in front of a text


def _digest(text):
    """64 bits of a document's hash, as an integer."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def _split_documents(texts, fraction, name):
    """Assign documents to train or val. `texts` is a function that starts a fresh pass and yields (text, bits)."""
    digests = {_digest(text) for text, _ in texts()}
    if len(digests) < 2:
        raise InputError(f"{name} must have at least 2 different documents, one to train on and one to validate, got {len(digests)}")
    held_out = min(max(round(fraction * len(digests)), 1), len(digests) - 1)
    limit = heapq.nsmallest(held_out, digests)[-1]
    del digests
    for text, bits in texts():
        yield "val" if _digest(text) <= limit else "train", (text,), bits


class BuiltinSource:
    """One source of the built-in corpus: `size` characters of freshly drawn documents."""

    shuffled = True  # documents come in random order: the first ones are a fair sample

    def __init__(self, name, weight, seed, size):
        self.name, self.weight, self.seed, self.size = name, weight, seed, size

    def fingerprint(self):
        first = list(itertools.islice(corpus.documents(self.name, self.seed), 100))
        return hashlib.sha256(f"{self.size} {first}".encode()).hexdigest()

    def _texts(self):
        written = 0
        for document in corpus.documents(self.name, self.seed):
            yield document.text, document.bits
            written += len(document.text)
            if written >= self.size:
                return

    def documents(self, val_fraction):
        texts = list(self._texts())
        return _split_documents(lambda: texts, val_fraction, self.name)


class FileSource:
    """What text and JSON lines share: a file that is there and not empty. Raises InputError if it is not."""

    shuffled = False

    def __init__(self, path, name, weight):
        self.path, self.name, self.weight = Path(path), name, weight
        self.size = _file_size(self.path)

    def fingerprint(self):
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class TextSource(FileSource):
    """A plain text file in UTF-8: one document, its last `val_fraction` held out."""

    def _chunks(self, start, end):
        """Decode bytes start .. end of the file, a megabyte at a time."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        with open(self.path, "rb") as file:
            if start == 0 and file.read(len(BOM)) == BOM:
                start = len(BOM)
            file.seek(start)
            while start < end:
                data = file.read(min(CHUNK, end - start))
                if not data:
                    raise InputError(f"{self.path} has become shorter while it was read")
                pending = len(decoder.getstate()[0])
                try:
                    yield decoder.decode(data, final=start + len(data) >= end)
                except UnicodeDecodeError as error:
                    raise _not_utf8(self.path, start - pending + error.start, error) from None
                start += len(data)

    def documents(self, val_fraction):
        cut = self._character_boundary(round(self.size * (1 - val_fraction)))
        if not 0 < cut < self.size:
            raise InputError(f"{self.path} must have at least 1 byte to train on and 1 to hold out, got {self.size} bytes, of which "
                             f"val_fraction {val_fraction:g} holds out {self.size - cut}")
        yield "train", self._chunks(0, cut), None
        yield "val", self._chunks(cut, self.size), None

    def held_out(self):
        """The file as one held-out document, for evaluating a text the model never saw."""
        yield "val", self._chunks(0, self.size), None

    def _character_boundary(self, position):
        """The first place at or after `position` where a UTF-8 character begins (continuation bytes are 10xxxxxx)."""
        with open(self.path, "rb") as file:
            file.seek(position)
            return position + len(list(itertools.takewhile(lambda byte: byte & 0xC0 == 0x80, file.read(4))))


class JsonlSource(FileSource):
    """One document per line: {"text": "..."}."""

    def _texts(self):
        offset, empty = 0, True
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = json.loads(line.removeprefix(BOM).decode("utf-8"))["text"] if line.strip() else ""
                    text.encode("utf-8")
                except UnicodeDecodeError as error:
                    raise _not_utf8(self.path, offset + error.start, error) from None
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    message = f'{self.path} line {number} must be a JSON object with a string under "text", got {line[:60]!r}'
                    raise InputError(message) from None
                if text:
                    empty = False
                    yield text, None
                offset += len(line)
        if empty:
            raise InputError(f"{self.path} must hold at least one text that is not empty")

    def documents(self, val_fraction):
        return _split_documents(self._texts, val_fraction, self.path)

    def held_out(self):
        """Every document, held out, for evaluating texts the model never saw."""
        return (("val", (text,), bits) for text, bits in self._texts())


def _file_size(path):
    check_regular(path)
    try:
        size = path.stat().st_size
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if not size:
        raise InputError(f"{path} is empty (0 bytes): there is nothing to learn from")
    return size


def _not_utf8(path, offset, error):
    return InputError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {offset} ({error.reason})")


def parse_data(specs):
    """Sources of `--data FILE[=WEIGHT]` arguments; a weight not given is 1.

    Raises:
        InputError: a weight that is not a positive number, a file that is missing, unreadable or empty, or named twice
    """
    sources = []
    for spec in specs:
        path, weight = split_spec(check_name(spec))
        if any(source.path == Path(path) for source in sources):
            raise InputError(f"--data names {path} twice: give each file once, with one weight")
        taken = {source.name for source in sources}
        name = Path(path).stem if Path(path).stem not in taken else str(path)
        sources.append((JsonlSource if Path(path).suffix.lower() == ".jsonl" else TextSource)(path, name, weight))
    return sources


def split_spec(spec):
    """("a.txt", 0.35) of "a.txt=0.35". A file whose own name holds an equals sign is taken as it is."""
    path, equals, weight = spec.rpartition("=")
    if not equals or _exists(spec):
        return spec, 1.0
    try:
        value = float(weight)
    except ValueError:
        raise InputError(f"the weight in --data {spec:.120} must be a number greater than 0, got {weight!r:.30}") from None
    if not 0 < value <= MAX_WEIGHT:
        raise InputError(f"the weight in --data {spec:.120} must be greater than 0 and at most {MAX_WEIGHT:g}, got {weight:.30}")
    return path, value


def _exists(path):
    try:
        return Path(path).exists()
    except (OSError, ValueError):                                # a link that leads in a circle, a name that cannot be one
        return False


def builtin_sources(seed, size):
    """The built-in corpus in its 35/40/25 mix, `size` characters in all."""
    return [BuiltinSource(name, share, seed, int(size * share)) for name, share in corpus.SHARES.items()]
