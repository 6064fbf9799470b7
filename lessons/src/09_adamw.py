# %% [markdown] lang="en"
# # 09 · AdamW: what beta1, beta2 and decay do
#
# **Question.** AdamW has four numbers besides the learning rate, and most people copy them. What does each of them do, and can you predict the effect of a change *before* you run it?
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
# AdamW keeps two numbers per parameter: a mean of its gradients, and a mean of their squares. Both forget slowly:
#
# $$m_t = \beta_1 m_{t-1} + (1-\beta_1)\,g_t \qquad v_t = \beta_2 v_{t-1} + (1-\beta_2)\,g_t^2 \qquad m_0 = v_0 = 0 \tag{9.1}$$
#
# Put $m_{t-1}$ in, then $m_{t-2}$, and so on. Each older gradient is multiplied by $\beta$ once more:
#
# $$m_t = (1-\beta)\sum_{k=1}^{t}\beta^{\,t-k}\,g_k \tag{9.2}$$
#
# By hand, $\beta = 0.9$, all gradients 1: $m_1 = 0.1$, $m_2 = 0.9\cdot0.1 + 0.1 = 0.19$, $m_3 = 0.271$. The true mean is 1. It starts far too small.

# %%
beta, m, by_sum = 0.9, 0.0, []
g = np.random.default_rng(0).standard_normal(20)
for t in range(1, 21):
    m = beta * m + (1 - beta) * g[t - 1]
    by_sum.append((1 - beta) * sum(beta ** (t - k) * g[k - 1] for k in range(1, t + 1)))
print("(9.2) is off by", abs(m - by_sum[-1]))

# %% [markdown] lang="en"
# How much too small? If all gradients were alike, (9.2) would give them this total weight, by the geometric series $\sum_{n<t}\beta^n = (1-\beta^t)/(1-\beta)$:
#
# $$(1-\beta)\sum_{k=1}^{t}\beta^{\,t-k} = 1 - \beta^t \qquad\Rightarrow\qquad \hat m_t = \frac{m_t}{1-\beta_1^t},\quad \hat v_t = \frac{v_t}{1-\beta_2^t} \tag{9.3}$$
#
# Dividing by it makes a true mean of what has been seen: $0.19 / (1 - 0.81) = 1$. And the weight falls to $1/e$ after about $1/(1-\beta)$ steps. That is how far a mean looks back: 10 steps for 0.9, 20 for 0.95, 1000 for 0.999.

# %%
for beta in (0.9, 0.95, 0.999):
    total = (1 - beta) * sum(beta ** (50 - k) for k in range(1, 51))
    window = 1 / (1 - beta)
    print(f"beta {beta}: total weight after 50 steps {total:.4f}, 1 - beta^50 = {1 - beta**50:.4f};  beta^{window:.0f} = {beta**window:.3f}, 1/e = {np.exp(-1):.3f}")

# %% [markdown] lang="en"
# ### Your turn: a running mean

# %%
from lessons.checks.adamw import running_mean  # exercise

# %%
check("09.running_mean", running_mean)

# %% [markdown] lang="en"
# ## 2 · The step
#
# $$\theta \leftarrow \theta - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon} \tag{9.4}$$
#
# By hand, the first step: $\hat m = g$ and $\hat v = g^2$, so it is $\eta\,g/|g| = \pm\eta$, for a gradient of any size. Later, where a gradient keeps its sign, the fraction is near 1; where it flips, $m$ averages out and $v$ does not, and the step is short.

# %%
for size in (1e-4, 1.0, 1e4):
    param, m, v = np.zeros(1), np.zeros(1), np.zeros(1)
    optim.adamw_step(param, np.array([size]), m, v, step=1, lr=0.01, weight_decay=0.0)
    print(f"gradient {size:>8}: first step {param[0]:.6f}")
param, m, v = np.zeros(2), np.zeros(2), np.zeros(2)
for t in range(1, 201):
    optim.adamw_step(param, np.array([1.0, (-1.0) ** t]), m, v, step=t, lr=0.01, weight_decay=0.0)
print("after 200 steps: same sign", param[0].round(3), "  flipping sign", param[1].round(3))

# %% [markdown] lang="en"
# What if nobody corrects? Then the first step is $\frac{1-\beta_1}{\sqrt{1-\beta_2}}$ times as long: 0.45 for $(0.9, 0.95)$, but **3.2** for $(0.9, 0.999)$. The curve shows how long this lasts.

# %%
t = np.arange(1, 201)
too_long = {b2: (1 - 0.9**t) / np.sqrt(1 - b2**t) for b2 in (0.95, 0.999)}
fig, axis = plt.subplots(figsize=(7.2, 3.0))
for (b2, curve), colour in zip(too_long.items(), lab.COLOURS):
    axis.plot(t, curve, color=colour, label=f"beta1 0.9, beta2 {b2}")
