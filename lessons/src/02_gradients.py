# %% [markdown] lang="en"
# # 02 · Gradients by hand, and how to trust them
#
# **Question.** You derived a gradient on paper and wrote ten lines of NumPy. The loss falls. Is the gradient right? How would you know, and to how many digits?
#
# After this lesson you can write the backward pass of a linear layer and of the loss, measure any gradient by finite differences with a step you can justify, and read a relative error.
#
# *Needs:* the chain rule, and NumPy's `@`. *Paper:* LLaMA §2.2 (no biases), §2.3. *Code:* [`minillama/nn/linear.py`](../minillama/nn/linear.py), [`cross_entropy.py`](../minillama/nn/cross_entropy.py), [`gradcheck.py`](../minillama/nn/gradcheck.py). *Time:* 35 minutes to read and solve, a few seconds to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import numpy as np

from lessons import check, claim, lab, plt, record
from minillama import nn
from minillama.config import ModelConfig
from minillama.nn.gradcheck import gradcheck

# %% [markdown] lang="en"
# ## 1 · What a backward pass is asked
#
# In this course `dname` always means *dLoss/d(name)*. A backward pass is told `dout`, how much the loss changes with each output, and answers with how much it changes with each input. It never needs to know the rest of the model.
#
# A linear layer makes output $o$ of token $t$ from all inputs $i$:
#
# $$y_{to} = \sum_i x_{ti}\, W_{oi}\tag{2.1}$$
#
# By hand: $x = (1, 2)$ and $W$ with rows $(3,4)$, $(5,6)$ give $y = (1\cdot3 + 2\cdot4,\; 1\cdot5 + 2\cdot6) = (11, 17)$.
#
# One input $x_{ti}$ reaches *every* output $o$ of its token, each time through $W_{oi}$. So its gradient is a sum over $o$:
#
# $$dx_{ti} = \sum_o dy_{to}\,W_{oi} \qquad\Longleftrightarrow\qquad dx = dy\,W \tag{2.2}$$
#
# One weight $W_{oi}$ is used by *every* token $t$, each time with $x_{ti}$. So its gradient is a sum over $t$:
#
# $$dW_{oi} = \sum_t dy_{to}\,x_{ti} \qquad\Longleftrightarrow\qquad dW = dy^\top x \tag{2.3}$$
#
# By hand, with $dy = (1, 10)$: $dx = (1\cdot3 + 10\cdot5,\; 1\cdot4 + 10\cdot6) = (53, 64)$, and $dW$ has the rows $(1, 2)$ and $(10, 20)$.

# %%
x, W, dy = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]]), np.array([[1.0, 10.0]])
y, cache = nn.linear_forward(x, W)
dx, dW = nn.linear_backward(dy, cache)
print("(2.1) y  =", y[0], "\n(2.2) dx =", dx[0], "\n(2.3) dW =", dW.tolist())
step = 1e-6
print("nudge x_0:", ((nn.linear_forward(x + [step, 0], W)[0] - y) * dy).sum() / step)
print("nudge W_10:", ((nn.linear_forward(x, W + [[0, 0], [step, 0]])[0] - y) * dy).sum() / step)

# %% [markdown] lang="en"
# **The rule behind both:** where forward uses a value several times, backward adds up. A gain shared by all tokens, a residual that goes two ways, an embedding row that occurs twice: always a sum. And where a sum is easy to forget, it is forgotten.
#
# ### Your turn: a linear layer, for a batch
#
# Here x is (B, T, D_in), so a weight is used by B · T tokens.

# %%
from lessons.checks.gradients import linear_backward  # exercise

# %%
check("02.linear_backward", linear_backward)

# %% [markdown] lang="en"
# ## 2 · The loss: predicted minus observed
#
# Logits $z$ become probabilities by the softmax, and the loss is the mean surprise at the true tokens $y_t$:
#
# $$p_{tv} = \frac{e^{z_{tv}}}{\sum_u e^{z_{tu}}} \qquad L = -\frac1N\sum_t \ln p_{t,y_t} = \frac1N\sum_t\Bigl(\ln\sum_u e^{z_{tu}} - z_{t,y_t}\Bigr)\tag{2.4}$$
#
# The first part of the bracket has the softmax itself for its derivative, by the chain rule through the logarithm:
#
# $$\frac{\partial}{\partial z_v}\ln\sum_u e^{z_u} = \frac{e^{z_v}}{\sum_u e^{z_u}} = p_v \tag{2.5}$$
#
# The second part is 1 where $v$ is the target, else 0. Together:
#
# $$dz_{tv} = \frac1N\bigl(p_{tv} - [v = y_t]\bigr)\tag{2.6}$$
#
# By hand: $z = (0, \ln 3)$ gives $p = (1/4, 3/4)$. With target 1, $L = \ln(4/3) = 0.288$ and $dz = (0.25, -0.25)$. Every row of (2.6) sums to 0, since adding a constant to all logits changes nothing.

