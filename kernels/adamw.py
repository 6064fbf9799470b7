"""AdamW in Triton over flat arrays, with clipping by the global norm, which stays on the device.

    norm = sqrt(sum g^2)        coefficient = min(1, max_norm / norm)        g = coefficient g
    m = beta1 m + (1 - beta1) g             v = beta2 v + (1 - beta2) g^2
    param = (1 - lr decay) param - lr m_hat / (sqrt(v_hat) + eps)

Loshchilov & Hutter 2019 (arXiv:1711.05101), Algorithm 2; Pascanu et al. 2013 (arXiv:1211.5063), Algorithm 1. Readable twins:
minillama/optim/adamw.py, clip.py. Lesson: lessons/09_adamw.ipynb.

Programs: for the norm, G programs each sum every G-th block, then one program adds the G sums and writes the norm and the
coefficient. The update has one program per BLOCK elements, which reads the coefficient from the device's memory, so that the
host never waits for the norm. If the norm is not finite the coefficient is 0, and the update then writes nothing: the
parameters stay as they were before the step.

What changes from step to step, the learning rate and the bias corrections, is three numbers. They are arguments of the launch, or lie in
the device's memory: a CUDA graph repeats the arguments of a launch, and reads memory anew (graph.py).

Roofline, in bytes per parameter: the norm 4; the update 28 (param, m, v read and written, gradient read), 30 with the bfloat16 copy.
"""
import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check, check_same, check_shape, launch, multiprocessors
from .reference import adamw_factors

BLOCK = 1024
SUMS = 1024  # at most this many partial sums, which one program adds


@triton.jit(do_not_specialize=["G"])
def square_sum_kernel(grad_ptr, sum_ptr, n, G, BLOCK: tl.constexpr):
    """sum[g] = sum of the squares in the blocks g, g + G, ..."""
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in tl.range(0, tl.cdiv(n, BLOCK), G, num_stages=3):
        index = (first + program) * BLOCK + tl.arange(0, BLOCK)
        grad = tl.load(grad_ptr + index, index < n, other=0.0).to(tl.float32)
        total += grad * grad
    tl.store(sum_ptr + program, tl.sum(total))


@triton.jit(do_not_specialize=["G"])
def clip_kernel(sum_ptr, norm_ptr, coefficient_ptr, G, max_norm, SUMS: tl.constexpr):
    index = tl.arange(0, SUMS)
    norm = tl.sqrt(tl.sum(tl.load(sum_ptr + index, index < G, other=0.0)))
    finite = norm < float("inf")                                 # false for NaN too
    tl.store(norm_ptr, norm)
    tl.store(coefficient_ptr, tl.where(finite, tl.where(norm > max_norm, max_norm / norm, 1.0), 0.0))


@triton.jit
def adamw_kernel(
    param_ptr, grad_ptr, m_ptr, v_ptr, coefficient_ptr, copy_ptr,
    lr_hat, keep, root_correction,            # of adamw_factors: floats, or pointers to them
    n, beta1_rest, beta2_rest, eps,           # beta_rest = 1 - beta
    LOAD: tl.constexpr, CLIP: tl.constexpr, COPY: tl.constexpr, BLOCK: tl.constexpr,
):
    if LOAD:
        lr_hat, keep, root_correction = tl.load(lr_hat), tl.load(keep), tl.load(root_correction)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    grad = tl.load(grad_ptr + index, inside, other=0.0).to(tl.float32)
    if CLIP:
        coefficient = tl.load(coefficient_ptr)
        grad *= coefficient
        inside = index < tl.where(coefficient > 0.0, n, 0)
    param = tl.load(param_ptr + index, inside, other=0.0)
    m = tl.load(m_ptr + index, inside, other=0.0)
    v = tl.load(v_ptr + index, inside, other=0.0)
    m += beta1_rest * (grad - m)
    v += beta2_rest * (grad * grad - v)
    param = keep * param - lr_hat * (m / (tl.sqrt(v) / root_correction + eps))
    tl.store(param_ptr + index, param, inside)
    tl.store(m_ptr + index, m, inside)
    tl.store(v_ptr + index, v, inside)
    if COPY:
        tl.store(copy_ptr + index, param.to(copy_ptr.dtype.element_ty), inside)


def _check_flat(op, **tensors):
    check(op, **tensors)
    for name, tensor in tensors.items():
        if tensor.ndim != 1 or not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} must be flat and contiguous, got shape {tuple(tensor.shape)}, strides {tensor.stride()}")


def clip_coefficient(grad, max_norm):
    """The factor that scales a gradient to a norm of at most max_norm.

    Args:
        grad:     (n,) float    the gradient of all parameters together
        max_norm: float

    Returns:
        norm, coefficient: () float32 each, on the device; the coefficient is 0 if the norm is not finite

    Raises:
        ValueError: dtype, device or layout that the kernel does not cover
    """
    _check_flat("clip_coefficient", grad=grad)
    programs = min(triton.cdiv(len(grad), BLOCK), SUMS, 4 * multiprocessors(grad))
    sums, norm, coefficient = (torch.empty(shape, dtype=torch.float32, device=grad.device) for shape in (programs, (), ()))
    launch(square_sum_kernel, (programs,), grad, sums, len(grad), programs, BLOCK=BLOCK, num_warps=4)
    launch(clip_kernel, (1,), sums, norm, coefficient, programs, float(max_norm), SUMS=SUMS, num_warps=4)
    return norm, coefficient


def adamw_step(param, grad, m, v, step, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, coefficient=None, copy=None):
    """Update param, m, v and copy IN PLACE; grad is only read. See `adamw_update`.

    Args:
        step:        int             1 for the first update
        lr:          float           learning rate of this step
    """
    adamw_update(param, grad, m, v, adamw_factors(step, lr, beta1, beta2, weight_decay), beta1, beta2, eps, coefficient, copy)


def adamw_update(param, grad, m, v, factors, beta1=0.9, beta2=0.95, eps=1e-8, coefficient=None, copy=None):
    """adamw_step with what changes from step to step made ready by `adamw_factors`, so that it may lie on the device.

    Args:
        param, m, v: (n,) float32    parameters that share one weight_decay, as one flat array, and their moments
        grad:        (n,) float
        factors:     three floats, or (3,) float32 on the device
        coefficient: () float32      optional, on the device: multiplies grad; if it is 0, nothing is written
        copy:        (n,) float      optional: receives the new parameters, rounded to its dtype

    Raises:
        ValueError: dtype, device or layout that the kernel does not cover
    """
    given = {"param": param, "grad": grad, "m": m, "v": v} | ({} if copy is None else {"copy": copy})
    _check_flat("adamw_step", **given)
    check_same("adamw_step", "shape", **given)
    for name in ("param", "m", "v"):
        if given[name].dtype != torch.float32:
            raise ValueError(f"adamw_step: {name} must be float32, got {str(given[name].dtype).removeprefix('torch.')}")
    if isinstance(factors, Tensor):
        check("adamw_step", param=param, factors=factors)
        check_shape("adamw_step", (3,), factors=factors)
    n = len(param)
    launch(adamw_kernel, (triton.cdiv(n, BLOCK),), param, grad, m, v,
           param if coefficient is None else coefficient, param if copy is None else copy,
           *factors, n, 1 - beta1, 1 - beta2, eps, LOAD=isinstance(factors, Tensor),
           CLIP=coefficient is not None, COPY=copy is not None, BLOCK=BLOCK, num_warps=8)  # 4 numbers, 16 bytes, per thread
