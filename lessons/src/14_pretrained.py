# %% [markdown] lang="en"
# # 14 · Use a pre-trained model
#
# **Question.** You have a trained model and a new text. Which learning rate, which schedule, which optimiser state? And what does the model forget?
#
# After this lesson you can say why little steps forget less than they gain, choose a learning rate under a limit, mix old text in, read a score on a task beside its chance, mask the targets of instruction text, and write a low-rank adapter with its backward.
#
# *Needs:* [09 · AdamW](09_adamw.ipynb), [11 · Schedules](11_schedules.ipynb), [13 · A real run](13_train.ipynb). *Paper:* LLaMA §3, §4; Gupta et al. 2023 (arXiv:2308.04014), Ibrahim et al. 2024 (arXiv:2403.08763), Wortsman et al. 2022 (arXiv:2109.01903), Hu et al. 2021 (arXiv:2106.09685). *Code:* [`minillama/tasks.py`](../minillama/tasks.py), [`nn/cross_entropy.py`](../minillama/nn/cross_entropy.py). *Time:* 45 minutes to read and solve, a minute or two to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import re

import numpy as np

from lessons import FAST, check, claim, lab, museum, plt, real_run, record
from minillama import nn, optim, tasks
from minillama.engine.numpy_engine import NumpyEngine
from minillama.nn.gradcheck import gradcheck, numerical_gradient

# %% [markdown] lang="en"
# ## 1 · A trained model, and a text it has never seen
#
# The tiny model is trained for 300 steps on **stories and facts**: the old text. Then it gets 80 steps on **sums** alone: the new text. One number changes from run to run, the peak of the learning rate. The schedule is the usual one, 8 steps of warm-up and half a cosine.

# %%
PART = {"stories": 0.35 / 0.75, "facts": 0.40 / 0.75}            # of the old text
START = {"mix": PART, "steps": 300}
RATES, SEEDS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), 1 if FAST else 3  # FAST: the builders' short trial run


def tune(lr, mix=None, **settings):
    """An arm: 80 steps from the trained model, on sums or on another mix."""
    return {"start": START, "mix": mix or {"sums": 1.0}, "steps": 80, "lr": lr, "warmup_steps": 8, **settings}


new = lambda result: result.sources["sums"][:, -1]               # excess of every seed
old = lambda result: sum(share * result.sources[name][:, -1] for name, share in PART.items())

# %%
arms = {"before": START} | {f"lr {lr:g}": tune(lr) for lr in RATES}
results = lab.run(arms, seeds=SEEDS, evaluations=1)
before = results["before"]
print(f"{'nats/token above the floor':<28}{'new text':>10}{'old text':>10}")
for name, result in results.items():
    print(f"{name:<28}{new(result).mean():10.3f}{old(result).mean():10.3f}")

# %% [markdown] lang="en"
# Before, the model is {{before_old:.2f}} above the floor on the old text and {{before_new:.1f}} on the new one. Each rate buys something and pays something. **Gain** is what the new text gets better by, **forgetting** is what the old one gets worse by. At 0.0001 the model gains {{gain_low:.1f}} nats and forgets {{forgets_low:.2f}}. At 0.01 it gains {{gain_high:.1f}} and forgets {{forgets_high:.1f}}: all it knew. Why is the price so unequal?

# %%
gain = lambda name: new(before) - new(results[name])
forgets = lambda name: old(results[name]) - old(before)
record(before_old=old(before).mean(), before_new=new(before).mean(), gain_low=gain("lr 0.0001").mean(), gain_high=gain("lr 0.01").mean())
record(forgets_low=forgets("lr 0.0001").mean(), forgets_high=forgets("lr 0.01").mean())

# %% [markdown] lang="en"
# ## 2 · Gain is first order, forgetting is second order
#
# By hand, one weight, trained until the old loss $\theta^2$ is at its minimum, $\theta^* = 0$. The new loss falls there with slope $-1$. Go a step of 0.2: gain about 0.2, forgetting 0.04. Go half as far: gain 0.1, forgetting 0.01. **Half the way keeps half of the gain and a quarter of the price.**
#
# Now many weights. Let $\Delta$ be the way from $\theta^*$, $s$ and $H$ the slope and the curvature of the old loss at $\theta^*$, and $-g$ the slope of the new one. Taylor's formula:
#
# $$L_{\text{old}}(\theta^* + \Delta) = L_{\text{old}}(\theta^*) + \underbrace{s\cdot\Delta}_{s\,\approx\,0\text{ at a minimum}} + \tfrac12\,\Delta^{\top} H \Delta + \dots \tag{14.1}$$
#
# $$L_{\text{new}}(\theta^* + \Delta) = L_{\text{new}}(\theta^*) - g\cdot\Delta + \dots \tag{14.2}$$
#
# Take the part $\alpha$ of a way, $\alpha\Delta$, and divide the price by the gain:
#
# $$\frac{\text{forgetting}}{\text{gain}} \approx \frac{\frac12\alpha^2\,\Delta^{\top} H\Delta}{\alpha\; g\cdot\Delta} \;\propto\; \alpha \tag{14.3}$$

# %% [markdown] lang="en"
# Is it so in the model? Take the way $\Delta$ that the run at 0.003 has gone, and walk along it in a straight line: old weights plus $\alpha\Delta$. Slope and curvature come from two points near the start, $\alpha = \pm\frac1{16}$.

# %%
tokenizer, shards = lab.text()


def scores(params):
    """Excess of parameters: (new text, old text)."""
    engine = NumpyEngine(lab.configs({})[0], params=params, threads=1)
    each = {shard.name: lab.excess(engine, lab.mixed([shard], {shard.name: 1})) for shard in shards}
    return each["sums"], sum(share * each[name] for name, share in PART.items())


def walk(name, alphas):
    """Excess at old weights + alpha · way, for every seed: (alphas, seeds, 2)."""
    pairs = list(zip(before.params, results[name].params))
    at = lambda a, b, alpha: {key: a[key] + np.float32(alpha) * (b[key] - a[key]) for key in a}
    return np.array([[scores(at(a, b, alpha)) for a, b in pairs] for alpha in alphas])

