# %% [markdown] lang="en"
# # 16 · How big, how long? A scaling law whose floor is known
#
# **Question.** You may spend a certain amount of arithmetic on a training. How many parameters should the model have, and how many tokens should it read? People answer with a fitted line. When may you believe that line?
#
# After this lesson you can fit $L(N) = E + A/N^a$ with and without knowing $E$, count the arithmetic of a training, find the best split of a budget, and say what a fitted floor is worth.
#
# *Needs:* [00 · Baselines](00_baselines.ipynb), [11 · Schedules](11_schedules.ipynb), [12 · Data](12_data.ipynb). *Paper:* LLaMA §1; Kaplan et al. 2020 (arXiv:2001.08361), §2.1; Hoffmann et al. 2022 (arXiv:2203.15556), §3.3. *Code:* [`minillama/report/plan.py`](../minillama/report/plan.py). *Time:* 40 minutes to read and solve, two to three minutes to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import numpy as np

from lessons import FAST, check, claim, lab, plt, record
from lessons.checks import scaling  # the solutions: with them the experiments run before you have written yours
from minillama.config import PRESETS, ModelConfig
from minillama.nn import count_params
from minillama.report import plan

# %% [markdown] lang="en"
# ## 1 · A line on two logarithms
#
# A model of $N$ parameters ends with the loss $L$. The text has a floor $E$, its entropy: no model does better on average. The law says that what is left above it, the **excess**, falls as a power of $N$:
#
# $$L(N) = E + \frac{A}{N^{a}} \tag{16.1}$$
#
# By hand, $E = 0.5$. Three models of 100, 400 and 1600 parameters end at 1.3, 0.9 and 0.7. The excess is 0.8, 0.4, 0.2: four times the parameters, half of the excess. So $4^{-a} = \frac12$, which means $a = \frac12$. And $A = 0.8\cdot\sqrt{100} = 8$.

# %%
N, L = np.array([100, 400, 1600]), np.array([1.3, 0.9, 0.7])
print("excess", (L - 0.5).round(3), "   8 / N^0.5 =", (8 / N**0.5).round(3))

# %% [markdown] lang="en"
# Take the logarithm of the excess. The power becomes a factor, the factor becomes a sum:
#
# $$\ln(L - E) = \ln A - a\,\ln N \tag{16.2}$$
#
# With $x = \ln N$ and $y = \ln(L - E)$ this is a straight line: its slope is $-a$, its height at $x = 0$ is $\ln A$. But only if $E$ is right. With another $E$ the same points bend:

# %%
for E in (0.5, 0.3, 0.65):
    y = np.log(L - E)
    print(f"E = {E}: slopes between neighbours", (np.diff(y) / np.diff(np.log(N))).round(3))

# %% [markdown] lang="en"
# Real points do not lie on a line, so we take the line with the smallest sum of squares $S = \sum (y_i - c + a x_i)^2$, where $c = \ln A$. First the height. At the smallest $S$ its derivative by $c$ is zero, $-2\sum (y_i - c + a x_i) = 0$, so with the means $\bar x$, $\bar y$:
#
# $$c = \ln A = \bar y + a\,\bar x \tag{16.3}$$
#
# Put it in: with $\Delta x_i = x_i - \bar x$ and $\Delta y_i = y_i - \bar y$, what is left is $S = \sum(\Delta y_i + a\,\Delta x_i)^2$. Its derivative by $a$ is zero, $2\sum(\Delta y_i + a\,\Delta x_i)\,\Delta x_i = 0$:
#
# $$a = -\frac{\sum \Delta x_i\,\Delta y_i}{\sum \Delta x_i^2} \tag{16.4}$$

# %%
rng = np.random.default_rng(0)
x, y = np.log([10, 30, 100, 300]), np.array([1.0, 0.4, 0.1, -0.6]) + 0.1 * rng.standard_normal(4)
dx, dy = x - x.mean(), y - y.mean()
a = -(dx * dy).sum() / (dx**2).sum()
c = y.mean() + a * x.mean()
S = lambda c, a: ((y - c + a * x) ** 2).sum()
slopes = [abs(S(c + i, a + j) - S(c - i, a - j)) / 2e-4 for i, j in ((1e-4, 0), (0, 1e-4))]
print("slopes of S at (16.3) and (16.4):", [f"{slope:.0e}" for slope in slopes])
print("np.polyfit finds the same:", np.allclose(np.polyfit(x, y, 1), (-a, c)))

# %% [markdown] lang="en"
# ### Your turn: the line
#
# Given the sizes, the losses and the floor: $A$ and $a$, by (16.2) to (16.4).

# %%
from lessons.checks.scaling import power_law  # exercise

# %%
check("16.power_law", power_law)

