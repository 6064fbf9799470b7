"""Builds the engine that was asked for. `torch` and `triton` live in the folder kernels, which is looked up only when one of them
is asked for: NumPy alone is enough to train.
"""
import importlib
import importlib.util
from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path

from ..config import ENGINES
from ..errors import InputError
from ..machine import has_cuda
from .numpy_engine import NumpyEngine

KERNELS = {"torch": "reference", "triton": "triton"}  # what kernels.engine calls them


def resolve_engine(engine):
    """The EngineConfig with the name of what will compute: `auto` is the fastest this machine has.

    Raises:
        InputError: no such engine, or not here; or it does not take what it was given
    """
    if engine.name not in ENGINES:
        raise InputError(f"engine must be one of {', '.join(ENGINES)}, got {engine.name!r}")
    name = _fastest() if engine.name == "auto" else engine.name
    if engine.parallel and name == "numpy":
        if engine.name == "numpy":
            raise InputError("the engine numpy trains in one process: under torchrun --engine must be torch or triton, got numpy")
        name = "torch"                                           # on the processors
    for flag, engines in (("device", ("torch", "triton")), ("dtype", ("torch", "triton")), ("attention", ("triton",))):
        value = getattr(engine, flag)
        if value is not None and name not in engines:
            raise InputError(f"--{flag} {value} is for the engine {' or '.join(engines)}, and the engine is {name}")
    device = None
    if name != "numpy":
        device, _ = _torch_engine(name).resolve(KERNELS[name], engine.device, engine.dtype)
    if engine.graphs is not None and engine.parallel:
        raise InputError("--no-graphs is for one process: several train without CUDA graphs")
    if engine.graphs is not None and (device is None or device.type != "cuda"):
        raise InputError("--no-graphs is for the engines torch and triton on a CUDA GPU, and the engine is "
                         f"{name}{'' if device is None else f' on {device}'}")
    return replace(engine, name=name)


def _fastest():
    """PyTorch is asked only where there is a GPU: its import takes seconds."""
    if not has_cuda():
        return "numpy"
    try:
        import torch
    except (ImportError, OSError):                               # OSError: a library of its own that it cannot load
        return "numpy"
    if not torch.cuda.is_available():
        return "numpy"
    return "triton" if importlib.util.find_spec("triton") else "torch"


def kernels_module(name):
    """A module of the folder kernels. In a checkout it is a package beside minillama; installed, it is minillama.kernels, because the
    name `kernels` belongs to another package of the Python index.

    Raises:
        ModuleNotFoundError: it is not here
    """
    found, ours = PathFinder.find_spec("kernels"), Path(__file__).parents[2] / "kernels" / "__init__.py"
    package = "kernels" if found and found.origin == str(ours) else "minillama.kernels"
    return importlib.import_module(f"{package}.{name}")


def _torch_engine(name):
    try:
        return kernels_module("engine")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError(f"engine {name} needs PyTorch, which is not installed here: --engine numpy does without it") from None


def make_engine(engine, model_config, train_config=None, params=None, threads=None, batch_splits=None, world=None):
    """Build an engine.

    Args:
        engine:       EngineConfig
        model_config: ModelConfig
        train_config: TrainConfig | None    without it the engine only infers
        params:       mapping | None        name -> array; None: fresh ones
        threads:      int | None            processor threads, where the processor computes; None: all cores
        batch_splits: int | None            of the NumPy engine
        world:        World                 the processes that train together, where engine.parallel says how

    Raises:
        InputError: see `resolve_engine`
    """
    engine = resolve_engine(engine)
    if engine.name == "numpy":
        return NumpyEngine(model_config, train_config, params, threads, batch_splits)
    options = {key: value for key in ("device", "dtype", "attention", "graphs") if (value := getattr(engine, key)) is not None}
    options["kernels"] = KERNELS[engine.name]
    if engine.parallel:
        return kernels_module("parallel").ENGINES[engine.parallel](world, model_config, train_config, params, threads, **options)
    return _torch_engine(engine.name).TorchEngine(model_config, train_config, params, threads, **options)
