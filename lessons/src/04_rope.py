# %% [markdown] lang="en"
# # 04 · RoPE: clock hands for positions
#
# **Question.** Attention makes a query and a key from every token, and compares them by a dot product, the *score* ([05 · Causal attention](05_attention.ipynb) is about the rest). How can that one number know how far apart the two tokens are, without a single parameter for it? And why do weights from another project so often produce nonsense here?
#
# After this lesson you can derive RoPE forward and backward, show that a score depends on the distance alone, and convert weights between the two layouts in use.
#
# *Needs:* [02 · Gradients](02_gradients.ipynb). *Paper:* LLaMA §2.2; Su et al. 2021 (arXiv:2104.09864), Eq. 15 and 34. *Code:* [`minillama/nn/rope.py`](../minillama/nn/rope.py). *Time:* 35 minutes to read and solve, about a minute to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/

import numpy as np

from lessons import check, claim, lab, plt, record
from minillama import nn
from minillama.nn.gradcheck import numerical_gradient

# %% [markdown] lang="en"
# ## 1 · Clock hands
#
# A query or a key is a vector of $D_h$ channels. Cut it into $D_h/2$ pairs $(x_0,x_1), (x_2,x_3), \dots$ Each pair is a point in a plane: read it as the hand of a clock. At position $t$, RoPE turns hand $j$ by
#
# $$\alpha(t, j) = t\,\theta^{-2j/D_h}\quad\text{radians},\qquad j = 0 \dots D_h/2 - 1,\quad \theta = 10000 \tag{4.1}$$
#
# Hand 0 turns by one radian per token. Each later hand turns more slowly than the one before, as the hour hand is slower than the second hand.

# %%
for j in range(4):
    frequency = 10000 ** (-2 * j / 8)
    print(f"D_h = 8, hand {j}: {frequency:.3f} radians per token, once around in {2 * np.pi / frequency:8.1f} tokens")

# %% [markdown] lang="en"
# ### Your turn: the tables
#
# Write the cosines and sines of (4.1), for all positions and hands at once.

# %%
from lessons.checks.rope import rope_tables  # exercise

# %%
check("04.rope_tables", rope_tables)

# %% [markdown] lang="en"
# ## 2 · The picture: clocks at four positions

# %%
def draw_clocks(axes, position, row, head_dim=16):
    """One row of clocks: a hand for every pair, turned by its angle at this position."""
    angles = position * 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)
    for j, angle in enumerate(angles):
        axes.add_patch(plt.Circle((j, -row), 0.4, fill=False, color="#999999", linewidth=1))
        axes.plot([j, j + 0.4], [-row, -row], color="#cccccc", linewidth=1)
        x, y = j + 0.4 * np.cos(angle), -row + 0.4 * np.sin(angle)
        axes.plot([j, x], [-row, y], color=lab.COLOURS[j % 2], linewidth=2.2)
    axes.text(-0.75, -row, f"position {position}", ha="right", va="center")


def clock_face(positions):
    fig, axes = plt.subplots(figsize=(7.2, 0.75 * len(positions) + 0.6))
    for row, position in enumerate(positions):
        draw_clocks(axes, position, row)
    axes.set(xlim=(-2.6, 7.6), ylim=(0.5 - len(positions), 0.6), aspect="equal")
    axes.set(xticks=range(8), xlabel="hand j: from fast to slow", yticks=[])
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    return axes


clock_face([0, 1, 10, 100]).set_title("Every position is a set of clock hands (grey: where they start)")
plt.show()

# %% [markdown] lang="en"
# The fast hands tell neighbours apart, the slow ones tell near from far. In a running notebook, the next cell has a slider: move it by one, then by a hundred, and watch which hands turn.

# %%
import ipywidgets


def show(position):
    clock_face([position])
    plt.show()


slider = ipywidgets.interact(show, position=ipywidgets.IntSlider(0, 0, 500))

