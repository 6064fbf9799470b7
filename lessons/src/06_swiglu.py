# %% [markdown] lang="en"
# # 06 · SwiGLU: a product of two paths
#
# **Question.** Two thirds of a LLaMA's parameters are in its *feed-forwards*, the layers that work on each token by itself, after attention. Why does each have three matrices, where the transformer of 2017 had two? And what does the product in the middle do to the gradient?
#
# After this lesson you can derive the slope of silu and both paths through the gate, write the backward of the whole feed-forward, and choose its width. You can also compare activations fairly (an *activation* is the bent curve between two matrices, such as silu).
#
# *Needs:* [02 · Gradients](02_gradients.ipynb). *Paper:* LLaMA §2.2; Shazeer 2020 (arXiv:2002.05202), Eq. 5 and 6. *Code:* [`minillama/nn/swiglu.py`](../minillama/nn/swiglu.py). *Time:* 30 minutes to read and solve, about a minute to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import numpy as np

from lessons import FAST, check, claim, lab, plt, record
from lessons.museum import swiglu as other_gates
from minillama import nn
from minillama.config import ModelConfig, preset
from minillama.nn.gradcheck import gradcheck, numerical_gradient

# %% [markdown] lang="en"
# ## 1 · A soft switch
#
# The sigmoid $s$ goes from 0, closed, to 1, open. Silu is a number times its own switch. (Its older relative, $\mathrm{relu}(g) = \max(g, 0)$, is a hard switch.)
#
# $$s = \sigma(g) = \frac{1}{1 + e^{-g}}\qquad \mathrm{silu}(g) = g\,s \tag{6.1}$$
#
# By hand: at $g = 2$, $e^{-2} = 0.135$, so $s = 0.881$ and $\mathrm{silu} = 1.76$: almost all passes. At $g = -2$, $s = 0.119$ and $\mathrm{silu} = -0.24$: almost nothing does.

# %%
sigmoid = lambda g: 1 / (1 + np.exp(-g))
for g in (-6.0, -2.0, 0.0, 2.0, 6.0):
    print(f"g = {g:4}   s = {sigmoid(g):.3f}   silu = {g * sigmoid(g):6.3f}   relu = {max(g, 0):.0f}")

# %% [markdown] lang="en"
# **Far from zero.** float32 ends at $3\cdot10^{38} = e^{88.7}$. So at $g = -100$, $e^{-g}$ is infinite; $1/(1+\infty) = 0$ is right, with a warning. But $e^g/(1+e^g)$, the same in mathematics, is $\infty/\infty$ at $g = 100$. Multiply numerator and denominator of (6.1) by $e^{g/2}$, and compare with $\tanh x = (e^x - e^{-x})/(e^x + e^{-x})$:
#
# $$\sigma(g) = \frac{e^{g/2}}{e^{g/2} + e^{-g/2}} = \frac{1 + \tanh(g/2)}{2} \tag{6.2}$$

# %%
far = np.array([-100, -1, 0, 1, 100], np.float32)
with np.errstate(all="ignore"):                                  # these two warn
    print("1 / (1 + exp(-g))     ", 1 / (1 + np.exp(-far)))
    print("exp(g) / (1 + exp(g)) ", np.exp(far) / (1 + np.exp(far)))
print("(1 + tanh(g/2)) / 2   ", (1 + np.tanh(far / 2)) / 2)
g = np.linspace(-20, 20, 9)
print("(6.2) is off by", np.abs((1 + np.tanh(g / 2)) / 2 - sigmoid(g)).max())

# %% [markdown] lang="en"
# ## 2 · The slope of silu
#
# First the sigmoid, $s = (1 + e^{-g})^{-1}$. The chain rule gives a minus for the power and a minus for the exponent. And since $1 - s = e^{-g}/(1+e^{-g})$,
#
# $$\frac{ds}{dg} = -\frac{1}{(1+e^{-g})^2}\cdot(-e^{-g}) = \frac{1}{1+e^{-g}}\cdot\frac{e^{-g}}{1+e^{-g}} = s\,(1-s) \tag{6.3}$$

# %%
g = np.random.default_rng(0).standard_normal(6) * 2
s = sigmoid(g)
total = lambda function: lambda: float(function(g).sum())        # every g is in one term only
print("(6.3) is off by", np.abs(s * (1 - s) - numerical_gradient(total(sigmoid), g)).max())

