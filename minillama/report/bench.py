"""How fast is it, and where does the time go: the NumPy engine beside PyTorch, in one run, and every op beside its roofline.

    train     one optimiser step on the same model and batch: NumPy, PyTorch eager, torch.compile
    decode    greedy tokens per second with the key/value cache, beside what the memory bandwidth allows
    profile   every op alone, forward and backward, at the shape of a training step

Each contender lives in a process of its own, so that thread pools do not disturb each other and peak memory is its own. They
take turns, A B A B, and medians are compared: a machine that slows down slows both. All get the same allocator settings
(machine.py). The roofline of a step is its floating-point operations over this machine's own sgemm rate, measured in the same run.
"""
import json
import statistics
import subprocess
import sys
import time

from .. import machine

SHAPES = {  # the shapes of `--shapes`: model, batch, sequence length
    "a": ({"dim": 128, "n_layers": 4, "n_heads": 4, "vocab_size": 65, "multiple_of": 8, "max_seq_len": 64}, 12, 64),
    "b": ({"dim": 288, "n_layers": 6, "n_heads": 6, "vocab_size": 4096, "multiple_of": 32, "max_seq_len": 256}, 8, 256),
    "c": ({"dim": 512, "n_layers": 8, "n_heads": 8, "vocab_size": 8192, "multiple_of": 32, "max_seq_len": 512}, 4, 512),
}
DECODE = {"dim": 288, "n_layers": 6, "n_heads": 6, "vocab_size": 32000, "multiple_of": 32, "max_seq_len": 256}  # stories15M
DECODE_TOKENS = 256
SECONDS = 6.0  # of work for each contender at each shape
DISTURBED = 2.0  # ninth over first decile of one contender's times; on a quiet machine less than 1.3
LR = 1e-3


# --------------------------------------------------------------------------------------------------- the contenders, a process each

def _numpy_train(shape, threads):
    import numpy as np

    from ..config import ModelConfig, TrainConfig
    from ..engine.numpy_engine import NumpyEngine

    model, batch, seq_len = SHAPES[shape]
    config = ModelConfig(**model)
    base = machine.peak_memory()
    engine = NumpyEngine(config, TrainConfig(), threads=threads)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch, seq_len + 1))
    return lambda: engine.train_step([(tokens[:, :-1], tokens[:, 1:])], LR), base


