"""Gradient clipping by the global norm: a gradient that is too long is scaled down, its direction kept.

    norm = sqrt(sum over all parameters of g^2)        g = g * min(1, max_norm / norm)

Pascanu et al. 2013 (arXiv:1211.5063), Algorithm 1; max_norm 1.0 [LLaMA §2.3]. Lesson: lessons/10_stability.ipynb.
"""
import math

import numpy as np


def clip_grad_norm(grad, max_norm):
    """Scale a flat gradient IN PLACE so that its norm is at most max_norm.

    Args:
        grad:     (n,) float   the gradient of all parameters together
        max_norm: float

    Returns:
        norm: float, before clipping; NaN or inf if any entry is; then grad is not changed
    """
    norm = math.sqrt(np.dot(grad, grad))
    if max_norm < norm < math.inf:
        grad *= max_norm / norm
    return norm
