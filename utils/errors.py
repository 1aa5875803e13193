"""The two ways a command fails on purpose; anything else is a bug and shows its traceback.

`exit_code` runs a command of the project, whichever program it belongs to, and turns its end into a line and a code:

    0 done; 1 the work failed; 2 wrong usage or bad input; 130 interrupted.

Of several processes that train together (RANK) the first says what is wrong. Any other waits for a moment: what all of
them met, the first has said by then, and the launcher ends the rest; what it met alone, it says itself.
"""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import TextIO

WAIT_FOR_FIRST_S = 5.0
"""A launcher ends the other processes within a second."""


class UserError(Exception):
    """Wrong usage or bad input: one line that names the file, record or option and the way out. Exit code 2."""


class WorkError(Exception):
    """The work itself failed (disk full, training diverged). One line. Exit code 1."""


def exit_code(command: Callable[[], None], debug: bool = False) -> int:
    """Run a command; an error is one line on stderr, with `debug` after its traceback."""
    try:
        command()
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        of_process, stream = _voice()
        if debug:
            traceback.print_exc(file=stream)
        print(f"error: {of_process}{reason(error)}", file=stream, flush=True)
        return 2 if isinstance(error, UserError) else 1


def _voice() -> tuple[str, TextIO | None]:
    """How this process is called in an error, if it is not the only or the first one, and where it says it."""
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        return "", sys.stderr
    time.sleep(WAIT_FOR_FIRST_S)
    return f"process {rank}: ", sys.__stderr__


def reason(error: Exception) -> str:
    """One line for any error; what is no error of ours is named by its type, for --debug to show more."""
    if isinstance(error, (UserError, WorkError)):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return f"cannot write {error.filename or 'a file'}: {error.strerror}; free space or write elsewhere"
    lines = str(error).strip().splitlines()
    return f"{': '.join([type(error).__name__, *lines[:1]])} (--debug shows the traceback)"
