# %% [markdown] lang="en"
# # 02 · Gradients by hand, and how to trust them
#
# **Question.** You derived a gradient on paper and wrote ten lines of NumPy. The loss falls. Is the gradient right? How would you know, and to how many digits?
#
# After this lesson you can write the backward pass of a linear layer and of the loss, measure any gradient by finite differences with a step you can justify, and read a relative error.
#
# *Needs:* the chain rule, NumPy's `@`, and the loss of [00 · Baselines](00_baselines.ipynb). *Paper:* LLaMA §2.2, §2.4. *Code:* [`minillama/nn/linear.py`](../minillama/nn/linear.py), [`cross_entropy.py`](../minillama/nn/cross_entropy.py), [`gradcheck.py`](../minillama/nn/gradcheck.py). *Time:* 35 minutes to read and solve, a few seconds to run.

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
# In this course `dname` always means *dLoss/d(name)*. A backward pass is given `dout`: how much the loss changes with each output. It returns how much the loss changes with each input. It never needs to know the rest of the model.
#
# A linear layer makes output $o$ of token $t$ from all inputs $i$. $W$ has one row for each output:
#
# $$y_{to} = \sum_i x_{ti}\, W_{oi}\tag{2.1}$$
#
# By hand: $x = (1, 2)$ and $W$ with rows $(3,4)$, $(5,6)$ give $y = (1\cdot3 + 2\cdot4,\; 1\cdot5 + 2\cdot6) = (11, 17)$.

# %%
x, W = np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0]])
y, cache = nn.linear_forward(x, W)
print("(2.1) y =", y[0])

# %% [markdown] lang="en"
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
dy = np.array([[1.0, 10.0]])
dx, dW = nn.linear_backward(dy, cache)
print("(2.2) dx =", dx[0], "\n(2.3) dW =", dW.tolist())

# %% [markdown] lang="en"
# Is this true? Add a very small step to $x_0$, and to the weight in row 1, column 0. The loss whose gradient is $dy$ is $\sum_o dy_o\,y_o$. How much does it change, for each unit of the step?

# %%
step = 1e-6
print("change for x_0: ", ((nn.linear_forward(x + [step, 0], W)[0] - y) * dy).sum() / step)
print("change for W_10:", ((nn.linear_forward(x, W + [[0, 0], [step, 0]])[0] - y) * dy).sum() / step)

# %% [markdown] lang="en"
# **The rule behind both:** where forward uses a value several times, backward adds up. A weight that all tokens share, a vector that goes two ways, a row of the embedding that is read twice: always a sum. Forgetting such a sum is a common mistake.
#
# ### Your turn: a linear layer, for a batch
#
# Here x is (B, T, D_in): B rows of text with T tokens each. So a weight is used by B · T tokens.

# %%
from lessons.checks.gradients import linear_backward  # exercise

# %%
check("02.linear_backward", linear_backward)

# %% [markdown] lang="en"
# ## 2 · The loss: predicted minus observed
#
# For each of $N$ tokens the model gives a row of logits $z$, one for each entry $v$ of the vocabulary. They become probabilities $p$ by the softmax. The loss is the mean surprise at the true next tokens; in this section $y_t$ is the number of that token, the target:
#
# $$p_{tv} = \frac{e^{z_{tv}}}{\sum_u e^{z_{tu}}} \qquad L = -\frac1N\sum_t \ln p_{t,y_t} = \frac1N\sum_t\Bigl(\ln\sum_u e^{z_{tu}} - z_{t,y_t}\Bigr)\tag{2.4}$$
#
# The derivative of the first part of the bracket is the softmax itself, by the chain rule through the logarithm (for one token, without its $t$):
#
# $$\frac{\partial}{\partial z_v}\ln\sum_u e^{z_u} = \frac{e^{z_v}}{\sum_u e^{z_u}} = p_v \tag{2.5}$$
#
# The derivative of the second part, $z_{y_t}$, is 1 where $v$ is the target, and 0 elsewhere. We write $[v = y_t]$ for this. Together:
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

