"""The two ways a command fails on purpose; anything else is a bug and shows its traceback."""


class UserError(Exception):
    """Wrong usage or bad input: one line that names the file, record or option and the way out. Exit code 2."""


class WorkError(Exception):
    """The work itself failed (disk full, training diverged). One line. Exit code 1."""