def _torch_model(config):
    """The same LLaMA of torch.nn modules, as one would write it in PyTorch."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    from ..engine.factory import kernels_module

    reference = kernels_module("reference")

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            D, hidden = config.dim, config.hidden_dim
            self.attention_norm, self.ffn_norm = nn.RMSNorm(D, config.norm_eps), nn.RMSNorm(D, config.norm_eps)
            self.wq, self.wk, self.wv, self.wo = (nn.Linear(D, D, bias=False) for _ in range(4))
            self.w1, self.w3 = nn.Linear(D, hidden, bias=False), nn.Linear(D, hidden, bias=False)
            self.w2 = nn.Linear(hidden, D, bias=False)

        def forward(self, x, cos, sin):
            heads = (*x.shape[:2], config.n_heads, config.head_dim)
            n = self.attention_norm(x)
            q, k, v = self.wq(n).view(heads), self.wk(n).view(heads), self.wv(n).view(heads)
            q, k, v = (t.transpose(1, 2) for t in (reference.rope_forward(q, cos, sin), reference.rope_forward(k, cos, sin), v))
            x = x + self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape))
            m = self.ffn_norm(x)
            return x + self.w2(F.silu(self.w1(m)) * self.w3(m))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
            self.layers = nn.ModuleList(Block() for _ in range(config.n_layers))
            self.norm, self.output = nn.RMSNorm(config.dim, config.norm_eps), nn.Linear(config.dim, config.vocab_size, bias=False)
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=0.02)
            cos, sin = reference.rope_tables(config.max_seq_len, config.head_dim, config.rope_theta)
            self.register_buffer("cos", cos)
            self.register_buffer("sin", sin)

        def forward(self, tokens, targets):
            x, T = self.tok_embeddings(tokens), tokens.shape[1]
            for layer in self.layers:
                x = layer(x, self.cos[:T], self.sin[:T])
            return F.cross_entropy(self.output(self.norm(x)).flatten(0, 1), targets.flatten())

    torch.manual_seed(0)
    return Model()


def _torch_train(shape, threads, compiled=False):
    import torch

    from ..config import ModelConfig

    torch.set_num_threads(threads)
    model, batch, seq_len = SHAPES[shape]
    config = ModelConfig(**model)
    base = machine.peak_memory()
    module = _torch_model(config)
    groups = [{"params": [p for p in module.parameters() if (p.ndim > 1) == matrix], "weight_decay": 0.1 * matrix} for matrix in (1, 0)]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    tokens = torch.randint(0, config.vocab_size, (batch, seq_len + 1))
    forward = torch.compile(module) if compiled else module

    def step():
        optimizer.zero_grad()
        loss = forward(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step, base


def _numpy_decode(shape, threads):
    import numpy as np

    from ..config import ModelConfig
    from ..engine.numpy_engine import NumpyEngine
    from ..generate import Sampling, generate

    base = machine.peak_memory()
    engine = NumpyEngine(ModelConfig(**DECODE), threads=threads)
    rng = np.random.default_rng(0)
    prompt = [int(rng.integers(3, 1000))]
    return lambda: sum(1 for _ in generate(engine, prompt, DECODE_TOKENS, eos_id=-1, sampling=Sampling(temperature=0))), base


def _huggingface_decode(shape, threads):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ..config import ModelConfig

    torch.set_num_threads(threads)
    base = machine.peak_memory()
    shape = ModelConfig(**DECODE)
    config = LlamaConfig(vocab_size=shape.vocab_size, hidden_size=shape.dim, intermediate_size=shape.hidden_dim,
                         num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads,
                         max_position_embeddings=shape.max_seq_len, eos_token_id=None)
    model = LlamaForCausalLM(config).eval()
    prompt = torch.tensor([[5]])

    def write():
        with torch.inference_mode():
            new = DECODE_TOKENS - 1
            return model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new, min_new_tokens=new)

    return write, base


CONTENDERS = {
    "numpy": _numpy_train,
    "torch": _torch_train,
    "compile": lambda shape, threads: _torch_train(shape, threads, compiled=True),
    "numpy decode": _numpy_decode,
    "huggingface decode": _huggingface_decode,
}


def _serve(contender, shape, threads):
    """The life of a contender's process: a line in is a number of runs, a line out their times and the memory so far."""
    reply, sys.stdout = sys.stdout, sys.stderr
    try:
        run, base = CONTENDERS[contender](shape, threads)
        run()
    except ImportError as error:
        print(json.dumps({"absent": str(error)}), file=reply, flush=True)
        return
    print(json.dumps({"ready": True}), file=reply, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        print(json.dumps({"times": times, "mb": (machine.peak_memory() - base) / 2**20}), file=reply, flush=True)


class Contender:
    """A process that runs one workload on demand; `times` collects seconds per run, `mb` the peak memory above its imports, in MiB."""

    def __init__(self, name, shape, threads):
        self.name, self.times, self.mb = name, [], 0.0
        command = [sys.executable, "-m", "minillama.report.bench", name, shape, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.absent = self._read().get("absent")

    def _read(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"absent": f"it stopped with status {self.process.wait()}"}

    def run(self, n):
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        answer = self._read()
        if "absent" in answer:
            self.absent = answer["absent"]
            return 0.0
        self.times += answer["times"]
        self.mb = answer["mb"]
        return sum(answer["times"])

    @property
    def median(self):
        return statistics.median(self.times) if self.times else None

    @property
    def spread(self):
        """Ninth over first decile of the times: how much the machine was disturbed."""
        deciles = statistics.quantiles(self.times, n=10) if len(self.times) > 1 else [1.0]
        return deciles[-1] / deciles[0]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def compete(names, shape, threads, seconds=SECONDS, progress=lambda text: None):
    """Let contenders take turns until the slowest has worked `seconds`. Returns name -> Contender, closed."""
    contenders = {}
    for name in names:
        progress(f"{name}, shape {shape}, {threads} threads: starting")
        contenders[name] = Contender(name, shape, threads)
    present = [contender for contender in contenders.values() if not contender.absent]
    first = max((contender.run(1) for contender in present), default=1.0)
    turn = max(1, round(seconds / 6 / max(first, 1e-6)))
    for number in range(6):
        for contender in present:
            progress(f"{contender.name}, shape {shape}, {threads} threads: turn {number + 1} of 6")
            contender.run(turn)
    for contender in contenders.values():
        contender.close()
    return contenders


# --------------------------------------------------------------------------------------------------------- this machine's own rates

def sgemm_rate(threads):
    """FLOP/s of float32 matrix products as large as a training step's: the best of several runs."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2048, 512), np.float32), rng.standard_normal((512, 1376), np.float32)
    out = np.empty((2048, 1376), np.float32)
    with threadpool_limits(threads, user_api="blas"):
        best = min(_seconds(lambda: np.matmul(a, b, out=out)) for _ in range(30))
    return 2 * a.shape[0] * a.shape[1] * b.shape[1] / best


def read_bandwidth(threads):
    """Bytes/s at which threads read memory, far more of it than the caches hold: the best of three ways to read, several times each."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    from threadpoolctl import threadpool_limits

    array = np.ones(64 << 20, np.float32)                        # 256 MiB
    parts = np.array_split(array, threads)
    times = []
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        for read in 8 * (np.sum, np.max, lambda part: np.dot(part, part)):
            started = time.perf_counter()
            list(pool.map(read, parts))
            times.append(time.perf_counter() - started)
    return array.nbytes / min(times)


def _seconds(function):
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


# ----------------------------------------------------------------------------------------------------------- what the command prints

def bench_train(shapes, thread_counts, names, progress):
    """A row per shape and thread count; times are medians in ms, memory is the peak above the imports, MiB."""
    from ..config import ModelConfig
    from .plan import step_flops

    rows = []
    for threads in thread_counts:
        rate = sgemm_rate(threads)
        for shape in shapes:
            model, batch, seq_len = SHAPES[shape]
            done = compete(names, shape, threads, progress=progress)
            milliseconds = {name: contender.median and 1e3 * contender.median for name, contender in done.items()}
            ours, theirs, compiled = (milliseconds.get(name) for name in ("numpy", "torch", "compile"))
            rows.append({
                "shape": shape,
                "threads": threads,
                "numpy_ms": ours,
                "torch_ms": theirs,
                "ratio": ours / theirs if theirs else None,
                "compile_ms": compiled,
                "compile_ratio": ours / compiled if compiled else None,
                "gemm_roofline_ms": 1e3 * step_flops(ModelConfig(**model), batch, seq_len) / rate,
                "sgemm_gflops": rate / 1e9,
                "numpy_mb": done["numpy"].mb,
                "torch_mb": done["torch"].mb if theirs else None,
                "spread": max(contender.spread for contender in done.values()),
            })
    return rows


def bench_decode(thread_counts, names, progress):
    """A row per thread count: greedy tokens/s, and the roofline of memory: every weight but the embedding is read once per token, at this
    machine's best rate. What stays in a cache from one token to the next need not be read again: a small model can be above it."""
    from ..config import ModelConfig
    from ..nn import count_params

    config = ModelConfig(**DECODE)
    read = 4 * (count_params(config) - config.vocab_size * config.dim)
    rows = []
    for threads in thread_counts:
        bandwidth = read_bandwidth(threads)
        done = compete(names, "a", threads, progress=progress)
        rate = {name: DECODE_TOKENS / contender.median if contender.median else None for name, contender in done.items()}
        rows.append({
            "threads": threads,
            "tokens_per_s": rate["numpy decode"],
            "roofline_tokens_per_s": bandwidth / read,
            "huggingface_tokens_per_s": rate.get("huggingface decode"),
            "read_gb_per_s": bandwidth / 1e9,
            "spread": max(contender.spread for contender in done.values()),
        })
    return rows


def environment():
    """What the figures depend on: processor, versions, allocator and BLAS settings."""
    import os
    import platform

    import numpy as np
    from threadpoolctl import threadpool_info

    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):                          # Linux, which gives the processor no name elsewhere
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), model)
    blas = next((pool for pool in threadpool_info() if pool["user_api"] == "blas"), {})
    return {
        "processor": f"{model}, {machine.default_threads()} cores",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": f"{blas.get('internal_api')} {blas.get('version')} {blas.get('architecture')}",
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "allocator": f"{' '.join(platform.libc_ver())}, mmap and trim thresholds 1 GiB, one arena, for every contender",
        "openblas_coretype": os.environ.get("OPENBLAS_CORETYPE"),
    }