# %% [markdown] lang="en"
# ## 2 · What a token costs
#
# A matrix entry is used once for each token: one multiply, one add, so 2 FLOP. The embedding is a lookup and costs none: with a vocabulary of $V$ and a width of $D$, $M = P - VD$ of the $P$ parameters count. (The gains of the norms are so few that they do not matter.)
#
# Attention multiplies without parameters: $q\,k^\top$ and $p\,v$ take $2D$ each for every token that is attended to. By the causal mask that is $T/2$ of them on average, in each of $\mathcal L$ layers:
#
# $$\text{forward} = 2M + \mathcal L \cdot \frac{T}{2}\cdot 4D = 2M + 2\,\mathcal L\,T\,D \tag{16.5}$$
#
# Each product of forward has two products in backward, one for the gradient of each operand. So backward costs twice as much as forward, and both together three times (16.5):
#
# $$\text{training} = 6M + 6\,\mathcal L\,T\,D \quad\text{FLOP per token} \tag{16.6}$$
#
# By hand: $M = 50$, $D = 3$, 2 layers, $T = 4$: $300 + 6\cdot2\cdot4\cdot3 = 444$.

# %%
for name in ("nano", "7B", "65B"):
    model = ModelConfig(**PRESETS[name].model)
    P, V, D, layers, T = count_params(model), model.vocab_size, model.dim, model.n_layers, model.max_seq_len
    by_formula = 6 * (P - V * D) + 6 * layers * T * D
    print(f"{name:>4}: {by_formula:.3g} FLOP a token, attention is {6 * layers * T * D / by_formula:.0%} of it; "
          f"6 P is {6 * P / by_formula:.2f} of it; minillama says {plan.flops_per_token(model, T):.3g}")

# %% [markdown] lang="en"
# So "$6N$ a token" is a good rule for large models. Two warnings when you read papers. Many count $12\,\mathcal L\,T\,D$ for attention: that includes the masked half. And Kaplan et al. count $N$ *without* the embedding, Hoffmann et al. with it. For a small model that is a different law, as section 5 shows.

# %% [markdown] lang="en"
# ### Your turn: the arithmetic of a token

# %%
from lessons.checks.scaling import flops_per_token  # exercise

# %%
check("16.flops_per_token", flops_per_token)

# %% [markdown] lang="en"
# ## 3 · Five sizes, one text, equal tokens
#
# Our text is one source of the built-in corpus: additions, written digit by digit, with the carry. Its entropy is known exactly. It is *one* source for a reason: of a mix, a model must also find out which source it reads. That costs $-\ln$ of the source's share, in nats per document (lesson 12), and it is in no source's floor.

# %%
BASE = dict(n_layers=2, n_heads=2, max_seq_len=72, seq_len=72, batch_size=8, warmup_steps=50,
            mix={"sums": 1}, characters=6_400_000)
RATES = {8: 0.02, 12: 0.02, 20: 0.02, 36: 0.01, 64: 0.02}  # width: its own peak learning rate, see below
SEEDS, STEPS = 1 if FAST else 3, 1200
arm = lambda dim, lr=None: BASE | {"dim": dim, "lr": lr or RATES[dim]}
tokens = lambda steps: steps * BASE["batch_size"] * BASE["seq_len"]

sums = next(shard for shard in lab.text(BASE["characters"])[1] if shard.name == "sums")
floor = sums.val.floor
epochs = tokens(STEPS) / len(sums.train.tokens)
print(f"floor {floor:.4f} nats/token;  {tokens(STEPS):,} tokens in {STEPS} steps, {epochs:.2f} epochs")
record(floor=floor, epochs=epochs, longest=2 * epochs, read=tokens(STEPS) / 1000)

# %% [markdown] lang="en"
# {{read:.0f}} thousand tokens are {{epochs:.2f}} epochs: most of it is read once at most. A whole addition fits into the context of 72, so the floor can be reached. All sizes read equally many tokens.
#
# And each has **its own learning rate**. They were found when this lesson was written, in a sweep by factors of two. The table has the means of three seeds; the rates in bold are used:
#
# | width | mean excess at the rates tried |
# |---|---|
# | 8 | 0.01: 0.281 · **0.02**: 0.235 · 0.04: 0.255 |
# | 12 | 0.01: 0.199 · **0.02**: 0.162 · 0.04: 0.177 |
# | 20 | 0.01: 0.146 · **0.02**: 0.112 · 0.04: 0.121 |
# | 36 | 0.005: 0.132 · **0.01**: 0.100 · 0.02: 0.115 |
# | 64 | 0.01: 0.113 · **0.02**: 0.102 · 0.04: 0.135 |
#
# For width 64, as you will see below, the seeds differ more than the two best rates do. There the choice is uncertain.

