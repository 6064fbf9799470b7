"""PyTorch's own attention with the interface of attention.py, so that a hand-written layer can use whichever is fastest.

    "triton"  kernels/attention.py
    "cudnn"   cuDNN's fused attention, CUDA only
    "flash"   FlashAttention 2 on CUDA, PyTorch's own tiled attention on the CPU

The back end is fixed: if it does not cover the input, PyTorch raises an error instead of choosing another one. Only is_causal is used,
never a mask. The backwards of PyTorch's back ends may sum in an order that changes from run to run.
"""
import torch
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from minillama.config import ATTENTIONS

from .attention import attention_backward, attention_forward
from .launch import architecture

PINNED = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def default_backend(q):
    """The back end that a layer uses if nobody chose: "cudnn" on the GPUs it is written for, H100, H200 and B200, else "triton".

    No timing on this project's kernels decided it. Published ones did: on such a GPU cuDNN's attention does what no kernel in Triton
    has been seen to do, the exponentials of one tile while the tensor cores multiply another. "triton" stays one flag away.

    Args:
        q: (B, T, H, Dh)    T > 1, on the device and of the dtype that the layer computes with; its values are not read

    PyTorch is asked whether its cuDNN covers q: a build may have none, an old one stops at head_dim 128, and none computes in float32.
    """
    if q.device.type != "cuda" or architecture(q) != "sm_90":
        return "triton"
    q = q.transpose(1, 2)                                        # (B, H, T, Dh)
    with torch.cuda.device(q.device):                            # PyTorch looks at the current one
        return "cudnn" if can_use_cudnn_attention(SDPAParams(q, q, q, None, 0.0, True, False)) else "triton"


def sdpa_forward(q, k, v, backend):
    """Causal attention by one of ATTENTIONS.

    Args:
        q, k, v: (B, T, H, Dh) float    q and k already rotated
        backend: str

    Returns:
        out:     (B, T, H, Dh) like q, contiguous
        cache:   (backend, what it keeps): PyTorch's back ends keep an autograd graph of this one op, on detached inputs, or None
                 under torch.inference_mode, where there is no backward

    Raises:
        ValueError: a back end that does not exist, or cuDNN without CUDA
    """
    if backend == "triton":
        out, kept = attention_forward(q, k, v)
        return out, (backend, kept)
    if backend not in ATTENTIONS:
        raise ValueError(f"sdpa_forward: backend must be one of {', '.join(ATTENTIONS)}, got {backend!r}")
    if backend == "cudnn" and q.device.type != "cuda":
        raise ValueError(f"sdpa_forward: q must be on a CUDA device for the back end cudnn, got {q.device}")
    graph = not q.is_inference()
    inputs = [x.detach().requires_grad_(graph) for x in (q, k, v)]
    with torch.set_grad_enabled(graph), sdpa_kernel(PINNED[backend]):
        out = scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs), is_causal=True).transpose(1, 2)
    return out.detach().contiguous(), (backend, (inputs, out) if graph else None)


def sdpa_backward(dout, cache, out=None):
    """Gradients of sdpa_forward: dq, dk, dv (B, T, H, Dh) each; written into the three arrays `out` if given."""
    backend, kept = cache
    if backend == "triton":
        return attention_backward(dout, kept, out)
    inputs, attended = kept
    grads = torch.autograd.grad(attended, inputs, dout if dout.stride(-1) == 1 else dout.contiguous(), retain_graph=True)
    if out is None:
        return grads
    for buffer, grad in zip(out, grads, strict=True):
        buffer.copy_(grad)
    return tuple(out)
