# %% [markdown] lang="en"
# # 15 · The same math on the GPU
#
# **Question.** You have a formula in NumPy, checked to nine digits. How does it become a kernel, and by how much may the kernel's numbers differ before you call it a bug?
#
# After this lesson you can turn a NumPy line into a Triton line, derive the softmax that never sees a whole row, say what error a number format allows, and predict from bytes and FLOPs how fast a kernel could be.
#
# *Needs:* [03 · RMSNorm](03_rmsnorm.ipynb), [05 · Causal attention](05_attention.ipynb); the pictures also name the ops of [04](04_rope.ipynb), [06](06_swiglu.ipynb) and the loss of [00](00_baselines.ipynb). *Paper:* LLaMA §2.4; Dao et al. 2022 (arXiv:2205.14135); Milakov & Gimelshein 2018 (arXiv:1805.02867). *Code:* [`kernels/rmsnorm.py`](../kernels/rmsnorm.py), [`kernels/attention.py`](../kernels/attention.py), [`minillama/nn/flash.py`](../minillama/nn/flash.py). *Time:* 45 minutes to read and solve, about a minute to run.

# %%
import sys; sys.path[:0] = ["..", "../.."]  # the repository, from lessons/ or lessons/exercises/
import importlib.util
import os

import numpy as np

from lessons import FAST, case, check, claim, gpu_lab, lab, plt, record
from lessons.tiny_triton import on_both, on_triton, tl
from minillama import nn

# %% [markdown] lang="en"
# ## 1 · Three ways to run this lesson
#
# **A GPU**, if PyTorch finds one. **Triton's interpreter** on a Linux processor: with `TRITON_INTERPRET=1`, set *before* Triton is imported, it runs the source of a kernel in Python. **NumPy alone** elsewhere. `lessons.tiny_triton` holds Triton's names in NumPy, so that exercises and derivations run everywhere.

# %%
device, there = "", all(importlib.util.find_spec(name) for name in ("torch", "triton"))
if there:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
print({"cuda": "the kernels run on a GPU", "cpu": "the kernels run in Triton's interpreter, on this processor",
       "": "torch and triton are not here: NumPy runs the lines; "
           "what a kernel gave is in the outputs of the lesson on GitHub"}[device])

# %% [markdown] lang="en"
# ## 2 · One row, by hand
#
# A GPU's memory is one long line of numbers. A kernel gets a *pointer*, the address where an array begins, and computes the rest. With rows that begin `stride` numbers apart, element $i$ of row $r$ is at
#
# $$\text{address}(r, i) = \text{start} + r\cdot\text{stride} + i \tag{15.1}$$
#
# Below, two rows of three numbers, with a stride of 4. The 9 behind each row belongs to somebody else.

# %%
x = np.array([1.0, 2, 2, 9, 3, 0, 4, 9])  # rows (1, 2, 2) and (3, 0, 4)
weight, out = np.array([1.0, 1, 2]), tl.empty(2, 3)
N, D, x_stride, eps, BLOCK = 2, 3, 4, 0.0, 4
x_ptr, weight_ptr, out_ptr = tl.begin(1, N, x, weight, out)  # we are program 1 of 2

# %% [markdown] lang="en"
# A kernel is written for *one program*; the GPU starts many, which differ in their number alone. Here program $r$ computes row $r$. It works on a whole **tile** at once, a small array whose size is a power of 2. Here the tile has BLOCK = 4 places, called **lanes**, for 3 channels. One lane is too many, and a **mask** switches it off:
#
# $$\text{inside}_i = (i < D) \tag{15.2}$$

# %%
row = tl.program_id(0)
column = tl.arange(0, BLOCK)
inside = column < D
print("NumPy   x[1, :]     ", x.reshape(2, 4)[1, :3])
print("Triton  row", row, " column", column, " inside", inside, "\n       ", x_ptr + row * x_stride + column)
loaded = tl.load(x_ptr + row * x_stride + column, inside, other=0.0)
print("        loaded      ", loaded)
claim("the lanes inside are the row, and the others hold `other`", np.array_equal(loaded, [3, 0, 4, 0]))

# %% [markdown] lang="en"
# The rest is RMSNorm, as in lesson 03. (`rstd` is one over the root; the kernels keep it for backward.)
#
# $$\mathrm{rstd} = 1\big/\sqrt{\tfrac1D\textstyle\sum_i x_i^2 + \varepsilon}\qquad \mathrm{out}_i = x_i\,\mathrm{rstd}\;w_i \tag{15.3}$$
#
# | NumPy | Triton | |
# |---|---|---|
# | `x[r]` | `tl.load(x_ptr + row * x_stride + column, inside, other=0.0)` | (15.1), (15.2) |
# | `(x * x).sum() / D` | `tl.sum(x * x, 0) / D` | over the lanes; **not** divided by BLOCK |
# | `1 / np.sqrt(... + eps)` | `1.0 / tl.sqrt(... + eps)` | |
# | `out[r] = x * rstd * weight` | `tl.store(out_ptr + row * D + column, ..., inside)` | out has its own stride |
#
# By hand: $3^2 + 0^2 + 4^2 = 25$, so $\mathrm{rstd} = 1/\sqrt{25/3} = 0.346$ and $\mathrm{out} = (1.04, 0, 2.77)$.

# %%
rstd = 1.0 / tl.sqrt(tl.sum(loaded * loaded, 0) / D + eps)
w = tl.load(weight_ptr + column, inside, other=0.0)
right = nn.rmsnorm_forward(np.array([[3.0, 0, 4]]), weight, eps)[0][0]
print("rstd", rstd.round(3), "  out", (loaded * rstd * w).round(2), "  NumPy", right.round(2))
claim("the lanes inside are what NumPy gives", np.allclose((loaded * rstd * w)[:D], right))