# %%
arms = lambda dims: {f"width {dim}": arm(dim) for dim in dims}
train = lambda dims, steps=STEPS: lab.run(arms(dims), seeds=SEEDS, steps=steps, evaluations=1)
five = train([8, 12, 20])

# %%
five |= train([36, 64])  # the longest wait of this lesson
sizes = np.array([count_params(lab.configs(arm(dim))[0]) for dim in RATES])
excess = np.array([result.final for result in five.values()])  # (5, seeds)
losses = floor + excess.mean(1)
for size, (name, result) in zip(sizes, five.items()):
    low, high = result.band
    print(f"{name:<9} {size:>8,} parameters   excess {result.mean:.3f}   ({low:.3f} to {high:.3f})")

# %% [markdown] lang="en"
# ## 4 · The fit of those who do not know the floor
#
# For real text, nobody knows $E$. So everybody fits *three* numbers. For each $E$ that is possible, take the line of (16.2), with its $A_E$ and $a_E$. How far are its losses from the measured ones?
#
# $$\mathrm{error}(E) = \sqrt{\tfrac1n \sum_i \Bigl(L_i - E - \frac{A_E}{N_i^{\,a_E}}\Bigr)^2} \tag{16.7}$$
#
# The best $E$ wins. Errors must be compared in the **loss**. In the logarithm of the excess they shrink for an $E$ far below all losses, since there all logarithms are nearly alike. Every text would then seem to have a floor of minus infinity.

# %%
N, L = np.array([100.0, 400, 1600, 6400]), np.array([1.32, 0.89, 0.7, 0.6])
in_logs = lambda E: np.sqrt(np.polyfit(np.log(N), np.log(L - E), 1, full=True)[1][0] / 4)
for E in (-100, 0, 0.4, 0.5, 0.58):
    (error,), *_ = scaling.fit_floor(N, L, np.array([E]))
    print(f"E = {E:>5}: error in the loss {error:.4f}, in the logarithms {in_logs(E):.4f}")

# %% [markdown] lang="en"
# ### Your turn: three numbers

# %%
from lessons.checks.scaling import fit_floor  # exercise

# %%
check("16.fit_floor", fit_floor)

# %% [markdown] lang="en"
# ## 5 · The picture: the floor that is found, and the floor that is
#
# First the two fits, to the same five means. Then each fit once more without one of the points: how much does the answer depend on a single model? And once for each seed by itself.

# %%
guesses = np.linspace(0, losses.min() - 1e-3, 1000)
A2, a2 = scaling.power_law(sizes, losses, floor)
errors, E3, A3, a3 = scaling.fit_floor(sizes, losses, guesses)
print(f"floor known:   E = {floor:.3f}   A = {A2:6.3g}   a = {a2:.2f}   error {np.interp(floor, guesses, errors):.4f}")
print(f"floor fitted:  E = {E3:.3f}   A = {A3:6.3g}   a = {a3:.2f}   error {errors.min():.4f}")
without = []
for k in range(5):
    N, L = np.delete(sizes, k), np.delete(losses, k)
    _, E, A, a = scaling.fit_floor(N, L, np.linspace(0, L.min() - 1e-3, 1000))
    without.append(E)
    known = scaling.power_law(N, L, floor)[1]
    print(f"without {list(five)[k]:<9}:  E = {E:.3f}   a = {a:.2f};  floor known:  a = {known:.2f}")

# %%
alone = [scaling.fit_floor(sizes, floor + seed, guesses[guesses < floor + seed.min()])[1] for seed in excess.T]
print("each seed by itself:  E =", ", ".join(f"{E:.3f}" for E in alone))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6))
wide, blue, orange = np.geomspace(6e3, 1e6, 200), lab.COLOURS[0], lab.COLOURS[1]
for axis, shift in ((left, 0), (right, floor)):
    axis.plot(np.repeat(sizes, SEEDS), shift + excess.ravel(), "o", color="black",
              alpha=0.35, markersize=4, markeredgewidth=0)
    axis.fill_between(sizes, shift + excess.min(1), shift + excess.max(1), color="black", alpha=0.1, linewidth=0)
    axis.plot(wide, shift + A2 / wide**a2, color=blue, label="two numbers, floor known")
    axis.plot(wide, shift + E3 - floor + A3 / wide**a3, "--", color=orange, label="three numbers")
    axis.plot(sizes, shift + excess.mean(1), "D", color="black", markersize=5)
    axis.set(xscale="log", xlabel="parameters", xlim=(6e3, 1e6))
