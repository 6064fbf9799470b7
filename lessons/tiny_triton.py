"""Triton's language in NumPy: what a kernel's lines mean, on any machine, one program at a time.

    tl.launch(kernel, programs, *arguments)     runs a kernel; arrays become pointers, numbers stay numbers
    tl.begin(program, programs, *arguments)     the pointers alone: then a kernel's lines can be run by hand, one cell each

The names are those of triton.language. It is stricter than Triton's interpreter, so that three faults show which that one hides:

- All arrays lie in one memory, one behind the other: a load without a mask reads the neighbour.
- A lane that a mask switches off, without `other`, holds 111: Triton leaves it undefined. Memory that nobody has written holds NaN.
- Programs run at the same time: none sees what another one stores, and of two that store to one place either may be the last.

`float32` has 64 bits here, so that a check may compare nine digits; `float16` is float16.
`on_triton()` gives the same names on Triton itself: its interpreter on a processor, or a GPU.
"""
import numpy as np

UNDEFINED = 111.0  # what a lane holds that Triton leaves undefined
GUARD = 64  # elements of memory behind the last array: NaN, and what is stored there is lost


class Tile(np.ndarray):
    """What one program computes with."""

    def to(self, dtype):
        return self.astype(dtype)


class Pointer:
    """Addresses in memory: one, or a tile of them. Adding moves them, in elements."""

    def __init__(self, at, dtype):
        self.at, self.dtype = at, dtype

    def __add__(self, offset):
        return Pointer(self.at + np.asarray(offset), self.dtype)

    __radd__ = __add__

    def __sub__(self, offset):
        return self + -np.asarray(offset)

    def __repr__(self):
        return f"addresses {np.asarray(self.at).tolist()}"


class _Run:
    """The program that runs now: its number, the memory as it sees it, and what it stores."""

    program, programs, memory, starts, stored = 0, 1, None, {}, []


def _tile(array):
    return np.asarray(array).view(Tile)


def _lanes(pointer, mask):
    """Addresses and mask, of one shape. Raises IndexError for an address where no memory is."""
    at, mask = np.broadcast_arrays(np.asarray(pointer.at), np.asarray(True if mask is None else mask))
    outside = at[mask & ((at < 0) | (at >= len(_Run.memory)))] if mask.any() and (at.min() < 0 or at.max() >= len(_Run.memory)) else ()
    if len(outside):
        raise IndexError(f"illegal memory access: program {_Run.program} at address {outside.flat[0]}, of {len(_Run.memory) - GUARD}")
    return at, mask


