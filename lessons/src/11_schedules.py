# %% [markdown] lang="en"
# # 11 · A museum of learning-rate schedules
#
# **Question.** Why does the learning rate go up first, and then down? And how do you notice that a schedule is wrong when the loss does not tell?
#
# After this lesson you can write LLaMA's schedule, say what its two halves are for, recognise nine wrong schedules by the array of their rates, and repair one.
#
# *Needs:* [02 · Gradients](02_gradients.ipynb); [09](09_adamw.ipynb) and [10](10_stability.ipynb) help. *Paper:* LLaMA §2.3; Loshchilov & Hutter 2017 (arXiv:1608.03983), Eq. 5. *Code:* [`minillama/optim/schedule.py`](../minillama/optim/schedule.py). *Time:* 30 minutes to read and solve, a minute or two to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import numpy as np

from lessons import FAST, check, claim, lab, museum, plt, record
from minillama.optim import learning_rate as right_rate

# %% [markdown] lang="en"
# ## 1 · Twelve steps by hand
#
# A run of 12 updates: 4 of *warm-up*, in which the rate rises, then 8 of *decay*, from a peak of 1 down to 0.1. In the warm-up, every step adds a quarter: 0.25, 0.5, 0.75, 1. After it, the rate follows half a turn of a cosine.
#
# Halfway through the decay, at step 8, the cosine is 0 and the rate lies midway between 1 and 0.1: it is 0.55. At step 6 a quarter of the decay is done, the angle is 45°, and the rate is $0.1 + 0.9\,(1 + 0.707)/2 = 0.868$. At step 12 the cosine is $-1$, and the rate is 0.1.

# %%
by_hand = {1: 0.25, 2: 0.5, 3: 0.75, 4: 1, 6: 0.868, 8: 0.55, 12: 0.1}
for step in range(1, 13):
    rate = right_rate(step, peak=1.0, steps=12, warmup_steps=4, final_fraction=0.1)
    note = f"by hand: {by_hand[step]}" if step in by_hand else ""
    print(f"step {step:2}  {rate:.3f}  {'#' * round(40 * rate):40}  {note}")

# %% [markdown] lang="en"
# ## 2 · The formula, line by line
#
# Let $t$ be the number of the update, counted from 1, $w$ the steps of warm-up and $N$ all steps. The rate $\eta_t$ of the warm-up is a straight line through zero:
#
# $$\eta_t = \eta_{\text{peak}}\;\frac{t}{w}\qquad t \le w \tag{11.1}$$
#
# After it, $p$ says which share of the decay is done: 0 at the end of the warm-up, 1 at the last step. It stays 1 if the run goes on:
#
# $$p = \min\Bigl(\frac{t - w}{N - w},\; 1\Bigr) \tag{11.2}$$

# %%
N, w = 12, 4
warm = [t / w for t in range(1, w + 1)]
print("(11.1):", warm, "  off by", max(abs(r - right_rate(t, 1.0, N, w)) for t, r in enumerate(warm, 1)))
p = lambda t: min((t - w) / (N - w), 1.0)
print("(11.2): p at steps 4, 8, 12 and 20:", [p(t) for t in (4, 8, 12, 20)])

# %% [markdown] lang="en"
# Now a curve that starts flat and ends flat. While $p$ goes from 0 to 1, $\cos \pi p$ goes from 1 to $-1$. Add 1, and it goes from 2 to 0. Take half:
#
# $$s(p) = \frac{1 + \cos \pi p}{2},\qquad s(0) = 1,\quad s(\tfrac12) = \tfrac12,\quad s(1) = 0 \tag{11.3}$$
#
# Its slope $-\frac{\pi}{2}\sin \pi p$ is zero at both ends: the decay begins and ends slowly, and is fastest midway. Last, $s$ is *stretched*, so that 1 becomes the peak and 0 becomes the final rate. That one is a share of the peak; LLaMA takes $\eta_{\text{final}} = 0.1\,\eta_{\text{peak}}$, and the code calls the share `final_fraction`:
#
# $$\eta_t = \eta_{\text{final}} + (\eta_{\text{peak}} - \eta_{\text{final}})\; s(p)\qquad t > w \tag{11.4}$$

