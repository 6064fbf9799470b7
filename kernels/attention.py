"""Causal attention in Triton: tiles of scores that never leave the multiprocessor (flash attention).

    out = softmax(q k^T / sqrt(Dh)) v        a query sees the keys up to its own position

Forward keeps a running maximum and sum per row, so that no row of scores is ever stored whole; backward rebuilds each tile of
probabilities from the saved log-sum-exp. Dao et al. 2022 (arXiv:2205.14135), Dao 2023 (arXiv:2307.08691); [LLaMA §2.4].
Readable twins: minillama/nn/flash.py (these loops, in NumPy) and minillama/nn/attention.py. Lesson: lessons/15_gpu.ipynb.

Programs: a grid of (tiles along T, heads, batch).
    forward   a program per QUERIES queries goes through the tiles of keys up to the diagonal.
    dq        a program per QUERIES queries goes through the same tiles. It first computes delta = rowsum(dout * out) and stores it
              for dk and dv.
    dk, dv    a program per KEYS keys goes through the tiles of queries from the diagonal on.
Tiles above the diagonal are never visited, and tiles below it run without a mask. The programs with the most tiles start first, so
that the short ones fill the end. Every program writes only its own rows, without atomics: the same input gives the same bits.

Roofline, for B sequences of T positions and H heads, in elements of b bytes:
    forward   2BHT^2 Dh FLOPs (two products over half of the square; 4BHT^2 Dh over all of it)        4bBTH Dh bytes
    backward  5BHT^2 Dh FLOPs (five products: scores, dprobs, dv, dq, dk)                             8bBTH Dh bytes
From a few hundred positions on, the FLOPs are the limit. This backward computes scores and dprobs twice, once for dq and once for
dk and dv: seven products, so it cannot exceed 5/7 of the device's peak if five are counted. That is the price of working without
atomics, whose order of summation changes from run to run.

Scores are kept in units of log2, because the hardware has an instruction for exp2, and log2(e) / sqrt(Dh) is one factor. lse is in
base 2 too. The operands of every product have the input's dtype (float32 in full precision, without the tensor cores of NVIDIA's
devices); statistics and sums are float32.
"""
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import architecture, check, check_same, launch

MAX_HEAD_DIM = 128
MAX_GRID = 65535  # of the grid's second and third axis
MAX_STRIDE = 2**31 // 256  # from one position to the next, in elements
LOG2_E = 1.4426950408889634
LN_2 = tl.constexpr(0.6931471805599453)

