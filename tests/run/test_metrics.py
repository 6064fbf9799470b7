"""The figures of a run: each step once, in TensorBoard too where it is installed."""
import sys
import types
from pathlib import Path

import pytest

from minillama.run.metrics import Metrics, read_metrics


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


def test_nothing_is_rewritten_where_nothing_is_new(tmp_path, monkeypatch):
    """A finished run that is resumed: neither metrics.jsonl nor TensorBoard's file."""
    monkeypatch.setitem(sys.modules, "tensorboard.summary", types.SimpleNamespace(Writer=FakeWriter))
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, 0) as metrics:
        metrics.append({"step": 1, "loss": 1.0, "tokens_per_s": 9})
    before = path.stat().st_mtime_ns, (tmp_path / "tensorboard").stat().st_mtime_ns
    with Metrics(path, 1) as metrics:
        metrics.sync()
    assert before == (path.stat().st_mtime_ns, (tmp_path / "tensorboard").stat().st_mtime_ns)
    assert len(metrics.records) == 1


def test_numbers_that_come_late_join_their_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", types.SimpleNamespace(Writer=FakeWriter))
    path = tmp_path / "metrics.jsonl"
    with Metrics(path, 0) as metrics:
        metrics.append({"step": 1, "loss": 1.0, "tokens_per_s": 9})
        metrics.amend({"val_loss": 2.0})
        metrics.append({"step": 2, "loss": 0.5, "tokens_per_s": 9})
    assert [record.get("val_loss") for record in read_metrics(path)] == [2.0, None]
    assert FakeWriter.written.count(("val_loss", 2.0, 1)) == FakeWriter.written.count(("loss", 1.0, 1)) == 1


@pytest.mark.parametrize("line", [
    '{"step": 2, "loss": NaN, "tokens_per_s": 1}', "5", "[]", "{}", "null", "[" * 5000, "\xff",
    '{"step": "1"}', '{"step": 2, "loss": null, "tokens_per_s": 1}', '{"step": 2, "loss": "x"}',
    '{"step": 0, "loss": 1, "tokens_per_s": 1}',
    '{"step": true, "loss": 1, "tokens_per_s": 1}', '{"step": 2, "loss": {}, "tokens_per_s": 1}',
])
def test_a_damaged_line_ends_the_records(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1, "loss": 1.0, "tokens_per_s": 9}\n'
    path.write_bytes(good.encode() + line.encode("latin-1") + b"\n" + good.encode())
    assert [record["step"] for record in read_metrics(path)] == [1]


def test_without_tensorboard_there_is_no_folder_of_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)  # import finds nothing
    with Metrics(tmp_path / "metrics.jsonl", 0) as metrics:
        metrics.append({"step": 1, "loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
