"""A tour of the whole API against a running server, on real EURUSD windows.

    make serve                      # in one terminal
    make demo                       # in another; or: .venv/bin/python examples/model_serving_demo.py --api http://host:port

Prints what each step answered, and exits with 1 when anything is off. What the Python client knows goes through it;
the rest is plain HTTP.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import httpx
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from control_plane.client import (
    Client,
    ClientError,
    FailedPrediction,
    FeedbackItem,
    InvalidRequest,
    NotFound,
    Prediction,
    PredictItem,
    PredictOptions,
)

MODEL = "cnn_lstm_hybrid"
ENSEMBLE = "rl_ensemble"
CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
WINDOWS = CHECKPOINTS / "eurusd_test_windows.npz"
OBSERVATIONS = CHECKPOINTS / "eurusd_test_observations.npz"

console = Console()


class Tour:
    """The steps, in order; each raises AssertionError when an answer isn't what it should be."""

    def __init__(self, api: str) -> None:
        self.client = Client(api, timeout_s=120)
        self.http = httpx.Client(base_url=api, timeout=120)
        with np.load(WINDOWS) as archive:
            self.windows = archive["x"].astype(np.float32)
        self.steps: list[tuple[str, Callable[[], None]]] = [
            ("Health", self.health),
            ("Version", self.version),
            ("Which types and versions there are", self.catalogue),
            ("Warm-up", self.warm_up),
            ("A forecast with its uncertainty", self.forecast),
            ("Two versions side by side", self.two_versions),
            ("A batch of requests", self.batch),
            ("Decisions that learn from their rewards", self.ensemble),
            ("Load and unload", self.load_and_unload),
            ("An alias, moved and moved back", self.alias),
            ("Identical requests, from memory", self.response_cache),
            ("Errors that help", self.errors),
            ("Cache statistics", self.cache),
            ("Metrics", self.metrics),
            ("Documentation", self.documentation),
        ]

    def call(self, method: str, path: str, expected: int = 200, **options: Any) -> Any:
        """Sends a request that the client has no method for, and checks the status."""
        response = self.http.request(method, path, **options)
        assert response.status_code == expected, (
            f"{method} {path}: {response.status_code}, {response.text[:500]}"
        )
        assert response.headers.get("x-request-id"), f"{method} {path}: no X-Request-ID"
        return response.json() if "json" in response.headers.get("content-type", "") else response.text

    def predict(self, rows: int = 1, **options: Unpack[PredictOptions]) -> Prediction:
        """Predicts the first `rows` windows."""
        return self.client.predict(MODEL, self.windows[:rows], **options)

    def health(self) -> None:
        health = self.client.health()
        show("component", "status", [(name, part["status"]) for name, part in health.components.items()])
        assert health.status == "healthy", health
        assert self.client.is_ready()
        self.call("GET", "/api/v1/health/live")

    def version(self) -> None:
        answer = self.call("GET", "/version")
        show("part", "release", list(answer.items()))

    def catalogue(self) -> None:
        types = self.call("GET", "/api/v1/models/types")["model_types"]
        show(
            "type", "versions", [(name, ", ".join(entry["versions"]) or "–") for name, entry in types.items()]
        )
        assert {"v1.0", "v1.1"} <= set(types[MODEL]["versions"])
        assert {"v1.0", "v1.1"} <= {model.version for model in self.client.models()}
        assert self.client.model(MODEL, "1.0").version == "v1.0"

    def warm_up(self) -> None:
        warmed = self.client.warm_up([(MODEL, "v1.0"), (MODEL, "v1.1")])
        show("version", "status", [(entry.version, entry.status) for entry in warmed])
        assert all(entry.status in {"warmed", "already_cached"} for entry in warmed)

    def forecast(self) -> None:
        answer = self.predict(rows=3, model_version="v1.0")
        predictions, uncertainty = answer.predictions, answer.uncertainty
        assert uncertainty is not None
        assert uncertainty.interval is not None
        assert uncertainty.regression_uncertainty is not None
        assert answer.confidence_scores is not None
        table = Table("window", "sell / hold / buy", "forecast (bp)", "± sd", "90 % interval", "confidence")
        for row in range(3):
            lower, upper = uncertainty.interval.lower[row, 0], uncertainty.interval.upper[row, 0]
            forecast = predictions["regression_pred"][row, 0]
            assert lower <= upper
            table.add_row(
                str(row),
                " / ".join(f"{p:.2f}" for p in predictions["classification_probs"][row]),
                f"{forecast:+.3f}",
                f"{uncertainty.regression_uncertainty[row, 0]:.3f}",
                f"{lower:+.3f} … {upper:+.3f}",
                f"{answer.confidence_scores[row]:.2f}",
            )
        console.print(table)
        console.print(f"answered by {answer.model_version} in {answer.processing_time_ms} ms")
        again = self.predict(rows=1, model_version="v1.0")
        assert np.allclose(
            again.predictions["regression_pred"][0], predictions["regression_pred"][0], rtol=1e-4
        )

    def two_versions(self) -> None:
        rows = []
        for version in ("v1.0", "v1.1"):
            answer = self.predict(model_version=version, return_uncertainty=False)
            assert answer.model_version == version
            assert answer.uncertainty is None
            rows.append((version, str(np.round(answer.predictions["classification_probs"][0], 3))))
        show("version", "probabilities", rows)
        assert self.predict(model_version="latest").model_version == self.predict().model_version

    def batch(self) -> None:
        items = [
            PredictItem(MODEL, self.windows[row], {"model_version": version})
            for row in range(10)
            for version in ("v1.0", "v1.1")
        ]
        items[3] = PredictItem(MODEL, [[1.0]])
        answer = self.client.predict_batch(items)
        failed = {
            number: result.problem.status
            for number, result in enumerate(answer.results)
            if isinstance(result, FailedPrediction)
        }
        console.print(
            f"{len(items)} requests, {len(items) - len(failed)} answered, {len(failed)} failed alone, "
            f"{answer.total_processing_time_ms} ms"
        )
        assert failed == {3: 422}

    def ensemble(self) -> None:
        if (
            not any(model.model_type == ENSEMBLE for model in self.client.models())
            or not OBSERVATIONS.exists()
        ):
            console.print(
                f"Skipped: no version of {ENSEMBLE} is registered here, or {OBSERVATIONS.name} isn't there."
            )
            return
        with np.load(OBSERVATIONS) as archive:
            observations = archive["x"][:3].astype(np.float32)
            returns_bp = archive["next_return_bp"][:3]
        answer = self.client.predict(ENSEMBLE, observations, action_selection="sample")
        names = self.client.model(ENSEMBLE, answer.model_version).card["class_names"]
        actions, propensity = answer.predictions["action"], answer.predictions["propensity"]
        # sell, hold and buy are positions of -1, 0 and 1; what they earn is the next hour's return.
        rewards = (actions - 1) * returns_bp
        results = self.client.give_feedback(
            [FeedbackItem(answer.request_id, reward=reward, row=row) for row, reward in enumerate(rewards)]
        )
        table = Table("observation", "action", "its probability", "reward (bp)", "feedback")
        for row, result in enumerate(results):
            table.add_row(
                str(row), names[actions[row]], f"{propensity[row]:.2f}", f"{rewards[row]:+.2f}", result.status
            )
        console.print(table)
        assert [result.status for result in results] == ["accepted"] * 3
        again = self.client.give_feedback([FeedbackItem(answer.request_id, reward=rewards[0])])
        assert again[0].status == "duplicate"
        info = self.client.ensemble(f"{ENSEMBLE}-{answer.model_version}")
        table = Table("agent", "weight", "mean reward (bp)", "effective rewards")
        for agent, weight in info.weights.items():
            posterior = info.posteriors[agent]
            mean = "–" if posterior.mean is None else f"{posterior.mean:+.2f}"
            table.add_row(agent, f"{weight:.3f}", mean, f"{posterior.pulls:.1f}")
        console.print(table)
        console.print(f"{info.model}: {info.policy}, after {info.rewards} rewards")
        assert abs(sum(info.weights.values()) - 1) < 1e-6

    def load_and_unload(self) -> None:
        loaded = self.client.load_model(MODEL, "v0.9-demo", file_path="checkpoints/cnn_lstm_hybrid-v1.0.pth")
        console.print(f"{loaded.triton_model} is loaded, after {loaded.load_time_ms:.0f} ms")
        assert self.predict(model_version="v0.9-demo").model_version == "v0.9-demo"
        self.client.unload_model(MODEL, "v0.9-demo")
        self.call("DELETE", f"/api/v1/models/{MODEL}/v0.9-demo")
        self.call("GET", f"/api/v1/models/{MODEL}/v0.9-demo", expected=404)

    def alias(self) -> None:
        for version in ("v1.0", "v1.1", "v1.0"):
            self.client.set_alias(MODEL, "tour", version)
            assert self.predict(model_version="tour").model_version == version
            console.print(f"tour → {version}")
        self.client.remove_alias(MODEL, "tour")

    def response_cache(self) -> None:
        path = f"/api/v1/models/{MODEL}/v1.0/serving"
        before = self.call("GET", path)["serving"]
        self.call("PUT", path, json=before | {"response_cache": {"ttl_s": 60}})
        try:
            answers = [self.predict(model_version="v1.0", interval=level) for level in (0.9, 0.9, 0.5)]
        finally:
            self.call("PUT", path, json=before)
        # With several API workers each has a cache of its own: which of them hit depends on who answers.
        for answer in answers:
            assert answer.uncertainty is not None
            assert answer.uncertainty.interval is not None
            source = "from memory" if answer.cached else "computed"
            console.print(
                f"interval {answer.uncertainty.interval.level}: {source}, {answer.processing_time_ms:.2f} ms"
            )

    def errors(self) -> None:
        cases: list[tuple[type[ClientError], Callable[[], object]]] = [
            (NotFound, lambda: self.client.predict("nonesuch", [[1.0]])),
            (NotFound, lambda: self.predict(model_version="v9")),
            (InvalidRequest, lambda: self.client.predict(MODEL, [[1.0, 2.0]])),
            (InvalidRequest, lambda: self.predict(interval=1.5)),
        ]
        for kind, attempt in cases:
            try:
                attempt()
            except kind as error:
                if error.problem is None:
                    raise
                console.print(f"[yellow]{error.problem.status}[/] {escape(error.problem.detail)}")
            else:
                raise AssertionError(f"no {kind.__name__}")

    def cache(self) -> None:
        stats = self.call("GET", "/api/v1/models/cache/stats")
        stats["hit_rate"] = round(stats["hit_rate"], 3)
        show("figure", "value", [(name, value) for name, value in stats.items() if name != "models"])
        assert stats["total_models"] <= stats["max_capacity"]

    def metrics(self) -> None:
        metrics = self.call("GET", "/api/v1/metrics")["metrics"]
        total = sum(sample["value"] for sample in metrics["prediction_requests_total"])
        text = self.call("GET", "/metrics")
        assert "prediction_latency_seconds_bucket" in text
        console.print(f"{total:.0f} predictions counted so far")

    def documentation(self) -> None:
        paths = self.call("GET", "/openapi.json")["paths"]
        assert "swagger" in self.call("GET", "/docs").lower()
        assert "redoc" in self.call("GET", "/redoc").lower()
        console.print(f"{len(paths)} paths described; see {self.http.base_url}/docs")


def show(first: str, second: str, rows: list[tuple[Any, Any]]) -> None:
    """Prints a two-column table."""
    table = Table(first, second)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)


def main() -> int:
    """Walks through the steps; 1 when any failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--api", default="http://127.0.0.1:8080")
    api = parser.parse_args().api
    try:
        httpx.get(f"{api}/api/v1/health/live").raise_for_status()
    except httpx.HTTPError as error:
        console.print(
            f"Nothing answers at {api} ({error}). Run `make serve` first, or name the server with --api."
        )
        return 1
    tour = Tour(api)
    failed = 0
    for title, step in tour.steps:
        console.rule(f"[bold]{title}")
        try:
            step()
        except (AssertionError, ClientError, httpx.HTTPError, KeyError) as error:
            failed += 1
            console.print(f"[red]off:[/] {escape(repr(error))}")
    console.rule()
    console.print(f"[red]{failed} steps are off" if failed else "[green]all as it should be")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