# %% [markdown] lang="en"
# Now $\mathrm{silu} = g\cdot s$. **g acts twice**: as the factor, and inside the switch. The product rule has a term for each:
#
# $$\mathrm{silu}'(g) = \underbrace{1\cdot s}_{\text{the factor}} + \underbrace{g\cdot s\,(1-s)}_{\text{the switch}} = s\,\bigl(1 + g\,(1-s)\bigr) \tag{6.4}$$
#
# By hand, at $g = 2$: $0.881\,(1 + 2\cdot0.119) = 1.09$. More than 1: while the switch is still opening, the output grows faster than $g$.

# %%
silu = lambda g: g * sigmoid(g)
print("(6.4) is off by", np.abs(s * (1 + g * (1 - s)) - numerical_gradient(total(silu), g)).max())
print("slope at 2:", round(sigmoid(2) * (1 + 2 * (1 - sigmoid(2))), 3))

# %% [markdown] lang="en"
# ### Your turn: silu and its slope
#
# Write (6.1) and (6.4), so that they hold at $g = \pm800$, too. A wrong answer is told which mistake it is.

# %%
from lessons.checks.swiglu import silu  # exercise

# %%
check("06.silu", silu)

# %% [markdown] lang="en"
# ## 3 · The gate
#
# SwiGLU multiplies two numbers per channel, and both are made of the same $x$. `gate` says how much passes, `up` is what passes. All products here are entry by entry. The gradient of a product goes to each factor, times the other one. First to `up`:
#
# $$\mathrm{out} = \mathrm{silu}(\mathrm{gate})\cdot\mathrm{up} \qquad\quad d\mathrm{up} = d\mathrm{out}\cdot\mathrm{silu}(\mathrm{gate}) \tag{6.5}$$

# %% [markdown] lang="en"
# And to `gate`, through the slope (6.4):
#
# $$d\mathrm{gate} = d\mathrm{out}\cdot\mathrm{up}\cdot\mathrm{silu}'(\mathrm{gate}) = d\mathrm{out}\cdot\mathrm{up}\cdot s\,\bigl(1 + \mathrm{gate}\,(1-s)\bigr) \tag{6.6}$$
#
# By hand: gate 2, up 3, dout 1. out $= 1.76\cdot3 = 5.28$, dup $= 1.76$, dgate $= 3\cdot1.09 = 3.27$.

# %%
out, cache = nn.swiglu_forward(np.array([2.0]), np.array([3.0]))
print("out", out.round(2), "  dgate, dup", *(d.round(2) for d in nn.swiglu_backward(np.ones(1), cache)))
rng = np.random.default_rng(1)
gate, up, dout = rng.standard_normal((3, 4, 5))
s = sigmoid(gate)
loss = lambda: float((gate * sigmoid(gate) * up * dout).sum())   # so that dloss/dout is dout
print("(6.5) is off by", np.abs(dout * gate * s - numerical_gradient(loss, up)).max())
print("(6.6) is off by", np.abs(dout * up * s * (1 + gate * (1 - s)) - numerical_gradient(loss, gate)).max())

# %%
axis_g, axis_u = np.meshgrid(np.linspace(-6, 6, 121), np.linspace(-3, 3, 61))
surface, cache = nn.swiglu_forward(axis_g, axis_u)
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4))
shown = left.contourf(axis_g, axis_u, surface, levels=np.linspace(-18, 18, 19), cmap="PuOr")
left.set(xlabel="gate", ylabel="up", title="out = silu(gate) · up")
fig.colorbar(shown, ax=left, ticks=(-18, -9, 0, 9, 18))
line = np.linspace(-6, 6, 121)
_, cache = nn.swiglu_forward(line, np.ones_like(line))
dgate, dup = nn.swiglu_backward(np.ones_like(line), cache)
right.plot(line, dup, label="to up: silu(gate)")
right.plot(line, dgate, label="to gate, at up = 1: silu'(gate)")
right.axhline(1, color="#888888", linewidth=0.8, linestyle=":")
right.set(xlabel="gate", ylabel="gradient per dout", ylim=(-0.6, 8), title="Closed: neither path learns")
right.legend(loc="upper left")
plt.show()

# %% [markdown] lang="en"
# Far to the left, the gate is closed. Whatever `up` is, almost nothing comes out, and **almost no gradient goes back**, to either of them. Far to the right, the surface comes close to the plain product gate · up. A ReLU cannot make such a product: it passes a number as it is, or not at all. Here one number that depends on $x$ scales another one.

