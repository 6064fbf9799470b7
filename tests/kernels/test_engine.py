"""The PyTorch engine: the NumPy engine's numbers, its errors, and a state that moves between the two in the middle of a run."""
import dataclasses
import itertools
import math
import weakref

import numpy as np
import pytest
import torch
from cuda_modes import waiting
from helpers import RECIPE, assert_close, batch, ignored, large_params, split
from tolerances import ACCUMULATION_FLOAT32, DECODE_FLOAT32, INTERCHANGE, MODEL_FLOAT32, TWIN_RUN, TWIN_RUN_BFLOAT16
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.engine import TorchEngine
from minillama import nn
from minillama.config import ModelConfig, TrainConfig, preset
from minillama.engine.numpy_engine import NumpyEngine
from minillama.engine.protocol import Diverged
from minillama.errors import InputError
from minillama.text.mixture import Mixture, load_shard
from minillama.text.prepare import shares, train_tokenizer
from minillama.text.sources import builtin_sources
from minillama.train import train_step


def on_cpu(config, recipe=RECIPE, **options):
    return TorchEngine(config, recipe, threads=1, device="cpu", **options)


def arrays(engine):
    """All that a step may change, copied: parameters and both moments."""
    state = engine.state()
    return {f"{kind}.{name}": array.copy() for kind in ("params", "m", "v") for name, array in state[kind].items()}


def test_steps_are_numpys(tiny):
    """Losses, norms, parameters and moments of 6 steps, and what an evaluation sees."""
    ours, theirs = NumpyEngine(tiny, RECIPE, threads=1), on_cpu(tiny)
    for seed in range(6):
        whole = batch(tiny, 4, 9, seed)
        left, right = ours.train_step([whole], 1e-2), theirs.train_step([whole], 1e-2)
        assert right.loss == pytest.approx(left.loss, abs=INTERCHANGE)
        assert right.grad_norm == pytest.approx(left.grad_norm, rel=INTERCHANGE)
    assert theirs.step == 6
    assert_close(arrays(theirs), arrays(ours), INTERCHANGE)
    assert theirs.loss(*whole) == pytest.approx(ours.loss(*whole), rel=INTERCHANGE)
    assert theirs.logits(whole[0]).dtype == np.float32
    assert np.abs(theirs.logits(whole[0]) - ours.logits(whole[0])).max() <= INTERCHANGE


def test_same_input_matrices_lie_side_by_side(tiny):
    """wq wk wv, and w1 w3: the block takes them as one matrix. Norm gains come last, for they do not decay."""
    engine = on_cpu(tiny)
    for layer in engine.model.layers:
        for names in (("wq", "wk", "wv"), ("w1", "w3")):
            for left, right in itertools.pairwise(names):
                assert getattr(layer, left).data_ptr() + 4 * getattr(layer, left).numel() == getattr(layer, right).data_ptr()
    assert (engine._params.flat[engine._params.matrices:] == 1).all()
    assert len(engine._params.flat) - engine._params.matrices == (2 * tiny.n_layers + 1) * tiny.dim


def test_accumulation_is_weighted_by_tokens(tiny):
    whole, engines = batch(tiny, 8, 9), [on_cpu(tiny) for _ in range(2)]
    one, many = engines[0].train_step([whole], 1e-2), engines[1].train_step(split(whole, 3, 7), 1e-2)
    assert many.loss == pytest.approx(one.loss, abs=1e-6)
    assert_close(engines[1]._grads.numpy(), engines[0]._grads.numpy(), ACCUMULATION_FLOAT32)
    assert all(parameter.grad is None for parameter in engines[1].model.parameters())


def test_norm_gains_do_not_decay(tiny):
    engine = on_cpu(tiny, dataclasses.replace(RECIPE, weight_decay=0.5))
    before = arrays(engine)
    assert engine.train_step([ignored(tiny)], 0.1) == (0, 0)
    for name, array in engine.state()["params"].items():
        assert np.allclose(array, before[f"params.{name}"] * (1 if array.ndim == 1 else 0.95), rtol=1e-6), name


