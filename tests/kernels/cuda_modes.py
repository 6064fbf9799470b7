"""What PyTorch warns of on CUDA in a few tests, ignored there and nowhere else; and a mode of the device that ends with its test."""
import warnings
from contextlib import contextmanager

import pytest
import torch

PROTOTYPE = "Synchronization debug mode is a prototype feature"
quiet_inductor = pytest.mark.filterwarnings(                     # for a test that compiles with it
    "ignore:TensorFloat32 tensor cores for float32 matrix multiplication available:UserWarning",  # tolerances are those of float32
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # its own import uses it


@contextmanager
def waiting(mode):
    """mode "warn" or "error": what PyTorch does where the host waits for the device. The first change of mode in a process warns
    when it is done, so an error made of that warning would leave the mode behind."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        _set(mode)
        yield
    finally:
        _set(before)


def _set(mode):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", PROTOTYPE, UserWarning)
        torch.cuda.set_sync_debug_mode(mode)
