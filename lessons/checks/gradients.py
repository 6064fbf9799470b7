"""Lesson 02: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def linear_backward(dout, x, weight):
    """dx (B, T, Din) and dweight (Dout, Din) of out = x @ weight.T, from dout (B, T, Dout)."""
    rows, drows = x.reshape(-1, x.shape[-1]), dout.reshape(-1, dout.shape[-1])
    dx = (drows @ weight).reshape(x.shape)
    dweight = drows.T @ rows
    return dx, dweight


def cross_entropy_backward(logits, targets):
    """dlogits (N, V) of the mean loss over N tokens; logits (N, V), targets (N,) int."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    dlogits = p.copy()
    dlogits[np.arange(len(targets)), targets] -= 1
    return dlogits / len(targets)


def numerical_gradient(loss, x, h):
    """The gradient of loss(x), a number, by central differences, one entry of x at a time; x is left as it was."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[index] += h
        below[index] -= h
        gradient[index] = (loss(above) - loss(below)) / (2 * h)
    return gradient


def relative_error(analytic, numeric):
    """The largest difference of two gradients, as a share of the largest numeric entry: a number."""
    difference = np.abs(analytic - numeric)
    return difference.max() / np.abs(numeric).max()


def _linear_inputs(rng):
    return rng.standard_normal((3, 4, 5)), rng.standard_normal((3, 4, 5)), rng.standard_normal((5, 5))  # square: no shape gives a mistake away


def _cross_entropy_inputs(rng):
    return 2 * rng.standard_normal((6, 5)), np.array([1, 4, 4, 0, 2, 1])  # repeated ids


def _numerical_inputs(rng):
    matrix, shift = rng.standard_normal((4, 6)), rng.standard_normal()

    def loss(x):
        return float(np.log(np.exp(matrix @ np.ravel(x)).sum()) + np.sin(np.sum(x) + shift))

    return loss, rng.standard_normal((2, 3)), float(rng.choice([1e-3, 2e-3]))


def _error_inputs(rng):
    numeric = rng.standard_normal((3, 4))
    numeric[0, 0], numeric[1, 1] = 1e-6, rng.uniform(0.4, 0.6)
    analytic = numeric + 0.1 * rng.standard_normal((3, 4))
    analytic[1, 1] = -0.9 * numeric[1, 1]                        # one sign is wrong, and is the worst
    return analytic, numeric


SCORED = "dlogits[np.arange(len(targets)), targets]"
QUOTIENT = "(loss(above) - loss(below)) / (2 * h)"

EXERCISES = {
    "02.linear_backward": Exercise(
        linear_backward, ("dx", "dweight"), _linear_inputs,
        (
            Mistake("weight-transposed", "drows @ weight", "drows @ weight.T", "the weight is transposed in dx: forward used weight.T, and the transpose of that is weight (2.2)"),
            Mistake("dweight-transposed", "drows.T @ rows", "rows.T @ drows", "dweight is transposed: its rows belong to the outputs (2.3)"),
            Mistake("first-row-of-the-batch", "drows.T @ rows", "dout[0].T @ x[0]", "dweight holds the first row of the batch only; every token used the weight (2.3)",
                    "linear: one batch row only"),
            Mistake("averaged-over-batch", "drows.T @ rows", "drows.T @ rows / len(dout)", "dweight is averaged over the batch; contributions add up (2.3)",
                    "linear: dweight averaged over the batch"),
            Mistake("averaged-over-tokens", "drows.T @ rows", "drows.T @ rows / len(rows)", "dweight is averaged over all tokens; contributions add up (2.3). The 1/N belongs to the loss"),
            Mistake("not-summed-over-batch", "drows.T @ rows", "dout.swapaxes(1, 2) @ x", "every row of the batch keeps a dweight of its own; they add up (2.3)"),
            Mistake("summed-too-early", "drows.T @ rows", "np.outer(drows.sum(0), rows.sum(0))", "the sums over tokens are taken before the product; (2.3) is a sum of products"),
            Mistake("x-for-dout", "drows @ weight", "rows @ weight", "x goes back where dout must (2.2)"),
        ),
    ),
    "02.cross_entropy_backward": Exercise(
        cross_entropy_backward, ("dlogits",), _cross_entropy_inputs,
        (
            Mistake("one-over-n-missing", "dlogits / len(targets)", "dlogits", "the 1/N of (2.6) is missing: the loss is a mean", "cross_entropy: without 1/N"),
            Mistake("target-not-subtracted", f"{SCORED} -= 1", "dlogits += 0", "the target's 1 is not subtracted (2.6): every logit would be pushed down", "cross_entropy: target not subtracted"),
            Mistake("sign", "dlogits / len(targets)", "-dlogits / len(targets)", "the sign is wrong: (2.6) is predicted minus observed"),
            Mistake("softmax-over-tokens", "p.sum(-1, keepdims=True)", "p.sum(0)", "the softmax runs over the tokens; each token's probabilities sum to 1 over the vocabulary (2.4)"),
            Mistake("divided-by-everything", "/ len(targets)", "/ dlogits.size", "the mean runs over the vocabulary too; N counts tokens (2.6)"),
            Mistake("all-rows", f"{SCORED} -= 1", "dlogits[:, targets] -= 1", "the 1 is subtracted in every row, at all targets; each row has one target (2.6): index rows and columns together"),
            Mistake("own-derivative-only", "p.copy()", "p * (1 - p)", "p (1 - p) is how a probability changes with its own logit; the loss's gradient has p (2.6)"),
            Mistake("targets-shifted", f"{SCORED} -= 1", "dlogits[np.arange(len(targets)), np.roll(targets, -1)] -= 1", "every token is given the target of the next one: they are shifted once already"),
            Mistake("softmax-twice", "dlogits = p.copy()", "dlogits = np.exp(p) / np.exp(p).sum(-1, keepdims=True)", "the softmax is applied twice, to probabilities instead of logits (2.4)"),
            Mistake("logits-for-p", "dlogits = p.copy()", "dlogits = logits.copy()", "the logits stand where their softmax p must (2.6)"),
        ),
    ),
    "02.numerical_gradient": Exercise(
        numerical_gradient, ("gradient",), _numerical_inputs,
        (
            Mistake("one-sided", QUOTIENT, "(loss(above) - loss(x)) / h", "the difference is one-sided: its error is h/2 L'' (2.8), not h² (2.7)"),
            Mistake("one-sided-below", QUOTIENT, "(loss(x) - loss(below)) / h", "the difference is one-sided, to below: its error is h/2 L'' (2.8), not h² (2.7)"),
            Mistake("two-forgotten", "/ (2 * h)", "/ h", "the 2 of 2h is forgotten: above and below are 2h apart (2.7)"),
            Mistake("divided-by-two-times-h", "/ (2 * h)", "/ 2 * h", "`/ 2 * h` divides by 2 and then multiplies by h: write / (2 * h) (2.7)"),
            Mistake("sign", "loss(above) - loss(below)", "loss(below) - loss(above)", "above and below are exchanged (2.7)"),
            Mistake("all-at-once", ("above[index] += h", "below[index] -= h"), ("above += h", "below -= h"), "all entries move at once: one entry of the gradient belongs to one entry of x"),
            Mistake("not-put-back", "for index in np.ndindex(x.shape):\n        above, below = x.copy(), x.copy()", "above, below = x.copy(), x.copy()\n    for index in np.ndindex(x.shape):",
                    "an entry is not put back before the next one is moved: all but the first are measured somewhere else"),
            Mistake("relative-step", ("above[index] += h", "below[index] -= h"), ("above[index] *= 1 + h", "below[index] *= 1 - h"), "the step is h times the entry, and the difference is divided by h alone (2.7)"),
            Mistake("float32", "x.copy(), x.copy()", "x.astype(np.float32), x.astype(np.float32)", "x is rounded to float32, and the differences drown in rounding (2.9)"),
        ),
    ),
    "02.relative_error": Exercise(
        relative_error, ("error",), _error_inputs,
        (
            Mistake("absolute", " / np.abs(numeric).max()", "", "it is the absolute error: whether 1e-6 is small depends on the gradient's size (2.11)"),
            Mistake("mean", "difference.max()", "difference.mean()", "it is the mean difference: one wrong entry among a million would vanish in it (2.11)"),
            Mistake("entry-by-entry", "difference.max() / np.abs(numeric).max()", "(difference / np.abs(numeric)).max()",
                    "every entry is divided by itself: where the true gradient is almost 0, rounding alone gives an error of 1. (2.11) divides by the largest"),
            Mistake("signed", "np.abs(analytic - numeric)", "analytic - numeric", "differences below 0 are lost: the absolute value is missing in the numerator (2.11)"),
            Mistake("denominator-signed", "np.abs(numeric).max()", "numeric.max()", "the absolute value is missing in the denominator (2.11)"),
            Mistake("by-analytic", "np.abs(numeric)", "np.abs(analytic)", "it is divided by the gradient under test, which may be anything; (2.11) divides by the measured one"),
            Mistake("of-sizes", "np.abs(analytic - numeric)", "np.abs(np.abs(analytic) - np.abs(numeric))", "sizes are compared without their signs: a gradient of the wrong sign would pass"),
            Mistake("norms", "difference.max() / np.abs(numeric).max()", "np.linalg.norm(difference) / np.linalg.norm(numeric)", "it is a ratio of norms: one wrong entry among many is diluted; (2.11) takes the largest"),
        ),
    ),
}
