"""Generation: draw the next token, append it, repeat.

    p = softmax(logits / temperature), cut to the top_k likeliest, then to the smallest set that holds top_p of the mass

Temperature 0 is greedy. top_p is nucleus sampling, Holtzman et al. 2020 (arXiv:1904.09751). Lesson: lessons/13_train.ipynb.
"""
import math

import numpy as np

from .errors import InputError


def next_token(logits, rng, temperature=1.0, top_k=0, top_p=1.0):
    """Draw one token.

    Args:
        logits:      (V,) float
        rng:         np.random.Generator
        temperature: float    0 takes the likeliest (the lowest id of equals)
        top_k:       int      0 keeps all
        top_p:       float    in (0, 1]; at least one token stays

    Returns:
        id: int
    """
    if temperature == 0:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[:top_k or None]   # likeliest first
    scaled = logits[order].astype(np.float64) / temperature
    probs = np.exp(scaled - scaled[0])
    cumulative = np.cumsum(probs / probs.sum())
    kept = min(int(np.searchsorted(cumulative, top_p)) + 1, len(order))
    return int(order[np.searchsorted(cumulative[:kept], rng.random() * cumulative[kept - 1], side="right").clip(max=kept - 1)])


def check_sampling(temperature, top_k, top_p):
    """Raise InputError for a sampling setting out of range."""
    for name, value, good, rule in (
        ("temperature", temperature, 0 <= temperature < math.inf, "at least 0"),
        ("top-k", top_k, top_k >= 0, "at least 0 (0 keeps all)"),
        ("top-p", top_p, 0 < top_p <= 1, "greater than 0 and at most 1"),
    ):
        if not good:
            raise InputError(f"{name} is {value}, and must be {rule}")


def generate(engine, prompt, n, eos_id, seed=0, temperature=1.0, top_k=0, top_p=1.0):
    """Continue a prompt, token by token, with a key/value cache.

    Args:
        engine: Engine
        prompt: list of int    starts with <s>; at most max_seq_len tokens
        n:      int            at most this many new tokens; fewer at </s> or at the end of the context

    Yields:
        id: int

    Raises:
        InputError: a prompt longer than the context, or a sampling setting out of range
    """
    check_sampling(temperature, top_k, top_p)
    context = engine.config.max_seq_len
    if len(prompt) > context:
        raise InputError(f"the prompt has {len(prompt)} tokens, and the context of this model holds {context}")
    rng = np.random.default_rng(seed)
    cache = engine.new_cache(capacity=min(context, len(prompt) + n))
    tokens = prompt
    for _ in range(min(n, context - len(prompt) + 1)):
        logits = engine.decode(np.array([tokens]), cache)[0, -1]
        token = next_token(logits, rng, temperature, top_k, top_p)
        if token == eos_id:
            return
        yield token
        tokens = [token]