# %% [markdown] lang="en"
# ## 3 · Turning a pair
#
# Turning by $\alpha$ is a product with a matrix. With $c = \cos\alpha$ and $s = \sin\alpha$, each new channel is made from both old channels of its pair:
#
# $$\begin{pmatrix} y_{2j} \\ y_{2j+1}\end{pmatrix} = \begin{pmatrix} c & -s \\ s & c \end{pmatrix}\begin{pmatrix} x_{2j} \\ x_{2j+1}\end{pmatrix} \tag{4.2}$$
#
# By hand: $(1, 0)$ at position 1, $j = 0$. The angle is 1 radian, so $y = (\cos 1, \sin 1) = (0.54, 0.84)$.

# %%
cos, sin = nn.rope_tables(12, 8, dtype=np.float64)
x = np.zeros((1, 12, 1, 8))
x[..., 0] = 1  # the first hand points to (1, 0) at every position
print("(4.2) at position 1:", nn.rope_forward(x, cos, sin)[0][0, 1, 0, :2].round(2))

# %% [markdown] lang="en"
# The length stays as it was. In $(cx_0 - sx_1)^2 + (sx_0 + cx_1)^2$ the mixed terms $-2cs\,x_0x_1$ and $+2cs\,x_0x_1$ cancel. What is left is $(c^2 + s^2)(x_0^2 + x_1^2)$, and $c^2 + s^2 = 1$:
#
# $$\lVert y \rVert = \lVert x \rVert \tag{4.3}$$

# %%
x = np.random.default_rng(0).standard_normal((1, 12, 1, 8))
y, _ = nn.rope_forward(x, cos, sin)
print("(4.3) is off by", np.abs(np.linalg.norm(y, axis=-1) - np.linalg.norm(x, axis=-1)).max())

# %% [markdown] lang="en"
# ### Your turn: forward
#
# Write (4.2) for queries of shape (B, T, H, D_h): B rows of T tokens, each with H heads of D_h channels. The tables are (T, D_h/2): a token's angles are the same in every head.

# %%
from lessons.checks.rope import rope_forward  # exercise

# %%
check("04.rope_forward", rope_forward)

# %% [markdown] lang="en"
# ## 4 · Why the positions enter a score by their distance alone
#
# Call the matrix of (4.2) $R_\alpha$. Its transpose has $-s$ for $s$, which is the turn by $-\alpha$. And two turns in a row add their angles. So, for the query's angle $\alpha$ and the key's angle $\beta$:
#
# $$R_\alpha^\top R_\beta = R_{-\alpha}R_\beta = R_{\beta-\alpha} \tag{4.4}$$

# %%
R = lambda angle: np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
print("transpose is the turn back:", np.abs(R(0.7).T - R(-0.7)).max())
print("(4.4) is off by            ", np.abs(R(0.7).T @ R(2.0) - R(2.0 - 0.7)).max())

# %% [markdown] lang="en"
# In pair $j$, a query at position $m$ is turned by $m f_j$ and a key at position $n$ by $n f_j$, where $f_j = \theta^{-2j/D_h}$. Write $q_j$ and $k_j$ for pair $j$, and $R_m q$ for the whole turned query. The score is a sum over pairs, and by (4.4) only the difference is left in each:
#
# $$\langle R_m q,\, R_n k\rangle = \sum_j q_j^\top R_{m f_j}^\top R_{n f_j} k_j = \sum_j q_j^\top R_{(n-m) f_j} k_j \tag{4.5}$$
#
# By hand, one pair with $f = 1$, $q = k = (1,0)$: positions 5 and 3 give $\cos(-2) = -0.42$, and so do 105 and 103.

