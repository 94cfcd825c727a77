"""Names of all keys and channels in Redis.

All start with the configured prefix. Keys that one script touches share a hash tag (`{models}`), so that the same
scripts run on a Redis Cluster.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Key names under one prefix."""

    prefix: str

    def of(self, tag: str, *parts: str) -> str:
        """`prefix:{tag}:part:part`; keys of one tag live on one node of a cluster."""
        return ":".join((self.prefix, f"{{{tag}}}", *parts))

    def models(self, *parts: str) -> str:
        """A key of the model cache, the aliases or the load jobs."""
        return self.of("models", *parts)

    @property
    def events(self) -> str:
        """The channel on which workers tell each other that shared state changed."""
        return f"{self.prefix}:events"

    def lock(self, name: str) -> str:
        """The lock called `name`."""
        return self.models("lock", name)

    @property
    def fence(self) -> str:
        """Counter of the fencing tokens of all locks."""
        return self.models("fence")

    @property
    def residency(self) -> tuple[str, ...]:
        """What the residency scripts touch, in the order that `residency.lua` names them."""
        names = (
            "slots",
            "used",
            "leases",
            "pins",
            "generation",
            "epoch",
            "stats",
            "usage",
            "loaded_at",
            "workers",
        )
        return tuple(self.models(name) for name in names)

    @property
    def aliases(self) -> str:
        """Hash of alias to version, fields `<type>/<alias>`."""
        return self.models("aliases")

    def alias_history(self, field: str) -> str:
        """List of the moves of one alias, oldest first."""
        return self.models("alias_history", field)

    def job(self, job_id: str) -> str:
        """A load job's state."""
        return self.models("job", job_id)

    def pin_owners(self, model: str) -> str:
        """Set of those who pin a model version."""
        return self.models("pin_owners", model)

    def ensembles(self, *parts: str) -> str:
        """A key of the ensembles: what was decided, its feedback, and what was learned from it."""
        return self.of("ensembles", *parts)

    def decision(self, request_id: str) -> str:
        """What one request decided."""
        return self.ensembles("decision", request_id)

    def feedback(self, request_id: str, row: int) -> str:
        """The feedback to one row of a request."""
        return self.ensembles("feedback", request_id, str(row))

    def experiments(self, *parts: str) -> str:
        """A key of the experiments: definitions, states, counts, and what participants' feedback needs."""
        return self.of("experiments", *parts)
