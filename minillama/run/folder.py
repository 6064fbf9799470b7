"""A run's folder: made in one piece, found again, read. A model in another program's format can be used wherever a run can."""
import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

from .. import interop
from ..config import TrainConfig
from ..errors import InputError
from ..files import atomic, is_locked, read_json, write_json
from ..machine import default_threads
from ..text.tokenizer import Tokenizer
from . import checkpoint
from .config import IMPORTED, RunConfig, from_toml, to_toml
from .metrics import read_metrics

FINGERPRINTS = "fingerprints.json"
TRAINED = "{} is being trained by another process: wait until it ends, or stop it"


class Trained(NamedTuple):
    """A trained model, ready for an engine.

    config:    RunConfig
    tokenizer: Tokenizer
    params:    mapping     name -> float32 array, read when it is looked up
    step:      int         updates it has had
    """

    config: RunConfig
    tokenizer: Tokenizer
    params: object
    step: int

    @property
    def has_text(self):
        """True if it was trained here, on a text that can be found again."""
        return self.config.preset != IMPORTED


def create(path, config, tokenizer, first=None, sources=()):
    """Make a run's folder with its configuration and tokenizer: all of it, or nothing.

    first:   what its first checkpoint holds: a Model from elsewhere, or the `state()` of an engine; None leaves it to the training
    sources: what it is trained on: their fingerprints are kept
    """
    with atomic(path, parents=True) as making:
        making.mkdir()
        (making / "config.toml").write_text(to_toml(config), encoding="utf-8")
        tokenizer.save(making / "tokenizer.model")
        if sources:
            write_json(making / FINGERPRINTS, fingerprints(tokenizer, sources))
        if isinstance(first, interop.Model):
            checkpoint.save_model(making / "checkpoints", first)
        elif first is not None:
            checkpoint.save(making / "checkpoints", first, config.model, tokenizer.model)


def fingerprints(tokenizer, sources):
    """What a run was trained on, in hashes: {"tokenizer": sha256, "text": {source: hash of its content}}."""
    return {"tokenizer": tokenizer.fingerprint, "text": {source.name: source.fingerprint() for source in sources}}


def check_fingerprints(path, tokenizer, sources):
    """Raise InputError where text or tokenizer are no longer those that a run was started with."""
    kept, found = read_json(Path(path) / FINGERPRINTS), fingerprints(tokenizer, sources)
    if kept.get("tokenizer") != found["tokenizer"]:
        raise InputError(f"{path}/tokenizer.model must be the one that the run was started with, got another")
    if kept.get("text") != found["text"]:
        old = kept["text"] if isinstance(kept.get("text"), dict) else {}
        changed = [name for name, hash in found["text"].items() if old.get(name) != hash]
        raise InputError(f"the text of {', '.join(changed) or path} has changed since {path} was started: "
                         f"train --from {path} --data FILE goes on with another text")


def holds_run(path):
    """True if the folder is a run, which --resume can continue."""
    return (Path(path) / "config.toml").is_file()


def is_failed_start(path):
    """True if the folder is a run without a checkpoint that nobody is training, with nothing in it but what `train` leaves there."""
    path = Path(path)
    if not holds_run(path) or any((path / "checkpoints").glob("*")):
        return False
    ours = {"config.toml", "tokenizer.model", FINGERPRINTS, "metrics.jsonl", "tensorboard", "checkpoints"}
    found = {file.name for file in path.iterdir()}
    return found <= ours and "tokenizer.model" in found and not is_locked(path / "tokenizer.model")


def free_name(path):
    """The path, or the first of path-2, path-3 ... where nothing is."""
    path, number = Path(path), 2
    taken = path
    while os.path.lexists(taken) and not is_failed_start(taken):
        taken = path.with_name(f"{path.name}-{number}")
        number += 1
    return taken


def read_config(path):
    """The RunConfig of a run's folder. Raises InputError if it is none."""
    if not holds_run(path):
        raise InputError(f"{path} holds no run: it has no config.toml")
    return from_toml(Path(path) / "config.toml")


