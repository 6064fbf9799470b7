"""RMSNorm in Triton, alone and fused with the residual addition before it.

    rms(x) = sqrt(mean_i x_i^2 + eps)        out_i = weight_i * x_i / rms(x)

Zhang & Sennrich 2019 (arXiv:1910.07467), Eq. 4. Readable twin: minillama/nn/rmsnorm.py. Lesson: lessons/15_gpu.ipynb.

Programs: forward has one per ROWS rows, and each row is whole in registers, so that x is read once. Backward has G programs that stay
on their multiprocessors: program g computes rows g, g + G, ... and keeps its sum of dweight in registers until the end; a second
kernel adds the G partial sums, always in the same order. No atomics: the same input gives the same bits. Triton does not specialise on
the number of rows, so a new sequence length needs no new compilation.

Memory answers after about 1 us. By Little's law a multiprocessor must then have asked for bandwidth * latency = 3.35 TB/s / 132 * 1 us
= 25 KB ahead of time (H100), whatever D is. Backward has as many programs on it as its registers hold, 8192 elements together, and each
copies its next rows to shared memory while it computes: 32 KB of x and dout in bfloat16.

Roofline, in bytes moved for N rows of D elements of b bytes (arithmetic is negligible):
    forward 2bND;  backward 3bND;  with the addition 4bND each way.

Everything between load and store is float32 and is rounded once. (Meta's code rounds twice: x / rms first, then the product.)
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, check_same, check_shape, launch, multiprocessors, rows

MAX_DIM = 8192  # a row must fit in the registers of a program
ELEMENTS = 8192  # of x that a multiprocessor's registers hold in backward, of all its programs together
PREFETCH = 96 * 1024  # bytes of shared memory that a program may fill ahead of time: some GPUs have no more than 99 KB


@triton.jit(do_not_specialize=["N"])
def rmsnorm_forward_kernel(
    x_ptr, residual_ptr, weight_ptr,          # in:  (N, D) twice, (D,)
    out_ptr, total_ptr, rstd_ptr,             # out: (N, D) twice, (N,)
    N, D, x_stride, residual_stride, eps,     # strides: elements from one row to the next
    RESIDUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < N)[:, None] & (column < D)[None, :]
    # weight first: no load is moved across the barriers of the sum below, so its latency would come after theirs
    weight = tl.load(weight_ptr + column, column < D, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], inside, other=0.0)
    if RESIDUAL:
        residual = tl.load(residual_ptr + row[:, None] * residual_stride + column[None, :], inside, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)  # rounded first: backward will read this value
        tl.store(total_ptr + row[:, None] * D + column[None, :], x, inside)
    x = x.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 1) / D + eps)
    tl.store(rstd_ptr + row, rstd, row < N)
    out = x * rstd[:, None] * weight[None, :]
    tl.store(out_ptr + row[:, None] * D + column[None, :], out.to(out_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["N", "G"])
def rmsnorm_backward_kernel(
    dout_ptr, dtotal_ptr, x_ptr, weight_ptr, rstd_ptr,  # in:  (N, D) three times, (D,), (N,)
    dx_ptr, partial_ptr,                                # out: (N, D), (G, D)
    N, D, dout_stride, dtotal_stride, x_stride, G,
    RESIDUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + column, column < D, other=0.0).to(tl.float32)
    dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in tl.range(0, tl.cdiv(N, ROWS), G, num_stages=STAGES):
        row = (first + program) * ROWS + tl.arange(0, ROWS)
        inside = (row < N)[:, None] & (column < D)[None, :]
        x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], inside, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + row[:, None] * dout_stride + column[None, :], inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row, row < N, other=0.0)
        n = x * rstd[:, None]
        dweight += dout * n
        dn = dout * weight[None, :]
        along = tl.sum(dn * n, 1) / D
        dx = rstd[:, None] * (dn - n * along[:, None])
        if RESIDUAL:
            dx += tl.load(dtotal_ptr + row[:, None] * dtotal_stride + column[None, :], inside, other=0.0).to(tl.float32)
        tl.store(dx_ptr + row[:, None] * D + column[None, :], dx.to(dx_ptr.dtype.element_ty), inside)
    tl.store(partial_ptr + program * D + column, tl.sum(dweight, 0), column < D)


@triton.jit(do_not_specialize=["G"])
def column_sum_kernel(partial_ptr, out_ptr, G, D, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out = partial (G, D) summed over G, a strip of BLOCK columns per program."""
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(0, G, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < G)[:, None] & (column < D)[None, :]
        total += tl.load(partial_ptr + row[:, None].to(tl.int64) * D + column[None, :], inside, other=0.0)
    tl.store(out_ptr + column, tl.sum(total, 0).to(out_ptr.dtype.element_ty), column < D)


