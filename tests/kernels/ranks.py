"""Several processes that train together, as torchrun starts them, but forked from one that has imported PyTorch already, and with their
output kept. The launcher's store is in this process, so that it outlives them."""
import json
import multiprocessing
import os
import signal
import sys
import time
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import TCPStore

from minillama import __main__, train
from minillama.world import open_world

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ranks", "kernels.parallel", "kernels.world", "minillama.report.console", "minillama.report.plan"])
PATIENCE = 60  # seconds: far more than any of these takes


class Ended(NamedTuple):
    """How a process ended."""

    status: int
    out: str
    err: str


class Ranks:
    """Start `size` processes that each run function(*arguments), whose result is the exit status.

    settings: dict rank -> {"env": dict, "cwd": path, "arguments": list}    what is different for one of them
    """

    def __init__(self, folder, size, function, *arguments, settings=(), **env):
        self.folder, self.store = folder, TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=PATIENCE), wait_for_workers=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        common = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self.store.port,
                  "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": 1} | env
        self.processes = []
        for rank in range(size):
            own = dict(settings).get(rank, {})
            rank_env = common | {"RANK": rank, "LOCAL_RANK": rank} | own.get("env", {})
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
    for name, value in env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = str(value)
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


def command(*arguments, stop=None):
    """`python -m minillama` with these arguments; the texts it writes on its way are short. stop: (rank, step, signal) that interrupts a process of its own accord after a step."""
    train.SAMPLE_TOKENS = 5
    if stop and int(os.environ["RANK"]) == stop[0]:
        original = train.train_step

        def stopping(engine, *rest):
            record = original(engine, *rest)
            if record["step"] == stop[1]:
                os.kill(os.getpid(), stop[2])
            return record

        train.train_step = stopping
    return __main__.main([str(argument) for argument in arguments])


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


__all__ = ["Ranks", "command", "metrics", "open_world", "signal"]
