"""What the machine has, how much of it was used, and one setting that makes NumPy faster on it. Standard library only, because
it is used before NumPy is imported.

glibc gives every freed array of more than 128 KiB back to the system, so that the next one is mapped and zeroed page by page
again, which costs a fifth of a training step. Raising two thresholds (mallopt) keeps the memory for reuse, in one arena that all
threads share.
"""
import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEEP = 1 << 30  # bytes


def prepare():
    """Set both thresholds. To be called before NumPy allocates; on systems without glibc nothing happens."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((_M_MMAP_THRESHOLD, _KEEP), (_M_TRIM_THRESHOLD, _KEEP), (_M_ARENA_MAX, 1)):
            libc.mallopt(option, value)


def peak_memory():
    """The most memory this program has had resident so far, in bytes. Linux starts this count anew for every program;
    getrusage, the fallback, includes what the parent process had."""
    try:
        with open("/proc/self/status") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def default_threads():
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory():
    """Bytes of memory this machine has, or this container may use; 0 if the system does not tell."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            return min(physical, int(file.read()))
    except (OSError, ValueError):                                # no container, or one without a limit ("max")
        return physical


def has_cuda():
    """True if the CUDA driver is here and finds a GPU. The driver itself is asked: importing PyTorch to find out takes seconds."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):                            # no such library, or not that library
        return False
