# %% [markdown] lang="en"
# # 12 · Data: mixing and generalising
#
# **Question.** LLaMA reads text from seven sources, and one number for each says how much of it. What happens to a model when such a number is 0, or 1 %, or 100 %? And how often can a model read the same text before it learns that text in place of the language?
#
# After this lesson you can turn a recipe of shares into epochs and into the rows of a batch, and read a transfer matrix. You can tell what a model has learned from what it remembers, and name the mistakes that spoil a mix.
#
# *Needs:* [00 · Baselines](00_baselines.ipynb). *Paper:* LLaMA §2.1, Table 1. *Code:* [`minillama/text/mixture.py`](../minillama/text/mixture.py). *Time:* 35 minutes to read and solve, a minute or two to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import numpy as np

from lessons import FAST, check, claim, lab, plt, record
from minillama.engine.numpy_engine import NumpyEngine
from minillama.text import corpus

# %% [markdown] lang="en"
# ## 1 · Shares and epochs
#
# A mix is a weight $w_i$ for each source $i$. Only their proportions count, so we divide by the sum. The result is the source's **share** of all the tokens that are read:
#
# $$p_i = \frac{w_i}{\sum_j w_j} \tag{12.1}$$

# %% [markdown] lang="en"
# A training run reads $N$ tokens, $p_iN$ of them from source $i$. The source has $|D_i|$ tokens. So each of them is read this often on average, the source's **epochs**:
#
# $$e_i = \frac{p_i\,N}{|D_i|} \tag{12.2}$$
#
# By hand: read $N = 100$ tokens, half from a source that has 200, half from one that has 20. The large one is read $50/200 = 0.25$ times, the small one $50/20 = 2.5$ times. **A share is a choice; the epochs are its price.**

# %% [markdown] lang="en"
# LLaMA's Table 1 gives shares, epochs and sizes on disk, for $N = 1.4\cdot10^{12}$. It does not give $|D_i|$. But (12.2) does: $|D_i| = p_iN/e_i$. If the table is right, every source must then have a believable number of bytes per token.

# %%
table1 = {  # share in %, epochs, bytes on disk
    "CommonCrawl": (67.0, 1.10, 3.3e12), "C4": (15.0, 1.06, 783e9), "GitHub": (4.5, 0.64, 328e9),
    "Wikipedia": (4.5, 2.45, 83e9), "Books": (4.5, 2.23, 85e9),
    "ArXiv": (2.5, 1.06, 92e9), "StackExchange": (2.0, 1.03, 78e9)}
share, published, disk = np.array(list(table1.values())).T
N = 1.4e12
there = share / share.sum() * N / published
print("source          share  epochs   disk    tokens there  bytes/token")
for name, p, e, size, tokens in zip(table1, share, published, disk, there):
    print(f"{name:<14} {p:5.1f} % {e:6.2f} {size / 1e9:6.0f} GB {tokens / 1e9:8.0f} billion {size / tokens:8.2f}")

# %% [markdown] lang="en"
# All sources are between 2.8 and 4.0 bytes per token, web pages highest: believable. Now the other way round. Suppose we know only the disk sizes and *one* number of bytes per token for all. How well does (12.2) give the epochs?

# %%
guess = share / share.sum() * N / (disk / (disk.sum() / there.sum()))
for name, e, g in zip(table1, published, guess):
    print(f"{name:<14} epochs {e:.2f}   from the disk alone {g:.2f}")
claim("the shares of Table 1 sum to 100 %", abs(share.sum() - 100) < 1e-9)
claim("every source has between 2.7 and 4.0 bytes per token", ((disk / there > 2.7) & (disk / there < 4.0)).all())
claim("from the disk alone, all epochs come out within 40 %", (np.abs(np.log(guess / published)) < np.log(1.4)).all())
claim("GitHub is not read once, Wikipedia and Books more than twice",
      published[2] < 1 and published[3] > 2 and published[4] > 2)

# %% [markdown] lang="en"
# So the paper reads Wikipedia and books more than twice, and its code less than once. Beside it, here is our small mix: three generated languages, 35 % stories, 40 % facts, 25 % sums. Its epochs in 200 steps of 8 rows with 64 tokens:

# %%
tokenizer, shards = lab.text()
for shard in shards:
    n = len(shard.train.tokens)
    print(f"{shard.name:<8} share {shard.share:.0%}   {n:,} tokens   epochs {shard.share * 200 * 8 * 64 / n:.2f}   "
          f"{corpus.document(shard.name, 0, 0).text[:52]}…")

