"""Lesson 03: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def rmsnorm_forward(x, weight, eps):
    """out (..., D), from x (..., D) and weight (D,)."""
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    n = x / rms
    out = n * weight
    return out


def rmsnorm_backward(dout, x, weight, eps):
    """dx (..., D) and dweight (D,), from dout (..., D)."""
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    n = x / rms
    dweight = (dout * n).reshape(-1, x.shape[-1]).sum(0)
    dn = dout * weight
    dx = (dn - n * (dn * n).mean(-1, keepdims=True)) / rms
    return dx, dweight


def _forward_inputs(rng):
    return rng.standard_normal((2, 5, 7)) + 0.2, rng.standard_normal(7), 0.3


def _backward_inputs(rng):
    return rng.standard_normal((2, 5, 7)), *_forward_inputs(rng)


def _terms(dout, x, weight, eps):
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + eps)
    n, dn = x / rms, dout * weight
    return {
        "dx": {
            "dn / rms": (dn / rms, 1),
            "n mean(dn n) / rms": (n * (dn * n).mean(-1, keepdims=True) / rms, -1),
            "mean(dn) / rms, LayerNorm's third term,": (np.broadcast_to(dn.mean(-1, keepdims=True) / rms, x.shape), 0),
        },
    }


EXERCISES = {
    "03.rmsnorm_forward": Exercise(
        rmsnorm_forward, ("out",), _forward_inputs,
        (
            Mistake("eps-outside", "np.sqrt((x * x).mean(-1, keepdims=True) + eps)", "(np.sqrt((x * x).mean(-1, keepdims=True)) + eps)",
                    "eps is added to the root, not under it (3.1)"),
            Mistake("eps-missing", " + eps", "", "eps is left out (3.1): a vector of zeros would then give 0/0"),
            Mistake("sum-for-mean", "(x * x).mean", "(x * x).sum",
                    "the squares are summed where their mean is meant (3.1): out then has length 1, not the root of D"),
            Mistake("layernorm", "n = x / rms", "n = (x - x.mean(-1, keepdims=True)) / rms", "the mean is subtracted first, as LayerNorm does; (3.1) does not"),
            Mistake("no-root", "np.sqrt((x * x).mean(-1, keepdims=True) + eps)", "((x * x).mean(-1, keepdims=True) + eps)",
                    "the root is missing: x is divided by its mean square (3.1)"),
            Mistake("not-squared", "(x * x).mean", "np.abs(x).mean", "the mean is taken of |x| and not of its square (3.1)"),
            Mistake("all-axes", "(x * x).mean(-1, keepdims=True)", "(x * x).mean()", "the mean runs over all tokens; every token has its own rms (3.1)"),
            Mistake("over-time", "(x * x).mean(-1", "(x * x).mean(-2", "the mean runs along the time axis: then a token sees those after it. (3.1) runs over the channels"),
            Mistake("gain-first", ("n = x / rms", "out = n * weight"), ("n = x * weight", "out = n / np.sqrt((n * n).mean(-1, keepdims=True) + eps)"),
                    "the gain is applied before the norm, which then divides most of it out again; in (3.1) it comes last"),
            Mistake("gain-plus-one", "n * weight", "n * (1 + weight)", "the gain is 1 + weight, as in Gemma; in (3.1) it is weight"),
            Mistake("gain-missing", "n * weight", "n + 0", "the gain is left out (3.1); at weight = 1, as every training starts, nobody would notice"),
        ),
    ),
    "03.rmsnorm_backward": Exercise(
        rmsnorm_backward, ("dx", "dweight"), _backward_inputs,
        (
            Mistake("mean-term-dropped", "dn - n * (dn * n).mean(-1, keepdims=True)", "dn",
                    "the second term of (3.6) is dropped: then rescaling x would change out", "rmsnorm: mean term dropped"),
            Mistake("sum-for-mean-in-dx", "(dn * n).mean(-1", "(dn * n).sum(-1",
                    "the second term of (3.6) sums over the channels where it must take their mean", "rmsnorm: sum instead of mean"),
            Mistake("gain-forgotten", "dn = dout * weight", "dn = dout",
                    "the gain is forgotten on the way back (3.3); at weight = 1 nobody would notice", "rmsnorm: gain forgotten in dx"),
            Mistake("dweight-of-x", "(dout * n)", "(dout * x)", "x stands where n must: the gain multiplies the normalised vector (3.2)",
                    "rmsnorm: dweight of x, not of its normalisation"),
            Mistake("eps-missing", " + eps", "", "eps is left out of the root (3.1)"),
            Mistake("eps-outside", "np.sqrt((x * x).mean(-1, keepdims=True) + eps)", "(np.sqrt((x * x).mean(-1, keepdims=True)) + eps)",
                    "eps is added to the root, not under it (3.1)"),
            Mistake("sum-for-mean-in-rms", "(x * x).mean", "(x * x).sum", "the squares are summed where their mean is meant (3.1)"),
            Mistake("dweight-averaged", ".sum(0)", ".mean(0)", "the tokens' contributions are averaged; they add up (3.2)"),
            Mistake("dweight-not-reduced", "(dout * n).reshape(-1, x.shape[-1]).sum(0)", "dout * n",
                    "every token keeps a gradient of its own; the gain is shared, so they add up (3.2)"),
            Mistake("dweight-over-batch-only", "(dout * n).reshape(-1, x.shape[-1]).sum(0)", "(dout * n).sum(0)",
                    "the sum runs over the batch but not over time; the gain is shared by all tokens (3.2)"),
            Mistake("no-rms-in-front", "(dn - n * (dn * n).mean(-1, keepdims=True)) / rms", "(dn - n * (dn * n).mean(-1, keepdims=True))",
                    "the 1/rms in front is missing (3.6)"),
            Mistake("layernorm", "n = x / rms", "n = (x - x.mean(-1, keepdims=True)) / rms", "the mean is subtracted, as LayerNorm does"),
            Mistake("x-for-n-in-dx", "dn - n * (dn * n)", "dn - x * (dn * n)", "x stands where n must, in front of the mean of (3.6)"),
            Mistake("mean-over-all", "(dn * n).mean(-1, keepdims=True)", "(dn * n).mean()", "the mean of (3.6) runs over all tokens; every token has its own"),
        ),
        _terms,
    ),
}
