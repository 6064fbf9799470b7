"""Two switches that make NumPy fast, and must be thrown before NumPy is imported. Standard library only.

1. OpenBLAS chooses its matrix kernels by processor name, and takes 8-wide AVX2 ones on AMD processors that have 16-wide
   AVX-512. Naming the AVX-512 kernels (OPENBLAS_CORETYPE=SkylakeX) makes float32 products up to 1.8 times as fast there.
   Results stay reproducible on one machine; between kernels they differ by rounding.
2. glibc gives every freed array of more than 128 KiB back to the system, so that the next one is mapped and zeroed page by
   page again. Raising two thresholds (mallopt) keeps the memory for reuse.

A variable that is already set is respected; on other machines nothing happens.
"""
import ctypes
import os
import platform

_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEEP = 1 << 30  # bytes


def _flags():
    """This processor's vendor and feature flags, as Linux lists them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read()
    except OSError:
        return "", set()
    lines = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value for key, value in lines.items()}
    return fields.get("vendor_id", "").strip(), set(fields.get("flags", "").split())


def prepare():
    """Throw both switches. Call before the first `import numpy`."""
    vendor, flags = _flags()
    if vendor == "AuthenticAMD" and flags >= _AVX512:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((_M_MMAP_THRESHOLD, _KEEP), (_M_TRIM_THRESHOLD, _KEEP), (_M_ARENA_MAX, 1)):
            libc.mallopt(option, value)


def default_threads():
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
