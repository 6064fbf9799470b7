# %% [markdown] lang="en"
# # 00 · Baselines: what is a good loss?
#
# **Question.** A training run prints `loss 0.81`. Is that good? What would a model that knows nothing reach, what would one that only counts reach, and how low can anybody go?
#
# After this lesson you can compute the loss of a language model by hand and turn it into perplexity and bits per byte. You can also say of a loss what it means: a fresh model, a counting model, a learned one, or a bug.
#
# *Needs:* a little NumPy, and what a logarithm is. Nothing else; this is the first lesson. *Paper:* LLaMA §2.1 and Figure 1; Shannon 1948 and 1951. *Code:* [`minillama/nn/cross_entropy.py`](../minillama/nn/cross_entropy.py), [`minillama/evaluate.py`](../minillama/evaluate.py), [`minillama/text/corpus.py`](../minillama/text/corpus.py). *Time:* 40 minutes to read and solve, less than a minute to run.
#
# How to work with a lesson: run the cells from top to bottom. Where it says **Your turn**, write the function, run the check, and read its sentence. You cannot break anything.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/
import textwrap
import zlib

import numpy as np

from lessons import check, claim, lab, plt, record
from minillama import nn
from minillama.engine.numpy_engine import NumpyEngine
from minillama.generate import Sampling, generate
from minillama.text import corpus
from minillama.text.mixture import Mixture
from minillama.text.tokenizer import Tokenizer

# %% [markdown] lang="en"
# ## 1 · A guess, and its price
#
# A language model reads a text and guesses what comes next. It does not name one letter: it gives *every* letter a probability $q$. Then the true one, $y$, is shown, and the model pays its **surprise**:
#
# $$s = -\ln q(y) \tag{0.1}$$
#
# By hand: sure and right ($q = 1$) costs 0. A coin ($q = 1/2$) costs $\ln 2 = 0.69$. One of 400 ($q = 1/400$) costs $\ln 400 = 5.99$. "Impossible" ($q = 0$) costs infinitely much if it happens. The unit, with the natural logarithm, is the **nat**.

# %%
for q in (1, 1 / 2, 1 / 8, 1 / 400):
    print(f"q = {q:<7.4g} surprise {-np.log(q) + 0:.2f} nats")

# %% [markdown] lang="en"
# Why a logarithm? Because surprises then **add up** where probabilities multiply. A text is a row of **tokens** $y_1 \dots y_N$, here letters. Its probability is a product, one factor for each token $y_t$, given all the tokens before it, $y_{<t}$. So its surprise is a sum. The loss is the mean, the **cross-entropy**:
#
# $$L = -\frac1N\ln\prod_{t=1}^{N} q(y_t\,|\,y_{<t}) = -\frac1N\sum_{t=1}^{N}\ln q(y_t\,|\,y_{<t}) \tag{0.2}$$
#
# By hand: three letters, guessed with $1/2$, $1/4$ and $1/8$. The product is $1/64$. The loss is $(0.69 + 1.39 + 2.08)/3 = 1.39$, and that is $\ln(64)/3$.

# %%
guesses = np.array([1 / 2, 1 / 4, 1 / 8])
print("mean of the surprises:", -np.log(guesses).mean(), "  from the product:", -np.log(guesses.prod()) / 3)

# %% [markdown] lang="en"
# ## 2 · Where do the right answers come from?
#
# From the text itself. Nobody labels anything: what comes next *is* the label. This is called **self-supervision**. The targets are the text, shifted by one. So a text of $N$ tokens holds $N - 1$ exercises with their solutions.

# %%
text = "abracadabra"
print("tokens ", " ".join(text[:-1]), "\ntargets", " ".join(text[1:]))

# %% [markdown] lang="en"
# minillama does the same with a *batch*: several pieces of text, one in each row. A token there is a piece of a word, one of $V = 400$: the **vocabulary** ([01 · Text to tokens](01_tokens.ipynb) makes it). `<s>` and `</s>` are the start and the end of a document; the start itself is never asked for.

# %%
tokenizer, shards = lab.text()  # the built-in text, as all lessons use it: nothing is downloaded
V = tokenizer.vocab_size
batch = Mixture(shards, 64, 0, tokenizer.bos_id).batch(step=1, rows=8)
tokens, targets = batch  # (8, 64) each
piece = lambda i: tokenizer.pieces[i][0] if i >= 0 else "(not asked)"
for t in range(20, 27):
    print(f"after {piece(tokens[0, t])!r:<9} comes {piece(targets[0, t])!r}")
claim("the targets are the tokens, shifted by one",
      ((targets[:, :-1] == tokens[:, 1:]) | (targets[:, :-1] == nn.IGNORE)).all())

# %% [markdown] lang="en"
# ## 3 · From logits to nats
#
# A model's last layer, its **output head**, gives one number for each entry of the vocabulary, the **logits** $z$. They become probabilities by the **softmax**, $q_v = e^{z_v}/\sum_u e^{z_u}$. Put this into (0.1), with $\ln(a/b) = \ln a - \ln b$ and $\ln e^z = z$:
#
# $$s = -\ln\frac{e^{z_y}}{\sum_u e^{z_u}} = \ln\sum_u e^{z_u} - z_y \tag{0.3}$$
#
# By hand: $z = (0, \ln 3)$. The exponentials are 1 and 3, so $q = (1/4, 3/4)$. If entry 1 was right, $s = \ln 4 - \ln 3 = 0.29$.

# %%
z = np.array([0.0, np.log(3.0)])
print("softmax", np.exp(z) / np.exp(z).sum(), "  (0.3)", np.log(np.exp(z).sum()) - z[1])
print("minillama's own:", nn.cross_entropy_forward(z[None, None], np.array([[1]]))[0])

