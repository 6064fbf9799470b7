"""The lines that `python -m kernels.bench` writes: their fields, the check of every line, and the table of kernels/README.md."""
import glob
import json
from pathlib import Path

from ..roofline import COUNTS, DIRECTIONS

SCHEMA = 1
RESULTS = Path(__file__).parents[1] / "results"
README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- kernels.bench: begin -->", "<!-- kernels.bench: end -->"
MISSING = "not measured yet"

NUMBER, TEXT, OPTIONAL = (int, float), (str,), (type(None),)
COMMON = {  # field -> types, of every line
    "schema": (int,), "time": TEXT, "smoke": (bool,), "git": TEXT + OPTIONAL, "torch": TEXT, "triton": TEXT + OPTIONAL,
    "gpu": TEXT + OPTIONAL, "clocks": (dict, *OPTIONAL), "kernel": TEXT,
}
MACHINE = {  # of a line whose kernel is "machine": the first, with its rates, and the last, with its clocks afterwards
    "when": TEXT, "python": TEXT, "cuda": TEXT + OPTIONAL, "driver": TEXT + OPTIONAL, "multiprocessors": (int, *OPTIONAL),
    "memory_gb": NUMBER + OPTIONAL, "l2_mb": NUMBER + OPTIONAL, "copy_tbps": NUMBER + OPTIONAL, "triad_tbps": NUMBER + OPTIONAL,
    "gemm_tflops": NUMBER + OPTIONAL, "square_gemm_tflops": NUMBER + OPTIONAL, "gemms": (list,),
}
MEASURED = {  # of all other lines
    "direction": TEXT + OPTIONAL, "mode": TEXT + OPTIONAL, "shape_name": TEXT, "shape": (dict,), "dtype": TEXT, "provider": TEXT,
    "ms": (dict, *OPTIONAL), "n": (int, *OPTIONAL), "bytes": (int, *OPTIONAL), "flops": (int, *OPTIONAL),
    "roofline_ms": NUMBER + OPTIONAL, "roofline_pct": NUMBER + OPTIONAL, "fixed_roofline_ms": NUMBER + OPTIONAL,
    "tbps": NUMBER + OPTIONAL, "tflops": NUMBER + OPTIONAL, "peak_mb": NUMBER + OPTIONAL, "max_err": NUMBER + OPTIONAL,
    "oracle_err": NUMBER + OPTIONAL, "ratio": NUMBER + OPTIONAL, "ok": (bool,), "absent": (bool,), "error": TEXT + OPTIONAL,
}
STEP = {"batch": (int, *OPTIONAL), "tokens_per_s": NUMBER + OPTIONAL, "mfu": (dict, *OPTIONAL)}  # of kernel "step"
KEPT = {"bytes_per_token_layer": NUMBER + OPTIONAL}  # of kernel "kept"


def fields(kernel):
    """field -> types of a line about this kernel, or about "machine", "step" or "kept"."""
    return COMMON | (MACHINE if kernel == "machine" else MEASURED | {"step": STEP, "kept": KEPT}.get(kernel, {}))


def check_record(record):
    """Raise ValueError, one sentence, unless a line has all its fields, with the right types, and they agree with each other."""
    kernel = record.get("kernel")
    if kernel not in ("machine", "step", "kept", *COUNTS):
        raise ValueError(f"kernel must be machine, step, kept or one of {', '.join(COUNTS)}, got {kernel!r}")
    expected = fields(kernel)
    for name, types in expected.items():
        if name not in record:
            raise ValueError(f"a line about {kernel} must have the field {name}")
        if not isinstance(record[name], types) or (isinstance(record[name], bool) and bool not in types):
            raise ValueError(f"{name} must be {' or '.join(t.__name__ for t in types)} in a line about {kernel}, got {record[name]!r}")
    if extra := record.keys() - expected.keys():
        raise ValueError(f"a line about {kernel} must not have the field {min(extra)}")
    if record["schema"] != SCHEMA:
        raise ValueError(f"schema must be {SCHEMA}, got {record['schema']}")
    if kernel != "machine":
        _check_measured(record)