def _version(package):
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cell(value, form):
    return format(value, form) if value is not None else "absent"


def format_bench(result):
    """The result of `bench` as text."""
    lines = [f"{key:<18} {value}" for key, value in result["environment"].items() if value is not None]
    if result["train"]:
        lines += ["", "one training step, medians: ours over theirs (below 1 we are faster), and over the roofline of the matrix products",
                  f"{'shape':<6} {'threads':>7} {'numpy ms':>9} {'torch ms':>9} {'ratio':>6} {'compile ms':>11} {'ratio':>6} "
                  f"{'roofline':>9} {'over it':>8} {'numpy MiB':>9} {'torch MiB':>9}"]
        for row in result["train"]:
            lines.append(f"{row['shape']:<6} {row['threads']:>7} {row['numpy_ms']:9.1f} {_cell(row['torch_ms'], '9.1f'):>9} "
                         f"{_cell(row['ratio'], '6.2f'):>6} {_cell(row['compile_ms'], '11.1f'):>11} "
                         f"{_cell(row['compile_ratio'], '6.2f'):>6} "
                         f"{row['gemm_roofline_ms']:9.1f} {row['numpy_ms'] / row['gemm_roofline_ms']:8.2f} {row['numpy_mb']:9.0f} "
                         f"{_cell(row['torch_mb'], '9.0f'):>9}")
    if result["decode"]:
        lines += ["", "greedy decoding, the shape of stories15M, 256 tokens",
                  f"{'threads':>7} {'tokens/s':>9} {'roofline':>9} {'of it':>6} {'at GB/s':>8} {'Hugging Face':>13} {'ratio':>6}"]
        for row in result["decode"]:
            peer = row["huggingface_tokens_per_s"]
            lines.append(f"{row['threads']:>7} {row['tokens_per_s']:9.0f} {row['roofline_tokens_per_s']:9.0f} "
                         f"{row['tokens_per_s'] / row['roofline_tokens_per_s']:6.0%} {row['read_gb_per_s']:8.1f} "
                         f"{_cell(peer, '13.0f'):>13} {_cell(peer and row['tokens_per_s'] / peer, '6.2f'):>6}")
    spread = max(row["spread"] for row in [*result["train"], *result["decode"]])
    if spread > DISTURBED:
        lines += ["", f"disturbed: single times of one contender differ {spread:.1f} times. Other programs ran beside this one: "
                  "these figures and ratios say little, repeat it on a quiet machine"]
    return "\n".join(lines)