def test_a_parameter_without_a_gradient_has_a_gradient_of_0(tiny):
    engine = on_cpu(tiny)
    engine.train_step([batch(tiny, 2, 5)], 1e-2)
    engine.model.layers[1].w2.requires_grad_(False)
    engine.train_step([batch(tiny, 2, 5)], 1e-2)
    assert (engine._grads.views["layers.1.w2"] == 0).all()
    assert (engine._grads.views["layers.1.w1"] != 0).any()


class Synchronisations(TorchDispatchMode):
    """Counts what reads a tensor's value into Python."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_waits_for_the_device_once(tiny):
    """Nothing but the final .tolist(), which does not pass here."""
    engine = on_cpu(tiny)
    with Synchronisations() as seen:
        engine.train_step(split(batch(tiny, 4, 5), 1), 1e-2)
        assert seen.count == 0
        torch.ones(()).item()
        assert seen.count == 1


def spoil_parameter(engine):
    (engine.params if isinstance(engine, NumpyEngine) else engine._params.views)["layers.1.w2"][3, 4] = np.inf


def test_divergence_is_numpys(tiny):
    """The same sentence; nothing has changed."""
    said = []
    for engine in (NumpyEngine(tiny, RECIPE, threads=1), on_cpu(tiny)):
        engine.train_step([batch(tiny, 2, 5)], 1e-2)
        spoil_parameter(engine)
        kept = arrays(engine)
        with pytest.raises(Diverged, match=r"diverged at step 2: .*not finite is parameter layers\.1\.w2") as error:
            engine.train_step([batch(tiny, 2, 5)], 1e-2)
        assert all(np.array_equal(array, kept[name]) for name, array in arrays(engine).items())
        assert engine.step == 1
        said.append(str(error.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_exploding_gradient_is_named(dtype, tiny):
    engine = on_cpu(tiny, dtype=dtype)
    engine.train_step([batch(tiny, 2, 5)], 1e-2)
    kept, copy = arrays(engine), engine.model.layers[0].wk.detach().clone()
    engine.model.layers[0].wk.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(Diverged, match=r"step 2: loss \d.*, gradient norm nan; .* not finite is the gradient of layers\.0\.wk"):
        engine.train_step([batch(tiny, 2, 5)], 1e-2)
    assert all(np.array_equal(array, kept[name]) for name, array in arrays(engine).items())
    assert torch.equal(engine.model.layers[0].wk, copy)
    assert engine.step == 1


def test_a_loss_that_is_not_finite_changes_nothing_either(tiny, monkeypatch):
    engine = on_cpu(tiny)
    kept, original = arrays(engine), engine.model.forward
    monkeypatch.setattr(engine.model, "forward", lambda *pair: original(*pair) + math.inf)
    with pytest.raises(Diverged, match="step 1: loss inf"):
        engine.train_step([batch(tiny, 2, 5)], 1e-2)
    assert all(np.array_equal(array, kept[name]) for name, array in arrays(engine).items())


@pytest.mark.parametrize("first, second", [(NumpyEngine, TorchEngine), (TorchEngine, NumpyEngine), (TorchEngine, TorchEngine)])
def test_state_moves_between_engines(first, second, tiny):
    """3 steps here and 3 there are 6 NumPy steps."""
    def engine(kind, seed):
        return (on_cpu if kind is TorchEngine else NumpyEngine)(tiny, dataclasses.replace(RECIPE, seed=seed))

    batches = [batch(tiny, 4, 9, seed) for seed in range(6)]
    begin, end, whole = engine(first, 3), engine(second, 9), engine(NumpyEngine, 3)
    for one in batches[:3]:
        begin.train_step([one], 1e-2)
    end.load_state(begin.state())
    for one in batches[3:]:
        end.train_step([one], 1e-2)
    for one in batches:
        whole.train_step([one], 1e-2)
    assert end.step == whole.step == 6
    assert_close(arrays(end), arrays(whole), INTERCHANGE)


@pytest.mark.parametrize("cuts", [(), (1, 2, 3, 4, 5, 6, 7, 8), (4, 5, 8)])
def test_decode_is_the_full_forward(cuts, tiny):
    engine = on_cpu(tiny, params=large_params(tiny))
    tokens, _ = batch(tiny, 2, 9)
    cache = engine.new_cache(batch_size=2, capacity=9)
    parts = [engine.decode(part, cache) for part in np.split(tokens, cuts, axis=1)]
    assert np.abs(np.concatenate(parts, axis=1) - engine.logits(tokens)).max() <= DECODE_FLOAT32
    engine.train_step([batch(tiny, 2, 9)], 1e-2)                 # after decoding too: the tables of RoPE serve both


def test_an_engine_can_only_infer(tiny):
    params, whole = nn.init_params(tiny, 5), batch(tiny, 2, 9)
    engine = on_cpu(tiny, None, params=params)
    assert engine.loss(*whole) == pytest.approx(NumpyEngine(tiny, params=params, threads=1).loss(*whole), rel=MODEL_FLOAT32)
    assert not any(parameter.requires_grad for parameter in engine.model.parameters())


def test_tokens_are_checked(tiny):
    engine = on_cpu(tiny)
    bad, long = np.full((1, 3), 11), np.zeros((1, 17), int)
    for use in (engine.logits, lambda tokens: engine.loss(tokens, tokens), lambda tokens: engine.train_step([(tokens, tokens)], 1e-2),
                lambda tokens: engine.decode(tokens, engine.new_cache())):
        with pytest.raises(InputError, match=r"a token id must be from 0 to 10 \(the vocabulary\), got 11$"):
            use(bad)
        with pytest.raises(InputError, match=r"a sequence must have at most 16 tokens \(max_seq_len\), got 17$"):
            use(long)
    cache = engine.new_cache()
    engine.decode(np.zeros((1, 16), int), cache)
    with pytest.raises(InputError, match=r"a sequence must have at most 16 tokens \(max_seq_len\), got 17$"):
        engine.decode(np.zeros((1, 1), int), cache)


def test_bfloat16_learns_in_float32():
    """What the model computes with is the float32 parameters, rounded; what is kept is float32."""
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=50, multiple_of=8, max_seq_len=32)
    engine, whole = on_cpu(config, dtype="bfloat16"), batch(config, 4, 16, ignored=0)
    losses = [engine.train_step(split(whole, 1), 1e-2).loss for _ in range(40)]
    assert losses[0] == pytest.approx(np.log(50), abs=0.1)
    assert losses[-1] < 0.5
    for arena in (engine._params, engine._grads, engine._m, engine._v):
        assert arena.flat.dtype == torch.float32
    for name, parameter in engine.model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, engine._params.views[name].bfloat16()), name
    assert (engine._params.flat != engine._rounded.flat.float()).any()
    assert all(array.dtype == np.float32 for array in arrays(engine).values())
    assert engine.logits(whole[0]).dtype == np.float32
    other = on_cpu(config, dtype="bfloat16")
    other.load_state(engine.state())
    assert torch.equal(other._rounded.flat, engine._rounded.flat)


def test_bfloat16_micro_batches_are_summed_in_float32(tiny):
    """A gradient 1000 times smaller than the sum so far would vanish in a bfloat16 sum, which has 8 bits."""
    engine = on_cpu(tiny, dtype="bfloat16")
    large, small = torch.ones(11, 12, dtype=torch.bfloat16), torch.full((11, 12), 2.0**-10, dtype=torch.bfloat16)
    for engine._first, grad in ((True, large), (False, small)):
        (engine.model.output * grad).sum().backward()
    assert (engine._grads.views["output"] == 1 + 2.0**-10).all()


# ------------------------------------------------------------------------------------------------------------------ twin runs

@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """The nano preset with its recipe, and batches of a smaller built-in corpus."""
    model, recipe = ModelConfig(**preset("nano").model), TrainConfig(**preset("nano").train)
    sources = builtin_sources(recipe.seed, 300_000)
    tokenizer = train_tokenizer(sources, model.vocab_size, recipe.val_fraction, model.vocab_size)
    cache = tmp_path_factory.mktemp("cache")
    shards = [load_shard(source, share, tokenizer, cache, recipe.val_fraction) for source, share in zip(sources, shares(sources))]
    return model, recipe, Mixture(shards, recipe.seq_len, recipe.seed, tokenizer.bos_id)


def test_twin_run(nano):
    """50 steps of the default training: the loss curves of NumPy and of PyTorch are one."""
    model, recipe, mixture = nano
    engines = NumpyEngine(model, recipe, threads=1), on_cpu(model, recipe)
    for step in range(1, 51):
        ours, theirs = (train_step(engine, mixture, recipe) for engine in engines)
        assert ours["step"] == step
        assert theirs["loss"] == pytest.approx(ours["loss"], abs=TWIN_RUN), step
    assert ours["loss"] < 4                                      # from ln 512 = 6.24: something was learned


def need_triton():
    pytest.importorskip("triton", reason="triton is not installed: it exists for Linux alone")


def follow(engine, config, tolerance, steps=3):
    """Train it beside NumPy, accumulating; then compare what an evaluation sees, and score nothing."""
    numpy = NumpyEngine(config, RECIPE, threads=1)
    for seed in range(steps):
        whole = batch(config, 3, 20, seed)
        ours, theirs = numpy.train_step(split(whole, 1), 1e-2), engine.train_step(split(whole, 1), 1e-2)
        assert theirs.loss == pytest.approx(ours.loss, abs=tolerance)
        assert theirs.grad_norm == pytest.approx(ours.grad_norm, rel=10 * tolerance)
    assert engine.loss(*whole)[0] == pytest.approx(numpy.loss(*whole)[0], rel=tolerance)
    if engine.dtype == torch.float32:                            # in bfloat16, AdamW's first steps amplify the rounding of small gradients
        assert np.abs(engine.logits(whole[0]) - numpy.logits(whole[0])).max() <= tolerance
    assert engine.train_step([ignored(config)], 1e-2) == (0, 0)


SMALL_MODEL = ModelConfig(dim=32, n_layers=2, n_heads=2, vocab_size=50, multiple_of=16, max_seq_len=32)


def test_bfloat16_follows_numpy():
    follow(on_cpu(SMALL_MODEL, dtype="bfloat16"), SMALL_MODEL, TWIN_RUN_BFLOAT16)


def test_triton_follows_numpy():
    """3 steps through every kernel, interpreted where there is no GPU."""
    need_triton()
    engine = TorchEngine(SMALL_MODEL, RECIPE, threads=1, kernels="triton", dtype="float32")
    assert engine.name == "triton"
    follow(engine, SMALL_MODEL, TWIN_RUN)


def test_products_may_sum_the_gradients_themselves():
    """As on a GPU: the sums of the layers' matrices are those of the hooks, which then receive none of these gradients."""
    need_triton()
    hooks, products = (TorchEngine(SMALL_MODEL, RECIPE, threads=1, kernels="triton", dtype="float32", graphs=False) for _ in range(2))
    for layer in hooks.model.layers:
        layer.block = getattr(layer.block, "func", layer.block)  # on a GPU the engine has given its `products`
    if products.device.type == "cpu":
        products._sum_in_products()
    received = []
    for name, parameter in products.model.named_parameters():
        parameter.register_hook(lambda grad, name=name: received.append(name) if grad is not None else None)
        products._grads.views[name].fill_(math.nan)              # what was there before the step is not read
    whole = split(batch(SMALL_MODEL, 3, 20), 1)
    for engine in (hooks, products):
        engine.train_step(whole, 1e-2)
    assert_close({name: view.cpu().numpy() for name, view in products._grads.views.items()}, hooks._grads.numpy(), ACCUMULATION_FLOAT32)
    assert {*received} == {name for name, view in products._grads.views.items() if view.ndim == 1 or not name.startswith("layers")}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype, tolerance", [("float32", TWIN_RUN), ("bfloat16", TWIN_RUN_BFLOAT16)])
