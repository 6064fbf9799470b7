# %% [markdown] lang="en"
# # 05 · Causal attention: who may look at whom
#
# **Question.** Attention is one softmax between two matrix products. Why is the score divided by $\sqrt{D_h}$, why must the mask be $-\infty$, and how do you find out that a model can see its own targets?
#
# After this lesson you can write attention forward and backward for many heads, derive the softmax's Jacobian, and show by experiment whether a model is causal.
#
# *Needs:* [02 · Gradients](02_gradients.ipynb); [04 · RoPE](04_rope.ipynb) comes before attention in the model, but you can read this lesson without it. *Paper:* LLaMA §2.2, §2.4; Vaswani et al. 2017 (arXiv:1706.03762), Eq. 1. *Code:* [`minillama/nn/attention.py`](../minillama/nn/attention.py). *Time:* 40 minutes to read and solve, about a minute to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/
from unittest import mock

import numpy as np

from lessons import check, claim, lab, plt, record
from minillama import nn
from minillama.config import ModelConfig
from minillama.nn.gradcheck import numerical_gradient

# %% [markdown] lang="en"
# ## 1 · Cutting into heads
#
# Attention is how a token reads from the tokens before it. Three linear layers make from each token a **query** $q$ (what it looks for), a **key** $k$ (what it can be found by) and a **value** $v$ (what others get from it), $D$ channels each.
#
# Each of them is cut into $H$ heads of $D_h = D/H$ neighbouring channels. Each head attends by itself, so the heads' axis must stand before time, beside the batch: (B, T, D) becomes (B, H, T, D_h). First reshape, *then* exchange two axes. A reshape alone gives the right shape and the wrong numbers:

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
# Why the root? Let all entries of $q$ and $k$ be independent, with mean 0 and variance 1. The product of two of them has mean 0 and variance 1, too, and the variance of a sum of $D_h$ independent products is $D_h$ times that. Dividing by $\sqrt{D_h}$ divides the variance by $D_h$:
#
# $$\mathrm{Var}(q_i\cdot k_j) = D_h \qquad\Rightarrow\qquad \mathrm{Var}(s_{ij}) = 1\tag{5.2}$$

# %%
rng = np.random.default_rng(0)
for head_dim in (8, 128):
    q, k = rng.standard_normal((2, 50_000, head_dim))
    raw = (q * k).sum(-1)
    scaled = raw / np.sqrt(head_dim)
    print(f"D_h = {head_dim:>3}: variance {raw.var():6.1f} without the root, {scaled.var():.2f} with it")

# %% [markdown] lang="en"
# A token may look at itself and at what came before. What comes after it gets a score of $-\infty$, *before* the softmax. Then its probability is exactly 0, since $e^{-\infty} = 0$, and the others still sum to 1. The output is the mean of the values, with these probabilities as weights:
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
# ## 3 · Is it causal? Test it
#
# Change one token, and see which outputs change. In a causal model, token $j$ may change output $i$ only where $j \le i$: a lower triangle. You need no formula for this, and you need not trust anybody. Below, a whole model with random weights, and the same model with two other masks.

# %%
config = ModelConfig(dim=16, n_layers=2, n_heads=2, vocab_size=20, multiple_of=8, max_seq_len=12)
shapes = nn.param_shapes(config)
params = {name: rng.standard_normal(shape) * (0.3 if len(shape) > 1 else 1) for name, shape in shapes.items()}
ways = ("forward", "backward")
swap = lambda name: {f"minillama.nn.block.attention_{way}": f"lessons.museum.{name}_{way}" for way in ways}


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
    image = axis.imshow(np.where(moved > 0, np.log10(moved + 1e-12), np.nan), cmap="cividis", vmin=-3, vmax=1)
    axis.plot([-0.5, 11.5], [-0.5, 11.5], color=lab.COLOURS[1], linewidth=1)
    axis.set(title=name, xlabel="token j that is changed", xticks=[0, 5, 10])
    axis.grid(False)
axes[0].set(ylabel="output i that changes", yticks=[0, 5, 10])
fig.colorbar(image, ax=axes, shrink=0.8, label="log10, largest change of a logit")
plt.show()

# %% [markdown] lang="en"
# White is *exactly* zero. The middle panel looks almost right, but for two diagonals: each of the two layers carries the leak one token further.

# %%
claim("in the causal model no output before the changed token changes: exactly 0", future["causal"] == 0)
beyond = np.triu(maps["one token ahead"], 3).max()
claim("one token ahead, in two layers, reaches two tokens far and no further", beyond == 0)
claim("the two other masks are found out", min(future["one token ahead"], future["no mask"]) > 1e-3)