# %%
z, target = np.array([[[0.0, np.log(3.0)]]]), np.array([[1]])  # (B, T, V) and (B, T), as everywhere
loss, cache = nn.cross_entropy_forward(z, target)
print(f"(2.4) L = {loss:.3f}   (2.6) dz = {nn.cross_entropy_backward(1.0, cache)[0, 0]}")
log_sum = lambda z: np.log(np.exp(z).sum())
print("(2.5) is off by", abs((log_sum(z + [[0, 1e-6]]) - log_sum(z - [[0, 1e-6]])) / 2e-6 - 0.75))
many, targets = np.random.default_rng(0).standard_normal((1, 6, 5)), np.array([[1, 4, 4, 0, 2, 1]])
dz = nn.cross_entropy_backward(1.0, nn.cross_entropy_forward(many, targets)[1])
print("rows of (2.6) sum to", np.abs(dz.sum(-1)).max())

# %% [markdown] lang="en"
# ### Your turn: the gradient of the loss

# %%
from lessons.checks.gradients import cross_entropy_backward  # exercise

# %%
check("02.cross_entropy_backward", cross_entropy_backward)

# %% [markdown] lang="en"
# ## 3 · Measuring a gradient
#
# A derivative is a slope, and a slope can be measured: nudge one number up and down, and look at the loss. Taylor's series says how well that works. With all terms written out to the third,
#
# $$L(x \pm h) = L \pm hL' + \tfrac{h^2}{2}L'' \pm \tfrac{h^3}{6}L''' + \dots$$
#
# Subtract the two, and the even terms cancel; divide by $2h$:
#
# $$\frac{L(x+h)-L(x-h)}{2h} = L' + \frac{h^2}{6}L''' + \dots \tag{2.7}$$
#
# From one side only, the second derivative stays, and the error shrinks with $h$ in place of $h^2$:
#
# $$\frac{L(x+h)-L(x)}{h} = L' + \frac{h}{2}L'' + \dots \tag{2.8}$$
#
# With $L = e^x$ at $x = 0$ all derivatives are 1. So at $h = 0.1$ the errors must be near $0.01/6 = 0.0017$ and $0.1/2 = 0.05$.

# %%
for h in (0.1, 0.01):
    two_sided, one_sided = (np.exp(h) - np.exp(-h)) / (2 * h), (np.exp(h) - 1) / h
    print(f"h = {h}: (2.7) {two_sided - 1:.6f}, predicted {h * h / 6:.6f}    (2.8) {one_sided - 1:.6f}, predicted {h / 2:.6f}")

# %% [markdown] lang="en"
# ### Your turn: finite differences

# %%
from lessons.checks.gradients import numerical_gradient  # exercise

# %%
check("02.numerical_gradient", numerical_gradient)

# %% [markdown] lang="en"
# ## 4 · How small a step?
#
# Smaller is not better. The computer keeps $L$ to a share $\epsilon$ of its size ($10^{-16}$ in float64, $6\cdot10^{-8}$ in float32), and dividing by $h$ makes that error large:
#
# $$\text{error}(h) \approx \frac{h^2}{6}\,|L'''| + \frac{\epsilon\,|L|}{h}\tag{2.9}$$
#
# The first term grows with $h$, the second one shrinks. Set the derivative to zero, $\frac{h}{3}|L'''| - \frac{\epsilon |L|}{h^2} = 0$:
#
# $$h_{\text{best}} = \Bigl(\frac{3\,\epsilon\,|L|}{|L'''|}\Bigr)^{1/3}\tag{2.10}$$
#
# With everything near 1: $h \approx 7\cdot10^{-6}$ in float64, $6\cdot 10^{-3}$ in float32. We measure it, on the loss (2.4), for five draws.