def _check_measured(record):
    ms, where = record["ms"], f"a line about {record['kernel']} by {record['provider']}"
    if record["direction"] not in (None, *DIRECTIONS) or record["mode"] not in (None, "graph", "eager"):
        raise ValueError(f"in {where}, direction must be one of {', '.join(DIRECTIONS)} or null, and mode graph, eager or null, "
                         f"got {record['direction']!r} and {record['mode']!r}")
    if ms is not None and not (record["ok"] and ms.keys() == {"p20", "p50", "p80"} and 0 < ms["p20"] <= ms["p50"] <= ms["p80"]):
        raise ValueError(f"in {where}, ms must be positive and rising p20, p50, p80, and null where ok is false, "
                         f"got {ms} with ok {record['ok']}")
    if record["ok"] == bool(record["error"]) or (record["absent"] and record["ok"]):
        raise ValueError(f"{where} must be ok or have an error, and be absent only with an error, got ok {record['ok']}, "
                         f"absent {record['absent']}, error {record['error']!r}")


def read(paths=()):
    """All lines of these files (default: all files in results/) except those of a smoke run. An unfinished last line, left by a run
    that was killed, is skipped.

    Raises:
        ValueError: a line that check_record refuses, or that is not JSON; the sentence names the file and the line
    """
    records = []
    for path in paths or sorted(glob.glob(f"{RESULTS}/*.json*")):
        lines = Path(path).read_text().splitlines()
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                if number == len(lines):
                    continue
                raise ValueError(f"{path} line {number}: a line must be JSON") from None
            try:
                check_record(record)
            except ValueError as error:
                raise ValueError(f"{path} line {number}: {error}") from None
            records += [] if record["smoke"] else [record]
    return records


def key(record):
    """What a line is about: a newer line with the same key replaces an older one."""
    return tuple(record.get(name) for name in ("gpu", "kernel", "shape_name", "dtype", "direction", "mode", "provider"))


GOALS = {  # in per cent of the roofline, for the directions that the table shows
    "rmsnorm": "92 / 85", "add_rmsnorm": "90 / 85", "rope": "90 / 90", "swiglu": "93 / 90", "cross_entropy": "88",
    "linear_cross_entropy": "85", "embedding": "90 / 60", "adamw": "90 / 90", "attention": "57 / 33",
}
ONE_PASS = ("cross_entropy", "linear_cross_entropy")  # loss and gradient are computed together: only forward+backward is shown
ROWS = [
    *((kernel, "reference") for kernel in COUNTS if kernel != "attention"),
    *(("attention", f"T={T}k") for T in (1, 2, 4, 8, 16)),
    *((kernel, "1.3B") for kernel in COUNTS if kernel not in ("attention", "adamw")),
]
STEP_PROVIDERS = {
    "ours": "ours, Triton attention", "ours-cudnn": "ours, cuDNN attention", "compile": "same model, torch.compile + fused AdamW",
    "huggingface": "Hugging Face", "huggingface-liger": "Hugging Face + Liger",
}


def _kernel_row(records, kernel, shape):
    """One row of the table; `records`: the newest line of every key, of one GPU."""
    directions = ("forward+backward",) if kernel in ONE_PASS else ("forward", "backward")
    fixed = "float32" if kernel == "adamw" else "bfloat16"

    def line(provider, direction, mode="graph"):
        return records.get((kernel, shape, fixed, direction, mode, provider), {})

    def cells(form):
        values = [form(direction) for direction in directions]
        return " / ".join(value or "–" for value in values) if any(values) else MISSING

    def ratio(provider):
        def one(direction):
            value = line(provider, direction).get("ratio") or line(provider, direction, "eager").get("ratio")
            return f"{value:.2f}" if value else None

        gone = [record for record in (records.get((kernel, shape, fixed, None, None, provider)),) if record]
        return cells(one) if not gone else "absent" if gone[0]["absent"] else "failed"

    def ours(field, form):
        def one(direction):
            record = line("ours", direction)
            record = record if record.get("ms") else line("ours", direction, "eager")
            value = record.get(field)
            return form.format(value["p50"] if field == "ms" else value) if value else None

        return cells(one)

    def memory(provider):
        record = line(provider, "forward+backward", "eager")
        return f"{record['peak_mb']:,.0f}" if record.get("peak_mb") is not None else MISSING

    peers = ("cudnn", "eager", "flash") if kernel == "attention" else ("compile", "eager", "liger")
    name = kernel + (" (norm / update)" if kernel == "adamw" else " (loss and gradient)" if kernel in ONE_PASS else "")
    return [name, shape, ours("ms", "{:.3f}"), ours("roofline_pct", "{:.0f}"), GOALS[kernel] if shape in ("reference", "T=2k") else "",
            *(f"{peer}: {ratio(peer)}" if kernel == "attention" else ratio(peer) for peer in peers),
            memory("ours"), memory("eager")]


