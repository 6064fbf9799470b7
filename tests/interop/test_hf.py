"""A run opens in transformers as it stands: weights, gradients, text, ids; what others wrote comes in, and what is not LLaMA-1 does not."""
import json
import os
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_files import edit, ids, opened, transformers
from interop_models import ODD_TEXTS, same, small, tokenizer
from safetensors.numpy import load_file, save_file
from tolerances import CLIENT_LOGITS

from minillama import interop
from minillama.engine.numpy_engine import NumpyEngine
from minillama.errors import InputError
from minillama.generate import Sampling, generate
from minillama.interop import hf, vocabulary
from minillama.interop.model import DTYPES, config_for
from minillama.nn import (
    cross_entropy_backward,
    cross_entropy_forward,
    init_params,
    model_backward,
    model_forward,
    param_shapes,
    rope_forward,
    rope_tables,
)
from minillama.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "model"
    interop.write(path, small(), "hf")
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


# ------------------------------------------------------------------------------------------------------------------ conversions

@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 99))
def test_the_permutation_is_exact_both_ways(n_heads, half, columns, seed):
    weight = np.random.default_rng(seed).standard_normal((n_heads * 2 * half, columns))
    for name in ("layers.0.wq", "layers.7.wk"):
        there = hf.to_hf(name, weight, n_heads)
        assert there[1 % half].tolist() == weight[2 % (2 * half)].tolist()
        assert np.array_equal(hf.from_hf(name, there, n_heads), weight)
    assert hf.to_hf("layers.0.wv", weight, n_heads) is weight


def test_rotated_halves_of_permuted_rows_are_rotated_pairs(rng):
    """The reason for the permutation, without transformers: the same scores from the other order of channels."""
    x = rng.standard_normal((1, 5, 2, 8))
    cos, sin = rope_tables(5, 8, dtype=np.float64)
    pairs, _ = rope_forward(x, cos, sin)

    def permuted(x):
        rows = np.moveaxis(x, -1, 0).reshape(8, -1)
        return np.moveaxis(hf.to_hf("layers.0.wq", rows, 1).reshape(8, 1, 5, 2), 0, -1)

    other = permuted(x)
    turned = np.concatenate([-other[..., 4:], other[..., :4]], -1)
    both = [np.concatenate([table, table], -1)[:, None] for table in (cos, sin)]
    np.testing.assert_allclose(other * both[0] + turned * both[1], permuted(pairs), atol=1e-14)


@pytest.mark.parametrize("dim, hidden, multiple_of", [
    (4096, 11008, 256), (5120, 13824, 512), (6656, 17920, 512), (8192, 22016, 512), (2048, 5632, 512),
    (64, 176, 16), (64, 171, 171), (64, 170, 2), (64, 1000, 1000),
])
def test_the_feed_forward_width_is_met_exactly(dim, hidden, multiple_of):
    config = config_for("here", hidden, dim=dim, n_layers=1, n_heads=2, vocab_size=300)
    assert (config.hidden_dim, config.multiple_of) == (hidden, multiple_of)


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_is_bit_exact(dtype, tmp_path):
    interop.write(tmp_path / "a", small(), "hf", dtype)
    back = interop.read(tmp_path / "a")
    assert same(small(), back, DTYPES[dtype])
    assert (back.dtype, back.tokenizer) == (dtype, tokenizer().model)
    assert back.config.hidden_dim == small().config.hidden_dim
    interop.write(tmp_path / "b", back, "hf", dtype)
    for name in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_every_key_is_written_as_both_versions_of_transformers_read_it(folder):
    """Version 4 reads rope_theta and torch_dtype, version 5 rope_parameters and dtype; a number of the wrong type is an error to it."""
    config = json.loads((folder / "config.json").read_text())
    assert config == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 400, "hidden_size": 48, "intermediate_size": 128,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 12, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-4, "hidden_act": "silu", "rope_theta": 500.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
        "dtype": "float32", "torch_dtype": "float32",
    }
    assert [type(config[key]) for key in ("vocab_size", "rms_norm_eps", "rope_theta")] == [int, float, float]
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": 2}
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
        "add_eos_token": False, "clean_up_tokenization_spaces": False, "model_max_length": 64,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    assert (folder / "tokenizer.model").read_bytes() == tokenizer().model


