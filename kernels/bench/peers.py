"""The contenders of the benchmark: for every kernel its inputs, our implementation and its peers, all in one form.

A contender is a pair like ours, forward(*inputs) -> outputs, cache and backward(douts, cache) -> gradients. `autograd` makes one of a
differentiable function. Builders import their package when they are called: an ImportError means that the peer is absent.

    ours            the kernels' own pairs, as the block calls them
    ours-autograd   the differentiable function over the same kernels: shows what PyTorch's dispatch costs the host
    eager           kernels/reference.py: PyTorch's own ops (attention: its default back end; adamw: clip, fused AdamW, cast)
    compile         the same under torch.compile; compile-max: with mode="max-autotune-no-cudagraphs", only on request
    liger           Liger-Kernel; its rope rotates the halves of a head, so its inputs are converted to that order, which is not timed
    torch-lce       torch.nn.functional.linear_cross_entropy, chunked (PyTorch 2.13)
    flash, cudnn, efficient   scaled_dot_product_attention with one back end only; flex: flex_attention, only on request
    flash-attn, flash-attn-3, flash-attn-4, quack, cce   packages of these names (cce without its gradient filter)
"""
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .. import reference

OPTIONAL = ("compile-max", "flex")  # slow to compile: only on request
EPS = 1e-6
STEP, LR, MAX_NORM = 100, 1e-4, 1.0  # of the optimiser
PIECE = 2048 * 5504  # the largest matrix of the 1.3B model: PyTorch's optimiser gets a list of pieces of this size

SHAPES = {  # N tokens in rows of T, dim D in H heads, hidden F, vocabulary V, parameters P
    "reference": dict(N=16384, T=2048, D=4096, F=11008, H=32, V=32000, P=1_240_000_000),
    "1.3B": dict(N=32768, T=2048, D=2048, F=5504, H=16, V=32000),
    "small": dict(N=2048, T=1024, D=1024, F=2816, H=8, V=32000, P=20_000_000),
    "odd": dict(N=16000, T=1000, D=4160, F=11000, H=65, V=32001, P=10_000_019),
    "smoke": dict(N=12, T=6, D=32, F=40, H=2, V=37, P=1003),
}
ATTENTION_SHAPES = {f"T={T // 1024}k": dict(N=16384, T=T, D=4096, H=32) for T in (1024, 2048, 4096, 8192, 16384)}


class Absent(ImportError):
    """A peer that cannot be measured here, and why."""


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
    enter:   (inputs, douts) -> its own inputs, douts: another layout, or copies if it overwrites its inputs; not timed
    leave:   (outputs, gradients) -> the same in the workload's layout, to be verified
    """

    forward: Callable
    backward: Callable
    both: Callable | None = None
    enter: Callable = _same
    leave: Callable = _same


def copies(inputs, douts):
    """`enter` for contenders that overwrite their arguments: contiguous copies."""
    return tuple(tuple(x.clone(memory_format=torch.contiguous_format) for x in group) for group in (inputs, douts))


def autograd(function, wrt, enter=_same, **options):
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

    return Contender(forward, backward, enter=leaves, **options)


def listed(value):
    """A tensor or a sequence of them as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def run(contender, inputs, douts, both=False):
    """Outputs and gradients, in the workload's layout: two tuples."""
    inputs, douts = contender.enter(inputs, douts)
    if both and contender.both:
        outputs, gradients = contender.both(douts, *inputs)
    else:
        outputs, cache = contender.forward(*inputs)
        gradients = contender.backward(douts, cache)
    return contender.leave(listed(outputs), listed(gradients))


class Workload(NamedTuple):
    """The inputs of a kernel, and the contenders that compute it.

    letters:  those of a shape that the kernel depends on
    inputs:   (shape, draw) -> tuple of tensors
    truth:    () -> Contender of PyTorch's plain ops, which also computes the exact result in float32 or float64
    builders: provider -> () -> Contender, ours first
    proof:    sizes that replace those of the shape when it is verified
    """

    letters: str
    inputs: Callable
    truth: Callable
    builders: dict
    proof: dict | None = None


