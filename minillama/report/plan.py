"""What a model costs before it is trained: parameters, arithmetic, memory, time.

    forward, per token    2 (P - V D)  +  2 L T D          every matrix entry is one multiply and one add; the second term is
                                                           q k^T and probs v over the causal half of a context of T
    training, per token   three times that: backward multiplies by both operands of every product

The embedding is a lookup and costs no arithmetic, hence P - V D. Kaplan et al. 2020 (arXiv:2001.08361), §2.1;
[LLaMA table 15] for the GPU-hours.
"""
from ..config import PRESETS
from ..errors import InputError
from ..machine import has_cuda, total_memory
from ..nn import count_params

A100_FLOPS = 312e12  # bfloat16, dense, one A100-80GB
ASSUMED_MFU = 0.5    # of it that a well-made training reaches
OVERHEAD = 1.4       # a step of the NumPy engine over its matrix products alone, see the benchmark
PROGRAM = 80e6       # bytes: Python with NumPy, SentencePiece and matplotlib


def flops_per_token(config, seq_len):
    """Floating-point operations to train on one token, forward and backward: float."""
    matrices = count_params(config) - config.vocab_size * config.dim
    return 3 * (2 * matrices + 2 * config.n_layers * seq_len * config.dim)


def step_flops(config, batch_size, seq_len):
    """Floating-point operations of one training step on a batch: float."""
    return flops_per_token(config, seq_len) * batch_size * seq_len


def train_memory(config, batch_size, seq_len):
    """Bytes a run of the NumPy engine uses to train in float32: dict of parts, within 20 % of what the system then counts.

    Per token and layer the caches hold 8 D (both norms' inputs and outputs, q, k, v, attention's output), the 4 F of SwiGLU
    (gate, up, sigmoid, product) and one row of H probabilities per position; then V probabilities of the loss.
    Three arrays of V (logits, probabilities, their gradient) are alive at the peak. Gradients are held twice: summed, and
    of the batch at work.
    """
    parameters = 4 * count_params(config)
    tokens = batch_size * seq_len
    layer = 8 * config.dim + 4 * config.hidden_dim + config.n_heads * seq_len
    activations = 4 * tokens * (config.n_layers * layer + 3 * config.vocab_size + 4 * config.dim)
    parts = {"program": PROGRAM, "parameters": parameters, "gradients": 2 * parameters, "moments": 2 * parameters}
    parts["activations"] = activations
    return parts | {"total": sum(parts.values())}


def check_memory(config, engine):
    """Refuse a training that this machine has no memory for, before anything is built.

    Args:
        config: RunConfig
        engine: EngineConfig    settled. What a GPU holds is not counted here: only the parameters pass through this machine's memory, and
                                of several processes with GPUs only a tensor at a time

    Raises:
        InputError: with the bytes needed, and there
    """
    recipe, there = config.train, total_memory()
    rows = recipe.batch_size * recipe.grad_accum_steps
    needed = {} if engine.parallel and engine.device != "cpu" and has_cuda() else {"the model": 4 * count_params(config.model)}
    needed["the batch of a step"] = 5 * 8 * rows * recipe.seq_len  # ids and targets in int64, and what they are made of
    if engine.name == "numpy" or engine.device == "cpu":
        needed["training"] = train_memory(config.model, recipe.batch_size, recipe.seq_len)["total"]
    for what, size in needed.items():
        if there and size > there:
            raise InputError(f"{what} needs about {format_size(size)} of memory ({count_params(config.model):,} parameters, {rows:,} rows "
                             f"of {recipe.seq_len:,} tokens a step), and this machine has {format_size(there)}: choose a smaller model or "
                             "batch")


ELSEWHERE = ("steps", "train_tokens", "train_flops", "gpu_hours_estimate", "hours_here")  # unknown of what was trained elsewhere


def plan(config, recipe, preset_name=None, trained_here=True, rate=None):
    """All figures of a model and its training, as `info --json` prints them; for a model that was not trained here, those of ELSEWHERE
    are None.

    rate: float    FLOP/s of this machine's matrix products, for `hours_here`: how long the NumPy engine takes for the training
    """
    tokens = recipe.steps * recipe.grad_accum_steps * recipe.batch_size * recipe.seq_len
    flops = flops_per_token(config, recipe.seq_len)
    paper = PRESETS.get(preset_name)
    hours = paper.gpu_hours if paper else None
    trained = paper.train_tokens if paper and paper.train_tokens else tokens
    figures = {
        "parameters": count_params(config),
        "head_dim": config.head_dim,
        "hidden_dim": config.hidden_dim,
        "flops_per_token": flops,
        "tokens_per_step": recipe.grad_accum_steps * recipe.batch_size * recipe.seq_len,
        "steps": recipe.steps,
        "train_tokens": trained,
        "train_flops": flops * trained,
        "memory_bytes": train_memory(config, recipe.batch_size, recipe.seq_len),
        "gpu_hours_estimate": flops * trained / (A100_FLOPS * ASSUMED_MFU) / 3600,
        "gpu_hours_paper": hours,
        "mfu_paper": flops * trained / (A100_FLOPS * hours * 3600) if hours else None,
        "hours_here": flops * trained * OVERHEAD / rate / 3600 if rate else None,
    }
    return figures if trained_here else figures | dict.fromkeys(ELSEWHERE)


def format_size(n):
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:,.0f} TB"


def format_duration(hours):
    for unit, size in (("years", 8766), ("days", 24), ("hours", 1), ("minutes", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:,.0f} {unit}"
    return f"{3600 * hours:.3g} seconds"


def format_plan(title, config, figures):
    """`plan` as a page for people."""
    memory = figures["memory_bytes"]
    parts = ", ".join(f"{name} {format_size(size)}" for name, size in memory.items() if name != "total")
    paper = ""
    if figures["gpu_hours_paper"]:
        paper = f"; the paper's {figures['gpu_hours_paper']:,} are {100 * figures['mfu_paper']:.0f}% of it [LLaMA table 15]"
    training, in_all, hours = "elsewhere", "", []
    if figures["train_tokens"] is not None:
        training = f"{figures['train_tokens']:.3g} tokens, {figures['tokens_per_step']:,} a step"
        in_all = f", {figures['train_flops']:.3g} in all"
        rate = f"{100 * ASSUMED_MFU:.0f}% of {A100_FLOPS / 1e12:.0f} TFLOP/s"
        hours = [f"  A100 GPU-hours   {figures['gpu_hours_estimate']:,.3g} at {rate}{paper}"]
        if figures["hours_here"] is not None:
            here = format_duration(figures["hours_here"])
            hours.append(f"  time here        about {here} with the NumPy engine, by the speed of this machine's matrix products")
    return "\n".join([
        title,
        f"  shape            dim {config.dim}, {config.n_layers} layers, {config.n_heads} heads of {config.head_dim}, "
        f"hidden {config.hidden_dim}, vocabulary {config.vocab_size}, context {config.max_seq_len}",
        f"  parameters       {figures['parameters']:,}",
        f"  training         {training}",
        f"  arithmetic       {figures['flops_per_token']:.3g} FLOP a token{in_all}",
        f"  memory to train  {format_size(memory['total'])} in float32 with the NumPy engine: {parts}",
        *hours,
    ])
