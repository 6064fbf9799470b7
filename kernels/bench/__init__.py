"""The benchmark: every kernel timed beside its peers and its roofline, `python -m kernels.bench`. It needs a CUDA GPU.

The machine is measured first: rooflines (kernels/roofline.py) are computed from its copy bandwidth and from its rate on the matrix
products of a model of 1.3 billion parameters. Then, for every kernel and shape, all contenders run in this one process:

    verify   outputs and gradients are compared with float64 or float32; a contender whose error is more than twice PyTorch's in the
             same dtype is not timed
    graph    N calls in a CUDA graph: the time of the GPU alone. The calls rotate among input sets that together fill four L2 caches;
             otherwise each call would find its inputs in the cache
    eager    one call on an idle GPU, between two events: the work of the host counts too

Contenders take turns, A B C A B C, for many rounds, so that a GPU that warms up slows all of them alike; ratios are taken within a
round. Memory is the peak of one call in addition to its inputs.

    __main__.py  the command line, the plan         clock.py   times, ratios, rates of the machine
    case.py      one kernel at one shape            step.py    a training step at 1.3B parameters
    peers.py     the contenders                     memory.py  the bytes kept for backward, counted without a GPU
                                                    table.py   the results as the table of kernels/README.md
"""