# %% [markdown] lang="en"
# ### Your turn: epochs
#
# Write (12.1) and (12.2) for all sources at once. Each size is given in bytes, beside the source's bytes per token.

# %%
from lessons.checks.data import epochs  # exercise

# %%
check("12.epochs", epochs)

# %% [markdown] lang="en"
# ## 2 · Shares of what?
#
# Shares count **tokens**. Suppose that documents are drawn instead, from source $i$ with probability $q_i$, and each is read to its end. A document of source $i$ has $L_i$ tokens on average. Then one draw brings $q_iL_i$ tokens of source $i$ on average, and $\sum_j q_jL_j$ in all. The shares of the tokens are
#
# $$p_i = \frac{q_i\,L_i}{\sum_j q_j\,L_j} \tag{12.3}$$
#
# By hand: documents of 100 and of 10 tokens, half and half. Then $p = (50, 5)/55 = (0.91, 0.09)$. The second source should have half, and has 9 %.

# %%
length = np.array([len(shard.train.tokens) / shard.train.documents for shard in shards])
q = np.array([shard.share for shard in shards])
by_document = q * length / (q * length).sum()
drawn = np.random.default_rng(0).choice(3, 100_000, p=q)
counted = np.array([length[i] * (drawn == i).sum() for i in range(3)])
print("tokens per document      ", length.round(0))
print("wanted                   ", q)
print("(12.3), weights by document", by_document.round(3))
print("100,000 documents drawn  ", (counted / counted.sum()).round(3))
claim("the draws agree with (12.3)", np.abs(counted / counted.sum() - by_document).max() < 0.01)
record(sums_by_document=100 * by_document[2])

# %% [markdown] lang="en"
# Our sums are short texts. With the same weights by document, they would have {{sums_by_document:.0f}} % of the tokens, and not 25 %.
#
# ### Your turn: from documents to tokens
#
# Write (12.3), for weights that need not sum to 1.

# %%
from lessons.checks.data import token_shares  # exercise

# %%
check("12.token_shares", token_shares)

# %% [markdown] lang="en"
# ## 3 · The rows of a batch
#
# A batch has $B$ rows, and $Bp_i$ is rarely a whole number: 35 % of 8 rows are 2.8. **Systematic sampling** needs one random number $u$ between 0 and 1 for the whole batch. Lay the shares end to end on a line from 0 to 1, with $P_i = p_0 + \dots + p_i$ and $P_{-1} = 0$. Put $B$ points on it, $1/B$ apart. Row $k$ reads the source $s_k$ in which its point $x_k$ lies:
#
# $$x_k = \frac{u + k}{B},\quad k = 0\dots B-1,\qquad s_k = i \ \text{ where }\ P_{i-1} \le x_k < P_i \tag{12.4}$$

# %%
shares, B = np.array([0.35, 0.40, 0.25]), 8
fig, axis = plt.subplots(figsize=(7.2, 2.3))
for y, u in enumerate((0.1, 0.5, 0.9)):
    left = np.cumsum(shares) - shares
    axis.barh([y] * 3, shares, left=left, height=0.55, color=lab.COLOURS[:3], alpha=0.35)
    x = (u + np.arange(B)) / B
    counts = np.bincount(np.searchsorted(np.cumsum(shares), x, side="right"), minlength=3)
    axis.plot(x, [y] * B, "ko", markersize=5)
    axis.text(1.02, y, f"{counts[0]} + {counts[1]} + {counts[2]}", va="center")
for name, start, p in zip(corpus.SHARES, left, shares):
    axis.text(start + p / 2, 2.42, f"{name} {p:.0%}", ha="center", va="bottom")
axis.set(yticks=range(3), yticklabels=[f"u = {u}" for u in (0.1, 0.5, 0.9)], xlim=(0, 1.2), ylim=(-0.4, 2.85),
         xticks=np.arange(0, 1.1, 0.25), xlabel="cumulative share; the points are the rows of one batch")
axis.grid(False)
axis.set_title("One offset, equal steps: each source within one row of its share")
plt.show()

# %% [markdown] lang="en"
# How far can a batch be from its shares? Let $n_i$ be the number of rows that read source $i$. First for rows that draw **independently**. Row $k$ counts $c_k = 1$ with probability $p_i$, else 0. Its mean is $p_i$, its variance $p_i - p_i^2$, since $c_k^2 = c_k$. Variances of independent rows add up:
#
# $$\operatorname{Var}[n_i] = \sum_{k<B} p_i(1-p_i) = B\,p_i(1-p_i) \tag{12.5}$$

