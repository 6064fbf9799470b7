"""Lesson 15: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake
from ..tiny_triton import tl as tiny


def launch_rmsnorm(x, weight, N, D, x_stride, eps, BLOCK, tl):
    """out (N, D), whose rows are D apart, by a kernel with one program per row.

    x is flat and float16: its row r begins at element r * x_stride. weight (D,). BLOCK is a power of 2, D at least.
    Write def kernel(x_ptr, weight_ptr, out_ptr, D, x_stride, eps, BLOCK: tl.constexpr), then out = tl.empty(N, D),
    then tl.launch(kernel, programs, x, weight, out, ...), and return out.
    """

    def kernel(x_ptr, weight_ptr, out_ptr, D, x_stride, eps, BLOCK: tl.constexpr):
        row = tl.program_id(0)
        column = tl.arange(0, BLOCK)
        inside = column < D
        x = tl.load(x_ptr + row * x_stride + column, inside, other=0.0).to(tl.float32)
        rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / D + eps)
        weight = tl.load(weight_ptr + column, inside, other=0.0)
        out = x * rstd * weight
        tl.store(out_ptr + row * D + column, out, inside)

    out = tl.empty(N, D)
    tl.launch(kernel, N, x, weight, out, D, x_stride, eps, BLOCK)
    return out


def launch_dweight(dout, x, rstd, N, D, G, BLOCK, tl):
    """dweight (D,), by a kernel of G programs: program g adds up dout * x * rstd of rows g, g + G, g + 2G, ... (tl.range).

    dout, x (N, D), rows D apart; rstd (N,). BLOCK is a power of 2, D at least. Every number has one writer: each program stores
    its sum in a row of its own of partial = tl.empty(G, D), and after the launch partial.sum(0) adds the G rows.
    """

    def kernel(dout_ptr, x_ptr, rstd_ptr, partial_ptr, N, D, G, BLOCK: tl.constexpr):
        g = tl.program_id(0)
        column = tl.arange(0, BLOCK)
        inside = column < D
        dweight = tl.zeros((BLOCK,), tl.float32)
        for row in tl.range(g, N, G):
            at = row * D + column
            n = tl.load(x_ptr + at, inside, other=0.0) * tl.load(rstd_ptr + row)
            dweight += tl.load(dout_ptr + at, inside, other=0.0) * n
        tl.store(partial_ptr + g * D + column, dweight, inside)

    partial = tl.empty(G, D)
    tl.launch(kernel, G, dout, x, rstd, partial, N, D, G, BLOCK)
    return partial.sum(0)


def flash_step(m, l, o, s, v):
    """m (R,), l (R,), o (R, Dh) after one more tile of keys, whose scores are s (R, K) and whose values are v (K, Dh)."""
    m_new = np.maximum(m, s.max(-1))
    p = np.exp(s - m_new[:, None])
    shrink = np.exp(m - m_new)
    l = shrink * l + p.sum(-1)
    o = shrink[:, None] * o + p @ v
    return m_new, l, o


def _rmsnorm_inputs(rng):
    N, D, x_stride = 9, 6, 9
    x = (rng.standard_normal(N * x_stride) + 0.3).astype(np.float16)
    return x, rng.standard_normal(D), N, D, x_stride, 0.3, 8, tiny


def _dweight_inputs(rng):
    N, D, G = 11, 5, 3
    return rng.standard_normal((N, D)), rng.standard_normal((N, D)) + 0.2, rng.uniform(0.5, 2, N), N, D, G, 8, tiny


def _flash_inputs(rng):
    """The running maximum is the larger one in some rows, and the new tile's in others; one row has masked keys."""
    R, K, Dh = 4, 5, 3
    s = rng.standard_normal((R, K))
    m = s.max(-1) + np.array([0.7, -0.9, 1.2, -0.4])
    l, o = rng.uniform(1, 3, R), rng.standard_normal((R, Dh))
    s[1, 2:] = -np.inf
    m[1] = s[1, :2].max() - 0.9
    return m, l, o, s, rng.standard_normal((K, Dh)) + 0.3


