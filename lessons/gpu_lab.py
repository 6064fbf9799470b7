"""Lesson 15's bench: errors of the kernels against float64 NumPy, and what the compiler made of a kernel.

    errors("kernel", "float16", seed)        the project's kernels: on a GPU, or in Triton's interpreter where TRITON_INTERPRET=1 is set
    errors("PyTorch", "bfloat16", seed)      plain PyTorch under autograd (kernels/reference.py), on any machine that has it
    errors("NumPy", "bfloat16", seed)        float32 NumPy between two roundings: what a kernel does, on any machine
    machine_code(...)                        registers, shared memory and loads for a GPU that need not be there

Importing this file imports neither torch nor triton.
"""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from minillama import nn

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # from 1 to the next number
N, D, T, H, DH, V, NORM_EPS = 48, 96, 80, 2, 16, 500, 1e-5
OPS = {                                                          # output -> (longest chain in float32, roundings to the dtype)
    "RMSNorm out": (D, 1), "RMSNorm dx": (D, 1), "RMSNorm dw": (N, 1), "RoPE out": (3, 1), "SwiGLU out": (5, 1), "SwiGLU dgate": (8, 1),
    "attention out": (T, 2), "attention dq": (T, 4), "attention dv": (T, 3), "loss dlogits": (V, 1),
}
ROOT = Path(__file__).resolve().parents[1]


def rounded(array, dtype):
    """float32 array whose numbers are those of `dtype`: a bfloat16 is the upper half of a float32, to nearest, ties to even."""
    array = np.asarray(array, np.float32)
    if dtype != "bfloat16":
        return array.astype(dtype).astype(np.float32)
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def tolerance(output, dtype):
    """What (15.12) allows, of the largest value."""
    n, roundings = OPS[output]
    return roundings * EPS[dtype] / 2 + np.sqrt(n) * EPS["float32"]


