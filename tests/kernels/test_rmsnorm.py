"""RMSNorm in Triton, alone and with the residual addition."""
import numpy as np
import pytest
import torch
from kernel_check import DEVICE, DTYPES, LAYOUTS, check_pair, close, rounded, tensors

from kernels import reference
from kernels.rmsnorm import MAX_DIM, add_rmsnorm, add_rmsnorm_backward, add_rmsnorm_forward, rmsnorm, rmsnorm_backward, rmsnorm_forward
from minillama.nn import rmsnorm_backward as numpy_backward
from minillama.nn import rmsnorm_forward as numpy_forward

SHAPES = [(1, 3), (1, 64), (3, 5, 97), (2, 127, 128), (700, 8), (7, 1000), (67, 600), (5, 4097)]  # (67, 600): more rows than programs
EPS = 1e-5


def arrays(shape, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) * 3, rng.standard_normal(shape[-1])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rmsnorm(shape, dtype):
    check_pair((rmsnorm_forward, rmsnorm_backward), (numpy_forward, numpy_backward), reference.rmsnorm_forward,
               arrays(shape), dtype, ["dx", "dweight"], [EPS])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_of_the_gradient(layout):
    check_pair((rmsnorm_forward, rmsnorm_backward), (numpy_forward, numpy_backward), reference.rmsnorm_forward,
               arrays((4, 6, 32)), torch.float32, ["dx", "dweight"], [EPS], dout=layout)


def test_gradient_of_a_sum_has_stride_0():
    x, weight = tensors(arrays((6, 33)), torch.float32)
    _, cache = rmsnorm_forward(x, weight, EPS)
    one = torch.ones((), device=DEVICE)
    for spread, full in zip(rmsnorm_backward(one.expand(6, 33), cache), rmsnorm_backward(torch.ones_like(x), cache)):
        assert torch.equal(spread, full)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 64), (3, 5, 97), (130, 16)])
def test_add_rmsnorm(shape, dtype):
    """Both outputs feed a loss: x and residual share the sum of what comes back."""
    rng = np.random.default_rng(2)
    residual, dout, dtotal = rng.standard_normal((3, *shape))
    x, weight = arrays(shape)
    inputs = [x, residual, weight, dout, dtotal]
    tx, tresidual, tweight, tdout, tdtotal = tensors(inputs, dtype)
    x, residual, weight, dout, dtotal = rounded(inputs, dtype)

    true_out, cache = numpy_forward(x + residual, weight, EPS)
    true_dx, true_dweight = numpy_backward(dout, cache)
    leaves = [tensor.clone().requires_grad_() for tensor in (tx, tresidual, tweight)]
    total = leaves[0] + leaves[1]
    out = reference.rmsnorm_forward(total, leaves[2], EPS)
    dx, _, dweight = torch.autograd.grad((out, total), leaves, (tdout, tdtotal))

    (kernel_out, kernel_total), cache = add_rmsnorm_forward(tx, tresidual, tweight, EPS)
    kernel_dx, kernel_dweight = add_rmsnorm_backward(tdout, tdtotal, cache)
    close("out", kernel_out, out, true_out, dtype)
    close("total", kernel_total, total, x + residual, dtype)
    close("dx", kernel_dx, dx, true_dx + dtotal, dtype)
    close("dweight", kernel_dweight, dweight, true_dweight, dtype)


def test_registered():
    """opcheck: schema, fake tensors, autograd and tracing agree with what the op does."""
    x, weight = (tensor.requires_grad_() for tensor in tensors(arrays((3, 8)), torch.float32))
    torch.library.opcheck(torch.ops.minillama.rmsnorm.default, (x, weight, EPS))
    torch.library.opcheck(torch.ops.minillama.add_rmsnorm.default, (x, x.detach().clone().requires_grad_(), weight, EPS))


def test_compiles_in_one_graph():
    x, weight = (tensor.requires_grad_() for tensor in tensors(arrays((3, 8)), torch.float32))

    def both(x, weight):
        out, total = add_rmsnorm(rmsnorm(x, weight, EPS), x, weight, EPS)
        return (out * total).sum()

    results = [torch.autograd.grad(function(x, weight), (x, weight)) for function in
               (both, torch.compile(both, fullgraph=True, backend="aot_eager"))]
    for eager, compiled in zip(*results):
        assert torch.allclose(eager, compiled, atol=1e-6)


@pytest.mark.parametrize("x, weight, sentence", [
    (torch.zeros(2, 4, dtype=torch.float64), torch.zeros(4), "x must be bfloat16, float16 or float32, got float64"),
    (torch.zeros(2, 4, dtype=torch.int64), torch.zeros(4), "x must be bfloat16, float16 or float32, got int64"),
    (torch.zeros(2, 0, 4), torch.zeros(4), r"x must hold at least one element, got shape \(2, 0, 4\)"),
    (torch.zeros(2, 4), torch.zeros(5), r"weight must have shape \(4,\), got \(5,\)"),
    (torch.zeros(2, MAX_DIM + 1), torch.zeros(MAX_DIM + 1), f"x must have at most {MAX_DIM} channels, got {MAX_DIM + 1}"),
    (torch.zeros(2, 4), torch.zeros(4, device="meta"), r"weight must be on the device of x, .*, got meta"),
])
def test_bad_input(x, weight, sentence):
    on_device = (tensor if tensor.device.type == "meta" else tensor.to(DEVICE) for tensor in (x, weight))
    with pytest.raises(ValueError, match=sentence):
        rmsnorm_forward(*on_device)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the interpreter's own limit")
def test_interpreter_refuses_bfloat16():
    with pytest.raises(ValueError, match="x must be float16 or float32 in Triton's interpreter, got bfloat16"):
        rmsnorm_forward(torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.bfloat16))