# %% [markdown] lang="en"
# On a computer, (0.3) has a trap: $e^{900}$ is infinite. Take the largest logit $m$ out of the sum, $\sum_u e^{z_u} = e^m\sum_u e^{z_u - m}$, and its logarithm is
#
# $$\ln\sum_u e^{z_u} = m + \ln\sum_u e^{z_u - m} \qquad m = \max_u z_u \tag{0.4}$$
#
# Now the largest exponential is $e^0 = 1$. And do not compute the probability first. For logits $(0, 900)$ that of entry 0 is $e^{-900}$. The computer rounds it to 0, and then (0.1) asks for the logarithm of 0.

# %%
z = np.array([0.0, 900.0])
m = z.max()
with np.errstate(all="ignore"):
    print("(0.3) as it stands:     ", np.log(np.exp(z).sum()) - z[0])
    print("probability first:      ", -np.log((np.exp(z - m) / np.exp(z - m).sum())[0]))
print("(0.4), then minus z_y:  ", m + np.log(np.exp(z - m).sum()) - z[0])

# %% [markdown] lang="en"
# ### Your turn: the surprise, from logits
#
# Write (0.3) with (0.4), for N tokens at once. If something is wrong, the check says what; `check(..., hint=True)` shows the line that was meant.

# %%
from lessons.checks.baselines import cross_entropy  # exercise

# %%
check("00.cross_entropy", cross_entropy)

# %% [markdown] lang="en"
# ## 4 · Three ways to say it
#
# **Perplexity**: between how many equally likely tokens does the model hesitate? One of $n$ costs $\ln n$, so we invert the logarithm. **Bits per byte**: one bit is a coin, $\ln 2$ nats. And the number of bytes does not depend on how a text is cut into tokens:
#
# $$\text{perplexity} = e^{L} \tag{0.5}$$
# $$\text{bits per byte} = \frac{L}{\ln 2}\cdot\frac{\text{tokens}}{\text{bytes}} \tag{0.6}$$
#
# By hand: $L = \ln 8 = 2.08$ nats per token is a perplexity of 8, and 3 bits per token. If a token has 2 bytes on average, it is 1.5 bits per byte.

# %%
L, n_tokens, n_bytes = np.log(8), 100, 200
print(f"{L:.2f} nats/token   perplexity {np.exp(L):.0f}   {L / np.log(2):.0f} bits/token   "
      f"{L / np.log(2) * n_tokens / n_bytes:.1f} bits/byte")

# %% [markdown] lang="en"
# Bits per byte is also a **compression rate**: with a model that pays 1.5 bits for each byte, the text can be stored in 1.5/8 of its size. So you can compare a language model with every compressor. Here is zlib, the one inside `.zip` and `.png`, on 120 documents of our text:

# %%
train_texts, held_texts = ([corpus.document(name, seed, i).text for name in corpus.SOURCES for i in range(count)]
                           for seed, count in ((0, 500), (1, 40)))
held_bytes = "\n".join(held_texts).encode("utf-8")
zlib_rate = 8 * len(zlib.compress(held_bytes, 9)) / len(held_bytes)
print(f"zlib: {zlib_rate:.2f} bits/byte")

# %% [markdown] lang="en"
# ### Your turn: the three units
#
# Given: the surprise of every token of a text, and the text. Return the loss, the perplexity, and the bits per byte. Take care: some letters have more than one byte.

# %%
from lessons.checks.baselines import units  # exercise

# %%
check("00.units", units)

# %% [markdown] lang="en"
# ## 5 · The ceiling: a model that knows nothing
#
# If all $V$ logits have the same value $c$, (0.3) gives $\ln(V e^{c}) - c = \ln V$. This lesson sets models of growing knowledge one above the other, as on a ladder, and this is the first rung. It is also **the first thing to check in any training run**:
#
# $$z_v = c\ \text{ for all } v \quad\Rightarrow\quad s = \ln V \tag{0.7}$$

# %%
equal = np.full((1, 1, V), 3.0)
print(f"all logits 3: {nn.cross_entropy_forward(equal, np.array([[7]]))[0]:.3f}   (0.7): ln {V} = {np.log(V):.3f}")

# %% [markdown] lang="en"
# A fresh model's logits are not equal but random, near 0, with some variance $\sigma^2$. If they are normal, the mean of $e^z$ is $e^{\sigma^2/2}$. To see it, complete the square in the exponent, $z - \frac{z^2}{2\sigma^2} = \frac{\sigma^2}{2} - \frac{(z-\sigma^2)^2}{2\sigma^2}$. The second part is a normal curve again, moved to $\sigma^2$. So the sum of $V$ of them is about $V e^{\sigma^2/2}$, while $z_y$ is 0 on average:
#
# $$L \approx \ln V + \frac{\sigma^2}{2} \tag{0.8}$$

# %%
rng = np.random.default_rng(0)
for sigma in (0, 0.1, 0.5, 1.0):
    z = sigma * rng.standard_normal((1, 5000, V))
    measured = nn.cross_entropy_forward(z, rng.integers(0, V, (1, 5000)))[0]
    print(f"sigma {sigma:<4} mean of e^z {np.exp(z).mean():.3f}, expected {np.exp(sigma**2 / 2):.3f}   loss "
          f"{measured:.3f}, (0.8) {np.log(V) + sigma**2 / 2:.3f}")

