# %% [markdown] lang="en"
# # 01 · Text to tokens, the LLaMA way
#
# **Question.** LLaMA reads whole numbers between 0 and 31,999. How does any text become such numbers, and come back, without losing a space? And why does LLaMA give every digit of 2023 a token of its own, when one token for the number would be shorter?
#
# After this lesson you can train byte-pair encoding by hand, and encode and decode with it. You can also say what LLaMA's three rules are for, and what a larger vocabulary costs and saves.
#
# *Needs:* nothing; section 8 uses the excess of [00 · Baselines](00_baselines.ipynb). *Paper:* LLaMA §2.1; Sennrich et al. 2016 (arXiv:1508.07909), Algorithm 1; Kudo & Richardson 2018 (arXiv:1808.06226). *Code:* [`minillama/text/bpe.py`](../minillama/text/bpe.py); the same with SentencePiece's library: [`tokenizer.py`](../minillama/text/tokenizer.py); the file of both: [`model_file.py`](../minillama/text/model_file.py). *Time:* 40 minutes to read and solve, half a minute to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/
import math
import re
from collections import Counter
from types import SimpleNamespace
from unittest import mock

import numpy as np

from lessons import FAST, check, claim, lab, plt, record
from minillama import nn
from minillama.config import ModelConfig, TrainConfig
from minillama.engine.numpy_engine import NumpyEngine
from minillama.text import bpe
from minillama.text.sources import builtin_sources
from minillama.train import train_step

# %% [markdown] lang="en"
# ## 1 · Text is bytes already
#
# Every character has a number, its *code point*, and UTF-8 writes it in one to four bytes. The first byte says how many; the following ones all begin with the bits 10. The bits x are those of the code point:
#
# $$\begin{aligned}&\texttt{0xxxxxxx} && \text{below } 2^7 \qquad && \texttt{1110xxxx 10xxxxxx 10xxxxxx} && \text{below } 2^{16}\\ &\texttt{110xxxxx 10xxxxxx} && \text{below } 2^{11} && \texttt{11110xxx 10xxxxxx 10xxxxxx 10xxxxxx} && \text{the rest}\end{aligned} \tag{1.1}$$
#
# By hand: 你 is U+4F60, in bits 0100 111101 100000. Put into the third pattern: 1110**0100** 10**111101** 10**100000**, that is E4 BD A0.

# %%
by_hand = bytes([0b11100000 | 0b0100, 0b10000000 | 0b111101, 0b10000000 | 0b100000])
print("(1.1) by hand:", by_hand.hex(" "), "  Python:", "你".encode().hex(" "))
for character in "aé你🙂":
    data = character.encode("utf-8")
    print(f"{character!r} U+{ord(character):04X}: {len(data)} byte(s), {' '.join(f'{b:08b}' for b in data)}")
claim("(1.1) by hand is what Python writes", by_hand == "你".encode())

# %% [markdown] lang="en"
# So 256 tokens, one for every byte, are enough for every text there is. But the text becomes long: one token a byte, three for 你. Whole words as tokens would make it short. But there are always new words, and a word that is not in the list would be lost. **Byte-pair encoding** (BPE) stands between the two. It starts from characters and learns which pieces make the text shorter.

# %% [markdown] lang="en"
# ## 2 · Training: join the most frequent neighbours
#
# A text has words $w$, each of them $f_w$ times, and each cut into symbols $s_1 s_2 \dots$, at first its characters. Count the neighbours, and join the most frequent pair into one new symbol, everywhere. Repeat.
#
# $$c(l, r) = \sum_w f_w \cdot \bigl|\{\,i : s_i = l,\; s_{i+1} = r\,\}\bigr| \tag{1.2}$$
# $$(l^*, r^*) = \arg\max\, c(l, r), \qquad \text{of equals, the smaller pair} \tag{1.3}$$
#
# The bars in (1.2) mean "how many": the places $i$ in the word where the pair stands.
#
# By hand, with Sennrich's words: *low* 5 times, *lower* 2, *newest* 6, *widest* 3. The pair e s stands in *newest* and *widest*: $6 + 3 = 9$.

# %%
words = Counter({"low": 5, "lower": 2, "newest": 6, "widest": 3})
count = Counter()
for word, times in words.items():
    for i in range(len(word) - 1):
        count[word[i] + " " + word[i + 1]] += times
