"""How fast a kernel could be, predicted from its machine code: `python -m kernels.aot --predict`. Nothing here is measured.

A program (a block of threads) is taken to be serial: it waits for memory, then computes, then waits for the matrix units. Programs that
share a multiprocessor overlap. So a kernel takes the longest of four times, and a little more to start and to end:

    bytes      = bytes it must move / bandwidth                                            its roofline, if it computes little
    issue      = instructions of all warps / (4 schedulers x multiprocessors x clock)      a scheduler starts one warp's instruction a cycle
    matrix     = FLOPs of its matrix instructions / rate of a large matrix product
    latency    = programs / (multiprocessors x resident) x life of a program               resident: how many share a multiprocessor
    predicted  = START + max(bytes, issue, matrix, latency)

    resident   = min(64 warps, 65536 registers, 227 KB of shared memory) of a multiprocessor over those of a program
    life       = iterations of its loop x max(own, (LATENCY x stops + own) / (ahead + 1));   without a loop there is one iteration
    own        = instructions x max(warps / 4, 2) cycles + FLOPs / (rate / multiprocessors)
                 Two cycles: a warp's next instruction often needs the last result, which takes four cycles; two such chains are assumed
    stops      = how often an iteration waits for data that were not asked for before it began; 1 if all were
    ahead      = iterations whose data are under way while one more is waited for

`latency` contains Little's law: bandwidth x LATENCY bytes must be under way, and each multiprocessor must have asked for its share of
them, 33 KB. It can ask for resident x (ahead + 1) x the bytes that an iteration reads.

The model leaves out much: bank conflicts, barriers, instructions that take longer than others, the caches, the last programs that run
alone. So it predicts at most; what it is good for is the order of its four times, and what the next change would gain.
"""
import math
from typing import NamedTuple

from .roofline import BANDWIDTH, MATMUL, bytes_and_flops, roofline_ms

MULTIPROCESSORS, CLOCK = 132, 1.83e9  # H100, H200; Hz: 989e12 FLOP/s / (132 x 4096 FLOP a cycle), the data sheet's rate
WARPS, REGISTERS, SHARED = 64, 64 * 1024, 228 * 1024  # of a multiprocessor; CUDA takes 1 KB of shared memory for each program
LATENCY = 1e-6  # s, assumed: an idle H100 answers after about 0.3 us [Luo et al. 2024, arXiv:2402.13499], a busy one has a queue
START = 2e-6  # s, assumed: a launch in a CUDA graph, the first loads and the last stores, while the memory is not busy
SHAPE = dict(N=16384, T=2048, D=4096, F=11008, H=32, V=32000, P=2**30)  # of the examples below


class Row(NamedTuple):
    """A row of the table: an op in one direction, at the shape of an example of aot.py.

    elements: of the result;  kernels: name -> its share of the op's bytes and FLOPs, 0 for one that moves only its own small arrays;
    options: those of the launch, where the kernel has them
    """

    op: str
    direction: str
    example: str
    elements: int
    kernels: dict
    options: dict = {}  # noqa: RUF012 (never changed)
    dtype: str = "bfloat16"


N, T, D, F, H, V, P = (SHAPE[letter] for letter in ("N", "T", "D", "F", "H", "V", "P"))
NORM, LOSS, ADAMW, FLASH = ("rmsnorm D=4096 bfloat16", "cross_entropy V=32000 bfloat16", "adamw n=2^30 with a bfloat16 copy",
                            "attention Dh=128 bfloat16")