# %%
rng = np.random.default_rng(1)
cos, sin = nn.rope_tables(110, 8, dtype=np.float64)
q, k = (np.tile(rng.standard_normal(8), (1, 110, 1, 1)) for _ in range(2))  # the same q and the same k at all positions
turned_q, turned_k = (nn.rope_forward(a, cos, sin)[0][0, :, 0] for a in (q, k))
scores = turned_q @ turned_k.T  # (m, n)
print("positions (5, 3):", scores[5, 3], "  (105, 103):", scores[105, 103])
print("(4.5) is off by", max(np.ptp(np.diagonal(scores, d)) for d in range(-109, 110)))

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4))
image = left.imshow(scores[:40, :40], cmap="PuOr")
left.set(xlabel="position n of the key", ylabel="position m of the query")
left.set_title("One q, one k: equal on each diagonal")
left.grid(False)
fig.colorbar(image, ax=left, shrink=0.8, label="score")
for head_dim, colour in ((32, lab.COLOURS[0]), (128, lab.COLOURS[1])):
    frequencies = 10000 ** (-np.arange(0, head_dim, 2) / head_dim)
    distance = np.arange(0, 300)
    right.plot(distance, np.cos(np.outer(distance, frequencies)).mean(1), color=colour, label=f"$D_h$ = {head_dim}")
right.set(xlabel="distance m − n (tokens)", ylabel="score / score at distance 0")
right.set_title("q = k: far scores less than near")
right.legend()
plt.show()

# %% [markdown] lang="en"
# **Remember this picture.** Left: a score is constant along a diagonal, where $m - n$ is constant. Right: here $q = k$, with all pairs equally long. At distance 0 their hands agree. The further apart they are, the more hands disagree, and the score falls, in waves. This is a property of equal vectors: the random $q$ and $k$ on the left score highest far apart.

# %%
cos128 = np.cos(np.outer(np.arange(300), 10000 ** (-np.arange(0, 128, 2) / 128))).mean(1)
spread = max(np.ptp(np.diagonal(scores, d)) for d in range(-109, 110))
claim("a score is the same on each diagonal, to rounding", spread < 1e-11)
near, far = cos128[:11], cos128[100:]
claim("two equal vectors 100 to 300 tokens apart score less than those at most 10 apart", far.max() < near.min())
m, n = np.unravel_index(scores[:40, :40].argmax(), (40, 40))
claim("on the left, the highest score is between tokens more than 20 apart", abs(m - n) > 20)

# %% [markdown] lang="en"
# ## 5 · Backward: turn back
#
# (4.2) is linear in $x$, and a gradient goes back through a linear map by the map's transpose, as in (2.2). The transpose of a turn is the turn back. So backward is forward with $-s$ for $s$. The tables are no parameters and need no gradient:
#
# $$dx = R_\alpha^\top dy = R_{-\alpha}\,dy:\qquad dx_{2j} = c\,dy_{2j} + s\,dy_{2j+1},\quad dx_{2j+1} = c\,dy_{2j+1} - s\,dy_{2j} \tag{4.6}$$
#
# Which way forward turns is a convention, to be kept once a model is trained: if q and k both turn the other way, a score still depends on the distance alone. Which way backward turns is no convention: it must undo forward.

# %%
cos, sin = nn.rope_tables(5, 4, dtype=np.float64)
x, dy = rng.standard_normal((2, 1, 5, 1, 4))
loss = lambda: float((nn.rope_forward(x, cos, sin)[0] * dy).sum())
truth = numerical_gradient(loss, x)[0, 3, 0, :2]
pair, (c, s) = dy[0, 3, 0, :2], (cos[3, 0], sin[3, 0])
print("turned back:   off by", np.abs(np.array([[c, s], [-s, c]]) @ pair - truth).max())
print("turned forward: off by", np.abs(np.array([[c, -s], [s, c]]) @ pair - truth).max().round(2))

# %% [markdown] lang="en"
# ### Your turn: backward

# %%
from lessons.checks.rope import rope_backward  # exercise

# %%
check("04.rope_backward", rope_backward)

