"""Pictures: what a run learned beside what there was to learn (loss.png), two runs beside each other, and what a training step is
made of."""
import math
import os
from pathlib import Path

from ..errors import InputError
from ..files import atomic

_backend = os.environ.pop("MPLBACKEND", None)  # drawn to files only: a name that is no backend must not be in the way
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import NullFormatter  # noqa: E402

if _backend is not None:
    os.environ["MPLBACKEND"] = _backend

SOFTWARE = "minillama"  # stands in every picture
INK, TRAIN, VAL, FLOOR = "#333333", "#9db7d5", "#c8452f", "#2a7f4f"


def plot_loss(records, path, title, vocab_size):
    """Draw training and validation loss, the entropy floor, ln V and the learning rate over the steps; replaces `path` atomically.

    Args:
        records:    list of dict    lines of metrics.jsonl
        vocab_size: int             ln V is where an untrained model starts, nats/token
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    steps = [record["step"] for record in records]
    evaluated = [record for record in records if "val_loss" in record]
    loss.plot(steps, [record["loss"] for record in records], color=TRAIN, linewidth=0.8,
              label="training batches (their rows begin anywhere in a document, which is harder)")
    if evaluated:
        last = evaluated[-1]
        loss.plot([r["step"] for r in evaluated], [r["val_loss"] for r in evaluated], color=VAL, marker="o", markersize=3,
                  label=f"validation: {last['val_loss']:.3f} at step {last['step']}")
        if last["floor"] is not None:
            above = 100 * (last["val_loss"] / last["floor"] - 1)
            text = f"floor: {last['floor']:.3f}, the entropy of the text (validation ends {above:.1f}% above)"
            loss.axhline(last["floor"], color=FLOOR, linestyle="--", label=text)
    text = f"ln {vocab_size} = {math.log(vocab_size):.2f}: knowing nothing, all {vocab_size} tokens (256 of them bytes) equally likely"
    loss.axhline(math.log(vocab_size), color=INK, linewidth=0.8, linestyle=":", label=text)
    loss.set_ylabel("loss (nats/token)")
    loss.set_title(title, loc="left", fontsize=11)
    loss.legend(frameon=False, fontsize=9)
    rate.plot(steps, [record["lr"] for record in records], color=INK, linewidth=1)
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.set_ylim(bottom=0)
    _loss_axis(loss)
    for axes in (loss, rate):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    _save(figure, path)


def _loss_axis(axes):
    """Logarithmic: the last tenths of a nat are where the learning is."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 10, 15) if low <= tick <= high])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def plot_compare(runs, path, names):
    """Draw the training loss of two runs at the steps that both have, and under it how far they are apart.

    Args:
        runs:  two lists of dict    lines of metrics.jsonl
        names: two str
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    loss, apart = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    curves = [{record["step"]: record["loss"] for record in records} for records in runs]
    steps = sorted(curves[0].keys() & curves[1].keys())
    for curve, name, color, width in zip(curves, names, (TRAIN, VAL), (2.5, 0.8)):  # the second lies thin upon the first
        loss.plot(steps, [curve[step] for step in steps], color=color, linewidth=width, label=name)
    loss.set_ylabel("training loss (nats/token)")
    loss.legend(frameon=False, fontsize=9)
    _loss_axis(loss)
    differences = [abs(curves[0][step] - curves[1][step]) for step in steps]
    if any(differences):
        apart.plot(steps, [difference or math.nan for difference in differences], color=INK, linewidth=0.8, marker=".", markersize=2)
        low, high = (math.log10(value) for value in (min(filter(None, differences)), max(differences)))
        apart.set_yscale("log")
        apart.set_ylim(10 ** math.floor(low), 10 ** (math.floor(high) + 1))  # whole decades, which have labels
        apart.yaxis.set_minor_formatter(NullFormatter())
    else:
        apart.text(0.5, 0.5, "no difference at any step", transform=apart.transAxes, ha="center", color=INK)
        apart.set_yticks([])
    apart.set_ylabel("difference (nats/token)")
    apart.set_xlabel("step" if all(differences) or not any(differences) else "step (gaps: no difference)")
    for axes in (loss, apart):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
    figure.align_ylabels()
    _save(figure, path)


def plot_profile(rows, path, title):
    """Draw what `bench.profile` measured: a bar per op, forward and backward, the longest on top."""
    rows = sorted(rows, key=lambda row: row["forward_ms"] + row["backward_ms"])
    figure = Figure(figsize=(8, 0.36 * len(rows) + 1.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    forward, backward = [row["forward_ms"] for row in rows], [row["backward_ms"] for row in rows]
    names = [row["op"] for row in rows]
    axes.barh(names, forward, color=TRAIN, label="forward")
    axes.barh(names, backward, left=forward, color=VAL, label="backward")
    for y, row in enumerate(rows):
        rate = f"{row['rate']:.0f} GB/s" if row["of_sgemm"] is None else f"{row['of_sgemm']:.0%} of sgemm"
        axes.annotate(f" {row['share']:.1%}, {rate}", (forward[y] + backward[y], y), va="center", fontsize=8, color=INK)
    axes.set_xlim(right=1.25 * max(map(sum, zip(forward, backward))))
    axes.set_xlabel("milliseconds of all calls in one step")
    axes.set_title(title, loc="left", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def check_picture(path):
    """Refuse a path that a picture cannot be written to, before anything is computed for it: what is there may only be one of ours.

    Raises:
        InputError: its folder is missing, or something else is there
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path} must be in a folder that exists")
    if not os.access(path.absolute().parent, os.W_OK):
        raise InputError(f"{path} must be in a folder that can be written to")
    if os.path.lexists(path) and not _is_ours(path):
        raise InputError(f"{path} already exists and is no picture of minillama's: choose another file")


def _is_ours(path):
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(200)
    return head.startswith(b"\x89PNG") and SOFTWARE.encode() in head


def _save(figure, path):
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png", metadata={"Software": SOFTWARE})
