"""Several processes of one training end, stop and refuse together, and nothing is lost."""
import os
import shutil
import signal

import pytest
from helpers import metrics
from ranks import SHAPE, Ranks, command, interrupted, same_curve
from tolerances import TWIN_RUN

from minillama import train
from minillama.__main__ import main
from minillama.interop import hf
from minillama.run import open as opening


@pytest.fixture
def training(documents, tmp_path):
    """What starts so many processes of the training: (size, *flags) -> Ranks."""
    def start(size, *flags, function=command, before=(), name="ranks", **options):
        return Ranks(tmp_path / name, size, function, *before, "train", "--engine", "torch", "--device", "cpu", "--data", documents,
                     "--out", tmp_path / "run", *SHAPE, *flags, **options)

    return start


def one_sentence(ended, status=2):
    """What all processes together said, which one of them did."""
    assert [one.status for one in ended] == [status] * len(ended), ended
    said = "".join(one.err for one in ended)
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    return lines[0].removeprefix("error: ")


def test_the_number_of_processes_may_change(training, documents, alone, tmp_path):
    """1 -> 2 -> 3 -> 1 processes, ddp -> fsdp -> numpy; each time another one is asked to stop, and all do."""
    stages = [(1, "ddp", 0, 4, signal.SIGINT), (2, "ddp", 1, 9, signal.SIGTERM), (3, "fsdp", 2, 14, signal.SIGINT)]
    for size, parallel, rank, step, number in stages:
        resume = ["--resume"] if step > 4 else []
        ended = training(size, "--parallel", parallel, *resume, function=interrupted, before=(rank, step, number), name=str(step)).wait()
        assert [one.status for one in ended] == [130] * size, ended
        assert f"stopped after step {step} of 20" in ended[0].out
    assert main(["train", "--engine", "numpy", "--resume", "--no-look", "--out", str(tmp_path / "run")]) == 0
    same_curve(tmp_path / "run", alone, TWIN_RUN)


@pytest.mark.parametrize("parallel, size, rank", [("ddp", 2, 0), ("fsdp", 3, 1)])
def test_a_process_that_is_killed_ends_the_others(parallel, size, rank, training, alone, tmp_path):
    """And the others have lost nothing: the run goes on, here with one process."""
    ended = training(size, "--parallel", parallel, "--timeout", 20, function=interrupted, before=(rank, 7, signal.SIGKILL)).wait()
    assert ended.pop(rank).status == -signal.SIGKILL
    assert one_sentence(ended).startswith(f"no answer from rank {rank} on ")
    assert metrics(tmp_path / "run")[-1]["step"] in (6, 7)
    assert main(["train", "--engine", "torch", "--device", "cpu", "--resume", "--no-look", "--out", str(tmp_path / "run")]) == 0
    same_curve(tmp_path / "run", alone)
    assert not list((tmp_path / "run").rglob(".*"))


@pytest.mark.parametrize("rank", [0, 2])
def test_a_process_that_hangs_is_named(rank, training):
    ranks = training(3, "--timeout", 1, function=interrupted, before=(rank, 7, signal.SIGSTOP))
    others = [process for number, process in enumerate(ranks.processes) if number != rank]
    for process in others:
        process.join(30)
    ranks.signal(rank, signal.SIGKILL)
    ended = ranks.wait()
    assert ended.pop(rank).status == -signal.SIGKILL
    assert one_sentence(ended).startswith(f"no answer from rank {rank} on ") and "--timeout 1 s" in one_sentence(ended)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_divergence_is_said_once(parallel, training, tmp_path):
    ended = training(2, "--parallel", parallel, "--lr", "1e30", "--warmup-steps", 1).wait()
    assert one_sentence(ended).startswith("training diverged at step 2: loss ")


def defective(*arguments):
    if os.environ["RANK"] == "1":
        train.learning_rate = None
    return command(*arguments)


def test_a_defect_shows_where_it_is_and_ends_all(training):
    """A traceback of the process that has it, and nothing of the other, which lost it."""
    ended = training(2, function=defective).wait()
    assert [one.status for one in ended] == [2, 1]
    assert ended[1].err.count("Traceback") == 1 and "TypeError" in ended[1].err
    assert not ended[0].err


def full_disk(*arguments):
    def write(*anything):
        raise OSError(28, "No space left on device")

    if "--resume" in arguments:
        hf.write_safetensors = write
    return command(*arguments)


def test_a_full_disk_of_rank_0_is_said_once_and_loses_nothing(training, tmp_path):
    assert all(one.status == 130 for one in training(2, function=interrupted, before=(1, 6, signal.SIGINT)).wait())
    ended = training(2, "--resume", function=full_disk, name="full").wait()
    assert one_sentence(ended) == f"{tmp_path}/run/checkpoints/step-000010: No space left on device"
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step*")) == ["step-000005", "step-000006"]


def own(rank, arguments=None, **settings):
    return {rank: settings | ({"arguments": arguments} if arguments else {})}


@pytest.mark.parametrize("flags, size, sentence", [
    (["--engine", "numpy"], 2, "the engine numpy trains in one process: under torchrun --engine must be torch or triton, got numpy"),
    (["--parallel", "fsdp"], 1, "--parallel fsdp needs at least 2 processes to split a model over, got 1: without --parallel"),
    (["--batch-size", 1, "--grad-accum-steps", 2], 3, "the number of processes must be at most the rows of a step, batch_size 1 x "
                                                      "grad_accum_steps 2 = 2, got 3"),
    (["--dim", 15], 2, "dim must be divisible by n_heads, got 15 and 2"),
    (["--data", "nowhere.txt"], 2, "nowhere.txt"),
    (["--device", "cuda:1"], 2, "device"),
    (["--timeout", 0], 2, "argument --timeout: it must be greater than 0, got 0.0"),
])
def test_bad_input_is_said_once(flags, size, sentence, training):
    assert sentence in one_sentence(training(size, *flags).wait())