# %% [markdown] lang="en"
# ## 6 · Two layouts, one permutation
#
# Meta's code pairs neighbours: (0,1), (2,3), … Hugging Face's code pairs channel $j$ with channel $j + D_h/2$, called *rotate-half*. Both are RoPE. Let $P$ be the reordering that puts the first channels of all pairs in front, and then the second ones. Then
#
# $$\mathrm{rotate\_half}(P x) = P\,\mathrm{rope}(x) \tag{4.7}$$
#
# A score is a dot product, which stays the same if both sides are reordered alike: $(Pq)\cdot(Pk) = q\cdot k$. A query is $q = W_q n$ and a key is $k = W_k n$, where $n$ is the token's normalised vector. So it is enough to reorder the rows of $W_q$ and $W_k$, once and head by head:
#
# $$W' = P\,W,\qquad\text{with rows } 0, 2, 4, \dots, 1, 3, 5, \dots \text{ of each head} \tag{4.8}$$

# %%
from lessons.museum import rotate_half_forward

x = rng.standard_normal((1, 5, 2, 6))
cos, sin = nn.rope_tables(5, 6, dtype=np.float64)
P = [0, 2, 4, 1, 3, 5]
left_side = rotate_half_forward(x[..., P], cos, sin)[0]
right_side = nn.rope_forward(x, cos, sin)[0][..., P]
print("(4.7) is off by", np.abs(left_side - right_side).max())
W, n = rng.standard_normal((6, 9)), rng.standard_normal(9)
print("(4.8) is off by", np.abs(W[P] @ n - (W @ n)[P]).max())

# %% [markdown] lang="en"
# Forget $P$, and nothing fails: the shapes fit, the file loads, the model runs, and writes nonsense. This has confused users of many projects ([transformers#25199](https://github.com/huggingface/transformers/issues/25199), [LLMs-from-scratch#746](https://github.com/rasbt/LLMs-from-scratch/issues/746), [llama2.c#286](https://github.com/karpathy/llama2.c/pull/286)). Nobody needs to train again: one permutation brings everything back.
#
# ### Your turn: convert weights

# %%
from lessons.checks.rope import to_rotate_half  # exercise

# %%
check("04.to_rotate_half", to_rotate_half)

# %% [markdown] lang="en"
# ## 7 · The mistake, replayed
#
# We train a tiny LLaMA with RoPE, three seeds. Then the *same weights* are read by code with the other layout, before and after the permutation. Beside them: models trained with rotate-half from the start, with no positions at all, and with a $\theta$ of 100. All numbers are **excess**: loss minus the text's entropy floor ([00 · Baselines](00_baselines.ipynb)).

# %%
ways = ("forward", "backward")
swap = lambda name: {f"minillama.nn.block.rope_{way}": f"lessons.museum.{name}_{way}" for way in ways}
arms = {
    "RoPE": {},
    "trained as rotate-half": {"patch": swap("rotate_half")},
    "θ = 100": {"rope_theta": 100.0},
    "no positions": {"patch": swap("no_rope")},
}
results = lab.run(arms, seeds=3, steps=300, evaluations=1)


# %%
def reordered(params, heads=4):
    """The same model for rotate-half code: (4.8) for wq and wk of every layer."""
    P = lambda w: w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
    return {name: P(w) if name.endswith((".wq", ".wk")) else w for name, w in params.items()}


trained = results["RoPE"].params
shown = {name: result.final for name, result in results.items()}
shown["RoPE, read as rotate-half"] = np.array([lab.excess_of(p, swap("rotate_half")) for p in trained])
shown["… after permuting wq, wk"] = np.array([lab.excess_of(reordered(p), swap("rotate_half")) for p in trained])
for name, excess in shown.items():
    print(f"{name:<26} {excess.mean():.4f}   ({excess.min():.4f} to {excess.max():.4f})")

# %%
order = ["RoPE", "RoPE, read as rotate-half", "… after permuting wq, wk",
         "trained as rotate-half", "θ = 100", "no positions"]