# %% [markdown] lang="en"
# What goes wrong without a mask? Lane 3 reads the 9 that belongs to somebody else, and the sum takes it in. And `other` must be what the reduction ignores, its **neutral element**: 0 for a sum. For a maximum, 0 is wrong as soon as all numbers are negative; there it is $-\infty$.

# %%
at = x_ptr + row * x_stride + column
print("sum of squares, 25:   without a mask", tl.sum(tl.load(at) ** 2, 0),
      "  other = 1:", tl.sum(tl.load(at, inside, other=1.0) ** 2, 0))
claim("a sum without a mask takes in the neighbour", tl.sum(tl.load(at) ** 2, 0) == 25 + 81)
negative_ptr, = tl.begin(0, 1, np.array([-4.0, -1, -5]))
biggest = {other: tl.max(tl.load(negative_ptr + column, inside, other=other), 0) for other in (0.0, float("-inf"))}
print("maximum of (-4, -1, -5):", *(f"  other = {other}: {value}" for other, value in biggest.items()))

# %% [markdown] lang="en"
# One more rule. Arrays on a GPU are often float16 or bfloat16: half the bytes of float32. But everything *between* load and store is float32, and is rounded once:
#
# $$\mathrm{out} = \mathrm{round}\bigl(f(\mathrm{float32}(x))\bigr) \tag{15.4}$$
#
# ### Your turn: a kernel
#
# Write the whole kernel, and launch it once per row. `tl.launch(kernel, programs, x, ...)` stands for Triton's `kernel[(programs,)](x, ...)`, and `tl.empty` for `torch.empty`. `BLOCK: tl.constexpr` says that the compiler must know this number.
#
# Two things are special in `lessons.tiny_triton`. Its float32 has 64 bits, so that the check can compare nine digits. And programs end in an order that you do not choose, as on a GPU.

# %%
from lessons.checks.gpu import launch_rmsnorm  # exercise

# %%
check("15.launch_rmsnorm", launch_rmsnorm)

# %% [markdown] lang="en"
# The names are Triton's, so your source runs on Triton as it is:

# %%
if there:
    on_both(launch_rmsnorm, case("15.launch_rmsnorm"), device)
else:
    print("torch and triton are not here; `tl` has run the same lines")

# %% [markdown] lang="en"
# ## 3 · Backward, and a sum that many programs share
#
# The gain's gradient adds up over all tokens, and the tokens belong to different programs:
#
# $$dw_i = \sum_{t} dy_{ti}\,n_{ti},\qquad n = x\cdot\mathrm{rstd} \tag{15.5}$$
#
# If every program loads $dw$, adds its token and stores it, two of them load the same old value, and one addition is lost. That is a **race**. Watch it: eight programs add 1, 2, ..., 8.

# %%
def add_all(host):
    """The sum of 1 .. 8 by eight programs that load, add and store."""

    def kernel(x_ptr, sum_ptr):
        tl.store(sum_ptr, tl.load(sum_ptr) + tl.load(x_ptr + tl.program_id(0)))

    total = np.zeros(1, np.float32)
    host.launch(kernel, 8, np.arange(1, 9, dtype=np.float32), total)
    return total[0]


print("right 36;  programs at the same time:", add_all(tl))
where = "a GPU:" if device == "cuda" else "Triton's interpreter:"
print(where, add_all(on_triton(device)) if there else "not here; it gives 36.0")
claim("a race loses additions", add_all(tl) < 36)

# %% [markdown] lang="en"
# **The interpreter hides it**, because it runs one program after the other. A test that passes in the interpreter proves nothing about races; `tl` shows them; a GPU may give another number each time.
#
# The remedy is one writer per number. Program $g$ of $G$ sums rows $g, g+G, \dots$ in **registers**, the few numbers that a processor holds without memory. It stores one row of its own; then the $G$ rows are added:
#
# $$dw_i = \sum_{g=0}^{G-1}\;\underbrace{\sum_{k\,:\;g + kG < N} dy_{g+kG,\,i}\;n_{g+kG,\,i}}_{\text{program } g} \tag{15.6}$$

# %%
rng = np.random.default_rng(0)
dy, n = rng.standard_normal((2, 1000, 4))
partial = np.array([(dy[g::8] * n[g::8]).sum(0) for g in range(8)])
print("(15.6) is off by", np.abs(partial.sum(0) - (dy * n).sum(0)).max())
terms = (dy * n)[:, 0].astype(np.float32)
orders = [np.add.accumulate(terms[rng.permutation(1000)])[-1] for _ in range(50)]
print(f"the same 1000 numbers added in 50 orders: {len(set(orders))} different float32 sums")
claim("the order of additions changes the bits", len(set(orders)) > 5)

# %% [markdown] lang="en"
# Hardware can also add for you without a race (`tl.atomic_add`), but in the order in which programs arrive. As you see, another order gives other bits, so a run could not be repeated. The kernels here use no atomics: **the same input gives the same bits**.
#
# ### Your turn: one writer per number

# %%
from lessons.checks.gpu import launch_dweight  # exercise

# %%
check("15.launch_dweight", launch_dweight)

# %% [markdown] lang="en"
# The other half of backward needs no sum over rows. Here are both, side by side, from [`minillama/nn/rmsnorm.py`](../minillama/nn/rmsnorm.py) and [`kernels/rmsnorm.py`](../kernels/rmsnorm.py). A program of the real kernel takes *several rows* at a time, if they are short, so its tiles have two axes:
#
# | NumPy | Triton | |
# |---|---|---|
# | `n = x * rstd` | `n = x * rstd[:, None]` | one rstd per row |
# | `dn = dout * weight` | `dn = dout * weight[None, :]` | one gain per channel |
# | `along = einsum(…, dn, n) / D` | `along = tl.sum(dn * n, 1) / D` | the mean of (3.6) |
# | `dx = rstd * (dn - n * along)` | `dx = rstd[:, None] * (dn - n * along[:, None])` | (3.6) |
# | `dweight = einsum("ni,ni->i", dout, n)` | `dweight += dout * n`, and at the end `tl.store(…, tl.sum(dweight, 0), …)` | (15.6) |
#
# We run these lines on the last tile of five rows, two at a time: row 4 is there, row 5 is not.