# %% [markdown] lang="en"
# ## 4 · Backward, through the second product
#
# (5.4) is linear in $v$ and in $p$. Value $v_j$ goes to every query $i$ that saw it, with weight $p_{ij}$, so its gradient is a sum over $i$. And $p_{ij}$ multiplies the vector $v_j$ in one output, $y_i$. With $dy$ for the gradient of the output:
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
# In one row, $p_j = e^{s_j}/Z$ with $Z = \sum_l e^{s_l}$. A score $s_l$ stands in its own numerator, and in $Z$, which divides *every* probability of the row. The quotient rule gives the derivative of every $p_j$ by every $s_l$, the **Jacobian** of the softmax. With $\delta_{jl} = 1$ for $j = l$ and else 0:
#
# $$\frac{\partial p_j}{\partial s_l} = \frac{\delta_{jl}\, e^{s_j}}{Z} - \frac{e^{s_j} e^{s_l}}{Z^2} = p_j\,(\delta_{jl} - p_l)\tag{5.7}$$
#
# $s_l$ reaches the loss through every $p_j$, so we sum over $j$. The $\delta$ keeps one term, $j = l$; in the other sum $p_l$ does not depend on $j$ and moves in front:
#
# $$ds_l = \sum_j dp_j\, p_j(\delta_{jl} - p_l) = p_l\Bigl(dp_l - \sum_j dp_j\,p_j\Bigr)\tag{5.8}$$
#
# By hand, with row 1 of section 2 and $dy = 1$: $p = (3/4, 1/4)$, and by (5.6) $dp = (4, 8)$. The sum is $3 + 2 = 5$, so $ds = (0.75\cdot(4-5),\; 0.25\cdot(8-5)) = (-0.75, 0.75)$. It sums to 0, because raising all scores by the same amount changes nothing.

# %%
s = rng.standard_normal(5)
softmax = lambda s: np.exp(s) / np.exp(s).sum()
row = softmax(s)
for j in (0, 3):
    p_j = lambda: float(softmax(s)[j])
    by_formula = row[j] * ((np.arange(5) == j) - row)
    print(f"(5.7), row {j}, is off by", np.abs(by_formula - numerical_gradient(p_j, s)).max())

# %%
d_row = rng.standard_normal(5)
toward = lambda: float(softmax(s) @ d_row)  # so that its gradient with respect to p is d_row
by_row = [row[m] * (d_row[m] - sum(d_row * row)) for m in range(5)]
print("(5.8) is off by", np.abs(by_row - numerical_gradient(toward, s)).max())
by_hand = np.array([3 / 4, 1 / 4])
print("by hand:", by_hand * (np.array([4, 8]) - by_hand @ [4, 8]))

# %% [markdown] lang="en"
# ### Your turn: the softmax, backward

# %%
from lessons.checks.attention import softmax_backward  # exercise

# %%
check("05.softmax_backward", softmax_backward)

# %% [markdown] lang="en"
# ## 6 · Backward, through the first product
#
# The last step is (5.1), a product again. Query $i$ met all the keys up to its own; key $j$ met all the queries from its own on:
#
# $$dq_i = \sum_j ds_{ij}\,k_j/\sqrt{D_h} \qquad dk_j = \sum_i ds_{ij}\,q_i/\sqrt{D_h}\tag{5.9}$$
#
# Backward needs no mask, and the sums may run over all $i$ and $j$: the $p$ of a masked score is 0, and by (5.8) so is its gradient.

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
# ## 7 · The picture: a loss that is too good
#
# What happens if the mask is wrong, and nobody tests it? We train four tiny LLaMAs, three seeds each: causal, one token ahead, without a mask, and without $1/\sqrt{D_h}$. The text's entropy floor is known ([00 · Baselines](00_baselines.ipynb)), and the *excess* is the loss minus this floor. **A model that cannot see its targets does not get below the floor**, but for chance.

# %%
arms = {
    "causal": {},
    "one token ahead": {"patch": swap("one_ahead")},
    "no mask": {"patch": swap("no_mask")},
    "no 1/√Dh": {"patch": swap("no_scale")},
}
results = lab.run(arms, seeds=3, steps=300, evaluations=6)
lab.table(results)

# %%
fig, axis = plt.subplots()
for (name, result), colour in zip(results.items(), lab.COLOURS):
    style = "--" if name.startswith("no 1") else "-"
    axis.plot(result.steps, result.excess.mean(0), style, color=colour, label=name)
    axis.fill_between(result.steps, result.excess.min(0), result.excess.max(0), color=colour, alpha=0.2, linewidth=0)
