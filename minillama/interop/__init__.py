"""Models that come and go: Hugging Face directories, GGUF, llama2.c, Meta's files.

    read(path)                         -> Model; a tensor is read when somebody asks for it
    write(path, model, to, dtype)      Model -> files, tensor by tensor: all of them complete, or none

model.py says what a Model is; a format is a module with `read` and `write`. What comes from outside is checked before it is used,
and nothing in it is ever run. What LLaMA-1 does not have (scaled RoPE, biases ...) is refused, and the message names the key. Where
several query heads share a key and a value head, each gets a copy. For users: README.md.
"""
from pathlib import Path

from ..config import FORMATS
from ..errors import InputError
from ..files import new_path
from .model import DTYPES, Model, Tensors

__all__ = ["DTYPES", "FORMATS", "Model", "Tensors", "format_of", "read", "write"]

def _module(name):
    """A format's module, imported when it is needed."""
    from importlib import import_module

    return import_module(f".{name}", __name__)


def format_of(path):
    """The name of a path's format. Raises InputError where it is none of them."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if path.is_dir():
        for name, file in (("hf", "config.json"), ("meta", "params.json"), ("llama2c", "model.bin")):
            if (path / file).exists():
                return name
        known = "config.toml (a run), config.json (Hugging Face), params.json (Meta), model.bin (llama2.c)"
        raise InputError(f"{path} holds no model: it has none of {known}")
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder")
    if path.suffix in (".safetensors", ".pth", ".pt", ".json"):
        raise InputError(f"{path} is only one file of a model: give its folder")
    try:
        with open(path, "rb") as file:
            return "gguf" if path.suffix == ".gguf" or file.read(4) == b"GGUF" else "llama2c"
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def read(path):
    """The Model at a path, in any of the formats. Raises InputError for what is broken, unsafe, or not LLaMA-1."""
    return _module(format_of(path)).read(Path(path))


def write(path, model, to, dtype="f32"):
    """Write a Model to a path that does not exist yet. Raises InputError if it exists, or if the format cannot hold the model."""
    _module(to).write(new_path(path), model, dtype)
