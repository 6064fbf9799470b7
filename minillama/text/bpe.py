"""Byte-pair encoding by hand: learn the merges, apply them, undo them.

    train    start from characters; again and again join the most frequent neighbouring pair (l, r) into one new piece l + r,
             whose score is -rank: the earlier it was learned, the higher
    encode   start from characters; again and again join the neighbours whose joined piece has the highest score (leftmost first);
             a character that is not a piece becomes its UTF-8 bytes
    decode   join the pieces, read runs of bytes as UTF-8, turn the space mark back into a space, drop the first one

Three rules are LLaMA's own. Every digit is its own token, so that a number is always written the same way and sums can be learned
column by column. Bytes are tokens, so that no text is ever unknown. A space stands before every text (the dummy prefix), so that a
word is the same token at the start of a text and inside it. A space is written U+2581, a visible mark that can stand inside a piece.

Sennrich et al. 2016 (arXiv:1508.07909); Kudo & Richardson 2018 (arXiv:1808.06226); [LLaMA §2.1].
Twin: minillama/text/tokenizer.py, the same with SentencePiece's library; the file of both: model_file.py. Lesson: lessons/01_tokens.ipynb.
"""
import codecs
import heapq
import re
import unicodedata
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np

from minillama.errors import InputError
from minillama.text.model_file import (
    BYTE,
    BYTE_PIECES,
    CONTROL,
    FIRST_ID,
    MAX_VOCAB_SIZE,
    NORMAL,
    REQUIRED,
    SETTINGS,
    SPACE,
    SPECIALS,
    UNKNOWN,
    format_model,
    parse_model,
    read_model_file,
    write_model_file,
)

MAX_SENTENCE = 1000                                # characters; SentencePiece silently skips a sentence above 4192 bytes
MAX_SAMPLE = 10_000_000                            # characters a tokenizer is trained on


def check_text(text):
    """Raise InputError unless text is a str of complete Unicode characters (an unpaired surrogate has no UTF-8 form)."""
    if not isinstance(text, str):
        raise InputError(f"text must be a str, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise InputError(f"text must have only the characters U+0000-U+D7FF and U+E000-U+10FFFF, got an unpaired surrogate U+{code:04X} "
                         f"at character {error.start}") from None


# ---------------------------------------------------------------------------------------------------------- encode and decode