axis.axhline(0, color="black", linewidth=1)
axis.text(53, -0.25, "below the floor:\nsomething leaks", va="top")
axis.set(xlabel="step", ylabel="excess (nats/token)", xlim=(50, 300))
axis.set_title("A model that sees its targets gets below the floor")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# **Remember this picture.** One token ahead is enough: the "excess" is {{peek:.2f}} nats/token, below what is possible. If the floor were not known, this would look like a very good model. Then give the same weights the causal mask: an excess of {{honest:.1f}}. They learned to copy the answer, and not to predict it.
#
# Without any mask the answer can be seen, too, but among many other tokens. At step 100 that model still cannot be told from the causal one ({{no_mask_100:.2f}} and {{causal_100:.2f}}), and after 300 steps its seeds lie between {{no_mask_low:.2f}} and {{no_mask_high:.2f}}. So **a leak need not show in the loss**, or not soon. The test of section 3 finds it before the first step.

# %%
honest = np.array([lab.excess_of(p) for p in results["one token ahead"].params])
causal, peek, no_mask, no_scale = (results[name].final for name in arms)
record(peek=peek.mean(), honest=honest.mean(), causal=causal.mean(), no_scale=no_scale.mean())
record(no_mask_low=no_mask.min(), no_mask_high=no_mask.max())
early = {name: result.excess[:, 1] for name, result in results.items()}  # at step 100
record(no_mask_100=early["no mask"].mean(), causal_100=early["causal"].mean())
claim("one token ahead falls below the floor at every seed", peek.max() < -0.2, fast=False)
claim("the causal model never does", causal.min() > 0.05)
worse = honest.min() > causal.max() + 0.5
claim("with the causal mask, the model that saw its targets is far worse than the causal one", worse, fast=False)
overlap = early["no mask"].max() > early["causal"].min() and early["causal"].max() > early["no mask"].min()
claim("at step 100 the bands without a mask and with the causal mask overlap", overlap, fast=False)

# %% [markdown] lang="en"
# ## 8 · What four heads look at
#
# The second layer of the trained causal model, on a held-out document. Each row is a query, and shows which keys it looks at. The colour is the square root of the probability, so that small ones can be seen.

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
    image = axis.imshow(np.sqrt(seen[1][head]), cmap="cividis", vmin=0, vmax=1)
    axis.set(title=f"head {head}", xlabel="key (token)")
    axis.grid(False)
axes[0].set_ylabel("query (token)")
fig.colorbar(image, ax=axes, shrink=0.8, label="√p")
plt.show()

# %%
claim("every row sums to 1", np.allclose(seen[1].sum(-1), 1, atol=1e-5))
claim("nothing is right of the diagonal", np.triu(seen[1], 1).max() == 0)

# %% [markdown] lang="en"
# **What does not show at this scale.** Leaving out $1/\sqrt{D_h}$ changes nothing here: {{causal:.3f}} with it, {{no_scale:.3f}} without. With $D_h = 8$ the scores are only 2.8 times larger, and smaller weights can make up for it. In LLaMA $D_h = 128$, and the factor is 11.3. And four pictures of heads prove nothing about what heads do in general.
#
# ## The anchor in the paper
#
# LLaMA §2.4: attention is computed without storing the attention weights, our $p$, and without computing the scores that are masked. [`minillama/nn/flash.py`](../minillama/nn/flash.py) does both in NumPy; it gives the same numbers, but for rounding. [15 · The same math on the GPU](15_gpu.ipynb) derives how.
#
# ## Three questions
#
# 1. Why does a mask of 0 in place of $-\infty$ leak, although 0 is a small score?
# 2. Why does backward need no mask?
# 3. A friend's model has a validation loss of 0.05 nats per token. Which two questions do you ask?
#
# <details><summary>Answers</summary>
#
# 1. The scores are on both sides of 0, so 0 is an ordinary score: $e^0 = 1$ gives a masked token a share like any other. Only $e^{-\infty} = 0$ gives it none.
# 2. In (5.8) every $ds$ has its own $p$ as a factor, and a masked $p$ is 0. So (5.9) gets nothing from masked scores.
# 3. Can the model see its targets? The test of section 3 tells. And what is the text's floor: can anybody predict it so well, or does the validation text also stand in the training text?
#
# </details>
#
# **The way on:** [06 · SwiGLU](06_swiglu.ipynb), the other half of a block; [07 · Assembling LLaMA](07_llama.ipynb), where attention is one line among a dozen.
