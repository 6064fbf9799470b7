"""What experiments put in place of an op: by name, so that worker processes find it. `lessons/lab.py` patches it in.

The wrong gradients are those of tests/nn/planted_bugs.py wherever they stand there: one list for the lessons and for the tests.
"""
import numpy as np


# ---- 03: without the norm ----
def no_norm_forward(x, weight, eps=1e-6, out=None):
    """In place of RMSNorm: nothing but the gain."""
    return x * weight, (x, weight)


def no_norm_backward(dout, cache):
    x, weight = cache
    return dout * weight, (dout * x).reshape(-1, x.shape[-1]).sum(0)


# ---- 04: without positions, and with the other layout ----
def no_rope_forward(x, cos, sin):
    """In place of RoPE: nothing."""
    return x, None


def no_rope_backward(dout, cache):
    return dout


def rotate_half_forward(x, cos, sin):
    """RoPE with channel j paired with channel j + Dh/2, as Hugging Face's code does."""
    a, b = np.split(x, 2, -1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1), (cos, sin)


def rotate_half_backward(dout, cache):
    cos, sin = cache
    a, b = np.split(dout, 2, -1)
    return np.concatenate((a * cos + b * sin, b * cos - a * sin), -1)