# %% [markdown] lang="en"
# How large is $\sigma$? The output head is a table of weights $W$, and a logit is $z_v = \sum_i W_{vi}\, n_i$. Here $n$ is a vector of $D$ numbers, all that the model has made of the text so far. A layer before the head, the final norm, scales it so that $\sum_i n_i^2 = D$ ([03 · RMSNorm](03_rmsnorm.ipynb)). The weights are drawn with standard deviation $w$. Variances of independent numbers add:
#
# $$\sigma^2 = \sum_i w^2 n_i^2 = w^2 D \tag{0.9}$$

# %% [markdown] lang="en"
# We ask the real model, here with $D = 32$. It starts from $w = 0.02$; we also try two heads with larger weights, "louder" ones. Five **seeds** each: a seed is the number from which all random draws of a run are made.

# %%
config = lab.configs({})[0]  # the tiny LLaMA of all lessons
D = config.dim


def first_loss(w, seed):
    """Loss of an untrained LLaMA whose output head is drawn with standard deviation w."""
    params = nn.init_params(config, seed, embedding_std=0.5)
    params["output"] = params["output"] * np.float32(w / 0.02)
    return float(nn.cross_entropy_forward(nn.model_forward(tokens, params, config)[0], targets)[0])


starts = {"0.02": 0.02, "1/√D": D**-0.5, "1": 1.0}
first = {name: np.array([first_loss(w, seed) for seed in range(5)]) for name, w in starts.items()}
for name, w in starts.items():
    print(f"w = {name:<5} first loss {first[name].mean():6.3f}  ({first[name].min():.3f} to "
          f"{first[name].max():.3f})   (0.8): {np.log(V) + w * w * D / 2:.3f}")

# %% [markdown] lang="en"
# The usual start is at {{start:.2f}} and $\ln V$ is {{ln_v:.2f}}: such a model says "I do not know" and nothing else. With $w = 1$ it starts at {{loud:.1f}}: it is *sure*, and wrong. (There (0.8) no longer holds, since a few large logits make up most of the sum.) This happens in real projects. With output weights of variance 1, Hugging Face's T5 started at a loss of about 110 in place of 11 ([transformers#26441](https://github.com/huggingface/transformers/pull/26441)).

# %%
record(start=first["0.02"].mean(), ln_v=np.log(V), loud=first["1"].mean())
claim("the real start is within 0.05 of ln V, at every seed", (np.abs(first["0.02"] - np.log(V)) < 0.05).all())
claim("a head of 1/√D costs half a nat, to within a quarter, as (0.8) and (0.9) predict",
      (np.abs(first["1/√D"] - np.log(V) - 0.5) < 0.25).all())
claim("a head of 1 starts far above ln V", first["1"].min() > np.log(V) + 5)

# %% [markdown] lang="en"
# ## 6 · The floor: why no loss reaches zero
#
# Suppose the next token is drawn from true probabilities $p$, and the model says $q$. Over a long text, each $v$ comes with frequency $p_v$, so (0.2) becomes a sum over the vocabulary. Add and subtract $\sum p\ln p$:
#
# $$L = -\sum_v p_v\ln q_v = \underbrace{-\sum_v p_v\ln p_v}_{H(p)} + \underbrace{\sum_v p_v\ln\frac{p_v}{q_v}}_{\mathrm{KL}(p\,\|\,q)} \tag{0.10}$$
#
# $H$ is the **entropy**: what even the truth pays. KL, the **Kullback-Leibler divergence**, is what the model's error costs in addition.

# %% [markdown] lang="en"
# By hand, in bits: $p = (\frac12, \frac14, \frac14)$ and $q = (\frac14, \frac14, \frac12)$. The truth pays $\frac12\cdot1 + \frac14\cdot2 + \frac14\cdot2 = 1.5$. The model pays $\frac12\cdot2 + \frac14\cdot2 + \frac14\cdot1 = 1.75$. So KL is a quarter of a bit.

# %%
p, q = np.array([1 / 2, 1 / 4, 1 / 4]), np.array([1 / 4, 1 / 4, 1 / 2])
H, KL = -(p * np.log2(p)).sum(), (p * np.log2(p / q)).sum()
drawn = rng.choice(3, 200_000, p=p)
print(f"H {H} + KL {KL} = {H + KL} bits;  on a text of 200,000 tokens drawn from p: {-np.log2(q[drawn]).mean():.3f}")

# %% [markdown] lang="en"
# Can a clever $q$ make KL negative? No. A logarithm lies below its tangent, $\ln x \le x - 1$. Put $x = q_v/p_v$:
#
# $$-\mathrm{KL} = \sum_v p_v\ln\frac{q_v}{p_v} \;\le\; \sum_v p_v\Bigl(\frac{q_v}{p_v} - 1\Bigr) = \sum_v q_v - \sum_v p_v = 1 - 1 = 0 \tag{0.11}$$
#
# (If some $p_v$ is 0, its term is 0 and is left out; the sum of the other $q_v$ is then at most 1.) KL is 0 only for $q = p$. **The entropy of the text is a floor**, and $L - H$ is what was there to learn and has not been learned. The lessons call it the **excess**.

# %%
x = np.linspace(0.01, 5, 500)
tries = rng.dirichlet(np.ones(3), 10_000)  # ten thousand models q
losses = -(p * np.log2(tries)).sum(1)
print("ln x - (x - 1) is at most", (np.log(x) - (x - 1)).max().round(6), "  best of 10,000 models:",
      losses.min().round(4), "bits; floor", H)
claim("no q is below the entropy of p", losses.min() >= H)

# %% [markdown] lang="en"
# ## 7 · The middle rungs: counting
#
# The simplest model gives every token always the same probability $q_v$, whatever came before: a **unigram**. Which $q$ is best on a text with counts $n_v$? Its loss is (0.10) with the frequencies $f_v = n_v/N$ in place of $p$, so it is $H(f) + \mathrm{KL}(f\,\|\,q)$, and by (0.11) the best is
#
# $$q_v = \frac{n_v}{N} \tag{0.12}$$