# %%
closed = np.abs(surface[:, 0]).max()                             # gate = -6, for every up
record(closed=closed, open=np.abs(surface[:, -1]).max())
claim("at gate = -6 less than a hundredth of what passes at +6 does", closed < 0.01 * np.abs(surface[:, -1]).max())
claim("the slope of silu has a maximum above 1 and goes below 0", dgate.max() > 1.05 and dgate.min() < -0.05)

# %% [markdown] lang="en"
# ### Your turn: both paths
#
# Write (6.5) and (6.6), for arrays of any shape.

# %%
from lessons.checks.swiglu import swiglu_backward  # exercise

# %%
check("06.swiglu_backward", swiglu_backward)

# %% [markdown] lang="en"
# ## 4 · The whole feed-forward
#
# Three matrices: w1 makes the gate, w3 makes up, w2 leads back down. For tokens in the rows of $x$:
#
# $$\mathrm{gate} = x\,w_1^\top \qquad \mathrm{up} = x\,w_3^\top \qquad h = \mathrm{silu}(\mathrm{gate})\cdot\mathrm{up} \qquad \mathrm{out} = h\,w_2^\top \tag{6.7}$$
#
# Backward goes through the same lines from the last to the first. With $dh = d\mathrm{out}\,w_2$ in place of $d\mathrm{out}$, (6.5) and (6.6) give $d\mathrm{up}$ and $d\mathrm{gate}$. Each matrix gets the gradient of a linear layer, by (2.3). $x$ was used **twice**, so its two gradients add up:
#
# $$dw_2 = d\mathrm{out}^\top h \qquad dw_1 = d\mathrm{gate}^\top x \qquad dw_3 = d\mathrm{up}^\top x \qquad dx = d\mathrm{gate}\,w_1 + d\mathrm{up}\,w_3 \tag{6.8}$$
#
# Below, (6.8) is made of the project's ops, and every entry of every gradient is compared with finite differences.

# %%
def forward(x, w1, w2, w3):
    h, cache = nn.swiglu_forward(x @ w1.T, x @ w3.T)
    return h @ w2.T, (x, w1, w2, w3, h, cache)


def backward(dout, saved):
    x, w1, w2, w3, h, cache = saved
    dgate, dup = nn.swiglu_backward(dout @ w2, cache)
    return dgate @ w1 + dup @ w3, dgate.T @ x, dout.T @ h, dup.T @ x


shapes = {"x": (5, 4), "w1": (7, 4), "w2": (4, 7), "w3": (7, 4)}
report = gradcheck(forward, backward, {name: rng.standard_normal(shape) for name, shape in shapes.items()})
print(report)
claim("(6.8) agrees with finite differences, entry by entry", report.passed)

# %% [markdown] lang="en"
# Take sizes that differ, here 5, 4 and 7: then a forgotten transpose stops with an error of shapes. With equal sizes it would run without a message.
#
# ### Your turn: the feed-forward's backward
#
# Write (6.8). You have $d\mathrm{out}$, $x$ and the three matrices; what the forward pass made of them, (6.7), has to be computed again.

# %%
from lessons.checks.swiglu import ffn_backward  # exercise

# %%
check("06.ffn_backward", ffn_backward)

# %% [markdown] lang="en"
# ## 5 · How wide?
#
# The feed-forward of 2017 has two matrices of width $4D$: $2\cdot D\cdot4D = 8D^2$ parameters. Three matrices of width $F$ have $3DF$. The two are equal, in parameters and in multiplications, for $F = \frac83 D = \frac23\cdot4D$. This is rounded down to a whole number, then up to a multiple $m$ that suits the hardware, 256 in LLaMA:
#
# $$F = m\cdot\Bigl\lceil\, \bigl\lfloor \tfrac23\cdot 4D \bigr\rfloor \,/\, m \Bigr\rceil \tag{6.9}$$
#
# By hand, $D = 4096$: $8\cdot4096/3 = 10922$, and $10922/256 = 42.7$, so $43\cdot256 = 11008$. That is the number in every LLaMA-7B file.

# %%
for name in ("7B", "13B", "33B", "65B"):
    shape = {"dim": preset(name).model["dim"], "n_layers": 1, "n_heads": 1, "vocab_size": 1}
    D, F = shape["dim"], ModelConfig(**shape).hidden_dim
    print(f"{name:>3}: D = {D}, F = {F}, that is {F / D:.3f} D and {3 * D * F / (8 * D * D) - 1:+.1%} parameters")

