"""A Hugging Face directory: what `transformers` opens, and the format of every checkpoint.

    config.json generation_config.json              the shape
    model.safetensors                               the weights; above SHARD_BYTES model-00001-of-0000N.safetensors and an index
    tokenizer.model                                 SentencePiece, which llama.cpp's converter and Meta's code read
    tokenizer.json tokenizer_config.json            the same for `transformers`, see vocabulary.py

Two things differ from memory: the names, and the order of the rows of `wq` and `wk`. LLaMA-1 rotates adjacent channels
(x0, x1), (x2, x3) ...; `transformers` rotates channel j with j + Dh/2. With its rows in the other order it is the same function:

    file:    x0 x2 x4 ... x1 x3 x5 ...     of every head          memory:    x0 x1 x2 x3 ...

Both maps live here and nowhere else.
"""
import json
import math
import os
import re
import struct
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..files import atomic, inside, read_bytes, read_json, write_json
from ..nn import param_shapes
from ..text.model_file import MAX_BYTES
from . import vocabulary
from .model import DTYPES, KV, Model, Settings, Tensors, cast, check_shapes, config_for, file_shapes, grouping, ungrouped

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
CODES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}  # of the safetensors format

OUTSIDE = {"tok_embeddings": "model.embed_tokens.weight", "norm": "model.norm.weight", "output": "lm_head.weight"}
INSIDE = {
    "attention_norm": "input_layernorm", "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj",
}


