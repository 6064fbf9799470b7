# %% [markdown] lang="en"
# # 10 · Stability: learning rate, warm-up, clipping
#
# **Question.** A training runs well for hours, and then its loss jumps up and does not come back. Why? And what do warm-up, clipping and the norm do against it?
#
# After this lesson you can say which learning rate is too high for a given curvature, what the first steps of AdamW do without warm-up, why a gradient is clipped as a whole and before the moments, and which tensor broke first.
#
# *Needs:* [02 · Gradients](02_gradients.ipynb); [03](03_rmsnorm.ipynb) and [09](09_adamw.ipynb) help. *Paper:* LLaMA §2.3; Pascanu et al. 2013 (arXiv:1211.5063), Algorithm 1. *Code:* [`minillama/optim/clip.py`](../minillama/optim/clip.py), [`schedule.py`](../minillama/optim/schedule.py). *Time:* 35 minutes to read and solve, a minute or two to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/
from unittest import mock

import numpy as np

from lessons import check, claim, lab, museum, plt, record
from minillama import nn
from minillama.engine.numpy_engine import NumpyEngine
from minillama.evaluate import mix_floor
from minillama.optim import adamw_step
from minillama.text.mixture import Mixture

# %% [markdown] lang="en"
# ## 1 · How high is too high?
#
# Take the simplest loss that curves: $L(x) = \frac12 c\,x^2$, with curvature $c$ and gradient $c\,x$. A step of gradient descent with learning rate $\eta$ multiplies $x$ by a number that never changes:
#
# $$x_{t+1} = x_t - \eta\,c\,x_t = (1 - \eta\,c)\,x_t \tag{10.1}$$
#
# By hand, $c = 4$, starting at $x = 1$: $\eta = 0.1$ multiplies by $0.6$, $\eta = 0.4$ by $-0.6$, $\eta = 0.5$ by $-1$, $\eta = 0.6$ by $-1.4$.

# %%
def descend(curvature, eta, steps=4):
    x = [np.ones_like(curvature)]
    for _ in range(steps):
        x.append(x[-1] - eta * curvature * x[-1])
    return np.array(x)


for eta in (0.1, 0.4, 0.5, 0.6):
    x = descend(np.array(4.0), eta)
    print(f"eta {eta}: {x.round(3)}   (10.1) is off by {np.abs(x - (1 - eta * 4) ** np.arange(5)).max():.0e}")

# %% [markdown] lang="en"
# The factor must lie between $-1$ and $1$. Below $-1$, $x$ grows for ever; at $-1$ it jumps from side to side and stays as far away:
#
# $$|1 - \eta\,c| < 1 \quad\Longleftrightarrow\quad 0 < \eta < \frac{2}{c} \tag{10.2}$$
#
# A model has many directions, each with its own curvature. The **most curved** one decides which $\eta$ is possible, and the least curved one is then slow. With $c = (4, 0.1)$ and $\eta = 0.4$, the second coordinate keeps 96 % of its error at every step.

# %%
both = np.array([4.0, 0.1])
for eta in (0.4, 0.499, 0.501, 0.6):
    print(f"eta {eta}: after 300 steps {np.abs(descend(both, eta, 300)[-1])}")
below, above = (np.abs(descend(both, eta, 300)[-1, 0]) for eta in (0.499, 0.501))
claim("2/c is the border: just below it x shrinks, just above it x grows", below < 1 < above)

# %% [markdown] lang="en"
# A real loss is not a parabola: its curvature changes as the weights move. So the highest possible learning rate changes *during* training. There are two devices for the two times at which a step is most likely too long: **warm-up** for the beginning, **clipping** for single bad batches.
#
# ## 2 · The first steps, and what warm-up is for
#
# AdamW keeps two *moments* of every entry: the running mean of its gradients, $m$, and of their squares, $v$ ([09](09_adamw.ipynb)). Both start at zero and are corrected for that. After the first gradient $g$, the corrected ones are $\hat m = g$ and $\hat v = g^2$, so the first step is
#
# $$\Delta = -\eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon} = -\eta\,\frac{g}{|g| + \epsilon} \approx -\eta\;\mathrm{sign}(g) \tag{10.3}$$
#
# Every entry of every tensor moves by $\eta$, **whatever the size of its gradient** ($\epsilon = 10^{-8}$ only keeps it from dividing by 0). By hand: $g = (0.001, -50)$ and $\eta = 0.1$ give $\Delta = (-0.1, 0.1)$.

