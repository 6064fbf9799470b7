# %% [markdown] lang="en"
# # 13 · Train it for real, then talk to it
#
# **Question.** A real run ends 3.5 % above the floor. Is that good? What can such a model do, what can it not do, and when did it learn what?
#
# After this lesson you can read the log of a run, say what a loss promises about the texts that the model writes, add up micro-batches in the right way, cut a distribution before you draw from it, and write with a key/value cache.
#
# *Needs:* [00 · Baselines](00_baselines.ipynb); for the cache, [04 · RoPE](04_rope.ipynb) and [05 · Attention](05_attention.ipynb). *Paper:* LLaMA figure 1, table 2, appendix C; Holtzman et al. 2020 (arXiv:1904.09751). *Code:* [`minillama/train.py`](../minillama/train.py), [`generate.py`](../minillama/generate.py), [`nn/decode.py`](../minillama/nn/decode.py). *Time:* 40 minutes to read and solve, about a minute to run; some minutes more with `RUN=1`, which trains again.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import os

import numpy as np

from lessons import FAST, check, claim, lab, plt, real_run, record
from minillama import nn
from minillama.generate import Sampling
from minillama.text import corpus

# %% [markdown] lang="en"
# ## 1 · The log of a run
#
# This lesson reads a run that is kept in [`lessons/run`](run). It is the default model, `nano`, with 5000 steps instead of 2400: {{parameters:,.0f}} parameters, {{tokens:.1f}} million tokens of the built-in text, some minutes on two processor cores.
#
# Three numbers are known before it starts. The first loss is near $\ln 512 + \frac12 = 6.74$: all tokens alike, and half the variance of the first logits, which is 1 here ([00](00_baselines.ipynb)). A model that only counts pairs of tokens stops at the bigram's loss. And no model gets below the floor.

# %%
steps, evaluated = real_run.log()
baselines, milestones = real_run.read("baselines"), real_run.read("milestones")
floor, last = evaluated["floor"][-1], evaluated["val_loss"][-1]
record(parameters=nn.count_params(real_run.model()[0].config), tokens=steps["tokens"][-1] / 1e6)
for name in ("uniform", "unigram", "bigram"):
    print(f"{name:<8} {baselines[name]:.3f}")
print(f"floor    {floor:.3f}\nthe run  {last:.3f}, {last / floor - 1:.1%} above the floor")

# %% [markdown] lang="en"
# Read a log in this order. Does the loss start where it must? Does it pass the baselines of lesson 00, one after the other? Does the training loss fall below the validation loss? Is the gradient norm quiet? And is the last loss above the floor? Below it, the *evaluation* would be wrong.
#
# The log keeps every tenth step, and the training curve is a mean over five of them. So it begins below 6.74; the first line kept, step 10, has {{first:.2f}}.

# %%
fig, axes = plt.subplots(2, 1, figsize=(7.2, 5.0), sharex=True, height_ratios=[3, 1])
smooth = np.convolve(steps["loss"], np.ones(5) / 5, "valid")
axes[0].plot(steps["step"][4:], smooth, color="#bbbbbb", linewidth=1, label="training")
axes[0].plot(evaluated["step"], evaluated["val_loss"], label="validation")
for name in ("unigram", "bigram"):
    axes[0].axhline(baselines[name], color="#888888", linestyle=":", linewidth=1)
    axes[0].text(5000, baselines[name] * 1.02, name, ha="right", va="bottom", color="#666666")
axes[0].axhline(floor, color="black", linewidth=1)
axes[0].text(5000, floor * 0.985, "floor: no model gets below", ha="right", va="top")
axes[0].set(yscale="log", ylim=(0.62, 7), ylabel="loss (nats/token)")
axes[0].set_yticks([0.7, 1, 2, 4], ["0.7", "1", "2", "4"])
axes[0].set_title("A real run: past the baselines in 100 steps, then the long way to the floor")
axes[0].minorticks_off()
axes[0].legend(loc="upper right", bbox_to_anchor=(1, 0.8))
axes[1].plot(steps["step"], steps["grad_norm"], color=lab.COLOURS[1], linewidth=0.8)
axes[1].set(xlabel="step", ylabel="gradient norm", yscale="log")
plt.show()