# %%
alphas = np.array([-1 / 16, 0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1])
path = walk("lr 0.003", alphas)
way = path.mean(1) - path.mean(1)[1]                             # change of (new, old)
slope, bend = (way[2] - way[0]) * 8, (way[2] + way[0]) * 256     # first and second derivative
print("alpha    gain: measured  (14.2)     forgetting: measured  (14.1)")
for alpha, change in zip(alphas[2:], way[2:]):
    print(f"{alpha:6.4f} {-change[0]:14.3f} {-slope[0] * alpha:8.3f} {change[1]:22.4f} {slope[1] * alpha + bend[1] * alpha**2 / 2:8.4f}")

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.4))
fine = np.linspace(0, 1, 101)
for k, sign, label in ((0, -1, "gain on the new text"), (1, 1, "forgetting of the old text")):
    change = sign * (path[1:, :, k] - path[1, :, k])
    axis.plot(alphas[1:], change.mean(1), "o-", markersize=4, color=lab.COLOURS[k], label=label)
    axis.fill_between(alphas[1:], change.min(1), change.max(1), color=lab.COLOURS[k], alpha=0.2, linewidth=0)
axis.plot(fine, -slope[0] * fine, ":", color=lab.COLOURS[0], linewidth=1.3, label="(14.2): a line")
axis.plot(fine, slope[1] * fine + bend[1] * fine**2 / 2, ":", color=lab.COLOURS[1], linewidth=1.3, label="(14.1): a parabola")
axis.set(xlabel="part of the way α", ylabel="nats/token", xlim=(0, 1), ylim=(-0.2, 7))
axis.set_title("The gain comes first, the forgetting last")
axis.legend()
plt.show()

# %%
half = np.flatnonzero(alphas == 0.5)[0]
kept_gain = (path[1, :, 0] - path[half, :, 0]) / (path[1, :, 0] - path[-1, :, 0])
paid = (path[half, :, 1] - path[1, :, 1]) / (path[-1, :, 1] - path[1, :, 1])
record(kept_gain=100 * kept_gain.mean(), paid=100 * paid.mean(), kink=slope[1], quarter=way[4, 1], quarter_said=slope[1] / 4 + bend[1] / 32,
       end=way[-1, 1], end_said=slope[1] + bend[1] / 2)
claim("near the start the gain is a line, to a tenth", abs(way[3, 0] / (slope[0] / 8) - 1) < 0.1, fast=False)
claim("half the way has more than 60 % of the gain, at every seed", kept_gain.min() > 0.6, fast=False)
claim("and less than a quarter of the forgetting, at every seed", paid.max() < 0.25, fast=False)

# %% [markdown] lang="en"
# Half the way has {{kept_gain:.0f}} % of the gain for {{paid:.0f}} % of the price. Two things must be added. The old model was not quite at a minimum: the slope is {{kink:.2f}}, so the first steps even *help* the old text a little. And the parabola holds only up to a quarter of the way ({{quarter:.3f}} measured, {{quarter_said:.3f}} said). At its end it says {{end_said:.1f}}, and {{end:.1f}} is measured: **far out, forgetting is worse than second order.**

# %% [markdown] lang="en"
# ## 3 · How far does a run go?
#
# The learning rate decides it. AdamW's step is $\eta$ times a fraction near $\pm1$ (lesson 09), so a weight that is always pushed the same way goes as far as the rates add up to:
#
# $$|\Delta_i| \;\lesssim\; \sum_{t} \eta_t \;=\; \eta_{\text{peak}}\cdot\Bigl(\underbrace{\tfrac{1+2+\dots+8}{8}}_{4.5} + \underbrace{72\cdot 0.55}_{39.6}\Bigr) \;\approx\; 44\,\eta_{\text{peak}} \tag{14.4}$$
#
# By hand: 8 steps of warm-up with a mean of 0.56 make 4.5, then 72 steps with a mean of $(1 + 0.1)/2$ make 39.6. So a peak of 0.001 can move a weight by 0.044, and a peak of 0.03 by 1.3. How large are the weights, and how far do they go?

# %%
total = sum(optim.learning_rate(t, 1.0, 80, 8, 0.1) for t in range(1, 81))
flat = lambda params: np.concatenate([w.ravel() for w in params.values()])
size = lambda w: np.sqrt((w**2).mean())                          # root mean square
print(f"the rates add up to {total:.1f} peaks; a weight is {size(flat(before.params[0])):.2f} before\n\npeak     can go   has gone        farthest weight")
gone, farthest = {}, {}
for lr in RATES:
    ways = [flat(b) - flat(a) for a, b in zip(before.params, results[f"lr {lr:g}"].params)]
    gone[lr], farthest[lr] = np.mean([size(way) for way in ways]), max(np.abs(way).max() for way in ways)
    print(f"{lr:<7g} {lr * total:7.4f} {gone[lr]:8.4f} ({gone[lr] / (lr * total):3.0%}) {farthest[lr]:10.4f} ({farthest[lr] / (lr * total):4.0%})")

# %%
claim("no weight goes farther than its rates add up to, and a quarter more", all(farthest[lr] < 1.25 * lr * total for lr in RATES))
claim("each higher rate goes farther", (np.diff(list(gone.values())) > 0).all())
record(third_way=100 * gone[1e-3] / gone[3e-3], third_price=100 * np.mean(forgets("lr 0.001") / forgets("lr 0.003")))
record(straight=100 * gone[1e-4] / (1e-4 * total), crooked=100 * gone[3e-2] / (3e-2 * total))

# %% [markdown] lang="en"
# At 0.0001 the weights go {{straight:.0f}} % of what they could, nearly straight; at 0.03 only {{crooked:.0f}} %, since they arrive, and turn. (A single weight can go a little farther than the sum: where the gradient grows, $m/\sqrt v$ is more than 1.) To go less far there is a lower rate, fewer steps, or a way back.

# %% [markdown] lang="en"
# ## 4 · The picture: gain against forgetting
#
# Two more ideas join the learning rate. **Replay**: one token in ten comes from the old text. **From scratch**: the same 80 steps on the new text without the old model, at the best of three rates.