# %% [markdown] lang="en"
# A **bigram** looks at one token, $a$, and has a $q(b\,|\,a)$ for what follows. Each $a$ has its own row of counts $n_{ab}$, and its own sum to make small. So the same argument holds for each row:
#
# $$q(b\,|\,a) = \frac{n_{ab}}{\sum_{b'} n_{ab'}} \tag{0.13}$$
#
# By hand, *abracadabra*: after `a` come b, c, d, b. So $q(\mathrm b|\mathrm a) = \frac12$, and c and d have $\frac14$. After every other letter the next one is certain. Four of ten guesses cost $\frac12\ln2 + \frac12\ln4 = 1.04$ on average, six cost nothing. The mean is $0.4\cdot1.04 = 0.42$ nats per letter.

# %%
letters = sorted(set(text))
ids = np.array([letters.index(c) for c in text])
counts = np.zeros((5, 5))
np.add.at(counts, (ids[:-1], ids[1:]), 1)
unigram = np.bincount(ids[1:]) / 10
table = counts / counts.sum(1, keepdims=True)
print("after a:", dict(zip(letters, table[0].tolist())))
print(f"unigram {-np.log(unigram[ids[1:]]).mean():.2f}   bigram {-np.log(table[ids[:-1], ids[1:]]).mean():.2f} nats "
      "per letter")

# %%
others, other_tables = rng.dirichlet(np.ones(5), 10_000), rng.dirichlet(np.ones(5), (10_000, 5))
claim("none of 10,000 other unigrams is better on this text",
      (-np.log(others[:, ids[1:]]).mean(1)).min() > -np.log(unigram[ids[1:]]).mean())
claim("none of 10,000 other bigrams is, either",
      (-np.log(other_tables[:, ids[:-1], ids[1:]]).mean(1)).min() > -np.log(table[ids[:-1], ids[1:]]).mean())

# %% [markdown] lang="en"
# Now ask this table for *abba*. It has never seen `bb`: the probability is 0, the surprise infinite, and so is the mean. That is where the **log of 0** comes from. The remedy is **smoothing**: pretend that every pair was seen $k$ times more, *before* dividing. Each row then has $kV$ more counts:
#
# $$q(b\,|\,a) = \frac{n_{ab} + k}{\sum_{b'} n_{ab'} + kV} \tag{0.14}$$

# %%
abba = np.array([letters.index(c) for c in "abba"])
for k in (0, 0.1, 1, 100):
    table = (counts + k) / (counts + k).sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        print(f"k = {k:<4} abba costs {-np.log(table[abba[:-1], abba[1:]]).mean():.2f} nats per letter;  rows sum to "
              f"{table.sum(1).min():.2f}")
print(f"a very large k knows nothing: ln 5 = {np.log(5):.2f}")

# %% [markdown] lang="en"
# ### Your turn: a bigram, from counts to its loss
#
# Count the pairs of one text, smooth by (0.14), and score another text by (0.2). Both texts are arrays of *ids*: a token's id is its place in the vocabulary, from 0 to $V - 1$.

# %%
from lessons.checks.baselines import bigram  # exercise

# %%
check("00.bigram", bigram)

# %% [markdown] lang="en"
# When the check passes, your function is a language model. Here it counts the stories of the built-in text, and is scored on *held-out* stories: those that are kept back and never counted or trained on. A model that knows nothing pays $\ln V = 5.99$:

# %%
try:
    _, yours = bigram(np.asarray(shards[0].train.tokens), np.asarray(shards[0].val.tokens), V, 0.01)
    print(f"your bigram on the stories: {yours:.2f} nats/token")
except NotImplementedError:
    print("bigram is not written yet")

# %% [markdown] lang="en"
# ## 8 · Our text has a floor that is known exactly
#
# Nobody knows the entropy of English. So the lessons train on a text that is *generated*: a small grammar makes random choices, each with a known probability. The same grammar can also **read** a text and find each choice again. One of $n$ equally likely options costs $\log_2 n$ bits. A text can be read in one way only. So its probability is the product over its choices, its bits are their sum, and
#
# $$\text{floor} = \ln 2\cdot\frac{\sum\text{bits of the choices}}{\text{tokens}} \tag{0.15}$$
#
# Here is one document, read choice by choice:

# %%
class Telling(corpus.Reader):
    """Reads a text, and keeps what every choice cost. told: list of (piece of text, bits)."""

    def __init__(self, text):
        super().__init__(text)
        self.told = []

    def pick(self, lead, options, among=(), weights=()):
        begin, before = self.at, self.bits
        option = super().pick(lead, options, among, weights)
        self.told.append((self.text[begin:self.at], self.bits - before))
        return option

    def say(self, literal):
        super().say(literal)
        self.told.append((literal, 0.0))


document = corpus.document("sums", 1, 0)
reader = Telling(document.text)
corpus.sums(reader)
print(document.text, "\n")
print(textwrap.fill("".join(f"{part}[{bits:.3g}]" if bits else part for part, bits in reader.told), 100), "\n")
print(f"{len([b for _, b in reader.told if b])} choices, {sum(b for _, b in reader.told):.3f} bits; the corpus says "
      f"{document.bits:.3f}")
claim("the bits of its choices add up to the document's", abs(sum(b for _, b in reader.told) - document.bits) < 1e-9)

# %% [markdown] lang="en"
# The document adds 674 and 583, column by column from the right: $4+3$, then $7+8$. The last sum begins with the 1 that was carried.

