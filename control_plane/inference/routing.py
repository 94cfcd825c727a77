"""What a prediction asks of those who run experiments, and tells them: `control_plane.experiments` answers.

Only the forms: inference knows no statistics and no Redis.
"""

from dataclasses import dataclass
from typing import Protocol

from control_plane.errors import ServingError, UnknownExperiment
from control_plane.inference.disagreement import Disagreement

NO_EXPERIMENT = "none"
"""The `experiment_id` of a request that takes part in none."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The place of one request in an experiment.

    `variant` is its number in declared order, `unit` the routing key (`is_keyed`) or the request's id, and `group` is
    `<experiment_id>:<variant>`, as answers have it.
    """

    experiment_id: str
    variant: int
    version: str
    epoch: int
    unit: str
    is_keyed: bool
    group: str


class Router(Protocol):
    """Says which version answers; called for each request, so without any waiting."""

    def assign(
        self,
        *,
        model_type: str,
        version: str,
        experiment_id: str | None,
        routing_key: str | None,
        request_id: str,
        now_s: float,
    ) -> Assignment | None:
        """The request's place in an experiment; None where it has none.

        Args:
            model_type: As asked.
            version: As asked; only `latest` leaves the choice to an experiment, unless `experiment_id` names one.
            experiment_id: As asked.
            routing_key: As given: the unit of the experiment.
            request_id: The unit where there is no routing key.
            now_s: Wall time.

        Raises:
            UnknownExperiment: there is no active experiment of that name for the type.
        """
        ...

    def answered(
        self, assignment: Assignment, *, request_id: str, latency_ms: float, covariate: float | None
    ) -> None:
        """Counts an answer. `latency_ms` is the figure that the caller sees."""
        ...

    def failed(self, assignment: Assignment, error: BaseException, *, covariate: float | None) -> None:
        """Counts a failure, where it is the server's."""
        ...

    def shadow_of(self, assignment: Assignment) -> Assignment | None:
        """The place of the version that is asked after the answer; None: none is."""
        ...

    def compared(
        self, shadow: Assignment, found: Disagreement, *, latency_ms: float, covariate: float | None
    ) -> None:
        """Counts a shadow's answer, and how far it lies from the one that was given."""
        ...

    def shed(self, shadow: Assignment) -> None:
        """Counts a shadow that wasn't asked, since there was load."""
        ...


class NoExperiments:
    """There are none."""

    def assign(
        self,
        *,
        model_type: str,
        version: str,
        experiment_id: str | None,
        routing_key: str | None,
        request_id: str,
        now_s: float,
    ) -> Assignment | None:
        """See `Router`."""
        del model_type, version, routing_key, request_id, now_s
        if experiment_id is None or experiment_id == NO_EXPERIMENT:
            return None
        raise unknown_experiment(experiment_id)

    def answered(
        self, assignment: Assignment, *, request_id: str, latency_ms: float, covariate: float | None
    ) -> None:
        """See `Router`."""

    def failed(self, assignment: Assignment, error: BaseException, *, covariate: float | None) -> None:
        """See `Router`."""

    def shadow_of(self, assignment: Assignment) -> Assignment | None:
        """See `Router`."""
        del assignment
        return None

    def compared(
        self, shadow: Assignment, found: Disagreement, *, latency_ms: float, covariate: float | None
    ) -> None:
        """See `Router`."""

    def shed(self, shadow: Assignment) -> None:
        """See `Router`."""


def unknown_experiment(experiment_id: str, reason: str = "There is no active experiment") -> ServingError:
    """The error for a request that names an experiment in which it can't take part."""
    return UnknownExperiment(
        f"{reason} {experiment_id!r}.",
        remedy='Leave experiment_id out, or send "none" to take part in no experiment.',
    )
