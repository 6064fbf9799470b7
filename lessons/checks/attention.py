"""Lesson 05: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def split_heads(x, n_heads):
    """x (B, T, D) as (B, H, T, Dh): head h has the channels h Dh to (h + 1) Dh - 1."""
    heads = x.reshape(*x.shape[:2], n_heads, -1)
    return heads.swapaxes(1, 2)


def attention_forward(q, k, v):
    """out (B, T, H, Dh) of causal attention, from q, k, v (B, T, H, Dh)."""
    T, Dh = q.shape[1], q.shape[3]
    scores = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(Dh)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    return np.einsum("bhij,bjhd->bihd", p, v)


def softmax_backward(dp, p):
    """ds (..., T) from dp (..., T), where p = softmax(s) along the last axis."""
    along = (dp * p).sum(-1, keepdims=True)
    ds = p * (dp - along)
    return ds


def attention_backward(dout, q, k, v):
    """dq, dk, dv (B, T, H, Dh) of causal attention, from dout (B, T, H, Dh)."""
    scale = 1 / np.sqrt(q.shape[3])
    scores = np.einsum("bihd,bjhd->bhij", q, k) * scale
    scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    dv = np.einsum("bhij,bihd->bjhd", p, dout)
    dp = np.einsum("bihd,bjhd->bhij", dout, v)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True))
    dq = np.einsum("bhij,bjhd->bihd", ds, k) * scale
    dk = np.einsum("bhij,bihd->bjhd", ds, q) * scale
    return dq, dk, dv


def _heads_inputs(rng):
    return rng.standard_normal((2, 5, 12)), 3


def _qkv(rng):
    return tuple(1.5 * rng.standard_normal((2, 5, 3, 4)) for _ in range(3))


def _softmax_inputs(rng):
    p = rng.uniform(0.1, 1, (2, 5, 5))
    return rng.standard_normal((2, 5, 5)), p / p.sum(-1, keepdims=True)


def _backward_inputs(rng):
    return rng.standard_normal((2, 5, 3, 4)), *_qkv(rng)


def _softmax_terms(dp, p):
    return {"ds": {"p dp": (p * dp, 1), "p sum(dp p)": (p * (dp * p).sum(-1, keepdims=True), -1)}}


MASK, INNER = "np.where(np.tri(T, dtype=bool), scores, -np.inf)", "dp - (dp * p).sum(-1, keepdims=True)"

EXERCISES = {
    "05.split_heads": Exercise(
        split_heads, ("heads",), _heads_inputs,
        (
            Mistake("reshaped-only", "heads.swapaxes(1, 2)", "heads.reshape(x.shape[0], n_heads, x.shape[1], -1)",
                    "the axes are renamed by reshape, and not exchanged: a head then holds pieces of several tokens"),
            Mistake("not-exchanged", "heads.swapaxes(1, 2)", "heads", "time still stands before the heads: (B, T, H, Dh)"),
            Mistake("interleaved", "x.reshape(*x.shape[:2], n_heads, -1)", "x.reshape(*x.shape[:2], -1, n_heads).swapaxes(2, 3)",
                    "head h gets every H-th channel; its channels are neighbours, h Dh to (h + 1) Dh - 1"),
            Mistake("head-dim-for-heads", "n_heads, -1)", "-1, n_heads)", "n_heads is taken for the size of a head"),
        ),
    ),
    "05.attention_forward": Exercise(
        attention_forward, ("out",), _qkv,
        (
            Mistake("scale-missing", " / np.sqrt(Dh)", "", "the scores are not divided by √Dh (5.1): the softmax becomes too sure of itself"),
            Mistake("scale-dh", "/ np.sqrt(Dh)", "/ Dh", "the scores are divided by Dh, not by its root (5.1)"),
            Mistake("scale-upside-down", "/ np.sqrt(Dh)", "* np.sqrt(Dh)", "the scores are multiplied by √Dh (5.1)"),
            Mistake("scale-of-dim", "np.sqrt(Dh)", "np.sqrt(Dh * q.shape[2])", "the scores are divided by the root of the model's width; a score sums over the Dh channels of one head (5.1)"),
            Mistake("mask-missing", MASK, "scores", "there is no mask: every token sees the whole text, and its own target (5.3)"),
            Mistake("mask-inverted", "np.tri(T, dtype=bool)", "np.tri(T, dtype=bool).T", "the mask is the wrong way round: a token sees itself and the future (5.3)"),
            Mistake("one-too-many", "np.tri(T, dtype=bool)", "np.tri(T, k=1, dtype=bool)", "the diagonal is one off: a token sees the next one, which is its target (5.3)"),
            Mistake("one-too-few", "np.tri(T, dtype=bool)", "np.tri(T, k=-1, dtype=bool)", "the diagonal is one off: a token does not see itself, and the first one sees nothing: 0/0 (5.3)"),
            Mistake("masked-to-zero", "-np.inf", "0.0", "masked scores are set to 0, which is a score like any other; e^0 = 1. They must be -inf (5.3)"),
            Mistake("mask-after-softmax", (MASK, "p.sum(-1, keepdims=True)"), ("scores", "p.sum(-1, keepdims=True) * np.tri(T)"),
                    "the mask comes after the softmax: what is left of a row no longer sums to 1, and the future is still in its sum (5.3)"),
            Mistake("softmax-over-queries", "p.sum(-1, keepdims=True)", "p.sum(-2, keepdims=True)", "the softmax runs over the queries; a query's row over the keys sums to 1 (5.3)"),
            Mistake("probs-transposed", "bhij,bjhd->bihd", "bhji,bjhd->bihd", "the probabilities are transposed: keys collect where queries must (5.4)"),
            Mistake("k-for-v", "p, v)", "p, k)", "the keys are summed where the values must be (5.4)"),
        ),
    ),
    "05.softmax_backward": Exercise(
        softmax_backward, ("ds",), _softmax_inputs,
        (
            Mistake("row-sum-dropped", "dp - along", "dp", "the row sum is dropped (5.8): raising one score would no longer lower the other probabilities"),
            Mistake("mean", "(dp * p).sum(-1, keepdims=True)", "(dp * p).mean(-1, keepdims=True)", "it is a mean; p already is a weight, and (5.8) sums"),
            Mistake("wrong-axis", ".sum(-1, keepdims=True)", ".sum(-2, keepdims=True)", "the sum runs over the queries; the softmax ran over the keys, the last axis (5.8)"),
            Mistake("weight-missing", "(dp * p).sum", "dp.sum", "the p inside the sum is missing (5.8)"),
            Mistake("factor-missing", "p * (dp - along)", "dp - along", "the p in front is missing (5.8)"),
            Mistake("diagonal-only", "p * (dp - along)", "p * (1 - p) * dp", "only the diagonal of the Jacobian is used, p (1 - p); the other entries, -p p', count as well (5.7)"),
            Mistake("sign", "dp - along", "dp + along", "the sign of the row sum is wrong (5.8)"),
        ),
        _softmax_terms,
    ),
    "05.attention_backward": Exercise(
        attention_backward, ("dq", "dk", "dv"), _backward_inputs,
        (
            Mistake("scale-missing", ("ds, k) * scale", "ds, q) * scale"), ("ds, k)", "ds, q)"), "the 1/√Dh is missing on the way back (5.9)", "attention: 1/sqrt(Dh) missing"),
            Mistake("row-sum-dropped", INNER, "dp", "the row sum of the softmax is dropped (5.8)", "attention: row sum of the softmax dropped"),
            Mistake("dk-not-transposed", '"bhij,bihd->bjhd", ds', '"bhij,bjhd->bihd", ds', "ds is not transposed in dk: a key collects from the queries that saw it (5.9)", "attention: dk not transposed"),
            Mistake("dv-not-transposed", '"bhij,bihd->bjhd", p', '"bhij,bjhd->bihd", p', "p is not transposed in dv: a value collects from the queries that saw it (5.5)", "attention: dv not transposed"),
            Mistake("dq-dk-exchanged", "return dq, dk, dv", "return dk, dq, dv", "dq and dk are exchanged", "attention: dq and dk exchanged"),
            Mistake("p-missing", f"p * ({INNER})", INNER, "the p in front of the bracket is missing (5.8)"),
            Mistake("row-sum-over-queries", "(dp * p).sum(-1, keepdims=True)", "(dp * p).sum(-2, keepdims=True)", "the row sum runs over the queries (5.8)"),
            Mistake("diagonal-only", f"p * ({INNER})", "p * (1 - p) * dp", "only the diagonal of the softmax's Jacobian is used (5.7)"),
            Mistake("scale-in-dq-only", "ds, q) * scale", "ds, q)", "the 1/√Dh is missing in dk alone (5.9)"),
            Mistake("mask-missing", "np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)", "scores", "the probabilities are computed again without the mask (5.3)"),
            Mistake("score-scale-missing", "k) * scale\n    scores = np", "k)\n    scores = np", "the probabilities are computed again without 1/√Dh (5.1)"),
            Mistake("dp-of-q", "dout, v)", "dout, k)", "k stands where v must in dp (5.6)"),
        ),
    ),
}
