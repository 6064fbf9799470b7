# %% [markdown] lang="en"
# # 08 · Eleven wrong gradients that train anyway
#
# **Question.** A new backward pass is in, and the loss falls, smoothly. How much does that prove?
#
# After this lesson you know why a wrong gradient usually descends, which mistakes AdamW hides completely, how to check a whole model with two evaluations, and how to read from a table of errors which op is wrong.
#
# *Needs:* [02 · Gradients](02_gradients.ipynb); [03](03_rmsnorm.ipynb), [04](04_rope.ipynb), [05](05_attention.ipynb) and [06](06_swiglu.ipynb) help, since the wrong ops are theirs, and [07](07_llama.ipynb) puts them together. *Paper:* LLaMA §2.3, §2.4. *Code:* [`tests/nn/planted_bugs.py`](../tests/nn/planted_bugs.py), [`minillama/nn/gradcheck.py`](../minillama/nn/gradcheck.py). *Time:* 35 minutes to read and solve, a minute or two to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import numpy as np

from lessons import check, claim, lab, museum, plt, record
from minillama import nn
from minillama.config import ModelConfig
from minillama.engine import numpy_engine
from minillama.engine.numpy_engine import NumpyEngine
from minillama.evaluate import evaluate, mix_floor
from minillama.nn.gradcheck import gradcheck, numerical_gradient
from minillama.optim import adamw_step
from minillama.text.mixture import Mixture

# %% [markdown] lang="en"
# ## 1 · Guess which one is right
#
# Twelve trainings of the same tiny LLaMA, three seeds each. One has the right gradients; each of the others has **one wrong backward function**. All are mistakes that are easily made, and the project's own tests must reject every one of them. The forward pass is right everywhere. The optimiser is AdamW. We show the **excess**: the loss minus the text's entropy floor ([00](00_baselines.ipynb)).

# %%
tokenizer, shards = lab.text()
start = np.log(tokenizer.vocab_size) - mix_floor(shards)  # where a model that knows nothing begins
arms = {"right": {}} | {wrong: {"patch": museum.patch_of(wrong)} for wrong in museum.ELEVEN}
results = lab.run(arms, seeds=3, steps=200, evaluations=1)
ranked = dict(sorted(results.items(), key=lambda item: item[1].mean))

# %%
fig, axis = plt.subplots(figsize=(7.2, 3.8))
shuffled = np.random.default_rng(4).permutation(list(ranked))
letters = {letter: ranked[name] for letter, name in zip("ABCDEFGHIJKL", shuffled)}
lab.plot_dots(axis, letters)
axis.set(xlim=(0, None), title="One of these twelve is right. Which?")
axis.set_xlabel("excess after 200 steps (nats/token): a dot per seed, a bar for the mean")
plt.show()

# %% [markdown] lang="en"
# A model that knows nothing starts at an excess of {{start:.1f}}. So **all twelve learned**: even the worst one ends at {{worst:.1f}}. Write down your guess before you go on.
#
# ## 2 · Why a wrong gradient goes down
#
# Let $\theta$ be all parameters, $L$ the loss and $g$ its true gradient. Take a step $-\eta\,w$, with a learning rate $\eta$ and any vector $w$ at all. To first order,
#
# $$L(\theta - \eta\,w) = L(\theta) - \eta\; g\cdot w + O(\eta^2)\tag{8.1}$$
#
# So if $\eta$ is small enough, all that is needed to descend is $g \cdot w > 0$: an angle below a right angle. Its cosine, for the gradients of all tensors taken as one long vector, is
#
# $$\cos(g, w) = \frac{\sum g_i w_i}{\sqrt{\sum g_i^2}\;\sqrt{\sum w_i^2}}\tag{8.2}$$
#
# By hand: $g = (3, 4)$ and $w = (3, 0)$, where the second entry is forgotten. $g\cdot w = 9$, the lengths are 5 and 3, and the cosine is 0.6. Half of the entries are gone, and $-w$ still points down.

# %%
g, w = np.array([3.0, 4.0]), np.array([3.0, 0.0])
loss = lambda t: float(g @ t + 0.5 * t @ t)  # its gradient at 0 is g
for eta in (0.1, 0.01):
    print(f"eta {eta}: the loss changes by {loss(-eta * w) - loss(0 * w):.4f}, and (8.1) says {-eta * g @ w:.4f}")
