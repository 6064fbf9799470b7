"""Cross-entropy in Triton: the loss, its gradient, and both at once in place, in a buffer of logits that is no longer needed.

    nats_t = ln(sum_v exp(logits_tv)) - logits_t,target        loss = mean of nats over the scored tokens

Readable twin: minillama/nn/cross_entropy.py. Lesson: lessons/15_gpu.ipynb.

Programs:
    forward     one per ROWS rows; it goes through its rows once, BLOCK columns at a time, with a running maximum and sum
    backward    one per tile of (ROWS, BLOCK) logits, which it reads again; the row's maximum and sum come from forward
    in place    G programs that stay on their multiprocessors; program g computes rows g, g + G, ... One row is whole in registers while
                the next ones are being copied to shared memory (if there is room), so that logits are read once and written once. The
                -1 of the targets comes last: to ask every column whether it is the target would take more than two instructions each.
                A row of more than MAX_BLOCK logits does not fit (half of that if V or the row stride is no multiple of 16: then an
                address per logit takes registers too). Such a row has its own program, which goes through it twice, the second time from
                the end, which the caches still hold.

Roofline, in bytes moved for N rows of V logits of b bytes (arithmetic is negligible):
    forward bNV;  backward 2bNV;  in place 2bNV, which is forward and backward in one.

Everything between load and store is float32 and is rounded once. The number of scored tokens is counted on the device and stays there.
Sums over tokens are in float32, by one program, always in the same order: the same input gives the same bits.

A target that is neither an id in [0, V) nor IGNORE raises no error, because reading it on the host would wait for the device. Instead
the nats and the gradient of that token are NaN, and so is the loss; nothing is read outside its row.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from minillama.nn import IGNORE

from .launch import architecture, check, check_ids, check_shape, launch, multiprocessors, rows

MAX_BLOCK = 32768  # logits of a row in registers: 64 for each thread of 16 warps; twice as many would spill
IGNORED = tl.constexpr(IGNORE)
LOG2_E = tl.constexpr(1.4426950408889634)
PREFETCH = {"sm_90": 220 * 1024, "sm_80": 96 * 1024, "gfx942": 0}  # bytes of a multiprocessor's shared memory for rows to come; AMD has few


@triton.jit
def _classify(target, V):
    """The target as a column number, whether it is scored, and what is added to its results: NaN if the target is no id, else 0."""
    wrong = ((target < 0) & (target != IGNORED)) | (target >= V)
    return target.to(tl.int32), target != IGNORED, tl.where(wrong, float("nan"), 0.0)


@triton.jit
def _exp(x):
    """exp(x), 0 below 2^-126. The hardware has exp2 alone; tl.exp spends three more instructions on results too small to matter here."""
    return tl.exp2(x * LOG2_E)


@triton.jit
def _extend(x, peak, total):
    """Running maximum and sum of exp(x - maximum), the sum kept per column; a row that had only -inf so far has the sum 0."""
    higher = tl.maximum(peak, tl.max(x, 1))
    shift = tl.where(higher == float("-inf"), 0.0, higher)       # -inf - -inf would be NaN, and would stay NaN
    return higher, total * _exp(peak - shift)[:, None] + _exp(x - shift[:, None])


@triton.jit
def _gradient(exps, hit, scored, total, factor):
    """(softmax - onehot) * factor, with softmax = exps / total and hit = onehot; 0 where nothing is scored, whatever the logits."""
    dlogits = exps * (factor / total)
    return tl.where(scored, tl.where(hit, dlogits - factor, dlogits), 0.0)


@triton.jit(do_not_specialize=["N"])
def cross_entropy_forward_kernel(
    logits_ptr, targets_ptr,                    # in:  (N, V), (N,)
    nats_ptr, peak_ptr, total_ptr,              # out: (N,) three times
    N, V, stride,                               # stride: elements from one row to the next
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    raw = tl.load(targets_ptr + row, row < N, other=IGNORED)
    target, scored, nan = _classify(raw, V)
    inside_row = scored & (target >= 0) & (raw < V)
    wanted = tl.load(logits_ptr + row * stride + target, inside_row, other=0.0).to(tl.float32)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in tl.range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = (row < N)[:, None] & (column < V)[None, :]
        x = tl.load(logits_ptr + row[:, None] * stride + column[None, :], inside, other=float("-inf")).to(tl.float32)
        peak, total = _extend(x, peak, total)
    total = tl.sum(total, 1)
    nats = tl.log(total) - (wanted - peak) + nan                 # a small number minus a small number: exact for logits of any size
    tl.store(nats_ptr + row, tl.where(scored, nats, 0.0), row < N)
    tl.store(peak_ptr + row, peak, row < N)
    tl.store(total_ptr + row, total, row < N)


@triton.jit(do_not_specialize=["N"])
def cross_entropy_backward_kernel(
    dout_ptr, scale_ptr, logits_ptr, targets_ptr, peak_ptr, total_ptr,  # in:  () twice, (N, V), (N,) three times
    dlogits_ptr,                                                        # out: (N, V)
    N, V, stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < N)[:, None] & (column < V)[None, :]
    x = tl.load(logits_ptr + row[:, None] * stride + column[None, :], inside, other=0.0).to(tl.float32)
    target, scored, nan = _classify(tl.load(targets_ptr + row, row < N, other=IGNORED), V)
    peak = tl.load(peak_ptr + row, row < N, other=0.0)
    total = tl.load(total_ptr + row, row < N, other=1.0)
    factor = tl.load(dout_ptr).to(tl.float32) * tl.load(scale_ptr) + nan
    hit = column[None, :] == target[:, None]
    dlogits = _gradient(_exp(x - peak[:, None]), hit, scored[:, None], total[:, None], factor[:, None])
    tl.store(dlogits_ptr + row[:, None] * V + column[None, :], dlogits.to(dlogits_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["N", "G"])
def cross_entropy_one_pass_kernel(
    logits_ptr, targets_ptr, scale_ptr,         # in:  (N, V), which the gradient replaces; (N,); ()
    nats_ptr,                                   # out: (N,)
    N, stride, G,
    V: tl.constexpr,                            # a constant: so the compiler drops the masks of columns that surely exist
    BLOCK: tl.constexpr, STAGES: tl.constexpr, ROWS: tl.constexpr,
):
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    scale = tl.load(scale_ptr)
    for index in tl.range(program, N, G, num_stages=STAGES):
        row = tl.cast(index, tl.int64)
        at = logits_ptr + row * stride + column
        x = tl.load(at, column < V, other=float("-inf")).to(tl.float32)
        raw = tl.load(targets_ptr + row)
        target, scored, nan = _classify(raw, V)
        wanted = 0.0
        if (raw >= 0) & (raw < V):                               # read before the barriers of the sums, overwritten after them
            wanted = tl.load(logits_ptr + row * stride + target).to(tl.float32)
        peak = tl.max(x, 0)
        exps = _exp(x - peak)                                    # reuses the registers of x
        total = tl.sum(exps, 0)
        nats = tl.log(total) - (wanted - peak) + nan
        tl.store(nats_ptr + row, tl.where(scored, nats, 0.0))
        factor = tl.where(scored, (scale + nan) / total, 0.0)
        if not scored:                                           # 0, whatever the logits
            exps = tl.zeros((BLOCK,), tl.float32)
        tl.store(at, (exps * factor).to(logits_ptr.dtype.element_ty), column < V)
    tl.debug_barrier()                                           # no thread goes on before all have written: not two to one place at a time
    for start in tl.range(0, tl.cdiv(N, G), ROWS):               # the target of each row that this program has computed
        row = program + (start + tl.arange(0, ROWS)).to(tl.int64) * G
        raw = tl.load(targets_ptr + row, row < N, other=IGNORED)
        p = _exp(-tl.load(nats_ptr + row, row < N, other=0.0))   # its probability
        tl.store(logits_ptr + row * stride + raw, ((p - 1.0) * scale).to(logits_ptr.dtype.element_ty), (raw >= 0) & (raw < V))


@triton.jit
def cross_entropy_two_pass_kernel(
    logits_ptr, targets_ptr, scale_ptr,         # in:  (N, V), which the gradient replaces; (N,); ()
    nats_ptr,                                   # out: (N,)
    V, stride,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    raw = tl.load(targets_ptr + row)
    target, scored, nan = _classify(raw, V)
    wanted = tl.load(logits_ptr + row * stride + target, scored & (raw >= 0) & (raw < V), other=0.0).to(tl.float32)
    peak = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1, BLOCK), tl.float32)
    for start in tl.range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        at = logits_ptr + row[:, None] * stride + column[None, :]
        x = tl.load(at, (column < V)[None, :], other=float("-inf"), eviction_policy="evict_last").to(tl.float32)
        peak, total = _extend(x, peak, total)
    total = tl.sum(total, 1)
    nats = tl.log(total) - (wanted - peak) + nan
    tl.store(nats_ptr + row, tl.where(scored, nats, 0.0))
    scale = tl.load(scale_ptr) + nan
    blocks = tl.cdiv(V, BLOCK)
    for behind in tl.range(0, blocks):
        column = (blocks - 1 - behind) * BLOCK + tl.arange(0, BLOCK)
        at = logits_ptr + row[:, None] * stride + column[None, :]
        x = tl.load(at, (column < V)[None, :], other=float("-inf"), eviction_policy="evict_first").to(tl.float32)
        hit = column[None, :] == target[:, None]
        dlogits = _gradient(_exp(x - peak[:, None]), hit, scored[:, None], total[:, None], scale[:, None])
        tl.store(at, dlogits.to(logits_ptr.dtype.element_ty), (column < V)[None, :])


@triton.jit(do_not_specialize=["N"])
def scale_kernel(targets_ptr, scale_ptr, N, BLOCK: tl.constexpr):
    """scale = 1 / number of scored targets (N,); 1 if there are none: every gradient is 0 already."""
    count = tl.zeros((BLOCK,), tl.int32)
    for start in tl.range(0, N, BLOCK):
        token = start + tl.arange(0, BLOCK)
        target = tl.load(targets_ptr + token, token < N, other=IGNORED)
        count += (target != IGNORED).to(tl.int32)
    tl.store(scale_ptr, 1.0 / tl.maximum(tl.sum(count, 0), 1).to(tl.float32))


@triton.jit(do_not_specialize=["N"])
def mean_kernel(nats_ptr, scale_ptr, loss_ptr, N, BLOCK: tl.constexpr):
    """loss = sum of nats (N,) * scale, the sum in float32."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, N, BLOCK):
        token = start + tl.arange(0, BLOCK)
        total += tl.load(nats_ptr + token, token < N, other=0.0)
    tl.store(loss_ptr, tl.sum(total, 0) * tl.load(scale_ptr))


