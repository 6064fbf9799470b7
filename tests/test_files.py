"""Files: complete or not there, whatever goes wrong; leftovers of the dead go, work of the living stays; nothing endless is read."""
import errno
import os
import subprocess
import sys
import time

import pytest
from helpers import ROOT, dead_process

from minillama import files
from minillama.errors import InputError


def hidden(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failed_write_leaves_the_old_and_nothing_else(kind, tmp_path):
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("old")
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError("bug")):
        with pytest.raises(type(error)), files.atomic(path) as making:
            if kind == "folder":
                making.mkdir()
                (making / "half").write_text("half")
            else:
                making.write_text("half")
            raise error
        assert not hidden(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == (["x"] if kind == "file" else [])
    assert kind == "folder" or path.read_text() == "old"


def test_errors_name_the_path_that_was_asked_for(tmp_path):
    for name, error, sentence in (
        ("a", OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        ("b", OSError("557310 requested and 102399 written"), "557310 requested and 102399 written): is the disk full?"),
    ):
        with pytest.raises(OSError) as raised, files.atomic(tmp_path / name) as making:
            making.mkdir()
            raise error
        assert raised.value.filename == str(tmp_path / name)
        assert sentence in raised.value.strerror
    with pytest.raises(FileNotFoundError) as raised, files.atomic(tmp_path / "nowhere" / "c.png") as making:
        making.write_text("")
    assert raised.value.filename == str(tmp_path / "nowhere" / "c.png")


def test_a_folder_replaces_an_empty_one_only(tmp_path):
    (tmp_path / "empty").mkdir()
    with files.atomic(tmp_path / "empty") as making:
        making.mkdir()
        (making / "a").write_text("new")
    assert (tmp_path / "empty" / "a").read_text() == "new"
    with pytest.raises(FileExistsError), files.atomic(tmp_path / "empty") as making:
        making.mkdir()
    assert (tmp_path / "empty" / "a").read_text() == "new"


def test_leftovers_of_the_dead_go_and_work_of_the_living_stays(tmp_path):
    dead, living = (files.temporary_path(tmp_path / "run", process) for process in (dead_process(), os.getppid()))
    other = tmp_path / ".run.elsewhere-1.minillama.tmp"          # of another machine: nobody here knows whether it lives
    for path in (dead, living, other):
        path.mkdir()
    files.write_text(tmp_path / "another", "text")
    assert sorted(hidden(tmp_path)) == sorted([living.name, other.name])


def test_a_killed_writer_is_cleaned_up_after(tmp_path):
    script = f"""import sys
sys.path.insert(0, {str(ROOT)!r})
from minillama.files import atomic
with atomic({str(tmp_path / "run")!r}) as making:
    making.mkdir()
    print("ready", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    assert len(hidden(tmp_path)) == 1
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    files.remove_leftovers(tmp_path)
    assert not hidden(tmp_path)


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "large").write_bytes(bytes(101))
    started = time.monotonic()
    for path, sentence in (
        (tmp_path / "pipe", "it is a pipe or device, not a file"),
        ("/dev/zero", "it is a pipe or device, not a file"),
        (tmp_path, "it is a folder, not a file"),
        (tmp_path / "loop", "cannot read"),
        (tmp_path / "none", "No such file or directory"),
        ("a\0b", "a path must be text in UTF-8 without control characters, got 'a"),
        (tmp_path / "large", "must have at most 100 bytes, got 101"),
    ):
        with pytest.raises(InputError, match=sentence):
            files.read_bytes(path, 100)
    assert time.monotonic() - started < 5