# %%
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
# A derivative is a slope, and a slope can be measured: move one number $x$ up and down by a small step $h$, and look at the loss. Taylor's series says how well that works. With $L'$, $L''$, $L'''$ for the first three derivatives at $x$,
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
    print(f"h = {h:<5} (2.7) is off by {two_sided - 1:.6f}, predicted {h * h / 6:.6f}",
          f"   (2.8) by {one_sided - 1:.6f}, predicted {h / 2:.6f}")

# %% [markdown] lang="en"
# ### Your turn: finite differences

# %%
from lessons.checks.gradients import numerical_gradient  # exercise

# %%
check("02.numerical_gradient", numerical_gradient)

# %% [markdown] lang="en"
# ## 4 · How small a step?
#
# Smaller is not always better. The computer rounds $L$, with an error of up to $\epsilon\,|L|$, where $\epsilon$ is $10^{-16}$ in float64 and $6\cdot10^{-8}$ in float32. Dividing by $h$ makes this error large:
#
# $$\text{error}(h) \approx \frac{h^2}{6}\,|L'''| + \frac{\epsilon\,|L|}{h}\tag{2.9}$$
#
# The first term grows with $h$, the second one shrinks. Set the derivative to zero, $\frac{h}{3}|L'''| - \frac{\epsilon |L|}{h^2} = 0$:
#
# $$h_{\text{best}} = \Bigl(\frac{3\,\epsilon\,|L|}{|L'''|}\Bigr)^{1/3}\tag{2.10}$$
#
# If $|L|$ and $|L'''|$ are near 1, this is $7\cdot10^{-6}$ in float64 and $6\cdot 10^{-3}$ in float32. We measure it on the loss (2.4) of $N = 10$ tokens and 11 logits each, for five draws.

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


formats = (np.float64, np.float32)
steps = 10.0 ** np.arange(-12, 0.5, 0.5)
errors = {dtype: np.array([[off_by(h, dtype, seed) for h in steps] for seed in range(5)]) for dtype in formats}

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
axis.text(3e-2, 1e-8, "Taylor term:\nh²", va="top", color="#666666")
axis.set(xscale="log", yscale="log", ylim=(1e-11, 30), xlabel="step h", ylabel="relative error")
axis.set_title("A gradient check has a best step, and float32 has no good one")
axis.legend(loc="lower left")
plt.show()

# %% [markdown] lang="en"
# **Remember this U.** In float64 the best step is near {{best64:.0e}}, with an error of {{low64:.0e}}. In float32 the best is {{best32:.0e}}, and its error of {{low32:.0e}} could hide a small mistake. That is why every check here is in float64. Left of the lowest point the error falls like $\epsilon/h$, and right of it the error grows like $h^2$, as (2.9) says. Where the float32 line is flat, the step is lost in the rounding of the loss: the measured slope is 0, and that is an error of 1.

# %%
mean = {dtype: found.mean(0) for dtype, found in errors.items()}
best = {dtype: steps[found.argmin()] for dtype, found in mean.items()}
record(best64=best[np.float64], low64=mean[np.float64].min())
record(best32=best[np.float32], low32=mean[np.float32].min())
at = lambda dtype, h: errors[dtype][:, np.abs(np.log10(steps / h)).argmin()]
claim("in float64, h = 1e-5 is good to 1e-8 on every draw", at(np.float64, 1e-5).max() < 1e-8)
claim("in float32 no step at all is good to 1e-5", errors[np.float32].min() > 1e-5)
right_side, left_side = at(np.float64, 1e-1) / at(np.float64, 1e-2), at(np.float64, 1e-10) / at(np.float64, 1e-8)
claim("right of the lowest point the error grows like h²", (np.abs(right_side / 100 - 1) < 0.2).all())
claim("left of it, it falls like 1/h", (np.abs(np.log10(left_side) - 2) < 0.5).all())

# %% [markdown] lang="en"
# Does (2.10) give this step? By (2.6), $L'$ is $(p - [v = y_t])/N$. One logit changes its own probability by $p' = p\,(1-p)$. Differentiate this once more: $L''' = p\,(1-p)(1-2p)/N$. That is small, and so the best step is larger than with everything near 1:

