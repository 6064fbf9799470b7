"""RMSNorm: rescale each token's vector to unit root-mean-square, then scale per channel.

    rms(x) = sqrt(mean_i x_i^2 + eps)        out_i = weight_i * x_i / rms(x)

Zhang & Sennrich 2019 (arXiv:1910.07467), Eq. 4; LLaMA applies it before attention, before the feed-forward and
before the output head [LLaMA §2.2]. GPU twin: kernels/rmsnorm.py. Lesson: lessons/03_rmsnorm.ipynb.
"""
import numpy as np


def rmsnorm_forward(x, weight, eps=1e-6, out=None):
    """Normalize the last axis of x.

    Args:
        x:      (..., D) float   activations, any number of leading axes
        weight: (D,)     float   per-channel gain
        eps:    float            added to the mean square (units of x**2), not to the rms
        out:    (..., D) float   optional buffer for the result

    Returns:
        out:    (..., D) same dtype as x
        cache:  (x, weight, rstd), with rstd = 1 / rms, (..., 1)
    """
    mean_square = np.vecdot(x, x)[..., None] / x.shape[-1]       # (..., 1)
    rstd = 1.0 / np.sqrt(mean_square + eps)                      # (..., 1)
    out = np.multiply(x, rstd, out=out)                          # (..., D)
    out *= weight
    return out, (x, weight, rstd)


def rmsnorm_backward(dout, cache):
    """Gradients of rmsnorm_forward. With n = x * rstd (recomputed, cheaper than caching):

        dweight_i = sum over tokens of dout_i * n_i
        dn = dout * weight
        dx = rstd * (dn - n * mean_i(dn_i * n_i))

    The second term removes the part of dn along n: rescaling x cannot change out.

    Returns:
        dx: (..., D) like x;  dweight: (D,) like weight
    """
    x, weight, rstd = cache
    D = x.shape[-1]
    n = x * rstd                                                 # (..., D)
    dweight = np.einsum("ni,ni->i", dout.reshape(-1, D), n.reshape(-1, D))  # (D,)
    dn = dout * weight                                           # (..., D)
    along = np.vecdot(dn, n)[..., None] / D                      # (..., 1)
    n *= along
    dn -= n
    dn *= rstd
    return dn, dweight