print("counts (1.2):  ", count.most_common(5))
merges = bpe.learn_merges(words, sorted(set("".join(words))), 7)
print("learned (1.3): ", merges)
claim("a tie of 9 to 9 is decided by the order of the characters",
      count["e s"] == count["s t"] == 9 and merges[0] == "es")

# %% [markdown] lang="en"
# Here is a tie already: e s and s t, 9 each. The choice hardly matters, but there must be a rule, or two programs learn two vocabularies from one text. After es, the pair es t has 9 as well, so *est* comes next. It is not a word, but a useful piece.

# %% [markdown] lang="en"
# **What a merge saves.** Let the text have $N$ symbols. Each place that is merged takes two symbols away and adds one. With $n$ such places:
#
# $$N' = N - 2n + n = N - n \tag{1.4}$$
#
# Usually $n = c$. But *aaa* holds a a twice, and the places overlap: $c = 2$, $n = 1$. A run of $k$ equal symbols has $c = k - 1$ and $n = \lfloor k/2 \rfloor$ ($\lfloor\,\rfloor$: rounded down). After a merge, go on *behind* it.

# %%
for k in (2, 3, 4, 5):
    word = ["a"] * k
    bpe.merge_word(word, "a", "a")
    print(f"{'a' * k:<6} c = {k - 1}, n = {k - len(word)}  ->  {' '.join(word)}")
    assert k - len(word) == k // 2

# %% [markdown] lang="en"
# ### Your turn: one step of training
#
# Symbols are ids here, whole numbers. "The smaller pair" compares the first ids, and then the second: $(3, 9)$ is smaller than $(4, 1)$. Count, choose, merge.

# %%
from lessons.checks.tokens import merge_step  # exercise

# %%
check("01.merge_step", merge_step)

# %% [markdown] lang="en"
# ## 3 · Encoding: the same merges, in the same order
#
# A new text is cut into characters, and the merges are done again, **in the order in which they were learned**. Ids are given in that order, so the next merge is the one whose joined piece has the smallest id:
#
# $$i^* = \arg\min_i\; \mathrm{id}(s_i s_{i+1}) \quad \text{over all } i \text{ with } s_i s_{i+1} \text{ in the vocabulary; of equals, the leftmost} \tag{1.5}$$
#
# Not from left to right, and not the longest piece first. By hand, take *abcd* and the pieces ab, abc and cd, learned in this order: ab c d, then abc d. With the order ab, cd, abc it is ab c d, then ab cd.

# %%
def pieces_of(vocabulary, text):
    """The pieces that a text is cut into."""
    return [vocabulary.pieces[id][0] for id in vocabulary.encode(text)]


specials = bpe.SPECIALS + [(piece, 0.0, bpe.BYTE) for piece in bpe.BYTE_PIECES]


def toy(*learned):
    """A vocabulary of these pieces, learned in this order."""
    return bpe.BPE(specials + [(piece, -float(rank), bpe.NORMAL) for rank, piece in enumerate(learned)])


letters = ["a", "b", "c", "d", "▁"]
for learned in (("ab", "abc", "cd"), ("ab", "cd", "abc"), ("cd", "ab", "abc")):
    print("learned", ", ".join(learned), " ->", pieces_of(toy(*learned, *letters), "abcd"))

# %% [markdown] lang="en"
# The order is a part of the vocabulary: with cd before abc, *abcd* is cut into ab and cd, although abc is a piece and longer. In a tokenizer's file, each piece has a *score*, and the score is minus its place in this order.

# %% [markdown] lang="en"
# ## 4 · LLaMA's three rules
#
# **Spaces are marked.** A space is written ▁ (U+2581), and one is put in front of every text. Then a word is the same piece at the start of a text and inside it, and spaces come back exactly as they were:
#
# $$\text{text} \;\to\; \text{▁} + \text{text with ▁ for every space} \tag{1.6}$$
#
# No piece reaches across the start of a word: ▁ begins a piece, or stands in a piece of nothing but ▁.

# %% [markdown] lang="en"
# **Digits stand alone.** No piece has a digit and something else, not even ▁:
#
# $$\text{a cut before and behind every digit} \tag{1.7}$$

# %%
names = {True: "LLaMA's rules", False: "without the digit rule"}
NO_DIGITS = re.compile("(?!)")  # matches nothing


