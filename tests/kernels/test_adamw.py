"""AdamW and clipping in Triton, against the NumPy optimiser in float64."""
import numpy as np
import pytest
import torch
from kernel_check import DEVICE, close

from kernels import adamw, reference
from kernels.adamw import BLOCK, adamw_step, clip_coefficient
from minillama.optim import adamw_step as numpy_step
from minillama.optim import clip_grad_norm

SIZES = [1, 97, BLOCK, 5 * BLOCK + 3]


def state(n, seed=0):
    """param, grad, m, v: float32 values, v not negative and some of it 0, as at the start."""
    rng = np.random.default_rng(seed)
    param, grad, m, v = rng.standard_normal((4, n)).astype(np.float32)
    return param, grad, m * 0.1, np.maximum(v, 0)


def on_device(arrays):
    return [torch.from_numpy(array.copy()).to(DEVICE) for array in arrays]


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("n", SIZES)
def test_adamw_with_clipping(n, step):
    arrays = state(n)
    truth = [array.astype(float) for array in arrays]
    clip_grad_norm(truth[1], 0.5)
    numpy_step(*truth, step, 1e-2)
    results = []
    for clip, update in ((reference.clip_coefficient, reference.adamw_step), (clip_coefficient, adamw_step)):
        tensors = on_device(arrays)
        copy = torch.full((n,), torch.nan, dtype=torch.bfloat16 if DEVICE.type == "cuda" else torch.float16, device=DEVICE)
        _, coefficient = clip(tensors[1], 0.5)
        update(*tensors, step, 1e-2, coefficient=coefficient, copy=copy)
        assert torch.equal(tensors[1], on_device(arrays)[1]), "grad is only read"
        assert torch.equal(copy, tensors[0].to(copy.dtype)), "the copy is the rounded parameter"
        results.append(tensors)
    for name, plain, kernel, true in zip(("param", "grad", "m", "v"), *results, truth):
        if name != "grad":
            close(name, kernel, plain, true, torch.float32)


def test_without_clipping_or_copy():
    arrays = state(300)
    truth = [array.astype(float) for array in arrays]
    numpy_step(*truth, 7, 1e-2, 0.8, 0.9, 1e-3, 0.0)
    results = [on_device(arrays), on_device(arrays)]
    reference.adamw_step(*results[0], 7, 1e-2, 0.8, 0.9, 1e-3, 0.0)
    adamw_step(*results[1], 7, 1e-2, 0.8, 0.9, 1e-3, 0.0)
    for name, plain, kernel, true in zip(("param", "grad", "m", "v"), *results, truth):
        if name != "grad":
            close(name, kernel, plain, true, torch.float32)


@pytest.mark.parametrize("n", [*SIZES, 1100 * BLOCK])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_coefficient(n, max_norm):
    grad = state(n)[1]
    norm, coefficient = clip_coefficient(*on_device([grad]), max_norm)
    expected = np.sqrt((grad.astype(float) ** 2).sum())
    assert norm.item() == pytest.approx(expected, rel=1e-6)
    assert coefficient.item() == pytest.approx(min(1.0, max_norm / expected), rel=1e-6)
    assert norm.device.type == coefficient.device.type == DEVICE.type


def test_zero_gradient_is_not_divided_by():
    norm, coefficient = clip_coefficient(torch.zeros(10, device=DEVICE), 1.0)
    assert (norm.item(), coefficient.item()) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_norm_that_is_not_finite_changes_nothing(bad):
    arrays = state(2 * BLOCK)
    arrays[1][BLOCK + 5] = bad
    tensors, copy = on_device(arrays), torch.zeros(2 * BLOCK, dtype=torch.float16, device=DEVICE)
    norm, coefficient = clip_coefficient(tensors[1], 1.0)
    assert not norm.isfinite().item() and coefficient.item() == 0
    adamw_step(*tensors, 1, 1e-2, coefficient=coefficient, copy=copy)
    for tensor, before in zip(tensors, on_device(arrays)):
        assert torch.equal(tensor.nan_to_num(), before.nan_to_num())
    assert not copy.any()


def test_factors_may_lie_on_the_device():
    """The launch's own numbers and the same three in memory give the same bits, in the kernel and in plain PyTorch."""
    for functions in (adamw, reference):
        results = []
        for place in (tuple, lambda numbers: torch.tensor(numbers, device=DEVICE)):
            tensors = on_device(state(BLOCK + 7))
            functions.adamw_update(*tensors, place(reference.adamw_factors(3, 1e-2, 0.9, 0.95, 0.1)))
            results.append(tensors)
        assert all(map(torch.equal, *results))
        given = on_device(state(BLOCK + 7))
        functions.adamw_step(*given, 3, 1e-2)
        assert all(map(torch.equal, given, results[0]))


def test_bad_input():
    param, grad, m, v = on_device(state(6))
    for arguments, sentence in (
        ((param.view(2, 3), grad, m, v), r"param must be flat and contiguous, got shape \(2, 3\), strides \(3, 1\)"),
        ((param, grad[:5], m, v), r"grad must have the shape of param, \(6,\), got \(5,\)"),
        ((param, grad, m.half(), v), "m must be float32, got float16"),
        ((param, grad, m, v[::2]), r"v must be flat and contiguous, got shape \(3,\), strides \(2,\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            adamw_step(*arguments, 1, 1e-3)
    with pytest.raises(ValueError, match="grad must be bfloat16, float16 or float32, got float64"):
        clip_coefficient(grad.double(), 1.0)
