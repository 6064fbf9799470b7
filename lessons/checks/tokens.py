"""Lesson 01: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's.

Pieces are ids here, and a text that is decoded is its bytes: a check compares numbers.
"""
import numpy as np

from ..check import Exercise, Mistake


def merge_step(words, counts, new_id):
    """One step of training. words: lists of ids; counts: how often each word stands in the text. Words stay apart.

    Returns pair (2,), the most frequent pair of neighbours (of equals, the smaller pair), and tokens (n,), the ids of all words,
    one word after the other, with new_id wherever the pair stood.
    """
    count = {}
    for word, times in zip(words, counts):
        for i in range(len(word) - 1):
            pair = word[i], word[i + 1]
            count[pair] = count.get(pair, 0) + times
    best = min(count, key=lambda pair: (-count[pair], pair))
    tokens = []
    for word in words:
        i = 0
        while i < len(word):
            if tuple(word[i:i + 2]) == best:
                tokens.append(new_id)
                i += 2
            else:
                tokens.append(word[i])
                i += 1
    return np.array(best), np.array(tokens)


def encode_text(text, ids):
    """Ids (n,) of a text. ids: {piece: id}, the earlier learned, the smaller. A byte b has the id 3 + b. Spaces become ▁, U+2581."""
    symbols = list("▁" + text.replace(" ", "▁"))
    while True:
        joined = [symbols[i] + symbols[i + 1] for i in range(len(symbols) - 1)]
        found = [(ids[piece], i) for i, piece in enumerate(joined) if piece in ids]
        if not found:
            break
        _, i = min(found)
        symbols[i:i + 2] = [joined[i]]
    out = []
    for symbol in symbols:
        if symbol in ids:
            out.append(ids[symbol])
        else:
            out += [3 + b for b in symbol.encode("utf-8")]
    return np.array(out)


def cuts(text):
    """Two of the rules: words and digits. (n,) int: 1 if no piece may hold both character i - 1 and i, else 0; the first is 0.

    The text's spaces are written ▁ already; apart from them it has letters and digits only.
    """
    cut = np.zeros(len(text), int)
    for i in range(1, len(text)):
        left, right = text[i - 1], text[i]
        word_begins = right == "▁" and left != "▁"
        digit = left.isdigit() or right.isdigit()
        cut[i] = word_begins or digit
    return cut


def decode_ids(ids, pieces):
    """The text of these ids, as its UTF-8 bytes: list(text.encode("utf-8")), (n,) int.

    The ids 0-2 have no text, 3-258 are the bytes 0-255, the rest are pieces. pieces: list of str, in the order of the ids.
    A byte that belongs to no character becomes U+FFFD, which is EF BF BD.
    """
    data = b""
    for id in ids:
        if 3 <= id < 259:
            data += bytes([id - 3])
        elif id >= 259:
            data += pieces[id].replace("▁", " ").encode("utf-8")
    text = data.decode("utf-8", errors="replace")
    text = text.removeprefix(" ")
    return np.array(list(text.encode("utf-8")))


WORDS = {"cb": 4, "bd": 6, "aaa": 2, "ab": 6, "bc": 4, "cae": 1, "dc": 6, "eca": 1, "caca": 1, "aacaa": 1}


def _merge_inputs(rng):
    """The same words with other ids in the same order of size: four pairs are as frequent, and the one to take overlaps itself."""
    small = np.sort(rng.choice(np.arange(259, 300), 5, replace=False)).tolist()
    return [[small["abcde".index(letter)] for letter in word] for word in WORDS], list(WORDS.values()), 300


MERGES = ["aa", "bc", "▁a", "▁▁", "ab", "▁b", "abc", "▁aa", "▁▁a", "caa", "ca", "bca"]


def _encode_inputs(rng):
    ids = {piece: 259 + rank for rank, piece in enumerate(MERGES + list("▁abcd"))}
    middle = "".join(rng.permutation(list("aaaabbbccd  ")))
    return f" aaa{middle} bca  {rng.choice(list('你好吗'))}a caab{rng.choice(list('🙂🌵'))} abca ", ids


def _cuts_inputs(rng):
    words = rng.permutation(["▁ab", "▁▁c4", "▁12", "▁▁▁", "▁7d", "▁007", "ef", "▁g8h90"])
    return ("".join(words),)


def _decode_inputs(rng):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "▁▁", "▁the", "▁ab", "cd", "é", "."]
    three, four = ([3 + b for b in str(rng.choice(list(signs))).encode("utf-8")] for signs in ("你好吗", "🙂🌵"))
    stray = 3 + int(rng.integers(0x80, 0xC0))                    # the middle of a character, by itself
    words = rng.permutation([261, 262, 263, 264]).tolist()
    return [1, 260, 263, *words, *three, 262, stray, 263, *four, 265, 259, 2], pieces