# %%
param, m, v = np.zeros((3, 2))
adamw_step(param, np.array([0.001, -50.0]), m, v, step=1, lr=0.1, weight_decay=0.0)
print("the first step:", param, "  (10.3) is off by", np.abs(param - [-0.1, 0.1]).max())
fresh = NumpyEngine(*lab.configs({}), threads=1).params["layers.0.wq"]
print(f"the entries of a fresh wq have a size of {np.abs(fresh).mean():.3f} on average")
record(fresh=np.abs(fresh).mean(), first_share=0.1 / np.abs(fresh).mean())

# %% [markdown] lang="en"
# The entries of a fresh weight matrix have a size of about {{fresh:.3f}}. So with $\eta = 0.1$ the *first* step is {{first_share:.0f}} times as long as what is there, and a single batch decides its direction. **Warm-up** makes these first steps short. With $W$ warm-up steps, step $t = 1, 2, \dots$ has
#
# $$\eta_t = \eta_{\mathrm{peak}}\cdot\min\Bigl(1, \frac{t}{W}\Bigr) \tag{10.4}$$
#
# How far can an entry have gone after $t \le W$ steps? If its gradient always points the same way, each step is about as long as its rate. So it is about the sum of the rates, and $1 + 2 + \dots + t = t(t+1)/2$:
#
# $$\sum_{j=1}^{t} \eta_j = \eta_{\mathrm{peak}}\,\frac{t\,(t+1)}{2\,W} \tag{10.5}$$
#
# By hand, $W = 20$, peak 0.1: the first step is 0.005, and after five steps the sum is $0.1 \cdot 30 / 40 = 0.075$. Without warm-up it is 0.5.

# %%
rates = 0.1 * np.minimum(1, np.arange(1, 21) / 20)
t = np.arange(1, 21)
print(f"(10.5) is off by {np.abs(rates.cumsum() - 0.1 * t * (t + 1) / 40).max():.0e};",
      f"after five steps: {rates[:5].sum():.3f}")

# %%
(param, m, v), rng = np.zeros((3, 1000)), np.random.default_rng(0)
for step in range(1, 6):
    adamw_step(param, 1 + rng.standard_normal(1000), m, v, step, rates[step - 1], weight_decay=0.0)
print("1000 entries with noisy gradients, five steps: the farthest has gone", np.abs(param).max().round(3))

# %% [markdown] lang="en"
# ### Your turn: the rate of a step
#
# Write (10.4) for an array of steps, the first of which is step 1. What comes after the warm-up is the subject of [11](11_schedules.ipynb); here it stays at the peak.

# %%
from lessons.checks.stability import warmup_rate  # exercise

# %%
check("10.warmup_rate", warmup_rate)

# %% [markdown] lang="en"
# ## 3 · The picture: the basin
#
# Now the tiny LLaMA, at five learning rates from three seeds: as usual (20 warm-up steps, clipping at 1, RMSNorm), and with **one** device taken away. We show the **excess**: the loss minus the text's entropy floor ([00](00_baselines.ipynb)). With one learning rate alone, one could "prove" almost anything.

# %%
tokenizer, shards = lab.text()
start = np.log(tokenizer.vocab_size) - mix_floor(shards)  # where a model that knows nothing begins
no_clip = {"minillama.engine.numpy_engine.clip_grad_norm": "lessons.museum.no_clip"}
ops = [f"minillama.nn.{module}.rmsnorm_{way}" for module in ("block", "model") for way in ("forward", "backward")]
no_norm = {op: f"lessons.museum.no_norm_{op.rpartition('_')[2]}" for op in ops}
devices = {"as usual": {}, "no warm-up": {"warmup_steps": 0},
           "no clipping": {"patch": no_clip}, "no norm": {"patch": no_norm}}
rates = (1e-2, 3e-2, 1e-1, 2e-1, 4e-1)

# %%
arms = {f"{name}, lr {lr:g}": {"lr": lr} | arm for name, arm in devices.items() for lr in rates}
results = lab.run(arms, seeds=3, steps=120, evaluations=1)
lab.table(results)
final = lambda name, lr: results[f"{name}, lr {lr:g}"].final

