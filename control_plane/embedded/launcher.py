"""Becomes another program that dies with its parent: `python -I -S launcher.py PARENT_PID COMMAND…`.

The kernel kills the program when the thread that started it ends, by whatever cause. A program of its own does this,
because Python code between fork and exec isn't safe in a process with threads (and Python 3.12 warns of it).

Source: prctl(2), PR_SET_PDEATHSIG.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
EXIT_NOT_STARTED = 127


def main() -> None:
    """Ties this process to its parent and becomes the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(EXIT_NOT_STARTED)
    try:
        os.execvp(command[0], command)  # noqa: S606  no shell wanted
    except OSError as error:
        sys.exit(f"{command[0]} can't be run: {error.strerror}")


if __name__ == "__main__":
    main()