# %%
REPLAY = {"sums": 0.9} | {name: 0.1 * share for name, share in PART.items()}
arms = {f"replay, lr {lr:g}": tune(lr, REPLAY) for lr in RATES}
arms |= {f"scratch, lr {lr:g}": {"mix": {"sums": 1.0}, "steps": 80, "lr": lr, "warmup_steps": 8} for lr in (1e-2, 3e-2, 1e-1)}
results |= lab.run(arms, seeds=SEEDS, evaluations=1)
scratch = min((new(results[f"scratch, lr {lr:g}"]) for lr in (1e-2, 3e-2, 1e-1)), key=np.mean)


def frontier(axis, names, colour, label, below=False):
    """A point for each arm, with the band of its seeds both ways."""
    x, y = (np.array([f(results[name]) for name in names]) for f in (new, old))
    axis.plot(x.mean(1), y.mean(1), "o-", color=colour, markersize=5, label=label)
    axis.hlines(y.mean(1), x.min(1), x.max(1), color=colour, linewidth=3, alpha=0.35)
    axis.vlines(x.mean(1), y.min(1), y.max(1), color=colour, linewidth=3, alpha=0.35)
    for lr, at_x, at_y in list(zip(RATES, x.mean(1), y.mean(1)))[2 if below else 0:]:  # the lowest two stand at the same places
        axis.annotate(f"{lr:g}", (at_x, at_y), textcoords="offset points", xytext=(5, -13) if below else (7, 4), fontsize=8.5, color=colour)

# %%
fig, axis = plt.subplots(figsize=(7.2, 4.4))
frontier(axis, [f"lr {lr:g}" for lr in RATES], lab.COLOURS[1], "new text only")
frontier(axis, [f"replay, lr {lr:g}" for lr in RATES], lab.COLOURS[0], "10 % of the old text mixed in", True)
axis.axvspan(scratch.min(), scratch.max(), color="#999999", alpha=0.25, linewidth=0)
axis.text(scratch.max() * 1.03, 6.7, "new text from scratch", color="#555555", fontsize=9)
axis.axhline(old(before).mean(), color="black", linewidth=1, linestyle="--")
axis.text(0.27, old(before).mean() * 1.05, "before: nothing forgotten", fontsize=9)
axis.set(xscale="log", yscale="log", xlim=(0.26, 8), ylim=(0.24, 12))
axis.set(xlabel="excess on the new text (nats/token): left is better", ylabel="excess on the old text (nats/token): lower is better")
axis.set_xticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
axis.set_yticks([0.3, 0.5, 1, 2, 5, 10], ["0.3", "0.5", "1", "2", "5", "10"])
axis.minorticks_off()
axis.set_title("Learning rates move along a line; replay moves the line")
axis.legend(loc="upper right")
plt.show()

# %% [markdown] lang="en"
# **Remember this picture.** Without old text a learning rate buys one thing with the other. With one token in ten, the run at 0.01 is at {{replay_new:.2f}} on the new text instead of {{plain_new:.2f}}, and at {{replay_old:.2f}} on the old one instead of {{plain_old:.1f}}. And the old model was worth something: from scratch, the new text ends at {{scratch:.2f}}.

# %%
plain, replay = results["lr 0.01"], results["replay, lr 0.01"]
record(replay_new=new(replay).mean(), plain_new=new(plain).mean(), replay_old=old(replay).mean(), plain_old=old(plain).mean(), scratch=scratch.mean())
rising = lambda f, rates: (np.diff([f(f"lr {lr:g}") for lr in rates], axis=0) > 0).all()
claim("a higher rate forgets more, at every seed", rising(forgets, RATES), fast=False)
claim("and gains more, up to 0.01, at every seed", rising(gain, RATES[:5]), fast=False)
claim("at 0.01, replay forgets less than a fifth, at every seed", (forgets("replay, lr 0.01") < 0.2 * forgets("lr 0.01")).all(), fast=False)
claim("and costs less than 0.1 on the new text, at every seed", (new(replay) < new(plain) + 0.1).all(), fast=False)
claim("from scratch is worse on the new text than 0.01 from the old model", scratch.min() > new(plain).max() + 0.03, fast=False)

# %% [markdown] lang="en"
# ### Your turn: choose a learning rate
#
# Somebody says how much may be forgotten. Let $G_s(\eta)$ and $F_s(\eta)$ be gain and forgetting of seed $s$. The gain counts by its mean; the limit must be kept by the worst seed, since you will train once:
#
# $$\eta^* = \arg\max_{\eta}\; \operatorname{mean}_s G_s(\eta) \quad\text{among the rates with}\quad \max_s F_s(\eta) \le \text{limit} \tag{14.5}$$
#
# By hand, two rates with gains (3, 5) and (6, 8) and forgetting (0.2, 0.3) and (0.1, 0.9): at a limit of 0.5 it is the first, although the second forgets 0.5 on average; at 0.9 the second; at 0.1 none.

# %%
from lessons.checks.pretrained import choose_lr  # exercise

# %%
check("14.choose_lr", choose_lr)

# %%
LIMITS = np.array([0.01, 0.1, 0.5, 1.0, 10.0])
for kind in ("", "replay, "):
    table = lambda f, kind=kind: np.array([f(f"{kind}lr {lr:g}") for lr in RATES])
    try:
        chosen = choose_lr(np.array(RATES), table(gain), table(forgets), LIMITS)
        print(f"{kind or 'new text only, '}limit and rate:", ", ".join(f"{limit:g}: {lr:g}" for limit, lr in zip(LIMITS, chosen)))
    except NotImplementedError:
        print("choose_lr is not written yet")

# %%
allowed = lambda kind: [new(results[f"{kind}lr {lr:g}"]).mean() for lr in RATES if forgets(f"{kind}lr {lr:g}").max() <= 0.5]
best_plain, best_replay = (min(allowed(kind), default=np.nan) for kind in ("", "replay, "))
record(best_plain=best_plain, best_replay=best_replay)
claim("who may forget half a nat leaves a third as much unlearned, or less, with replay", best_replay < best_plain / 3, fast=False)

# %% [markdown] lang="en"
# With a limit of half a nat, the best rate without old text leaves {{best_plain:.1f}} nats of the new text to learn; with a tenth of old text, {{best_replay:.2f}}.

