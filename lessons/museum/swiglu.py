"""What lesson 06 puts in place of SwiGLU: other gates, feed-forwards without a gate, three more wrong gradients, and a wider start.

All take what the block gives swiglu_forward, gate = w1 x and up = w3 x. A feed-forward without a gate takes no notice of `up`: its gradient
is zero, and w3 is dead weight that the text does not count.
"""
import numpy as np

from minillama import nn


# ---- activations: value and slope ----
def _relu(g):
    return np.maximum(g, 0), (g > 0).astype(g.dtype)


def _gelu(g):
    """Hendrycks & Gimpel 2016 (arXiv:1606.08415), the tanh form."""
    c, k = 0.7978845608028654, 0.044715
    t = np.tanh(c * (g + k * g * g * g))
    return 0.5 * g * (1 + t), 0.5 * (1 + t) + 0.5 * g * (1 - t * t) * c * (1 + 3 * k * g * g)


def _sigmoid(g):
    s = 0.5 * (1 + np.tanh(0.5 * g))
    return s, s * (1 - s)


def _itself(g):
    return g, np.ones_like(g)


def _gated(activation):
    """out = activation(gate) * up: forward and backward."""

    def forward(gate, up):
        value, slope = activation(gate)
        return value * up, (value, slope, up)

    def backward(dout, cache):
        value, slope, up = cache
        return dout * up * slope, dout * value

    return forward, backward


def _plain(activation):
    """out = activation(gate), and `up` is not used: forward and backward."""

    def forward(gate, up):
        value, slope = activation(gate)
        return value, slope

    def backward(dout, slope):
        return dout * slope, np.zeros_like(dout)

    return forward, backward


relu_forward, relu_backward = _plain(_relu)
gelu_forward, gelu_backward = _plain(_gelu)
glu_forward, glu_backward = _gated(_sigmoid)
reglu_forward, reglu_backward = _gated(_relu)
geglu_forward, geglu_backward = _gated(_gelu)
bilinear_forward, bilinear_backward = _gated(_itself)


def patch_of(name):
    """The patch that puts one of these in place of SwiGLU, as lab.run takes it."""
    return {f"minillama.nn.block.swiglu_{way}": f"lessons.museum.swiglu.{name}_{way}" for way in ("forward", "backward")}


# ---- three more wrong gradients of SwiGLU; lessons/museum.py has two others ----
def up_path_dropped(dout, cache):
    """`up` taken for a constant."""
    dgate, dup = nn.swiglu_backward(dout, cache)
    return dgate, np.zeros_like(dup)


def slope_of_the_sigmoid(dout, cache):
    """silu' taken for s (1 - s)."""
    gate, up, s = cache
    return dout * up * s * (1 - s), dout * gate * s


def exchanged(dout, cache):
    """dgate and dup in the wrong order."""
    return nn.swiglu_backward(dout, cache)[::-1]


# ---- another start ----
def init_fan_in(config, seed=0, dtype=np.float32, **stds):
    """In place of init_params: w1, w2 and w3 with a standard deviation of 1/sqrt(fan in) where they have 0.02."""
    params = nn.init_params(config, seed, dtype, **stds)
    for name, array in params.items():
        if name.rpartition(".")[2] in ("w1", "w2", "w3"):
            array *= array.shape[1] ** -0.5 / 0.02
    return params
