"""Settings: what a preset, a TOML file and the command line say becomes one frozen RunConfig; config.toml is its text.

    preset's values  <  --config FILE  <  flags          `settle` is the only place where one beats another
"""
import dataclasses
import tomllib
from dataclasses import dataclass, replace

from ..config import MAX_THREADS, ModelConfig, Preset, TrainConfig, check_number, preset
from ..errors import InputError
from ..files import check_name, read_bytes
from ..machine import default_threads

MODEL_KEYS = tuple(field.name for field in dataclasses.fields(ModelConfig))
TRAIN_KEYS = tuple(field.name for field in dataclasses.fields(TrainConfig))
TOP_KEYS = ("preset", "data", "vocab_size", "threads", "batch_splits", "from", "start_step", "model", "train")
IMPORTED = "imported"
MAX_TOML = 1_000_000  # bytes


@dataclass(frozen=True)
class RunConfig:
    """All settings of one run.

    model:      ModelConfig             its vocab_size is the tokenizer's as soon as there is one, the preset's before
    train:      TrainConfig
    threads:    int                     of the NumPy engine, and
    batch_splits: int | None            the sub-batches it cuts a batch into (None: to be measured). Both are configuration because
                                        they fix the order of every sum
    data:       tuple of str            FILE[=WEIGHT]; empty for the built-in corpus
    vocab_size: int | "chars" | None    asked for; None takes the preset's, or the most the text supports
    from_model: str | None              `from`: the run or the files that the first weights came from, if they are not fresh
    start_step: int                     steps that model and optimiser had taken before this run; the run's own come on top
    """

    preset: str
    model: ModelConfig
    train: TrainConfig
    threads: int
    batch_splits: int | None = None
    data: tuple = ()
    vocab_size: int | str | None = None
    from_model: str | None = None
    start_step: int = 0

    @property
    def tokens_per_step(self):
        """Tokens in the batches of one optimiser step."""
        return self.train.batch_size * self.train.grad_accum_steps * self.train.seq_len

    @property
    def last_step(self):
        """The step that the run ends with."""
        return self.start_step + self.train.steps


# ----------------------------------------------------------------------------------------------------------- asked for, and settled

def read_toml(path):
    """What a TOML file asks for: a dict with some of TOP_KEYS, its keys and the types of its sections checked. Raises InputError."""
    data = read_bytes(path, MAX_TOML)
    try:
        asked = tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:                # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{path} is not TOML: {reason}") from None
    _check_keys(asked, TOP_KEYS, str(path))
    for section, allowed in (("model", MODEL_KEYS), ("train", TRAIN_KEYS)):
        if not isinstance(asked.get(section, {}), dict):
            raise InputError(f"{path}: {section} must be a table [{section}], got {asked[section]!r:.60}")
        _check_keys(asked.get(section, {}), allowed, f"{path} [{section}]")
    return asked


def _check_keys(keys, allowed, where):
    unknown = [key for key in keys if key not in allowed]
    if unknown:
        raise InputError(f"{where} has a key {unknown[0]!r:.60} that does not exist: known are {', '.join(allowed)}")


def merged(file, flags):
    """Both dicts of what was asked for as one new one: a flag beats the file."""
    both = {**file, **flags}
    return both | {section: {**file.get(section, {}), **flags.get(section, {})} for section in ("model", "train")}


def settle(asked, base=None, start_step=0):
    """Settle every setting: what was asked for beats the preset, which beats the paper's defaults.

    Args:
        asked:      dict                  some of TOP_KEYS, see `merged`
        base:       ModelConfig | None    of the model that the run starts from: its shape, and nothing asked for may differ from it
        start_step: int                   with base: steps that its optimiser has taken, where they count on

    Returns:
        RunConfig

    Raises:
        InputError: a value out of range or of a wrong type
    """
    name = asked.get("preset", "nano")
    chosen = Preset("", {}, {}) if name == IMPORTED else preset(name)
    vocab_size = _check_vocab_size(asked.get("vocab_size"))
    train = TrainConfig(**chosen.train | asked.get("train", {}))
    shape = chosen.model | asked.get("model", {})
    if "seq_len" in asked.get("train", {}) and "max_seq_len" not in asked.get("model", {}):
        shape["max_seq_len"] = train.seq_len                     # beyond what it is trained at, a model writes noise
    if base:
        shape = _check_same_shape(asked, base)
    elif isinstance(vocab_size, int):
        shape["vocab_size"] = vocab_size
    missing = [key for key in ("dim", "n_layers", "n_heads", "vocab_size") if key not in shape]
    if missing:
        raise InputError(f"{missing[0]} is not given, and the preset {name} has none")
    model = ModelConfig(**shape)
    if train.seq_len > model.max_seq_len:
        raise InputError(f"seq_len must be at most the model's context, max_seq_len {model.max_seq_len}, got {train.seq_len}")
    threads = check_number("threads", asked.get("threads", default_threads()), low=1, high=MAX_THREADS)
    batch_splits = asked.get("batch_splits", threads if "threads" in asked else None)
    if batch_splits is not None:
        check_number("batch_splits", batch_splits, low=1, high=threads)
    data, from_model = _check_data(asked.get("data", [])), check_from(asked.get("from"))
    if from_model is None and "start_step" in asked:
        raise InputError(f"start_step is for `from`, which says whose steps they are, got {asked['start_step']!r:.60}")
    if base is None:
        start_step = check_number("start_step", asked.get("start_step", 0), low=0)
    return RunConfig(name, model, train, threads, batch_splits, data, vocab_size, from_model, start_step)