axis.axhline(1, color="black", linewidth=1)
axis.set(xlabel="step", ylabel="uncorrected / corrected", xlim=(1, 200), ylim=(0, None))
axis.set_title("Step length without bias correction: far too long with beta2 = 0.999")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# ## 3 · Decay: beside the step, or inside the gradient?
#
# AdamW shrinks a weight directly, and by the same share whatever its gradients are:
#
# $$\theta \leftarrow (1 - \eta\lambda)\,\theta - \eta\,\frac{\hat m}{\sqrt{\hat v}+\epsilon}\tag{9.5}$$
#
# L2 regularisation adds $\lambda\theta$ to the gradient instead. In SGD that is the same. In Adam it is not, because $\sqrt{\hat v}$ then divides the decay, too:
#
# $$g' = g + \lambda\theta,\qquad \text{step } 1:\quad \eta\,\frac{g'}{|g'|} = \pm\eta\tag{9.6}$$
#
# By hand: $\theta = 1$, $\lambda = 0.1$, $g = -0.001$, $\eta = 0.01$. AdamW: $0.999\cdot1 + 0.01 = 1.009$: up, where the gradient wants it. Adam with L2: $g' = 0.099 > 0$, a *full* step down, to 0.99. The small gradient has lost against the decay.

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
# Predict first: does a tiny model that trains for 150 steps learn better with $\beta_1 = 0$, no momentum at all, or with 0.9? Write your answer down. Then look at four learning rates.

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
# **Remember the crossing.** At 0.01, no momentum wins: {{none_low:.2f}} against {{nine_low:.2f}}. At 0.03 and above, 0.9 wins: {{nine_high:.2f}} against {{none_high:.2f}}, and this is the best of all. A mean over 10 steps makes steps steadier, so it can bear a higher rate; at a low one it only comes late. Whoever changes $\beta_1$ and keeps the learning rate measures the learning rate.

# %%
record(none_low=final(0.0, 1e-2).mean(), nine_low=final(0.9, 1e-2).mean(), none_high=final(0.0, 3e-2).mean(), nine_high=final(0.9, 3e-2).mean())
claim("at lr 0.01, beta1 = 0 is better at every seed", final(0.0, 1e-2).max() + 0.02 < final(0.9, 1e-2).min(), fast=False)
claim("at lr 0.03 and 0.06, beta1 = 0.9 is better at every seed", all(final(0.9, lr).max() + 0.02 < final(0.0, lr).min() for lr in (3e-2, 6e-2)), fast=False)
best = {b: min(final(b, lr).mean() for lr in rates) for b in betas}
claim("each at its best rate, 0.9 is the best of the three", best[0.9] + 0.03 < min(best[0.0], best[0.99]), fast=False)

# %% [markdown] lang="en"
# ## 5 · Decay, L2, beta2 and bias correction
#
# All at a learning rate of 0.01. The last two arms are without warm-up and with $\beta_2 = 0.999$, where section 2 says that bias correction must matter most.

# %%
swap = lambda name: {"minillama.engine.numpy_engine.adamw_step": f"lessons.museum.{name}_step"}
late = {"beta2": 0.999, "warmup_steps": 1}
arms = {"LLaMA's: 0.9, 0.95, decay 0.1": {"beta1": 0.9, "lr": 1e-2}, "no decay": {"weight_decay": 0.0}, "decay as L2": {"patch": swap("adam_l2")},
        "beta2 0.5": {"beta2": 0.5}, "beta2 0.999": {"beta2": 0.999}, "no bias correction": {"patch": swap("no_bias_correction")},
        "0.999, no warm-up": late, "the same, no bias correction": {**late, "patch": swap("no_bias_correction")}}
others = lab.run(arms, seeds=3, steps=150, evaluations=1)
size = lambda result: np.mean([np.sqrt(sum((w**2).sum() for w in p.values() if w.ndim == 2)) for p in result.params])
for name, result in others.items():
    print(f"{name:<30} excess {result.mean:.3f} ({result.band[0]:.3f} to {result.band[1]:.3f})   length of all matrices {size(result):5.1f}")

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.4))
lab.plot_dots(axis, others)
axis.set(xlim=(0, None), title="L2 inside Adam is not weight decay")
plt.show()

# %% [markdown] lang="en"
# L2 inside Adam ends at {{l2:.1f}} nats/token of excess, with matrices of length {{l2_size:.0f}} in place of {{usual_size:.0f}}: weights whose gradients are small are drawn to zero at full speed, as (9.6) says.