# %% [markdown] lang="en"
# Now (12.4). Source $i$ is an interval that is $Bp_i$ steps long. Write $Bp_i = m + f$, with $m$ whole and $0 \le f < 1$. While $u$ runs from 0 to 1, the points move by exactly one step. So $m$ whole steps hold $m$ points, always. The rest has length $f$, and for a share $f$ of all $u$ a point falls into it. So $n_i = m + b$, where $b$ is 1 with probability $f$. Its mean is $m + f = Bp_i$, exactly right, and
#
# $$\operatorname{Var}[n_i] = f(1-f) \le \tfrac14,\qquad |n_i - Bp_i| < 1 \tag{12.6}$$

# %%
rng, T = np.random.default_rng(0), 20_000
points = (rng.random((T, 1)) + np.arange(B)) / B
for name, x in (("systematic", points), ("independent", rng.random((T, B)))):
    n = np.array([(np.searchsorted(np.cumsum(shares), x, side="right") == i).sum(1) for i in range(3)])
    print(f"{name:<12} mean {n.mean(1).round(2)}  variance {n.var(1).round(3)}  farthest "
          f"{np.abs(n - B * shares[:, None]).max():.1f} rows")
    if name == "systematic":
        claim("systematic sampling is less than one row away, always", np.abs(n - B * shares[:, None]).max() < 1)
f = B * shares % 1
print("(12.6)      ", (f * (1 - f)).round(3), "   (12.5)", (B * shares * (1 - shares)).round(3))

# %% [markdown] lang="en"
# The random numbers of a step are made from `[seed, step]` and nothing else. So a batch is a **pure function of (seed, step)**: a run that was stopped can go on without knowing its place in the data, and every step gets another batch.
#
# ### Your turn: the sampler
#
# Write (12.4). The offset $u$ is the first random number of the step.

# %%
from lessons.checks.data import row_sources  # exercise

# %%
check("12.row_sources", row_sources)

# %% [markdown] lang="en"
# ## 4 · What is kept back
#
# The loss on text that was trained on says little about the language. So the end of every stream is held out: of its $n$ tokens, those from the border $b$ on are never trained on. A row that begins at $s$ has $T+1$ tokens, since its last target is one further than its last input. Its last token, $s + T$, must lie before the border:
#
# $$\text{training:}\quad s + T \le b - 1 \;\Rightarrow\; s \in \{0, \dots, b - T - 1\} \tag{12.7}$$

# %% [markdown] lang="en"
# Validation scores each held-out token once (but the first, which has none before it, and a rest that is too short for a row). Neighbouring rows share one token: the last target of one is the first input of the next.
#
# $$\text{validation:}\quad s = b,\; b+T,\; b+2T,\; \dots\quad\text{while } s + T \le n - 1 \tag{12.8}$$
#
# By hand: $n = 20$, $b = 10$, $T = 3$. Training rows begin at 0…6, and the last is 6, 7, 8, 9. Validation rows begin at 10, 13, 16: tokens 10…13, 13…16, 16…19. (In the built-in text whole documents are held out, which is stricter.)
#
# ### Your turn: where rows may begin
#
# Write (12.7) and (12.8). The stream has `tokens` tokens, and the last `held_out` of them are held out.

# %%
from lessons.checks.data import windows  # exercise

# %%
check("12.windows", windows)

# %% [markdown] lang="en"
# ## 5 · The picture: a transfer matrix
#
# We train on one source, on two, or on the mix, always 200 steps with a peak learning rate of 0.03, and measure on all three. All numbers are **excess**: loss less the exact floor of *that* source. A model that knows nothing gives each of the $V$ pieces $1/V$. Its excess is $\ln V - \text{floor}$. Predict: will a model of stories be better on sums than that?

# %%
mix, lr, SEEDS = dict(corpus.SHARES), 0.03, 1 if FAST else 3  # FAST: the builders' short trial run
of = lambda *names: {"lr": lr, "mix": {name: mix[name] for name in names}}
trained = {"stories": of("stories"), "facts": of("facts"), "sums": of("sums"), "no stories": of("facts", "sums"),
           "no facts": of("stories", "sums"), "no sums": of("stories", "facts"), "the mix": {"lr": lr, "mix": mix}}
matrix = lab.run(trained, seeds=SEEDS, steps=200, evaluations=1)
on = lambda result, source: result.sources[source][:, -1]  # (seeds,) at the end
knows_nothing = {shard.name: np.log(tokenizer.vocab_size) - shard.val.floor for shard in shards}