def test_the_library_reads_what_is_streamed(folder):
    tensors = load_file(folder / "model.safetensors")
    assert set(tensors) == {hf.hf_name(name) for name in param_shapes(small().config)}
    assert np.array_equal(tensors["model.layers.1.mlp.up_proj.weight"], small().tensors["layers.1.w3"])
    assert not np.array_equal(tensors["model.layers.1.self_attn.q_proj.weight"], small().tensors["layers.1.wq"])


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 100_000)
    interop.write(tmp_path / "m", small(), "hf")
    index = json.loads((tmp_path / "m" / hf.INDEX).read_text())
    files = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert len(files) > 3
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == 4 * sum(tensor.size for tensor in small().tensors.values())
    assert same(small(), interop.read(tmp_path / "m"))
    logits = opened(tmp_path / "m")(torch.from_numpy(ids())).logits.detach().numpy()
    assert np.abs(logits - model_forward(ids(), small().tensors, small().config)[0]).max() <= CLIENT_LOGITS


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_writing_holds_one_tensor_at_a_time(dtype, tmp_path):
    """tracemalloc counts NumPy's arrays: at most a tensor, its cast and its permuted copy."""
    model = small(n_layers=40)
    largest = max(tensor.nbytes for tensor in model.tensors.values())
    hf.write(tmp_path / "warm", model, dtype)                    # imports, and the tokenizer's text
    tracemalloc.start()
    try:
        hf.write(tmp_path / "m", model, dtype)
        back, peak_written = interop.read(tmp_path / "m"), tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        for name in back.tensors:
            back.tensors[name]
        peak_read = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert sum(tensor.nbytes for tensor in model.tensors.values()) > 20 * largest
    assert peak_written < 4 * largest + 1_500_000                # and the texts of the tokenizer
    assert peak_read < 3 * largest + 100_000


# ----------------------------------------------------------------------------------------------------------------- transformers

def test_logits_are_those_of_transformers(folder):
    logits = opened(folder)(torch.from_numpy(ids())).logits.detach().numpy()
    ours = model_forward(ids(), small().tensors, small().config)[0]
    assert np.abs(ours).max() > 1
    assert np.abs(logits - ours).max() <= CLIENT_LOGITS


@pytest.mark.parametrize("planted", ["no permutation", "k as v", "gate as up"])
def test_a_wrong_map_would_be_seen(planted, tmp_path, monkeypatch):
    if planted == "no permutation":
        monkeypatch.setattr(hf, "to_hf", lambda name, tensor, n_heads: tensor)
    else:
        swap = ("wk", "wv") if planted == "k as v" else ("w1", "w3")
        monkeypatch.setattr(hf, "INSIDE", hf.INSIDE | {swap[0]: hf.INSIDE[swap[1]], swap[1]: hf.INSIDE[swap[0]]})
    interop.write(tmp_path / "m", small(), "hf")
    logits = opened(tmp_path / "m")(torch.from_numpy(ids())).logits.detach().numpy()
    assert np.abs(logits - model_forward(ids(), small().tensors, small().config)[0]).max() > 0.5


def test_gradients_are_those_of_transformers(folder):
    tokens = ids(33, seed=1)
    model, config = opened(folder), small().config
    logits = model(torch.from_numpy(tokens[:, :-1])).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(tokens[:, 1:]).flatten()).backward()
    theirs = {name: tensor.grad.numpy() for name, tensor in model.named_parameters()}
    ours_logits, cache = model_forward(tokens[:, :-1], small().tensors, config)
    loss, loss_cache = cross_entropy_forward(ours_logits, tokens[:, 1:])
    grads = model_backward(cross_entropy_backward(1.0, loss_cache), cache)
    assert set(theirs) == {hf.hf_name(name) for name in grads}
    for name, grad in grads.items():
        expected = theirs[hf.hf_name(name)]
        assert np.abs(hf.to_hf(name, grad, config.n_heads) - expected).max() <= CLIENT_LOGITS * np.abs(expected).max(), name


def test_greedy_text_is_that_of_transformers(folder):
    model, theirs = opened(folder), transformers().AutoTokenizer.from_pretrained(folder)
    engine, ours = NumpyEngine(small().config, params=small().tensors, threads=1), tokenizer()
    for prompt in ("Tom has", "12+34=", "  in  the"):
        inputs = theirs(prompt, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=25, do_sample=False)[0].tolist()
        start = ours.encode(prompt, bos=True)
        expected = start + list(generate(engine, start, 25, ours.eos_id, Sampling(temperature=0)))
        assert out[:len(expected)] == expected and out[len(expected):] in ([], [ours.eos_id])
        text = ours.decode(expected)                             # of bytes that are no UTF-8 the two make different marks
        assert "\ufffd" in text or theirs.decode(out, skip_special_tokens=True) == text


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_dtypes_open_as_they_are(dtype, tmp_path):
    interop.write(tmp_path / "m", small(), "hf", dtype)
    model = opened(tmp_path / "m", dtype="auto")                 # which version 5 does unasked
    assert str(model.dtype) == f"torch.{hf.TORCH_NAMES[dtype]}"
    weight = model.model.embed_tokens.weight.detach().float().numpy()
    assert np.array_equal(weight, small().tensors["tok_embeddings"].astype(DTYPES[dtype]).astype(np.float32))


