"""What training on several GPUs costs, predicted: memory, bytes on the wire, speed, days, energy.

    memory    at the worst stage of a step, see `memory`
    wire      bytes that a GPU sends, by the formulas of kernels/parallel.py for bfloat16 (b = 2)
    speed     tokens of a step / R / (FLOPs of a GPU's rows / (MFU x peak) + what is sent while no arithmetic goes on)
    energy    Wh = GPU-hours x W x PUE;    t CO2eq = MWh x 0.385                                          [LLaMA §6, table 15]

R GPUs share the rows of a step (batch_size x grad_accum_steps): each takes ceil(rows / R), in micro-batches of at most batch_size.

Rajbhandari et al. 2020, "ZeRO" (arXiv:1910.02054), §7; Zhao et al. 2023, "PyTorch FSDP" (arXiv:2304.11277), §3. The engines that do
this are in kernels/parallel.py. "Root" is what lies outside the layers, as FSDP says: embedding, last norm and head.
"""
from typing import NamedTuple

from ..config import PRESETS
from ..errors import InputError
from ..nn import count_params
from .plan import A100_FLOPS, ASSUMED_MFU, flops_per_token, format_duration, format_size

MACHINE = 8        # GPUs of a machine, connected by NVLink, with a network card each
PUE = 1.1          # energy of the whole data centre over that of its GPUs [LLaMA §6]
CARBON = 0.385     # kg CO2eq/kWh, the average of the USA [LLaMA §6]
CONTEXT = 2e9      # bytes of a GPU, assumed: CUDA's context, NCCL's buffers, and gaps that the allocator cannot use
PROGRAM = {"fsdp": 390e6, "ddp": 300e6}  # bytes of a process on a processor: Python, PyTorch and what else training imports, measured
LOGITS = 512 * 2**20  # bytes: the most that a chunk of logits takes, kernels/linear_cross_entropy.py
PAPER_SPEED = {"65B": (380, 21)}  # tokens/s of a GPU, and days, on 2048 A100-80GB [LLaMA §2.4]


class Gpu(NamedTuple):
    """Figures of NVIDIA's data sheets, SXM versions. Bandwidths are in one direction."""

    memory: float   # bytes
    flops: float    # FLOP/s: bfloat16, dense
    watts: float    # of the paper's formula for an A100, and the largest that the data sheet allows
    nvlink: float   # bytes/s to the GPUs of the same machine
    network: float  # bytes/s of a GPU's network card: InfiniBand HDR, 200 Gbit/s, or NDR, 400 Gbit/s


DATA_SHEETS = {
    "a100": Gpu(80e9, A100_FLOPS, 400, 300e9, 25e9),
    "h100": Gpu(80e9, 989e12, 700, 450e9, 50e9),
    "h200": Gpu(141e9, 989e12, 700, 450e9, 50e9),
}


def kept_per_token(config, engine="triton", device="cuda"):
    """Bytes that a layer keeps for its backward, per token.

    Engine `triton` keeps what kernels/block.py says. Engine `torch`, autograd over kernels/reference.py, also keeps the outputs of both
    norms and a number for each, silu(gate), and its product with up; on a processor, where a norm is several ops, its normalised input too.
    """
    b = 2 if device == "cuda" else 4
    D, F, H = config.dim, config.hidden_dim, config.n_heads
    if engine == "triton":
        return b * (6 * D + 2 * F) + 4 * H
    return b * ((8 if device == "cuda" else 10) * D + 4 * F) + 4 * (H + 2)


def memory(config, rows, seq_len, gpus, parallel="fsdp", engine="triton", device="cuda", accumulates=False):
    """Bytes of a process at the worst stage of a training step.

    Args:
        rows:        int     of a micro-batch
        gpus:        int     processes R, a GPU each
        parallel:    str     "fsdp", or "ddp" with the moments and the float32 parameters split (ZeRO-1)
        engine:      str     "triton" or "torch"
        device:      str     "cuda": computed in bfloat16, sent by NCCL; "cpu": in float32 by gloo, which copies what it sends
        accumulates: bool    whether there are several micro-batches, so that their gradients lie there from the second on

    Returns:
        dict of parts, in bytes: "parameters", "moments" and "gradients", float32, what this process keeps of them; "gathered", parameters
        as they are computed with; "unreduced", gradients that are not yet summed over the processes; "activations", kept for backward;
        "work", what is needed besides while the loss or a layer is computed; "context", or the program; and "total". On a processor the
        gaps in the heap come on top, which depend on its allocator
    """
    training = config, rows * seq_len, gpus, engine, device
    stages = _fsdp_stages(*training, accumulates) if parallel == "fsdp" else _ddp_stages(*training)
    context = CONTEXT if device == "cuda" else PROGRAM[parallel]
    worst = max(stages, key=lambda parts: sum(parts.values())) | {"context": context}
    return worst | {"total": sum(worst.values())}