# %%
rows, columns = ["knows nothing: 1/V", *trained], list(mix)
mean = np.array([[knows_nothing[s] for s in columns], *([on(matrix[r], s).mean() for s in columns] for r in trained)])
fig, axis = plt.subplots(figsize=(7.2, 4.4))
image = axis.imshow(np.log10(mean), aspect="auto", cmap="cividis", vmin=np.log10(0.2), vmax=np.log10(12))
for y, row in enumerate(rows):
    for x, source in enumerate(columns):
        band = "" if y == 0 else f"\n{on(matrix[row], source).min():.2f} to {on(matrix[row], source).max():.2f}"
        dark = mean[y, x] < 1.5
        axis.text(x, y, f"{mean[y, x]:.2f}{band}", ha="center", va="center", color="white" if dark else "black",
                  fontsize=9)
axis.set(xticks=range(3), xticklabels=[f"on {c}" for c in columns], yticks=range(len(rows)),
         yticklabels=[rows[0], *(f"trained on {r}" if r in mix or r == "the mix" else f"the mix, {r}"
                                 for r in rows[1:])])
axis.xaxis.tick_top()
axis.grid(False)
for spine in axis.spines.values():
    spine.set_visible(False)
bar = fig.colorbar(image, ax=axis, label="excess (nats/token)", ticks=np.log10([0.2, 0.5, 1, 2, 5, 10]))
bar.ax.set_yticklabels(["0.2", "0.5", "1", "2", "5", "10"])
axis.set_title("A source that was not read costs more than knowing nothing\n(mean, lowest and highest of three seeds)",
               pad=10)
plt.show()

# %% [markdown] lang="en"
# **Remember the bright cells.** A source that was not read costs {{least:.1f}} to {{most:.1f}} nats/token, while a model that knows nothing pays {{nothing:.1f}} on average. Cross-entropy is entropy plus KL (0.10), and KL has no upper limit. A model that is *sure* of the wrong thing pays more than one that gives all tokens the same chance. A low loss on one source promises nothing for another.

# %%
unread = [(r, s) for r in trained for s in columns if s not in trained[r]["mix"]]
specialist = {s: on(matrix[s], s) for s in columns}
record(least=min(on(matrix[r], s).mean() for r, s in unread), most=max(on(matrix[r], s).mean() for r, s in unread))
record(nothing=np.mean(list(knows_nothing.values())))
record(cost=max((on(matrix["the mix"], s) - specialist[s]).mean() for s in columns))
claim("every source that was not read costs more than knowing nothing, at every seed",
      all(on(matrix[r], s).min() > knows_nothing[s] + 0.5 for r, s in unread), fast=False)
claim("the mix is within 0.3 nats/token of the specialist, on every source",
      all(on(matrix["the mix"], s).max() < specialist[s].min() + 0.3 for s in columns), fast=False)
claim("and the specialist is better on its own source, at every seed",
      all(specialist[s].max() + 0.02 < on(matrix["the mix"], s).min() for s in columns), fast=False)

# %% [markdown] lang="en"
# ## 6 · Do the others help?
#
# The mix is at most {{cost:.2f}} nats/token behind a specialist, a model of one source. But the specialist has read 2.5 to 4 times as much of its own source. What if it reads only what the mix reads of that source? There are two ways to do this, and they do not say the same:
#
# - *fewer steps*: full batches of one source, until its share of the tokens is used up;
# - *own rows*: all 200 steps, without the rows of the others. Of 8 rows, 3, 3 and 2 are left (2.8, 3.2 and 2 in the mix).

# %%
fewer = {name: {**of(name), "steps": n} for name, n in (("stories", 70), ("facts", 80), ("sums", 50))}
own = {name: {**of(name), "batch_size": n} for name, n in (("stories", 3), ("facts", 3), ("sums", 2))}
fewer, own = (lab.run(arms, seeds=SEEDS, steps=200, evaluations=1) for arms in (fewer, own))
for name in columns:
    for label, found in (("fewer steps", on(fewer[name], name)), ("own rows", on(own[name], name)),
                         ("in the mix", on(matrix["the mix"], name))):
        print(f"{name:<8} {label:<12} {found.mean():.3f} ({found.min():.3f} to {found.max():.3f})")

# %% [markdown] lang="en"
# Against *fewer steps* the mix wins clearly: sums {{sums_fewer:.2f}} alone, {{sums_mix:.2f}} in the mix. "The other sources help", one would say. Against *own rows*, nothing is left of this gain: {{sums_own:.2f}} alone, and facts are even a little better alone. **The help was the number of updates.** These three languages share words and little else. In a model of {{parameters:,.0f}} parameters they neither help nor disturb each other much.

