"""The engine on PyTorch: plain ops on any device, or the Triton kernels; the twin of minillama.engine.numpy_engine.NumpyEngine.

What is learned is float32: the parameters, both moments and the sum of the gradients are one flat tensor each (`Arena`), so that the
optimiser needs one pass over memory. If the model computes in bfloat16, a second arena holds the rounded parameters, which the
optimiser writes in the same pass that updates the float32 ones [Micikevicius et al. 2018, arXiv:1710.03740, §3.1: master weights].
"""
import importlib.util
import math
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch

from minillama import machine
from minillama.config import TrainConfig
from minillama.engine.protocol import Diverged, StepResult, diagnosis
from minillama.errors import InputError
from minillama.nn import IGNORE, fresh_params, param_shapes
from minillama.nn.model import check_tokens

from . import reference
from .graph import Graphs
from .interpreter import interpreted
from .model import KVCache, Llama

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(kernels="reference", device=None, dtype=None, training=False):
    """Choose the device and the dtype that an engine computes with.

    Args:
        device: str | None      None is the fastest kind this machine has: cuda, mps, cpu
        dtype:  str | None      of DTYPES; None is bfloat16 on a CUDA GPU, float32 elsewhere

    Returns:
        (torch.device, torch.dtype)

    Raises:
        InputError: a device or dtype that does not exist, is not on this machine, or that the engine cannot use
    """
    if kernels == "triton":
        _check_triton()
    if device is None:
        cuda = torch.cuda.is_available() and not (kernels == "triton" and interpreted())
        device = "cuda" if cuda else "mps" if kernels == "reference" and torch.backends.mps.is_available() else "cpu"
    place = _device(device)
    if kernels == "triton" and place.type != "cuda" and not interpreted():
        raise InputError(f"device of engine triton must be a CUDA GPU, got {device}")
    if dtype is None:
        dtype = "bfloat16" if place.type == "cuda" else "float32"
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    if training and name == "float16":
        raise InputError("dtype to train in must be float32 or bfloat16, got float16: without loss scaling small gradients vanish")
    if kernels == "triton" and interpreted() and name != "float32":
        raise InputError(f"dtype must be float32 in Triton's interpreter, got {name}")
    return place, DTYPES[name]


def _check_triton():
    if importlib.util.find_spec("triton") is None:
        raise InputError("engine triton needs the package triton, which is not installed here (it exists for Linux): "
                         "--engine torch does without it")
    if not (torch.cuda.is_available() or interpreted()):
        raise InputError("engine triton needs a CUDA GPU, and PyTorch sees none: --engine torch runs on the processor, "
                         "and TRITON_INTERPRET=1 steps through the kernels there, very slowly")