def _activations(config, tokens, engine, device):
    """Bytes of all tokens: kept by a layer, kept behind the last layer, and used at the loss."""
    b, D, V = (2 if device == "cuda" else 4), config.dim, config.vocab_size
    behind = tokens * (b * D * (2 if device == "cuda" else 3) + 4)  # the last norm's, and in `triton` the gradient of its output
    logits = 3 * 4 * tokens * V                                  # log-probabilities and two gradients, float32
    if engine == "triton":
        logits = min(LOGITS, b * tokens * V) + 4 * V * D         # a chunk; the head's gradient in float32
    return tokens * kept_per_token(config, engine, device), behind, logits


def _work(config, tokens, engine, b):
    """Bytes of gradients of activations while a layer computes backward."""
    D, F = config.dim, config.hidden_dim
    return b * tokens * (10 * D + 4 * F if engine == "triton" else D + 3 * F)


def _fsdp_stages(config, tokens, R, engine, device, accumulates):
    """The stages of a step that may be its worst: the loss; backward of each layer; the root's gradients at the end."""
    b, P, L = (2 if device == "cuda" else 4), count_params(config), config.n_layers
    head = config.vocab_size * config.dim
    root = 2 * head + config.dim
    layer = (P - root) / L
    copied = 4 * root if device == "cpu" else 0                  # by gloo, while it sums the root's gradients
    padded = 4 * root if device == "cpu" and config.vocab_size % R else 0  # by PyTorch, to cut them evenly
    own = {"parameters": 4 * P / R, "moments": 8 * P / R}
    kept, behind, logits = _activations(config, tokens, engine, device)
    merged = 3 * b * config.dim**2 if engine == "triton" else 0  # wq, wk and wv as one matrix: gathered, they are not neighbours

    yield own | {"gradients": 4 * P / R * accumulates, "gathered": b * (root + layer), "unreduced": 0,
                 "activations": L * kept + behind, "work": logits}
    for at in reversed(range(L)):
        summed = 4 * P / R if accumulates else 4 * layer * (L - 1 - at) / R
        yield own | {
            "gradients": summed,
            "gathered": b * (root + layer * (2 if at else 1)),   # the layer below is on its way
            "unreduced": b * (head + layer) + (4 * layer if at < L - 1 else 0),  # the head's; this layer's; the layer's above, being summed
            "activations": (at + 1) * kept,
            "work": _work(config, tokens, engine, b) + merged,
        }
    rest, last = 4 * (P - root * (not accumulates)) / R, 4 * (P + root * accumulates) / R  # without the root's sum, and with it
    ended = own | {"gathered": 0, "activations": 0, "work": 0}
    yield ended | {"gradients": rest, "unreduced": 4 * root + b * root + padded}
    yield ended | {"gradients": last, "unreduced": 4 * root + b * head + copied}  # PyTorch lets go of all of them but the head's


def _ddp_stages(config, tokens, R, engine, device):
    """The stages of a step that may be its worst: the loss; backward of the last layer, beside all activations; the update."""
    b, P, head = (2 if device == "cuda" else 4), count_params(config), config.vocab_size * config.dim
    shared, gloo = R > 1, R > 1 and device == "cpu"
    own = {"parameters": 4 * P / R, "moments": 8 * P / R, "gradients": 4 * P + 4 * P / R * shared, "gathered": 0}
    if device == "cuda":
        own["gathered"] = b * P + b * P / R * shared             # whole, and this process's part, which is sent
    elif shared:
        own["gathered"] = b * P
    kept, behind, logits = _activations(config, tokens, engine, device)
    one = b * config.dim * max(config.hidden_dim, config.vocab_size)  # a tensor's gradient, until it is added to the sum
    adamw = 3 * 4 * P / R if engine == "torch" else 0            # plain PyTorch makes three arrays; the kernel none
    yield own | {"unreduced": 0, "activations": config.n_layers * kept + behind, "work": logits}
    yield own | {"unreduced": one + 4 * head * gloo, "activations": config.n_layers * kept, "work": _work(config, tokens, engine, b)}
    yield own | {"unreduced": 0, "activations": 0, "work": max(adamw, b * P * gloo)}  # gloo's copies of gradients, or of parameters