# %%
record(parameters=sum(w.size for w in matrix["the mix"].params[0].values()))
record(sums_fewer=on(fewer["sums"], "sums").mean(), sums_own=on(own["sums"], "sums").mean(),
       sums_mix=on(matrix["the mix"], "sums").mean())
claim("against fewer steps, the mix looks far better on stories and sums, at every seed",
      all(on(matrix["the mix"], s).max() + 0.1 < on(fewer[s], s).min() for s in ("stories", "sums")), fast=False)
claim("against the same number of updates, it is not better by 0.1 on any source",
      all(on(matrix["the mix"], s).mean() > on(own[s], s).mean() - 0.1 for s in columns), fast=False)
claim("and not worse by 0.15", all(on(matrix["the mix"], s).mean() < on(own[s], s).mean() + 0.15 for s in columns),
      fast=False)

# %% [markdown] lang="en"
# ## 7 · Changing one share
#
# Now we change one share. Sums get 0 to 100 % of the tokens, the others keep their proportion, and all runs read the same number of tokens.

# %%
def with_sums(p):
    """The mix with a share p of sums, the others in proportion."""
    return {"lr": lr, "mix": {"stories": 0.35 * (1 - p) / 0.75, "facts": 0.4 * (1 - p) / 0.75, "sums": p}}


levels = (0.01, 0.05, 0.5, 0.9)
turned = lab.run({f"{p}": with_sums(p) for p in levels}, seeds=SEEDS, steps=200, evaluations=1)
sweep = {0.0: matrix["no sums"], 0.25: matrix["the mix"], 1.0: matrix["sums"], **{p: turned[f"{p}"] for p in levels}}
sweep = dict(sorted(sweep.items()))

# %%
fig, axis = plt.subplots()
place = {p: k for k, p in enumerate(sweep)}
for name, colour in zip(columns, lab.COLOURS):
    found = np.array([on(result, name) for result in sweep.values()])
    axis.plot(range(len(sweep)), found.mean(1), "o-", color=colour, markersize=4, label=name)
    axis.fill_between(range(len(sweep)), found.min(1), found.max(1), color=colour, alpha=0.2, linewidth=0)
axis.set(yscale="log", xticks=range(len(sweep)), xticklabels=[f"{p:.0%}" for p in sweep],
         xlabel="share of sums (steps not to scale)", ylabel="excess after 200 steps (nats/token)")
axis.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
axis.minorticks_off()
axis.set_title("The first percent of a source helps the most")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# With **1 %** in place of nothing, about 16 rows of 1,600, the excess on sums falls from {{sums_0:.1f}} to {{sums_1:.1f}}. The others hardly change. From 50 % to 100 %, sums gain only {{sums_late:.2f}} more, and the others lose all they have. Look at the last two points of the others: at 90 % sums they still share 10 %. That is enough to stay near {{others_90:.1f}}, and without it they are near {{others_100:.0f}}.

# %%
record(sums_0=on(sweep[0.0], "sums").mean(), sums_1=on(sweep[0.01], "sums").mean())
record(others_90=np.mean([on(sweep[0.9], s).mean() for s in ("stories", "facts")]),
       others_100=np.mean([on(sweep[1.0], s).mean() for s in ("stories", "facts")]))
record(sums_late=(on(sweep[0.5], "sums") - on(sweep[1.0], "sums")).mean())
claim("1 % of sums takes away at least half of the excess on sums, at every seed",
      on(sweep[0.01], "sums").max() < 0.5 * on(sweep[0.0], "sums").min(), fast=False)
claim("and costs the other sources less than 0.1",
      all(on(sweep[0.01], s).mean() < on(sweep[0.0], s).mean() + 0.1 for s in ("stories", "facts")), fast=False)
claim("from 50 to 100 % gains less than 0.15", on(sweep[0.5], "sums").mean() < on(sweep[1.0], "sums").mean() + 0.15,
      fast=False)
claim("10 % for the two others is far better than none",
      all(on(sweep[0.9], s).max() + 5 < on(sweep[1.0], s).min() for s in ("stories", "facts")), fast=False)

# %% [markdown] lang="en"
# ## 8 · The same text again
#
# A large share of a small source means many epochs, by (12.2). Here we train on stories alone, 400 steps in each run, at the usual rate of 0.01. Only the amount of *different* text changes. We measure the held-out text (24 stories each time), and also the text that was **trained on**, against its own exact floor. Predict: can a model get below a floor?

# %%
# characters of all three sources; 35 % of them, less what is held out, are stories to train on
amounts = (30_000, 60_000, 600_000)
story = {a: next(s for s in lab.text(a)[1] if s.name == "stories") for a in amounts}
again = lab.run({f"{a}": {"mix": {"stories": mix["stories"]}, "characters": a} for a in amounts}, seeds=SEEDS,
                steps=400, evaluations=8)