@pytest.mark.parametrize("flags, missing", [([], "--resume"), (["--resume"], None)])
def test_a_command_that_starts_again_must_find_what_it_wrote(flags, missing, training):
    """With --resume it begins where there is nothing yet; --out is given here."""
    ended = training(2, *flags, "--steps", 1, TORCHELASTIC_MAX_RESTARTS=3).wait()
    if missing:
        assert one_sentence(ended).startswith(f"torchrun --max-restarts needs {missing}: the command that starts again must find ")
    else:
        assert [one.status for one in ended] == [0, 0], ended


def test_other_settings(training, documents, tmp_path):
    arguments = ["train", "--engine", "torch", "--device", "cpu", "--data", documents, "--out", tmp_path / "run", *SHAPE, "--lr", 2e-3]
    said = one_sentence(training(3, settings=own(2, arguments)).wait())
    assert said.startswith("--lr must be the same in all processes, got 0.003 in rank 0 on ") and ", and 0.002 in rank 2 on " in said
    assert not (tmp_path / "run").exists()


def other_version(*arguments):
    if os.environ["RANK"] == "1":
        opening.metadata.version = lambda package: "9.9"
    return command(*arguments)


def test_other_versions(training):
    said = one_sentence(training(2, function=other_version).wait())
    assert said.startswith("the version of numpy must be the same in all processes, got ") and ", and 9.9 in rank 1 on " in said


def test_another_text(documents, tmp_path):
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        shutil.copy(documents, folder / "a.jsonl")
    with open(tmp_path / "other" / "a.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    arguments = ["train", "--engine", "torch", "--device", "cpu", "--data", "a.jsonl", "--out", tmp_path / "run", *SHAPE]
    ranks = Ranks(tmp_path / "ranks", 2, command, *arguments, settings=own(0, cwd=tmp_path) | own(1, cwd=tmp_path / "other"))
    assert one_sentence(ranks.wait()).startswith("the text of a must be the same in all processes, got ")


def test_a_missing_text_is_said_with_its_process(documents, tmp_path):
    (tmp_path / "other").mkdir()
    shutil.copy(documents, tmp_path / "a.jsonl")
    arguments = ["train", "--engine", "torch", "--device", "cpu", "--data", "a.jsonl", "--out", tmp_path / "run", *SHAPE]
    ranks = Ranks(tmp_path / "ranks", 2, command, *arguments, settings=own(0, cwd=tmp_path) | own(1, cwd=tmp_path / "other"))
    said = one_sentence(ranks.wait())
    assert said.startswith("rank 1 on ") and "a.jsonl" in said


@pytest.mark.parametrize("copied", [False, True])
def test_an_out_that_is_not_shared(copied, training, documents, tmp_path):
    """Not even where the other machine has a copy of the run."""
    (tmp_path / "other").mkdir()
    if copied:
        assert training(1, function=interrupted, before=(0, 6, signal.SIGINT), name="first").wait()[0].status == 130
        shutil.copytree(tmp_path / "run", tmp_path / "other" / "run")
    arguments = ["train", "--engine", "torch", "--device", "cpu", "--data", documents, "--out", "run", *SHAPE, *["--resume"] * copied]
    ranks = Ranks(tmp_path / "ranks", 2, command, *arguments, settings=own(0, cwd=tmp_path) | own(1, cwd=tmp_path / "other"))
    assert "run must be in a folder that all machines share (--out)" in one_sentence(ranks.wait())
    assert not list(tmp_path.glob(".run*"))


def test_a_launcher_that_says_half(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert main(["train", "--out", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err == (
        "error: RANK must be set where WORLD_SIZE is (WORLD_SIZE=8): to train with several processes, start them with torchrun "
        "(torchrun --nproc-per-node 8 -m minillama train); to train with one, unset WORLD_SIZE\n")


@pytest.mark.parametrize("name, value, sentence", [
    ("RANK", "one", "RANK must be a whole number, as torchrun sets it, got 'one'"),
    ("RANK", "2", "RANK must be below the number of processes, 2, got 2"),
])
def test_a_launcher_that_says_nonsense(name, value, sentence, capsys, monkeypatch, tmp_path):
    for key, given in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": "1", name: value}.items():
        monkeypatch.setenv(key, given)
    assert main(["train", "--out", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_rendezvous_that_nobody_reaches(training):
    """Rank 1 of two, of which there is no rank 0: it waits --timeout seconds."""
    (ended,) = training(1, "--timeout", 1, MASTER_PORT=1, RANK=1, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2).wait()
    assert ended.status == 2
    assert ended.err.startswith("error: rank 1 must reach the other processes at 127.0.0.1:1 within 1 s: ") and ended.err.count("\n") == 1


def test_parallel_alone_is_refused(capsys, tmp_path):
    assert main(["train", "--parallel", "ddp", "--out", str(tmp_path / "a")]) == 2
    assert capsys.readouterr().err.startswith("error: --parallel ddp is for several processes, and this is one: torchrun ")
