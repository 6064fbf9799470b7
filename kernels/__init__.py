"""The functions of minillama.nn under the same names, on torch tensors, for the GPU. README.md says how to run, check and time them.

    X.py            the kernels; X_forward(...) -> out, cache and X_backward(dout, cache) -> gradients, with the contract of minillama.nn;
                    and X(...), both as one differentiable op for autograd and torch.compile
    reference.py    every op's forward in plain PyTorch, which runs everywhere; the errors of the kernels are compared with its errors

Rules that every kernel follows, written only here:

1. bfloat16, float16 or float32 in and out; float32 between load and store; values are rounded once, when they are stored.
2. No atomics: every number is written by one program, and every sum has a fixed order. The same input gives the same bits.
3. No launcher waits for the device, reads a value on the host, or changes its arguments. Exceptions: `out=` buffers, functions whose
   name ends in _, and the optimiser.
4. Any strides; a copy is made only if the last axis is not contiguous.
5. Offsets are 64-bit, so that a tensor may hold 2^31 elements or more.
6. Input that a kernel does not cover raises a ValueError before anything is launched. It names the argument, what it must be and what
   it is.

A good first file is rmsnorm.py. To step through it without a GPU, set TRITON_INTERPRET=1 (see interpreter.py).
"""
