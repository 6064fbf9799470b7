"""The runs of a folder, a line each."""
from pathlib import Path

from ..errors import InputError
from ..nn import count_params
from ..run.checkpoint import finished
from ..run.config import IMPORTED
from ..run.folder import holds_run, read_config
from ..run.metrics import read_metrics


def list_runs(folder):
    """What `runs --json` prints: a list of dict, by name. Raises InputError for a folder that is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: the first `train` makes one")
    return [_summary(path) for path in sorted(folder.iterdir()) if holds_run(path)]


def _summary(path):
    try:
        config = read_config(path)
    except InputError as error:
        return {"run": str(path), "error": str(error)}
    scored = [record for record in read_metrics(path / "metrics.jsonl") if "val_loss" in record]
    checkpoints = finished(path / "checkpoints")
    return {
        "run": str(path),
        "preset": config.preset,
        "parameters": count_params(config.model),
        "step": int(checkpoints[-1].name[5:]) if checkpoints else 0,
        "steps": None if config.preset == IMPORTED else config.last_step,
        "val_loss": scored[-1]["val_loss"] if scored else None,
        "floor": scored[-1]["floor"] if scored else None,
    }


def format_runs(found):
    """`list_runs` for people."""
    if not found:
        return "no runs here yet: python -m minillama train"
    width = max(len(one["run"]) for one in found)
    lines = [f"{'run':<{width}}  {'preset':<9} {'parameters':>14} {'steps':>15} {'loss':>8} {'floor':>7}"]
    for one in found:
        if "error" in one:
            lines.append(f"{one['run']:<{width}}  {one['error']}")
            continue
        steps = "-" if one["steps"] is None else f"{one['step']} of {one['steps']}"
        loss, floor = ("-" if one[key] is None else f"{one[key]:.4f}" for key in ("val_loss", "floor"))
        lines.append(f"{one['run']:<{width}}  {one['preset']:<9} {one['parameters']:>14,} {steps:>15} {loss:>8} {floor:>7}")
    return "\n".join(lines)
