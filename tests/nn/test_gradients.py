"""Every backward against finite differences and against autograd, and the proof that these checks can fail."""
import copy
import pickle

import numpy as np
import planted_bugs
import pytest
import torch
from tolerances import FINITE_DIFFERENCE, ORACLE

from kernels import reference
from minillama import nn
from minillama.nn.gradcheck import TOLERANCE, check_everything, compare, gradcheck, numerical_gradient

SHAPES = [(2, 7, 3, 4), (1, 1, 1, 2), (3, 13, 2, 6)]  # B, T, H, Dh: primes, T = 1, T above and below Dh


def cases(B, T, H, Dh):
    """name -> (forward, backward, reference forward, differentiable float64 inputs, further arguments)."""
    rng = np.random.default_rng(B * T)
    D, F, V = H * Dh, 5, 11
    draw = lambda *shape: rng.standard_normal(shape)  # noqa: E731
    tokens = rng.integers(0, V // 2, (B, T))
    targets = rng.integers(0, V, (B, T))
    targets[:, T // 2 + 1:] = nn.IGNORE
    tables = nn.rope_tables(T, Dh, dtype=np.float64)
    heads = {name: draw(B, T, H, Dh) for name in "qkv"}
    r = reference
    return {
        "linear": (nn.linear_forward, nn.linear_backward, r.linear_forward, {"x": draw(B, T, D), "weight": draw(F, D)}, ()),
        "embedding": (lambda w: nn.embedding_forward(tokens, w), nn.embedding_backward,
                      lambda w: r.embedding_forward(torch.tensor(tokens), w), {"weight": draw(V, D)}, ()),
        "rmsnorm": (nn.rmsnorm_forward, nn.rmsnorm_backward, r.rmsnorm_forward, {"x": draw(B, T, D), "weight": draw(D)}, (1e-3,)),
        "rope": (nn.rope_forward, nn.rope_backward, r.rope_forward, {"x": draw(B, T, H, Dh)}, tables),
        "attention": (nn.attention_forward, nn.attention_backward, r.attention_forward, heads, ()),
        "attention in blocks": (lambda q, k, v: nn.attention_forward(q, k, v, 3), nn.attention_backward, r.attention_forward, heads, ()),
        "flash": (lambda q, k, v: nn.flash_attention_forward(q, k, v, 3), nn.flash_attention_backward, r.attention_forward, heads, ()),
        "swiglu": (nn.swiglu_forward, nn.swiglu_backward, r.swiglu_forward, {"gate": draw(B, T, F), "up": draw(B, T, F)}, ()),
        "cross_entropy": (lambda x: nn.cross_entropy_forward(x, targets), nn.cross_entropy_backward,
                          lambda x: r.cross_entropy_forward(x, torch.tensor(targets)), {"logits": draw(B, T, V)}, ()),
    }


OPS = list(cases(*SHAPES[0]))


def as_tuple(gradients):
    return gradients if isinstance(gradients, tuple) else (gradients,)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_finite_differences(op, shape):
    forward, backward, _, arrays, extra = cases(*shape)[op]
    report = gradcheck(forward, backward, arrays, extra)
    assert TOLERANCE <= FINITE_DIFFERENCE
    assert report.passed, f"\n{report}"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_oracle(op, shape):
    """Outputs and gradients equal PyTorch's autograd in float64."""
    forward, backward, oracle, arrays, extra = cases(*shape)[op]
    out, cache = forward(*arrays.values(), *extra)
    dout = np.random.default_rng(1).standard_normal(np.shape(out))
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays.values()]
    expected = oracle(*tensors, *(torch.tensor(value) if isinstance(value, np.ndarray) else value for value in extra))
    expected.backward(torch.tensor(dout))
    assert np.abs(out - expected.detach().numpy()).max() <= ORACLE
    for name, gradient, tensor in zip(arrays, as_tuple(backward(dout, cache)), tensors, strict=True):
        assert np.abs(gradient - tensor.grad.numpy()).max() <= ORACLE, name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("op", OPS)
def test_dtype_and_shape(op, dtype):
    """dtype in = dtype out, for the output and for every gradient: NumPy promotes silently."""
    forward, backward, _, arrays, extra = cases(*SHAPES[0])[op]
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    out, cache = forward(*arrays.values(), *(value.astype(dtype) if isinstance(value, np.ndarray) else value for value in extra))
    assert out.dtype == dtype
    dout = 0.5 if np.ndim(out) == 0 else np.ones_like(out)
    for (name, array), gradient in zip(arrays.items(), as_tuple(backward(dout, cache)), strict=True):
        assert (gradient.dtype, gradient.shape) == (array.dtype, array.shape), name


@pytest.mark.parametrize("op", OPS)
def test_purity(op):
    """Nothing that was handed in is changed, and backward gives the same arrays twice."""
    forward, backward, _, arrays, extra = cases(*SHAPES[0])[op]
    before = copy.deepcopy((arrays, extra))
    out, cache = forward(*arrays.values(), *extra)
    kept_cache = copy.deepcopy(cache)
    dout = np.random.default_rng(1).standard_normal(np.shape(out))
    kept_dout = dout.copy()
    first = copy.deepcopy(as_tuple(backward(dout, cache)))
    second = as_tuple(backward(dout, cache))
    assert np.array_equal(dout, kept_dout)
    for left, right in [*zip(first, second), *zip(arrays.values(), before[0].values()), *zip(extra, before[1])]:
        assert np.array_equal(left, right)
    assert pickle.dumps(cache) == pickle.dumps(kept_cache)


@pytest.mark.parametrize("op", ["linear", "rmsnorm", "swiglu"])
def test_out_buffer(op):
    """`out=` receives the result, is what comes back, and changes no bit of it."""
    forward, _, _, arrays, extra = cases(*SHAPES[0])[op]
    expected, _ = forward(*arrays.values(), *extra)
    buffer = np.full_like(expected, np.nan)
    out, _ = forward(*arrays.values(), *extra, out=buffer)
    assert out is buffer
    assert np.array_equal(out, expected)


def test_everything_in_the_model():
    """The table of `python -m minillama gradcheck`: every op, a block, the model entry by entry and along random directions."""
    reports = list(check_everything())
    assert {op for op, _ in reports} == {*OPS, "block", "model"} - {"attention in blocks"}
    for op, report in reports:
        assert report, op
        assert report.passed, f"\n{op}\n{report}"


def test_model_oracle(tiny, rng):
    """The whole model, loss and every gradient, equals PyTorch's in float64."""
    params = {name: rng.standard_normal(shape) * 0.4 for name, shape in nn.param_shapes(tiny).items()}
    tokens, targets = rng.integers(0, tiny.vocab_size, (2, 3, 9))
    targets[0, :4] = nn.IGNORE
    logits, cache = nn.model_forward(tokens, params, tiny)
    loss, loss_cache = nn.cross_entropy_forward(logits, targets)
    grads = nn.model_backward(nn.cross_entropy_backward(1.0, loss_cache), cache)
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in params.items()}
    expected = reference.model_forward(torch.tensor(tokens), tensors, tiny)
    expected_loss = reference.cross_entropy_forward(expected, torch.tensor(targets))
    expected_loss.backward()
    assert np.abs(logits - expected.detach().numpy()).max() <= ORACLE
    assert abs(loss - expected_loss.item()) <= ORACLE
    assert grads.keys() == params.keys()
    for name, gradient in grads.items():
        assert np.abs(gradient - tensors[name].grad.numpy()).max() <= ORACLE, name


