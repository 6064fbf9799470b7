"""The real torchrun: it starts the processes, and starts them again when one has died."""
import subprocess
import sys
from pathlib import Path

from ranks import SHAPE, same_curve

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
    monkeypatch.setenv("PYTHONPATH", f"{here}:{here.parents[1]}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    ended = subprocess.run([*launch, tmp_path / "worker.py", *common, "--resume", "--out", tmp_path / "run"],
                           capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended
    assert "continuing after step 5" in ended.stdout
    assert ended.stderr.count("error: ") == ended.stderr.count("no answer from rank 1") == 1, ended.stderr
    same_curve(tmp_path / "run", alone)
    assert not list(tmp_path.rglob("*.tmp"))
