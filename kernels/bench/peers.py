"""The contenders of the benchmark: for every kernel its inputs, our implementation and its peers, all in one form.

A contender is a pair like ours, forward(*inputs) -> outputs, cache and backward(douts, cache) -> gradients. `autograd` makes one of a
differentiable function. Builders import their package when they are called: an ImportError means that the peer is absent.

    ours      the kernels' own pairs, as the block calls them
    eager     kernels/reference.py: PyTorch's own ops (attention: its default back end; adamw: clip, fused AdamW, cast)
    compile   the same under torch.compile
    liger     Liger-Kernel (not its rope, which pairs the channels of a head in another order)
    torch-lce torch.nn.functional.linear_cross_entropy, chunked (PyTorch 2.13)
    flash, cudnn   scaled_dot_product_attention with one back end only
"""
import importlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from .. import reference

EPS = 1e-6
STEP, LR, MAX_NORM = 100, 1e-4, 1.0  # of the optimiser
PIECE = 2048 * 5504  # the largest matrix of the 1.3B model: PyTorch's optimiser gets a list of pieces of this size
LIGER = "liger_kernel.transformers.functional"

SHAPES = {  # N tokens in rows of T, dim D in H heads, hidden F, vocabulary V, parameters P
    "reference": dict(N=16384, T=2048, D=4096, F=11008, H=32, V=32000, P=1_240_000_000),
    "1.3B": dict(N=32768, T=2048, D=2048, F=5504, H=16, V=32000),
    "small": dict(N=2048, T=1024, D=1024, F=2816, H=8, V=32000, P=20_000_000),
    "odd": dict(N=16000, T=1000, D=4160, F=11000, H=65, V=32001, P=10_000_019),
    "tiny": dict(N=12, T=6, D=32, F=40, H=2, V=37, P=1003),
    **{f"T={T // 1024}k": dict(N=16384, T=T, D=4096, H=32) for T in (1024, 2048, 4096, 8192, 16384)},  # of attention
}


class Draw:
    """Random tensors of one dtype on one device."""

    def __init__(self, device, dtype, seed=0):
        self.device, self.dtype = torch.device(device), dtype
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape, dtype=None, scale=1.0):
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=dtype or self.dtype).mul_(scale)

    def ids(self, high, *shape):
        return torch.randint(high, shape, generator=self.generator, device=self.device)


def _same(*arguments):
    return arguments


class Contender(NamedTuple):
    """One way to compute a workload.

    both:    (douts, *inputs) -> outputs, gradients, if it has a shorter way than forward and then backward
    enter:   (inputs, douts) -> its own inputs, douts: copies, say, if it overwrites its inputs; not timed
    """

    forward: Callable
    backward: Callable
    both: Callable | None = None
    enter: Callable = _same


def copies(inputs, douts):
    """`enter` for contenders that overwrite their arguments: contiguous copies."""
    return tuple(tuple(x.clone(memory_format=torch.contiguous_format) for x in group) for group in (inputs, douts))


def autograd(function, wrt, enter=_same):
    """A Contender of a differentiable function; wrt: positions of the inputs that get a gradient."""
    def leaves(inputs, douts):
        inputs, douts = enter(inputs, douts)
        return tuple(x.detach().requires_grad_() if i in wrt else x for i, x in enumerate(inputs)), douts

    def forward(*inputs):
        out = function(*inputs)
        return out, (out, [inputs[i] for i in wrt])

    def backward(douts, cache):
        out, differentiated = cache
        douts = [dout.to(one.dtype) for dout, one in zip(douts, listed(out), strict=True)]  # some return a loss in bfloat16
        return torch.autograd.grad(out, differentiated, douts, retain_graph=True)

    return Contender(forward, backward, enter=leaves)


