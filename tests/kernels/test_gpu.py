"""What only a GPU can show: sizes beyond 2^31, no waiting for the device, no compiling anew, other devices, and training in bfloat16.

`pytest -m gpu` runs these, and the tests of every kernel on CUDA tensors, bfloat16 included.
"""
import dataclasses

import numpy as np
import pytest
import torch
from cuda_modes import quiet_inductor, waiting
from tolerances import TWIN_RUN, TWIN_RUN_BFLOAT16

from minillama import nn
from minillama.config import ModelConfig, TrainConfig, preset
from minillama.engine.numpy_engine import NumpyEngine
from minillama.errors import InputError
from minillama.nn.model import BLOCK_NAMES

pytestmark = pytest.mark.gpu
CUDA, BF16 = torch.device("cuda"), torch.bfloat16
CONFIG = ModelConfig(dim=256, n_layers=2, n_heads=2, vocab_size=1000, max_seq_len=4096)


@pytest.fixture(autouse=True)
def free_memory():
    yield
    torch.cuda.empty_cache()


def layer(dtype=BF16, device=CUDA):
    """The 9 weights of a layer of CONFIG."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = {name: nn.param_shapes(CONFIG)[f"layers.0.{name}"] for name in BLOCK_NAMES}
    return {name: torch.randn(shape, generator=generator, device=device).mul(shape[-1] ** -0.5).to(dtype) for name, shape in shapes.items()}


def tables(T, device=CUDA):
    from kernels import reference

    return [table.to(device) for table in reference.rope_tables(T, CONFIG.head_dim)]


# More than 2^31 elements: the last rows of a large tensor must be what the same rows give alone.

def test_many_rows_rmsnorm():
    from kernels.rmsnorm import add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward

    x, weight = torch.randn(600_000, 4096, dtype=BF16, device=CUDA), torch.randn(4096, dtype=BF16, device=CUDA)
    last = x[-3:].clone()
    out, cache = rmsnorm_forward(x, weight)
    alone, alone_cache = rmsnorm_forward(last, weight)
    assert torch.equal(out[-3:], alone)
    dx, _ = rmsnorm_backward(out, cache)
    assert torch.equal(dx[-3:], rmsnorm_backward(alone, alone_cache)[0])
    del dx, cache
    (added, total), _ = add_rmsnorm_forward(x, out, weight)
    (added_alone, total_alone), _ = add_rmsnorm_forward(last, alone, weight)
    assert torch.equal(added[-3:], added_alone) and torch.equal(total[-3:], total_alone)


def test_many_elements_swiglu_and_rope():
    from kernels.rope import rope_forward
    from kernels.swiglu import swiglu_backward, swiglu_forward

    packed = torch.randn(2**31 // 11008 // 2 + 5, 2 * 11008, dtype=BF16, device=CUDA)
    gate, up = packed.chunk(2, -1)
    out, cache = swiglu_forward(gate, up)
    assert torch.equal(out[-2:], swiglu_forward(gate[-2:], up[-2:])[0])
    dgate, dup = swiglu_backward(out, cache)
    for whole, alone in zip((dgate, dup), swiglu_backward(out[-2:], (gate[-2:], up[-2:]))):
        assert torch.equal(whole[-2:], alone)
    del packed, gate, up, out, cache, dgate, dup
    x = torch.randn(2**31 // (64 * 32 * 128) + 1, 64, 32, 128, dtype=BF16, device=CUDA)
    cos, sin = tables(64)
    assert torch.equal(rope_forward(x, cos, sin)[0][-1:], rope_forward(x[-1:], cos, sin)[0])


def test_many_elements_attention():
    from kernels.attention import attention_backward, attention_forward

    q = torch.randn(2**31 // (256 * 32 * 128) + 1, 256, 32, 128, dtype=BF16, device=CUDA)
    out, cache = attention_forward(q, q, q)
    alone, alone_cache = attention_forward(*[q[-1:]] * 3)
    assert torch.equal(out[-1:], alone)
    for whole, single in zip(attention_backward(out, cache), attention_backward(alone, alone_cache)):
        assert torch.equal(whole[-1:], single)


def test_many_elements_cross_entropy():
    from kernels.cross_entropy import cross_entropy_

    logits = torch.randn(2**31 // 32000 + 7, 32000, dtype=BF16, device=CUDA)
    targets, scale = torch.arange(len(logits), device=CUDA) % 32000, torch.ones((), device=CUDA)
    last = logits[-3:].clone()
    nats = cross_entropy_(logits, targets, scale)
    alone = cross_entropy_(last, targets[-3:], scale)
    assert torch.equal(nats[-3:], alone) and torch.equal(logits[-3:], last)


def test_many_elements_embedding():
    from kernels.embedding import embedding_backward, embedding_forward

    weight, tokens = torch.randn(1000, 4096, dtype=BF16, device=CUDA), torch.arange(600_000, device=CUDA) % 999
    tokens[-1] = 999                                             # this id occurs once, beyond element 2^31
    out, cache = embedding_forward(tokens[None], weight)
    assert torch.equal(out[0, -3:], weight[tokens[-3:]])
    assert torch.equal(embedding_backward(out, cache)[999], weight[999])


def test_many_elements_adamw():
    from kernels.adamw import adamw_step, clip_coefficient

    n = 2**31 + 5
    param, grad, m, v = (torch.zeros(n, device=CUDA) for _ in range(4))
    grad[-3:] = 2.0
    norm, coefficient = clip_coefficient(grad, 1.0)
    assert norm.item() == pytest.approx(2 * 3**0.5)
    adamw_step(param, grad, m, v, 1, 1e-2, coefficient=coefficient)
    assert torch.allclose(param[-3:], torch.full((3,), -1e-2, device=CUDA)) and not param[:-3].any()


# No surprises.

def test_nothing_waits_for_the_device():
    """Not one of the launchers synchronises: PyTorch is told to raise where it would."""
    from kernels.adamw import adamw_step, clip_coefficient
    from kernels.block import block_backward, block_forward
    from kernels.embedding import embedding_backward, embedding_forward
    from kernels.linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward

    params, (cos, sin) = layer(), tables(128)
    tokens = torch.randint(1000, (2, 128), device=CUDA)
    weight = torch.randn(1000, 256, dtype=BF16, device=CUDA)
    flat = [torch.rand(10_000, device=CUDA) for _ in range(4)]

    def step():
        x, embedded = embedding_forward(tokens, weight)
        out, cache = block_forward(x, params, cos, sin, CONFIG)
        loss, scored = linear_cross_entropy_forward(out, weight, tokens)
        dx, _ = linear_cross_entropy_backward(torch.ones_like(loss), scored)
        dx, _ = block_backward(dx, cache)
        embedding_backward(dx, embedded)
        adamw_step(*flat, 1, 1e-3, coefficient=clip_coefficient(flat[1], 1.0)[1])

    step()                                                       # compiles
    torch.cuda.synchronize()
    with waiting("error"):
        step()


def test_a_layer_can_be_captured_in_a_graph():
    from kernels.block import block_backward, block_forward

    params, (cos, sin) = layer(), tables(128)
    x = torch.randn(2, 128, 256, dtype=BF16, device=CUDA)

    def both():
        out, cache = block_forward(x, params, cos, sin, CONFIG)
        return out, *block_backward(out, cache)

    both()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out, dx, grads = both()
    x.copy_(torch.randn_like(x))
    graph.replay()
    expected_out, expected_dx, expected = both()
    assert torch.equal(out, expected_out) and torch.equal(dx, expected_dx)
    assert all(torch.equal(grads[name], expected[name]) for name in grads)


def test_a_new_length_compiles_nothing():
    """Lengths of every class that Triton tells apart (1, multiples of 16, others), then new ones."""
    from triton import knobs

    from kernels.block import block_backward, block_forward
    from kernels.embedding import embedding_backward, embedding_forward
    from kernels.linear_cross_entropy import linear_cross_entropy_forward

    params, weight, compiled = layer(), torch.randn(1000, 256, dtype=BF16, device=CUDA), []

    def run(T):
        tokens = torch.randint(1000, (1, T), device=CUDA)
        x, embedded = embedding_forward(tokens, weight)
        out, cache = block_forward(x, params, *tables(T), CONFIG)
        linear_cross_entropy_forward(out, weight, tokens)
        dx, _ = block_backward(out, cache)
        embedding_backward(dx, embedded)

    for T in (1, 7, 16, 100, 128, 1000, 2048):
        run(T)
    knobs.runtime.jit_post_compile_hook = lambda **details: compiled.append(details["fn"].name)
    try:
        for T in (2, 17, 48, 999, 1008, 2047, 4096):
            run(T)
    finally:
        knobs.runtime.jit_post_compile_hook = None
    assert compiled == []


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one():
    from kernels.block import block_backward, block_forward

    results = []
    for index in (0, 1):
        device = torch.device("cuda", index)
        x = torch.ones(1, 65, 256, dtype=BF16, device=device)
        out, cache = block_forward(x, {name: tensor.to(device) for name, tensor in layer().items()}, *tables(65, device), CONFIG)
        results.append((out.cpu(), block_backward(out, cache)[0].cpu()))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@quiet_inductor
def test_compiled_by_inductor_in_one_graph():
    """All ops in one function: the same numbers, eager and compiled."""
    from kernels.attention import attention
    from kernels.cross_entropy import cross_entropy
    from kernels.embedding import embedding
    from kernels.linear_cross_entropy import linear_cross_entropy
    from kernels.rmsnorm import add_rmsnorm, rmsnorm
    from kernels.rope import rope
    from kernels.swiglu import swiglu

    cos, sin = tables(64)
    tokens = torch.randint(1000, (2, 64), device=CUDA)
    weight, gain = torch.randn(1000, 256, device=CUDA) / 16, torch.rand(256, device=CUDA)

    def model(weight, gain):
        x = embedding(tokens, weight)
        heads = rmsnorm(x, gain, 1e-6).view(2, 64, 2, 128)
        a = attention(rope(heads, cos, sin), rope(heads, cos, sin), heads).reshape(x.shape)
        n, x = add_rmsnorm(a, x, gain, 1e-6)
        x = swiglu(n, x)
        return linear_cross_entropy(x, weight, tokens) + cross_entropy(x @ weight.t(), tokens)

    results = []
    for function in (model, torch.compile(model, fullgraph=True)):
        leaves = [weight.clone().requires_grad_(), gain.clone().requires_grad_()]
        loss = function(*leaves)
        results.append((loss, *torch.autograd.grad(loss, leaves)))
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_checkpointing_recomputes_the_same():
    """torch.utils.checkpoint runs forward again: what an op wrote into its input would show."""
    from torch.utils.checkpoint import checkpoint

    from kernels.block import block

    results = []
    for again in (False, True):
        x = torch.ones(2, 64, 256, dtype=BF16, device=CUDA).cumsum(1).requires_grad_()
        arguments = (x, layer(), *tables(64), CONFIG)
        out = checkpoint(block, *arguments, use_reentrant=False) if again else block(*arguments)
        results.append(torch.autograd.grad(out.float().square().sum(), x)[0])
    assert torch.equal(*results)


# Training.

def batches(config, recipe, steps):
    """Batches of a text with something to learn: every token is followed by one of two."""
    rng = np.random.default_rng(0)
    ids = np.zeros((steps, recipe.batch_size, recipe.seq_len + 1), np.int64)
    ids[..., 0] = rng.integers(0, config.vocab_size, ids.shape[:2])
    for t in range(recipe.seq_len):
        ids[..., t + 1] = (3 * ids[..., t] + rng.integers(0, 2, ids.shape[:2])) % config.vocab_size
    return [(step[:, :-1], step[:, 1:]) for step in ids]


@pytest.mark.parametrize("dtype, tolerance", [("float32", TWIN_RUN), ("bfloat16", TWIN_RUN_BFLOAT16)])
def test_twin_run(dtype, tolerance):
    """200 steps of nano beside the NumPy engine: every loss agrees."""
    from kernels.engine import TorchEngine

    config = ModelConfig(**preset("nano").model)
    recipe = TrainConfig(**preset("nano").train | {"batch_size": 4, "seq_len": 64})
    engines = [NumpyEngine(config, recipe), TorchEngine(config, recipe, kernels="triton", dtype=dtype)]
    losses = [[engine.train_step([batch], 1e-3).loss for batch in batches(config, recipe, 200)] for engine in engines]
    assert losses[0][-1] < 0.7 * losses[0][0]
    assert np.abs(np.subtract(*losses)).max() <= tolerance


def test_the_same_seed_gives_the_same_bits():
    from kernels.engine import TorchEngine

    config, recipe = ModelConfig(**preset("nano").model), TrainConfig(**preset("nano").train)
    results = []
    for _ in range(2):
        engine = TorchEngine(config, recipe, kernels="triton", attention="triton")  # cuDNN's backward makes no such promise
        losses = [engine.train_step([batch], 1e-3).loss for batch in batches(config, recipe, 20)]
        results.append((losses, engine.state()["params"]))
    assert results[0][0] == results[1][0]
    assert all(np.array_equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_out_of_memory_is_one_sentence():
    from kernels.engine import TorchEngine

    config = dataclasses.replace(CONFIG, vocab_size=65536)
    engine = TorchEngine(config, TrainConfig(seq_len=4096), kernels="reference")
    rows = np.zeros((4096, 4096), np.int64)
    with pytest.raises(InputError, match=r"a batch of 4096 x 4096 tokens does not fit the memory of cuda.*lower --batch-size"):
        engine.train_step([(rows, rows)], 1e-3)