NEXT_WORD, DIGIT = 'right == "▁" and left != "▁"', "left.isdigit() or right.isdigit()"
BYTE = "[3 + b for b in symbol.encode(\"utf-8\")]"

EXERCISES = {
    "01.merge_step": Exercise(
        merge_step, ("pair", "tokens"), _merge_inputs,
        (
            Mistake("not-weighted", "+ times", "+ 1", "every different word counts once; (1.2) counts it as often as it stands in the text"),
            Mistake("tie-largest", "min(count, key=lambda pair: (-count[pair], pair))", "max(count, key=lambda pair: (count[pair], pair))",
                    "of equally frequent pairs the *larger* one is taken; the rule is the smaller one (1.3)"),
            Mistake("tie-first-seen", "(-count[pair], pair)", "-count[pair]",
                    "of equally frequent pairs the one that was seen first is taken: then the vocabulary depends on the order of the text. The rule is the smaller pair (1.3)"),
            Mistake("rarest", "(-count[pair], pair)", "(count[pair], pair)", "the rarest pair is taken; (1.3) takes the most frequent one"),
            Mistake("counted-across-words", "for word, times in zip(words, counts):", "for word, times in zip([a + b[:1] for a, b in zip(words, [*words[1:], []])], counts):",
                    "the last symbol of a word and the first one of the next are counted as a pair; in (1.2) a pair stands inside one word"),
            Mistake("overlap-counted-once", "for i in range(len(word) - 1):",
                    "for i in [i for i in range(len(word) - 1) if word[i:i + 2] != word[max(i - 1, 0):i + 1]]:",
                    "a + a in `aaa` is counted once; (1.2) counts every place where the pair stands, also where two places overlap"),
            Mistake("order-ignored", "pair = word[i], word[i + 1]", "pair = tuple(sorted(word[i:i + 2]))",
                    "(l, r) and (r, l) are counted as one pair; they are two different pieces (1.2)"),
            Mistake("overlap-merged-twice", "i += 2", "i += 1 if tuple(word[i + 1:i + 3]) == best else 2",
                    "`aaa` becomes two new pieces: the pairs overlap, and the middle a is used twice. After a merge go on *behind* it (1.4)"),
            Mistake("right-part-stays", "i += 2", "i += 1", "the right part of the pair stays behind the new piece: a merge takes two symbols away and adds one (1.4)"),
            Mistake("first-only", "tuple(word[i:i + 2]) == best", "tuple(word[i:i + 2]) == best and new_id not in tokens[len(tokens) - i:]",
                    "only the first place in each word is merged; a merge is done wherever the pair stands (1.4)"),
            Mistake("merged-across-words", "for word in words:", "for word in [[id for word in words for id in word]]:",
                    "the words are joined to one list before the merge, and the pair is also found across the end of a word; no piece reaches across words (1.2)"),
        ),
    ),
    "01.encode_text": Exercise(
        encode_text, ("ids",), _encode_inputs,
        (
            Mistake("text-order", "min(found)", "min(found, key=lambda f: f[1])", "the leftmost pair is merged first; the one that was *learned* first, of the smallest id, comes first (1.5)"),
            Mistake("longest-first", "min(found)", "min(found, key=lambda f: (-len(joined[f[1]]), f))",
                    "the longest piece is made first, as in WordPiece; in BPE the one that was learned first comes first (1.5)"),
            Mistake("latest-first", "min(found)", "max(found)", "the piece that was learned *last* is made first; the smallest id comes first (1.5)"),
            Mistake("rightmost", "min(found)", "min(found, key=lambda f: (f[0], -f[1]))", "of equal pairs the rightmost is merged first; the rule is the leftmost (1.5)"),
            Mistake("no-first-mark", '"▁" + text', "text", "there is no ▁ in front of the text: its first word is then another piece than the same word later on (1.6)"),
            Mistake("leading-space-lost", "text.replace", "text.strip().replace", "the text's own spaces at both ends are lost; they are text, and the ▁ in front is added to them (1.6)"),
            Mistake("spaces-collapsed", "text.replace", '" ".join(part for part in text.split(" ") if part).replace',
                    "several spaces become one, and those at the ends are lost: Python code could not be written back (1.6)"),
            Mistake("space-not-marked", '.replace(" ", "▁")', "", "spaces stay spaces: no piece holds one, so each becomes the byte <0x20> (1.6)"),
            Mistake("unk", BYTE, "[0]", "an unknown character becomes <unk>, and is lost; it must become its UTF-8 bytes (1.8)"),
            Mistake("unknown-dropped", BYTE, "[]", "an unknown character is left out; it must become its UTF-8 bytes (1.8)"),
            Mistake("byte-without-offset", "3 + b", "b", "the byte itself stands where its id must: the ids 0-2 are special, so byte b is 3 + b (1.8)"),
            Mistake("utf-16", 'symbol.encode("utf-8")', 'symbol.encode("utf-16-le")', "the bytes are those of UTF-16; they must be UTF-8 (1.1)"),
            Mistake("no-merges", "while True:", "while False:", "nothing is merged, and the text stays single characters: join neighbours as long as two of them are a piece (1.5)"),
            Mistake("one-pass", "while True:", "for _ in range(1):", "one merge is made, and no more: go on until no two neighbours are a piece (1.5)"),
        ),
    ),
    "01.cuts": Exercise(
        cuts, ("cut",), _cuts_inputs,
        (
            Mistake("mark-ends-the-word", NEXT_WORD, 'left == "▁" and right != "▁"', "the cut comes behind the ▁, so that it ends the word before; it begins the next one (1.6)"),
            Mistake("mark-alone", NEXT_WORD, '(left == "▁") != (right == "▁")', "there is a cut on both sides of ▁: it would never be in one piece with its word (1.6)"),
            Mistake("every-space", NEXT_WORD, 'right == "▁"', "several ▁ are cut apart: spaces in a row may be one piece, as in the indents of code (1.6)"),
            Mistake("no-word-boundary", "word_begins or digit", "digit", "nothing is cut between words: a merge could join two of them (1.6)"),
            Mistake("no-digit-rule", "word_begins or digit", "word_begins", "nothing is cut at digits: a merge could make 12 one piece (1.7)"),
            Mistake("numbers-whole", DIGIT, "left.isdigit() != right.isdigit()", "the cut is at the ends of a number and not inside: 12 could be one piece; every digit stands alone (1.7)"),
            Mistake("between-digits-only", DIGIT, "left.isdigit() and right.isdigit()", "the cut is between two digits only: a digit could still be in one piece with a letter, or with ▁ (1.7)"),
            Mistake("after-digits-only", DIGIT, "left.isdigit()", "the cut is behind a digit and not before it: ▁1 could be one piece (1.7)"),
            Mistake("before-digits-only", DIGIT, "right.isdigit()", "the cut is before a digit and not behind it: 4d could be one piece (1.7)"),
            Mistake("cut-one-early", "cut[i] =", "cut[i - 1] =", "the 1 stands at the last character before the cut; it belongs to the first one behind it"),
            Mistake("cut-at-the-start", "np.zeros(len(text), int)", "np.eye(1, len(text), dtype=int)[0]", "the first character has a cut; nothing stands before it"),
        ),
    ),
    "01.decode_ids": Exercise(
        decode_ids, ("data",), _decode_inputs,
        (
            Mistake("one-byte-at-a-time", "data += bytes([id - 3])", 'data += bytes([id - 3]).decode("utf-8", errors="replace").encode("utf-8")',
                    "every byte is decoded by itself: a character of three bytes becomes three times U+FFFD. Collect the bytes first (1.8)"),
            Mistake("latin-1", "bytes([id - 3])", 'chr(id - 3).encode("utf-8")', "every byte is taken for a character of its own, as in Latin-1 (1.1)"),
            Mistake("byte-names", "bytes([id - 3])", 'pieces[id].encode("utf-8")', "the name of a byte, such as <0xE4>, is written into the text; the byte itself is meant (1.8)"),
            Mistake("byte-without-offset", "id - 3]", "id]", "the id itself is taken for the byte: id 3 is byte 0 (1.8)"),
            Mistake("bytes-dropped", "bytes([id - 3])", 'b""', "the byte pieces are left out: unknown characters are lost (1.8)"),
            Mistake("invalid-dropped", 'errors="replace"', 'errors="ignore"', "a byte that belongs to no character is left out without a trace; it must become U+FFFD"),
            Mistake("invalid-kept", ('errors="replace"', 'list(text.encode("utf-8")'), ('errors="surrogateescape"', 'list(text.encode("utf-8", "surrogateescape")'),
                    "a byte that belongs to no character is handed on as it is, and the text is no UTF-8; it must become U+FFFD"),
            Mistake("first-space-kept", 'text.removeprefix(" ")', "text", "the space that encode has put in front is still there (1.6)"),
            Mistake("all-first-spaces-lost", 'text.removeprefix(" ")', "text.lstrip()", "all spaces at the start are removed; only one was added, the others are text (1.6)"),
            Mistake("both-ends-stripped", 'text.removeprefix(" ")', "text.strip()", "the spaces at both ends are removed; only one was added, in front (1.6)"),
            Mistake("words-run-together", '.replace("▁", " ")', '.replace("▁", "")', "every ▁ is removed and the words run together; only the first one was added, the others are spaces (1.6)"),
            Mistake("mark-kept", '.replace("▁", " ")', "", "▁ is not turned back into a space (1.6)"),
            Mistake("control-tokens-shown", "elif id >= 259:", "else:", "<s> and </s> are written into the text; they have none"),
        ),
    ),
}
