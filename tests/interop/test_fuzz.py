"""Random damage to every format: a reader gives back a model with the shapes it promises, or one InputError; never more memory than the
file justifies, never another exception. INTEROP_FUZZ sets the number of cases per reader (the full check: 2000)."""
import json
import os
import time
import tracemalloc

import numpy as np
import pytest

from minillama import interop
from minillama.config import ModelConfig
from minillama.errors import InputError
from minillama.interop import Model, hf, vocabulary
from minillama.nn import init_params, param_shapes
from minillama.text.bpe import BPE
from minillama.text.model_file import BYTE, BYTE_PIECES, NORMAL, SPECIALS

CASES = int(os.environ.get("INTEROP_FUZZ", "150"))
SECONDS_PER_CASE = 5  # on a busy machine; some milliseconds are typical
MEMORY = 3_000_000, 100  # bytes, and times the size of the files
LEARNED = ["▁a", "▁ab", "ab", "abc", "a", "b", "c", "▁", "▁▁"]
TARGETS = {  # format: the files that are damaged
    "hf": ("model.safetensors", "config.json", "tokenizer.model"),
    "hf shards": ("model.safetensors.index.json", "model-00001-of-00002.safetensors"),
    "hf tokenizer.json": ("tokenizer.json",),
    "gguf": ("m.gguf",),
    "llama2c": ("model.bin", "tokenizer.bin"),
    "meta": ("consolidated.00.pth", "params.json", "tokenizer.model"),
}


def tiny_model():
    pieces = [*SPECIALS, *((piece, 0.0, BYTE) for piece in BYTE_PIECES), *((p, -float(i), NORMAL) for i, p in enumerate(LEARNED))]
    config = ModelConfig(dim=4, n_layers=1, n_heads=2, vocab_size=len(pieces), multiple_of=2, max_seq_len=8)
    return Model(config, init_params(config), BPE(pieces).to_bytes())


@pytest.fixture
def files(request, tmp_path, monkeypatch):
    """A format's files, whole: (path to read, the folder, list of names to damage)."""
    kind = request.param
    if kind == "hf shards":
        monkeypatch.setattr(hf, "SHARD_BYTES", 5000)
    path = tmp_path / ("m.gguf" if kind == "gguf" else "m")
    interop.write(path, tiny_model(), kind.split()[0])
    if kind == "hf tokenizer.json":
        (path / "tokenizer.model").unlink()
    folder = path if path.is_dir() else tmp_path
    return path, folder, TARGETS[kind]


COUNTS = [0, 1, 7, 2**31, 2**62, 2**64 - 1]
STRANGE = [*COUNTS, -1, 2, 10**400, 1e-300, 1e308, -0.5, None, True, "", "4", "llama", [], [2], {}, {"a": 1}, "../x", "\x00", "\ud800",
           "é" * 300]


def damage(data, rng):
    """One of: some bytes changed (mostly near the start, where headers are), a stretch cut out, repeated or zeroed, an end cut off."""
    data = bytearray(data)
    near = len(data) if rng.random() < 0.3 else min(len(data), 600)
    start = int(rng.integers(0, near))
    length = int(rng.integers(1, 40))
    kind = rng.integers(0, 6)
    if kind <= 1:
        for _ in range(int(rng.integers(1, 6))):
            data[int(rng.integers(0, near))] = int(rng.integers(0, 256))
    elif kind == 2:
        data[start:start + 8] = COUNTS[int(rng.integers(len(COUNTS)))].to_bytes(8, "little")[:len(data) - start]
    elif kind == 3:
        del data[start:start + length]
    elif kind == 4:
        data[start:start] = data[start:start + length]
    else:
        del data[int(rng.integers(0, len(data))):]
    return bytes(data)


def damage_json(text, rng):
    """A value somewhere in it replaced by a strange one, or taken out."""
    values = inner = json.loads(text)
    while isinstance(inner, dict | list) and inner:
        at = inner
        key = list(at)[int(rng.integers(len(at)))] if isinstance(at, dict) else int(rng.integers(len(at)))
        inner = at[key] if rng.random() < 0.7 else None
    if isinstance(at, dict) and rng.random() < 0.2:
        del at[key]
    else:
        at[key] = STRANGE[int(rng.integers(len(STRANGE)))]
    return json.dumps(values).encode()


def use(path):
    """Read everything there is. What is accepted must be what it says: shapes, dtypes, a tokenizer of that size."""
    model = interop.read(path)
    shapes = param_shapes(model.config)
    assert list(model.tensors) == list(shapes)
    for name, shape in shapes.items():
        tensor = model.tensors[name]
        assert tensor.shape == shape and tensor.dtype == np.float32 and np.isfinite(tensor).all()
    assert len(vocabulary.read_pieces(model.tokenizer, "it")) == model.config.vocab_size


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("files", TARGETS, indirect=True)
def test_damage_gives_one_sentence_or_a_model(files):
    path, folder, targets = files
    use(path)                                                    # whole, and everything imported
    originals = {name: (folder / name).read_bytes() for name in targets}
    limit = MEMORY[0] + MEMORY[1] * sum(file.stat().st_size for file in folder.iterdir())
    rng, refused = np.random.default_rng(7), 0
    tracemalloc.start()
    try:
        for case in range(CASES):
            name = targets[case % len(targets)]
            as_json = name.endswith(".json") and rng.random() < 0.7
            data = damage_json(originals[name], rng) if as_json else damage(originals[name], rng)
            (folder / name).write_bytes(data)
            tracemalloc.reset_peak()
            before, started = tracemalloc.get_traced_memory()[0], time.perf_counter()
            try:
                use(path)
            except InputError as error:
                refused += 1
                assert "\n" not in str(error) and len(str(error)) < 1000, (case, error)
            except BaseException as error:
                raise AssertionError(f"case {case} of {name}: {error!r}") from error
            assert time.perf_counter() - started < SECONDS_PER_CASE, (case, name)
            assert tracemalloc.get_traced_memory()[1] - before < limit, (case, name)
            (folder / name).write_bytes(originals[name])
    finally:
        tracemalloc.stop()
    assert refused > CASES / 4
