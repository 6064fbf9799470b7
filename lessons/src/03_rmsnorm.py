# %% [markdown] lang="en"
# # 03 · RMSNorm: one length for every vector
#
# **Question.** In a LLaMA every token is one vector that passes all layers. Each layer adds two updates to it, one from attention and one from the feed-forward: 64 updates in 32 layers. Why does that vector neither explode nor fade, and what does this cost the gradient?
#
# After this lesson you can derive both gradients of RMSNorm, say which part of a gradient it removes and why, and recognise the mistake that a gradient check at initialisation cannot see.
#
# *Needs:* [02 · Gradients](02_gradients.ipynb). *Paper:* LLaMA §2.2; Zhang & Sennrich 2019 (arXiv:1910.07467), Eq. 4. *Code:* [`minillama/nn/rmsnorm.py`](../minillama/nn/rmsnorm.py). *Time:* 25 minutes to read and solve, about a minute to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/
from unittest import mock

import numpy as np

from lessons import check, claim, lab, plt, record
from minillama import nn
from minillama.config import ModelConfig
from minillama.nn.gradcheck import numerical_gradient

# %% [markdown] lang="en"
# ## 1 · Forward, with numbers you can follow
#
# A token is a vector $x$ of $D$ numbers. RMSNorm divides it by its root mean square, then multiplies every channel by a learned gain $w_i$:
#
# $$\mathrm{rms}(x) = \sqrt{\tfrac1D\sum_i x_i^2 + \varepsilon}\qquad n = \frac{x}{\mathrm{rms}(x)}\qquad y_i = w_i\, n_i \tag{3.1}$$
#
# Take $x = (3, 4)$. The mean square is $(9 + 16)/2 = 12.5$ and its root $3.54$, so $n = (0.85, 1.13)$. That is the same direction, with a length of $\sqrt{D} = 1.41$.

# %%
x, weight = np.array([3.0, 4.0]), np.array([1.0, 1.0])
for scale in (1, 1000, 1e-3):
    print(f"{scale:>6} * x  ->  {nn.rmsnorm_forward(scale * x, weight, eps=0.0)[0]}")

# %% [markdown] lang="en"
# Three inputs, one output: **the length of x is forgotten**. Keep that in mind, for it decides what the gradient looks like. The small constant $\varepsilon$ matters only for very short vectors: a vector of zeros would be 0/0 without it.
#
# ### Your turn: forward
#
# Write (3.1). A wrong answer is told which mistake it is. `check(..., hint=True)` shows the line that was meant.

# %%
from lessons.checks.rmsnorm import rmsnorm_forward  # exercise

# %%
check("03.rmsnorm_forward", rmsnorm_forward)

# %% [markdown] lang="en"
# ## 2 · Backward, the easy half
#
# As in lesson 02, $dy$ is the gradient of the loss with respect to $y$. Every token $t$ multiplies its $n_{ti}$ by the same gain $w_i$, so the gain's gradient adds up over the tokens. And what goes back to $n$ passes the gain:
#
# $$dw_i = \sum_t dy_{ti}\, n_{ti} \tag{3.2}$$
# $$dn_i = dy_i\, w_i \tag{3.3}$$
#
# Both are checked against finite differences of the real forward pass, channel by channel:

# %%
rng = np.random.default_rng(0)
x, weight, dy, eps = rng.standard_normal((4, 6)), rng.standard_normal(6), rng.standard_normal((4, 6)), 1e-2
loss = lambda: float((nn.rmsnorm_forward(x, weight, eps)[0] * dy).sum())  # so that dloss/dy is dy
rms = np.sqrt((x * x).mean(-1, keepdims=True) + eps)
n = x / rms
dw = [sum(dy[t, i] * n[t, i] for t in range(4)) for i in range(6)]
print("(3.2) is off by", np.abs(dw - numerical_gradient(loss, weight)).max())
loss_of_n = lambda: float((weight * n * dy).sum())
print("(3.3) is off by", np.abs(dy * weight - numerical_gradient(loss_of_n, n)).max())

