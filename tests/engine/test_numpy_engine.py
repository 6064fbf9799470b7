"""The NumPy engine: accumulation, decay, determinism, divergence, state, and the twin run against PyTorch."""
import dataclasses

import numpy as np
import pytest
import torch
from helpers import RECIPE, batch, split
from tolerances import ACCUMULATION_FLOAT32

from kernels import reference
from minillama.config import ModelConfig, preset
from minillama.engine.numpy_engine import Arena, NumpyEngine, faster_batch_splits
from minillama.engine.protocol import Diverged
from minillama.nn import IGNORE, init_params, param_shapes


def test_accumulation_is_weighted_by_tokens(tiny):
    """Unequal micro-batches with unequal numbers of scored tokens give the gradient of the one big batch."""
    whole = batch(tiny, 8, 9)
    engines = [NumpyEngine(tiny, RECIPE, threads=1) for _ in range(2)]
    one, many = engines[0].train_step([whole], 1e-2), engines[1].train_step(split(whole, 3, 7), 1e-2)
    assert many.loss == pytest.approx(one.loss, abs=1e-6)
    for name, grad in engines[0]._grads.views.items():
        assert np.abs(grad - engines[1]._grads.views[name]).max() <= ACCUMULATION_FLOAT32 * np.abs(grad).max(), name


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_rounding_only(threads, tiny):
    whole = batch(tiny, 5, 9)
    single, several = NumpyEngine(tiny, RECIPE, threads=1), NumpyEngine(tiny, RECIPE, threads=threads)
    assert several.train_step([whole], 1e-2).loss == pytest.approx(single.train_step([whole], 1e-2).loss, abs=1e-6)
    assert several.loss(*whole)[0] == pytest.approx(single.loss(*whole)[0], rel=1e-5)
    assert several.loss(*whole)[1] == (whole[1] != IGNORE).sum()


def test_batch_splits_change_rounding_only(tiny):
    whole = batch(tiny, 5, 9)
    results = [NumpyEngine(tiny, RECIPE, threads=2, batch_splits=splits).train_step([whole], 1e-2).loss for splits in (1, 2)]
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def test_faster_batch_splits_is_the_faster_one(tiny, monkeypatch):
    from minillama.engine import numpy_engine as module

    clock = iter(np.cumsum([0, 2, 0, 3, 0, 2.5] + [0, 1, 0, 5, 0, 5]))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    best, seconds = faster_batch_splits(tiny, RECIPE, 2, batch(tiny, 4, 5), seconds=100)
    assert best == 2 if seconds[2] < seconds[1] else best == 1
    assert sorted(seconds.values()) == [1.0, 2.0]


def test_of_a_large_batch_a_part_is_measured(tiny):
    """The built-in recipe is measured as it is; of a model 50 times as large, fewer and shorter rows, at least one for each thread."""
    from minillama.engine.numpy_engine import MEASURED_FLOPS, _cut

    whole = np.zeros((16, 512), int), np.zeros((16, 512), int)
    for parameters in (900_000, 9_000_000, 45_000_000, 10**12):
        tokens, targets = _cut(whole, 2, parameters)
        assert tokens.shape == targets.shape
        assert len(tokens) >= 2
        assert 6 * parameters * tokens.size <= MEASURED_FLOPS or tokens.shape == (2, 16)
    assert _cut((whole[0][:8, :128],) * 2, 2, 922_752)[0].shape == (8, 128)


def test_same_threads_same_bits(tiny):
    results = []
    for _ in range(2):
        engine = NumpyEngine(tiny, RECIPE, threads=2)
        losses = [engine.train_step([batch(tiny, 4, 9, seed)], 1e-2) for seed in range(5)]
        results.append((losses, engine._params.flat.copy()))
    assert results[0][0] == results[1][0]
    assert np.array_equal(results[0][1], results[1][1])