again = {a: again[f"{a}"] for a in amounts}


def on_trained(params, amount):
    """Excess on all the stories that were trained on, against their own exact floor."""
    trained_on = story[amount]._replace(share=1.0, val=story[amount].train)
    return lab.excess(NumpyEngine(lab.configs({})[0], params=params, threads=1), [trained_on])


seen = {a: np.array([on_trained(params, a) for params in again[a].params]) for a in amounts}

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.6), sharey=True, width_ratios=(1.35, 1))
for k, (a, colour) in enumerate(zip(amounts, (lab.COLOURS[1], lab.COLOURS[4], lab.COLOURS[0]))):
    result, stories_there = again[a], story[a].train.documents
    left.plot(result.steps, result.excess.mean(0), color=colour, label=f"{stories_there} stories")
    left.fill_between(result.steps, result.excess.min(0), result.excess.max(0), color=colour, alpha=0.2, linewidth=0)
    right.plot([k] * SEEDS, result.final, "o", color=colour, alpha=0.7, label="held out" if k == 0 else None)
    right.plot([k] * SEEDS, seen[a], "v", color=colour, alpha=0.7, markersize=7, label="trained on" if k == 0 else None)
for axis in (left, right):
    axis.axhline(0, color="black", linewidth=1)
read = {a: 400 * 8 * 64 / len(story[a].train.tokens) for a in amounts}
left.set(xlabel="step", ylabel="excess (nats/token)", title="On held-out stories")
right.set(xticks=range(3), xticklabels=[f"{story[a].train.documents}\n× {read[a]:.0f}" for a in amounts],
          xlim=(-0.5, 2.5),
          xlabel="different stories, × epochs", title="After 400 steps")
right.text(2.45, -0.03, "the floor", ha="right", va="top", fontsize=9)
left.legend()
right.legend()
plt.show()

# %% [markdown] lang="en"
# With 24 stories, read {{read_few:.0f}} times, the held-out excess falls to {{turn:.2f}}, and then **rises** to {{few:.2f}}. On the trained stories it goes to {{few_seen:.2f}}: **below the floor**. No knowledge of the language can do that. Names and numbers in it are drawn by chance. To know them better than chance is to remember *these very stories*. A training loss below the floor measures memory.

# %%
few, some, many = (again[a] for a in amounts)
record(read_few=read[amounts[0]], turn=few.excess.mean(0).min(), few=few.mean, few_seen=seen[amounts[0]].mean(),
       some=some.mean, many=many.mean)
record(read_some=read[amounts[1]], read_many=read[amounts[2]], some_gap=(some.final - seen[amounts[1]]).mean(),
       many_gap=(many.final - seen[amounts[2]]).mean())
claim("with 24 stories the held-out excess has risen by more than 0.1 since its lowest, at every seed",
      (few.final > few.excess.min(1) + 0.1).all(), fast=False)
claim("while the trained text is below its floor, at every seed", seen[amounts[0]].max() < -0.05, fast=False)
claim("with 942 stories no such thing: held out and trained on differ by less than 0.1, at every seed",
      np.abs(many.final - seen[amounts[2]]).max() < 0.1, fast=False)
claim("the fewer different stories, the worse, at every seed", few.final.min() > some.final.max() + 0.1 and
      some.final.min() > many.final.max() + 0.01, fast=False)

# %% [markdown] lang="en"
# In between, {{read_some:.0f}} epochs of 72 stories end only a little above {{read_many:.1f}} epochs of 942: {{some:.2f}} and {{many:.2f}}. So even this much repetition costs little here. But the gap between held-out and trained text, {{many_gap:.2f}} with 942 stories, is {{some_gap:.2f}} with 72.
#
# A validation text that *overlaps* the training text measures the triangles: they look best where the model is worst. (12.7) prevents this.

# %% [markdown] lang="en"
# ## 9 · A museum of wrong batches
#
# Four ways to fill a batch from the same text, beside the right one. Predict which of them the loss of the mix shows.

# %%
wrong = lambda name: {"lr": lr, "patch": {"minillama.text.mixture.Mixture.batch": f"lessons.museum.data.{name}"}}
document_mix = {name: round(float(p), 3) for name, p in zip(columns, by_document)}
museum = {"the right one": {"lr": lr, "mix": mix}, "every row draws by itself": wrong("independent"),
          "weights by document": {"lr": lr, "mix": document_mix},
          "sources one after another": wrong("one_after_another"),
          "the same batch every step": wrong("same_batch")}