# %% [markdown] lang="en"
# ## 5 · Why does so little old text do so much?
#
# By hand, two weights. The old text needs $a = 0$, and does not care for $b$: $L_{\text{old}} = a^2$. The new text needs $a + b = 1$, in any way: $L_{\text{new}} = (a + b - 1)^2$. From $(0, 0)$ the gradient of the new loss is the same for both, so both weights go to $\frac12$: the new text is solved, and the old loss is $\frac14$. With a share $\rho$ of old text,
#
# $$\nabla\bigl[(1-\rho)L_{\text{new}} + \rho L_{\text{old}}\bigr] = (1-\rho)\,2(a+b-1)\binom{1}{1} + \rho\, 2a\binom{1}{0} \tag{14.6}$$
#
# It is zero only where both parts are: $a = 0$ and $b = 1$. **Both** losses are zero, for *any* $\rho > 0$. The new text leaves much open; a little old text decides what. Where the texts truly want different things, $\rho$ is a compromise; here each text can be told from its first words.

# %%
for rho in (0.0, 0.01, 0.1):
    a = b = 0.0
    for _ in range(20_000):
        pull = (1 - rho) * 2 * (a + b - 1)
        a, b = a - 0.1 * (pull + rho * 2 * a), b - 0.1 * pull
    print(f"share of old text {rho:<5g} a = {a:.3f}, b = {b:.3f}: new loss {(a + b - 1)**2:.3f}, old loss {a * a:.3f}")
claim("any share of old text leads to both", abs(a) + abs(b - 1) < 1e-6)

# %% [markdown] lang="en"
# ## 6 · Walk half the way back
#
# What if the run is over, and it has forgotten too much? Section 2 has walked along the straight line. So a model can be *mixed* after training, without a further step:
#
# $$\theta_\alpha = \theta^* + \alpha\,(\theta_{\text{tuned}} - \theta^*) = (1-\alpha)\,\theta^* + \alpha\,\theta_{\text{tuned}} \tag{14.7}$$
#
# This is what WiSE-FT does (Wortsman et al. 2022). Is it better than a lower learning rate? Here are the straight lines of two runs, beside the points of section 4.

# %%
steps_back = np.array([0.25, 0.5, 0.75, 1.0])
lines = {"lr 0.003": path[[4, 5, 6, 7]], "lr 0.01": walk("lr 0.01", steps_back)}
fig, axis = plt.subplots(figsize=(7.2, 3.8))
frontier(axis, [f"lr {lr:g}" for lr in RATES], lab.COLOURS[1], "learning rates")
for (name, line), colour in zip(lines.items(), (lab.COLOURS[2], lab.COLOURS[3])):
    mean = line.mean(1)
    axis.plot(*mean.T, "s--", color=colour, markersize=4, linewidth=1.3, label=f"back from {name[3:]}: α = 1, ¾, ½, ¼")
axis.axhline(old(before).mean(), color="black", linewidth=1, linestyle="--")
axis.set(xscale="log", yscale="log", xlim=(0.26, 8), ylim=(0.24, 12))
axis.set(xlabel="excess on the new text (nats/token)", ylabel="excess on the old text (nats/token)")
axis.set_xticks([0.3, 0.5, 1, 2, 5], ["0.3", "0.5", "1", "2", "5"])
axis.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
axis.minorticks_off()
axis.set_title("A part of the way back: from 0.003 it pays, from 0.01 it does not")
axis.legend(loc="upper right")
plt.show()

# %%
def by_rate(seed, reached):
    """Forgetting of the learning rates at the same excess on the new text, between the points of one seed."""
    x, y = (np.log([f(results[f"lr {lr:g}"])[seed] for lr in RATES]) for f in (new, old))
    order = np.argsort(x)
    return np.exp(np.interp(np.log(reached), x[order], y[order])) - old(before)[seed]

# %%
reached, price = path[6, :, 0], path[6, :, 1] - path[1, :, 1]    # α = ¾ of the run at 0.003
other = np.array([by_rate(seed, reached[seed]) for seed in range(SEEDS)])
far = lines["lr 0.01"][1]                                        # α = ½ of the run at 0.01
far_price, far_other = far[:, 1] - path[1, :, 1], np.array([by_rate(seed, far[seed, 0]) for seed in range(SEEDS)])
record(mixed_price=price.mean(), rate_price=other.mean(), mixed_new=reached.mean(), far_price=far_price.mean(), far_other=far_other.mean())
claim("¾ of the run at 0.003 forgets less than a rate that learns as much, at every seed", (price < 0.9 * other).all(), fast=False)
claim("half of the run at 0.01 forgets no less than such a rate, in the mean", far_price.mean() > 0.95 * far_other.mean(), fast=False)

# %% [markdown] lang="en"
# Three quarters of the run at 0.003 reach {{mixed_new:.2f}} on the new text and forget {{mixed_price:.1f}}; a lower rate that learns as much forgets {{rate_price:.1f}}, read between the points. Half of the run at 0.01 forgets {{far_price:.1f}}, and such a rate {{far_other:.1f}}: from so far, nothing is won. It costs no training to try: keep the old weights, and choose $\alpha$ on held-out text. Replay is better by far, but needs the old text.

# %% [markdown] lang="en"
# ## 7 · Optimiser state, warm-up, schedule
#
# AdamW's running means can be set to zero, or be carried over from the old run; a warm-up can be made or not; the rate can fall or stay. What does each change? **Fresh**, the first step is $\pm\eta$ in every weight (9.4). **Carried**, with the old $m_0, v_0$, and a new gradient $g$ that is far larger than what they have seen:
#
# $$\frac{\beta_1 m_0 + (1-\beta_1)\,g}{\sqrt{\beta_2 v_0 + (1-\beta_2)\,g^2}} \;\to\; \frac{1-\beta_1}{\sqrt{1-\beta_2}}\,\operatorname{sign} g = \frac{0.1}{\sqrt{0.05}}\operatorname{sign} g = 0.45\,\operatorname{sign} g \tag{14.8}$$
#
# After $k$ such steps it is $(1-0.9^k)/\sqrt{1-0.95^k}$: 0.61, 0.72, 0.80, and 1.03 at the tenth. Carried moments are a warm-up of ten steps, no more. If $g$ is *small* against $v_0$, the step is shorter still.