print("cosine", g @ w / np.linalg.norm(g) / np.linalg.norm(w))

# %% [markdown] lang="en"
# ### Your turn: the cosine of two gradients

# %%
from lessons.checks.wrong_gradients import cosine  # exercise

# %%
check("08.cosine", cosine)

# %% [markdown] lang="en"
# Now the eleven: the cosine between the wrong gradient and the right one, on one batch, in the model that has learned for 200 steps with the right gradients. A right angle has the cosine 0.

# %%
config, _ = lab.configs({})


def gradient(params, batch, patch=None, config=config):
    """Gradients of the loss in float64, with some backward functions replaced."""
    with lab.patched(patch):
        logits, cache = nn.model.model_forward(batch[0], {k: p.astype(np.float64) for k, p in params.items()}, config)
        _, loss_cache = nn.cross_entropy_forward(logits, batch[1])
        return nn.model.model_backward(numpy_engine.cross_entropy_backward(1.0, loss_cache), cache)


# %%
flat = lambda grads: np.concatenate([grads[name].ravel() for name in sorted(grads)])
cosines = {wrong: [] for wrong in museum.ELEVEN}
for seed in range(3):
    batch = Mixture(shards, 64, seed, tokenizer.bos_id).batch(1000, 8)
    params = results["right"].params[seed]
    right = flat(gradient(params, batch))
    for wrong in museum.ELEVEN:
        other = flat(gradient(params, batch, museum.patch_of(wrong)))
        cosines[wrong].append(right @ other / np.linalg.norm(right) / np.linalg.norm(other))

# %%
for wrong, found in cosines.items():
    print(f"{wrong:<38} {np.mean(found):5.2f}   ({min(found):.2f} to {max(found):.2f})")

# %%
record(lowest=min(map(np.mean, cosines.values())), start=start, parameters=nn.count_params(config))
record(row_cosine=np.mean(cosines["linear: first row of the batch only"]),
       mean_cosine=np.mean(cosines["rmsnorm: mean term dropped"]))
claim("every wrong gradient points downhill, at every seed", min(map(min, cosines.values())) > 0.1)
claim("every loss has fallen by more than a nat",
      all((start - r.final > 1).all() for r in results.values()), fast=False)

# %% [markdown] lang="en"
# The lowest mean is {{lowest:.2f}}: a step against any of the eleven goes down. (AdamW changes the scale of every entry before it steps, so (8.1) describes plain gradient descent only. But it shows how little is needed.)
#
# ## 3 · What AdamW hides
#
# AdamW keeps a running mean of each parameter's gradient, $m$, and of its square, $v$. Its step is $\eta\,\hat m/(\sqrt{\hat v} + \epsilon)$. The hat corrects for a start at 0, and $\epsilon = 10^{-8}$ only keeps it from dividing by 0. [09](09_adamw.ipynb) derives all this.
#
# Suppose now that all gradients are wrong by a constant factor $c > 0$. A forgotten $1/N$ in the mean over $N$ tokens is such a factor, $c = N$. Then $m$ is $c$ times as large, $v$ is $c^2$ times as large, and in the step $c$ cancels:
#
# $$\frac{c\,\hat m}{\sqrt{c^2\,\hat v} + \epsilon} = \frac{\hat m}{\sqrt{\hat v} + \epsilon/c}\tag{8.3}$$
#
# By hand, the first step: $\hat m = g$, $\hat v = g^2$, so the step is $\eta\, g/|g| = \pm\eta$ for any size of $g$. Clipping ([10](10_stability.ipynb)) hides a factor in the same way: a gradient that is longer than 1 is shortened to length 1.

# %%
def walk(c, steps=50):
    """Parameters after some AdamW steps whose gradients are all c times too large."""
    rng = np.random.default_rng(0)
    param, m, v = np.ones(4), np.zeros(4), np.zeros(4)
    for step in range(1, steps + 1):
        adamw_step(param, c * rng.standard_normal(4), m, v, step, lr=1e-2)
    return param


for c in (1, 512, 1e-3):
    print(f"c = {c:>5}: parameters after 50 steps differ by {np.abs(walk(c) - walk(1)).max():.0e}")