# %%
s = lambda p: (1 + np.cos(np.pi * p)) / 2
slopes = [round(float(s(q + 1e-5) - s(q - 1e-5)) / 2e-5, 3) for q in (0, 0.5, 1)]
print("(11.3):", s(np.array([0, 0.5, 1])).round(12), "  slope at 0, 1/2 and 1:", slopes)
cosine = [0.1 + (1 - 0.1) * s(p(t)) for t in range(w + 1, N + 9)]
print("(11.4) is off by", max(abs(r - right_rate(t, 1.0, N, w)) for t, r in enumerate(cosine, w + 1)))

# %% [markdown] lang="en"
# ### Your turn: the schedule
#
# Write (11.1) to (11.4) for a whole *array* of steps. The check reads the array of rates. It trains nothing.

# %%
from lessons.checks.schedules import learning_rate  # exercise

# %%
check("11.learning_rate", learning_rate)

# %% [markdown] lang="en"
# A simpler way down is a straight line, which is also in use. On average over the decay, it has the same rate as the half cosine: the mean of peak and final.
#
# $$\eta_t = \eta_{\text{peak}} + (\eta_{\text{final}} - \eta_{\text{peak}})\; p\qquad t > w \tag{11.5}$$

# %%
fine = (np.arange(1000) + 0.5) / 1000
print("mean rate of the decay:  half cosine", (0.1 + 0.9 * s(fine)).mean().round(6),
      "  line", (1 + (0.1 - 1) * fine).mean().round(6))

# %% [markdown] lang="en"
# ### Your turn: warm-up and a straight line

# %%
from lessons.checks.schedules import linear_rate  # exercise

# %%
check("11.linear_rate", linear_rate)

# %% [markdown] lang="en"
# Move the sliders in a running notebook. The dashed line has LLaMA's final fraction, 0.1, for comparison. The dots are the numbers to read before any training.

# %%
import ipywidgets