def train(texts, size, digits=True):
    """A vocabulary by LLaMA's rules, or by all of them but (1.7)."""
    with mock.patch("minillama.text.bpe._DIGIT", bpe._DIGIT if digits else NO_DIGITS):
        return bpe.train_bpe(texts, size)


def text_of(seed, side, characters=200_000):
    """The documents of the built-in text, those to train on or those held out."""
    sources = builtin_sources(seed, characters)
    return [text for source in sources for where, chunks, _ in source.documents(0.1) if where == side
            for text in chunks]


built_in = text_of(0, "train")
usual, whole = train(built_in, 600), train(built_in, 1300, digits=False)
for vocabulary in (usual, whole):
    print([pieces_of(vocabulary, text) for text in ("the owls", "Tom saw 42 owls", "  42")])

# %% [markdown] lang="en"
# ### Your turn: where no piece may reach across
#
# These two rules, (1.6) and (1.7), as an array of whole numbers: 1 wherever there is a cut, else 0.

# %%
from lessons.checks.tokens import cuts  # exercise

# %%
check("01.cuts", cuts)

# %% [markdown] lang="en"
# **Bytes catch the rest.** The vocabulary begins with 3 special tokens, `<unk>`, `<s>` and `</s>`. Then come the 256 bytes, then the learned pieces, then the characters. A character that is no piece is written in its UTF-8 bytes:
#
# $$\mathrm{id}(\text{byte } b) = 3 + b, \qquad b = 0 \dots 255 \tag{1.8}$$
#
# So `<unk>` is never needed. By hand: 你 is E4 BD A0, that is 228, 189, 160, so its ids are 231, 192, 163.

# %%
print("(1.8):", usual.encode("你"), [usual.pieces[id][0] for id in usual.encode("你")])
claim("the ids of 你 are those of its bytes", usual.encode("你")[1:] == [3 + b for b in "你".encode()])

# %% [markdown] lang="en"
# ### Your turn: encode
#
# (1.5), (1.6) and (1.8). The digit rule needs no line: no longer piece with a digit was learned, so none can be made.

# %%
from lessons.checks.tokens import encode_text  # exercise

# %%
check("01.encode_text", encode_text)

# %% [markdown] lang="en"
# ## 5 · The picture: two texts, cut in four ways

# %%
def four_ways(text):
    """name -> tokens, as they are to be drawn."""
    def unknown_lost(vocabulary):
        known = re.sub("[^\0-\x7f]+", "\0", text)  # a run of unknown characters becomes one <unk>
        return [piece.replace("<0x00>", "<unk>") for piece in pieces_of(vocabulary, known)]

    ways = {"bytes": [f"<0x{b:02X}>" for b in text.encode("utf-8")], "BPE": unknown_lost(whole)}
    return ways | {"+ digits stand alone": unknown_lost(usual), "+ byte fallback": pieces_of(usual, text)}


