"""Lesson 10: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def warmup_rate(step, peak, warmup_steps):
    """Learning rate of each step (an array; the first update is step 1): a straight line up to peak, then peak."""
    share = np.minimum(1.0, step / warmup_steps)
    rate = peak * share
    return rate


def clip_grad_norm(steps, max_norm):
    """steps: a list with the gradients of several steps, each a dict of arrays.

    Returns norms (S,), before clipping, and clipped (S, n): what is left of each step's tensors, one after the other in one vector.
    """
    norms, clipped = [], []
    for grads in steps:
        norm = np.sqrt(sum((g ** 2).sum() for g in grads.values()))
        factor = min(1.0, max_norm / norm)
        tensors = [factor * g for g in grads.values()]
        norms.append(norm)
        clipped.append(np.concatenate([g.ravel() for g in tensors]))
    return np.array(norms), np.array(clipped)


def adamw_update(micro, scored, m, v, step, lr, max_norm):
    """What one step takes off the parameters (n,), without decay; betas 0.9 and 0.95, eps 1e-8.

    micro: (k, n), a mean gradient per micro-batch; scored: (k,), how many tokens each is the mean of; m, v: (n,), from the step before.
    """
    grad = (scored[:, None] * micro).sum(0) / scored.sum()
    grad = grad * min(1.0, max_norm / np.sqrt((grad ** 2).sum()))
    m = 0.9 * m + 0.1 * grad
    v = 0.95 * v + 0.05 * grad ** 2
    m_hat, v_hat = m / (1 - 0.9 ** step), v / (1 - 0.95 ** step)
    update = lr * m_hat / (np.sqrt(v_hat) + 1e-8)
    return update


def first_broken(reports):
    """reports: a list of dicts of gradients, names in the order of forward. For each, the index of the tensor that broke
    first in backward: the last name whose tensor holds a number that is not finite; -1 if all are finite.
    """
    index = []
    for grads in reports:
        broken = [not np.isfinite(g).all() for g in grads.values()]
        index.append(max((k for k, bad in enumerate(broken) if bad), default=-1))
    return np.array(index)


SHAPES = {"wq": (3, 2), "norm": (4,), "w1": (2, 5)}


def _warmup_inputs(rng):
    return rng.permutation(np.arange(1, 31)), float(rng.uniform(0.5, 2.0)), int(rng.integers(7, 12))


def _clip_inputs(rng):
    lengths = ((0.2, 0.3, 0.1), (4.0, 0.5, 6.0), (0.3, 3.0, 0.5), (5.0, 2.5, 0.1), (0.1, 0.1, 0.05))  # of each tensor, by step
    steps = []
    for row in lengths:
        drawn = {name: rng.standard_normal(shape) + 0.3 for name, shape in SHAPES.items()}
        steps.append({name: length * g / np.linalg.norm(g) for length, (name, g) in zip(row, drawn.items())})
    return steps, 1.25


def _update_inputs(rng):
    micro = rng.standard_normal((3, 6)) * np.array([[0.6], [4.0], [1.5]]) + 0.7
    return micro, np.array([512.0, 96.0, 300.0]), 0.1 * rng.standard_normal(6), rng.uniform(0.01, 0.05, 6), int(rng.integers(5, 9)), 0.02, 0.15


def _reports(rng):
    names = ("tok_embeddings", "wq", "w1", "norm", "output")
    reports = []
    for first, last, bad in ((-1, -1, 0), (0, 2, np.nan), (0, 3, np.inf), (0, 0, np.nan), (0, 4, -np.inf), (1, 3, np.nan), (-1, -1, 0), (0, 4, np.nan), (2, 2, np.inf)):
        grads = {name: rng.standard_normal((3, 2)) * 10.0 ** rng.integers(-2, 9) for name in names}
        for k in range(first, last + 1):
            if k >= 0:
                grads[names[k]][rng.integers(3), rng.integers(2)] = bad
        if (first, last) == (0, 2):
            grads["w1"][:] = np.nan                              # one that is lost in every place
        if (first, last) == (0, 3):
            grads["norm"][0] = np.inf, -np.inf
        if (first, last) == (2, 2):
            grads["w1"][:] = np.inf
        reports.append(grads)
    order = rng.permutation(len(reports))
    return ([reports[k] for k in order],)


SQUARES, FACTOR, MICRO = "np.sqrt(sum((g ** 2).sum() for g in grads.values()))", "min(1.0, max_norm / norm)", "(scored[:, None] * micro).sum(0) / scored.sum()"
CLIP, SHARE = "grad * min(1.0, max_norm / np.sqrt((grad ** 2).sum()))", "np.minimum(1.0, step / warmup_steps)"

EXERCISES = {
    "10.warmup_rate": Exercise(
        warmup_rate, ("rate",), _warmup_inputs,
        (
            Mistake("from-zero", SHARE, "np.minimum(1.0, (step - 1) / warmup_steps)", "steps are counted from 0: the first update then has lr 0, and every later one is late (10.4)"),
            Mistake("one-late", SHARE, "np.minimum(1.0, step / (warmup_steps + 1))", "peak is reached one step after the last step of the warm-up (10.4)"),
            Mistake("never-stops", SHARE, "step / warmup_steps", "the line goes on rising after the warm-up; min(1, ...) is missing (10.4)"),
            Mistake("no-warmup", SHARE, "np.minimum(1.0, step)", "there is no warm-up: every step has peak (10.4)"),
            Mistake("whole-numbers", "step / warmup_steps", "step // warmup_steps", "`//` divides whole numbers: the rate is 0 during the whole warm-up (10.4)"),
            Mistake("falls", SHARE, "1.0 - np.minimum(1.0, (step - 1) / warmup_steps)", "the line falls from peak where it must rise to it (10.4)"),
            Mistake("squared", SHARE, "np.minimum(1.0, step / warmup_steps) ** 2", "the share is squared; (10.4) is a straight line"),
            Mistake("zero-after", SHARE, "np.where(step <= warmup_steps, step / warmup_steps, 0.0)", "the rate is 0 after the warm-up, and must stay at peak (10.4)"),
        ),
    ),
    "10.clip_grad_norm": Exercise(
        clip_grad_norm, ("norms", "clipped"), _clip_inputs,
        (
            Mistake("each-tensor", "factor * g for", "min(1.0, max_norm / np.sqrt((g ** 2).sum())) * g for",
                    "each tensor is clipped by itself; (10.7) has one factor for all, or the direction changes"),
            Mistake("always-scaled", FACTOR, "max_norm / norm", "a short gradient is scaled *up* to max_norm; min(1, ...) of (10.7) leaves it alone"),
            Mistake("max-for-min", FACTOR, "max(1.0, max_norm / norm)", "max stands where (10.7) has min: short gradients grow, long ones stay long"),
            Mistake("lengths-added", SQUARES, "sum(np.sqrt((g ** 2).sum()) for g in grads.values())", "the lengths of the tensors are added; squares add up, and then comes the root (10.6)"),
            Mistake("norm-of-sums", SQUARES, "np.sqrt(sum(g.sum() ** 2 for g in grads.values()))", "each tensor is summed before it is squared, so that entries of opposite sign cancel; (10.6) squares first"),
            Mistake("no-root", SQUARES, "sum((g ** 2).sum() for g in grads.values())", "the root of (10.6) is missing"),
            Mistake("mean-square", SQUARES, "np.sqrt(sum((g ** 2).sum() for g in grads.values()) / sum(g.size for g in grads.values()))",
                    "it is the root of the *mean* square: a larger model would then be clipped later. (10.6) sums"),
            Mistake("largest-entry", SQUARES, "max(np.abs(g).max() for g in grads.values())", "the norm is the largest entry; (10.6) is the length of the whole vector"),
            Mistake("longest-tensor", SQUARES, "max(np.sqrt((g ** 2).sum()) for g in grads.values())", "the norm is that of the longest tensor alone; (10.6) takes all of them as one vector"),
            Mistake("gains-left-out", SQUARES, "np.sqrt(sum((g ** 2).sum() for g in grads.values() if g.ndim > 1))", "vectors, the norm gains, do not count in the norm; (10.6) runs over all parameters"),
            Mistake("clamped", "factor * g for", "np.clip(g, -max_norm, max_norm) for", "every entry is clamped by itself; that bends the direction, and (10.7) keeps it"),
            Mistake("norm-after", "norms.append(norm)", "norms.append(norm * factor)", "the norm is measured after clipping: a log of it can never show a spike. It must be the one before"),
            Mistake("thrown-away", FACTOR, "1.0 if norm <= max_norm else 0.0", "a gradient that is too long is thrown away; (10.7) shortens it"),
            Mistake("root-in-factor", FACTOR, "min(1.0, np.sqrt(max_norm / norm))", "the factor is under a root, and the result still too long (10.7)"),
        ),
    ),
    "10.adamw_update": Exercise(
        adamw_update, ("update",), _update_inputs,
        (
            Mistake("clip-each-micro", MICRO,
                    "(scored[:, None] * micro * np.minimum(1.0, max_norm / np.sqrt((micro ** 2).sum(1, keepdims=True)))).sum(0) / scored.sum()",
                    "every micro-batch is clipped before the mean is taken: how the batch is cut then changes the step. Mean first, then (10.7)"),
            Mistake("never-clipped", CLIP, "grad", "the gradient is not clipped at all (10.7)"),
            Mistake("clip-after-moments", (CLIP, "lr * m_hat / (np.sqrt(v_hat) + 1e-8)"),
                    ("grad", "lr * (m_hat / (np.sqrt(v_hat) + 1e-8)) * min(1.0, max_norm / np.sqrt(((m_hat / (np.sqrt(v_hat) + 1e-8)) ** 2).sum()))"),
                    "what comes out of the moments is clipped instead of what goes in: v then remembers the spike (10.11)"),
            Mistake("clip-m", (CLIP, "m_hat, v_hat = m / (1"), ("grad", "m = m * min(1.0, max_norm / np.sqrt((m ** 2).sum()))\n    m_hat, v_hat = m / (1"),
                    "m is clipped and not the gradient: v then remembers the spike (10.11)"),
            Mistake("v-unclipped", ("v = 0.95 * v + 0.05 * grad ** 2", CLIP), ("v = 0.95 * v + 0.05 * whole ** 2", f"{CLIP}\n    whole = {MICRO}"),
                    "m gets the clipped gradient and v the one before clipping; both must get the same one"),
            Mistake("mean-of-means", MICRO, "micro.mean(0)", "micro-batches count alike, though one has fewer tokens; weight them by `scored`"),
            Mistake("last-one", MICRO, "micro[-1]", "only the last micro-batch is used: each one overwrites the sum"),
            Mistake("no-bias-correction", "m / (1 - 0.9 ** step), v / (1 - 0.95 ** step)", "m, v", "the bias of the moments' start at 0 is not corrected: m and v are used as they are (10.3)"),
            Mistake("step-from-zero", "m / (1 - 0.9 ** step), v / (1 - 0.95 ** step)", "m / (1 - 0.9 ** (step - 1)), v / (1 - 0.95 ** (step - 1))",
                    "steps are counted from 0 in the bias correction; at the first one that divides by 0 (10.3)"),
        ),
    ),
    "10.first_broken": Exercise(
        first_broken, ("index",), _reports,
        (
            Mistake("forward-order", "max((k", "min((k", "it is the first in the order of forward; backward begins at the other end, and what it reaches later is broken *because* of that one"),
            Mistake("nan-only", "not np.isfinite(g).all()", "np.isnan(g).any()", "an infinite number passes: `isnan(inf)` is False. Ask isfinite"),
            Mistake("inf-only", "not np.isfinite(g).all()", "np.isinf(g).any()", "NaN passes: `isinf(nan)` is False. Ask isfinite"),
            Mistake("every-place", "not np.isfinite(g).all()", "not np.isfinite(g).any()", "a tensor counts as broken only when *all* its numbers are; one is enough"),
            Mistake("large-is-broken", "not np.isfinite(g).all()", "not (np.abs(g) < 1e4).all()", "a number that is large counts as broken; a gradient may be large, and be right"),
            Mistake("none-is-zero", "default=-1", "default=0", "a report without a fault gets 0, which names the first tensor; it must get -1"),
            Mistake("counted", "max((k for k, bad in enumerate(broken) if bad), default=-1)", "sum(broken)", "it is the number of broken tensors, not the place of one"),
            Mistake("counted-from-the-end", "max((k for k, bad in enumerate(broken) if bad), default=-1)", "(broken[::-1] + [True]).index(True) if any(broken) else -1",
                    "places are counted from the end, in the order of backward; they must be those of the dict"),
        ),
    ),
}
