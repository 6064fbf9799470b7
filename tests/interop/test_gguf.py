"""GGUF: gguf's own reader finds what was written, llama.cpp computes and tokenises the same, files of others come in."""
import json
import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_files import U32, put, rewritten
from interop_models import ODD_TEXTS, same, small, tokenizer
from tolerances import CLIENT_LOGITS, LLAMA_CPP_NARROW

from minillama import interop
from minillama.engine.numpy_engine import NumpyEngine
from minillama.errors import InputError
from minillama.generate import Sampling, generate
from minillama.interop.gguf import gguf_name
from minillama.interop.model import DTYPES
from minillama.nn import model_forward, param_shapes
from minillama.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    interop.write(path, small(), "gguf")
    return path


def test_ggufs_reader_finds_everything(file):
    reader = gguf.GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    config = small().config
    for key, value in {
        "general.architecture": "llama", "general.file_type": 0, "llama.context_length": 64, "llama.embedding_length": 48,
        "llama.block_count": 3, "llama.feed_forward_length": config.hidden_dim, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 4, "llama.rope.dimension_count": 12, "llama.rope.freq_base": 500.0, "llama.vocab_size": 400,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-4)), "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False, "tokenizer.ggml.add_space_prefix": True,
    }.items():
        assert fields[key] == value, key
    pieces = tokenizer().pieces
    assert fields["tokenizer.ggml.tokens"] == [piece for piece, _, _ in pieces]
    assert fields["tokenizer.ggml.scores"] == [score for _, score, _ in pieces]
    assert fields["tokenizer.ggml.token_type"] == [kind for _, _, kind in pieces]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors) == [gguf_name(name) for name in param_shapes(config)]
    for name, expected in small().tensors.items():
        tensor = tensors[gguf_name(name)]
        assert tuple(tensor.shape) == expected.shape[::-1]
        assert np.array_equal(tensor.data.reshape(expected.shape), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_is_bit_exact(dtype, tmp_path):
    """Gains are float32 in every dtype."""
    interop.write(tmp_path / "m.gguf", small(), "gguf", dtype)
    back = interop.read(tmp_path / "m.gguf")
    for name, expected in small().tensors.items():
        rounded = expected.astype(DTYPES[dtype]).astype(np.float32) if expected.ndim > 1 else expected
        assert np.array_equal(back.tensors[name], rounded), name
    assert back.config.norm_eps == 1e-4
    assert Tokenizer(back.tokenizer).pieces == tokenizer().pieces
    interop.write(tmp_path / "again.gguf", back, "gguf", dtype)
    one, two = ((tmp_path / name).read_bytes() for name in ("m.gguf", "again.gguf"))
    assert one.replace(b"\1\0\0\0\0\0\0\0m", b"\5\0\0\0\0\0\0\0again")[:8] == two[:8]
    assert one[-100_000:] == two[-100_000:]


def test_q8_0_comes_in(file, tmp_path):
    path = rewritten(file, tmp_path / "q8.gguf", kind=Type.Q8_0)
    back = interop.read(path)
    assert "Q8_0" in back.about
    w2 = small().tensors["layers.1.w2"]                          # rows of 128; the others have 48 and stay float32
    assert np.array_equal(back.tensors["layers.1.w2"], gguf.dequantize(gguf.quantize(w2, Type.Q8_0), Type.Q8_0))
    assert 0 < np.abs(back.tensors["layers.1.w2"] - w2).max() < np.abs(w2).max() / 127


def test_a_tied_head_is_a_copy(file, tmp_path):
    back = interop.read(rewritten(file, tmp_path / "tied.gguf", drop=["output.weight"]))
    assert np.array_equal(back.tensors["output"], small().tensors["tok_embeddings"])


F32, STRING, BOOL = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.STRING, gguf.GGUFValueType.BOOL
KEYS = {
    "another architecture": (put("general.architecture", "qwen2", STRING), "general.architecture must be 'llama', got 'qwen2'"),
    "key heads that do not divide": (put("llama.attention.head_count_kv", 3, U32),
                                     "head_count_kv must divide the 4 attention heads, got 3"),
    "other key heads than in the file": (put("llama.attention.head_count_kv", 2, U32),
                                          r"attn_k.weight must have the shape \(24, 48\), .* got \(48, 48\)"),
    "scaled RoPE": (put("llama.rope.scaling.type", "linear", STRING), "rope.scaling.type must be 'none', got 'linear'"),
    "experts": (put("llama.expert_count", 8, U32), "expert_count must be 0, got 8: LLaMA-1 has no experts"),
    "a list of experts": (lambda fields: fields.__setitem__("llama.expert_count", ([0, 0], [gguf.GGUFValueType.ARRAY, U32])),
                          r"expert_count must be 0, got array\(\[0, 0\]"),
    "part of a model": (put("split.count", 3, gguf.GGUFValueType.UINT16), "split.count must be 0 or 1, got 3"),
    "half-rotated heads": (put("llama.rope.dimension_count", 6, U32),
                           "rope.dimension_count must be embedding_length / head_count = 12, got 6"),
    "no eps": (lambda fields: fields.pop("llama.attention.layer_norm_rms_epsilon"), "has no llama.attention.layer_norm_rms_epsilon"),
    "eps not a number": (put("llama.attention.layer_norm_rms_epsilon", float("nan"), F32),
                         "layer_norm_rms_epsilon must be a number, got nan"),
    "more layers than tensors": (put("llama.block_count", 9000, U32), "must have a tensor for each of its 9000 layers, got 30 tensors"),
    "many layers": (put("llama.block_count", 2**31 - 1, U32), "n_layers must be at most 10000, got 2147483647"),
    "fewer layers": (put("llama.block_count", 2, U32), "has a tensor 'blk.2"),
    "another width": (put("llama.embedding_length", 64, U32), "rope.dimension_count must be embedding_length / head_count = 16, got 12"),
    "GPT-2's tokenizer": (put("tokenizer.ggml.model", "gpt2", STRING), "tokenizer.ggml.model must be 'llama', got 'gpt2'"),
    "no dummy prefix": (put("tokenizer.ggml.add_space_prefix", False, BOOL), "add_space_prefix must be true, got False"),
    "no scores": (lambda fields: fields.pop("tokenizer.ggml.scores"), "tokenizer.ggml.scores must be a list of 400 numbers"),
    "scores of zero": (lambda fields: fields["tokenizer.ggml.scores"][0].__setitem__(slice(None), [0.0] * 400),
                       "scores must differ, got 0 for all"),
    "no tokens": (lambda fields: fields.pop("tokenizer.ggml.tokens"), "has no tokenizer.ggml.tokens"),
    "a user's token": (lambda fields: fields["tokenizer.ggml.token_type"][0].__setitem__(300, 4),
                       r"piece 300 .* must be of kind 1 .*, got kind 4"),
    "fewer tokens": (lambda fields: fields["tokenizer.ggml.tokens"][0].pop(),
                     "llama.vocab_size must be 399, the number of tokenizer.ggml.tokens, got 400"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_not_llama_1_is_refused_by_its_key(kind, file, tmp_path):
    change, message = KEYS[kind]
    path = rewritten(file, tmp_path / "other.gguf", change)
    with pytest.raises(InputError, match=message) as error:
        interop.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q5_1, Type.Q4_1])
def test_other_quantisations_are_refused(kind, file, tmp_path):
    path = rewritten(file, tmp_path / "other.gguf", kind=kind)
    with pytest.raises(InputError, match=f"other.gguf: '.*' must be F32, F16, BF16 or Q8_0, got {kind.name}"):
        interop.read(path)


def cut(data, size):
    return data[:size]


def patch(data, at, value):
    return data[:at] + value + data[at + len(value):]


def behind(data, name, skip, value):
    """Overwrite what follows a name by `skip` bytes."""
    at = data.index(name) + len(name) + skip
    return patch(data, at, struct.pack("<Q", value))


FILES = {
    "an endless list": (lambda d: behind(d, b"tokenizer.ggml.tokens", 8, 2**40), "a count must be at most 1000000, got 1099511627776"),
    "overlapping tensors": (lambda d: behind(d, b"blk.0.attn_q.weight", 24, 0),
                            "must start at byte [0-9]+, where the one before it ends, got [0-9]+"),
    "a gap": (lambda d: behind(d, b"output.weight", 24, 2**30), "must start at byte [0-9]+, where the one before it ends, got [0-9]+"),
    "empty": (lambda d: b"", "is not a complete GGUF file"),
    "no magic": (lambda d: b"GGUX" + d[4:], "must start with GGUF"),
    "version 1": (lambda d: patch(d, 4, b"\1"), "its version must be 2 or 3, got 1"),
    "big-endian": (lambda d: patch(d, 4, b"\0\0\0\3"), "its version must be 2 or 3, got 50331648"),
    "truncated keys": (lambda d: cut(d, 1000), "is not a complete GGUF file"),
    "truncated tensors": (lambda d: cut(d, len(d) - 1000), "its size must be [0-9]+ to [0-9]+ bytes, as its tensors say, got"),
    "trailing bytes": (lambda d: d + bytes(64), "its size must be [0-9]+ to [0-9]+ bytes, as its tensors say, got"),
    "false counts": (lambda d: patch(d, 8, struct.pack("<QQ", 2**62, 2**62)), "a count must be at most 1000000, got 4611686018427387904"),
    "a long key": (lambda d: patch(d, 24, struct.pack("<Q", 2**63)),
                   "is not a complete GGUF file: after byte 32 there must be 9223372036854775808 bytes"),
}


@pytest.mark.parametrize("kind", FILES)
def test_broken_files_are_refused(kind, file, tmp_path):
    change, message = FILES[kind]
    (tmp_path / "m.gguf").write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match=message) as error:
        interop.read(tmp_path / "m.gguf")
    assert "\n" not in str(error.value)


