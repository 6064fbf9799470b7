"""Every engine has every member of the protocol, called in the same way."""
import inspect

import numpy as np
import pytest
from helpers import RECIPE

from kernels.engine import TorchEngine
from minillama.engine.numpy_engine import NumpyEngine
from minillama.engine.protocol import Engine

METHODS = [name for name, value in vars(Engine).items() if callable(value) and not name.startswith("_")]
ATTRIBUTES = list(Engine.__annotations__)


def test_the_members_are_those_that_are_used():
    assert sorted(METHODS) == ["decode", "load_state", "logits", "loss", "new_cache", "state", "train_step"]
    assert sorted(ATTRIBUTES) == ["about", "config", "name", "step"]


@pytest.mark.parametrize("kind", [NumpyEngine, TorchEngine])
def test_an_engine_has_them_all(kind, tiny):
    for name in METHODS:
        wanted, found = (list(inspect.signature(getattr(one, name)).parameters.values()) for one in (Engine, kind))
        assert [(p.name, p.default) for p in found] == [(p.name, p.default) for p in wanted], name
    engine = kind(tiny, RECIPE, threads=1, **({"device": "cpu"} if kind is TorchEngine else {}))
    assert (engine.config, engine.step) == (tiny, 0)
    assert engine.name and engine.about.startswith(engine.name)
    state = engine.state()
    assert state.keys() == {"step", "params", "m", "v"}
    assert all(array.dtype == np.float32 for key in ("params", "m", "v") for array in state[key].values())
