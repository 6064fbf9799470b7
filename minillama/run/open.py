"""Opening a run for training: a new one, one that is resumed, one that starts from a model.

`read_request` settles what was asked for, and touches nothing; `open_run` makes the folder, or finds it, and reads the text.
"""
import dataclasses
import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from ..config import EngineConfig
from ..engine.factory import resolve_engine
from ..engine.numpy_engine import faster_batch_splits
from ..errors import InputError
from ..files import locked, temporary_path, write_text
from ..interop import Model
from ..progress import phase
from ..text.mixture import Mixture
from ..text.prepare import make_sources, prepare_shards, train_tokenizer
from ..text.tokenizer import Tokenizer
from ..world import ALONE
from . import checkpoint
from .config import IMPORTED, RunConfig, check_from, flag, resumed, settings, settle, to_toml
from .folder import (
    TRAINED,
    check_fingerprints,
    create,
    holds_run,
    is_failed_start,
    load_model,
    load_tokenizer,
    read_config,
)

PACKAGES = ("numpy", "torch", "triton", "sentencepiece")
PATIENCE = 30  # seconds until what one machine has written is seen by another


@dataclass(frozen=True)
class TrainRequest:
    """All that a training was asked for, settled.

    out:     Path            the run's folder
    config:  RunConfig       of a resumed run, the one it was started with
    engine:  EngineConfig    its name settled; no part of the run
    resumed: bool            the folder holds the run already
    steps_before: int | None of a resumed run whose `steps` grow: how many they were
    first:   Model | dict | None    what a new run starts from, if not from fresh weights: a Model, or a `state()` with its optimiser
    tokenizer: bytes | None  of that model
    """

    out: Path
    config: RunConfig
    engine: EngineConfig
    resumed: bool = False
    steps_before: int | None = None
    first: Model | dict | None = None
    tokenizer: bytes | None = None


class Run(NamedTuple):
    """A run that is open for training.

    state: dict | None    to continue from: `load_state` of an engine; None: fresh
    """

    out: Path
    config: RunConfig
    tokenizer: Tokenizer
    mixture: Mixture
    state: dict | None


def read_request(out, asked, engine, resume=False, keep_optimizer=False):
    """Settle what `train` was asked for: TrainRequest. Nothing is written.

    Args:
        out:    Path
        asked:  dict    settings of the TOML file and the flags, see `config.merged`
        engine: EngineConfig
        resume: bool    continue the run in `out`, where there is one
        keep_optimizer: bool    with `from`: its moments, too, and its steps count on

    Raises:
        InputError: a setting, an engine, a folder or a model that cannot be used
    """
    out = Path(out)
    engine = resolve_engine(engine)
    if keep_optimizer and asked.get("from") is None:
        raise InputError("--keep-optimizer is for --from, which says whose optimiser to keep")
    if resume and holds_run(out):
        config = read_config(out)
        if config.preset == IMPORTED:
            raise InputError(f"{out} was imported and has no training to continue: train --from {out} --out DIR trains it further")
        longer = resumed(asked, config, out)
        return TrainRequest(out, longer, engine, resumed=True, steps_before=config.train.steps if longer != config else None)
    if resume:
        raise InputError(f"{out} holds no run to resume: without --resume a new one is started")
    _check_free(out)
    from_model = check_from(asked.get("from"))
    if from_model is None:
        return TrainRequest(out, settle(asked), engine)
    if asked.get("preset") == IMPORTED:
        raise InputError(f"the configuration is of the imported model {from_model}, which has no recipe: train --from it without --config")
    keep_optimizer = keep_optimizer or bool(asked.get("start_step"))
    model, place = load_model(from_model)
    if keep_optimizer and not checkpoint.has_state(place):
        raise InputError(f"{from_model} holds no optimiser: without --keep-optimizer it starts fresh")
    state = checkpoint.load(place, model.config) if keep_optimizer else None
    config = settle(asked, model.config, state["step"] if state else 0)
    return TrainRequest(out, config, engine, first=state or model, tokenizer=model.tokenizer)


def _check_free(out):
    """Refuse a folder that holds something. A run that never reached a checkpoint, since its start failed, makes room for the next try."""
    if holds_run(out) and not is_failed_start(out):
        raise InputError(f"{out} already holds a run: --resume continues it, another --out starts a new one")
    if os.path.lexists(out) and not holds_run(out) and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} already exists and is not a run: choose an --out that does not exist yet")


