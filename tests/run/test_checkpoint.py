"""Checkpoints: whole or not there, and a Hugging Face directory as they stand; what is broken or foreign is refused with its name;
pickles are never opened."""
import dataclasses
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from helpers import dead_process
from safetensors.numpy import load_file, save_file

from minillama import files, interop
from minillama.config import TrainConfig
from minillama.engine.numpy_engine import NumpyEngine
from minillama.errors import InputError
from minillama.interop import hf
from minillama.run import checkpoint
from minillama.text.bpe import BPE
from minillama.text.model_file import BYTE, BYTE_PIECES, NORMAL, SPECIALS

PIECES = [*SPECIALS, *((piece, 0.0, BYTE) for piece in BYTE_PIECES), ("▁", 0.0, NORMAL), ("a", -1.0, NORMAL)]
TOKENIZER = BPE(PIECES).to_bytes()


@pytest.fixture
def tiny(tiny):
    """With a vocabulary that a tokenizer can have."""
    return dataclasses.replace(tiny, vocab_size=len(PIECES))


@pytest.fixture
def engine(tiny):
    engine = NumpyEngine(tiny, TrainConfig(seed=2), threads=1)
    tokens = np.random.default_rng(0).integers(0, tiny.vocab_size, (2, 9))
    engine.train_step([(tokens[:, :-1], tokens[:, 1:])], 1e-2)
    return engine


def save(folder, engine, step=1, keep=2):
    return checkpoint.save(folder, engine.state() | {"step": step}, engine.config, TOKENIZER, keep)


def test_round_trip_is_exact(engine, tiny, tmp_path):
    path = save(tmp_path, engine)
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
        save(tmp_path, engine, step)
    assert [path.name for path in checkpoint.finished(tmp_path)] == ["step-000010", "step-1000000"]
    assert (tmp_path / "latest").read_text() == "step-1000000\n"


def test_what_was_not_finished_is_not_seen(engine, tiny, tmp_path):
    """Leftovers of a killed save are neither loaded nor in the way."""
    whole = save(tmp_path, engine)
    half = files.temporary_path(tmp_path / "step-000002", dead_process())
    shutil.copytree(whole, half)
    (half / "model.safetensors").write_bytes(b"half")
    assert checkpoint.finished(tmp_path) == [whole]
    save(tmp_path, engine, 2)
    assert checkpoint.load(tmp_path / "step-000002", tiny)["step"] == 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("when", ["model", "optimizer", "rename"])
def test_a_failed_save_leaves_nothing_and_keeps_the_old(when, engine, tiny, tmp_path, monkeypatch):
    old = save(tmp_path, engine)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    if when == "rename":
        monkeypatch.setattr(files.os, "replace", fail)
    else:
        real = hf.write_safetensors
        monkeypatch.setattr(hf, "write_safetensors", lambda path, *a: (fail if when in path.name else real)(path, *a))
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, engine, 2, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-000001"]
    assert checkpoint.load(old, tiny)["step"] == 1


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


