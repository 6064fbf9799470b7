"""The engine: what a training loop, a sampler and an evaluation need of a back end, and the NumPy one.

`Engine` is the protocol. Every back end starts from the same parameters, sees the same batches and gives the same losses to
rounding, so that a checkpoint can move between them in the middle of a run. The others, `torch` and `triton`, are in
kernels/engine.py, which is imported when one of them is asked for: NumPy alone is enough to train.
"""
import importlib
import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from .config import ENGINES, TrainConfig
from .errors import InputError
from .machine import default_threads, has_cuda
from .nn import IGNORE, cross_entropy_backward, cross_entropy_forward, init_params, model_backward, model_forward, param_shapes
from .nn.decode import KVCache, model_decode
from .optim import adamw_step, clip_grad_norm

KERNELS = {"torch": "reference", "triton": "triton"}  # what kernels.engine calls them


class StepResult(NamedTuple):
    """One optimiser step: mean loss over all its scored tokens (nats/token), gradient norm before clipping."""

    loss: float
    grad_norm: float


class Diverged(InputError):
    """The loss or a gradient is no longer finite. The parameters are those of the step before."""


class Engine(Protocol):
    """One model with its optimiser. Tokens and targets are (B, T) integer arrays; targets may be IGNORE."""

    name: str
    about: str  # what computes, in words

    def train_step(self, batches, lr) -> StepResult:
        """One update from a list of (tokens, targets) micro-batches, weighted by their scored tokens. Raises Diverged."""

    def loss(self, tokens, targets) -> tuple[float, int]:
        """(sum of nats, number of scored tokens) of a batch."""

    def logits(self, tokens) -> np.ndarray:
        """(B, T, V) float32."""

    def new_cache(self, batch_size=1, capacity=None):
        """An empty key/value cache for `decode`."""

    def decode(self, tokens, cache) -> np.ndarray:
        """Logits (B, T, V) of the next T positions; advances the cache."""

    def state(self) -> dict:
        """{"step": int, "params": dict, "m": dict, "v": dict} of float32 NumPy arrays, by parameter name."""

    def load_state(self, state) -> None:
        """Continue from a `state()`, this engine's or another's."""


def diagnosis(step, loss, norm, params, grads, finite):
    """Which tensor broke first: a parameter, else the gradient nearest to the loss, where backward begins. `finite` tests one."""
    suspects = [f"parameter {name}" for name, tensor in params.items() if not finite(tensor)]
    suspects += [f"the gradient of {name}" for name, grad in reversed(grads.items()) if not finite(grad)]
    where = suspects[0] if suspects else "the gradient norm, too large for float32"
    return f"training diverged at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}; first not finite is {where}"


class Arena:
    """All tensors of one kind in one flat array, so that the optimiser runs once over memory instead of once per tensor.

    flat:     (n,) array            matrices first, then norm gains
    matrices: int                   length of the part that decays
    views:    dict name -> array    each tensor, in the model's order, as a view into flat
    """

    def __init__(self, shapes, dtype=np.float32):
        order = sorted(shapes, key=lambda name: len(shapes[name]) == 1)  # stable: the model's order within each part
        sizes = {name: int(np.prod(shapes[name])) for name in order}
        self.matrices = sum(size for name, size in sizes.items() if len(shapes[name]) > 1)
        self.flat = np.zeros(sum(sizes.values()), dtype)
        starts = dict(zip(order, np.cumsum([0, *sizes.values()])[:-1].tolist()))
        self.views = {name: self.flat[starts[name]:starts[name] + sizes[name]].reshape(shape) for name, shape in shapes.items()}

    def fill(self, tensors):
        """Copy a dict of tensors in."""
        for name, view in self.views.items():
            view[...] = tensors[name]


