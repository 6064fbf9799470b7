"""Kernels that break one rule each of kernels/aot.py, compiled for sm_80: prints a JSON object per kernel. Run by test_aot.py."""
import json
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[2]))
from kernels import aot, launch


@triton.jit
def double_kernel(x_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, i < n).to(tl.float64)
    tl.store(x_ptr + i, (x / 3.0 + 1e-30).to(tl.float32), i < n)


@triton.jit
def narrow_kernel(x_ptr, stride, BLOCK: tl.constexpr):
    x = x_ptr + tl.program_id(0) * stride + tl.arange(0, BLOCK)
    tl.store(x, tl.load(x) + 1)


@triton.jit
def narrow_rows_kernel(x_ptr, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    x = x_ptr + tl.arange(0, ROWS)[:, None] * stride + tl.arange(0, BLOCK)[None, :]
    tl.store(x, tl.load(x) + 1)


@triton.jit
def narrow_elements_kernel(x_ptr, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x_ptr + i, tl.load(x_ptr + i, i < n) + 1, i < n)


@triton.jit
def hungry_kernel(x_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    y = tl.load(x_ptr + BLOCK + i)
    tl.store(x_ptr + i, x * tl.sum(y * x, 0) + y)
    tl.store(x_ptr + BLOCK + i, x + tl.sum(x, 0) * y)


@triton.jit
def large_kernel(x_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    i, k = tl.arange(0, BLOCK), tl.arange(0, K)
    a = tl.load(x_ptr + i[:, None] * K + k[None, :])
    b = tl.load(x_ptr + k[:, None] * BLOCK + i[None, :])
    tl.store(x_ptr + i[:, None] * BLOCK + i[None, :], tl.dot(a, b))


@triton.jit
def vector_kernel(x_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i[:, None] * BLOCK + i[None, :]).to(tl.float32)
    tl.store(x_ptr + i[:, None] * BLOCK + i[None, :], tl.dot(x, x, input_precision="ieee").to(tl.bfloat16))


def bad():
    x = torch.empty(1 << 20, device="meta")
    launch.launch(double_kernel, (9,), x, 1000, BLOCK=64, num_warps=1)
    launch.launch(narrow_kernel, (9,), x, 1000, BLOCK=64, num_warps=1)
    launch.launch(narrow_rows_kernel, (9,), x, 1000, ROWS=4, BLOCK=64, num_warps=1)
    launch.launch(narrow_elements_kernel, (9,), x, 1000, BLOCK=64, num_warps=1)
    launch.launch(hungry_kernel, (1,), x, BLOCK=1 << 12, num_warps=1)
    launch.launch(large_kernel, (1,), x, K=1024, BLOCK=32, num_warps=8)
    launch.launch(vector_kernel, (1,), x.to(torch.bfloat16), BLOCK=32, num_warps=4)


aot.EXAMPLES["bad"] = bad
if __name__ == "__main__":
    for call in aot.launches("bad"):
        print(json.dumps(aot.compile_launch(call, "sm_80")))
