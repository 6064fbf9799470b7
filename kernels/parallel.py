"""The engines of several processes: every process holds a part of what is learned, and computes its rows of every batch.

    ddp     Replicated    whole parameters in each process; the float32 masters and both moments are split (ZeRO-1)
    fsdp    Sharded       all of it is split; a layer's parameters are gathered while it computes (ZeRO-3, PyTorch's FSDP2)

Every process is handed the whole batch of a step, which is a function of the seed and the step, and takes its rows (`rows_of`): so it knows
how many tokens all of them score without asking, and its gradient is its share of the one that a single process computes. The
sums of all ranks are then that gradient, to rounding.

Rajbhandari et al. 2020, "ZeRO" (arXiv:1910.02054), §5; Zhao et al. 2023, "PyTorch FSDP" (arXiv:2304.11277). Bytes that a process sends in a
step with P parameters and R processes, on rings, in the dtype's bytes b (2 for bfloat16, 4 for float32):

    ddp     (R-1)/R (4 + b) P                      gradients to their owners, new parameters to all
    fsdp    (R-1)/R (4 + 2 b) P per micro-batch    parameters gathered for forward and for backward, gradients to their owners; the
                                                   embedding and the head stay gathered in between: b less for each of theirs

gloo, which connects processors, sends 4 P twice for "gradients to their owners": it sums them everywhere.
"""
import math
from collections import Counter
from collections.abc import Mapping
from contextlib import contextmanager
from functools import cached_property, partial

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from minillama import machine
from minillama.errors import InputError
from minillama.nn import IGNORE, param_shapes
from minillama.nn.model import check_tokens

from . import reference
from .engine import TorchEngine, resolve
from .model import Llama

reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # its name before version 2.13
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
GAINS = "norm gains"  # the bucket of what does not decay


