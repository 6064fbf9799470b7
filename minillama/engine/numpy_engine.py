"""The engine in NumPy: the model, its gradients and AdamW over flat arrays, on the cores of this machine."""
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from ..config import TrainConfig
from ..machine import default_threads
from ..nn import (
    IGNORE,
    count_params,
    cross_entropy_backward,
    cross_entropy_forward,
    init_params,
    model_backward,
    model_forward,
    param_shapes,
)
from ..nn.decode import KVCache, model_decode
from ..optim import adamw_step, clip_grad_norm
from .protocol import Diverged, StepResult, diagnosis

MEASURED_FLOPS = 30_000_000_000  # of a step that is timed to choose batch_splits


class Arena:
    """All tensors of one kind in one flat array, so that the optimiser runs once over memory instead of once per tensor.

    flat:     (n,) array            matrices first, then norm gains
    matrices: int                   length of the stretch that decays
    views:    dict name -> array    each tensor, in the model's order, as a view into flat
    """

    def __init__(self, shapes, dtype=np.float32):
        order = sorted(shapes, key=lambda name: len(shapes[name]) == 1)  # stable: the model's order within each group
        sizes = {name: int(np.prod(shapes[name])) for name in order}
        self.matrices = sum(size for name, size in sizes.items() if len(shapes[name]) > 1)
        self.flat = np.zeros(sum(sizes.values()), dtype)
        starts = dict(zip(order, np.cumsum([0, *sizes.values()])[:-1].tolist()))
        self.views = {name: self.flat[starts[name]:starts[name] + sizes[name]].reshape(shape) for name, shape in shapes.items()}

    def fill(self, tensors):
        """Copy a dict of tensors in."""
        for name, view in self.views.items():
            view[...] = tensors[name]