X_LOAD, OUT_AT = "tl.load(x_ptr + row * x_stride + column, inside, other=0.0)", "out_ptr + row * D + column"
STORE = "tl.store(partial_ptr + g * D + column, dweight, inside)"
REDUCED = "partial.sum(0)"

EXERCISES = {
    "15.launch_rmsnorm": Exercise(
        launch_rmsnorm, ("out",), _rmsnorm_inputs,
        (
            Mistake("no-mask", X_LOAD, "tl.load(x_ptr + row * x_stride + column)",
                    "the load of x has no mask: the lanes from D to BLOCK read what lies behind the row, and the sum of (15.3) takes it in"),
            Mistake("no-other", X_LOAD, "tl.load(x_ptr + row * x_stride + column, inside)",
                    "the masked lanes of x have no `other`: what they hold is undefined, and the sum of (15.3) takes it in; 0 is neutral for a sum"),
            Mistake("other-one", X_LOAD, "tl.load(x_ptr + row * x_stride + column, inside, other=1.0)",
                    "the masked lanes of x hold 1: each adds 1 to the sum of (15.3); what is neutral for a sum is 0"),
            Mistake("divides-by-block", "tl.sum(x * x, 0) / D", "tl.sum(x * x, 0) / BLOCK",
                    "the sum of squares is divided by BLOCK: the mean of (15.3) is over D channels, whatever the size of the tile"),
            Mistake("half-sums", ".to(tl.float32)", "",
                    "squares and sum stay in float16: everything between load and store is float32, and is rounded once (15.4)"),
            Mistake("row-stride-is-D", "row * x_stride + column", "row * D + column",
                    "rows of x are taken to be D apart: row r begins at r * x_stride (15.1)"),
            Mistake("columns-as-rows", "row * x_stride + column", "row + column * x_stride",
                    "the stride is on the wrong index, so that columns are read as rows: the address is r * x_stride + i (15.1)"),
            Mistake("out-has-x-stride", OUT_AT, "out_ptr + row * x_stride + column",
                    "rows of out are stored x_stride apart: out has its own stride, D (15.1)"),
            Mistake("store-without-mask", "tl.store(out_ptr + row * D + column, out, inside)", "tl.store(out_ptr + row * D + column, out)",
                    "the store has no mask: its lanes from D on overwrite the next row of out (15.2), whose own program may have been there before"),
            Mistake("one-row-for-all", "row = tl.program_id(0)", "row = tl.program_id(1)",
                    "all programs compute row 0: the grid has one axis, number 0, and program_id(1) is 0 in all of them"),
            Mistake("grid-in-blocks", "tl.launch(kernel, N,", "tl.launch(kernel, tl.cdiv(N, BLOCK),",
                    "too few programs are launched: N / BLOCK is the grid of a kernel that has BLOCK rows per program; this one has one"),
            Mistake("last-row-missing", "tl.launch(kernel, N,", "tl.launch(kernel, N - 1,", "one program too few is launched: nobody writes the last row"),
            Mistake("eps-outside", "1.0 / tl.sqrt(tl.sum(x * x, 0) / D + eps)", "1.0 / (tl.sqrt(tl.sum(x * x, 0) / D) + eps)",
                    "eps is added to the root, not under it (15.3)"),
            Mistake("rms-multiplied", "1.0 / tl.sqrt(", "tl.sqrt(", "x is multiplied by its rms; it is divided by it (15.3)"),
            Mistake("gain-missing", "x * rstd * weight", "x * rstd", "the gain is left out (15.3)"),
        ),
    ),
    "15.launch_dweight": Exercise(
        launch_dweight, ("dweight",), _dweight_inputs,
        (
            Mistake("race", (STORE, REDUCED), (STORE.replace("g * D + ", ""), "partial[0]"),
                    "one program's sum alone is left: all store to the same place and overwrite each other, even if each loads and adds first; "
                    "or G sums are stored and one is returned (15.6)"),
            Mistake("last-row-only", "dweight += ", "dweight = 0 * dweight + ", "a program keeps its last row alone: what it loads must be added to dweight, not put in its place (15.6)"),
            Mistake("first-row-only", "tl.range(g, N, G)", "tl.range(g, g + 1)", "a program stops after its first row: it goes on to g + G, g + 2G, up to N (15.6)"),
            Mistake("whole-rounds-only", "tl.range(g, N, G)", "tl.range(g, N - N % G, G)", "the rows of the last, incomplete round are left out: N is no multiple of G (15.6)"),
            Mistake("every-row-everywhere", "tl.range(g, N, G)", "tl.range(0, N)", "every program adds up all rows: each row then counts G times; program g has rows g, g + G, ... (15.6)"),
            Mistake("step-one", "tl.range(g, N, G)", "tl.range(g, N)", "a program goes on to the very next row: the step is G, or rows count more than once (15.6)"),
            Mistake("rstd-forgotten", " * tl.load(rstd_ptr + row)", "", "x stands where n must: the gain multiplies x rstd (15.5)"),
            Mistake("rstd-of-program", "rstd_ptr + row", "rstd_ptr + g", "every row is multiplied by the rstd of the program's first row; each has its own (15.5)"),
            Mistake("columns-as-rows", "at = row * D + column", "at = row + column * N", "the stride is on the wrong index, so that columns are read as rows: the address is r * D + i (15.1)"),
            Mistake("half-accumulator", "tl.zeros((BLOCK,), tl.float32)", "tl.zeros((BLOCK,), tl.float16)",
                    "the sum is kept in float16, and rounded at every addition: a sum is float32, and is rounded once (15.4)"),
            Mistake("averaged", REDUCED, "partial.mean(0)", "the partial sums are averaged; they add up (15.6)"),
            Mistake("no-mask-store", STORE, "tl.store(partial_ptr + g * D + column, dweight)",
                    "the store has no mask: its lanes from D on overwrite the next program's sum (15.2)"),
        ),
    ),
    "15.flash_step": Exercise(
        flash_step, ("m", "l", "o"), _flash_inputs,
        (
            Mistake("o-not-rescaled", "shrink[:, None] * o", "o",
                    "the old o is not rescaled: it was summed with the old maximum, and exp(m - m') turns it into a sum with the new one (15.9)"),
            Mistake("l-not-rescaled", "shrink * l", "l",
                    "the old l is not rescaled: it was summed with the old maximum, and exp(m - m') turns it into a sum with the new one (15.9)"),
            Mistake("shrink-upside-down", "np.exp(m - m_new)", "np.exp(m_new - m)",
                    "the factor is exp(m' - m): then the old sums grow where they must shrink (15.9)"),
            Mistake("old-maximum-kept", "m_new = np.maximum(m, s.max(-1))", "m_new = m",
                    "the old maximum is kept, or returned: right in exact numbers (15.7), until an exponential overflows (15.8)"),
            Mistake("tile-maximum", "np.maximum(m, s.max(-1))", "s.max(-1)",
                    "the running maximum is that of this tile alone: it must be the larger one of it and the old (15.8)"),
            Mistake("p-with-the-tiles-maximum", "np.exp(s - m_new[:, None])", "np.exp(s - s.max(-1)[:, None])",
                    "p is taken against the tile's own maximum; old and new terms must have the same one, m' (15.9)"),
            Mistake("sum-before-max", "np.exp(s - m_new[:, None])", "np.exp(s)", "the exponentials are taken before the maximum is subtracted (15.8): they overflow for scores of 90 in float32"),
            Mistake("l-not-running", "shrink * l + p.sum(-1)", "p.sum(-1)", "l is the sum of this tile alone (15.9)"),
            Mistake("o-not-running", "shrink[:, None] * o + p @ v", "p @ v", "o is that of this tile alone (15.9)"),
            Mistake("normalised-every-time", "shrink[:, None] * o + p @ v", "(shrink[:, None] * o + p @ v) / l[:, None]", "o is divided by l in every step: that is done once, at the end"),
            Mistake("one-maximum-for-all", "s.max(-1)", "s.max()", "one maximum serves all rows; every query has its own (15.8)"),
            Mistake("mean-of-p", "p.sum(-1)", "p.mean(-1)", "l takes the mean of the exponentials; it is their sum (15.9)"),
        ),
    ),
}