# %% [markdown] lang="en"
# ## 3 · Backward, the half people get wrong
#
# $x_i$ reaches the loss in two ways: through its own $n_i$, and through the rms, which divides *all* channels. First the rms. With $m = \frac1D \sum_i x_i^2$, the chain rule through the root gives
#
# $$\frac{\partial\,\mathrm{rms}}{\partial x_i} = \frac{1}{2\sqrt{m+\varepsilon}}\cdot\frac{\partial m}{\partial x_i} = \frac{1}{2\,\mathrm{rms}}\cdot\frac{2x_i}{D} = \frac{n_i}{D} \tag{3.4}$$
#
# We check it on the first token:

# %%
token, D = x[0].copy(), 6
rms_of_token = lambda: float(np.sqrt((token * token).mean() + eps))
n0 = token / rms_of_token()
print("(3.4) is off by", np.abs(n0 / D - numerical_gradient(rms_of_token, token)).max())

# %% [markdown] lang="en"
# Now $n_j = x_j / \mathrm{rms}$ is a quotient. When $x_i$ changes, the numerator $x_j$ changes only if $i = j$: its derivative is $\delta_{ij}$, which is 1 for $i = j$ and else 0. The denominator always changes, by (3.4). The quotient rule gives the derivative of every $n_j$ by every $x_i$; together they are the **Jacobian**:
#
# $$\frac{\partial n_j}{\partial x_i} = \frac{\delta_{ij}}{\mathrm{rms}} - \frac{x_j}{\mathrm{rms}^2}\cdot\frac{n_i}{D} = \frac{1}{\mathrm{rms}}\Bigl(\delta_{ij} - \frac{n_i n_j}{D}\Bigr) \tag{3.5}$$

# %%
jacobian = (np.eye(D) - np.outer(n0, n0) / D) / rms_of_token()
for j in (0, 5):
    n_j = lambda: token[j] / rms_of_token()
    print(f"(3.5), row {j}, is off by", np.abs(jacobian[j] - numerical_gradient(n_j, token)).max())

# %% [markdown] lang="en"
# $x_i$ reaches the loss through every $n_j$, so we sum over $j$. The $\delta_{ij}$ keeps one term of the sum; $n_i$ does not depend on $j$ and moves in front:
#
# $$dx_i = \sum_j dn_j \frac{\partial n_j}{\partial x_i} = \frac{1}{\mathrm{rms}}\Bigl(dn_i - n_i\,\underbrace{\tfrac1D\sum_j dn_j\,n_j}_{\text{one number per token}}\Bigr) \tag{3.6}$$
#
# By hand: $x = (3,4)$, $w = (1,1)$, $dy = (1,0)$. The one number is $\frac12 (1\cdot 0.849) = 0.424$. So $dx = (1 - 0.849\cdot 0.424,\; 0 - 1.131\cdot 0.424)/3.54 = (0.181, -0.136)$.

# %%
dn0 = dy[0] * weight
print("(3.6) is off by", np.abs(jacobian.T @ dn0 - numerical_gradient(loss, x)[0]).max())

# %%
_, cache = nn.rmsnorm_forward(np.array([[3.0, 4.0]]), np.ones(2), 0.0)
by_hand, _ = nn.rmsnorm_backward(np.array([[1.0, 0.0]]), cache)
print("by hand:", by_hand[0].round(3), "  x . dx =", round(float(by_hand[0] @ [3, 4]), 12))

# %% [markdown] lang="en"
# $x \cdot dx = 3 \cdot 0.181 - 4 \cdot 0.136 = 0$, but for rounding: the gradient has **nothing along x**. It cannot have, since moving along $x$ changes only the length, and the length is forgotten. The second term of (3.6) takes that part out of $dn$.
#
# ### Your turn: backward
#
# Write (3.2), (3.3) and (3.6) for a whole batch, without loops.

# %%
from lessons.checks.rmsnorm import rmsnorm_backward  # exercise

# %%
check("03.rmsnorm_backward", rmsnorm_backward)

