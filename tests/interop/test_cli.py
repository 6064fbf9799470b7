"""export, import and train --from: a run goes out, comes back the same, and trains on; what is bad is one sentence and leaves nothing."""
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import SMALL, call, metrics
from interop_models import small
from safetensors.numpy import load_file

from minillama import interop
from minillama.__main__ import main
from minillama.run import checkpoint, folder

pytestmark = pytest.mark.usefixtures("auto_is_numpy")
GREEDY = ["--prompt", "Ann has", "-n", 20, "--temperature", 0]


@pytest.fixture
def imported(tmp_path, capsys):
    """A run made of a model from elsewhere."""
    interop.write(tmp_path / "hf", small(), "hf", "bf16")
    assert call(capsys, "import", tmp_path / "hf", "-o", tmp_path / "run")[0] == 0
    return tmp_path / "run"


@pytest.mark.parametrize("to", ["hf", "gguf", "llama2c", "meta"])
def test_out_and_in_again_writes_the_same_text(to, finished, tmp_path, capsys):
    ours = call(capsys, "generate", finished, *GREEDY)[1]
    path = tmp_path / ("m.gguf" if to == "gguf" else "m")
    status, out, _ = call(capsys, "export", finished, "--to", to, "-o", path)
    assert status == 0
    assert out == f"{path}: {interop.FORMATS[to]}, 12,656 parameters in f32\n"
    status, out, _ = call(capsys, "import", path, "-o", tmp_path / "run")
    assert status == 0
    assert f"{tmp_path / 'run'}: from " in out
    assert call(capsys, "generate", tmp_path / "run", *GREEDY)[:2] == (0, ours)
    assert call(capsys, "generate", path, *GREEDY)[:2] == (0, ours)
    assert folder.read_config(tmp_path / "run").model.max_seq_len == folder.read_config(finished).model.max_seq_len
    _, tokenizer, params, _ = folder.load(finished)
    _, again, others, _ = folder.load(tmp_path / "run")
    assert tokenizer.pieces == again.pieces
    assert all(np.array_equal(params[name], others[name]) for name in params)


def test_an_imported_run_leaves_what_a_run_has(imported, capsys):
    assert sorted(os.listdir(imported)) == ["checkpoints", "config.toml", "tokenizer.model"]
    assert sorted(os.listdir(imported / "checkpoints")) == ["latest", "step-000000"]
    assert (imported / "checkpoints" / "latest").read_text() == "step-000000\n"
    kept = (imported / "checkpoints" / "step-000000" / "model.safetensors").read_bytes()
    assert kept == (imported.parent / "hf" / "model.safetensors").read_bytes()
    status, out, _ = call(capsys, "info", imported, "--json")
    assert status == 0
    assert json.loads(out)["rope_theta"] == 500.0
    assert json.loads(out)["train_tokens"] is None and "training         elsewhere" in call(capsys, "info", imported)[1]
    assert f"imported from {imported.parent / 'hf'}" in call(capsys, "info", imported)[1]
    assert "Hugging Face directory" in call(capsys, "info", imported.parent / "hf")[1]


def test_a_checkpoint_is_a_model_as_it_stands(finished, capsys):
    newest = finished / "checkpoints" / "step-000012"
    assert call(capsys, "generate", newest, *GREEDY) == call(capsys, "generate", finished, *GREEDY)
    assert call(capsys, "generate", finished / "checkpoints" / "step-000010", "-n", 3)[0] == 0