def _device(name):
    """torch.device of a name, if this machine has it."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "mps", "cpu") or (device.type != "cuda" and device.index):
        raise InputError(f"device must be one of cpu, mps, cuda, cuda:1 ..., got {str(name)!r}")
    count = torch.cuda.device_count() if device.type == "cuda" else None
    if count == 0:
        raise InputError(f"device {str(name)!r} is not here: PyTorch sees no CUDA GPU")
    if count and (device.index or 0) >= count:
        raise InputError(f"device {str(name)!r} is not here: PyTorch sees {count} CUDA GPU(s), and the last is cuda:{count - 1}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {str(name)!r} is not here: PyTorch sees no Apple GPU")
    return device


class Arena:
    """The NumPy engine's Arena on a device. Matrices that multiply the same vector are next to each other, wq wk wv and w1 w3, so
    that a block can use them as one matrix: w2 comes after all others.

    flat:     (n,) tensor            matrices first, then norm gains
    matrices: int                    length of the part that decays
    views:    dict name -> tensor    each tensor, in the model's order, as a view into flat
    """

    def __init__(self, shapes, dtype, device):
        order = sorted(shapes, key=lambda name: (len(shapes[name]) == 1, name.endswith(".w2")))
        sizes = {name: math.prod(shapes[name]) for name in order}
        self.matrices = sum(size for name, size in sizes.items() if len(shapes[name]) > 1)
        self.flat = torch.zeros(sum(sizes.values()), dtype=dtype, device=device)
        parts = dict(zip(order, self.flat.split(list(sizes.values()))))
        self.views = {name: parts[name].view(shape) for name, shape in shapes.items()}

    def fill(self, arrays):
        """Copy (name, NumPy array) pairs in."""
        for name, array in arrays:
            self.views[name].copy_(torch.tensor(array))

    def numpy(self):
        """dict name -> NumPy array. On the processor they are views, as in NumpyEngine."""
        return {name: view.numpy(force=True) for name, view in self.views.items()}


class TorchEngine:
    """Engine `torch` (kernels="reference") or `triton`, in one process; parallel.py has those of several.

    threads:   processor threads, if the device is the processor
    device:    "cuda", "cuda:1", "mps", "cpu"; None takes the first of these kinds that this machine has
    dtype:     "float32" or "bfloat16", of the parameters the model computes with and of its activations; None is bfloat16 on CUDA.
               An engine that only infers may have "float16"
    attention: "triton", "cudnn" or "flash": what computes it in the Triton block; None is sdpa.default_backend's choice
    graphs:    False queues the kernels of a step one by one, on a GPU too, where they are otherwise recorded (graph.py)

    A step waits for the device once, when all its work is queued: whether the gradient is finite is decided on the device
    (`clip_coefficient`). All that changes from step to step is copied there, to tensors that stay where they are.
    """

    _inferring = staticmethod(torch.inference_mode)

    def __init__(self, model_config, train_config=None, params=None, threads=None, device=None, kernels="reference", dtype=None,
                 attention=None, graphs=None):
        """Without train_config the engine cannot train; without params it starts from fresh ones."""
        self.device, self.dtype = resolve(kernels, device, dtype, train_config is not None)
        self.name = "torch" if kernels == "reference" else "triton"
        self.config, self.recipe, self.step = model_config, train_config, 0
        self.attention = attention or (self._default_attention() if kernels == "triton" else "triton")
        if self.device.type == "cpu":
            torch.set_num_threads(threads or machine.default_threads())
        if params is None:
            recipe = train_config or TrainConfig()
            params = fresh_params(model_config, recipe.seed, embedding_std=recipe.embedding_std, std=recipe.init_std)
        else:
            params = params.items()
        size = sum(map(math.prod, param_shapes(model_config).values()))
        with self._explained(f"a model of {size:,} parameters", "choose a smaller one"):
            self._build(kernels, params)
        self._kind = type(self.model)
        cuda = self.device.type == "cuda"
        self._graphs = Graphs(self.device) if train_config and cuda and graphs is not False else None
        if train_config:
            self._optim = reference if kernels == "reference" else importlib.import_module(".adamw", __package__)
            self._batches = {}                                   # (B, T) -> tokens and targets of a micro-batch: (2, B, T) int64
            self._share, self._loss = (torch.zeros((), device=self.device) for _ in range(2))
            self._factors = torch.zeros(2, 3, device=self.device)  # of AdamW: of the matrices, of the norm gains
            self._result = torch.zeros(2, device=self.device)    # loss, norm
            self._first = True                                   # of a step's micro-batches

    def _build(self, kernels, params):
        """Allocate all that is learned, and the model that computes with it. params: (name, array) pairs."""
        shapes = param_shapes(self.config)
        self._params = Arena(shapes, torch.float32, self.device)
        self._rounded = None if self.dtype == torch.float32 else Arena(shapes, self.dtype, self.device)
        if self.recipe:
            self._grads, self._m, self._v = (Arena(shapes, torch.float32, self.device) for _ in range(3))
        self._set_params(params)
        self.model = Llama(self.config, kernels, self.attention, params=(self._rounded or self._params).views)
        self._take_gradients()

    def _take_gradients(self):
        """Let autograd hand over each gradient as soon as it is complete."""
        self.model.requires_grad_(self.recipe is not None)
        if self.recipe:
            for name, parameter in self.model.named_parameters():
                parameter.register_post_accumulate_grad_hook(self._receive(name))
            if self.name == "triton" and self.device.type == "cuda":
                self._sum_in_products()

    @property
    def about(self):
        """The engine, its device and its dtype, in words."""
        where = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"{torch.get_num_threads()} threads"
        attention = f", attention {self.attention}" if self.name == "triton" else ""
        graphs = ", CUDA graphs" if self._graphs else ""
        return f"{self.name} on {self.device} ({where}), {str(self.dtype).removeprefix('torch.')}{attention}{graphs}"

    def _default_attention(self):
        from .sdpa import default_backend

        return default_backend(torch.empty(1, 128, self.config.n_heads, self.config.head_dim, dtype=self.dtype, device=self.device))

    def _set_params(self, arrays):
        self._params.fill(arrays)
        if self._rounded:
            self._rounded.flat.copy_(self._params.flat)

    def _receive(self, name):
        """Autograd calls the function this returns as soon as a parameter's gradient is complete. It adds the gradient to the float32
        arena and frees it: summing micro-batches in bfloat16 would lose what is small beside the sum, and the gradients
        of the layers above need not stay while those below are computed."""
        def hook(parameter):
            if parameter.grad is None:                           # the product has added it already
                return
            total = self._grads.views[name]
            (total.copy_ if self._first else total.add_)(parameter.grad)
            parameter.grad = None

        return hook

    def _sum_in_products(self):
        """Let the layers' matrix products write their float32 sums into the arena themselves. A bfloat16 gradient that is written, read
        and added afterwards moves 12 bytes per parameter, and 8 if it begins the sum; this moves 8 and 4, and does not round first."""
        from .block import merged
        from .linear_cross_entropy import add_outer

        def products(layer, names, dout, x):
            total = merged(*(self._grads.views[f"layers.{layer}.{name}"] for name in names))
            add_outer(total, dout.flatten(0, -2), x.flatten(0, -2), self._first)
            return {}

        for i, layer in enumerate(self.model.layers):
            layer.block = partial(layer.block, products=partial(products, i))

    def _host(self, values, dtype=torch.int64):
        """A tensor of values for the device. From pinned memory the copy does not wait for work that is queued there."""
        return torch.tensor(values, dtype=dtype, pin_memory=self.device.type == "cuda")

    def _send(self, buffer, values):
        buffer.copy_(self._host(values, buffer.dtype), non_blocking=self.device.type == "cuda")

    def _tensor(self, array):
        """(B, T) integers on the device."""
        return self._host(array).to(self.device, non_blocking=self.device.type == "cuda")

    def train_step(self, batches, lr):
        if type(self.model) is not self._kind:
            raise InputError(f"the model of an engine must be the Llama that it made, got {type(self.model).__name__}: the engine takes "
                             "each gradient as soon as it is complete, before another process's gradient could be added")
        for tokens, _ in batches:
            check_tokens(tokens, self.config)
        total = max(sum(_scored(targets) for _, targets in batches), 1)
        batches = self._own(batches)
        r, first = self.recipe, True
        with self._explained_batch(batches):
            for tokens, targets in batches:
                shape = tuple(tokens.shape)
                if shape not in self._batches:
                    self._batches[shape] = torch.zeros(2, *shape, dtype=torch.int64, device=self.device)
                self._send(self._batches[shape], np.stack((tokens, targets)))
                self._send(self._share, _scored(targets) / total)
                self._run((shape, first), partial(self._micro_batch, self._batches[shape], first))
                first = False
            decays = r.weight_decay, 0.0                         # of the matrices, of the norm gains
            self._send(self._factors, [reference.adamw_factors(self.step + 1, lr, r.beta1, r.beta2, decay) for decay in decays])
            self._run("update", self._update)
            loss, norm = self._result.tolist()                   # the one line that waits for the device
        if not math.isfinite(loss + norm):
            raise Diverged(diagnosis(self.step + 1, loss, norm, *self._are_finite(*self._tensors()), bool))
        self.step += 1
        return StepResult(loss, norm)

    def _own(self, batches):
        """The micro-batches that this process computes."""
        return batches

    def _tensors(self):
        """Parameters and gradients by name, for the search of one that is not finite."""
        return self._params.views, self._grads.views

    def _are_finite(self, *kinds):
        """For each dict of tensors, one of bool: name -> whether all values are finite."""
        return [{name: bool(tensor.isfinite().all()) for name, tensor in tensors.items()} for tensors in kinds]

    def _run(self, key, function):
        if self._graphs:
            self._graphs.run(key, function)
        else:
            function()

    def _micro_batch(self, batch, first):
        """Forward and backward of tokens and targets (2, B, T): begins the sums of the loss and of the gradients, or adds to them."""
        self._first = first
        loss = self.model(*batch) * self._share
        loss.backward()
        (self._loss.copy_ if first else self._loss.add_)(loss.detach())

    def _update(self):
        """Clipping, and AdamW on the matrices, which decay, and on the norm gains, which do not. If the loss or the norm is not finite
        the coefficient is 0, and nothing changes."""
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                self._grads.views[name].zero_()
        norm, coefficient = self._optim.clip_coefficient(self._grads.flat, self.recipe.grad_clip)
        self._adamw(self._grads, torch.where(self._loss.isfinite(), coefficient, 0))
        torch.stack((self._loss, norm), out=self._result)

    def _adamw(self, grads, coefficient):
        r, n = self.recipe, self._params.matrices
        for part, factors in zip((slice(0, n), slice(n, None)), self._factors):
            tensors = (arena.flat[part] for arena in (self._params, grads, self._m, self._v))
            copy = self._rounded.flat[part] if self._rounded else None
            self._optim.adamw_update(*tensors, factors, r.beta1, r.beta2, r.eps, coefficient, copy)

    def loss(self, tokens, targets):
        check_tokens(tokens, self.config)
        count = _scored(targets)
        with self._explained_batch([(tokens, targets)]), self._inferring():
            return float(self.model(self._tensor(tokens), self._tensor(targets))) * count, count

    def logits(self, tokens):
        check_tokens(tokens, self.config)
        with self._inferring():
            return self.model(self._tensor(tokens)).float().numpy(force=True)

    def new_cache(self, batch_size=1, capacity=None):
        return KVCache(self.config, batch_size, capacity, self.dtype, self.device)

    def decode(self, tokens, cache):
        check_tokens(tokens, self.config, past=cache.length)
        with self._inferring():
            return self.model.decode(self._tensor(tokens), cache).float().numpy(force=True)

    def state(self):
        return {"step": self.step, "params": self._params.numpy(), "m": self._m.numpy(), "v": self._v.numpy()}

    def load_state(self, state):
        self.step = state["step"]
        self._set_params(state["params"].items())
        self._m.fill(state["m"].items())
        self._v.fill(state["v"].items())

    def _explained_batch(self, batches):
        rows, T = max((tokens.shape for tokens, _ in batches), key=math.prod)
        return self._explained(f"a batch of {rows} x {T} tokens", "lower --batch-size, and raise --grad-accum-steps by the same factor")

    @contextmanager
    def _explained(self, what, remedy):
        """Turn the errors of too little memory, and of a shape that a kernel does not cover, into one sentence each."""
        try:
            yield
        except RuntimeError as error:
            if not any(words in str(error) for words in ("out of memory", "can't allocate memory")):
                raise
            size = _memory(self.device) / 2**30
            raise InputError(f"{what} does not fit the memory of {self.device}, {size:.1f} GiB: {remedy}") from error
        except ValueError as error:
            raise InputError(f"engine {self.name} cannot compute this: {error}") from error


def _scored(targets):
    """Number of targets that count."""
    return int((targets != IGNORE).sum())


def _memory(device):
    """Bytes of memory of a device, used or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return torch.mps.recommended_max_memory() if device.type == "mps" else machine.total_memory()
