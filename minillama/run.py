"""A run: one folder that holds all there is to know about one training.

    runs/NAME/config.toml        every setting, resolved; `train --config` reads it back
    runs/NAME/tokenizer.model    SentencePiece
    runs/NAME/metrics.jsonl      a line per step
    runs/NAME/loss.png           train and validation loss, floor, learning rate
    runs/NAME/tensorboard/       the numbers of metrics.jsonl again, where TensorBoard is installed
    runs/NAME/checkpoints/       see checkpoint.py

A model that came from elsewhere is a run without a training: its configuration says so in `from`, its preset is IMPORTED.
"""
import dataclasses
import json
import os
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from . import checkpoint, interop
from .config import ModelConfig, Preset, TrainConfig, preset
from .errors import InputError
from .machine import default_threads

MODEL_KEYS = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name != "vocab_size")
TRAIN_KEYS = tuple(f.name for f in dataclasses.fields(TrainConfig))
TOP_KEYS = ("preset", "data", "vocab_size", "threads", "split", "from", "start", "model", "train")
IMPORTED = "imported"


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run.

    data:       tuple of str          FILE[=WEIGHT]; empty for the built-in corpus
    vocab_size: int | "chars" | None  asked for; None takes the preset's, or the most the text supports
    threads:    int                   of the NumPy engine, and
    split:      int | None            the parts it cuts a batch into (None: as many as threads, or what is faster where threads was
                                      not asked for). Both are configuration because they fix the order of every sum
    model:      dict                  of ModelConfig; vocab_size is added once the tokenizer is there
    source:     str | None            `from`: the run or the files that the first weights came from, if they are not fresh
    start:      int                   steps that model and optimiser had behind them there; the run's own come on top
    """

    preset: str
    threads: int
    train: TrainConfig
    model: dict
    data: tuple = ()
    vocab_size: int | str | None = None
    split: int | None = None
    source: str | None = None
    start: int = 0

    @property
    def model_config(self):
        return ModelConfig(**self.model)


def _check_keys(keys, allowed, where):
    unknown = [key for key in keys if key not in allowed]
    if unknown:
        raise InputError(f"{where} has a key {unknown[0]!r} that does not exist: known are {', '.join(allowed)}")


def read_toml(path):
    """Settings of a TOML file, keys checked: dict with some of TOP_KEYS. Raises InputError."""
    try:
        with open(path, "rb") as file:
            settings = tomllib.load(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    _check_keys(settings, TOP_KEYS, str(path))
    for section, allowed in (("model", (*MODEL_KEYS, "vocab_size")), ("train", TRAIN_KEYS)):
        if not isinstance(settings.get(section, {}), dict):
            raise InputError(f"{path}: {section} is {settings[section]!r}, and must be a table [{section}]")
        _check_keys(settings.get(section, {}), allowed, f"{path} [{section}]")
    data = settings.get("data", [])
    if not (isinstance(data, list) and all(isinstance(entry, str) for entry in data)):
        raise InputError(f'{path}: data is {data!r}, and must be a list like ["a.txt=0.35", "b.jsonl=0.65"]')
    return settings


def resolve(file, flags, threads):
    """Settle every setting: a flag beats the TOML file, which beats the preset, which beats the paper's defaults.

    Args:
        file, flags: dict with some of TOP_KEYS
        threads:     int    where neither says

    Raises:
        InputError: a value out of range
    """
    top = {**file, **flags}
    name = top.get("preset", "nano")
    chosen = Preset("", {}, {}) if name == IMPORTED else preset(name)
    model = {**chosen.model, **file.get("model", {}), **flags.get("model", {})}
    train = TrainConfig(**{**chosen.train, **file.get("train", {}), **flags.get("train", {})})
    vocab_size = top.get("vocab_size")
    if not (vocab_size is None or vocab_size == "chars" or (isinstance(vocab_size, int) and not isinstance(vocab_size, bool))):
        raise InputError(f'vocab_size is {vocab_size!r}, and must be a whole number or "chars"')
    if isinstance(vocab_size, int):
        model["vocab_size"] = vocab_size
    config = ModelConfig(**model)                                # checks the shape
    if train.seq_len > config.max_seq_len:
        raise InputError(f"seq_len {train.seq_len} is longer than the context of the model: max_seq_len is {config.max_seq_len}")
    threads = top.get("threads", threads)
    if not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise InputError(f"threads is {threads!r}, and must be a whole number from 1 to 1024")
    split = top.get("split", threads if "threads" in top else None)
    if split is not None and not (isinstance(split, int) and 1 <= split <= threads):
        raise InputError(f"split is {split!r}, and must be a whole number from 1 to threads, {threads}")
    source, start = top.get("from"), top.get("start", 0)
    if not isinstance(source, str | None) or not isinstance(start, int) or start < 0:
        raise InputError(f"from is {source!r} and start {start!r}, and must be a text and a whole number of at least 0")
    return RunConfig(name, threads, train, model, tuple(top.get("data", ())), vocab_size, split, source, start)


def to_toml(config):
    """The text of config.toml."""
    settings = {"preset": config.preset, "data": list(config.data), "threads": config.threads, "split": config.split}
    if config.vocab_size is not None:
        settings["vocab_size"] = config.vocab_size
    if config.source is not None:
        settings |= {"from": config.source, "start": config.start}
    return tomli_w.dumps(settings | {"model": config.model, "train": dataclasses.asdict(config.train)})


def create(path, config, tokenizer, first=None):
    """Make a run's folder with its configuration and tokenizer: all of it, or nothing.

    first: what its first checkpoint holds: a Model from elsewhere, or the `state()` of an engine; None leaves it to the training
    """
    path = Path(path)
    making = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        checkpoint.write_text(making / "config.toml", to_toml(config))
        tokenizer.save(making / "tokenizer.model")
        if isinstance(first, interop.Model):
            checkpoint.save_model(making / "checkpoints", first)
        elif first is not None:
            checkpoint.save(making / "checkpoints", first, config.model_config, tokenizer.model)
        if path.is_dir():                                        # an empty folder the user made
            path.rmdir()
        os.replace(making, path)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def holds_run(path):
    """True if the folder is a run, which --resume can continue."""
    return (Path(path) / "config.toml").is_file()


def read_config(path):
    """The RunConfig of a run's folder. Raises InputError if it is none."""
    path = Path(path)
    if not holds_run(path):
        raise InputError(f"{path} holds no run: it has no config.toml")
    settings = read_toml(path / "config.toml")
    for key in ("preset", "threads", "split", "model", "train"):
        if key not in settings:
            raise InputError(f"{path / 'config.toml'} has no {key}: it is not the configuration of a run")
    return resolve(settings, {}, settings["threads"])