def test_eval_of_an_imported_run_needs_a_text(imported, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for model in (imported, imported.parent / "hf"):
        status, _, error = call(capsys, "eval", model)
        assert status == 2
        assert error == f"error: {model} was not trained here and has no text of its own: --data FILE says what to evaluate\n"
    (tmp_path / "short.txt").write_text("Ann has a red kite . " * 20)
    results = [call(capsys, "eval", model, "--data", "short.txt", "--json") for model in (imported, imported.parent / "hf")]
    assert results[0][0] == 0 and results[0] == results[1]
    assert json.loads(results[0][1])["loss"] > 1


def test_a_run_cannot_be_imported_nor_an_imported_one_resumed(imported, finished, tmp_path, capsys):
    status, _, error = call(capsys, "import", finished, "-o", tmp_path / "x")
    assert (status, "is a run already" in error) == (2, True)
    status, _, error = call(capsys, "train", "--resume", "--out", imported)
    assert (status, "was imported and has no training to continue" in error) == (2, True)
    status, _, error = call(capsys, "import", tmp_path / "hf", "-o", imported)
    assert (status, "already exists" in error) == (2, True)


# ------------------------------------------------------------------------------------------------------------------ fine-tuning

TUNE = [*SMALL[6:-4], "--threads", "2"]  # the recipe, not the shape nor the vocabulary


def test_training_from_a_run_starts_where_it_ended(finished, text, tmp_path, capsys):
    """Fresh moments, a schedule of its own, the weights and the tokenizer of the other."""
    assert main(["train", "--engine", "numpy", "--from", str(finished), "--out", str(tmp_path / "a"), "--data", text, *TUNE]) == 0
    assert f"starting from {finished}" in capsys.readouterr().out
    ours, theirs = metrics(tmp_path / "a"), metrics(finished)
    assert [line["lr"] for line in ours] == [line["lr"] for line in theirs]
    assert ours[0]["step"] == 1
    assert ours[0]["loss"] < theirs[0]["loss"] - 0.3
    assert (tmp_path / "a" / "tokenizer.model").read_bytes() == (finished / "tokenizer.model").read_bytes()
    config = folder.read_config(tmp_path / "a")
    assert (config.from_model, config.start_step, config.model) == (str(finished), 0, folder.read_config(finished).model)


def test_training_from_a_run_can_keep_its_optimizer(finished, text, tmp_path, capsys):
    """The first step moves as the old moments say; steps count on, so that their bias correction stays right."""
    out = tmp_path / "a"
    assert main(["train", "--engine", "numpy", "--from", str(finished), "--keep-optimizer", "--out", str(out), "--data", text, *TUNE]) == 0
    assert [line["step"] for line in metrics(out)] == list(range(13, 25))
    assert [line["lr"] for line in metrics(out)] == [line["lr"] for line in metrics(finished)]
    assert [line["tokens"] for line in metrics(out)] == [line["tokens"] for line in metrics(finished)]
    assert sorted(path.name for path in (out / "checkpoints").glob("step*")) == ["step-000020", "step-000024"]
    assert folder.read_config(out).start_step == 12
    m = load_file(out / "checkpoints" / "step-000024" / "train_state" / "optimizer.safetensors")["m.norm"]
    assert np.abs(m).max() > 0
    status, shown, _ = call(capsys, "eval", out, "--json")
    assert status == 0
    assert json.loads(shown)["loss"] == pytest.approx(metrics(out)[-1]["val_loss"], rel=1e-6)


@pytest.mark.parametrize("keep", [[], ["--keep-optimizer"]])
def test_stopped_and_resumed_is_the_same_to_the_bit(keep, finished, text, tmp_path, monkeypatch):
    start = ["train", "--engine", "numpy", "--from", str(finished), *keep, "--data", text, *TUNE]
    assert main([*start, "--out", str(tmp_path / "a")]) == 0
    original = checkpoint.save
    stop_at = 17 if keep else 5
    with monkeypatch.context() as patch:
        patch.setattr("minillama.train.train_step", crash_after(stop_at))
        assert main([*start, "--out", str(tmp_path / "b")]) == 130
    assert checkpoint.save is original
    assert main(["train", "--engine", "numpy", "--resume", "--out", str(tmp_path / "b")]) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    last = f"checkpoints/step-{24 if keep else 12:06d}/model.safetensors"
    assert (tmp_path / "a" / last).read_bytes() == (tmp_path / "b" / last).read_bytes()


def crash_after(step):
    from minillama import train

    original = train.train_step

    def train_step(engine, *rest):
        if engine.step >= step:
            raise KeyboardInterrupt
        return original(engine, *rest)

    return train_step


def test_the_configuration_of_a_tuned_run_repeats_it(finished, text, tmp_path):
    start = ["train", "--engine", "numpy", "--from", str(finished), "--data", text, *TUNE]
    assert main([*start, "--out", str(tmp_path / "a")]) == 0
    assert main(["train", "--engine", "numpy", "--config", str(tmp_path / "a" / "config.toml"), "--out", str(tmp_path / "b")]) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_an_imported_model_trains_on(engine, imported, text, tmp_path):
    for number, source in enumerate((imported, imported.parent / "hf")):
        out = tmp_path / f"tuned{number}"
        options = ["--steps", "3", "--batch-size", "2", "--seq-len", "16", "--warmup-steps", "0", "--threads", "1"]
        assert main(["train", "--engine", engine, "--from", str(source), "--out", str(out), "--data", text, *options]) == 0
        assert (out / "checkpoints" / "step-000003" / "config.json").exists()
        assert interop.read(out / "checkpoints" / "step-000003").config.norm_eps == 1e-4
    assert metrics(tmp_path / "tuned0") == metrics(tmp_path / "tuned1")


BAD = {
    "another shape": (["--from", "RUN", "--dim", "32"], r"--dim must be the model's with --from, 16, got 32"),
    "another vocabulary": (["--from", "RUN", "--vocab-size", "300"], r"--vocab-size must be the model's with --from, 290, got 300"),
    "a long row": (["--from", "RUN", "--seq-len", "300"], r"seq_len must be at most the model's context, max_seq_len 256, got 300"),
    "no source": (["--from", "nowhere"], r"nowhere does not exist"),
    "no model": (["--from", "RUN/checkpoints/step-000012/tokenizer.model"], r"tokenizer\.model is not a model of llama2\.c"),
    "whose": (["--keep-optimizer"], r"--keep-optimizer is for --from"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_trained_from(kind, finished, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[kind]
    status, out, error = call(capsys, "train", "--out", "out", *[word.replace("RUN", str(finished)) for word in arguments])
    assert (status, out) == (2, "")
    assert re.fullmatch(f"error: [^\\n]*{message}[^\\n]*\\n", error), error
    assert not list(tmp_path.iterdir())


def test_an_imported_run_has_no_optimizer_to_keep(imported, tmp_path, capsys):
    status, _, error = call(capsys, "train", "--from", imported, "--keep-optimizer", "--out", tmp_path / "x")
    assert (status, "holds no optimiser: without --keep-optimizer it starts fresh" in error) == (2, True)
    assert not (tmp_path / "x").exists()


def test_resume_takes_no_source(finished, capsys):
    status, _, error = call(capsys, "train", "--resume", "--from", finished, "--out", finished)
    assert (status, error) == (2, f"error: --from must be left out: {finished} was started without it, got {finished}\n")


# ---------------------------------------------------------------------------------------------------------------------- refused

def test_bad_models_leave_nothing(imported, tmp_path, capsys):
    broken = shutil.copytree(tmp_path / "hf", tmp_path / "broken")
    os.truncate(broken / "model.safetensors", 3000)
    before = sorted(tmp_path.rglob("*"))
    for arguments in (["import", broken, "-o", tmp_path / "new"], ["export", broken, "--to", "gguf", "-o", tmp_path / "new.gguf"],
                      ["generate", broken], ["import", tmp_path / "nothing", "-o", tmp_path / "new"],
                      ["export", tmp_path / "hf", "--to", "llama2c", "-o", tmp_path / "a" / "b"]):
        status, out, error = call(capsys, *arguments)
        assert (status, out) == (2, "")
        assert re.fullmatch(r"error: [^\n]+\n", error)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_value_that_is_not_finite_leaves_nothing(tmp_path, capsys):
    """Found in the last tensor, when most of the run is written."""
    interop.write(tmp_path / "hf", small(), "hf")
    data = bytearray((tmp_path / "hf" / "model.safetensors").read_bytes())
    data[-4:] = b"\0\0\xc0\x7f"
    (tmp_path / "hf" / "model.safetensors").write_bytes(data)
    for command, *options in (["import", "-o", tmp_path / "n"], ["export", "--to", "gguf", "-o", tmp_path / "n"],
                              ["export", "--to", "meta", "-o", tmp_path / "n"], ["generate"]):
        status, out, error = call(capsys, command, tmp_path / "hf", *options)
        assert (status, out) == (2, "")
        assert "output holds values that are not finite" in error
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_without_meta_nothing_imports_torch(tmp_path):
    interop.write(tmp_path / "hf", small(rope_theta=10000.0), "hf")
    script = f"""import sys
from minillama.__main__ import main
assert main(["import", r"{tmp_path}/hf", "-o", r"{tmp_path}/run"]) == 0
for to in ("hf", "gguf", "llama2c"):
    assert main(["export", r"{tmp_path}/run", "--to", to, "-o", r"{tmp_path}/to-" + to]) == 0
assert main(["generate", r"{tmp_path}/run", "-n", "3", "--engine", "numpy"]) == 0
assert not {{"torch", "transformers"}} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


@pytest.mark.parametrize("command", ["export --to hf", "export --to gguf", "export --to llama2c", "export --to meta", "import"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(command, tmp_path):
    """A limit on the size of a file stands for it: every library reports it in its own way."""
    interop.write(tmp_path / "hf", small(rope_theta=10000.0), "hf")
    words = [*command.split()[:1], str(tmp_path / "hf"), *command.split()[1:], "-o", str(tmp_path / "out")]
    script = f"""import resource, sys
from minillama.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.exit(main({words!r}))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stderr
    assert os.listdir(tmp_path) == ["hf"]


def test_help_is_quick_and_shows_examples(capsys):
    for command in ("export", "import"):
        status, out, _ = call(capsys, command, "--help")
        assert (status, "examples:" in out) == (0, True)
    script = """import sys
from minillama.__main__ import main
try: main(["--help"])
except SystemExit: assert "gguf" not in sys.modules and "numpy" not in sys.modules"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
