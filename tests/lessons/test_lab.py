"""The bench: the project's own loop and engine, patched by name, measured once."""
import pkgutil

import numpy as np
import planted_bugs
import pytest

from lessons import lab, museum
from minillama.engine.numpy_engine import NumpyEngine
from minillama.nn import block
from minillama.text.mixture import Mixture
from minillama.train import train_step

TINY = dict(n_layers=1, dim=8, n_heads=2, batch_size=2)


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(lab, "cache", lambda: tmp_path)
    monkeypatch.setattr(lab, "default_threads", lambda: 1)
    lab.text.cache_clear()
    yield
    lab.text.cache_clear()


def test_a_run_is_the_project_s_own_loop():
    result = lab.run({"usual": TINY}, seeds=2, steps=8, evaluations=2)["usual"]
    model, recipe = lab.configs(TINY, seed=1, steps=8)
    tokenizer, shards = lab.text()
    engine, mixture = NumpyEngine(model, recipe, threads=1), Mixture(shards, recipe.seq_len, 1, tokenizer.bos_id)
    norms = [train_step(engine, mixture, recipe)["grad_norm"] for _ in range(8)]
    assert np.allclose(norms, result.norms[1])
    assert np.isclose(lab.excess(engine), result.final[1])
    assert result.steps.tolist() == [4, 8]
    assert np.isclose(lab.excess_of(result.params[1], **TINY), result.final[1])


def test_patched_by_name_and_measured_once(monkeypatch):
    patch = {f"minillama.nn.block.rope_{way}": f"lessons.museum.no_rope_{way}" for way in ("forward", "backward")}
    before = block.rope_forward
    results = lab.run({"usual": TINY, "no positions": {**TINY, "patch": patch}}, seeds=1, steps=8, evaluations=1)
    assert block.rope_forward is before
    assert results["usual"].mean != results["no positions"].mean
    monkeypatch.setattr(lab, "_do", None)                        # nothing is trained again
    again = lab.run({"usual": TINY}, seeds=1, steps=8, evaluations=1)
    assert again["usual"].mean == results["usual"].mean


@pytest.mark.parametrize("wrong", museum.ELEVEN)
def test_the_eleven_are_the_planted_bugs(wrong):
    """What lesson 08 trains with is what the project's own tests must reject: one list."""
    places, name, bug = museum.ELEVEN[wrong]
    forward, planted, arrays, extra = planted_bugs.BUGS[bug]
    ours = getattr(museum, name)
    out, cache = forward(*arrays.values(), *extra)
    dout = np.random.default_rng(0).standard_normal(np.shape(out))
    given, expected = (f(dout, cache) if isinstance(f(dout, cache), tuple) else (f(dout, cache),) for f in (ours, planted))
    assert all(np.array_equal(a, b) for a, b in zip(given, expected, strict=True))
    with lab.patched(museum.patch_of(wrong)):
        assert all(pkgutil.resolve_name(place) is ours for place in places)


def test_a_run_that_diverges_is_infinite():
    result = lab.run({"wild": TINY | {"lr": 1e30, "grad_clip": 1e30, "warmup_steps": 1}}, seeds=1, steps=8, evaluations=2)["wild"]
    assert np.isinf(result.final).all()


def test_an_arm_trains_on_its_own_mix_and_is_measured_on_every_source():
    arm = TINY | {"mix": {"sums": 3.0, "facts": 1.0}}
    result = lab.run({"two": arm}, seeds=1, steps=6, evaluations=2)["two"]
    tokenizer, shards = lab.text()
    model, recipe = lab.configs(arm, steps=6)
    mix = lab.mixed(shards, arm["mix"])
    assert {shard.name: shard.share for shard in mix} == {"facts": 0.25, "sums": 0.75}
    engine, mixture = NumpyEngine(model, recipe, threads=1), Mixture(mix, recipe.seq_len, 0, tokenizer.bos_id)
    for _ in range(6):
        train_step(engine, mixture, recipe)
    for shard in shards:
        assert np.isclose(result.sources[shard.name][0, -1], lab.excess(engine, lab.mixed([shard], {shard.name: 1})))
    assert np.isclose(result.mean, 0.25 * result.sources["facts"][0, -1] + 0.75 * result.sources["sums"][0, -1])


@pytest.mark.parametrize("moments", ["fresh", "carried"])
def test_an_arm_goes_on_from_another(moments):
    first, then = TINY | {"mix": {"stories": 1}, "steps": 5}, {"mix": {"sums": 1}, "lr": 3e-3, "warmup_steps": 2}
    result = lab.run({"adapted": TINY | then | {"start": first, "moments": moments}}, seeds=1, steps=4, evaluations=1)["adapted"]
    tokenizer, shards = lab.text()
    engine = None
    for arm, steps in ((first, 5), (TINY | then, 4)):
        model, recipe = lab.configs(arm, steps=steps)
        before, engine = engine, NumpyEngine(model, recipe, threads=1)
        if before:
            state = before.state()
            if moments == "fresh":
                state = {"step": 0, "params": state["params"], "m": engine.state()["m"], "v": engine.state()["v"]}
            engine.load_state(state)
        start, mixture = engine.step, Mixture(lab.mixed(shards, arm["mix"]), recipe.seq_len, 0, tokenizer.bos_id)
        for _ in range(steps):
            train_step(engine, mixture, recipe, start)
    assert all(np.array_equal(result.params[0][name], engine.params[name]) for name in engine.params)


def test_an_arm_may_have_more_text():
    tokenizer, shards = lab.text(2 * lab.CHARACTERS)
    usual, few = lab.text()
    assert tokenizer.fingerprint == usual.fingerprint
    assert all(1.9 < len(a.train.tokens) / len(b.train.tokens) < 2.1 for a, b in zip(shards, few))
    assert all(0.8 < len(a.val.tokens) / len(b.val.tokens) < 1.25 for a, b in zip(shards, few))