# %% [markdown] lang="en"
# ### Your turn: the width
#
# Write (6.9), for several $D$ at once, in whole numbers.

# %%
from lessons.checks.swiglu import hidden_size  # exercise

# %%
check("06.hidden_size", hidden_size)

# %% [markdown] lang="en"
# ## 6 · The picture: is SwiGLU better?
#
# Now ReLU and GELU with two matrices against SwiGLU with three, **at equal parameters**. GELU is $g\,\Phi(g)$: its switch $\Phi(g)$ is the probability that a standard normal number is below $g$.
#
# Our tiny model has $D = 32$ and $F = 88$: $3\cdot32\cdot88 = 8448$. Two matrices have as many at a width of 132: $2\cdot32\cdot132 = 8448$. The op without a gate ignores `up`. So its third matrix is never used, gets no gradient, and is not counted.

# %%
usual = {"SwiGLU": {}} | {name: {"multiple_of": 132, "patch": other_gates.patch_of(name.lower())}
                          for name in ("ReLU", "GELU")}
for name, arm in usual.items():
    config, _ = lab.configs(arm)
    matrices = 2 if "patch" in arm else 3
    print(f"{name}: {matrices} matrices, width {config.hidden_dim}, {matrices * config.dim * config.hidden_dim} "
          "parameters in use")

# %% [markdown] lang="en"
# One more thing is not equal by itself: **the start**. A product of two small numbers is very small. Gate and up are made by matrices that start with a standard deviation of 0.02. For a normalised token, their size is then $0.02\sqrt{D}$: 0.11 at $D = 32$, 1.28 at the 4096 of LLaMA-7B. How large is $h$ then?

# %%
rng, sizes = np.random.default_rng(0), {}
for D in (32, 4096):
    gate, up = 0.02 * D**0.5 * rng.standard_normal((2, 100_000))
    rms = lambda a: float(np.sqrt((a * a).mean()))
    sizes[D] = rms(nn.swiglu_forward(gate, up)[0]), rms(other_gates.relu_forward(gate, up)[0])
    print(f"D = {D:>4}: SwiGLU's h has rms {sizes[D][0]:.4f}, ReLU's {sizes[D][1]:.4f}, "
          f"{sizes[D][1] / sizes[D][0]:.1f} times as large")
record(quieter=sizes[32][1] / sizes[32][0], at_scale=sizes[4096][1] / sizes[4096][0])
claim("at D = 32 SwiGLU starts more than five times quieter, at 4096 less than twice",
      sizes[32][1] > 5 * sizes[32][0] and sizes[4096][1] < 2 * sizes[4096][0])

# %% [markdown] lang="en"
# So we train everything twice: from 0.02, and from a wider start, $1/\sqrt{\text{inputs}}$ in place of 0.02 for the three matrices. Four learning rates, three seeds. (During a run the rate rises and then falls, see [11](11_schedules.ipynb); the *peak* is what we choose.) Predict first: which one ends lowest?

# %%
rates = (3e-3, 1e-2, 3e-2, 1e-1)
start = {"minillama.engine.numpy_engine.init_params": "lessons.museum.swiglu.init_fan_in"}
wide = {name: arm | {"patch": arm.get("patch", {}) | start} for name, arm in usual.items()}
arms = {f"{name}, lr {lr:g}": arm | {"lr": lr} for name, arm in usual.items() for lr in rates}
arms |= {f"{name}, wide, lr {lr:g}": arm | {"lr": lr} for name, arm in wide.items() for lr in rates}
seeds = 1 if FAST else 3                                          # 33 runs are enough to try the machinery
results = lab.run(arms, seeds=seeds, steps=150, evaluations=1)
lab.table(results)

# %%
final = lambda name, lr, start="": results[f"{name}{start}, lr {lr:g}"].final
fig, panels = plt.subplots(1, 2, sharey=True, figsize=(7.2, 3.8))
for axis, key, title in zip(panels, ("", ", wide"), ("The usual start, 0.02", "Feed-forward starts at 1/√inputs")):
    for name, colour in zip(usual, lab.COLOURS):
        found = np.array([final(name, lr, key) for lr in rates])  # (rates, seeds)
        axis.plot(rates, found.mean(1), "o-", color=colour, markersize=4, label=name)
        axis.fill_between(rates, found.min(1), found.max(1), color=colour, alpha=0.2, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="peak learning rate", title=title)
    axis.set_xticks(rates, [f"{lr:g}" for lr in rates])
    axis.set_yticks([0.4, 0.6, 1, 2], ["0.4", "0.6", "1", "2"])
    axis.minorticks_off()