claim("a constant factor moves AdamW's parameters by less than 1e-4",
      max(np.abs(walk(c) - walk(1)).max() for c in (512, 1e-3)) < 1e-4)

# %% [markdown] lang="en"
# ## 4 · The picture

# %%
fig, axis = plt.subplots(figsize=(7.2, 4.0))
lab.plot_dots(axis, ranked, dict.fromkeys(museum.ELEVEN, lab.COLOURS[1]) | {"right": lab.COLOURS[2]})
axis.axvspan(*results["right"].band, color=lab.COLOURS[2], alpha=0.15, linewidth=0)
axis.set(xlim=(0, None), title="Several wrong gradients train like the right one")
axis.set_xlabel("excess after 200 steps (nats/token; green: the right one's seeds)")
plt.show()
lab.table(ranked)

# %% [markdown] lang="en"
# **Remember this picture.** {{hidden:.0f}} of the eleven touch the band of the right gradient's three seeds. The loss cannot tell them from the right one, and a reviewer who looks at the loss cannot either. Others learn visibly less. But who would know that, without the right one beside them?

# %%
right = results["right"].final
touching = [w for w in museum.ELEVEN if results[w].final.min() <= right.max()]
record(hidden=len(touching), worst=max(results[w].mean for w in museum.ELEVEN))
claim("at least three wrong gradients touch the right one's band", len(touching) >= 3)
claim("a forgotten 1/N is one of them", "loss: without 1/N" in touching)
claim("RMSNorm without its mean term is far worse, at every seed",
      results["rmsnorm: mean term dropped"].final.min() > right.max() + 1, fast=False)
claim("RoPE turned the wrong way is worse, at every seed",
      results["rope: turned forward"].final.min() > right.max() + 0.15, fast=False)

# %% [markdown] lang="en"
# The cosine does not predict this order. RMSNorm without its mean term has {{mean_cosine:.2f}} and is among the last.
#
# One row asks for an explanation. *First row of the batch only* has a cosine of {{row_cosine:.2f}} and yet learns little. The mixture fills a batch by shares, in the order of the sources, so the first row is *always* a story. No gradient of its matrices comes from anything else. Below, the run of seed 0:

# %%
one_row = NumpyEngine(config, params=results["linear: first row of the batch only"].params[0], threads=1)
scores = evaluate(one_row, shards, 64, tokenizer.bos_id)
per_source = {name: score.loss - score.floor for name, score in scores.items()}
print("excess by source:", {name: round(value, 2) for name, value in per_source.items()})
claim("it learned the stories better than the rest",
      per_source["stories"] + 0.5 < min(per_source["facts"], per_source["sums"]), fast=False)

# %% [markdown] lang="en"
# ## 5 · Two evaluations for a whole model
#
# Finite differences of every entry cost two evaluations per parameter. Along *one* random direction $u$ through all parameters at once, two are enough. The slope along $u$ can be claimed and measured:
#
# $$\underbrace{\sum_i g_i u_i}_{\text{claimed}} \;\approx\; \underbrace{\frac{L(\theta + h u) - L(\theta - h u)}{2h}}_{\text{measured}}\tag{8.4}$$
#
# Since $u$ touches every entry of every tensor, almost any mistake shows; section 6 tries it on the eleven. By hand: $L = \theta_1^2 + \theta_2$ at $(3, 1)$ has $g = (6, 1)$. Along $u = (1, 2)$ that claims $8$; measured with $h = 0.1$: $(3.1^2 + 1.2 - 2.9^2 - 0.8)/0.2 = 8$.

# %%
L = lambda p: p["a"] ** 2 + p["b"]
up, down = L({"a": 3.1, "b": 1.2}), L({"a": 2.9, "b": 0.8})
print("claimed", 6 * 1 + 1 * 2, "  measured", round((up - down) / 0.2, 10))

# %% [markdown] lang="en"
# ### Your turn: claimed and measured slope

# %%
from lessons.checks.wrong_gradients import slopes  # exercise

# %%
check("08.slopes", slopes)

