"""The real torchrun: it starts the processes, and starts them again when one has died."""
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

from ranks import SHAPE, Ranks, same_curve

from kernels import world
from minillama.errors import InputError, Told
from minillama.world import open_world

WORKER = """
import os, signal, sys
from ranks import interrupted
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
sys.exit(interrupted(1, 7 if first else None, signal.SIGKILL, *sys.argv[1:]))
"""


def test_goes_on_after_a_process_was_killed(documents, alone, tmp_path, monkeypatch):
    """Killed at step 7, it goes on from the checkpoint of step 5: torchrun's store still holds what the first processes wrote there."""
    common = ["train", "--engine", "torch", "--device", "cpu", "--data", documents, *map(str, SHAPE)]
    (tmp_path / "worker.py").write_text(WORKER)
    here = Path(__file__).resolve().parent
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, (here, *here.parents[:2]))))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    ended = subprocess.run([*launch, tmp_path / "worker.py", *common, "--resume", "--out", tmp_path / "run"],
                           capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended
    assert "continuing after step 5" in ended.stdout
    assert ended.stderr.count("error: ") == ended.stderr.count("no answer from rank 1") == 1, ended.stderr
    same_curve(tmp_path / "run", alone)
    assert not list(tmp_path.rglob("*.tmp"))


def lose_one():
    """Rank 1 dies, and rank 0 notices, while rank 2 waits for rank 0 alone."""
    try:
        with open_world(20) as others:
            if others.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if others.rank == 0:
                others.any(False)
            others.same(None)
    except Told:
        return 2
    except InputError as error:
        print(error)
        return 2


def test_who_only_waits_is_not_named(tmp_path):
    ended = Ranks(tmp_path, 3, lose_one).wait()
    assert [one.status for one in ended] == [2, -signal.SIGKILL, 2], ended
    said = "".join(one.out for one in ended)
    assert said.startswith("no answer from rank 1 on ") and said.count("rank") == said.count("\n") == 1, said


def test_a_store_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(world, "ROLL_CALL", 0.01)
    assert world._in_time(Event().wait) is None
    monkeypatch.undo()
    assert world._in_time(lambda: 3) == 3