panels[0].set_ylabel("excess after 150 steps (nats/token)")
panels[1].legend()
fig.suptitle("No winner: the order depends on the learning rate and the start", x=0.01, ha="left", fontsize=11)
plt.show()

# %% [markdown] lang="en"
# **Remember the right panel.** At 0.003 SwiGLU is ahead in every pair of seeds: {{swiglu_low:.2f}} against {{relu_low:.2f}} for ReLU and {{gelu_low:.2f}} for GELU. At 0.1 it is *behind* in every pair: {{swiglu_high:.2f}} against {{relu_high:.2f}} and {{gelu_high:.2f}}. With a single rate, one could "prove" either.

# %%
at = lambda name, lr: final(name, lr, ", wide")
others = ("ReLU", "GELU")
for lr, when in ((3e-3, "low"), (1e-1, "high")):
    record(**{f"{name.lower()}_{when}": at(name, lr).mean() for name in usual})
claim("wide start, lr 0.003: SwiGLU is ahead of both in every pair of seeds",
      all(at("SwiGLU", 3e-3).max() + 0.01 < at(o, 3e-3).min() for o in others), fast=False)
claim("wide start, lr 0.1: SwiGLU is behind both in every pair of seeds",
      all(at("SwiGLU", 1e-1).min() > at(o, 1e-1).max() + 0.01 for o in others), fast=False)

# %% [markdown] lang="en"
# And each at its best rate, over both starts? **The bands overlap.** The best means are {{best_swiglu:.2f}} for SwiGLU, {{best_relu:.2f}} for ReLU and {{best_gelu:.2f}} for GELU, and three seeds of one arm are up to {{spread:.2f}} apart. Our experiment names no winner.

# %%
best = {name: min((final(name, lr, key) for lr in rates for key in ("", ", wide")), key=np.mean) for name in usual}
spread = max(np.ptp(runs) for runs in best.values())
record(spread=spread, **{f"best_{name.lower()}": runs.mean() for name, runs in best.items()})
for other in others:
    claim(f"best against best, the bands of SwiGLU and {other} overlap",
          best["SwiGLU"].min() < best[other].max() and best[other].min() < best["SwiGLU"].max(), fast=False)
claim("and the three means are within 0.1", np.ptp([runs.mean() for runs in best.values()]) < 0.1, fast=False)

# %% [markdown] lang="en"
# ## 7 · Other gates, and wrong gradients
#
# Other functions can stand in the gate, at no cost in parameters: the sigmoid (GLU), ReLU (ReGLU), GELU (GEGLU), or nothing at all. The last, gate · up, is called bilinear. Below them is SwiGLU with a *wrong backward*. All use a learning rate of 0.03 and start from 0.02.

# %%
gates = {name: {"lr": 3e-2, "patch": other_gates.patch_of(name.lower())}
         for name in ("GEGLU", "ReGLU", "GLU", "bilinear")}
wrong = {"silu' is s": "museum.swiglu_slope_is_sigmoid", "silu' is s (1 - s)": "museum.swiglu.slope_of_the_sigmoid",
         "gate path dropped": "museum.swiglu_gate_path_dropped", "up path dropped": "museum.swiglu.up_path_dropped",
         "dgate and dup exchanged": "museum.swiglu.exchanged"}
replaced = {name: {"lr": 3e-2, "patch": {"minillama.nn.block.swiglu_backward": f"lessons.{place}"}}
            for name, place in wrong.items()}
more = {"SwiGLU": results["SwiGLU, lr 0.03"]} | lab.run(gates | replaced, seeds=seeds, steps=150, evaluations=1)

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.8))
lab.plot_dots(axis, more, {"SwiGLU": lab.COLOURS[2]} | dict.fromkeys(wrong, lab.COLOURS[1]))
axis.axvspan(*more["SwiGLU"].band, color=lab.COLOURS[2], alpha=0.15, linewidth=0)
axis.set(xlim=(0, None), title="Four other gates (blue), five wrong gradients (orange)")
axis.set_xlabel("excess after 150 steps (nats/token); green: SwiGLU's seeds")
plt.show()
lab.table(more)

