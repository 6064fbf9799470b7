"""The training loop: learning, metrics, resuming to the same bits, Ctrl-C, kill -9, a full disk."""
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import SMALL, metrics, run
from safetensors.numpy import load_file

from minillama.__main__ import main

pytestmark = pytest.mark.usefixtures("auto_is_numpy")


def weights(out, step=12):
    folder = out / "checkpoints" / f"step-{step:06d}"
    return load_file(folder / "model.safetensors") | load_file(folder / "train_state" / "optimizer.safetensors")


def same_run(left, right):
    assert metrics(left) == metrics(right)
    a, b = weights(left), weights(right)
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_a_run_leaves_everything(finished):
    left = {"config.toml", "fingerprints.json", "tokenizer.model", "metrics.jsonl", "loss.png", "look.html", "checkpoints"}
    assert {p.name for p in finished.iterdir()} == left
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == ["latest", "step-000010", "step-000012"]
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_metrics(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    always = {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_s"}
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        evaluated = line["step"] % 4 == 0
        assert line.keys() == always | ({"val_loss", "val_bits_per_byte", "floor"} if evaluated else set())
    assert lines[-1]["tokens"] == 12 * 16 * 3 * 2
    assert lines[-1]["floor"] is None
    assert lines[2]["lr"] == 3e-3
    assert lines[-1]["lr"] == pytest.approx(3e-4)
    assert lines[0]["loss"] == pytest.approx(np.log(290), abs=0.05)
    assert lines[-1]["val_loss"] < lines[0]["loss"] - 0.2


def test_accumulating_is_the_same_training(finished, text, tmp_path):
    """6 rows in one batch or in micro-batches of 3 + 3: the same rows, the same curve to rounding."""
    assert run(tmp_path / "a", *SMALL, "--batch-size", "6", "--grad-accum-steps", "1", text=text) == 0
    for ours, theirs in zip(metrics(finished), metrics(tmp_path / "a")):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_same_seed_same_bits_and_another_seed_another_run(finished, text, tmp_path):
    assert run(tmp_path / "a", *SMALL, text=text) == 0
    same_run(finished, tmp_path / "a")
    assert run(tmp_path / "b", *SMALL, "--seed", "1", text=text) == 0
    assert metrics(tmp_path / "b") != metrics(finished)


def test_the_split_is_measured_where_no_threads_were_asked_for_and_kept(text, tmp_path, capsys):
    """Measured or not, a run is the same bits as one with that split, and its config.toml says which."""
    import tomllib

    settings = SMALL[:-2]
    assert run(tmp_path / "a", *settings, text=text) == 0
    assert "a step (--threads" in capsys.readouterr().out
    config = tomllib.loads((tmp_path / "a" / "config.toml").read_text())
    assert config["batch_splits"] in (1, config["threads"])
    assert main(["train", "--engine", "numpy", "--config", str(tmp_path / "a" / "config.toml"), "--out", str(tmp_path / "b")]) == 0
    assert "a step (--threads" not in capsys.readouterr().out
    same_run(tmp_path / "a", tmp_path / "b")


def test_config_toml_repeats_the_run(finished, tmp_path):
    assert main(["train", "--engine", "numpy", "--config", str(finished / "config.toml"), "--out", str(tmp_path / "a")]) == 0
    same_run(finished, tmp_path / "a")


@pytest.mark.parametrize("stop_at", [3, 5, 11])
def test_ctrl_c_and_resume_end_in_the_same_bits(stop_at, finished, text, tmp_path, monkeypatch, capsys):
    from minillama.engine.numpy_engine import NumpyEngine

    original = NumpyEngine.train_step

    def interrupted(self, batches, lr):
        if self.step + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batches, lr)

    out = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(NumpyEngine, "train_step", interrupted)
        assert run(out, *SMALL, text=text) == 130
    assert f"stopped after step {stop_at} of 12" in capsys.readouterr().out
    assert metrics(out)[-1]["step"] == stop_at
    assert (out / "checkpoints" / "latest").read_text() == f"step-{stop_at:06d}\n"
    assert run(out, "--resume") == 0
    same_run(finished, out)


@pytest.mark.parametrize("step", [4, 12])
def test_ctrl_c_during_an_evaluation_loses_nothing(step, finished, text, tmp_path, monkeypatch, capsys):
    """It stops at the next batch; the step is saved, and --resume scores what was not scored. Step 12 is the last."""
    from minillama.engine.numpy_engine import NumpyEngine

    original, calls = NumpyEngine.loss, []

    def interrupted(self, tokens, targets):
        if self.step == step:
            calls.append(step)
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, tokens, targets)

    out = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(NumpyEngine, "loss", interrupted)
        assert run(out, *SMALL, text=text) == 130
    assert len(calls) == 1
    assert f"stopped after step {step} of 12, all saved" in capsys.readouterr().out
    assert "val_loss" not in metrics(out)[-1]
    assert run(out, "--resume") == 0
    assert f"step {step}: validation loss" in capsys.readouterr().out
    same_run(finished, out)


