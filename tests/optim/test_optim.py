"""AdamW against PyTorch's, clipping, and the schedule read as an array: a wrong one hides in the loss."""
import math

import numpy as np
import pytest
import torch

from minillama.optim import adamw_step, clip_grad_norm, learning_rate
from minillama.optim.adamw import BLOCK


@pytest.mark.parametrize("n", [7, BLOCK + 3])
def test_adamw_equals_pytorch(n, rng):
    param, grads = rng.standard_normal(n), rng.standard_normal((5, n))
    m, v = np.zeros(n), np.zeros(n)
    tensor = torch.tensor(param, requires_grad=True)
    theirs = torch.optim.AdamW([tensor], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step, grad in enumerate(grads, 1):
        kept = grad.copy()
        adamw_step(param, grad, m, v, step, 1e-2)
        assert np.array_equal(grad, kept)
        tensor.grad = torch.tensor(grad)
        theirs.step()
    assert np.abs(param - tensor.detach().numpy()).max() < 1e-13


def test_first_step_has_the_size_of_lr(rng):
    """After bias correction the first update is lr * sign(grad), whatever the gradient's scale."""
    for scale in (1e-3, 1e3):
        param, grad = np.zeros(5), rng.standard_normal(5) * scale
        adamw_step(param, grad, np.zeros(5), np.zeros(5), 1, 0.01)
        assert np.allclose(param, -0.01 * np.sign(grad), rtol=1e-4)


def test_decay_is_decoupled():
    """Without a gradient a parameter shrinks by lr * decay and nothing else."""
    param = np.ones(3)
    adamw_step(param, np.zeros(3), np.zeros(3), np.zeros(3), 1, 0.5, weight_decay=0.1)
    assert np.array_equal(param, np.full(3, 0.95))


def test_float32_stays_float32(rng):
    arrays = [rng.standard_normal(5).astype(np.float32) for _ in range(2)] + [np.zeros(5, np.float32) for _ in range(2)]
    expected = [array.astype(np.float64) for array in arrays]
    for step in (1, 2, 3):
        adamw_step(*arrays, step, 1e-2)
        adamw_step(*expected, step, 1e-2)
    assert np.abs(arrays[0] - expected[0]).max() < 1e-6


def test_clip(rng):
    grad = rng.standard_normal(100) * 10
    direction = grad / np.linalg.norm(grad)
    norm = clip_grad_norm(grad, 1.0)
    assert norm > 1
    assert np.allclose(grad, direction)
    small = np.array([0.3, 0.4])
    assert clip_grad_norm(small, 1.0) == pytest.approx(0.5)
    assert np.array_equal(small, [0.3, 0.4])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clip_leaves_broken_gradients_alone(bad):
    grad = np.array([3.0, bad])
    assert not math.isfinite(clip_grad_norm(grad, 1.0))
    assert grad[0] == 3.0


def test_schedule():
    rates = np.array([learning_rate(step, 1.0, 1000, 100, 0.1) for step in range(1, 1001)])
    assert np.allclose(rates[:100], np.arange(1, 101) / 100)     # linear, no decay during warm-up, the peak is reached
    assert np.argmax(rates) == 99
    assert np.all(np.diff(rates[99:]) < 0)                       # falls all the way, no floor before the end
    assert rates[-1] == pytest.approx(0.1)                       # ends at a tenth, at the last step and not later
    assert rates[549] == pytest.approx(0.55)                     # half way down at half time: a cosine, not a line ...
    assert rates[324] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(5000, 1.0, 1000, 100, 0.1) == pytest.approx(0.1)  # ... and it does not rise again


def test_schedule_is_a_pure_function_of_the_step():
    forwards = [learning_rate(step, 3e-4, 50, 5) for step in range(1, 51)]
    backwards = [learning_rate(step, 3e-4, 50, 5) for step in range(50, 0, -1)]
    assert forwards == backwards[::-1]


def test_schedule_corners():
    assert learning_rate(1, 1.0, 10, 0) < 1.0
    assert learning_rate(10, 1.0, 10, 2000) == 1.0               # a warm-up longer than the run is cut to it
    assert learning_rate(1, 1.0, 1, 0) == pytest.approx(0.1)
