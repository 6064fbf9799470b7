"""Waits that are announced: on a terminal, a line says what is going on; in a file, nothing."""
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def phase(what):
    """Show `what` on the terminal while the block runs, and take it away afterwards."""
    with tqdm(desc=what, bar_format="{desc} ...", leave=False, disable=None):
        yield
