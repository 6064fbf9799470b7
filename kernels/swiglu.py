"""SwiGLU in Triton: the feed-forward's gate, elementwise.

    out = silu(gate) * up        silu(z) = z * sigmoid(z)

Shazeer 2020 (arXiv:2002.05202), Eq. 6. Readable twin: minillama/nn/swiglu.py. Lesson: lessons/15_gpu.ipynb.

Programs: one per row and BLOCK channels; tiles, because padding a whole row of 11008 channels to a power of two would leave a
third of the lanes idle. Backward recomputes the sigmoid and writes both gradients into the halves of one buffer, so that the next
step of backward, through w1 and w3, is one matrix product. It also writes silu(gate) * up again if it gets a buffer for that.

Roofline, in bytes for N rows of F elements of b bytes: forward 3bNF;  backward 5bNF, 6bNF with the product.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, check_same, launch, rows


@triton.jit
def swiglu_forward_kernel(
    gate_ptr, up_ptr, out_ptr,                # (N, F) each
    F, gate_stride, up_stride, out_stride,    # strides: elements from one row to the next
    BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(F, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    row, column = program // tiles, (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + row * gate_stride + column, column < F, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, column < F, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + row * out_stride + column, out.to(out_ptr.dtype.element_ty), column < F)


@triton.jit
def swiglu_backward_kernel(
    dout_ptr, gate_ptr, up_ptr,               # in:  (N, F) each
    dgate_ptr, dup_ptr, product_ptr,          # out: (N, F) each
    F, dout_stride, gate_stride, up_stride, grad_stride,
    PRODUCT: tl.constexpr, BLOCK: tl.constexpr,
):
    tiles = tl.cdiv(F, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    row, column = program // tiles, (program % tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    dout = tl.load(dout_ptr + row * dout_stride + column, inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + column, inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + row * up_stride + column, inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    dgate = dout * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(dgate_ptr + row * grad_stride + column, dgate.to(dgate_ptr.dtype.element_ty), inside)
    tl.store(dup_ptr + row * grad_stride + column, (dout * silu).to(dup_ptr.dtype.element_ty), inside)
    if PRODUCT:
        tl.store(product_ptr + row * F + column, (silu * up).to(product_ptr.dtype.element_ty), inside)


def _grid(N, F):
    """A program for every row and tile; the width and warps of a tile: 8 elements per thread, loaded as 16 bytes of bfloat16."""
    block = min(1024, triton.next_power_of_2(F))
    return (N * triton.cdiv(F, block),), {"BLOCK": block, "num_warps": max(1, block // 256)}


def swiglu_forward(gate, up):
    """Multiply `up` by silu(gate).

    Args:
        gate, up: (..., F) float    may be the two halves of one (..., 2F) array

    Returns:
        out:      (..., F) like gate
        cache:    (gate, up)

    Raises:
        ValueError: dtype, device or shape that the kernel does not cover; the sentence names the argument
    """
    check("swiglu_forward", gate=gate, up=up)
    check_same("swiglu_forward", "shape", gate=gate, up=up)
    check_same("swiglu_forward", "dtype", gate=gate, up=up)
    g, u = rows(gate), rows(up)
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    grid, shape = _grid(*g.shape)
    F = g.shape[1]
    launch(swiglu_forward_kernel, grid, g, u, out, F, g.stride(0), u.stride(0), F, **shape)
    return out, (gate, up)


def swiglu_backward(dout, cache, out=None, product=None):
    """Gradients of swiglu_forward, with s = sigmoid(gate) recomputed:

        dgate = dout * up * (s + gate s (1 - s))        dup = dout * gate s

    Args:
        out:     (..., 2F) contiguous, optional    buffer for both gradients
        product: (..., F) contiguous, optional     buffer that receives silu(gate) * up again, for a caller that did not keep it

    Returns:
        dgate, dup: (..., F) each, the two halves of one (..., 2F) array
    """
    gate, up = cache
    check("swiglu_backward", dout=dout)
    check_same("swiglu_backward", "shape", gate=gate, dout=dout)
    packed = (*gate.shape[:-1], 2 * gate.shape[-1])
    for name, buffer, shape in (("out", out, packed), ("product", product, gate.shape)):
        if buffer is not None and (buffer.shape != shape or buffer.dtype != gate.dtype or not buffer.is_contiguous()):
            found = f"{buffer.dtype} {tuple(buffer.shape)} with strides {buffer.stride()}"
            raise ValueError(f"swiglu_backward: {name} must be a contiguous {gate.dtype} {tuple(shape)}, got {found}")
    d, g, u = rows(dout), rows(gate), rows(up)
    N, F = g.shape
    out = torch.empty(packed, dtype=gate.dtype, device=gate.device) if out is None else out
    dgate, dup = out.chunk(2, -1)
    grid, shape = _grid(N, F)
    launch(swiglu_backward_kernel, grid, d, g, u, dgate, dup, dgate if product is None else product,
           F, d.stride(0), g.stride(0), u.stride(0), 2 * F, PRODUCT=product is not None, **shape)
    return dgate, dup


@torch.library.custom_op("minillama::swiglu", mutates_args=())
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return swiglu_forward(gate, up)[0]


@torch.library.custom_op("minillama::swiglu_backward", mutates_args=())
def _swiglu_backward(dout: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    out = gate.new_empty((*gate.shape[:-1], 2 * gate.shape[-1]))  # the outputs of an op may not share memory: both halves as one
    swiglu_backward(dout, (gate, up), out=out)
    return out


@_swiglu.register_fake
def _(gate, up):
    return torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)


@_swiglu_backward.register_fake
def _(dout, gate, up):
    return torch.empty((*gate.shape[:-1], 2 * gate.shape[-1]), dtype=gate.dtype, device=gate.device)


_swiglu.register_autograd(lambda ctx, dout: _swiglu_backward(dout, *ctx.saved_tensors).chunk(2, -1),
                          setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


def swiglu(gate, up):
    """swiglu_forward with autograd: (..., F) twice -> (..., F)."""
    return _swiglu(gate, up)