@pytest.mark.parametrize("options", [
    dict(), dict(tie_word_embeddings=True), dict(rms_norm_eps=1e-3, rope_theta=1e6),
    dict(torch_dtype="bfloat16"), dict(torch_dtype="float16"),
])
def test_what_transformers_saves_comes_in(options, folder, tmp_path):
    dtype = getattr(torch, options.pop("torch_dtype", "float32"))
    torch.manual_seed(3)
    config = transformers().LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
                                      initializer_range=0.3, **options)
    model = transformers().LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(tmp_path / "m", max_shard_size="40KB")
    shutil.copy(folder / "tokenizer.model", tmp_path / "m")
    ours = interop.read(tmp_path / "m")
    logits, _ = model_forward(ids(), dict(ours.tensors), ours.config)
    theirs = opened(tmp_path / "m", dtype=torch.float32)(torch.from_numpy(ids())).logits.detach().numpy()
    assert np.abs(logits - theirs).max() <= CLIENT_LOGITS * np.abs(theirs).max()
    assert ours.dtype == {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]


# -------------------------------------------------------------------------------------------------------------------- tokenizer

@pytest.fixture(scope="module")
def auto(folder):
    """Literal <s>, </s> and <unk> in a text are text to SentencePiece: split_special_tokens makes them that here, too."""
    return transformers().AutoTokenizer.from_pretrained(folder, split_special_tokens=True)


def test_ids_are_sentencepieces_on_odd_texts(auto):
    for text in ODD_TEXTS:
        assert auto(text)["input_ids"] == tokenizer().encode(text, bos=True), text
        assert auto.decode(tokenizer().encode(text)) == tokenizer().decode(tokenizer().encode(text)), text


PIECES = st.sampled_from(["  ", "the", "<s>", "</s>", "<unk>", "\n", "▁", "Tom", " has", "12", "é", "😀", "    "])


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.lists(PIECES, max_size=20).map("".join)))
def test_ids_are_sentencepieces(auto, text):
    assert auto(text)["input_ids"] == tokenizer().encode(text, bos=True)


def test_scores_decide_not_ids(tmp_path):
    """In LLaMA's own vocabulary two spaces come early and score lowest: ordered by ids, every double space would be joined."""
    rng, pieces = np.random.default_rng(1), tokenizer().pieces
    scores = iter(rng.permutation([score for _, score, kind in pieces if kind == 1]))
    shuffled = [(piece, float(next(scores)) if kind == 1 else 0.0, kind) for piece, _, kind in pieces]
    other = Tokenizer(vocabulary.from_pieces(shuffled, "here"))
    interop.write(tmp_path / "m", interop.Model(small().config, small().tensors, other.model), "hf")
    theirs = transformers().AutoTokenizer.from_pretrained(tmp_path / "m", split_special_tokens=True)
    back = Tokenizer(vocabulary.from_tokenizer_json((tmp_path / "m" / "tokenizer.json").read_bytes(), "here"))
    texts = [*ODD_TEXTS, "Tom has the  red kite and there are 12 of them in the barn . " * 3]
    assert any(other.encode(text) != tokenizer().encode(text) for text in texts)
    for text in texts:
        assert theirs(text)["input_ids"] == other.encode(text, bos=True) == back.encode(text, bos=True), text


@pytest.mark.parametrize("names", [None, ["input_ids"]])
def test_the_tokenizer_returns_what_its_configuration_names(names, copy):
    """Exactly what `generate` takes. Without the key, version 4 adds token_type_ids; with another value, both versions follow it."""
    if names:
        edit(copy / "tokenizer_config.json", model_input_names=names)
    inputs = transformers().AutoTokenizer.from_pretrained(copy)("Tom", return_tensors="pt")
    assert list(inputs) == json.loads((copy / "tokenizer_config.json").read_text())["model_input_names"]
    assert names or list(inputs) == ["input_ids", "attention_mask"]


