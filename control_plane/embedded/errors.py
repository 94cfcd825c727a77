"""Why the embedded services can't start. They stop the command line; none of them reaches a REST client.

EmbeddedError                69  (EX_UNAVAILABLE)
├── WheelMissing             78  (EX_CONFIG) the extra with the binaries isn't installed, or doesn't fit
├── DataDirLocked            75  (EX_TEMPFAIL) another server uses the data directory
├── PortTaken                75  a port that was asked for is in use
└── ChildFailed              69  a child exited, or wasn't ready in time; carries the end of its log
"""

from pathlib import Path


class EmbeddedError(Exception):
    """Root of the tree.

    Args:
        detail: What happened, in one or two sentences.
        expected: What would have been right.
        got: What was found.
        remedy: What to do about it.
    """

    exit_code = 69

    def __init__(
        self, detail: str, *, expected: str | None = None, got: str | None = None, remedy: str | None = None
    ) -> None:
        super().__init__(" ".join(part for part in (detail, remedy) if part))
        self.detail = detail
        self.expected = expected
        self.got = got
        self.remedy = remedy


class WheelMissing(EmbeddedError):
    """A binary that the `embedded` extra brings isn't there, or doesn't fit this interpreter."""

    exit_code = 78


class DataDirLocked(EmbeddedError):
    """Another server holds the data directory's lock."""

    exit_code = 75


class PortTaken(EmbeddedError):
    """A port that the settings name is in use."""

    exit_code = 75


class ChildFailed(EmbeddedError):
    """A child process exited during its start, or wasn't ready before the deadline.

    Args:
        detail: What happened.
        name: The child's name.
        log_path: Its log file.
        log_tail: The last lines of that file.
        child_exit_code: What it exited with; None if it still ran.
    """

    def __init__(
        self, detail: str, *, name: str, log_path: Path, log_tail: str, child_exit_code: int | None
    ) -> None:
        super().__init__(
            f"{detail} The last lines of its log:\n{log_tail}",
            got=log_tail,
            remedy=f"\nThe whole log: {log_path}",
        )
        self.name = name
        self.log_path = log_path
        self.log_tail = log_tail
        self.child_exit_code = child_exit_code
