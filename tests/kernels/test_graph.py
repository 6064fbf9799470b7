"""Training in CUDA graphs: nothing that a capture forbids or would bake in, and the bits of training without. Here with fake captures."""
import contextlib

import numpy as np
import pytest
import torch
from fake_capture import FakeGraphs, Illegal, Recorder
from helpers import RECIPE, batch, ignored, split
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import kernels.engine
from kernels import launch
from kernels.adamw import adamw_update
from kernels.engine import DTYPES, TorchEngine
from kernels.graph import Graphs
from kernels.interpreter import interpreted
from minillama.config import ModelConfig, preset
from minillama.engine.protocol import Diverged

SMALL_MODEL = ModelConfig(dim=32, n_layers=2, n_heads=2, vocab_size=50, multiple_of=16, max_seq_len=32)
ENGINES = {
    "torch": {"kernels": "reference"}, "torch bfloat16": {"kernels": "reference", "dtype": "bfloat16"},
    "triton": {"kernels": "triton"}, "triton flash": {"kernels": "triton", "attention": "flash"},
    "triton in products": {"kernels": "triton"},                 # as on a GPU: the products add to the arena
}


def interpreted_triton():
    if not interpreted():
        pytest.skip("a fake capture runs kernels in Triton's interpreter")


def engine(name, graphs=None):
    """An engine on the processor, with fake graphs or with none."""
    if name.startswith("triton"):
        interpreted_triton()
    made = TorchEngine(SMALL_MODEL, RECIPE, threads=1, device="cpu", **ENGINES[name])
    made._graphs = graphs
    if name.endswith("in products"):
        made._sum_in_products()
    return made


def train(engine, steps, begin=0):
    """Micro-batches of 1 row and of 2; another learning rate and another batch each step."""
    return [engine.train_step(split(batch(SMALL_MODEL, 3, 20, seed), 1), 1e-2 / (1 + seed)) for seed in range(begin, begin + steps)]


def arrays(engine):
    state = engine.state()
    return {f"{kind}.{name}": array.copy() for kind in ("params", "m", "v") for name, array in state[kind].items()}


def assert_same(left, right):
    for name, array in arrays(left).items():
        assert np.array_equal(array, arrays(right)[name]), name


@pytest.mark.parametrize("name", ENGINES)
def test_a_replay_computes_what_the_engine_computes(name):
    """Bit for bit, after 5 steps: a warm-up, a capture and replays of each graph."""
    graphs = FakeGraphs()
    plain, graphed = engine(name), engine(name, graphs)
    assert train(graphed, 5) == train(plain, 5)
    assert_same(graphed, plain)
    assert torch.equal(graphed._grads.flat, plain._grads.flat)
    assert graphs.captures == [((1, 20), True), ((2, 20), False), "update"]


@pytest.mark.parametrize("name", ENGINES)
def test_a_run_changes_nothing_but_memory(name):
    """Every op and every launch of a step after the first has the same arguments: Python numbers, addresses, shapes. None waits."""
    graphs = FakeGraphs(watch=True)
    train(engine(name, graphs), 4)
    assert len(graphs.runs) == 3
    for key, (_, second, *others) in graphs.runs.items():
        assert len(second) > 5 and len(others) == 2
        for run in others:
            assert len(run) == len(second), key
            for now, before in zip(run, second):
                assert now == before, key


class Elsewhere(TorchDispatchMode):
    """Keeps the ops that touch a tensor of another device than `device`."""

    def __init__(self, device):
        super().__init__()
        self.device, self.ops = device, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **kwargs or {})
        self.ops += [str(op) for x in tree_flatten((args, kwargs, out))[0] if isinstance(x, torch.Tensor) and x.device.type != self.device]
        return out


@pytest.mark.parametrize("name", ENGINES)
def test_nothing_comes_from_the_host(name, monkeypatch):
    """No op of a recorded run touches the processor's memory, from which a replay would copy what is no longer there. "meta" plays
    the GPU: tensors without memory, and launches that are only noted."""
    options = ENGINES[name]
    monkeypatch.setattr(kernels.engine, "resolve", lambda *given: (torch.device("meta"), DTYPES[options.get("dtype", "float32")]))
    with launch.record() as launches:
        made = TorchEngine(SMALL_MODEL, RECIPE, **options)
        if name.endswith("in products"):
            made._sum_in_products()
        made.model.tables(0, 20)                                 # the warm-up makes them
        tokens = torch.zeros(2, 2, 20, dtype=torch.int64, device="meta")
        with Elsewhere("meta") as seen:
            for run in (lambda: made._micro_batch(tokens, True), lambda: made._micro_batch(tokens, False), made._update):
                run()
                assert seen.ops == []
            made._loss + torch.ones(())
            assert seen.ops
    assert bool(launches) is name.startswith("triton")


