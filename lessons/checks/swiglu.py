"""Lesson 06: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def silu(g):
    """out = silu(g) and its slope, both like g; g may be as large as 800 and as low as -800."""
    s = (1 + np.tanh(0.5 * g)) / 2
    out = g * s
    slope = s * (1 + g * (1 - s))
    return out, slope


def swiglu_backward(dout, gate, up):
    """dgate and dup (..., F), from dout, gate and up (..., F)."""
    s = 1 / (1 + np.exp(-gate))
    dup = dout * gate * s
    dgate = dout * up * s * (1 + gate * (1 - s))
    return dgate, dup


def ffn_backward(dout, x, w1, w2, w3):
    """dx (T, D), dw1 (F, D), dw2 (D, F), dw3 (F, D), from dout and x (T, D) and the three matrices."""
    gate, up = x @ w1.T, x @ w3.T
    s = 1 / (1 + np.exp(-gate))
    hidden = gate * s * up
    dhidden = dout @ w2
    dw2 = dout.T @ hidden
    dgate = dhidden * up * s * (1 + gate * (1 - s))
    dup = dhidden * gate * s
    dw1 = dgate.T @ x
    dw3 = dup.T @ x
    dx = dgate @ w1 + dup @ w3
    return dx, dw1, dw2, dw3


def hidden_size(dim, multiple_of):
    """hidden (n,) int: LLaMA's feed-forward width for every width of the model in dim (n,) int."""
    width = 2 * (4 * dim) // 3
    hidden = multiple_of * ((width + multiple_of - 1) // multiple_of)
    return hidden


def _silu_inputs(rng):
    return (np.concatenate([1.5 * rng.standard_normal(9), [800.0, -800.0, 0.0]])[rng.permutation(12)],)


def _swiglu_inputs(rng):
    return tuple(rng.standard_normal((3, 2, 5, 7)))


def _ffn_inputs(rng):
    T, D, F = 5, 4, 7
    return rng.standard_normal((T, D)), rng.standard_normal((T, D)), *(rng.standard_normal(shape) * 0.7 for shape in ((F, D), (D, F), (F, D)))


def _size_inputs(rng):
    multiple = int(8 * rng.integers(2, 5))
    return np.concatenate([rng.integers(20, 120, 9), [3 * multiple // 8 * 3]]), multiple  # the last one needs no rounding


def _silu_terms(g):
    s = (1 + np.tanh(0.5 * g)) / 2
    return {"slope": {"s": (s, 1), "g s (1 - s)": (g * s * (1 - s), 1)}}


def _swiglu_terms(dout, gate, up):
    s = 1 / (1 + np.exp(-gate))
    return {
        "dgate": {"dout up s": (dout * up * s, 1), "dout up gate s (1 - s)": (dout * up * gate * s * (1 - s), 1)},
        "dup": {"dout silu(gate)": (dout * gate * s, 1), "dout gate": (dout * gate, 0)},
    }


def _ffn_terms(dout, x, w1, w2, w3):
    gate, up = x @ w1.T, x @ w3.T
    dgate, dup = swiglu_backward(dout @ w2, gate, up)
    return {"dx": {"dgate w1, the path through the gate,": (dgate @ w1, 1), "dup w3, the path through up,": (dup @ w3, 1)}}


SLOPE = "s * (1 + g * (1 - s))"
DGATE = "up * s * (1 + gate * (1 - s))"

EXERCISES = {
    "06.silu": Exercise(
        silu, ("out", "slope"), _silu_inputs,
        (
            Mistake("slope-is-sigmoid", SLOPE, "s", "the g inside the sigmoid is taken for a constant: g acts twice (6.4), and s is the first half of its slope"),
            Mistake("slope-of-the-sigmoid", SLOPE, "s * (1 - s)", "it is the slope of the sigmoid alone (6.3); silu is g times that sigmoid (6.4)"),
            Mistake("g-forgotten", "g * (1 - s))", "(1 - s))", "the second term has lost its g: by the product rule the slope of s is multiplied by g (6.4)"),
            Mistake("sign", "1 + g * (1 - s)", "1 - g * (1 - s)", "the second term of (6.4) has the wrong sign: s grows with g"),
            Mistake("s-in-front-missing", SLOPE, "1 + g * (1 - s)", "the s in front is missing (6.4)"),
            Mistake("one-minus-out", "(1 - s))", "(1 - out))", "1 - silu(g) stands where 1 - s must (6.3)"),
            Mistake("half-missing", "np.tanh(0.5 * g)", "np.tanh(g)", "the ½ inside the tanh is missing (6.2): this is the sigmoid of 2 g"),
            Mistake("mirrored", "(1 + np.tanh", "(1 - np.tanh", "the sigmoid is mirrored: it is that of -g (6.1), and lets through what it should close"),
            Mistake("gelu", "0.5 * g", "0.851 * g", "the sigmoid is that of 1.702 g: this is the quick form of GELU, not silu (6.1)"),
            Mistake("overflow-above", "(1 + np.tanh(0.5 * g)) / 2", "np.exp(g) / (1 + np.exp(g))", "the sigmoid is computed as exp(g) / (1 + exp(g)): at g = 800 that is inf/inf. (6.2) has no such place"),
            Mistake("overflow-below", SLOPE, "s + g * np.exp(-g) * s * s", "the slope of s is computed with exp(-g): at g = -800 that is inf times 0. s (1 - s) is the same (6.3), and finite"),
        ),
        _silu_terms,
    ),
    "06.swiglu_backward": Exercise(
        swiglu_backward, ("dgate", "dup"), _swiglu_inputs,
        (
            Mistake("gate-path-dropped", "dout * " + DGATE, "np.zeros_like(gate)", "the path through the gate is dropped, as if the gate were a constant (6.6)", "swiglu: gate path dropped"),
            Mistake("up-path-dropped", "dout * gate * s", "np.zeros_like(up)", "the path through up is dropped, as if up were a constant (6.5)"),
            Mistake("slope-is-sigmoid", " * (1 + gate * (1 - s))", "", "the slope of silu is taken for s: the second half of (6.4) is missing", "swiglu: slope of silu taken for sigmoid"),
            Mistake("slope-of-the-sigmoid", "s * (1 + gate * (1 - s))", "s * (1 - s)", "the slope of silu is taken for that of the sigmoid, s (1 - s); it is (6.4)"),
            Mistake("exchanged", "return dgate, dup", "return dup, dgate", "dgate and dup are exchanged: gate is the first argument, (6.6), and up the second, (6.5)", "swiglu: dgate and dup exchanged"),
            Mistake("up-forgotten", DGATE, DGATE.removeprefix("up * "), "up is forgotten: the gate's gradient is multiplied by what the gate lets through (6.6)"),
            Mistake("gate-not-gated", "dout * gate * s", "dout * gate", "dup is multiplied by the gate itself where silu(gate) must stand (6.5)"),
            Mistake("sigmoid-gates", "dout * gate * s", "dout * s", "dup is multiplied by s where silu(gate) must stand (6.5): that is GLU's gate, not SwiGLU's"),
            Mistake("sign", "1 + gate * (1 - s)", "1 - gate * (1 - s)", "the second term of the slope has the wrong sign (6.4)"),
            Mistake("g-forgotten", "gate * (1 - s))", "(1 - s))", "the second term of the slope has lost its g (6.4)"),
            Mistake("roles-exchanged", ("np.exp(-gate)", "dout * gate * s", DGATE), ("np.exp(-up)", "dout * gate * s * (1 + up * (1 - s))", "up * s"),
                    "silu is put on up and not on gate (6.5): w1 and w3 have changed places"),
        ),
        _swiglu_terms,
    ),
    "06.ffn_backward": Exercise(
        ffn_backward, ("dx", "dw1", "dw2", "dw3"), _ffn_inputs,
        (
            Mistake("dx-gate-only", " + dup @ w3", "", "x reaches the loss through the gate alone; it is in up as well, and the two paths add up (6.8)"),
            Mistake("dx-up-only", "dgate @ w1 + ", "", "x reaches the loss through up alone; it is in the gate as well, and the two paths add up (6.8)"),
            Mistake("paths-subtracted", "dgate @ w1 + dup", "dgate @ w1 - dup", "the two paths are subtracted; they add up (6.8)"),
            Mistake("w1-w3-exchanged-in-dx", "dgate @ w1 + dup @ w3", "dgate @ w3 + dup @ w1", "w1 and w3 are exchanged on the way back: the gate came through w1, up through w3 (6.8)"),
            Mistake("w1-w3-exchanged", "x @ w1.T, x @ w3.T", "x @ w3.T, x @ w1.T", "w1 and w3 are exchanged in the forward pass: w1 makes the gate, w3 makes up (6.7)"),
            Mistake("dw1-dw3-exchanged", "return dx, dw1, dw2, dw3", "return dx, dw3, dw2, dw1", "dw1 and dw3 are exchanged: dw1 belongs to the gate (6.8)"),
            Mistake("in-order-of-use", "return dx, dw1, dw2, dw3", "return dx, dw1, dw3, dw2", "dw2 and dw3 are exchanged: w2 is the last matrix of the three, the one that leads down (6.7)"),
            Mistake("slope-is-sigmoid", " * (1 + gate * (1 - s))", "", "the slope of silu is taken for s: the second half of (6.4) is missing"),
            Mistake("slope-of-the-sigmoid", "s * (1 + gate * (1 - s))", "s * (1 - s)", "the slope of silu is taken for that of the sigmoid, s (1 - s); it is (6.4)"),
            Mistake("up-forgotten", "dhidden * up * s", "dhidden * s", "up is forgotten in dgate (6.6)"),
            Mistake("gate-not-gated", "dhidden * gate * s", "dhidden * gate", "dup is multiplied by the gate itself where silu(gate) must stand (6.5)"),
            Mistake("dw2-of-the-gate", "dout.T @ hidden", "dout.T @ (gate * s)", "dw2 is made of silu(gate); what w2 has read is hidden, silu(gate) times up (6.8)"),
            Mistake("dw1-transposed", "dgate.T @ x", "x.T @ dgate", "dw1 is transposed: a matrix's gradient has the shape of the matrix (6.8)"),
            Mistake("dw2-transposed", "dout.T @ hidden", "hidden.T @ dout", "dw2 is transposed: a matrix's gradient has the shape of the matrix (6.8)"),
            Mistake("dw3-transposed", "dup.T @ x", "x.T @ dup", "dw3 is transposed: a matrix's gradient has the shape of the matrix (6.8)"),
            Mistake("averaged", ("dout.T @ hidden", "dgate.T @ x", "dup.T @ x"), ("dout.T @ hidden / len(x)", "dgate.T @ x / len(x)", "dup.T @ x / len(x)"),
                    "the tokens' contributions to the matrices are averaged; they add up (6.8)"),
        ),
        _ffn_terms,
    ),
    "06.hidden_size": Exercise(
        hidden_size, ("hidden",), _size_inputs,
        (
            Mistake("four-d", "2 * (4 * dim) // 3", "4 * dim", "the width is 4 D, that of a feed-forward with two matrices; three of the same cost have 2/3 of it (6.9)"),
            Mistake("two-thirds-d", "2 * (4 * dim) // 3", "2 * dim // 3", "the width is 2/3 D; it is 2/3 of 4 D (6.9)"),
            Mistake("three-halves", "2 * (4 * dim) // 3", "3 * (4 * dim) // 2", "the width of 4 D is multiplied by 3/2 where 2/3 must stand (6.9)"),
            Mistake("half", "2 * (4 * dim) // 3", "2 * dim", "4 D is halved; two matrices against three is 2/3 (6.9)"),
            Mistake("not-rounded", "multiple_of * ((width + multiple_of - 1) // multiple_of)", "width + 0 * multiple_of", "nothing is rounded (6.9)"),
            Mistake("rounded-down", "(width + multiple_of - 1) // multiple_of", "width // multiple_of", "it is rounded down; LLaMA rounds up (6.9)"),
            Mistake("nearest", "(width + multiple_of - 1) // multiple_of", "(width + multiple_of // 2) // multiple_of", "it is rounded to the nearest multiple; LLaMA rounds up (6.9)"),
            Mistake("always-one-more", "(width + multiple_of - 1) // multiple_of", "width // multiple_of + 1", "a width that is a multiple already is raised to the next one (6.9)"),
            Mistake("multiple-forgotten", "multiple_of * ((width", "((width", "it is the number of multiples, not yet times multiple_of (6.9)"),
        ),
    ),
}