def _check_vocab_size(value):
    if value is None or value == "chars":
        return value
    if isinstance(value, str):
        raise InputError(f'vocab_size must be a whole number or "chars", got {value!r:.60}')
    return check_number("vocab_size", value)


def check_from(value):
    """The path of the model that a run starts from, None for fresh weights. Raises InputError for what is no path."""
    if value is not None and not (isinstance(value, str) and value):
        raise InputError(f"from must be the path of a model, got {value!r:.60}")
    return check_name(value) if value else None


def _check_data(data):
    if not (isinstance(data, list | tuple) and all(isinstance(entry, str) and entry for entry in data)):
        raise InputError(f'data must be a list like ["a.txt=0.35", "b.jsonl=0.65"], got {data!r:.60}')
    return tuple(map(check_name, data))


def _check_same_shape(asked, base):
    """The shape of the model that a run starts from, as a dict. Raises InputError where another one was asked for."""
    shape = dataclasses.asdict(base)
    wanted = dict(asked.get("model", {}))
    if "vocab_size" in asked:
        wanted["vocab_size"] = asked["vocab_size"]
    for name, value in wanted.items():
        if value != shape[name]:
            raise InputError(f"{flag(name)} must be the model's with --from, {shape[name]}, got {value!r:.60}")
    return shape


def resumed(asked, config, out):
    """The RunConfig that a run goes on with: its own, but for `steps`, which may grow.

    Raises:
        InputError: something else that was asked for differs from what the run was started with; both values are named
    """
    kept = settings(config)
    kept.setdefault("vocab_size", config.model.vocab_size)
    steps = asked.get("train", {}).get("steps", config.train.steps)
    if isinstance(steps, int) and steps > config.train.steps:
        asked = asked | {"train": {key: value for key, value in asked["train"].items() if key != "steps"}}
        config = replace(config, train=replace(config.train, steps=steps))
    pairs = [(key, value, kept.get(key)) for key, value in asked.items() if key not in ("model", "train")]
    pairs += [(key, value, kept[section][key]) for section in ("model", "train") for key, value in asked.get(section, {}).items()]
    for key, value, old in pairs:
        if value == old or (key == "vocab_size" and value == config.model.vocab_size):
            continue
        started = f"be left out: {out} was started without it" if old is None else f"be {_shown(old)}, with which {out} was started"
        raise InputError(f"{flag(key)} must {started}, got {_shown(value)}")
    return config


def _shown(value):
    return " ".join(value) or "the built-in text" if isinstance(value, list) else f"{value!s:.60}"


def flag(name):
    """The command line's name of a setting: --max-seq-len for max_seq_len."""
    return "--" + name.replace("_", "-")


# ---------------------------------------------------------------------------------------------------------------------- config.toml

def settings(config):
    """A RunConfig as the dict of config.toml; `settle` makes the same RunConfig of it."""
    top = {"preset": config.preset, "data": list(config.data), "threads": config.threads}
    optional = {"batch_splits": config.batch_splits, "vocab_size": config.vocab_size, "from": config.from_model}
    top |= {key: value for key, value in optional.items() if value is not None}
    if config.from_model is not None:
        top["start_step"] = config.start_step
    return top | {"model": dataclasses.asdict(config.model), "train": dataclasses.asdict(config.train)}


def to_toml(config):
    """The text of config.toml."""
    import tomli_w  # here, so that what writes no run does without it

    return tomli_w.dumps(settings(config))


def from_toml(path):
    """The RunConfig in a config.toml. Raises InputError where it is none."""
    asked = read_toml(path)
    for key in ("preset", "threads", "batch_splits", "model", "train"):
        if key not in asked:
            raise InputError(f"{path} has no {key}: it is not the configuration of a run")
    return settle(asked)
