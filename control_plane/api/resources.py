"""What the routers may use: built once in the application's lifespan, handed over in the request's state."""

from dataclasses import dataclass
from typing import cast

from starlette.requests import HTTPConnection

from control_plane.api.draining import Draining
from control_plane.api.intake import Intake
from control_plane.ensembles.operations import EnsembleOperations
from control_plane.experiments.operations import ExperimentOperations
from control_plane.feedback.desk import FeedbackDesk
from control_plane.inference.predictor import Predictor
from control_plane.models.cache import ModelCache
from control_plane.models.operations import ModelOperations
from control_plane.models.registry import ModelRegistry
from control_plane.settings import Settings
from control_plane.store.redis import RedisStore
from control_plane.triton.client import TritonClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """The application's parts, in dependency order."""

    settings: Settings
    triton: TritonClient
    redis: RedisStore
    registry: ModelRegistry
    cache: ModelCache
    operations: ModelOperations
    predictor: Predictor
    feedback: FeedbackDesk
    ensembles: EnsembleOperations
    experiments: ExperimentOperations
    draining: Draining
    intake: Intake


def resources_of(connection: HTTPConnection) -> Resources:
    """The resources that the lifespan put into the connection's state."""
    return cast("Resources", connection.state.resources)


def request_id_of(connection: HTTPConnection) -> str:
    """The request's id, as the middleware set it."""
    return cast("str", connection.state.request_id)