class BPE:
    """A vocabulary, and what it does to text.

    pieces: list of (piece: str, score: float, kind: int), in the order of the ids
    """

    def __init__(self, pieces):
        self.pieces = [(piece, float(score), int(kind)) for piece, score, kind in pieces]
        _check_pieces(self.pieces)
        self.ids = {piece: id for id, (piece, _, kind) in enumerate(self.pieces) if kind == NORMAL}
        reserved = {piece: id for id, (piece, _, kind) in enumerate(self.pieces) if kind != NORMAL}
        self.byte_ids = [reserved[piece] for piece in BYTE_PIECES]
        self.unk_id = next(id for id, (_, _, kind) in enumerate(self.pieces) if kind == UNKNOWN)
        self.bos_id, self.eos_id = reserved["<s>"], reserved["</s>"]

    @property
    def vocab_size(self):
        return len(self.pieces)

    def encode(self, text, bos=False, eos=False):
        """Token ids of text: exactly SentencePiece's, in O(n log n).

        The heap holds every pair of neighbours whose joined text is a piece, the highest score first, the leftmost first among equal
        scores. An entry that an earlier merge has made invalid stays in the heap, and is recognised by its text when it is taken out.

        Raises InputError for an unpaired surrogate.
        """
        check_text(text)
        symbols = list(SPACE + text.replace(" ", SPACE)) if text else []
        before = list(range(-1, len(symbols) - 1))          # the neighbours, as a linked list: merging is then O(1)
        after = list(range(1, len(symbols))) + [-1]
        heap = []

        def push(left, right):
            id = self.ids.get(symbols[left] + symbols[right])
            if id is not None:
                heapq.heappush(heap, (-self.pieces[id][1], left, right, self.pieces[id][0]))

        for left in range(len(symbols) - 1):
            push(left, left + 1)
        while heap:
            _, left, right, piece = heapq.heappop(heap)
            if symbols[left] + symbols[right] != piece:     # no longer valid
                continue
            symbols[left], symbols[right] = piece, ""
            after[left] = after[right]
            if before[left] >= 0:
                push(before[left], left)
            if after[left] >= 0:
                before[after[left]] = left
                push(left, after[left])

        ids = [self.bos_id] if bos else []
        for symbol in symbols:
            if symbol in self.ids:
                ids.append(self.ids[symbol])
            else:                                           # "" adds nothing; an unknown character adds its bytes
                ids.extend(self.byte_ids[byte] for byte in symbol.encode())
        return ids + [self.eos_id] if eos else ids

    def decode(self, ids):
        """The text of the ids, exactly SentencePiece's: see TextStream. Raises InputError for an id outside the vocabulary."""
        stream = TextStream(self.pieces)
        return "".join([stream.push(id) for id in ids] + [stream.finish()])

    @classmethod
    def load(cls, path):
        """Read a `.model` file. Raises InputError if it is missing, corrupt, or not LLaMA-style."""
        return cls.from_bytes(read_model_file(path), path)

    @classmethod
    def from_bytes(cls, data, name="the model"):
        pieces, settings = parse_model(data, name)
        for key in REQUIRED:
            value, wanted = settings[key], SETTINGS[key][3]
            if value != wanted:
                raise InputError(f"{name} is not a LLaMA-style tokenizer: {key} must be {wanted!r}, got {value!r}")
        if settings["rewrites_text"]:
            rule = settings["normalization_rule_name"]
            raise InputError(f"{name} is not a LLaMA-style tokenizer: normalization_rule_name must be 'identity', got {rule!r}")
        return cls(pieces)

    def save(self, path):
        """Write a `.model` file that SentencePiece and everything built on it can read."""
        write_model_file(path, self.to_bytes())

    def to_bytes(self):
        values = {name: value for name, (_, _, _, value) in SETTINGS.items()}
        values.update(unk_id=self.unk_id, bos_id=self.bos_id, eos_id=self.eos_id)
        return format_model(self.pieces, values)


def _check_pieces(pieces):
    """A LLaMA-style vocabulary: distinct pieces of kinds 1 2 3 6, one <unk>, all 256 bytes, finite scores."""
    seen = {}
    for id, (piece, score, kind) in enumerate(pieces):
        if kind not in (NORMAL, UNKNOWN, CONTROL, BYTE):
            raise InputError(f"piece {id} ({piece!r}) must be of kind 1 (normal), 2 (unknown), 3 (control) or 6 (byte), got kind {kind}")
        if not piece or piece in seen:
            raise InputError(f"every piece must be distinct, got {piece!r} as piece {seen[piece]} and as piece {id}" if piece
                             else f"piece {id} must have at least 1 character, got {piece!r}")
        if not np.isfinite(score):
            raise InputError(f"piece {id} ({piece!r}) must have a finite score, got {score}")
        if kind == BYTE and piece not in BYTE_PIECES:
            raise InputError(f"piece {id} is of kind byte: it must be one of <0x00> to <0xFF>, got {piece!r}")
        seen[piece] = id
    kinds = Counter(kind for _, _, kind in pieces)
    if kinds[UNKNOWN] != 1 or kinds[BYTE] != 256:
        raise InputError(f"the vocabulary must have 1 unknown and 256 byte pieces, got {kinds[UNKNOWN]} unknown and {kinds[BYTE]} byte")
    for piece in ("<s>", "</s>"):
        if piece not in seen or pieces[seen[piece]][2] != CONTROL:
            raise InputError(f"the vocabulary must have the control pieces <s> and </s>, got no control piece {piece}")


