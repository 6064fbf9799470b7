"""Triton's interpreter: it runs the source of a kernel in Python, statement by statement, on CPU tensors.

With TRITON_INTERPRET=1 in the environment before Triton is imported, nothing is compiled and no GPU is needed: every operation of a
kernel is computed in NumPy, and a debugger can step through it. It is slow, and bfloat16 comes out wrong, because it is computed on
its bit patterns; float32 and float16 are right.

This file imports neither torch nor triton, so that everybody can ask.
"""
import os


def interpreted():
    """True where TRITON_INTERPRET=1 is set, so that Triton runs kernels in its interpreter instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET") == "1"