# %%
N, D, ROWS, BLOCK, eps = 5, 3, 2, 4, 0.1
x, dout, weight = rng.standard_normal((N, D)), rng.standard_normal((N, D)), rng.standard_normal(D)
right_dx, _ = nn.rmsnorm_backward(dout, nn.rmsnorm_forward(x, weight, eps)[1])
x_ptr, dout_ptr, weight_ptr = tl.begin(2, 3, x, dout, weight)
row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
inside = (row < N)[:, None] & (column < D)[None, :]
at = row[:, None] * D + column[None, :]
x_tile, dout_tile = tl.load(x_ptr + at, inside, other=0.0), tl.load(dout_ptr + at, inside, other=0.0)
print("rows", row, "\n", x_tile.round(2))

# %%
rstd = 1.0 / tl.sqrt(tl.sum(x_tile * x_tile, 1) / D + eps)
n = x_tile * rstd[:, None]
dn = dout_tile * tl.load(weight_ptr + column, column < D, other=0.0)[None, :]
along = tl.sum(dn * n, 1) / D
dx = rstd[:, None] * (dn - n * along[:, None])
print("dx of row 4 is off by", np.abs(dx[0, :D] - right_dx[4]).max())
right_share = dout[4] * x[4] / np.sqrt((x[4] ** 2).mean() + eps)
print("this tile's share of (15.6) is off by", np.abs(tl.sum(dout_tile * n, 0)[:D] - right_share).max())
claim("a row that does not exist adds nothing", not dx[1].any() and not (dout_tile * n)[1].any())

# %% [markdown] lang="en"
# And now the real one, both ways, beside float64 NumPy. You know its lines. It can also do the residual addition before the norm, in the same pass over memory.

# %%
if there:
    from kernels import rmsnorm

    x, weight, dy = rng.standard_normal((40, 96)), rng.standard_normal(96), rng.standard_normal((40, 96))
    on_device = [torch.tensor(a, dtype=torch.float32, device=device) for a in (x, weight, dy)]
    exact = [t.double().cpu().numpy() for t in on_device]
    out, cache = rmsnorm.rmsnorm_forward(*on_device[:2], 1e-5)
    right_out, right_cache = nn.rmsnorm_forward(*exact[:2], 1e-5)
    ours = (out, *rmsnorm.rmsnorm_backward(on_device[2], cache))
    right = (right_out, *nn.rmsnorm_backward(exact[2], right_cache))
    off = [np.abs(a.double().cpu().numpy() - b).max() / np.abs(b).max() for a, b in zip(ours, right)]
    claim("out, dx and dweight of the kernel are NumPy's, to float32's rounding", max(off) < 1e-6)
else:
    print("torch and triton are not here: the committed output has the claim that kernel and NumPy agree")

# %% [markdown] lang="en"
# ## 4 · Flash attention: a softmax that never sees a whole row
#
# A long row of scores does not fit into a program's registers, and the square of all scores should never be stored. But a softmax needs the sum over the *whole* row, and its largest score. The way out begins with a freedom. For any number $m$,
#
# $$\mathrm{out} = \frac{\sum_j e^{s_j} v_j}{\sum_j e^{s_j}} = \frac{e^{-m}\sum_j e^{s_j} v_j}{e^{-m}\sum_j e^{s_j}} = \frac{\overbrace{\textstyle\sum_j e^{s_j-m}\,v_j}^{o(m)}}{\underbrace{\textstyle\sum_j e^{s_j-m}}_{l(m)}} \tag{15.7}$$

# %%
s, v = rng.standard_normal(12) * 3, rng.standard_normal((12, 4))
exact = np.exp(s) @ v / np.exp(s).sum()
l, o = (lambda m, s=s: np.exp(s - m).sum()), (lambda m, s=s, v=v: np.exp(s - m) @ v)
print("(15.7) is off by", [float(f"{np.abs(o(m) / l(m) - exact).max():.0e}") for m in (-5, 0, 7)], "for m = -5, 0, 7")

# %% [markdown] lang="en"
# In exact numbers every $m$ is right. In float32, $e^{89}$ is infinite. So $m$ must be at least the largest score so far; then no exponent is above 0. When a new tile of scores arrives, the running maximum becomes
#
# $$m' = \max\bigl(m,\ \max_{j \in \text{tile}} s_j\bigr) \tag{15.8}$$
#
# The old sums were made with $m$. Since $e^{s-m'} = e^{m-m'}\,e^{s-m}$, **one** factor turns each of them into a sum with $m'$, and the tile's terms are added:
#
# $$l' = e^{m-m'}\,l + \sum_{j\in\text{tile}} e^{s_j-m'}\qquad o' = e^{m-m'}\,o + \sum_{j\in\text{tile}} e^{s_j-m'}\,v_j \tag{15.9}$$

# %%
m, tile, m_new = s[:8].max(), slice(8, 12), s.max()
old_l, old_o = l(m, s[:8]), o(m, s[:8], v[:8])
p = np.exp(s[tile] - m_new)
print("(15.9) is off by", abs(np.exp(m - m_new) * old_l + p.sum() - l(m_new)), "and",
      np.abs(np.exp(m - m_new) * old_o + p @ v[tile] - o(m_new)).max())

