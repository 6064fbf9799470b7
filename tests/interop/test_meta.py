"""Meta's files: PyTorch reads what is written, several parts come together, and a pickle that does more than name tensors stays shut."""
import json
import os
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from interop_models import same, small, tokenizer

from minillama import interop
from minillama.errors import InputError
from minillama.interop import meta
from minillama.interop.meta import meta_name
from minillama.interop.model import DTYPES

NAME = "consolidated.00.pth"


@pytest.fixture
def folder(tmp_path):
    interop.write(tmp_path / "m", small(), "meta")
    return tmp_path / "m"


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def test_pytorch_reads_metas_names(folder):
    state = load(folder / NAME)
    assert list(state)[:3] == ["tok_embeddings.weight", "layers.0.attention_norm.weight", "layers.0.attention.wq.weight"]
    assert set(state) >= {"layers.2.feed_forward.w1.weight", "layers.2.ffn_norm.weight", "norm.weight", "output.weight"}
    for name, expected in small().tensors.items():
        assert np.array_equal(state[meta_name(name)].numpy(), expected)
    assert json.loads((folder / "params.json").read_text()) == {
        "dim": 48, "multiple_of": 8, "n_heads": 4, "n_layers": 3, "norm_eps": 1e-4, "vocab_size": -1, "rope_theta": 500.0,
    }
    assert sorted(os.listdir(folder)) == [NAME, "minillama.json", "params.json", "tokenizer.model"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_is_bit_exact(dtype, tmp_path):
    interop.write(tmp_path / "m", small(), "meta", dtype)
    back = interop.read(tmp_path / "m")
    assert same(small(), back, DTYPES[dtype])
    assert (back.dtype, back.tokenizer, back.config.rope_theta) == (dtype, tokenizer().model, 500.0)


def split(folder, parts=2):
    """Cut the file as Meta's model parallelism does."""
    state = load(folder / NAME)
    for part in range(parts):
        cut = {}
        for name, tensor in state.items():
            axis = 1 if any(key in name for key in ("tok_embeddings", ".wo.", ".w2.")) else 0
            cut[name] = tensor if tensor.ndim == 1 else tensor.chunk(parts, axis)[part].clone()
        torch.save(cut | {"rope.freqs": torch.ones(6)}, folder / f"consolidated.{part:02d}.pth")


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_come_together(parts, folder):
    split(folder, parts)
    back = interop.read(folder)
    assert same(small(), back)
    assert f"{parts} file(s)" in back.about


@pytest.mark.parametrize("parts", [1, 2])
def test_each_part_is_inspected_and_then_opened_once(parts, folder, monkeypatch):
    """However many tensors are read, and in whatever order."""
    split(folder, parts)
    calls, inspect, open_ = [], meta._inspect, torch.load
    monkeypatch.setattr(meta, "_inspect", lambda path: calls.append(("inspected", path.name)) or inspect(path))
    monkeypatch.setattr(torch, "load", lambda path, **options: calls.append((path.name, options)) or open_(path, **options))
    back = interop.read(folder)
    for name in [*list(back.tensors)[::-1], *back.tensors]:
        assert np.array_equal(back.tensors[name], small().tensors[name])
    safely = {"map_location": "cpu", "weights_only": True, "mmap": True}
    files = [f"consolidated.{part:02d}.pth" for part in range(parts)]
    assert calls == [call for file in files for call in (("inspected", file), (file, safely))]


@pytest.mark.parametrize("change, message", [
    (lambda path: os.truncate(path, 5000), r"consolidated\.01\.pth has changed while it was read"),
    (lambda path: os.replace(shutil.copy(path, path.with_name("other")), path), "has changed while it was read"),
    (lambda path: path.unlink(), "layers.1.wo cannot be read"),
])
def test_a_part_that_changes_after_it_was_opened_is_refused(change, message, folder):
    split(folder)
    back = interop.read(folder)
    back.tensors["layers.1.wo"]
    change(folder / "consolidated.01.pth")
    with pytest.raises(InputError, match=message):
        back.tensors["layers.1.wo"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def rezip(path, change):
    """The file's zip again, its entries changed by name."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    change(entries)
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def pickle_entry(entries):
    return next(name for name in entries if name.endswith("data.pkl"))


def with_bomb(path):
    rezip(path, lambda entries: entries.update({pickle_entry(entries): pickle.dumps(Bomb(), protocol=2)}))


def compressed(path):
    with zipfile.ZipFile(path.with_suffix(".new"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    os.replace(path.with_suffix(".new"), path)


def resave(change):
    def apply(path):
        state = load(path)
        change(state)
        torch.save(state, path)

    return apply


def params(**changes):
    def change(path):
        values = json.loads((path.parent / "params.json").read_text()) | changes
        (path.parent / "params.json").write_text(json.dumps(values))

    return change


BREAKS = {
    "a bomb": (with_bomb, r"its pickle calls (posix|nt)\.mkdir"),
    "a bare pickle": (lambda p: p.write_bytes(pickle.dumps(Bomb())), "is not a complete file of PyTorch's"),
    "an object": (lambda p: torch.save({"a": np.float64(1.0)}, p), r"its pickle calls numpy"),
    "a list": (lambda p: torch.save([torch.ones(2)], p), "must hold a dictionary of tensors, got list"),
    "a number": (resave(lambda s: s.update({"norm.weight": 3})), "'norm.weight' must be a tensor of float32, float16 or bfloat16, got int"),
    "integers": (resave(lambda s: s.update({"norm.weight": torch.ones(48, dtype=torch.int32)})), r"its pickle calls torch\.IntStorage"),
    "stretched": (resave(lambda s: s.update({"norm.weight": torch.ones(1).expand(48)})), "must not have more values than the file holds"),
    "compressed": (compressed, "is compressed, which is not supported"),
    "truncated": (lambda p: os.truncate(p, 5000), "is not a complete file of PyTorch's"),
    "empty": (lambda p: os.truncate(p, 0), "is not a complete file of PyTorch's"),
    "missing tensor": (resave(lambda s: s.pop("norm.weight")), "has no tensor norm.weight"),
    "no first layer": (resave(lambda s: s.pop("layers.0.feed_forward.w1.weight")), r"has no matrix layers\.0\.feed_forward\.w1"),
    "a number for a matrix": (resave(lambda s: s.update({"layers.0.feed_forward.w1.weight": torch.tensor(1.0)})), "has no matrix layers"),
    "foreign tensor": (resave(lambda s: s.update({"layers.0.attention.wq.bias": torch.ones(48)})),
                       "wq.bias', which is not supported: LLaMA-1 has none"),
    "wrong shape": (resave(lambda s: s.update({"norm.weight": torch.ones(47)})),
                    r"norm\.weight must have the shape \(48,\), .* got \(47,\)"),
    "NaN": (resave(lambda s: s["layers.1.attention.wo.weight"].fill_(float("nan"))), "layers.1.wo holds values that are not finite"),
    "missing part": (lambda p: p.rename(p.with_name("consolidated.01.pth")),
                     r"the parts must be .* without a gap, got consolidated\.01\.pth"),
    "no part": (lambda p: p.unlink(), "parts must be consolidated.00.pth, 01 .*, got none"),
    "a part that differs": (lambda p: (split(p.parent), resave(lambda s: s.pop("norm.weight"))(p.with_name("consolidated.01.pth"))),
                            "norm.weight must be in all 2 parts, with the same shape and dtype"),
    "key heads that do not divide": (params(n_kv_heads=3), "n_kv_heads must divide the 4 attention heads, got 3"),
    "other key heads than in the file": (params(n_kv_heads=2), r"wk.weight must have the shape \(24, 48\), .* got \(48, 48\)"),
    "scaled RoPE": (params(use_scaled_rope=True), "use_scaled_rope must be false, got True: LLaMA-1's RoPE is not scaled"),
    "another vocabulary": (params(vocab_size=32000), "vocab_size must be -1 or 400, the number of pieces of the tokenizer, got 32000"),
    "more layers than tensors": (params(n_layers=9000), "must have a tensor for each of its 9000 layers, got 30"),
    "many layers": (params(n_layers=2_000_000_000), "n_layers must be at most 10000, got 2000000000"),
    "another dim": (params(dim=64), "feed-forward width must be at least .* = 170, got 128"),
    "dim as text": (params(dim="64"), "dim must be a whole number from 1 to 2147483647, got '64'"),
    "a link out": (lambda p: (os.rename(p, p.parent.parent / "x"), p.symlink_to(p.parent.parent / "x")), "link that leaves its folder"),
}


@pytest.mark.parametrize("kind", BREAKS)
def test_broken_and_unsafe_files_are_refused(kind, folder, monkeypatch):
    change, message = BREAKS[kind]
    change(folder / NAME)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message) as error:
        dict(interop.read(folder).tensors)
    assert "\n" not in str(error.value)
    assert not (folder / "exploded").exists()


def test_the_bomb_would_go_off(folder, monkeypatch):
    """The test above proves something: opened without care, the same file runs its code."""
    monkeypatch.chdir(folder)
    with_bomb(folder / NAME)
    with zipfile.ZipFile(folder / NAME) as archive:
        pickle.loads(archive.read(pickle_entry(archive.namelist())))
    assert (folder / "exploded").exists()


def test_without_pytorch_one_sentence_says_so(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="Meta's format needs PyTorch, which is not installed here"):
        interop.read(folder)