class NumpyEngine:
    """The reference in NumPy.

    threads: processor threads to use.
    split:   a batch is cut by rows into this many parts, worked on by as many Python threads (NumPy releases the interpreter
             lock inside its loops) with threads // split BLAS threads each. With split = threads, the default, elementwise
             work runs in parallel too, which BLAS threads alone would leave to one core; with split = 1 the matrix products
             are larger. Both fix the order of every sum: the same pair gives the same bits.
    """

    name = "numpy"

    def __init__(self, model_config, train_config=None, params=None, threads=None, split=None):
        """Without train_config the engine only infers; without params it starts from fresh ones."""
        self.config, self.recipe = model_config, train_config
        threads = threads or default_threads()
        self.split = split or threads
        self.about = f"numpy, {threads} threads, batches in {self.split} parts"
        shapes = param_shapes(model_config)
        self._params = Arena(shapes)
        if params is None:
            recipe = train_config or TrainConfig()
            params = init_params(model_config, recipe.seed, embedding_std=recipe.embedding_std)
        self._params.fill(params)
        self.params = self._params.views
        self.step = 0
        if train_config:
            self._grads, self._m, self._v = Arena(shapes), Arena(shapes), Arena(shapes)
        self._pool = ThreadPoolExecutor(self.split)
        self._blas = threadpool_limits(threads // self.split, user_api="blas")

    def _parts(self, tokens, targets):
        """Cut a batch by rows."""
        n = min(self.split, len(tokens))
        return list(zip(np.array_split(tokens, n), np.array_split(targets, n)))

    @np.errstate(over="ignore", invalid="ignore")                # train_step looks at what comes out, and says more
    def _gradient(self, part, total):
        """Loss and gradients of one part, as its share of a step that scores `total` tokens."""
        tokens, targets = part
        share = int((targets != IGNORE).sum()) / total
        logits, model_cache = model_forward(tokens, self.params, self.config)
        loss, loss_cache = cross_entropy_forward(logits, targets)
        return float(loss) * share, model_backward(cross_entropy_backward(share, loss_cache), model_cache)

    def train_step(self, batches, lr):
        total = max(sum(int((targets != IGNORE).sum()) for _, targets in batches), 1)
        grads, loss = self._grads.views, 0.0
        self._grads.flat.fill(0)
        for tokens, targets in batches:
            for part_loss, part_grads in self._pool.map(self._gradient, self._parts(tokens, targets), [total] * self.split):
                loss += part_loss
                for name, grad in part_grads.items():
                    grads[name] += grad
        norm = clip_grad_norm(self._grads.flat, self.recipe.grad_clip)
        if not np.isfinite(loss + norm):
            raise Diverged(diagnosis(self.step + 1, loss, norm, self.params, grads, lambda array: np.isfinite(array).all()))
        self.step += 1
        r, n = self.recipe, self._params.matrices
        for part, decay in ((slice(0, n), r.weight_decay), (slice(n, None), 0.0)):
            arrays = (arena.flat[part] for arena in (self._params, self._grads, self._m, self._v))
            adamw_step(*arrays, self.step, lr, r.beta1, r.beta2, r.eps, decay)
        return StepResult(loss, norm)

    def loss(self, tokens, targets):
        @np.errstate(over="ignore", invalid="ignore")
        def part_loss(part):
            loss, _ = cross_entropy_forward(model_forward(part[0], self.params, self.config)[0], part[1])
            count = int((part[1] != IGNORE).sum())
            return float(loss) * count, count

        nats, counts = zip(*self._pool.map(part_loss, self._parts(tokens, targets)))
        return sum(nats), sum(counts)

    def logits(self, tokens):
        return model_forward(tokens, self.params, self.config)[0]

    def new_cache(self, batch_size=1, capacity=None):
        return KVCache(self.config, batch_size, capacity)

    def decode(self, tokens, cache):
        return model_decode(tokens, self.params, self.config, cache)

    def state(self):
        return {"step": self.step, "params": self.params, "m": self._m.views, "v": self._v.views}

    def load_state(self, state):
        self.step = state["step"]
        for arena, key in ((self._params, "params"), (self._m, "m"), (self._v, "v")):
            arena.fill(state[key])


def resolve_engine(name, device=None, dtype=None, attention=None):
    """The name of what will compute: `auto` is the fastest this machine has. The other three mean what they mean to TorchEngine.

    Raises:
        InputError: no such engine, or not here; or it does not take what it was given
    """
    if name not in ENGINES:
        raise InputError(f"engine {name!r} does not exist: choose one of {', '.join(ENGINES)}")
    name = _fastest() if name == "auto" else name
    for flag, value, engines in (
        ("device", device, ("torch", "triton")),
        ("dtype", dtype, ("torch", "triton")),
        ("attention", attention, ("triton",)),
    ):
        if value is not None and name not in engines:
            raise InputError(f"--{flag} {value} is for the engine {' or '.join(engines)}, and the engine is {name}")
    if name != "numpy":
        _torch_engine(name).resolve(KERNELS[name], device, dtype)
    return name


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


def _torch_engine(name):
    """The module kernels.engine."""
    try:
        return importlib.import_module("kernels.engine")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise InputError(f"engine {name} needs PyTorch, which is not installed here: --engine numpy does without it") from None


def make_engine(name, model_config, train_config=None, params=None, threads=None, split=None, **options):
    """Build the engine of that name; options are device, dtype and attention, where they are not None.

    Raises:
        InputError: see `resolve_engine`
    """
    name = resolve_engine(name, **options)
    if name == "numpy":
        return NumpyEngine(model_config, train_config, params, threads, split)
    options = {key: value for key, value in options.items() if value is not None}
    return _torch_engine(name).TorchEngine(model_config, train_config, params, threads, kernels=KERNELS[name], **options)


def faster_split(model_config, train_config, threads, batch, repeats=3):
    """Measure one part per thread against one part in all: (the faster `split`, {split: seconds of a step}).

    On throw-away engines: the run that follows starts from untouched parameters.
    """
    seconds = {}
    for split in {threads, 1}:
        engine = NumpyEngine(model_config, train_config, threads=threads, split=split)
        times = []
        for _ in range(1 + repeats):                             # the first one warms up
            started = time.perf_counter()
            engine.train_step([batch], 0.0)
            times.append(time.perf_counter() - started)
        seconds[split] = min(times[1:])
    return min(seconds, key=seconds.get), seconds