museum = lab.run(museum, seeds=SEEDS, steps=200, evaluations=1)

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.4))
for row, result in enumerate(museum.values()):
    for k, name in enumerate(columns):
        found, y = on(result, name), row + 0.22 * (k - 1)
        axis.plot(found, [y] * SEEDS, "o", color=lab.COLOURS[k], alpha=0.6, markersize=5, markeredgewidth=0,
                  label=None if row else name)
axis.set(yticks=range(len(museum)), yticklabels=list(museum), ylim=(len(museum) - 0.5, -0.5), xscale="log",
         xlabel="excess after 200 steps (nats/token); a dot is a seed")
axis.set_xticks([0.3, 0.5, 1, 2, 5, 10], ["0.3", "0.5", "1", "2", "5", "10"])
axis.minorticks_off()
axis.grid(axis="y", visible=False)
axis.legend(loc="upper right")
axis.set_title("Two wrong batches cannot be missed, two can")
plt.show()

# %% [markdown] lang="en"
# **One after another**: each source has had its whole share, and the first is forgotten. Stories end at {{first:.1f}}, sums, which came last, at {{last:.2f}}. **The same batch**: the model sees 512 tokens only, and pays {{same:.1f}} on held-out text. **By document**: sums lose ({{sums_doc:.2f}} for {{sums_mix:.2f}}) and stories gain, so the mean hides it. **Independent rows**: no difference to be seen.

# %%
right_one, alone_rows, per_document, in_turn, same = museum.values()
record(first=on(in_turn, "stories").mean(), last=on(in_turn, "sums").mean(),
       same=np.mean([on(same, s).mean() for s in columns]))
record(mean_doc_fair=sum(mix[s] * on(per_document, s).mean() for s in columns))
record(sums_doc=on(per_document, "sums").mean(), mean_doc=per_document.mean, mean_right=right_one.mean,
       mean_rows=alone_rows.mean)
claim("one after another: stories, which came first, are forgotten, at every seed", on(in_turn, "stories").min() > 3,
      fast=False)
claim("and sums, which came last, are not", on(in_turn, "sums").max() < 1, fast=False)
claim("the same batch: worse than knowing nothing, on every source",
      all(on(same, s).min() > knows_nothing[s] + 0.5 for s in columns), fast=False)
claim("by document: sums are worse, at every seed", on(per_document, "sums").min() > on(right_one, "sums").max() + 0.02,
      fast=False)
claim("independent rows make no difference that 200 steps show", abs(alone_rows.mean - right_one.mean) < 0.06,
      fast=False)

# %% [markdown] lang="en"
# ## 10 · What a mix itself costs
#
# A reader of one source knows which source comes. A reader of a mix must find out. Let a document be drawn in two steps: first its source $i$, with probability $p_i$, then the document itself. No text belongs to two of our sources. So its probability in the mix is the product $p_i\,P(\text{document}\mid i)$, and
#
# $$-\ln P(\text{document}) = \underbrace{-\ln p_i}_{\text{which source?}} - \ln P(\text{document}\mid i) \tag{12.9}$$

# %% [markdown] lang="en"
# By hand: a share of 25 % costs $\ln 4 = 1.39$ nats, or 2 bits, once per document. No model can avoid this. And it also works in the other direction: what a model expects after `<s>` **tells us its shares**.
#
# Take care which shares: $p_i$ in (12.9) counts *documents*. Shares of tokens would first have to be turned into $q_i$ by (12.3). Below, every row begins with a document, so $p_i$ is the share of the rows, as in (12.4).

# %% [markdown] lang="en"
# After two words the source is known: "Tom met" is a story, "Tom counts" a sum, "Beldor is" a fact. There are 8, 8 and 64 such openings. We add up their probabilities, for models whose rows all begin with a document. (Usually rows begin anywhere, and only about one in a hundred with a document.)

# %%
openings = {"stories": [f"{name} met" for name in corpus.NAMES], "sums": [f"{name} counts" for name in corpus.NAMES],
            "facts": [f"{first}{last} is" for first in corpus.FIRST for last in corpus.LAST]}


def expects(params):
    """The probability that a model gives to each source after <s>: dict."""
    engine = NumpyEngine(lab.configs({})[0], params=params, threads=1)
    ids = {name: [np.array([[tokenizer.bos_id, *tokenizer.encode(text)]]) for text in texts]
           for name, texts in openings.items()}
    return {name: sum(np.exp(-engine.loss(row[:, :-1], row[:, 1:])[0]) for row in ids[name]) for name in mix}


