"""llama2.c's files: model.bin in its version 0, and tokenizer.bin, for run.c.

    model.bin = dim hidden_dim n_layers n_heads n_kv_heads vocab_size max_seq_len, 7 int32; vocab_size is negative if the head is not
                the embedding; then float32: tok_embeddings   attention_norm of all layers   wq of all   wk   wv   wo   ffn_norm
                w1   w2   w3   norm   cos and sin of RoPE, (max_seq_len, Dh/2) each, which run.c skips   output, if it is not the embedding

    run model.bin -z tokenizer.bin             run is the compiled run.c; without -z it takes the tokenizer.bin of the current folder

run.c always computes with norm_eps 1e-5 and rope_theta 10000: the file does not hold them. It stops at <s>, its BOS, not at </s>: after
</s> it goes on writing, until the number of steps or a <s>. https://github.com/karpathy/llama2.c.
"""
import math
import os
import struct

import numpy as np

from ..errors import InputError
from ..files import atomic, inside, read_bytes
from ..nn import param_shapes
from ..nn.model import BLOCK_NAMES
from ..nn.rope import rope_tables
from ..text.model_file import MAX_BYTES
from . import vocabulary
from .model import KV, Model, Tensors, cast, config_for, grouping, ungrouped

MODEL, TOKENIZER = "model.bin", "tokenizer.bin"
HEADER = struct.Struct("<7i")
VERSIONED = 0x616B3432  # "ak42", with which later versions start
NORM_EPS, ROPE_THETA = 1e-5, 10000.0


def _layout(config, tied=False):
    """Names of all blocks of the file in their order; `None` stands for the tables of RoPE."""
    layers = [f"layers.{layer}.{name}" for name in BLOCK_NAMES for layer in range(config.n_layers)]
    return ["tok_embeddings", *layers, "norm", None, *([] if tied else ["output"])]


def write(path, model, dtype="f32"):
    """Write a folder with both files, one tensor at a time.

    Raises:
        InputError: what the format cannot hold: another dtype, another base of RoPE, another order of the vocabulary
    """
    config = model.config
    if dtype != "f32":
        raise InputError(f"--dtype must be f32 for llama2.c, got {dtype}")
    if config.rope_theta != ROPE_THETA:
        raise InputError(f"rope_theta must be {ROPE_THETA:g} for llama2.c, got {config.rope_theta:g}")
    tokenizer = vocabulary.to_tokenizer_bin(model.tokenizer)
    with atomic(path, parents=True) as making:
        making.mkdir()
        (making / TOKENIZER).write_bytes(tokenizer)
        with open(making / MODEL, "wb") as file:
            heads = (config.n_heads, config.n_heads)
            file.write(HEADER.pack(config.dim, config.hidden_dim, config.n_layers, *heads, -config.vocab_size, config.max_seq_len))
            for name in _layout(config):
                if name is None:
                    for table in rope_tables(config.max_seq_len, config.head_dim, config.rope_theta):
                        file.write(table)
                else:
                    file.write(cast(model.tensors[name], "f32", name))


def read(path):
    """The Model of a .bin with its tokenizer.bin beside it, or of a folder with both. Raises InputError for what is broken."""
    path = path / MODEL if path.is_dir() else path
    path = inside(path.parent, path.name)
    try:
        with open(path, "rb") as file:
            dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, max_seq_len = HEADER.unpack(file.read(HEADER.size))
            size = os.fstat(file.fileno()).st_size
    except struct.error:
        raise InputError(f"{path} is not a model of llama2.c: it must have a header of {HEADER.size} bytes") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if dim == VERSIONED:
        raise InputError(f"{path}: the version of llama2.c's format must be 0, got {hidden_dim}")
    numbers = (dim, hidden_dim, n_layers, n_heads, n_kv_heads, abs(vocab_size), max_seq_len)
    if min(numbers) < 1:
        raise InputError(f"{path} is not a model of llama2.c: its header must hold numbers from 1, got {', '.join(map(str, numbers))}")
    tied = vocab_size > 0
    expected = HEADER.size + 4 * (
        2 * dim * abs(vocab_size) // (1 + tied) + dim + max_seq_len * (dim // n_heads)
        + n_layers * (2 * dim * dim + 2 * dim * (dim // n_heads * n_kv_heads) + 3 * dim * hidden_dim + 2 * dim)
    )
    if size != expected:                                         # checked first: a false number of layers would take very long
        raise InputError(f"{path} is not a complete model of llama2.c: its header says {expected} bytes, got {size}")
    if n_heads % n_kv_heads:
        raise InputError(f"{path}: n_kv_heads must divide the {n_heads} attention heads, got {n_kv_heads}")
    shape = dict(dim=dim, n_layers=n_layers, n_heads=n_heads, vocab_size=abs(vocab_size), max_seq_len=max_seq_len)
    config = config_for(path, hidden_dim, norm_eps=NORM_EPS, rope_theta=ROPE_THETA, **shape)
    shapes, starts, position = param_shapes(config), {}, HEADER.size
    shapes |= {name: (n_kv_heads * config.head_dim, dim) for name in shapes if name.endswith(KV)}  # in the file
    for name in _layout(config, tied):
        starts[name] = position
        position += 4 * (max_seq_len * config.head_dim if name is None else math.prod(shapes[name]))

    def load(name):
        start = starts["tok_embeddings" if tied and name == "output" else name]
        return ungrouped(name, np.memmap(path, np.float32, "r", start, shapes[name]), n_heads, n_kv_heads)

    beside = inside(path.parent, TOKENIZER)
    tokenizer = vocabulary.from_tokenizer_bin(read_bytes(beside, MAX_BYTES), config.vocab_size, beside)
    return Model(config, Tensors(shapes, load, path), tokenizer, "f32", f"llama2.c{grouping(n_heads, n_kv_heads)}")