# %%
def basin(axis, finals, rates, label, colour, style="-", top=np.inf):
    """Mean and band over the seeds; `top` is where a run that is off the scale is drawn."""
    shown = np.minimum(np.nan_to_num(finals, nan=np.inf), top)
    axis.plot(rates, shown.mean(1), style, marker="o", markersize=4, color=colour, label=label)
    axis.fill_between(rates, shown.min(1), shown.max(1), color=colour, alpha=0.2, linewidth=0)


# %%
fig, axes = plt.subplots(1, 3, figsize=(7.2, 3.6), sharey=True)
usual = np.array([final("as usual", lr) for lr in rates])
for axis, name, colour in zip(axes, list(devices)[1:], lab.COLOURS[1:]):
    basin(axis, usual, rates, "as usual", lab.COLOURS[0])
    basin(axis, np.array([final(name, lr) for lr in rates]), rates, name, colour, "--")
    axis.set(xscale="log", yscale="log", xlabel="peak learning rate", title=name, ylim=(0.45, 4))
    axis.set(xticks=[1e-2, 1e-1, 4e-1], xticklabels=["0.01", "0.1", "0.4"])
    axis.set(yticks=[0.5, 1, 2, 4], yticklabels=["0.5", "1", "2", "4"])
    axis.minorticks_off()
    axis.legend(loc="upper left")
axes[0].set_ylabel("excess after 120 steps (nats/token)")
plt.show()

# %% [markdown] lang="en"
# **Remember this picture** (line: mean, band: three seeds). The curve is a *basin*: too low a rate is slow, too high a rate is unstable. *Warm-up* is the device that widens it. At 0.2, the excess is {{usual_2e1:.2f}} with it and {{nowarm_2e1:.2f}} without, and the bands are far apart. At 0.03 and below you would see nothing, or a small gain from leaving it out, since it takes 20 of the 120 steps. At 0.4 every arm is bad: that is the cliff.
#
# *Clipping* does little on clean text. Up to 0.2 the bands of the seeds touch at every rate, though in the mean of these rates it is a little worse without. (The widest gap is at 0.1: {{usual_1e1:.2f}} with, {{noclip_1e1:.2f}} without.)

# %%
mean = lambda name, lr: final(name, lr).mean()
record(usual_2e1=mean("as usual", 0.2), nowarm_2e1=mean("no warm-up", 0.2))
record(usual_1e1=mean("as usual", 0.1), noclip_1e1=mean("no clipping", 0.1))
record(usual_3e2=mean("as usual", 0.03), nonorm_3e2=mean("no norm", 0.03))
record(usual_4e1=mean("as usual", 0.4), nonorm_4e1=mean("no norm", 0.4))
second = {name: results[f"{name}, lr 0.2"].norms[:, 1] for name in ("as usual", "no warm-up")}
record(second_with=second["as usual"].mean(), second_without=second["no warm-up"].mean())

# %%
claim("at lr 0.2, every run without warm-up is worse than every run with it, by a nat",
      final("no warm-up", 0.2).min() > final("as usual", 0.2).max() + 1, fast=False)
claim("at lr 0.03, warm-up changes the mean by less than 0.15",
      abs(mean("no warm-up", 0.03) - mean("as usual", 0.03)) < 0.15, fast=False)
claim("at lr 0.4, every run as usual is worse than at 0.03 by 1.5 nats",
      final("as usual", 0.4).min() > final("as usual", 0.03).max() + 1.5, fast=False)
claim("on clean text, the bands with and without clipping touch up to lr 0.2",
      all(final("no clipping", lr).min() < final("as usual", lr).max() for lr in rates[:4]), fast=False)
claim("in the mean of these four rates it is a little worse without clipping",
      sum(mean("no clipping", lr) - mean("as usual", lr) for lr in rates[:4]) > 0, fast=False)
claim("at lr 0.03, every run without the norm is worse than every run with it",
      final("no norm", 0.03).min() > final("as usual", 0.03).max(), fast=False)
claim("without warm-up, the gradient of step 2 is at least three times as long",
      (second["no warm-up"] > 3 * second["as usual"]).all())

