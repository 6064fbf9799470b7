"""GGUF: one file for llama.cpp and everything built on it.

    file = "GGUF" version counts    keys and values    name, shape, type and offset of every tensor    the tensors, aligned to 32 bytes

The rows of wq and wk have the same order as in memory (adjacent pairs); a shape is written backwards. The gguf package writes the file.
The reader is written by hand, because the package's reader trusts every count that it finds.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""
import mmap
import struct

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter, LlamaFileType, dequantize

from ..errors import InputError
from ..files import atomic
from ..nn import param_shapes
from . import vocabulary
from .model import DTYPES, Model, Settings, Tensors, cast, check_shapes, config_for, file_shapes, grouping, ungrouped

TYPES = {"f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16}
FILE_TYPES = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16}
Q8_BLOCK, Q8_BYTES = 32, 34  # a block of Q8_0: one float16 scale and 32 signed bytes
ALIGNMENT = 32
MAX_COUNT = 1_000_000  # keys, tensors, or texts in a list; more than the largest vocabulary, which has its own message

OUTSIDE = {"tok_embeddings": "token_embd.weight", "norm": "output_norm.weight", "output": "output.weight"}
INSIDE = {
    "attention_norm": "attn_norm", "wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "wo": "attn_output",
    "ffn_norm": "ffn_norm", "w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up",
}


def gguf_name(name):
    """What GGUF calls a parameter: layers.0.wq -> blk.0.attn_q.weight."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, inner = name.split(".")
    return f"blk.{layer}.{INSIDE[inner]}.weight"


def write(path, model, dtype="f32"):
    """Write the file, one tensor at a time; norm gains are float32 in every dtype, as llama.cpp wants them."""
    config = model.config
    pieces = vocabulary.read_pieces(model.tokenizer, "the tokenizer")
    ids = vocabulary.special_ids(pieces)
    with atomic(path, parents=True) as making:
        writer = GGUFWriter(making, "llama")
        try:
            writer.add_name(path.stem)
            writer.add_file_type(FILE_TYPES[dtype])
            writer.add_quantization_version(2)
            writer.add_context_length(config.max_seq_len)
            writer.add_embedding_length(config.dim)
            writer.add_block_count(config.n_layers)
            writer.add_feed_forward_length(config.hidden_dim)
            writer.add_head_count(config.n_heads)
            writer.add_head_count_kv(config.n_heads)
            writer.add_layer_norm_rms_eps(config.norm_eps)
            writer.add_rope_dimension_count(config.head_dim)
            writer.add_rope_freq_base(config.rope_theta)
            writer.add_vocab_size(config.vocab_size)
            writer.add_tokenizer_model("llama")
            writer.add_tokenizer_pre("default")
            writer.add_token_list([piece for piece, _, _ in pieces])
            writer.add_token_scores([score for _, score, _ in pieces])
            writer.add_token_types([kind for _, _, kind in pieces])
            writer.add_bos_token_id(ids["bos"])
            writer.add_eos_token_id(ids["eos"])
            writer.add_unk_token_id(ids["unk"])
            writer.add_add_bos_token(True)
            writer.add_add_eos_token(False)
            writer.add_add_space_prefix(True)
            kinds = {name: dtype if len(shape) > 1 else "f32" for name, shape in param_shapes(config).items()}
            for name, shape in param_shapes(config).items():
                size = int(np.prod(shape)) * DTYPES[kinds[name]].itemsize
                writer.add_tensor_info(gguf_name(name), shape, np.float32, size, TYPES[kinds[name]])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, kind in kinds.items():
                writer.write_tensor_data(cast(model.tensors[name], kind, name).reshape(-1).view(np.uint8))
        finally:
            writer.close()


# ---------------------------------------------------------------------------------------------------------------------- reading