class TextStream:
    """Ids to text, one at a time: all that push returns, and then what finish returns, is the text of all ids.

    A character may be spread over several byte tokens: incomplete bytes are held back until they are a character, or cannot become
    one. Each byte that belongs to no character becomes U+FFFD, as in SentencePiece. Control tokens (<s>, </s>) have no text, <unk>
    shows as " ⁇ ". The space of the dummy prefix, the first thing of a text, is dropped (unless drop_first_space is False).
    """

    def __init__(self, pieces, drop_first_space=True):
        self.pieces = pieces
        self.at_start = drop_first_space
        self.utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def push(self, *ids):
        """The text that these ids complete. Raises InputError for an id outside the vocabulary."""
        return "".join(self._push(id) for id in ids)

    def finish(self):
        """The text of the bytes still held back. More ids may follow."""
        return self._read_bytes(b"", end=True)

    def _push(self, id):
        if not 0 <= id < len(self.pieces):
            raise InputError(f"a token id must be from 0 to {len(self.pieces) - 1} (the vocabulary), got {id}")
        piece, _, kind = self.pieces[id]
        if kind == BYTE:
            return self._read_bytes(bytes([int(piece[3:5], 16)]))
        held = self._read_bytes(b"", end=True)
        if kind == CONTROL:
            return held
        if kind == UNKNOWN:
            piece = SETTINGS["unk_surface"][3]
        elif self.at_start and piece.startswith(SPACE):
            piece = piece[1:]
        self.at_start = False
        return held + piece.replace(SPACE, " ")

    def _read_bytes(self, data, end=False):
        text = self.utf8.decode(data, end)                  # surrogateescape: a stray byte b becomes U+DC00 + b
        self.at_start = self.at_start and not text
        return re.sub("[\udc80-\udcff]", "\ufffd", text)


# -------------------------------------------------------------------------------------------------------------------- training

def split_sentences(texts):
    """Cut texts into training sentences: lines, and lines above MAX_SENTENCE characters at a single space near the limit.

    A sentence is given a space in front, and cutting at a space removes one: no word changes. Only a line that has no such space in
    1000 characters is cut inside a word. No sentence contains a newline, so "\\n" is never learned: it is always the byte <0x0A>.
    U+2585 ends a sentence too: SentencePiece uses it as a mark of its own, and would drop the complete line.
    """
    for text in texts:
        check_text(text)
        for line in re.finditer("[^\n\u2585]+", text):
            start, end = line.span()
            while end - start > MAX_SENTENCE:
                spaces = [match.start() for match in _SINGLE_SPACE.finditer(text, start + 1, start + MAX_SENTENCE)]
                cut = spaces[-1] if spaces else start + MAX_SENTENCE
                yield from _without_return(text[start:cut])
                start = cut + 1 if spaces else cut
            yield from _without_return(text[start:end])


def _without_return(sentence):
    """The sentence without the \\r of a Windows line end, which SentencePiece removes; no sentence if nothing is left."""
    sentence = sentence.rstrip("\r")
    return [sentence] if sentence else []


_SINGLE_SPACE = re.compile(f"(?<=[^ {SPACE}]) (?=[^ {SPACE}])")


def sample_sentences(sentences, max_characters=MAX_SAMPLE):
    """Every k-th sentence, k the power of two that keeps at most max_characters: one pass, bounded memory, the same every time."""
    kept, size, stride = [], 0, 1
    for index, sentence in enumerate(sentences):
        if index % stride == 0:
            kept.append(sentence)
            size += len(sentence)
            while size > max_characters and len(kept) > 1:
                kept, stride = kept[::2], 2 * stride
                size = sum(len(sentence) for sentence in kept)
    return kept


# Names of tokens in the training text must not become pieces: SentencePiece puts a boundary in their place.
_RESERVED = re.compile("|".join(["<unk>", "</?s>", *BYTE_PIECES]))
_BOUNDARY = "\x1f"
_UNCOVERED = "\u2585"                              # stands for every character outside the alphabet


