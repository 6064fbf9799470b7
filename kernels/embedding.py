"""Embedding in Triton: one row of weight per token id, and the sum of the gradients of each id.

    out_t = weight[token_t]        dweight_v = sum over the positions where token == v of dout

Readable twin: minillama/nn/embedding.py. Lesson: lessons/15_gpu.ipynb.

Programs:
    forward     one per tile of (ROWS, BLOCK) numbers of out
    backward    the positions are first sorted by id (PyTorch's stable sort), so that all positions of an id are next to each other.
                One program per id and BLOCK channels adds the id's rows of dout in float32, in that order, and writes once: zeros if
                the id does not occur. A frequent id would keep its few programs busy for long. Therefore the sorted positions are cut
                into tiles of TILE beforehand, and one program per tile and BLOCK channels sums the tile if all of it belongs to one
                id. The id's own programs then add these sums, and fewer than TILE rows before and after them.

Roofline, in bytes moved for N tokens, V ids and D channels of b bytes (arithmetic is negligible):
    forward 2bND;  backward bND + bVD. Sorting N ids is extra: it costs launches rather than bytes.

No atomics: the same input gives the same bits. Every row of dout is read once, whatever the ids.

An id outside [0, V) raises no error, because reading it on the host would wait for the device. Instead its row of out is NaN, and its
gradient is dropped; nothing outside weight is read.
"""
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, check_ids, check_shape, launch, rows

TILE = 32  # sorted positions in a tile; an id that occurs 16384 times has 512 sums of tiles


@triton.jit
def _divisible(size, MULTIPLE: tl.constexpr):
    """size, a multiple of MULTIPLE, written so that the compiler knows it and can load that many numbers as one vector."""
    return size // MULTIPLE * MULTIPLE


@triton.jit(do_not_specialize=["N"])
def embedding_forward_kernel(
    tokens_ptr, weight_ptr,                     # in:  (N,), (V, D)
    out_ptr,                                    # out: (N, D)
    N, V, D, stride,                            # stride: elements from one row of weight to the next
    MULTIPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,  # MULTIPLE divides D and stride: how wide a vector may be
):
    D, stride = _divisible(D, MULTIPLE), _divisible(stride, MULTIPLE)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens_ptr + row, row < N, other=-1).to(tl.int64)
    exists = (token >= 0) & (token < V)
    out = tl.load(weight_ptr + token[:, None] * stride + column[None, :], exists[:, None] & (column < D)[None, :], other=float("nan"))
    tl.store(out_ptr + row[:, None] * D + column[None, :], out, (row < N)[:, None] & (column < D)[None, :])


@triton.jit
def _add_rows(total, order_ptr, dout_ptr, first, end, column, D, stride, ROWS: tl.constexpr):
    """total (ROWS, BLOCK) += the rows of dout at the sorted positions first ... end - 1."""
    for start in tl.range(first, end, ROWS):
        place = start + tl.arange(0, ROWS)
        position = tl.load(order_ptr + place, place < end, other=0)
        at = dout_ptr + position[:, None] * stride + column[None, :]
        total += tl.load(at, (place < end)[:, None] & (column < D)[None, :], other=0.0).to(tl.float32)
    return total