# (QUERIES, KEYS, warps, pipeline stages) by class of GPU, kernel, bytes per element, and head_dim rounded up to a power of two. Chosen by
# compiling ahead of time: no register spills in a loop (where rows are 16-byte aligned), shared memory fits (in 99 KB for sm_80, because
# some GPUs of that class have no more), the next tiles are copied while one is computed (3 stages; with 2, a wait is for all copies; not
# in float32, where the products, without tensor cores, are the limit), on sm_90 ptxas does not serialise the products. None was chosen
# by a timing.
TILES = {
    "sm_90": {
        ("forward", 2): {128: (128, 128, 8, 3), 64: (128, 128, 8, 3), 32: (128, 128, 8, 3), 16: (128, 128, 8, 3)},
        ("dq", 2): {128: (128, 64, 8, 3), 64: (128, 64, 8, 3), 32: (128, 64, 8, 3), 16: (128, 64, 8, 3)},
        ("dkdv", 2): {128: (64, 128, 8, 3), 64: (64, 128, 8, 3), 32: (64, 128, 8, 3), 16: (64, 128, 8, 3)},
        ("forward", 4): {128: (32, 16, 8, 2), 64: (64, 32, 8, 2), 32: (64, 32, 8, 2), 16: (64, 32, 8, 2)},
        ("dq", 4): {128: (32, 16, 8, 2), 64: (64, 32, 8, 2), 32: (64, 32, 8, 2), 16: (64, 32, 8, 2)},
        ("dkdv", 4): {128: (16, 32, 8, 2), 64: (16, 32, 4, 2), 32: (16, 32, 4, 2), 16: (16, 32, 4, 2)},
    },
    "sm_80": {
        ("forward", 2): {128: (128, 64, 8, 3), 64: (128, 64, 8, 3), 32: (128, 64, 4, 3), 16: (128, 64, 4, 3)},
        ("dq", 2): {128: (128, 32, 8, 3), 64: (64, 64, 4, 3), 32: (64, 64, 4, 3), 16: (64, 64, 4, 3)},
        ("dkdv", 2): {128: (32, 64, 4, 3), 64: (32, 128, 8, 3), 32: (32, 128, 8, 3), 16: (32, 128, 8, 3)},
        ("forward", 4): {128: (32, 16, 8, 2), 64: (64, 32, 8, 2), 32: (64, 32, 8, 2), 16: (64, 32, 8, 2)},
        ("dq", 4): {128: (32, 16, 8, 2), 64: (64, 32, 8, 2), 32: (64, 32, 8, 2), 16: (64, 32, 8, 2)},
        ("dkdv", 4): {128: (16, 32, 8, 2), 64: (16, 32, 4, 2), 32: (16, 32, 4, 2), 16: (16, 32, 4, 2)},
    },
    "gfx942": {
        ("forward", 2): {128: (128, 64, 8, 1), 64: (128, 64, 4, 2), 32: (128, 64, 4, 2), 16: (128, 64, 4, 2)},
        ("dq", 2): {128: (64, 32, 4, 2), 64: (128, 32, 4, 2), 32: (128, 32, 4, 2), 16: (128, 32, 4, 2)},
        ("dkdv", 2): {128: (32, 64, 4, 1), 64: (32, 64, 4, 1), 32: (32, 64, 4, 1), 16: (32, 64, 4, 1)},
        ("forward", 4): {128: (64, 32, 4, 1), 64: (64, 32, 4, 1), 32: (64, 32, 4, 1), 16: (64, 32, 4, 1)},
        ("dq", 4): {128: (64, 32, 4, 1), 64: (64, 32, 4, 1), 32: (64, 32, 4, 1), 16: (64, 32, 4, 1)},
        ("dkdv", 4): {128: (32, 32, 4, 1), 64: (32, 32, 4, 1), 32: (32, 32, 4, 1), 16: (32, 32, 4, 1)},
    },
}
MASKED = {                                                       # used instead if T or head_dim needs a mask, which takes registers
    ("sm_90", "forward", 2, 128): (128, 64, 8, 3),
    ("sm_90", "dkdv", 2, 128): (32, 128, 8, 3),
}


@triton.jit
def _at(pointer, position, batch_stride, time_stride, head_stride):
    """Pointer to the first channel of a position, in this program's sequence and head."""
    batch, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    return pointer + batch * batch_stride + head * head_stride + position.to(tl.int64) * time_stride


