"""Who computes attention if nobody chose: cuDNN on the GPUs it is written for, where it covers the model; ours everywhere else."""
from contextlib import nullcontext

import pytest
import torch
from kernel_check import DEVICE

from kernels import sdpa


class OnAGPU:
    """What `default_backend` sees of a tensor on a CUDA GPU."""

    device = torch.device("cuda", 0)

    def transpose(self, *axes):
        return self


@pytest.mark.parametrize("target, covered, expected", [
    ("sm_90", True, "cudnn"), ("sm_90", False, "triton"), ("sm_80", True, "triton"), ("gfx942", True, "triton"),
])
def test_default(target, covered, expected, monkeypatch):
    monkeypatch.setattr(sdpa, "architecture", lambda q: target)
    monkeypatch.setattr(sdpa, "SDPAParams", lambda *given: given)
    monkeypatch.setattr(sdpa, "can_use_cudnn_attention", lambda given: covered)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    assert sdpa.default_backend(OnAGPU()) == expected


def test_default_on_a_processor():
    """`architecture` plans for sm_90 where there is no GPU to ask."""
    assert sdpa.default_backend(torch.zeros(1, 128, 2, 64)) == "triton"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [4, 64, 128])               # cuDNN wants a multiple of 8
@pytest.mark.parametrize("T", [2, 70, 128])
def test_the_default_covers_what_it_was_chosen_for(T, head_dim, dtype):
    backend = sdpa.default_backend(torch.zeros(1, 128, 3, head_dim, dtype=dtype, device=DEVICE))
    q, k, v = torch.randn(2, T, 9, head_dim, dtype=dtype, device=DEVICE).split(3, 2)
    out, cache = sdpa.sdpa_forward(q, k, v, backend)
    assert all(grad.isfinite().all() for grad in sdpa.sdpa_backward(out, cache))
    assert backend == "triton" or (dtype == torch.bfloat16 and head_dim != 4)
