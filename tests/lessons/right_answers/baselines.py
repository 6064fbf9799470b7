"""Right answers to the exercises of lesson 00, written in other ways than the solutions."""
import math
from itertools import pairwise

import numpy as np

from minillama import nn


def cross_entropy_loops(logits, targets):
    nats = []
    for row, target in zip(logits.tolist(), targets):
        top = max(row)
        nats.append(math.log(math.fsum(math.exp(z - top) for z in row)) + top - row[target])
    return nats


def cross_entropy_log_softmax(logits, targets):
    shifted = logits - logits.max(1, keepdims=True)
    log_q = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    nats = -np.take_along_axis(log_q, targets[:, None], 1)[:, 0]
    return nats


def cross_entropy_logaddexp(logits, targets):
    nats = np.logaddexp.reduce(logits, -1) - (logits * np.eye(logits.shape[1])[targets]).sum(-1)
    return nats


def cross_entropy_op(logits, targets):
    nats = np.array([nn.cross_entropy_forward(logits[None, t:t + 1], targets[None, t:t + 1])[0] for t in range(len(targets))])
    return np.array(nats)


def units_loops(nats, text):
    total = 0.0
    for one in nats:
        total += one
    return total / len(nats), math.e ** (total / len(nats)), total / math.log(2) / len(bytes(text, "utf-8"))


def units_bits(nats, text):
    bits = nats * math.log2(math.e)
    return sum(nats) / nats.size, 2 ** bits.mean(), bits.sum() / sum(len(c.encode()) for c in text)


def units_from_the_mean(nats, text):
    loss = np.mean(nats)
    perplexity = np.prod(np.exp(nats)) ** (1 / len(nats))
    return [loss, perplexity, np.log2(perplexity) * len(nats) / len(text.encode())]


def bigram_loops(train, held_out, vocab_size, k):
    table = [[k] * vocab_size for _ in range(vocab_size)]
    for a, b in pairwise(train):
        table[a][b] += 1
    table = [[n / sum(row) for n in row] for row in table]
    nats = [-math.log(table[a][b]) for a, b in pairwise(held_out)]
    return table, sum(nats) / len(nats)


def bigram_one_hot(train, held_out, vocab_size, k):
    hot = np.eye(vocab_size)
    counts = hot[train[:-1]].T @ hot[train[1:]]
    table = (counts + k) / (counts.sum(1)[:, None] + k * vocab_size)
    seen = hot[held_out[:-1]].T @ hot[held_out[1:]]
    return table, -(seen * np.log(table)).sum() / seen.sum()


def bigram_bincount(train, held_out, vocab_size, k):
    V = vocab_size
    smooth = np.bincount(train[:-1] * V + train[1:], minlength=V * V).reshape(V, V) + k
    table = (smooth.T / smooth.sum(1)).T
    return table, float(np.mean([-np.log(table[a, b]) for a, b in pairwise(held_out)]))


RIGHT = {
    "00.cross_entropy": [cross_entropy_loops, cross_entropy_log_softmax, cross_entropy_logaddexp, cross_entropy_op],
    "00.units": [units_loops, units_bits, units_from_the_mean],
    "00.bigram": [bigram_loops, bigram_one_hot, bigram_bincount],
}