class tl:
    """The names of triton.language that the lesson uses; `launch`, `begin` and `empty` stand for kernel[grid](...) and torch.empty."""

    float32, float16, int32, int64, constexpr = np.float64, np.float16, np.int32, np.int64, "constexpr"
    arange = staticmethod(lambda start, end: _tile(np.arange(start, end)))
    zeros = staticmethod(lambda shape, dtype: _tile(np.zeros(shape, dtype)))
    full = staticmethod(lambda shape, value, dtype: _tile(np.full(shape, value, dtype)))
    sum = staticmethod(lambda tile, axis=None: _tile(np.asarray(tile).sum(axis, dtype=np.asarray(tile).dtype)))
    max = staticmethod(lambda tile, axis=None: _tile(np.asarray(tile).max(axis)))
    dot = staticmethod(lambda a, b, acc=0.0, input_precision="ieee": _tile(np.asarray(a) @ np.asarray(b) + acc))
    trans = staticmethod(lambda tile: tile.T)
    cdiv = staticmethod(lambda a, b: -(-a // b))
    sqrt, rsqrt, exp, exp2, log, abs = np.sqrt, staticmethod(lambda x: 1 / np.sqrt(x)), np.exp, np.exp2, np.log, np.abs
    maximum, minimum, where = np.maximum, np.minimum, staticmethod(lambda c, a, b: _tile(np.where(c, a, b)))
    range, static_range = range, range

    @staticmethod
    def program_id(axis=0):
        return _tile(np.int64(_Run.program if axis == 0 else 0))

    @staticmethod
    def num_programs(axis=0):
        return _tile(np.int64(_Run.programs if axis == 0 else 1))

    @staticmethod
    def load(pointer, mask=None, other=None):
        at, mask = _lanes(pointer, mask)
        found = _Run.memory[np.where(mask, at, 0)]
        return _tile(np.where(mask, found, UNDEFINED if other is None else other).astype(pointer.dtype))

    @staticmethod
    def store(pointer, value, mask=None, adds=False):
        at, mask = _lanes(pointer, mask)
        value = np.broadcast_to(np.asarray(value).astype(pointer.dtype), at.shape)[mask]
        _Run.stored.append((at[mask], value, adds))
        if adds:
            np.add.at(_Run.memory, at[mask], value)
        else:
            _Run.memory[at[mask]] = value

    @staticmethod
    def atomic_add(pointer, value, mask=None):
        tl.store(pointer, value, mask, adds=True)

    # ---- the host's side ----
    @staticmethod
    def empty(*shape):
        """An array that nobody has written yet."""
        return np.full(shape[0] if isinstance(shape[0], tuple) else shape, np.nan)

    @staticmethod
    def begin(program, programs, *arguments):
        """Be program number `program`: the arguments, arrays as pointers."""
        arrays = {id(a): np.asarray(a) for a in arguments if np.ndim(a)}
        starts = np.cumsum([0, *(a.size for a in arrays.values())])
        _Run.starts = dict(zip(arrays, starts.tolist()))
        _Run.memory = np.concatenate([*(np.ravel(a).astype(float) for a in arrays.values()), np.full(GUARD, np.nan)])
        _Run.program, _Run.programs, _Run.stored = program, programs, []
        return [Pointer(_Run.starts[id(a)], a.dtype) if id(a) in arrays else a for a in arguments]

    @staticmethod
    def launch(kernel, programs, *arguments):
        """Run a kernel as so many programs, which all begin with the memory of now; what they store is put together at the end."""
        programs = int(programs[0] if isinstance(programs, tuple) else programs)
        given = tl.begin(0, programs, *arguments)
        before, stored = _Run.memory, []
        for program in range(programs):
            _Run.program, _Run.memory, _Run.stored = program, before.copy(), []
            kernel(*given)
            stored.append(_Run.stored)
        after = before.copy()
        for at, value, adds in (one for program in reversed(stored) for one in program):
            if adds:
                np.add.at(after, at, value)
            else:
                after[at] = value
        for array in arguments:
            if np.ndim(array):
                start = _Run.starts[id(array)]
                now = after[start:start + array.size]
                if not np.array_equal(now, before[start:start + array.size], equal_nan=True):
                    array[...] = now.reshape(array.shape)


# ---- the same names on Triton itself ----
def on_triton(device="cpu"):
    """The names of `tl`, on Triton: float32 tensors in its interpreter (TRITON_INTERPRET=1 before the import), or on a GPU."""
    import types

    import torch
    import triton
    import triton.language as language

    class OnTriton:
        empty = staticmethod(lambda *shape: np.full(shape[0] if isinstance(shape[0], tuple) else shape, np.nan, np.float32))
        cdiv = staticmethod(triton.cdiv)

        def __getattr__(self, name):
            return getattr(language, name)

        def launch(self, kernel, programs, *arguments):
            programs = int(programs[0] if isinstance(programs, tuple) else programs)
            scope = {**kernel.__globals__, "tl": language}       # the kernel's `tl` is Triton's, whether global or its launcher's
            closure = tuple(types.CellType(language) if cell.cell_contents is self else cell for cell in kernel.__closure__ or ())
            function = types.FunctionType(kernel.__code__, scope, kernel.__name__, kernel.__defaults__, closure or None)
            function.__annotations__ = dict(kernel.__annotations__)
            arrays = {id(a): a for a in arguments if isinstance(a, np.ndarray)}  # a tensor is passed on as it is
            arrays = {key: a.astype(np.float32) if a.dtype == np.float64 else a for key, a in arrays.items()}
            tensors = {key: torch.tensor(a, device=device) for key, a in arrays.items()}
            with np.errstate(all="ignore"):                      # the interpreter computes in NumPy, which warns where a GPU does not
                triton.jit(function)[(programs,)](*(tensors.get(id(a), a) for a in arguments))
            for array in arguments:
                if isinstance(array, np.ndarray):
                    array[...] = tensors[id(array)].cpu().numpy()

    return OnTriton()


def on_both(launcher, arguments, device="cpu"):
    """Run a launcher, whose last argument is `tl`, on NumPy and on Triton, and print how far apart they are."""
    try:
        here = launcher(*arguments)
        there = launcher(*arguments[:-1], on_triton(device))
    except NotImplementedError:
        print("… not written yet")
    except Exception as error:
        print(f"✗ it stops with {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    else:
        apart = np.abs(np.asarray(here, float) - np.asarray(there, float)).max() / np.abs(here).max()
        same = "the same kernel" if apart < 1e-5 else "another result"
        print(f"Triton's numbers are {apart:.0e} away from those of tl, of the largest: {same}")