left.set(yscale="log", ylabel="excess over the exact floor (nats/token)", title="The points are on no straight line")
left.set_yticks([0.03, 0.05, 0.1, 0.2, 0.3], ["0.03", "0.05", "0.1", "0.2", "0.3"])
left.minorticks_off()
right.minorticks_off()
right.axhspan(min(without), max(without), color=orange, alpha=0.15, linewidth=0)
right.axhline(E3, color=orange, linewidth=1, linestyle=":")
right.axhline(floor, color=blue, linewidth=1)
right.plot([8.5e5] * SEEDS, alone, "<", color=orange, markersize=6, clip_on=False)
right.annotate("exact floor", (7e3, floor), xytext=(0, 4), textcoords="offset points", color=blue)
right.annotate("fitted floor", (7e3, E3), xytext=(0, -13), textcoords="offset points", color=orange)
right.annotate("single seeds", (7.5e5, min(alone)), xytext=(0, -4), textcoords="offset points",
               ha="right", color=orange)
right.set(ylabel="loss (nats/token)", ylim=(min(alone) - 0.02, None), title="The fit finds another floor")
left.legend(loc="lower left")
plt.show()

# %% [markdown] lang="en"
# **Remember the two horizontal lines.** The three numbers come closer to the points than the two. But the floor that they find is {{off:.2f}} nats/token too high, {{off_share:.0%}} of the true one. Fit once more without one of the models, and it is still {{low:.3f}} to {{high:.3f}} too high (the orange band). It looks certain, and the truth is far outside. Such a test tells how much an answer depends on one point, not whether it is right.

# %% [markdown] lang="en"
# The seeds show the uncertainty better. Each by itself is off by {{alone_low:+.2f}} to {{alone_high:+.2f}} (the triangles). If you had trained every size once, as one must where a run is expensive, your $E$ would be one of these three. The lowest is even below the entropy, which no model can reach.
#
# The exponents differ as much: {{a2:.2f}} with the floor known, {{a3:.1f}} without. The fit explains the bend by its $E$.

# %%
record(off=E3 - floor, off_share=(E3 - floor) / floor, low=min(without) - floor, high=max(without) - floor)
record(alone_low=min(alone) - floor, alone_high=max(alone) - floor, a2=a2, a3=a3)
claim("the fit of three numbers is closer to the points", errors.min() < np.interp(floor, guesses, errors))
claim("its floor is more than 0.03 nats/token above the exact one", floor + 0.03 < E3, fast=False)
claim("and the exact one is outside all five fits that leave one model out", min(without) > floor + 0.03, fast=False)
claim("single seeds disagree on the floor more than twice as much as the fits without one model",
      max(alone) - min(alone) > 2 * (max(without) - min(without)), fast=False)
claim("its exponent is more than twice that of the line with the known floor", a3 > 2 * a2, fast=False)

# %% [markdown] lang="en"
# Does it matter that each line was fitted in the logarithms? The test: for each $E$ and each $a$, the best $A$ in the *loss* itself, and of all these the three numbers with the smallest error.

# %%
best = (np.inf,)
for power in np.arange(0.05, 4, 0.05):
    term = (sizes / sizes[0]) ** -power
    height = ((losses - guesses[:, None]) @ term) / (term @ term)  # the best A for each E, by (16.4) without the means
    error = np.sqrt(((losses - guesses[:, None] - np.outer(height, term)) ** 2).mean(1))
    best = min(best, (error.min(), guesses[error.argmin()], power))
error, E_loss, power = best
print(f"all in the loss:  E = {E_loss:.3f}   a = {power:.2f}   error {error:.4f};  in the logarithms: E = {E3:.3f}")
record(E_loss=E_loss, E3=E3)
claim("it is less than half as far from the points", error < 0.5 * errors.min(), fast=False)
claim("this floor, too, is more than 0.03 nats/token above the exact one", E_loss > floor + 0.03, fast=False)

# %% [markdown] lang="en"
# It comes much closer to the points, and finds {{E_loss:.3f}} in place of {{E3:.3f}}. The way of fitting is not the reason.

# %% [markdown] lang="en"
# Why so high? We suspect that the models of width 36 and 64 are not at the end of what they can do, only at the end of their **tokens**; section 7 tests it. Nothing in (16.1) depends on tokens. Its $E$ is what an infinitely large model would reach *after this much reading*, and that is no property of the text. Five points show that the loss stops falling; they do not show why.

# %% [markdown] lang="en"
# What counts as $N$ matters as well. A width of 8 has 8,104 parameters, and 6,400 of them are embedding and output head:

# %%
bodies = sizes - 2 * lab.configs(arm(8))[0].vocab_size * np.array(list(RATES))  # RATES: keys are the widths
for name, N in (("all", sizes), ("without embedding and head", bodies)):
    A, a = scaling.power_law(N, losses, floor)
    print(f"{name:<27} {N[0]:>6,} to {N[-1]:>7,} parameters: a = {a:.2f}")
