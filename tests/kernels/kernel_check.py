"""How a kernel is judged: against float64 NumPy, with PyTorch's error in the same dtype as the measure.

    error of the kernel  <=  2 x error of kernels/reference.py  +  a few roundings of the largest value

so that the tolerance calibrates itself: a dtype that is hard for an op is hard for PyTorch too. Without CUDA the Triton
interpreter runs the kernels' real source.
"""
import numpy as np
import torch
from tolerances import KERNEL_EPS, KERNEL_FACTOR

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])  # interpreted bfloat16 is garbage

LAYOUTS = {  # the same values elsewhere in memory: what a gradient or an input may look like
    "rows swapped": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every second channel": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "half of a wider row": lambda x: torch.cat([x, x], -1)[..., :x.shape[-1]],
}


def tensors(arrays, dtype):
    """NumPy arrays (and integers, None) as tensors on the device: floats in `dtype`, integer arrays in int64."""
    def one(array):
        if not isinstance(array, np.ndarray):
            return array
        return torch.from_numpy(array).to(DEVICE, dtype if array.dtype.kind == "f" else torch.int64)

    return [one(array) for array in arrays]


def rounded(arrays, dtype):
    """The same values as `tensors`, in float64 NumPy: what the kernel really saw."""
    seen = tensors(arrays, dtype)
    return [x.double().cpu().numpy() if isinstance(x, torch.Tensor) and x.is_floating_point() else a for x, a in zip(seen, arrays)]


def close(name, kernel, reference, truth, dtype, largest=0.0):
    """Assert the 2x rule for one array. Where it is 0 everywhere in truth (dq and dk at T = 1, say: a softmax over one key is 1 whatever
    the score), it has no size of its own that rounding could be measured by: that of the op's `largest` gradient takes its place."""
    kernel, reference = (x.detach().double().cpu().numpy() for x in (kernel, reference))
    assert kernel.shape == truth.shape, f"{name}: shape must be {truth.shape}, got {kernel.shape}"
    error, allowed = np.abs(kernel - truth).max(), KERNEL_FACTOR * np.abs(reference - truth).max()
    allowed += KERNEL_EPS * torch.finfo(dtype).eps * (np.abs(truth).max() or largest)
    assert error <= allowed, f"{name}: error must be at most {allowed:.3g}, got {error:.3g}"


def check_pair(kernel, numpy, reference, arrays, dtype, gradients, scalars=(), dout=None, seed=1):
    """Check a kernel's forward and backward.

    Args:
        kernel:    (forward, backward) on tensors: forward(*arrays, *scalars) -> out, cache; backward(dout, cache) -> gradients
        numpy:     (forward, backward) of minillama.nn, or with the same signature
        reference: forward in PyTorch, differentiable
        arrays:    list of float64 and integer arrays, forward's first arguments
        gradients: names of the gradients that backward returns, one for each floating-point array, in order
        dout:      tensor -> tensor; turns the contiguous random gradient into what the kernel gets (say, another layout of the same
                   values)
    """
    inputs, seen = tensors(arrays, dtype), rounded(arrays, dtype)
    true_out, true_cache = numpy[0](*seen, *scalars)
    given = np.asarray(np.random.default_rng(seed).standard_normal(np.shape(true_out)))
    (given_tensor,), (given,) = tensors([given], dtype), rounded([given], dtype)
    true_grads = numpy[1](given, true_cache)
    true_grads = true_grads if isinstance(true_grads, tuple) else (true_grads,)

    leaves = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in inputs]
    reference_out = reference(*leaves, *scalars)
    wanted = [x for x in leaves if isinstance(x, torch.Tensor) and x.requires_grad]
    reference_grads = torch.autograd.grad(reference_out, wanted, given_tensor.to(reference_out.dtype))

    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    out, cache = kernel[0](*inputs, *scalars)
    kernel_dout = dout(given_tensor) if dout else given_tensor
    grads = [kernel[1](kernel_dout, cache) for _ in range(2)]    # twice: nothing may be used up
    first, second = (grad if isinstance(grad, tuple) else (grad,) for grad in grads)
    assert out.dtype in (dtype, torch.float32)
    close("out", out, reference_out, np.asarray(true_out), dtype)
    assert len(first) == len(gradients)
    largest = max(np.abs(grad).max() for grad in true_grads)
    for name, x, grad, again, reference_grad, true_grad in zip(gradients, wanted, first, second, reference_grads, true_grads, strict=True):
        assert grad.dtype == x.dtype, f"{name}: dtype must be {x.dtype}, got {grad.dtype}"
        assert torch.equal(grad, again), f"{name}: a second backward gives another result"
        close(name, grad, reference_grad, true_grad, dtype, largest)
    for x, unchanged in zip(inputs, before):
        assert not isinstance(x, torch.Tensor) or torch.equal(x, unchanged), "an input was modified"