def listed(value):
    """A tensor or a sequence of them as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def run(contender, inputs, douts, both=False):
    """Outputs and gradients: two tuples."""
    inputs, douts = contender.enter(inputs, douts)
    if both and contender.both:
        outputs, gradients = contender.both(douts, *inputs)
    else:
        outputs, cache = contender.forward(*inputs)
        gradients = contender.backward(douts, cache)
    return listed(outputs), listed(gradients)


class Workload(NamedTuple):
    """The inputs of a kernel, and the contenders that compute it.

    letters:  those of a shape that the kernel depends on
    inputs:   (shape, draw) -> tuple of tensors
    truth:    Contender of PyTorch's plain ops, which also computes the exact result in float32 or float64
    builders: provider -> () -> Contender, ours first
    """

    letters: str
    inputs: Callable
    truth: Contender
    builders: dict


def _workload(letters, inputs, function, wrt, ours, **peers):
    """The Workload of a differentiable function of PyTorch's ops. ours, peers: () -> Contender; a peer's _ stands for -."""
    def compiled():
        return autograd(torch.compile(function, fullgraph=True, dynamic=False), wrt)

    builders = {"ours": ours, "eager": partial(autograd, function, wrt), "compile": compiled}
    return Workload(letters, inputs, autograd(function, wrt), builders | {name.replace("_", "-"): build for name, build in peers.items()})


def _ours(module, op=None, spread=_same):
    """Builder of our pair. spread: gradients -> one gradient for each differentiated input."""
    def build():
        ours, name = importlib.import_module(f"..{module}", __package__), op or module
        forward, backward = getattr(ours, f"{name}_forward"), getattr(ours, f"{name}_backward")
        return Contender(forward, lambda douts, cache: spread(*listed(backward(*douts, cache))))

    return build


def _package(module, name, wrt, call=None, enter=_same):
    """Builder of another package's function. call: (function, *inputs) -> outputs, where the function takes more than the inputs."""
    def build():
        function = getattr(importlib.import_module(module), name, None)
        if function is None:
            raise ImportError(f"{module} has no {name} here")
        return autograd(partial(call, function) if call else function, wrt, enter)

    return build


# ------------------------------------------------------------------------------------------------------------ norms, rope, swiglu

def _rmsnorm(x, weight):
    return reference.rmsnorm_forward(x, weight, EPS)


def _add_rmsnorm(x, residual, weight):
    total = x + residual
    return reference.rmsnorm_forward(total, weight, EPS), total


def _norm_inputs(times):
    return lambda shape, draw: (*(draw.normal(shape["N"], shape["D"]) for _ in range(times)), draw.normal(shape["D"]))