# %%
claim("the bigram is passed in the first 100 steps", evaluated["val_loss"][0] < baselines["bigram"])
claim("no evaluation is below the floor", (evaluated["val_loss"] > evaluated["floor"]).all())
gap = np.mean(steps["loss"][-100:]) - last
claim("it has not learned its training text by heart: the training loss is not below the validation loss",
      gap > 0)
above = np.array([end["loss"] / end["floor"] - 1 for end in baselines["ends"]])
claim("three seeds end within one per cent of each other, above their floors",
      above.min() > 0.03 and np.ptp(above) < 0.01)
record(above=100 * above[0], low=100 * above.min(), high=100 * above.max(), last=last)
record(first=steps["loss"][0], early=evaluated["val_loss"][0])

# %% [markdown] lang="en"
# After 100 of 5000 steps the loss is {{early:.2f}}: most of what the eye sees of the curve is over. It ends at {{last:.3f}}, {{above:.1f}} % above the floor. Two other seeds draw other texts as well; with them, the runs end {{low:.1f}} to {{high:.1f}} % above their floors.
#
# The training loss stays *above* the validation loss, and that is right. A training row begins anywhere, often in the middle of a document. Names and numbers that it needs then stand before the row, where the model cannot see them. Was the rest of the run worth it? Look at what it wrote.
#
# ## 2 · What it wrote, and when
#
# At six steps the model wrote documents, from nothing but `<s>`, at temperature 1. Here is the first of each.

# %%
for m in milestones:
    excess = np.mean([m["loss"][s] - m["floor"][s] for s in m["loss"]])
    print(f"step {m['step']}, {excess:.3f} nats/token above the floor\n    {ascii(m['samples'][0])[1:-1][:160]}\n")

# %% [markdown] lang="en"
# The built-in text has a grammar that can also *read*. So a program gives each document a verdict:
#
# - **true**: the grammar could have written it.
# - **forgetful**: every word stands where such a word may stand, but the text contradicts itself. It names a town that nobody mentioned, or a sum is wrong.
# - **broken**: all else.

# %%
story = corpus.document("stories", 7, 0).text
names = [name for name in corpus.NAMES if name in story]
swapped = story[:-4] + (names[0] if story[-4:-1] == names[1] else names[1]) + "."
for text in (story, swapped, story[:-9]):
    print(f"{real_run.verdict(text):<9} … {text[-43:]}")

# %%
kinds, written = ("true", "forgetful", "broken"), sum(milestones[0]["verdicts"].values())
share = {kind: np.array([m["verdicts"][kind] for m in milestones]) / written for kind in kinds}
above_floor = [np.mean([m["loss"][s] / m["floor"][s] - 1 for s in m["loss"]]) for m in milestones]
fig, axis = plt.subplots(figsize=(7.2, 3.3))
bottom, places = np.zeros(len(milestones)), np.arange(len(milestones))
for (name, values), colour in zip(share.items(), (lab.COLOURS[0], lab.COLOURS[5], "#dddddd")):
    axis.bar(places, values, bottom=bottom, color=colour, width=0.75, label=name)
    for place, value, base in zip(places, values, bottom):
        if value > 0.04:
            ink = "white" if name == "true" else "black"
            axis.text(place, base + value / 2, f"{value:.0%}", ha="center", va="center", color=ink)
    bottom += values
labels = [f"{m['step']}\n+{a:.0%}" for m, a in zip(milestones, above_floor)]
axis.set(xticks=places, xticklabels=labels, yticks=[], xlabel="step, and loss above the floor")
axis.set_title("First the grammar, then the memory: 500 documents at each step")
axis.grid(visible=False)
axis.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.28))
plt.show()