def strip(axis, ways):
    """One row a way: a box for every token."""
    for row, (name, tokens) in enumerate(ways.items()):
        x = 0.0
        for k, token in enumerate(tokens):
            byte = token.startswith("<0x")
            label = token[3:5] if byte else token
            colour = "#D55E00" if token == "<unk>" else "#F3D9A4" if byte else ("#9CCBE8", "#CDE6F5")[k % 2]
            width = 1.1 + len(label)
            axis.add_patch(plt.Rectangle((x, -row - 0.36), width - 0.12, 0.72, color=colour, linewidth=0))
            axis.text(x + width / 2 - 0.06, -row - 0.02, label, ha="center", va="center", family="monospace",
                      fontsize=9.5)
            x += width
        axis.text(-0.8, -row, name, ha="right", va="center")
        axis.text(x + 0.6, -row, f"{len(tokens)}", ha="left", va="center", color="#555555")
    axis.set(xlim=(-14, 49), ylim=(-3.6, 0.6), xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[["left", "bottom"]].set_visible(False)


# %%
first, second = four_ways("2023+1999=4022"), four_ways("你好🙂")
fig, axes = plt.subplots(2, 1, figsize=(7.2, 4.2))
for axis, ways, title in zip(axes, (first, second),
                             ("2023+1999=4022", "U+4F60 U+597D U+1F642, two Chinese characters and a smiling face")):
    strip(axis, ways)
    axis.set_title(title)
plt.show()
claim("without the digit rule, two numbers of four digits are cut in different ways",
      [len(p) for p in first["BPE"] if p.isdigit()][1:] == [2, 1, 1, 2, 2])
claim("without bytes, three characters are one <unk>", second["BPE"] == ["▁", "<unk>"])
claim("with them, nothing is lost", usual.decode(usual.encode("你好🙂")) == "你好🙂")

# %% [markdown] lang="en"
# Blue: learned pieces; yellow: bytes; red: what cannot be undone; grey: the number of tokens. **Look at the columns of the sum.** Without the digit rule, 1999 is 19, 9, 9 and 4022 is 40, 22. Which token holds the hundreds depends on the pairs of digits that the training text happened to have. With the rule, a number always has one token per digit.

# %% [markdown] lang="en"
# A text in another language becomes longer if the vocabulary lacks its characters. Below are four lines by the poet Li Bai: first with the vocabulary of the built-in English text, then with one learned from the poem itself.

# %%
poem = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
# bytes and specials, its characters, ▁, and room for one merge
own = bpe.train_bpe([poem], 259 + len(set(poem)) + 1 + 1)
print(len(poem), "characters;", len(usual.encode(poem)), "tokens;", len(own.encode(poem)),
      "with a vocabulary of its own:")
print(" ".join(pieces_of(own, poem)))
claim("three tokens a character, or fewer than one",
      len(usual.encode(poem)) == 3 * len(poem) + 1 and len(own.encode(poem)) < len(poem))

# %% [markdown] lang="en"
# ## 6 · Decoding: collect the bytes first
#
# Join the pieces, turn ▁ back into a space, and drop the one space that (1.6) has put in front. Only the bytes need care: **one byte is not a character**. E4 alone cannot be read; E4 BD A0 is 你. A model that writes token by token must hold such bytes back:

# %%
stream = bpe.TextStream(usual.pieces)
for id in usual.encode("owls 你!"):
    print(f"{usual.pieces[id][0]:<8} -> {stream.push(id)!r}")

# %% [markdown] lang="en"
# A model may also write bytes that are no character at all, since nothing forbids it. Such a byte becomes U+FFFD, the mark for "unreadable"; it must neither stop the program nor vanish.
#
# ### Your turn: decode
#
# The check compares numbers, so return the text as its UTF-8 bytes. They are not the bytes of the ids: a byte that cannot be read must have become U+FFFD.

# %%
from lessons.checks.tokens import decode_ids  # exercise

# %%
check("01.decode_ids", decode_ids)

# %% [markdown] lang="en"
# SentencePiece, the library that LLaMA used, is written in C++. Where it is installed, the next cell gives it *our* vocabulary, as a file's bytes, and compares:

# %%
try:
    from minillama.text.tokenizer import Tokenizer
    tests = ["2023+1999=4022", "你好🙂", "  two  spaces ", poem, "Tom saw 42 owls.", *text_of(0, "val")[:50]]
    library = Tokenizer(usual.to_bytes())
    claim("SentencePiece cuts every text as we do", all(library.encode(text) == usual.encode(text) for text in tests))
    claim("and both give it back unchanged",
          all(library.decode(usual.encode(text)) == usual.decode(library.encode(text)) == text for text in tests))
except ImportError:
    print("SentencePiece is not installed: nothing to compare")

# %% [markdown] lang="en"
# ## 7 · How large should the vocabulary be?
#
# A larger one makes texts shorter, but each new piece saves less, as the best pairs come first. And it has a price. The **embedding** is a table: each of the $V$ tokens has a row of $D$ numbers there, with which the model begins. The output head ([00](00_baselines.ipynb)) has a row of $D$ for each token, too:
#
# $$\text{parameters} = P + 2VD, \qquad P: \text{all that lies between the two} \tag{1.9}$$

# %% [markdown] lang="en"
# Now the arithmetic. A row of the embedding is looked up, at no cost. The head is a product with all $V$ rows, for every token. A weight costs 2 **FLOPs** (floating-point operations), one multiplication and one addition. So a text of $N$ tokens costs about
#
# $$C = 2\,N\,(P + VD) \tag{1.10}$$
#
# (This leaves out attention's scores, which [07](07_llama.ipynb) counts.)

# %% [markdown] lang="en"
# One more merge makes $N - n$ out of $N$, by (1.4), and $V + 1$ out of $V$. It pays if $(N - n)(P + VD + D) < N(P + VD)$. Multiply out, and cancel $N(P + VD)$: $ND < n(P + VD + D)$. So
#
# $$\text{a merge pays if}\quad \frac nN > \frac{D}{P + (V + 1)D} \tag{1.11}$$
#
# By hand: the tiny model of these lessons ("bench" below) has $D = 32$ and $P =$ {{P:,.0f}}. At $V = 400$ a merge must save a share of $32/(P + 401\cdot 32)$, one token in {{one_in:,.0f}}. First we check (1.9) and (1.4) on the real code:

# %%
bench = lambda V: ModelConfig(vocab_size=V, **lab.MODEL)
P = nn.count_params(bench(400)) - 2 * 400 * 32
print("(1.9) is off by", nn.count_params(bench(500)) - (P + 2 * 500 * 32), f"  P = {P:,}")
record(P=P, one_in=(P + 401 * 32) / 32)


def largest(texts, digits=True):
    """The largest vocabulary that a text supports, and how many of its pieces were merged."""
    try:
        train(texts, 60_000, digits)
    except bpe.VocabularyTooLarge as error:
        full = train(texts, error.largest, digits)
    return full, sum(kind == bpe.NORMAL and len(piece) > 1 for piece, _, kind in full.pieces)


def first_merges(full, all_merges, m):
    """The vocabulary with the first m merges only: what training would have given after m steps."""
    return bpe.BPE(full.pieces[:259 + m] + full.pieces[259 + all_merges:])


def savings(texts, merges):
    """Tokens that each merge saves in a text: n of (1.4)."""
    words = bpe.count_words(bpe.split_sentences(texts))
    symbols, saved = {word: list(word) for word in words}, []
    for piece in merges:
        inside = [word for word in words if piece in word]
        before = {word: len(symbols[word]) for word in inside}
        for word in inside:
            for i in range(1, len(piece)):  # one of these ways to cut it is the pair that was merged
                bpe.merge_word(symbols[word], piece[:i], piece[i:])
        saved.append(sum(words[word] * (before[word] - len(symbols[word])) for word in inside))
    return np.array(saved)


# %%
full, M = largest(built_in)
saved = savings(built_in, [piece for piece, _, _ in full.pieces[259:259 + M]])
length = lambda m: sum(len(first_merges(full, M, m).encode(text)) for text in built_in[:200])
few = savings(built_in[:200], [piece for piece, _, _ in full.pieces[259:259 + 100]])
print("(1.4), 100 merges on 200 documents, is off by", length(0) - length(100) - few.sum())
claim("(1.4) counts every token that is saved", length(0) - length(100) == few.sum())

# %% [markdown] lang="en"
# Now the measurement, for three draws of the built-in text. On the left: tokens per byte of *held-out* text, with and without the digit rule. On the right: what each merge saves, beside the limit of (1.11) for our tiny model and for LLaMA-7B.

# %%
steps = (0, 10, 20, 40, 80, 160, 320) if FAST else (0, 5, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 640, 1280)
ratio = {}
for digits in (True, False):
    curves = []
    for seed in range(3):
        vocabulary, merged = largest(text_of(seed, "train"), digits)
        held_out = text_of(seed, "val")
        size = sum(len(text.encode("utf-8")) for text in held_out)
        parts = [first_merges(vocabulary, merged, m) for m in (*(m for m in steps if m < merged), merged)]
        curves.append([(part.vocab_size, sum(len(part.encode(text)) for text in held_out) / size) for part in parts])
    ratio[digits] = np.array(curves)  # (seeds, sizes, 2)

seven = ModelConfig(dim=4096, n_layers=32, n_heads=32, vocab_size=32_000)
P7 = nn.count_params(seven) - 2 * 32_000 * 4096
characters = sum(times * len(word) for word, times in bpe.count_words(bpe.split_sentences(built_in)).items())
N = characters - np.cumsum([0, *saved])  # (M + 1,)
V = len(full.pieces) - M + np.arange(M + 1)  # before the first merge, and after each
share, limit = saved / N[:-1], {"bench": 32 / (P + (V[:-1] + 1) * 32), "7B": 4096 / (P7 + (V[:-1] + 1) * 4096)}
cheapest = int(np.argmin(N * (P + V * 32)))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6))
for digits, colour in zip((True, False), lab.COLOURS):
    x, y = ratio[digits][..., 0].mean(0), ratio[digits][..., 1]
    left.plot(x, y.mean(0), "o-", color=colour, markersize=3, label=names[digits])
    left.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.3, linewidth=0)
