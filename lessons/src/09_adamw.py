# %% [markdown] lang="en"
# # 09 · AdamW: what beta1, beta2 and decay do
#
# **Question.** AdamW has four numbers besides the learning rate: $\beta_1$, $\beta_2$, $\epsilon$ and the weight decay. Most people copy them. What does each of them do, and can you predict the effect of a change *before* you run it?
#
# After this lesson you can derive bias correction, say how far each mean looks back, tell AdamW from Adam with L2, and know which setting must be tuned together with which.
#
# *Needs:* [02 · Gradients](02_gradients.ipynb). *Paper:* LLaMA §2.3: $\beta_1 = 0.9$, $\beta_2 = 0.95$, decay 0.1; Loshchilov & Hutter 2019 (arXiv:1711.05101), Algorithm 2. *Code:* [`minillama/optim/adamw.py`](../minillama/optim/adamw.py). *Time:* 30 minutes to read and solve, a minute or two to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import numpy as np

from lessons import check, claim, lab, plt, record
from minillama import optim

# %% [markdown] lang="en"
# ## 1 · Two running means
#
# AdamW keeps two numbers for each parameter: a running mean $m$ of its gradients $g_1, g_2, \dots$, and a running mean $v$ of their squares. Both forget old gradients slowly:
#
# $$m_t = \beta_1 m_{t-1} + (1-\beta_1)\,g_t \qquad v_t = \beta_2 v_{t-1} + (1-\beta_2)\,g_t^2 \qquad m_0 = v_0 = 0 \tag{9.1}$$
#
# Put in what $m_{t-1}$ is, then $m_{t-2}$, and so on. Each older gradient is multiplied by $\beta$ once more (we write $\beta$ for $\beta_1$ or $\beta_2$, as both means work alike):
#
# $$m_t = (1-\beta)\sum_{k=1}^{t}\beta^{\,t-k}\,g_k \tag{9.2}$$
#
# By hand, $\beta = 0.9$, all gradients 1: $m_1 = 0.1$, $m_2 = 0.9\cdot0.1 + 0.1 = 0.19$, $m_3 = 0.271$. The true mean is 1. It starts far too small.

# %%
beta, m, errors = 0.9, 0.0, []
g = np.random.default_rng(0).standard_normal(20)
for t in range(1, 21):
    m = beta * m + (1 - beta) * g[t - 1]
    by_sum = (1 - beta) * sum(beta ** (t - k) * g[k - 1] for k in range(1, t + 1))
    errors.append(abs(m - by_sum))
print(f"(9.2), 20 steps, is off by {max(errors):.0e} at most")

# %% [markdown] lang="en"
# How much too small? Add up the weights that (9.2) gives to the gradients. By the geometric series $1 + \beta + \dots + \beta^{t-1} = (1-\beta^t)/(1-\beta)$, they do not add up to 1:
#
# $$(1-\beta)\sum_{k=1}^{t}\beta^{\,t-k} = 1 - \beta^t \qquad\Rightarrow\qquad \hat m_t = \frac{m_t}{1-\beta_1^t},\quad \hat v_t = \frac{v_t}{1-\beta_2^t} \tag{9.3}$$
#
# Divided by this sum, $m$ and $v$ become true means of what has been seen: $0.19 / (1 - 0.81) = 1$. This is the **bias correction**.
#
# The weight of one gradient falls to $1/e$ after about $1/(1-\beta)$ steps, because $\beta^{1/(1-\beta)} \approx 1/e$. That is how far a mean looks back: 10 steps for 0.9, 20 for 0.95, 1000 for 0.999.

# %%
for beta in (0.9, 0.95, 0.999):
    total = (1 - beta) * sum(beta ** (50 - k) for k in range(1, 51))
    window = 1 / (1 - beta)
    print(f"beta {beta}: total weight after 50 steps {total:.4f}, 1 - beta^50 = {1 - beta**50:.4f};",
          f" beta^{window:.0f} = {beta**window:.3f}, 1/e = {np.exp(-1):.3f}")

# %% [markdown] lang="en"
# ### Your turn: a running mean

