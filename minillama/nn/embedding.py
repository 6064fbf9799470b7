"""Embedding: look up one row of weight per token id.

    out_bt = weight[tokens_bt]

[LLaMA §2.2], Meta's `tok_embeddings`; not tied to the output head. GPU twin: kernels/embedding.py.
Lesson: lessons/07_llama.ipynb.
"""
import numpy as np


def embedding_forward(tokens, weight):
    """Gather rows.

    Args:
        tokens: (B, T) int           ids in [0, V)
        weight: (V, D) float         one row per id

    Returns:
        out:    (B, T, D) same dtype as weight
        cache:  (tokens, weight)
    """
    return weight[tokens], (tokens, weight)


def embedding_backward(dout, cache):
    """Gradient of embedding_forward; the ids are not differentiable.

        dweight_v = sum over the positions where tokens == v of dout

    A row used twice gets both gradients. `dweight[tokens] += dout` would keep only one of them, so the positions
    are sorted by id and each run of equal ids is summed.

    Returns:
        dweight: (V, D) like weight
    """
    tokens, weight = cache
    ids = tokens.reshape(-1)                                     # (N,)
    order = np.argsort(ids, kind="stable")                       # positions, grouped by id
    used, starts = np.unique(ids[order], return_index=True)      # each id that occurs, and where its run begins
    dweight = np.zeros_like(weight)                              # (V, D)
    dweight[used] = np.add.reduceat(dout.reshape(-1, weight.shape[1])[order], starts, axis=0)
    return dweight