left.set(xscale="log", xlabel="vocabulary size V", ylabel="tokens per byte, held-out text", ylim=(0, 1.1))
left.set_xticks([300, 600, 1200, 2400], ["300", "600", "1200", "2400"])
left.minorticks_off()
left.set_title("A larger vocabulary, a shorter text")
left.legend()
rank = np.arange(1, M + 1)
right.plot(rank, np.maximum(share, 1e-8), ".", color=lab.COLOURS[0], markersize=3)
right.plot(rank, limit["bench"], color=lab.COLOURS[1])
right.plot(rank, limit["7B"], color=lab.COLOURS[2])
right.annotate("pays in our tiny model", (1.2, limit["bench"][0]), xytext=(0, 4), textcoords="offset points",
               color=lab.COLOURS[1], fontsize=9)
right.annotate("pays in LLaMA-7B", (1.2, limit["7B"][0]), xytext=(0, 4), textcoords="offset points",
               color=lab.COLOURS[2], fontsize=9)
right.set(xscale="log", yscale="log", xlabel="merge number", ylabel="share of the tokens it saves", ylim=(1e-7, 0.2))
right.set_title("When a merge pays: above the line")
plt.show()

# %% [markdown] lang="en"
# Bytes alone would be at 1. The three draws of the text agree so well that the line hides their band. With LLaMA's rules the curve falls from {{chars:.2f}} with single characters to {{flat:.2f}} tokens per byte. From about 600 pieces on, nothing more is gained: by then every word of this small language is one piece. **The digit rule has a price**: the other curve goes on to {{no_rule:.2f}}, with whole numbers as pieces.

