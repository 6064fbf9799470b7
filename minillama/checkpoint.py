"""Checkpoints: whole or not there, whatever stops the program.

    checkpoints/step-000500/model.safetensors                  the parameters, float32
    checkpoints/step-000500/train_state/optimizer.safetensors  both moments of every parameter: m.NAME, v.NAME
    checkpoints/step-000500/train_state/state.json             {"step": 500}
    checkpoints/latest                                         the name of the newest whole one

A checkpoint is written into a folder of another name, synced to the disk and then renamed: a rename either happened or did
not. Only safetensors are read, never pickle: loading a checkpoint cannot run code.
"""
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import InputError
from .nn import param_shapes

MODEL = "model.safetensors"
OPTIMIZER = "train_state/optimizer.safetensors"
STATE = "train_state/state.json"


def write_text(path, text):
    """Write a small file atomically: it holds the old text or the new, never a part."""
    temporary = Path(f"{path}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(folder, state, keep=2):
    """Write a checkpoint of an engine's `state()`, then delete all but the newest `keep`.

    Args:
        folder: Path     of all checkpoints of a run
        state:  dict     {"step", "params", "m", "v"}

    Returns:
        Path of the checkpoint. On any error nothing is left behind, and older checkpoints are untouched.
    """
    folder = Path(folder)
    final = folder / f"step-{state['step']:06d}"
    making = folder / f".step-{state['step']:06d}.tmp"
    shutil.rmtree(making, ignore_errors=True)
    (making / "train_state").mkdir(parents=True)
    try:
        save_file(state["params"], making / MODEL, {"format": "pt"})
        save_file({f"{kind}.{name}": tensor for kind in "mv" for name, tensor in state[kind].items()}, making / OPTIMIZER)
        (making / STATE).write_text(json.dumps({"step": state["step"]}) + "\n")
        for path in (making / MODEL, making / OPTIMIZER, making / STATE, making / "train_state", making):
            _sync(path)
        os.replace(making, final)
        _sync(folder)
    except SafetensorError as error:                             # how the library reports a full disk
        raise OSError(f"cannot write {final}: {error}") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    write_text(folder / "latest", final.name + "\n")
    for old in whole(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def whole(folder):
    """Paths of the checkpoints that were finished, oldest first."""
    if not Path(folder).is_dir():
        return []
    found = [path for path in Path(folder).iterdir() if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def _read(path, names, shapes):
    """Tensors of one file, by the given names: checked against shape, dtype and completeness before they are used."""
    try:
        with safe_open(path, framework="numpy") as file:
            keys = set(file.keys())
            missing, unknown = sorted(set(names) - keys), sorted(keys - set(names))
            if missing or unknown:
                what = f"has no tensor {missing[0]}" if missing else f"has a tensor {unknown[0]} that this model has not"
                raise InputError(f"{path} does not fit this run's config.toml: it {what}")
            for key in names:
                view = file.get_slice(key)
                if tuple(view.get_shape()) != shapes[names[key]] or view.get_dtype() != "F32":
                    found = f"{view.get_dtype()} {tuple(view.get_shape())}"
                    raise InputError(f"{path} does not fit this run's config.toml: {key} is {found}, not F32 {shapes[names[key]]}")
            return {key: file.get_tensor(key) for key in names}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the checkpoint is not whole") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}): only safetensors are read, never pickle") from None


def load_params(path, config):
    """Parameters of a checkpoint: dict name -> float32 array. Raises InputError where the file is broken or does not fit."""
    shapes = param_shapes(config)
    params = _read(Path(path) / MODEL, {name: name for name in shapes}, shapes)
    for name, tensor in params.items():
        if not np.isfinite(tensor).all():
            raise InputError(f"{Path(path) / MODEL} is broken: {name} holds values that are not finite")
    return params


def load(path, config):
    """The whole state of a checkpoint, for an engine's `load_state`. Raises InputError where it is broken or does not fit."""
    shapes = param_shapes(config)
    moments = _read(Path(path) / OPTIMIZER, {f"{kind}.{name}": name for kind in "mv" for name in shapes}, shapes)
    try:
        step = json.loads((Path(path) / STATE).read_text())["step"]
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"step is {step!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{Path(path) / STATE} is not a whole state file: {error}") from None
    return {
        "step": step,
        "params": load_params(path, config),
        "m": {name: moments[f"m.{name}"] for name in shapes},
        "v": {name: moments[f"v.{name}"] for name in shapes},
    }