def largest_batch(config, seq_len, gpus, parallel, engine, limit):
    """Most rows of a micro-batch whose memory is at most `limit` bytes; 0 if not even one is."""
    def fits(rows):
        return memory(config, rows, seq_len, gpus, parallel, engine, accumulates=True)["total"] <= limit

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def traffic(config, gpus, parallel="fsdp"):
    """Bytes that a GPU sends: (parameters for forward, parameters for backward, gradients). Of a micro-batch under fsdp; under ddp of a
    step, where the first are the new parameters, which all must have before the next step."""
    P, share = count_params(config), (gpus - 1) / gpus
    root = 2 * config.vocab_size * config.dim + config.dim
    return share * 2 * P, share * 2 * (P - root) * (parallel == "fsdp"), share * 4 * P


def bandwidth(gpus, gpu):
    """Bytes/s that a GPU sends in rings of all GPUs. A ring passes through all GPUs of a machine before it leaves it, and NCCL makes one
    for each network card: so the limit is a GPU's NVLink, or all cards of the smallest machine together, whichever is slower."""
    return gpu.nvlink if gpus <= MACHINE else min(gpu.nvlink, (gpus % MACHINE or MACHINE) * gpu.network)


def scale(config, recipe, gpus, gpu="a100", parallel=None, preset_name=None, train_tokens=None):
    """All figures of a training on several GPUs, as `info --gpus N --json` prints them under "gpus".

    Args:
        config, recipe: ModelConfig, TrainConfig
        gpus:         int
        gpu:          str             one of config.GPUS
        parallel:     str | None      one of config.PARALLEL; None is fsdp, and ddp on one GPU
        preset_name:  str | None      for the paper's figures, where it has some
        train_tokens: float | None    of the whole training; None where they are unknown

    Raises:
        InputError: more GPUs than rows in a step, or fsdp on one
    """
    rows = recipe.batch_size * recipe.grad_accum_steps
    if gpus > rows:
        raise InputError(f"--gpus must be at most the rows of a step, {rows:,} (batch_size x grad_accum_steps), got {gpus:,}")
    if gpus == 1 and parallel == "fsdp":
        raise InputError("--gpus must be at least 2 with --parallel fsdp, got 1")
    parallel, kind = parallel or ("fsdp" if gpus > 1 else "ddp"), DATA_SHEETS[gpu]
    own_rows = -(-rows // gpus)
    batch = min(recipe.batch_size, own_rows)
    micro_batches = -(-own_rows // batch)
    needed = {name: memory(config, batch, recipe.seq_len, gpus, parallel, engine, device, micro_batches > 1)
              for name, engine, device in (("triton", "triton", "cuda"), ("torch", "torch", "cuda"), ("processor", "torch", "cpu"))}

    forward, backward, gradients = traffic(config, gpus, parallel)
    rate = bandwidth(gpus, kind)
    compute = own_rows * recipe.seq_len * flops_per_token(config, recipe.seq_len) / (kind.flops * ASSUMED_MFU)
    third = compute / micro_batches / 3                          # a micro-batch's forward; its backward takes two
    waiting = max(0, gradients / rate - 2 * third) + forward / rate
    sent = forward + backward + gradients
    if parallel == "fsdp":
        waiting = micro_batches * (max(0, forward / rate - third) + max(0, (backward + gradients) / rate - 2 * third))
        sent *= micro_batches

    speed = rows * recipe.seq_len / gpus / (compute + waiting)
    hours = train_tokens and train_tokens / speed / 3600
    energy = hours and hours * kind.watts * PUE / 1e6
    preset, paper = PRESETS.get(preset_name), None
    if preset and preset.gpu_hours:
        speed_there, days_there = PAPER_SPEED.get(preset_name, (None, None))
        paper = {"tokens_per_s_gpu": speed_there, "days": days_there, "gpu_hours": preset.gpu_hours, "mwh": preset.mwh,
                 "tco2eq": preset.tco2eq}
    return {
        "count": gpus,
        "gpu": gpu,
        "parallel": parallel,
        "memory_bytes": needed,
        "fits": needed["triton"]["total"] <= kind.memory,
        "rows": own_rows,
        "batch_size": batch,
        "micro_batches": micro_batches,
        "largest_batch_size": largest_batch(config, recipe.seq_len, gpus, parallel, "triton", kind.memory),
        "sent_bytes": sent,
        "sent_seconds": sent / rate,
        "compute_seconds": compute,
        "waiting_seconds": waiting,
        "tokens_per_s_gpu": speed,
        "days": hours and hours / gpus / 24,
        "gpu_hours": hours,
        "mwh": energy,
        "tco2eq": energy and energy * CARBON,
        "paper": paper,
        "assumed": _assumed(kind, gpus, parallel),
    }


def _assumed(kind, gpus, parallel):
    """What the figures rest on: a list of sentences."""
    speed = f"{100 * ASSUMED_MFU:.0f}% of {kind.flops / 1e12:.0f} TFLOP/s (dense bfloat16) while a GPU computes; a small model reaches less"
    power = f"every GPU draws {kind.watts} W all the time; PUE {PUE}; {CARBON} kg CO2eq/kWh [LLaMA §6]"
    memory = f"{format_size(CONTEXT)} of a GPU for CUDA's context, NCCL's buffers and gaps that the allocator leaves"
    if gpus == 1:
        return [speed, memory, power]
    links = f"NVLink sends {kind.nvlink / 1e9:.0f} GB/s, without latency"
    if gpus > MACHINE:
        links = (f"NVLink sends {kind.nvlink / 1e9:.0f} GB/s; machines of {MACHINE} GPUs have a card of {8 * kind.network / 1e9:.0f} "
                 f"Gbit/s for each, and rings use all cards: {bandwidth(gpus, kind) / 1e9:.0f} GB/s; no latency")
    hidden = "what is sent hides behind the arithmetic that goes on meanwhile"
    if parallel == "ddp":
        hidden = "gradients hide behind backward of the last micro-batch; for the new parameters everyone waits"
    return [speed, links, hidden, memory, power]


def format_scale(recipe, figures):
    """`scale` as a part of the page of `plan.format_plan`."""
    kind, gpus, memory, paper = DATA_SHEETS[figures["gpu"]], figures["count"], figures["memory_bytes"], figures["paper"]
    split = {"fsdp": "; fsdp: all that is learned is split over them",
             "ddp": "; ddp: each has all parameters, and its part of the moments and float32 parameters"}
    needed = {name: format_size(parts["total"]) for name, parts in memory.items()}
    parts = ", ".join(f"{name} {format_size(size)}" for name, size in memory["triton"].items() if name != "total" and size)
    too_much = "" if figures["fits"] else f", more than its {format_size(kind.memory)}"
    step = f"{_rows(figures['rows'])} of {recipe.seq_len:,} tokens on each GPU"
    if figures["micro_batches"] > 1:
        step += f", {figures['batch_size']:,} at a time"
    compute, waiting, most = figures["compute_seconds"], figures["waiting_seconds"], figures["largest_batch_size"]
    wire = f"{format_size(figures['sent_bytes'])} sent by each GPU in a step, which takes {_seconds(figures['sent_seconds'])}, and " \
           f"arithmetic {_seconds(compute)}: " + (f"{_seconds(waiting)} of waiting" if waiting else "hidden")
    speed = f"{_round(figures['tokens_per_s_gpu'])} tokens/s a GPU, {100 * ASSUMED_MFU * compute / (compute + waiting):.0f}% of the peak"
    if paper and paper["tokens_per_s_gpu"]:
        speed += f"; the paper: about {paper['tokens_per_s_gpu']}, on 2048 A100"
    rows = [
        ("memory", f"{needed['triton']} of each GPU with engine triton{too_much}; with torch {needed['torch']}; "
                   f"on processors, in float32, {needed['processor']} a process"),
        ("", f"triton: {parts}"),
        ("a step", f"{step}; " + (f"up to {_rows(most)} at a time would fit" if most else "not even one row fits")),
        *([("on the wire", wire)] if gpus > 1 else []),
        ("speed", speed),
    ]
    if figures["gpu_hours"] is not None:
        training = f"{format_duration(24 * figures['days'])}, {_round(figures['gpu_hours'])} GPU-hours"
        energy = f"{_round(figures['mwh'])} MWh, {_round(figures['tco2eq'])} t CO2eq: GPU-hours x {kind.watts} W x {PUE}, x {CARBON} kg/kWh"
        if paper:
            days = f"about {paper['days']} days, " if paper["days"] else ""
            training += f"; the paper: {days}{paper['gpu_hours']:,} A100 GPU-hours"
            energy += f"; the paper: {paper['mwh']} MWh, {paper['tco2eq']} t"
        rows += [("training", training), ("energy", energy)]
    rows += zip(("assumed", *[""] * len(figures["assumed"])), figures["assumed"])
    title = f"on {gpus:,} GPU{'s' * (gpus > 1)}"
    return "\n".join([
        f"  {title:<16} predicted: {figures['gpu']}, {format_size(kind.memory)}, {kind.flops / 1e12:.0f} TFLOP/s"
        + (split[figures["parallel"]] if gpus > 1 else ""),
        *(f"    {name:<14} {text}" for name, text in rows),
    ])


def _rows(count):
    return f"{count:,} row" + "s" * (count != 1)


def _round(value):
    """Three digits of a number, written out from 1 on."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(seconds):
    return f"{_round(seconds)} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