def draw_schedule(peak=0.03, warmup_steps=20, final_fraction=0.1, steps=250):
    """The rates of a run and thirty steps more; the numbers to read: first, end of warm-up, midway, last, one later."""
    fig, axis = plt.subplots(figsize=(7.2, 2.9))
    step = np.arange(1, steps + 31)
    axis.plot(step, [right_rate(t, peak, steps, warmup_steps, 0.1) for t in step], "--", color="#999999", linewidth=1.2)
    axis.plot(step, [right_rate(t, peak, steps, warmup_steps, final_fraction) for t in step])
    for t in dict.fromkeys((1, max(warmup_steps, 1), (warmup_steps + steps) // 2, steps, steps + 1)):
        rate = right_rate(t, peak, steps, warmup_steps, final_fraction)
        axis.plot(t, rate, "o", color=lab.COLOURS[1], markersize=5)
        if t <= steps:
            side = {"ha": "right", "xytext": (-3, 9)} if t == steps else {"xytext": (6, 5)}
            axis.annotate(f"{t}: {rate:.4f}", (t, rate), textcoords="offset points", fontsize=9, **side)
    axis.axvspan(steps, steps + 30, color="#f2f2f2")
    axis.set(xlabel="update (grey: after the planned end)", ylabel="learning rate")
    axis.set(xlim=(-3, steps + 30), ylim=(0, 1.18 * peak))
    return axis


draw_schedule().set_title("Read it before you train: first, peak, midway, last, one later")
plt.show()


# %%
def show(peak, warmup_steps, final_fraction):
    draw_schedule(peak, warmup_steps, final_fraction)
    plt.show()


sliders = ipywidgets.interact(
    show, peak=ipywidgets.FloatSlider(0.03, min=0.005, max=0.1, step=0.005, readout_format=".3f"),
    warmup_steps=ipywidgets.IntSlider(20, 1, 200),
    final_fraction=ipywidgets.FloatSlider(0.1, min=0.0, max=1.0, step=0.05))

# %% [markdown] lang="en"
# ## 3 · Why down: noise
#
# A batch gives the true gradient plus noise. Take the simplest loss, $L = x^2/2$, whose gradient is $x$, and at every step new noise with mean 0 and variance $\sigma^2$. A step of plain gradient descent with a constant rate $\eta$ is $x' = (1 - \eta)\,x - \eta\,\text{noise}$. Variances of independent numbers add, so the variance $V$ of $x$ becomes $(1-\eta)^2 V + \eta^2\sigma^2$. It stops changing when
#
# $$V = (1-\eta)^2 V + \eta^2\sigma^2 \;\Longrightarrow\; V\,(2\eta - \eta^2) = \eta^2\sigma^2 \;\Longrightarrow\; V = \frac{\eta}{2 - \eta}\,\sigma^2 \tag{11.6}$$
#
# By hand: $\eta = 0.5$ gives $V = \frac{0.5}{1.5}\sigma^2 = 0.333\,\sigma^2$, and $\eta = 0.05$ only $0.026\,\sigma^2$. But the distance to the minimum is multiplied by $1-\eta$ at each step: it falls to a thousandth in 10 steps with $\eta = 0.5$, and in 135 with $\eta = 0.05$.

# %%
rng = np.random.default_rng(0)
for eta in (0.5, 0.05):
    x, noise = np.full(20_000, 3.0), rng.standard_normal((300, 20_000))
    for step in range(300):
        x = x - eta * (x + noise[step])
    print(f"eta {eta}: variance {x.var():.4f}, and (11.6) says {eta / (2 - eta):.4f};",
          f"to a thousandth in {np.log(1e-3) / np.log(1 - eta):.0f} steps")
    claim(f"(11.6) holds at eta {eta}, to 5 %", abs(x.var() * (2 - eta) / eta - 1) < 0.05)

# %% [markdown] lang="en"
# A large rate comes near the minimum fast and then moves around it; a small one stays near the minimum but needs long to get there. So: **first large, then small**. Now the tiny LLaMA, with the same three seeds for a constant large rate, a constant small one, and the schedule that goes from one to the other. We show the **excess**: the loss minus the text's entropy floor ([00](00_baselines.ipynb)).

# %%
PEAK, SEEDS = 0.03, 1 if FAST else 3  # FAST: the builders' short trial run
large = {"lr": PEAK, "patch": museum.schedule_patch("constant")}
arms = {"half cosine, 0.03 to 0.003": {"lr": PEAK},
        "constant 0.03": large, "constant 0.003": {**large, "lr": PEAK / 10}}
ways = lab.run(arms, seeds=SEEDS, steps=250, evaluations=5)
right = ways["half cosine, 0.03 to 0.003"]

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.5))
lab.plot_curves(axis, ways)
axis.set(yticks=[0.5, 1, 2, 4], yticklabels=["0.5", "1", "2", "4"])
axis.set_title("The decay pays in the second half of the run")
axis.minorticks_off()
axis.legend()
plt.show()

# %% [markdown] lang="en"
# After 100 steps, the constant large rate and the cosine are nearly equal: {{early_constant:.2f}} and {{early_right:.2f}}. At the end it is {{constant:.2f}} against {{right:.2f}}. The constant small rate ({{low:.2f}}) is still going down. **A comparison of schedules in the middle of a run does not say how they end.**

# %%
constant, low = ways["constant 0.03"], ways["constant 0.003"]
early_constant, early_right = (result.excess[:, 1].mean() for result in (constant, right))  # after 100 steps
record(early_constant=early_constant, early_right=early_right, constant=constant.mean, low=low.mean, right=right.mean)
claim("the cosine ends better than the constant peak, in every pair of seeds",
      right.final.max() + 0.08 < constant.final.min(), fast=False)
claim("after 100 steps less than 0.1 is between their means", abs(early_constant - early_right) < 0.1, fast=False)
claim("a tenth of the peak all the time is worse than both", low.final.min() > constant.final.max() + 0.08, fast=False)