ROWS = [
    Row("rmsnorm", "forward", NORM, N * D, {"rmsnorm_forward_kernel": 1}, {"RESIDUAL": False}),
    Row("rmsnorm", "backward", NORM, N * D, {"rmsnorm_backward_kernel": 1, "column_sum_kernel": 0}, {"RESIDUAL": False}),
    Row("add_rmsnorm", "forward", NORM, N * D, {"rmsnorm_forward_kernel": 1}, {"RESIDUAL": True}),
    Row("add_rmsnorm", "backward", NORM, N * D, {"rmsnorm_backward_kernel": 1, "column_sum_kernel": 0}, {"RESIDUAL": True}),
    Row("rope", "forward", "rope Dh=128 bfloat16", 2 * N * D, {"rope_kernel": 1}, {"BACKWARD": False}),
    Row("rope", "backward", "rope Dh=128 bfloat16", 2 * N * D, {"rope_kernel": 1}, {"BACKWARD": True}),
    Row("swiglu", "forward", "swiglu F=11008 bfloat16", N * F, {"swiglu_forward_kernel": 1}),
    Row("swiglu", "backward", "swiglu F=11008 bfloat16", N * F, {"swiglu_backward_kernel": 1}, {"PRODUCT": False}),
    Row("cross_entropy", "forward", LOSS, N * V, {"cross_entropy_forward_kernel": 1, "mean_kernel": 0}),
    Row("cross_entropy", "backward", LOSS, N * V, {"cross_entropy_backward_kernel": 1}),
    Row("cross_entropy", "forward+backward", LOSS, N * V, {"cross_entropy_one_pass_kernel": 1}),
    Row("embedding", "forward", "embedding D=4096 bfloat16", N * D, {"embedding_forward_kernel": 1}),
    Row("adamw", "forward", ADAMW, P, {"square_sum_kernel": 1, "clip_kernel": 0}, dtype="float32"),
    Row("adamw", "backward", ADAMW, P, {"adamw_kernel": 1}, dtype="float32"),
    Row("attention", "forward", FLASH, N * T * H // 2, {"attention_forward_kernel": 1}),
    Row("attention", "backward", FLASH, N * T * H // 2, {"attention_dq_kernel": 3 / 5, "attention_dkdv_kernel": 4 / 5}),
]


def resident(found):
    """Programs that a multiprocessor holds at a time. found: what `aot.compile_launch` says of them."""
    warps = found["options"]["num_warps"]
    registers = -(-found["registers"] // 8) * 8 * 32 * warps     # they are given to threads in eights
    return min(WARPS // warps, REGISTERS // registers, SHARED // (found["shared"] + 1024), 32)


class Prediction(NamedTuple):
    """Seconds, and what they follow from."""

    seconds: float
    limit: str           # the longest of the four times
    times: dict          # bytes, issue, matrix, latency: seconds
    resident: int        # programs on a multiprocessor
    in_flight: float     # bytes that a multiprocessor has asked for at a time
    instructions: float  # of all threads together


def predict(found, size, flops=0, bandwidth=BANDWIDTH, matmul=MATMUL):
    """Predict the time of one launch.

    Args:
        found: dict    what `aot.compile_launch` says of it
        size:  float   bytes that it must move;  flops: that its matrix instructions must compute
        bandwidth, matmul: of the GPU, per second

    Returns:
        Prediction
    """
    hot, programs, warps = found["hot"], found["programs"], found["options"]["num_warps"]
    held = min(resident(found), math.ceil(programs / MULTIPROCESSORS))
    moved, multiplied = 32 * warps * (hot["loads"] + hot["stores"]), warps * hot["multiplied"]  # by an iteration of a program
    looped = hot["instructions"] < found["instructions"]
    trips = (flops / multiplied if multiplied else size / moved) / programs if looped else 1
    own = hot["instructions"] * max(warps / 4, 2) / CLOCK + multiplied * MULTIPROCESSORS / matmul
    iteration = max(own, (LATENCY * max(1, hot["stops"]) + own) / (hot["ahead"] + 1))
    instructions = programs * warps * (found["instructions"] + (trips - 1) * hot["instructions"])
    times = {
        "bytes": size / bandwidth,
        "issue": instructions / (4 * MULTIPROCESSORS * CLOCK),
        "matrix": programs * trips * multiplied / matmul,
        "latency": max(1, programs / (MULTIPROCESSORS * held)) * trips * iteration,
    }
    limit = max(times, key=times.get)
    in_flight = held * 32 * warps * hot["loads"] * (hot["ahead"] + 1)
    return Prediction(START + times[limit], limit, times, held, in_flight, 32 * instructions)


def of_row(row, found):
    """The parts of one Row's prediction: a list of (what `aot.compile_launch` says of a launch, its Prediction).

    found: iterable of what it says of all launches.
    """
    size, flops = bytes_and_flops(row.op, row.direction, SHAPE, row.dtype)
    parts = []
    for one in found:
        options, share = one["options"], row.kernels.get(one["kernel"])
        if one["example"] == row.example and share is not None and all(options.get(name, value) == value
                                                                       for name, value in row.options.items()):
            parts.append((one, predict(one, share * size or one["bytes"], share * flops)))
    return parts


HEAD = ("kernel", "instructions per element", "load / store width, bytes", "ahead", "stops / matrix waits / barriers", "registers",
        "resident", "KB in flight", "µs: bytes / issue / matrix / latency", "limit", "predicted % of roofline")


def table(found):
    """The table in Markdown. found: what `aot.compile_launch` says of the launches of all examples in ROWS."""
    found, lines = list(found), ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for row in ROWS:
        parts = of_row(row, found)
        least = roofline_ms(bytes_and_flops(row.op, row.direction, SHAPE, row.dtype)) / 1e3
        percent = 100 * least / sum(predicted.seconds for _, predicted in parts)
        for one, predicted in parts:
            if share := row.kernels[one["kernel"]]:
                hot, part = one["hot"], one["kernel"].removesuffix("_kernel").rpartition("_")[2]
                cells = (f"{row.op}, {row.direction if share == 1 else part}", f"{predicted.instructions / row.elements:.1f}",
                         f"{hot['load_width']} / {hot['store_width'] or '–'}", hot["ahead"],
                         f"{hot['stops']} / {hot['matrix_waits']} / {hot['barriers']}", one["registers"], predicted.resident,
                         f"{predicted.in_flight / 1e3:.0f}", " / ".join(f"{1e6 * seconds:.0f}" for seconds in predicted.times.values()),
                         predicted.limit, f"{percent:.0f}")
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"
