"""Gradient checking: a backward pass is right if it agrees with finite differences; a falling loss proves nothing.

    dL/dx_i  =  (L(x + h e_i) - L(x - h e_i)) / 2h  +  O(h^2)

float64 only: the error is about h^2 + 1e-16/h, smallest near h = 1e-5; in float32 the second term is so large that it hides every bug.
An op's output becomes one number by L = sum(out * r) with random r, so that no two mistakes can cancel.

    report = gradcheck(rmsnorm_forward, rmsnorm_backward, {"x": x, "weight": weight}, (1e-6,))
    print(report)                   # a line per tensor: worst index, both values, relative error
    assert report.passed

Lesson: lessons/02_gradients.ipynb. Command: python -m minillama gradcheck.
"""
from functools import partial
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
    """One TensorReport per tensor; `passed` if all of them passed."""

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
        return TensorReport(f"{tensor} shape must be {np.shape(numeric)}, got {np.shape(analytic)}", (), np.nan, np.nan, np.inf, tolerance)
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
    """Check a complete model's gradient along random directions: two evaluations each, whatever the number of parameters.

    Along a random unit vector u the slope of the loss is sum(grad * u). One direction touches every entry of every tensor,
    so a wrong entry shows in almost all of them; `gradcheck` tells which one it is.

    Args:
        loss:   (params) -> float
        params: dict name -> float64 array
        grads:  dict name -> float64 array, same keys
        h:      float    length of the step, all parameters together

    Returns:
        Report, one line per direction; error relative to |grad| / sqrt(number of entries), the slope to expect
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


def check_everything(seed=0):
    """Check every op of the model, then a complete small model entry by entry and along random directions.

    The inputs are such that no mistake can hide: random norm gains (a forgotten factor is invisible at 1), repeated token
    ids, T different from head_dim, sizes without common factors, ignored targets.

    Yields:
        (op name, Report)
    """
    from .. import nn
    from ..config import ModelConfig

    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape)

    B, T, H, Dh, V = 2, 7, 3, 4, 11
    tokens = rng.integers(0, V // 2, (B, T))                     # half the vocabulary: ids repeat
    targets = np.where(rng.random((B, T)) < 0.2, nn.IGNORE, rng.integers(0, V, (B, T)))
    cos, sin = nn.rope_tables(T, Dh, dtype=np.float64)
    qkv = {"q": draw(B, T, H, Dh), "k": draw(B, T, H, Dh), "v": draw(B, T, H, Dh)}

    yield "linear", gradcheck(nn.linear_forward, nn.linear_backward, {"x": draw(B, T, 5), "weight": draw(3, 5)})
    yield "embedding", gradcheck(partial(nn.embedding_forward, tokens), nn.embedding_backward, {"weight": draw(V, 5)})
    yield "rmsnorm", gradcheck(nn.rmsnorm_forward, nn.rmsnorm_backward, {"x": draw(B, T, 5), "weight": draw(5)}, (1e-2,))
    yield "rope", gradcheck(nn.rope_forward, nn.rope_backward, {"x": draw(B, T, H, Dh)}, (cos, sin))
    yield "attention", gradcheck(nn.attention_forward, nn.attention_backward, qkv, (3,))
    yield "flash", gradcheck(nn.flash_attention_forward, nn.flash_attention_backward, qkv, (3,))
    yield "swiglu", gradcheck(nn.swiglu_forward, nn.swiglu_backward, {"gate": draw(B, T, 5), "up": draw(B, T, 5)})
    forward = partial(nn.cross_entropy_forward, targets=targets)
    yield "cross_entropy", gradcheck(forward, nn.cross_entropy_backward, {"logits": draw(B, T, V)})

    config = ModelConfig(dim=H * Dh, n_layers=2, n_heads=H, vocab_size=V, multiple_of=5, max_seq_len=T, norm_eps=1e-2)
    params = {name: draw(*shape) * (0.4 if len(shape) > 1 else 1.0) for name, shape in nn.param_shapes(config).items()}

    def loss(params):
        return float(nn.cross_entropy_forward(nn.model_forward(tokens, params, config)[0], targets)[0])

    logits, model_cache = nn.model_forward(tokens, params, config)
    grads = nn.model_backward(nn.cross_entropy_backward(1.0, nn.cross_entropy_forward(logits, targets)[1]), model_cache)
    block = nn.model.layer_params(params, 0)
    yield "block", gradcheck(
        lambda x, *arrays: nn.block_forward(x, dict(zip(block, arrays)), cos, sin, config),
        lambda dout, cache: _flatten(nn.block_backward(dout, cache), block),
        {"x": draw(B, T, H * Dh), **block},
    )
    yield "model", Report(compare("d" + name, grads[name], numerical_gradient(lambda: loss(params), params[name])) for name in params)
    yield "model", check_directions(loss, params, grads, seed=seed)


def _flatten(block_gradients, names):
    dx, grads = block_gradients
    return (dx, *(grads[name] for name in names))