# %%
before, after = (np.mean(list(m["loss"].values())) for m in milestones[4:])
fell = 1 - after / before  # share of the loss that the last 2000 steps take off
claim("it has the grammar before it has the memory: at step 1000 two fifths are forgetful, and less than 8 % true",
      share["forgetful"][3] > 0.4 and share["true"][3] < 0.08)
claim("the last 2000 steps take less than a thirtieth off the loss, and there are more than twice as many true documents",
      fell < 1 / 30 and share["true"][5] > 2 * share["true"][4])
record(true3=100 * share["true"][4], true5=100 * share["true"][5])
record(above3=100 * above_floor[4], above5=100 * above_floor[5])
words = [len(corpus.document(s, 5, i).text.split()) for s in corpus.SOURCES for i in range(100)]
record(fewest=min(words), most=max(words))

# %% [markdown] lang="en"
# Between step 3000 and step 5000 the loss goes from {{above3:.1f}} % to {{above5:.1f}} % above the floor: in the first picture one hardly sees it. (Here each source counts one third; the log weighs them by their shares, and ends at {{above:.1f}} %.) The share of true documents goes from {{true3:.0f}} % to {{true5:.0f}} %.
#
# **In the last few per cent of the loss, a text stops contradicting itself.** A document has {{fewest:.0f}} to {{most:.0f}} words, and a single wrong word makes the whole document wrong.

# %% [markdown] lang="en"
# ## 3 · What a loss promises
#
# Can one say this from the loss alone? Let $p$ be the true distribution of the documents of one source and $q$ the model's. The excess of a whole document, on average, is
#
# $$d = \mathbb{E}_{x\sim p}\Bigl[\ln\frac{p(x)}{q(x)}\Bigr] \tag{13.1}$$
#
# By hand: two documents are possible, each with $p = 0.5$. The model gives them 0.4 and 0.1, and wastes the other half on nonsense. Then $d = 0.5\ln\frac{0.5}{0.4} + 0.5\ln\frac{0.5}{0.1} = 0.916$, and it writes something true half the time.

# %% [markdown] lang="en"
# The probability $Q$ that it writes a true document is the sum of $q$ over all that can be true. Multiply and divide by $p$:
#
# $$Q = \sum_{x:\,p(x)>0} q(x) = \mathbb{E}_{x\sim p}\Bigl[\frac{q(x)}{p(x)}\Bigr] \ge \exp \mathbb{E}_{x\sim p}\Bigl[\ln\frac{q(x)}{p(x)}\Bigr] = e^{-d} \tag{13.2}$$
#
# The step in the middle is Jensen's inequality: the mean of an exponential is at least the exponential of the mean. In the example, $e^{-0.916} = 0.4 \le 0.5$.

# %%
p, q = np.array([0.5, 0.5]), np.array([0.4, 0.1])
d = (p * np.log(p / q)).sum()
print(f"d = {d:.3f}, e^-d = {np.exp(-d):.3f}, Q = {q.sum():.3f}")
rng = np.random.default_rng(0)
for _ in range(1000):
    p, q = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(9))[:5]  # four more outcomes are nonsense
    assert q.sum() >= np.exp(-(p * np.log(p / q)).sum())
print("(13.2) held in 1000 random cases")

# %% [markdown] lang="en"
# No text belongs to two sources, so the three bounds add up: the share of true documents is at least $\sum_s e^{-d_s}$. Now the run's own numbers: $d_s$ from 500 fresh documents of each source, the share counted among 500 that the model wrote.

# %%
print("step     d: stories  facts   sums    promised   counted")
for m, counted in zip(milestones[3:], share["true"][3:]):
    d = m["document_excess"]
    promised = sum(np.exp(-value) for value in d.values())
    error = 3 * np.sqrt(max(promised * (1 - promised), 1e-3) / 500)  # three standard deviations of a count
    print(f"{m['step']:<12} {d['stories']:7.2f} {d['facts']:6.2f} {d['sums']:6.2f}", end="")
    print(f"     {promised:6.1%}    {counted:6.1%}")
    claim(f"step {m['step']}: the promise is kept", counted > promised - error)