@triton.jit
def _tile(time_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets of ROWS positions from the first: (ROWS, BLOCK)."""
    return (tl.arange(0, ROWS).to(tl.int64)[:, None] * time_stride + tl.arange(0, BLOCK)[None, :]).to(tl.int32)


@triton.jit
def _inside(position, left, DH: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    """Which elements of a tile exist: (1 or ROWS, 1 or BLOCK). If all do it is a constant, and the loads have no mask."""
    rows = tl.full((1, 1), True, tl.int1) if WHOLE else (position < left)[:, None]
    columns = tl.full((1, 1), True, tl.int1) if DH == BLOCK else (tl.arange(0, BLOCK) < DH)[None, :]
    return rows & columns


@triton.jit(do_not_specialize=["T"])
def attention_forward_kernel(
    q_ptr, k_ptr, v_ptr,                      # in:  (B, T, H, DH) three times
    out_ptr, lse_ptr,                         # out: (B, T, H, DH), (B, H, T)
    T, scale,                                 # scale = log2(e) / sqrt(DH)
    q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head, out_batch, out_time, out_head,  # strides in elements
    DH: tl.constexpr, BLOCK: tl.constexpr,    # BLOCK: DH rounded up to a power of two
    WHOLE: tl.constexpr,                      # T is a multiple of QUERIES
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    first = ((tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)) * QUERIES).to(tl.int32)
    query, key = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    exists = _inside(query, T - first, DH, BLOCK, WHOLE)
    q = tl.load(_at(q_ptr, first, q_batch, q_time, q_head) + _tile(q_time, QUERIES, BLOCK), exists, other=0.0)
    k_tile, v_tile = _tile(k_time, KEYS, BLOCK), _tile(v_time, KEYS, BLOCK)
    step = tl.full((), KEYS, tl.int64)
    m = tl.full((QUERIES,), float("-inf"), tl.float32)           # running maximum
    l = tl.zeros((QUERIES,), tl.float32)                         # running sum
    out = tl.zeros((QUERIES, BLOCK), tl.float32)
    for BELOW in tl.static_range(2):                             # the tiles on the diagonal, then those below it, from key 0 on
        begin = first * (1 - BELOW)
        k_at, v_at = _at(k_ptr, begin, k_batch, k_time, k_head), _at(v_ptr, begin, v_batch, v_time, v_head)
        for start in tl.range(begin, first + QUERIES * (1 - BELOW), KEYS):
            inside = _inside(key, T - start, DH, BLOCK, WHOLE or BELOW)
            k = tl.load(k_at + k_tile, inside, other=0.0)
            s = tl.dot(q, tl.trans(k), input_precision="ieee")   # (QUERIES, KEYS)
            if not BELOW:
                s = tl.where(query[:, None] >= (key + start - first)[None, :], s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1) * scale)          # finite from the first tile on: every query sees its first key
            p = tl.exp2(s * scale - m_new[:, None])
            shrink = tl.exp2(m - m_new)
            l = l * shrink + tl.sum(p, 1)
            out *= shrink[:, None]
            v = tl.load(v_at + v_tile, inside, other=0.0)
            out = tl.dot(p.to(v.dtype), v, out, input_precision="ieee")
            m = m_new
            k_at += step * k_time
            v_at += step * v_time
    out = (out * (1.0 / l)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(_at(out_ptr, first, out_batch, out_time, out_head) + _tile(out_time, QUERIES, BLOCK), out, exists)
    row = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * T + first + query
    tl.store(lse_ptr + row, m + tl.log2(l), query < T - first)


@triton.jit(do_not_specialize=["T"])
def attention_dq_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr,  # in:  (B, T, H, DH) five times, (B, H, T)
    dq_ptr, delta_ptr,                                # out: (B, T, H, DH), (B, H, T)
    T, scale,
    dout_batch, dout_time, dout_head, q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head,
    out_batch, out_time, out_head, dq_batch, dq_time, dq_head,
    DH: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    first = ((tl.num_programs(0) - 1 - tl.program_id(0).to(tl.int64)) * QUERIES).to(tl.int32)
    query, key = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    exists = _inside(query, T - first, DH, BLOCK, WHOLE)
    row = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * T + first + query
    dout = tl.load(_at(dout_ptr, first, dout_batch, dout_time, dout_head) + _tile(dout_time, QUERIES, BLOCK), exists, other=0.0)
    out = tl.load(_at(out_ptr, first, out_batch, out_time, out_head) + _tile(out_time, QUERIES, BLOCK), exists, other=0.0)
    delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
    tl.store(delta_ptr + row, delta, query < T - first)
    lse = tl.load(lse_ptr + row, query < T - first, other=0.0)
    q = tl.load(_at(q_ptr, first, q_batch, q_time, q_head) + _tile(q_time, QUERIES, BLOCK), exists, other=0.0)
    k_tile, v_tile = _tile(k_time, KEYS, BLOCK), _tile(v_time, KEYS, BLOCK)
    step = tl.full((), KEYS, tl.int64)
    dq = tl.zeros((QUERIES, BLOCK), tl.float32)
    for BELOW in tl.static_range(2):
        begin = first * (1 - BELOW)
        k_at, v_at = _at(k_ptr, begin, k_batch, k_time, k_head), _at(v_ptr, begin, v_batch, v_time, v_head)
        for start in tl.range(begin, first + QUERIES * (1 - BELOW), KEYS):
            inside = _inside(key, T - start, DH, BLOCK, WHOLE or BELOW)
            k = tl.load(k_at + k_tile, inside, other=0.0)
            v = tl.load(v_at + v_tile, inside, other=0.0)
            p = tl.exp2(tl.dot(q, tl.trans(k), input_precision="ieee") * scale - lse[:, None])
            if not BELOW:
                p = tl.where(query[:, None] >= (key + start - first)[None, :], p, 0.0)
            dp = tl.dot(dout, tl.trans(v), input_precision="ieee")
            ds = p * (dp - delta[:, None])                       # without 1 / sqrt(DH), which is applied at the end
            dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
            k_at += step * k_time
            v_at += step * v_time
    dq = (dq * (scale * LN_2)).to(dq_ptr.dtype.element_ty)        # scale ln 2 = 1 / sqrt(DH)
    tl.store(_at(dq_ptr, first, dq_batch, dq_time, dq_head) + _tile(dq_time, QUERIES, BLOCK), dq, exists)


@triton.jit(do_not_specialize=["T"])
def attention_dkdv_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr,  # in:  (B, T, H, DH) four times, (B, H, T) twice
    dk_ptr, dv_ptr,                                     # out: (B, T, H, DH) twice
    T, scale,
    dout_batch, dout_time, dout_head, q_batch, q_time, q_head, k_batch, k_time, k_head, v_batch, v_time, v_head,
    dk_batch, dk_time, dk_head, dv_batch, dv_time, dv_head,
    DH: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):
    first = (tl.program_id(0).to(tl.int64) * KEYS).to(tl.int32)
    query, key = tl.arange(0, QUERIES), tl.arange(0, KEYS)
    exists = _inside(key, T - first, DH, BLOCK, WHOLE)
    k = tl.load(_at(k_ptr, first, k_batch, k_time, k_head) + _tile(k_time, KEYS, BLOCK), exists, other=0.0)
    v = tl.load(_at(v_ptr, first, v_batch, v_time, v_head) + _tile(v_time, KEYS, BLOCK), exists, other=0.0)
    step = tl.full((), QUERIES, tl.int64)
    q_ptr, q_tile = _at(q_ptr, first, q_batch, q_time, q_head), _tile(q_time, QUERIES, BLOCK)
    dout_ptr, dout_tile = _at(dout_ptr, first, dout_batch, dout_time, dout_head), _tile(dout_time, QUERIES, BLOCK)
    row = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * T
    if WHOLE:
        row = tl.multiple_of(row, 16)                            # because T is: loads may be vectors
    lse_ptr, delta_ptr = lse_ptr + row, delta_ptr + row
    dk = tl.zeros((KEYS, BLOCK), tl.float32)
    dv = tl.zeros((KEYS, BLOCK), tl.float32)
    for BEYOND in tl.static_range(2):                            # the tiles on the diagonal, then those after it
        for start in tl.range(first + KEYS * BEYOND, T if BEYOND else tl.minimum(first + KEYS, T), QUERIES):
            inside = _inside(query, T - start, DH, BLOCK, WHOLE)  # a query that does not exist adds 0: its dout and delta are 0
            q = tl.load(q_ptr + q_tile, inside, other=0.0)
            dout = tl.load(dout_ptr + dout_tile, inside, other=0.0)
            exist = tl.full((QUERIES,), True, tl.int1) if WHOLE else query < T - start
            lse = tl.load(lse_ptr + start + query, exist, other=0.0)
            delta = tl.load(delta_ptr + start + query, exist, other=0.0)
            dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
            p = tl.exp2(tl.dot(k, tl.trans(q), input_precision="ieee") * scale - lse[None, :])  # transposed: (KEYS, QUERIES)
            if not BEYOND:
                p = tl.where((query + start - first)[None, :] >= key[:, None], p, 0.0)
            dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision="ieee")
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision="ieee")
            q_ptr += step * q_time
            dout_ptr += step * dout_time
    dk = (dk * (scale * LN_2)).to(dk_ptr.dtype.element_ty)
    tl.store(_at(dk_ptr, first, dk_batch, dk_time, dk_head) + _tile(dk_time, KEYS, BLOCK), dk, exists)
    tl.store(_at(dv_ptr, first, dv_batch, dv_time, dv_head) + _tile(dv_time, KEYS, BLOCK), dv.to(dv_ptr.dtype.element_ty), exists)


def _checked(op, q, k, v):
    """Check the arguments. Returns q, k, v in a layout that the kernels can read."""
    check(op, q=q, k=k, v=v)
    check_same(op, "shape", q=q, k=k, v=v)
    check_same(op, "dtype", q=q, k=k, v=v)
    if q.ndim != 4 or q.shape[-1] % 2 or q.shape[-1] > MAX_HEAD_DIM:
        raise ValueError(f"{op}: q must be (B, T, H, Dh) with Dh even and at most {MAX_HEAD_DIM}, got shape {tuple(q.shape)}")
    if max(q.shape[0], q.shape[2]) > MAX_GRID:
        raise ValueError(f"{op}: q must have at most {MAX_GRID} sequences and heads, got shape {tuple(q.shape)}")
    return _readable(q), _readable(k), _readable(v)


def _readable(x):
    """x, or a copy if its channels are not contiguous or a tile would span 2^31 elements (offsets within a tile are 32-bit)."""
    return x if x.stride(-1) == 1 and x.stride(1) < MAX_STRIDE else x.contiguous()


def _buffer(op, name, out, q):
    """The caller's `out`, after a check that the kernels can write into it, or a new array like q."""
    if out is None:
        return torch.empty(q.shape, dtype=q.dtype, device=q.device)
    check(op, q=q, **{name: out})
    check_same(op, "shape", q=q, **{name: out})
    check_same(op, "dtype", q=q, **{name: out})
    if _readable(out) is not out:
        raise ValueError(f"{op}: {name} must have contiguous channels (stride 1), got strides {out.stride()}")
    return out


def _launch(kernel, name, q, arrays, strided):
    """Launch one kernel over (tiles, heads, batch). strided: the (B, T, H, Dh) arrays, in the order of the kernel's strides."""
    B, T, H, Dh = q.shape
    block, target = max(16, triton.next_power_of_2(Dh)), architecture(q)
    tile = TILES[target][name, q.element_size()][block]
    rows = tile[name == "dkdv"]                                  # of one program: queries, or keys
    if T % rows or Dh < block:
        tile = MASKED.get((target, name, q.element_size(), block), tile)
    queries, keys, warps, stages = tile
    strides = (stride for x in strided for stride in x.stride()[:3])
    launch(kernel, (triton.cdiv(T, rows), H, B), *arrays, T, LOG2_E / math.sqrt(Dh), *strides,
           DH=Dh, BLOCK=block, WHOLE=T % rows == 0, QUERIES=queries, KEYS=keys, num_warps=warps, num_stages=stages)


def attention_forward(q, k, v, out=None):
    """Causal attention for training: queries and keys are of the same positions.

    Args:
        q, k, v: (B, T, H, Dh) float    q and k already rotated; Dh even, <= 128; any strides; a copy only if channels are not contiguous
        out:     (B, T, H, Dh) like q   where to write; channels contiguous, other strides free; a new contiguous array if None

    Returns:
        out:     (B, T, H, Dh) like q
        cache:   (q, k, v, out, lse), lse (B, H, T) float32: log2 of the sum over keys of 2^score, score in units of log2

    Raises:
        ValueError: dtype, device, shape or strides that the kernels do not cover; the sentence names the argument
    """
    q, k, v = _checked("attention_forward", q, k, v)
    out = _buffer("attention_forward", "out", out, q)
    B, T, H, _ = q.shape
    lse = torch.empty((B, H, T), dtype=torch.float32, device=q.device)
    _launch(attention_forward_kernel, "forward", q, (q, k, v, out, lse), (q, k, v, out))
    return out, (q, k, v, out, lse)


def attention_backward(dout, cache, out=None):
    """Gradients of attention_forward, by the equations of minillama.nn.flash_attention_backward.

    Args:
        out: three arrays (B, T, H, Dh) where to write, possibly parts of one; new contiguous ones if None

    Returns:
        dq, dk, dv: (B, T, H, Dh) like q
    """
    q, k, v, attended = (_readable(x) for x in cache[:4])
    lse = cache[4].contiguous()
    check("attention_backward", q=q, dout=dout)
    check_same("attention_backward", "shape", q=q, dout=dout)
    check_same("attention_backward", "dtype", q=q, dout=dout)
    dout = _readable(dout)
    dq, dk, dv = (_buffer("attention_backward", name, x, q) for name, x in zip(("dq", "dk", "dv"), out or (None,) * 3, strict=True))
    delta = torch.empty_like(lse)
    _launch(attention_dq_kernel, "dq", q, (dout, q, k, v, attended, lse, dq, delta), (dout, q, k, v, attended, dq))
    _launch(attention_dkdv_kernel, "dkdv", q, (dout, q, k, v, lse, delta, dk, dv), (dout, q, k, v, dk, dv))
    return dq, dk, dv


# Registration with PyTorch: autograd, and torch.compile, which asks the fakes for the shapes of the outputs without running a kernel.

@torch.library.custom_op("minillama::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    out, (*_, lse) = attention_forward(q, k, v)
    return out, lse


@torch.library.custom_op("minillama::attention_backward", mutates_args=())
def _attention_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return attention_backward(dout, (q, k, v, out, lse))


def _like(x):
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fake_lse(q):
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)


_attention.register_fake(lambda q, k, v: (_like(q), _fake_lse(q)))
_attention_backward.register_fake(lambda dout, q, k, v, out, lse: (_like(q), _like(q), _like(q)))
_attention.register_autograd(lambda ctx, dout, dlse: _attention_backward(dout, *ctx.saved_tensors), setup_context=_keep)


def attention(q, k, v):
    """attention_forward with autograd: (B, T, H, Dh) three times -> (B, T, H, Dh)."""
    return _attention(q, k, v)[0]