def rows_of(rank, size, arrays):
    """A process's rows of arrays of N rows: ceil(N / size) of them, filled up with rows of zeros, or of IGNORE in targets.

    Args:
        arrays: tokens, targets    (N, T) integers each

    Returns:
        tokens, targets: of equal shapes in all processes
    """
    rows = -(-len(arrays[0]) // size)
    own = [array[rank * rows:(rank + 1) * rows] for array in arrays]
    return [np.pad(array, ((0, rows - len(array)), (0, 0)), constant_values=fill) for array, fill in zip(own, (0, IGNORE))]


class Parallel(TorchEngine):
    """What both engines share: rows, results that are those of all, and a state that is gathered tensor by tensor.

    A subclass says where a tensor's parts are: `_range`, and `_local` for this process's own.

    world: World    the processes; each has a GPU of its own, or its share of the processor's threads
    """

    def __init__(self, world, model_config, train_config, params=None, threads=None, device=None, kernels="reference", dtype=None,
                 **options):
        self.world = world
        if device not in (None, "cpu", "cuda"):
            raise InputError(f"--device must be cpu or cuda with several processes (each takes the GPU of its number), got {device}")
        place, _ = resolve(kernels, device, dtype)
        if place.type == "cuda":
            if torch.cuda.device_count() < world.local_size:
                raise InputError(f"--nproc-per-node must be at most the number of GPUs of this machine, {torch.cuda.device_count()}, "
                                 f"got {world.local_size}")
            torch.cuda.set_device(world.local_rank)
        device = f"cuda:{world.local_rank}" if place.type == "cuda" else "cpu"  # of Apple's GPUs there is one for all
        threads = max((threads or machine.default_threads()) // world.local_size, 1)
        super().__init__(model_config, train_config, params, threads, device, kernels, dtype, graphs=False, **options)

    @property
    def about(self):
        machines = f" on {self.world.machines} machines" if self.world.machines > 1 else ""
        return f"{super().about}; {self.parallel} over {self.world.size} processes{machines}"

    def _own(self, batches):
        rows = len(batches[0][0])                                # of a micro-batch: more may not fit the memory
        tokens, targets = rows_of(self.world.rank, self.world.size, [np.concatenate(arrays) for arrays in zip(*batches)])
        return [(tokens[i:i + rows], targets[i:i + rows]) for i in range(0, len(tokens), rows)]

    def _are_finite(self, *kinds):
        kinds = super()._are_finite(*kinds)
        flags = torch.tensor([flag for kind in kinds for flag in kind.values()], dtype=torch.int32, device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MIN)
        flags = iter(flags.tolist())
        return [{name: bool(next(flags)) for name in kind} for kind in kinds]

    def _global_coefficient(self, norm):
        """Loss and gradient norm of all processes, and the coefficient that clips: from this one's loss, and the norm of its part."""
        both = torch.stack((self._loss, norm * norm))
        dist.all_reduce(both)
        self._result.copy_(torch.stack((both[0], both[1].sqrt())))
        return torch.where(both[0].isfinite(), reference.coefficient_of(self._result[1], self.recipe.grad_clip), 0)

    def loss(self, tokens, targets):
        check_tokens(tokens, self.config)                        # the rows of all, so that all refuse alike
        nats, count = super().loss(*rows_of(self.world.rank, self.world.size, (tokens, targets)))
        both = torch.tensor((nats, count), dtype=torch.float64, device=self.device)
        dist.all_reduce(both)
        nats, count = both.tolist()
        return nats, round(count)

    def decode(self, tokens, cache):
        """Logits of rank 0, in every process: all must draw the same token."""
        logits = torch.from_numpy(super().decode(tokens, cache)).to(self.device)
        dist.broadcast(logits, 0)
        return logits.numpy(force=True)

    def state(self):
        """Of rank 0, inside World.first: each look-up gathers a tensor from the others."""
        return {"step": self.step} | {kind: Gathered(self, kind) for kind in ("params", "m", "v")}

    def load_state(self, state):
        self.step = state["step"]
        for kind in ("params", "m", "v"):
            self._fill(kind, state[kind].items())

    def _fill(self, kind, arrays):
        """Keep this process's part of (name, array) pairs, which come one at a time."""
        for name, array in arrays:
            start, stop = self._range(name, self.world.rank)
            self._local(kind, name).copy_(torch.tensor(array.reshape(-1)[start:stop]))

    def hand_over(self, kind, name):
        """Send this process's part of a tensor to rank 0, which returns the whole of it: a float32 array; None in the others."""
        rank = self.world.rank
        whole = np.empty(math.prod(param_shapes(self.config)[name]), np.float32) if rank == 0 else None
        for owner in range(self.world.size):
            start, stop = self._range(name, owner)
            if start == stop or rank not in (0, owner):
                continue
            part = self._local(kind, name) if rank == owner else torch.empty(stop - start, device=self.device)
            if owner:
                (dist.recv(part, owner) if rank == 0 else dist.send(part, 0))
            if rank == 0:
                whole[start:stop] = part.numpy(force=True)
        return whole if whole is None else whole.reshape(param_shapes(self.config)[name])


class Gathered(Mapping):
    """One kind of an engine's tensors, split over the processes: name -> array, gathered when it is looked up, and not kept."""

    def __init__(self, engine, kind):
        self.engine, self.kind = engine, kind

    def __getitem__(self, name):
        self.engine.world.ask(self.kind, name)
        return self.engine.hand_over(self.kind, name)

    def __iter__(self):
        return iter(param_shapes(self.engine.config))

    def __len__(self):
        return len(param_shapes(self.engine.config))


# ---------------------------------------------------------------------------------------------------------------------------- ddp

class Layout:
    """Where each tensor lies. Gradients and parameters travel in buckets: the embedding, the matrices of a layer, the head, and last the
    norm gains of all layers, which do not decay. A bucket is filled up with zeros so that it can be cut into equal parts, one per process.
    Within it, matrices that multiply the same vector are next to each other, as in engine.Arena.

    places: dict name -> (bucket, start in it, stop)
    part:   dict bucket -> elements of one of its parts
    """

    def __init__(self, shapes, parts):
        buckets = {}
        for name in sorted(shapes, key=lambda name: name.endswith(".w2")):
            bucket = GAINS if len(shapes[name]) == 1 else name.rpartition(".")[0] or name
            buckets.setdefault(bucket, []).append(name)
        buckets[GAINS] = buckets.pop(GAINS)                      # last
        self.shapes, self.places, self.part = shapes, {}, {}
        for bucket, names in buckets.items():
            stop = 0
            for name in names:
                start, stop = stop, stop + math.prod(shapes[name])
                self.places[name] = bucket, start, stop
            self.part[bucket] = -(-stop // parts)


class Buckets:
    """So many parts of every bucket of a Layout, all in one flat tensor, as engine.Arena has all of a model.

    flat:     (n,) tensor                   matrices first, then norm gains
    matrices: int                           length of the part that decays
    buckets:  dict bucket -> 1-D tensor     views into flat
    """

    def __init__(self, layout, parts, dtype, device):
        sizes = {bucket: parts * part for bucket, part in layout.part.items()}
        self.layout, self.flat = layout, torch.zeros(sum(sizes.values()), dtype=dtype, device=device)
        self.matrices = len(self.flat) - sizes[GAINS]
        self.buckets = dict(zip(sizes, self.flat.split(list(sizes.values()))))

    @cached_property
    def views(self):
        """dict name -> tensor, in the model's order; where all parts are here."""
        places = self.layout.places
        return {name: self.buckets[places[name][0]][slice(*places[name][1:])].view(shape) for name, shape in self.layout.shapes.items()}


class Replicated(Parallel):
    """Whole parameters in each process, in the dtype that the model computes with, and whole sums of its own gradients. When a bucket's
    gradients are complete, in the last micro-batch, they set out to their owners while backward goes on. Each process then
    updates its part, and sends it to all."""

    parallel = "ddp"

    def _build(self, kernels, params):
        layout = self._layout = Layout(param_shapes(self.config), self.world.size)
        own = partial(Buckets, layout, 1, device=self.device)
        self._whole = Buckets(layout, self.world.size, self.dtype, self.device)
        self._params = own(torch.float32)
        self._rounded = None if self.dtype == torch.float32 else own(self.dtype)
        if self.recipe:
            self._grads = Buckets(layout, self.world.size, torch.float32, self.device)
            self._own_grads, self._m, self._v = (own(torch.float32) for _ in range(3))
        self._fill("params", params)
        self.model = Llama(self.config, kernels, self.attention, params=self._whole.views)
        self._take_gradients()

    def _range(self, name, rank):
        bucket, start, stop = self._layout.places[name]
        part = self._layout.part[bucket]
        first, last = (min(max(limit, start), stop) for limit in (rank * part, (rank + 1) * part))
        return first - start, last - start

    def _local(self, kind, name):
        bucket, start, _ = self._layout.places[name]
        first, last = (start + place - self.world.rank * self._layout.part[bucket] for place in self._range(name, self.world.rank))
        return getattr(self, f"_{kind}").buckets[bucket][first:last]

    def _tensors(self):
        return dict(self.model.named_parameters()), self._grads.views

    def _fill(self, kind, arrays):
        super()._fill(kind, arrays)
        if kind == "params":
            if self._rounded:
                self._rounded.flat.copy_(self._params.flat)
            self._spread()

    def _spread(self):
        """Send this process's part of the parameters to all, in the dtype that they compute with, and receive theirs."""
        own = (self._rounded or self._params).buckets
        for work in [all_gather(whole, own[bucket], async_op=True) for bucket, whole in self._whole.buckets.items()]:
            work.wait()

    def _own(self, batches):
        batches = super()._own(batches)
        self._left = len(batches)
        return batches

    def _micro_batch(self, batch, first):
        self._left -= 1
        if self._left == 0:
            trained = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
            self._awaited, self._sent = Counter(self._layout.places[name][0] for name in trained), []
        super()._micro_batch(batch, first)

    def _receive(self, name):
        add, bucket = super()._receive(name), self._layout.places[name][0]

        def hook(parameter):
            add(parameter)
            if self._left:
                return
            self._awaited[bucket] -= 1
            if not self._awaited[bucket]:
                self._sent.append(reduce_scatter(self._own_grads.buckets[bucket], self._grads.buckets[bucket], async_op=True))

        return hook

    def _update(self):
        while self._sent:                                        # and let go of it: gloo's holds a copy of the gradients
            self._sent.pop().wait()
        norm, _ = self._optim.clip_coefficient(self._own_grads.flat, self.recipe.grad_clip)
        self._adamw(self._own_grads, self._global_coefficient(norm))
        self._spread()


# --------------------------------------------------------------------------------------------------------------------------- fsdp

class Sharded(Parallel):
    """PyTorch's FSDP2: every parameter is cut by its first axis, float32, over the processes; so are its gradient and its moments. A layer
    is gathered, in the dtype it computes with, when its forward or its backward begins, and let go when that ends."""

    parallel = "fsdp"

    def _build(self, kernels, params):
        shapes = param_shapes(self.config)
        self.model = Llama(self.config, kernels, self.attention, params={name: torch.empty(shapes[name], device="meta") for name in shapes})
        mesh = init_device_mesh(self.device.type, (self.world.size,))
        policy = MixedPrecisionPolicy(None if self.dtype == torch.float32 else self.dtype, torch.float32, cast_forward_inputs=False)
        for part in (*self.model.layers, self.model):
            fully_shard(part, mesh=mesh, mp_policy=policy)
            part.set_gradient_divide_factor(1.0)                 # the gradients of all are summed: each is a share already
            part.set_force_sum_reduction_for_comms(True)
            register_fsdp_forward_method(part, "decode")
        self.model.to_empty(device=self.device)
        self.model.requires_grad_(self.recipe is not None)
        self._fill("params", params)
        if self.recipe:
            self._m, self._v = ({name: torch.zeros_like(self._local("params", name)) for name in shapes} for _ in range(2))

    def _range(self, name, rank):
        rows, *inner = param_shapes(self.config)[name]
        each = -(-rows // self.world.size)
        return tuple(min(limit * each, rows) * math.prod(inner) for limit in (rank, rank + 1))

    def _local(self, kind, name):
        if kind == "params":
            return self.model.get_parameter(name).detach().to_local().view(-1)
        return getattr(self, f"_{kind}")[name]

    @contextmanager
    def _inferring(self):
        """Not inference_mode: what it makes could not be used in training. The root's parameters stay gathered after a forward."""
        with torch.no_grad():
            yield
        self.model.reshard()

    def _local_grads(self):
        return {name: parameter.grad.to_local().view(-1) for name, parameter in self.model.named_parameters() if parameter.grad is not None}

    def _tensors(self):
        return {name: self._local("params", name) for name in param_shapes(self.config)}, self._local_grads()

    def _update(self):
        r, grads = self.recipe, self._local_grads()
        coefficient = self._global_coefficient(torch.nn.utils.get_total_norm(list(grads.values())))
        for name, grad in grads.items():
            if grad.numel():
                tensors = self._local("params", name), grad, self._m[name], self._v[name]
                factors = self._factors[int(len(param_shapes(self.config)[name]) == 1)]
                self._optim.adamw_update(*tensors, factors, r.beta1, r.beta2, r.eps, coefficient)

    def _micro_batch(self, batch, first):
        if first:
            self.model.zero_grad()
        super()._micro_batch(batch, first)


ENGINES = {engine.parallel: engine for engine in (Replicated, Sharded)}