# %%
from lessons.checks.adamw import running_mean  # exercise

# %%
check("09.running_mean", running_mean)

# %% [markdown] lang="en"
# ## 2 · The step
#
# Let $\theta$ be a parameter and $\eta$ the learning rate. The number $\epsilon = 10^{-8}$ only keeps the step from dividing by 0:
#
# $$\theta \leftarrow \theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon} \tag{9.4}$$
#
# By hand, the first step: $\hat m = g$ and $\hat v = g^2$, so it is $\eta\,g/|g| = \pm\eta$, for a gradient of any size. Later, where a gradient keeps its sign and its size, the fraction stays near $\pm1$. Where the sign changes from step to step, $m$ is near 0 and $v$ is not, so the step is short.

# %%
for size in (1e-4, 1.0, 1e4):
    param, m, v = np.zeros(1), np.zeros(1), np.zeros(1)
    optim.adamw_step(param, np.array([size]), m, v, step=1, lr=0.01, weight_decay=0.0)
    print(f"gradient {size:>8}: first step {param[0]:.6f}")

# %%
param, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
for t in range(1, 201):
    optim.adamw_step(param, np.array([1.0, (-1.0) ** t]), m, v, step=t, lr=0.01, weight_decay=0.0)
print("after 200 steps: same sign", param[0].round(3), "  changing sign", param[1].round(3))

# %% [markdown] lang="en"
# What if $m$ and $v$ are used without the correction? Then the first step is $\frac{1-\beta_1}{\sqrt{1-\beta_2}}$ times as long: 0.45 for $(\beta_1, \beta_2) = (0.9, 0.95)$, but **3.2** for $(0.9, 0.999)$. By (9.3), step $t$ is $(1-\beta_1^t)/\sqrt{1-\beta_2^t}$ times as long. The curve shows how long this lasts.

# %%
t = np.arange(1, 201)
too_long = {b2: (1 - 0.9**t) / np.sqrt(1 - b2**t) for b2 in (0.95, 0.999)}
fig, axis = plt.subplots(figsize=(7.2, 3.0))
for (b2, curve), colour in zip(too_long.items(), lab.COLOURS):
    axis.plot(t, curve, color=colour, label=f"beta1 0.9, beta2 {b2}")
axis.axhline(1, color="black", linewidth=1)
axis.set(xlabel="step", ylabel="step length,\nuncorrected / corrected", xlim=(1, 200), ylim=(0, None))
axis.set_title("Step length without bias correction: far too long with beta2 = 0.999")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# ## 3 · Decay: beside the step, or inside the gradient?
#
# **Weight decay** pulls every weight towards 0, with a strength $\lambda$. AdamW shrinks a weight directly, and by the same share whatever its gradients are:
#
# $$\theta \leftarrow (1 - \eta\lambda)\,\theta - \eta\,\frac{\hat m}{\sqrt{\hat v}+\epsilon}\tag{9.5}$$
#
# **L2 regularisation** adds $\lambda\theta$ to the gradient instead. In plain gradient descent (SGD), $\theta - \eta\,(g + \lambda\theta) = (1-\eta\lambda)\,\theta - \eta\,g$, so that is the same. In Adam it is not, because $\sqrt{\hat v}$ then divides the decay, too:
#
# $$g' = g + \lambda\theta,\qquad \text{step } 1:\quad \eta\,\frac{g'}{|g'|} = \pm\eta\tag{9.6}$$
#
# By hand: $\theta = 1$, $\lambda = 0.1$, $g = -0.001$, $\eta = 0.01$. AdamW: $0.999\cdot1 + 0.01 = 1.009$: up, where the gradient wants it. Adam with L2: $g' = 0.099 > 0$, a *full* step down, to 0.99. The decay is larger than the small gradient, so it alone decides the direction.

# %%
from lessons.museum import adam_l2_step

for name, function in (("AdamW", optim.adamw_step), ("Adam with L2", adam_l2_step)):
    param, m, v = np.ones(1), np.zeros(1), np.zeros(1)
    function(param, np.array([-0.001]), m, v, 1, 0.01, 0.9, 0.95, 1e-8, 0.1)
    print(f"{name:<13} {param[0]:.4f}")