# %% [markdown] lang="en"
# ## 6 · Which op is it?
#
# Backward runs from the loss to the embedding. What comes *before* a wrong op in backward is right. The wrong op spoils what it hands on, and what is computed from that is wrong. **So look for the mistake at the first wrong tensor, or just before it.** *Right* means: the error is at most the tolerance. A NaN is not right.
#
# Some tensors behind the mistake can still be right. One kind is on a branch beside it: `w3` beside `w1`, `wv` beside `wq` and `wk`. And if only a weight's own gradient is wrong, the tensors behind it are right, since that gradient is handed on to no other op.
#
# ### Your turn: the first wrong tensor

# %%
from lessons.checks.wrong_gradients import first_wrong  # exercise

# %%
check("08.first_wrong", first_wrong)

# %% [markdown] lang="en"
# Now a real case: a small model with random gains (at 1, a forgotten gain is invisible), repeated ids, and rows of 5 tokens where a head has 4 channels. Finite differences give the truth, entry by entry, and we compare all eleven with it.

# %%
small = ModelConfig(dim=8, n_layers=2, n_heads=2, vocab_size=7, multiple_of=4, max_seq_len=5, norm_eps=1e-2)
rng = np.random.default_rng(1)
params = {k: rng.standard_normal(s) * (0.5 if len(s) > 1 else 1) for k, s in nn.param_shapes(small).items()}
batch = rng.integers(0, 4, (2, 3, 5))  # tokens and targets; 4 of the 7 ids, so that ids repeat
loss = lambda: float(nn.cross_entropy_forward(nn.model_forward(batch[0], params, small)[0], batch[1])[0])
truth = {name: numerical_gradient(loss, p) for name, p in params.items()}

# %%
within = ("w2", "w1", "w3", "ffn_norm", "wo", "wv", "wk", "wq", "attention_norm")
order = ["output", "norm", *(f"layers.{layer}.{name}" for layer in (1, 0) for name in within), "tok_embeddings"]
worst = lambda grads: [np.abs(grads[name] - truth[name]).max() / np.abs(truth[name]).max() for name in order]
patches = {"right": None} | {wrong: museum.patch_of(wrong) for wrong in museum.ELEVEN}
given = {name: gradient(params, batch, patch, small) for name, patch in patches.items()}
errors = {name: worst(grads) for name, grads in given.items()}

# %%
fig, axis = plt.subplots(figsize=(7.2, 4.4))
image = axis.imshow(np.log10(np.array(list(errors.values())) + 1e-12), cmap="cividis", vmin=-8, vmax=0, aspect="auto")
axis.set(xticks=range(len(order)), yticks=range(len(errors)), yticklabels=errors)
axis.set_title("The check finds every one (dark: right, yellow: wrong)")
axis.set_xticklabels([name.replace("layers.", "") for name in order], rotation=90, fontsize=8)
axis.set_xlabel("the order of backward →")
axis.grid(False)
fig.colorbar(image, ax=axis, shrink=0.8, label="log₁₀ of the relative error")
plt.show()

# %%
for wrong, found in errors.items():
    bad = [name for name, error in zip(order, found) if not error <= 1e-7]
    print(f"{wrong:<38} first wrong: {bad[0] if bad else '-'}")
claim("the right gradients are right in every tensor", max(errors["right"]) < 1e-7)
wrong_tensors = lambda wrong: {name for name, error in zip(order, errors[wrong]) if error > 1e-7}
for wrong in ("rope: turned forward", "attention: row sum dropped"):
    claim(f"{wrong}: wq and wk are wrong, wv of that layer is not",
          {"layers.1.wq", "layers.1.wk"} <= wrong_tensors(wrong) - {"layers.1.wv"} == wrong_tensors(wrong))
claim("each of the eleven is wrong by more than 1 % somewhere",
      all(max(errors[wrong]) > 0.01 for wrong in museum.ELEVEN))

# %% [markdown] lang="en"
# Read the rows. *Last of repeated ids* spoils the embedding alone. *First row only* spoils all matrices and no gain. The two of SwiGLU begin at `w1`, and layer 1's `w3` stays right. RMSNorm's begin right behind the final `norm`, whose own gain is right. Attention without $1/\sqrt{D_h}$ or without its row sum, and RoPE turned forward, look alike: `wq` and `wk` are wrong, and `wv` of that layer is right. There the check of single ops decides.
#
# And does the cheap check of (8.4) find them, too? One random direction, two evaluations of the loss for all twelve:

