"""What the compiler made of a kernel, read from its machine code (SASS, of NVIDIA's GPUs) and from TTGIR, Triton's last code before it.

A loop is what lies between a label and a branch back to it. Its instructions are counted there and not in the whole kernel, because they
run thousands of times and the rest runs once. The same holds for registers that are kept in memory for want of space (`local`).
Nothing runs here, and no GPU is needed.
"""
import re
import subprocess
import tempfile
from pathlib import Path

import triton

DISASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/ +(?:@!?U?P\w+ +)?([A-Z]\w*)([^;]*);")  # address, a condition perhaps, name, operands


def instructions(cubin):
    """(address, name, operands) of every instruction, and the registers of a thread. Options of a name (LDG.E.128) are in its operands."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([DISASSEMBLER, "-sass", "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return [(int(at, 16), name, rest) for at, name, rest in INSTRUCTION.findall(text)], int(re.search(r"REG:(\d+)", text)[1])


def loops(code):
    """The instructions of each loop, in the order of the loops' ends. A branch to itself, with which every kernel ends, is none."""
    found = []
    for at, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if name == "BRA" else None
        if target and int(target[1], 16) < at:
            found.append([instruction for instruction in code if int(target[1], 16) <= instruction[0] <= at])
    return found


def local(code):
    """Loads and stores of registers that did not fit and live in memory."""
    return sum(name in ("LDL", "STL") for _, name, _ in code)


LOADS, STORES = ("LDG", "LDGSTS"), ("STG",)  # of global memory; LDGSTS copies to shared memory and lets the thread go on (cp.async)


def widths(code, names):
    """Bytes that a thread moves with each of these instructions."""
    size = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return [size.get(option, 4) for _, name, rest in code if name in names
            for option in [next(iter(re.findall(r"\.(128|64|[US]16|[US]8)\b", rest.partition(" ")[0])), "")]]


def stops(code):
    """How often a thread stops for memory: each first use of a loaded register. By then, all loads before it have arrived too."""
    pending, count = set(), 0
    for _, name, rest in code:
        used = [int(number) for number in re.findall(r"\bR(\d+)", rest)]
        if pending & set(used):
            pending, count = set(), count + 1
        if name == "LDG" and used:
            width, = widths([(0, name, rest)], LOADS)
            pending |= set(range(used[0], used[0] + max(1, width // 4)))
    return count


def multiplied(code):
    """FLOPs of the matrix instructions, for each warp."""
    shapes = [re.search(r"\.(\d+)x(\d+)x(\d+)\.", rest) for _, name, rest in code if name == "HGMMA"]  # by four warps together
    return sum(2 * int(shape[1]) * int(shape[2]) * int(shape[3]) // 4 for shape in shapes)


def _usual(sizes):
    return max(sizes, default=0, key=lambda size: size * sizes.count(size))


def hot(code):
    """The part of a kernel that does its work: the loop that moves and multiplies most, of equal ones the shortest; without one, all.

    Returns:
        instructions:   int    for each thread
        loads, stores:  bytes  of global memory, for each thread; load_width, store_width: of one instruction, those that most bytes take
        multiplied:     int    FLOPs of matrix instructions, for each warp
        ahead:          int    iterations whose copies are under way while one computes: cp.async groups that may be pending at the
                               loop's wait, over the groups of an iteration; 0: nothing is asked for ahead of time
        stops:          int    how often a thread waits for memory that was not asked for ahead of time
        matrix_waits:   int    how often it waits for matrix instructions with nothing else to do
        barriers:       int    how often it waits for the other warps of its program
    """
    body = max(loops(code), key=lambda loop: (sum(widths(loop, LOADS + STORES)) + multiplied(loop), -len(loop)), default=[])
    body = body if widths(body, LOADS + STORES) else code
    groups = sum(name == "LDGDEPBAR" for _, name, _ in body)
    pending = [int(number, 16) for _, name, rest in body if name == "DEPBAR" for number in re.findall(r"SB0, 0x(\w+)", rest)]
    ahead = max(pending, default=0) // groups if groups else 0
    loads, stores = widths(body, LOADS), widths(body, STORES)
    return {
        "instructions": len(body), "loads": sum(loads), "stores": sum(stores), "load_width": _usual(loads),
        "store_width": _usual(stores), "multiplied": multiplied(body), "ahead": ahead,
        "stops": 0 if ahead else stops(body) + (1 if groups else 0),
        "matrix_waits": sum(name == "WARPGROUP" and "gsb0, 0x0" in rest for _, name, rest in body),
        "barriers": sum(name == "BAR" for _, name, _ in body),
    }


def look(binary):
    """What counts for speed in a kernel compiled for one of NVIDIA's GPUs.

    Returns:
        registers:     int          of a thread
        shared:        int          bytes of a program
        instructions:  int          in the whole kernel
        loops:         list of int  instructions of each loop
        local:         int          register moves to and from memory in loops; in the whole kernel if it has no loop
        stored, loaded: int         accesses to shared memory in the whole kernel (STS, LDS)
        waits:         list of int  for each wait of TTGIR, how many groups of copies may still be under way after it: 0 waits for all,
                                    so nothing was asked for ahead of time. The one after a loop is always 0
        hot:           dict         of `hot`
    """
    code, registers = instructions(binary.asm["cubin"])
    bodies = loops(code)
    names = [name for _, name, _ in code]
    return {
        "registers": registers, "shared": binary.metadata.shared, "instructions": len(code), "loops": [len(body) for body in bodies],
        "local": sum(map(local, bodies)) if bodies else local(code), "stored": names.count("STS"), "loaded": names.count("LDS"),
        "waits": [int(number) for number in re.findall(r"ttg\.async_wait [^\n]*?num = (\d+)", binary.asm["ttgir"])], "hot": hot(code),
    }