def read_metrics(path):
    """The records of a metrics.jsonl, up to a line that a crash left torn: list of dict."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def load_tokenizer(path):
    """The tokenizer of a run's folder."""
    from .text.tokenizer import Tokenizer

    return Tokenizer.load(Path(path) / "tokenizer.model")


def newest(path):
    """Path of a run's newest checkpoint. Raises InputError if there is none."""
    checkpoints = checkpoint.whole(Path(path) / "checkpoints")
    if not checkpoints:
        raise InputError(f"{path} has no checkpoint yet: `train --resume --out {path}` continues it")
    return checkpoints[-1]


def load(path):
    """Open a trained run, a checkpoint, or a model in any of interop's formats for use: (RunConfig, Tokenizer, params, step).

    Raises:
        InputError: a part is missing or broken
    """
    from .text.tokenizer import Tokenizer

    if not holds_run(path):
        model = interop.read(path)
        return imported(model, path), Tokenizer(model.tokenizer, str(path)), model.tensors, 0
    config, tokenizer, last = read_config(path), load_tokenizer(path), newest(path)
    expected = config.model_config.vocab_size
    if tokenizer.vocab_size != expected:
        raise InputError(f"{path}: the tokenizer has {tokenizer.vocab_size} pieces, and the model a vocabulary of {expected}")
    return config, tokenizer, checkpoint.load_params(last, config.model_config), int(last.name[5:])


def imported(model, source):
    """The RunConfig of a Model that came from elsewhere. Its recipe is for reading only: one row of its context at a time."""
    train = TrainConfig(batch_size=1, seq_len=min(model.config.max_seq_len, 2048))
    threads = default_threads()
    return RunConfig(IMPORTED, threads, train, dataclasses.asdict(model.config), split=threads, source=str(source))


def has_text(path):
    """True if a path is a run that was trained here, on a text that can be found again."""
    return holds_run(path) and read_config(path).preset != IMPORTED


def describe(path):
    """The RunConfig of a run or a model, and what it is in words."""
    if not holds_run(path):
        model = interop.read(path)
        return imported(model, path), f"{path}: {model.about}"
    config = read_config(path)
    if config.preset == IMPORTED:
        return config, f"{path}: imported from {config.source}"
    return config, f"{path}: a run of the {config.preset} preset" + (f", from {config.source}" if config.source else "")


def import_model(source, out):
    """Make a run of a model in any of interop's formats: all of it, or nothing. Returns the Model.

    Raises:
        InputError: the model is broken, unsafe or not LLaMA-1; or `out` is taken
    """
    from .text.tokenizer import Tokenizer

    if holds_run(source):
        raise InputError(f"{source} is a run already: generate, eval, export and train --from take it as it is")
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise InputError(f"{out} already exists: choose another -o")
    model = interop.read(source)
    create(out, imported(model, source), Tokenizer(model.tokenizer, str(source)), model)
    return model


def open_source(path, keep_optimizer=False):
    """What a training may start from, a run, a checkpoint or a model in any of interop's formats: (Model, state or None).

    Raises:
        InputError: it is broken, or its optimiser is wanted and it has none
    """
    path = Path(path)
    config = read_config(path).model_config if holds_run(path) else None
    path = newest(path) if config else path
    model = interop.read(path)
    if config:                                                   # the same shape, by its own multiple_of
        model = dataclasses.replace(model, config=config, tensors=checkpoint.load_params(path, config))
    if not keep_optimizer:
        return model, None
    if not checkpoint.has_state(path):
        raise InputError(f"{path} holds no optimiser: without --keep-optimizer it starts fresh")
    return model, checkpoint.load(path, model.config)
