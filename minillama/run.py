"""A run: one folder that holds all there is to know about one training.

    runs/NAME/config.toml        every setting, resolved; `train --config` reads it back
    runs/NAME/tokenizer.model    SentencePiece
    runs/NAME/metrics.jsonl      a line per step
    runs/NAME/loss.png           train and validation loss, floor, learning rate
    runs/NAME/checkpoints/       see checkpoint.py
"""
import dataclasses
import json
import os
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from . import checkpoint
from .config import ModelConfig, TrainConfig, preset
from .errors import InputError

MODEL_KEYS = tuple(f.name for f in dataclasses.fields(ModelConfig) if f.name != "vocab_size")
TRAIN_KEYS = tuple(f.name for f in dataclasses.fields(TrainConfig))
TOP_KEYS = ("preset", "data", "vocab_size", "threads", "split", "model", "train")


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run.

    data:       tuple of str          FILE[=WEIGHT]; empty for the built-in corpus
    vocab_size: int | "chars" | None  asked for; None takes the preset's, or the most the text supports
    threads:    int                   of the NumPy engine, and
    split:      int | None            the parts it cuts a batch into (None: as many as threads, or what is faster where threads was
                                      not asked for). Both are configuration because they fix the order of every sum
    model:      dict                  of ModelConfig; vocab_size is added once the tokenizer is there
    """

    preset: str
    threads: int
    train: TrainConfig
    model: dict
    data: tuple = ()
    vocab_size: int | str | None = None
    split: int | None = None

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
    chosen = preset(name)
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
    return RunConfig(name, threads, train, model, tuple(top.get("data", ())), vocab_size, split)


def to_toml(config):
    """The text of config.toml."""
    settings = {"preset": config.preset, "data": list(config.data), "threads": config.threads, "split": config.split}
    if config.vocab_size is not None:
        settings["vocab_size"] = config.vocab_size
    return tomli_w.dumps(settings | {"model": config.model, "train": dataclasses.asdict(config.train)})


def create(path, config, tokenizer):
    """Make a run's folder with its configuration and tokenizer: all of it, or nothing."""
    path = Path(path)
    making = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        checkpoint.write_text(making / "config.toml", to_toml(config))
        tokenizer.save(making / "tokenizer.model")
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


def load(path):
    """Open a trained run for use: (RunConfig, Tokenizer, params, step). Raises InputError where a part is missing or broken."""
    config = read_config(path)
    tokenizer = load_tokenizer(path)
    expected = config.model_config.vocab_size
    if tokenizer.vocab_size != expected:
        raise InputError(f"{path}: the tokenizer has {tokenizer.vocab_size} pieces, and the model a vocabulary of {expected}")
    checkpoints = checkpoint.whole(Path(path) / "checkpoints")
    if not checkpoints:
        raise InputError(f"{path} has no checkpoint yet: `train --resume --out {path}` continues it")
    newest = checkpoints[-1]
    return config, tokenizer, checkpoint.load_params(newest, config.model_config), int(newest.name[5:])