# %% [markdown] lang="en"
# The harm shows at once: at lr 0.2 the gradient of the *second* step has norm (its length) {{second_without:.1f}} without warm-up, and {{second_with:.1f}} with it. One step of (10.3) has moved the model to a place where the loss is steep. No later step repairs this within the run.
#
# ## 4 · Clipping: one factor for all
#
# Take the gradients of all tensors as one long vector. Its length is the **global norm**:
#
# $$\lVert g\rVert = \sqrt{\sum_{\text{tensors}}\;\sum_i g_i^2} \tag{10.6}$$
#
# If it is larger than a limit $\ell$, the vector is shortened to the length $\ell$. If it is not, the vector stays as it is:
#
# $$g' = g\cdot\min\Bigl(1,\; \frac{\ell}{\lVert g\rVert}\Bigr) \tag{10.7}$$
#
# By hand: two tensors, $a = (3, 4)$ and $b = (0, 12)$. The lengths are 5 and 12, the global norm is $\sqrt{25 + 144} = 13$. With $\ell = 1$, all is divided by 13.

# %%
a, b = np.array([3.0, 4.0]), np.array([0.0, 12.0])
whole = np.concatenate([a, b])
ways = {"global": whole / 13, "each tensor": np.concatenate([a / 5, b / 12]), "each entry": np.clip(whole, -1, 1)}
cosine = lambda g, h: float(g @ h / np.linalg.norm(g) / np.linalg.norm(h))
print("(10.6):", np.sqrt((a**2).sum() + (b**2).sum()))
for way, clipped in ways.items():
    print(f"{way:<12}{clipped.round(3)}   length {np.linalg.norm(clipped):.3f},",
          f"cosine with g {cosine(whole, clipped):.3f}")

# %% [markdown] lang="en"
# Only the global factor keeps the direction: its cosine with $g$ is 1. If each tensor is clipped by itself, $b$ loses more than $a$: the cosine is $(25/5 + 144/12)/(13\sqrt2) = 0.925$, and the result is longer than $\ell$. If each entry is cut to the range from $-1$ to $1$, the cosine is $19/(13\sqrt3) = 0.844$. Now the same for a real gradient, of a batch that is one token repeated:

# %%
config, _ = lab.configs({})


def gradient(params, batch):
    """Gradients of the loss, a dict in the order of forward."""
    logits, cache = nn.model_forward(batch[0], params, config)
    grads = nn.model_backward(nn.cross_entropy_backward(1.0, nn.cross_entropy_forward(logits, batch[1])[1]), cache)
    return {name: grads[name] for name in nn.param_shapes(config)}


# %%
flat = lambda grads: np.concatenate([g.ravel() for g in grads.values()])
bent = []
for seed in range(3):
    params = results["as usual, lr 0.03"].params[seed]
    mixture = Mixture(shards, 64, seed, tokenizer.bos_id)
    grads = gradient(params, museum.poisoned_batch(mixture, 1000, 8))
    each = {name: g * min(1, 0.1 / np.linalg.norm(g)) for name, g in grads.items()}
    g = flat(grads)
    bent.append([np.linalg.norm(g), cosine(g, flat(each)), cosine(g, np.clip(g, -0.1, 0.1))])
    print("norm {:.1f}; cosine after clipping each tensor to 0.1: {:.3f}; each entry: {:.3f}".format(*bent[-1]))
claim("clipping each tensor by itself turns the gradient, at every seed", max(row[1] for row in bent) < 0.97)

# %% [markdown] lang="en"
# ### Your turn: clip by the global norm
#
# Write (10.6) and (10.7) for the gradients of several steps, so that short and long ones are tried at once. $\ell$ is called `max_norm`. Return the norm *before* clipping: it is what a log must show.

# %%
from lessons.checks.stability import clip_grad_norm  # exercise

# %%
check("10.clip_grad_norm", clip_grad_norm)