def read(path):
    """The Model of a GGUF file in float32, float16, bfloat16 or Q8_0. Raises InputError for what is broken or not LLaMA-1."""
    keys, infos = _read_header(path)
    config, n_kv_heads = _read_config(Settings(keys, path))
    tied = gguf_name("output") not in infos
    expected = file_shapes(config, len(infos), path, lambda name: None if tied and name == "output" else gguf_name(name), n_kv_heads)
    check_shapes({name: shape for name, (shape, _, _) in infos.items()}, expected, path)

    def load(name):
        shape, kind, offset = infos[gguf_name("tok_embeddings" if tied and name == "output" else name)]
        dtype = next((DTYPES[dtype] for dtype, known in TYPES.items() if known == kind), np.dtype(np.uint8))
        # mapped again for each tensor, so that only this tensor is in memory
        data = np.memmap(path, dtype, "r", offset, (_size(shape, kind) // dtype.itemsize,))
        if kind == Type.Q8_0:
            data = dequantize(data.reshape(shape[0], -1), kind)
        return ungrouped(name, data.reshape(shape), config.n_heads, n_kv_heads)

    kinds = {kind for _, kind, _ in infos.values()}
    dtype = next((dtype for dtype, kind in TYPES.items() if kinds == {kind}), "f32")
    about = f"GGUF, {', '.join(sorted(kind.name for kind in kinds))}{grouping(config.n_heads, n_kv_heads)}"
    return Model(config, Tensors(param_shapes(config), load, path), _read_tokenizer(keys, config, path), dtype, about)


def _size(shape, kind):
    """Bytes of a tensor."""
    count = int(np.prod(shape, dtype=object))                    # Python integers: a false shape must not overflow
    return count // Q8_BLOCK * Q8_BYTES if kind == Type.Q8_0 else count * (4 if kind == Type.F32 else 2)


def _read_config(settings):
    """(ModelConfig, key and value heads) of the keys. Every key that could change the function is checked."""
    settings.only("general.architecture", ("llama",), "'llama'")
    settings.only("split.count", (0, 1), "0 or 1", "a model in several files is not supported")
    settings.only("llama.expert_count", (0,), "0", "LLaMA-1 has no experts")
    dim, n_heads = settings.integer("llama.embedding_length"), settings.integer("llama.attention.head_count")
    n_kv_heads = settings.divisor("llama.attention.head_count_kv", n_heads, n_heads)
    for key in ("llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"):
        settings.only(key, (dim // n_heads,), f"embedding_length / head_count = {dim // n_heads}")
    settings.only("llama.rope.scaling.type", ("none",), "'none'", "LLaMA-1's RoPE is not scaled")
    for key in ("llama.rope.scaling.factor", "llama.rope.scale_linear", "llama.rope.scaling.attn_factor"):
        settings.only(key, (0, 1), "0 or 1", "LLaMA-1's RoPE is not scaled")
    tokens = settings.values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        raise InputError(f"{settings.where} has no tokenizer.ggml.tokens")
    settings.only("llama.vocab_size", (len(tokens),), f"{len(tokens)}, the number of tokenizer.ggml.tokens")
    config = config_for(
        settings.where,
        settings.integer("llama.feed_forward_length"),
        dim=dim,
        n_layers=settings.integer("llama.block_count"),
        n_heads=n_heads,
        vocab_size=len(tokens),
        norm_eps=_shortest(settings.number("llama.attention.layer_norm_rms_epsilon")),
        rope_theta=_shortest(settings.number("llama.rope.freq_base", 10000.0)),
        max_seq_len=settings.integer("llama.context_length"),
    )
    return config, n_kv_heads


def _shortest(value):
    """The shortest decimal that is this float32: 1e-6, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))


def _read_tokenizer(keys, config, path):
    """The bytes of a `.model` from the lists of pieces, scores and kinds."""
    settings = Settings(keys, path)
    settings.only("tokenizer.ggml.model", ("llama",), "'llama'", "LLaMA-1's tokenizer is SentencePiece")
    settings.only("tokenizer.ggml.add_space_prefix", (True,), "true", "LLaMA-1's tokenizer puts a space before every text")
    settings.only("tokenizer.ggml.remove_extra_whitespaces", (False,), "false", "LLaMA-1's tokenizer keeps every space")
    settings.only("tokenizer.ggml.precompiled_charsmap", (), "absent", "LLaMA-1's tokenizer replaces no characters")
    tokens = keys["tokenizer.ggml.tokens"]
    lists = {key: keys.get(f"tokenizer.ggml.{key}") for key in ("scores", "token_type")}
    for key, values in lists.items():
        if not isinstance(values, np.ndarray) or len(values) != len(tokens):
            raise InputError(f"{path}: tokenizer.ggml.{key} must be a list of {len(tokens)} numbers, one for each token")
    pieces = list(zip(tokens, (float(score) for score in lists["scores"]), (int(kind) for kind in lists["token_type"])))
    normal = {score for _, score, kind in pieces if kind == vocabulary.NORMAL}
    if len(normal) == 1 and vocabulary.merges(pieces):
        raise InputError(f"{path}: tokenizer.ggml.scores must differ, got {normal.pop():g} for all: they decide how text is cut")
    return vocabulary.checked(vocabulary.from_pieces(pieces, path), config.vocab_size, path)


SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # GGUF's number: struct's letter
STRING, ARRAY = 8, 9


class _Cursor:
    """Reads one value after the other, and raises struct.error instead of reading beyond the end."""

    def __init__(self, data):
        self.data, self.position = data, 0

    def take(self, letters):
        values = struct.unpack_from(f"<{letters}", self.data, self.position)
        self.position += struct.calcsize(f"<{letters}")
        return values[0] if len(values) == 1 else values

    def bytes(self, size):
        if size > len(self.data) - self.position:
            raise struct.error(f"after byte {self.position} there must be {size} bytes, got {len(self.data) - self.position}")
        self.position += size
        return self.data[self.position - size:self.position]

    def string(self):
        return self.bytes(self.take("Q")).decode()

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.take("I"), self.take("Q")
            if inner == STRING:
                self.check(count)
                return [self.string() for _ in range(count)]     # each takes at least 8 bytes: the end of the file stops it
            letter = self._letter(inner)
            return np.frombuffer(self.bytes(count * struct.calcsize(f"<{letter}")), f"<{np.dtype(letter).str[1:]}")
        return self.take(self._letter(kind))

    def check(self, count):
        if count > MAX_COUNT:
            raise ValueError(f"a count must be at most {MAX_COUNT}, got {count} before byte {self.position}")

    def _letter(self, kind):
        if kind not in SCALARS:
            raise ValueError(f"the kind of value {kind}, before byte {self.position}, is not supported")
        return SCALARS[kind]


def _read_header(path):
    """({key: value}, {tensor: (shape, type, offset in the file)}), all of it checked against the size of the file."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data), path)
    except InputError:
        raise
    except (struct.error, ValueError) as error:                  # an empty file cannot be mapped: ValueError
        raise InputError(f"{path} is not a complete GGUF file: {error}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _parse(cursor, path):
    if cursor.bytes(4) != b"GGUF":
        raise ValueError("it must start with GGUF")
    version = cursor.take("I")
    if version not in (2, 3):
        raise ValueError(f"its version must be 2 or 3, got {version}")
    n_tensors, n_keys = cursor.take("QQ")
    cursor.check(max(n_tensors, n_keys))
    keys, infos = {}, {}
    for _ in range(n_keys):
        key = cursor.string()
        if key in keys:
            raise ValueError(f"it has the key {key!r:.80} twice")
        keys[key] = cursor.value(cursor.take("I"))
    for _ in range(n_tensors):
        name, dimensions = cursor.string(), cursor.take("I")
        if name in infos:
            raise ValueError(f"it has the tensor {name!r:.60} twice")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"the tensor {name!r:.60} must have 1 to 4 dimensions, got {dimensions}")
        shape = tuple(cursor.take("Q") for _ in range(dimensions))[::-1]
        infos[name] = shape, _type(cursor.take("I"), name, shape, path), cursor.take("Q")
    align = keys.get("general.alignment", ALIGNMENT)
    if not isinstance(align, int) or align < 8 or align & (align - 1):
        raise ValueError(f"general.alignment must be a power of two of at least 8, got {align!r:.60}")
    start = end = cursor.position + -cursor.position % align
    for name, (shape, kind, offset) in sorted(infos.items(), key=lambda item: item[1][2]):
        if start + offset != end:
            raise ValueError(f"the tensor {name!r:.60} must start at byte {end}, where the one before it ends, got {start + offset}")
        infos[name] = shape, kind, end
        last = end + _size(shape, kind)
        end = last + -last % align
    if infos and not last <= len(cursor.data) <= end:
        raise ValueError(f"its size must be {last} to {end} bytes, as its tensors say, got {len(cursor.data)}")
    return keys, infos


def _type(number, name, shape, path):
    """The type of a tensor. Raises InputError for a type that is not supported."""
    try:
        kind = Type(number)
    except ValueError:
        raise ValueError(f"the type of {name!r:.60} must be one that GGUF defines, got {number}") from None
    if kind not in (*TYPES.values(), Type.Q8_0):
        raise InputError(f"{path}: {name!r:.60} must be F32, F16, BF16 or Q8_0, got {kind.name}")
    if kind == Type.Q8_0 and shape[-1] % Q8_BLOCK:
        raise ValueError(f"the rows of {name!r:.60} must be a multiple of {Q8_BLOCK} values long, got {shape[-1]}")
    return kind
