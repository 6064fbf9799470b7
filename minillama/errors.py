"""What a user can put right: a bad value, file or folder, and a package that is not installed.

An InputError's message is one sentence that holds the offending value and the limit. The command line prints it
without a traceback and exits with status 2; from Python it is an ordinary ValueError.
"""
import sys


class InputError(ValueError):
    """Bad input. The message names the value and what is allowed."""


def missing_package(error):
    """The sentence for a ModuleNotFoundError: what is missing, and how to get it. None where the module is our own or Python's."""
    package = (error.name or "").partition(".")[0]
    if not package or package in ("minillama", "kernels") or package in sys.stdlib_module_names:
        return None
    return f"this needs the package {package}, which is not installed here: pip install {package}"