record(promised=100 * promised)

# %% [markdown] lang="en"
# At the end the loss promises that at least {{promised:.0f}} % of what it writes is true, and {{true5:.0f}} % is. At step 3000 the promise was further from the count: (13.2) is a bound, not an estimate. But it gives a loss per *document* a meaning. With an excess of 3 nats, at least one text in twenty is true ($e^{-3} = 0.05$); with 1 nat, at least one in three ($e^{-1} = 0.37$).

# %% [markdown] lang="en"
# ## 4 · A batch that does not fit
#
# The 65B model saw 4 million tokens in a batch. They do not fit into memory at once, so gradients of **micro-batches** are added up. By hand: micro-batch A scores 1 token with loss 4, micro-batch B scores 3 tokens with losses 1, 1 and 2. All four tokens: $8/4 = 2$. The means: 4 and $\frac43$, and *their* mean is 2.67. It is wrong, since A's one token counted three times as much as any of B's.

# %% [markdown] lang="en"
# Let $n_i$ be the number of scored tokens of micro-batch $i$ and $L_i$ their mean loss. The loss of the step is the sum over all tokens, divided by their number:
#
# $$L = \frac{\sum_i n_i L_i}{\sum_i n_i}\qquad\Rightarrow\qquad \nabla L = \frac{\sum_i n_i \nabla L_i}{\sum_i n_i} \tag{13.3}$$
#
# A gradient is linear, so the same weights hold for it. A check with the trained model: eight rows, of which some score few tokens.

# %%
engine, tokenizer = real_run.model()
texts = [corpus.document(s, 5, i).text for i in range(3) for s in ("stories", "facts", "sums")][:8]
rows = [tokenizer.encode(text)[:33] for text in texts]
tokens, targets = np.array(rows)[:, :-1], np.array(rows)[:, 1:].copy()
for row, scored in zip(targets, (32, 32, 32, 32, 20, 12, 6, 3)):
    row[scored:] = nn.IGNORE


def gradient(tokens, targets):
    logits, cache = nn.model_forward(tokens, engine.params, engine.config)
    loss, loss_cache = nn.cross_entropy_forward(logits, targets)
    grads = nn.model_backward(nn.cross_entropy_backward(1.0, loss_cache), cache)
    return float(loss), np.concatenate([grads[name].ravel() for name in engine.params]).astype(float)

# %%
whole = gradient(tokens, targets)
parts = [gradient(tokens[i:i + 2], targets[i:i + 2]) for i in range(0, 8, 2)]
n = (targets != nn.IGNORE).sum(1).reshape(4, 2).sum(1)
right = sum(k * g for k, (_, g) in zip(n, parts)) / n.sum()
means = sum(g for _, g in parts) / 4
size = np.linalg.norm(whole[1])
off = {"(13.3)": right, "the mean of means": means}
off = {name: np.linalg.norm(g - whole[1]) / size for name, g in off.items()}
print("scored tokens:", n, "".join(f"\n{name} is off by {value:.0e}" for name, value in off.items()))
claim("(13.3) is the gradient of the whole batch, to rounding", off["(13.3)"] < 1e-4)
claim("the mean of means is another gradient", off["the mean of means"] > 0.1)

# %% [markdown] lang="en"
# A widely used library took the mean of means until 2024 ([transformers#34191](https://github.com/huggingface/transformers/pull/34191)). With rows of equal length nobody sees it. Often only the answers are scored, not the questions: a **loss mask**. Then the counts are unequal, and it shows. The mask itself is nothing but targets set to `IGNORE`.
#
# ### Your turn: add up micro-batches

# %%
from lessons.checks.train import accumulate  # exercise

# %%
check("13.accumulate", accumulate)

