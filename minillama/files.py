"""Files: what is written is complete or not there, what is read is a regular file, inside its folder and below its size.

A file or folder is written under a temporary name beside its own, synced to the disk and then renamed: a rename either happened or
did not. The temporary name holds the machine and the process, so that what a killed process left is known, and removed by the next
writer in the same folder.
"""
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

MAX_JSON = 20_000_000  # bytes; an index of 65B has a hundredth of it
_HOST = re.sub(r"[^A-Za-z0-9]+", "-", platform.node())[:40]
_TEMPORARY = re.compile(rf"\..+\.{re.escape(_HOST)}-(\d+)\.minillama\.tmp")


@contextmanager
def atomic(path, parents=False):
    """A temporary path to write a file or a folder to. After the block it is synced and renamed to `path`; if the block fails, removed.

    parents: bool    make the folders above it that do not exist yet

    Raises:
        FileExistsError: `path` is a folder that is not empty (a file is replaced)
        OSError: whatever the block met, said of `path`
    """
    path = Path(path)
    temporary = temporary_path(path, os.getpid())
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        _remove(temporary)
        yield temporary
        for file in (*sorted(temporary.rglob("*"), reverse=True), temporary):
            _sync(file)
        if path.is_dir():
            path.rmdir()                                         # only an empty one: not everywhere does a rename replace it
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise _said_of(path, temporary, error) from None
    finally:
        _remove(temporary)


def temporary_path(path, process):
    """What a process writes to in place of `path`."""
    return path.with_name(f".{path.name}.{_HOST}-{process}.minillama.tmp")


def write_text(path, text):
    """Write a small file atomically: it holds the old text or the new, never a part."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_leftovers(folder):
    """Delete what killed processes of this machine left in a folder."""
    for path in Path(folder).glob(".*.minillama.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            _remove(path)


def _is_alive(process):
    if os.name == "nt":                                          # os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _said_of(path, temporary, error):
    """The error with the path that the caller knows. NumPy's and PyTorch's writers report a full disk without a number."""
    if error.errno is None:
        return OSError(errno.EIO, f"cannot be written ({error}): is the disk full?", str(path))
    if error.errno == errno.ENOTEMPTY:                           # of rmdir, or of the rename if another process was faster
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    return OSError(error.errno, error.strerror, str(error.filename or path).replace(str(temporary), str(path)))


def _sync(path):
    """Wait until a file, or a folder's list of names, is on the disk. Windows opens no folder, and needs no such wait."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path, sentence):
    """Hold a file that nobody else may hold at the same time. The system lets go of it when the process ends, however it ends.

    Raises:
        InputError: with `sentence`, where another process holds it
    """
    with open(path, "rb") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise InputError(sentence) from None             # any other: a file system without locks
        yield


def is_locked(path):
    """True if another process holds the file."""
    try:
        with locked(path, ""):
            return False
    except InputError:
        return True


def _lock(file):
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 30)                                       # beyond the end: the text stays readable
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sha256(path):
    """The hash of a file's content, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def new_path(path, flag="-o"):
    """The path of an output. Raises InputError where something is there already."""
    path = Path(path)
    if os.path.lexists(path):
        raise InputError(f"{path} already exists: choose another {flag}")
    return path


# ---------------------------------------------------------------------------------------------------------------------- reading

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
    if path.is_symlink() and _target(path).parent not in _homes(folder):
        raise InputError(f"{path} is a link that leaves its folder, which is not supported: copy the file there")
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    return path


def _homes(folder):
    """The folders that a link in this one may point into."""
    home = _target(folder)
    return (home, home.parent.parent / "blobs") if home.parent.name == "snapshots" else (home,)


def _target(path):
    """What a path is behind all links. Raises InputError for links that lead in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        raise InputError(f"{path} is a link that leads in a circle") from None


def check_name(path):
    """The path as it is. Raises InputError for one that no file can have, that config.toml cannot hold, or that would move the cursor."""
    text = str(path)
    try:
        if text and text.encode("utf-8") and not any(character < " " or "\x7f" <= character <= "\x9f" for character in text):
            return path
    except UnicodeEncodeError:
        pass
    raise InputError(f"a path must be text in UTF-8 without control characters, got {text!r:.80}")


def check_regular(path):
    """Raise InputError unless this is a file with an end: no folder, pipe or device, whose reading would not return."""
    check_name(path)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"cannot read {path}: it is a {'folder' if stat.S_ISDIR(mode) else 'pipe or device'}, not a file")


def read_bytes(path, limit):
    """A small file. Raises InputError where it cannot be read or is larger than `limit` bytes."""
    check_regular(path)
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
    data = read_bytes(path, MAX_JSON)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:                # UnicodeDecodeError is a ValueError
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def write_json(path, value):
    """Write a JSON file that people can read, too."""
    Path(path).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