def errors(who, dtype, seed, device="cpu"):
    """Largest error of every output of OPS against float64 NumPy on the same rounded inputs, over its largest value: dict."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rounded(rng.standard_normal(shape), dtype)

    x, weight, dy = draw(N, D), draw(D), draw(N, D)
    gate, up, dgated = draw(N, D), draw(N, D), draw(N, D)
    q, k, v, dattended = draw(4, 1, T, H, DH)
    logits, targets = rounded(2 * rng.standard_normal((1, 24, V)), dtype), rng.integers(0, V, (1, 24))
    tables = [table.astype(np.float32) for table in nn.rope_tables(T, DH)]
    cases = {
        "rmsnorm": ((x, weight), (NORM_EPS,), dy, ("RMSNorm out", "RMSNorm dx", "RMSNorm dw")),
        "rope": ((q,), tables, dattended, ("RoPE out",)),
        "swiglu": ((gate, up), (), dgated, ("SwiGLU out", "SwiGLU dgate")),
        "attention": ((q, k, v), (), dattended, ("attention out", "attention dq", None, "attention dv")),
        "cross_entropy": ((logits,), (targets,), np.float32(1), (None, "loss dlogits")),
    }
    found = {}
    for op, (arrays, extra, dout, names) in cases.items():
        right = _numpy(op, _wide(arrays), _wide(extra), dout)
        given = {"kernel": _kernel, "PyTorch": _pytorch, "NumPy": _emulated}[who](op, arrays, extra, dout, dtype, device)
        for name, a, b in zip(names, given, right):
            if name:
                found[name] = float(np.abs(a - b).max() / np.abs(b).max())
    return found


def _wide(arrays):
    """In float64, but ids."""
    return [a.astype(float) if a.dtype.kind == "f" else a for a in map(np.asarray, arrays)]


def _numpy(op, arrays, extra, dout):
    """out and gradients, in the precision of the arrays."""
    out, cache = getattr(nn, f"{op}_forward")(*arrays, *extra)
    gradients = getattr(nn, f"{op}_backward")(dout if op == "cross_entropy" else np.asarray(dout, arrays[0].dtype), cache)
    return [out, *(gradients if isinstance(gradients, tuple) else (gradients,))]


def _emulated(op, arrays, extra, dout, dtype, device):
    return [np.asarray(rounded(a, dtype), float) for a in _numpy(op, arrays, extra, dout)]


def _tensors(arrays, dtype, device):
    """Floating-point arrays in `dtype`, ids as they are."""
    import torch

    return [torch.tensor(a, device=device).to(getattr(torch, dtype)) if np.asarray(a).dtype.kind == "f" else torch.tensor(a, device=device)
            for a in arrays]


def _extra(extra, device):
    import torch

    return [torch.tensor(a, device=device) if isinstance(a, np.ndarray) else a for a in extra]


def _kernel(op, arrays, extra, dout, dtype, device):
    import importlib

    module = importlib.import_module(f"kernels.{op}")
    out, cache = getattr(module, f"{op}_forward")(*_tensors(arrays, dtype, device), *_extra(extra, device))
    gradients = getattr(module, f"{op}_backward")(1.0 if op == "cross_entropy" else _tensors([dout], dtype, device)[0], cache)
    return [a.double().cpu().numpy() for a in (out, *(gradients if isinstance(gradients, tuple) else (gradients,)))]


def _pytorch(op, arrays, extra, dout, dtype, device):
    import torch

    from kernels import reference

    tensors = [t.requires_grad_() for t in _tensors(arrays, dtype, device)]
    out = getattr(reference, f"{op}_forward")(*tensors, *_extra(extra, device))
    out.backward(torch.ones_like(out) if op == "cross_entropy" else _tensors([dout], dtype, device)[0])
    return [a.detach().double().cpu().numpy() for a in (out, *(t.grad for t in tensors))]


# ---- what the compiler made of it ----
WANTED = {                                                       # example of kernels.aot -> its kernels to compile
    "rmsnorm D=4096 bfloat16": ("rmsnorm_forward_kernel", "rmsnorm_backward_kernel"),
    "attention Dh=128 bfloat16": ("attention_forward_kernel",),
}


def machine_code(target="sm_90"):
    """Compile kernels for a GPU, in a process without the interpreter.

    Returns:
        (rows, ""): a dict per kernel, with the number of registers, those spilled in loops, the bytes of shared memory, and the loads
        ([], sentence): why it cannot be done here
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "lessons.gpu_lab", target]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], f"{type(error).__name__}: the compiler did not run"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return [], lines[-1] if lines else "the compiler did not run"
    return json.loads(done.stdout), ""


def _compile(target):
    """One row per kernel of WANTED, from the launches that the launchers make."""
    from kernels import aot, sass

    rows = []
    for example, wanted in WANTED.items():
        for call in aot.launches(example, target):
            if call.kernel.__name__ not in wanted:
                continue
            wanted = tuple(name for name in wanted if name != call.kernel.__name__)  # the first launch of each
            binary = aot.machine_code(call, target)
            ptx = binary.asm["ptx"]
            found = sass.look(binary)
            loads = [line.strip() for line in ptx.splitlines() if re.search(r"\bld\.global|\bcp\.async\.cg", line)]
            rows.append({
                "kernel": call.kernel.__name__, "warps": binary.metadata.num_warps, "shared": found["shared"],
                "registers": found["registers"], "spilled": found["local"], "waits": found["waits"],
                "loads": len(loads), "wide": sum(bool(re.search(r"v4\.b32|, 0x10\b|, 16\b", line)) for line in loads),
                "stores": len(re.findall(r"\bst\.global", ptx)), "products": len(re.findall(r"wgmma\.mma_async", ptx)),
                "first": loads[0] if loads else "",
            })
    return rows


if __name__ == "__main__":
    try:
        print(json.dumps(_compile(sys.argv[1])))
    except Exception as error:                                   # no triton, no assembler, another system: one line says why
        sys.exit(f"{type(error).__name__}: {error}".splitlines()[0])
