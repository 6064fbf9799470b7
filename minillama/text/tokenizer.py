"""LLaMA's tokenizer: SentencePiece's byte-pair encoding, trained and used with LLaMA's settings.

    train    LLaMA's settings (model_file.SETTINGS), any vocabulary size; "chars" gives one token per character
    encode   text -> ids; decode(encode(text)) == text for every text (but a U+2581 in it comes back as the space it stands for)
    chunks   a text of any size is encoded in bounded memory: it is cut only where no piece can reach across

Kudo & Richardson 2018 (arXiv:1808.06226); [LLaMA §2.1] (digits are split, unknown characters become bytes, 32,000 pieces).
Twin: minillama/text/bpe.py, the same by hand, made to be read; the file itself: model_file.py. Lesson: lessons/01_tokens.ipynb.
"""
import hashlib
import io
from itertools import pairwise

import sentencepiece

from minillama.errors import InputError
from minillama.text import bpe, model_file

MAX_STRETCH = 1_000_000                            # characters
_QUIET = 3                                         # SentencePiece's log level: fatal errors only


class Tokenizer:
    """A SentencePiece model. Made by train, load or from_bytes.

    pieces:   list of (piece, score, kind), in the order of the ids; kinds as in bpe.py (1 normal, 2 unknown, 3 control, 6 byte)
    settings: dict, the file's value of each name in model_file.SETTINGS
    model:    bytes, the `.model` file
    """

    def __init__(self, model, name="the model"):
        self.model = model
        self.pieces, self.settings = model_file.parse_model(model, name)
        self._sentencepiece = sentencepiece.SentencePieceProcessor()
        try:
            self._sentencepiece.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{name} is not a SentencePiece model: {error}") from None
        self._joined = _joined_pairs(model)

    @classmethod
    def train(cls, texts, vocab_size):
        """Train on texts (an iterable of str, read once) with exactly LLaMA's settings.

        vocab_size counts everything: 3 special tokens, 256 bytes, characters, merges. "chars" is LLaMA's tokenizer with no merges and
        with every character trained on; newline, NUL, U+001F, U+2585 and a \\r that occurs only at line ends become bytes.
        At most bpe.MAX_SAMPLE characters are trained on, evenly spread over texts: memory is bounded for an iterator of any length.
        The same texts give the same bytes.

        Raises InputError if vocab_size is too small or too large for the texts; the message names the limit.
        """
        sentences = bpe.sample_sentences(bpe.split_sentences(texts))
        if not sentences:
            raise InputError("the training text is empty: it must have at least 1 character")
        chars = isinstance(vocab_size, str) and vocab_size == "chars"
        coverage = 1.0 if chars else model_file.SETTINGS["character_coverage"][3]
        alphabet = bpe.choose_alphabet(bpe.count_words(sentences), coverage)
        if chars:
            vocab_size = model_file.FIRST_ID + len(alphabet)
        bpe.check_vocab_size(vocab_size, alphabet)
        try:
            return cls(_train(sentences, vocab_size, coverage))
        except RuntimeError:                       # too few pairs to merge: with a soft limit it learns all there are
            largest = cls(_train(sentences, vocab_size, coverage, hard_vocab_limit=False)).vocab_size
            raise bpe.VocabularyTooLarge(vocab_size, largest) from None

    @classmethod
    def load(cls, path):
        """Read a `.model` file of SentencePiece. Raises InputError if it is missing, corrupt or something else."""
        return cls(model_file.read_model_file(path), str(path))

    def save(self, path):
        """Write the `.model` file, the same bytes as were trained or loaded."""
        model_file.write_model_file(path, self.model)

    @property
    def vocab_size(self):
        return len(self.pieces)

    @property
    def bos_id(self):
        return self._sentencepiece.bos_id()

    @property
    def eos_id(self):
        return self._sentencepiece.eos_id()

    @property
    def unk_id(self):
        return self._sentencepiece.unk_id()

    @property
    def fingerprint(self):
        """sha256 of the model file, in hex: equal if and only if two tokenizers are the same file."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text, bos=False, eos=False):
        """Token ids of text, a list of int. Raises InputError for an unpaired surrogate."""
        bpe.check_text(text)
        return self._sentencepiece.encode(text, add_bos=bos, add_eos=eos)

    def encode_batch(self, texts, num_threads=1):
        """[encode(text) for text in texts], in one call and in as many threads as wanted."""
        texts = list(texts)
        for text in texts:
            bpe.check_text(text)
        return self._sentencepiece.encode(texts, num_threads=num_threads)

    def encode_chunks(self, chunks):
        """Yield lists of ids whose concatenation is encode("".join(chunks)); chunks is an iterable of str, cut anywhere.

        A text may be cut between two characters that stand side by side in no piece: no merge can then reach across. The place
        before a space that follows a letter is always one. Text is held until one is found, so memory is one chunk and the longest
        stretch without such a place. A stretch of more than MAX_STRETCH characters (for example one letter repeated) is cut at its end
        nevertheless, although a merge could have reached across. What comes after a cut must not be given a dummy prefix: it is encoded
        after a newline, which joins with nothing, and the newline's tokens are removed. A model for which this does not hold (not
        LLaMA-style) gets all of the text at once.
        """
        if self._joined is None:
            yield self.encode("".join(chunks))
            return
        newline = self.encode("\n")
        text, prefix, done = "", "", 0             # done: the places before this one were looked at
        for chunk in chunks:
            text += chunk
            cut = self._last_cut(text, max(done, 1)) or (len(text) if len(text) > MAX_STRETCH else 0)
            done = len(text)
            if cut:
                yield self._encode_after(text[:cut], prefix, newline)
                text, prefix, done = text[cut:], "\n", done - cut
        if text:
            yield self._encode_after(text, prefix, newline)

    def may_cut(self, left, right):
        """True if no piece reaches across two characters that stand side by side: what is before and what is behind become tokens, each on
        its own. False for all of a model that is not LLaMA-style (see encode_chunks)."""
        return self._joined is not None and (left + right).replace(" ", model_file.SPACE) not in self._joined

    def decode(self, ids):
        """The text of the ids; the inverse of encode. <s> and </s> have no text. Raises InputError for an id outside the vocabulary."""
        ids = [int(id) for id in ids]
        for id in ids:
            if not 0 <= id < self.vocab_size:
                raise InputError(f"a token id must be from 0 to {self.vocab_size - 1} (the vocabulary), got {id}")
        return self._sentencepiece.decode(ids)

    def stream(self, prompt=()):
        """A bpe.TextStream: push(id) gives the text that is complete so far, finish() the rest. prompt: the ids before, not shown."""
        stream = bpe.TextStream(self.pieces, self.settings["add_dummy_prefix"])
        stream.push(*prompt)
        return stream

    def _last_cut(self, text, start):
        """The last place from start on where text can be cut, 0 if there is none."""
        for place in range(len(text) - 1, start - 1, -1):
            if self.may_cut(*text[place - 1:place + 1]):
                return place
        return 0

    def _encode_after(self, text, prefix, newline):
        return self.encode(prefix + text)[len(newline) if prefix else 0:]


def _joined_pairs(model):
    """Every two characters that stand side by side in a piece; None for a model that is not LLaMA-style or joins newlines."""
    try:
        pieces = bpe.BPE.from_bytes(model).pieces
    except InputError:
        return None
    joined = {left + right for piece, _, kind in pieces if kind == model_file.NORMAL for left, right in pairwise(piece)}
    return None if any("\n" in pair for pair in joined) else joined


def _train(sentences, vocab_size, coverage, **limits):
    """The bytes of a trained `.model`."""
    settings = {name: value for name, (_, _, _, value) in model_file.SETTINGS.items()}
    settings |= {"model_type": "bpe", "character_coverage": coverage, "vocab_size": vocab_size}
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(sentences), model_writer=out, minloglevel=_QUIET, num_threads=1,
                                             **settings, **limits)
    return out.getvalue()
