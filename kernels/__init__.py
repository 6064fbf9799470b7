"""The same functions of the same names on torch tensors, for the GPU.

    X.py            the kernels; X_forward(...) -> out, cache and X_backward(dout, cache) -> gradients, the contract of minillama.nn;
                    and X(...), both as one differentiable op that autograd and torch.compile know
    reference.py    every op's forward in plain PyTorch, which runs everywhere and is what the kernels' errors are measured by

What every kernel keeps to, so that the files need not say it:

1. bfloat16, float16 or float32 in and out; float32 between load and store; one rounding, on the store.
2. No atomics: a number is written by one program, and sums have one order. The same input gives the same bits.
3. No launcher waits for the device, looks at a value, or modifies what it is given, but for `out=` buffers, names that end in _, and
   the optimiser.
4. Any strides; a copy is made only where the last axis is not contiguous.
5. Offsets are 64-bit, so that tensors may hold 2^31 elements and more.
6. What a kernel does not cover is a ValueError that names the argument, its value and what is allowed, before anything is launched.

A good first file: rmsnorm.py. To step through it without a GPU: TRITON_INTERPRET=1 (see launch.py).
"""
