"""Every numeric setting with values that nobody means, as a flag and as a TOML key: one sentence and exit status 2, or a training.
Nothing hangs, nothing warns, nothing is left behind; and what is accepted trains or is refused in one sentence."""
import dataclasses
import re
import time

import pytest
from helpers import SMALL, call

from minillama.config import ModelConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("auto_is_numpy")
FIELDS = {field.name: ("model" if config is ModelConfig else "train", field.type)
          for config in (ModelConfig, TrainConfig) for field in dataclasses.fields(config)}
NUMBERS = ["-1", "0", "1", "7", "1000000000", str(2**31), str(2**63), str(10**30), str(10**400), "1e-308", "1e308", "1e400", "-1e30",
           "nan", "inf"]
TOML_VALUES = ["-1", "0", "1", "7", "1_000_000_000", str(2**31), str(2**63 - 1), "1" * 31, "1" * 400, "1e-308", "1e308", "nan",
               "-inf", "true", '""', '"x"', "[]", "[1]", "{}", "1979-05-27"]
OTHERS = ["preset", "data", "vocab_size", "threads", "batch_splits", "from", "start_step", "model", "train"]


@pytest.fixture
def settled(monkeypatch, tmp_path):
    """A `train` that settles everything and trains nothing, on a machine of 8 GB."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minillama.report.plan.total_memory", lambda: 8_000_000_000)
    monkeypatch.setattr("minillama.train.train", lambda request, watcher, world: 0)
    return tmp_path


def check(status, out, err, what):
    assert status in (0, 2), what
    if status == 2:
        assert re.fullmatch(r"error: [^\n]{10,500}\n", err), (what, err)
        assert "Error" not in err and "Traceback" not in err, (what, err)


@pytest.mark.parametrize("name", [*(name for name in FIELDS if name != "vocab_size"), "vocab_size", "threads"])
def test_flags(name, settled, capsys):
    started, refused = time.monotonic(), 0
    for value in NUMBERS:
        status, out, err = call(capsys, "train", f"--{name.replace('_', '-')}={value}")
        check(status, out, err, (name, value))
        refused += status == 2
    assert refused >= 6
    assert time.monotonic() - started < 5
    assert not list(settled.iterdir())


@pytest.mark.parametrize("name", [*FIELDS, *OTHERS])
def test_toml_keys(name, settled, capsys):
    started, refused = time.monotonic(), 0
    path = settled / "a.toml"
    for value in TOML_VALUES:
        section = f"[{FIELDS[name][0]}]\n" if name in FIELDS and name not in OTHERS else ""
        path.write_text(f"{section}{name} = {value}\n")
        status, out, err = call(capsys, "train", "--config", path)
        check(status, out, err, (name, value))
        refused += status == 2
    assert refused >= len(TOML_VALUES) // 2
    assert time.monotonic() - started < 5
    assert [path.name for path in settled.iterdir()] == ["a.toml"]


@pytest.mark.parametrize("content", [
    b"preset = []", b'preset = "imported"', b"from = 5", b'from = ""', b"start_step = 5", b"a = " + b"[" * 5000, b"\xff",
    b"a = 1\na = 2", b"[model", b"\0", b'from = "a\\u0000b"', b'data = [""]', b'data = [5]', b"threads = true",
    b"x = 1", b"[train]\nx = 1", b"model = 3",
])
def test_toml_files(content, settled, capsys):
    (settled / "a.toml").write_bytes(content)
    status, out, err = call(capsys, "train", "--config", settled / "a.toml")
    check(status, out, err, content)
    assert status == 2


@pytest.mark.parametrize("arguments, needed", [
    (["--preset", "7B"], "27 GB"), (["--batch-size", "100000"], "GB|TB"), (["--grad-accum-steps", "1000000"], "GB|TB"),
    (["--dim", "65536", "--n-layers", "1000", "--n-heads", "512"], "TB"),
    (["--n-layers", "10000", "--dim", "4096"], "TB"),
])
def test_what_this_machine_has_no_memory_for_is_refused_before_it_is_built(arguments, needed, settled, capsys):
    started = time.monotonic()
    status, _, err = call(capsys, "train", *arguments)
    assert status == 2
    assert re.fullmatch(rf"error: .* needs about [^\n]*({needed}) of memory .* this machine has 8 GB[^\n]*\n", err), err
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("words", [
    ["generate", "RUN", "-n"], ["generate", "RUN", "-n", "3", "--temperature"], ["generate", "RUN", "-n", "3", "--top-k"],
    ["generate", "RUN", "-n", "3", "--top-p"], ["generate", "RUN", "-n", "3", "--seed"], ["eval", "RUN", "--threads"],
    ["eval", "RUN", "--tasks", "sums-1", "--trials"], ["eval", "RUN", "--trials", "3", "--tasks", "sums-1", "--shots"],
    ["eval", "RUN", "--trials", "3", "--tasks", "sums-1", "--seed"],
    ["tokenizer", "train", "TEXT", "--out", "t.model", "--vocab-size"], ["bench", "--profile", "--shapes", "z", "--threads"],
    ["train", "--data", "TEXT", *SMALL, "--steps", "1", "--out", "run", "--data"],
])
def test_numbers_of_other_commands(words, finished, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in NUMBERS:
        if words[-1] == "--data":
            number = f"{finished}/tokenizer.model={number}"      # no text: refused in any case, for its weight or its bytes
        arguments = [{"RUN": finished, "TEXT": text}.get(word, word) for word in words]
        status, out, err = call(capsys, *arguments[:-1], f"{arguments[-1]}={number}" if words[-1].startswith("--") else arguments[-1],
                                *([] if words[-1].startswith("--") else [number]))
        assert status in (0, 2), (words, number)
        if status == 2:
            assert re.fullmatch(r"error: [^\n]{10,500}\n", err), (words, number, err)


EXTREME = {
    "lr": ["1e-300", "1e10", "1e30", "1e308"], "weight_decay": ["1e30", "1e308", "0"], "grad_clip": ["1e-300", "1e300"],
    "eps": ["1e-30", "1"], "beta1": ["0", "0.9999999"], "beta2": ["0", "0.9999999"], "norm_eps": ["0", "1"],
    "rope_theta": ["1e-300", "1e12"],
    "embedding_std": ["1e-300", "100"], "init_std": ["0", "100"], "val_fraction": ["1e-308", "1e-6", "0.5"],
    "warmup_steps": [str(2**31 - 1)],
    "keep": [str(2**31 - 1)], "save_every": [str(2**31 - 1)], "eval_every": [str(2**31 - 1)], "eval_tokens": ["1", str(2**31 - 1)],
    "seed": [str(2**63 - 1)],
    "final_lr_fraction": ["0", "1"], "multiple_of": ["1", "999"], "max_seq_len": ["16"],
}


@pytest.mark.parametrize("name", EXTREME)
def test_extreme_values_that_are_accepted_train_or_are_refused(name, text, tmp_path, capsys):
    """pytest turns every warning into an error, so no RuntimeWarning comes before the sentence."""
    for number, value in enumerate(EXTREME[name]):
        out = tmp_path / str(number)
        flags = ["--steps", "2", "--warmup-steps", "1", f"--{name.replace('_', '-')}={value}"]
        status, said, err = call(capsys, "train", "--engine", "numpy", "--data", text, "--out", out, *SMALL, *flags)
        check(status, said, err, (name, value))
        assert status == 2 or "done in" in said