NORM = "model.norm.weight"
BREAKS = {
    "truncated": (lambda p: os.truncate(p, 1000), "is not a complete safetensors file"),
    "empty": (lambda p: os.truncate(p, 0), "is not a complete safetensors file"),
    "missing": (lambda p: p.unlink(), "does not exist"),
    "a pickle": (lambda p: p.write_bytes(pickle.dumps({"norm": [1.0]})), "only safetensors are read, never pickle"),
    "missing tensor": (lambda p: rewrite(p, lambda t: t.pop("model.norm.weight")), r"has no tensor model\.norm\.weight"),
    "foreign tensor": (lambda p: rewrite(p, lambda t: t.update(bias=np.ones(2, np.float32))), "has a tensor 'bias'"),
    "wrong shape": (lambda p: rewrite(p, lambda t: t.update({NORM: np.ones(13, np.float32)})),
                    r"norm\.weight must have the shape \(12,\), .* got \(13,\)"),
    "wrong dtype": (lambda p: rewrite(p, lambda t: t.update({NORM: np.ones(12, np.int32)})),
                    r"norm\.weight must be one of F32, F16, BF16, got I32"),
    "not a number": (lambda p: rewrite(p, lambda t: t[NORM].__setitem__(3, np.nan)), "norm holds values that are not finite"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_broken_checkpoints_are_refused(kind, engine, tiny, tmp_path):
    path = save(tmp_path, engine)
    change, message = BREAKS[kind]
    (path / "checksums.json").unlink()                           # as a writer that has none: the damage itself is seen
    change(path / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        dict(checkpoint.load(path, tiny)["params"])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["truncated", "missing", "a pickle", "foreign tensor"])
def test_broken_moments_are_refused(kind, engine, tiny, tmp_path):
    path = save(tmp_path, engine)
    change, message = BREAKS[kind]
    change(path / "train_state" / "optimizer.safetensors")
    with pytest.raises(InputError, match=message) as error:
        checkpoint.load(path, tiny)
    assert "optimizer.safetensors" in str(error.value)


@pytest.mark.parametrize("file", ["model.safetensors", "train_state/optimizer.safetensors"])
def test_a_flipped_bit_is_noticed(file, engine, tiny, tmp_path):
    """In the last bit of a number, where it is as good as any other."""
    path = save(tmp_path, engine)
    data = bytearray((path / file).read_bytes())
    data[-4] ^= 1
    (path / file).write_bytes(data)
    with pytest.raises(InputError, match=f"{file} is damaged: its content is no longer what was written"):
        checkpoint.load(path, tiny)


@pytest.mark.parametrize("change, message", [
    (dict(norm_eps=1e-3), r"norm_eps must be 0\.001, got 0\.01"), (dict(max_seq_len=17), "max_seq_len must be 17, got 16"),
    (dict(multiple_of=9), "hidden_dim must be 36, got 35"), (dict(n_layers=3), "n_layers must be 3, got 2"),
])
def test_a_checkpoint_of_another_shape_is_refused(change, message, engine, tiny, tmp_path):
    path = save(tmp_path, engine)
    with pytest.raises(InputError, match=message) as error:
        checkpoint.load(path, dataclasses.replace(tiny, **change))
    assert "config.json does not fit this run's config.toml" in str(error.value)


def test_it_is_a_hugging_face_directory(engine, tiny, tmp_path):
    """With nothing beside the weights that a tool would take for weights, and the training state out of the way."""
    path = save(tmp_path, engine)
    assert sorted(os.listdir(path)) == [
        "checksums.json", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer.model",
        "tokenizer_config.json", "train_state",
    ]
    model = interop.read(path)
    assert model.tokenizer == TOKENIZER
    assert np.array_equal(model.tensors["layers.1.wq"], engine.params["layers.1.wq"])
    written = load_file(path / "model.safetensors")
    assert np.array_equal(written["model.layers.1.self_attn.q_proj.weight"], hf.to_hf("layers.1.wq", engine.params["layers.1.wq"], 3))
    moments = load_file(path / "train_state" / "optimizer.safetensors")
    assert np.array_equal(moments["m.layers.1.wq"], engine.state()["m"]["layers.1.wq"])
    assert json.loads((path / "train_state" / "state.json").read_text()) == {"step": 1}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"step": -1}', '{"step": "7"}'])
def test_broken_state(text, engine, tiny, tmp_path):
    path = save(tmp_path, engine)
    (path / "train_state" / "state.json").write_text(text)
    with pytest.raises(InputError, match=r"state\.json is not a complete state file"):
        checkpoint.load(path, tiny)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_bomb_does_not_go_off(engine, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, engine)
    (path / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError):
        dict(checkpoint.load_params(path, tiny))
    assert not (tmp_path / "exploded").exists()


def test_text_is_written_atomically(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(files.os, "replace", lambda *a: (_ for _ in ()).throw(OSError(5, "stopped")))
    with pytest.raises(OSError, match="stopped"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
