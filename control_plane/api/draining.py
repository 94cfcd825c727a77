"""The word that this worker is about to stop."""

from dataclasses import dataclass


@dataclass(slots=True)
class Draining:
    """Whether the drain has begun: set once, by the server on SIGTERM; read by the envelope and by readiness."""

    started: bool = False