# %%
for g in (100.0, 0.1):
    for name, m, v, step in (("fresh", 0.0, 0.0, 0), ("carried", 0.0, 1.0, 300)):
        param, m, v, sizes = np.zeros(1), np.full(1, m), np.full(1, v), []
        for t in range(step + 1, step + 11):
            last = param.copy()
            optim.adamw_step(param, np.array([g]), m, v, t, lr=1.0, weight_decay=0.0)
            sizes.append(float(abs(param - last)[0]))
        print(f"gradient {g:>5} times the old: {name:<8}", np.round(sizes[:4], 2), "... tenth:", round(sizes[-1], 2))
k = np.arange(1, 11)
print("(14.8) after k steps:", np.round((1 - 0.9**k) / np.sqrt(1 - 0.95**k), 2))

# %%
HOW = {"fresh, warm-up": {}, "fresh, no warm-up": {"warmup_steps": 1}, "carried, warm-up": {"moments": "carried"},
       "carried, no warm-up": {"moments": "carried", "warmup_steps": 1}}
FLAT, SOME = "constant, same sum", (3e-3, 1e-2, 3e-2)
arms = {f"{how}, lr {lr:g}": tune(lr, **more) for how, more in HOW.items() for lr in SOME}
arms |= {f"{FLAT}, lr {lr:g}": tune(round(lr * total / (4.5 + 72), 6), patch=museum.schedule_patch("constant")) for lr in SOME}
ways = lab.run(arms, seeds=SEEDS, evaluations=1)

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.3), sharey=True)
for axis, f, title in zip(axes, (new, old), ("new text", "old text")):
    for row, how in enumerate((*HOW, FLAT)):
        for lr, colour in zip(SOME, lab.COLOURS):
            found = f(ways[f"{how}, lr {lr:g}"])
            axis.plot(found, [row] * len(found), "o", color=colour, alpha=0.6, markersize=5, markeredgewidth=0, label=f"lr {lr:g}" if not row else None)
            axis.plot([found.mean()] * 2, [row - 0.25, row + 0.25], color=colour)
    axis.set(xlabel="excess (nats/token)", title=title, xlim=(0, None), yticks=range(5), yticklabels=(*HOW, FLAT), ylim=(4.6, -0.6))
    axis.grid(axis="y", visible=False)
axes[0].legend(loc="lower left")
fig.suptitle("Rows: optimiser state and schedule. Colours: peak of the learning rate. Which matters?", x=0.01, ha="left", fontsize=11)
plt.show()

# %%
at = lambda f, how, lr: f(ways[f"{how}, lr {lr:g}"])
forgotten = lambda result: old(result) - old(before)
apart = max(np.ptp([at(new, how, lr).mean() for how in HOW]) for lr in SOME)
saved = {lr: at(old, "fresh, warm-up", lr).mean() - at(old, "carried, warm-up", lr).mean() for lr in SOME}
rate_step = at(old, "fresh, warm-up", 1e-2).mean() - at(old, "fresh, warm-up", 3e-3).mean()
flat_price = [at(forgotten, FLAT, lr).mean() / at(forgotten, "fresh, warm-up", lr).mean() for lr in SOME]
flat_new, fall_new = at(new, FLAT, 3e-2).mean(), at(new, "fresh, warm-up", 3e-2).mean()
record(flat_low=100 * min(flat_price), flat_high=100 * max(flat_price), flat_new=flat_new, fall_new=fall_new)
record(apart=apart, saved_mid=saved[1e-2], saved_high=saved[3e-2], rate_step=rate_step)
claim("on the new text the four ways are less than 0.04 apart, in the mean", apart < 0.04, fast=False)
claim("on the old text carried moments save something, in the mean, at every rate", min(saved.values()) > 0.05, fast=False)
claim("but less than a third of what one step of the learning rate costs", max(saved.values()) < rate_step / 3, fast=False)
claim("a constant rate with the same sum forgets as much, to a sixth", all(abs(share - 1) < 1 / 6 for share in flat_price), fast=False)
claim("but at the highest peak it ends worse on the new text", flat_new > fall_new + 0.03, fast=False)

# %% [markdown] lang="en"
# On the new text nothing is decided: the means of the four ways lie within {{apart:.2f}} of each other, inside the bands. On the old text carried moments forget a little less, {{saved_mid:.1f}} of a nat at 0.01. Going from 0.003 to 0.01 costs {{rate_step:.1f}}.
#
# And the schedule? A constant rate whose sum (14.4) is the same forgets {{flat_low:.0f}} to {{flat_high:.0f}} % as much: **the sum decides what is forgotten**. What the decay is for (lesson 11) is the end: at the highest peak, the new text ends at {{flat_new:.2f}} without it and at {{fall_new:.2f}} with it. So: first the rate, then a decay; carry the moments if you have them.

# %% [markdown] lang="en"
# In the literature "re-warming" means to raise the rate again after it had decayed to its end, instead of going on with that small rate. That is the *horizontal axis* of the picture: the old run ended at 0.001, and going up again to 0.01 learns more and forgets more. Gupta et al. 2023 see the loss on both texts rise first, and the new one gain in the end. Ibrahim et al. 2024 put re-warming, decaying again and replay together and come close to training on everything from scratch.

# %% [markdown] lang="en"
# ## 8 · With the command line
#
# These lines do it with a real run. Nothing here is run by the notebook.
#
# ```
# python -m minillama train --from lessons/run/model --data new.txt --lr 3e-4 --steps 100 --warmup-steps 10 --out runs/tuned
# python -m minillama train --from lessons/run/model --data new.txt=0.9 --data old.txt=0.1 --lr 1e-3 --steps 100 --warmup-steps 10 --out runs/replayed
# python -m minillama train --from runs/nano --keep-optimizer --data new.txt --lr 1e-3 --steps 100 --warmup-steps 10 --out runs/carried
# python -m minillama eval runs/tuned --matrix runs/replayed runs/carried
# python -m minillama eval runs/tuned --tasks
# ```
#
# `--from` takes a run or a model; `--keep-optimizer` needs a run, since a model has no moments.