# %% [markdown] lang="en"
# ## 4 · Why up: the first steps know nothing
#
# AdamW's first step moves *every* parameter by $\pm\eta$, whatever the size of its gradient $g$: $\hat m/\sqrt{\hat v} = g/|g|$ ([09](09_adamw.ipynb)). But only one batch has decided its direction, and only a few batches decide the next steps. A warm-up keeps these steps short.

# %%
arms = {"lr 0.03, no warm-up": {"lr": 0.03, "warmup_steps": 1},
        "lr 0.2, warm-up 20": {"lr": 0.2}, "lr 0.2, no warm-up": {"lr": 0.2, "warmup_steps": 1}}
starts = {"lr 0.03, warm-up 20": right} | lab.run(arms, seeds=SEEDS, steps=250, evaluations=1)
lab.table(starts)

# %%
start = lambda lr, name: starts[f"lr {lr:g}, {name}"]
cold, warmed = start(0.2, "no warm-up"), start(0.2, "warm-up 20")
cold_03, warmed_03 = start(0.03, "no warm-up"), start(0.03, "warm-up 20")
record(cold=cold.mean, warmed=warmed.mean, cold_03=cold_03.mean, warmed_03=warmed_03.mean)
claim("at 0.2 no warm-up is far worse, in every pair of seeds",
      cold.final.min() > warmed.final.max() + 0.8, fast=False)
claim("at 0.03 the bands of both touch", cold_03.final.min() <= warmed_03.final.max(), fast=False)

# %% [markdown] lang="en"
# At a peak of 0.2 the missing warm-up costs more than a nat: {{cold:.2f}} against {{warmed:.2f}}, and 250 steps are not enough to repair it. At 0.03 the same mistake is **invisible**: {{cold_03:.2f}} and {{warmed_03:.2f}}. Here, warm-up is what makes a high peak possible. [10 · Stability](10_stability.ipynb) draws that border.
#
# ## 5 · The museum
#
# Nine wrong schedules, all seen in real projects or in the settings of their users. All are told the same: 20 steps of warm-up, 250 steps, a peak of 0.03. minillama's own loop trains; one function in it is replaced. Guess first: which of them will the loss show? ($s$, $p$, $t$ and $N$ are those of section 2.)
#
# | exhibit | what is written | seen in |
# |---|---|---|
# | clamped, not stretched | `max(final, peak * s)` in place of (11.4) | [gpt-neox#1008](https://github.com/EleutherAI/gpt-neox/pull/1008) |
# | decays in the warm-up | `p = t / N`, and the result times `min(t / w, 1)` | [fairchem#1967](https://github.com/facebookresearch/fairchem/pull/1967) |
# | off by one | the first update has a rate of 0 | [FARM#54](https://github.com/deepset-ai/FARM/pull/54) |
# | horizon 10 × too long | `N` is ten times what the run has | [OpenNMT-tf#378](https://github.com/OpenNMT/OpenNMT-tf/issues/378) |
# | starts again on resume | the counter is not saved | [lightly-train#301](https://github.com/lightly-ai/lightly-train/pull/301) |
# | counts micro-batches | `t` grows by 4 with each update, by 1 with each micro-batch | [nanochat#775](https://github.com/karpathy/nanochat/pull/775); compare [TinyLlama#172](https://github.com/jzhang38/TinyLlama/issues/172) |
# | oscillates | `p` is not held at 1, and `N` is short | [symbolicgpt#2](https://github.com/mojivalipour/symbolicgpt/issues/2) |
# | anneals to the maximum | peak and final exchanged | [fairseq#2916](https://github.com/facebookresearch/fairseq/pull/2916) |
# | decays 8 × too fast | after the warm-up, `t` grows by 8 with each update, by 1 for each GPU | [axolotl#157](https://github.com/axolotl-ai-cloud/axolotl/issues/157) |

# %%
arms = {name: {"lr": PEAK, "patch": museum.schedule_patch(schedule)} for name, schedule in museum.NINE.items()}
results = lab.run(arms, seeds=SEEDS, steps=250, evaluations=1)
hidden = [name for name in museum.NINE if results[name].final.min() <= right.final.max()]  # the bands touch