# %% [markdown] lang="en"
# By hand: scores $(1, 2)$, then $4$; values $10, 20, 30$. After the first tile $m = 2$, $l = e^{-1} + 1 = 1.368$, $o = 10\,e^{-1} + 20 = 23.68$. Then $m' = 4$, the factor is $e^{-2} = 0.135$, $l' = 0.185 + 1$, $o' = 3.20 + 30$. So $\mathrm{out} = 33.20/1.185 = 28.02$, as the whole softmax gives.

# %% [markdown] lang="en"
# For backward the kernel keeps one number per row, the **log-sum-exp**. By (15.7) it does not depend on $m$, and $e^{s_j - \mathrm{lse}}$ is the probability itself:
#
# $$\mathrm{lse} = m + \ln l = \ln\sum_j e^{s_j} \tag{15.10}$$

# %%
by_hand = np.exp([1.0, 2, 4])
print("whole softmax:", (by_hand @ [10, 20, 30] / by_hand.sum()).round(2))
print("(15.10) is off by", max(abs(m + np.log(l(m)) - np.log(np.exp(s).sum())) for m in (-5, 0, 7)))

# %% [markdown] lang="en"
# ### Your turn: one tile more

# %%
from lessons.checks.gpu import flash_step  # exercise

# %%
check("15.flash_step", flash_step)

# %% [markdown] lang="en"
# Below, the whole kernel for one head; in the table, the loop of [`minillama/nn/flash.py`](../minillama/nn/flash.py), whose lines you have checked above:
#
# | NumPy | Triton | |
# |---|---|---|
# | `s = qi @ kj.T * scale`, and $-\infty$ beyond the diagonal | `tl.dot(q, tl.trans(k)) * scale`, `tl.where(query >= key, s, -inf)` | $-\infty$ is neutral for maximum *and* exponential |
# | `m_new = np.maximum(m, s.max(-1))` | `tl.maximum(m, tl.max(s, 1))` | (15.8) |
# | `p = np.exp(s - m_new)` | `tl.exp(s - m_new[:, None])` | |
# | `l = shrink * l + p.sum(-1)` | `shrink * l + tl.sum(p, 1)` | (15.9) |
# | `o = shrink * o + p @ vj` | `shrink[:, None] * o + tl.dot(p, v)` | (15.9) |

# %%
def attention(q, k, v, T, DH, scale, tl):
    """out (T, DH) of one head, in tiles of 16 queries by 16 keys."""

    def kernel(q_ptr, k_ptr, v_ptr, out_ptr, T, scale, DH: tl.constexpr, TILE: tl.constexpr):
        first = tl.program_id(0) * TILE
        query, channel = first + tl.arange(0, TILE), tl.arange(0, DH)
        at = query[:, None] * DH + channel[None, :]
        q = tl.load(q_ptr + at, (query < T)[:, None], other=0.0)
        m = tl.full((TILE,), float("-inf"), tl.float32)
        l = tl.zeros((TILE,), tl.float32)
        o = tl.zeros((TILE, DH), tl.float32)
        for start in tl.range(0, first + TILE, TILE):            # up to the diagonal: the masked half is never computed
            key = start + tl.arange(0, TILE)
            k = tl.load(k_ptr + key[:, None] * DH + channel[None, :], (key < T)[:, None], other=0.0)
            v = tl.load(v_ptr + key[:, None] * DH + channel[None, :], (key < T)[:, None], other=0.0)
            s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
            s = tl.where(query[:, None] >= key[None, :], s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1))
            p = tl.exp(s - m_new[:, None])
            shrink = tl.exp(m - m_new)
            l = shrink * l + tl.sum(p, 1)
            o = shrink[:, None] * o + tl.dot(p, v, input_precision="ieee")
            m = m_new
        tl.store(out_ptr + at, o / l[:, None], (query < T)[:, None])

    out = tl.empty(T, DH)
    tl.launch(kernel, tl.cdiv(T, 16), q, k, v, out, T, scale, DH, 16)
    return out

# %%
T, DH = 41, 16  # 41: the last tile is ragged
q, k, v = rng.standard_normal((3, 1, T, 1, DH))
here = attention(q, k, v, T, DH, DH**-0.5, tl)
for name, op in (("nn.attention", nn.attention_forward), ("nn.flash_attention", nn.flash_attention_forward)):
    off = np.abs(here - op(q, k, v)[0].reshape(T, DH)).max()
    print(f"off by {off:.0e} from {name}_forward")
claim("the kernel's lines are causal attention", off < 1e-12)
if there:
    on_both(attention, (q, k, v, T, DH, DH**-0.5, tl), device)

# %% [markdown] lang="en"
# The project's kernel does the same with fewer instructions: scores in units of $\log_2$, because hardware has `exp2`; and two loops, so that only the tiles on the diagonal pay for the mask. Backward rebuilds each tile of probabilities as $e^{s-\mathrm{lse}}$, by (15.10).

# %% [markdown] lang="en"
# ### The other kernels ask the same questions
#
# What does a program own? What does a masked lane hold? Who adds up what is shared?
#
# | kernel | a program owns | what is shared, and who adds it |
# |---|---|---|
# | [`rope.py`](../kernels/rope.py) | a token and some heads; a pair is split in registers | nothing; backward is the same kernel with $-\sin$ |
# | [`swiglu.py`](../kernels/swiglu.py) | a tile of channels | nothing |
# | [`cross_entropy.py`](../kernels/cross_entropy.py) | rows of logits | the row's sum: (15.8) and (15.9) without $o$ |
# | [`embedding.py`](../kernels/embedding.py) | an id, after the positions were sorted by id | an id's gradients, in the order of the text |
# | [`adamw.py`](../kernels/adamw.py) | every $G$-th block of the gradient | the squared norm: $G$ partial sums, as in (15.6) |
#
# The line of the loss, checked: a row of 500 logits, 64 at a time, with a ragged last tile.