# %% [markdown] lang="en"
# Every wrong gradient trains. With silu' = s it is {{slope_s:.3f}} against {{right:.3f}}: inside the noise. With a path dropped, one of the three matrices **never learns**: only weight decay ([09](09_adamw.ipynb)) moves it. The loss hardly shows it. Only the exchanged pair is visibly worse, {{exchanged:.2f}}. And without the right one beside it, that would look like any falling loss.

# %%
right, near = more["SwiGLU"], [name for name in wrong if "exchanged" not in name]
record(right=right.mean, slope_s=more["silu' is s"].mean, exchanged=more["dgate and dup exchanged"].mean)
claim("the four other gates are within 0.1 of SwiGLU", all(abs(more[name].mean - right.mean) < 0.1 for name in gates),
      fast=False)
claim("four of the five wrong gradients are within 0.1 of the right one",
      all(abs(more[name].mean - right.mean) < 0.1 for name in near), fast=False)
claim("the exchanged pair is worse at every seed",
      more["dgate and dup exchanged"].final.min() > right.final.max() + 0.2, fast=False)
report = gradcheck(nn.swiglu_forward, other_gates.exchanged, {"gate": np.ones((2, 3)), "up": np.full((2, 3), 2.0)})
claim("a gradient check sees it at once", not report.passed)

# %% [markdown] lang="en"
# A gated feed-forward hides such mistakes: with w1 fixed at random, w3 and w2 still learn to use it. That is a reason to check gradients. [08 · Eleven wrong gradients](08_wrong_gradients.ipynb) has the rest of the museum.

# %% [markdown] lang="en"
# **What does not show at this scale.** That SwiGLU is better. Shazeer measured it in a T5 of 220 million parameters, after 65,536 steps. The held-out log-perplexity (the loss) was 1.944 for SwiGLU and 1.997 for ReLU, and repeated runs differed by 0.01 or less (his Table 1). A gain of 0.05 is smaller than the spread of our seeds, {{spread:.2f}}. The paper offers no explanation of why it helps.
#
# At $D = 32$ the start matters more: from 0.02, ReLU's $h$ is {{quieter:.0f}} times as large as SwiGLU's. At $D = 4096$ the two are nearly equal: ReLU's is {{at_scale:.1f}} times SwiGLU's.

# %% [markdown] lang="en"
# ## The anchor in the paper
#
# LLaMA §2.2, the second of three changes: SwiGLU in place of ReLU, "to improve the performance", with a width of $\frac23 4d$ in place of PaLM's $4d$. In its code, w1, w2, w3 are gate, down, up, in this order, as in [`minillama/nn/block.py`](../minillama/nn/block.py).

# %% [markdown] lang="en"
# ## Three questions
#
# 1. Where in (6.4) is the factor, where the switch, and which of them does "silu' = s" forget?
# 2. A channel's gate is at $-6$ for every token. Which gradients can still move it?
# 3. A colleague replaces ReLU by SwiGLU, keeps the width $4D$, and reports a gain. What do you ask?
#
# <details><summary>Answers</summary>
#
# 1. $1\cdot s$ comes from $g$ as a factor, $g\,s(1-s)$ from $s$ as a switch that opens with $g$. "silu' = s" forgets the switch, as if $s$ did not depend on $g$.
# 2. At $-6$, $\mathrm{silu}$ and its slope are both near zero ($-0.015$ and $-0.012$). So $d\mathrm{up} = dh\cdot\mathrm{silu}(\mathrm{gate})$ and $d\mathrm{gate} = dh\cdot\mathrm{up}\cdot\mathrm{silu}'(\mathrm{gate})$ are small, but not zero as behind a ReLU. It is $d\mathrm{gate}$ that moves the gate, through w1 and through $x$. AdamW divides a gradient by its usual size ([09](09_adamw.ipynb)), so even a small one can open the gate again.
# 3. Three matrices of width $4D$ have $12D^2$ parameters, ReLU's two have $8D^2$. At equal parameters the width is $\frac83 D$: does the gain remain? Then: how many seeds, and was the learning rate chosen for each of the two?
#
# </details>
#
# **The way on:** [07 · Assembling LLaMA](07_llama.ipynb), where this feed-forward, attention and two norms become a block.
