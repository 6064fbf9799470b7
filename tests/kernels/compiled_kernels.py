"""Compiles the kernels that test_compiled.py asks about, and prints a JSON object per launch. A process without the interpreter."""
import json
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[2]))
from kernels import aot
from kernels.sass import instructions, look

ATTENTION = {"attention_forward_kernel", "attention_dq_kernel", "attention_dkdv_kernel"}
EXAMPLES = {                                                     # example -> kernels
    "rmsnorm D=1024": (lambda: aot._rmsnorm(16384, 1024, torch.bfloat16), {"rmsnorm_backward_kernel"}),
    "rmsnorm D=4096": (lambda: aot._rmsnorm(16384, 4096, torch.bfloat16), {"rmsnorm_forward_kernel", "rmsnorm_backward_kernel"}),
    "rmsnorm D=8192": (lambda: aot._rmsnorm(16384, 8192, torch.bfloat16), {"rmsnorm_backward_kernel"}),
    "adamw": (lambda: aot._adamw(2**30, True), {"adamw_kernel"}),
} | {                                                            # the others are compiled for sm_90
    f"attention T={T} Dh={Dh} sm_80": (lambda T=T, Dh=Dh: aot._attention(8, T, 8, Dh, torch.bfloat16), ATTENTION)
    for T, Dh in ((2048, 128), (2047, 128), (2048, 64))
}


@triton.jit
def spilling_kernel(x_ptr, N, BLOCK: tl.constexpr):
    """Keeps more numbers across the iterations of its loop than there are registers."""
    i = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + i), tl.load(x_ptr + BLOCK + i)
    for _ in range(N):
        x, y = x * tl.sum(y, 0), y + x * tl.max(x, 0)
    tl.store(x_ptr + i, x + y)


def spilling():
    aot.launch.launch(spilling_kernel, (1,), torch.empty(1 << 13, device="meta"), 1000, BLOCK=1 << 12, num_warps=1)


if __name__ == "__main__":
    for name, (example, wanted) in (EXAMPLES | {"spilling": (spilling, {"spilling_kernel"})}).items():
        aot.EXAMPLES[name] = example
        target = "sm_80" if name.endswith("sm_80") else "sm_90"
        for call in aot.launches(name, target):
            if call.kernel.__name__ in wanted:
                binary = aot.machine_code(call, target)
                names = [name for _, name, _ in instructions(binary.asm["cubin"])[0] if name in ("LDG", "BAR")]
                late = names[names.index("BAR"):].count("LDG") if "BAR" in names else 0  # loads after the first barrier
                row = {"late": late, "example": name, "kernel": call.kernel.__name__, "residual": call.options.get("RESIDUAL", False),
                       "programs": call.grid[0], "threads": 32 * call.options["num_warps"]}
                print(json.dumps(row | look(binary)), flush=True)
