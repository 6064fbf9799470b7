"""RoPE in Triton."""
import numpy as np
import pytest
import torch
from kernel_check import DEVICE, DTYPES, check_pair, tensors

from kernels import reference
from kernels.rope import rope, rope_backward, rope_forward
from minillama.nn import rope_backward as numpy_backward
from minillama.nn import rope_forward as numpy_forward
from minillama.nn import rope_tables

SHAPES = [(1, 1, 1, 2), (2, 3, 1, 64), (1, 65, 3, 10), (2, 5, 7, 128), (1, 2, 37, 6)]


def check(x, layout=None, dtype=torch.float32):
    """The tables are float32 whatever x is, and no gradient is asked for them."""
    cos, sin = rope_tables(x.shape[1], x.shape[-1])
    tables = [torch.from_numpy(table).to(DEVICE) for table in (cos, sin)]
    check_pair((lambda x: rope_forward(x, *tables), rope_backward),
               (lambda x: numpy_forward(x, cos.astype(float), sin.astype(float)), numpy_backward),
               lambda x: reference.rope_forward(x.float(), *tables).to(x.dtype), [x], dtype, ["dx"], dout=layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rope(shape, dtype, rng):
    check(rng.standard_normal(shape), dtype=dtype)


@pytest.mark.parametrize("layout", [
    lambda dout: dout.transpose(1, 2).contiguous().transpose(1, 2),
    lambda dout: dout.repeat_interleave(2, -1)[..., ::2],
    lambda dout: torch.cat([dout, dout], 2)[:, :, dout.shape[2]:],
], ids=["heads first", "every second channel", "half of the heads"])
def test_any_layout(layout, rng):
    check(rng.standard_normal((2, 5, 3, 8)), layout)


def test_query_and_key_in_one_launch_and_in_place():
    """The packed buffer's first 2H heads are rotated where they are; the values behind them stay."""
    packed = torch.randn(2, 5, 9, 8, device=DEVICE)
    cos, sin = (torch.from_numpy(table).to(DEVICE) for table in rope_tables(5, 8))
    before, both = packed.clone(), packed[:, :, :6]
    rope_forward(both, cos, sin, out=both)
    assert torch.equal(packed[:, :, 6:], before[:, :, 6:])
    for part in (slice(0, 3), slice(3, 6)):
        assert torch.equal(packed[:, :, part], rope_forward(before[:, :, part], cos, sin)[0])


def test_stride_0_gradient():
    cos, sin = (torch.from_numpy(table).to(DEVICE) for table in rope_tables(4, 6))
    one = torch.ones((), device=DEVICE).expand(2, 4, 3, 6)
    assert torch.equal(rope_backward(one, (cos, sin)), rope_backward(one.contiguous(), (cos, sin)))


def test_registered_and_compiles_in_one_graph():
    cos, sin = (torch.from_numpy(table).to(DEVICE) for table in rope_tables(4, 6))
    x = torch.randn(2, 4, 3, 6, device=DEVICE, requires_grad=True)
    torch.library.opcheck(torch.ops.minillama.rope.default, (x, cos, sin, False))
    results = [torch.autograd.grad((function(x, cos, sin) ** 2 * x).sum(), x)[0] for function in
               (rope, torch.compile(rope, fullgraph=True, backend="aot_eager"))]
    assert torch.equal(*results)


def test_bad_input():
    x, cos, sin = tensors([np.zeros((2, 4, 3, 6)), *rope_tables(4, 6)], torch.float32)
    for arguments, sentence in (
        ((x[0], cos, sin), r"x must be \(B, T, H, Dh\) with Dh even and at most \d+, got shape \(4, 3, 6\)"),
        ((x[..., :5], cos, sin), r"x must be \(B, T, H, Dh\) with Dh even and at most \d+, got shape \(2, 4, 3, 5\)"),
        ((x[:, :3], cos, sin), r"cos must have shape \(3, 3\), got \(4, 3\)"),
        ((x[:, :0], cos, sin), r"x must hold at least one element, got shape \(2, 0, 3, 6\)"),
        ((x.double(), cos, sin), "x must be bfloat16, float16 or float32, got float64"),
        ((x, cos, sin, x[:1]), r"out must have the shape of x, \(2, 4, 3, 6\), got \(1, 4, 3, 6\)"),
        ((x, cos, sin, x.transpose(1, 3).contiguous().transpose(1, 3)), r"out must have contiguous channels \(stride 1\), got strides"),
    ):
        with pytest.raises(ValueError, match=sentence):
            rope_forward(*arguments)