def _ours(module, forward, backward, spread=_same, **options):
    """Builder of our pair. spread: gradients -> one gradient for each differentiated input."""
    def build():
        ours = importlib.import_module(f"..{module}", __package__)
        run_forward, run_backward = getattr(ours, forward), getattr(ours, backward)
        return Contender(run_forward, lambda douts, cache: spread(*listed(run_backward(*douts, cache))), **options)

    return build


def _peers(name, wrt, function, ours, liger=None, quack=None, compiled=True, **others):
    """The builders that most workloads have. ours: (module, forward, backward[, spread]); name: our differentiable function.
    liger, quack: () -> Contender; others: provider, written with _ instead of -, -> () -> Contender."""
    def differentiable():
        return autograd(getattr(importlib.import_module(f"..{ours[0]}", __package__), name), wrt)

    def compile(mode=None):
        return lambda: autograd(torch.compile(function, fullgraph=True, dynamic=False, mode=mode), wrt)

    builders = {"ours": _ours(*ours), "ours-autograd": differentiable, "eager": lambda: autograd(function, wrt)}
    if compiled:
        builders |= {"compile": compile(), "compile-max": compile("max-autotune-no-cudagraphs")}
    found = {"liger": liger, "quack": quack} | {provider.replace("_", "-"): build for provider, build in others.items()}
    return builders | {provider: build for provider, build in found.items() if build}


# ------------------------------------------------------------------------------------------------------------ norms, rope, swiglu

def _rmsnorm(x, weight):
    return reference.rmsnorm_forward(x, weight, EPS)


def _rmsnorm_workload():
    def liger():
        from liger_kernel.transformers.functional import liger_rms_norm

        return autograd(lambda x, weight: liger_rms_norm(x, weight, EPS), (0, 1), copies)

    def quack():
        from quack.rmsnorm import rmsnorm

        return autograd(lambda x, weight: rmsnorm(x, weight, eps=EPS), (0, 1))

    return Workload("ND", lambda shape, draw: (draw.normal(shape["N"], shape["D"]), draw.normal(shape["D"])),
                    lambda: autograd(_rmsnorm, (0, 1)),
                    _peers("rmsnorm", (0, 1), _rmsnorm, ("rmsnorm", "rmsnorm_forward", "rmsnorm_backward"), liger, quack))


def _add_rmsnorm(x, residual, weight):
    total = x + residual
    return reference.rmsnorm_forward(total, weight, EPS), total


def _add_rmsnorm_workload():
    def liger():
        from liger_kernel.transformers.functional import liger_fused_add_rms_norm

        return autograd(lambda x, residual, weight: liger_fused_add_rms_norm(x, residual, weight, EPS), (0, 1, 2), copies)

    def quack():
        from quack.rmsnorm import rmsnorm

        return autograd(lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=EPS, prenorm=True), (0, 1, 2))

    def inputs(shape, draw):
        N, D = shape["N"], shape["D"]
        return draw.normal(N, D), draw.normal(N, D), draw.normal(D)

    ours = ("rmsnorm", "add_rmsnorm_forward", "add_rmsnorm_backward", lambda dx, dweight: (dx, dx, dweight))
    return Workload("ND", inputs, lambda: autograd(_add_rmsnorm, (0, 1, 2)),
                    _peers("add_rmsnorm", (0, 1, 2), _add_rmsnorm, ours, liger, quack))