def test_values_that_are_not_finite_are_not_saved(text, tmp_path, capsys):
    """One step with an absurd learning rate: weights of 1e30 and a loss that is still finite are caught before they are written."""
    for number, flags in enumerate((["--weight-decay", "1e30"], ["--lr", "1e30", "--warmup-steps", "1"])):
        out = tmp_path / str(number)
        assert run(out, *SMALL, *flags, "--steps", "2", "--keep", "1", text=text) == 2
        said, error = capsys.readouterr()
        assert error.startswith("error: training diverged at step ") and error.count("\n") == 1
        assert "done" not in said
        assert not list((out / "checkpoints").glob("step*"))
        assert "NaN" not in (out / "metrics.jsonl").read_text() if (out / "metrics.jsonl").exists() else True


@pytest.mark.parametrize("kind, what", [
    ("params", "parameter norm"), ("m", "the first moment of norm"), ("v", "the second moment of norm"),
])
def test_a_checkpoint_never_holds_what_is_not_finite(kind, what, text, tmp_path, monkeypatch, capsys):
    """The last good one is kept, even where only one is."""
    from minillama.engine.numpy_engine import NumpyEngine

    original = NumpyEngine.state

    def poisoned(self):
        state = original(self)
        return state | {kind: state[kind] | {"norm": state[kind]["norm"] + np.inf}} if self.step == 10 else state

    monkeypatch.setattr(NumpyEngine, "state", poisoned)
    assert run(tmp_path / "a", *SMALL, "--keep", "1", text=text) == 2
    error = capsys.readouterr().err
    assert error == f"error: training diverged at step 10: {what} is not finite; the last good checkpoint is kept\n"
    assert [path.name for path in (tmp_path / "a" / "checkpoints").glob("step*")] == ["step-000005"]


def test_resume_of_a_finished_run_changes_nothing(finished, text, tmp_path):
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.suffix != ".png"}
    assert run(finished, "--resume") == 0
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.suffix != ".png"}


