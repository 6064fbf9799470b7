"""The output head and its cross-entropy as one op, so that the logits of all tokens are never in memory at the same time.

    loss = mean over the scored tokens of cross_entropy(x_t @ weight.T, target_t)

Readable twins: minillama/nn/linear.py, then minillama/nn/cross_entropy.py. Lesson: lessons/15_gpu.ipynb.

Tokens are processed in chunks. The logits of a chunk are written into one buffer that all chunks share, `cross_entropy_` replaces them
there by their gradient, and from this gradient follow, before the next chunk overwrites it,

    dx_chunk = dlogits @ weight        dweight += dlogits.T @ x_chunk

so every gradient is known before backward is called; backward only multiplies by dout. dweight is summed over the chunks in float32
and rounded once: in half precision a hundred roundings would lose what the later chunks add. The dlogits of a chunk have x's dtype and
already include the factor 1 / scored. In float16, values below 6e-8 are lost there, and a dout above 1 (a loss scale) cannot save them,
because backward multiplies by it later.

Roofline: 6NDV floating-point operations (three matrix products, by cuBLAS; computing the logits again in backward would make it 8NDV) and
2bNV bytes for `cross_entropy_`. Memory: one chunk of logits, dx, dweight in float32.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from .cross_entropy import cross_entropy_, inverse_count, mean_nats, token_nats
from .launch import check, check_ids, check_same, check_shape, launch, rows

LOGITS_BYTES = 512 * 2**20  # most memory for a chunk's logits, if `chunk` is not given: 8192 tokens of 32000 bfloat16 logits


@triton.jit
def product_kernel(dout_ptr, x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    """out = dout * x, n numbers, in float32 and rounded once (PyTorch would round dout to x's dtype first)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, at < n, other=0.0).to(tl.float32)
    out = x * tl.load(dout_ptr).to(tl.float32)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), at < n)


def _product(dout, x, dtype):
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    launch(product_kernel, (triton.cdiv(x.numel(), 4096),), dout, x, out, x.numel(), BLOCK=4096, num_warps=8)
    return out


def _chunk(N, V, itemsize):
    """Tokens per chunk: as few chunks as LOGITS_BYTES allows, all of about the same size."""
    most = max(1, LOGITS_BYTES // (V * itemsize))
    if most >= 128:
        most -= most % 128                                       # whole tiles for the matrix products
    chunk = triton.cdiv(N, triton.cdiv(N, most))
    return min(most, triton.cdiv(chunk, 128) * 128)


def add_outer(total, dlogits, x, first):
    """total (V, D) float32 = or += dlogits.T @ x, multiplied in their dtype and summed in float32."""
    if x.device.type != "cuda" and x.dtype != torch.float32:
        dlogits, x = dlogits.float(), x.float()                  # out_dtype= exists on GPUs only
    options = {} if x.dtype == torch.float32 else {"out_dtype": torch.float32}
    if first:
        torch.mm(dlogits.t(), x, out=total, **options)           # there is no sum yet: no zeros to write and read
    else:
        torch.addmm(total, dlogits.t(), x, out=total, **options)


@torch.no_grad()
def linear_cross_entropy_forward(x, weight, targets, chunk=None, gradients=True):
    """Mean loss over the scored tokens.

    Args:
        x:         (B, T, D) or (N, D) float
        weight:    (V, D) like x
        targets:   (B, T) or (N,) int64 or int32    ids in [0, V), or IGNORE (-1) where nothing is scored
        chunk:     int     tokens whose logits are in memory at the same time; None: as many as fit in LOGITS_BYTES
        gradients: bool    False skips their two matrix products, for a caller that needs only the loss

    Returns:
        loss:      () float32, nats/token; 0 if no token is scored; NaN if a target is neither an id nor IGNORE
        cache:     (dx, dweight, dtype of weight): the gradients for dout = 1, dweight in float32; None without gradients

    Raises:
        ValueError: dtype, device, shape or chunk that the op does not cover; the sentence names the argument
    """
    op = "linear_cross_entropy_forward"
    check(op, x=x, weight=weight)
    check_same(op, "dtype", x=x, weight=weight)
    if weight.ndim != 2:
        raise ValueError(f"{op}: weight must have two axes (vocabulary and channels), got shape {tuple(weight.shape)}")
    V, D = weight.shape
    check_shape(op, (*x.shape[:-1], D), x=x)
    check_ids(op, x.shape[:-1], x.device, targets=targets)
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"{op}: chunk must be None or an integer of at least 1, got {chunk!r}")
    flat, flat_targets = rows(x), targets.reshape(-1).contiguous()
    N = len(flat)
    chunk = min(N, chunk or _chunk(N, V, x.itemsize))
    scale = inverse_count(flat_targets)
    nats = torch.empty(N, dtype=torch.float32, device=x.device)
    room = torch.empty((chunk, triton.cdiv(V, 64) * 64), dtype=x.dtype, device=x.device)  # every row starts on a 128-byte boundary
    if gradients:
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        dweight = torch.empty((V, D), dtype=torch.float32, device=x.device)
    for start in range(0, N, chunk):
        here = slice(start, min(N, start + chunk))
        logits = room[:here.stop - start, :V]
        torch.mm(flat[here], weight.t(), out=logits)
        if not gradients:
            nats[here] = token_nats(logits, flat_targets[here])[0]
            continue
        nats[here] = cross_entropy_(logits, flat_targets[here], scale)
        torch.mm(logits, weight, out=dx.view(N, D)[here])        # logits are dlogits now
        add_outer(dweight, logits, flat[here], first=start == 0)
    return mean_nats(nats, scale), (dx, dweight, weight.dtype) if gradients else None


