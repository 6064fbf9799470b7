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
    """
    code, registers = instructions(binary.asm["cubin"])
    bodies = loops(code)
    names = [name for _, name, _ in code]
    return {
        "registers": registers, "shared": binary.metadata.shared, "instructions": len(code), "loops": [len(body) for body in bodies],
        "local": sum(map(local, bodies)) if bodies else local(code), "stored": names.count("STS"), "loaded": names.count("LDS"),
        "waits": [int(number) for number in re.findall(r"ttg\.async_wait [^\n]*?num = (\d+)", binary.asm["ttgir"])],
    }