def test_without_the_option_only_special_names_differ(folder):
    plain = transformers().AutoTokenizer.from_pretrained(folder)
    assert plain("Tom has  it")["input_ids"] == tokenizer().encode("Tom has  it", bos=True)
    assert plain("<s>")["input_ids"] == [1, 1]
    assert (plain.bos_token_id, plain.eos_token_id, plain.pad_token_id) == (1, 2, None)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.lists(PIECES, max_size=20).map("".join)))
def test_a_tokenizer_json_alone_gives_the_same_ids(text):
    assert rebuilt().encode(text) == tokenizer().encode(text)


def rebuilt(cache=[]):  # noqa: B006 — made once
    if not cache:
        text = vocabulary.to_tokenizer_json(tokenizer().model).encode()
        cache.append(Tokenizer(vocabulary.from_tokenizer_json(text, "tokenizer.json")))
    return cache[0]


def test_a_folder_with_only_a_tokenizer_json_comes_in(copy):
    (copy / "tokenizer.model").unlink()
    assert Tokenizer(interop.read(copy).tokenizer).encode("Tom  has 12") == tokenizer().encode("Tom  has 12")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"neither a tokenizer\.model nor a tokenizer\.json"):
        interop.read(copy)


@pytest.mark.parametrize("change, message", [
    (lambda t: t.update(normalizer=None), 'normalizer must be "▁" before the text and for every space, got null'),
    (lambda t: t.update(pre_tokenizer={"type": "Metaspace"}), r'pre_tokenizer must be null, got {"type": "Metaspace"}'),
    (lambda t: t["model"].update(byte_fallback=False), r"model\.byte_fallback must be true, got false"),
    (lambda t: t["model"].update(type="Unigram"), r'model\.type must be "BPE", got "Unigram"'),
    (lambda t: t["model"]["merges"].pop(), "merges must be all the ways"),
    (lambda t: t["model"]["vocab"].update(x1=900), "ids of its 401 pieces must be 0, 1, 2"),
    (lambda t: t["model"].pop("vocab"), "is not a tokenizer.json: KeyError"),
    (lambda t: t["model"].update(merges=[["a"]]), "is not a tokenizer.json"),
    (lambda t: t["model"].update(unk_token="<s>"), "must have the control pieces <s> and </s>, got no control piece <s>"),
])
def test_other_tokenizers_are_refused(change, message, copy):
    (copy / "tokenizer.model").unlink()
    text = json.loads((copy / "tokenizer.json").read_text())
    change(text)
    (copy / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match=message) as error:
        interop.read(copy)
    assert "tokenizer.json" in str(error.value)
    assert str(error.value).endswith("; put the original tokenizer.model beside it: then that is read instead")
    assert "\n" not in str(error.value)


def test_what_version_5_saves_without_tokenizer_model_needs_it_again(copy, tmp_path):
    """Its LlamaTokenizer saves other steps, with which some texts have other ids. The message says what to do, and that works."""
    transformers().LlamaTokenizer.from_pretrained(copy).save_pretrained(tmp_path / "saved")
    if (tmp_path / "saved" / "tokenizer.model").exists():
        pytest.skip(f"transformers {transformers().__version__} saves tokenizer.model; version 5 does not")
    original = shutil.move(copy / "tokenizer.model", tmp_path / "original.model")
    shutil.copy(tmp_path / "saved" / "tokenizer.json", copy)
    with pytest.raises(InputError, match=r"tokenizer\.json is not LLaMA-1's .*; put the original tokenizer\.model beside it"):
        interop.read(copy)
    shutil.copy(original, copy / "tokenizer.model")
    assert interop.read(copy).tokenizer == tokenizer().model


def test_a_tokenizer_that_does_not_fit_is_refused(copy):
    other = Tokenizer.train(["abc abd"], "chars")
    (copy / "tokenizer.model").write_bytes(other.model)
    with pytest.raises(InputError, match=rf"tokenizer.model must have 400 pieces, the model's vocabulary, got {other.vocab_size}"):
        interop.read(copy)


# ---------------------------------------------------------------------------------------------------------------------- refused