# %% [markdown] lang="en"
# On the right: for our model, merges pay up to number {{cheapest:.0f}}. There (1.10), for the whole text, has its minimum. LLaMA-7B has a far larger $P$, so every merge pays that saves a single token of this text. (The last merges save nothing, since every word is one piece already; they lie below the picture.)

# %%
y = {digits: ratio[digits][..., 1] for digits in ratio}
record(chars=y[True][:, 0].mean(), flat=y[True][:, -1].mean(), no_rule=y[False][:, -1].mean(), cheapest=cheapest,
       best_V=V[cheapest])
claim("the first merges are worth most: 40 of them save a quarter of the tokens", N[40] < 0.75 * N[0])
at_650 = y[True][:, ratio[True][0, :, 0] < 650][:, -1]
claim("with LLaMA's rules nothing more is gained beyond 650 pieces, in any draw",
      (np.abs(y[True][:, -1] - at_650) < 0.02).all())
claim("the digit rule costs at least a fifth more tokens at the right end, in every draw",
      (y[True][:, -1] > 1.2 * y[False][:, -1]).all())
pays = share > limit["bench"]
claim("(1.11) finds the minimum of (1.10)", pays[:cheapest].mean() > 0.97 and not pays[cheapest:].any())
claim("for LLaMA-7B every merge that saves anything pays", (share[saved > 0] > limit["7B"][saved > 0]).all())

# %% [markdown] lang="en"
# **Why 32,000?** The paper gives no reason; the number itself is known from the released file. By (1.11), one more piece pays for a 7B model at $V = 32{,}000$ if it saves one token in {{seven_in:.1f}} million. So the vocabulary could be far larger. Two things speak against it. A rare piece is a row of parameters that is hardly ever trained. And (1.9) is memory: in a small model, half of all parameters or more.

# %%
record(seven_in=(P7 + 32_001 * 4096) / 4096 / 1e6)
shapes = {"this bench": bench(400), "7B": seven,
          "65B": ModelConfig(dim=8192, n_layers=80, n_heads=64, vocab_size=32_000)}