# %% [markdown] lang="en"
# A name is one of 8: 3 bits. A digit is one of 10: 3.32 bits; the first one of the day is not 0, so one of 9. The comma before the third sum is a coin, 1 bit, for the columns could have ended there. **Everything else is free** for whoever knows the words, remembers, and can add: the results, the total, the name at the end. A reader who knows the grammar but forgets the text pays {{forget:.0f}} bits more for this document.

# %% [markdown] lang="en"
# One more price. The text mixes three sources: stories, facts and sums. A model that begins to read a document does not know which one it is. Let a document come from each source with a probability, the source's share. By the time the model knows the source, it has paid $-\log_2(\text{share})$ bits more, once per document:

# %%
for name, share in corpus.SHARES.items():
    print(f"{name:<8} share {share:.2f}: {-np.log2(share):.2f} bits")
which = sum(-share * np.log2(share) for share in corpus.SHARES.values())
per_token = which * np.log(2) * sum(s.share * s.val.documents / s.val.scored for s in shards)
print(f"on average {which:.2f} bits per document, about {per_token:.3f} nats for each token: the floor below does "
      "not contain them")

# %%
floor = sum(shard.share * shard.val.floor for shard in shards)
record(forget=document.recall_bits, which=which, per_token=per_token, floor=floor)
for shard in shards:
    print(f"{shard.name:<8} floor {shard.val.floor:.3f} nats/token    {shard.val.documents} documents held out, "
          f"{shard.val.scored} tokens")
print(f"the mix  floor {floor:.3f} nats/token, a perplexity of {np.exp(floor):.2f}")

# %% [markdown] lang="en"
# ## 9 · The picture: the ladder
#
# Now all of it on the text of the lessons: four models, all scored on the same held-out documents. The last one is a tiny LLaMA, trained from three seeds. Training goes in *steps*: each reads one batch and moves all weights a little, so that the loss falls. How is the subject of the coming lessons. Before you look: how far above the floor will a table of pairs be?

# %%
def pairs(tokens):
    """(before, after) for every token that is asked for; the <s> of a document is given."""
    tokens = np.asarray(tokens, np.int64)
    asked = tokens[1:] != tokenizer.bos_id
    return tokens[:-1][asked], tokens[1:][asked]


def count(streams):
    """How often b follows a, (V, V)."""
    counts = np.zeros((V, V))
    for tokens in streams:
        np.add.at(counts, pairs(tokens), 1)
    return counts


def held_out_loss(q):
    """Nats/token of a table q (V, V), each source by its share."""
    with np.errstate(divide="ignore"):
        return sum(shard.share * -np.log(q[pairs(shard.val.tokens)]).mean() for shard in shards)


# %% [markdown] lang="en"
# First the bigram alone, counted on more and more text. Without smoothing, one new pair is enough for an infinite loss. And a table of {{cells:,.0f}} numbers can learn a short text *by heart*. Its loss is then low on what it has counted, and high on held-out text. Only the second number says what was learned.

# %%
rows = lambda smoothed: smoothed / smoothed.sum(1, keepdims=True)
for n in (300, 3000, 30_000, None):
    counted = count(shard.train.tokens[:n] for shard in shards)
    q = rows(counted + 0.01)
    with np.errstate(all="ignore"):
        unsmoothed = held_out_loss(np.nan_to_num(rows(counted)))
    print(f"{counted.sum():>8,.0f} tokens counted: loss on them {-(counted * np.log(q)).sum() / counted.sum():.2f}, "
          f"held out {held_out_loss(q):.2f}, without smoothing {unsmoothed:.2f}")
few, everything = (count(shard.train.tokens[:n] for shard in shards) for n in (300, None))
record(cells=V * V)
claim("900 tokens are learned by heart: held out costs a nat more",
      held_out_loss(rows(few + 0.01)) > 1 - (few * np.log(rows(few + 0.01))).sum() / few.sum())

# %% [markdown] lang="en"
# Now all the rungs, on all the text, and the tiny LLaMA beside them.

# %%
one = np.tile(everything.sum(0) + 0.01, (V, 1))  # the same row for every token before
tables = {"uniform": rows(np.ones((V, V))), "unigram": rows(one), "bigram": rows(everything + 0.01)}
loss = {name: held_out_loss(q) for name, q in tables.items()}
trained = lab.run({"tiny LLaMA": {"lr": 3e-2, "steps": 450}}, seeds=3, evaluations=1)["tiny LLaMA"]
llama = trained.final + floor  # (seeds,)

# %%
bytes_per_token = sum(shard.share * shard.val.bytes / shard.val.scored for shard in shards)
rungs = {**loss, "tiny LLaMA": llama.mean(), "floor": floor}
print(f"{'':<11} nats/token  perplexity  bits/byte")
for name, L in rungs.items():
    print(f"{name:<11} {L:>10.3f}  {np.exp(L):>10.2f}  {L / np.log(2) / bytes_per_token:>9.2f}")

# %% [markdown] lang="en"
# `python -m minillama eval` prints the same columns for a model of your own. And what does each of them *write*? We draw a text from every rung. The uniform one writes mostly single bytes, since 256 of the 400 entries are bytes. On the rung of the floor stands a document of the grammar itself.

# %%
def draw(q, n, seed):
    """n tokens, each drawn from the row of the one before; after </s> a new document begins."""
    rng, ids = np.random.default_rng(seed), [tokenizer.bos_id]
    while len(ids) <= n:
        ids.append(tokenizer.bos_id if ids[-1] == tokenizer.eos_id else rng.choice(V, p=q[ids[-1]]))
    return ids[1:]