# %% [markdown] lang="en"
# ## 5 · From logits to a token
#
# A model gives a probability to every token, and something must choose. Drawing from the probabilities themselves is temperature 1. Another temperature $\tau$ divides the logits before the softmax:
#
# $$p_i = \frac{e^{z_i/\tau}}{\sum_j e^{z_j/\tau}} \tag{13.4}$$
#
# By hand, logits $\ln 8,\ \ln 4,\ \ln 2$: at $\tau = 1$ the odds are 8 : 4 : 2; at $\tau = 0.5$ they are squared, 64 : 16 : 4; at $\tau = 2$ they are their roots. A small $\tau$ makes likely tokens likelier.

# %% [markdown] lang="en"
# **Top-p** cuts the tail: sort by probability, keep the *fewest* tokens that together hold at least $P$, and divide by what they hold:
#
# $$K = \Bigl\{\text{token } i : \sum_{j \text{ likelier than } i} p_j < P\Bigr\},\qquad p'_i = \frac{p_i}{\sum_{j\in K} p_j}\ \text{ for } i\in K, \text{ else } 0 \tag{13.5}$$
#
# By hand, probabilities 0.57, 0.29, 0.14 and $P = 0.6$: before the first token 0 is held, before the second 0.57, before the third 0.86. Two stay; the second one *crosses* $P$ and is kept.

# %%
z = np.log([8.0, 4.0, 2.0])
for tau in (1, 0.5, 2):
    p = np.exp(z / tau) / np.exp(z / tau).sum()
    print(f"temperature {tau}: {p.round(3)}")
p = np.exp(z) / np.exp(z).sum()
before = np.cumsum(p) - p
kept = before < 0.6
print("held before each:", before.round(2), " kept at P = 0.6:", kept, " then:", (p * kept / p[kept].sum()).round(3))

# %% [markdown] lang="en"
# ### Your turn: the distribution that is drawn from

# %%
from lessons.checks.train import token_probabilities  # exercise

# %%
check("13.token_probabilities", token_probabilities)

# %% [markdown] lang="en"
# What does it do to a real position? The text says "The capital of Belby is", and now eight beginnings of names could come. By the grammar seven of them are equally likely, and "Bel", the land's own, is not possible. Here are the model's probabilities at two temperatures, and what the cut keeps. (The bars stand before the division in (13.5).) Move the sliders in a running notebook.

# %%
prompt = "Belby is a land in the west. The capital of Belby is"
ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
capital = engine.logits(np.array([ids]))[0, -1].astype(float)


def softened(temperature, top_p):
    z = np.exp((capital - capital.max()) / temperature)
    p, order = z / z.sum(), np.argsort(-z)
    stays = order[np.cumsum(p[order]) - p[order] < top_p]
    return p, np.isin(np.arange(len(p)), stays)


def show(axis, temperature, top_p):
    p, stays = softened(temperature, top_p)
    top = np.argsort(-capital)[:11]
    axis.barh(range(11), p[top], color=[lab.COLOURS[0] if stays[i] else "#cccccc" for i in top])
    axis.set_yticks(range(11), [tokenizer.decode([int(i)]).strip() for i in top])
    axis.set(xlim=(0, 0.25), ylim=(10.5, -0.5), xlabel="probability")
    axis.set_title(f"temperature {temperature:g}, top-p {top_p:g}")


fig, axes = plt.subplots(1, 3, figsize=(7.2, 3.2), sharey=True)
for axis, setting in zip(axes, ((1.0, 1.0), (0.3, 1.0), (1.0, 0.85))):
    show(axis, *setting)
fig.suptitle("The capital of Belby is … Blue can be drawn, grey is cut", x=0.01, ha="left", fontsize=11)
plt.show()

# %%
import ipywidgets


def slide(temperature=1.0, top_p=1.0):
    show(plt.subplots(figsize=(4, 3))[1], temperature, top_p)
    plt.show()


sliders = ipywidgets.interact(slide, temperature=ipywidgets.FloatSlider(1.0, min=0.1, max=2.0, step=0.1),
                              top_p=ipywidgets.FloatSlider(1.0, min=0.1, max=1.0, step=0.05))