# %% [markdown] lang="en"
# ### Your turn: AdamW

# %%
from lessons.checks.adamw import adamw_step  # exercise

# %%
check("09.adamw_step", adamw_step)

# %% [markdown] lang="en"
# ## 4 · The picture: beta1 and the learning rate belong together
#
# Predict first: does a tiny LLaMA that trains for 150 steps learn better with $\beta_1 = 0$, where $m$ is the last gradient alone, or with 0.9? Write your answer down. Then look at four learning rates.
#
# We show the **excess**, the loss minus the text's entropy floor ([00](00_baselines.ipynb)). In every run the learning rate rises to its peak in 20 steps of *warm-up* ([10](10_stability.ipynb)) and then falls to a tenth of it ([11](11_schedules.ipynb)).

# %%
rates, betas = (3e-3, 1e-2, 3e-2, 6e-2), (0.0, 0.9, 0.99)
arms = {f"beta1 {b}, lr {lr:g}": {"beta1": b, "lr": lr} for b in betas for lr in rates}
sweep = lab.run(arms, seeds=3, steps=150, evaluations=1)
final = lambda b, lr: sweep[f"beta1 {b}, lr {lr:g}"].final

# %%
fig, axis = plt.subplots()
for b, colour in zip(betas, lab.COLOURS):
    found = np.minimum([final(b, lr) for lr in rates], 30)  # (rates, seeds)
    axis.plot(rates, found.mean(1), "o-", color=colour, markersize=4, label=f"beta1 = {b}")
    axis.fill_between(rates, found.min(1), found.max(1), color=colour, alpha=0.2, linewidth=0)
axis.set(xscale="log", yscale="log", xlabel="peak learning rate", ylabel="excess after 150 steps (nats/token)")
axis.set_xticks(rates, [f"{lr:g}" for lr in rates])
axis.set_yticks([0.5, 1, 2, 5], ["0.5", "1", "2", "5"])
axis.minorticks_off()
axis.set_title("Which beta1 is better? It depends on the learning rate")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# **Remember the crossing.** At 0.01, $\beta_1 = 0$ is better: {{none_low:.2f}} against {{nine_low:.2f}} with 0.9. At 0.03 it is the other way round, {{none_high:.2f}} against {{nine_high:.2f}}, and at 0.06, too. Each at its own best rate, 0.9 is the best of the three.
#
# A likely reason, which we did not measure: a mean over 10 steps makes the steps steadier, and so it allows a higher rate. At a low rate it only makes them late. **If you change $\beta_1$ and keep the learning rate, you mostly measure that the learning rate no longer fits.**

# %%
record(none_low=final(0.0, 1e-2).mean(), nine_low=final(0.9, 1e-2).mean())
record(none_high=final(0.0, 3e-2).mean(), nine_high=final(0.9, 3e-2).mean())
claim("at lr 0.01, beta1 = 0 is better at every seed",
      final(0.0, 1e-2).max() + 0.02 < final(0.9, 1e-2).min(), fast=False)
claim("at lr 0.03 and 0.06, beta1 = 0.9 is better at every seed",
      all(final(0.9, lr).max() + 0.02 < final(0.0, lr).min() for lr in (3e-2, 6e-2)), fast=False)
best = {b: min(final(b, lr).mean() for lr in rates) for b in betas}
claim("each at its best rate, 0.9 is the best of the three",
      best[0.9] + 0.03 < min(best[0.0], best[0.99]), fast=False)

# %% [markdown] lang="en"
# ## 5 · Decay, L2, beta2 and bias correction
#
# All at a learning rate of 0.01. The last two arms have no warm-up and $\beta_2 = 0.999$. There, by section 2, bias correction must matter most. The *length* of all matrices is the root of the sum of all their squared entries.