spell = lambda ids: "".join(piece(i) for i in ids).replace("</s><s>", " / ").replace("▁", " ").strip()
samples = {name: spell(draw(q, 99, 5)) for name, q in tables.items()}
engine = NumpyEngine(config, params=trained.params[0], threads=1)
samples["tiny LLaMA"] = tokenizer.decode(list(generate(engine, [tokenizer.bos_id], 63, tokenizer.eos_id,
                                                       Sampling(seed=3))))
samples["floor"] = corpus.document("stories", 1, 0).text
for name, sample in samples.items():
    print(f"{name:<11} {sample[:150]}")

# %%
fig, axis = plt.subplots(figsize=(7.2, 4.6))
labels = []
for row, (name, L) in enumerate(rungs.items()):
    colour = "#000000" if name == "floor" else lab.COLOURS[1] if name == "tiny LLaMA" else lab.COLOURS[0]
    axis.barh(row + 0.27, L, height=0.28, color=colour)
    seeds = llama if name == "tiny LLaMA" else [L]
    axis.plot(seeds, [row + 0.27] * len(seeds), "|", color="#000000", markersize=12)
    axis.text(L + 0.09, row + 0.27, f"{L:.2f} nats", va="center")
    lines = textwrap.wrap(samples[name], 92)
    axis.text(0.05, row - 0.14, "\n".join(lines[:2]) + " …", va="center", fontsize=7.4, family="monospace",
              color="#333333",
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    labels.append(f"{name}\nperplexity {np.exp(L):.3g}\n{L / np.log(2) / bytes_per_token:.2f} bits/byte")
axis.axvline(floor, color="#000000", linewidth=0.8, linestyle=":", zorder=0)  # the small marks: three seeds
axis.set(xlim=(0, 7), ylim=(4.6, -0.5), xlabel="loss on held-out text (nats/token)")
axis.set_yticks(np.arange(5) + 0.08, labels, fontsize=8.5)
axis.set_title("The ladder: what a loss means, and what its model writes")
axis.grid(visible=False)
plt.show()

# %% [markdown] lang="en"
# **Remember the ladder.** Knowing which tokens are frequent brings the loss from {{uniform:.2f}} to {{unigram:.2f}}. Knowing also the token before brings it to {{bigram:.2f}}: many words are right, the sentences are not. The tiny LLaMA, at {{llama:.2f}}, writes whole documents, in the right form. What is it still missing, above the floor of {{floor:.2f}}? The next section looks.

# %%
record(uniform=loss["uniform"], unigram=loss["unigram"], bigram=loss["bigram"], llama=llama.mean(), excess=trained.mean,
       bigram_bits=loss["bigram"] / np.log(2) / bytes_per_token)
claim("each way of counting is at least one nat better than the one before",
      loss["uniform"] > loss["unigram"] + 1 > loss["bigram"] + 2)
claim("the tiny LLaMA is a nat below the bigram, at every seed", llama.max() < loss["bigram"] - 1, fast=False)
claim("and above the floor, at every seed", llama.min() > floor + 0.1)

# %% [markdown] lang="en"
# ## 10 · Where the loss sits
#
# A mean hides where it comes from. Here is the document of section 8 again, choice by choice. We compare what the grammar pays with what the bigram and the tiny LLaMA pay for the same letters. Neither of them has seen this document.

# %%
ids = np.array([tokenizer.bos_id, *tokenizer.encode(document.text)])
spelled = "".join(piece(i) for i in ids[1:])
assert spelled == "▁" + document.text.replace(" ", "▁")  # each letter stands in one token
begins = np.cumsum([0] + [len(piece(i)) for i in ids[1:-1]]) - 1  # where each token begins in the text


def llama_bits(params):
    """What a LLaMA pays for every token of the document, by (0.4)."""
    logits = nn.model_forward(ids[None, :-1], params, config)[0][0].astype(np.float64)
    peak = logits.max(-1)
    return (peak + np.log(np.exp(logits - peak[:, None]).sum(-1)) - logits[np.arange(len(logits)), ids[1:]]) / np.log(2)


paid = {"bigram": [-np.log2(tables["bigram"][ids[:-1], ids[1:]])],
        "tiny LLaMA": [llama_bits(params) for params in trained.params]}

# %%
parts = reader.told
truth = np.array([bits for _, bits in parts])
ends = np.cumsum([len(part) for part, _ in parts])
which_part = np.searchsorted(ends, np.maximum(begins, 0), side="right")
# (seeds, parts)
by_part = {name: np.array([np.bincount(which_part, bits, len(parts)) for bits in runs]) for name, runs in paid.items()}
for name, bits in {"grammar": truth[None], **by_part}.items():
    print(f"{name:<11} {bits.sum(1).mean():6.1f} bits for the document, {bits[:, truth == 0].sum(1).mean():5.1f} of "
          "them where there is no choice")

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.6))
places = np.arange(len(parts))
axis.bar(places, truth, 0.9, color="#bbbbbb", label=f"grammar: {truth.sum():.0f} bits")
for (name, bits), colour, shift in zip(by_part.items(), lab.COLOURS, (-0.18, 0.18)):
    axis.bar(places + shift, bits.mean(0), 0.3, color=colour, label=f"{name}: {bits.sum(1).mean():.0f} bits")
    axis.vlines(places + shift, bits.min(0), bits.max(0), color="#000000", linewidth=0.8)
axis.set_xticks(places, [part.strip() for part, _ in parts], rotation=90, fontsize=7)
axis.set(ylabel="bits paid", title="Where the grammar pays nothing, a model can still learn (marks: three seeds)",
         xlim=(-0.7, len(parts) - 0.3), ylim=(0, 18.5))
axis.grid(axis="x", visible=False)
axis.set_yticks([0, 5, 10, 15])
axis.legend(loc="upper right", ncols=3)
plt.show()