@pytest.mark.parametrize("bug", planted_bugs.BUGS)
def test_planted_bug_is_rejected(bug):
    forward, wrong, arrays, extra = planted_bugs.BUGS[bug]
    assert not gradcheck(forward, wrong, arrays, extra).passed, f"the check accepts: {bug}"


def test_report_names_tensor_index_and_values(rng):
    """A single wrong entry is found, and told with both values."""
    x, weight = rng.standard_normal((2, 3)), rng.standard_normal((4, 3))

    def wrong(dout, cache):
        dx, dweight = nn.linear_backward(dout, cache)
        dweight[2, 1] += 0.25
        return dx, dweight

    dx, dweight = gradcheck(nn.linear_forward, wrong, {"x": x, "weight": weight})
    assert dx.passed
    assert (dweight.tensor, dweight.index) == ("dweight", (2, 1))
    assert abs(dweight.analytic - dweight.numeric - 0.25) < 1e-6
    assert "dweight[2, 1]" in str(dweight)
    assert "WRONG" in str(dweight)


def test_nan_and_wrong_shape_fail():
    x = np.ones(3)
    assert not compare("dx", np.array([1.0, np.nan, 1.0]), x).passed
    assert not compare("dx", np.ones((3, 1)), x).passed


def test_perturbation_is_put_back(rng):
    x = rng.standard_normal(5)
    kept = x.copy()
    gradient = numerical_gradient(lambda: float((x**3).sum()), x)
    assert np.array_equal(x, kept)
    assert np.abs(gradient - 3 * kept**2).max() < 1e-8
