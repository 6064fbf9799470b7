"""Causal attention in Triton, and PyTorch's own behind the same interface."""
from itertools import pairwise

import numpy as np
import pytest
import torch
from kernel_check import DEVICE, DTYPES, check_pair, close, rounded, tensors

from kernels import attention as module
from kernels import launch, reference
from kernels.attention import MAX_GRID, MAX_HEAD_DIM, TILES, attention, attention_backward, attention_forward
from kernels.sdpa import PINNED, sdpa_backward, sdpa_forward
from minillama.config import ATTENTIONS
from minillama.nn import attention_backward as numpy_backward
from minillama.nn import attention_forward as numpy_forward
from minillama.nn.flash import flash_attention_backward, flash_attention_forward

KERNEL, NUMPY, NAMES = (attention_forward, attention_backward), (numpy_forward, numpy_backward), ["dq", "dk", "dv"]
# every edge of the tiles' 16 to 128 positions, padded and whole head_dims, one head and one sequence
SHAPES = [(1, 1, 1, 2), (1, 63, 1, 64), (3, 64, 1, 48), (1, 65, 2, 32), (1, 127, 1, 128), (1, 128, 1, 16), (1, 192, 1, 6), (2, 261, 1, 14),
          (1, 384, 1, 16)]


def arrays(shape, seed=0):
    """q, k, v with scores of O(1)."""
    return list(np.random.default_rng(seed).standard_normal((3, *shape)))


def packed(q, k, v):
    """The same values as parts of one (B, T, 3H, Dh) array, as a merged projection gives them."""
    return torch.cat((q, k, v), 2).split(q.shape[2], 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(shape, dtype):
    check_pair(KERNEL, NUMPY, reference.attention_forward, arrays(shape), dtype, NAMES)


@pytest.mark.parametrize("target", TILES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 200, 1, 48), (1, 256, 1, 66)])
def test_tiles_of_every_architecture(shape, dtype, target, monkeypatch):
    """The table's shapes compute the same, whichever GPU they are meant for. Judged against flash's equations this time."""
    if DEVICE.type == "cuda" and target != module.architecture(torch.empty(0, device=DEVICE)):
        pytest.skip("tiles of another GPU")
    monkeypatch.setattr(launch, "_planned", target)
    check_pair(KERNEL, (flash_attention_forward, flash_attention_backward), reference.attention_forward, arrays(shape), dtype, NAMES)


def test_table_of_tiles():
    """A program's rows are whole tiles of the other side, so that the diagonal is; every dtype and head_dim has its entry."""
    for table in TILES.values():
        for (kernel, _), sizes in table.items():
            assert set(sizes) == {16, 32, 64, 128}
            for queries, keys, warps, _ in sizes.values():
                assert (keys % queries if kernel == "dkdv" else queries % keys) == 0 and warps <= 16
        assert set(table) == {(kernel, size) for kernel in ("forward", "dq", "dkdv") for size in (2, 4)}
    for (target, kernel, size, dim), masked in module.MASKED.items():
        own = kernel == "dkdv"                                   # which of the two sizes a program's rows are: the grid is made of them
        assert TILES[target][kernel, size][dim][own] == masked[own] and masked[own] % masked[not own] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [20, 60])
def test_large_scores(factor, dtype):
    """Scores of several hundred and of several thousand: the maximum is subtracted before anything is exponentiated."""
    q, k, v = arrays((1, 150, 2, 32))
    check_pair(KERNEL, NUMPY, reference.attention_forward, [q * factor, k * factor, v], dtype, NAMES)


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_one_sign(sign):
    """Every score is about +600, or -600: no row's sum may vanish or overflow, and rows beyond T must not turn either into NaN."""
    q, k, v = arrays((1, 77, 1, 32))
    q[..., 0] += sign * 58                                       # 58 * 58 / sqrt(32) = 595
    k[..., 0] += 58
    check_pair(KERNEL, NUMPY, reference.attention_forward, [q, k, v], torch.float32, NAMES)


