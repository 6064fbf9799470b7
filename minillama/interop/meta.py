"""Meta's own files: params.json, consolidated.00.pth, tokenizer.model. The one format that is a pickle.

A pickle is a program. Before PyTorch opens one, its instructions are read here without being run, and a file that calls anything but
what rebuilds tensors is refused; then PyTorch is asked for tensors only (`weights_only`). The larger models come in several files,
each with a part of every matrix.
"""
import pickletools
import struct
import zipfile
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import atomic, inside, read_bytes, read_json, write_json
from ..nn import param_shapes
from ..text.model_file import MAX_BYTES
from . import vocabulary
from .model import DTYPES, Model, Settings, Tensors, cast, check_shapes, config_for, file_shapes, grouping, ungrouped

OUTSIDE = {"tok_embeddings": "tok_embeddings.weight", "norm": "norm.weight", "output": "output.weight"}
INSIDE = {"wq": "attention.wq", "wk": "attention.wk", "wv": "attention.wv", "wo": "attention.wo",
          "w1": "feed_forward.w1", "w2": "feed_forward.w2", "w3": "feed_forward.w3"}
BY_COLUMNS = ("tok_embeddings", "wo", "w2")  # cut by columns, if there are several parts; the other matrices are cut by rows
CONTEXT = 2048  # LLaMA-1's: Meta's files do not say
OURS = "minillama.json"  # which says it, beside them: {"max_seq_len"}
MAX_PICKLE = 10_000_000  # bytes of the pickle alone: names and shapes, no numbers
CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4")  # the instructions that fetch something to call
ALLOWED = {
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter",
    "torch FloatStorage", "torch HalfStorage", "torch BFloat16Storage",
}


def meta_name(name):
    """What Meta's code calls a parameter: layers.0.wq -> layers.0.attention.wq.weight."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, layer, inner = name.split(".")
    return f"layers.{layer}.{INSIDE.get(inner, inner)}.weight"


def _torch():
    try:
        import torch
    except ImportError:
        raise InputError("Meta's format needs PyTorch, which is not installed here: the other formats do not need it") from None
    return torch


def write(path, model, dtype="f32"):
    """Write a folder with the three files.

    PyTorch saves all tensors in one call. So they are first written to a file beside it, one at a time, and mapped from there.
    """
    torch, config, shapes = _torch(), model.config, param_shapes(model.config)
    with atomic(path, parents=True) as making:
        making.mkdir()
        (making / "tokenizer.model").write_bytes(model.tokenizer)
        write_json(making / "params.json", {
            "dim": config.dim, "multiple_of": config.multiple_of, "n_heads": config.n_heads, "n_layers": config.n_layers,
            "norm_eps": config.norm_eps, "vocab_size": -1,
            **({} if config.rope_theta == 10000.0 else {"rope_theta": config.rope_theta}),
        })
        write_json(making / OURS, {"max_seq_len": config.max_seq_len})
        plain = making / "tensors"
        with open(plain, "wb") as file:
            for name in shapes:
                file.write(cast(model.tensors[name], dtype, name).reshape(-1).view(np.uint8))
        state, start = {}, 0
        for name, shape in shapes.items():
            data = np.memmap(plain, np.uint8, "r+", start, (int(np.prod(shape)) * DTYPES[dtype].itemsize,))
            state[meta_name(name)] = torch.from_numpy(data).view(_torch_dtypes()[dtype]).view(shape)
            start += data.nbytes
        try:
            torch.save(state, making / "consolidated.00.pth")
        except RuntimeError as error:
            raise OSError(_first_line(error)) from None
        plain.unlink()


def _torch_dtypes():
    torch = _torch()
    return {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


# ---------------------------------------------------------------------------------------------------------------------- reading

def read(folder):
    """The Model of Meta's three files in a folder. Raises InputError for what is broken, unsafe, or not LLaMA-1."""
    folder = Path(folder)
    settings = Settings(read_json(inside(folder, "params.json")), folder / "params.json")
    files = sorted(path.name for path in folder.glob("consolidated.*.pth"))
    if files != [f"consolidated.{part:02d}.pth" for part in range(max(len(files), 1))]:
        raise InputError(f"{folder}: the parts must be consolidated.00.pth, 01 ... without a gap, got {', '.join(files) or 'none'}")
    files = [inside(folder, name) for name in files]
    parts = [_Part(path) for path in files]
    found = _joined([part.shapes for part in parts], folder)
    path = inside(folder, "tokenizer.model")
    tokenizer = read_bytes(path, MAX_BYTES)
    pieces = vocabulary.read_pieces(tokenizer, path)
    config = _read_config(settings, found, len(pieces))
    n_kv_heads = settings.divisor("n_kv_heads", config.n_heads, config.n_heads)
    expected = file_shapes(config, len(found), folder, meta_name, n_kv_heads)
    check_shapes({name: shape for name, (shape, _) in found.items()}, expected, folder)

    def load(name):
        tensors = [part.tensor(meta_name(name)) for part in parts]
        if len(shapes[name]) == 1:
            tensors = tensors[:1]                                # every part has all of the norm gains
        arrays = [tensor.detach().float().numpy() for tensor in tensors]
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=_axis(name))
        return ungrouped(name, joined, config.n_heads, n_kv_heads)

    shapes = param_shapes(config)
    dtypes = {dtype for _, dtype in found.values()}
    dtype = next((name for name, dtype in _torch_dtypes().items() if dtypes == {dtype}), "f32")
    about = f"Meta's format, {len(files)} file(s){grouping(config.n_heads, n_kv_heads)}"
    return Model(config, Tensors(shapes, load, folder), tokenizer, dtype, about)


