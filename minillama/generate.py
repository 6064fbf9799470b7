"""Generation: draw the next token, append it, repeat.

    p = softmax(logits / temperature), cut to the top_k likeliest, then to the smallest set that holds top_p of the mass

Temperature 0 is greedy. top_p is nucleus sampling, Holtzman et al. 2020 (arXiv:1904.09751). Lesson: lessons/13_train.ipynb.
"""
from dataclasses import dataclass

import numpy as np

from .config import check_number
from .errors import InputError

COLDEST = 1e-6  # dividing logits by less would give all other tokens probability 0


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Raises InputError for a value out of range.

    temperature: float    0, or less than COLDEST, takes the likeliest (the lowest id of equals)
    top_k:       int      0 keeps all
    top_p:       float    in (0, 1]; at least one token stays
    seed:        int      the same seed draws the same tokens
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        check_number("temperature", self.temperature, float, low=0, high=1e6)
        check_number("top-k", self.top_k, low=0)
        check_number("top-p", self.top_p, float, above=0, high=1)
        check_number("seed", self.seed, low=0, high=2**63 - 1)


def next_token(logits, rng, sampling=Sampling()):
    """Draw one token.

    Args:
        logits:   (V,) float
        rng:      np.random.Generator
        sampling: Sampling

    Returns:
        id: int
    """
    if sampling.temperature < COLDEST:
        return int(np.argmax(logits))
    order = np.argsort(-logits, kind="stable")[:sampling.top_k or None]  # likeliest first
    scaled = logits[order].astype(np.float64) / sampling.temperature
    probs = np.exp(scaled - scaled[0])
    cumulative = np.cumsum(probs / probs.sum())
    kept = min(int(np.searchsorted(cumulative, sampling.top_p)) + 1, len(order))
    return int(order[np.searchsorted(cumulative[:kept], rng.random() * cumulative[kept - 1], side="right").clip(max=kept - 1)])


def generate(engine, prompt, n, eos_id, sampling=Sampling()):
    """Continue a prompt, token by token, with a key/value cache.

    Args:
        engine:   Engine
        prompt:   list of int    starts with <s>; at most max_seq_len tokens
        n:        int            at most this many new tokens; fewer at </s> or at the end of the context
        sampling: Sampling

    Yields:
        id: int

    Raises:
        InputError: a prompt longer than the context, n out of range, or logits that are not finite
    """
    check_number("the number of new tokens", n, low=1)
    context = engine.config.max_seq_len
    if len(prompt) > context:
        raise InputError(f"the prompt must have at most {context} tokens (the context of this model), got {len(prompt)}")
    rng = np.random.default_rng(sampling.seed)
    cache = engine.new_cache(capacity=min(context, len(prompt) + n))
    tokens = prompt
    for _ in range(min(n, context - len(prompt) + 1)):
        logits = engine.decode(np.array([tokens]), cache)[0, -1]
        if not np.isfinite(logits.max()):                        # NaN, too
            raise InputError("the model's logits are not finite: its weights are broken, or its training has diverged")
        token = next_token(logits, rng, sampling)
        if token == eos_id:
            return
        yield token
        tokens = [token]