def count_words(sentences):
    """Counter of words, each with the spaces before it: "a  bc" gives ▁a and ▁▁bc. Merges never cross words, so counts suffice."""
    words = Counter()
    for sentence in sentences:
        marked = _RESERVED.sub(_BOUNDARY, SPACE + sentence.replace(" ", SPACE))
        words.update(re.findall(f"{SPACE}*[^{SPACE}]+|{SPACE}+", marked))
    return words


def choose_alphabet(words, character_coverage):
    """The characters that become tokens, most frequent first: as many as cover that share of the text; the rest become bytes."""
    count = Counter()
    for word, n in words.items():
        for character in word:
            count[character] += n
    count.pop("\0", None)
    total, covered, alphabet = sum(count.values()), 0, []
    for character in sorted(count, key=lambda character: (-count[character], character)):
        if np.float32(covered / total) >= np.float32(character_coverage):
            break
        covered += count[character]
        if character != _BOUNDARY:
            alphabet.append(character)
    return alphabet


def check_vocab_size(vocab_size, alphabet):
    """Raise InputError unless vocab_size has room for 3 specials, 256 bytes and the alphabet, and its ids fit in uint16."""
    smallest = FIRST_ID + len(alphabet)
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int | np.integer):
        raise InputError(f"vocab_size must be a whole number or 'chars', got {vocab_size!r}")
    if vocab_size > MAX_VOCAB_SIZE:
        raise InputError(f"vocab_size must be at most {MAX_VOCAB_SIZE} (ids are stored in 16 bits), got {vocab_size}")
    if vocab_size < smallest:
        raise InputError(f"vocab_size must be at least {smallest} for this text (3 special tokens, 256 bytes and its {len(alphabet)} "
                         f"characters), got {vocab_size}")


def train_bpe(texts, vocab_size, character_coverage=SETTINGS["character_coverage"][3]):
    """Learn a vocabulary of vocab_size pieces from texts (an iterable of str), as SentencePiece 0.2.3 does with LLaMA's settings.

    The most frequent pair is merged first. Ties: the shorter joined piece, then the one first in code point order. No other tie is
    possible, since no piece is ever spelled by two pairs (what becomes of a stretch of text that no merge crosses depends on that
    stretch alone). A pair counts at every place where it stands: "aaa" holds a + a twice. Pairs that no longer occur (count 0) are still
    taken when nothing else is left. (Older releases of SentencePiece count a + a in "aaa" once. They compare only the most frequent
    5 % of the pairs and look at all pairs now and then, so some rare pairs come in another order there.)

    Approximated: the script of a character comes from its Unicode name, see script().

    Raises InputError if vocab_size is too small or too large for the text.
    """
    sentences = sample_sentences(split_sentences(texts))
    if not sentences:
        raise InputError("the training text is empty: it must have at least 1 character")
    words = count_words(sentences)
    alphabet = choose_alphabet(words, character_coverage)
    check_vocab_size(vocab_size, alphabet)
    wanted = vocab_size - FIRST_ID - len(alphabet)
    merges = learn_merges(words, alphabet, wanted)
    if len(merges) < wanted:
        raise VocabularyTooLarge(vocab_size, vocab_size - wanted + len(merges))
    learned = [(piece, -float(rank), NORMAL) for rank, piece in enumerate(merges + alphabet)]
    return BPE(SPECIALS + [(piece, 0.0, BYTE) for piece in BYTE_PIECES] + learned)


class VocabularyTooLarge(InputError):
    """The text does not hold that many pieces; `largest` is the number it does hold. Both trainers raise it."""

    def __init__(self, vocab_size, largest):
        super().__init__(f"vocab_size must be at most {largest} for this text (it has no more pieces), got {vocab_size}")
        self.largest = largest