# %%
def off_by(h, dtype, seed):
    """Relative error of central differences of the loss, computed in this dtype, against the float64 gradient."""
    rng = np.random.default_rng(seed)
    z, targets = rng.standard_normal((2, 5, 11)).astype(dtype), rng.integers(0, 11, (2, 5))
    truth = nn.cross_entropy_backward(1.0, nn.cross_entropy_forward(z.astype(np.float64), targets)[1])
    measured = np.empty_like(truth)
    for index in np.ndindex(z.shape):
        nudge = np.zeros_like(z)
        nudge[index] = h
        above, below = (nn.cross_entropy_forward(z + side * nudge, targets)[0] for side in (1, -1))
        measured[index] = (float(above) - float(below)) / (2 * h)
    return np.abs(measured - truth).max() / np.abs(truth).max()


steps = 10.0 ** np.arange(-12, 0.5, 0.5)
errors = {dtype: np.array([[off_by(h, dtype, seed) for h in steps] for seed in range(5)]) for dtype in (np.float64, np.float32)}

# %%
fig, axis = plt.subplots()
for (dtype, found), colour in zip(errors.items(), lab.COLOURS):
    found = np.maximum(found, 1e-12)
    axis.plot(steps, found.mean(0), color=colour, label=dtype.__name__)
    axis.fill_between(steps, found.min(0), found.max(0), color=colour, alpha=0.25, linewidth=0)
axis.axhspan(1e-4, 30, color="#D55E00", alpha=0.07, linewidth=0)
axis.axhspan(1e-11, 1e-7, color="#009E73", alpha=0.08, linewidth=0)
axis.text(1.3e-12, 3e-9, "right", color="#00694d")
axis.text(0.35, 0.9, "wrong", color="#a34700")
axis.text(2e-7, 2e-6, "look again", color="#666666")
axis.text(3e-8, 7e-9, "rounding:\nε / h", ha="right", va="top", color="#666666")
axis.text(3e-2, 1e-8, "curvature:\nh²", va="top", color="#666666")
axis.set(xscale="log", yscale="log", ylim=(1e-11, 30), xlabel="step h", ylabel="relative error", title="A gradient check has a best step, and float32 has no good one")
axis.legend(loc="lower left")
plt.show()

# %% [markdown] lang="en"
# **Remember this U.** In float64 the best step is near {{best64:.0e}}, with an error of {{low64:.0e}}. In float32 the best is {{best32:.0e}}, and its error of {{low32:.0e}} could hide a small mistake. That is why every check here is in float64. The stretches left of the bottom follow $\epsilon/h$, those right of it $h^2$, as (2.9) says.

# %%
mean = {dtype: found.mean(0) for dtype, found in errors.items()}
best = {dtype: steps[found.argmin()] for dtype, found in mean.items()}
record(best64=best[np.float64], low64=mean[np.float64].min(), best32=best[np.float32], low32=mean[np.float32].min())
at = lambda dtype, h: errors[dtype][:, np.abs(np.log10(steps / h)).argmin()]
claim("in float64, h = 1e-5 is good to 1e-8 on every draw", at(np.float64, 1e-5).max() < 1e-8)
claim("in float32 no step at all is good to 1e-5", errors[np.float32].min() > 1e-5)
claim("right of the bottom the error grows like h²", (np.abs(at(np.float64, 1e-1) / at(np.float64, 1e-2) / 100 - 1) < 0.2).all())
claim("left of it, it shrinks like 1/h", (np.abs(np.log10(at(np.float64, 1e-10) / at(np.float64, 1e-8)) - 2) < 0.5).all())

# %% [markdown] lang="en"
# ## 5 · Reading an error
#
# An error of $10^{-6}$ is tiny beside a gradient of 1, and a catastrophe beside one of $10^{-6}$. So divide, but not entry by entry: some true entries are almost 0, and there rounding alone would look like an error of 1. We take both maxima over the whole tensor:
#
# $$\text{error} = \frac{\max_i |a_i - n_i|}{\max_i |n_i|}\tag{2.11}$$
#
# where $a$ is derived and $n$ is measured. In float64 with $h = 10^{-5}$: below $10^{-7}$ is right, above $10^{-4}$ is wrong, between them look again.

# %%
truth = np.array([2.0, 1e-9])
rounding = truth + np.array([0.0, 1e-9])  # what rounding may do to a tiny entry
print("entry by entry:", (np.abs(rounding - truth) / np.abs(truth)).max(), "  (2.11):", np.abs(rounding - truth).max() / np.abs(truth).max())

# %% [markdown] lang="en"
# ### Your turn: the relative error

