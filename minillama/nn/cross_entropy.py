"""Cross-entropy: the mean surprise, in nats, at the token that really came next.

    loss = mean over tokens of  ln(sum_v exp(logits_v)) - logits_target

Softmax and logarithm in one step, so that nothing overflows and equal logits cost exactly ln V. It is never below the
entropy of the text (lessons/00_baselines.ipynb). GPU twins: kernels/cross_entropy.py, kernels/linear_cross_entropy.py.
"""
import numpy as np

IGNORE = -1  # a target that is not scored: padding


def cross_entropy_forward(logits, targets):
    """Mean loss over the scored tokens.

    Args:
        logits:  (B, T, V) float
        targets: (B, T) int      ids in [0, V), or IGNORE (-1) for a position that is not scored

    Returns:
        loss:    () same dtype as logits, nats/token; 0 if no token is scored
        cache:   (probs, targets), with probs = softmax(logits) (B, T, V)
    """
    peak = logits.max(-1, keepdims=True)                         # (B, T, 1)
    probs = np.subtract(logits, peak)                            # (B, T, V)
    np.exp(probs, out=probs)
    total = probs.sum(-1, keepdims=True)                         # (B, T, 1)
    probs /= total
    scored = targets != IGNORE                                   # (B, T)
    target_logits = np.take_along_axis(logits, np.where(scored, targets, 0)[..., None], -1)  # (B, T, 1)
    nats = (np.log(total) - (target_logits - peak))[..., 0]      # (B, T); both terms are small: exact for logits of any size
    loss = (nats * scored).sum(dtype=logits.dtype) / max(int(scored.sum()), 1)
    return loss, (probs, targets)


def cross_entropy_backward(dout, cache):
    """Gradient of cross_entropy_forward, over the N scored tokens:

        dlogits = (softmax(logits) - onehot(target)) / N * dout

    Predicted minus observed: each token's row sums to 0, because adding a constant to all logits changes nothing.

    Args:
        dout: float    gradient of the loss itself; 1 for plain training, the micro-batch's share when accumulating

    Returns:
        dlogits: (B, T, V) like logits
    """
    probs, targets = cache
    scored = targets != IGNORE                                   # (B, T)
    weight = (scored * (dout / max(int(scored.sum()), 1))).astype(probs.dtype)  # (B, T)
    dlogits = probs * weight[..., None]                          # (B, T, V)
    b, t = np.nonzero(scored)
    dlogits[b, t, targets[b, t]] -= weight[b, t]
    return dlogits