def test_what_a_capture_forbids_is_seen():
    x = torch.arange(4.0)
    for function in (
        lambda: x.sum().item(), lambda: x.tolist(), lambda: x.numpy(), lambda: x.cpu(), lambda: x.nonzero(), lambda: x.pin_memory(),
        lambda: float(x[0]), lambda: x[x > 1], lambda: np.asarray(x), lambda: bool((x > 1).all()),
        lambda: torch.tensor([1.0]), lambda: torch.rand(3),
    ):
        with pytest.raises(Illegal):
            Recorder().record(function, undo=False)


def test_what_changes_between_runs_is_seen():
    """A number, an address, a shape, an op, a number of a launch."""
    interpreted_triton()
    x, flat = torch.arange(4.0), [torch.rand(10) for _ in range(4)]
    for first, second in (
        (lambda: x.mul(2.0), lambda: x.mul(3.0)), (lambda: x + x, lambda: x + flat[0][:4]), (lambda: x[:2] + 1, lambda: x[:3] + 1),
        (lambda: x.exp(), lambda: x.log()), (lambda: adamw_update(*flat, (1.0, 1.0, 1.0)), lambda: adamw_update(*flat, (0.5, 1.0, 1.0))),
    ):
        runs = [Recorder() for _ in range(3)]
        for recorder, function in zip(runs, (first, first, second)):
            recorder.record(function, undo=True)
        assert runs[0].entries == runs[1].entries != runs[2].entries


def test_a_shape_has_a_graph_of_its_own():
    graphs = FakeGraphs()
    plain, graphed = engine("torch"), engine("torch", graphs)
    for rows, T in ((2, 5), (3, 5), (2, 5), (2, 6), (3, 5), (2, 5), (2, 6), (2, 6)):
        whole = batch(SMALL_MODEL, rows, T, seed=T)
        assert graphed.train_step([whole], 1e-2) == plain.train_step([whole], 1e-2)
    assert_same(graphed, plain)
    assert graphs.captures == ["update", ((2, 5), True), ((3, 5), True), ((2, 6), True)]


def test_a_failed_capture_ends_in_training_without(capsys):
    """One sentence, no second attempt, and the same numbers."""
    class Failing(FakeGraphs):
        def _capture(self, function):
            if self._key == "update":
                raise RuntimeError("operation not permitted\nCUDA kernel errors might be ...")
            return super()._capture(function)

    graphs = Failing()
    plain, graphed = engine("torch"), engine("torch", graphs)
    assert train(graphed, 4) == train(plain, 4)
    assert_same(graphed, plain)
    assert capsys.readouterr().err == "note: without CUDA graphs from here on, because a capture failed: operation not permitted\n"
    assert graphs.failed and not graphs._graphs
    assert graphs.captures == [((1, 20), True), ((2, 20), False)]


def test_divergence_changes_nothing():
    graphed = engine("triton", FakeGraphs())
    train(graphed, 3)
    spoilt = graphed._params.views["layers.1.w2"][3, 4].clone()
    graphed._params.views["layers.1.w2"][3, 4] = np.inf
    kept = arrays(graphed)
    with pytest.raises(Diverged, match=r"diverged at step 4: .*not finite is parameter layers\.1\.w2"):
        train(graphed, 1)
    assert all(np.array_equal(array, kept[name]) for name, array in arrays(graphed).items())
    graphed._params.views["layers.1.w2"][3, 4] = spoilt
    plain = engine("triton")
    train(plain, 3)
    assert train(graphed, 2, 3) == train(plain, 2, 3)


def test_a_state_may_come_in_between():
    """load_state writes into the tensors that the graphs know."""
    plain, graphed = engine("torch bfloat16"), engine("torch bfloat16", FakeGraphs())
    train(plain, 2)
    train(graphed, 3, 7)
    graphed.load_state(plain.state())
    assert train(graphed, 2, 2) == train(plain, 2, 2)
    assert_same(graphed, plain)
    assert graphed.train_step([ignored(SMALL_MODEL)], 1e-2) == (0, 0)