# %% [markdown] lang="en"
# ## 9 · What can it do? Tasks
#
# A loss says how well a model predicts all tokens. A **task** asks for some of them: a question with one right answer, which greedy decoding must give exactly. Here are eight, one example of each.

# %%
for name in tasks.TASKS:
    trial, _ = tasks.draw(name, 1, 0, 0)
    print(f"{name:<9} {''.join(b.prompt + (b.answer and f'[{b.answer}]') for b in trial)}")

# %% [markdown] lang="en"
# Two numbers belong to every score. **Chance**: what a guesser gets who knows the form of the answer. Three names out of eight each: $8^{-3} = 0.2$ %. And the **interval**: which true rates $p$ could have given the measured share $a$ of $n$ trials? A count of $n$ spreads by $\sqrt{p(1-p)/n}$; allow $z = 1.96$ of that, and solve $(a - p)^2 = z^2\,p(1-p)/n$ for $p$:
#
# $$p = \frac{a + \frac{z^2}{2n} \pm z\sqrt{\frac{a(1-a)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}} \tag{14.9}$$
#
# By hand, 0 of 200: $p^2 = z^2 p(1-p)/n$, so $p = 0$ or $p = \frac{z^2}{n + z^2} = \frac{3.84}{203.84} = 1.9$ %. Zero right does not mean that it is impossible.

# %%
print("0 of 200:", tasks.wilson(0, 200), "  150 of 200:", np.round(tasks.wilson(150, 200), 3))
for right in (0, 7, 150, 200):
    for p in tasks.wilson(right, 200):
        assert abs((right / 200 - p) ** 2 - 1.96**2 * p * (1 - p) / 200) < 1e-12
print("both ends solve the equation")

# %%
from minillama.report.score import format_tasks, right_answers

engine, bpe = real_run.model()
TRIALS = 20 if FAST else 400


def ask(name):
    """The task's trials, and which of them the model gets right."""
    shots = tasks.TASKS[name].shots
    drawn = [tasks.draw(name, 0, index, shots) for index in range(TRIALS)]
    right = right_answers(engine, [tasks.encode(trial, shown, bpe) for trial, shown in drawn])
    return [trial for trial, _ in drawn], right


asked = {name: ask(name) for name in tasks.TASKS}
scored = {name: tasks.summarise(right, trials, tasks.TASKS[name].shots) for name, (trials, right) in asked.items()}
print(format_tasks({"seed": 0, "tasks": scored}))

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.3))
for row, s in enumerate(scored.values()):
    axis.plot([100 * s["low"], 100 * s["high"]], [row, row], color=lab.COLOURS[0], linewidth=5, alpha=0.35, solid_capstyle="butt")
    axis.plot(100 * s["accuracy"], row, "o", color=lab.COLOURS[0], markersize=6, label="the model, 95 % interval" if not row else None)
    axis.plot(100 * s["chance"], row, "|", color=lab.COLOURS[1], markersize=14, markeredgewidth=2.5, label="chance" if not row else None)
axis.set(yticks=range(len(scored)), yticklabels=scored, ylim=(len(scored) - 0.5, -0.5), xlim=(-3, 103), xlabel="exact match (%)")
axis.set_title("It adds three digits, and not four; who has what, better than a coin")
axis.grid(axis="y", visible=False)
axis.legend(loc="upper center", bbox_to_anchor=(0.62, 0.98))
plt.show()

# %% [markdown] lang="en"
# What can be read from it? Sums of two and three digits are learned; the text had no sum of four, and the model cannot add one column more. In closing brackets it is **below chance**. (In copying, 0 of 400 cannot be told from the guesser's 0.2 %.) How can that be? Look at what it writes.

# %%
from minillama.generate import Sampling, generate

for name in ("copy", "brackets"):
    trial, shown = tasks.draw(name, 0, 0, tasks.TASKS[name].shots)
    ids = [bpe.bos_id, *bpe.encode(shown + trial[0].prompt)]
    written = bpe.decode([*ids[1:], *generate(engine, ids, 20, bpe.eos_id, Sampling(temperature=0))])[len(shown + trial[0].prompt):]
    print(f"{(shown + trial[0].prompt)[-50:]}\n    wanted:{trial[0].answer}    written: {written}\n")

# %% [markdown] lang="en"
# It goes on in the texts that it knows. Five examples do not teach it the form of the answer, and a guesser knows that form. The score says nothing of what a few steps of training could teach.
#
# And `stories`, well above a coin? Look for a *simpler rule* first: name the one who had the thing at the beginning.

# %%
trials, right = asked["stories"]
groups, ruled = {"nobody gave anything": [], "the other thing was given": [], "this thing was given": []}, []
for (blank,), is_right in zip(trials, right):
    thing = re.search(r"Now the (\w+) is with$", blank.prompt)[1]
    owner = re.search(rf"(\w+) had an? (?:\w+ )?{thing}\.", blank.prompt)[1]
    given = re.findall(r" gave \w+ the (\w+)", blank.prompt)
    groups[list(groups)[(2 if thing in given else 1) if given else 0]].append(is_right)
    ruled.append(blank.answer == f" {owner}.")
rule, share = np.mean(ruled), {name: np.mean(found) if found else np.nan for name, found in groups.items()}
print(f"the rule 'first owner' {rule:.1%}, the model {np.mean(right):.1%}")
for name, found in groups.items():
    print(f"{name:<27}{len(found):4} stories, the model is right in {share[name]:.1%}")

# %%
none, other, moved = share.values()
record(rule=100 * rule, model=100 * np.mean(right), none=100 * none, other=100 * other, moved=100 * moved)
claim("stories: the interval is above a coin", scored["stories"]["low"] > 0.55, fast=False)
claim("but the model is not ten points above the simpler rule", np.mean(right) < rule + 0.1, fast=False)
claim("where something was given it is nearly always right, else hardly more often than a coin", min(other, moved) > 0.85 and none < 0.7, fast=False)
claim("three digits yes, four no", scored["sums-3"]["low"] > 0.9 and scored["sums-4"]["high"] < 0.05, fast=False)
claim("copy, reverse, brackets: under 2 %", all(scored[name]["high"] < 0.02 for name in ("copy", "reverse", "brackets")), fast=False)
claim("brackets: below chance", scored["brackets"]["high"] < scored["brackets"]["chance"], fast=False)

