"""Several processes that train one run, through torch.distributed: the answers of minillama/world.py's `Alone` for more than one.

A collective is a call that every process of a group makes, and that ends in none before all have made it. There are three groups of
all processes, so that what waits in one does not hold up another:

    the default one    gradients and parameters; NCCL between GPUs, gloo between processors
    control            decisions and single tensors, small things between processors: gloo, with the same timeout
    patient            how a start went, which may take hours on a long text: gloo, without a timeout to speak of

What goes wrong is said once. A process that meets an error asks the launcher's store whether it is the first to; only that one
prints. A process that has lost another, because it was killed, hangs, or has met an error, calls the roll in that store: who
does not answer is named.
"""
import os
import platform
import signal
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from threading import Event, Thread
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from minillama.errors import InputError, Told, sentence

CONNECT = 300.0  # seconds that the processes of a start wait for each other at most
GLOO = "gloo/", "caused pair closure"  # in the messages of a connection that is lost: the place in its source, or none
ROLL_CALL = 3.0  # seconds to answer


class World:
    """All processes of this start. A context manager: inside, only rank 0's output is seen.

    rank, size:             of all
    local_rank, local_size: on this machine
    machines:               number of them
    restarts:               True if torchrun starts the processes again when one has died
    timeout:                seconds that one waits for another
    """

    def __init__(self, rank, size, local_rank, local_size, timeout):
        self.rank, self.size, self.local_rank, self.local_size, self.timeout = rank, size, local_rank, local_size, timeout
        self.machines = -(-size // local_size)
        self.restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0
        self._exit = ExitStack()
        self._serving = False
        self._ended, self._answering = Event(), Thread(target=self._answer, daemon=True)

    # ------------------------------------------------------------------------------------------------------------- begin and end

    def __enter__(self):
        wait, address = min(self.timeout, CONNECT), f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        try:
            with _without_log():
                store, _, _ = next(rendezvous("env://", self.rank, self.size, timeout=timedelta(seconds=wait)))
                self._store, self._nodes = self._gather_at_start(store, wait)
                backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
                dist.init_process_group(backend, store=dist.PrefixStore("groups", self._store), rank=self.rank, world_size=self.size,
                                        timeout=timedelta(seconds=self.timeout))
                self._control = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout))
                self._patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
            self._answering.start()
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(f"rank {self.rank} must reach the other processes at {address} within {wait:g} s: {_reason(error)}") from None
        if self.rank:
            nowhere = self._exit.enter_context(open(os.devnull, "w", encoding="utf-8"))
            self._exit.enter_context(redirect_stdout(nowhere))
            self._exit.enter_context(redirect_stderr(nowhere))
        return self

    def _gather_at_start(self, store, wait):
        """Wait until every process has begun: a group that is made before would say for each that is missing what nobody understands.

        torchrun's store outlives the processes, and holds the addresses of those that it has started before, to which nobody answers any
        more. So rank 0 gives this start a name, every process writes its own under it, and rank 0 confirms those that it has read:
        who is not among them was reading what an earlier start has left.

        Returns:
            store: the part of the store that is of this start alone
            nodes: list of the machines' names, by rank
        """
        me, end = f"{platform.node()} {uuid4().hex}", time.monotonic() + wait
        if self.rank == 0:
            store.set("start", me)
        while True:
            start = dist.PrefixStore(store.get("start").decode(), store)
            start.set(f"begun/{self.rank}", me)
            if self.rank == 0:
                names = [f"begun/{rank}" for rank in range(self.size)]
                start.wait(names, timedelta(seconds=wait))
                start.set("confirmed", "\n".join(start.get(name).decode() for name in names))
            if start.check(["confirmed"]):
                everyone = start.get("confirmed").decode().split("\n")
                if everyone[self.rank:self.rank + 1] == [me]:
                    return start, [name.partition(" ")[0] for name in everyone]
            if time.monotonic() > end:
                raise RuntimeError("not all of them have begun")
            time.sleep(0.05)

    def __exit__(self, kind, error, traceback):
        try:
            if error is None or kind in (KeyboardInterrupt, Told):
                return
            lost = isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and any(part in str(error) for part in GLOO))
            if lost:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)    # torchrun sends it when one has died: first we say which
            absent = _in_time(self._absent) if lost else []
            if not self._is_first_to_report():
                raise Told from None
            if lost:
                raise InputError(self._who_is_lost(absent, error)) from None
        finally:
            self._exit.close()
            self._ended.set()
            self._answering.join(ROLL_CALL)
            with suppress(RuntimeError, ValueError):
                dist.destroy_process_group()

    def _answer(self):
        """Answer when the roll is called, whatever this process is waiting for: one that was killed or stopped cannot."""
        with suppress(RuntimeError):
            while not self._ended.wait(0.5):
                if self._store.check(["roll"]):
                    self._store.set(f"here/{self.rank}", "")
                    return

    def _absent(self):
        """Call the roll: the ranks that do not answer in time. If all do, those that have not met the error: what they are in hangs."""
        self._store.set("roll", "")
        self._store.set(f"lost/{self.rank}", "")
        end = time.monotonic() + ROLL_CALL
        while True:
            silent, others = ([rank for rank in range(self.size) if not self._store.check([f"{key}/{rank}"])] for key in ("here", "lost"))
            if not silent + others or time.monotonic() > end:
                return silent or others
            time.sleep(0.05)

    def _is_first_to_report(self):
        number = _in_time(lambda: self._store.add("reported", 1))
        return self.local_rank == 0 if number is None else number == 1  # None: the store is gone with its machine; once per machine, then

    def _who_is_lost(self, absent, error):
        if absent is None:
            return f"the machine of rank 0, {self._nodes[0]}, cannot be reached any more from {platform.node()}: {_reason(error)}"
        who = ", ".join(f"rank {rank} on {self._nodes[rank]}" for rank in absent[:8]) + (" ..." if len(absent) > 8 else "")
        if absent:
            return f"no answer from {who}: killed, hanging for more than --timeout {self.timeout:g} s, or cut off from the network"
        return f"a connection between the processes broke: {_reason(error)}"

    # ------------------------------------------------------------------------------------------------------------------- between

    def any(self, flag):
        tensor = torch.tensor(int(flag))
        dist.all_reduce(tensor, dist.ReduceOp.MAX, self._control)
        return bool(tensor)

    def same(self, value):
        box = [value]
        dist.broadcast_object_list(box, 0, self._control)
        return box[0]

    def _all(self, value):
        """The values of all processes: list."""
        values = [None] * self.size
        dist.all_gather_object(values, value, self._patient)
        return values

    def agree(self, facts):
        everyone = self._all(self.together(facts))
        for name in dict.fromkeys(name for theirs in everyone for name in theirs):
            for rank, theirs in enumerate(everyone):
                ours, other = everyone[0].get(name), theirs.get(name)
                if ours != other:
                    raise InputError(f"{name} must be the same in all processes, got {ours!s:.80} in rank 0 on {self._nodes[0]}, and "
                                     f"{other!s:.80} in rank {rank} on {self._nodes[rank]}")

    def together(self, function):
        value = error = None
        try:
            value = function()
        except Exception as caught:
            error = caught
        said = self._all(error and (sentence(error) or _reason(error)))
        if error is not None and (sentence(error) is None or said == [said[self.rank]] * self.size):
            raise error
        for rank, words in enumerate(said):
            if words is not None:
                raise InputError(f"rank {rank} on {self._nodes[rank]}: {words}")
        return value

    def first(self, function, engine):
        if self.rank == 0:
            self._serving, outcome = True, "failed"
            try:
                function()
                outcome = "done"
            finally:
                self._serving = False
                with suppress(RuntimeError):
                    self.same((outcome, None))
            return
        while True:
            request, argument = self.same(None)
            if request == "failed":
                raise Told
            if request == "done":
                return
            engine.hand_over(*argument)

    def ask(self, *argument):
        """In what `first` runs: let the others call hand_over(*argument) of their engines."""
        if not self._serving:
            raise RuntimeError("the state of several processes' engines is read inside World.first, where the others hand over their parts")
        self.same(("hand over", argument))


@contextmanager
def _without_log():
    """Without what C++ writes to standard error: of a connection that fails, a stack of addresses for each try."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _in_time(function):
    """function(), which asks the store; None if there is no answer. A machine that is cut off may leave the caller waiting for ever."""
    answer = []

    def call():
        with suppress(RuntimeError):
            answer.append(function())

    thread = Thread(target=call, daemon=True)
    thread.start()
    thread.join(2 * ROLL_CALL)
    return answer[0] if answer else None


def _reason(error):
    """The first line of an exception, without the place in the source that gloo puts before it."""
    words = str(error).strip().partition("\n")[0].rpartition("] ")[2] or type(error).__name__
    return words[:200]