# %% [markdown] lang="en"
# The grey bars are real choices: nobody can do better there, except by luck. Where grey is missing and a bar stands, something could have been known. The bigram pays almost everywhere. The tiny LLaMA pays next to nothing for most signs and words between them. But it pays {{name:.1f}} bits for `So Eva`, as if any of 8 names could come, and about 3 for many digits that it could compute.

# %% [markdown] lang="en"
# Nearly all of the {{llama_known:.0f}} bits that it pays without need are for that name and for digits. They all follow from the text before. To look back is what **attention** is for ([05](05_attention.ipynb)), and 450 steps were too few to learn it. (At the first two words, the model also has to find out which source it reads.)

# %%
needless = {name: np.where(truth == 0, bits, 0) for name, bits in by_part.items()}
memory = np.array([part == "So Eva" or part.strip("+").isdigit() for part, _ in parts])
record(llama_known=needless["tiny LLaMA"].sum(1).mean(),
       name=by_part["tiny LLaMA"][:, [part for part, _ in parts].index("So Eva")].mean())
claim("where there is no choice, the tiny LLaMA pays less than the bigram",
      needless["tiny LLaMA"].sum(1).mean() < 0.75 * needless["bigram"].sum(), fast=False)
claim("and nearly all of it for the name and for digits",
      needless["tiny LLaMA"][:, memory].sum() > 0.75 * needless["tiny LLaMA"].sum(), fast=False)
claim("over the whole document, nobody is below the grammar",
      all(bits.sum(1).min() > truth.sum() for bits in by_part.values()))

# %% [markdown] lang="en"
# ## 11 · Is my loss normal?
#
# The rungs also help to find bugs: a model with a bug often stops *on* one. We give the bigram three kinds of wrong targets, in training and in the score, as a data loader with a bug does.

# %%
def with_targets(change):
    """Loss of a bigram whose targets are changed, in training and in the score."""
    counts = np.zeros((V, V))
    for shard in shards:
        np.add.at(counts, change(*pairs(shard.train.tokens)), 1)
    q = rows(counts + 0.01)
    return sum(shard.share * -np.log(q[change(*pairs(shard.val.tokens))]).mean() for shard in shards)


accidents = {"right": with_targets(lambda a, b: (a, b)), "not shifted": with_targets(lambda a, b: (a, a)),
             "shifted twice": with_targets(lambda a, b: (a[:-1], b[1:])),
             "shuffled": with_targets(lambda a, b: (a, rng.permutation(b)))}
for name, L in accidents.items():
    print(f"{name:<14} {L:.3f}" + ("   below the floor!" if floor > L else ""))

# %% [markdown] lang="en"
# Not shifted: {{not_shifted:.3f}}, since the answer stands in the question. It has happened in real projects: a loss of 0.0000 and no error message ([KempnerForge#154](https://github.com/KempnerInstitute/KempnerForge/issues/154)). Shuffled: {{shuffled:.2f}}, near the unigram's {{unigram:.2f}}, since the input tells almost nothing. Shifted twice ({{twice:.2f}}) is the hardest to notice: it looks like a model that learns slowly.

# %% [markdown] lang="en"
# The table gives the usual causes. *Gradients* say in which direction each weight has to move ([02](02_gradients.ipynb)), the *learning rate* how far ([10](10_stability.ipynb)), and the *mask* hides from the model what comes later ([05](05_attention.ipynb)).
#
# | you see | look for |
# |---|---|
# | first loss far above $\ln V$ | an output head that starts too loud; weights loaded into the wrong places |
# | stays at $\ln V$ | no update arrives: a learning rate of 0, gradients not applied |
# | stays at the unigram | the input does not reach the output, or targets do not belong to their tokens |
# | stays at the bigram | only the last token is used: attention has not learned yet, or its mask hides all others |
# | **below the floor**, or near 0 | not a good model, a leak: targets not shifted, a missing mask, held-out text in the training text |
# | NaN or infinite | log of 0, an exponential that overflows, a learning rate too high |

# %%
record(not_shifted=accidents["not shifted"], shuffled=accidents["shuffled"], twice=accidents["shifted twice"])
claim("targets that are not shifted fall below the floor", accidents["not shifted"] < 0.5 * floor)
claim("shuffled targets end at the unigram", abs(accidents["shuffled"] - loss["unigram"]) < 0.2)
claim("shifted twice ends between the bigram and the unigram",
      accidents["right"] + 0.3 < accidents["shifted twice"] < loss["unigram"] - 0.5)

# %% [markdown] lang="en"
# ## 12 · What a loud start costs
#
# Section 5 said that a fresh model should say "I do not know". Does it matter, if training repairs it? We train the same tiny LLaMA from the three output heads, three seeds each, 120 steps. (The points at step 0 are those of section 5, on one batch.) Predict the order first.

# %%
head = lambda name: {"patch": {"minillama.engine.numpy_engine.init_params": f"lessons.museum.baselines.{name}"}}
arms = {"w = 0.02, usual": {}, "w = 1/√D": head("head_of_root"), "w = 1": head("head_of_one")}
heads = lab.run({name: {"lr": 3e-2, "steps": 120, **arm} for name, arm in arms.items()}, seeds=3, evaluations=6)
lab.table(heads)

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.6))
for (name, result), at_start, colour in zip(heads.items(), first.values(), lab.COLOURS):
    curve = np.concatenate([at_start[:3, None], result.excess + floor], 1)  # (seeds, 1 + evaluations)
    axis.plot([0, *result.steps], curve.mean(0), color=colour, label=name)
    axis.fill_between([0, *result.steps], curve.min(0), curve.max(0), color=colour, alpha=0.2, linewidth=0)
