"""SwiGLU in Triton."""
import numpy as np
import pytest
import torch
from kernel_check import DEVICE, DTYPES, LAYOUTS, check_pair

from kernels import reference
from kernels.swiglu import swiglu, swiglu_backward, swiglu_forward
from minillama.nn import swiglu_backward as numpy_backward
from minillama.nn import swiglu_forward as numpy_forward

PAIRS = (swiglu_forward, swiglu_backward), (numpy_forward, numpy_backward), reference.swiglu_forward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 97), (2, 127, 16), (3, 1024), (2, 2049)])
def test_swiglu(shape, dtype, rng):
    check_pair(*PAIRS, list(rng.standard_normal((2, *shape)) * 3), dtype, ["dgate", "dup"])


def test_large_gates(rng):
    """sigmoid neither overflows nor turns into NaN."""
    gate = np.array([[-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]])
    check_pair(*PAIRS, [gate, rng.standard_normal(gate.shape)], torch.float32, ["dgate", "dup"])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_of_the_gradient(layout, rng):
    check_pair(*PAIRS, list(rng.standard_normal((2, 4, 6, 32))), torch.float32, ["dgate", "dup"], dout=layout)


def test_halves_of_one_buffer_and_the_product_again(rng):
    packed = torch.from_numpy(rng.standard_normal((3, 5, 66))).to(DEVICE, torch.float32)
    gate, up = packed.chunk(2, -1)
    out, cache = swiglu_forward(gate, up)
    assert torch.equal(out, swiglu_forward(gate.contiguous(), up.contiguous())[0])
    dout = torch.ones((), device=DEVICE).expand(3, 5, 33)        # stride 0
    product, grads = torch.empty_like(out), torch.empty_like(packed)
    dgate, dup = swiglu_backward(dout, cache, out=grads, product=product)
    assert torch.equal(product, out)
    assert torch.equal(torch.cat([dgate, dup], -1), grads)
    for one, other in zip((dgate, dup), swiglu_backward(dout.contiguous(), (gate.contiguous(), up.contiguous()))):
        assert torch.equal(one, other)


def test_registered_and_compiles_in_one_graph():
    gate, up = (torch.randn(3, 8, device=DEVICE, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.minillama.swiglu.default, (gate, up))
    results = [torch.autograd.grad((function(gate, up) ** 2).sum(), (gate, up)) for function in
               (swiglu, torch.compile(swiglu, fullgraph=True, backend="aot_eager"))]
    for eager, compiled in zip(*results):
        assert torch.equal(eager, compiled)


def test_bad_input():
    gate = torch.zeros(2, 4, device=DEVICE)
    for arguments, sentence in (
        ((gate, gate[:1]), r"up must have the shape of gate, \(2, 4\), got \(1, 4\)"),
        ((gate, gate.half()), r"up must have the dtype of gate, float32, got float16"),
        ((gate[:0], gate[:0]), r"gate must hold at least one element, got shape \(0, 4\)"),
        ((gate.long(), gate), "gate must be bfloat16, float16 or float32, got int64"),
    ):
        with pytest.raises(ValueError, match=sentence):
            swiglu_forward(*arguments)
    _, cache = swiglu_forward(gate, gate)
    sentence = r"product must be a contiguous torch.float32 \(2, 4\), got torch.float32 \(1, 4\) with strides \(4, 1\)"
    with pytest.raises(ValueError, match=sentence):
        swiglu_backward(gate, cache, product=gate[:1])