def load_tokenizer(path):
    """The tokenizer of a `.model` file, or of a run's folder."""
    path = Path(path)
    return Tokenizer.load(path / "tokenizer.model" if path.is_dir() else path)


def newest(path):
    """Path of a run's newest checkpoint. Raises InputError if there is none."""
    checkpoints = checkpoint.finished(Path(path) / "checkpoints")
    if not checkpoints:
        raise InputError(f"{path} has no checkpoint yet: `train --resume --out {path}` continues it")
    return checkpoints[-1]


def load(path):
    """Open a run, a checkpoint, or a model in any of interop's formats for use: Trained.

    Raises:
        InputError: something is missing or broken
    """
    if not holds_run(path):
        model = interop.read(path)
        return Trained(imported(model, path), Tokenizer(model.tokenizer, str(path)), model.tensors, 0)
    config, tokenizer, last = read_config(path), load_tokenizer(path), newest(path)
    expected = config.model.vocab_size
    if tokenizer.vocab_size != expected:
        raise InputError(f"{path}: the tokenizer must have the model's {expected} pieces, got {tokenizer.vocab_size}")
    return Trained(config, tokenizer, checkpoint.load_params(last, config.model), int(last.name[5:]))


def load_model(path):
    """The newest weights of a run, or a model in any of interop's formats, and where they were found: (Model, Path)."""
    if not holds_run(path):
        return interop.read(path), Path(path)
    config, last = read_config(path).model, newest(path)
    # the same shape, by its own multiple_of
    return dataclasses.replace(interop.read(last), config=config, tensors=checkpoint.load_params(last, config)), last


def load_records(path):
    """The lines of a run's metrics.jsonl, at least one. Raises InputError."""
    if not holds_run(path):
        raise InputError(f"{path} holds no run: it has no config.toml")
    records = read_metrics(Path(path) / "metrics.jsonl")
    if not records:
        raise InputError(f"{path} has no step to compare: its metrics.jsonl is empty, missing or damaged")
    return records


def imported(model, path):
    """The RunConfig of a Model that came from elsewhere. Its recipe is for reading only: one row of its context at a time."""
    train = TrainConfig(batch_size=1, seq_len=min(model.config.max_seq_len, 2048))
    threads = default_threads()
    return RunConfig(IMPORTED, model.config, train, threads, batch_splits=threads, from_model=str(path))


def describe(path):
    """The RunConfig of a run or a model, and what it is in words."""
    if not holds_run(path):
        model = interop.read(path)
        return imported(model, path), f"{path}: {model.about}"
    config = read_config(path)
    if config.preset == IMPORTED:
        return config, f"{path}: imported from {config.from_model}"
    return config, f"{path}: a run of the {config.preset} preset" + (f", from {config.from_model}" if config.from_model else "")


def import_model(path, out):
    """Make a run of a model in any of interop's formats: all of it, or nothing. Returns the Model.

    Raises:
        InputError: the model is broken, unsafe or not LLaMA-1; or `out` is taken
    """
    if holds_run(path):
        raise InputError(f"{path} is a run already: generate, eval, export and train --from take it as it is")
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise InputError(f"{out} already exists: choose another -o")
    model = interop.read(path)
    create(out, imported(model, path), Tokenizer(model.tokenizer, str(path)), model)
    return model


def export_model(path, to, dtype, out):
    """Write the newest weights of a run, or a model in any of interop's formats, in another format. Returns the Model.

    Raises:
        InputError: see `load_model` and the format's `write`; or `out` lies among a run's checkpoints, where it would be taken for one
    """
    out = Path(out)
    if holds_run(out.absolute().parents[1]) and out.absolute().parent.name == "checkpoints":
        raise InputError(f"{out} lies among the checkpoints of a run, where it would be taken for one: choose another -o")
    model, _ = load_model(path)
    interop.write(out, model, to, dtype)
    return model