# %%
def predicted(epsilon, seed):
    """(2.10) for the logit with the largest third derivative."""
    rng = np.random.default_rng(seed)
    z, targets = rng.standard_normal((2, 5, 11)), rng.integers(0, 11, (2, 5))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    third = np.abs(p * (1 - p) * (1 - 2 * p)).max() / targets.size
    return (3 * epsilon * nn.cross_entropy_forward(z, targets)[0] / third) ** (1 / 3)


for dtype, epsilon in zip(formats, (1.1e-16, 6e-8)):
    expected = np.array([predicted(epsilon, seed) for seed in range(5)])
    print(f"{dtype.__name__}: (2.10) {expected.mean():.0e}, best step of those that were tried {best[dtype]:.0e}")
    within = (np.abs(np.log(expected / best[dtype])) < np.log(4)).all()
    claim(f"in {dtype.__name__}, (2.10) gives the best step to within a factor of 4", within)

# %% [markdown] lang="en"
# ## 5 · Reading an error
#
# An error of $10^{-6}$ is tiny beside a gradient of 1, and as large as a gradient of $10^{-6}$ itself. So divide by the gradient, but not entry by entry: some true entries are almost 0, and there rounding alone would look like an error of 1. We take both maxima over the whole tensor:
#
# $$\text{error} = \frac{\max_i |a_i - n_i|}{\max_i |n_i|}\tag{2.11}$$
#
# where $a$ is derived and $n$ is measured. In float64 with $h = 10^{-5}$: below $10^{-7}$ the gradient is right, above $10^{-4}$ it is wrong, and between them look again.

# %%
truth = np.array([2.0, 1e-9])
rounding = truth + np.array([0.0, 1e-9])  # what rounding may do to a tiny entry
difference = np.abs(rounding - truth)
print("entry by entry:", (difference / np.abs(truth)).max(), "  (2.11):", difference.max() / np.abs(truth).max())

# %% [markdown] lang="en"
# ### Your turn: the relative error

# %%
from lessons.checks.gradients import relative_error  # exercise

# %%
check("02.relative_error", relative_error)

# %% [markdown] lang="en"
# ## 6 · All of it in one call
#
# An op has many outputs, and a loss is one number. So `gradcheck` multiplies every output by a random number and adds up: two mistakes then do not cancel. It prints one line for each tensor: the place where derived and measured differ most, both values there, and the error (2.11). Its limit is the strict one, $10^{-7}$.

# %%
rng = np.random.default_rng(0)
arrays = {"x": rng.standard_normal((2, 3, 4)), "weight": rng.standard_normal((5, 4))}
right = gradcheck(nn.linear_forward, nn.linear_backward, arrays)
print(right)
claim("the check passes what is right", right.passed)

# %% [markdown] lang="en"
# And here is a linear layer that takes the mean over the two rows of the batch, where it must add up:

# %%
def averaged(dout, cache):
    dx, dweight = nn.linear_backward(dout, cache)
    return dx, dweight / 2


report = gradcheck(nn.linear_forward, averaged, arrays)
print(report)
claim("the check finds the mean: it is off by half", not report.passed and abs(report[1].error - 0.5) < 0.01)

# %% [markdown] lang="en"
# A **constant ratio** between derived and measured is the mistake that is easiest to find: here it is 1/2, for a batch of 2; it is N for a forgotten 1/N. Look at the ratio before you look at the code.
#
# ## 7 · A whole model has more rounding
#
# The loss of a whole LLaMA ([07](07_llama.ipynb) puts it together) passes through many more operations. Two evaluations are enough to check all its $P$ parameters at once: move them along one random direction $u$ of length 1. By the chain rule, the slope along $u$ is $\sum_i g_i u_i$, where $g$ is the derived gradient of all parameters. A usual size of this sum is $\lVert g\rVert/\sqrt P$, so we divide the error by that.

# %%
config = ModelConfig(dim=12, n_layers=2, n_heads=3, vocab_size=11, multiple_of=4, max_seq_len=8, norm_eps=1e-2)


