"""The lines that the benchmark writes, rendered as the table of kernels/README.md."""
import json
from pathlib import Path

from ..roofline import COUNTS

RESULTS = Path(__file__).parents[1] / "results"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- kernels.bench: begin -->", "<!-- kernels.bench: end -->"
MISSING = "not measured yet"

GOALS = {  # in per cent of the roofline, for the directions that the table shows
    "rmsnorm": "92 / 85", "add_rmsnorm": "90 / 85", "rope": "90 / 90", "swiglu": "93 / 90", "cross_entropy": "88",
    "linear_cross_entropy": "85", "embedding": "90 / 60", "adamw": "90 / 90", "attention": "57 / 33",
}
NOTES = {"adamw": " (norm / update)", "cross_entropy": " (loss and gradient)", "linear_cross_entropy": " (loss and gradient)"}
ROWS = [
    *((kernel, "reference") for kernel in COUNTS if kernel != "attention"),
    *(("attention", f"T={T}k") for T in (1, 2, 4, 8, 16)),
    *((kernel, "1.3B") for kernel in COUNTS if kernel not in ("attention", "adamw")),
]
STEPS = {
    "ours": "ours, Triton attention", "ours-cudnn": "ours, cuDNN attention", "compile": "same model, torch.compile + fused AdamW",
    "huggingface": "Hugging Face", "huggingface-liger": "Hugging Face + Liger",
}


def read(paths=()):
    """All lines of these files (default: all files in results/), the oldest first.

    Raises:
        ValueError: a line is not JSON; the sentence names the file and the line
    """
    records = []
    for path in paths or sorted(RESULTS.glob("*.json*")):
        for number, line in enumerate(Path(path).read_text().splitlines(), 1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                raise ValueError(f"{path} line {number}: a line must be JSON, got {line[:40]!r}") from None
    return sorted(records, key=lambda record: record["time"])


def _table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def _kernel_row(lines, kernel, shape):
    """One row. lines: (kernel, shape, direction, mode, provider) -> the newest line about it."""
    directions = ("forward+backward",) if GOALS[kernel].isdigit() else ("forward", "backward")

    def cells(provider, form):
        """form(line) for each direction: in a graph, or else in single calls; or why there is no line."""
        if gone := lines.get((kernel, shape, None, None, provider)):
            return "absent" if gone["absent"] else "failed"
        found = [lines.get((kernel, shape, direction, "graph", provider)) or lines.get((kernel, shape, direction, "eager", provider))
                 for direction in directions]
        return " / ".join(form(line) if line else "–" for line in found) if any(found) else MISSING

    def memory(provider):
        line = lines.get((kernel, shape, "forward+backward", "eager", provider))
        return f"{line['peak_mb']:,.0f}" if line else MISSING

    def ratio(provider):
        return cells(provider, lambda line: f"{line['ratio']:.2f}" if line["ratio"] else "–")

    peers = ("cudnn", "eager", "flash") if kernel == "attention" else ("compile", "eager", "liger")
    return [kernel + NOTES.get(kernel, ""), shape, cells("ours", lambda line: f"{line['ms']['p50']:.3f}"),
            cells("ours", lambda line: f"{line['roofline_pct']:.0f}"), GOALS[kernel] if shape in ("reference", "T=2k") else "",
            *(f"{peer}: {ratio(peer)}" if kernel == "attention" else ratio(peer) for peer in peers), memory("ours"), memory("eager")]


def _step_row(lines, provider):
    line = lines.get(("step", "1.3B", "forward+backward", "eager", provider))
    if not line:
        gone = lines.get(("step", "1.3B", None, None, provider))
        return [STEPS[provider], *[MISSING if not gone else "absent" if gone["absent"] else "failed"] * 5]
    mfu = line["mfu"]
    return [STEPS[provider], line["batch"], f"{line['tokens_per_s']:,.0f}", f"{mfu['causal']:.1%} / {mfu['full']:.1%}",
            f"{line['mfu_of_measured']:.1%}", f"{line['peak_mb'] / 1024:.1f}"]


def render(records):
    """The tables of speed, in Markdown: a section for each GPU, with the newest line about everything; without lines, the goals."""
    gpus = sorted({record["gpu"] for record in records})
    text = [part for gpu in gpus for part in _gpu(gpu, [record for record in records if record["gpu"] == gpu])] if gpus else _goals()
    return "\n".join(text).rstrip() + "\n"


def _goals():
    """The table while there are no results."""
    rows = [_kernel_row({}, *row) for row in ROWS]
    return ["No figure has been measured on a GPU yet; these are the goals.", "",
            *_table(["kernel", "shape", "goal, % of roofline, forward / backward"], [(*row[:2], row[4]) for row in rows if row[4]]), "",
            "The goal for training at 1.3B parameters, T = 2048, is a causal MFU of 57 %."]


def _gpu(gpu, records):
    lines = {}
    for record in records:
        about = [record.get(name) for name in ("kernel", "shape_name", "direction", "mode", "provider")]
        lines[tuple(about)] = record
        if record.get("ms"):                                     # a failure is forgotten once the same thing was measured
            lines.pop((*about[:2], None, None, about[4]), None)
    machine = lines[("machine", None, None, None, None)]
    return [
        f"**{gpu}**", "",
        f"torch {machine['torch']}, triton {machine['triton']}, driver {machine['state'].get('driver_version')}, {machine['time'][:10]}. "
        f"Rooflines use rates of the same run: copy, {machine['copy_tbps']:.2f} TB/s, and the matrix products of the 1.3B model, "
        f"{machine['gemm_tflops']:.0f} TFLOP/s.", "",
        *_table(["kernel", "shape", "ours, ms forward / backward", "% of roofline", "goal", "torch.compile over ours", "eager over ours",
                 "Liger over ours", "peak MiB, ours", "eager"], [_kernel_row(lines, *row) for row in ROWS]), "",
        "Peer over ours: the median of the ratios within a round; above 1, ours is faster. Attention's peers are named in their cells.", "",
        *_table(["training, 1.3B parameters, T = 2048", "batch", "tokens/s", "MFU causal / full, of 989 TFLOP/s",
                 "causal MFU of the measured products' rate", "peak GiB"], [_step_row(lines, provider) for provider in STEPS]), ""]


def into(path, text):
    """Replace the text between the two marker lines of a file, and nothing else.

    Raises:
        ValueError: the file does not have exactly one pair of markers
    """
    old = Path(path).read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise ValueError(f"{path} must have one line {BEGIN} and after it one line {END}")
    before, rest = old.split(BEGIN)
    Path(path).write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")
