"""What every launcher shares: arguments are checked before anything runs, and a kernel runs on the device of its tensors.

That device is a CUDA GPU, or the CPU in Triton's interpreter (interpreter.py).
"""
import contextlib
from typing import NamedTuple

import numpy as np
import torch

from .interpreter import interpreted

INTERPRETED = interpreted()  # fixed at import, as in Triton itself
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MULTIPROCESSORS = 132  # of an H100 or H200: a launch is planned for this number if there is no device to ask


class Launch(NamedTuple):
    """One recorded launch: everything that is needed to compile the kernel."""

    kernel: object
    grid: tuple
    arguments: tuple
    options: dict


_recording = None  # list of Launch while `record` is active
_planned = "sm_90"  # the answer of `architecture` for a tensor that is on no GPU


@contextlib.contextmanager
def record(target="sm_90"):
    """Record launches instead of running them, so that a launcher can be called on tensors of device "meta", which have no memory.

    `kernels/aot.py` compiles exactly what the launchers would launch on a GPU of the class `target` (see `architecture`).
    """
    global _recording, _planned
    outer = _recording, _planned
    _recording, _planned = [], target
    try:
        yield _recording
    finally:
        _recording, _planned = outer


def launch(kernel, grid, *arguments, **options):
    """kernel[grid](*arguments, **options) on the device of the first tensor, whichever device is current."""
    if _recording is not None:
        _recording.append(Launch(kernel, grid, arguments, options))
        return
    device = next(argument.device for argument in arguments if isinstance(argument, torch.Tensor))
    # the interpreter computes in NumPy, which warns (of an overflow, say) where a GPU does not
    with torch.cuda.device(device) if device.type == "cuda" else np.errstate(all="ignore"):
        kernel[grid](*arguments, **options)


def multiprocessors(tensor):
    """Number of streaming multiprocessors of the tensor's device."""
    if tensor.device.type != "cuda":
        return 4 if INTERPRETED else MULTIPROCESSORS             # few programs, so that they loop in the interpreter too
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def architecture(tensor):
    """Class of the tensor's GPU, by which a launcher chooses tile sizes: "sm_90" (H100, H200, B200), "sm_80" (others) or "gfx942" (AMD)."""
    if tensor.device.type != "cuda":
        return _planned
    if torch.version.hip:
        return "gfx942"
    return "sm_90" if torch.cuda.get_device_capability(tensor.device) in ((9, 0), (10, 0), (10, 3)) else "sm_80"


def check(op, **tensors):
    """Check floating-point arguments of a kernel.

    Raises:
        ValueError: an argument is empty, has a wrong dtype, is on another device than the first, or on one where kernels cannot run
    """
    first, device = next((name, tensor.device) for name, tensor in tensors.items())
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{op}: {name} must be bfloat16, float16 or float32, got {_short(tensor.dtype)}")
        if tensor.numel() == 0:
            raise ValueError(f"{op}: {name} must hold at least one element, got shape {tuple(tensor.shape)}")
        if tensor.device != device:
            raise ValueError(f"{op}: {name} must be on the device of {first}, {device}, got {tensor.device}")
        if tensor.dtype == torch.bfloat16 and INTERPRETED:
            raise ValueError(f"{op}: {name} must be float16 or float32 in Triton's interpreter, got bfloat16")
    if _recording is None and not (device.type == "cuda" or (device.type == "cpu" and INTERPRETED)):
        raise ValueError(f"{op}: {first} must be on a CUDA device (or on the CPU with TRITON_INTERPRET=1 set), got {device}")


def check_same(op, what, **tensors):
    """Raise ValueError unless all have the same `what`: "shape" or "dtype"."""
    (first, expected), *others = ((name, getattr(tensor, what)) for name, tensor in tensors.items())
    for name, found in others:
        if found != expected:
            raise ValueError(f"{op}: {name} must have the {what} of {first}, {_short(expected)}, got {_short(found)}")


def check_shape(op, shape, **tensors):
    """Raise ValueError unless each has this shape."""
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{op}: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")


def _short(what):
    return tuple(what) if isinstance(what, torch.Size) else str(what).removeprefix("torch.")


def rows(x):
    """(..., D) -> (N, D) with contiguous channels; a copy only if the strides allow no such view."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 and x.stride(0) >= x.shape[-1] else x.contiguous()


def check_ids(op, shape, device, **tensors):
    """Check token ids or targets of a kernel, but not their values: reading them would wait for the device.

    Raises:
        ValueError: a dtype other than int64 or int32, another shape, or another device
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"{op}: {name} must be int64 or int32, got {_short(tensor.dtype)}")
        if tensor.device != device:
            raise ValueError(f"{op}: {name} must be on {device}, got {tensor.device}")
    check_shape(op, shape, **tensors)
