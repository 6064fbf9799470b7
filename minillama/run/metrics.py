"""metrics.jsonl, a line per step, and the same numbers for TensorBoard where that is installed."""
import json
import math
import os
import shutil
from pathlib import Path

from ..files import write_text


def read_metrics(path):
    """The records of a metrics.jsonl, up to a line that a crash left torn: list of dict."""
    records = []
    for line in Path(path).read_bytes().splitlines() if Path(path).exists() else ():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not _is_record(record):
            break
        records.append(record)
    return records


def _is_record(record):
    """True for a line as `train` writes it: numbers by name, among them what every step has."""
    if not isinstance(record, dict) or any(record.get(key) is None for key in ("step", "loss", "tokens_per_s")):
        return False
    return all(map(_is_number, record.values())) and isinstance(record["step"], int) and record["step"] >= 1


def _is_number(value):
    """True for what JSON calls a number, and for null; NaN, which Python reads, is none."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and math.isfinite(value))


class Metrics:
    """The lines of a run, to append to. Opening drops what a checkpoint does not vouch for: later steps, and a torn last line.

    records: list of dict    all lines so far
    writes:  bool            False keeps them in memory only: another process of the same training writes them
    """

    def __init__(self, path, step, writes=True):
        self.path, self.writes = Path(path), writes
        self.records = [record for record in read_metrics(path) if record["step"] <= step]
        self._file = self._board = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._file:
            self._file.close()
        if self._board:
            self._board.close()

    def _open(self):
        """Nothing is written before there is something new: a finished run that is resumed stays as it is."""
        if self._file is None and self.writes:
            self._rewrite()
            self._board = open_tensorboard(self.path.with_name("tensorboard"), self.records)

    def _rewrite(self):
        if self._file:
            self._file.close()
        write_text(self.path, "".join(_line(record) for record in self.records))
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 — closed by __exit__

    def append(self, record):
        """Add the line of a step."""
        self._open()
        self.records.append(record)
        if not self.writes:
            return
        self._file.write(_line(record))
        self._file.flush()
        log_tensorboard(self._board, record)

    def amend(self, numbers):
        """Add numbers to the last line."""
        self._open()
        self.records[-1] |= numbers
        if not self.writes:
            return
        self._rewrite()
        log_tensorboard(self._board, {"step": self.records[-1]["step"]} | numbers)

    def sync(self):
        """Put all lines on the disk: called before a checkpoint vouches for them."""
        if self._file:
            os.fsync(self._file.fileno())


def _line(record):
    return json.dumps(record, allow_nan=False) + "\n"


def open_tensorboard(folder, records):
    """A writer of the same numbers for TensorBoard; None where that is not installed. Begun anew with the records that a resumed run
    keeps, so that no step stands in it twice."""
    try:
        from tensorboard.summary import Writer
    except ImportError:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    board = Writer(str(folder))
    for record in records:
        log_tensorboard(board, record)
    return board


def log_tensorboard(board, record):
    """One record of metrics.jsonl as points of TensorBoard's curves; `board` may be None."""
    for key, value in record.items():
        if board and key != "step" and value is not None:
            board.add_scalar(key, value, record["step"])