A, a = scaling.power_law(sizes, losses, 0.0)
print(f"and of the loss, with no floor at all: a = {a:.2f}")
a_body = scaling.power_law(bodies, losses, floor)[1]
record(a_body=a_body, a_loss=a)

# %% [markdown] lang="en"
# The same models, and $a$ is {{a2:.2f}} or {{a_body:.2f}}. And whoever draws the *loss* instead of the excess gets {{a_loss:.2f}}: most of the loss is floor, and a floor does not fall. An exponent says nothing without the words "of what, over what".

# %% [markdown] lang="en"
# ## 6 · The learning rate is part of the measurement
#
# The check for one size: width 20 at its own rate, and at the rate that suits width 36.

# %%
untuned = lab.run({"width 20, lr 0.01": arm(20, 0.01)}, seeds=SEEDS, steps=STEPS, evaluations=1)
lab.table({"width 20, lr 0.02": five["width 20"]} | untuned)
common = floor + np.array([0.281, 0.199, 0.146, 0.100, 0.113])  # the table above, 0.01 for all
a_common, E_common = scaling.power_law(sizes, common, floor)[1], scaling.fit_floor(sizes, common, guesses)[1]
print(f"0.01 for all sizes:  a = {a_common:.2f} with the floor known;  fitted floor {E_common:.3f}")
print(f"tuned:               a = {a2:.2f} with the floor known;  fitted floor {E3:.3f}")

# %% [markdown] lang="en"
# {{untuned:.3f}} in place of {{tuned:.3f}}: a tuned model with {{lost:.0%}} fewer parameters would do as well. One rate for all sizes looks fair and is not. It favours the size whose rate it is, and tilts the line: with 0.01 for all, $a$ would be {{a_common:.2f}} in place of {{a2:.2f}}. (In this table a common 0.02 would do little harm. That is by chance, and nobody knows it before the table is made.)

# %%
tuned, cold = five["width 20"].mean, untuned["width 20, lr 0.01"].mean
# a tuned model of this size does as well:
alike = np.exp(np.interp(np.log(cold), np.log([tuned, excess[1].mean()]), np.log(sizes[[2, 1]])))
record(a_common=a_common, untuned=cold, tuned=tuned, lost=1 - alike / sizes[2])
claim("at the rate of width 36, width 20 is worse at every seed",
      untuned["width 20, lr 0.01"].final.min() > five["width 20"].final.max() + 0.005, fast=False)

# %% [markdown] lang="en"
# ## 7 · And the tokens
#
# Hoffmann et al. add a term for the tokens that were read. From here on $D$ is their number, as in the papers, and no longer the width. Each term is what is missing for one reason: too few parameters, too little reading.
#
# $$L(N, D) = E + \frac{A}{N^{a}} + \frac{B}{D^{b}} \tag{16.8}$$
#
# With all models at one $D$, the third term is a constant, and (16.1) must take it for a part of the floor. To see it, we must change $D$, for two sizes. Every run has a schedule of its own length: in the middle of a longer run the rate is still high ([11](11_schedules.ipynb)), and the loss looks worse than it could be. The longest run reads {{longest:.1f}} epochs, so a part of its text is read twice. That is no advantage over fresh text.

# %%
SMALL, BIG = 20, 64
runs = {(dim, STEPS): five[f"width {dim}"].final for dim in (SMALL, BIG)}
for steps, dims in ((STEPS // 3, (SMALL, BIG)), (2 * STEPS, (SMALL,))):
    results = train(dims, steps)
    runs |= {(dim, steps): results[f"width {dim}"].final for dim in dims}
runs = dict(sorted(runs.items()))
for (dim, steps), final in runs.items():
    band = f"({final.min():.3f} to {final.max():.3f})"
    print(f"width {dim}, {tokens(steps):>9,} tokens: excess {final.mean():.3f}   {band}")

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.5), sharey=True)
for dim, colour in ((SMALL, lab.COLOURS[2]), (BIG, lab.COLOURS[3])):
    config = lab.configs(arm(dim))[0]
    steps = [s for d, s in runs if d == dim]
    found, D = np.array([runs[dim, s] for s in steps]), np.array([tokens(s) for s in steps])
    for axis, x in ((left, D), (right, D * plan.flops_per_token(config, BASE["seq_len"]))):
        axis.plot(x, found.mean(1), "o-", color=colour, label=f"width {dim}: {count_params(config):,} parameters")
        axis.fill_between(x, found.min(1), found.max(1), color=colour, alpha=0.2, linewidth=0)
