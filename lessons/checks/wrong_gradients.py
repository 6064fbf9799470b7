"""Lesson 08: what the learner writes, and the ways it goes wrong. Equation numbers are the lesson's."""
import numpy as np

from ..check import Exercise, Mistake


def cosine(right, wrong):
    """Cosine of the angle between two gradients: dicts of arrays with the same names, taken as one long vector each."""
    dot = sum((right[name] * wrong[name]).sum() for name in right)
    lengths = [np.sqrt(sum((g[name] ** 2).sum() for name in g)) for g in (right, wrong)]
    return dot / (lengths[0] * lengths[1])


def slopes(loss, params, grads, u, h):
    """The slope of loss(params) along u: as the gradients say, and as measured by central differences. All dicts have the same names."""
    claimed = sum((grads[name] * u[name]).sum() for name in params)
    above = loss({name: params[name] + h * u[name] for name in params})
    below = loss({name: params[name] - h * u[name] for name in params})
    measured = (above - below) / (2 * h)
    return claimed, measured


def first_wrong(errors, tolerance):
    """errors (reports, tensors), in the order of backward: for each report, the index of its first wrong tensor, or -1 if all are right."""
    wrong = ~(errors <= tolerance)
    return np.where(wrong.any(1), wrong.argmax(1), -1)


SHAPES = {"wq": (3, 2), "norm": (4,), "wo": (2, 5)}


def _draw(rng):
    return {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}


def _cosine_inputs(rng):
    right, noise = _draw(rng), _draw(rng)
    scale = {"wq": 5.0, "norm": 0.3, "wo": 1.0}
    right = {name: scale[name] * right[name] for name in right}
    return right, {name: -0.4 * right[name] + noise[name] for name in right}


def _slopes_inputs(rng):
    weights = _draw(rng)

    def loss(params):
        z = sum((weights[name] * params[name]).sum() for name in weights)
        return float(np.sin(z) + 0.1 * sum((params[name] ** 3).sum() for name in weights))

    return loss, _draw(rng), _draw(rng), _draw(rng), float(rng.choice([1e-2, 2e-2]))


def _errors_inputs(rng):
    errors = 10.0 ** rng.uniform(-12, -9, (9, 6))
    for report, first in enumerate(rng.permutation([0, 1, 2, 3, 4, 2, 5])):
        errors[report, first:] = 10.0 ** rng.uniform(-3, 1, 6 - first)
    errors[3, 1], errors[4, :] = np.nan, 10.0 ** rng.uniform(-3, 0, 6)
    errors[4, 0] = np.nan
    errors[5, 4:] = errors[8, 1:] = 1e-11                        # right again behind the wrong ones
    errors[8, 0] = 1.0
    return errors, 1e-7


DOT, ROOT = "(right[name] * wrong[name]).sum()", "np.sqrt(sum((g[name] ** 2).sum() for name in g))"

EXERCISES = {
    "08.cosine": Exercise(
        cosine, ("cos",), _cosine_inputs,
        (
            Mistake("no-root", ROOT, "sum((g[name] ** 2).sum() for name in g)", "the lengths are not under a root (8.2)"),
            Mistake("not-divided", " / (lengths[0] * lengths[1])", "", "the dot product is not divided by the lengths (8.2): it depends on their scale"),
            Mistake("one-length", "lengths[0] * lengths[1]", "lengths[0] ** 2", "both lengths are that of the right gradient: this is a projection, not a cosine (8.2)"),
            Mistake("mean-of-tensors", "dot / (lengths[0] * lengths[1])",
                    "sum((right[k] * wrong[k]).sum() / np.linalg.norm(right[k]) / np.linalg.norm(wrong[k]) for k in right) / len(right)",
                    "it is the mean of the tensors' own cosines; (8.2) takes all of them as one vector, in which large tensors count for more"),
            Mistake("absolute", DOT, "np.abs(right[name] * wrong[name]).sum()", "the products lose their signs: a gradient that points uphill would look fine (8.2)"),
            Mistake("mean-in-dot", DOT, "(right[name] * wrong[name]).mean()", "the dot product takes the mean of every tensor, where (8.2) sums"),
            Mistake("lengths-added", ROOT, "sum(np.linalg.norm(g[name]) for name in g)", "the tensors' lengths are added; squares add up, and then comes the root (8.2)"),
            Mistake("largest-entry", "(g[name] ** 2).sum() for name in g", "np.max(g[name] ** 2) for name in g", "of every tensor only the largest entry goes into the length (8.2)"),
        ),
    ),
    "08.slopes": Exercise(
        slopes, ("claimed", "measured"), _slopes_inputs,
        (
            Mistake("direction-forgotten", "(grads[name] * u[name]).sum()", "grads[name].sum()", "the direction is left out of the claimed slope, which is the gradient's product with u (8.4)"),
            Mistake("length-claimed", "(grads[name] * u[name]).sum()", "(grads[name] ** 2).sum()", "the claimed slope is that along the gradient itself, and not along u (8.4)"),
            Mistake("mean", "(grads[name] * u[name]).sum()", "(grads[name] * u[name]).mean()", "every tensor's products are averaged; (8.4) sums"),
            Mistake("one-sided", "(above - below) / (2 * h)", "(above - loss(params)) / h", "the difference is one-sided (8.4)"),
            Mistake("two-forgotten", "/ (2 * h)", "/ h", "above and below are 2h apart (8.4)"),
            Mistake("sign", "above - below", "below - above", "above and below are exchanged (8.4)"),
            Mistake("along-the-gradient", ("params[name] + h * u[name]", "params[name] - h * u[name]"), ("params[name] + h * grads[name]", "params[name] - h * grads[name]"),
                    "the step goes along the gradient under test: what it leaves out is then never looked at. (8.4) goes along u"),
            Mistake("relative-step", ("params[name] + h * u[name]", "params[name] - h * u[name]"), ("params[name] * (1 + h * u[name])", "params[name] * (1 - h * u[name])"),
                    "the step is multiplied with the parameters; (8.4) adds h u"),
        ),
        same=1e-8,
    ),
    "08.first_wrong": Exercise(
        first_wrong, ("index",), _errors_inputs,
        (
            Mistake("nan-passes", "~(errors <= tolerance)", "errors > tolerance", "NaN counts as right: `nan > tolerance` is False. Ask `not error <= tolerance`"),
            Mistake("largest", "wrong.argmax(1)", "np.nan_to_num(errors, nan=np.inf).argmax(1)",
                    "it is the place of the largest error; a mistake grows on its way back, so it begins at the *first* wrong tensor"),
            Mistake("last", "wrong.argmax(1)", "errors.shape[1] - 1 - wrong[:, ::-1].argmax(1)", "it is the *last* wrong tensor; all that comes after the first may be wrong because of it"),
            Mistake("none-is-zero", "np.where(wrong.any(1), wrong.argmax(1), -1)", "wrong.argmax(1)", "a report without a fault gets 0, which names the first tensor; it must get -1"),
            Mistake("counted", "wrong.argmax(1)", "wrong.sum(1)", "it is the number of wrong tensors, not the place of the first"),
            Mistake("one-based", "wrong.argmax(1)", "wrong.argmax(1) + 1", "tensors are counted from 1"),
            Mistake("right-for-wrong", "wrong.argmax(1)", "(~wrong).argmax(1)", "it is the first *right* tensor"),
        ),
    ),
}
