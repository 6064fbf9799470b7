"""The PyTorch engine: the NumPy engine's numbers, its errors, and a state that moves between the two in the middle of a run."""
import dataclasses
import importlib.util
import itertools
import json
import math
import re
import shutil
import sys
import tomllib

import numpy as np
import pytest
import torch
from helpers import RECIPE, SMALL, assert_close, batch, call, ignored, large_params, split
from tolerances import ACCUMULATION_FLOAT32, DECODE_FLOAT32, INTERCHANGE, MODEL_FLOAT32, ORACLE, TWIN_RUN, TWIN_RUN_BFLOAT16
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import reference
from kernels.engine import TorchEngine, resolve
from kernels.model import Llama
from minillama import engine as engine_module
from minillama import machine, nn
from minillama.config import ModelConfig, TrainConfig, preset
from minillama.engine import Diverged, NumpyEngine, make_engine, resolve_engine
from minillama.errors import InputError
from minillama.nn import param_shapes
from minillama.optim import adamw_step
from minillama.text.mixture import Mixture, load_shard
from minillama.text.sources import builtin_sources
from minillama.train import shares, train_step, train_tokenizer


def on_cpu(config, recipe=RECIPE, **options):
    return TorchEngine(config, recipe, threads=1, device="cpu", **options)


def arrays(engine):
    """All that a step may change, copied: parameters and both moments."""
    state = engine.state()
    return {f"{kind}.{name}": array.copy() for kind in ("params", "m", "v") for name, array in state[kind].items()}


# -------------------------------------------------------------------------------------------------------------- the plain ops

@pytest.mark.parametrize("Tq, Tk", [(7, 7), (3, 7), (1, 7), (1, 1)])
def test_queries_are_the_last_positions(Tq, Tk, rng):
    q, k, v = (rng.standard_normal((2, T, 3, 4)) for T in (Tq, Tk, Tk))
    expected, _ = nn.attention_forward(q, k, v)
    assert np.abs(reference.attention_forward(*map(torch.tensor, (q, k, v))).numpy() - expected).max() <= ORACLE


def test_low_precision_stays_low(tiny):
    """bfloat16 in, bfloat16 out, with float32 tables: no op promotes."""
    model = Llama(tiny, dtype=torch.bfloat16)
    tokens, targets = map(torch.tensor, batch(tiny, 2, 9))
    assert model(tokens).dtype == torch.bfloat16
    assert model(tokens, targets).dtype == torch.float32
    assert model.tables(0, 9)[0].dtype == torch.float32


def flat(rng, n=1000):
    return [rng.standard_normal(n).astype(np.float32) for _ in range(2)] + [np.zeros(n, np.float32) for _ in range(2)]


def test_adamw_is_numpys(rng):
    ours = flat(rng)
    theirs = [torch.tensor(array) for array in ours]
    copy, factor = torch.empty(1000, dtype=torch.bfloat16), torch.tensor(0.25)
    for step in range(1, 6):
        clipped = ours[1] * np.float32(0.25)
        adamw_step(ours[0], clipped, *ours[2:], step, 1e-2, 0.9, 0.95, 1e-8, 0.1)
        reference.adamw_step(*theirs, step, 1e-2, 0.9, 0.95, 1e-8, 0.1, factor, copy)
    for left, right in zip(ours, theirs):
        assert np.abs(left - right.numpy()).max() <= MODEL_FLOAT32 * np.abs(left).max()
    assert torch.equal(copy, theirs[0].bfloat16())


def test_a_coefficient_of_0_updates_nothing(rng):
    param, grad, m, v = (torch.tensor(array) for array in flat(rng))
    reference.adamw_step(param, grad, m, v, 1, 1e-2)
    copy = param.bfloat16()
    kept = [tensor.clone() for tensor in (param, m, v, copy)]
    grad[3], grad[4] = math.nan, math.inf
    reference.adamw_step(param, grad, m, v, 2, 1e-2, coefficient=reference.clip_coefficient(grad, 1.0)[1], copy=copy)
    assert all(map(torch.equal, (param, m, v, copy), kept))