def _table(head, rows):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def _step_rows(records):
    for provider, name in STEP_PROVIDERS.items():
        record = records.get(("step", "1.3B", "bfloat16", "forward+backward", "eager", provider), {})
        if not record.get("ms"):
            gone = records.get(("step", "1.3B", "bfloat16", None, None, provider))
            yield [name, *[MISSING if not gone else "absent" if gone["absent"] else "failed"] * 5]
            continue
        mfu = record["mfu"]
        yield [name, record["batch"], f"{record['tokens_per_s']:,.0f}", f"{mfu['causal']:.1%} / {mfu['full']:.1%}",
               f"{mfu['causal_of_measured']:.1%}", f"{record['peak_mb'] / 1024:.1f}"]


def _kept_rows(records):
    for provider, name in (("ours", "ours"), ("eager", "plain autograd"), ("huggingface", "Hugging Face")):
        record = records.get(("kept", "1.3B", "bfloat16", None, None, provider), {})
        value = record.get("bytes_per_token_layer")
        yield [name, f"{value / 1e3:.1f} kB" if value else MISSING]


def render(records):
    """The tables of speed, in Markdown: a section for each GPU, with the newest line about everything; without lines, the goals."""
    newest = {}
    for record in sorted(records, key=lambda record: record["time"]):
        if record["kernel"] == "machine":
            newest.setdefault((record["gpu"], "machine"), {}).update({record["when"]: record})
            continue
        where = key(record)
        newest[where] = record
        if record["direction"]:                                  # a failure is forgotten once the same thing was measured
            newest.pop((*where[:4], None, None, where[6]), None)
    machines = {gpu: found for (gpu, what, *_), found in newest.items() if what == "machine"}
    gpus = sorted({record["gpu"] for record in records}, key=str)
    lines = [] if gpus else _goals()
    for gpu in gpus:
        mine = {where[1:]: record for where, record in newest.items() if where[0] == gpu and where[1] != "machine"}
        lines += _gpu(gpu, machines.get(gpu, {}).get("before"), mine)
    return "\n".join(lines).rstrip() + "\n"


def _goals():
    """The table while there are no results: the goals."""
    rows = [_kernel_row({}, *row) for row in ROWS]
    lines = _table(["kernel", "shape", "goal, % of roofline, forward / backward"], [(*row[:2], row[4]) for row in rows if row[4]])
    return ["No figure has been measured on a GPU yet; these are the goals.", "", *lines, "",
            "The goal for training at 1.3B parameters, T = 2048, is a causal MFU of 57 %."]


def _gpu(gpu, machine, records):
    lines = [f"**{gpu}**", ""]
    if machine:
        lines += [f"torch {machine['torch']}, triton {machine['triton']}, driver {machine['driver']}, {machine['time'][:10]}. "
                  f"Rooflines use rates of the same run: copy, {machine['copy_tbps']:.2f} TB/s, and the matrix products of the 1.3B model, "
                  f"{machine['gemm_tflops']:.0f} TFLOP/s.", ""]
    lines += _table(["kernel", "shape", "ours, ms forward / backward", "% of roofline", "goal", "torch.compile over ours",
                     "eager over ours", "Liger over ours", "peak MiB, ours", "eager"],
                    [_kernel_row(records, *row) for row in ROWS])
    lines += ["", "Peer over ours: the median of the ratios within a round; above 1, ours is faster. The peers of attention are named in "
                  "their cells.", ""]
    lines += _table(["training, 1.3B parameters, T = 2048", "batch", "tokens/s", "MFU causal / full, of 989 TFLOP/s",
                     "causal MFU of the measured products' rate", "peak GiB"], _step_rows(records))
    lines += ["", *_table(["kept for backward", "per token and layer, D = 2048, F = 5504"], _kept_rows(records)), ""]
    return lines


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