@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_a_gpu_follows_numpy(kernels, dtype, tolerance):
    if kernels == "triton":
        need_triton()
    follow(TorchEngine(SMALL_MODEL, RECIPE, device="cuda", kernels=kernels, dtype=dtype), SMALL_MODEL, tolerance)


@pytest.mark.gpu
def test_a_step_waits_for_a_gpu_once():
    engine = TorchEngine(SMALL_MODEL, RECIPE, device="cuda")
    whole = batch(SMALL_MODEL, 3, 20)
    for _ in range(2):                                           # the warm-up, and the captures
        engine.train_step(split(whole, 1), 1e-2)
    with waiting("warn"), pytest.warns(UserWarning, match="synchronizing CUDA operation") as seen:
        engine.train_step(split(whole, 1), 1e-2)
    assert len(seen) == 1


@pytest.mark.parametrize("attention", ["flash", pytest.param("cudnn", marks=pytest.mark.gpu)])
def test_pytorchs_attention_keeps_nothing_beyond_its_micro_batch(attention, monkeypatch):
    """q, k, v and out of every layer are freed before the next micro-batch, and before the optimiser."""
    need_triton()
    from kernels import block

    engine = TorchEngine(SMALL_MODEL, RECIPE, threads=1, kernels="triton", attention=attention)  # bfloat16 on CUDA, as its back ends want
    kept, alive, forward, make, clip = [], [], block.sdpa_forward, engine._send, engine._optim.clip_coefficient

    def spied(*arguments):
        out, (backend, (inputs, attended)) = forward(*arguments)
        kept.extend(weakref.ref(tensor) for tensor in (*inputs, attended))
        return out, (backend, (inputs, attended))

    def count(function):
        return lambda *arguments: (alive.append(sum(ref() is not None for ref in kept)), function(*arguments))[1]

    monkeypatch.setattr(block, "sdpa_forward", spied)
    monkeypatch.setattr(engine, "_send", count(make))
    monkeypatch.setattr(engine._optim, "clip_coefficient", count(clip))
    engine.train_step(split(batch(SMALL_MODEL, 3, 20), 1, 2), 1e-2)
    assert len(kept) == 3 * SMALL_MODEL.n_layers * 4
    assert alive == [0] * 8                                      # batch and share of three micro-batches, AdamW's factors, and the clipping