# %%
from lessons.checks.gradients import relative_error  # exercise

# %%
check("02.relative_error", relative_error)

# %% [markdown] lang="en"
# ## 6 · All of it in one call
#
# An op's output is many numbers, and a loss is one. So `gradcheck` multiplies the output with random numbers and sums: two mistakes then do not cancel. Below, the right linear layer, and one that averages over the batch.

# %%
rng = np.random.default_rng(0)
arrays = {"x": rng.standard_normal((2, 3, 4)), "weight": rng.standard_normal((5, 4))}
print(gradcheck(nn.linear_forward, nn.linear_backward, arrays))


def averaged(dout, cache):
    dx, dweight = nn.linear_backward(dout, cache)
    return dx, dweight / 2


report = gradcheck(nn.linear_forward, averaged, arrays)
print(report)
claim("the check passes what is right", gradcheck(nn.linear_forward, nn.linear_backward, arrays).passed)
claim("and finds the average: off by half", not report.passed and abs(report[1].error - 0.5) < 0.01)

# %% [markdown] lang="en"
# A **constant ratio** between derived and measured is the friendliest mistake: 1/2 for a batch of 2, N for a forgotten 1/N. Look at the ratio before you look at the code.
#
# ## 7 · A whole model has more rounding
#
# The loss of a model passes through many more operations. We measure the slope along one random direction through *all* its parameters, in both number formats.

# %%
config = ModelConfig(dim=12, n_layers=2, n_heads=3, vocab_size=11, multiple_of=4, max_seq_len=8, norm_eps=1e-2)


def model_off_by(h, dtype, seed):
    rng = np.random.default_rng(seed)
    params = {k: rng.standard_normal(s) * (0.4 if len(s) > 1 else 1) for k, s in nn.param_shapes(config).items()}
    tokens, targets = rng.integers(0, 11, (2, 2, 8))
    u = {k: rng.standard_normal(p.shape) for k, p in params.items()}
    length = np.sqrt(sum((a * a).sum() for a in u.values()))
    logits, cache = nn.model_forward(tokens, params, config)
    grads = nn.model_backward(nn.cross_entropy_backward(1.0, nn.cross_entropy_forward(logits, targets)[1]), cache)
    slope = sum((grads[k] * u[k]).sum() for k in u) / length
    usual = np.sqrt(sum((g * g).sum() for g in grads.values()) / sum(g.size for g in grads.values()))
    loss = lambda side: float(nn.cross_entropy_forward(
        nn.model_forward(tokens, {k: (p + side * h / length * u[k]).astype(dtype) for k, p in params.items()}, config)[0], targets)[0])
    return abs((loss(1) - loss(-1)) / (2 * h) - slope) / usual


whole = {dtype: np.array([[model_off_by(h, dtype, seed) for h in 10.0 ** np.arange(-7, 0)] for seed in range(5)]) for dtype in (np.float64, np.float32)}
for dtype, found in whole.items():
    print(f"{dtype.__name__}: best step {10.0 ** (found.mean(0).argmin() - 7):.0e}, worst of five draws off by {found.max(0).min():.0e}")
record(whole32=whole[np.float32].max(0).min(), parameters=nn.count_params(config))
claim("float64 checks a whole model to 1e-7", whole[np.float64].max(0).min() < 1e-7)
claim("float32 does not come to 1e-4", whole[np.float32].max(0).min() > 1e-4)

# %% [markdown] lang="en"
# **What does not show at this scale.** Here the float32 check of a whole model is off by {{whole32:.0e}} at its best step, for a model of {{parameters:,.0f}} parameters. A real one has millions of times as many roundings, and this lesson does not measure what that costs. And a check says nothing about ops it was not given: test each one, then the model.
#
# ## The anchor in the paper
#
# LLaMA §2.2 describes the layers whose gradients we derive; there are no biases anywhere, so (2.3) is all there is for a linear layer. §2.4 says that the authors wrote the backward of the transformer layers by hand, too, instead of relying on autograd, to keep fewer activations.
#
# ## Three questions
#
# 1. Why does $dW$ sum over tokens, and $dx$ over outputs?
# 2. Your gradient is exactly 32 times the measured one. What do you look for?
# 3. Someone checks in float32 with $h = 10^{-6}$ and finds an error of 1. What does this tell about the gradient?
#
# **The way on:** [03 · RMSNorm](03_rmsnorm.ipynb), where one value reaches the loss along two paths.
