# %% [markdown] lang="en"
# # 05 · Causal attention: who may look at whom
#
# **Question.** Attention is one softmax between two matrix products. Why is the score divided by $\sqrt{D_h}$, why must the mask be $-\infty$, and how do you find out that a model has peeked at its own targets?
#
# After this lesson you can write attention forward and backward for many heads, derive the softmax's Jacobian, and prove by experiment that a model is causal.
#
# *Needs:* [02 · Gradients](02_gradients.ipynb); [04 · RoPE](04_rope.ipynb) comes before it in the block. *Paper:* LLaMA §2.2, §2.4; Vaswani et al. 2017 (arXiv:1706.03762), Eq. 1. *Code:* [`minillama/nn/attention.py`](../minillama/nn/attention.py). *Time:* 40 minutes to read and solve, about a minute to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/
from unittest import mock

import numpy as np

from lessons import check, claim, lab, plt, record
from minillama import nn
from minillama.config import ModelConfig
from minillama.nn.gradcheck import numerical_gradient

# %% [markdown] lang="en"
# ## 1 · Heads are views
#
# A token's $D$ channels are cut into $H$ heads of $D_h = D/H$ neighbours. Each head attends by itself, so the heads' axis must stand before time, beside the batch: (B, T, D) becomes (B, H, T, D_h). First reshape, *then* exchange two axes. A reshape alone gives the right shape and the wrong numbers:

# %%
x = np.arange(8).reshape(1, 2, 4)  # two tokens with 4 channels: 0 1 2 3 and 4 5 6 7
print("head 0, right:   ", x.reshape(1, 2, 2, 2).swapaxes(1, 2)[0, 0].tolist())
print("head 0, reshaped:", x.reshape(1, 2, 2, 2)[0, 0].tolist(), " <- both rows come from token 0")

# %% [markdown] lang="en"
# ### Your turn: split the heads

# %%
from lessons.checks.attention import split_heads  # exercise

# %%
check("05.split_heads", split_heads)

# %% [markdown] lang="en"
# ## 2 · Forward
#
# In one head, query $i$ is compared with every key $j$:
#
# $$s_{ij} = \frac{q_i \cdot k_j}{\sqrt{D_h}} \tag{5.1}$$
#
# Why the root? Let all entries of $q$ and $k$ be independent, with mean 0 and variance 1. A product of two has variance 1, and a sum of $D_h$ independent ones has $D_h$ times that:
#
# $$\mathrm{Var}(q_i\cdot k_j) = D_h \qquad\Rightarrow\qquad \mathrm{Var}(s_{ij}) = 1\tag{5.2}$$

# %%
rng = np.random.default_rng(0)
for head_dim in (8, 128):
    q, k = rng.standard_normal((2, 50_000, head_dim))
    raw = (q * k).sum(-1)
    print(f"D_h = {head_dim:>3}: variance {raw.var():6.1f} without the root, {(raw / np.sqrt(head_dim)).var():.2f} with it")

# %% [markdown] lang="en"
# A token may look at itself and what came before. What is ahead gets a score of $-\infty$, *before* the softmax, so that its share is exactly 0 and the rest still sums to 1:
#
# $$p_{ij} = \frac{e^{s_{ij}}}{\sum_{l \le i} e^{s_{il}}}\ \ (j \le i), \qquad p_{ij} = 0\ \ (j > i)\tag{5.3}$$
# $$y_i = \sum_j p_{ij}\, v_j\tag{5.4}$$
#
# By hand: two tokens, scores $s_{10} = \ln 3$ and $s_{11} = 0$. Row 0 sees itself only, $p = (1, 0)$. Row 1 has $p = (3/4, 1/4)$. With values $v = 4$ and $8$: $y = (4,\; 0.75\cdot4 + 0.25\cdot 8) = (4, 5)$.