def facts(request):
    """What must be the same in all processes of a training: dict name -> value. Not the threads: machines may have different cores."""
    config = settings(request.config)
    flat = {**config.pop("model"), **config.pop("train"), **config}
    found = {f"the version of {package}": _version(package) for package in ("minillama", *PACKAGES)}
    found |= {flag(key): value for key, value in flat.items() if key not in ("threads", "batch_splits")}
    found |= {flag(key): value for key, value in dataclasses.asdict(request.engine).items()}
    found["--resume"] = request.resumed
    sources = make_sources(request.config.data, request.config.train.seed)
    return found | {f"the text of {source.name}": source.fingerprint() for source in sources}


def _version(package):
    if package == "minillama":
        return __version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


@contextmanager
def open_run(request, world=ALONE):
    """Start a run's folder, or continue it: Run, which is this training's alone until the block ends. Of several processes, rank 0 does it,
    and the others read what it wrote.

    Raises:
        InputError: bad data, a text that is no longer the run's, or a run that another training has open
        OSError: it cannot be written
    """
    with ExitStack() as stack:
        run = world.together(lambda: stack.enter_context(_opened(request)) if world.rank == 0 else None)
        if world.size > 1:
            run = _joined(run, request.out, world)
        yield run


def _joined(run, out, world):
    """The Run that rank 0 has opened, in every process: the others read its settings, tokens and checkpoint."""
    mark = out.with_name(world.same(temporary_path(out, os.getpid()).name))  # rank 0 writes it, to see whether it arrives

    def read():
        if run:
            return run
        patience = PATIENCE if world.machines > 1 else 0
        while not mark.exists():
            if patience <= 0:
                raise InputError(f"{out} must be in a folder that all machines share (--out): what rank 0 writes does not arrive here")
            time.sleep(1)                                        # a network's file system may take a while to show it
            patience -= 1
        config, tokenizer = read_config(out), load_tokenizer(out)
        mixture = _mixture(config, tokenizer, make_sources(config.data, config.train.seed), out.parent / ".cache")
        return Run(out, config, tokenizer, mixture, _state(out, config))

    try:
        world.together(lambda: world.rank or mark.touch())
        return world.together(read)
    finally:
        if world.rank == 0:
            mark.unlink(missing_ok=True)


@contextmanager
def _opened(request):
    out, config = request.out, request.config
    cache = out.parent / ".cache"
    if request.resumed:
        tokenizer, sources = load_tokenizer(out), make_sources(config.data, config.train.seed)
        check_fingerprints(out, tokenizer, sources)
        mixture = _mixture(config, tokenizer, sources, cache)
    else:
        sources = make_sources(config.data, config.train.seed)
        _check_writable(out.parent)
        to_toml(config)                                          # a package that this needs is missed before the work, not after it
        if request.tokenizer:
            tokenizer = Tokenizer(request.tokenizer, config.from_model)
        else:
            tokenizer = train_tokenizer(sources, config.vocab_size, config.train.val_fraction, config.model.vocab_size)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
        mixture = _mixture(config, tokenizer, sources, cache)
        if config.batch_splits is None:
            splits = _measured_splits(config, mixture) if request.engine.name == "numpy" else config.threads
            config = dataclasses.replace(config, batch_splits=splits)
        if is_failed_start(out):
            shutil.rmtree(out)
        create(out, config, tokenizer, request.first, sources)
    with locked(out / "tokenizer.model", TRAINED.format(out)):
        state = _state(out, config)
        if request.resumed and state is None:
            print(f"{out}: no complete checkpoint yet, starting from the beginning")
        if request.steps_before:
            print(f"{out}: {config.train.steps} steps instead of {request.steps_before}. From here on the learning rate follows the longer "
                  "schedule, and may rise again: a run that is started with so many steps ends in other weights")
            write_text(out / "config.toml", to_toml(config))
        yield Run(out, config, tokenizer, mixture, state)


def _state(out, config):
    """The state in a run's newest checkpoint; None if there is none."""
    checkpoints = checkpoint.finished(out / "checkpoints")
    return checkpoint.load(checkpoints[-1], config.model) if checkpoints else None


def _mixture(config, tokenizer, sources, cache):
    shards = prepare_shards(sources, tokenizer, cache, config.train.val_fraction)
    return Mixture(shards, config.train.seq_len, config.train.seed, tokenizer.bos_id)


def _measured_splits(config, mixture):
    """Let the first batch decide how the threads share the work, and say so."""
    if config.threads == 1:
        return 1
    batch = mixture.batch(1, config.train.batch_size)
    with phase("measuring how to split a batch"):
        splits, seconds = faster_batch_splits(config.model, config.train, config.threads, batch)
    measured = ", ".join(f"{n} x {config.threads // n} threads {1e3 * time:.0f} ms" for n, time in sorted(seconds.items()))
    print(f"batches in {splits} split(s): {measured} a step (--threads {config.threads} would fix it at {config.threads} splits)")
    return splits


def _check_writable(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(13, "Permission denied", str(folder))
