"""Every kernel compiled ahead of time, for GPUs that this machine does not have: `python -m kernels.aot`. With --predict, what the
machine code lets one predict of its speed (predict.py).

Each launcher is called on tensors without memory (device "meta") while `launch.record` records what it would launch. Each recorded
launch is specialised as Triton would specialise it, and compiled to machine code. The result must have:

    no 64-bit floats       they run at a fraction of the speed
    no register spills     they go through memory; outside of loops a few do no harm (sass.py counts them)
    shared memory          no more than a multiprocessor has
    64-bit offsets         no 32-bit product with an argument: row * stride overflows at 2^31 elements
    matrix instructions    if the kernel multiplies tiles

Triton cannot compile and interpret in one process: TRITON_INTERPRET must not be set here.
"""
import argparse
import json
import math
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import launch, predict
from .interpreter import interpreted
from .sass import look

TARGETS = {"sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}  # bytes a program may use
MATRIX = {"sm_80": r"mma\.sync", "sm_90": r"wgmma|mma\.sync", "gfx942": r"v_mfma"}
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int64: "*i64", torch.int32: "*i32"}


def _meta(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def _rmsnorm(N, D, dtype):
    from .rmsnorm import add_rmsnorm_backward, add_rmsnorm_forward, rmsnorm_backward, rmsnorm_forward

    x, weight = _meta(N, D, dtype=dtype), _meta(D, dtype=dtype)
    _, cache = rmsnorm_forward(x, weight)
    rmsnorm_backward(x, cache)
    _, cache = add_rmsnorm_forward(x, x, weight)
    add_rmsnorm_backward(x, x, cache)


def _rope(B, T, H, Dh, dtype):
    from .rope import rope_backward, rope_forward

    packed = _meta(B, T, 3 * H, Dh, dtype=dtype)
    table = _meta(T, Dh // 2, dtype=torch.float32)
    out, cache = rope_forward(packed[:, :, :2 * H], table, table)
    rope_backward(out, cache, out=packed[:, :, :2 * H])


def _swiglu(N, F, dtype):
    from .swiglu import swiglu_backward, swiglu_forward

    packed = _meta(N, 2 * F, dtype=dtype)
    out, cache = swiglu_forward(packed[:, :F], packed[:, F:])
    swiglu_backward(out, cache)
    swiglu_backward(out, cache, product=out)


def _adamw(n, copy):
    from .adamw import adamw_update, clip_coefficient

    flat = _meta(n, dtype=torch.float32)
    _, coefficient = clip_coefficient(flat, 1.0)
    factors = _meta(3, dtype=torch.float32)
    adamw_update(flat, flat, flat, flat, factors, coefficient=coefficient, copy=_meta(n) if copy else None)


def _cross_entropy(N, V, dtype):
    from .cross_entropy import cross_entropy_, cross_entropy_backward, cross_entropy_forward, inverse_count

    logits, targets = _meta(N, V, dtype=dtype), _meta(N, dtype=torch.int64)
    _, cache = cross_entropy_forward(logits, targets)
    cross_entropy_backward(1.0, cache)
    cross_entropy_(logits, targets, inverse_count(targets))


def _linear_cross_entropy(N, V, D, dtype):
    from .linear_cross_entropy import linear_cross_entropy_backward, linear_cross_entropy_forward

    targets = _meta(N, dtype=torch.int64)
    _, cache = linear_cross_entropy_forward(_meta(N, D, dtype=dtype), _meta(V, D, dtype=dtype), targets)
    linear_cross_entropy_backward(1.0, cache)


def _embedding(N, V, D, dtype):
    from .embedding import embedding_backward, embedding_forward

    out, cache = embedding_forward(_meta(N, dtype=torch.int64), _meta(V, D, dtype=dtype))
    embedding_backward(out, cache)


def _attention(B, T, H, Dh, dtype):
    from .attention import attention_backward, attention_forward

    qkv, packed = _meta(B, T, 3 * H, Dh, dtype=dtype).split(H, 2), _meta(B, T, 3 * H, Dh, dtype=dtype).split(H, 2)
    out, cache = attention_forward(*qkv)
    attention_backward(out, cache, out=packed)


def _layer(name):
    """A whole layer as the engine trains it, of a preset or of the benchmark's 1.3B model."""
    from minillama.config import PRESETS, ModelConfig
    from minillama.nn import param_shapes
    from minillama.nn.model import BLOCK_NAMES

    from .bench.step import MODEL
    from .block import block_backward, block_forward

    config = ModelConfig(**PRESETS[name].model) if name in PRESETS else MODEL
    T = config.max_seq_len
    table = _meta(T, config.head_dim // 2, dtype=torch.float32)
    params = {short: _meta(*param_shapes(config)[f"layers.0.{short}"]) for short in BLOCK_NAMES}
    out, cache = block_forward(_meta(8, T, config.dim), params, table, table, config)
    block_backward(out, cache)


EXAMPLES = {
    "layer of nano": lambda: _layer("nano"),
    "layer of micro": lambda: _layer("micro"),
    "layer of small": lambda: _layer("small"),
    "layer of 1.3B": lambda: _layer("1.3B"),
    "attention Dh=128 bfloat16": lambda: _attention(8, 2048, 32, 128, torch.bfloat16),
    "attention Dh=128 T=2047 bfloat16": lambda: _attention(8, 2047, 32, 128, torch.bfloat16),
    "attention Dh=96 T=2047 bfloat16": lambda: _attention(8, 2047, 16, 96, torch.bfloat16),
    "attention Dh=64 bfloat16": lambda: _attention(8, 2048, 32, 64, torch.bfloat16),
    "attention Dh=48 T=1000 bfloat16": lambda: _attention(8, 1000, 8, 48, torch.bfloat16),
    "attention Dh=32 float16": lambda: _attention(8, 1024, 8, 32, torch.float16),
    "attention Dh=14 T=77 float16": lambda: _attention(2, 77, 3, 14, torch.float16),
    "attention Dh=128 T=97 float32": lambda: _attention(3, 97, 5, 128, torch.float32),
    "attention Dh=50 T=97 float32": lambda: _attention(3, 97, 5, 50, torch.float32),
    "attention Dh=32 float32": lambda: _attention(8, 1024, 8, 32, torch.float32),
    "attention Dh=6 T=11 float32": lambda: _attention(1, 11, 1, 6, torch.float32),
    "cross_entropy V=32000 bfloat16": lambda: _cross_entropy(16384, 32000, torch.bfloat16),
    "cross_entropy V=32000 float32": lambda: _cross_entropy(16384, 32000, torch.float32),
    "cross_entropy V=50257 bfloat16": lambda: _cross_entropy(8192, 50257, torch.bfloat16),
    "cross_entropy V=1027 float32": lambda: _cross_entropy(15, 1027, torch.float32),
    "linear_cross_entropy V=32000 bfloat16": lambda: _linear_cross_entropy(16384, 32000, 4096, torch.bfloat16),
    "linear_cross_entropy V=16381 float32": lambda: _linear_cross_entropy(15, 16381, 97, torch.float32),
    "embedding D=4096 bfloat16": lambda: _embedding(16384, 32000, 4096, torch.bfloat16),
    "embedding D=97 float32": lambda: _embedding(41, 32, 97, torch.float32),
    "rope Dh=128 bfloat16": lambda: _rope(8, 2048, 32, 128, torch.bfloat16),
    "rope Dh=10 float32": lambda: _rope(2, 7, 3, 10, torch.float32),
    "swiglu F=11008 bfloat16": lambda: _swiglu(16384, 11008, torch.bfloat16),
    "swiglu F=97 float32": lambda: _swiglu(15, 97, torch.float32),
    "adamw n=2^30 with a bfloat16 copy": lambda: _adamw(2**30, True),
    "adamw n=2^31+1": lambda: _adamw(2**31 + 1, False),
    "rmsnorm D=4096 bfloat16": lambda: _rmsnorm(16384, 4096, torch.bfloat16),
    "rmsnorm D=8192 bfloat16": lambda: _rmsnorm(16384, 8192, torch.bfloat16),
    "rmsnorm D=97 float32": lambda: _rmsnorm(15, 97, torch.float32),
}


def specialise(call):
    """How Triton would specialise a recorded Launch: (signature, constants, attributes).

    Triton marks pointers and integers that are multiples of 16, which allows vector loads, and turns an argument that is 1 into a constant.
    """
    signature, constants, attributes = {}, {}, {}
    names = call.kernel.arg_names
    constexprs = {names[i] for i in call.kernel.constexprs}
    plain = [name for name in names if name not in constexprs]
    bound = dict(zip(plain, call.arguments)) | {name: call.options[name] for name in constexprs if name in call.options}
    for index, name in enumerate(names):
        value, fixed = bound[name], call.kernel.params[index].do_not_specialize
        if name in constexprs or (type(value) is int and value == 1 and not fixed):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0 and not fixed:
                attributes[(index,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def narrow_products(ttir):
    """32-bit products with a kernel's argument or a program's number, which overflow where tensors hold 2^31 elements or more.

    Args:
        ttir: str    Triton's intermediate code

    Returns:
        list of str, these operations
    """
    narrow = set(re.findall(r"(%\w+): i32", re.search(r"tt\.func public [^\n]*", ttir)[0]))
    narrow |= set(re.findall(r"(%\w+) = tt\.get_program_id \w+ : i32", ttir))
    narrow |= {name for name, source in re.findall(r"(%\w+) = tt\.splat (%\w+) : i32", ttir) if source in narrow}
    products = re.finditer(r"arith\.muli (%\w+), (%\w+)[^\n]* : (?:tensor<[\dx]+xi32>|i32)", ttir)
    return [match[0] for match in products if {match[1], match[2]} & narrow]


def machine_code(call, target):
    """Compile one recorded launch for one target: Triton's compiled kernel, with its code at every stage in `asm`."""
    options = {name: value for name, value in call.options.items() if name in ("num_warps", "num_stages")}
    return triton.compile(ASTSource(call.kernel, *specialise(call)), target=TARGETS[target], options=options)


def compile_launch(call, target):
    """Compile one recorded launch for one target, and look for faults.

    Returns:
        dict: kernel, target, options (its constants and warps), programs (of the launch), bytes (of its tensors, each counted once),
        shared (bytes), spills (registers of AMD's GPUs, moves in loops of NVIDIA's, that go through memory), faults (list of sentences,
        empty if there are none); for NVIDIA's GPUs also what `sass.look` returns
    """
    binary = machine_code(call, target)
    tensors = {id(x): x.numel() * x.element_size() for x in call.arguments if isinstance(x, torch.Tensor)}
    row = {"kernel": call.kernel.__name__, "target": target, "options": call.options, "programs": math.prod(call.grid),
           "bytes": sum(tensors.values()), "shared": binary.metadata.shared}
    if target == "gfx942":
        text = binary.asm["amdgcn"]
        row["spills"] = sum(int(count) for count in re.findall(r"\.vgpr_spill_count:\s*(\d+)", text))
    else:
        text, found = binary.asm["ptx"], look(binary)
        row |= found | {"spills": found["local"]}
    shared, spills, faults = row["shared"], row["spills"], []
    if re.search(r"\.f64|_f64", text):
        faults.append("computes in float64")
    if spills:
        faults.append(f"spills registers to memory: {spills}")
    if shared > SHARED[target]:
        faults.append(f"needs {shared} bytes of shared memory, and {target} has {SHARED[target]}")
    faults += [f"32-bit offset: {line}" for line in narrow_products(binary.asm["ttir"])]
    halves = {"*bf16", "*fp16"} & set(specialise(call)[0].values())  # float32 is multiplied in full precision, without such instructions
    if "tl.dot" in call.kernel.src and halves and not re.search(MATRIX[target], text):
        faults.append("multiplies tiles without matrix instructions")
    return row | {"faults": faults}


def launches(example, target="sm_90"):
    """The launches of one example on a GPU of the class `target`, each once."""
    with launch.record(target) as calls:
        EXAMPLES[example]()
    return list({(call.kernel.__name__, str(specialise(call)), str(call.options)): call for call in calls}.values())


def _compile_example(example, target):
    return [{"example": example} | compile_launch(call, target) for call in launches(example, target)]


def compile_all(examples, targets, jobs):
    """Yield the rows of `compile_launch` for every example and target."""
    with ProcessPoolExecutor(jobs) as pool:
        for rows in pool.map(_compile_example, *zip(*((example, target) for example in examples for target in targets))):
            yield from rows


def main(argv=None):
    """Print a row per kernel and target. Returns the exit status: 1 if one of them has a fault."""
    parser = argparse.ArgumentParser(prog="python -m kernels.aot",
                                     description="Compile every kernel without a GPU, and check the machine code.")
    parser.add_argument("--targets", default=",".join(TARGETS), metavar="LIST",
                        help=f"classes of GPU to compile for: some of {','.join(TARGETS)} (default: all)")
    parser.add_argument("--only", default="", metavar="TEXT", help="compile only the examples whose name contains TEXT")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N", help="number of processes (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print a JSON object per line instead of a table")
    parser.add_argument("--predict", action="store_true", help="only print the table of predictions for an H200, in Markdown")
    arguments = parser.parse_args(argv)
    if interpreted():
        parser.exit(2, "error: TRITON_INTERPRET must not be set, got 1: the interpreter compiles nothing\n")
    targets = arguments.targets.split(",")
    for target in targets:
        if target not in TARGETS:
            parser.exit(2, f"error: --targets must be some of {','.join(TARGETS)}, got {target!r}\n")
    examples = [example for example in EXAMPLES if arguments.only in example]
    if not examples:
        parser.exit(2, f"error: --only must be part of an example's name, got {arguments.only!r}: the examples are {', '.join(EXAMPLES)}\n")
    if arguments.jobs < 1:
        parser.exit(2, f"error: --jobs must be at least 1, got {arguments.jobs}\n")
    if arguments.predict:
        print(predict.table(compile_all(list(dict.fromkeys(row.example for row in predict.ROWS)), ["sm_90"], arguments.jobs)), end="")
        return 0
    faulty = 0
    for row in compile_all(examples, targets, arguments.jobs):
        faulty += bool(row["faults"])
        if arguments.json:
            print(json.dumps(row), flush=True)
        else:
            print(f"{row['example']:<34} {row['kernel']:<34} {row['target']:<7} {row['shared']:>7} B shared  "
                  f"{'; '.join(row['faults']) or 'ok'}", flush=True)
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
