"""Lesson 04: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def rope_tables(T, head_dim, theta):
    """cos and sin (T, Dh/2) of the angles (4.1), in radians; the first position is 0."""
    j = np.arange(head_dim // 2)
    frequencies = theta ** (-2 * j / head_dim)
    angles = np.outer(np.arange(T), frequencies)
    return np.cos(angles), np.sin(angles)


def rope_forward(x, cos, sin):
    """out (B, T, H, Dh): every adjacent pair of x (B, T, H, Dh), turned by its angle; cos, sin (T, Dh/2)."""
    a, b = x[..., 0::2], x[..., 1::2]
    c, s = cos[:, None], sin[:, None]
    first = a * c - b * s
    second = a * s + b * c
    out = np.empty_like(x)
    out[..., 0::2] = first
    out[..., 1::2] = second
    return out


def rope_backward(dout, cos, sin):
    """dx (B, T, H, Dh), from dout (B, T, H, Dh)."""
    a, b = dout[..., 0::2], dout[..., 1::2]
    c, s = cos[:, None], sin[:, None]
    first = a * c + b * s
    second = b * c - a * s
    dx = np.empty_like(dout)
    dx[..., 0::2] = first
    dx[..., 1::2] = second
    return dx


def to_rotate_half(weight, n_heads):
    """The rows of wq or wk (D, D) in another order: for adjacent pairs in, for rotate-half out."""
    pairs = weight.reshape(n_heads, -1, 2, weight.shape[1])
    halves = pairs.swapaxes(1, 2)
    return halves.reshape(weight.shape)


def _angles(rng):
    return np.outer(np.arange(5), rng.uniform(20, 60) ** (-np.arange(3) / 3))


def _tables_inputs(rng):
    return 7, 6, float(rng.uniform(20, 100))


def _op_inputs(rng):
    angles = _angles(rng)
    return rng.standard_normal((2, 5, 4, 6)), np.cos(angles), np.sin(angles)


def _weight_inputs(rng):
    return rng.standard_normal((24, 24)), 4


PAIRS, WRITE = "x[..., 0::2], x[..., 1::2]", ("out[..., 0::2] =", "out[..., 1::2] =")
TABLES = "cos[:, None], sin[:, None]"
HALVES = ("out[..., : x.shape[-1] // 2] =", "out[..., x.shape[-1] // 2 :] =")

EXERCISES = {
    "04.rope_tables": Exercise(
        rope_tables, ("cos", "sin"), _tables_inputs,
        (
            Mistake("exponent-sign", "-2 * j", "2 * j", "the exponent of (4.1) has the wrong sign: the later pairs would turn faster, not slower"),
            Mistake("factor-2-missing", "-2 * j", "-j", "the 2 of the exponent 2j/Dh is missing (4.1): the slowest pairs are then much too fast"),
            Mistake("divided-by-pairs", "/ head_dim", "/ (head_dim // 2)", "the exponent is divided by the number of pairs; (4.1) divides 2j by Dh"),
            Mistake("integer-division", "-2 * j / head_dim", "-2 * j // head_dim", "the exponent is rounded to a whole number by `//`; (4.1) divides"),
            Mistake("one-based-position", "np.arange(T)", "np.arange(1, T + 1)", "positions start at 1; token 0 is not turned at all (4.1)"),
            Mistake("one-based-pair", "np.arange(head_dim // 2)", "np.arange(1, head_dim // 2 + 1)", "pairs are counted from 1; the first one, j = 0, turns by one radian per position (4.1)"),
            Mistake("degrees", "np.outer(np.arange(T), frequencies)", "np.radians(np.outer(np.arange(T), frequencies))", "the angles are taken for degrees; (4.1) is in radians"),
            Mistake("exchanged", "np.cos(angles), np.sin(angles)", "np.sin(angles), np.cos(angles)", "cos and sin are exchanged: at position 0, cos must be 1"),
            Mistake("repeated-for-both", "np.outer(np.arange(T), frequencies)", "np.repeat(np.outer(np.arange(T), frequencies), 2, -1)",
                    "every angle stands twice, once for each channel of its pair; one per pair is asked for: (T, Dh/2)"),
            Mistake("tiled", "np.outer(np.arange(T), frequencies)", "np.tile(np.outer(np.arange(T), frequencies), 2)",
                    "the angles stand twice, one block behind the other, as rotate-half code keeps them; one per pair is asked for: (T, Dh/2)"),
        ),
    ),
    "04.rope_forward": Exercise(
        rope_forward, ("out",), _op_inputs,
        (
            Mistake("rotate-half", (PAIRS, *WRITE), ("*np.split(x, 2, -1),", *HALVES),
                    "channel j is paired with channel j + Dh/2, as rotate-half code does; LLaMA pairs neighbours, 2j and 2j + 1 (4.2)"),
            Mistake("cat-not-interleaved", WRITE, HALVES, "the turned pairs are put down as two halves, by concatenating; they belong back where they came from, interleaved (4.2)"),
            Mistake("turned-backward", ("a * c - b * s", "a * s + b * c"), ("a * c + b * s", "b * c - a * s"), "every pair is turned by minus its angle (4.2)"),
            Mistake("no-minus", "a * c - b * s", "a * c + b * s", "the minus of (4.2) is missing: then it is no rotation, and lengths change"),
            Mistake("exchanged", TABLES, "sin[:, None], cos[:, None]", "cos and sin are exchanged in (4.2)"),
            Mistake("overwritten", "a * s + b * c", "first * s + b * c", "the second channel is made from the first one *after* it was turned; (4.2) needs both as they were"),
            Mistake("turned-twice", TABLES, "(cos**2 - sin**2)[:, None], (2 * sin * cos)[:, None]", "every pair is turned by twice its angle: is the rotation applied twice?"),
            Mistake("one-late", TABLES, "np.roll(cos, 1, 0)[:, None], np.roll(sin, 1, 0)[:, None]", "every token is turned by the angle of the position before it (4.1)"),
            Mistake("from-the-end", TABLES, "cos[::-1, None], sin[::-1, None]", "positions are counted from the end (4.1)"),
            Mistake("partial", TABLES, "np.where(np.arange(cos.shape[1]) < 1, cos, 1)[:, None], np.where(np.arange(cos.shape[1]) < 1, sin, 0)[:, None]",
                    "the first pair alone is turned; (4.2) turns every pair"),
            Mistake("not-turned", ("a * c - b * s", "a * s + b * c"), ("a + 0 * c", "b + 0 * s"), "nothing is turned: out is x"),
        ),
    ),
    "04.rope_backward": Exercise(
        rope_backward, ("dx",), _op_inputs,
        (
            Mistake("turned-forward", ("a * c + b * s", "b * c - a * s"), ("a * c - b * s", "a * s + b * c"),
                    "the gradient is turned by plus the angle, as in forward; the transpose turns it back (4.6)", "rope: backward turns forward"),
            Mistake("rotate-half", ("dout[..., 0::2], dout[..., 1::2]", "dx[..., 0::2] =", "dx[..., 1::2] ="),
                    ("np.split(dout, 2, -1)", "dx[..., : dout.shape[-1] // 2] =", "dx[..., dout.shape[-1] // 2 :] ="),
                    "channel j is paired with channel j + Dh/2; the gradient has the pairs of forward, 2j and 2j + 1 (4.2)", "rope: rotate-half pairs in backward"),
            Mistake("one-late", TABLES, "np.roll(cos, 1, 0)[:, None], np.roll(sin, 1, 0)[:, None]",
                    "every token's gradient is turned by the angle of the position before it (4.1)", "rope: positions off by one"),
            Mistake("not-turned", ("a * c + b * s", "b * c - a * s"), ("a + 0 * c", "b + 0 * s"), "the gradient is handed on as it is; it must be turned back (4.6)"),
            Mistake("one-sign", "b * c - a * s", "b * c + a * s", "the minus of the second line of (4.6) is missing"),
            Mistake("exchanged", TABLES, "sin[:, None], cos[:, None]", "cos and sin are exchanged in (4.6)"),
            Mistake("overwritten", "b * c - a * s", "b * c - first * s", "the second channel is made from the first one *after* it was turned; (4.6) needs both as they were"),
            Mistake("cat-not-interleaved", ("dx[..., 0::2] =", "dx[..., 1::2] ="), ("dx[..., : dout.shape[-1] // 2] =", "dx[..., dout.shape[-1] // 2 :] ="),
                    "the turned pairs are put down as two halves; they belong back where they came from, interleaved (4.2)"),
        ),
    ),
    "04.to_rotate_half": Exercise(
        to_rotate_half, ("reordered",), _weight_inputs,
        (
            Mistake("the-way-back", "weight.reshape(n_heads, -1, 2, weight.shape[1])", "weight.reshape(n_heads, 2, -1, weight.shape[1])",
                    "the rows are put in order the other way round, from rotate-half to adjacent pairs (4.8)"),
            Mistake("across-heads", "weight.reshape(n_heads,", "weight.reshape(1,", "the order runs across all heads; every head of Dh rows has its own (4.8)"),
            Mistake("columns", ("weight.reshape(n_heads, -1, 2, weight.shape[1])", "halves.reshape(weight.shape)"),
                    ("weight.T.reshape(n_heads, -1, 2, weight.shape[1])", "halves.reshape(weight.shape).T"),
                    "the columns are reordered, which are the channels that come in; the rows make q (4.8)"),
            Mistake("pair-exchanged", "pairs.swapaxes(1, 2)", "pairs[:, :, ::-1].swapaxes(1, 2)", "the second channels of the pairs come first; they are the second half (4.8)"),
            Mistake("not-reordered", "pairs.swapaxes(1, 2)", "pairs", "nothing is reordered: weight comes back as it was"),
            Mistake("head-dim-for-heads", "weight.reshape(n_heads,", "weight.reshape(len(weight) // n_heads,", "n_heads is taken for the size of a head (4.8)"),
        ),
    ),
}
