"""Lesson 13: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def accumulate(losses, grads, targets):
    """Loss and gradient of a step from k micro-batches.

    losses: (k,), each the mean over its own scored tokens; grads: (k, n), their gradients; targets: a list of k integer arrays, of
    lengths of their own, with -1 where nothing is scored (nn.IGNORE).
    """
    scored = np.array([(row != -1).sum() for row in targets])
    weights = scored / scored.sum()
    loss = weights @ losses
    grad = weights @ grads
    return loss, grad


def token_probabilities(logits, temperature, top_p):
    """p (V,) from which the next token is drawn: at a temperature, and of the likeliest tokens only the fewest that hold top_p."""
    scaled = (logits - logits.max()) / temperature
    p = np.exp(scaled) / np.exp(scaled).sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    kept = order[before < top_p]
    cut = np.zeros_like(p)
    cut[kept] = p[kept]
    return cut / cut.sum()


def decode_step(x, wq, wk, wv, keys, values, cos, sin):
    """Attention of one new token. x: (B, 1, D); wq, wk, wv: (D, D); cos, sin: (positions, Dh/2), which rotate pairs of neighbours.

    keys (rotated) and values: (B, n, H, Dh) of the n tokens before. Returns out (B, 1, H, Dh), and both with the new token at their end.
    """
    B, n, H, Dh = keys.shape
    q, k, v = ((x @ weight.T).reshape(B, 1, H, Dh) for weight in (wq, wk, wv))
    turn = cos[n] + 1j * sin[n]
    q = (q.view(complex) * turn).view(float)
    k = (k.view(complex) * turn).view(float)
    keys, values = np.concatenate([keys, k], 1), np.concatenate([values, v], 1)
    scores = np.einsum("bihd,bjhd->bhij", q, keys) / np.sqrt(Dh)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    return np.einsum("bhij,bjhd->bihd", p, values), keys, values


def _accumulate_inputs(rng):
    targets = [rng.integers(0, 50, length) for length in rng.permutation([6, 8, 9, 11])]
    for row, ignored in zip(targets, rng.permutation([0, 1, 3, 5])):
        row[rng.permutation(len(row))[:ignored]] = -1
    return rng.uniform(1, 3, 4), rng.standard_normal((4, 6)), targets


def _sampling_inputs(rng):
    while True:
        logits, temperature, top_p = 2 * rng.standard_normal(12), float(rng.choice([0.6, 1.7])), float(rng.uniform(0.75, 0.9))
        sizes = {_kept(logits, temperature, top_p), _kept(logits, 1.0, top_p), _kept(logits, temperature, top_p) - 1}
        if len(sizes) == 3 and 3 <= _kept(logits, temperature, top_p) <= 10:  # the order of temperature and cut can be seen
            return logits + 3, temperature, top_p


def _kept(logits, temperature, top_p):
    return int((token_probabilities(logits, temperature, top_p) > 0).sum())


def _decode_inputs(rng):
    B, n, H, Dh = 2, 4, 2, 6
    angles = np.outer(np.arange(9), 100.0 ** (-np.arange(0, Dh, 2) / Dh))
    x, weights = rng.standard_normal((B, 1, H * Dh)), [0.5 * rng.standard_normal((H * Dh, H * Dh)) for _ in range(3)]
    return x, *weights, *rng.standard_normal((2, B, n, H, Dh)), np.cos(angles), np.sin(angles)


def _accumulate_terms(losses, grads, targets):
    weights = np.array([(row != -1).sum() for row in targets]) / sum((row != -1).sum() for row in targets)
    return {"grad": {f"n_{i} g_{i} / n": (weights[i] * grads[i], 1) for i in range(len(grads))}}


TURN, Q, K = "cos[n] + 1j * sin[n]", "q = (q.view(complex) * turn).view(float)", "k = (k.view(complex) * turn).view(float)"
JOINED = "np.concatenate([keys, k], 1), np.concatenate([values, v], 1)"

EXERCISES = {
    "13.accumulate": Exercise(
        accumulate, ("loss", "grad"), _accumulate_inputs,
        (
            Mistake("mean-of-means", "scored / scored.sum()", "np.ones(len(scored)) / len(scored)",
                    "every micro-batch counts the same; a token must, so a micro-batch counts by its scored tokens (13.3)"),
            Mistake("ignored-counted", "(row != -1).sum()", "len(row)",
                    "positions that are not scored are counted, too: n_i is the number of targets that are not -1 (13.3)"),
            Mistake("sum-not-mean", "weights = scored / scored.sum()", "weights = scored", "the sum over the tokens is not divided by their number (13.3)"),
            Mistake("divided-by-micro-batches", "weights = scored / scored.sum()", "weights = scored / len(scored)",
                    "the sum over the tokens is divided by the number of micro-batches, not of tokens (13.3)"),
            Mistake("divided-twice", "weights = scored / scored.sum()", "weights = scored / scored.sum() / len(scored)",
                    "the weighted mean is divided by the number of micro-batches once more (13.3)"),
            Mistake("by-the-first", "scored / scored.sum()", "scored / (scored[0] * len(scored))",
                    "the first micro-batch's count stands for all of them; they differ (13.3)"),
            Mistake("last-only", ("weights @ losses", "weights @ grads"), ("(weights * losses)[-1]", "(weights[:, None] * grads)[-1]"),
                    "each micro-batch overwrites the one before; they must be added (13.3)"),
            Mistake("ignored-inverted", "row != -1", "row == -1", "the positions that are *not* scored are counted (13.3)"),
        ),
        _accumulate_terms,
    ),
    "13.token_probabilities": Exercise(
        token_probabilities, ("p",), _sampling_inputs,
        (
            Mistake("temperature-after-softmax", ("(logits - logits.max()) / temperature", "np.exp(scaled) / np.exp(scaled).sum()"),
                    ("logits - logits.max()", "np.exp(scaled) / temperature / (np.exp(scaled) / temperature).sum()"),
                    "the temperature has no effect: it is missing, or it divides probabilities and the sum takes it out again (13.4)"),
            Mistake("temperature-times", "logits.max()) / temperature", "logits.max()) * temperature", "the logits are multiplied by the temperature, and must be divided (13.4)"),
            Mistake("cut-before-temperature", "np.argsort(-p)\n    before = np.cumsum(p[order]) - p[order]",
                    "np.argsort(-p)\n    cold = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()\n    before = np.cumsum(cold[order]) - cold[order]",
                    "the likeliest are found at temperature 1: temperature comes first (13.4), then the cut (13.5)"),
            Mistake("not-sorted", "np.argsort(-p)", "np.arange(len(p))", "probabilities are added up in the order of the ids, before they are sorted (13.5)"),
            Mistake("ascending", "np.argsort(-p)", "np.argsort(p)", "the sort begins with the least likely: the likeliest must stay (13.5)"),
            Mistake("crossing-token-cut", "kept = order[before < top_p]", "kept = order[before + p[order] <= top_p]",
                    "the token that crosses top_p is cut, too: what is kept then holds less than top_p (13.5)"),
            Mistake("one-too-many", "kept = order[before < top_p]", "kept = order[:(before < top_p).sum() + 1]", "one token more is kept than top_p needs (13.5)"),
            Mistake("not-renormalised", "cut / cut.sum()", "cut", "what is left after the cut is not divided by its sum (13.5)"),
            Mistake("logits-zeroed", ("np.zeros_like(p)", "cut[kept] = p[kept]"), ("np.ones_like(p) / np.exp(scaled).sum()", "cut[kept] = p[kept]"),
                    "the logits of the tokens that are cut are set to 0, and e^0 is 1: they must become -inf (13.5)"),
            Mistake("sorted-positions", "kept = order[before < top_p]", "kept = np.flatnonzero(before < top_p)",
                    "places in the sorted list are taken for ids (13.5): `order` leads from one to the other"),
        ),
    ),
    "13.decode_step": Exercise(
        decode_step, ("out", "keys", "values"), _decode_inputs,
        (
            Mistake("offset-not-advanced", TURN, TURN.replace("[n]", "[0]"),
                    "the new token is rotated as position 0, which is not at all; n tokens came before it, so it stands at n (13.6)"),
            Mistake("one-early", TURN, TURN.replace("[n]", "[n - 1]"),
                    "the new token is rotated as position n - 1; positions count from 0, so it is n (13.6)"),
            Mistake("one-late", TURN, TURN.replace("[n]", "[n + 1]"),
                    "the new token is rotated as position n + 1; positions count from 0, so it is n (13.6)"),
            Mistake("rotated-twice", "np.concatenate([keys, k], 1)", "np.concatenate([(keys.view(complex) * turn).view(float), k], 1)",
                    "the kept keys are rotated once more; each was rotated when it came in (13.6)"),
            Mistake("query-not-rotated", Q, "q = q + 0.0", "the query is not rotated (13.6)"),
            Mistake("value-rotated", JOINED, JOINED.replace("[values, v]", "[values, (v.view(complex) * turn).view(float)]"),
                    "the new value is rotated, too; only q and k are (13.6)"),
            Mistake("new-token-not-seen", ('q, keys) / np.sqrt(Dh)', "p, values)"), ('q, keys[:, :-1]) / np.sqrt(Dh)', "p, values[:, :-1])"),
                    "the new token does not attend to itself: its own k and v are among those it sees (13.7)"),
            Mistake("put-in-front", JOINED, "np.concatenate([k, keys], 1), np.concatenate([v, values], 1)", "the new token is put in front of the kept ones; it is the last (13.7)"),
            Mistake("overwrites-the-last", JOINED, "np.concatenate([keys[:, :-1], k], 1), np.concatenate([values[:, :-1], v], 1)",
                    "the new token takes the place of the last one; it comes after it (13.7)"),
            Mistake("scale-missing", "q, keys) / np.sqrt(Dh)", "q, keys)", "the scores are not divided by √Dh (13.7)"),
            Mistake("keys-for-values", "p, values)", "p, keys)", "the weights are applied to the keys, not the values (13.7)"),
        ),
    ),
}