# %%
q = np.array([[[[0.0]], [[1.0]]]])  # (B, T, H, Dh) = (1, 2, 1, 1)
k = np.array([[[[np.log(3)]], [[0.0]]]])
v = np.array([[[[4.0]], [[8.0]]]])
print("(5.4) y =", nn.attention_forward(q, k, v)[0].ravel())

# %% [markdown] lang="en"
# ### Your turn: forward

# %%
from lessons.checks.attention import attention_forward  # exercise

# %%
check("05.attention_forward", attention_forward)

# %% [markdown] lang="en"
# ## 3 · Is it causal? Ask it
#
# Change one token, and see which outputs move. In a causal model, token $j$ may change output $i$ only where $j \le i$: a lower triangle. No formula is needed, and no trust. Below, a whole model with random weights; and two with another mask.

# %%
config = ModelConfig(dim=16, n_layers=2, n_heads=2, vocab_size=20, multiple_of=8, max_seq_len=12)
params = {name: rng.standard_normal(shape) * (0.3 if len(shape) > 1 else 1) for name, shape in nn.param_shapes(config).items()}
swap = lambda name: {f"minillama.nn.block.attention_{way}": f"lessons.museum.{name}_{way}" for way in ("forward", "backward")}


def leak(patch=None):
    """(T, T): how much output i moves when token j is another one."""
    tokens = np.arange(12)[None]
    moved = np.zeros((12, 12))
    with lab.patched(patch):
        before = nn.model_forward(tokens, params, config)[0][0]
        for j in range(12):
            other = tokens.copy()
            other[0, j] = 19
            moved[:, j] = np.abs(nn.model_forward(other, params, config)[0][0] - before).max(-1)
    return moved


maps = {"causal": leak(), "one token ahead": leak(swap("one_ahead")), "no mask": leak(swap("no_mask"))}
future = {name: np.triu(moved, 1).max() for name, moved in maps.items()}

# %%
fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), sharey=True)
for axis, (name, moved) in zip(axes, maps.items()):
    axis.imshow(np.where(moved > 0, np.log10(moved + 1e-12), np.nan), cmap="cividis", vmin=-3, vmax=1)
    axis.plot([-0.5, 11.5], [-0.5, 11.5], color=lab.COLOURS[1], linewidth=1)
    axis.set(title=name, xlabel="token j that is changed", xticks=[0, 5, 10])
    axis.grid(False)
axes[0].set(ylabel="output i that moves", yticks=[0, 5, 10])
plt.show()

# %%
claim("in the causal model nothing moves before the changed token: exactly 0", future["causal"] == 0)
claim("one token ahead, in two layers, reaches two tokens far and no further", np.triu(maps["one token ahead"], 3).max() == 0)
claim("the two others show it", min(future["one token ahead"], future["no mask"]) > 1e-3)

# %% [markdown] lang="en"
# White is *exactly* zero. The middle panel looks almost right, but for two diagonals: each of the two layers carries the leak one token further.
#
# ## 4 · Backward, through the two products
#
# Value $v_j$ goes to every query $i$ that saw it, with weight $p_{ij}$; and $p_{ij}$ met the output through $v_j$. From (5.4), with $dy$ for the gradient of the output:
#
# $$dv_j = \sum_i p_{ij}\, dy_i \tag{5.5}$$
# $$dp_{ij} = dy_i \cdot v_j \tag{5.6}$$

# %%
q, k, v, dy = rng.standard_normal((4, 1, 4, 1, 3))  # one head, T = 4, Dh = 3
loss = lambda: float((nn.attention_forward(q, k, v)[0] * dy).sum())
p = nn.attention_forward(q, k, v)[1][3][0][0, 0]  # (T, T), as forward kept it
dv = np.array([sum(p[i, j] * dy[0, i, 0] for i in range(4)) for j in range(4)])
print("(5.5) is off by", np.abs(dv - numerical_gradient(loss, v)[0, :, 0]).max())
dp = np.array([[dy[0, i, 0] @ v[0, j, 0] for j in range(4)] for i in range(4)])
product = lambda: float(((p @ v[0, :, 0]) * dy[0, :, 0]).sum())
print("(5.6) is off by", np.abs(dp - numerical_gradient(product, p)).max())