def test_torn_metrics_line_and_later_steps_are_dropped(finished, text, tmp_path, monkeypatch):
    """A crash between two checkpoints: the lines no checkpoint vouches for are written again, not twice."""
    from minillama.run import checkpoint

    out, original = tmp_path / "a", checkpoint.save

    def crash_later(folder, state, *rest):
        if state["step"] == 10:
            raise KeyboardInterrupt
        return original(folder, state, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", crash_later)
        assert run(out, *SMALL, text=text) == 130
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "lo')
    assert metrics_lines(out) == 11
    assert run(out, "--resume") == 0
    same_run(finished, out)


def metrics_lines(out):
    return len((out / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize("attempt", range(3))
def test_kill_9_at_any_moment(attempt, finished, text, tmp_path):
    """Killed again and again, at random moments, saving after every step: --resume always ends in the same weights."""
    out, rng = tmp_path / "a", random.Random(attempt)
    arguments = ["--data", text, *SMALL, "--save-every", "1", "--keep", "2"]
    command = [sys.executable, "-m", "minillama", "train", "--engine", "numpy", "--out", str(out)]
    for _ in range(3):
        continuing = (out / "config.toml").exists()
        words = command + (["--resume"] if continuing else arguments)
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline, target = time.time() + 20, rng.randint(0, 4)
        already = len(list((out / "checkpoints").glob("step-*"))) if out.exists() else 0
        while time.time() < deadline and process.poll() is None:
            if out.exists() and len(list((out / "checkpoints").glob("*step-*"))) >= min(already + target, 2):
                break
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    continuing = (out / "config.toml").exists()
    done = subprocess.run(command + (["--resume"] if continuing else arguments), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, actual = weights(finished), weights(out)
    assert all(np.array_equal(expected[name], actual[name]) for name in expected)
    assert metrics(out) == metrics(finished)


def copied(finished, text, tmp_path, step=10):
    """(the run, its text), both free to be changed, the run as it was after `step`."""
    own = shutil.copy(text, tmp_path / "a.txt")
    assert run(tmp_path / "a", *SMALL, "--steps", "2", text=str(own)) == 0
    out = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(out / "checkpoints" / "step-000012")
    config = (out / "config.toml").read_text()
    (out / "config.toml").write_text(config.replace(text, str(own)))
    return out, own


def refused(capsys, out):
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert run(out, "--resume") == 2
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return capsys.readouterr().err


def test_resume_of_a_copy_on_the_same_text(finished, text, tmp_path):
    out, own = copied(finished, text, tmp_path)
    assert run(out, "--resume") == 0
    same_run(finished, out)


def test_resume_after_the_text_has_changed_is_refused(finished, text, tmp_path, capsys):
    """By a single letter, at equal length."""
    out, own = copied(finished, text, tmp_path)
    own.write_text(own.read_text().replace("red", "rad", 1))
    assert f"the text of a has changed since {out} was started: train --from {out} --data FILE goes on" in refused(capsys, out)
    assert main(["eval", str(out), "--engine", "numpy"]) == 2
    assert "the text of a has changed" in capsys.readouterr().err


def test_resume_with_another_tokenizer_of_equal_size_is_refused(finished, text, tmp_path, capsys):
    from minillama.text.tokenizer import Tokenizer

    out, own = copied(finished, text, tmp_path)
    Tokenizer.train(["another text, of other letters: xyz zyx " * 200], 290).save(out / "tokenizer.model")
    assert "tokenizer.model must be the one that the run was started with, got another" in refused(capsys, out)


@pytest.mark.parametrize("damage", ["truncated", "zeroed", "no counts", "odd counts"])
def test_damaged_tokens_in_the_cache_are_made_again(damage, finished, text, tmp_path):
    out, own = copied(finished, text, tmp_path)
    for folder in (tmp_path / ".cache").iterdir():
        tokens = folder / "train.bin"
        if damage == "truncated":
            os.truncate(tokens, tokens.stat().st_size - 2)
        elif damage == "zeroed":
            tokens.write_bytes(bytes(tokens.stat().st_size))
        else:
            (folder / "meta.json").write_text("{" if damage == "no counts" else '{"train": {}, "val": 7}')
    assert run(out, "--resume") == 0
    same_run(finished, out)


def test_one_process_a_run(finished, text, tmp_path, capsys):
    """A second --resume, of a run that is being trained, is one sentence; a process that died holds nothing."""
    out, own = copied(finished, text, tmp_path)
    script = f"""import sys
from minillama.__main__ import main
from minillama.engine import factory, numpy_engine
factory.has_cuda = lambda: False
original = numpy_engine.NumpyEngine.train_step
def waiting(*arguments):
    print("training", flush=True)
    sys.stdin.read()
    return original(*arguments)
numpy_engine.NumpyEngine.train_step = waiting
main(["train", "--resume", "--out", {str(out)!r}])"""
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while "training" not in process.stdout.readline():
        pass
    error = refused(capsys, out)
    assert error == f"error: {out} is being trained by another process: wait until it ends, or stop it\n"
    assert main(["generate", str(out), "-n", "3", "--engine", "numpy"]) == 0
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert run(out, "--resume") == 0
    same_run(finished, out)


def test_resume_where_no_checkpoint_exists_yet(finished, text, tmp_path, capsys, monkeypatch):
    from minillama.engine.numpy_engine import NumpyEngine

    out = tmp_path / "a"
    with monkeypatch.context() as patch:
        patch.setattr(NumpyEngine, "train_step", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(out, *SMALL, text=text) == 130
    assert run(out, "--resume") == 0
    assert "no complete checkpoint yet, starting from the beginning" in capsys.readouterr().out
    same_run(finished, out)


def test_resume_of_nothing_is_refused(text, tmp_path, capsys):
    assert run(tmp_path / "a", "--resume", *SMALL, text=text) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'a'} holds no run to resume: without --resume a new one is started\n"
    assert not (tmp_path / "a").exists()


def test_a_start_that_failed_does_not_block_the_next(finished, text, tmp_path, capsys):
    """It diverged before its first checkpoint; the corrected command is the same but for a flag."""
    assert run(tmp_path / "a", *SMALL, "--lr", "1e30", "--warmup-steps", "1", text=text) == 2
    assert (tmp_path / "a" / "config.toml").exists()
    assert run(tmp_path / "a", *SMALL, text=text) == 0
    same_run(finished, tmp_path / "a")
    assert run(tmp_path / "a", *SMALL, text=text) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_a_failed_start_with_a_file_of_the_users_is_left_alone(text, tmp_path, capsys):
    assert run(tmp_path / "a", *SMALL, "--lr", "1e30", "--warmup-steps", "1", text=text) == 2
    (tmp_path / "a" / "notes.txt").write_text("mine")
    assert run(tmp_path / "a", *SMALL, text=text) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"


def test_a_run_that_has_just_begun_is_not_taken_for_a_failed_start(text, tmp_path):
    """Before its first checkpoint it is told by its lock from a start that failed."""
    from minillama.files import locked
    from minillama.run.folder import free_name, is_failed_start

    assert run(tmp_path / "a", *SMALL, "--lr", "1e30", "--warmup-steps", "1", text=text) == 2
    assert is_failed_start(tmp_path / "a") and free_name(tmp_path / "a") == tmp_path / "a"
    with locked(tmp_path / "a" / "tokenizer.model", "taken"):
        assert not is_failed_start(tmp_path / "a")
        assert free_name(tmp_path / "a") == tmp_path / "a-2"


def test_a_second_run_gets_a_name_of_its_own(text, tmp_path, monkeypatch, capsys):
    """And the name follows the data."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(text, tmp_path / "book.txt")
    short = ["train", "--engine", "numpy", *SMALL, "--steps", "1"]
    for arguments, name in ((["--data", "book.txt"], "book"), (["--data", "book.txt=1"], "book-2"), (["--data", "book.txt"], "book-3")):
        assert main([*short, *arguments]) == 0
        assert f"runs/{name}: done in" in capsys.readouterr().out
    assert main(["train", "--engine", "numpy", "--resume", "--data", "book.txt"]) == 0
    assert "runs/book: complete: all 1 steps are done" in capsys.readouterr().out


def test_a_finished_run_says_so_and_can_go_on(finished, text, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "a")
    assert run(out, "--resume") == 0
    said = capsys.readouterr().out
    assert f"{out}: complete: all 12 steps are done. To train longer: python -m minillama train --resume --out {out} --steps 24" in said
    assert run(out, "--resume", "--steps", "9") == 2
    assert f"--steps must be 12, with which {out} was started, got 9" in capsys.readouterr().err
    assert run(out, "--resume", "--steps", "15") == 0
    assert "15 steps instead of 12. From here on the learning rate follows the longer schedule" in capsys.readouterr().out
    lines = metrics(out)
    assert [line["step"] for line in lines] == list(range(1, 16))
    assert lines[:12] == metrics(finished)
    assert lines[14]["lr"] == pytest.approx(3e-4)
    assert run(out, "--resume") == 0
    assert "all 15 steps are done" in capsys.readouterr().out


def test_divergence_keeps_the_last_good_checkpoint(text, tmp_path, capsys, monkeypatch):
    from minillama.engine.numpy_engine import NumpyEngine

    original = NumpyEngine.train_step

    def poisoned(self, batches, lr):
        if self.step == 7:
            self.params["layers.0.wo"][0, 0] = np.nan
        return original(self, batches, lr)

    monkeypatch.setattr(NumpyEngine, "train_step", poisoned)
    assert run(tmp_path / "a", *SMALL, text=text) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "diverged at step 8" in error
    assert "layers.0.wo" in error
    assert [p.name for p in (tmp_path / "a" / "checkpoints").glob("step-*")] == ["step-000005"]
    assert all(np.isfinite(tensor).all() for tensor in weights(tmp_path / "a", 5).values())


def test_a_full_disk_is_one_sentence_and_loses_nothing(text, tmp_path, capsys, monkeypatch):
    from minillama.interop import hf

    original = hf.write_safetensors

    def full(path, *rest):
        if "step-000010" in str(path):
            raise OSError(28, "No space left on device", str(path))
        original(path, *rest)

    monkeypatch.setattr(hf, "write_safetensors", full)
    assert run(tmp_path / "a", *SMALL, text=text) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("No space left on device")
    assert sorted(p.name for p in (tmp_path / "a" / "checkpoints").iterdir()) == ["latest", "step-000005"]


def test_a_bigger_vocabulary_than_the_preset_text_supports_shrinks_with_a_word(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("abc abd abe " * 200)
    settings = [s for s in SMALL if s not in ("--vocab-size", "290")]
    assert run(tmp_path / "run", *settings, text=str(tmp_path / "a.txt")) == 0
    assert "the text supports" in capsys.readouterr().out


def test_training_does_not_import_torch(text, tmp_path):
    """Where there is no GPU, which the driver is asked for."""
    script = """import sys
from minillama.__main__ import main
from minillama.engine import factory
factory.has_cuda = lambda: False
main(sys.argv[1:])
assert not {"torch", "kernels", "minillama.kernels"} & set(sys.modules)
print("clean")"""
    command = [sys.executable, "-c", script, "train", "--data", text, "--out", str(tmp_path / "a"), *SMALL]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("clean\n")
