"""Checkpoints: complete or not there, whatever stops the program. Each is a Hugging Face directory, as interop/hf.py describes it.

    checkpoints/step-000500/config.json model.safetensors tokenizer.model ...   the model: `transformers` opens it as it stands
    checkpoints/step-000500/train_state/optimizer.safetensors                   both moments of every parameter: m.NAME, v.NAME
    checkpoints/step-000500/train_state/state.json                              {"step": 500}
    checkpoints/step-000500/checksums.json                                      sha256 of both, so that a flipped bit is noticed
    checkpoints/latest                                                          the name of the newest

The moments keep the names and the row order they have in memory: nothing but minillama reads them. A model that came from elsewhere
has no train_state: its checkpoint is step 0.

Only safetensors are read, never pickle: loading a checkpoint cannot run code.
"""
import dataclasses
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import atomic, read_json, sha256, write_json, write_text
from ..interop import Model, Tensors, hf
from ..interop.model import check_shapes, finite
from ..nn import param_shapes

OPTIMIZER = "train_state/optimizer.safetensors"
STATE = "train_state/state.json"
CHECKSUMS = "checksums.json"
WHAT = {"params": "parameter", "m": "the first moment of", "v": "the second moment of"}  # of a `state()`, in words


class NotFinite(ValueError):
    """A tensor that should be saved holds NaN or infinity. The message is its name, in words."""


def save(folder, state, config, tokenizer, keep=2):
    """Write a checkpoint of an engine's `state()`, then delete all but the newest `keep`.

    Args:
        folder:    Path           of all checkpoints of a run
        state:     dict           {"step", "params", "m", "v"}
        config:    ModelConfig
        tokenizer: bytes          of the SentencePiece `.model`

    Returns:
        Path of the checkpoint. On any error nothing is left behind, and older checkpoints are untouched.

    Raises:
        NotFinite: a tensor holds NaN or infinity
    """
    folder, shapes = Path(folder), param_shapes(config)
    final = folder / f"step-{state['step']:06d}"
    params, m, v = (_Finite(kind, state) for kind in WHAT)
    with atomic(final, parents=True) as making:
        (making / "train_state").mkdir(parents=True)
        hf.fill(making, Model(config, params, tokenizer))
        moments = [(f"{kind}.{name}", shape, partial(tensors.__getitem__, name))
                   for kind, tensors in (("m", m), ("v", v)) for name, shape in shapes.items()]
        hf.write_safetensors(making / OPTIMIZER, moments)
        (making / STATE).write_text(json.dumps({"step": state["step"]}) + "\n", encoding="utf-8")
        _write_checksums(making)
    write_text(folder / "latest", final.name + "\n")
    for old in finished(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def save_model(folder, model):
    """Write a Model (see interop) that was not trained here, in the dtype it came in, as the checkpoint of step 0."""
    with atomic(Path(folder) / "step-000000", parents=True) as making:
        making.mkdir()
        hf.fill(making, model, model.dtype)
        _write_checksums(making)
    write_text(Path(folder) / "latest", "step-000000\n")


class _Finite:
    """One kind of a state's tensors. Each is looked up when it is written: it may have to be gathered from other processes first."""

    def __init__(self, kind, state):
        self.what, self.tensors = WHAT[kind], state[kind]

    def __getitem__(self, name):
        tensor = self.tensors[name]
        if not finite(tensor):
            raise NotFinite(f"{self.what} {name}")
        return tensor


def _write_checksums(folder):
    files = sorted(folder.rglob("*.safetensors"))
    write_json(folder / CHECKSUMS, {file.relative_to(folder).as_posix(): sha256(file) for file in files})


def _check(path, files):
    """Raise InputError where one of a checkpoint's files is not what was written: a single bit that flipped is enough."""
    kept = read_json(path / CHECKSUMS) if (path / CHECKSUMS).exists() else {}
    for file in files:
        if file in kept and sha256(path / file) != kept[file]:
            raise InputError(f"{path / file} is damaged: its content is no longer what was written")


def finished(folder):
    """Paths of the checkpoints that were finished, oldest first."""
    if not Path(folder).is_dir():
        return []
    found = [path for path in Path(folder).iterdir() if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(found, key=lambda path: int(path.name[5:]))


def load_params(path, config):
    """Parameters of a checkpoint: name -> float32 array, each read when it is looked up. Raises InputError where the file is broken
    or does not fit; what is not finite is found when it is read."""
    found, params, *_ = hf.read_weights(path)
    fields = [field.name for field in dataclasses.fields(config) if field.name != "multiple_of"]
    for name in (*fields, "hidden_dim"):                         # config.json holds the width, not the multiple it was rounded to
        ours, theirs = getattr(config, name), getattr(found, name)
        if ours != theirs:
            raise InputError(f"{Path(path) / 'config.json'} does not fit this run's config.toml: {name} must be {ours}, got {theirs}")
    _check(Path(path), [file.name for file in Path(path).glob("*.safetensors")])
    return params


def has_state(path):
    """True if a checkpoint has moments to continue with, and not the model alone."""
    return (Path(path) / STATE).parent.exists()


def _load_moments(path, config):
    """Both moments: (m, v), each name -> array, read when it is looked up."""
    shapes, found = param_shapes(config), hf.tensors_in(path)
    check_shapes(
        {name: shape for name, (_, shape, _) in found.items()},
        {f"{kind}.{name}": shape for kind in "mv" for name, shape in shapes.items()},
        path,
    )
    return [Tensors(shapes, lambda name, kind=kind: hf.load_tensor(path, f"{kind}.{name}"), path) for kind in "mv"]


def load(path, config):
    """The complete state of a checkpoint, for an engine's `load_state`. Raises InputError where it is broken or does not fit."""
    path = Path(path)
    params = load_params(path, config)
    if path.name == "step-000000" and not has_state(path):
        shapes = param_shapes(config)
        m, v = (Tensors(shapes, lambda name: np.zeros(shapes[name], np.float32), path) for _ in "mv")
        return {"step": 0, "params": params, "m": m, "v": v}
    m, v = _load_moments(path / OPTIMIZER, config)
    _check(path, [OPTIMIZER])
    try:
        step = json.loads((path / STATE).read_bytes())["step"]
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step must be a whole number of at least 0, got {step!r:.60}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path / STATE} is not a complete state file: {error}") from None
    return {"step": step, "params": params, "m": m, "v": v}