# %%
swap = lambda name: {"minillama.engine.numpy_engine.adamw_step": f"lessons.museum.{name}_step"}
late = {"beta2": 0.999, "warmup_steps": 1}
arms = {"LLaMA's: 0.9, 0.95, decay 0.1": {"beta1": 0.9, "lr": 1e-2},
        "no decay": {"weight_decay": 0.0}, "decay as L2": {"patch": swap("adam_l2")},
        "beta2 0.5": {"beta2": 0.5}, "beta2 0.999": {"beta2": 0.999},
        "no bias correction": {"patch": swap("no_bias_correction")},
        "0.999, no warm-up": late,
        "the same, no bias correction": {**late, "patch": swap("no_bias_correction")}}
others = lab.run(arms, seeds=3, steps=150, evaluations=1)

# %%
length = lambda params: np.sqrt(sum((w**2).sum() for w in params.values() if w.ndim == 2))
size = lambda result: np.mean([length(params) for params in result.params])
for name, result in others.items():
    low, high = result.band
    print(f"{name:<30} excess {result.mean:.3f} ({low:.3f} to {high:.3f})   length of all matrices {size(result):6.1f}")

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.4))
lab.plot_dots(axis, others)
axis.set(xlim=(0, None), xlabel="excess after 150 steps (nats/token)", title="L2 inside Adam is not weight decay")
plt.show()

# %% [markdown] lang="en"
# L2 inside Adam ends at {{l2:.1f}} nats/token of excess, with matrices of length {{l2_size:.0f}} in place of {{usual_size:.0f}}: weights whose gradients are small are pulled to zero with full steps, as (9.6) says.

# %%
usual, l2, none = (others[name] for name in ("LLaMA's: 0.9, 0.95, decay 0.1", "decay as L2", "no decay"))
late_right, late_wrong = others["0.999, no warm-up"], others["the same, no bias correction"]
record(l2=l2.mean, l2_size=size(l2), usual_size=size(usual), usual=usual.mean, none=none.mean)
record(uncorrected=others["no bias correction"].mean, late_right=late_right.mean, late_wrong=late_wrong.mean)
record(long_memory=others["beta2 0.999"].mean)
shrunk = np.prod([1 - 0.1 * optim.learning_rate(t, 1e-2, 150, 20) for t in range(1, 151)])  # by (9.5)
record(shrink=100 * (1 - shrunk))

# %%
claim("L2 inside Adam is far worse, at every seed", l2.final.min() > usual.final.max() + 0.5, fast=False)
claim("and its matrices are less than half as long", size(l2) < 0.5 * size(usual), fast=False)
claim("no decay at all makes no difference in 150 steps", abs(none.mean - usual.mean) < 0.1)
claim("beta2 = 0.999 is no worse than 0.95 here, in the mean", others["beta2 0.999"].mean < usual.mean, fast=False)
claim("with 0.999 and no warm-up, leaving out bias correction costs something",
      late_wrong.mean > late_right.mean + 0.03, fast=False)

# %% [markdown] lang="en"
# ## 6 · Two betas that do not go together
#
# One number above asks for an explanation: with $\beta_2 = 0.5$ the matrices have grown to a length of {{half_size:.0f}}. Think of the embedding of a rare token: it gets a gradient once, and then 0 for $k$ steps. By (9.1), $m$ shrinks to $\beta_1^k m$ and $v$ to $\beta_2^k v$. Late in a run the corrections of (9.3) are 1. So the step of (9.4), without $\epsilon$, has become
#
# $$\frac{\beta_1^k\,m}{\sqrt{\beta_2^k\,v}} = \Bigl(\frac{\beta_1}{\sqrt{\beta_2}}\Bigr)^{k}\,\frac{m}{\sqrt v} \tag{9.7}$$
#
# If $\beta_1 > \sqrt{\beta_2}$, it **grows**, though there is no gradient at all, until $\sqrt v$ is as small as $\epsilon$. By hand: $0.9/\sqrt{0.5} = 1.273$, and $1.273^{20} = 125$. For LLaMA's pair it is $0.9/\sqrt{0.95} = 0.923$: the step becomes shorter and shorter.