# %% [markdown] lang="en"
# ## 4 · What a norm does to a gradient
#
# **Along x.** Multiply (3.6) by $x_i = \mathrm{rms}\,n_i$ and sum over $i$. By (3.1), $\sum_i x_i^2 = D(\mathrm{rms}^2 - \varepsilon)$, so $\sum_i x_i n_i = D(\mathrm{rms}^2 - \varepsilon)/\mathrm{rms}$. All that is left comes from $\varepsilon$:
#
# $$x \cdot dx = \frac{\varepsilon}{\mathrm{rms}^2} \sum_j dn_j\, n_j \tag{3.7}$$
#
# **With the length.** At $\varepsilon = 0$ and for $c > 0$, the vector $c\,x$ has the same $n$ and $c$ times the rms. So (3.6) gives $dx(c\,x) = dx(x)/c$: **a vector ten times longer gets a gradient ten times smaller**.

# %%
dx, _ = nn.rmsnorm_backward(dy, nn.rmsnorm_forward(x, weight, eps)[1])
right_side = eps / rms[:, 0] ** 2 * (dy * weight * n).sum(-1)
print("(3.7) is off by", np.abs((x * dx).sum(-1) - right_side).max())
at = lambda c: nn.rmsnorm_backward(dy, nn.rmsnorm_forward(c * x, weight, 0.0)[1])[0]
print("10 x: gradient smaller by", np.linalg.norm(at(1)) / np.linalg.norm(at(10)))

# %% [markdown] lang="en"
# ## 5 · The picture: 32 layers deep
#
# The vector that the layers add to is called the **residual stream**. Below is its root mean square in an untrained LLaMA of 32 layers (a layer is also called a block), with the norms and without. The weights are drawn with one of two standard deviations. No copy of the block is made: one function in it is replaced.

# %%
config = ModelConfig(dim=64, n_layers=32, n_heads=4, vocab_size=64, multiple_of=16, max_seq_len=32)
cos, sin = nn.rope_tables(32, config.head_dim)