# %%
logits, target = 3 * rng.standard_normal(500), 123
m, l, column = -np.inf, 0.0, tl.arange(0, 64)
logits_ptr, = tl.begin(0, 1, logits)
for start in range(0, 500, 64):
    tile = tl.load(logits_ptr + start + column, start + column < 500, other=float("-inf"))
    m_new = tl.maximum(m, tl.max(tile, 0))
    m, l = m_new, np.exp(m - m_new) * l + tl.sum(tl.exp(tile - m_new), 0)
nats = m + np.log(l) - logits[target]
print("the loss is off by", abs(nats - nn.cross_entropy_forward(logits[None, None], np.array([[target]]))[0]))

# %% [markdown] lang="en"
# ## 5 · How wrong may it be?
#
# A format keeps a number to a relative precision of $\epsilon$, the step from 1 to the next number: $2^{-23}$ in float32, $2^{-10}$ in float16, $2^{-7}$ in bfloat16. Every result is rounded to the nearest number of the format: $\mathrm{fl}(a) = a\,(1+\delta)$ with $|\delta| \le \epsilon/2$.
#
# A running sum $S_k$ is rounded at each of its $n$ steps. To first order these errors add up, $\delta_k S_k$ each. If their signs are random, like those of coin tosses, most of them cancel, and only their *squares* add up. For terms that are not negative, $S_k \le S_n$, so:
#
# $$\mathrm{err} = \sum_{k=1}^{n} \delta_k S_k\qquad\Bigl|\frac{\mathrm{err}}{S_n}\Bigr| \lesssim \sqrt n\;\frac{\epsilon}{2}\quad\text{usually,}\quad \le n\,\frac\epsilon2\ \text{always} \tag{15.11}$$

# %%
squares = (rng.standard_normal(4096).astype(np.float32) ** 2).astype(float)
S, err, first_order = np.float32(0), 0.0, 0.0
for square in squares:
    unrounded = float(S) + square
    S = np.float32(unrounded)
    first_order += float(S) - unrounded  # δ_k S_k
print(f"error of a float32 sum of 4096 squares: {float(S) - squares.sum():.6e}; by (15.11) {first_order:.6e}")
print(f"relative: {abs(first_order) / S:.1e}; √n ε/2 = {64 * 2.0**-24:.1e}, n ε/2 = {4096 * 2.0**-24:.1e}")

# %% [markdown] lang="en"
# Now the sum of RMSNorm, kept in each of the three formats. When the sum is large, a square can be less than half a step of it. Then it is rounded *away*, every time: the signs are not random any more, and the sum stops growing.

# %%
sizes = 2 ** np.arange(4, 13 if FAST else 15)


def relative_error(dtype, seed):
    """Root mean square, over 64 sums, of the error of a running sum of n squares kept in dtype; for each n of sizes."""
    squares = np.random.default_rng(seed).standard_normal((sizes[-1], 64)).astype(np.float32) ** 2
    exact, kept, found = np.cumsum(squares, 0, dtype=float), np.zeros(64, np.float32), []
    for n, square in enumerate(squares, 1):
        kept = gpu_lab.rounded(kept + square, dtype)
        if n in sizes:
            found.append(np.sqrt(np.mean((kept / exact[n - 1] - 1) ** 2)))
    return np.array(found)


grown = {dtype: np.array([relative_error(dtype, seed) for seed in range(3)]) for dtype in gpu_lab.EPS}

# %%
fig, axis = plt.subplots()
for (dtype, found), colour in zip(grown.items(), lab.COLOURS):
    axis.plot(sizes, found.mean(0), "o-", color=colour, markersize=4, label=f"sum kept in {dtype}")
    axis.fill_between(sizes, found.min(0), found.max(0), color=colour, alpha=0.25, linewidth=0)
    axis.plot(sizes, np.sqrt(sizes) * gpu_lab.EPS[dtype] / 2, "--", color=colour, linewidth=1)
axis.plot([], [], "--", color="black", linewidth=1, label="√n ε/2")
axis.set(xscale="log", yscale="log", xlabel="n, number of squares in the sum", ylabel="relative error", ylim=(1e-8, 2))
axis.set_xticks(sizes[::2], [f"{n:,}" for n in sizes[::2]])
axis.minorticks_off()
axis.set_title("Keep a sum in float32: the others stop growing (band: three seeds)")
axis.legend(loc="center", bbox_to_anchor=(0.62, 0.41), ncols=2)
plt.show()

# %% [markdown] lang="en"
# At $n = 4096$, the width of LLaMA-7B, a sum kept in bfloat16 has lost {{lost_bf16:.0%}} of itself, and one in float16 is off by {{off_f16:.1e}}. In float32 it stays below the dashed line. This is why (15.4) exists.

# %%
width = list(sizes).index(4096)
record(lost_bf16=grown["bfloat16"][:, width].mean(), off_f16=grown["float16"][:, width].mean())
claim("in float32 every seed stays below √n ε/2",
      (grown["float32"] < np.sqrt(sizes) * gpu_lab.EPS["float32"] / 2).all())
claim("in bfloat16 every seed loses more than a third of the sum", (grown["bfloat16"][:, width] > 1 / 3).all())
claim("float16 is more than a thousand times worse than float32",
      (grown["float16"][:, width] > 1000 * grown["float32"][:, width]).all())