# %%
steps = np.arange(1, 251)
array = lambda schedule: np.array([schedule(int(t), PEAK, 250, 20, 0.1) for t in steps])
rates = {name: array(getattr(museum, schedule)) for name, schedule in museum.NINE.items()}
rates = {"right": array(right_rate)} | rates

# %%
fig, axes = plt.subplots(3, 3, figsize=(7.2, 6.0), sharex=True, sharey=True)
for axis, name in zip(axes.flat, museum.NINE):
    colour = lab.COLOURS[0] if name in hidden else lab.COLOURS[1]
    axis.fill_between(steps, 100 * rates["right"] / PEAK, color="#e4e4e4", linewidth=0)
    axis.plot(steps, 100 * rates[name] / PEAK, color=colour)
    low, high = results[name].band
    axis.set_title(name, fontsize=9.5)
    note = f"{results[name].mean:.2f} ({low:.2f} to {high:.2f})\n{'hidden' if name in hidden else 'shows'}"
    axis.text(250, 153, note, ha="right", va="top", fontsize=8.5, color=colour)
    axis.set(ylim=(0, 155), yticks=[0, 50, 100], xticks=[0, 125, 250])
fig.suptitle("Nine wrong schedules; blue: the loss does not tell", x=0.01, ha="left", fontsize=11)
axes[1, 0].set_ylabel("learning rate (% of the peak)")
axes[2, 1].set_xlabel(f"update (grey: the right rate, which ends at an excess of {right.mean:.2f})")
plt.show()

# %% [markdown] lang="en"
# **Remember this picture.** In each panel: the wrong rate over the right one (grey), and the final excess, its mean and its band. The blue ones are *hidden*: their band touches that of the right schedule. {{hidden:.0f}} of the nine are hidden. The same numbers as dots:

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.6))
shown = dict(sorted(({"right": right} | results).items(), key=lambda item: item[1].mean))
colours = {name: lab.COLOURS[0] if name in hidden else lab.COLOURS[1] for name in results}
colours["right"] = lab.COLOURS[2]
lab.plot_dots(axis, shown, colours)
axis.axvspan(*right.band, color=lab.COLOURS[2], alpha=0.2, linewidth=0)
axis.set(xlim=(0.25, None), title="Three wrong schedules cannot be told from the right one")
axis.set_xlabel("excess after 250 steps (nats/token; green: the right one's three seeds)")
plt.show()
lab.table(shown)

# %%
record(hidden=len(hidden), horizon=results["horizon 10 × too long"].mean)
three = ["clamped, not stretched", "decays in the warm-up", "off by one"]
claim("three wrong schedules cannot be told from the right one", all(name in hidden for name in three), fast=False)
six = [name for name in museum.NINE if name not in three]
claim("the other six are worse, in every pair of seeds",
      all(results[name].final.min() > right.final.max() + 0.06 for name in six), fast=False)
claim("a horizon 10 times too long is nearly a constant rate: less than 0.06 is between their means",
      abs(results["horizon 10 × too long"].mean - constant.mean) < 0.06, fast=False)

# %% [markdown] lang="en"
# And what "shows" here shows only beside the right one. If you see a single smooth curve end at {{horizon:.2f}}, you do not know that it should have been {{right:.2f}}. It also depends on the peak. Here is the horizon that is ten times too long once more, now at a peak of 0.01:

# %%
longer = {"patch": museum.schedule_patch("horizon_10x"), "lr": 0.01}
arms = {"right, peak 0.01": {"lr": 0.01}, "horizon 10 × too long, peak 0.01": longer}
smaller = lab.run(arms, seeds=SEEDS, steps=250, evaluations=1)
lab.table(smaller)
right_one, wrong_one = smaller.values()
claim("at a peak of 0.01 it is hidden, too",
      wrong_one.final.min() <= right_one.final.max(), fast=False)

# %% [markdown] lang="en"
# ## 6 · Read the array
#
# The rates themselves hide nothing, and to see them costs no training. Ask the schedule for all its steps, and compare four of them with what you can work out in your head.