@pytest.mark.parametrize("wrap", [torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel])
def test_a_wrapped_model_is_refused(wrap, tiny, tmp_path):
    """DistributedDataParallel adds the processes' gradients when the engine has taken them: each process would train on its own."""
    engine, before = on_cpu(tiny), None
    distributed = wrap is torch.nn.parallel.DistributedDataParallel
    if distributed:
        torch.distributed.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        engine.model, before = wrap(engine.model), arrays(engine)
        with pytest.raises(InputError, match=rf"must be the Llama that it made, got {wrap.__name__}: [^.\n]*$"):
            engine.train_step([batch(tiny, 4, 9)], 1e-2)
    finally:
        if distributed:
            torch.distributed.destroy_process_group()
    assert all(np.array_equal(array, before[name]) for name, array in arrays(engine).items())


# ---------------------------------------------------------------------------------------------------------- what does not fit

@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    None,
])
def test_out_of_memory(error, tiny, monkeypatch):
    def full(*pair):
        if error is None:
            return torch.empty(1 << 50)                          # what the allocator of the processor says
        raise error

    engine = on_cpu(tiny)
    monkeypatch.setattr(engine.model, "forward", full)
    sentence = r"a batch of 3 x 9 tokens does not fit the memory of cpu, [1-9][\d.]* GiB: lower --batch-size, and raise --grad-accum-steps"
    for use in (lambda: engine.train_step(split(batch(tiny, 4, 9), 3), 1e-2), lambda: engine.loss(*batch(tiny, 3, 9))):
        with pytest.raises(InputError, match=sentence):
            use()


def test_a_model_too_large():
    with pytest.raises(InputError, match=r"a model of \d{3},\d{3},\d{3},\d{3},\d{3} parameters does not fit the memory of cpu"):
        TorchEngine(ModelConfig(dim=65536, n_layers=3000, n_heads=512, vocab_size=100), RECIPE, {}, device="cpu")


def test_a_shape_no_kernel_covers(tiny, monkeypatch):
    def refuse(*pair):
        raise ValueError("rope_forward: x has shape (2, 5, 1, 512), and must be (B, T, H, Dh) with Dh even and at most 256")

    engine = on_cpu(tiny)
    monkeypatch.setattr(engine.model, "forward", refuse)
    with pytest.raises(InputError, match="engine torch cannot compute this: rope_forward: x has shape"):
        engine.train_step([batch(tiny, 2, 5)], 1e-2)


def test_another_runtime_error_is_not_about_memory(tiny, monkeypatch):
    engine = on_cpu(tiny)
    monkeypatch.setattr(engine.model, "forward", lambda *pair: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        engine.train_step([batch(tiny, 2, 5)], 1e-2)
