"""Two runs side by side: how far their training losses are apart, step by step.

A falling loss says that something learns, and not that it learns what it should. Two implementations of one recipe that fall
together, to rounding, at every step, are much harder to get by mistake.
"""
import statistics

from ..errors import InputError


def compare(left, right, left_records, right_records):
    """Names and records of two runs -> the object `compare --json` prints, without the picture. Raises InputError."""
    curves = [{record["step"]: record["loss"] for record in records} for records in (left_records, right_records)]
    steps = sorted(curves[0].keys() & curves[1].keys())
    if not steps:
        ranges = [f"{name} has {min(curve)} to {max(curve)}" for name, curve in zip((left, right), curves)]
        raise InputError(f"the runs have no step in common: {' and '.join(ranges)}")
    differences = {step: abs(curves[0][step] - curves[1][step]) for step in steps}
    largest = max(differences, key=differences.get)
    return {
        "runs": [_summary(left, left_records), _summary(right, right_records)],
        "common_steps": len(steps),
        "largest_difference": differences[largest],
        "largest_at_step": largest,
        "mean_difference": statistics.fmean(differences.values()),
    }


def _summary(name, records):
    validated = [record["val_loss"] for record in records if "val_loss" in record]
    return {
        "run": name,
        "steps": records[-1]["step"],
        "final_loss": records[-1]["loss"],
        "val_loss": validated[-1] if validated else None,
        "tokens_per_s": round(statistics.median(record["tokens_per_s"] for record in records)),
    }


def format_comparison(result):
    """`compare` for people."""
    lines = []
    for one in result["runs"]:
        validation = "" if one["val_loss"] is None else f", validation {one['val_loss']:.4f}"
        lines.append(f"{one['run']}: {one['steps']} steps, training loss {one['final_loss']:.4f} at the end{validation}, "
                     f"{one['tokens_per_s']:,} tokens/s")
    apart = (f"differ by {result['largest_difference']:.2e} nats/token at most (step {result['largest_at_step']}), "
             f"by {result['mean_difference']:.2e} on average")
    lines.append(f"{result['common_steps']} steps in common; training losses {apart if result['largest_difference'] else 'are the same'}")
    return "\n".join([*lines, f"both curves: {result['picture']}"])