# %% [markdown] lang="en"
# The usual advice is to write at 0.7 or 0.8, or with top-p 0.9. What does one win by it, and what does one lose? At each temperature the model writes 100 documents with each of three seeds. Two things are counted: how many are **true**, and how many are **facts**, one of its three kinds of text.

# %%
temperatures, seeds = (0.2, 0.5, 0.8, 1.0, 1.2, 1.4), 3
if FAST:  # the builders' short trial run
    temperatures, seeds = (0.2, 1.0), 1
true, facts = np.zeros((2, 2, len(temperatures), seeds))
for c, t, seed in np.ndindex(2, len(temperatures), seeds):
    texts = real_run.documents(engine, tokenizer, 100, seed, Sampling(temperatures[t], top_p=(1.0, 0.9)[c]))
    true[c, t, seed] = sum(real_run.verdict(text) == "true" for text in texts)
    facts[c, t, seed] = sum(" is a land in" in text for text in texts)

# %%
fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.2), sharey=True)
for axis, values, title in zip(axes, (true, facts), ("True documents", "Documents of the kind 'facts'")):
    for c, label in enumerate(("all tokens", "top-p 0.9")):
        axis.plot(temperatures, values[c].mean(1), color=lab.COLOURS[c], label=label)
        low, high = values[c].min(1), values[c].max(1)
        axis.fill_between(temperatures, low, high, color=lab.COLOURS[c], alpha=0.2, linewidth=0)
    axis.set(xlabel="temperature", title=title, ylim=(0, 90))
axes[0].set_ylabel("of 100 documents")
axes[0].legend(loc="lower left")
plt.show()

# %%
cold, warm, hot = 0, temperatures.index(1.0), -1
claim("cold at 0.2 is truer than 1.0, in the mean", true[0, cold].mean() > true[0, warm].mean() + 8, fast=False)
claim("and it hardly writes facts any more, in every seed", (facts[0, cold] < 0.5 * facts[0, warm]).all(), fast=False)
claim("hot at 1.4: fewer than two thirds as many are true, in every seed",
      (true[0, hot] < 0.67 * true[0, warm]).all(), fast=False)
claim("top-p 0.9 undoes most of the heat, in every seed", (true[1, hot] > 1.5 * true[0, hot]).all(), fast=False)
record(cold=true[0, cold].mean(), warm=true[0, warm].mean())
record(hot=true[0, hot].mean(), hot_cut=true[1, hot].mean())
record(cold_facts=facts[0, cold].mean(), warm_facts=facts[0, warm].mean())

# %% [markdown] lang="en"
# At temperature 1, {{warm:.0f}} of 100 documents are true; at 0.2, {{cold:.0f}}. But {{warm_facts:.0f}} were facts, and now {{cold_facts:.0f}} are. **Cold sampling drops what is a little less likely, and whole kinds of text with it.** A count of errors does not show that. Heat is worse: {{hot:.0f}} are true at 1.4. With top-p 0.9 it is {{hot_cut:.0f}} again, since the nonsense was in the tail.
#
# Between 0.5 and 1 the means differ by little more than their bands are wide, so these counts give no advice. (Section 2 counted {{true5:.0f}} % at temperature 1: a few hundred documents leave such an uncertainty.) Two models are compared by their loss, or at temperature 1 without a cut.

# %% [markdown] lang="en"
# ## 6 · Each token once
#
# To write token $t$, the model needs the keys and values of all tokens before it. They do not change: position $j$ sees only positions up to $j$, so what comes later cannot alter $k_j$ and $v_j$. Keep them. The new token $x$ stands at position $n$ if $n$ are kept (positions count from 0). Its key goes in rotated, once, by $R_n$, the rotation of lesson 04:
#
# $$\text{keys} \leftarrow [\,k_0, \dots, k_{n-1},\; R_n W_k x\,],\qquad \text{values} \leftarrow [\,v_0, \dots, v_{n-1},\; W_v x\,] \tag{13.6}$$
#
# Then it attends to all of them, itself among them. No mask is needed, since nothing later is there:
#
# $$\text{out} = \sum_{j=0}^{n} a_j v_j,\qquad a = \operatorname{softmax}\Bigl(\frac{(R_n W_q x)\cdot k_j}{\sqrt{D_h}}\Bigr)_{j=0 \dots n} \tag{13.7}$$
#
# By hand: to write 4 tokens without a cache, the blocks compute $1 + 2 + 3 + 4 = 10$ positions; with it, 4. For $T$ tokens it is $T(T+1)/2$ against $T$: for 128 tokens, $129/2 = 64.5$ times as many.

