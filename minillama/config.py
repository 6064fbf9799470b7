"""What a model and a training run are made of: frozen dataclasses, and the presets.

Defaults are LLaMA-1's own ([LLaMA §2.2, §2.3, table 2]); a preset replaces what a laptop cannot afford. Each field's
metadata holds its help text and its limits, and the command line, the TOML files and the error messages are made of them.
"""
import dataclasses
import math
from dataclasses import dataclass

from .errors import InputError

FORMATS = {  # what a model is exported as; a module of `interop` each
    "hf": "a Hugging Face directory",
    "gguf": "one file for llama.cpp",
    "llama2c": "model.bin and tokenizer.bin for llama2.c",
    "meta": "params.json and consolidated.00.pth, as Meta's code reads them",
}
FILE_DTYPES = ("f32", "f16", "bf16")  # of exported weights: float32, float16, bfloat16
GPUS = ("a100", "h100", "h200")  # what `info` plans for; report/scale.py has their figures
ENGINES = ("auto", "numpy", "torch", "triton")  # what can compute; `engine.factory` builds them
ATTENTIONS = ("triton", "cudnn", "flash")  # what computes attention of engine triton
TRAIN_DTYPES = ("float32", "bfloat16")  # what the engines torch and triton train in
PARALLEL = ("ddp", "fsdp")  # how several processes share a training: whole parameters in each, or all of it split
MAX_INT = 2**31 - 1  # of a setting whose own limit is not lower
MAX_THREADS = 1024


def _field(default, help, low=None, high=None, above=None, paper=False):
    """A dataclass field with its help text and limits: low <= value <= high, value > above. paper: the default is the paper's own."""
    metadata = {"help": help, "low": low, "high": high, "above": above, "paper": paper}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _check_fields(config):
    """Raise InputError for the first field whose type or value is not allowed. A whole number is welcome where a number is."""
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, check_number(field.name, getattr(config, field.name), field.type, **_limits(field)))


def _limits(field):
    return {key: field.metadata[key] for key in ("low", "high", "above")}


def check_number(name, value, kind=int, low=None, high=None, above=None):
    """The value as `kind`, int or float. Raises InputError for another type, and outside low <= value <= high, value > above.
    A whole number without a `high` of its own is at most MAX_INT."""
    high = MAX_INT if kind is int and high is None else high
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        raise InputError(f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value!r:.60}")
    shown = "a number of more than 30 digits" if isinstance(value, int) and abs(value) >= 10**30 else f"{value}"
    try:
        value = kind(value)
    except OverflowError:                                        # a whole number that no float can hold
        value = math.inf
    if kind is float and not math.isfinite(value):
        raise InputError(f"{name} must be finite, got {shown}")
    for bad, rule in (
        (above is not None and value <= above, f"greater than {above}"),
        (low is not None and value < low, f"at least {low}"),
        (high is not None and value > high, f"at most {high}"),
    ):
        if bad:
            raise InputError(f"{name} must be {rule}, got {shown}")
    return value