@torch.no_grad()
def linear_cross_entropy_backward(dout, cache):
    """Gradients of linear_cross_entropy_forward: dx like x, dweight (V, D) like weight.

    Args:
        dout: float, or () float tensor    gradient of the loss itself; 1 for plain training
    """
    dx, dweight, dtype = cache
    if not isinstance(dout, Tensor):
        dout = torch.full((), dout, dtype=torch.float32, device=dx.device)
    check("linear_cross_entropy_backward", dx=dx, dout=dout)
    check_shape("linear_cross_entropy_backward", (), dout=dout)
    return _product(dout, dx, dx.dtype), _product(dout, dweight, dtype)


# Registration with PyTorch: autograd, and torch.compile, which asks the fakes for the shapes of the outputs without running a kernel.

@torch.library.custom_op("minillama::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, chunk: int | None, gradients: bool) -> tuple[Tensor, Tensor, Tensor]:
    loss, cache = linear_cross_entropy_forward(x, weight, targets, chunk, gradients)
    dx, dweight = cache[:2] if gradients else (x.new_empty(0), x.new_empty(0, dtype=torch.float32))
    return loss, dx, dweight


@torch.library.custom_op("minillama::linear_cross_entropy_backward", mutates_args=())
def _linear_cross_entropy_backward(dout: Tensor, dx: Tensor, dweight: Tensor) -> tuple[Tensor, Tensor]:
    return linear_cross_entropy_backward(dout, (dx, dweight, dx.dtype))


def _fake(x, weight, targets, chunk, gradients):
    shapes = (x.shape, weight.shape) if gradients else ((0,), (0,))
    return x.new_empty((), dtype=torch.float32), x.new_empty(shapes[0]), x.new_empty(shapes[1], dtype=torch.float32)


_linear_cross_entropy.register_fake(_fake)
_linear_cross_entropy_backward.register_fake(lambda dout, dx, dweight: (torch.empty_like(dx), torch.empty_like(dweight, dtype=dx.dtype)))


def _keep(ctx, inputs, output):
    ctx.set_materialize_grads(False)                             # dx and dweight get no gradients themselves: no zeros for them
    ctx.save_for_backward(*output[1:])


def _gradients(ctx, dout, *rest):
    if dout is None:
        return (None,) * 5
    return *_linear_cross_entropy_backward(dout, *ctx.saved_tensors), None, None, None


_linear_cross_entropy.register_autograd(_gradients, setup_context=_keep)


def linear_cross_entropy(x, weight, targets, chunk=None):
    """linear_cross_entropy_forward with autograd: (B, T, D) or (N, D), (V, D), (B, T) or (N,) -> () float32."""
    gradients = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return _linear_cross_entropy(x, weight, targets, chunk, gradients)[0]
