"""Two runs side by side: the numbers, the picture, and what cannot be compared."""
import json
import re
import shutil

import pytest
from helpers import call

from minillama.report.compare import compare


def record(step, loss, rate=100, **more):
    return {"step": step, "loss": loss, "tokens_per_s": rate, **more}


LEFT = [record(1, 6.0, 10), record(2, 5.0, 20, val_loss=5.5), record(3, 4.0, 30), record(4, 3.5, 99)]
RIGHT = [record(2, 5.25), record(3, 4.125), record(4, 3.5), record(5, 3.0, 50)]


def test_compare():
    result = compare("a", "b", LEFT, RIGHT)
    assert result["runs"] == [
        {"run": "a", "steps": 4, "final_loss": 3.5, "val_loss": 5.5, "tokens_per_s": 25},
        {"run": "b", "steps": 5, "final_loss": 3.0, "val_loss": None, "tokens_per_s": 100},
    ]
    assert result["common_steps"] == 3
    assert (result["largest_difference"], result["largest_at_step"]) == (0.25, 2)
    assert result["mean_difference"] == pytest.approx(0.125)


@pytest.fixture
def two(finished, tmp_path, monkeypatch):
    """A run, and the same with other losses in every third line and the last line torn."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        shutil.copytree(finished, tmp_path / name)
    lines = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    for line in lines[::3]:
        line["loss"] += 1e-3 * line["step"]
    (tmp_path / "b" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 13, "lo')
    return tmp_path


def test_command(two, capsys):
    status, out, _ = call(capsys, "compare", "a", "b")
    assert status == 0
    assert re.search(r"12 steps in common; .* differ by 1\.00e-02 nats/token at most \(step 10\), by 1\.83e-03 on average\n", out)
    assert out.endswith("both curves: compare.png\n")
    assert (two / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_json(two, capsys):
    status, out, _ = call(capsys, "compare", "a", "b", "--json", "--out", "other.png")
    assert status == 0
    result = json.loads(out)
    assert result.keys() == {"runs", "common_steps", "largest_difference", "largest_at_step", "mean_difference", "picture"}
    assert (result["largest_at_step"], result["picture"]) == (10, "other.png")
    assert not (two / "compare.png").exists()


def test_the_same_run(two, capsys):
    status, out, _ = call(capsys, "compare", "a", "a")
    assert status == 0
    assert "12 steps in common; training losses are the same\n" in out
    assert (two / "compare.png").exists()


@pytest.mark.parametrize("command", ["compare", "bench"])
def test_nothing_but_a_picture_of_ours_is_overwritten(command, two, capsys, monkeypatch):
    from minillama.report import bench

    monkeypatch.setattr(bench, "profile", lambda *a: pytest.fail("it was measured before the path was looked at"))
    from PIL import Image

    Image.new("RGB", (9, 9)).save("theirs.png")
    (two / "link.png").symlink_to("a/loss.png")
    before = {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}
    start = ["compare", "a", "b", "--out"] if command == "compare" else ["bench", "--shapes", "a", "--plot"]
    for path in ("a/config.toml", "theirs.png", "link.png", "a", "/dev/null"):
        status, said, err = call(capsys, *start, path)
        assert (status, said, err) == (2, "", f"error: {path} already exists and is no picture of minillama's: choose another file\n")
    assert before == {path: path.read_bytes() for path in two.rglob("*") if path.is_file()}


def test_a_picture_of_ours_is_replaced(two, capsys):
    assert call(capsys, "compare", "a", "b")[0] == 0
    first = (two / "compare.png").read_bytes()
    assert call(capsys, "compare", "a", "a")[0] == 0
    assert (two / "compare.png").read_bytes() != first


@pytest.mark.parametrize("case", ["no run", "no metrics", "nothing in common", "no folder for the picture"])
def test_bad_input(case, two, capsys):
    right, out = "b", "compare.png"
    if case == "no run":
        right, message = "c", "c holds no run: it has no config.toml"
    elif case == "no metrics":
        (two / "b" / "metrics.jsonl").unlink()
        message = "b has no step to compare: its metrics.jsonl is empty, missing or damaged"
    elif case == "nothing in common":
        (two / "b" / "metrics.jsonl").write_text(json.dumps(record(20, 1.0)) + "\n" + json.dumps(record(21, 1.0)) + "\n")
        message = "the runs have no step in common: a has 1 to 12 and b has 20 to 21"
    else:
        out, message = "nowhere/c.png", "nowhere/c.png must be in a folder that exists"
    status, said, err = call(capsys, "compare", "a", right, "--out", out)
    assert (status, said, err) == (2, "", f"error: {message}\n")
    assert not (two / "compare.png").exists()