def draw(seed):
    """Random parameters, a direction of length 1 through all of them, tokens, and targets."""
    rng = np.random.default_rng(seed)
    shapes = nn.param_shapes(config)
    params = {k: rng.standard_normal(shape) * (0.4 if len(shape) > 1 else 1) for k, shape in shapes.items()}
    tokens, targets = rng.integers(0, 11, (2, 2, 8))
    u = {k: rng.standard_normal(p.shape) for k, p in params.items()}
    length = np.sqrt(sum((a * a).sum() for a in u.values()))
    return params, {k: a / length for k, a in u.items()}, tokens, targets


def model_off_by(h, dtype, seed):
    """Error of the slope that is measured along the direction, as a share of its usual size."""
    params, u, tokens, targets = draw(seed)
    logits, cache = nn.model_forward(tokens, params, config)
    dlogits = nn.cross_entropy_backward(1.0, nn.cross_entropy_forward(logits, targets)[1])
    grads = nn.model_backward(dlogits, cache)
    slope = sum((grads[k] * u[k]).sum() for k in u)
    usual = np.sqrt(sum((g * g).sum() for g in grads.values()) / sum(g.size for g in grads.values()))

    def loss(step):
        moved = {k: (p + step * u[k]).astype(dtype) for k, p in params.items()}
        return float(nn.cross_entropy_forward(nn.model_forward(tokens, moved, config)[0], targets)[0])

    return abs((loss(h) - loss(-h)) / (2 * h) - slope) / usual


# %%
steps = 10.0 ** np.arange(-7, 0)
whole = {dtype: np.array([[model_off_by(h, dtype, seed) for h in steps] for seed in range(5)]) for dtype in formats}
for dtype, found in whole.items():
    print(f"{dtype.__name__}: best step {steps[found.mean(0).argmin()]:.0e},",
          f"worst of five draws off by {found.max(0).min():.0e}")
record(whole32=whole[np.float32].max(0).min(), parameters=nn.count_params(config))
claim("float64 checks a whole model to 1e-7", whole[np.float64].max(0).min() < 1e-7)
claim("float32 does not come to 1e-4", whole[np.float32].max(0).min() > 1e-4)

# %% [markdown] lang="en"
# **What does not show at this scale.** Here the float32 check of a whole model is off by {{whole32:.0e}} at its best step, for a model of {{parameters:,.0f}} parameters. LLaMA-7B has more than a million times as many, and this lesson does not measure what their rounding costs. And a check says nothing about ops that it was not given: test each one, then the model.
#
# ## The anchor in the paper
#
# LLaMA §2.2 describes the layers whose gradients we derive. In LLaMA's code no linear layer has a bias, so (2.2) and (2.3) are all there is. §2.4 says that the authors wrote the backward of the transformer layers by hand, too, instead of relying on autograd. So they could choose what forward keeps: what is expensive to compute, such as the outputs of linear layers, is kept; the rest is computed again in backward.
#
# ## Three questions
#
# 1. Why does $dW$ sum over tokens, and $dx$ over outputs?
# 2. Your gradient is exactly 32 times the measured one. What do you look for?
# 3. Someone checks in float32 with $h = 10^{-6}$ and finds an error of 1. What does this tell about the gradient?
#
# <details><summary>Answers</summary>
#
# 1. A weight is used by every token, and reaches the loss through each of them; an input is used by every output of its token. Where forward uses a value several times, backward adds up.
# 2. A missing 1/N with N = 32, or a sum where forward takes a mean. Look for what there are 32 of: tokens, rows, heads. The rest of the formula is right.
# 3. Nothing. At this step float32 has an error of about 1 from rounding alone, as the U shows, even for a right gradient. Check in float64, with $h = 10^{-5}$.
#
# </details>
#
# **The way on:** [03 · RMSNorm](03_rmsnorm.ipynb), where one value reaches the loss along two paths; [08 · Eleven wrong gradients](08_wrong_gradients.ipynb), where a falling loss hides mistakes.