# %% [markdown] lang="en"
# ## 5 · Backward, through the softmax
#
# In one row, $p_j = e^{s_j}/Z$ with $Z = \sum_l e^{s_l}$. A score acts on its own numerator, and on $Z$, which is under *every* probability of the row. By the quotient rule:
#
# $$\frac{\partial p_j}{\partial s_l} = \frac{\delta_{jl}\, e^{s_j}}{Z} - \frac{e^{s_j} e^{s_l}}{Z^2} = p_j\,(\delta_{jl} - p_l)\tag{5.7}$$
#
# Sum over all $j$ that carry $s_l$ on to the loss. The $\delta$ picks $j = l$; from the rest, $p_l$ moves in front:
#
# $$ds_l = \sum_j dp_j\, p_j(\delta_{jl} - p_l) = p_l\Bigl(dp_l - \sum_j dp_j\,p_j\Bigr)\tag{5.8}$$
#
# By hand: $p = (3/4, 1/4)$, $dp = (4, 8)$. The sum is $3 + 2 = 5$, so $ds = (0.75\cdot(4-5),\; 0.25\cdot(8-5)) = (-0.75, 0.75)$. It sums to 0: raising all scores alike changes nothing.

# %%
s = rng.standard_normal(5)
softmax = lambda s: np.exp(s) / np.exp(s).sum()
row = softmax(s)
for j in (0, 3):
    p_j = lambda: float(softmax(s)[j])
    print(f"(5.7), row {j}, is off by", np.abs(row[j] * ((np.arange(5) == j) - row) - numerical_gradient(p_j, s)).max())
d_row = rng.standard_normal(5)
toward = lambda: float(softmax(s) @ d_row)
by_row = [row[m] * (d_row[m] - sum(d_row * row)) for m in range(5)]
print("(5.8) is off by", np.abs(by_row - numerical_gradient(toward, s)).max())

# %% [markdown] lang="en"
# ### Your turn: the softmax, backward

# %%
from lessons.checks.attention import softmax_backward  # exercise

# %%
check("05.softmax_backward", softmax_backward)

# %% [markdown] lang="en"
# The last step is (5.1), a product again. Query $i$ met all keys, key $j$ met all later queries:
#
# $$dq_i = \sum_j ds_{ij}\,k_j/\sqrt{D_h} \qquad dk_j = \sum_i ds_{ij}\,q_i/\sqrt{D_h}\tag{5.9}$$
#
# Masked scores need no mask here: their $p$ is 0, and by (5.8) so is their gradient.

# %%
ds = np.array([[p[i, j] * (dp[i, j] - dp[i] @ p[i]) for j in range(4)] for i in range(4)])
dq = [sum(ds[i, j] * k[0, j, 0] for j in range(4)) / np.sqrt(3) for i in range(4)]
dk = [sum(ds[i, j] * q[0, i, 0] for i in range(4)) / np.sqrt(3) for j in range(4)]
print("(5.9) dq is off by", np.abs(np.array(dq) - numerical_gradient(loss, q)[0, :, 0]).max())
print("(5.9) dk is off by", np.abs(np.array(dk) - numerical_gradient(loss, k)[0, :, 0]).max())
print("masked scores have a gradient of", np.abs(np.triu(ds, 1)).max())

# %% [markdown] lang="en"
# ### Your turn: backward, all heads

# %%
from lessons.checks.attention import attention_backward  # exercise

# %%
check("05.attention_backward", attention_backward)

# %% [markdown] lang="en"
# ## 6 · The picture: a loss that is too good
#
# What happens if the mask is wrong, and nobody asks? We train four tiny LLaMAs, three seeds each: causal, one token ahead, without a mask, and without $1/\sqrt{D_h}$. The text's entropy floor is known. **No honest model gets below it on average.**