for axis in (left, right):
    axis.axhline(E3 - floor, color=orange, linewidth=1.2, linestyle=":")
    axis.set(xscale="log", yscale="log", ylim=(0.05, 0.4))
    axis.set_yticks([0.05, 0.1, 0.2, 0.3], ["0.05", "0.1", "0.2", "0.3"])
    axis.minorticks_off()
left.annotate("the fitted floor of section 5", (2e5, E3 - floor), xytext=(0, -13),
              textcoords="offset points", color=orange)
left.set(xlabel="tokens read", ylabel="excess (nats/token)", xlim=(1.8e5, 1.8e6))
left.set_title("Twice the reading: below the fit's floor")
left.set_xticks([2e5, 5e5, 1e6], ["200 k", "500 k", "1 M"])
right.set(xlabel="training arithmetic (GFLOP)", title="The small one costs a fraction")
right.set_xticks([5e10, 1e11, 2e11, 5e11], ["50", "100", "200", "500"])
right.legend(loc="upper right", fontsize=8)
plt.show()

# %% [markdown] lang="en"
# The small model, with twice the tokens, ends at {{long:.3f}}. That is **below the floor** which the fit of section 5 had found for models of any size, in all three seeds, and below the mean of the big model, at {{flops_share:.0%}} of its arithmetic. With the fewest tokens, the two sizes are alike: more parameters do not help there. Of the six single runs of width 36 and 64, {{below:.0f}} were below that floor already. The mean of three does not show it.

# %%
cost = lambda dim, steps: tokens(steps) * plan.flops_per_token(lab.configs(arm(dim))[0], BASE["seq_len"])
longer, bigger = runs[SMALL, 2 * STEPS], runs[BIG, STEPS]
share = cost(SMALL, 2 * STEPS) / cost(BIG, STEPS)
record(below=(excess[3:] < E3 - floor).sum(), big_low=excess[3:].min(), big_high=excess[3:].max())
record(long=longer.mean(), flops_share=share)
claim("trained twice as long, the small model is below the fitted floor at every seed",
      longer.max() + 0.01 < E3 - floor, fast=False)
claim("and below the mean of the big one, for less than half of its arithmetic",
      longer.max() + 0.01 < bigger.mean() and share < 0.5, fast=False)