# %%
four = lambda found: np.round(100 * found[[0, 19, 134, 249]] / PEAK, 1)  # % of the peak, at four steps
error = lambda found: np.abs(found - rates["right"]) / PEAK
print(f"{'% of the peak at step':<24}" + "".join(f"{t:>8}" for t in (1, 20, 135, 250)) + "   largest error, at step")
for name, found in rates.items():
    largest = f"{100 * error(found).max():5.1f} %, at {error(found).argmax() + 1}" if name != "right" else "    -"
    print(f"{name:<24}" + "".join(f"{number:8.1f}" for number in four(found)) + f"   {largest}")

# %%
claim("each of the nine breaks one of the four numbers",
      all((four(rates[name]) != four(rates["right"])).any() for name in museum.NINE))
claim("every one of the nine is off by 3 % of the peak somewhere, the hidden ones too",
      all(error(rates[name]).max() > 0.03 for name in museum.NINE))

# %% [markdown] lang="en"
# What it must be, in % of the peak: 100/20 = 5 at step 1; 100 at step 20; midway through the decay, at step 135, $(100 + 10)/2 = 55$; and 10 at step 250. Every row but the first breaks one of the four. Look at step 251 and later, too. There the rate must stay at 10: if only the min of (11.2) is missing, nothing before step 251 shows it.
#
# ### Your turn: repair a schedule
#
# You get the array of rates that a run has logged. Its warm-up was right, up to the first time that the peak was reached. What followed was wrong. Return the rates that it should have had.

# %%
from lessons.checks.schedules import repair  # exercise

# %%
check("11.repair", repair)

# %% [markdown] lang="en"
# Two of the nine as they were, and repaired, once you have written the function:

# %%
for name in ("oscillates", "horizon 10 × too long"):
    try:
        repaired = repair(rates[name], 0.1)
        print(f"{name}: off by {error(rates[name]).max():.0%} of the peak;",
              f"once repaired, by {error(repaired).max():.0%}")
    except NotImplementedError:
        print(f"{name}: repair is not written yet")

# %% [markdown] lang="en"
# **What does not show at this scale.** 250 steps do not rank schedules: three of nine wrong ones cannot be told from the right one by three seeds, at this length and this peak. They may do harm in a run of 350,000 steps; this lesson does not measure that. LLaMA's warm-up of 2,000 steps is longer than the whole run here, and whether a final tenth is better than zero is not measured either. What holds at every size is that the array tells, and the loss may not.
#
# ## The anchor in the paper
#
# LLaMA §2.3: a cosine schedule, "such that the final learning rate is equal to 10% of the maximal learning rate", and 2,000 warm-up steps. The rate is a pure function of the step in [`minillama/optim/schedule.py`](../minillama/optim/schedule.py), so a resumed run has no counter that could be lost. The rate of every step is in the run's `metrics.jsonl`, for you to read.
#
# ## Three questions
#
# 1. Which three of the nine have a constant rate, or nearly, in at least half of the run? Which of the four numbers is the first that shows it?
# 2. A run of $N = 1000$ steps goes on to step 2,000, and $N$ stays as it was. What does (11.4) do after step 1,000? What would it do without the min of (11.2)?
# 3. Two schedules have the same peak and the same end. One comes down early, the other late. You compare their losses in the middle of the run. Why is that unfair to the late one?
#
# <details><summary>Answers</summary>
#
# 1. *Horizon 10 × too long*: it stays near the peak, and step 135 shows it, with 99.5 in place of 55. *Decays 8 × too fast* and *counts micro-batches*: they stay at 10 % from step 49 and from step 63 on. The first of these two is shown by step 135 (10 in place of 55), the second already by step 1 (20 in place of 5).
# 2. $p$ stays 1, so the rate stays at the final one. Without the min, $p$ goes on to 2 and the cosine goes up again: at step $2N - w$ the rate is back at the peak.
# 3. By (11.6), the noise keeps the loss up as long as the rate is high. The early schedule has already gained what a low rate brings; the late one has this gain still before it. Compare schedules at their ends.
#
# </details>
#
# **The way on:** [12 · Data](12_data.ipynb), what the model reads while the rate goes down.
