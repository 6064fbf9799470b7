"""Right answers to the exercises of lesson 01, written in other ways than the solutions."""
import codecs
import re
from collections import Counter
from itertools import groupby, pairwise

import numpy as np

from minillama.text import bpe
from minillama.text.model_file import BYTE, NORMAL, SPECIALS


# ---- merge_step ----
def merge_step_counter(words, counts, new_id):
    count = Counter()
    for word, times in zip(words, counts):
        for pair in pairwise(word):
            count[pair] += times
    most = max(count.values())
    left, right = min(pair for pair in count if count[pair] == most)
    out = []
    for word in words:
        begin = len(out)
        for id in word:
            if id == right and len(out) > begin and out[-1] == left:
                out[-1] = new_id
            else:
                out.append(id)
    return (left, right), out


def merge_step_code(words, counts, new_id):
    """With the project's own merge_word, on copies."""
    count = Counter()
    for word, times in zip(words, counts):
        count.update({pair: times * n for pair, n in Counter(pairwise(word)).items()})
    pair = sorted(count, key=lambda p: (-count[p], p))[0]
    name = {id: chr(id) for word in words for id in word}
    copies = [[name[id] for id in word] for word in words]
    for word in copies:
        bpe.merge_word(word, name[pair[0]], name[pair[1]])
    return list(pair), [new_id if len(piece) > 1 else ord(piece) for word in copies for piece in word]


def merge_step_table(words, counts, new_id):
    """A table of all pairs in NumPy, and the merge as a replacement in a text."""
    table = np.zeros((new_id, new_id), int)
    for word, times in zip(words, counts):
        np.add.at(table, (word[:-1], word[1:]), times)
    pair = np.unravel_index(table.argmax(), table.shape)
    text = "\n".join("".join(map(chr, word)) for word in words)
    text = text.replace(chr(pair[0]) + chr(pair[1]), chr(new_id)).replace("\n", "")
    return np.array(pair), np.array([ord(c) for c in text], np.int32)


# ---- encode ----
def encode_by_rank(text, ids):
    """Every piece in the order it was learned, all its places from the left."""
    symbols = ["▁", *("▁" if c == " " else c for c in text)]
    for piece in sorted(ids, key=ids.get):
        joined = []
        for symbol in symbols:
            if joined and joined[-1] + symbol == piece:
                joined[-1] = piece
            else:
                joined.append(symbol)
        symbols = joined
    return [id for symbol in symbols for id in ([ids[symbol]] if symbol in ids else [b + 3 for b in bytes(symbol, "utf-8")])]


def encode_recursive(text, ids):
    def go(symbols):
        ranks = [ids.get(a + b, 10**9) for a, b in pairwise(symbols)]
        if min(ranks, default=10**9) == 10**9:
            return symbols
        i = ranks.index(min(ranks))
        return go((*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2:]))

    out = []
    for symbol in go(tuple(("\N{LOWER ONE EIGHTH BLOCK}" + text).replace(" ", "\N{LOWER ONE EIGHTH BLOCK}"))):
        out.extend([ids[symbol]] if symbol in ids else np.frombuffer(symbol.encode(), np.uint8).astype(int) + 3)
    return np.array(out)


def encode_code(text, ids):
    learned = [(piece, -float(ids[piece]), NORMAL) for piece in sorted(ids, key=ids.get)]
    return bpe.BPE(SPECIALS + [(f"<0x{b:02X}>", 0.0, BYTE) for b in range(256)] + learned).encode(text)


# ---- cuts ----
def cuts_numpy(text):
    c = np.array(list(text))
    digit, mark = np.char.isdigit(c), c == "▁"
    cut = digit | np.roll(digit, 1) | (mark & ~np.roll(mark, 1))
    cut[0] = False
    return cut.astype(int)


def cuts_regex(text):
    starts = {match.start() for match in re.finditer(r"[0-9]|▁+(?=[0-9]|$)|▁*[^▁0-9]+", text)}
    return [int(i in starts and i > 0) for i in range(len(text))]


def kind(character):
    return "digit" if character in "0123456789" else "mark" if character == "▁" else "letter"


def cuts_groups(text):
    """Runs of one kind: every digit begins one, so does a run of marks; a run of letters does only after a digit."""
    out = []
    before = ""
    for name, run in groupby(text, kind):
        n = len(list(run))
        first = name != "letter" or before == "digit"
        out += [1] * n if name == "digit" else [int(first)] + [0] * (n - 1)
        before = name
    return np.array([0, *out[1:]], float)


# ---- decode ----
def decode_code(ids, pieces):
    table = SPECIALS + [(piece, 0.0, BYTE) for piece in pieces[3:259]] + [(piece, -1.0, NORMAL) for piece in pieces[259:]]
    return list(bpe.BPE(table).decode(ids).encode())


def decode_incremental(ids, pieces):
    reader, text = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for id in ids:
        if id > 258:
            text += reader.decode(b"", True) + pieces[id]
        elif id > 2:
            text += reader.decode(bytes([int(pieces[id][1:-1], 16)]))
    text = (text + reader.decode(b"", True)).replace("▁", " ")
    return np.array(bytearray((text[1:] if text[0] == " " else text).encode()), int)


def decode_runs(ids, pieces):
    out = []
    for is_byte, run in groupby((id for id in ids if id > 2), lambda id: id < 259):
        part = list(run)
        out.append(bytes(id - 3 for id in part).decode("utf-8", "replace") if is_byte else "".join(pieces[id] for id in part))
    text = "".join(out)
    return np.frombuffer(text[text.startswith("▁"):].replace("▁", " ").encode(), np.uint8)


RIGHT = {
    "01.merge_step": [merge_step_counter, merge_step_code, merge_step_table],
    "01.encode_text": [encode_by_rank, encode_recursive, encode_code],
    "01.cuts": [cuts_numpy, cuts_regex, cuts_groups],
    "01.decode_ids": [decode_code, decode_incremental, decode_runs],
}
