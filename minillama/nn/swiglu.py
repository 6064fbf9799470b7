"""SwiGLU: a gate decides, channel by channel, how much of `up` passes.

    out = silu(gate) * up        silu(g) = g * sigmoid(g)

Shazeer 2020 (arXiv:2002.05202), Eq. 5-6; in LLaMA gate = w1 x, up = w3 x and the result goes through w2 (down), with
2/3 * 4 * dim hidden channels so that three matrices cost what two of width 4 * dim do [LLaMA §2.2]. GPU twin: kernels/swiglu.py.
Lesson: lessons/06_swiglu.ipynb.
"""
import numpy as np


def swiglu_forward(gate, up, out=None):
    """Gate `up` by silu(gate).

    Args:
        gate: (..., F) float    w1 x
        up:   (..., F) float    w3 x
        out:  (..., F) float    optional buffer for the result

    Returns:
        out:   (..., F) same dtype as gate
        cache: (gate, up, sigmoid), with sigmoid(gate) (..., F)
    """
    sigmoid = np.tanh(0.5 * gate)                                # sigmoid(g) = (1 + tanh(g/2)) / 2: no overflow at g = -1000
    sigmoid += 1
    sigmoid *= 0.5
    out = np.multiply(gate, sigmoid, out=out)                    # (..., F)
    out *= up
    return out, (gate, up, sigmoid)


def swiglu_backward(dout, cache):
    """Gradients of swiglu_forward. With s = sigmoid(gate):

        dup   = dout * gate * s
        dgate = dout * up * s * (1 + gate * (1 - s))

    gate acts twice in silu(g) = g * s(g), once as the factor and once inside the sigmoid, whose slope is s (1 - s).

    Returns:
        dgate: (..., F) like gate;  dup: (..., F) like up
    """
    gate, up, sigmoid = cache
    douts = dout * sigmoid                                       # (..., F)
    dup = douts * gate                                           # (..., F)
    dgate = 1 - sigmoid                                          # (..., F)
    dgate *= gate
    dgate += 1
    dgate *= up
    dgate *= douts
    return dgate, dup
