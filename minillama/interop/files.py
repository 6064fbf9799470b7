"""Files at the border: what is written is whole or not there, what is read stays inside its folder and below its size."""
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError

MAX_JSON = 20_000_000  # bytes; an index of 65B has a hundredth of it


def sync(path):
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole(path):
    """A path of another name to write a file or a folder to. After the block it is synced and renamed; if the block fails, removed."""
    path = Path(path)
    making = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(making)
    try:
        yield making
        for file in (*sorted(making.rglob("*"), reverse=True), making):
            sync(file)
        os.replace(making, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is None:                                  # as NumPy's and PyTorch's writers report a full disk
            raise OSError(f"{path} cannot be written: {error}") from None
        raise
    finally:
        _remove(making)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def new_path(path):
    """The path of an output. Raises InputError where something is there already."""
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} already exists: choose another -o")
    return path


def inside(folder, name):
    """The path of a regular file in a folder, named by something that came from outside.

    A link may point to a file beside it. In a snapshot of Hugging Face's cache all files are links; there they may point to the blobs of
    the model.

    Raises InputError for a name that leaves the folder (`..`, another folder, a link that points out), and if there is no such file.
    """
    folder = Path(folder)
    if not isinstance(name, str) or not name or name in (".", "..") or any(sign in name for sign in "/\\\0"):
        raise InputError(f"{folder}: a file name must be the plain name of a file in this folder, got {name!r:.80}")
    path = folder / name
    try:
        os.lstat(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError):                                # too long, or not possible in UTF-8
        raise InputError(f"{folder}: a file name must be one that the system allows, got {name!r:.60}") from None
    home = folder.resolve()
    homes = (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)
    if path.is_symlink() and path.resolve().parent not in homes:
        raise InputError(f"{path} is a link that leaves its folder, which is not supported: copy the file there")
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    return path


def read_bytes(path, limit):
    """A small file. Raises InputError where it cannot be read or is larger than `limit` bytes."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError(f"{path} must have at most {limit:,} bytes, got {size:,}")
            return file.read(size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def read_json(path):
    """The object in a JSON file: dict. Raises InputError for anything else."""
    try:
        value = json.loads(read_bytes(path, MAX_JSON))
    except (ValueError, RecursionError) as error:                # UnicodeDecodeError is a ValueError
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def write_json(path, value):
    """Write a JSON file that people can read, too."""
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
