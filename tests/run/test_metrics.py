"""The figures of a run: each step once, in TensorBoard too where it is installed."""
import sys
import types
from pathlib import Path

from minillama.run.metrics import Metrics


class FakeWriter:
    """What tensorboard.summary.Writer is to `Metrics`."""

    def __init__(self, folder):
        Path(folder).mkdir()
        self.open, FakeWriter.written = True, []

    def add_scalar(self, tag, value, step):
        assert self.open
        self.written.append((tag, value, step))

    def close(self):
        self.open = False


def test_tensorboard_shows_each_step_once(tmp_path, monkeypatch):
    """Where it is installed; a resumed run begins it anew with what it keeps."""
    monkeypatch.setitem(sys.modules, "tensorboard.summary", types.SimpleNamespace(Writer=FakeWriter))
    path = tmp_path / "metrics.jsonl"
    for after, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with Metrics(path, after) as metrics:
            for step in steps:
                metrics.append({"step": step, "loss": 1 / step, "floor": None, "tokens_per_s": 9})
    assert FakeWriter.written == [point for step in (1, 2, 3, 4) for point in (("loss", 1 / step, step), ("tokens_per_s", 9, step))]
    assert (tmp_path / "tensorboard").is_dir()


def test_without_tensorboard_there_is_no_folder_of_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)  # import finds nothing
    with Metrics(tmp_path / "metrics.jsonl", 0) as metrics:
        metrics.append({"step": 1, "loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