# %%
usual, l2, none = (others[name] for name in ("LLaMA's: 0.9, 0.95, decay 0.1", "decay as L2", "no decay"))
late_right, late_wrong = others["0.999, no warm-up"], others["the same, no bias correction"]
record(l2=l2.mean, l2_size=size(l2), usual_size=size(usual), usual=usual.mean, none=none.mean, uncorrected=others["no bias correction"].mean)
record(late_right=late_right.mean, late_wrong=late_wrong.mean)
claim("L2 inside Adam is far worse, at every seed", l2.final.min() > usual.final.max() + 0.5, fast=False)
claim("and its matrices are less than half as long", size(l2) < 0.5 * size(usual), fast=False)
claim("no decay at all makes no difference in 150 steps", abs(none.mean - usual.mean) < 0.1)
claim("with 0.999 and no warm-up, leaving out bias correction costs something", late_wrong.mean > late_right.mean + 0.03, fast=False)

# %% [markdown] lang="en"
# ## 6 · Two betas that do not go together
#
# One number above asks for an explanation: with $\beta_2 = 0.5$ the matrices have grown to a length of {{half_size:.0f}}. Think of a rare token, whose gradient is there once and then 0 for $k$ steps. By (9.1), $m$ shrinks to $\beta_1^k m$ and $v$ to $\beta_2^k v$. So the step of (9.4) becomes
#
# $$\frac{\beta_1^k\,m}{\sqrt{\beta_2^k\,v}} = \Bigl(\frac{\beta_1}{\sqrt{\beta_2}}\Bigr)^{k}\,\frac{m}{\sqrt v} \tag{9.7}$$
#
# If $\beta_1 > \sqrt{\beta_2}$, it **grows**, though there is no gradient at all. By hand: $0.9/\sqrt{0.5} = 1.27$, and $1.27^{20} = 125$. For LLaMA's pair it is $0.9/\sqrt{0.95} = 0.92$: the step fades.

# %%
for b2 in (0.95, 0.5):
    param, m, v, steps = np.zeros(1), np.zeros(1), np.zeros(1), []
    for t in range(1, 61):
        before = param.copy()
        optim.adamw_step(param, np.array([1.0 if t <= 30 else 0.0]), m, v, t, 0.01, 0.9, b2, 1e-30, 0.0)
        steps.append(abs(param - before)[0])
    print(f"beta2 {b2}: each step {steps[55] / steps[54]:.3f} times the last one; (9.7) says {0.9 / np.sqrt(b2):.3f}")

# %%
half, rows = others["beta2 0.5"], lambda result: np.linalg.norm(result.params[0]["tok_embeddings"], axis=1)
tokenizer, shards = lab.text()
counts = np.bincount(np.concatenate([shard.train.tokens for shard in shards]), minlength=tokenizer.vocab_size)
longest = np.argsort(-rows(half))[:8]
print("the longest embeddings:", [(tokenizer.pieces[i][0], f"seen {counts[i]} times") for i in longest])
record(half_size=size(half), usual_row=rows(usual).max(), half_row=rows(half).max())
claim("the longest embeddings belong to rare tokens", counts[longest].max() < 0.001 * counts.sum(), fast=False)
claim("they are many times longer than any with LLaMA's betas", rows(half).max() > 5 * rows(usual).max(), fast=False)

# %% [markdown] lang="en"
# It is the rare bytes of the rare signs: an embedding of length {{half_row:.0f}}, where LLaMA's betas have {{usual_row:.1f}} at most. **Keep $\beta_1 < \sqrt{\beta_2}$.** It also speaks against $\beta_1 = 0.99$ with 0.95, since $0.99 > 0.975$.

#
# **What does not show at this scale.** Weight decay itself: {{none:.3f}} without, {{usual:.3f}} with. 150 steps at 0.01 shrink a weight by less than a sixth; its use is in long runs. Bias correction, with warm-up and LLaMA's betas: {{uncorrected:.3f}}. With 0.999 and no warm-up, {{late_right:.2f}} with it and {{late_wrong:.2f}} without.
#
# ## The anchor in the paper
#
# LLaMA §2.3: AdamW, $\beta_1 = 0.9$, $\beta_2 = 0.95$, decay 0.1, clipping at 1.0. With 0.95, $v$ looks back 20 steps in place of 1000: it follows a gradient whose size changes, at the price of more noise. In this code the gains of the norms do not decay.
#
# ## Three questions
#
# 1. Why is AdamW's first step $\pm\eta$ for a gradient of any size?
# 2. You go from $\beta_1 = 0.9$ to 0.95. Which other setting do you look at again, and why?
# 3. Under plain SGD, weight decay and L2 are the same. What in Adam breaks this?
#
# **The way on:** [10 · Stability](10_stability.ipynb): how far up the learning rate can go, and what holds it.