last = heads["w = 1"].steps[-1]
for name in ("uniform", "unigram", "bigram", "floor"):
    axis.axhline(rungs[name], color="#888888", linewidth=0.8, linestyle=":")
    axis.text(last, rungs[name] * 1.03, name, color="#666666", ha="right", fontsize=9)
axis.set(yscale="log", xlim=(0, last), xlabel="step", ylabel="loss on held-out text (nats/token)")
axis.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
axis.minorticks_off()
axis.set_title("Down the ladder, from three starts (line: mean, band: three seeds)")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# The loud head ends at an excess of {{head_one:.2f}} against {{head_usual:.2f}}. Its first steps undo what it was sure of. But look at $1/\sqrt D$, which starts half a nat *above* $\ln V$: {{head_root:.2f}}, no worse than the usual start. So $\ln V$ is a **check**, and not a goal: a start near it is fine, one far above it is a mistake.

# %%
usual, root, loud = (heads[name] for name in arms)
record(head_usual=usual.mean, head_root=root.mean, head_one=loud.mean)
claim("the loud start is behind at the end", loud.mean > usual.mean + 0.05, fast=False)
claim("half a nat above ln V at the start makes nothing worse", root.mean < usual.mean + 0.05, fast=False)

# %% [markdown] lang="en"
# ## 13 · Two tokenizers: never compare nats per token
#
# The same 120 documents are cut in two ways: into single characters, and into the 400 pieces from above. The floor is the information in the text, the same number of bits for both. But there are more characters than pieces, so each of them has a smaller part of it.

# %%
bits = sum(corpus.document(name, 1, i).bits for name in corpus.SOURCES for i in range(40))
cut = {}
for name, other in (("characters", Tokenizer.train(train_texts, "chars")), ("pieces", tokenizer)):
    n = sum(len(other.encode(d)) + 1 for d in held_texts)  # and one </s> each
    n_bytes = sum(len(d.encode("utf-8")) for d in held_texts)
    nats = {"uniform": np.log(other.vocab_size), "floor": bits * np.log(2) / n}
    cut[name] = {rung: (L, L / np.log(2) * n / n_bytes) for rung, L in nats.items()}
    print(f"{name:<11} {n_bytes / n:.2f} bytes/token   "
          + "   ".join(f"{rung} {L:.2f} nats/token = {b:.2f} bits/byte" for rung, (L, b) in cut[name].items()))

# %% [markdown] lang="en"
# In nats per token, the uniform guess over characters looks better than the one over pieces ({{char_uniform:.2f}} and {{piece_uniform:.2f}}). For each byte of text it pays {{times:.2f}} times as much. The *perfect* model would have {{char_floor:.2f}} with characters and {{piece_floor:.2f}} with pieces. Yet it is the same text, the same knowledge, the same {{floor_bits:.2f}} bits per byte. **Nats per token, and perplexity with them, compare models of one tokenizer; bits per byte compare all.**

# %%
characters, pieces = cut["characters"], cut["pieces"]
record(char_uniform=characters["uniform"][0], piece_uniform=pieces["uniform"][0],
       times=characters["uniform"][1] / pieces["uniform"][1])
record(char_floor=characters["floor"][0], piece_floor=pieces["floor"][0], floor_bits=pieces["floor"][1], zlib=zlib_rate)
claim("uniform over characters is better per token, and worse per byte",
      characters["uniform"][0] < pieces["uniform"][0] and characters["uniform"][1] > 1.5 * pieces["uniform"][1])
claim("the floor is the same in bits per byte, and not in nats per token",
      abs(characters["floor"][1] - pieces["floor"][1]) < 1e-9 and pieces["floor"][0] > 1.5 * characters["floor"][0])

# %% [markdown] lang="en"
# **What does not show at this scale.** The excess of {{excess:.2f}} is not all the model's fault. It reads 64 tokens at a time, and stories and facts are longer: a part of each is scored without its beginning. Only of a generated text is the floor known. And our text is easy: zlib needs {{zlib:.2f}} bits per byte for it, and the bigram already fewer, {{bigram_bits:.2f}}. Real text has far more different words, and a table of pairs knows little of it.

# %% [markdown] lang="en"
# ## The anchor in the paper
#
# LLaMA's tokenizer (§2.1) has 32,000 pieces, a number from the released file and not from the paper. So a fresh LLaMA is near $\ln 32000 = 10.4$ nats per token. Figure 1 of the paper shows the training loss of all four sizes, still falling at the end. How far is that above the floor? Nobody knows. In 1951, Shannon let people guess English letter by letter, and estimated 0.6 to 1.3 bits per letter. Table 1 gives the shares of LLaMA's seven sources; ours are three, and their floors are known.

# %% [markdown] lang="en"
# ## Three questions
#
# 1. A fresh model with 32,000 tokens has a first loss of 45. What do you look at first?
# 2. On the same text, a friend's model reaches 0.9 nats per token. Yours reaches 1.4, with another tokenizer. Which model is better?
# 3. Your loss falls below the entropy of the text. What do you check first?
#
# <details><summary>Answers</summary>
#
# 1. The output head: $\ln 32000$ is 10.4, so the logits are far from 0. Print their standard deviation; by (0.8) it should be well below 1.
# 2. Nobody can tell yet. Turn both into bits per byte with (0.6).
# 3. Look for a leak, since by (0.11) no model is below the floor on average: targets that are not shifted, a missing mask, or held-out text that was trained on. (On a short text, luck is possible; on a long one it is not.)
#
# </details>
#
# **The way on:** [01 · Text to tokens](01_tokens.ipynb), where the 400 pieces come from; or [02 · Gradients](02_gradients.ipynb), how to make this loss smaller.
