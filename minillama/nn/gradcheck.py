"""Gradient checking: a backward pass is right when it agrees with finite differences, and never because the loss falls.

    dL/dx_i  =  (L(x + h e_i) - L(x - h e_i)) / 2h  +  O(h^2)

float64 only: the error is about h^2 + 1e-16/h, smallest near h = 1e-5; in float32 the second term drowns every bug.
An op's output becomes one number by L = sum(out * r) with random r, so that no two mistakes can cancel.

    report = gradcheck(rmsnorm_forward, rmsnorm_backward, {"x": x, "weight": weight}, (1e-6,))
    print(report)                   # a line per tensor: worst index, both values, relative error
    assert report.passed

Lesson: lessons/02_gradients.ipynb. Command: python -m minillama gradcheck.
"""
from typing import NamedTuple

import numpy as np

TOLERANCE = 1e-7  # of the tensor's largest gradient
STEP = 1e-5


class TensorReport(NamedTuple):
    """The worst entry of one tensor's gradient. `error` is |analytic - numeric| over the largest |numeric| of the tensor."""

    tensor: str
    index: tuple
    analytic: float
    numeric: float
    error: float
    tolerance: float = TOLERANCE

    @property
    def passed(self):
        return bool(self.error <= self.tolerance)  # False for NaN too

    def __str__(self):
        where = str(list(self.index)) if self.index else ""
        verdict = "ok" if self.passed else "WRONG"
        return f"{self.tensor + where:<34} {self.analytic:>15.8e} {self.numeric:>15.8e} {self.error:>9.1e}  {verdict}"


class Report(list):
    """One TensorReport per tensor; `passed` if all did."""

    @property
    def passed(self):
        return all(tensor.passed for tensor in self)

    def __str__(self):
        return "\n".join(map(str, self))


def numerical_gradient(loss, x, h=STEP):
    """Central differences of a scalar function, one entry at a time.

    Args:
        loss: () -> float         reads x
        x:    float64 array       perturbed in place, and put back exactly

    Returns:
        gradient: like x
    """
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = kept + h
        above = loss()
        x[index] = kept - h
        below = loss()
        x[index] = kept
        gradient[index] = (above - below) / (2 * h)
    return gradient


def compare(tensor, analytic, numeric, tolerance=TOLERANCE):
    """Report the entry where two gradients differ most. A wrong shape or a NaN is an infinite error."""
    if np.shape(analytic) != np.shape(numeric):
        return TensorReport(f"{tensor} shape {np.shape(analytic)}, not {np.shape(numeric)}", (), np.nan, np.nan, np.inf, tolerance)
    difference = np.abs(np.where(np.isfinite(analytic), analytic - numeric, np.inf))
    index = tuple(int(i) for i in np.unravel_index(np.argmax(difference), difference.shape))
    error = float(difference[index]) / max(float(np.abs(numeric).max()), 1e-30)
    return TensorReport(tensor, index, float(analytic[index]), float(numeric[index]), error, tolerance)


def gradcheck(forward, backward, arrays, extra=(), seed=0, h=STEP, tolerance=TOLERANCE):
    """Check an op pair against finite differences of every entry of every array.

    Args:
        forward:  (*arrays, *extra) -> out, cache
        backward: (dout, cache) -> one gradient per array (alone, or a tuple in the same order)
        arrays:   dict name -> float64 array        the differentiable arguments, in forward's order
        extra:    tuple                             forward's further arguments
        seed:     int                               of the random weights that turn `out` into one number
        h, tolerance: float

    Returns:
        Report, one line per array, named d + name
    """
    arrays = {name: np.array(array, np.float64) for name, array in arrays.items()}
    out, cache = forward(*arrays.values(), *extra)
    weights = np.random.default_rng(seed).standard_normal(np.shape(out))
    gradients = backward(weights, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)

    def loss():
        return float((forward(*arrays.values(), *extra)[0] * weights).sum())

    return Report(
        compare("d" + name, np.asarray(gradient), numerical_gradient(loss, array, h), tolerance)
        for (name, array), gradient in zip(arrays.items(), gradients, strict=True)
    )


def check_directions(loss, params, grads, directions=3, seed=0, h=1e-4, tolerance=TOLERANCE):
    """Check a whole model's gradient along random directions: two evaluations each, whatever the number of parameters.

    Along a random unit vector u the slope of the loss is sum(grad * u). One direction touches every entry of every tensor,
    so a wrong entry shows in almost all of them; which one it is, `gradcheck` tells.

    Args:
        loss:   (params) -> float
        params: dict name -> float64 array
        grads:  dict name -> float64 array, same keys
        h:      float    length of the step, all parameters together

    Returns:
        Report, one line per direction; error relative to |grad| / sqrt(number of entries), the slope to be expected
    """
    rng = np.random.default_rng(seed)
    entries = sum(g.size for g in grads.values())
    expected = max(np.sqrt(sum((g * g).sum() for g in grads.values()) / entries), 1e-30)
    report = Report()
    for n in range(directions):
        u = {name: rng.standard_normal(p.shape) for name, p in params.items()}
        length = np.sqrt(sum((a * a).sum() for a in u.values()))
        analytic = float(sum((grads[name] * u[name]).sum() for name in params)) / length
        above = loss({name: p + (h / length) * u[name] for name, p in params.items()})
        below = loss({name: p - (h / length) * u[name] for name, p in params.items()})
        numeric = float(above - below) / (2 * h)
        report.append(TensorReport(f"direction {n}", (), analytic, numeric, abs(analytic - numeric) / expected, tolerance))
    return report