class NumpyEngine:
    """The reference in NumPy.

    threads:      int    processor threads
    batch_splits: int    a batch is cut by rows into this many sub-batches, worked on by as many Python threads (NumPy releases the
                         interpreter lock inside its loops) with threads // batch_splits BLAS threads each. With as many as threads,
                         the default, elementwise work runs in parallel too, which BLAS threads alone would leave to one core; with 1
                         the matrix products are larger. Both fix the order of every sum: the same pair gives the same bits.
    """

    name = "numpy"

    def __init__(self, model_config, train_config=None, params=None, threads=None, batch_splits=None):
        """Without train_config the engine only infers; without params it starts from fresh ones."""
        self.config, self.recipe, self.step = model_config, train_config, 0
        threads = threads or default_threads()
        self.batch_splits = batch_splits or threads
        self.about = f"numpy, {threads} threads, batches in {self.batch_splits} splits"
        shapes = param_shapes(model_config)
        self._params = Arena(shapes)
        if params is None:
            recipe = train_config or TrainConfig()
            params = init_params(model_config, recipe.seed, embedding_std=recipe.embedding_std, std=recipe.init_std)
        self._params.fill(params)
        self.params = self._params.views
        if train_config:
            self._grads, self._m, self._v = Arena(shapes), Arena(shapes), Arena(shapes)
        self._pool = ThreadPoolExecutor(self.batch_splits)
        self._blas = threadpool_limits(threads // self.batch_splits, user_api="blas")

    def _split(self, tokens, targets):
        """Cut a batch by rows: a list of (tokens, targets)."""
        n = min(self.batch_splits, len(tokens))
        return list(zip(np.array_split(tokens, n), np.array_split(targets, n)))

    @np.errstate(all="ignore")                                   # train_step looks at what comes out, and says more
    def _gradient(self, batch, total):
        """Loss and gradients of a sub-batch, as its share of a step that scores `total` tokens."""
        tokens, targets = batch
        share = _scored(targets) / total
        logits, model_cache = model_forward(tokens, self.params, self.config)
        loss, loss_cache = cross_entropy_forward(logits, targets)
        return float(loss) * share, model_backward(cross_entropy_backward(share, loss_cache), model_cache)

    @np.errstate(all="ignore")
    def train_step(self, batches, lr):
        total = max(sum(_scored(targets) for _, targets in batches), 1)
        grads, loss = self._grads.views, 0.0
        self._grads.flat.fill(0)
        for tokens, targets in batches:
            for split_loss, split_grads in self._pool.map(self._gradient, self._split(tokens, targets), [total] * self.batch_splits):
                loss += split_loss
                for name, grad in split_grads.items():
                    grads[name] += grad
        norm = clip_grad_norm(self._grads.flat, self.recipe.grad_clip)
        if not np.isfinite(loss + norm):
            raise Diverged(diagnosis(self.step + 1, loss, norm, self.params, grads, lambda array: np.isfinite(array).all()))
        self.step += 1
        r, n = self.recipe, self._params.matrices
        for stretch, decay in ((slice(0, n), r.weight_decay), (slice(n, None), 0.0)):
            arrays = (arena.flat[stretch] for arena in (self._params, self._grads, self._m, self._v))
            adamw_step(*arrays, self.step, lr, r.beta1, r.beta2, r.eps, decay)
        return StepResult(loss, norm)

    @np.errstate(all="ignore")
    def _nats(self, batch):
        tokens, targets = batch
        loss, _ = cross_entropy_forward(model_forward(tokens, self.params, self.config)[0], targets)
        return float(loss) * _scored(targets), _scored(targets)

    def loss(self, tokens, targets):
        nats, counts = zip(*self._pool.map(self._nats, self._split(tokens, targets)))
        return sum(nats), sum(counts)

    @np.errstate(all="ignore")
    def logits(self, tokens):
        return model_forward(tokens, self.params, self.config)[0]

    def new_cache(self, batch_size=1, capacity=None):
        return KVCache(self.config, batch_size, capacity)

    @np.errstate(all="ignore")
    def decode(self, tokens, cache):
        return model_decode(tokens, self.params, self.config, cache)

    def state(self):
        return {"step": self.step, "params": self.params, "m": self._m.views, "v": self._v.views}

    def load_state(self, state):
        self.step = state["step"]
        for arena, key in ((self._params, "params"), (self._m, "m"), (self._v, "v")):
            arena.fill(state[key])


def _scored(targets):
    """Number of targets that count."""
    return int((targets != IGNORE).sum())


def faster_batch_splits(model_config, train_config, threads, batch, repeats=3, seconds=2.0):
    """Measure one sub-batch per thread against the batch in one: (the faster `batch_splits`, {batch_splits: seconds of a step}).

    On throw-away engines: the run that follows starts from untouched parameters. Of a batch whose step takes long, as much is
    measured as fits a few seconds: a step on fewer and shorter rows, and fewer repeats.
    """
    tokens, targets = _cut(batch, threads, count_params(model_config))
    times = {}
    for batch_splits in {threads, 1}:
        engine = NumpyEngine(model_config, train_config, threads=threads, batch_splits=batch_splits)
        engine.train_step([(tokens, targets)], 0.0)              # warms up
        times[batch_splits] = []
        while len(times[batch_splits]) < repeats and sum(times[batch_splits]) < seconds:
            started = time.perf_counter()
            engine.train_step([(tokens, targets)], 0.0)
            times[batch_splits].append(time.perf_counter() - started)
    best = {batch_splits: min(measured) for batch_splits, measured in times.items()}
    return min(best, key=best.get), best


def _cut(batch, threads, parameters):
    """So many rows and positions of a batch that a step on them is about MEASURED_FLOPS; never fewer rows than threads."""
    n_tokens = max(MEASURED_FLOPS // (6 * parameters), 1)
    rows, T = batch[0].shape
    kept = min(rows, max(threads, n_tokens // T))
    return [array[:kept, :max(min(T, n_tokens // kept), 16)] for array in batch]