def learn_merges(words, alphabet, n_merges):
    """The first n_merges pieces in the order they are learned (fewer if the words run out of pairs).

    Counting all pairs again after each merge would cost a pass over the text per piece. Only the neighbours of a merge change, so
    counts are updated there. In the heap a count may be too high, since merges take neighbours away; it is corrected when it is taken out.
    """
    known = set(alphabet)
    symbols = [[character if character in known else _UNCOVERED for character in word] for word in words]
    frequency = list(words.values())
    count, where = Counter(), defaultdict(set)
    for index, word in enumerate(symbols):
        for pair in pairwise(word):
            count[pair] += frequency[index]
            where[pair].add(index)

    heap, merges = [], []

    def push(pairs):
        for left, right in pairs:
            if may_merge(left + right):
                heapq.heappush(heap, (-count[left, right], len(left + right), left + right, left, right))

    push(count)
    while heap and len(merges) < n_merges:
        negative_count, _, piece, left, right = heapq.heappop(heap)
        if count[left, right] != -negative_count:
            push([(left, right)])
        else:
            merges.append(piece)
            new_pairs = set()
            for index in where[left, right]:
                for pair, change in merge_word(symbols[index], left, right):
                    count[pair] += change * frequency[index]
                    if change > 0:
                        where[pair].add(index)
                        new_pairs.add(pair)
            push(new_pairs)
    return merges


def merge_word(word, left, right):
    """Join left and right wherever they stand in word (a list, changed in place), and list how the pairs around them change.

        p l r n  ->  p lr n        (p, l) (l, r) (r, n) -> -1        (p, lr) (lr, n) -> +1
    """
    changes = []
    i = 0
    while i < len(word) - 1:
        if word[i] == left and word[i + 1] == right:
            changes += [(pair, -1) for pair in pairwise(word[max(i - 1, 0):i + 3])]
            word[i:i + 2] = [left + right]
            changes += [(pair, +1) for pair in pairwise(word[max(i - 1, 0):i + 2])]
        i += 1
    return changes


def may_merge(piece):
    """LLaMA's limits on a piece of two or more characters: length, spaces first (or only), no digit, one script."""
    if len(piece) > SETTINGS["max_sentencepiece_length"][3] or _UNCOVERED in piece:
        return False
    text = piece.lstrip(SPACE)
    if not text:
        return True                                         # spaces only: code is indented with them
    if len(piece) - len(text) > 1 or SPACE in text or _DIGIT.search(text):
        return False
    return len({script(character) for character in text} - {INHERITED}) <= 1


_DIGIT = re.compile("[0-9\uff10-\uff19]")
COMMON, INHERITED = "COMMON", "INHERITED"
_SCRIPT_OF_WORD = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK", "EXTENDED": "ARABIC", "FEMININE": "LATIN",
                   "MASCULINE": "LATIN", "COMBINING": INHERITED, "VARIATION": INHERITED, "MATHEMATICAL": COMMON, "MODIFIER": COMMON,
                   "MICRO": COMMON}
_scripts = {}


def script(character):
    """The script of a character, taken from its Unicode name: CYRILLIC SMALL LETTER A is CYRILLIC.

    Punctuation, symbols and emoji are COMMON. Accents and joiners are INHERITED: they go with any script. Chinese and Japanese are one.
    Python has no table of scripts; of the 55,632 characters up to U+FFFF that it names, this gets all but 1,760 right, which are
    signs and numerals of rarer scripts, radicals, Braille and phonetic letters.
    """
    if character not in _scripts:
        _scripts[character] = _name_script(character)
    return _scripts[character]


def _name_script(character):
    words = re.split("[ -]", unicodedata.name(character, COMMON).removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH "))
    if character in "\u200c\u200d" or "\u064b" <= character <= "\u0655":           # joiners, Arabic vowel signs
        return INHERITED
    if unicodedata.category(character)[0] not in "LM" and unicodedata.category(character) != "Nd":
        return COMMON
    return _SCRIPT_OF_WORD.get(words[0], words[0])