@triton.jit
def embedding_tile_kernel(
    order_ptr, ids_ptr, dout_ptr,               # in:  (N,) positions; (N,) their ids, ascending; (N, D)
    partial_ptr,                                # out: (N // TILE, D), only the rows of tiles that belong to one id
    D, stride,
    TILE: tl.constexpr, MULTIPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    D, stride = _divisible(D, MULTIPLE), _divisible(stride, MULTIPLE)
    tile = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if tl.load(ids_ptr + tile * TILE) == tl.load(ids_ptr + tile * TILE + TILE - 1):
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        total = _add_rows(total, order_ptr, dout_ptr, tile * TILE, tile * TILE + TILE, column, D, stride, ROWS)
        tl.store(partial_ptr + tile * D + column, tl.sum(total, 0), column < D)


@triton.jit
def embedding_backward_kernel(
    order_ptr, starts_ptr, dout_ptr, partial_ptr,  # in:  (N,), (V + 1,) where each id's run begins among them, (N, D), (N // TILE, D)
    dweight_ptr,                                   # out: (V, D)
    D, stride,
    TILE: tl.constexpr, MULTIPLE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    D, stride = _divisible(D, MULTIPLE), _divisible(stride, MULTIPLE)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    first = tl.load(starts_ptr + token)
    end = tl.load(starts_ptr + token + 1)
    first_tile = tl.cdiv(first, TILE)                            # whole tiles are first_tile ... last_tile - 1; there may be none
    last_tile = end // TILE
    head_end = tl.minimum(end, first_tile * TILE)
    tail = tl.maximum(head_end, last_tile * TILE)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    total = _add_rows(total, order_ptr, dout_ptr, first, head_end, column, D, stride, ROWS)
    for start in tl.range(first_tile, last_tile, ROWS):
        tile = start + tl.arange(0, ROWS)
        at = partial_ptr + tile[:, None].to(tl.int64) * D + column[None, :]
        total += tl.load(at, (tile < last_tile)[:, None] & (column < D)[None, :], other=0.0)
    total = _add_rows(total, order_ptr, dout_ptr, tail, end, column, D, stride, ROWS)
    tl.store(dweight_ptr + token * D + column, tl.sum(total, 0).to(dweight_ptr.dtype.element_ty), column < D)


def _tile(D, elements):
    """Rows, width and warps of a tile of `elements` numbers, at most 4096 channels wide."""
    block = min(max(16, triton.next_power_of_2(D)), 4096)
    count = min(TILE, max(1, elements // block))
    return {"ROWS": count, "BLOCK": block, "num_warps": min(8, max(1, count * block // 512))}


def _multiple(*sizes):
    return math.gcd(16, *sizes)


def embedding_forward(tokens, weight):
    """Look up the row of each id.

    Args:
        tokens: (B, T) int64 or int32    ids in [0, V); any other id gives a row of NaN
        weight: (V, D) float             one row per id

    Returns:
        out:    (B, T, D) like weight
        cache:  (tokens, shape of weight, dtype of weight)

    Raises:
        ValueError: dtype, device or shape that the kernel does not cover; the sentence names the argument
    """
    check("embedding_forward", weight=weight)
    check_ids("embedding_forward", tokens.shape, weight.device, tokens=tokens)
    if weight.ndim != 2:
        raise ValueError(f"embedding_forward: weight must have two axes (vocabulary and channels), got shape {tuple(weight.shape)}")
    if tokens.numel() == 0:
        raise ValueError(f"embedding_forward: tokens must hold at least one element, got shape {tuple(tokens.shape)}")
    V, D = weight.shape
    flat, table = tokens.reshape(-1).contiguous(), rows(weight)
    N, stride, shape = len(flat), table.stride(0), _tile(D, 4096)
    out = torch.empty((*tokens.shape, D), dtype=weight.dtype, device=weight.device)
    launch(embedding_forward_kernel, (triton.cdiv(N, shape["ROWS"]), triton.cdiv(D, shape["BLOCK"])), flat, table, out,
           N, V, D, stride, MULTIPLE=_multiple(D, stride), **shape)
    return out, (tokens, weight.shape, weight.dtype)


def embedding_backward(dout, cache):
    """Gradient of embedding_forward: dweight (V, D) like weight. The equation is in the readable twin."""
    tokens, (V, D), dtype = cache
    check("embedding_backward", dout=dout)
    check_shape("embedding_backward", (*tokens.shape, D), dout=dout)
    dflat = rows(dout)
    N = len(dflat)
    ids = tokens.reshape(-1).clamp(-1, V).to(torch.int32)        # half as many bytes to sort; what is no id becomes -1 or V
    ids, order = torch.sort(ids, stable=True)
    starts = torch.searchsorted(ids, torch.arange(V + 1, dtype=torch.int32, device=ids.device))
    dweight = torch.empty((V, D), dtype=dtype, device=dout.device)
    stride, shape = dflat.stride(0), _tile(D, 8192)
    shape["MULTIPLE"], columns = _multiple(D, stride), triton.cdiv(D, shape["BLOCK"])
    partial = torch.empty((max(1, N // TILE), D), dtype=torch.float32, device=dout.device)
    if N >= TILE:
        launch(embedding_tile_kernel, (N // TILE, columns), order, ids, dflat, partial, D, stride, TILE=TILE, **shape)
    launch(embedding_backward_kernel, (V, columns), order, starts, dflat, partial, dweight, D, stride, TILE=TILE, **shape)
    return dweight


# Registration with PyTorch: autograd, and torch.compile, which asks the fakes for the shapes of the outputs without running a kernel.

@torch.library.custom_op("minillama::embedding", mutates_args=())
def _embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    return embedding_forward(tokens, weight)[0]


@torch.library.custom_op("minillama::embedding_backward", mutates_args=())
def _embedding_backward(dout: Tensor, tokens: Tensor, V: int) -> Tensor:
    return embedding_backward(dout, (tokens, (V, dout.shape[-1]), dout.dtype))


_embedding.register_fake(lambda tokens, weight: weight.new_empty((*tokens.shape, weight.shape[1])))
_embedding_backward.register_fake(lambda dout, tokens, V: dout.new_empty((V, dout.shape[-1])))


def _keep(ctx, inputs, output):
    tokens, weight = inputs
    ctx.save_for_backward(tokens)
    ctx.V = weight.shape[0]


_embedding.register_autograd(lambda ctx, dout: (None, _embedding_backward(dout, *ctx.saved_tensors, ctx.V)), setup_context=_keep)


def embedding(tokens, weight):
    """embedding_forward with autograd: (B, T), (V, D) -> (B, T, D)."""
    return _embedding(tokens, weight)
