"""What a user can put right: a bad value, file or folder, and a package that is not installed.

An InputError's message is one sentence that holds the offending value and the limit. The command line prints it
without a traceback and exits with status 2; from Python it is an ordinary ValueError.
"""
import sys


class InputError(ValueError):
    """Bad input. The message names the value and what is allowed."""


class Told(Exception):
    """This process ends because of an error that another one of the same training has reported already."""


def missing_package(error):
    """The sentence for a ModuleNotFoundError: what is missing, and how to get it. None where the module is our own or Python's."""
    package = (error.name or "").partition(".")[0]
    if not package or package in ("minillama", "kernels") or package in sys.stdlib_module_names:
        return None
    return f"this needs the package {package}, which is not installed here: pip install {package}"


def sentence(error):
    """What to tell the user about an exception that he can do something about; None for any other, which is a defect of ours."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):                   # a library is imported where it is used
        return missing_package(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror or error}" if error.filename else f"{error.strerror or error}"
    if isinstance(error, MemoryError):
        return "this machine's memory does not suffice: choose a smaller model, batch or text"
    return None