def test_log_sum_exp():
    q, k, v = arrays((2, 70, 3, 10))
    _, (*_, lse) = attention_forward(*tensors([q, k, v], torch.float32))
    scores = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(10) + np.triu(np.full((70, 70), -np.inf), 1)
    truth = np.log2(np.exp(scores).sum(-1))
    assert lse.dtype == torch.float32 and lse.shape == (2, 3, 70)
    assert np.abs(lse.cpu().numpy() - truth).max() < 4e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_future_changes_nothing_before_it(dtype):
    """Exactly: out, and the gradients of positions from which no gradient comes."""
    q, k, v = tensors(arrays((1, 200, 1, 16)), dtype)
    changed = [x.clone() for x in (q, k, v)]
    for x in changed:
        x[:, 130:] = torch.randn_like(x[:, 130:])
    (out, cache), (other, other_cache) = attention_forward(q, k, v), attention_forward(*changed)
    assert torch.equal(out[:, :130], other[:, :130]) and not torch.equal(out[:, 130:], other[:, 130:])
    dout = torch.randn_like(out)
    dout[:, 130:] = 0
    for grad, other_grad in zip(attention_backward(dout, cache), attention_backward(dout, other_cache)):
        assert torch.equal(grad[:, :130], other_grad[:, :130])
        assert not grad[:, 130:].any() and not other_grad[:, 130:].any()


def test_first_position_returns_its_value():
    q, k, v = tensors(arrays((2, 40, 3, 8)), torch.float32)
    assert torch.equal(attention_forward(q, k, v)[0][:, 0], v[:, 0])


@pytest.mark.parametrize("layout", [
    lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    lambda x: x.repeat_interleave(2, -1)[..., ::2],
    lambda x: torch.cat([x, x], 2)[:, :, x.shape[2]:],
    lambda x: x.flip(-1).flip(-1).transpose(2, 3).contiguous().transpose(2, 3),
], ids=["heads first", "time first", "every second channel", "half of the heads", "channels apart"])
def test_any_layout(layout):
    """Of the inputs and of the gradient: the same bits as contiguous ones."""
    q, k, v, dout = tensors([*arrays((2, 37, 2, 8)), np.random.default_rng(3).standard_normal((2, 37, 2, 8))], torch.float32)
    out, cache = attention_forward(q, k, v)
    strided, strided_cache = attention_forward(layout(q), layout(k), layout(v))
    assert torch.equal(out, strided) and strided.is_contiguous()
    for grad, other in zip(attention_backward(dout, cache), attention_backward(layout(dout), strided_cache), strict=True):
        assert torch.equal(grad, other)


def test_inputs_are_not_copied():
    """Parts of one array are read where they are; channels that lie apart are copied."""
    q, k, v = packed(*tensors(arrays((2, 33, 2, 16)), torch.float32))
    _, cache = attention_forward(q, k, v)
    assert all(kept is given for kept, given in zip(cache, (q, k, v)))
    apart = q.transpose(2, 3).contiguous().transpose(2, 3)
    _, cache = attention_forward(apart, k, v)
    assert cache[0].is_contiguous() and torch.equal(cache[0], q)


def test_a_gradient_or_a_value_with_stride_0():
    q, k, v = tensors(arrays((2, 37, 3, 8)), torch.float32)
    shared = v[:, :, :1].expand(v.shape)                         # stride 0 along the heads: read as it is
    for value in (v, shared):
        _, cache = attention_forward(q, k, value)
        one = torch.ones((), device=DEVICE)
        for spread, full in zip(attention_backward(one.expand(q.shape), cache), attention_backward(torch.ones_like(q), cache)):
            assert torch.equal(spread, full)
    for grad, other in zip(attention_backward(q, cache), attention_backward(q, attention_forward(q, k, shared.contiguous())[1])):
        assert torch.equal(grad, other)


@pytest.mark.parametrize("backend", ["triton", "flash"])
def test_buffers_of_the_caller(backend):
    """Gradients written into the parts of one array, and nothing beside them."""
    dtype = torch.float16 if DEVICE.type == "cuda" else torch.float32  # on CUDA, flash takes no float32
    q, k, v = tensors(arrays((2, 70, 3, 8)), dtype)
    out, cache = sdpa_forward(q, k, v, backend)
    expected = sdpa_backward(q, cache)
    buffer = torch.full((2, 71, 10, 8), 7.0, dtype=dtype, device=DEVICE)
    parts = buffer[:, :70, :9].split(3, 2)
    for returned, part, grad in zip(sdpa_backward(q, cache, out=parts), parts, expected, strict=True):
        assert returned.data_ptr() == part.data_ptr() and torch.equal(part, grad)
    assert (buffer[:, 70:] == 7).all() and (buffer[:, :, 9:] == 7).all()