def test_values_that_are_not_finite_are_refused(file, tmp_path):
    data = file.read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[:-4] + struct.pack("<f", float("nan")))
    with pytest.raises(InputError, match="output holds values that are not finite"):
        interop.read(tmp_path / "m.gguf").tensors["output"]


# --------------------------------------------------------------------------------------------------------------------- llama.cpp

@pytest.fixture(scope="module")
def llama(file):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    model = llama_cpp.Llama(str(file), n_ctx=64, logits_all=True, type_k=0, type_v=0, n_threads=1, verbose=False)
    yield model
    model.close()


def test_logits_are_llama_cpps(llama):
    ids = np.random.default_rng(0).integers(3, 400, (1, 60))
    llama.reset()
    llama.eval(ids[0].tolist())
    ours = model_forward(ids, small().tensors, small().config)[0][0]
    assert np.abs(ours).max() > 1
    assert np.abs(np.array(llama.scores[:60]) - ours).max() <= CLIENT_LOGITS


def test_greedy_ids_are_llama_cpps(llama):
    engine, ours = NumpyEngine(small().config, params=small().tensors, threads=1), tokenizer()
    for prompt in ("Tom has", "12+34=", "  in  the"):
        start = llama.tokenize(prompt.encode(), add_bos=True, special=False)
        assert start == ours.encode(prompt, bos=True)
        llama.reset()
        llama.eval(start)
        theirs = []
        for _ in range(25):
            theirs.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
            llama.eval([theirs[-1]])
        expected = list(generate(engine, start, 25, ours.eos_id, Sampling(temperature=0)))
        assert theirs[:len(expected)] == expected


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.sampled_from(ODD_TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=40)))
def test_ids_are_llama_cpps(llama, text):
    assert llama.tokenize(text.encode(), add_bos=True, special=False) == tokenizer().encode(text, bos=True)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_llama_cpp_opens_the_narrow_dtypes(dtype, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    interop.write(tmp_path / "m.gguf", small(), "gguf", dtype)
    back = interop.read(tmp_path / "m.gguf")
    model = llama_cpp.Llama(str(tmp_path / "m.gguf"), n_ctx=64, logits_all=True, type_k=0, type_v=0, n_threads=1, verbose=False)
    ids = list(range(100, 140))
    model.eval(ids)
    ours = model_forward(np.array([ids]), dict(back.tensors), back.config)[0][0]
    assert np.abs(np.array(model.scores[:40]) - ours).max() <= LLAMA_CPP_NARROW * np.abs(ours).max()
    model.close()


def test_llama_cpp_reads_what_came_from_elsewhere(tmp_path):
    """Meta -> run -> GGUF keeps the function: the whole way is one test."""
    interop.write(tmp_path / "meta", small(), "meta")
    interop.write(tmp_path / "m.gguf", interop.read(tmp_path / "meta"), "gguf")
    assert same(small(), interop.read(tmp_path / "m.gguf"))
    assert json.loads((tmp_path / "meta" / "params.json").read_text())["norm_eps"] == 1e-4
