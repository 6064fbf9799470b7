"""A run on the built-in text, made without a training: fresh weights twice, as two checkpoints."""
import dataclasses

import pytest

from minillama.config import PRESETS, ModelConfig
from minillama.nn import init_params
from minillama.run import checkpoint, folder
from minillama.run.config import settle
from minillama.text.corpus import SHARES, document
from minillama.text.tokenizer import Tokenizer

SHAPE = dict(dim=16, n_layers=2, n_heads=2, multiple_of=8, max_seq_len=128)


@pytest.fixture(scope="session")
def builtin_tokenizer():
    return Tokenizer.train((document(source, 1, i).text for source in SHARES for i in range(500)), 512)


@pytest.fixture(scope="session")
def builtin(tmp_path_factory, builtin_tokenizer):
    """Path of the run; checkpoints step-000001 and step-000002."""
    out = tmp_path_factory.mktemp("look") / "builtin"
    config = settle({"preset": "nano", "threads": 1, "model": SHAPE, "train": {"seq_len": 128}})
    config = dataclasses.replace(config, batch_splits=1)
    folder.create(out, config, builtin_tokenizer)
    for step in (1, 2):
        save(out, step, config.model, builtin_tokenizer)
    return out


def save(out, step, model, tokenizer, seed=0):
    params = init_params(model, seed + step, embedding_std=0.5)
    state = {"step": step, "params": params, "m": params, "v": params}
    checkpoint.save(out / "checkpoints", state, model, tokenizer.model, keep=9)


@pytest.fixture(scope="session")
def wide(tmp_path_factory, builtin_tokenizer):
    """A run in the shape of a nano with a context of 256 tokens."""
    out = tmp_path_factory.mktemp("look") / "wide"
    config = settle({"preset": "nano", "threads": 1, "model": {"max_seq_len": 256}, "train": {"seq_len": 256}})
    config = dataclasses.replace(config, batch_splits=1)
    assert config.model == ModelConfig(**PRESETS["nano"].model | {"max_seq_len": 256})
    folder.create(out, config, builtin_tokenizer)
    save(out, 1, config.model, builtin_tokenizer)
    return out
