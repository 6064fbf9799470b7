"""What a training loop, a sampler and an evaluation may ask of a back end, whatever it computes with.

Every back end starts from the same parameters, sees the same batches and gives the same losses to rounding, so that a checkpoint
can move between them in the middle of a run. Implementations: numpy_engine.py here, kernels/engine.py on PyTorch; factory.py builds them.
"""
from typing import NamedTuple, Protocol

import numpy as np

from ..config import ModelConfig
from ..errors import InputError


class StepResult(NamedTuple):
    """One optimiser step: mean loss over all its scored tokens (nats/token), gradient norm before clipping."""

    loss: float
    grad_norm: float


class Diverged(InputError):
    """The loss or a gradient is no longer finite. The parameters are those of the step before."""


class Engine(Protocol):
    """One model with its optimiser. Tokens and targets are (B, T) integer arrays; targets may be IGNORE."""

    name: str
    about: str  # what computes, in words
    config: ModelConfig
    step: int  # updates so far

    def train_step(self, batches, lr) -> StepResult:
        """One update from a list of (tokens, targets) micro-batches, weighted by their scored tokens. Raises Diverged."""

    def loss(self, tokens, targets) -> tuple[float, int]:
        """(sum of nats, number of scored tokens) of a batch."""

    def logits(self, tokens) -> np.ndarray:
        """(B, T, V) float32."""

    def new_cache(self, batch_size=1, capacity=None):
        """An empty key/value cache for `decode`."""

    def decode(self, tokens, cache) -> np.ndarray:
        """Logits (B, T, V) of the next T positions; advances the cache."""

    def state(self) -> dict:
        """{"step": int, "params": dict, "m": dict, "v": dict} of float32 NumPy arrays, by parameter name."""

    def load_state(self, state) -> None:
        """Continue from a `state()`, this engine's or another's."""


def diagnosis(step, loss, norm, params, grads, finite):
    """Which tensor broke first: a parameter, else the gradient nearest to the loss, where backward begins. `finite` tests one."""
    suspects = [f"parameter {name}" for name, tensor in params.items() if not finite(tensor)]
    suspects += [f"the gradient of {name}" for name, grad in reversed(grads.items()) if not finite(grad)]
    where = suspects[0] if suspects else "the gradient norm, too large for float32"
    return f"training diverged at step {step}: loss {loss:.4g}, gradient norm {norm:.4g}; the first tensor that is not finite is {where}"
