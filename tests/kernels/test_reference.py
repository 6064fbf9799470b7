"""The plain ops in PyTorch that every kernel is judged by: the ends of attention, AdamW and clipping as in NumPy."""
import math

import numpy as np
import pytest
import torch
from tolerances import MODEL_FLOAT32, ORACLE

from kernels import reference
from minillama import nn
from minillama.optim import adamw_step


@pytest.mark.parametrize("Tq, Tk", [(7, 7), (3, 7), (1, 7), (1, 1)])
def test_queries_are_the_last_positions(Tq, Tk, rng):
    q, k, v = (rng.standard_normal((2, T, 3, 4)) for T in (Tq, Tk, Tk))
    expected, _ = nn.attention_forward(q, k, v)
    assert np.abs(reference.attention_forward(*map(torch.tensor, (q, k, v))).numpy() - expected).max() <= ORACLE


def flat(rng, n=1000):
    return [rng.standard_normal(n).astype(np.float32) for _ in range(2)] + [np.zeros(n, np.float32) for _ in range(2)]


def test_adamw_is_numpys(rng):
    ours = flat(rng)
    theirs = [torch.tensor(array) for array in ours]
    copy, factor = torch.empty(1000, dtype=torch.bfloat16), torch.tensor(0.25)
    for step in range(1, 6):
        clipped = ours[1] * np.float32(0.25)
        adamw_step(ours[0], clipped, *ours[2:], step, 1e-2, 0.9, 0.95, 1e-8, 0.1)
        reference.adamw_step(*theirs, step, 1e-2, 0.9, 0.95, 1e-8, 0.1, factor, copy)
    for left, right in zip(ours, theirs):
        assert np.abs(left - right.numpy()).max() <= MODEL_FLOAT32 * np.abs(left).max()
    assert torch.equal(copy, theirs[0].bfloat16())


def test_a_coefficient_of_0_updates_nothing(rng):
    param, grad, m, v = (torch.tensor(array) for array in flat(rng))
    reference.adamw_step(param, grad, m, v, 1, 1e-2)
    copy = param.bfloat16()
    kept = [tensor.clone() for tensor in (param, m, v, copy)]
    grad[3], grad[4] = math.nan, math.inf
    reference.adamw_step(param, grad, m, v, 2, 1e-2, coefficient=reference.clip_coefficient(grad, 1.0)[1], copy=copy)
    assert all(map(torch.equal, (param, m, v, copy), kept))


@pytest.mark.parametrize("grad, norm, coefficient", [
    ([3.0, 4.0], 5.0, 0.4), ([0.3, 0.4], 0.5, 1.0), ([0.0, 0.0], 0.0, 1.0),
    ([math.nan, 1.0], math.nan, 0.0), ([math.inf, 1.0], math.inf, 0.0), ([1e30, 1.0], math.inf, 0.0),
])
def test_clip_coefficient(grad, norm, coefficient):
    result = reference.clip_coefficient(torch.tensor(grad), 2.0)
    assert [tuple(tensor.shape) for tensor in result] == [(), ()]
    assert [tensor.dtype for tensor in result] == [torch.float32] * 2
    assert torch.stack(result).tolist() == pytest.approx([norm, coefficient], rel=1e-6, nan_ok=True)
