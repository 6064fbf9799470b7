"""A capture without a GPU: everything that one run asks of the device is recorded, judged, and done again by `replay`.

Seen are PyTorch's ops, those inside the ops of this folder and of autograd included, and the launches of Triton kernels, which the
interpreter computes. A real capture computes nothing; this one has to, for there is no other way to know the outputs, and puts back
afterwards what it has changed.
"""
import numpy as np
import torch
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from kernels import launch
from kernels.graph import Graphs

READERS = ("tolist", "numpy", "cpu", "__array__", "pin_memory")  # methods that no op shows, or none where the tensor is on the processor


class Illegal(RuntimeError):
    """What CUDA would refuse while it captures."""


class Recorder(TorchDispatchMode):
    """Use `record`, then `entries` or `replay`."""

    def __init__(self):
        super().__init__()
        self.calls, self.entries = [], []                        # what was done; the same in a form that two runs can be compared in
        self._alive, self._new, self._before = [], {}, {}        # so that no address is used twice; storage -> ordinal; storage -> bytes
        self._implementations = {op._opoverload: op._init_fn for op in OPDEFS.values() if op._opoverload.namespace == "minillama"}

    def record(self, function, undo):
        """Run the function. undo: put every tensor that was there before back into its state."""
        outer, launch._recording = launch._recording, self       # whose `append` is called for each launch
        readers = {name: getattr(torch.Tensor, name) for name in READERS}
        for name in READERS:
            setattr(torch.Tensor, name, _refuse(name, readers[name]))
        try:
            with self:
                function()
        finally:
            launch._recording = outer
            for name in READERS:
                setattr(torch.Tensor, name, readers[name])
        if undo:
            for storage, content in self._before.values():
                _content(storage).copy_(content)

    def append(self, call):
        tensors = [x for x in call.arguments if isinstance(x, torch.Tensor)]
        self._keep(tensors)
        self._note(call.kernel.__name__, (call.grid, call.arguments, call.options), ())
        self.calls.append((lambda: _launch(call), None))
        _launch(call)

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if op in self._implementations:                          # one of ours: what it is made of is seen, not itself
            with self:
                return self._implementations[op](*args, **kwargs)
        if {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & {*op.tags}:
            raise Illegal(f"{op} needs a value of the device")
        if torch.Tag.nondeterministic_seeded in op.tags and "attention" not in str(op):  # its dropout is 0
            raise Illegal(f"{op} takes random numbers")
        if op is torch.ops.aten.lift_fresh.default:
            raise Illegal("a tensor is made of Python numbers")
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        if op._schema.is_mutable:
            self._keep(inputs)
        before = {_key(x) for x in inputs}
        out = op(*args, **kwargs)
        outputs = [x for x in tree_flatten(out)[0] if isinstance(x, torch.Tensor)]
        fresh = [x for x in outputs if _key(x) not in before]
        for x in fresh:
            self._new.setdefault(_key(x), len(self._new))
        self._note(str(op), (args, kwargs), outputs)
        self._alive += inputs + outputs
        if op._schema.is_mutable or fresh:                       # a view shows what is in memory anyway
            self.calls.append((lambda: op(*args, **kwargs), fresh and out))
        return out

    def _keep(self, tensors):
        """Keep the state of what was there before this run."""
        self._alive += tensors
        for x in tensors:
            if _key(x) not in self._new and _key(x) not in self._before:
                with _disable_current_modes():
                    self._before[_key(x)] = x.untyped_storage(), _content(x.untyped_storage()).clone()

    def _note(self, what, given, outputs):
        def place(x):
            if not isinstance(x, torch.Tensor):
                return x if isinstance(x, int | float | bool | str | None) else repr(x)
            where = ("new", self._new[_key(x)]) if _key(x) in self._new else ("static", _key(x))
            return *where, x.storage_offset(), tuple(x.shape), x.stride(), str(x.dtype)

        self.entries.append((what, tree_flatten(tree_map(place, given))[0], [place(x) for x in outputs]))

    @torch.no_grad()
    def replay(self):
        for call, recorded in self.calls:
            new = call()
            if recorded is None or recorded == []:
                continue
            for old, now in zip(tree_flatten(recorded)[0], tree_flatten(new)[0], strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(now)


def _refuse(name, method):
    def refuse(*args, **kwargs):
        if launch._recording is None:                            # the interpreter is at work
            return method(*args, **kwargs)
        raise Illegal(f"Tensor.{name} waits for the device")

    return refuse


def _launch(call):
    outer, launch._recording = launch._recording, None
    try:
        with _disable_current_modes(), np.errstate(all="ignore"):
            call.kernel[call.grid](*call.arguments, **call.options)
    finally:
        launch._recording = outer


def _key(x):
    return x.untyped_storage().data_ptr()


def _content(storage):
    """The bytes of a storage, as a tensor."""
    return torch.empty(0, dtype=torch.uint8).set_(storage)


class FakeGraphs(Graphs):
    """Graphs whose captures are made here. captures: their keys, in order; runs: key -> the entries of its runs, if `watch`."""

    def __init__(self, watch=False):
        self.captures, self.runs, self.watch, self._recorder = [], {}, watch, None
        super().__init__(torch.device("cpu"))

    def run(self, key, function):
        """With `watch`, an ordinary run, recorded."""
        if not self.watch:
            self._key = key
            return super().run(key, function)
        recorder = Recorder()
        recorder.record(function, undo=False)
        self.runs.setdefault(key, []).append(recorder.entries)
        recorder._alive.clear()

    def _start(self):
        pass

    def _warm_up(self, function):
        function()

    def _capture(self, function):
        self.captures.append(self._key)
        recorder = Recorder()
        recorder.record(function, undo=True)
        return recorder