def test_norm_gains_do_not_decay(tiny):
    """With a vanishing gradient matrices shrink by lr * decay, norm gains stay."""
    engine = NumpyEngine(tiny, dataclasses.replace(RECIPE, weight_decay=0.5), threads=1)
    before = {name: array.copy() for name, array in engine.params.items()}
    tokens, _ = batch(tiny, 2, 5)
    engine.train_step([(tokens, np.full_like(tokens, IGNORE))], 0.1)
    for name, array in engine.params.items():
        assert np.allclose(array, before[name] * (1 if array.ndim == 1 else 0.95), rtol=1e-6), name


def test_arena(tiny):
    shapes = param_shapes(tiny)
    arena = Arena(shapes)
    arena.fill(init_params(tiny))
    assert list(arena.views) == list(shapes)
    assert all(view.base is not None and np.shares_memory(view, arena.flat) for view in arena.views.values())
    assert np.all(arena.flat[arena.matrices:] == 1)              # the norm gains, all of them, at the end
    assert len(arena.flat) - arena.matrices == (2 * tiny.n_layers + 1) * tiny.dim


def test_state_moves_between_engines(tiny):
    first, second = NumpyEngine(tiny, RECIPE, threads=1), NumpyEngine(tiny, dataclasses.replace(RECIPE, seed=9), threads=1)
    for seed in range(3):
        first.train_step([batch(tiny, 4, 9, seed)], 1e-2)
    second.load_state(first.state())
    for engine in (first, second):
        engine.train_step([batch(tiny, 4, 9, 99)], 1e-2)
    assert first.step == second.step == 4
    assert np.array_equal(first._params.flat, second._params.flat)


def test_divergence_names_step_and_tensor(tiny):
    engine = NumpyEngine(tiny, RECIPE, threads=1)
    engine.train_step([batch(tiny, 2, 5)], 1e-2)
    engine.params["layers.1.w2"][3, 4] = np.inf
    kept = engine._params.flat.copy()
    with np.errstate(all="ignore"), pytest.raises(Diverged, match=r"diverged at step 2: .*not finite is parameter layers\.1\.w2"):
        engine.train_step([batch(tiny, 2, 5)], 1e-2)
    assert np.array_equal(engine._params.flat, kept)
    assert engine.step == 1


def test_exploding_gradient_is_named(tiny, monkeypatch):
    from minillama.engine import numpy_engine as module

    def broken(dlogits, cache):
        grads = original(dlogits, cache)
        grads["layers.0.wk"][0, 0] = np.nan
        return grads

    original = module.model_backward
    monkeypatch.setattr(module, "model_backward", broken)
    engine = NumpyEngine(tiny, RECIPE, threads=1)
    with pytest.raises(Diverged, match=r"step 1: .*not finite is the gradient of layers\.0\.wk"):
        engine.train_step([batch(tiny, 2, 5)], 1e-2)


def test_it_can_learn_by_heart():
    """One batch, seen again and again, is learned: loss from ln V to nearly nothing."""
    config = ModelConfig(**preset("nano").model | {"n_layers": 2, "dim": 32})
    engine = NumpyEngine(config, RECIPE, threads=1)
    whole = batch(config, 4, 16, ignored=0)
    losses = [engine.train_step([whole], 1e-2).loss for _ in range(60)]
    assert losses[0] == pytest.approx(np.log(config.vocab_size), abs=0.1)
    assert losses[-1] < 0.1


def test_twin_run_follows_pytorch():
    """Same parameters, same batches, 20 steps of the whole recipe: the loss curve of plain PyTorch, in float32."""
    config = ModelConfig(dim=32, n_layers=2, n_heads=4, vocab_size=50, multiple_of=8, max_seq_len=32)
    engine = NumpyEngine(config, RECIPE, threads=2)
    params = {name: torch.tensor(array, requires_grad=True) for name, array in init_params(config, RECIPE.seed).items()}
    groups = [{"params": [p for p in params.values() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in params.values() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step in range(20):
        tokens, targets = batch(config, 4, 24, step)
        ours = engine.train_step([(tokens, targets)], 1e-2)
        optimizer.zero_grad()
        loss = reference.cross_entropy_forward(reference.model_forward(torch.tensor(tokens), params, config), torch.tensor(targets))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        assert ours.loss == pytest.approx(loss.item(), abs=1e-4), step
        assert ours.grad_norm == pytest.approx(norm.item(), rel=1e-3), step