# %%
draws, h = np.random.default_rng(1), 1e-5
u = {name: draws.standard_normal(p.shape) for name, p in params.items()}
loss_at = lambda p: float(nn.cross_entropy_forward(nn.model_forward(batch[0], p, small)[0], batch[1])[0])
above, below = (loss_at({name: p + side * h * u[name] for name, p in params.items()}) for side in (1, -1))
measured = (above - below) / (2 * h)
claimed = {wrong: sum((grads[name] * u[name]).sum() for name in u) for wrong, grads in given.items()}
print(f"measured: {measured:.4f}")
for wrong, slope in claimed.items():
    print(f"{wrong:<38} claimed {slope:8.4f}, off by {abs(slope / measured - 1):.0e} of the measured slope")
claim("the right gradients agree to 1e-6", abs(claimed["right"] / measured - 1) < 1e-6)
claim("each of the eleven is off by more than 1 %",
      min(abs(claimed[wrong] / measured - 1) for wrong in museum.ELEVEN) > 0.01)

# %% [markdown] lang="en"
# ## 7 · A hunt
#
# Five reports from `gradcheck` on single ops, without their names. For each: which op is it, and which line of its backward is wrong? Guess before you look at the next cell but one; it has the answers.

# %%
hunt = ["swiglu: slope of silu taken for sigmoid", "rmsnorm: dweight of x, not of its normalisation",
        "attention: dq and dk exchanged", "cross_entropy: mean over ignored tokens too",
        "linear: dweight averaged over the batch"]
for letter, bug in zip("ABCDE", hunt):
    report = gradcheck(*museum.planted.BUGS[bug])
    ratio = [t.analytic / t.numeric for t in report if not t.passed]
    verdicts = ", ".join(f"{t.tensor} {'ok' if t.passed else 'WRONG'}" for t in report)
    print(letter, "|", verdicts, "| given / true at the worst place:", np.round(ratio, 3))
    claim(f"{letter} is rejected", not report.passed)

# %%
print("\n".join(f"{letter}: {bug}" for letter, bug in zip("ABCDE", hunt)))

# %% [markdown] lang="en"
# **What does not show at this scale.** 200 steps of a model with {{parameters:,.0f}} parameters do not say what such a gradient does after 200,000 steps. Those that look harmless here may do harm there, and this lesson does not measure it. It also cannot rank the eleven: another learning rate may give another order. What holds is that the loss does not tell, and the check does.
#
# ## The anchor in the paper
#
# LLaMA §2.4: the authors wrote the backward function of the transformer layers by hand, instead of leaving it to PyTorch's autograd. So they could choose what forward keeps, and compute less of it a second time in backward. Every hand-written backward needs the check of this lesson; ours are checked in [`tests/nn/test_gradients.py`](../tests/nn/test_gradients.py), and the tests are checked with these bugs.
#
# ## Three questions
#
# 1. What would a forgotten $1/N$ do under plain SGD without clipping, and why does AdamW hide it?
# 2. Why must gains be random, ids repeated, and sizes different in a gradient check?
# 3. In a table of errors, layer 1's `wo` and `wv` are right, and `wk`, `wq` and everything after them is wrong. Which ops are left as suspects?
#
# <details><summary>Answers</summary>
#
# 1. The gradient would be $N$ times as long, and so would the step: as if the learning rate were $N$ times as high. Here $N$ is about 512: tried at a rate of 0.5, such a run learns nothing at all. In AdamW the factor stands above and below the fraction line of (8.3), where it cancels.
# 2. Each of these would make a mistake invisible. A gain of 1 can be forgotten, since a product with 1 changes nothing. If no id repeats, a sum over equal ids has one term, and the last one *is* the sum. If two sizes are equal, a matrix that should have been transposed, or a sum over the wrong axis, still has the right shape.
# 3. RoPE's backward, and in attention's backward what only `dq` and `dk` depend on: the softmax's Jacobian with its row sum, the factor $1/\sqrt{D_h}$, and the two products at the end. That `wv` is right clears `dv`, and that `wo` is right clears everything before attention. `gradcheck` of the two ops decides.
#
# </details>
#
# **The way on:** [09 · AdamW](09_adamw.ipynb), which has just hidden a factor of 512 from you.