# %% [markdown] lang="en"
# ## 5 · What a spike does
#
# **Plain gradient descent** (SGD, *stochastic* gradient descent, if the gradient is that of a batch) steps by $\eta\,g$. So clipping puts a bound on its step, and nothing else does:
#
# $$\lVert\Delta\rVert = \eta\,\lVert g'\rVert \le \eta\,\ell \tag{10.8}$$
#
# **AdamW** bounds its step by itself. Let one gradient of size $s$ come, much larger than all others. At that step ($k = 0$) and $k$ steps later, $m \approx (1-\beta_1)\,\beta_1^k\,s$ and $v \approx (1-\beta_2)\,\beta_2^k\,s^2$. In their quotient, $s$ cancels:
#
# $$|\Delta_k| \approx \eta\;\frac{1-\beta_1}{\sqrt{1-\beta_2}}\Bigl(\frac{\beta_1}{\sqrt{\beta_2}}\Bigr)^{k} = 0.447\,\eta\cdot 0.923^{\,k} \tag{10.9}$$
#
# That is a geometric series, with the sum
#
# $$\sum_{k\ge0} |\Delta_k| \approx \eta\;\frac{1-\beta_1}{\sqrt{1-\beta_2} - \beta_1\sqrt{(1-\beta_2)/\beta_2}} = 5.8\,\eta \tag{10.10}$$
#
# So one spike pushes every entry by about six full steps, **however large the spike is**.

# %%
def steps_after_spike(size, steps=600, at=200):
    """Mean size of AdamW's step at lr 1: gradients of -1 or 1 at random, but for one of `size`."""
    rng, found = np.random.default_rng(0), []
    param, m, v = np.zeros((3, 256))
    for step in range(1, steps + 1):
        grad = np.full(256, size) if step == at else rng.choice([-1.0, 1.0], 256)
        before = param.copy()
        adamw_step(param, grad, m, v, step, lr=1.0, weight_decay=0.0)
        found.append(np.abs(param - before).mean())
    return np.array(found[at - 1:])


# %%
k, spike = np.arange(40), steps_after_spike(1e6)
by_formula = 0.1 / 0.05**0.5 * (0.9 / 0.95**0.5) ** k
print("(10.9), 40 steps, is off by", np.abs(spike[:40] - by_formula).max().round(5))
print("(10.10) says", round(0.1 / (0.05**0.5 - 0.9 * (0.05 / 0.95) ** 0.5), 2),
      "and the first 60 steps measure", spike[:60].sum().round(2))

# %% [markdown] lang="en"
# Then comes the second half of the harm: $\sqrt v$ remembers the spike for longer than $m$ does. Until the spike's part of $\sqrt v$ has sunk to the size $g$ of the usual gradients, AdamW divides them by something too large. Its steps are very short, and it learns nearly nothing: it is **deaf**. From $s\,\sqrt{1-\beta_2}\;\beta_2^{k/2} = g$:
#
# $$k = \frac{2\,\ln\bigl(s\,\sqrt{1-\beta_2}\,/\,g\bigr)}{\ln(1/\beta_2)} \tag{10.11}$$
#
# By hand, $s/g = 1000$: $2 \ln 223.6 / 0.0513 = 211$ steps. If the same spike is clipped to the usual length, it is one bad step among others. Measured below: after a spike of 1000, {{deaf:.0f}} of 400 steps are less than half as long as usual.

# %%
fig, axis = plt.subplots()
for size, colour in ((1, lab.COLOURS[2]), (30, lab.COLOURS[0]), (1000, lab.COLOURS[1]), (1e6, lab.COLOURS[3])):
    label = "spike clipped to 1" if size == 1 else f"spike of {size:,.0f}"
    axis.plot(steps_after_spike(size), color=colour, label=label)
    if size > 10:
        axis.axvline(2 * np.log(size * 0.05**0.5) / -np.log(0.95), color=colour, linestyle=":", linewidth=1)
axis.set(xlim=(0, 400), ylim=(0, 0.5), title="After an unclipped spike, AdamW is deaf")
axis.set(xlabel="steps after the spike (dotted: (10.11))", ylabel="mean step of an entry, in units of lr")
axis.legend(loc="upper right")
plt.show()

# %%
calm = steps_after_spike(1)[20:].mean()
deaf = int((steps_after_spike(1000)[:400] < 0.5 * calm).sum())
record(deaf=deaf)
claim("after a spike of 1000, AdamW's steps are less than half as long for over 100 steps", deaf > 100)