def _tile(V, widest, elements):
    """Rows, width and warps of a tile of at most `widest` columns: `elements` logits or one row, 16 logits per thread or more."""
    block = min(max(16, triton.next_power_of_2(V)), widest)
    count = max(1, elements // block)
    return {"ROWS": count, "BLOCK": block, "num_warps": min(16, max(4, count * block // 512))}


def inverse_count(targets):
    """1 / number of scored targets (N,), on the device: () float32; 1 if nothing is scored."""
    scale = torch.empty((), dtype=torch.float32, device=targets.device)
    launch(scale_kernel, (1,), targets, scale, len(targets), BLOCK=4096, num_warps=8)
    return scale


def mean_nats(nats, scale):
    """sum of nats (N,) * scale: () float32, on the device."""
    loss = torch.empty((), dtype=torch.float32, device=nats.device)
    launch(mean_kernel, (1,), nats, scale, loss, len(nats), BLOCK=4096, num_warps=8)
    return loss


def token_nats(logits, targets):
    """Nats of each token, and what the gradient needs to know about its row.

    Args:
        logits:  (N, V) float    last axis contiguous
        targets: (N,) int        contiguous

    Returns:
        nats, peak, total: (N,) float32    nats, 0 where nothing is scored; the row's maximum; its sum of exp(logits - maximum)
    """
    N, V = logits.shape
    nats, peak, total = (torch.empty(N, dtype=torch.float32, device=logits.device) for _ in range(3))
    shape = _tile(V, 4096, 2048)
    launch(cross_entropy_forward_kernel, (triton.cdiv(N, shape["ROWS"]),), logits, targets, nats, peak, total,
           N, V, logits.stride(0), **shape)
    return nats, peak, total


def cross_entropy_forward(logits, targets):
    """Mean loss over the scored tokens.

    Args:
        logits:  (B, T, V) or (N, V) float
        targets: (B, T) or (N,) int64 or int32    ids in [0, V), or IGNORE (-1) where nothing is scored

    Returns:
        loss:    () float32, nats/token; 0 if no token is scored; NaN if a target is neither an id nor IGNORE
        cache:   (logits, targets, peak, total, scale); peak, total (N,) float32: ln(sum exp) = peak + ln(total), two numbers because
                 their sum would be rounded if logits are large; scale () float32: 1 / number of scored tokens

    Raises:
        ValueError: dtype, device or shape that the kernel does not cover; the sentence names the argument
    """
    check("cross_entropy_forward", logits=logits)
    check_ids("cross_entropy_forward", logits.shape[:-1], logits.device, targets=targets)
    flat_targets = targets.reshape(-1).contiguous()
    scale = inverse_count(flat_targets)
    nats, peak, total = token_nats(rows(logits), flat_targets)
    return mean_nats(nats, scale), (logits, targets, peak, total, scale)


def cross_entropy_backward(dout, cache):
    """Gradient of cross_entropy_forward: dlogits like logits. The equation is in the readable twin.

    Args:
        dout: float, or () float tensor    gradient of the loss itself
    """
    logits, targets, peak, total, scale = cache
    if not isinstance(dout, Tensor):
        dout = torch.full((), dout, dtype=torch.float32, device=logits.device)
    check("cross_entropy_backward", logits=logits, dout=dout)
    check_shape("cross_entropy_backward", (), dout=dout)
    flat = rows(logits)
    N, V = flat.shape
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    shape = _tile(V, 4096, 4096)
    launch(cross_entropy_backward_kernel, (triton.cdiv(N, shape["ROWS"]), triton.cdiv(V, shape["BLOCK"])),
           dout, scale, flat, targets.reshape(-1).contiguous(), peak, total, dlogits, N, V, flat.stride(0), **shape)
    return dlogits


def cross_entropy_(logits, targets, scale):
    """Loss and gradient in one call, IN PLACE: logits become (softmax - onehot) * scale, and 0 where nothing is scored.

    For a caller that owns the buffer and does not need its logits any more.

    Args:
        logits:  (N, V) float             last axis contiguous, rows that do not overlap; overwritten
        targets: (N,) int64 or int32
        scale:   () float32               on the same device, such as `inverse_count(targets)`

    Returns:
        nats:    (N,) float32, nats of each token, not scaled; 0 where nothing is scored

    Raises:
        ValueError: dtype, device, shape or strides that the kernel does not cover; the sentence names the argument
    """
    check("cross_entropy_", logits=logits, scale=scale)
    if logits.ndim != 2 or logits.stride(1) != 1 or (len(logits) > 1 and logits.stride(0) < logits.shape[1]):
        raise ValueError("cross_entropy_: logits must be (N, V) with contiguous rows that do not overlap, "
                         f"got shape {tuple(logits.shape)}, strides {logits.stride()}")
    N, V = logits.shape
    check_ids("cross_entropy_", (N,), logits.device, targets=targets)
    check_shape("cross_entropy_", (), scale=scale)
    if scale.dtype != torch.float32:
        raise ValueError(f"cross_entropy_: scale must be float32, got {str(scale.dtype).removeprefix('torch.')}")
    targets = targets.contiguous()
    nats = torch.empty(N, dtype=torch.float32, device=logits.device)
    aligned = V % 16 == 0 and (N == 1 or logits.stride(0) % 16 == 0)
    widest = MAX_BLOCK if aligned else MAX_BLOCK // 2
    if widest < V:
        launch(cross_entropy_two_pass_kernel, (N,), logits, targets, scale, nats, V, logits.stride(0), BLOCK=8192, num_warps=16)
        return nats
    block = max(16, triton.next_power_of_2(V))
    resident = min(32, MAX_BLOCK // block)                       # programs that share a multiprocessor's registers
    programs, warps = min(N, resident * multiprocessors(logits)), min(16, max(1, block // 1024))
    ahead = 2 * resident * block * logits.element_size()         # bytes of two rows per program: 3 stages. With 2, nothing is ahead
    stages = 3 if aligned and ahead <= PREFETCH[architecture(logits)] else 1
    launch(cross_entropy_one_pass_kernel, (programs,), logits, targets, scale, nats, N, logits.stride(0), programs,
           V=V, BLOCK=block, STAGES=stages, ROWS=32 * warps, num_warps=warps)
    return nats


# Registration with PyTorch: autograd, and torch.compile, which asks the fakes for the shapes of the outputs without running a kernel.

@torch.library.custom_op("minillama::cross_entropy", mutates_args=())
def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss, (*_, peak, total, scale) = cross_entropy_forward(logits, targets)
    return loss, peak, total, scale


@torch.library.custom_op("minillama::cross_entropy_backward", mutates_args=())
def _cross_entropy_backward(dout: Tensor, logits: Tensor, targets: Tensor, peak: Tensor, total: Tensor, scale: Tensor) -> Tensor:
    return cross_entropy_backward(dout, (logits, targets, peak, total, scale))


def _fake(logits, targets):
    loss, scale = (logits.new_empty((), dtype=torch.float32) for _ in range(2))
    peak, total = (logits.new_empty(logits.numel() // logits.shape[-1], dtype=torch.float32) for _ in range(2))
    return loss, peak, total, scale


_cross_entropy.register_fake(_fake)
_cross_entropy_backward.register_fake(
    lambda dout, logits, targets, peak, total, scale: torch.empty(logits.shape, dtype=logits.dtype, device=logits.device))


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output[1:])


_cross_entropy.register_autograd(
    lambda ctx, dout, *rest: (_cross_entropy_backward(dout, *ctx.saved_tensors), None), setup_context=_keep)


def cross_entropy(logits, targets):
    """cross_entropy_forward with autograd: (B, T, V) or (N, V), (B, T) or (N,) -> () float32."""
    return _cross_entropy(logits, targets)[0]