@dataclass(frozen=True)
class EngineConfig:
    """What computes, where and in what. No part of a run: the same run goes on with another. None lets the engine choose.

    name:      one of ENGINES
    device:    of torch and triton: cpu, mps, cuda, cuda:1 ...
    dtype:     of torch and triton: one of TRAIN_DTYPES; to infer only, also float16
    attention: of triton: one of ATTENTIONS
    graphs:    of torch and triton on CUDA: False queues every kernel of a step one by one
    parallel:  of torch and triton in several processes: one of PARALLEL
    """

    name: str = "auto"
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None
    graphs: bool | None = None
    parallel: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a LLaMA. Raises InputError for a shape that cannot be built."""

    dim: int = _field(dataclasses.MISSING, "model width D, divisible by n_heads", low=2, high=2**20)
    n_layers: int = _field(dataclasses.MISSING, "number of transformer layers L", low=1, high=10_000)
    n_heads: int = _field(dataclasses.MISSING, "attention heads H; head_dim = dim / n_heads must be even (RoPE rotates pairs)", low=1)
    vocab_size: int = _field(dataclasses.MISSING, "vocabulary V; ids are stored as uint16", low=1, high=65536)
    multiple_of: int = _field(256, "hidden_dim is 2/3 * 4 * dim, rounded up to a multiple of this", low=1, high=2**20, paper=True)
    norm_eps: float = _field(1e-6, "added to the mean square in RMSNorm", low=0.0, high=1.0, paper=True)
    rope_theta: float = _field(10000.0, "base of the RoPE frequencies", above=0.0, high=1e12, paper=True)
    max_seq_len: int = _field(2048, "context: the longest sequence, in tokens (follows --seq-len)", low=1, high=2**20, paper=True)

    def __post_init__(self):
        _check_fields(self)
        if self.dim % self.n_heads:
            raise InputError(f"dim must be divisible by n_heads, got {self.dim} and {self.n_heads}")
        if self.head_dim % 2:
            raise InputError(f"head_dim must be even (RoPE rotates pairs), got dim {self.dim} / n_heads {self.n_heads} = {self.head_dim}")

    @property
    def head_dim(self):
        """Channels per head."""
        return self.dim // self.n_heads

    @property
    def hidden_dim(self):
        """Feed-forward width F: 2/3 * 4 * dim rounded up to multiple_of (11008 for dim 4096)."""
        return self.multiple_of * math.ceil(8 * self.dim // 3 / self.multiple_of)


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. Defaults are the paper's where it gives one [LLaMA §2.3]. Raises InputError for values out of range."""

    steps: int = _field(10_000, "optimiser steps", low=1)
    batch_size: int = _field(16, "rows per micro-batch", low=1, high=2**20)
    seq_len: int = _field(2048, "tokens per row, at most max_seq_len", low=1, high=2**20, paper=True)
    grad_accum_steps: int = _field(1, "micro-batches per step; their gradients are averaged by token", low=1, high=2**20)
    lr: float = _field(3e-4, "peak learning rate", above=0.0, high=1e30, paper=True)
    warmup_steps: int = _field(2000, "steps of linear warm-up from 0", low=0, paper=True)
    final_lr_fraction: float = _field(0.1, "the cosine ends at this fraction of lr", low=0.0, high=1.0, paper=True)
    beta1: float = _field(0.9, "AdamW: decay of the gradient's running mean", low=0.0, high=0.9999999, paper=True)
    beta2: float = _field(0.95, "AdamW: decay of the squared gradient's running mean", low=0.0, high=0.9999999, paper=True)
    eps: float = _field(1e-8, "AdamW: added to the root of the second moment", low=1e-30, high=1.0)
    weight_decay: float = _field(0.1, "AdamW: decoupled decay of matrices (norm gains never decay)", low=0.0, high=1e30, paper=True)
    grad_clip: float = _field(1.0, "largest global gradient norm", above=0.0, paper=True)
    val_fraction: float = _field(0.1, "share of each source held out for validation", above=0.0, high=0.5)
    eval_every: int = _field(100, "steps between evaluations", low=1)
    eval_tokens: int = _field(20_000, "validation tokens per source in an evaluation; the last one scores 50 times as many", low=1)
    save_every: int = _field(500, "steps between checkpoints", low=1)
    keep: int = _field(2, "checkpoints kept: the newest", low=1)
    embedding_std: float = _field(0.02, "standard deviation of the fresh embedding", above=0.0, high=100.0)
    init_std: float = _field(0.02, "standard deviation of all other fresh matrices; 0: of each, 1/sqrt(its inputs)", low=0.0, high=100.0)
    seed: int = _field(1337, "seed of the weights, the batches and the built-in text", low=0, high=2**63 - 1)

    def __post_init__(self):
        _check_fields(self)


@dataclass(frozen=True)
class Preset:
    """A model shape with the training settings that suit it; gpu_hours (A100-80GB), mwh and tco2eq are the paper's table 15, where it
    has one."""

    about: str
    model: dict
    train: dict
    gpu_hours: int | None = None
    train_tokens: float | None = None
    mwh: int | None = None
    tco2eq: int | None = None


def _paper(dim, n_layers, n_heads, lr, eps, tokens, gpu_hours, mwh, tco2eq, name):
    batch_tokens = 4 * 2**20
    return Preset(
        f"LLaMA-1 {name} [LLaMA table 2]",
        dict(dim=dim, n_layers=n_layers, n_heads=n_heads, vocab_size=32000, norm_eps=eps),
        dict(lr=lr, batch_size=1, grad_accum_steps=batch_tokens // 2048, seq_len=2048, steps=round(tokens / batch_tokens)),
        gpu_hours,
        tokens,
        mwh,
        tco2eq,
    )


PRESETS = {
    "nano": Preset(
        "minutes on a laptop: the default",
        dict(dim=128, n_layers=4, n_heads=4, vocab_size=512, multiple_of=8, max_seq_len=128),
        dict(steps=2400, batch_size=8, seq_len=128, lr=2e-3, warmup_steps=100, embedding_std=0.5, init_std=0, eval_every=200,
             save_every=400),
    ),
    "micro": Preset(
        "about an hour on a laptop; `info micro` estimates it for this machine",
        dict(dim=288, n_layers=6, n_heads=6, vocab_size=4096, multiple_of=32, max_seq_len=256),
        dict(steps=3000, batch_size=8, seq_len=256, lr=1e-3, warmup_steps=200, init_std=0, eval_every=250, save_every=250),
    ),
    "small": Preset(
        "for a GPU; on a processor a day or more, see `info small`",
        dict(dim=512, n_layers=10, n_heads=8, vocab_size=8192, multiple_of=32, max_seq_len=512),
        dict(steps=10_000, batch_size=16, seq_len=512, lr=6e-4, warmup_steps=500, init_std=0, eval_every=500, save_every=500),
    ),
    "7B": _paper(4096, 32, 32, 3.0e-4, 1e-6, 1.0e12, 82_432, 36, 14, "7B"),
    "13B": _paper(5120, 40, 40, 3.0e-4, 1e-6, 1.0e12, 135_168, 59, 23, "13B"),
    "33B": _paper(6656, 60, 52, 1.5e-4, 1e-6, 1.4e12, 530_432, 233, 90, "33B"),
    "65B": _paper(8192, 80, 64, 1.5e-4, 1e-5, 1.4e12, 1_022_362, 449, 173, "65B"),
}


def preset(name):
    """Look a preset up. Raises InputError with the names there are."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset must be one of {', '.join(PRESETS)}, got {name!r:.60}")
    return PRESETS[name]