# %% [markdown] lang="en"
# So the order matters: what is clipped must be the gradient **before** it enters $m$ and $v$. And it must be the gradient of the *whole* batch. A batch that is too large for the memory is cut into *micro-batches*, and their gradients are averaged. This mean comes first: if every micro-batch were clipped by itself, the step would depend on how the batch was cut.
#
# ### Your turn: the whole step, in its right order
#
# Mean over the micro-batches (weighted by their scored tokens), clip, moments, update. One mistake cannot be seen here: a *sum* in place of the mean is cut by (10.7) to the same vector, because both are longer than `max_norm`.

# %%
from lessons.checks.stability import adamw_update  # exercise

# %%
check("10.adamw_update", adamw_update)

# %% [markdown] lang="en"
# ## 6 · Poisoned batches
#
# Real text has bad places: a file of zeros, a table of dashes. Here every tenth batch is **one token repeated**, in every place. The first such gradient is more than ten times as long as the one before it. Arms: with and without clipping, under AdamW and under plain gradient descent (SGD), each at three learning rates.

# %%
poison = {"minillama.text.mixture.Mixture.batch": "lessons.museum.poisoned_batch"}
sgd = {"minillama.engine.numpy_engine.adamw_step": "lessons.museum.sgd_step"}
optimisers = {"AdamW": ({}, (1e-2, 3e-2, 1e-1)), "SGD": (sgd, (0.3, 1.0, 3.0))}
arms = {f"{name}, {kind}, lr {lr:g}": {"lr": lr, "patch": poison | patch | optimiser}
        for name, (optimiser, lrs) in optimisers.items()
        for kind, patch in (("clipped", {}), ("not clipped", no_clip)) for lr in lrs}

# %%
poisoned = lab.run(arms, seeds=3, steps=120, evaluations=1)
lab.table(poisoned)
after = lambda name, kind, lr: poisoned[f"{name}, {kind}, lr {lr:g}"].final

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.6), sharey=True)
top = 8.0  # what is worse is drawn here
for axis, (name, (_, lrs)) in zip(axes, optimisers.items()):
    for kind, colour, style in (("clipped", lab.COLOURS[0], "-"), ("not clipped", lab.COLOURS[1], "--")):
        basin(axis, np.array([after(name, kind, lr) for lr in lrs]), lrs, kind, colour, style, top)
    axis.axhline(start, color="#888888", linewidth=0.8, linestyle=":")
    axis.set(xscale="log", yscale="log", xlabel="peak learning rate", title=f"{name}, every tenth batch poisoned")
    axis.set(yticks=[0.5, 1, 2, 4, 8], yticklabels=["0.5", "1", "2", "4", "≥ 8"], ylim=(0.5, 9))
    axis.set(xticks=lrs, xticklabels=[f"{lr:g}" for lr in lrs])
    axis.minorticks_off()
axes[0].set_ylabel("excess after 120 steps (nats/token)")
axes[0].annotate("knows nothing", (1e-2, start), xytext=(0, 3), textcoords="offset points",
                 color="#666666", fontsize=9)
axes[0].legend(loc="center left", bbox_to_anchor=(0, 0.62))
plt.show()

# %% [markdown] lang="en"
# Under **plain gradient descent**, clipping decides whether the model learns at all: at lr 3, {{sgd_clip:.2f}} with it. All three runs without it end at the dotted line, where a model that knows nothing begins, or far above it. Under **AdamW** no run is lost, since (10.9) bounds its step. But there is harm: in the mean of the three rates, the excess is higher by {{gap:.2f}} without clipping (at 0.1: {{adamw_none:.2f}} against {{adamw_clip:.2f}}).

# %%
gap = [after("AdamW", "not clipped", lr) - after("AdamW", "clipped", lr) for lr in (1e-2, 3e-2, 1e-1)]
gap = np.mean(gap, 0)  # per seed
record(sgd_clip=after("SGD", "clipped", 3.0).mean(), gap=gap.mean())
record(adamw_clip=after("AdamW", "clipped", 0.1).mean(), adamw_none=after("AdamW", "not clipped", 0.1).mean())

# %%
norms = poisoned["AdamW, clipped, lr 0.01"].norms
claim("the first poisoned gradient is ten times as long as the one before it", (norms[:, 9] > 10 * norms[:, 8]).all())
claim("SGD at lr 3: clipped runs learn, the others end no better than a model that knows nothing",
      after("SGD", "clipped", 3.0).max() < 2 < start - 0.2 < after("SGD", "not clipped", 3.0).min(), fast=False)