def hf_name(name):
    """What `transformers` calls a parameter: layers.0.wq -> model.layers.0.self_attn.q_proj.weight."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, inner = name.split(".")
    return f"model.layers.{layer}.{INSIDE[inner]}.weight"


def _is_rotated(name):
    return name.endswith((".wq", ".wk"))


def to_hf(name, tensor, n_heads):
    """A parameter, or its gradient, in the row order of `transformers`."""
    if not _is_rotated(name):
        return tensor
    pairs = tensor.reshape(n_heads, -1, 2, tensor.shape[-1])     # (H, Dh/2, 2, D)
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


def from_hf(name, tensor, n_heads):
    """The inverse of to_hf, exactly."""
    if not _is_rotated(name):
        return tensor
    halves = tensor.reshape(n_heads, 2, -1, tensor.shape[-1])    # (H, 2, Dh/2, D)
    return halves.swapaxes(1, 2).reshape(tensor.shape)


# ---------------------------------------------------------------------------------------------------------------------- writing

def write(path, model, dtype="f32"):
    """Write a folder, one tensor at a time."""
    with atomic(path, parents=True) as making:
        making.mkdir()
        fill(making, model, dtype)


def fill(folder, model, dtype="f32"):
    """Write all of the files above into an existing folder."""
    folder, config = Path(folder), model.config
    pieces = vocabulary.read_pieces(model.tokenizer, "the tokenizer")
    write_json(folder / "config.json", config_json(config, pieces, dtype))
    ids = {f"{name}_token_id": id for name, id in vocabulary.special_ids(pieces).items() if name != "unk"}
    write_json(folder / "generation_config.json", ids)
    (folder / "tokenizer.model").write_bytes(model.tokenizer)
    write_json(folder / "tokenizer_config.json", vocabulary.tokenizer_config(config.max_seq_len))
    (folder / "tokenizer.json").write_text(vocabulary.to_tokenizer_json(model.tokenizer), encoding="utf-8")
    write_weights(folder, model, dtype)


def config_json(config, pieces, dtype):
    """config.json: every key that some version of `transformers` or llama.cpp reads, in the types that they require.

    The base of RoPE is written twice: version 4 reads only rope_theta, version 5 prefers rope_parameters. So is the dtype.
    """
    ids = vocabulary.special_ids(pieces)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "dtype": TORCH_NAMES[dtype],
        "torch_dtype": TORCH_NAMES[dtype],
    }


def write_weights(folder, model, dtype):
    """The weights, in one file or in shards of at most SHARD_BYTES (a larger tensor has a shard to itself)."""
    def entry(name, shape):
        return hf_name(name), shape, lambda: to_hf(name, model.tensors[name], model.config.n_heads)

    shards, filled = [[]], 0
    for name, shape in param_shapes(model.config).items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(entry(name, shape))
        filled += size
    if len(shards) == 1:
        return write_safetensors(folder / WEIGHTS, shards[0], dtype)
    files = {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}
    for file, shard in files.items():
        write_safetensors(folder / file, shard, dtype)
    total = sum(math.prod(shape) for shape in param_shapes(model.config).values()) * DTYPES[dtype].itemsize
    where = {name: file for file, shard in files.items() for name, _, _ in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def write_safetensors(path, entries, dtype="f32"):
    """Write a safetensors file, tensor by tensor (the library's own writer needs all of them in memory at once).

        file = length of the header, 8 bytes    header, JSON padded with spaces to 8 bytes    the tensors, one after the other

    Args:
        entries: list of (name, shape, read)    read() gives the array when it is written
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0          # transformers 4 refuses a file that does not say "pt"
    for name, shape, _ in entries:
        start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, read in entries:
            file.write(cast(read(), dtype, name).reshape(-1).view(np.uint8))


# ---------------------------------------------------------------------------------------------------------------------- reading

def read(folder):
    """The Model of a Hugging Face directory. Raises InputError for what is broken, unsafe, or not LLaMA-1."""
    folder = Path(folder)
    config, tensors, dtype, n_kv_heads = read_weights(folder)
    about = f"a Hugging Face directory{grouping(config.n_heads, n_kv_heads)}"
    return Model(config, tensors, read_tokenizer(folder, config.vocab_size), dtype, about)


def read_weights(folder):
    """(ModelConfig, Tensors, dtype, number of key and value heads in the files) of a Hugging Face directory."""
    folder = Path(folder)
    path = inside(folder, "config.json")
    settings = Settings(read_json(path), path)
    config, tied, n_kv_heads = _read_config(settings)
    files = _weight_files(folder)
    found = {}
    for file in files:
        inner = tensors_in(file)
        if twice := found.keys() & inner.keys():
            raise InputError(f"{file}: {min(twice)} must be in one file only, and {found[min(twice)][0].name} has it, too")
        found |= inner
    found = {name: entry for name, entry in found.items() if not name.endswith(".rotary_emb.inv_freq")}  # old files; a function of theta
    head_is_copy = tied and hf_name("output") not in found

    def file_name(name):
        return None if head_is_copy and name == "output" else hf_name(name)

    expected = file_shapes(config, len(found), folder, file_name, n_kv_heads)
    check_shapes({name: shape for name, (_, shape, _) in found.items()}, expected, folder)

    def load(name):
        if name == "output" and tied:
            return load_tied()
        heads = n_kv_heads if name.endswith(KV) else config.n_heads
        return ungrouped(name, from_hf(name, load_tensor(found[hf_name(name)][0], hf_name(name)), heads), config.n_heads, n_kv_heads)

    def load_tied():
        embedding = load("tok_embeddings")
        if not head_is_copy and not np.array_equal(load_tensor(found[hf_name("output")][0], hf_name("output")), embedding):
            raise InputError(f"{path}: tie_word_embeddings must be false, got True: {hf_name('output')} differs from the embedding")
        return embedding

    codes = {code for _, _, code in found.values()}
    dtype = next((dtype for dtype, code in CODES.items() if codes == {code}), "f32")
    return config, Tensors(param_shapes(config), load, folder), dtype, n_kv_heads


def _read_config(settings):
    """(ModelConfig, whether the head is the embedding, key and value heads) of config.json. Every key that could change the function is
    checked."""
    values, where = settings.values, settings.where
    if values.get("model_type") != "llama":
        raise InputError(f"{where}: model_type must be 'llama', got {values.get('model_type')!r:.80}")
    settings.only("architectures", (["LlamaForCausalLM"], ["LLaMAForCausalLM"]), "['LlamaForCausalLM']")
    settings.only("hidden_act", ("silu", "swish"), "'silu'")
    settings.only("attention_bias", (False,), "false", "LLaMA-1 has no biases")
    settings.only("mlp_bias", (False,), "false", "LLaMA-1 has no biases")
    settings.only("quantization_config", (), "absent", "only float32, float16 and bfloat16 are supported")
    settings.only("tie_word_embeddings", (True, False), "true or false")
    settings.only("sliding_window", (), "absent", "LLaMA-1 attends to all earlier positions")
    settings.only("partial_rotary_factor", (1, 1.0), "1", "LLaMA-1 rotates all channels")
    dim, n_heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    n_kv_heads = settings.divisor("num_key_value_heads", n_heads, n_heads)
    settings.only("head_dim", (dim // n_heads,), f"hidden_size / num_attention_heads = {dim // n_heads}")
    config = config_for(
        where,
        settings.integer("intermediate_size"),
        dim=dim,
        n_layers=settings.integer("num_hidden_layers"),
        n_heads=n_heads,
        vocab_size=settings.integer("vocab_size"),
        norm_eps=settings.number("rms_norm_eps"),
        rope_theta=_rope_theta(settings),
        max_seq_len=settings.integer("max_position_embeddings", 2048),
    )
    return config, bool(values.get("tie_word_embeddings")), n_kv_heads


def _rope_theta(settings):
    """The base of RoPE: version 5's rope_parameters and version 4's rope_theta and rope_scaling, which must agree."""
    thetas = set()
    if settings.values.get("rope_theta") is not None:
        thetas.add(settings.number("rope_theta"))
    for key in ("rope_parameters", "rope_scaling"):
        inner = settings.values.get(key)
        if inner is None:
            continue
        if not isinstance(inner, dict):
            raise InputError(f"{settings.where}: {key} must be an object, got {inner!r:.60}")
        inner = Settings(inner, f"{settings.where}: {key}")
        for kind in ("rope_type", "type"):
            inner.only(kind, ("default",), "'default'", "LLaMA-1's RoPE is not scaled")
        inner.only("factor", (1, 1.0), "1", "LLaMA-1's RoPE is not scaled")
        inner.only("partial_rotary_factor", (1, 1.0), "1", "LLaMA-1 rotates all channels")
        if inner.values.get("rope_theta") is not None:
            thetas.add(inner.number("rope_theta"))
    if len(thetas) > 1:
        raise InputError(f"{settings.where}: rope_theta must be the same everywhere, got {min(thetas):g} and {max(thetas):g}")
    return thetas.pop() if thetas else 10000.0


def _weight_files(folder):
    """Paths of the safetensors files that hold the weights."""
    if (folder / WEIGHTS).exists():
        return [inside(folder, WEIGHTS)]
    if (folder / INDEX).exists():
        weight_map = read_json(inside(folder, INDEX)).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
            raise InputError(f"{folder / INDEX}: weight_map must be an object of tensor names and file names, got {weight_map!r:.60}")
        return [inside(folder, file) for file in sorted(set(weight_map.values()))]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise InputError(f"{folder} must have a {WEIGHTS}, got {pickles[0]}: that is a pickle, which can run code and is not supported")
    raise InputError(f"{folder / WEIGHTS} does not exist")


def open_safetensors(path):
    """The library's view of a file. It checks the header: its size, that tensors fill the file without gaps, every shape."""
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        reason = re.sub(r"\s+", " ", str(error))[:120]
        raise InputError(f"{path} is not a complete safetensors file ({reason}): only safetensors are read, never pickle") from None


def tensors_in(path):
    """What a safetensors file holds: dict name -> (path, shape, the format's code of its dtype). Raises InputError."""
    with open_safetensors(path) as file:
        views = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 — it is not a dict
        found = {name: (path, tuple(view.get_shape()), view.get_dtype()) for name, view in views.items()}
    for name, (_, _, code) in found.items():
        if code not in CODES.values():
            raise InputError(f"{path}: {name} must be one of {', '.join(CODES.values())}, got {code}")
    return found


def load_tensor(path, name):
    """One tensor. The file is mapped again for each, so that only this tensor is in memory."""
    try:
        with open_safetensors(path) as file:
            if file.get_slice(name).get_dtype() == CODES["bf16"]:
                _ = DTYPES["bf16"]                               # until it is imported, NumPy does not know the name bfloat16
            return file.get_tensor(name)
    except SafetensorError as error:
        raise InputError(f"{path} has changed while it was read: {error}") from None


def read_tokenizer(folder, vocab_size):
    """The bytes of a `.model`: those of tokenizer.model if it exists, else rebuilt from tokenizer.json."""
    for name, rebuild in (("tokenizer.model", lambda data, path: data), ("tokenizer.json", vocabulary.from_tokenizer_json)):
        if os.path.lexists(folder / name):
            path = inside(folder, name)
            return vocabulary.checked(rebuild(read_bytes(path, MAX_BYTES), path), vocab_size, path)
    raise InputError(f"{folder} has neither a tokenizer.model nor a tokenizer.json")