@pytest.mark.parametrize("grad, norm, coefficient", [
    ([3.0, 4.0], 5.0, 0.4), ([0.3, 0.4], 0.5, 1.0), ([0.0, 0.0], 0.0, 1.0),
    ([math.nan, 1.0], math.nan, 0.0), ([math.inf, 1.0], math.inf, 0.0), ([1e30, 1.0], math.inf, 0.0),
])
def test_clip_coefficient(grad, norm, coefficient):
    result = reference.clip_coefficient(torch.tensor(grad), 2.0)
    assert [tuple(tensor.shape) for tensor in result] == [(), ()]
    assert [tensor.dtype for tensor in result] == [torch.float32] * 2
    assert torch.stack(result).tolist() == pytest.approx([norm, coefficient], rel=1e-6, nan_ok=True)


# ------------------------------------------------------------------------------------------------------------------ the model

def test_names(tiny):
    model = Llama(tiny)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == param_shapes(tiny)
    assert model.state_dict().keys() == param_shapes(tiny).keys()


def test_fresh_parameters_are_numpys(tiny):
    params = nn.init_params(tiny)
    assert all(np.array_equal(parameter.detach().numpy(), params[name]) for name, parameter in Llama(tiny).named_parameters())


def test_model_is_numpys(tiny):
    """Logits, loss and every gradient."""
    params = large_params(tiny)
    model = Llama(tiny, params={name: torch.tensor(array) for name, array in params.items()})
    tokens, targets = batch(tiny, 3, 9)
    logits, cache = nn.model_forward(tokens, params, tiny)
    loss, loss_cache = nn.cross_entropy_forward(logits, targets)
    grads = nn.model_backward(nn.cross_entropy_backward(1.0, loss_cache), cache)
    result = model(torch.tensor(tokens), torch.tensor(targets))
    result.backward()
    assert (result.shape, result.dtype) == ((), torch.float32)
    assert result.item() == pytest.approx(float(loss), rel=MODEL_FLOAT32)
    assert_close({"logits": model(torch.tensor(tokens)).detach().numpy()}, {"logits": logits}, MODEL_FLOAT32)
    assert_close({name: parameter.grad.numpy() for name, parameter in model.named_parameters()}, grads, MODEL_FLOAT32)


def test_no_scored_token_is_a_loss_of_0(tiny):
    model = Llama(tiny)
    loss = model(*map(torch.tensor, ignored(tiny)))
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


@pytest.mark.parametrize("options", [{"kernels": "cuda"}, {"attention": "slow"}])
def test_unknown_ops(options, tiny):
    with pytest.raises(InputError, match=f"{next(iter(options))} .*choose one of"):
        Llama(tiny, **options)