def test_graphs_are_for_cuda():
    assert engine("torch")._graphs is None and "CUDA graphs" not in engine("torch").about


@pytest.mark.parametrize("unfinished", [True, False])
def test_a_capture_that_cannot_end_is_ended(unfinished, monkeypatch, capsys):
    """In PyTorch 2.11 the allocator does not learn of it; later versions say so where it did. Nor is the stream restored."""
    done, stream = [], []

    @contextlib.contextmanager
    def capture(recorded, pool, side):
        assert (pool, side.device_index) == ("pool", 1)
        stream.append("captured")
        yield
        raise RuntimeError("operation failed due to a previous error during capture")

    @contextlib.contextmanager
    def current(which):
        stream.append(which)
        yield
        stream.append(which)

    def end(*given):
        done.append(given)
        if not unfinished:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    class Stream:
        device_index, wait_stream = 1, staticmethod(lambda other: None)

        def __init__(self, device=None):
            pass

    for name, replacement in {"Stream": Stream, "CUDAGraph": object, "graph": capture, "stream": current, "device": contextlib.nullcontext,
                              "graph_pool_handle": lambda: "pool", "current_stream": lambda device: Stream()}.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    graphs, runs = Graphs(torch.device("cuda", 1)), []
    for _ in range(3):
        graphs.run("key", lambda: runs.append(0))
    assert graphs.failed and done == [(1, "pool")]
    assert len(runs) == 4                                        # the warm-up, the failed capture, and twice after it
    assert isinstance(stream[2], Stream) and stream[2:] == [stream[2], "captured"] and len(stream) == 4
    assert "previous error during capture" in capsys.readouterr().err


# On a GPU.

def on_gpu(name, dtype, **options):
    return TorchEngine(SMALL_MODEL, RECIPE, device="cuda", kernels=name, dtype=dtype, attention="triton", **options)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_a_gpu_replays_what_it_computes(name, dtype):
    with sdpa_kernel(SDPBackend.MATH):                           # of the reference: the others sum in an order that changes
        plain, graphed = on_gpu(name, dtype, graphs=False), on_gpu(name, dtype)
        assert plain._graphs is None and graphed.about.endswith(", CUDA graphs")
        assert train(graphed, 6) == train(plain, 6)
    assert_same(graphed, plain)
    assert not graphed._graphs.failed
    assert all(isinstance(graph, torch.cuda.CUDAGraph) for graph in graphed._graphs._graphs.values())
    assert graphed.loss(*batch(SMALL_MODEL, 3, 20)) == plain.loss(*batch(SMALL_MODEL, 3, 20))


@pytest.mark.gpu
def test_cudnns_attention_can_be_captured():
    made = TorchEngine(ModelConfig(**preset("nano").model), RECIPE, device="cuda", kernels="triton", attention="cudnn")
    losses = [made.train_step([batch(made.config, 2, 128)], 1e-3).loss for _ in range(6)]
    assert not made._graphs.failed
    assert losses[-1] < losses[0]


@pytest.mark.gpu
def test_a_failed_capture_poisons_nothing(capsys):
    """What waits cannot be captured. The process then captures, frees memory and trains as if nothing had happened."""
    device, x = torch.device("cuda", torch.cuda.current_device()), torch.ones(1000, device="cuda")
    graphs, stream, sums = Graphs(device), torch.cuda.current_stream(), []
    for _ in range(3):
        graphs.run("key", lambda: sums.append(x.sum().item()))
    assert graphs.failed and sums == [1000, 1000, 1000]
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert torch.cuda.current_stream() == stream
    torch.cuda.empty_cache()
    plain, graphed = on_gpu("triton", "bfloat16", graphs=False), on_gpu("triton", "bfloat16")
    assert train(graphed, 4) == train(plain, 4)
    assert not graphed._graphs.failed


@pytest.mark.gpu
def test_products_sum_in_float32():
    """Two micro-batches: the sums in the products agree with sums of rounded gradients to the rounding of bfloat16."""
    inside, after = (on_gpu("triton", "bfloat16", graphs=False) for _ in range(2))
    for layer in after.model.layers:
        layer.block = layer.block.func                           # without the engine's `products`
    train(inside, 1)
    train(after, 1)
    assert not torch.equal(inside._grads.flat, after._grads.flat)
    for name, grad in inside._grads.views.items():
        other = after._grads.views[name]
        assert (grad - other).abs().max() <= 2.0**-7 * other.abs().max(), name