CONFIGS = {
    "another architecture": (dict(model_type="mistral"), "model_type must be 'llama', got 'mistral'"),
    "another class": (dict(architectures=["LlamaForSequenceClassification"]),
                      r"architectures must be \['LlamaForCausalLM'\], got \['LlamaForSeq"),
    "key heads that do not divide": (dict(num_key_value_heads=3), "num_key_value_heads must divide the 4 attention heads, got 3"),
    "other key heads than in the file": (dict(num_key_value_heads=2), r"k_proj.weight must have the shape \(24, 48\), .* got \(48, 48\)"),
    "wide heads": (dict(head_dim=32), "head_dim must be hidden_size / num_attention_heads = 12, got 32"),
    "scaled RoPE": (dict(rope_scaling={"type": "linear", "factor": 2.0}),
                    "rope_scaling: type must be 'default', got 'linear': LLaMA-1's RoPE is not"),
    "llama3 RoPE": (dict(rope_parameters={"rope_type": "llama3", "factor": 8.0}),
                    "rope_parameters: rope_type must be 'default', got 'llama3'"),
    "two bases": (dict(rope_theta=1e6), "rope_theta must be the same everywhere, got 500 and 1e.06"),
    "biases": (dict(attention_bias=True), "attention_bias must be false, got True: LLaMA-1 has no biases"),
    "mlp biases": (dict(mlp_bias=True), "mlp_bias must be false, got True: LLaMA-1 has no biases"),
    "gelu": (dict(hidden_act="gelu"), "hidden_act must be 'silu', got 'gelu'"),
    "quantised": (dict(quantization_config={"bits": 4}), "quantization_config must be absent, got {'bits': 4}: only float32"),
    "no eps": (dict(rms_norm_eps=None), "has no rms_norm_eps"),
    "eps as text": (dict(rms_norm_eps="1e-6"), "rms_norm_eps must be a number, got '1e-6'"),
    "a boolean": (dict(hidden_size=True), "hidden_size must be a whole number from 1 to 2147483647, got True"),
    "a float": (dict(num_hidden_layers=2.0), r"num_hidden_layers must be a whole number from 1 to 2147483647, got 2\.0"),
    "more layers than tensors": (dict(num_hidden_layers=9000), "must have a tensor for each of its 9000 layers, got 30 tensors"),
    "many layers": (dict(num_hidden_layers=2_000_000_000), "n_layers must be at most 10000, got 2000000000"),
    "fewer layers": (dict(num_hidden_layers=2), "has a tensor 'model.layers.2.*', which is not supported"),
    "another width": (dict(intermediate_size=136),
                      r"gate_proj\.weight must have the shape \(136, 48\), by the configuration, got \(128, 48\)"),
    "a narrow width": (dict(intermediate_size=96), "feed-forward width must be at least 2/3 .* = 128, got 96"),
    "vocabulary": (dict(vocab_size=401), r"embed_tokens\.weight must have the shape \(401, 48\), .* got \(400, 48\)"),
    "large vocabulary": (dict(vocab_size=128256), "vocab_size must be at most 65536, got 128256"),
    "odd heads": (dict(num_attention_heads=16, num_key_value_heads=16, head_dim=3), "head_dim must be even .*, got dim 48"),
    "tied, but not the same": (dict(tie_word_embeddings=True), r"tie_word_embeddings must be false, got True: lm_head\.weight differs"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_is_not_llama_1_is_refused_by_its_key(kind, copy):
    changes, message = CONFIGS[kind]
    edit(copy / "config.json", **changes)
    with pytest.raises(InputError, match=message) as error:
        dict(interop.read(copy).tensors)
    assert str(copy) in str(error.value)
    assert "\n" not in str(error.value)


def test_configurations_of_older_versions_are_read(copy):
    newer = ("rope_parameters", "dtype", "head_dim", "num_key_value_heads", "attention_bias", "mlp_bias")
    edit(copy / "config.json", **dict.fromkeys(newer))
    assert same(small(), interop.read(copy))
    assert interop.read(copy).config.rope_theta == 500.0
    edit(copy / "config.json", rope_theta=None)
    assert interop.read(copy).config.rope_theta == 10000.0


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def as_shards(folder):
    """Two shards and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:15], "model-00002-of-00002.safetensors": names[15:]}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, folder / file, {"format": "pt"})
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": {name: file for file, inside in parts.items() for name in inside}}))


def point_index(folder, file):
    as_shards(folder)
    index = json.loads((folder / hf.INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = file
    (folder / hf.INDEX).write_text(json.dumps(index))


def link_out(folder):
    target = folder.parent / "elsewhere.safetensors"
    shutil.move(folder / "model.safetensors", target)
    (folder / "model.safetensors").symlink_to(target)


def test_a_snapshot_of_the_cache_is_read(folder, tmp_path):
    """Hugging Face's cache keeps the files as blobs, and a snapshot of links to them; a link to anywhere else stays refused."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.copytree(folder, blobs)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(Path("..", "..", "blobs", blob.name))
    read, original = interop.read(snapshot), interop.read(folder)
    assert read.config == original.config and read.tokenizer == original.tokenizer
    for name in original.tensors:
        assert np.array_equal(read.tensors[name], original.tensors[name])
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(shutil.copy(folder / "model.safetensors", tmp_path / "elsewhere.safetensors"))
    with pytest.raises(InputError, match="is a link that leaves its folder"):
        interop.read(snapshot)


def as_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


WEIGHTS = "model.safetensors"
FOLDERS = {
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 5000), "is not a complete safetensors file"),
    "empty": (lambda f: os.truncate(f / WEIGHTS, 0), "is not a complete safetensors file"),
    "a huge header": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 7 + b"\x7f{}"), "is not a complete safetensors file"),
    "trailing bytes": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"\0"), "is not a complete safetensors file"),
    "missing tensor": (lambda f: rewrite(f / WEIGHTS, lambda t: t.pop("model.norm.weight")), "has no tensor model.norm.weight"),
    "a bias": (lambda f: rewrite(f / WEIGHTS, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(4, np.float32)})),
               "has a tensor 'model.layers.0.self_attn.q_proj.bias', which is not supported: LLaMA-1 has none"),
    "float64": (lambda f: rewrite(f / WEIGHTS, lambda t: t.update({"model.norm.weight": np.ones(48)})),
                "norm.weight must be one of F32, F16, BF16, got F64"),
    "NaN": (lambda f: rewrite(f / WEIGHTS, lambda t: t["model.norm.weight"].__setitem__(3, np.nan)), "norm holds values that are not f"),
    "infinity": (lambda f: rewrite(f / WEIGHTS, lambda t: t["model.layers.2.mlp.up_proj.weight"].__setitem__((3, 4), -np.inf)),
                 "layers.2.w3 holds values that are not finite"),
    "a pickle": (as_pickle, r"must have a model\.safetensors, got pytorch_model\.bin: that is a pickle"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "does not exist"),
    "a link out": (link_out, "is a link that leaves its folder"),
    "a folder": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), "is not a file"),
    "a pipe": (lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")), "is not a file"),
    "missing shard": (lambda f: (as_shards(f), (f / "model-00002-of-00002.safetensors").unlink()), r"00002\.safetensors does not exist"),
    "a path": (lambda f: point_index(f, "../elsewhere.safetensors"), r"must be the plain name of a file in this folder, got '\.\./else"),
    "an absolute path": (lambda f: point_index(f, "/etc/passwd"), "must be the plain name of a file in this folder, got '/etc/passwd'"),
    "no map": (lambda f: (as_shards(f), (f / hf.INDEX).write_text('{"weight_map": [1]}')),
               r"weight_map must be an object of .*, got \[1\]"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object, got list"),
    "deep config": (lambda f: (f / "config.json").write_text("[" * 100_000), "is not JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "is not JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no model"),
    "broken tokenizer": (lambda f: os.truncate(f / "tokenizer.model", 1000), "tokenizer.model"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_broken_folders_are_refused(kind, copy):
    change, message = FOLDERS[kind]
    change(copy)
    with pytest.raises(InputError, match=message) as error:
        dict(interop.read(copy).tensors)
    assert "\n" not in str(error.value)


def test_shards_and_old_files_come_in(copy):
    as_shards(copy)
    assert same(small(), interop.read(copy))
    rewrite(copy / "model-00001-of-00002.safetensors",
            lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(6, np.float32)}))
    assert same(small(), interop.read(copy))


def test_a_tensor_in_two_shards_is_refused(copy):
    as_shards(copy)
    rewrite(copy / "model-00002-of-00002.safetensors", lambda t: t.update({"lm_head.weight": np.ones((400, 48), np.float32)}))
    with pytest.raises(InputError, match=r"00002\.safetensors: lm_head\.weight must be in one file only, and model-00001"):
        interop.read(copy)


def test_what_float16_cannot_hold_is_refused_and_nothing_is_left(tmp_path):
    params = init_params(small().config)
    params["layers.1.wo"][0, 0] = 1e6
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.o_proj\.weight: values must fit into f16, got 1e\+06"):
        interop.write(tmp_path / "m", interop.Model(small().config, params, tokenizer().model), "hf", "f16")
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="already exists"):
        interop.write(tmp_path / "there", small(), "hf")
