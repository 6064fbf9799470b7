"""Several processes that train together, as torchrun starts them, but forked from one that has imported PyTorch already, and with their
output kept. The launcher's store is in this process, so that it outlives them."""
import multiprocessing
import os
import sys
import time
from datetime import timedelta
from typing import NamedTuple

import pytest
from helpers import metrics
from torch import distributed

from kernels import world
from minillama import __main__, train

if not (hasattr(os, "fork") and distributed.is_available()):
    pytest.skip("processes are forked, and connected by torch.distributed", allow_module_level=True)

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ranks", "kernels.parallel", "kernels.world", "minillama.report.console", "minillama.report.plan"])
SHAPE = ["--dim", 16, "--n-layers", 2, "--n-heads", 2, "--seq-len", 16, "--max-seq-len", 256, "--batch-size", 4, "--grad-accum-steps", 2,
         "--steps", 20, "--warmup-steps", 3, "--lr", 3e-3, "--eval-every", 8, "--eval-tokens", 300, "--save-every", 5,
         "--vocab-size", 290, "--threads", 1, "--no-look"]
PATIENCE = 60  # seconds: far more than any of these takes


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    out: str
    err: str


class Ranks:
    """Start `size` processes that each run function(*arguments), whose result is the exit status.

    settings: dict rank -> {"cwd": path, "arguments": list}    what is different for one of them
    env:      of all, beside what torchrun sets
    """

    def __init__(self, folder, size, function, *arguments, settings=(), **env):
        self.store = distributed.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=PATIENCE), wait_for_workers=False)
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port,
                  "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": 1} | env
        self.processes = []
        for rank in range(size):
            own = dict(settings).get(rank, {})
            rank_env = {"RANK": rank, "LOCAL_RANK": rank} | common
            target = self.path(rank, "out"), self.path(rank, "err"), own.get("cwd"), rank_env, function, *own.get("arguments", arguments)
            self.processes.append(CONTEXT.Process(target=_process, args=target))
            self.processes[-1].start()

    def path(self, rank, stream):
        return self.folder / f"{rank}.{stream}"

    def wait(self):
        """list of Ended. No process outlives this."""
        end = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(end - time.monotonic(), 0))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in late:
            self.processes[rank].kill()
            self.processes[rank].join()
        read = [[self.path(rank, stream).read_text("utf-8", "replace") for stream in ("out", "err")] for rank in range(len(self.processes))]
        assert not late, f"{late} did not end: {read}"
        return [Ended(process.exitcode, *texts) for process, texts in zip(self.processes, read)]

    def signal(self, rank, number):
        os.kill(self.processes[rank].pid, number)


def _process(out, err, cwd, env, function, *arguments):
    os.environ.update({name: str(value) for name, value in env.items()})
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = open(1, "w", encoding="utf-8"), open(2, "w", encoding="utf-8")  # noqa: SIM115
    if cwd:
        os.chdir(cwd)
    status = 1
    try:
        status = function(*arguments)
    except SystemExit as exit:
        status = exit.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.exc_info()[0] in (None, SystemExit):
            os._exit(status or 0)


def command(*arguments):
    """`python -m minillama` with these arguments; the texts that it writes on its way are short, and a roll call does not take long."""
    train.SAMPLE_TOKENS, world.ROLL_CALL = 5, 0.5
    return __main__.main([str(argument) for argument in arguments])


def interrupted(rank, step, number, *arguments):
    """`command`, in which a process sends itself a signal after a step."""
    original = train.train_step

    def train_step(engine, *rest):
        record = original(engine, *rest)
        if record["step"] == step:
            os.kill(os.getpid(), number)
        return record

    if int(os.environ["RANK"]) == rank:
        train.train_step = train_step
    return command(*arguments)


def same_curve(out, alone, tolerance=1e-5):
    ours = metrics(out)
    assert [line.keys() for line in ours] == [line.keys() for line in alone]
    for line, other in zip(ours, alone):
        for key in line.keys() - {"floor"}:
            assert abs(line[key] - other[key]) <= tolerance * abs(other[key]), (line["step"], key, line[key], other[key])
