"""The one exception for what a user can put right: a bad value, file or folder.

Its message is one sentence that holds the offending value and the limit. The command line prints it
without a traceback and exits with status 2; from Python it is an ordinary ValueError.
"""


class InputError(ValueError):
    """Bad input. The message names the value and what is allowed."""