def test_output_of_the_caller():
    q, k, v = tensors(arrays((2, 70, 3, 8)), torch.float32)
    out, _ = attention_forward(q, k, v)
    buffer = torch.full((2, 70, 4, 8), 7.0, device=DEVICE)
    returned, cache = attention_forward(q, k, v, out=buffer[:, :, :3])
    assert returned.data_ptr() == buffer.data_ptr() and torch.equal(returned, out) and (buffer[:, :, 3:] == 7).all()
    for grad, other in zip(attention_backward(out, cache), attention_backward(out, attention_forward(q, k, v)[1])):
        assert torch.equal(grad, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd(dtype):
    """The differentiable function on parts of one array, against PyTorch."""
    given = arrays((2, 45, 2, 12))
    truth, cache = numpy_forward(*rounded(given, dtype))
    dout = np.random.default_rng(5).standard_normal(truth.shape)
    (tensor,), (dout,) = tensors([dout], dtype), rounded([dout], dtype)
    results = []
    for function in (attention, reference.attention_forward):
        leaves = [x.requires_grad_() for x in tensors(given, dtype)]
        out = function(*packed(*leaves))
        results.append((out, *torch.autograd.grad(out, leaves, tensor)))
    for name, kernel, plain, true in zip(["out", *NAMES], *results, (truth, *numpy_backward(dout, cache)), strict=True):
        close(name, kernel, plain, true, dtype)


def test_registered():
    """opcheck: schema, fake tensors, autograd and tracing agree with what the op does."""
    q, k, v = (x.requires_grad_() for x in tensors(arrays((1, 5, 2, 4)), torch.float32))
    torch.library.opcheck(torch.ops.minillama.attention.default, (q, k, v))
    apart = q.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    torch.library.opcheck(torch.ops.minillama.attention.default, (apart, k, v))


def test_compiles_in_one_graph():
    leaves = [x.requires_grad_() for x in tensors(arrays((1, 9, 2, 4)), torch.float32)]

    def loss(q, k, v):
        return (attention(q, k, v) * v).sum()

    eager, compiled = (torch.autograd.grad(function(*leaves), leaves) for function in
                       (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")))
    for plain, other in zip(eager, compiled):
        assert torch.allclose(plain, other, atol=1e-6)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the interpreter compiles nothing")
def test_one_compilation_for_many_lengths():
    """T is no reason to compile again, but for whether it is a multiple of the tile, and for the class of its strides."""
    sizes = []
    for T in (1, 7, 16, 1000, 2047, 2048, 300, 501):
        _, cache = attention_forward(*tensors(arrays((1, T, 2, 64)), torch.float16))
        attention_backward(cache[3], cache)
        sizes.append(len(module.attention_forward_kernel.device_caches[torch.cuda.current_device()][0]))
    assert sizes[-1] == sizes[-3] and all(after - before <= 1 for before, after in pairwise(sizes))


def test_pytorchs_attention():
    """A back end of PyTorch's: the same numbers as the kernel's to rounding, through the same interface."""
    backend = "cudnn" if DEVICE.type == "cuda" else "flash"
    dtype = torch.float16 if DEVICE.type == "cuda" else torch.float32
    check_pair((lambda *qkv: sdpa_forward(*qkv, backend), sdpa_backward), NUMPY, reference.attention_forward,
               arrays((2, 70, 3, 16)), dtype, NAMES)
    q, k, v = packed(*tensors(arrays((2, 70, 3, 16)), dtype))
    out, cache = sdpa_forward(q, k, v, backend)
    assert out.is_contiguous() and not out.requires_grad and not any(x.requires_grad for x in (q, k, v))
    spread = torch.ones((), device=DEVICE, dtype=dtype).expand(out.shape)
    for grad, other in zip(sdpa_backward(spread, cache), sdpa_backward(torch.ones_like(out), cache)):
        assert torch.equal(grad, other)
    with torch.inference_mode():
        again, (_, kept) = sdpa_forward(*(x.clone() for x in (q, k, v)), backend)
        assert torch.equal(again, out) and kept is None


def test_kernels_behind_the_same_interface():
    q, k, v = tensors(arrays((1, 20, 2, 8)), torch.float32)
    (out, cache), (expected, expected_cache) = sdpa_forward(q, k, v, ATTENTIONS[0]), attention_forward(q, k, v)
    assert torch.equal(out, expected)
    for grad, other in zip(sdpa_backward(q, cache), attention_backward(q, expected_cache), strict=True):
        assert torch.equal(grad, other)


ZEROS = torch.zeros(1, 4, 2, 8)


@pytest.mark.parametrize("q, k, v, sentence", [
    (ZEROS.double(), ZEROS, ZEROS, "q must be bfloat16, float16 or float32, got float64"),
    (ZEROS, ZEROS, ZEROS.half(), r"v must have the dtype of q, float32, got float16"),
    (ZEROS[:, 2:], ZEROS, ZEROS, r"k must have the shape of q, \(1, 2, 2, 8\), got \(1, 4, 2, 8\)"),
    (ZEROS, ZEROS, ZEROS[..., :6], r"v must have the shape of q, \(1, 4, 2, 8\), got \(1, 4, 2, 6\)"),
    (ZEROS[:, :0], ZEROS[:, :0], ZEROS[:, :0], r"q must hold at least one element, got shape \(1, 0, 2, 8\)"),
    (ZEROS, ZEROS.to("meta"), ZEROS, r"k must be on the device of q, .*, got meta"),
    (*[torch.zeros(1, 4, 8)] * 3, r"q must be \(B, T, H, Dh\) with Dh even and at most 128, got shape \(1, 4, 8\)"),
    (*[torch.zeros(1, 4, 2, 7)] * 3, r"q must be \(B, T, H, Dh\) with Dh even and at most 128, got shape \(1, 4, 2, 7\)"),
    (*[torch.zeros(1, 4, 2, MAX_HEAD_DIM + 2)] * 3, r"q must be \(B, T, H, Dh\) with Dh even and at most 128, got shape \(1, 4, 2, 130\)"),
    (*[torch.zeros(MAX_GRID + 1, 1, 1, 2)] * 3,
     rf"q must have at most {MAX_GRID} sequences and heads, got shape \({MAX_GRID + 1}, 1, 1, 2\)"),
])
def test_bad_input(q, k, v, sentence):
    on_device = (x if x.device.type == "meta" else x.to(DEVICE) for x in (q, k, v))
    with pytest.raises(ValueError, match="attention_forward: .*" + sentence):
        attention_forward(*on_device)


def test_bad_buffers_and_gradients():
    q = ZEROS.to(DEVICE)
    with pytest.raises(ValueError, match=r"attention_forward: out must have the shape of q, \(1, 4, 2, 8\), got \(1, 2, 2, 8\)"):
        attention_forward(q, q, q, out=q[:, 2:])
    sentence = r"attention_forward: out must have contiguous channels \(stride 1\), got strides \(64, 16, 1, 2\)"
    with pytest.raises(ValueError, match=sentence):
        attention_forward(q, q, q, out=torch.zeros(1, 4, 8, 2, device=DEVICE).transpose(2, 3))
    _, cache = attention_forward(q, q, q)
    with pytest.raises(ValueError, match=r"attention_backward: dk must have the dtype of q, float32, got float16"):
        attention_backward(q, cache, out=(q.clone(), q.half(), q.clone()))
    with pytest.raises(ValueError, match=r"attention_backward: dout must have the shape of q, \(1, 4, 2, 8\), got \(1, 4, 1, 8\)"):
        attention_backward(q[:, :, :1], cache)
    with pytest.raises(ValueError, match=r"attention_backward: dout must have the dtype of q, float32, got float16"):
        attention_backward(q.half(), cache)


def test_every_back_end_has_its_name():
    assert ("triton", *PINNED) == ATTENTIONS


def test_bad_back_end():
    with pytest.raises(ValueError, match="sdpa_forward: backend must be one of triton, cudnn, flash, got 'cutlass'"):
        sdpa_forward(ZEROS, ZEROS, ZEROS, "cutlass")
    with pytest.raises(ValueError, match="sdpa_forward: q must be on a CUDA device for the back end cudnn, got cpu"):
        sdpa_forward(ZEROS, ZEROS, ZEROS, "cudnn")