for name, config in shapes.items():
    rest = nn.count_params(config) - 2 * config.vocab_size * config.dim
    percent = lambda V: 200 * V * config.dim / (rest + 2 * V * config.dim)
    print(f"{name:<11} D = {config.dim:>5}: embedding and head are {percent(config.vocab_size):4.1f} % of the "
          f"parameters at V = {config.vocab_size:,}",
          f"and {percent(128_000):4.1f} % at 128,000")

# %% [markdown] lang="en"
# ## 8 · Do digits have to stand alone?
#
# The rule makes texts longer. What do we get for it? Take the smallest sum there is, one more: `437 then 438.` A tiny LLaMA is trained on such lines for 810 of the 900 numbers from 100 to 999. Then it is asked about the other 90. It was never asked about those, and never saw their answers as an answer.

# %% [markdown] lang="en"
# We compare three vocabularies: digits alone; no digit rule and 500 pieces, so that numbers are cut in several ways; no digit rule and a piece for every number (all but one).
#
# **Predict first:** which one is best on the numbers it was asked in training, and which on the new ones?

# %%
numbers = np.random.default_rng(0).permutation(np.arange(100, 1000))
unseen, seen = numbers[:90], numbers[90:]
line = lambda number: f"{number} then {number + 1}."
lines = [" ".join(map(line, seen))]
vocabularies = {"digits stand alone": train(lines, 283), "numbers in parts": train(lines, 500, digits=False),
                "whole numbers": train(lines, 1376, digits=False)}
shapes_of = {}
for name, vocabulary in vocabularies.items():
    cut = lambda number: tuple(len(piece.strip("▁")) for piece in pieces_of(vocabulary, str(number)) if piece != "▁")
    shapes_of[name] = Counter(map(cut, numbers.tolist()))
    print(f"{name:<19}", pieces_of(vocabulary, line(437)), " ways to cut a number:", dict(shapes_of[name]))
claim("with the rule every number is cut in one way, without it in several",
      len(shapes_of["digits stand alone"]) == 1 < len(shapes_of["numbers in parts"]))

# %% [markdown] lang="en"
# The answer follows from the question, so its entropy is zero: **its whole loss is excess**. We give it in bits per answer, nats divided by $\ln 2$. Guessing among 900 numbers would cost $\log_2 900 = 9.8$ bits. The steps are minillama's own `train_step`. With the same seed, all three models see the same lines in the same order.

# %%
def batch_of(vocabulary, chosen, answers_only=False):
    """Lines as tokens and targets, (B, T) each, padded with IGNORE; answers_only: the second number alone is scored."""
    rows = [vocabulary.encode(line(number), bos=True) for number in chosen]
    tokens = np.zeros((len(rows), max(map(len, rows)) - 1), np.int64)
    targets = np.full(tokens.shape, nn.IGNORE)
    for row, ids, number in zip(range(len(rows)), rows, chosen):
        first = len(vocabulary.encode(f"{number} then", bos=True)) - 1 if answers_only else 0
        last = len(ids) - (2 if answers_only else 1)  # the full stop is not the answer's
        tokens[row, :len(ids) - 1] = ids[:-1]
        targets[row, first:last] = ids[first + 1:last + 1]
    return tokens, targets


def bits_per_answer(vocabulary, seed, steps):
    """Train from this seed; bits per answer on numbers of the training lines and on new ones."""
    config = ModelConfig(vocab_size=vocabulary.vocab_size, **lab.MODEL)
    recipe = TrainConfig(steps=steps, batch_size=32, seq_len=16, lr=1e-2, warmup_steps=20, embedding_std=0.5, seed=seed)
    engine = NumpyEngine(config, recipe, threads=1)
    draw = lambda step, rows: batch_of(vocabulary, np.random.default_rng([seed, step]).choice(seen, rows))
    for _ in range(steps):
        train_step(engine, SimpleNamespace(batch=draw), recipe)
    return [engine.loss(*batch_of(vocabulary, group, True))[0] / len(group) / math.log(2)
            for group in (seen[:90], unseen)]


bits = {name: np.array([bits_per_answer(v, seed, 60 if FAST else 600) for seed in range(3)])
        for name, v in vocabularies.items()}