def bench(shapes, thread_counts, progress=lambda text: None):
    """Everything: {"environment", "train": [...], "decode": [...]}."""
    return {
        "environment": environment(),
        "train": bench_train(shapes, thread_counts, ("numpy", "torch", "compile"), progress),
        "decode": bench_decode(thread_counts, ("numpy decode", "huggingface decode"), progress),
    }


# ------------------------------------------------------------------------------------------------------- where the time of a step goes

def profile(shape, threads=1, repeats=7):
    """Time every op alone at the shape of a training step.

    Returns:
        list of {"op", "calls", "forward_ms", "backward_ms", "share", "gflop", "rate", "of_sgemm"}: milliseconds of all its calls
        in one step, share of the sum, floating-point operations (matrix products only), their rate and what part of this
        machine's sgemm rate that is; for the other ops the rate is in GB/s of arrays read and written
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    from .. import nn
    from ..config import ModelConfig
    from ..optim import adamw_step

    model, B, T = SHAPES[shape]
    config = ModelConfig(**model)
    D, F, H, Dh, L, V = config.dim, config.hidden_dim, config.n_heads, config.head_dim, config.n_layers, config.vocab_size
    rng = np.random.default_rng(0)

    def draw(*sizes):
        return rng.standard_normal(sizes, np.float32)

    tokens = rng.integers(0, V, (B, T))
    tables = nn.rope_tables(T, Dh)
    n, P = B * T, nn.count_params(config)
    qkv = [draw(B, T, H, Dh) for _ in range(3)]

    def linear(fan_in, fan_out):
        arguments = draw(B, T, fan_in), draw(fan_out, fan_in)
        return nn.linear_forward, nn.linear_backward, arguments, 2 * n * fan_in * fan_out, 0

    # op: calls in a step, forward, backward, arguments, FLOPs and bytes of one forward (backward: twice both)
    ops = {
        "linear D x D (q, k, v, o)": (4 * L, *linear(D, D)),
        "linear D x F (gate, up)": (2 * L, *linear(D, F)),
        "linear F x D (down)": (L, *linear(F, D)),
        "linear D x V (head)": (1, *linear(D, V)),
        "attention": (L, nn.attention_forward, nn.attention_backward, qkv, 2 * B * H * T * T * Dh, 0),
        "rmsnorm": (2 * L + 1, nn.rmsnorm_forward, nn.rmsnorm_backward, (draw(B, T, D), draw(D)), 0, 8 * n * D),
        "rope": (2 * L, nn.rope_forward, nn.rope_backward, (qkv[0], *tables), 0, 8 * n * D),
        "swiglu": (L, nn.swiglu_forward, nn.swiglu_backward, (draw(B, T, F), draw(B, T, F)), 0, 12 * n * F),
        "cross entropy": (1, nn.cross_entropy_forward, nn.cross_entropy_backward, (draw(B, T, V), tokens), 0, 8 * n * V),
        "embedding": (1, nn.embedding_forward, nn.embedding_backward, (tokens, draw(V, D)), 0, 8 * n * D),
    }

    def median(function):
        function()
        return statistics.median(_seconds(function) for _ in range(repeats))

    rows = []
    with threadpool_limits(threads, user_api="blas"):
        for op, (calls, forward, backward, arguments, flops, size) in ops.items():
            out, cache = forward(*arguments)
            dout = 1.0 if np.ndim(out) == 0 else out
            times = (median(lambda f=forward, a=arguments: f(*a)), median(lambda b=backward, d=dout, c=cache: b(d, c)))
            rows.append((op, calls, *times, 3 * flops, 3 * size))
        arrays = [draw(P) for _ in range(4)]
        arrays[3] = np.abs(arrays[3])
        rows.append(("adamw", 1, median(lambda: adamw_step(*arrays, 1, LR)), 0.0, 0, 28 * P))
    rate = sgemm_rate(threads)
    total = sum(calls * (forward + backward) for _, calls, forward, backward, _, _ in rows)
    return [
        {
            "op": op,
            "calls": calls,
            "forward_ms": 1e3 * calls * forward,
            "backward_ms": 1e3 * calls * backward,
            "share": calls * (forward + backward) / total,
            "gflop": calls * flops / 1e9,
            "rate": (flops or size) / (forward + backward) / 1e9,
            "of_sgemm": flops / (forward + backward) / rate if flops else None,
        }
        for op, calls, forward, backward, flops, size in rows
    ]


def format_profile(rows):
    """The result of `profile` as text."""
    lines = [f"{'op':<28} {'calls':>5} {'forward ms':>11} {'backward ms':>12} {'share':>6} {'GFLOP':>7} {'rate':>14}"]
    for row in rows:
        rate = f"{row['rate']:6.0f} GB/s" if row["of_sgemm"] is None else f"{row['rate']:.0f} GFLOP/s"
        part = "" if row["of_sgemm"] is None else f" {row['of_sgemm']:4.0%} of sgemm"
        lines.append(f"{row['op']:<28} {row['calls']:>5} {row['forward_ms']:11.2f} {row['backward_ms']:12.2f} {row['share']:6.1%} "
                     f"{row['gflop'] or 0:7.1f} {rate:>14}{part}")
    total = sum(row["forward_ms"] + row["backward_ms"] for row in rows)
    return "\n".join([*lines, f"{'all, in this order and alone':<28} {'':>5} {total:24.2f} ms"])


if __name__ == "__main__":
    machine.prepare()
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