def lengths(std, norm, seed):
    """Root mean square of the stream before each block and after the last, for weights of this standard deviation."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: np.ones(shape, np.float32) if len(shape) == 1 else std * rng.standard_normal(shape, np.float32)
    params = {k: draw(shape) for k, shape in nn.param_shapes(config).items()}
    x = rng.standard_normal((4, 32, config.dim), np.float32)
    found = [np.sqrt((x * x).mean())]
    forward = nn.rmsnorm_forward if norm else lambda x, weight, eps: (x, None)
    with mock.patch("minillama.nn.block.rmsnorm_forward", forward), np.errstate(all="ignore"):
        for layer in range(config.n_layers):
            x, _ = nn.block_forward(x, nn.model.layer_params(params, layer), cos, sin, config)
            found.append(np.sqrt((x * x).mean()))
    return np.array(found)


stds = {"0.02": 0.02, "1/√D": config.dim**-0.5}
curves = {(name, norm): np.array([lengths(std, norm, seed) for seed in range(3)])
          for name, std in stds.items() for norm in (True, False)}

# %%
fig, axis = plt.subplots()
for (name, norm), curve in curves.items():
    colour = lab.COLOURS[0] if name == "0.02" else lab.COLOURS[1]
    label = f"weights of std {name}, {'RMSNorm' if norm else 'no norm'}"
    axis.plot(curve.mean(0), "-" if norm else "--", color=colour, label=label)
    axis.fill_between(range(33), curve.min(0), curve.max(0), color=colour, alpha=0.2, linewidth=0)
axis.set(yscale="log", ylim=(0.5, 1e4), xlim=(0, 32), xlabel="blocks passed", ylabel="rms of the residual stream")
axis.set_title("Without the norm, one of the two starts explodes (D = 64)")
axis.legend(loc="upper right")
plt.show()

# %% [markdown] lang="en"
# With the norm, every block adds a vector of about the same length, in a new direction. So the stream grows like the square root of the depth: to {{with_norm:.1f}} after 32 blocks. Without it, and with weights of $1/\sqrt D$, it has left the picture after {{leaves_at:.0f}} blocks, in all three draws: the more a block reads, the more it adds.
#
# At 0.02 almost nothing happens, *with the norm or without* (the two blue lines lie on each other): these blocks add too little to matter. That is so because this model is narrow, $D = 64$. In LLaMA-7B, $D = 4096$ and $1/\sqrt D = 0.016$: there 0.02 is the larger of the two.

# %%
normed, bare, quiet = curves["1/√D", True], curves["1/√D", False], curves["0.02", False]
leaves_at = max(int(np.argmax(~(seed < 1e4))) for seed in bare)  # NaN has left, too
record(with_norm=normed[:, -1].mean(), leaves_at=leaves_at)
growth = normed[:, 32] / normed[:, 8]  # four times the depth
claim("with the norm the stream grows like the root of the depth", (abs(growth / 2 - 1) < 0.4).all())
left = 0 < leaves_at < 32 and not (bare[:, -1] < 1e4).any()
claim("without it, every draw leaves the picture before the last block", left)
claim("quiet weights hide the difference", (quiet[:, -1] / quiet[:, 0] < 1.1).all())

# %% [markdown] lang="en"
# ## 6 · Does it train better?
#
# A tiny LLaMA of 4 layers learns the built-in text, whose entropy floor is known. We show the **excess**, loss minus floor: what there was to learn and has not been learned ([00 · Baselines](00_baselines.ipynb)). Beside it, the same model without the norms: of each, only the gain is left. One learning rate would say little, so both are trained at five of them, from three seeds each.

# %%
ops = [f"minillama.nn.{module}.rmsnorm_{way}" for module in ("block", "model") for way in ("forward", "backward")]
no_norm = {op: f"lessons.museum.no_norm_{op.rpartition('_')[2]}" for op in ops}
rates = (3e-3, 1e-2, 3e-2, 1e-1, 2e-1)
arms = {f"RMSNorm, lr {lr:g}": {"lr": lr, "n_layers": 4} for lr in rates}
arms |= {f"no norm, lr {lr:g}": {"lr": lr, "n_layers": 4, "patch": no_norm} for lr in rates}
results = lab.run(arms, seeds=3, steps=150, evaluations=1)
lab.table(results)

# %%
fig, axis = plt.subplots()
top = 6.0  # where a run that diverged is drawn
for name, colour in (("RMSNorm", lab.COLOURS[0]), ("no norm", lab.COLOURS[1])):
    finals = np.array([results[f"{name}, lr {lr:g}"].final for lr in rates])  # (rates, seeds)
    shown = np.where(np.isfinite(finals), finals, top)
    axis.plot(rates, shown.mean(1), color=colour, label=name)
    axis.fill_between(rates, shown.min(1), shown.max(1), color=colour, alpha=0.2, linewidth=0)
    axis.plot(np.repeat(rates, 3), shown.ravel(), "o", color=colour, markersize=4)
axis.axhline(top, color="#888888", linewidth=0.8, linestyle=":")
axis.annotate("diverged", (rates[0], top), xytext=(0, -11), textcoords="offset points", color="#666666")
axis.set(xscale="log", yscale="log", xlabel="peak learning rate", ylabel="excess after 150 steps (nats/token)")
axis.set(yticks=[0.5, 1, 2, 5], yticklabels=["0.5", "1", "2", "5"])
axis.minorticks_off()
axis.set_title("With the norm, the highest rate still trains (line: mean, band: three seeds)")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# At a rate of 0.01, every run with the norm is better than every run without it: {{norm_1e2:.2f}} nats/token of excess on average, against {{bare_1e2:.2f}}. At 0.1, the runs without it meet gradients of norm $10^{\,{{spike:.0f}}}$ and more; clipping saves these three runs ([10 · Stability](10_stability.ipynb)). At 0.2 clipping does not save them: all three end in numbers that are not finite, and all three with the norm train.

# %%
final = lambda name, lr: results[f"{name}, lr {lr:g}"].final
spikes = {name: np.nanmax(results[f"{name}, lr 0.1"].norms, 1) for name in ("RMSNorm", "no norm")}
record(norm_1e2=final("RMSNorm", 0.01).mean(), bare_1e2=final("no norm", 0.01).mean())
record(norm_3e2=final("RMSNorm", 0.03).mean(), bare_3e2=final("no norm", 0.03).mean())
record(spike=np.floor(np.log10(spikes["no norm"].min())))
better = final("RMSNorm", 0.01).max() + 0.02 < final("no norm", 0.01).min()
claim("at lr 0.01 every run with the norm is better than every run without", better, fast=False)
larger = spikes["no norm"].min() > 1e6 * spikes["RMSNorm"].max()
claim("at lr 0.1 the largest gradient is a million times larger without it", larger)
claim("at lr 0.2 every run with the norm trains", (final("RMSNorm", 0.2) < 4).all(), fast=False)
claim("at lr 0.2 every run without it is lost", not np.isfinite(final("no norm", 0.2)).any(), fast=False)

# %% [markdown] lang="en"
# **What does not show at this scale.** At 0.03, the two are close ({{norm_3e2:.2f}} and {{bare_3e2:.2f}}): four layers are too few for what the picture of 32 layers warns of. If you try one learning rate only, you can "prove" almost anything here. [10 · Stability](10_stability.ipynb) compares many rates, with warm-up and clipping, too.
#
# ## 7 · The mistake that a check at initialisation cannot see
#
# Forget the gain in (3.3): write $dn = dy$. At initialisation every gain is 1, so the gradient is *exactly* right, and finite differences agree. The remedy: draw the gains at random, as `check_everything` in [`minillama/nn/gradcheck.py`](../minillama/nn/gradcheck.py) does.

# %%
def off_by(gains):
    """Largest error of (3.6) when (3.3) forgets the gains."""
    loss = lambda: float((nn.rmsnorm_forward(x, gains, eps)[0] * dy).sum())
    _, rest = nn.rmsnorm_forward(x, np.ones(6), eps)
    return np.abs(nn.rmsnorm_backward(dy, rest)[0] - numerical_gradient(loss, x)).max()


print(f"gains of 1: off by {off_by(np.ones(6)):.0e}      random gains: off by {off_by(weight):.2f}")
claim("gains of 1 hide the mistake, random gains show it", off_by(np.ones(6)) < 1e-8 < 0.1 < off_by(weight))

# %% [markdown] lang="en"
# ## 8 · A mistake in small number formats
#
# The largest number of float16 is 65504. A channel of 300 is nothing special, but its *square* is 90000: infinite. Then the rms is infinite, and $x/\mathrm{rms}$ is **zero**, without any error message. This has happened to people who loaded LLaMA in float16. LLaMA's own code computes the norm in float32 and rounds the result.

# %%
x16 = np.array([300, 1, 2, 3], np.float16)
with np.errstate(over="ignore"):
    print("all in float16:  ", x16 / np.sqrt((x16 * x16).mean()))
x32 = x16.astype(np.float32)
print("norm in float32: ", (x32 / np.sqrt((x32 * x32).mean())).astype(np.float16))

# %% [markdown] lang="en"
# ## The anchor in the paper
#
# LLaMA §2.2 names three changes to the transformer. The first is *pre-normalisation*: the input of every sub-layer is normalised instead of its output, with RMSNorm. So the residual stream itself is never divided by anything between the layers, and along it a gradient passes every `+` of [`minillama/nn/block.py`](../minillama/nn/block.py) unchanged.
#
# ## Three questions
#
# 1. Which direction of $dn$ never reaches $x$, and why?
# 2. Why does $dw$ sum over tokens, while the mean in (3.6) runs over channels?
# 3. A colleague checks a new RMSNorm at initialisation and finds an error of 0.0. What do you say?
#
# <details><summary>Answers</summary>
#
# 1. The part of $dn$ along $n$, that is, along $x$. A step along $x$ changes only the length, and $n$ has forgotten the length. The second term of (3.6) removes it (but for $\varepsilon$).
# 2. All tokens share one gain, so their contributions add up. The rms belongs to one token and is made from its channels: the mean in (3.6) is the mean of (3.1), which came back through (3.4).
# 3. That all gains were 1, so a forgotten gain cannot show: check again with random gains. And that finite differences always leave some rounding, about $10^{-10}$. An error of exactly 0 means that two formulas were compared.
#
# </details>
#
# **The way on:** [04 · RoPE](04_rope.ipynb), the op whose backward is its forward, turned the other way.