claim("with a third of the tokens both sizes are worse by far, at every seed",
      min(runs[d, STEPS // 3].min() for d in (SMALL, BIG)) > runs[SMALL, STEPS].max() + 0.05, fast=False)

# %% [markdown] lang="en"
# Now fit (16.8) to all eight points. The floor is known, so four numbers remain. For each pair of exponents, $A$ and $B$ are linear; we take the pair with the smallest relative error of the excess.

# %%
N = np.append(sizes, [sizes[2], sizes[4], sizes[2]])
D = tokens(np.array([STEPS] * 5 + [STEPS // 3] * 2 + [2 * STEPS]))
others = ((SMALL, STEPS // 3), (BIG, STEPS // 3), (SMALL, 2 * STEPS))
above = np.append(excess.mean(1), [runs[key].mean() for key in others])
best = (np.inf,)
for a in np.arange(0.1, 2.51, 0.05):
    for b in np.arange(0.1, 1.51, 0.05):
        terms = np.stack([N**-a, D**-b], 1) / above[:, None]
        (A, B), *_ = np.linalg.lstsq(terms, np.ones(8), rcond=None)
        error = np.sqrt(((terms @ (A, B) - 1) ** 2).mean())
        best = min(best, (error, A, a, B, b)) if min(A, B) > 0 else best
error, A, a, B, b = best
law, tail = (A, a, B, b), B / D[0] ** b  # the third term at the tokens of section 3
print(f"excess = {A:.3g} / N^{a:.2f} + {B:.3g} / D^{b:.2f}, relative error {error:.0%}")
print(f"at {D[0]:,} tokens the third term is {tail:.3f}")
record(tail=tail, error=100 * error)

# %% [markdown] lang="en"
# The third term at the tokens of section 3 is {{tail:.2f}}, and the fitted floor there was {{off:.2f}} too high. So this is where it came from, as far as eight points can tell. Do not use these exponents elsewhere. With four numbers for eight points at three lengths of reading, the law describes them within {{error:.0f}} percent, and promises nothing more.

# %% [markdown] lang="en"
# ## 8 · The best split of a budget
#
# Now the question of the beginning. We may spend $C$ FLOP, and by (16.6) without attention a token costs $6N$:
#
# $$C = 6\,N\,D \tag{16.9}$$
#
# So $D = \frac{C}{6N}$, and (16.8) becomes a function of $N$ alone: $\frac{A}{N^a} + B\,\bigl(\frac{6N}{C}\bigr)^b$. At its smallest value the derivative is zero, $-\frac{aA}{N^{a+1}} + bB\,(\frac6C)^b N^{b-1} = 0$. Times $N$, with $D$ written back:
#
# $$\frac{a\,A}{N^{a}} = \frac{b\,B}{D^{b}} \tag{16.10}$$
#
# In words: at the best split, one more percent of parameters helps as much as one more percent of tokens. Put $D = \frac{C}{6N}$ in and collect the powers of $N$: $N^{a+b} = \frac{aA}{bB}\,(\frac C6)^b$. Take the root:
#
# $$N = G\Bigl(\frac C6\Bigr)^{\frac{b}{a+b}}\qquad D = \frac1G\Bigl(\frac C6\Bigr)^{\frac{a}{a+b}}\qquad G = \Bigl(\frac{aA}{bB}\Bigr)^{\frac{1}{a+b}} \tag{16.11}$$

# %%
toy = dict(A=8.0, a=0.5, B=30.0, b=0.4)
left = lambda N, D: toy["A"] / N ** toy["a"] + toy["B"] / D ** toy["b"]
N, D = scaling.compute_optimal(np.array([6e6]), **toy)
grid = np.geomspace(10, 1e5, 100_001)
print("(16.11): N =", N.round(1), " D =", D.round(1), "   6 N D =", 6 * N * D)
print("by trying: N =", grid[left(grid, 1e6 / grid).argmin()].round(1))
print("both sides of (16.10):", toy["a"] * toy["A"] / N ** toy["a"], toy["b"] * toy["B"] / D ** toy["b"])

# %% [markdown] lang="en"
# ### Your turn: the best split

# %%
from lessons.checks.scaling import compute_optimal  # exercise

# %%
check("16.compute_optimal", compute_optimal)

# %% [markdown] lang="en"
# What does our own law of section 7 say? Take the arithmetic of the big model's run, and split it again:

# %%
read = tokens(STEPS)
C = 6 * sizes[4] * read
(N,), (D,) = scaling.compute_optimal(np.array([C]), *law)
print(f"{C:.3g} FLOP: we spent them on {sizes[4]:,} parameters and {read:,} tokens")
predicted = law[0] / N**law[1] + law[2] / D**law[3]
print(f"the law would take {N:,.0f} parameters and {D:,.0f} tokens, for an excess of {predicted:.3f}")
record(best_N=N / 1000, best_D=D / 1e6, best_epochs=D / len(sums.train.tokens))

# %% [markdown] lang="en"
# About {{best_N:.0f}} thousand parameters and {{best_D:.1f}} million tokens: a smaller model, trained for longer. This is a prediction for more tokens than any of our runs has read, and we have not tested it. You can. But make the text longer first (`characters`): of this one it would be {{best_epochs:.1f}} epochs.

# %% [markdown] lang="en"
# ## 9 · LLaMA's argument
#
# Two published fits of (16.8) use the *same* experiment. One is by Hoffmann et al. The other is by Besiroglu et al. 2024 (arXiv:2404.10102), who read most of its points off a plot of the first paper and fitted again. What does each recommend for the budget of LLaMA-7B, that is, $6 \cdot 6.7\cdot10^9 \cdot 10^{12}$ FLOP?

# %%
FITS = {"Hoffmann 2022": dict(E=1.69, A=406.4, a=0.34, B=410.7, b=0.28),
        "Besiroglu 2024": dict(E=1.8172, A=482.01, a=0.3478, B=2085.43, b=0.3658)}
seven, trillion = count_params(ModelConfig(**PRESETS["7B"].model)), PRESETS["7B"].train_tokens
best = {}
for name, fit in FITS.items():
    (N,), (D,) = best[name] = scaling.compute_optimal(np.array([6 * seven * trillion]), *(fit[key] for key in "AaBb"))
    print(f"{name:<14} floor {fit['E']:.2f}   best: {N / 1e9:4.1f} B parameters, {D / 1e9:3.0f} B tokens, "
          f"{D / N:3.0f} a parameter   (LLaMA-7B: {trillion / seven:.0f})")
record(best_h=best["Hoffmann 2022"][0][0] / 1e9, best_b=best["Besiroglu 2024"][0][0] / 1e9, per=trillion / seven)

# %% [markdown] lang="en"
# From one experiment come two floors, {{gap:.2f}} nats apart, and two answers: {{best_h:.0f}} or {{best_b:.0f}} billion parameters. Nobody can say which floor is right: the entropy of the web is not known. This is the problem of section 5, at sizes where nobody trains three seeds.
#
# In both, LLaMA-7B is *too small* for its budget, with {{per:.0f}} tokens a parameter. That is on purpose. A model is trained once and used often, and use costs $2N$ a token.
#
# Take a small and a big model of equal loss, with $N_s$ and $N_b$ parameters, trained on $D_s$ and $D_b$ tokens. After $I$ tokens of use the small one has cost less in all if $6 N_s D_s + 2 N_s I < 6 N_b D_b + 2 N_b I$:
#
# $$I > 3\;\frac{N_s D_s - N_b D_b}{N_b - N_s} \tag{16.12}$$

# %%
fit, big = FITS["Besiroglu 2024"], count_params(ModelConfig(**PRESETS["13B"].model))
above = fit["A"] / seven ** fit["a"] + fit["B"] / trillion ** fit["b"]  # excess of 7B after a trillion tokens
D_big = (fit["B"] / (above - fit["A"] / big ** fit["a"])) ** (1 / fit["b"])  # the tokens with which 13B has the same
I = 3 * (seven * trillion - big * D_big) / (big - seven)
spent = lambda N, D, I: 6 * N * D + 2 * N * I
ratio = spent(big, D_big, 0) / spent(seven, trillion, 0)
print(f"13B needs {D_big / 1e9:.0f} B tokens; its training costs {ratio:.2f} of the other")
print(f"equal after {I:.3g} tokens of use: {spent(seven, trillion, I):.4g} and {spent(big, D_big, I):.4g} FLOP")
record(gap=FITS["Besiroglu 2024"]["E"] - FITS["Hoffmann 2022"]["E"])
record(D_big=D_big / 1e9, saved=1 - ratio, I=I / 1e12)
claim("LLaMA-7B is smaller than what either fit calls best for its budget",
      seven < min(best[name][0][0] for name in FITS))

# %% [markdown] lang="en"
# By this fit, a 13B model would have the same loss after {{D_big:.0f}} billion tokens, and its training would cost {{saved:.0%}} less. But after {{I:.1f}} trillion tokens of use both have cost the same, and from there on the 7B is cheaper. It also fits on a smaller machine. These are numbers of a fitted law, not measurements; (16.12) itself holds for any numbers.

# %% [markdown] lang="en"
# **What does not show at this scale.** Five sizes within a factor of nineteen, up to 152 thousand parameters: a million do not fit into two minutes on this processor. Kaplan et al. report a line that is straight over many decades; that is not seen here. The rates were tuned by factors of two, and for one length of training. Text that is read many times follows another law again.
#
# Nor does our excess fall evenly. The seeds of the two largest lie between {{big_low:.2f}} and {{big_high:.2f}}, as if some had made a step that others had not. What is learned in that step is not measured here. On real text, many such steps may add up to something smoother.

# %% [markdown] lang="en"
# ## The anchor in the paper
#
# LLaMA §1 starts from Hoffmann et al. and then leaves them: their law minimises the cost of *training*, and "disregards the inference budget". A 10B model on 200B tokens is what they would recommend; "a 7B model continues to improve even after 1T tokens". Table 2 is this choice: 7B and 13B on 1.0T, 33B and 65B on 1.4T tokens.

# %% [markdown] lang="en"
# ## Three questions
#
# 1. All your models have read one billion tokens, and your fit says $E = 2.1$. What exactly has this floor, and what would move it?
# 2. Why must the errors of (16.7) be taken in the loss, and not in the logarithm of the excess?
# 3. Your budget doubles, and $a = b$. What happens to $N$, to $D$, and to the time of an answer?
#
# <details><summary>Answers</summary>
#
# 1. All endless models *after one billion tokens*: the entropy of the text and what one billion tokens are too few to teach, $E + B/D^b$ of (16.8). More tokens move it, and so does whatever gets more out of the same tokens, such as better learning rates. Only its first part, the entropy, belongs to the text.
# 2. An error in $\ln(L - E)$ is an error in the loss divided by the excess. For an $E$ far below all losses the excess is large, and any error looks small: the best $E$ would be minus infinity.
# 3. By (16.11) with $\frac{b}{a+b} = \frac12$, both $N$ and $D$ grow by $\sqrt2 = 1.41$. A token of use costs $2N$, so an answer takes 1.41 times as long, if arithmetic decides.
#
# </details>

# %% [markdown] lang="en"
# **The way on:** this is the last lesson. You can now derive every gradient of LLaMA and check it, say what each part is for and what a loss means, recognise many faults by their numbers, and plan a training. If you left something out, [the map](README.md) has it.
#
# Go on with the code: [`minillama/nn/model.py`](../minillama/nn/model.py) is the whole model, [`kernels`](../kernels/README.md) the same for a GPU. Read the paper (arXiv:2302.13971): you have met every part of its section 2. Train a model of your own with `python -m minillama train`. And ask `python -m minillama info 65B` what the largest one cost; its arithmetic is (16.6).