def _rope_inputs(shape, draw):
    """q and k as they come out of the merged projection: the first 2H of 3H heads."""
    N, T, H = shape["N"], shape["T"], shape["H"]
    head_dim = shape["D"] // H
    qkv = draw.normal(N // T, T, 3 * H, head_dim)
    return qkv[:, :, :2 * H], *(table.to(draw.device) for table in reference.rope_tables(T, head_dim))


# ------------------------------------------------------------------------------------------------------------ losses and embedding

def _cross_entropy(logits, targets):
    return reference.cross_entropy_forward(logits[None].float() if logits.dtype != torch.float64 else logits[None], targets)


def _linear_cross_entropy(x, weight, targets):
    return _cross_entropy(reference.linear_forward(x, weight), targets)


def _our_cross_entropy():
    from ..cross_entropy import cross_entropy_, cross_entropy_backward, cross_entropy_forward

    def both(douts, logits, targets):
        scale = torch.full((), 1 / len(targets), device=logits.device)
        return cross_entropy_(logits, targets, scale).sum() * scale, logits

    return Contender(cross_entropy_forward, lambda douts, cache: cross_entropy_backward(*douts, cache), both=both, enter=copies)


# -------------------------------------------------------------------------------------------------------------- optimiser, attention

def _optimiser(clip_coefficient, adamw_step):
    """A Contender that keeps its state in the inputs, as an optimiser does: forward is the norm, backward the update IN PLACE."""
    def norm(param, grad, m, v, copy):
        norm, coefficient = clip_coefficient(grad, MAX_NORM)
        return norm, (param, grad, m, v, copy, coefficient)

    def update(douts, cache):
        param, grad, m, v, copy, coefficient = cache
        adamw_step(param, grad, m, v, STEP, LR, coefficient=coefficient, copy=copy)
        return param, m, v, copy

    return Contender(norm, update)


def _adamw_inputs(shape, draw):
    param, grad, m = (draw.normal(shape["P"], dtype=torch.float32, scale=scale) for scale in (0.02, 1e-3, 1e-4))
    v = draw.normal(shape["P"], dtype=torch.float32, scale=1e-3).square_()
    return param, grad, m, v, param.to(torch.bfloat16 if param.is_cuda else torch.float16)  # the interpreter has no bfloat16


def _our_adamw():
    from ..adamw import adamw_step, clip_coefficient

    return _optimiser(clip_coefficient, adamw_step)


def _eager_adamw():
    """clip_grad_norm_, fused AdamW and the copy in lower precision, on a list of tensors, as in a usual PyTorch loop."""
    def enter(inputs, douts):
        param, grad, m, v, copy = inputs
        parts = [x.split(PIECE) for x in inputs]
        params = [piece.detach().requires_grad_() for piece in parts[0]]
        optimizer = torch.optim.AdamW(params, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True, capturable=param.is_cuda)
        for piece, *rest in zip(params, *parts[1:4]):
            piece.grad, mean, square = rest
            step = torch.full((), STEP - 1, dtype=torch.float32, device=param.device)
            optimizer.state[piece] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        return (optimizer, params, list(parts[4]), (param, m, v, copy)), douts

    def clip(optimizer, params, rounded, state):
        norm = torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
        return norm, (optimizer, params, rounded, state)

    def step(douts, cache):
        optimizer, params, rounded, state = cache
        optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(rounded, params)
        return state

    return Contender(clip, step, enter=enter)


def _compiled_adamw():
    functions = reference.clip_coefficient, reference.adamw_step
    return _optimiser(*(torch.compile(function, fullgraph=True, dynamic=False) for function in functions))


def _pinned(backend):
    """Builder of PyTorch's attention with one back end only."""
    def build():
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def attention(q, k, v):
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return reference.attention_forward(q, k, v)

        return autograd(attention, (0, 1, 2))

    return build


def _attention_workload():
    def inputs(shape, draw):
        N, T, H = shape["N"], shape["T"], shape["H"]
        return tuple(draw.normal(N // T, T, H, shape["D"] // H) for _ in range(3))

    workload = _workload("NTDH", inputs, reference.attention_forward, (0, 1, 2), _ours("attention"), flash=_pinned("FLASH_ATTENTION"),
                         cudnn=_pinned("CUDNN_ATTENTION"))
    return workload._replace(builders={name: build for name, build in workload.builders.items() if name != "compile"})


WORKLOADS = {
    "rmsnorm": _workload(
        "ND", _norm_inputs(1), _rmsnorm, (0, 1), _ours("rmsnorm"),
        liger=_package(LIGER, "liger_rms_norm", (0, 1), lambda norm, x, weight: norm(x, weight, EPS), copies)),
    "add_rmsnorm": _workload(
        "ND", _norm_inputs(2), _add_rmsnorm, (0, 1, 2), _ours("rmsnorm", "add_rmsnorm", lambda dx, dweight: (dx, dx, dweight)),
        liger=_package(LIGER, "liger_fused_add_rms_norm", (0, 1, 2), lambda norm, *inputs: norm(*inputs, EPS), copies)),
    "rope": _workload("NTDH", _rope_inputs, reference.rope_forward, (0,), _ours("rope")),
    "swiglu": _workload("NF", lambda shape, draw: draw.normal(shape["N"], 2 * shape["F"]).chunk(2, -1), reference.swiglu_forward, (0, 1),
                        _ours("swiglu"), liger=_package(LIGER, "liger_swiglu", (0, 1), enter=copies)),
    "cross_entropy": _workload(
        "NV", lambda shape, draw: (draw.normal(shape["N"], shape["V"], scale=2.0), draw.ids(shape["V"], shape["N"])),
        _cross_entropy, (0,), _our_cross_entropy,
        liger=_package(LIGER, "liger_cross_entropy", (0,), enter=copies)),
    "linear_cross_entropy": _workload(
        "NDV", lambda shape, draw: (draw.normal(shape["N"], shape["D"]), draw.normal(shape["V"], shape["D"], scale=shape["D"]**-0.5),
                                    draw.ids(shape["V"], shape["N"])),
        _linear_cross_entropy, (0, 1), _ours("linear_cross_entropy"),
        liger=_package(LIGER, "liger_fused_linear_cross_entropy", (0, 1)),
        torch_lce=_package("torch.nn.functional", "linear_cross_entropy", (0, 1), lambda loss, *inputs: loss(
            *inputs, options=torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)))),
    "embedding": _workload(
        "NDV", lambda shape, draw: (draw.ids(shape["V"], 1, shape["N"]), draw.normal(shape["V"], shape["D"])),
        reference.embedding_forward, (1,), _ours("embedding")),
    "adamw": Workload("P", _adamw_inputs, _optimiser(reference.clip_coefficient, reference.adamw_step),
                      {"ours": _our_adamw, "eager": _eager_adamw, "compile": _compiled_adamw}),
    "attention": _attention_workload(),
}
PROVIDERS = list(dict.fromkeys(provider for workload in WORKLOADS.values() for provider in workload.builders))