# %% [markdown] lang="en"
# The rule gets {{rule:.0f}} %, the model {{model:.0f}} %: what looks good beside a coin is nothing beside a rule. But the model does not use that rule. Where something was *given* it is right in {{other:.0f}} and {{moved:.0f}} %; where nothing was, so that the rule is always right, in {{none:.0f}} %. It follows gifts, and has not learned who had what. **One number hides this; three groups show it.**

# %% [markdown] lang="en"
# LLaMA §3 asks in the same manner. These are its kinds of tasks:
#
# | § | task | how it is asked | chance | 65B |
# |---|---|---|---|---|
# | 3.1 | BoolQ, yes or no | which answer is likelier, no example | 50 % | 85.3 |
# | 3.1 | HellaSwag, which ending | likeliest of 4, no example | 25 % | 84.2 |
# | 3.1 | WinoGrande, who is meant | likelier of 2, no example | 50 % | 77.0 |
# | 3.2 | TriviaQA, closed book | greedy, exact match, no example (up to 64 help) | about 0 | 68.2 |
# | 3.3 | RACE-high, reading | likeliest of 4, no example | 25 % | 51.6 |
# | 3.4 | GSM8k, school mathematics | greedy, the number must be right | about 0 | 50.9 |
# | 3.5 | HumanEval, programs | the program must pass its tests | about 0 | 23.7 |
# | 3.6 | MMLU, 57 subjects | likeliest of 4, five examples | 25 % | 63.4 |
# | 4 | MMLU after instruction tuning | the same, LLaMA-I | 25 % | 68.9 |
#
# Read the chance first: 52 on RACE and 51 on GSM8k are not the same feat.

# %% [markdown] lang="en"
# ## 10 · Instruction text: the mask is the targets
#
# Section 4 of the paper fine-tunes on instructions. The text is a prompt and an answer, and only the **answer** is learned. Nothing new is needed: the loss leaves out targets of $-1$. Let a row be $w_0 \dots w_{n-1}$, of which the first $P$ are the prompt and the last is `</s>`:
#
# $$\text{tokens}_t = w_t,\qquad \text{targets}_t = \begin{cases} w_{t+1} & P \le t+1 \le n-1\\ -1 & \text{else: prompt, padding}\end{cases} \tag{14.10}$$
#
# By hand, prompt `<s> 2 + 3 =`, answer `5`: tokens `<s> 2 + 3 =` and `5`; targets `-1 -1 -1 -1` and then `5`, at the place of `=`, and `</s>`, at the place of `5`. The prompt's last place already asks for the answer.

# %%
prompt, answer = (bpe.encode(part) for part in ("Mia counts owls in the barn and the park on day 417: 8+4=", "12. So Mia has 12."))
row = np.array([bpe.bos_id, *prompt, *answer, bpe.eos_id])
P, tokens, targets = 1 + len(prompt), row[:-1], row[1:].copy()
targets[:P - 1] = nn.IGNORE                                      # -1
loss, cache = nn.cross_entropy_forward(engine.logits(tokens[None]), targets[None])
pulled = np.abs(nn.cross_entropy_backward(1.0, cache)[0]).max(-1) > 0  # which places get a gradient
pieces = [bpe.pieces[i][0] for i in targets[P - 1:]]
print(f"{len(pieces)} of {len(targets)} places are scored:", " ".join(pieces))
claim("the places of the prompt get no gradient, the others do", not pulled[:P - 1].any() and pulled[P - 1:].all())

# %% [markdown] lang="en"
# ### Your turn: a batch of instruction text
#
# Rows of different lengths, padded behind. A model whose padding token *was* `</s>`, and which masked all of it, never learned to stop ([trl#976](https://github.com/huggingface/trl/issues/976)).

# %%
from lessons.checks.pretrained import masked_targets  # exercise

# %%
check("14.masked_targets", masked_targets)

# %% [markdown] lang="en"
# ## 11 · A low-rank adapter
#
# Another way to go less far: freeze $W$, and train a product of two thin matrices beside it, $A$ of shape $(r, D)$ and $B$ of shape $(N, r)$. This is LoRA (Hu et al. 2021). For each token $x$:
#
# $$y = W x + s\,B\,(A x),\qquad s = \frac{\alpha}{r} \tag{14.11}$$
#
# (This $\alpha$ is a setting of LoRA's, not the part of a way.) $A$ starts random and $B$ at **zero**, so at first nothing changes. By hand, $D = N = 4096$ and $r = 8$: $2 \cdot 8 \cdot 4096 = 65{,}536$ numbers are trained in place of 16.8 million, 1 in 256; AdamW keeps moments for these alone.

# %% [markdown] lang="en"
# Now the gradients. Let $h = Ax$, and let $dy$ be given. $x$ goes into $y$ twice, through $W$ and through $A$, and gradients of two paths add:
#
# $$dh = s\,B^{\top} dy,\qquad dx = W^{\top} dy + A^{\top} dh \tag{14.12}$$
#
# $A$ and $B$ are linear layers: for each, the outer product of what comes from behind and what came in, added over all tokens:
#
# $$dA = \sum_{\text{tokens}} dh\;x^{\top},\qquad dB = s\sum_{\text{tokens}} dy\;h^{\top} \tag{14.13}$$
#
# With $B = 0$, $dh$ is zero and so is $dA$; $dB$ is not. The first step moves $B$ alone. Had both started at zero, nothing would ever move.

# %%
rng = np.random.default_rng(0)
W, A, B, X, dY = (rng.standard_normal(shape) for shape in ((4, 5), (2, 5), (4, 2), (3, 5), (3, 4)))
s = 1.5
value = lambda: float((dY * (X @ W.T + s * X @ A.T @ B.T)).sum())  # its gradients are those for dy = dY
dW = dY.T @ X                                                    # dM, of the whole matrix M = W + s B A: another way to them
dX = dY @ W + s * dY @ B @ A
for name, found, array in (("(14.12) dx", dX, X), ("(14.13) dA = s Bᵀ dM", s * B.T @ dW, A), ("(14.13) dB = s dM Aᵀ", s * dW @ A.T, B)):
    print(f"{name:<22} is off by {np.abs(found - numerical_gradient(value, array)).max():.0e}")