claim("AdamW: clipping helps every seed, in the mean of the three rates", (gap > 0.05).all(), fast=False)
claim("AdamW loses no run, clipped or not",
      all(r.final.max() < start for name, r in poisoned.items() if name.startswith("AdamW")), fast=False)

# %% [markdown] lang="en"
# ## 7 · Which tensor broke first?
#
# When a number is not finite (NaN or infinite), most of what is computed from it is not finite either. Backward starts at the loss, so **the broken tensor nearest to the loss broke first**. All others may be broken because of it. `minillama` names that first one when it stops.
#
# ### Your turn: name it

# %%
from lessons.checks.stability import first_broken  # exercise

# %%
check("10.first_broken", first_broken)

# %% [markdown] lang="en"
# A case: in both layers, one entry of what SwiGLU's backward gives is infinite. Which gradients are still finite?

# %%
def overflowing(dout, cache):
    grads = nn.swiglu_backward(dout, cache)
    grads[0].flat[0] = np.inf
    return grads


with mock.patch("minillama.nn.block.swiglu_backward", overflowing), np.errstate(all="ignore"):
    grads = gradient(params, mixture.batch(1000, 8))
sound = [name for name, g in grads.items() if np.isfinite(g).all()]
broken = [name for name in grads if name not in sound]
print("sound:", ", ".join(sound), "\nbroken first:", broken[-1], f"   ({len(broken)} of {len(grads)} are broken)")
claim("what broke first is in the last layer's SwiGLU", broken[-1] in ("layers.1.w1", "layers.1.w2", "layers.1.w3"))

# %% [markdown] lang="en"
# **What does not show at this scale.** *Clipping on clean text*: it cannot be told from noise here, since 120 steps with a batch of 512 tokens hardly ever meet a spike. *The norm at the cliff*: in a model of two layers it does not move the cliff. At 0.4 the excess is {{usual_4e1:.1f}} with the norm and {{nonorm_4e1:.1f}} without. What the norm brings here is a deeper basin: {{usual_3e2:.2f}} against {{nonorm_3e2:.2f}} at 0.03. Lesson [03](03_rmsnorm.ipynb) trains four layers, where at 0.2 every run without the norm is lost; and LLaMA-7B has 32. *The length of the warm-up*: whether 2000 steps are better than 200 cannot be measured in 120 steps.
#
# ## The anchor in the paper
#
# LLaMA §2.3: AdamW with $\beta_1 = 0.9$, $\beta_2 = 0.95$, a cosine schedule down to a tenth of the peak, gradient clipping at 1.0, 2000 warm-up steps, and a peak and a batch size that depend on the size of the model. §2.2 names the reason for pre-normalisation: training *stability*. In `minillama`, [`numpy_engine.py`](../minillama/engine/numpy_engine.py) does it in this order: add up the micro-batches, clip, look whether all is finite, step.
#
# ## Three questions
#
# 1. The most curved direction has curvature 50. Which learning rates of gradient descent are possible, and what happens at 0.05?
# 2. Why does the size of the gradient not matter in AdamW's first step, and why is this a reason for warm-up?
# 3. A colleague clips what comes out of the moments, "since that bounds the step directly". What does $v$ then do after a spike of 1000?
#
# <details><summary>Answers</summary>
#
# 1. By (10.2), those between 0 and $2/50 = 0.04$. At 0.05 the factor of (10.1) is $1 - 2.5 = -1.5$: the coordinate changes sign at every step and grows by half, to 58 times its size in 10 steps.
# 2. In (10.3) the quotient is $g/|g|$, so the size cancels. That is a reason for warm-up: an entry whose gradient is tiny, and perhaps only noise, moves as far as the others, by $\eta$, and one batch has decided which way. Warm-up makes $\eta$ small while so little is known.
# 3. It takes the whole spike in: $\sqrt v$ rises to $1000\,\sqrt{0.05} = 224$ times a usual gradient, and by (10.11) needs about 211 steps to forget it. In this time the steps are too short, and a bound on the step does not make them longer.
#
# </details>
#
# **The way on:** [11 · The museum of wrong schedules](11_schedules.ipynb): after the warm-up, how should the rate come down?