# %%
for b2 in (0.95, 0.5):
    param, m, v, steps = np.zeros(1), np.zeros(1), np.zeros(1), []
    for t in range(1, 61):
        before = param.copy()
        optim.adamw_step(param, np.array([1.0 if t <= 30 else 0.0]), m, v, t, 0.01, 0.9, b2, 1e-30, 0.0)
        steps.append(abs(param - before)[0])
    print(f"beta2 {b2}: each step is {steps[55] / steps[54]:.3f} times the one before;",
          f"(9.7) says {0.9 / np.sqrt(b2):.3f}")

# %%
half, rows = others["beta2 0.5"], lambda result: np.linalg.norm(result.params[0]["tok_embeddings"], axis=1)
tokenizer, shards = lab.text()
counts = np.bincount(np.concatenate([shard.train.tokens for shard in shards]), minlength=tokenizer.vocab_size)
longest = np.argsort(-rows(half))[:8]
print("the longest embeddings, and how often they are in the text:")
print(", ".join(f"{tokenizer.pieces[i][0]} {counts[i]}" for i in longest))

# %%
record(half_size=size(half), usual_row=rows(usual).max(), half_row=rows(half).max())
claim("the longest embeddings belong to rare tokens", counts[longest].max() < 0.001 * counts.sum(), fast=False)
claim("they are many times longer than any with LLaMA's betas", rows(half).max() > 5 * rows(usual).max(), fast=False)

# %% [markdown] lang="en"
# The longest embeddings belong to bytes that hardly ever occur in the text. One has the length {{half_row:.0f}}, where LLaMA's betas have {{usual_row:.1f}} at most (both at seed 0). **Keep $\beta_1 < \sqrt{\beta_2}$.** This also speaks against $\beta_1 = 0.99$ with $\beta_2 = 0.95$, since $\sqrt{0.95} = 0.975$.
#
# **What does not show at this scale.** *Weight decay itself*: {{none:.3f}} without, {{usual:.3f}} with. By (9.5), these 150 steps shrink a weight by {{shrink:.0f}} % only; decay is meant for long runs. *Bias correction*, with warm-up and LLaMA's betas: {{uncorrected:.3f}} without it. With 0.999 and no warm-up it is {{late_right:.2f}} with it and {{late_wrong:.2f}} without. *Why LLaMA takes 0.95*: in this short run 0.999 is no worse, {{long_memory:.2f}} against {{usual:.2f}}.
#
# ## The anchor in the paper
#
# LLaMA §2.3: AdamW, $\beta_1 = 0.9$, $\beta_2 = 0.95$, decay 0.1, clipping at 1.0. With 0.95, $v$ looks back 20 steps, and with Adam's usual 0.999 it looks back 1000. So it follows a gradient whose size changes, at the price of more noise. The paper does not say which parameters decay; in this code the gains of the norms do not.
#
# ## Three questions
#
# 1. Why is AdamW's first step $\pm\eta$ for a gradient of any size?
# 2. You go from $\beta_1 = 0.9$ to 0.95. Which other setting do you look at again, and why?
# 3. Under plain SGD, weight decay and L2 are the same. What in Adam breaks this?
#
# <details><summary>Answers</summary>
#
# 1. After one step, (9.1) and (9.3) give $\hat m = g$ and $\hat v = g^2$. In (9.4) that is $g/|g| = \pm1$, as long as $|g|$ is much larger than $\epsilon$.
# 2. The learning rate: how far the mean looks back doubles, from 10 steps to 20, and another $\beta_1$ has another best rate. Then $\beta_2$: $0.95 < \sqrt{0.95} = 0.975$ still holds, so (9.7) fades, but more slowly, by $0.975$ a step in place of $0.923$.
# 3. The division by $\sqrt{\hat v}$. In SGD the decay $\eta\lambda\theta$ stays as it is, wherever it is added. In Adam, L2 puts $\lambda\theta$ into $m$ and $v$, and it is divided by the size of the weight's own gradients: where they are small, the decay becomes a full step, as in (9.6).
#
# </details>
#
# **The way on:** [10 · Stability](10_stability.ipynb): how far up the learning rate can go, and what holds it.
