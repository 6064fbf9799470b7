"""Checkpoints: whole or not there; what is broken or foreign is refused with its name; pickles are never opened."""
import os
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minillama import checkpoint
from minillama.config import TrainConfig
from minillama.engine import NumpyEngine
from minillama.errors import InputError


@pytest.fixture
def engine(tiny):
    engine = NumpyEngine(tiny, TrainConfig(seed=2), threads=1)
    tokens = np.random.default_rng(0).integers(0, tiny.vocab_size, (2, 9))
    engine.train_step([(tokens[:, :-1], tokens[:, 1:])], 1e-2)
    return engine


def test_round_trip_is_exact(engine, tiny, tmp_path):
    path = checkpoint.save(tmp_path, engine.state())
    assert path == tmp_path / "step-000001"
    assert (tmp_path / "latest").read_text() == "step-000001\n"
    other = NumpyEngine(tiny, TrainConfig(seed=9), threads=1)
    other.load_state(checkpoint.load(path, tiny))
    assert other.step == 1
    for ours, theirs in zip((engine._params, engine._m, engine._v), (other._params, other._m, other._v)):
        assert np.array_equal(ours.flat, theirs.flat)
    assert np.abs(engine._m.flat).max() > 0


def test_the_newest_are_kept(engine, tmp_path):
    for step in (1, 2, 10, 1_000_000):
        checkpoint.save(tmp_path, engine.state() | {"step": step}, keep=2)
    assert [path.name for path in checkpoint.whole(tmp_path)] == ["step-000010", "step-1000000"]
    assert (tmp_path / "latest").read_text() == "step-1000000\n"


def test_what_was_not_finished_is_not_seen(engine, tiny, tmp_path):
    """Leftovers of a killed save are neither loaded nor in the way."""
    whole = checkpoint.save(tmp_path, engine.state())
    shutil.copytree(whole, tmp_path / ".step-000002.tmp")
    (tmp_path / ".step-000002.tmp" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.whole(tmp_path) == [whole]
    checkpoint.save(tmp_path, engine.state() | {"step": 2})
    assert checkpoint.load(tmp_path / "step-000002", tiny)["step"] == 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("when", ["model", "optimizer", "rename"])
def test_a_failed_save_leaves_nothing_and_keeps_the_old(when, engine, tiny, tmp_path, monkeypatch):
    old = checkpoint.save(tmp_path, engine.state())

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    if when == "rename":
        monkeypatch.setattr(checkpoint.os, "replace", fail)
    else:
        real = checkpoint.save_file
        monkeypatch.setattr(checkpoint, "save_file", lambda t, path, *a: (fail if when in str(path) else real)(t, path, *a))
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, engine.state() | {"step": 2}, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000001"]
    assert checkpoint.load(old, tiny)["step"] == 1


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


BREAKS = {
    "truncated": (lambda p: os.truncate(p, 1000), "is not a whole safetensors file"),
    "empty": (lambda p: os.truncate(p, 0), "is not a whole safetensors file"),
    "missing": (lambda p: p.unlink(), "does not exist"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps({"norm": [1.0]})), "only safetensors are read, never pickle"),
    "missing tensor": (lambda p: rewrite(p, lambda t: t.pop("norm")), "has no tensor norm"),
    "foreign tensor": (lambda p: rewrite(p, lambda t: t.update(bias=np.ones(2, np.float32))), "has a tensor bias"),
    "wrong shape": (lambda p: rewrite(p, lambda t: t.update(norm=np.ones(13, np.float32))), r"norm is F32 \(13,\), not F32 \(12,\)"),
    "wrong dtype": (lambda p: rewrite(p, lambda t: t.update(norm=np.ones(12, np.float16))), r"norm is F16 \(12,\), not F32"),
    "not a number": (lambda p: rewrite(p, lambda t: t["norm"].__setitem__(3, np.nan)), "norm holds values that are not finite"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_broken_checkpoints_are_refused(kind, engine, tiny, tmp_path):
    path = checkpoint.save(tmp_path, engine.state())
    change, message = BREAKS[kind]
    change(path / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        checkpoint.load(path, tiny)
    assert "model.safetensors" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"step": -1}', '{"step": "7"}'])
def test_broken_state(text, engine, tiny, tmp_path):
    path = checkpoint.save(tmp_path, engine.state())
    (path / "train_state" / "state.json").write_text(text)
    with pytest.raises(InputError, match=r"state\.json is not a whole state file"):
        checkpoint.load(path, tiny)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_bomb_does_not_go_off(engine, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoint.save(tmp_path, engine.state())
    (path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError):
        checkpoint.load_params(path, tiny)
    assert not (tmp_path / "exploded").exists()


def test_text_is_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    checkpoint.write_text(path, "old")
    monkeypatch.setattr(checkpoint.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(5, "stopped")))
    with pytest.raises(OSError, match="stopped"):
        checkpoint.write_text(path, "new")
    assert path.read_text() == "old"
