"""RoPE: rotate each pair of channels by an angle proportional to the position.

    angle(t, j) = t * theta^(-2j / Dh)                 j = 0 .. Dh/2 - 1, radians
    [out_2j  ]   [cos -sin] [x_2j  ]
    [out_2j+1] = [sin  cos] [x_2j+1]                   of angle(t, j)

A rotated q at position m and a rotated k at position n give a score that depends on m - n alone.
Su et al. 2021 (arXiv:2104.09864), Eq. 15 and 34; LLaMA rotates q and k, in every layer, with theta 10000 and adjacent
pairs [LLaMA §2.2]. GPU twin: kernels/rope.py. Lesson: lessons/04_rope.ipynb.
"""
import numpy as np


def rope_tables(T, head_dim, theta=10000.0, dtype=np.float32):
    """cos and sin of every angle, computed in float64 and rounded once.

    Args:
        T:        int      positions 0 .. T-1
        head_dim: int      even
        theta:    float    base of the frequencies
        dtype:    float dtype of the tables

    Returns:
        cos, sin: (T, Dh/2) each
    """
    frequencies = theta ** (-np.arange(0, head_dim, 2) / head_dim)  # (Dh/2,) radians per position
    angles = np.outer(np.arange(T), frequencies)                 # (T, Dh/2)
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def _rotate(x, cos, sin):
    """Rotate the pairs of x. A pair (a, b) is the complex number a + ib, and turning it by an angle is
    multiplying by cos + i sin: the 2x2 matrix of the equation above, without splitting x in two."""
    turn = (cos + 1j * sin)[:, None, :]                          # (T, 1, Dh/2)
    pairs = np.ascontiguousarray(x).view(turn.dtype)             # (B, T, H, Dh/2)
    return (pairs * turn).view(x.dtype)                          # (B, T, H, Dh)


def rope_forward(x, cos, sin):
    """Rotate the pairs (x0, x1), (x2, x3), ... of every head.

    Args:
        x:        (B, T, H, Dh) float   queries or keys
        cos, sin: (T, Dh/2) float       rows of rope_tables for x's positions

    Returns:
        out:      (B, T, H, Dh) same dtype as x
        cache:    (cos, sin)
    """
    return _rotate(x, cos, sin), (cos, sin)


def rope_backward(dout, cache):
    """Gradient of rope_forward: dx is dout rotated by minus the angle.

    A rotation's transpose is its inverse, and the backward of a linear map is its transpose.

    Returns:
        dx: (B, T, H, Dh) like x
    """
    cos, sin = cache
    return _rotate(dout, cos, -sin)
