"""CUDA graphs: the work of a training step is recorded once, and from then on started as a whole.

A GPU works through a queue. For each entry Python looks up the op, allocates its output and launches a kernel: some microseconds, about as
long as a small model's kernel runs. Such a model is as fast as Python, not as the GPU. A CUDA graph is a recording of the queue: which
kernels, with which arguments, after which others. While a stream is being *captured*, launches are written into the graph and nothing
runs; a *replay* then hands the whole graph to the GPU in one call. Python is out of the way, and the numbers are the same to the last
bit, because the kernels and their arguments are.

A recording repeats what it saw. What may change between replays has to change in the device's memory, at an address that stays:

    arguments   A Python number is an argument like any other: a learning rate in the launch would be that of the recorded step for ever.
                The share of a micro-batch and the factors of AdamW are therefore tensors, which are written before the replay.
    addresses   Parameters, gradients, moments, tokens and targets lie where they lay when the graph was captured. What is allocated
                meanwhile comes from a pool that belongs to the graphs. Graphs that never run at the same time share one pool.
    shapes      Another batch size, another sequence length, the first micro-batch of a step (it begins the sums of the gradients, the
                others add to them): each has a graph of its own, under its own key.
    decisions   The GPU may decide, Python may not: `.item()`, `.cpu()`, `nonzero` and everything else that waits for a result ends the
                capture with an error, for there is no result yet. So does a first use, which compiles a kernel, chooses a plan or
                reserves a workspace: the first run of each key is therefore an ordinary one.

[CUDA C++ Programming Guide, "CUDA Graphs"; PyTorch documentation, "CUDA semantics", section "CUDA Graphs".] Lesson: lessons/15_gpu.ipynb.
"""
import sys
from contextlib import suppress

import torch


class Graphs:
    """Runs functions without arguments or results, which read and write tensors that stay where they are.

    The first time that a key is run, its function runs as always, which warms up; the second time it is captured, and replayed at once;
    from then on it is replayed. All runs of a key must do the same work.

    If a capture fails, every key runs without graphs from then on, after one sentence on standard error. Nothing is lost: a capture
    computes nothing, so the function can still be run, and an error of its own will show again. Two things have to be put right.
    PyTorch's context manager does not restore the current stream if the end of the capture raises. And before version 2.12 the allocator
    then believes for ever that a capture is under way (pytorch#180395): the next empty_cache would end the process, so it is told that
    the capture has ended.
    """

    def __init__(self, device):
        self.device, self.failed = device, False
        self._graphs = {}                                        # key -> graph, None after the first run
        self._start()

    def run(self, key, function):
        """function(), the quickest way there is by now.

        Raises:
            whatever function raises, except while it is captured
        """
        if key not in self._graphs and not self.failed:
            self._warm_up(function)
            self._graphs[key] = None
            return
        if self._graphs.get(key) is None and not self.failed:
            try:
                self._graphs[key] = self._capture(function)
            except Exception as error:
                self._give_up(error)
        if self.failed:
            function()
        else:
            self._graphs[key].replay()

    def _give_up(self, error):
        self.failed = True
        self._graphs.clear()                                     # and the memory that they hold
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        print(f"note: without CUDA graphs from here on, because a capture failed: {reason}", file=sys.stderr)

    # What follows speaks to CUDA. The stream of the captures is the one of the warm-up: what PyTorch keeps per stream, such as the
    # workspaces of matrix products, exists by then, and no node of autograd remembers another stream.

    def _start(self):
        self._stream, self._pool = torch.cuda.Stream(self.device), torch.cuda.graph_pool_handle()

    def _warm_up(self, function):
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def _capture(self, function):
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.device(self.device), torch.cuda.stream(current), torch.cuda.graph(graph, self._pool, self._stream):
                function()
        except Exception:
            with suppress(RuntimeError):                         # raised where the capture has properly ended
                torch._C._cuda_endAllocateToPool(self._stream.device_index, self._pool)
            raise
        return graph