def _axis(name):
    """The axis along which a matrix is cut, by Meta's name or ours."""
    return 1 if name.removesuffix(".weight").split(".")[-1] in BY_COLUMNS else 0


def _read_config(settings, found, n_pieces):
    """ModelConfig of params.json and the shape of w1. Every key that could change the function is checked."""
    settings.only("vocab_size", (-1, n_pieces), f"-1 or {n_pieces}, the number of pieces of the tokenizer")
    settings.only("use_scaled_rope", (False,), "false", "LLaMA-1's RoPE is not scaled")
    for key in ("quantization_args", "lora_args", "moe_args"):
        settings.only(key, (), "absent", "LLaMA-1 has none")
    w1 = meta_name("layers.0.w1")
    if w1 not in found or len(found[w1][0]) != 2:
        raise InputError(f"{settings.where.parent} has no matrix {w1}")
    return config_for(
        settings.where,
        found[w1][0][0],
        dim=settings.integer("dim"),
        n_layers=settings.integer("n_layers"),
        n_heads=settings.integer("n_heads"),
        vocab_size=n_pieces,
        norm_eps=settings.number("norm_eps"),
        rope_theta=settings.number("rope_theta", 10000.0),
        max_seq_len=_context(settings.where.parent),
    )


def _context(folder):
    """What the model was trained at, if it was exported from here."""
    if not (folder / OURS).exists():
        return CONTEXT
    return Settings(read_json(inside(folder, OURS)), folder / OURS).integer("max_seq_len")


def _joined(parts, folder):
    """name -> (shape, dtype) of the joined tensors. Raises InputError where the parts do not fit together."""
    joined = {}
    for name, (shape, dtype) in parts[0].items():
        if any(part.get(name) != (shape, dtype) for part in parts):
            raise InputError(f"{folder}: {name} must be in all {len(parts)} parts, with the same shape and dtype")
        if len(shape) == 2:
            shape = tuple(size * (len(parts) if axis == _axis(name) else 1) for axis, size in enumerate(shape))
        joined[name] = shape, dtype
    for part in parts[1:]:
        for name in part:
            if name not in joined:
                raise InputError(f"{folder}: {name!r:.60} must be in all {len(parts)} parts")
    return joined


class _Part:
    """One file of the model. It is inspected, opened once and checked; then its tensors stay mapped, as long as this object lives.

    shapes: dict name -> (shape, dtype)
    """

    def __init__(self, path):
        self._path, self._stamp = path, _stamp(path)
        _inspect(path)
        self._state = _load(path)
        self.shapes = _shapes(self._state, path)

    def tensor(self, name):
        """A mapped tensor: its values are read from the file when they are used. Raises InputError where the file has changed."""
        if _stamp(self._path) != self._stamp:                    # to read beyond the end of a mapped file would end the program
            raise InputError(f"{self._path} has changed while it was read")
        return self._state[name]


def _stamp(path):
    """Numbers that change when a file is written to or replaced. Raises OSError if the file was deleted."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _shapes(state, path):
    """name -> (shape, dtype) of what PyTorch found in a file. Raises InputError for anything but plain tensors of the file's size."""
    found, limit = {}, path.stat().st_size
    allowed = set(_torch_dtypes().values())
    if not isinstance(state, dict):
        raise InputError(f"{path} must hold a dictionary of tensors, got {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, _torch().Tensor) or tensor.dtype not in allowed:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise InputError(f"{path}: {name!r:.60} must be a tensor of float32, float16 or bfloat16, got {kind}")
        limit -= tensor.numel() * tensor.element_size()
        if limit < 0 or not tensor.is_contiguous():
            raise InputError(f"{path}: {name!r:.60} must not have more values than the file holds of it")
        if name != "rope.freqs":                                 # a function of theta, and computed here
            found[name] = tuple(tensor.shape), tensor.dtype
    return found


def _load(path):
    """What one file holds, its tensors mapped: none of their values is in memory yet."""
    try:
        return _torch().load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:                                   # PyTorch reports a broken file with many types of exceptions
        raise InputError(f"{path} is not a complete file of tensors: {_first_line(error)}") from None


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _inspect(path):
    """Raises InputError for a file that is not a plain zip of storages, or whose pickle calls anything but what rebuilds a tensor."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
                raise InputError(f"{path} is compressed, which is not supported: PyTorch's own files are not")
            if (total := sum(entry.file_size for entry in entries)) > path.stat().st_size:
                raise InputError(f"{path}: its entries must have at most the {path.stat().st_size} bytes of the file, got {total}")
            pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
                raise InputError(f"{path} must have exactly one data.pkl, of at most {MAX_PICKLE:,} bytes")
            for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
                if opcode.name in CALLS and argument not in ALLOWED:
                    called = str(argument or opcode.name).replace(" ", ".")
                    raise InputError(f"{path} is refused: its pickle calls {called:.80}, which tensors do not need")
    except InputError:
        raise
    except (zipfile.BadZipFile, ValueError, KeyError, IndexError, EOFError, NotImplementedError, RuntimeError, OverflowError,
            struct.error, OSError) as error:
        raise InputError(f"{path} is not a complete file of PyTorch's: {_first_line(error)}") from None