fig, axis = plt.subplots(figsize=(7.2, 3.3))
for row, name in enumerate(order):
    colour = lab.COLOURS[1] if name in ("RoPE, read as rotate-half", "no positions") else lab.COLOURS[0]
    axis.plot(shown[name], [row] * 3, "o", color=colour, alpha=0.6, markersize=6, markeredgewidth=0)
    axis.plot([shown[name].mean()] * 2, [row - 0.3, row + 0.3], color=colour)
axis.set(yticks=range(6), yticklabels=order, ylim=(5.6, -0.6), xlim=(0, None))
axis.set_xlabel("excess (nats/token); a dot per seed, a bar for the mean")
axis.set_title("The wrong layout costs more than having no positions at all")
axis.grid(axis="y", visible=False)
plt.show()

# %% [markdown] lang="en"
# Read with the wrong pairs, the model's excess goes from {{rope:.2f}} to {{misread:.2f}} nats/token, worse than that of a model that never saw a position ({{nope:.2f}}). After one permutation it is what it was; the difference is {{back:.0e}}.

# %%
rope, nope = shown["RoPE"], shown["no positions"]
misread, back = shown["RoPE, read as rotate-half"], np.abs(shown["… after permuting wq, wk"] - rope).max()
half, theta100 = shown["trained as rotate-half"], shown["θ = 100"]
record(rope=rope.mean(), nope=nope.mean(), misread=misread.mean(), back=back)
record(half=half.mean(), theta100=theta100.mean())
claim("the permutation brings the very same model back", back < 1e-4)
claim("reading with the wrong pairs ruins every seed", (misread > rope + 0.6).all(), fast=False)
claim("the wrong pairs are worse than no positions at all", misread.min() > nope.max(), fast=False)
claim("every run without positions is worse than every run with RoPE", nope.min() > rope.max() + 0.1, fast=False)
claim("the layout itself makes no difference to training", abs(half.mean() - rope.mean()) < 0.08, fast=False)
claim("nor does θ = 100 make it worse", theta100.mean() < rope.mean() + 0.08, fast=False)

# %% [markdown] lang="en"
# **What does not show at this scale.** The layout does not matter to training: {{rope:.2f}} and {{half:.2f}}. Nor does a small $\theta$ harm: 100 in place of 10000 gives {{theta100:.2f}}. Our rows have 64 tokens, on which the slowest of four hands turns by 0.06 radians only. Slow hands are for long contexts.
#
# A causal model without any positions is not blind to order. In its first layer a token sees those before it as a set without order; but in the second layer it reads tokens that each saw another part of the text.
#
# ## The anchor in the paper
#
# LLaMA §2.2: absolute position embeddings are removed, and rotary embeddings are added *at each layer of the network*. Only q and k turn. A turned value would carry its absolute position into attention's output, and nothing would turn it back.
#
# ## Three questions
#
# 1. Why does it change nothing if all positions of a text are shifted by 7?
# 2. Backward of RoPE is RoPE with $-\sin$. For which other ops is backward "the same op, the other way"?
# 3. A friend converts LLaMA's weights to another format, and now the model writes nonsense. Which two matrices do you look at first, and what would you check?
#
# <details><summary>Answers</summary>
#
# 1. Positions enter the model in RoPE alone, and by (4.5) a score depends on $n - m$. A shift by 7 changes no difference, so it changes nothing.
# 2. For every op whose transpose is its inverse: reordering, as in (4.8), and splitting into heads and joining them. Not for a linear layer: $W^\top$ is not the inverse of $W$ in general.
# 3. $W_q$ and $W_k$ of every layer: are their rows in the order that the new code expects? Compare the logits of both programs on one text. With the wrong layout they agree at the first token, which sees itself only, and differ from the second on. After (4.8) they agree everywhere.
#
# </details>
#
# **The way on:** [05 · Causal attention](05_attention.ipynb), where turned queries meet turned keys.