# %% [markdown] lang="en"
# So a kernel that follows (15.4) has two sources of error: $r$ roundings to the format $d$ on the way to its output (one, for most), and a chain of $n$ operations in float32, mostly the terms of its longest sum. We allow both, the second with a factor of 2 to spare, as a share of the output's largest value:
#
# $$\mathrm{tolerance} = r\,\frac{\epsilon_d}{2} + \sqrt n\;\epsilon_{32} \tag{15.12}$$
#
# By hand, RMSNorm with $D = 96$: in float32 $0.5\cdot1.2\cdot10^{-7} + 9.8\cdot1.2\cdot10^{-7} = 1.2\cdot10^{-6}$; in float16 the first term rules, $4.9\cdot10^{-4}$. Attention rounds its probabilities to $d$ before the product with $v$, so $r = 2$; its $dq$ has 4.

# %% [markdown] lang="en"
# Why do the kernels refuse bfloat16 in the interpreter? NumPy has no such type, so Triton's interpreter keeps the bit patterns as 16-bit *whole numbers*, and computes with those ([triton#4972](https://github.com/triton-lang/triton/issues/4972), [#10945](https://github.com/triton-lang/triton/pull/10945)). It raises no error. See what $1 + 2$ becomes:

# %%
upper_half = lambda number: int(np.float32(number).view(np.uint32) >> 16)
total = upper_half(1.0) + upper_half(2.0)
print(f"1 is {upper_half(1.0):#06x}, 2 is {upper_half(2.0):#06x}; their sum {total:#06x} is the pattern of",
      np.uint32(total << 16).view(np.float32))


def add(host, a, b, out):
    def kernel(a_ptr, b_ptr, out_ptr):
        tl.store(out_ptr, tl.load(a_ptr) + tl.load(b_ptr))

    host.launch(kernel, 1, a, b, out)
    return out


if there:
    one, two, out = torch.tensor([[1.0], [2.0], [0.0]], dtype=torch.bfloat16, device=device)
    where = "in the interpreter:" if device == "cpu" else "on a GPU:"
    print("1 + 2 in bfloat16,", where, float(add(on_triton(device), one, two, out)))
    try:
        rmsnorm.rmsnorm_forward(one[None], one)
    except ValueError as error:
        print("so the kernels say:", error)
claim("patterns do not add like numbers", upper_half(1.0) + upper_half(2.0) == upper_half(np.inf))

# %% [markdown] lang="en"
# So in bfloat16 we emulate the rule, float32 NumPy between two roundings, and add PyTorch for comparison. The picture shows every output in three formats with three seeds, all against float64 NumPy on the same rounded inputs:

# %%
runs = {("NumPy", dtype): [gpu_lab.errors("NumPy", dtype, seed) for seed in range(3)] for dtype in gpu_lab.EPS}
if there:
    for dtype in gpu_lab.EPS:
        runs["PyTorch", dtype] = [gpu_lab.errors("PyTorch", dtype, seed, device) for seed in range(3)]
        if device == "cuda" or dtype != "bfloat16":
            runs["kernel", dtype] = [gpu_lab.errors("kernel", dtype, seed, device) for seed in range(1 if FAST else 3)]

# %%
fig, axis = plt.subplots(figsize=(7.2, 4.4))
places = np.arange(len(gpu_lab.OPS))
looks = {"kernel": ("o", "the kernel, in Triton", -0.2), "NumPy": ("s", "float32 NumPy, rounded once", 0.0),
         "PyTorch": ("x", "PyTorch", 0.2)}
for dtype, colour in zip(gpu_lab.EPS, lab.COLOURS):
    allowed = [gpu_lab.tolerance(op, dtype) for op in gpu_lab.OPS]
    axis.hlines(allowed, places - 0.4, places + 0.4, color=colour, linewidth=2)
    axis.text(places[-1] + 0.5, gpu_lab.tolerance("RoPE out", dtype), dtype, color=colour, va="center")
    for who, (marker, _, shift) in looks.items():
        for found in runs.get((who, dtype), []):
            values = [found[op] for op in gpu_lab.OPS]
            axis.plot(places + shift, values, marker, color=colour, markersize=4.5, alpha=0.7)
for marker, label, _ in looks.values():
    axis.plot([], [], marker, color="#555555", markersize=5, label=label)
axis.plot([], [], "-", color="#555555", linewidth=2, label="tolerance (15.12)")
axis.set(yscale="log", ylabel="largest error / largest value", xlim=(-0.6, len(places) + 0.9), ylim=(5e-9, 3e-1))
axis.set_xticks(places, list(gpu_lab.OPS), rotation=35, ha="right")
axis.set_title("The format decides the error, and every kernel keeps its tolerance")
axis.legend(loc="upper center", ncols=4, columnspacing=1, handletextpad=0.3)
plt.show()

# %% [markdown] lang="en"
# **Remember the three levels.** The format decides the error, much more than the op does. Half a step, $\epsilon/2$, is $6\cdot10^{-8}$, $4.9\cdot10^{-4}$ and $3.9\cdot10^{-3}$, and the points lie near it.
#
# The kernels and the rounded NumPy stay below (15.12), at most at {{worst:.2f}} of it. And (15.12) is narrow enough to find a mistake. If an output with $r = 1$ were rounded to bfloat16 where float16 was asked for, it would exceed its tolerance.

# %%
share = lambda who, dtype, of=None: np.array([[found[op] / gpu_lab.tolerance(op, of or dtype) for op in gpu_lab.OPS]
                                              for found in runs[who, dtype]])
ours = [share(*key).max() for key in runs if key[0] != "PyTorch"]
once = [roundings == 1 for _, roundings in gpu_lab.OPS.values()]
record(worst=max(ours))
claim("kernels and rounded NumPy keep the tolerance, at every seed", max(ours) < 1)
claim("bfloat16 in place of float16 would be caught, at every seed",
      share("NumPy", "bfloat16", "float16")[:, once].min() > 1)