# %%
cache, by_cache = engine.new_cache(), []
for token in ids:
    by_cache.append(engine.decode(np.array([[token]]), cache)[0, 0])
full = engine.logits(np.array([ids]))[0]
off, size = np.abs(np.array(by_cache) - full).max(), np.abs(full).max()
print(f"{len(ids)} tokens: the cached logits differ from the full forward by {off:.0e}, of logits up to {size:.0f}")
claim("the cache changes nothing, to rounding in float32", off < 1e-4 * size)

# %% [markdown] lang="en"
# ### Your turn: one step of cached attention

# %%
from lessons.checks.train import decode_step  # exercise

# %%
check("13.decode_step", decode_step)

# %% [markdown] lang="en"
# A common mistake is a cache whose positions do not advance. All shapes are right, the first token is right, and after some tokens the text is nonsense. Here is the model with that mistake: its cache gives the angles of position 0 to every token.

# %%
cache, ids = engine.new_cache(), [tokenizer.bos_id]
cos, sin = cache.tables
cache.tables = tuple(np.repeat(table[:1], len(table), 0) for table in (cos, sin))  # every token at position 0
rng = np.random.default_rng(0)
while len(ids) < 60 and ids[-1] != tokenizer.eos_id:
    logits = engine.decode(np.array([ids[-1:]]), cache)[0, -1].astype(float)
    p = np.exp(logits - logits.max())
    ids.append(int(rng.choice(len(p), p=p / p.sum())))
wrong = tokenizer.decode(ids[1:])
print(real_run.verdict(wrong), "·", ascii(wrong)[1:-1])
claim("a cache that does not advance writes nonsense", real_run.verdict(wrong) == "broken")

# %% [markdown] lang="en"
# ## 7 · Talk to it
#
# It knows three kinds of text and nothing else. Begin one, and let it go on. In a shell: `python -m minillama generate lessons/run/model --prompt "Tom met"`, or `generate lessons/run/model -i`, which asks for one beginning after the other.

# %%
from minillama.generate import generate

sums = "Mia counts owls in the barn and the park on day 417: 8+4="
for prompt in ("Tom met Zoe", "Fenlia is a land", sums, "How are you"):
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    new = generate(engine, ids, 100, tokenizer.eos_id, Sampling(temperature=0.5, seed=1))
    answer = tokenizer.decode([*ids[1:], *new])
    print(f"{real_run.verdict(answer):<9} {answer}\n")

# %% [markdown] lang="en"
# The last prompt is none of its texts. The model goes on with the nearest thing that it knows. It has no way to say that it does not understand.
#
# **Look inside.** Which token did it get wrong, what did it look at, and could it have known? `python -m minillama look RUN` opens a page that shows it for any text; `train` leaves such a page, `look.html`, in the run's folder. The numbers behind it are in [`minillama/look`](../minillama/look). Here they are for a story that the model was not trained on. *Known* is what the token costs a reader who knows the grammar and remembers all, but has to find out, as the model has, which kind of text it reads.

# %%
from minillama.look import inside
from minillama.look.known import PerfectReader

story = corpus.document("stories", -1, 9)  # no training has the seed -1
ids = tokenizer.encode(story.text, bos=True)
losses = inside.losses(inside.forward(ids, engine.params, engine.config).logits, ids)
reader = PerfectReader(tokenizer)
known = -np.log([before.tokens[id] for before, id in zip(reader.expect(ids), ids[1:])])
claim("what is known adds up to the story's bits, and the price of finding out that it is a story",
      abs(known.sum() - story.bits * np.log(2) + np.log(reader.prior["stories"])) < 1e-9)