at_documents = lab.run({"rows begin with a document": wrong("at_documents")}, seeds=SEEDS, steps=300, evaluations=1)
expected = [expects(params) for params in at_documents["rows begin with a document"].params]
usual = [expects(params) for params in matrix["the mix"].params]
for name in mix:
    print(f"{name:<8} share {mix[name]:.2f}, expected " + "  ".join(f"{e[name]:.3f}" for e in expected)
          + f"    -ln share {-np.log(mix[name]):.2f}, paid " + "  ".join(f"{-np.log(e[name]):.2f}" for e in expected))

# %%
fig, axis = plt.subplots(figsize=(7.2, 2.6))
for k, name in enumerate(mix):
    axis.barh(k, mix[name], color=lab.COLOURS[k], alpha=0.3, height=0.6)
    axis.plot([e[name] for e in expected], [k] * SEEDS, "o", color=lab.COLOURS[k], markersize=6)
axis.set(yticks=range(3), yticklabels=list(mix), ylim=(2.6, -0.6), xlim=(0, 0.5),
         xlabel="probability after <s> (bar: share in the mix; dots: what three models expect)")
axis.grid(axis="y", visible=False)
axis.set_title("The shares can be read off the model")
plt.show()

# %%
record(entropy=-sum(p * np.log(p) for p in mix.values()),
       paid=np.mean([-sum(mix[s] * np.log(e[s]) for s in mix) for e in expected]))
record(usual_paid=np.mean([-sum(mix[s] * np.log(e[s]) for s in mix) for e in usual]))
claim("what the models expect is within 0.15 of each share, at every seed",
      all(abs(e[s] - mix[s]) < 0.15 for e in expected for s in mix), fast=False)
claim("nothing but the three sources is expected", all(sum(e.values()) > 0.9 for e in expected), fast=False)

# %% [markdown] lang="en"
# On average (12.9) asks for {{entropy:.2f}} nats a document, and these models pay {{paid:.2f}}. A document has 50 to 120 tokens, so this is one or two hundredths of a nat for each. That is little beside what separates the mix from a specialist in the matrix. The models of section 5 hardly ever saw a row begin with a document, and pay {{usual_paid:.1f}}: what was not practised is not known.

# %% [markdown] lang="en"
# **What does not show at this scale.** *Independent draws* ({{mean_rows:.3f}}) against systematic sampling ({{mean_right:.3f}}): over 200 steps, the luck of single batches averages out. *Weights by document*, if one looks only at the loss of the mix: {{mean_doc:.3f}}. But that is a mean with the wrong weights; with the right ones it is {{mean_doc_fair:.3f}}.
#
# *Help from one source to another*, beyond more updates: these three languages are too small and too different. *A few repetitions*: {{read_many:.1f}} epochs leave a gap of {{many_gap:.2f}} here. Muennighoff et al. 2023 (arXiv:2305.16264) found hardly any loss up to four.

# %% [markdown] lang="en"
# ## The anchor in the paper
#
# LLaMA §2.1, Table 1: seven public sources, sampled at 67.0, 15.0, 4.5, 4.5, 4.5, 2.5 and 2.0 %. Each token is used about once, those of Wikipedia and Books about twice. The epochs are those of 1.4 T tokens (33B and 65B). By (12.2), the 1.0 T of 7B and 13B make $2.45/1.4 = 1.75$ epochs of Wikipedia. Our 35/40/25 is a small stand-in that is in no paper.

# %% [markdown] lang="en"
# ## Three questions
#
# 1. A source has 10 billion tokens. You want it at 5 % of a run of 1 T tokens. How many epochs is that, and what do you look at while it trains?
# 2. A batch has 8 rows, and a source a share of 2 %. In how many batches is there a row of it, by (12.6)? And what happens without the offset $u$?
# 3. A training loss is 0.30 nats/token, on text whose floor is 0.41. Which two explanations are there, and how do you tell which one is true?
#
# <details><summary>Answers</summary>
#
# 1. $0.05\cdot10^{12}/10^{10} = 5$ epochs, by (12.2). Look at the held-out loss *of that source*; the loss of the mix would hide its rise.
# 2. $Bp = 0.16$, so $m = 0$, $f = 0.16$: in 16 % of the batches, and never twice in one. Without the offset all points lie at $k/8$: a source at the end of the line, from 0.98 on, is never read.
# 3. Memory (the text was read many times), or a leak: the model sees its targets. Measure held-out text. A model that remembers is worse there; a leak is below the floor there, too.
#
# </details>
#
# **The way on:** [13 · Train it, talk to it](13_train.ipynb): one real run, from the text to a model that talks.
