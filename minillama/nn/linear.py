"""Linear layer without bias: every projection of LLaMA is one.

    out = x @ weight.T          out_o = sum_i weight_oi * x_i

LLaMA's code has no biases; the paper does not speak of them. GPU twin: kernels/reference.py (a plain GEMM).
Lesson: lessons/02_gradients.ipynb.
"""
import numpy as np

FEW_ROWS = 4  # of x, up to which np.vecdot is faster, as in decoding: it reads weight once, in the order of memory


def linear_forward(x, weight, out=None):
    """Multiply the last axis of x by weight.

    Args:
        x:      (..., Din) float     activations
        weight: (Dout, Din) float    one row per output channel, as in torch.nn.Linear
        out:    (..., Dout) float    optional C-contiguous buffer for the result

    Returns:
        out:    (..., Dout) same dtype as x
        cache:  (x, weight)
    """
    if x.size <= FEW_ROWS * x.shape[-1]:                         # one dot product per output
        return np.vecdot(weight, x[..., None, :], out=out), (x, weight)
    rows = x.reshape(-1, x.shape[-1])                            # (N, Din): one large product instead of B small ones
    if out is not None:
        np.matmul(rows, weight.T, out=out.reshape(len(rows), -1))
        return out, (x, weight)
    return (rows @ weight.T).reshape(*x.shape[:-1], -1), (x, weight)


def linear_backward(dout, cache):
    """Gradients of linear_forward:

        dx = dout @ weight          dweight = dout.T @ x

    Each x_i reaches every output o through weight_oi, so its gradient sums over o; each weight_oi is used
    by every token, so its gradient sums over tokens.

    Returns:
        dx: (..., Din) like x;  dweight: (Dout, Din) like weight
    """
    x, weight = cache
    drows = dout.reshape(-1, dout.shape[-1])                     # (N, Dout)
    rows = x.reshape(-1, x.shape[-1])                            # (N, Din)
    dx = (drows @ weight).reshape(x.shape)                       # (..., Din)
    dweight = drows.T @ rows                                     # (Dout, Din)
    return dx, dweight