def _shape(D):
    """Rows per program, width and warps: 1024 elements per program or one row, 8 to 16 elements per thread."""
    block = triton.next_power_of_2(D)
    return {"ROWS": max(1, 1024 // block), "BLOCK": block, "num_warps": min(16, max(4, block // 512))}


def _forward(op, x, residual, weight, eps):
    """Both forwards. Returns out, total (None without residual), rstd."""
    check(op, x=x, weight=weight, **({} if residual is None else {"residual": residual}))
    D = x.shape[-1]
    check_shape(op, (D,), weight=weight)
    if residual is not None:
        check_same(op, "shape", x=x, residual=residual)
        check_same(op, "dtype", x=x, residual=residual)
    if D > MAX_DIM:
        raise ValueError(f"{op}: x must have at most {MAX_DIM} channels, got {D}")
    flat, weight = rows(x), weight.contiguous()
    added = flat if residual is None else rows(residual)
    N = len(flat)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(out)
    rstd = torch.empty(N, dtype=torch.float32, device=x.device)
    shape = _shape(D)
    launch(rmsnorm_forward_kernel, (triton.cdiv(N, shape["ROWS"]),), flat, added, weight, out, out if total is None else total, rstd,
           N, D, flat.stride(0), added.stride(0), eps, RESIDUAL=residual is not None, **shape)
    return out, total, rstd


def _backward(op, dout, dtotal, cache):
    """Both backwards. Returns dx, dweight."""
    x, weight, rstd = cache
    check_same(op, "shape", x=x, dout=dout)
    flat, dflat = rows(x), rows(dout)
    dadded = dflat if dtotal is None else rows(dtotal)
    N, D = flat.shape
    shape = _shape(D)
    elements = shape["ROWS"] * shape["BLOCK"]
    programs = min(triton.cdiv(N, shape["ROWS"]), max(1, ELEMENTS // elements) * multiprocessors(x))
    iteration = (2 if dtotal is None else 3) * elements * x.element_size()  # bytes of x, dout and perhaps dtotal
    stages = 3 if 2 * iteration <= PREFETCH else 2               # of n stages, n - 1 are in shared memory; with 2, nothing is ahead
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight = torch.empty(D, dtype=weight.dtype, device=x.device)
    partial = torch.empty((programs, D), dtype=torch.float32, device=x.device)
    launch(rmsnorm_backward_kernel, (programs,), dflat, dadded, flat, weight, rstd, dx, partial,
           N, D, dflat.stride(0), dadded.stride(0), flat.stride(0), programs, RESIDUAL=dtotal is not None, STAGES=stages, **shape)
    launch(column_sum_kernel, (triton.cdiv(D, 32),), partial, dweight, programs, D, ROWS=128, BLOCK=32, num_warps=8)
    return dx, dweight


def rmsnorm_forward(x, weight, eps=1e-6):
    """Normalize the last axis of x.

    Args:
        x:      (..., D) float   D <= 8192
        weight: (D,)     float   per-channel gain
        eps:    float            added to the mean square

    Returns:
        out:    (..., D) like x
        cache:  (x, weight, rstd), rstd (N,) float32

    Raises:
        ValueError: dtype, device or shape that the kernel does not cover; the sentence names the argument
    """
    out, _, rstd = _forward("rmsnorm_forward", x, None, weight, eps)
    return out, (x, weight.contiguous(), rstd)


def rmsnorm_backward(dout, cache):
    """Gradients of rmsnorm_forward: dx like x, dweight (D,) like weight. The equation is in the readable twin."""
    return _backward("rmsnorm_backward", dout, None, cache)


def add_rmsnorm_forward(x, residual, weight, eps=1e-6):
    """The residual addition and the norm after it, in one pass over memory.

    Args:
        x, residual: (..., D) float

    Returns:
        out, total:  (..., D) like x: rmsnorm(total), total = x + residual
        cache:       (total, weight, rstd)
    """
    out, total, rstd = _forward("add_rmsnorm_forward", x, residual, weight, eps)
    return (out, total), (total, weight.contiguous(), rstd)


def add_rmsnorm_backward(dout, dtotal, cache):
    """Gradients of add_rmsnorm_forward. Only the sum of x and residual is used, so they share one gradient:

        dx = dresidual = dtotal + (gradient of rmsnorm at total)

    Returns:
        dx: (..., D), for both;  dweight: (D,)
    """
    return _backward("add_rmsnorm_backward", dout, dtotal, cache)


# Registration with PyTorch: autograd, and torch.compile, which asks the fakes for the shapes of the outputs without running a kernel.

@torch.library.custom_op("minillama::rmsnorm", mutates_args=())
def _rmsnorm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    out, (*_, rstd) = rmsnorm_forward(x, weight, eps)
    return out, rstd


@torch.library.custom_op("minillama::rmsnorm_backward", mutates_args=())
def _rmsnorm_backward(dout: Tensor, x: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return rmsnorm_backward(dout, (x, weight.contiguous(), rstd))


@torch.library.custom_op("minillama::add_rmsnorm", mutates_args=())
def _add_rmsnorm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    (out, total), (*_, rstd) = add_rmsnorm_forward(x, residual, weight, eps)
    return out, total, rstd


@torch.library.custom_op("minillama::add_rmsnorm_backward", mutates_args=())
def _add_rmsnorm_backward(dout: Tensor, dtotal: Tensor, total: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return add_rmsnorm_backward(dout, dtotal, (total, weight.contiguous(), rstd))


def _like(x):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fake_rstd(x):
    return x.new_empty(x.numel() // x.shape[-1], dtype=torch.float32)


_rmsnorm.register_fake(lambda x, weight, eps: (_like(x), _fake_rstd(x)))
_rmsnorm_backward.register_fake(lambda dout, x, weight, rstd: (_like(x), _like(weight)))
_add_rmsnorm.register_fake(lambda x, residual, weight, eps: (_like(x), _like(x), _fake_rstd(x)))
_add_rmsnorm_backward.register_fake(lambda dout, dtotal, total, weight, rstd: (_like(total), _like(weight)))


def _keep(ctx, inputs, output):
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])


def _keep_total(ctx, inputs, output):
    _, total, rstd = output
    ctx.save_for_backward(total, inputs[2], rstd)


def _add_gradients(ctx, dout, dtotal, drstd):
    dx, dweight = _add_rmsnorm_backward(dout, dtotal, *ctx.saved_tensors)
    return dx, dx, dweight, None


_rmsnorm.register_autograd(lambda ctx, dout, drstd: (*_rmsnorm_backward(dout, *ctx.saved_tensors), None), setup_context=_keep)
_add_rmsnorm.register_autograd(_add_gradients, setup_context=_keep_total)


def rmsnorm(x, weight, eps=1e-6):
    """rmsnorm_forward with autograd: (..., D) -> (..., D)."""
    return _rmsnorm(x, weight, eps)[0]


def add_rmsnorm(x, residual, weight, eps=1e-6):
    """add_rmsnorm_forward with autograd: (..., D) twice -> out, total."""
    return _add_rmsnorm(x, residual, weight, eps)[:2]