# %%
arms = {"causal": {}, "one token ahead": {"patch": swap("one_ahead")}, "no mask": {"patch": swap("no_mask")}, "no 1/√Dh": {"patch": swap("no_scale")}}
results = lab.run(arms, seeds=3, steps=300, evaluations=6)
lab.table(results)

# %%
fig, axis = plt.subplots()
for (name, result), colour in zip(results.items(), lab.COLOURS):
    axis.plot(result.steps, result.excess.mean(0), color=colour, label=name, linestyle="--" if name.startswith("no 1") else "-")
    axis.fill_between(result.steps, result.excess.min(0), result.excess.max(0), color=colour, alpha=0.2, linewidth=0)
axis.axhline(0, color="black", linewidth=1)
axis.text(53, -0.25, "below the floor:\nsomething leaks", va="top")
axis.set(xlabel="step", ylabel="excess (nats/token)", xlim=(50, 300), title="A model that peeks falls through the floor")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# **Remember this picture.** One token ahead is enough: the "excess" is {{peek:.2f}} nats/token, below what is possible. Without a known floor, it would have been a record. Then ask the same weights honestly, with the causal mask: an excess of {{honest:.1f}}. They learned to copy the answer.

# %%
honest = np.array([lab.excess_of(p) for p in results["one token ahead"].params])
causal, peek, free = (results[name].final for name in ("causal", "one token ahead", "no 1/√Dh"))
record(peek=peek.mean(), honest=honest.mean(), causal=causal.mean(), no_scale=free.mean())
claim("one token ahead falls below the floor at every seed", peek.max() < -0.2, fast=False)
claim("the causal model never does", causal.min() > 0.05)
claim("asked with the causal mask, the peeking model is far worse than the causal one", honest.min() > causal.max() + 0.5, fast=False)

# %% [markdown] lang="en"
# ## 7 · What four heads look at
#
# The second layer of the trained causal model, on a held-out document: each row is a token, and shows where it looks.

# %%
tokenizer, shards = lab.text()
tokens = np.array(shards[0].val.tokens[:40], dtype=np.int64)[None]
seen = []


def recorded(q, k, v):
    out, cache = nn.attention_forward(q, k, v)
    seen.append(cache[3][0][0])  # (H, T, T)
    return out, cache


with mock.patch("minillama.nn.block.attention_forward", recorded):
    nn.model_forward(tokens, results["causal"].params[0], lab.configs({})[0])

# %%
fig, axes = plt.subplots(1, 4, figsize=(7.2, 2.4), sharey=True)
for head, axis in enumerate(axes):
    axis.imshow(np.sqrt(seen[1][head]), cmap="cividis", vmin=0, vmax=1)
    axis.set(title=f"head {head}", xlabel="key")
    axis.grid(False)
axes[0].set_ylabel("query")
plt.show()
claim("every row sums to 1, and nothing is right of the diagonal", np.allclose(seen[1].sum(-1), 1, atol=1e-5) and np.triu(seen[1], 1).max() == 0)

# %% [markdown] lang="en"
# **What does not show at this scale.** Leaving out $1/\sqrt{D_h}$ changes nothing here: {{causal:.3f}} with it, {{no_scale:.3f}} without. With $D_h = 8$ the scores are only 2.8 times larger, and the weights adapt. The variance argument (5.2) is about $D_h = 128$. And do not read too much into four pictures of heads.
#
# ## The anchor in the paper
#
# LLaMA §2.4: attention is computed without storing the weights, and without computing the scores that the mask would throw away. [`minillama/nn/flash.py`](../minillama/nn/flash.py) does both in NumPy; it gives the same numbers.
#
# ## Three questions
#
# 1. Why does a mask of 0 in place of $-\infty$ leak, although 0 is a small score?
# 2. Why does backward need no mask?
# 3. A friend's model has a validation loss of 0.05 nats per token. Which two questions do you ask?
#
# **The way on:** [07 · The model put together](07_llama.ipynb), where attention is one line among a dozen.