# ----------------------------------------------------------------------------------------------------------------- the engine

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
    with pytest.raises(Diverged, match=r"step 2: loss \d.*, gradient norm nan; first not finite is the gradient of layers\.0\.wk"):
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
        with pytest.raises(InputError, match="token id 11 is out of range: the vocabulary has ids 0 to 10"):
            use(bad)
        with pytest.raises(InputError, match="17 tokens are longer than the context of 16"):
            use(long)
    cache = engine.new_cache()
    engine.decode(np.zeros((1, 16), int), cache)
    with pytest.raises(InputError, match="17 tokens are longer than the context of 16"):
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
    engine._received.clear()
    for grad in (large, small):
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
    engine.train_step(split(whole, 1), 1e-2)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with pytest.warns(UserWarning, match="synchronizing CUDA operation") as seen:
            engine.train_step(split(whole, 1), 1e-2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(seen) == 1


# ----------------------------------------------------------------------------------------------- what is here, and what is not

BAD_PLACES = {
    "an unknown device": (dict(device="gpu"), "device 'gpu' does not exist: choose one of cpu, mps, cuda"),
    "a device of another kind": (dict(device="meta"), "device 'meta' does not exist"),
    "a second processor": (dict(device="cpu:1"), "device 'cpu:1' does not exist"),
    "no CUDA": (dict(device="cuda"), "device 'cuda' is not here: PyTorch sees no CUDA GPU"),
    "no mps": (dict(device="mps"), "device 'mps' is not here: PyTorch sees no Apple GPU"),
    "an unknown dtype": (dict(dtype="int8"), "dtype 'int8' does not exist: choose one of float32, bfloat16, float16"),
    "training in float16": (dict(dtype="float16", training=True), "dtype float16 cannot train: .* choose float32 or bfloat16"),
    "Triton without CUDA": (dict(kernels="triton"), "engine triton needs a CUDA GPU, and PyTorch sees none: --engine torch runs on the "
                                                    "processor, and TRITON_INTERPRET=1 steps through the kernels there, very slowly"),
}


@pytest.mark.parametrize("case", BAD_PLACES)
def test_bad_places(case, no_gpu):
    options, message = BAD_PLACES[case]
    with pytest.raises(InputError, match=message):
        resolve(**options)


def test_places(no_gpu, monkeypatch):
    """What an engine takes where nothing was asked for: the first of CUDA, an Apple GPU and the processor that is here."""
    assert resolve() == (torch.device("cpu"), torch.float32)
    assert resolve(dtype="float16") == (torch.device("cpu"), torch.float16)
    assert resolve(dtype=torch.bfloat16) == (torch.device("cpu"), torch.bfloat16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve() == (torch.device("mps"), torch.float32)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert resolve("triton") == (torch.device("cpu"), torch.float32)
    with pytest.raises(InputError, match="dtype bfloat16 is not for the interpreter of Triton"):
        resolve("triton", dtype="bfloat16")
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve() == resolve("triton") == (torch.device("cuda"), torch.bfloat16)
    assert resolve(device="cuda:1", dtype="float32") == (torch.device("cuda:1"), torch.float32)
    with pytest.raises(InputError, match=r"device 'cuda:7' is not here: PyTorch sees 2 CUDA GPU\(s\), and the last is cuda:1"):
        resolve(device="cuda:7")
    with pytest.raises(InputError, match="engine triton computes on a CUDA GPU, and the device is cpu"):
        resolve("triton", device="cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="engine triton needs the package triton, which is not installed here"):
        resolve("triton")


def test_numpy_takes_no_device(tiny):
    for flag, value in (("device", "cpu"), ("dtype", "float32")):
        with pytest.raises(InputError, match=f"--{flag} {value} is for the engine torch or triton, and the engine is numpy"):
            make_engine("numpy", tiny, **{flag: value})
    with pytest.raises(InputError, match="--attention flash is for the engine triton, and the engine is torch"):
        make_engine("torch", tiny, attention="flash")


def test_without_pytorch(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "kernels.engine")
    with pytest.raises(InputError, match="engine torch needs PyTorch, which is not installed here: --engine numpy does without it"):
        make_engine("torch", tiny)
    monkeypatch.setattr(engine_module, "has_cuda", lambda: True)
    assert resolve_engine("auto") == "numpy"


def test_auto(no_gpu, monkeypatch):
    """The fastest there is; a driver alone is none."""
    monkeypatch.setattr(engine_module, "has_cuda", lambda: False)
    assert resolve_engine("auto") == "numpy"
    monkeypatch.setattr(engine_module, "has_cuda", lambda: True)
    assert resolve_engine("auto") == "numpy"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_engine("auto") == "triton"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_engine("auto") == "torch"


class Driver:
    """What ctypes would load; `status` is that of cuInit."""

    def __init__(self, gpus, status=0):
        self.gpus, self.status = gpus, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, pointer):
        pointer._obj.value = self.gpus
        return 0


@pytest.mark.parametrize("driver, expected", [
    (Driver(2), True), (Driver(0), False), (Driver(1, status=100), False), (object(), False), (None, False),
])
def test_has_cuda(driver, expected, monkeypatch):
    def load(name):
        if driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return driver

    monkeypatch.setattr(machine.ctypes, "CDLL", load)
    assert machine.has_cuda() is expected


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
    sentence = r"a batch of 3 x 9 tokens does not fit the memory of cpu, [1-9][\d.]* GiB: lower --batch-size, and raise --accumulate by"
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


# ----------------------------------------------------------------------------------------------------------- the command line

TORCH = ["--engine", "torch", "--device", "cpu"]
SHORT = [*SMALL, "--steps", "8", "--save-every", "4"]


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """The same training on both engines."""
    from minillama.__main__ import main

    folder = tmp_path_factory.mktemp("both")
    for name, flags in (("numpy", ["--engine", "numpy"]), ("torch", TORCH)):
        assert main(["train", "--data", text, "--out", str(folder / name), *SHORT, *flags]) == 0
    return folder


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_train(runs):
    assert losses(runs / "torch") == pytest.approx(losses(runs / "numpy"), abs=INTERCHANGE)
    assert (runs / "torch" / "config.toml").read_text() == (runs / "numpy" / "config.toml").read_text()  # the engine is no part of a run


@pytest.mark.parametrize("first, second", [("numpy", TORCH), ("torch", ["--engine", "numpy"])])
def test_resume_on_another_engine(first, second, runs, text, tmp_path, capsys):
    out = shutil.copytree(runs / first, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step-000008")
    status, said, _ = call(capsys, "train", "--resume", "--out", out, *second)
    assert status == 0
    assert "continuing after step 4" in said
    assert losses(out) == pytest.approx(losses(runs / "numpy"), abs=INTERCHANGE)


def test_the_run_is_introduced_with_its_engine(text, tmp_path, capsys):
    for name, flags, about in (("a", ["--engine", "numpy"], "numpy, 2 threads, batches in 2 parts"),
                               ("b", [*TORCH, "--dtype", "bfloat16"], "torch on cpu (2 threads), bfloat16")):
        said = call(capsys, "train", "--data", text, "--out", tmp_path / name, *SMALL, *flags, "--steps", "1")[1]
        assert f"context 256; {about}\n" in said


def test_nothing_is_measured_for_other_engines(text, tmp_path, capsys):
    settings = SMALL[:-2]                                        # without --threads
    said = call(capsys, "train", "--data", text, "--out", tmp_path / "a", *settings, *TORCH, "--steps", "1")[1]
    assert "a batch in" not in said
    config = tomllib.loads((tmp_path / "a" / "config.toml").read_text())
    assert config["split"] == config["threads"]


def test_generate_and_eval(runs, capsys, no_gpu):
    texts = {call(capsys, "generate", runs / "numpy", "-p", "Ann", "-n", 20, "--temperature", 0, "--engine", engine)[1]
             for engine in ("numpy", "torch")}
    assert len(texts) == 1
    scores = [json.loads(call(capsys, "eval", runs / "numpy", "--json", "--engine", engine)[1])["loss"] for engine in ("numpy", "torch")]
    assert scores[1] == pytest.approx(scores[0], rel=INTERCHANGE)


BAD_FLAGS = {
    "an unknown engine": (["--engine", "jax"], r"argument --engine: invalid choice: 'jax'"),
    "an unknown device": (["--engine", "torch", "--device", "gpu"], r"device 'gpu' does not exist"),
    "no CUDA": (["--engine", "torch", "--device", "cuda"], r"device 'cuda' is not here: PyTorch sees no CUDA GPU"),
    "no mps": (["--engine", "torch", "--device", "mps"], r"device 'mps' is not here"),
    "float16": (["--engine", "torch", "--dtype", "float16"], r"argument --dtype: invalid choice: 'float16'"),
    "triton": (["--engine", "triton"], r"engine triton needs a CUDA GPU, and PyTorch sees none: .*"),
    "a device for numpy": (["--engine", "numpy", "--device", "cpu"], r"--device cpu is for the engine torch or triton, .* is numpy"),
    "a dtype for numpy": (["--engine", "numpy", "--dtype", "bfloat16"], r"--dtype bfloat16 is for the engine torch or triton"),
    "attention for torch": (["--engine", "torch", "--attention", "cudnn"], r"--attention cudnn is for the engine triton, .* is torch"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(case, text, tmp_path, capsys, no_gpu):
    arguments, message = BAD_FLAGS[case]
    status, _, err = call(capsys, "train", "--data", text, "--out", tmp_path / "run", *SMALL, *arguments)
    assert status == 2
    assert re.fullmatch(rf"error: [^\n]*{message}[^\n]*\n", err), err
    assert not any(tmp_path.iterdir())