for name, found in bits.items():
    old, new = (f"{f.mean():5.2f} ({f.min():.2f} to {f.max():.2f})" for f in found.T)
    print(f"{name:<19} asked in training {old}   new {new}")

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.0))
for k, (label, colour) in enumerate((("asked in training", lab.COLOURS[0]), ("new numbers", lab.COLOURS[1]))):
    for row, found in enumerate(bits.values()):
        y = row + (-0.14, 0.14)[k]
        axis.plot([found[:, k].min(), found[:, k].max()], [y, y], color=colour, linewidth=6, alpha=0.25,
                  solid_capstyle="round")
        axis.plot(found[:, k], [y] * 3, "o", color=colour, markersize=6, label=label if row == 0 else None)
axis.axvline(math.log2(900), color="#666666", linewidth=1, linestyle=":")
axis.annotate("guessing", (math.log2(900), 2.42), xytext=(4, 0), textcoords="offset points", color="#666666")
axis.set(yticks=range(3), yticklabels=list(bits), ylim=(2.55, -0.5), xlim=(-0.3, None),
         xlabel="excess (bits per answer; dots: three seeds, bar: their band)")
axis.grid(axis="y", visible=False)
axis.set_title("One more: only single digits carry over to new numbers")
axis.legend(loc="upper right")
plt.show()

# %% [markdown] lang="en"
# With single digits the model pays {{digits_new:.1f}} bits for a new number and {{digits_old:.1f}} for one it was asked in training: it has nearly learned to *count*. With whole numbers every line is a fact of its own, and 600 steps are too few to learn 810 facts ({{whole_old:.1f}} bits). A new number then costs {{whole_new:.1f}} bits, more than guessing. Its answer was never an answer in training, so the model has learned not to expect it. Numbers in parts are between the two: {{parts_new:.1f}} bits.

# %%
alone, parts, complete = bits.values()
record(digits_old=alone[:, 0].mean(), digits_new=alone[:, 1].mean(), parts_new=parts[:, 1].mean())
record(whole_old=complete[:, 0].mean(), whole_new=complete[:, 1].mean())
claim("on new numbers, single digits are better than parts by a bit at least, at every seed",
      alone[:, 1].max() + 1 < parts[:, 1].min(), fast=False)
claim("on new numbers, whole numbers are worse than guessing, at every seed", complete[:, 1].min() > math.log2(900) + 1,
      fast=False)
claim("single digits pay less than 3 bits more for a new number than for an old one",
      (alone[:, 1] - alone[:, 0]).max() < 3, fast=False)
claim("whole numbers pay more than 3 bits more", (complete[:, 1] - complete[:, 0]).min() > 3, fast=False)

# %% [markdown] lang="en"
# **What does not show at this scale.** *Real language*: ours has few words, so its curve is flat from 600 pieces on. Real text always has new words, and the curve goes on falling. *That whole numbers always lose*: if every number is seen often and in every place, none is new, and the texts are shorter. We have not measured that. *What the rule brings on the built-in sums*: they are written column by column, digit by digit, so the rule changes little there.

# %% [markdown] lang="en"
# ## The anchor in the paper
#
# LLaMA §2.1: byte-pair encoding with SentencePiece; "we split all numbers into individual digits, and fallback to bytes to decompose unknown UTF-8 characters". The released file has 32,000 pieces, in the order of (1.8): 3 special tokens, 256 bytes, then the merges as they were learned, then single characters. `minillama/text/model_file.py` reads and writes files of this format.

# %% [markdown] lang="en"
# ## Three questions
#
# 1. Two people train BPE on the same text and get different vocabularies. Name two places where a rule that was left open could do this.
# 2. Why must the merges be done in the order they were learned, and not from left to right?
# 3. You make the model ten times larger. Should the vocabulary grow, by (1.11), and what does (1.11) leave out?
#
# <details><summary>Answers</summary>
#
# 1. Ties in (1.3), and whether *aaa* counts as one a a or two in (1.2). Also the rules (1.6) and (1.7) themselves.
# 2. The model was trained on text that was merged in this order. In another order other pieces come out, and some of them the model has hardly ever seen.
# 3. Yes: $P$ grows faster than $D$, so the limit falls. (1.11) leaves out that the row of a rare piece must be *learned*, from few examples. It also leaves out attention's scores, whose cost grows with the square of the length: they speak for a larger vocabulary.
#
# </details>
#
# **The way on:** [02 · Gradients](02_gradients.ipynb), what is done to these rows of numbers; [12 · Data](12_data.ipynb), which texts the tokens come from.
