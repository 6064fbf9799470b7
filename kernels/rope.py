"""RoPE in Triton: rotate each pair of channels by an angle proportional to the position.

    [out_2j  ]   [cos -sin] [x_2j  ]
    [out_2j+1] = [sin  cos] [x_2j+1]        of angle(t, j) = t * theta^(-2j / Dh), radians

Su et al. 2021 (arXiv:2104.09864), Eq. 34, on adjacent pairs, as in LLaMA-1. Readable twin: minillama/nn/rope.py.
Lesson: lessons/15_gpu.ipynb.

Programs: one per token and HEADS heads. The two channels of a pair are next to each other, so a head is loaded as one contiguous array
and split in registers; two loads with stride 2 would use half of every memory transaction. Backward is the same kernel with -sin: the
transpose of a rotation is the rotation by minus the angle. Queries and keys need one launch if they are the first 2H heads of one buffer.

Roofline: 2b bytes per element of b bytes, each way. The tables, T * Dh/2 * 8 bytes, stay in the L2 cache.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, check_same, check_shape, launch

MAX_HEAD_DIM = 1024


@triton.jit(do_not_specialize=["T", "H"])
def rope_kernel(
    x_ptr, cos_ptr, sin_ptr, out_ptr,         # (B, T, H, Dh), (T, Dh/2) twice, (B, T, H, Dh)
    T, H, Dh,
    x_batch, x_time, x_head,                  # strides, in elements; channels are contiguous
    out_batch, out_time, out_head,
    BACKWARD: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    batch, time = token // T, token % T
    head = tl.program_id(1).to(tl.int64) * HEADS + tl.arange(0, HEADS)
    channel = tl.arange(0, BLOCK)
    inside = (head < H)[:, None] & (channel < Dh)[None, :]
    x = tl.load(x_ptr + batch * x_batch + time * x_time + head[:, None] * x_head + channel[None, :], inside, other=0.0)
    a, b = tl.split(tl.reshape(x.to(tl.float32), (HEADS, BLOCK // 2, 2)))  # (HEADS, BLOCK/2) each

    half = Dh // 2
    pair = tl.arange(0, BLOCK // 2)
    cos = tl.load(cos_ptr + time * half + pair, pair < half, other=0.0).to(tl.float32)[None, :]
    sin = tl.load(sin_ptr + time * half + pair, pair < half, other=0.0).to(tl.float32)[None, :]
    if BACKWARD:
        sin = -sin
    out = tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (HEADS, BLOCK))
    out_ptr += batch * out_batch + time * out_time
    tl.store(out_ptr + head[:, None] * out_head + channel[None, :], out.to(out_ptr.dtype.element_ty), inside)


def _rotate(op, x, cos, sin, out, backward):
    check(op, x=x, cos=cos, sin=sin)
    if x.ndim != 4 or x.shape[-1] % 2 or x.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(f"{op}: x must be (B, T, H, Dh) with Dh even and at most {MAX_HEAD_DIM}, got shape {tuple(x.shape)}")
    B, T, H, Dh = x.shape
    check_shape(op, (T, Dh // 2), cos=cos, sin=sin)
    x = x if x.stride(-1) == 1 else x.contiguous()
    if out is None:
        out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    else:
        check_same(op, "shape", x=x, out=out)
        check_same(op, "dtype", x=x, out=out)
        if out.stride(-1) != 1:
            raise ValueError(f"{op}: out must have contiguous channels (stride 1), got strides {out.stride()}")
    block = max(2, triton.next_power_of_2(Dh))
    heads = min(triton.next_power_of_2(H), max(1, 2048 // block))
    launch(rope_kernel, (B * T, triton.cdiv(H, heads)), x, cos.contiguous(), sin.contiguous(), out, T, H, Dh,
           *x.stride()[:3], *out.stride()[:3], BACKWARD=backward, HEADS=heads, BLOCK=block, num_warps=4)
    return out


def rope_forward(x, cos, sin, out=None):
    """Rotate the pairs (x0, x1), (x2, x3), ... of every head.

    Args:
        x:        (B, T, H, Dh) float   queries or keys, or both next to each other; any strides
        cos, sin: (T, Dh/2) float       rows of rope_tables, preferably in float32
        out:      (B, T, H, Dh) float   optional buffer for the result, which may be x itself

    Returns:
        out:      (B, T, H, Dh) like x
        cache:    (cos, sin)

    Raises:
        ValueError: dtype, device or shape that the kernel does not cover; the sentence names the argument
    """
    return _rotate("rope_forward", x, cos, sin, out, False), (cos, sin)


def rope_backward(dout, cache, out=None):
    """Gradient of rope_forward: dout (B, T, H, Dh) rotated by minus the angle."""
    return _rotate("rope_backward", dout, *cache, out, True)


@torch.library.custom_op("minillama::rope", mutates_args=())
def _rope(x: Tensor, cos: Tensor, sin: Tensor, backward: bool) -> Tensor:
    return _rotate("rope", x, cos, sin, None, backward)


@_rope.register_fake
def _(x, cos, sin, backward):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _keep(ctx, inputs, output):
    _, cos, sin, ctx.backward = inputs
    ctx.save_for_backward(cos, sin)


_rope.register_autograd(lambda ctx, dout: (_rope(dout, *ctx.saved_tensors, not ctx.backward), None, None, None), setup_context=_keep)


def rope(x, cos, sin):
    """rope_forward with autograd: (B, T, H, Dh) -> (B, T, H, Dh)."""
    return _rope(x, cos, sin, False)
