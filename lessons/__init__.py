"""The lessons: LLaMA step by step, every gradient by hand, with checks that name the mistake. The map is lessons/README.md.

    check("03.rmsnorm_backward", f)      judges your own function, and says which mistake is in it
    case("03.rmsnorm_backward")          the arguments it was called with, to compute the named number again
    claim("a sentence", condition)       what an experiment has shown; it stops the notebook where it does not hold
    record(name=value)                   a number that the text of the lesson quotes
    lab                                  the bench for experiments, lab.run
    plt                                  matplotlib.pyplot in the one style of the lessons
    FAST                                 True where only the machinery is tried: short runs, whose numbers mean nothing
"""
import os

from .check import case, check

FAST = os.environ.get("LESSONS_FAST", "") not in ("", "0")
RECORD = "application/vnd.minillama.record+json"  # the kind of output in which build.py finds what was recorded

__all__ = ["FAST", "case", "check", "claim", "lab", "plt", "record"]


def claim(sentence, holds, fast=True):
    """State what was measured, and stop if it is not so. fast=False: only a run of full length can show it."""
    if FAST and not fast:
        print(f"  (not asked of a short run) {sentence}")
        return
    if not holds:
        raise AssertionError(f"the claim does not hold here: {sentence}")
    print(f"✓ {sentence}")


def record(**numbers):
    """Keep numbers for the text: {{name:.2f}} in a cell of the source becomes the number of this run."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:                                          # the source runs as a plain script, too
        return
    if get_ipython() is not None:
        display({RECORD: {name: value if isinstance(value, str) else float(value) for name, value in numbers.items()}}, raw=True)


def __getattr__(name):
    if name == "plt":                                            # matplotlib takes half a second: only where something is drawn
        from .lab import pyplot

        return pyplot()
    raise AttributeError(f"module 'lessons' has no attribute {name!r}")
