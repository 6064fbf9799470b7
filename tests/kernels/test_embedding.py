"""Embedding in Triton: rows gathered, and their gradients summed by id."""
import numpy as np
import pytest
import torch
from kernel_check import DEVICE, DTYPES, LAYOUTS, check_pair, close, rounded, tensors

from kernels import reference
from kernels.embedding import TILE, embedding, embedding_backward, embedding_forward
from minillama import nn

SHAPES = [((1, 1), 1, 1), ((2, 5), 7, 3), ((3, 7), 2, 97), ((1, 131), 11, 64), ((2, 40), 300, 16), ((1, 9), 4, 4099)]  # tokens, V, D


def arrays(shape, V, D, seed=0):
    """Tokens among which the first and the last id occur, and V - 2, if that is another, does not."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, shape)
    tokens[tokens == V - 2] = 0
    tokens.flat[0], tokens.flat[-1] = 0, V - 1
    return [tokens, rng.standard_normal((V, D))]


def check_embedding(inputs, dtype=torch.float32, **options):
    check_pair((embedding_forward, embedding_backward), (nn.embedding_forward, nn.embedding_backward), reference.embedding_forward,
               inputs, dtype, ["dweight"], **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_embedding(shape, dtype):
    check_embedding(arrays(*shape), dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_copies(shape):
    tokens, weight = tensors(arrays(*shape), torch.float16)
    out, _ = embedding_forward(tokens, weight)
    assert torch.equal(out, weight[tokens])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("before, run, after", [
    (0, 1, 0), (0, TILE, 0), (0, TILE + 1, 0), (TILE - 1, TILE, 1), (1, TILE - 2, 5), (5, TILE, 0), (TILE, 2 * TILE, TILE),
    (3, 5 * TILE, 7), (1, 3 * TILE - 2, 2), (0, 2000, 0), (TILE - 1, 2, 1),
])
def test_repeated_id(before, run, after, dtype):
    """One id `run` times, in runs that begin and end inside, at and across the tiles that are summed beforehand."""
    tokens = np.repeat([0, 2, 3], [before, run, after])
    rng = np.random.default_rng(1)
    check_embedding([rng.permutation(tokens)[None], rng.standard_normal((5, 19))], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sum_is_float32(dtype):
    """5001 gradients of one id that nearly cancel: float32 sums them exactly, and half precision anywhere on the way would not."""
    tokens = torch.ones(5001, dtype=torch.int64, device=DEVICE)
    _, cache = embedding_forward(tokens, torch.zeros(3, 2, dtype=dtype, device=DEVICE))
    place = torch.arange(5001, device=DEVICE)
    dout = torch.where(place < 2501, 128 + place % 3, -129).double()
    dweight = embedding_backward(dout.to(dtype)[:, None].expand(-1, 2), cache)
    assert torch.equal(dweight, torch.stack([dout * 0, dout, dout * 0], 1).sum(0).to(dtype)[:, None].expand(3, 2))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_any_layout_of_the_gradient(layout):
    check_embedding(arrays((4, 6), 9, 32), dout=layout)


def test_any_layout_of_the_inputs():
    tokens, weight = tensors(arrays((4, 6), 9, 32), torch.float32)
    expected, _ = embedding_forward(tokens, weight)
    for ids, table in ((tokens.t().contiguous().t(), weight), (tokens, weight.t().contiguous().t()),
                       (tokens, torch.cat([weight, weight], 1)[:, :32])):
        out, _ = embedding_forward(ids, table)
        assert torch.equal(out, expected)


def test_gradient_of_a_sum_has_stride_0():
    tokens, weight = tensors(arrays((3, 50), 9, 33), torch.float32)
    _, cache = embedding_forward(tokens, weight)
    spread = torch.ones((), device=DEVICE).expand(3, 50, 33)
    assert torch.equal(embedding_backward(spread, cache), embedding_backward(torch.ones(3, 50, 33, device=DEVICE), cache))


def test_32_bit_tokens():
    tokens, weight = tensors(arrays((3, 50), 9, 33), torch.float32)
    (out, cache), (out32, cache32) = embedding_forward(tokens, weight), embedding_forward(tokens.int(), weight)
    assert torch.equal(out, out32)
    assert torch.equal(embedding_backward(out, cache), embedding_backward(out, cache32))


def test_wrong_id_is_noticed():
    """NaN where the id is none; its gradient goes nowhere, even where many of them fill whole tiles. Nothing else is touched."""
    wrong = [-1, 5, -2**40, 2**32 + 1, 6]
    tokens = torch.tensor([0, 4, *wrong, *[5] * 70, *[-1] * 70, 4], device=DEVICE)
    weight = torch.arange(15.0, device=DEVICE).view(5, 3)
    wide = torch.full((9, 3), 100.0, device=DEVICE)              # what lies around weight must not come through
    wide[2:7] = weight
    out, cache = embedding_forward(tokens, wide[2:7])
    exists = (tokens >= 0) & (tokens < 5)
    assert torch.equal(out.isnan().all(1), ~exists)
    assert torch.equal(out[exists], weight[tokens[exists]])
    dweight = embedding_backward(torch.ones_like(out), cache)
    assert dweight.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [2, 2, 2]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_autograd(dtype):
    inputs = arrays((2, 9), 7, 5)
    tokens, weight = tensors(inputs, dtype)
    weight.requires_grad_()
    grads = [torch.autograd.grad((function(tokens, weight) ** 2).sum(), weight)[0] for function in (embedding, reference.embedding_forward)]
    out, cache = nn.embedding_forward(*rounded(inputs, dtype))
    close("dweight", *grads, nn.embedding_backward(2 * out, cache), dtype)


def test_registered():
    """opcheck: schema, fake tensors, autograd and tracing agree with what the op does."""
    tokens, weight = tensors(arrays((2, 9), 7, 5), torch.float32)
    torch.library.opcheck(torch.ops.minillama.embedding.default, (tokens, weight.requires_grad_()))


def test_compiles_in_one_graph():
    tokens, weight = tensors(arrays((2, 9), 7, 5), torch.float32)
    weight.requires_grad_()
    eager, compiled = (torch.autograd.grad((function(tokens, weight) ** 2).sum(), weight)[0] for function in
                       (embedding, torch.compile(embedding, fullgraph=True, backend="aot_eager")))
    assert torch.equal(eager, compiled)


IDS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize("tokens, weight, sentence", [
    (IDS, torch.zeros(3, 4, dtype=torch.float64), "weight must be bfloat16, float16 or float32, got float64"),
    (IDS, torch.zeros(4), r"weight must have two axes \(vocabulary and channels\), got shape \(4,\)"),
    (IDS, torch.zeros(0, 4), r"weight must hold at least one element, got shape \(0, 4\)"),
    (IDS.float(), torch.zeros(3, 4), "tokens must be int64 or int32, got float32"),
    (IDS[:0], torch.zeros(3, 4), r"tokens must hold at least one element, got shape \(0,\)"),
    (IDS.to("meta"), torch.zeros(3, 4), "tokens must be on .*, got meta"),
])
def test_bad_input(tokens, weight, sentence):
    tokens, weight = (tensor if tensor.device.type == "meta" else tensor.to(DEVICE) for tensor in (tokens, weight))
    with pytest.raises(ValueError, match="embedding_forward: " + sentence):
        embedding_forward(tokens, weight)


@pytest.mark.parametrize("dout, sentence", [
    (torch.zeros(3, 4), r"dout must have shape \(2, 4\), got \(3, 4\)"),
    (torch.zeros(2, 3), r"dout must have shape \(2, 4\), got \(2, 3\)"),
])
def test_bad_dout(dout, sentence):
    _, cache = embedding_forward(IDS.to(DEVICE), torch.zeros(3, 4, device=DEVICE))
    with pytest.raises(ValueError, match="embedding_backward: " + sentence):
        embedding_backward(dout.to(DEVICE), cache)