# %% [markdown] lang="en"
# A few crosses are above their line: PyTorch's SwiGLU and loss. Look at *all* elements, not only at the worst. One rounding is off by half a step at most.
#
# PyTorch's SwiGLU is two operations, so it rounds $\mathrm{silu}(g)$, and then the product. In bfloat16 {{twice:.0%}} of its numbers are off by more than half a step; in one pass it is {{once:.0%}}. **Fewer passes over memory are also more accurate.**

# %%
def off_by_more(function, dtype, seed):
    """Share of SwiGLU's outputs that are more than half a step of their format away from float64."""
    gate, up = gpu_lab.rounded(np.random.default_rng(seed).standard_normal((2, 64, 96)), dtype)
    right = nn.swiglu_forward(gate.astype(float), up.astype(float))[0]
    step = gpu_lab.EPS[dtype] * 2.0 ** np.floor(np.log2(np.abs(right)))
    return np.mean(np.abs(function(gate, up, dtype) - right) > 0.51 * step)


one_pass = lambda gate, up, dtype: gpu_lab.rounded(nn.swiglu_forward(gate, up)[0], dtype)
silu = lambda gate: nn.swiglu_forward(gate, np.ones_like(gate))[0]
two_passes = lambda gate, up, dtype: gpu_lab.rounded(gpu_lab.rounded(silu(gate), dtype) * up, dtype)
shares = {f: [off_by_more(f, "bfloat16", seed) for seed in range(3)] for f in (one_pass, two_passes)}
record(once=np.mean(shares[one_pass]), twice=np.mean(shares[two_passes]))
claim("one rounding is off by half a step at most", max(shares[one_pass]) < 0.001)
claim("two roundings are off by more in over a tenth of the numbers, at every seed", min(shares[two_passes]) > 0.1)
if there:
    from kernels import reference

    def torch_way(gate, up, dtype):
        gate, up = (torch.tensor(a).to(getattr(torch, dtype)) for a in (gate, up))
        return reference.swiglu_forward(gate, up).double().numpy()

    claim("and PyTorch does the same", min(off_by_more(torch_way, "bfloat16", seed) for seed in range(3)) > 0.1)

# %% [markdown] lang="en"
# The project's tests say the same with another measure. A kernel's error may be at most *twice* PyTorch's in the same format, plus a few roundings: an op that is hard in a format is hard for PyTorch too.

# %% [markdown] lang="en"
# ## 6 · How fast could it be?
#
# **From here on no time is measured**; this lesson was made without a GPU. We *predict*. A kernel must move its bytes and do its FLOPs. At best both overlap, so the longer of the two times is a bound that no code can beat, the **roofline**:
#
# $$t \;\ge\; \max\Bigl(\frac{\text{bytes}}{\text{bandwidth}},\ \frac{\text{FLOPs}}{\text{rate}}\Bigr) \tag{15.13}$$
#
# By hand, RMSNorm of $N = 16384$ tokens, $D = 4096$, bfloat16: it reads $x$ and writes out, $2\cdot2\cdot16384\cdot4096 = 268$ MB. At the assumed 4.3 TB/s of an H200 that is 0.062 ms. Its arithmetic takes much less.

# %%
from kernels import roofline

shape = {"N": 16384, "D": 4096, "F": 11008, "V": 32000, "T": 2048, "P": 2**30}
print(f"assumed: {roofline.BANDWIDTH / 1e12:.1f} TB/s and {roofline.MATMUL / 1e12:.0f} TFLOP/s, bfloat16, "
      f"{shape['N']} tokens; PREDICTED, no time is measured")
for op in ("rmsnorm", "rope", "swiglu", "attention", "cross_entropy"):
    count = roofline.bytes_and_flops(op, "forward", shape, "bfloat16")
    at_least = roofline.roofline_ms(count)
    print(f"{op:<14} {count[0] / 1e6:6.0f} MB  {count[1] / 1e9:6.0f} GFLOP  at least {at_least:.3f} ms")
claim("the count by hand is the table's",
      roofline.bytes_and_flops("rmsnorm", "forward", shape, "bfloat16")[0] == 2 * 2 * 16384 * 4096)

# %% [markdown] lang="en"
# Attention is different. With $b$ bytes per number it moves $q, k, v$ and out, $4bND$ bytes, and does two products over half of the square: $2\cdot2\cdot\frac12NTD$ FLOPs. Both times are equal where
#
# $$\frac{4bND}{\text{bandwidth}} = \frac{2NTD}{\text{rate}}\quad\Rightarrow\quad T^* = 2b\,\frac{\text{rate}}{\text{bandwidth}} \tag{15.14}$$
#
# By hand: $2\cdot2\cdot790/4.3 = 735$ positions. Beyond that, only arithmetic counts.
#
# Code that *stores* the scores is different: it writes $NTH$ of them ($H$ heads), reads them for the softmax, writes and reads the probabilities. That is $4bNTH$ bytes more, and all of the square.

# %%
Ts, H, b = np.round(2 ** np.arange(7, 14.01, 0.125)).astype(int), 32, 2
counted = lambda op, **changed: roofline.bytes_and_flops(op, "forward", shape | changed, "bfloat16")
moved, flops = np.array([counted("attention", T=int(t)) for t in Ts]).T
flash = np.array([roofline.roofline_ms(pair) for pair in zip(moved, flops)])
stored = [(m + 4 * b * shape["N"] * int(t) * H, 2 * f) for t, m, f in zip(Ts, moved, flops)]  # bytes and FLOPs
stored = np.array([roofline.roofline_ms(pair) for pair in stored])
ridge = 2 * b * roofline.MATMUL / roofline.BANDWIDTH
flat = {op: roofline.roofline_ms(counted(op)) for op in ("swiglu", "rmsnorm")}