worst = int(np.argmax(losses - known)) + 1
print(f"{story.text}\n\nMost is lost at token {worst}, {tokenizer.pieces[ids[worst]][0]}, after: ...{tokenizer.decode(ids[:worst])[-28:]}")
print(f"it cost {losses[worst - 1]:.2f} nats, known {known[worst - 1] + 0:.2f}\n\nwhat it read for it (gradient times embedding, both as lengths)")
read = inside.influence(ids, [worst], engine.params, engine.config).sensitivity[0]
for t in np.argsort(-read)[:4]:
    print(f"  {t:>3} {tokenizer.pieces[ids[t]][0]:<7} {read[t]:.2f}")
heads = inside.ablation(ids, engine.params, engine.config)[:, worst - 1]
layer, head = divmod(int(heads.argmax()), engine.config.n_heads)
print(f"without head {head} of layer {layer} it would cost {heads.max():+.2f} nats")
claim("it could have known: nobody can give away what she does not have", known[worst - 1] < 1e-9 < 0.5 < losses[worst - 1])

# %% [markdown] lang="en"
# "Ann gave Tom the": Ann has the book and nothing else, so nothing else can come. The model has read about the book and about the cup, and hesitates between them. On most other tokens it pays about what is known; there a loss of two nats is not a mistake.
#
# ## 8 · Train your own
#
# With `RUN=1` in the environment, the next cell trains the same run again and compares it with the committed one: some minutes on two cores. Other processors round differently, so they end at a slightly different loss.

# %%
if os.environ.get("RUN") == "1":
    mine = real_run.train()
    print(f"the committed run {last:.4f}, yours {mine:.4f}")
    claim("within one per cent", abs(mine / last - 1) < 0.01)
else:
    print("python -m minillama", " ".join(real_run.COMMAND))

# %% [markdown] lang="en"
# **What does not show at this scale.** The text has a grammar of a few dozen words, and the model has no world to know. That memory comes after grammar is a fact about this text. A real corpus has many things to learn at once. No bound like (13.2) can be computed for it, since nobody knows its floor. The best temperature, too, belongs to this model and this text.

# %% [markdown] lang="en"
# ## The anchor in the paper
#
# LLaMA figure 1 shows the training loss over the tokens for the four sizes, and it still falls at the end, as here. Table 2 has the four recipes, with batches of 4 million tokens. Appendix C shows what the 65B model writes. Most of its evaluation (§3) is by likelihood or by greedy decoding; programs (§3.5) are drawn, at temperature 0.1 for one try, and at 0.8 for many. *The Curious Case of Neural Text Degeneration* (Holtzman et al. 2020) is the paper on top-p.

# %% [markdown] lang="en"
# ## Three questions
#
# 1. A model is 2 nats per document above the floor on its only source. What share of its documents, at least, is true? And if the documents were twice as long, with the same loss per token?
# 2. Two micro-batches score 10 and 30 tokens, and their mean losses are 2 and 1. What is the loss of the step, and what does the mean of means say?
# 3. Why can the cache keep the keys *after* RoPE has rotated them, although the query's position grows with every token?
#
# <details><summary>Answers</summary>
#
# 1. At least $e^{-2} = 13.5$ %. Documents twice as long cost twice the excess: 4 nats, and $e^{-4} = 1.8$ %.
# 2. $(10\cdot2 + 30\cdot1)/40 = 1.25$. The mean of means says 1.5.
# 3. Each key is rotated by its *own* position, which does not change; the query by its own. In the score only the difference of the two is left (lesson 04), so a kept key is right for every later query.
#
# </details>
#
# **The way on:** [14 · A pre-trained model](14_pretrained.ipynb): begin where a training like this one has ended, and adapt it to another task.