by_token = sum(np.outer(s * B.T @ dy, x) for dy, x in zip(dY, X))  # dh xᵀ, added
claim("the sum over the tokens is the same", np.abs(by_token - s * B.T @ dW).max() < 1e-12)

# %% [markdown] lang="en"
# After training the adapter can be **merged**, and costs nothing any more:
#
# $$y = (W + s\,B A)\,x = M x \tag{14.14}$$
#
# Adapters have been merged without their scale ([FastVideo#870](https://github.com/hao-ai-lab/FastVideo/pull/870)), and trained with $\alpha$ in place of $\alpha/r$ ([mlx-vlm#841](https://github.com/Blaizzy/mlx-vlm/issues/841)). In [peft#2489](https://github.com/huggingface/peft/pull/2489) the tests could not see a forgotten scale: they had $\alpha = r$, so $s = 1$.
#
# ### Your turn: the adapter, forward and merged

# %%
from lessons.checks.pretrained import lora_forward  # exercise

# %%
check("14.lora_forward", lora_forward)

# %% [markdown] lang="en"
# ### Your turn: its backward

# %%
from lessons.checks.pretrained import lora_backward  # exercise

# %%
check("14.lora_backward", lora_backward)

# %% [markdown] lang="en"
# And against finite differences, as the project's own ops are:

# %%
forward = lambda x, a, b: (lora_forward(x, W, a, b, 3.0)[0], (x, a, b))
backward = lambda dout, kept: lora_backward(dout, kept[0], W, *kept[1:], 3.0)
try:
    print(gradcheck(forward, backward, {"x": X[None], "a": A, "b": B}))
    print("at B = 0: the largest of |dA| is", np.abs(backward(dY[None], (X[None], A, 0 * B))[1]).max())
except NotImplementedError:
    print("the adapter is not written yet")

# %% [markdown] lang="en"
# Is the change $\Delta$ that a whole training makes of low rank? Take the run at 0.01, keep of every matrix's change the $r$ largest singular values, and score what is left.

# %%
def low_rank(delta, r):
    """The closest matrix of rank r."""
    if delta.ndim < 2:
        return delta
    u, sizes, v = np.linalg.svd(delta, full_matrices=False)
    return (u[:, :r] * sizes[:r]) @ v[:r]


RANKS = (1, 2, 4, 8, 16, 32)
pairs = list(zip(before.params, results["lr 0.01"].params))
kept = np.array([[scores({key: (a[key] + low_rank(b[key] - a[key], r)).astype(np.float32) for key in a}) for a, b in pairs] for r in RANKS])
print("rank of 32   new text   old text")
for r, (on_new, on_old) in zip(RANKS, kept.mean(1)):
    print(f"{r:10} {on_new:10.3f} {on_old:10.3f}")

# %%
share = lambda k, r: 100 * np.mean((kept[RANKS.index(r), :, k] - path[1, :, k]) / (kept[-1, :, k] - path[1, :, k]))
record(one_gain=share(0, 1), one_price=share(1, 1), eight_gain=share(0, 8), eight_price=share(1, 8))
claim("rank 1 has more than half of the gain, in the mean", share(0, 1) > 50, fast=False)
claim("every higher rank learns more and forgets more, in the mean", (np.diff(kept.mean(1)[:, 0]) < 0).all() and (np.diff(kept.mean(1)[:, 1]) > 0).all(), fast=False)

# %% [markdown] lang="en"
# Rank 1 of 32 has {{one_gain:.0f}} % of the gain and {{one_price:.0f}} % of the forgetting, rank 8 has {{eight_gain:.0f}} % and {{eight_price:.0f}} %. A rank is one more way to go less far: **it learns less and forgets less**, as Biderman et al. 2024 (arXiv:2405.09673) found with trained adapters. Here a finished change was cut down; an adapter that is trained finds its own.

# %% [markdown] lang="en"
# **What does not show at this scale.** The new text shares little with the old one, and the old one is learned in seconds. What a large model knows is wider, and a rate that forgets half of it here may forget little there. The limits of section 4 are no advice; the shape of the picture is. Warm-up and moments may matter more in runs whose old gradients and new ones are alike. Learning from examples in the prompt, on which a part of LLaMA §3 relies, does not show here at all.
#
# ## The anchor in the paper
#
# LLaMA §3 is the reading table above; §3.7 and figure 2 follow some of these scores during training. §4: very little instruction tuning takes the 65B model from 63.4 to 68.9 on MMLU. The paper names no learning rate for it. Appendix A has the details of the question answering: which text counts as an exact match.

# %% [markdown] lang="en"
# ## Three questions
#
# 1. You go a third of a way along a straight line. What is left of the forgetting, by (14.1)? And a run at 0.001 in place of 0.003 left {{third_price:.0f}} % of it. Why so much more?
# 2. Your tuned model forgot too much, and the old text is gone. What can you do without any further training? And with the old text?
# 3. A model gets 0 of 100 questions right; a guesser would get 3 %. Is it worse than guessing? What does this say about what it knows?
#
# <details><summary>Answers</summary>
#
# 1. A ninth. But a third of the rate is not a third of the way: higher rates turn more often, so the run at 0.001 goes {{third_way:.0f}} % as far as the one at 0.003 (section 3). Nor need both go in the same direction.
# 2. Go a part of the way back, (14.7), and choose α on held-out text of both kinds, if there is some; else a little towards the old weights. With the old text: train again with a tenth of it mixed in.
# 3. By (14.9) the true rate is at most $3.84/103.84 = 3.7$ %, so 3 % is not excluded; with 200 questions it would be. And a score below chance only says that it does not give the form of the answer.
#
# </details>
#
# **The way on:** [15 · The same math on the GPU](15_gpu.ipynb), to do this with a larger model; [16 · A scaling law](16_scaling.ipynb), how large it must be.