# %%
fig, axis = plt.subplots()
axis.plot(Ts, stored, color=lab.COLOURS[1], label="attention that stores its scores")
axis.plot(Ts, flash, color=lab.COLOURS[0], label="flash attention")
axis.plot(Ts, 1e3 * moved / roofline.BANDWIDTH, ":", color=lab.COLOURS[0], linewidth=1.2, label="its bytes alone")
for op, colour, name in (("swiglu", lab.COLOURS[2], "SwiGLU"), ("rmsnorm", lab.COLOURS[3], "RMSNorm")):
    axis.axhline(flat[op], color=colour, linestyle="--", label=name)
axis.axvline(ridge, color="#888888", linewidth=0.8)
axis.annotate(f"T* = {ridge:.0f}", (ridge, 12), xytext=(4, 0), textcoords="offset points", color="#555555")
axis.set(xscale="log", yscale="log", ylim=(0.04, 30), ylabel="PREDICTED time, forward (ms)")
axis.set_xlabel("T, positions per sequence (16,384 tokens in all)")
axis.set_xticks([128, 512, 2048, 8192], ["128", "512", "2,048", "8,192"])
axis.minorticks_off()
axis.set_title("Predicted rooflines: beyond T*, flash attention pays for arithmetic only")
axis.legend(loc="upper left", fontsize=8.5)
plt.show()

# %% [markdown] lang="en"
# At $T = 2048$ the bound is {{flash_ms:.2f}} ms, and {{stored_ms:.2f}} ms for code that stores its scores: {{ratio:.1f}} times as long, from bytes alone. A roofline is not a promise. It leaves out the start of a kernel, the processors that have no work at its end, and everything that does not overlap. [`kernels/README.md`](../kernels/README.md) names the share of it that each kernel aims at.

# %%
at = list(Ts).index(2048)
record(flash_ms=flash[at], stored_ms=stored[at], ratio=stored[at] / flash[at])
by_flops = flash > 1.001e3 * moved / roofline.BANDWIDTH
claim("below T* the bytes rule, above it the FLOPs", (by_flops == (Ts > ridge)).all())
claim("at 2048 positions, storing the scores costs more than three times the bound", stored[at] > 3 * flash[at])

# %% [markdown] lang="en"
# ## 7 · What the compiler made of it
#
# Compiling needs no GPU. A second process, without the interpreter, makes machine code for an H100 (`sm_90`). A program runs in **warps** of 32 threads, and its warps exchange numbers through a small **shared** memory.
#
# Look for four things. **Spilled** must be 0 where it counts, in the loops: registers that did not fit go through memory. Loads should be **wide**, 16 bytes for each thread at once. The products of attention must be **matrix instructions**. And a loop should copy its next rows **ahead of time**: at each of its waits, some younger copies may still be under way. (The last wait, after the loop, is for all.)

# %%
rows, why_not = gpu_lab.machine_code() if there else ([], "torch and triton are not here")
for row in rows:
    print(f"{row['kernel']:<24} {row['warps']} warps, {row['registers']} registers per thread, "
          f"{row['spilled']} spilled in loops, {row['shared']} bytes shared")
    print(f"{'':<24} {row['loads']} loads, {row['wide']} of them 16 bytes wide; "
          f"{row['stores']} stores; {row['products']} matrix instructions")
    print(f"{'':<24} copies under way after each wait: {row['waits'] or 'no copies'}")
if rows:
    print("a load of RMSNorm:", rows[0]["first"])
    claim("no loop spills, and all loads are wide",
          all(row["spilled"] == 0 and row["loads"] == row["wide"] for row in rows))
    claim("every loop copies ahead of time", all(wait > 0 for row in rows for wait in row["waits"][::2]))
else:
    print("it cannot be compiled here, see the committed output:", why_not)

# %% [markdown] lang="en"
# The load is a line of PTX, NVIDIA's assembly language, and you can read it: `@%p1` is your mask, one bit per thread; `v4.b32` are four words at once, eight bfloat16 numbers; `%rd1` is your pointer. `tl.load(x_ptr + …, inside)` has become one instruction. RMSNorm's row stays in registers from load to store, so $x$ is read once, as its roofline asks.

# %% [markdown] lang="en"
# **What does not show at this scale.** Without a GPU: time, any time. Races, as section 3 showed. Offsets beyond $2^{31}$. The approximate `exp2` of the hardware and the order in which its matrix units add, which change the last bits. And how much faster the whole model gets when one op is twice as fast: often little.

# %% [markdown] lang="en"
# ## The anchor in the paper
#
# LLaMA §2.4, *Efficient implementation*: causal attention that neither stores the attention weights nor computes the scores that the mask removes: sections 4 and 6 here. And a backward written by hand for the whole layer, instead of autograd, which keeps only what is expensive to compute again: [`kernels/block.py`](../kernels/block.py).
#
# ## Three questions
#
# 1. Your kernel is right for $D = 128$ and wrong for $D = 96$. What do you look at first?
# 2. A test passes in the interpreter, and on the GPU the result changes from run to run. What is it, and why did the test pass?
# 3. An error of $3\cdot10^{-4}$: in which format is it a bug, and in which is it fine?
#
# <details><summary>Answers</summary>
#
# 1. The mask. 96 is no power of two, so a block of 128 has 32 lanes behind the row's end: are they masked in the load with a neutral value, left out of the store, and not counted in the mean?
# 2. A race: several programs write to the same place, and the last one wins, or they read before the others have written. The interpreter runs one program after the other, so there is no race to see.
# 3. If it is relative: in float32, whose rounding is $6\cdot10^{-8}$, it is a bug. In float16 one rounding may cost $4.9\cdot10^{-4}$, so it is fine; in bfloat16, with $3.9\cdot10^{-3}$, it is better than the format can promise.
#
# </details>
#
# **The way on:** [16 · A scaling law whose floor is known](16_scaling.ipynb): how much arithmetic to spend, and on what.
