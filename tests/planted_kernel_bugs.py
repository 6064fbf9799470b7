"""Wrong kernels, by name: one line of the real source changed. The kernel checks must reject every one.

BUGS: name -> (module of kernels/, its line, the wrong line). CHECKS: module -> a check of what a mutant of the module computes.
"""
import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from kernel_check import DEVICE, check_pair, close

import kernels
from kernels import reference
from minillama import nn, optim

RNG = np.random.default_rng(11)


def mutant(module, line, wrong, folder):
    """kernels/MODULE.py with one line changed, imported under another name; without its registration, which is the original's."""
    source = (Path(kernels.__file__).parent / f"{module}.py").read_text()
    assert source.count(line) >= 1, f"kernels/{module}.py has no {line!r} any more: the planted bug needs another line"
    path = folder / "mutant.py"
    path.write_text(source.replace(line, wrong, 1).split("@torch.library.custom_op")[0])
    spec = importlib.util.spec_from_file_location(f"kernels.{folder.name}", path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    try:
        spec.loader.exec_module(loaded)
    finally:
        del sys.modules[spec.name]
    return loaded


def rmsnorm(m):
    arrays = [RNG.standard_normal((150, 70)), RNG.standard_normal(70)]
    check_pair((m.rmsnorm_forward, m.rmsnorm_backward), (nn.rmsnorm_forward, nn.rmsnorm_backward), reference.rmsnorm_forward,
               arrays, torch.float32, ["dx", "dweight"], [1e-2])  # fmt: skip


def rope(m):
    cos, sin = nn.rope_tables(5, 6)
    tables = [torch.from_numpy(table).to(DEVICE) for table in (cos, sin)]
    check_pair((lambda x: m.rope_forward(x, *tables), m.rope_backward),
               (lambda x: nn.rope_forward(x, cos.astype(float), sin.astype(float)), nn.rope_backward),
               lambda x: reference.rope_forward(x, *tables), [RNG.standard_normal((2, 5, 3, 6))], torch.float32, ["dx"])  # fmt: skip


def swiglu(m):
    check_pair((m.swiglu_forward, m.swiglu_backward), (nn.swiglu_forward, nn.swiglu_backward), reference.swiglu_forward,
               list(RNG.standard_normal((2, 3, 1100))), torch.float32, ["dgate", "dup"])  # fmt: skip


def adamw(m):
    arrays = [*RNG.standard_normal((3, 40_000)).astype(np.float32), RNG.random(40_000, np.float32)]
    truth = [array.astype(float) for array in arrays]
    optim.clip_grad_norm(truth[1], 0.5)
    optim.adamw_step(*truth, 3, 1e-2)
    results = []
    for ops in (reference, m):
        tensors = [torch.from_numpy(array.copy()).to(DEVICE) for array in arrays]
        ops.adamw_step(*tensors, 3, 1e-2, coefficient=ops.clip_coefficient(tensors[1], 0.5)[1])
        results.append(tensors)
    for name, kernel, plain, true in zip(("param", "grad", "m", "v"), results[1], results[0], truth):
        if name != "grad":
            close(name, kernel, plain, true, torch.float32)


CHECKS = {"rmsnorm": rmsnorm, "rope": rope, "swiglu": swiglu, "adamw": adamw}

BUGS = {
    "rmsnorm: eps outside the root": ("rmsnorm", "tl.sqrt(tl.sum(x * x, 1) / D + eps)", "(tl.sqrt(tl.sum(x * x, 1) / D) + eps)"),
    "rmsnorm: mean over the padded row": ("rmsnorm", "tl.sum(x * x, 1) / D", "tl.sum(x * x, 1) / BLOCK"),
    "rmsnorm: rows beyond the end are stored": ("rmsnorm", "tl.store(rstd_ptr + row, rstd, row < N)", "tl.store(rstd_ptr + row % N, rstd)"),
    "rmsnorm: one program's share of dweight is lost": ("rmsnorm", "(row < G)[:, None]", "(row < G - 1)[:, None]"),
    "rmsnorm: mean term has the wrong sign": ("rmsnorm", "(dn - n * along[:, None])", "(dn + n * along[:, None])"),
    "rmsnorm: gain forgotten": ("rmsnorm", "dn = dout * weight[None, :]", "dn = dout"),
    "rmsnorm: dweight of the last tile only": ("rmsnorm", "dweight += dout * n", "dweight = dout * n"),
    "rope: backward turns forward": ("rope", "sin = -sin", "sin = sin"),
    "rope: pairs of halves": ("rope", "tl.split(tl.reshape(x.to(tl.float32), (HEADS, BLOCK // 2, 2)))",
                              "tl.split(tl.permute(tl.reshape(x.to(tl.float32), (HEADS, 2, BLOCK // 2)), (0, 2, 1)))"),
    "rope: every token at the first position": ("rope", "cos_ptr + time * half + pair", "cos_ptr + pair"),
    "swiglu: half of silu's derivative": ("swiglu", "(sigmoid + silu * (1.0 - sigmoid))", "sigmoid"),
    "swiglu: dup without the gate": ("swiglu", "(dout * silu)", "(dout * sigmoid)"),
    "swiglu: tail tile left out": ("swiglu", "return (N * triton.cdiv(F, block),)", "return (N * (F // block),)"),
    "adamw: eps inside the root": ("adamw", "(tl.sqrt(v) / root_correction + eps)", "tl.sqrt(v / root_correction / root_correction + eps)"),
    "adamw: no bias correction of v": ("adamw", "tl.sqrt(v) / root_correction", "tl.sqrt(v)"),
    "adamw: decay coupled to the moments": ("adamw", "beta1_rest * (grad - m)", "beta1_rest * (grad + 0.1 * param - m)"),
    "adamw: gradient not clipped": ("adamw", "grad *= coefficient", "grad *= 1.0"),
    "adamw: half of the norm": ("adamw", "tl.range(0, tl.cdiv(n, BLOCK), G", "tl.range(0, tl.cdiv(n, 2 * BLOCK), G"),
}
