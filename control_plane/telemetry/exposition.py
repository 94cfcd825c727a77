"""The registry as Prometheus text, and as JSON. With several workers, one scrape gives the sum over all."""

import math
from collections.abc import Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector


class _Numbers(Collector):
    """What a registry collects, without the series that aren't a number: such stand for what is gone."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not math.isnan(sample.value)]
            yield family


class Exposition:
    """Renders the metrics.

    Args:
        multiprocess_dir: The folder of PROMETHEUS_MULTIPROC_DIR, where several workers share their counts; None for a
            single process.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, multiprocess_dir: str | None) -> None:
        self._multiprocess_dir = multiprocess_dir

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(_Numbers(self._registry()))

    def json(self) -> dict[str, Any]:
        """`{name: [{labels, value}]}`; of histograms the sum and the count, without the buckets."""
        metrics: dict[str, Any] = {}
        for family in _Numbers(self._registry()).collect():
            for sample in family.samples:
                if sample.name.endswith(("_bucket", "_created")):
                    continue
                metrics.setdefault(sample.name, []).append({"labels": sample.labels, "value": sample.value})
        return metrics

    def _registry(self) -> CollectorRegistry:
        if self._multiprocess_dir is None:
            return REGISTRY
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=self._multiprocess_dir)  # type: ignore[no-untyped-call]
        return registry
