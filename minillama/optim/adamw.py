"""AdamW: each parameter's step is its mean gradient divided by the root of its mean squared gradient; weight decay is applied separately.

    m = beta1 m + (1 - beta1) g                 v = beta2 v + (1 - beta2) g^2
    param = (1 - lr decay) param - lr m_hat / (sqrt(v_hat) + eps)
    m_hat = m / (1 - beta1^step)                v_hat = v / (1 - beta2^step)

m and v start at 0, and m_hat and v_hat correct the bias of that start. Loshchilov & Hutter 2019 (arXiv:1711.05101), Algorithm 2, with
beta1 0.9, beta2 0.95, eps 1e-8, decay 0.1 [LLaMA §2.3]. GPU twin: kernels/adamw.py. Lesson: lessons/09_adamw.ipynb.
"""
import math

import numpy as np

BLOCK = 1 << 15  # elements worked on at a time: five float32 arrays of this size stay in a core's cache


def adamw_step(param, grad, m, v, step, lr, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1):
    """Update param, m and v IN PLACE; grad is only read. Works in blocks, which changes nothing: every element is independent.

    Args:
        param: (n,) float    a flat array of parameters that share one weight_decay
        grad:  (n,) float    already clipped
        m, v:  (n,) float    first and second moment, zeros before step 1
        step:  int           1 for the first update
        lr:    float         learning rate of this step
        weight_decay: float  0.1 for matrices, 0 for norm gains
    """
    lr_hat = lr / (1 - beta1**step)
    root_correction = math.sqrt(1 - beta2**step)
    for start in range(0, len(param), BLOCK):
        p, g, mb, vb = (a[start:start + BLOCK] for a in (param, grad, m, v))
        scratch = g - mb
        scratch *= 1 - beta1
        mb += scratch                                            # m + (1 - beta1)(g - m)
        np.multiply(g, g, out=scratch)
        scratch -= vb
        scratch *= 1 - beta2
        vb += scratch                                            # v + (1 - beta2)(g^2 - v)
        np.sqrt(vb, out=scratch)
        scratch /= root_correction
        scratch += eps
        np.divide(mb, scratch, out=scratch)
        scratch *= lr_hat
        p *= 1 - lr * weight_decay
        p -= scratch
