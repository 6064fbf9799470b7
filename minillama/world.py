"""The processes that train one run: one, or several that torchrun has started. Each of several runs the same program on the same
batches, of which it computes its rows, so that the training loop is the same for one and for many. It has to ask the others only where
something is decided (to stop), or done once (to write). `Alone` is all that it may ask, and the answers where there are no others;
kernels/world.py has the answers of several.

    rank    a process's number, from 0; rank 0 prints, and writes the run
    size    how many there are
"""
import os

from .errors import InputError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells a process
EXAMPLE = "torchrun --nproc-per-node 8 -m minillama train"


class Alone:
    """A single process. kernels/world.py has a method of each name for several, to be called by all of them, in the same order.

    machines: int     number of them
    restarts: bool    True if the launcher starts the same command again when a process has died
    """

    rank, size, machines, restarts = 0, 1, 1, False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def any(self, flag):
        """True if it is true in any process."""
        return flag

    def same(self, value):
        """The value of rank 0."""
        return value

    def agree(self, facts):
        """Raise InputError if the dicts that `facts` returns differ: name -> value, the most telling first."""

    def together(self, function):
        """function(), in every process. An error in one of them is raised in all."""
        return function()

    def first(self, function, engine):
        """function(), in rank 0 alone. The engines of the others hand over what it looks up in the `state()` of its own."""
        function()


ALONE = Alone()


def open_world(timeout):
    """All processes that were started with this one: a context manager, Alone or kernels.world.World.

    timeout: seconds that one waits for another

    Raises:
        InputError: what the launcher says is not complete
    """
    if not any(name in os.environ for name in VARIABLES[:4]):
        return ALONE
    missing = [name for name in VARIABLES if name not in os.environ]
    if missing:
        there = next(name for name in VARIABLES if name in os.environ)
        raise InputError(f"{missing[0]} must be set where {there} is ({there}={os.environ[there]:.20}): to train with several processes, "
                         f"start them with torchrun ({EXAMPLE}); to train with one, unset {there}")
    numbers = {name: os.environ[name] for name in VARIABLES if name != "MASTER_ADDR"}
    for name, value in numbers.items():
        if not (value.isdecimal() and len(value) < 8):
            raise InputError(f"{name} must be a whole number, as torchrun sets it, got {value!r:.60}")
    rank, size, local_rank, local_size, _ = map(int, numbers.values())
    for name, value, limit in (("RANK", rank, size), ("LOCAL_RANK", local_rank, local_size)):
        if value >= limit:
            raise InputError(f"{name} must be below the number of processes, {limit}, got {value}")
    from .engine.factory import kernels_module  # here, because it imports NumPy: --help does without

    try:
        module = kernels_module("world")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError("several processes train through PyTorch, which is not installed here: without torchrun one trains") from None
    return module.World(rank, size, local_rank, local_size, timeout)


def settle_parallel(asked, world):
    """What EngineConfig.parallel is to be: `asked`, or ddp. Raises InputError where it does not fit the number of processes."""
    if world is ALONE:
        if asked is not None:
            raise InputError(f"--parallel {asked} is for several processes, and this is one: {EXAMPLE} --parallel {asked}")
        return None
    if asked == "fsdp" and world.size == 1:
        raise InputError("--parallel fsdp needs at least 2 processes to split a model over, got 1: without --parallel it trains on one")
    return asked or "ddp"


def check_rows(recipe, world):
    """Raise InputError if a process would have no row of a step."""
    rows = recipe.batch_size * recipe.grad_accum_steps
    if world.size > rows:
        raise InputError(f"the number of processes must be at most the rows of a step, batch_size {recipe.batch_size} x grad_accum_steps "
                         f"{recipe.grad_accum_steps} = {rows}, got {world.size}")


def check_restarts(world, resume, out):
    """Raise InputError if the same command, started again, could not go on where it stopped."""
    if world.restarts and not (resume and out):
        missing = "--out" if resume else "--resume"
        raise InputError(f"torchrun --max-restarts needs {missing}: the command that starts again must find what it wrote; "
                         "with --resume --out DIR it goes on there, and begins where there is nothing")
