"""What every format says of a model, in minillama's own terms: each reader makes a Model, each writer takes one.

    config     ModelConfig: LLaMA-1's shape, and nothing else
    tensors    Meta's name -> float32 array with interleaved RoPE, read from the file when somebody asks for it
    tokenizer  the bytes of a SentencePiece `.model`
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..config import FILE_DTYPES, ModelConfig
from ..errors import InputError
from ..nn import param_shapes

KV = (".wk", ".wv")  # the parameters with a row for every channel of the key or value heads


class Dtypes(Mapping):
    """FILE_DTYPES as NumPy's dtypes. NumPy's bfloat16 is in a package of its own, which is imported if somebody asks for it."""

    def __getitem__(self, name):
        if name == "bf16":
            import ml_dtypes

            return np.dtype(ml_dtypes.bfloat16)
        return {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}[name]

    def __iter__(self):
        return iter(FILE_DTYPES)

    def __len__(self):
        return len(FILE_DTYPES)


DTYPES = Dtypes()


@dataclass(frozen=True)
class Model:
    """One LLaMA.

    dtype: the narrowest of DTYPES that holds every tensor exactly
    about: where it comes from, for people
    """

    config: ModelConfig
    tensors: Mapping
    tokenizer: bytes
    dtype: str = "f32"
    about: str = ""


class Tensors(Mapping):
    """Parameters that stay in their file: each look-up reads one tensor, and does not keep it.

    names: iterable of str        Meta's, in the model's order
    read:  (name) -> array        of any dtype in DTYPES
    where: str                    the file, for messages
    """

    def __init__(self, names, read, where):
        self._names, self._read, self._where = dict.fromkeys(names), read, where

    def __getitem__(self, name):
        """float32 array. Raises InputError if it holds NaN or infinity, or if the file was changed or deleted."""
        if name not in self._names:
            raise KeyError(name)
        try:
            tensor = np.asarray(self._read(name), np.float32)
        except OSError as error:
            raise InputError(f"{self._where}: {name} cannot be read ({error})") from None
        if not finite(tensor):
            raise InputError(f"{self._where} is broken: {name} holds values that are not finite")
        return tensor

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


def finite(tensor):
    """True if no value is NaN or infinite. The minimum and the maximum show it, without a second array of the tensor's size."""
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(tensor.min()) and np.isfinite(tensor.max()))


def cast(tensor, dtype, name):
    """The tensor in one of DTYPES, rounded to nearest even. Raises InputError if a value is too large for it."""
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(tensor, DTYPES[dtype])
    if dtype != "f32" and not finite(out):
        raise InputError(f"{name}: values must fit into {dtype}, got {np.abs(tensor).max():g}: export it as f32")
    return out


def config_for(where, hidden_dim, **fields):
    """The ModelConfig with exactly this feed-forward width. LLaMA derives the width from dim and multiple_of, so this chooses a
    multiple_of that gives it: the largest power of two that does, else the width itself.

    Raises:
        InputError: no multiple_of gives it, or a field out of range
    """
    try:
        power = hidden_dim & -hidden_dim                         # the largest power of two that divides it
        least = 8 * fields["dim"] // 3
        config = ModelConfig(multiple_of=power if hidden_dim - least < power else max(hidden_dim, 1), **fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if config.hidden_dim != hidden_dim:
        raise InputError(f"{where}: the feed-forward width must be at least 2/3 * 4 * dim = {least}, got {hidden_dim}")
    return config


def file_shapes(config, n_found, where, file_name, n_kv_heads):
    """What a file must hold: dict of the file's name of a tensor -> shape. Raises InputError if it has fewer tensors than layers.

    Args:
        n_found:    int              tensors in the file: with a false number of layers this would take very long
        file_name:  (name) -> str    what the file calls a parameter; None if it does not hold it
        n_kv_heads: int              of the file, see `ungrouped`
    """
    if config.n_layers > n_found:
        raise InputError(f"{where} must have a tensor for each of its {config.n_layers} layers, got {n_found} tensors")
    kv_shape = (n_kv_heads * config.head_dim, config.dim)
    shapes = {file_name(name): kv_shape if name.endswith(KV) else shape for name, shape in param_shapes(config).items()}
    return {name: shape for name, shape in shapes.items() if name is not None}


def ungrouped(name, tensor, n_heads, n_kv_heads):
    """A parameter as LLaMA-1 has it: a key and a value head for every query head.

    In later models, groups of query heads share one (Ainslie et al. 2023, arXiv:2305.13245). With a copy of the shared head for each
    query head of the group it is the same function, in more memory.
    """
    if not name.endswith(KV) or n_kv_heads == n_heads:
        return tensor
    heads = tensor.reshape(n_kv_heads, -1, tensor.shape[-1])     # (KV, Dh, D)
    return np.repeat(heads, n_heads // n_kv_heads, axis=0).reshape(-1, tensor.shape[-1])


def grouping(n_heads, n_kv_heads):
    """What `ungrouped` did, for `Model.about`; empty if it did nothing."""
    return "" if n_kv_heads == n_heads else f", its {n_kv_heads} key and value heads copied to {n_heads}"


def check_shapes(found, expected, where):
    """Compare what a file holds with what it must hold, before anything is read.

    Args:
        found, expected: dict name -> shape    by the names of the file

    Raises:
        InputError: a tensor that is missing, not LLaMA-1's, or of another shape
    """
    for name, shape in expected.items():
        if name not in found:
            raise InputError(f"{where} has no tensor {name}")
        if tuple(found[name]) != shape:
            raise InputError(f"{where}: {name} must have the shape {shape}, by the configuration, got {tuple(found[name])}")
    for name in found:
        if name not in expected:
            raise InputError(f"{where} has a tensor {name!r:.80}, which is not supported: LLaMA-1 has none of this name")


class Settings:
    """Keys of a configuration that came from outside, each with its type checked. Every method raises InputError.

    values: dict
    where:  str     the file, for messages
    """

    def __init__(self, values, where):
        self.values, self.where = values, where

    def integer(self, key, default=None):
        """A whole number of at least 1."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
            self._refuse(key, value, "a whole number from 1 to 2147483647")
        return value

    def divisor(self, key, of, default):
        """A whole number that divides `of`."""
        value = self.integer(key, default)
        if of % value:
            raise InputError(f"{self.where}: {key} must divide the {of} attention heads, got {value}")
        return value

    def number(self, key, default=None):
        """A finite number, as float."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300 or not math.isfinite(value):
            self._refuse(key, value, "a number")
        return float(value)

    def only(self, key, allowed, must_be, why=""):
        """Check a key that may be absent or null.

        Args:
            allowed: container    the values that LLaMA-1 has
            must_be: str          the same, for the message
            why:     str          a reason, where the key alone does not give it
        """
        value = self.values.get(key)
        if value is not None and (isinstance(value, np.ndarray) or value not in allowed):
            self._refuse(key, value, must_be, why)

    def _refuse(self, key, value, must_be, why=""):
        if value is None:
            raise InputError(f"{self.where} has no {key}")
        shown = " ".join(repr(value).split())                    # an array has several lines
        shown = shown if len(shown) < 80 else f"{shown:.77}..."
        raise InputError(f"{self.where}: {key} must be {must_be}, got {shown}" + (f": {why}" if why else ""))