def halves(x):
    """Channels of each head in rotate-half order: even ones first, then odd ones. The inverse is `pairs`."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), -1)


def pairs(x):
    return torch.stack(x.chunk(2, -1), -1).flatten(-2)


def _rope_workload():
    def inputs(shape, draw):
        """q and k as they come out of the merged projection: the first 2H of 3H heads."""
        N, T, H = shape["N"], shape["T"], shape["H"]
        head_dim = shape["D"] // H
        qkv = draw.normal(N // T, T, 3 * H, head_dim)
        return qkv[:, :, :2 * H], *(table.to(draw.device) for table in reference.rope_tables(T, head_dim))

    def liger():
        from liger_kernel.transformers.functional import liger_rope

        def apart(x):
            return tuple(part.contiguous().transpose(1, 2) for part in halves(x).chunk(2, 2))  # (B, H, T, Dh) as transformers passes them

        def enter(inputs, douts):
            x, *tables = inputs
            return (*apart(x), *(torch.cat((table, table), -1)[None] for table in tables)), apart(*douts)

        def together(parts):
            return (pairs(torch.cat([part.transpose(1, 2) for part in parts], 2)),)

        return autograd(liger_rope, (0, 1), enter, leave=lambda outputs, gradients: (together(outputs), together(gradients)))

    return Workload("NTDH", inputs, lambda: autograd(reference.rope_forward, (0,)),
                    _peers("rope", (0,), reference.rope_forward, ("rope", "rope_forward", "rope_backward"), liger))


def _swiglu_workload():
    def inputs(shape, draw):
        return draw.normal(shape["N"], 2 * shape["F"]).chunk(2, -1)

    def liger():
        from liger_kernel.transformers.functional import liger_swiglu

        return autograd(liger_swiglu, (0, 1), copies)

    return Workload("NF", inputs, lambda: autograd(reference.swiglu_forward, (0, 1)),
                    _peers("swiglu", (0, 1), reference.swiglu_forward, ("swiglu", "swiglu_forward", "swiglu_backward"), liger))


# ------------------------------------------------------------------------------------------------------------ losses and embedding

def _cross_entropy(logits, targets):
    return reference.cross_entropy_forward(logits[None].float() if logits.dtype != torch.float64 else logits[None], targets)


def _cross_entropy_workload():
    def ours():
        from ..cross_entropy import cross_entropy_, cross_entropy_backward, cross_entropy_forward

        def both(douts, logits, targets):
            scale = torch.full((), 1 / len(targets), device=logits.device)
            return cross_entropy_(logits, targets, scale).sum() * scale, logits

        return Contender(cross_entropy_forward, lambda douts, cache: cross_entropy_backward(*douts, cache), both=both, enter=copies)

    def liger():
        from liger_kernel.transformers.functional import liger_cross_entropy

        return autograd(liger_cross_entropy, (0,), copies)

    def quack():
        from quack.cross_entropy import cross_entropy

        return autograd(cross_entropy, (0,))

    def inputs(shape, draw):
        return draw.normal(shape["N"], shape["V"], scale=2.0), draw.ids(shape["V"], shape["N"])

    pair = ("cross_entropy", "cross_entropy_forward", "cross_entropy_backward")
    builders = _peers("cross_entropy", (0,), _cross_entropy, pair, liger, quack)
    return Workload("NV", inputs, lambda: autograd(_cross_entropy, (0,)), builders | {"ours": ours})


def _linear_cross_entropy(x, weight, targets):
    return _cross_entropy(reference.linear_forward(x, weight), targets)


def _linear_cross_entropy_workload():
    def liger():
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return autograd(liger_fused_linear_cross_entropy, (0, 1))

    def torch_lce():
        if not hasattr(F, "linear_cross_entropy"):
            raise Absent(f"torch {torch.__version__} has no linear_cross_entropy")
        options = torch.nn.LinearCrossEntropyOptions(allow_retain_graph=True)
        return autograd(lambda x, weight, targets: F.linear_cross_entropy(x, weight, targets, options=options), (0, 1))

    def cce():
        from cut_cross_entropy import linear_cross_entropy

        return autograd(lambda *inputs: linear_cross_entropy(*inputs, filter_eps=None, impl="cce"), (0, 1))

    def inputs(shape, draw):
        N, D, V = shape["N"], shape["D"], shape["V"]
        return draw.normal(N, D), draw.normal(V, D, scale=D**-0.5), draw.ids(V, N)

    pair = ("linear_cross_entropy", "linear_cross_entropy_forward", "linear_cross_entropy_backward")
    return Workload("NDV", inputs, lambda: autograd(_linear_cross_entropy, (0, 1)),
                    _peers("linear_cross_entropy", (0, 1), _linear_cross_entropy, pair, liger, torch_lce=torch_lce, cce=cce))


def _embedding_workload():
    def liger():
        from liger_kernel.ops.experimental.embedding import LigerEmbeddingFunction

        return autograd(lambda tokens, weight: LigerEmbeddingFunction.apply(weight, tokens), (1,))

    def inputs(shape, draw):
        return draw.ids(shape["V"], 1, shape["N"]), draw.normal(shape["V"], shape["D"])

    return Workload("NDV", inputs, lambda: autograd(reference.embedding_forward, (1,)),
                    _peers("embedding", (1,), reference.embedding_forward, ("embedding", "embedding_forward", "embedding_backward"),
                           liger))


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


def _adamw_workload():
    def inputs(shape, draw):
        param, grad, m = (draw.normal(shape["P"], dtype=torch.float32, scale=scale) for scale in (0.02, 1e-3, 1e-4))
        v = draw.normal(shape["P"], dtype=torch.float32, scale=1e-3).square_()
        return param, grad, m, v, param.to(torch.bfloat16 if param.is_cuda else torch.float16)  # the interpreter has no bfloat16

    def ours():
        from ..adamw import adamw_step, clip_coefficient

        return _optimiser(clip_coefficient, adamw_step)

    def eager():
        """clip_grad_norm_, fused AdamW and the copy in lower precision, on a list of tensors, as in a usual PyTorch loop."""
        def enter(inputs, douts):
            param, grad, m, v, copy = inputs
            parts = [x.split(PIECE) for x in inputs]
            params = [piece.detach().requires_grad_() for piece in parts[0]]
            optimizer = torch.optim.AdamW(params, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True,
                                          capturable=param.is_cuda)
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

    def truth():
        return _optimiser(reference.clip_coefficient, reference.adamw_step)

    def compiled():
        functions = reference.clip_coefficient, reference.adamw_step
        return _optimiser(*(torch.compile(function, fullgraph=True, dynamic=False) for function in functions))

    return Workload("P", inputs, truth, {"ours": ours, "eager": eager, "compile": compiled}, {"P": 2**20 + 3})


def _attention_workload():
    def pinned(backend):
        def build():
            from torch.nn.attention import SDPBackend, sdpa_kernel

            def attention(q, k, v):
                with sdpa_kernel(getattr(SDPBackend, backend)):
                    return reference.attention_forward(q, k, v)

            return autograd(attention, (0, 1, 2))

        return build

    def package(module):
        def build():
            attention = importlib.import_module(module).flash_attn_func
            return autograd(lambda q, k, v: listed(attention(q, k, v, causal=True))[0], (0, 1, 2))

        return build

    def flex():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        compiled, masks = torch.compile(flex_attention, fullgraph=True, dynamic=False), {}

        def attention(q, k, v):
            T = q.shape[1]
            if T not in masks:
                masks[T] = create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device=q.device)
            return compiled(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=masks[T]).transpose(1, 2)

        return autograd(attention, (0, 1, 2))

    def inputs(shape, draw):
        N, T, H = shape["N"], shape["T"], shape["H"]
        return tuple(draw.normal(N // T, T, H, shape["D"] // H) for _ in range(3))

    backends = {name: pinned(f"{name.upper()}_ATTENTION") for name in ("flash", "cudnn", "efficient")}
    packages = {"flash_attn": package("flash_attn"), "flash_attn_3": package("flash_attn_interface"),
                "flash_attn_4": package("flash_attn.cute")}
    return Workload("NTDH", inputs, lambda: autograd(reference.attention_forward, (0, 1, 2)),
                    _peers("attention", (0, 1, 2), reference.attention_forward, ("attention", "attention_forward", "attention_backward"),
                           compiled=False, flex=flex, **backends, **packages))


WORKLOADS = {
    "rmsnorm": _rmsnorm_workload(),
    "add_rmsnorm": _add_rmsnorm_workload(),
    "rope": _rope_workload(),
    "swiglu": _swiglu_workload(),
    "cross_entropy": _cross_entropy_workload(),
    "linear_cross_entropy": _linear_cross_entropy_workload(),
    "embedding": _embedding_workload(),
    "adamw": _adamw_workload(),
    "attention": _attention_workload(),
}
PROVIDERS = list(dict.fromkeys(provider for workload in WORKLOADS.values() for provider in workload.builders))
