"""What agents cost in one graph: five merged, beside each exported alone.

    python -m benchmarks.merged_agents [--path checkpoints/rl_ensemble-v1.0.zip] [--batches 1 32] [--rounds 1000]

Without `--path`: agents of the five algorithms with random weights and the networks that Stable-Baselines3 gives them
by default (the largest is TD3's, of 400 and 300 units), which the target is for; and as many whose networks are all of
64 and 64 units, where no agent is larger than the others. The graphs take turns within one run, in random order, on one
thread, as they are served: ONNX Runtime's CPU provider, and TorchScript without its optimising executor. Prints a
table and writes `benchmarks/results/merged_agents.json`; exits with 1 where the target is missed.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import describe
from exporters.rl.agents import Agent, Algorithm, Box, Discrete
from exporters.rl.build import build_model
from exporters.rl.bundle import MAX_TOTAL_BYTES, open_bundle
from exporters.rl.ensemble import DEFAULT_CLASS_NAMES, DEFAULT_THRESHOLDS, Ensemble, read_ensemble
from exporters.rl.networks import Mlp, Networks, PolicyKind
from exporters.runtimes import open_artefact
from exporters.spec import ModelFormat
from exporters.writers.onnx import write_onnx
from exporters.writers.torchscript import write_torchscript

RESULT = Path(__file__).parent / "results" / "merged_agents.json"
TARGET_RATIO = 2.5
MERGED = "all"
FEATURES = 12
WARM_UP_CALLS = 50
DEFAULTS: Mapping[Algorithm, tuple[int, int]] = {
    Algorithm.PPO: (64, 64),
    Algorithm.A2C: (64, 64),
    Algorithm.SAC: (256, 256),
    Algorithm.TD3: (400, 300),
    Algorithm.DQN: (64, 64),
}
"""Stable-Baselines3's hidden layers for vectors of features."""
EQUAL: Mapping[Algorithm, tuple[int, int]] = dict.fromkeys(DEFAULTS, (64, 64))
Graphs = dict[str, Callable[[], Any]]


def main() -> int:
    """Measures; 1 where the merged graph of default networks, or of `--path`, costs more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", type=Path, help="agents to measure instead")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="rows in a call")
    parser.add_argument("--rounds", type=int, default=1000, help="timed calls of each graph")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()

    ensembles = {"defaults": random_ensemble(DEFAULTS), "equal": random_ensemble(EQUAL)}
    if arguments.path is not None:
        with open_bundle(arguments.path, max_bytes=MAX_TOTAL_BYTES) as bundle:
            ensembles = {arguments.path.name: read_ensemble(bundle, None)}
    rows = [
        measure(name, ensemble, model_format, batch, arguments.rounds)
        for name, ensemble in ensembles.items()
        for model_format in ModelFormat
        for batch in arguments.batches
    ]
    show(rows)
    report = {
        "what": "a merged graph's median over the median of the largest of its agents alone, one thread",
        "target_ratio": TARGET_RATIO,
        "rounds": arguments.rounds,
        "machine": describe(),
        "measurements": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(missed(row) for row in rows))


def random_ensemble(hidden: Mapping[Algorithm, tuple[int, int]]) -> Ensemble:
    """An agent of each algorithm with random weights: SAC and TD3 on a Box of one component, the others on three
    actions.
    """
    draw = np.random.default_rng(0)
    return Ensemble(
        agents=tuple(random_agent(algorithm, sizes, draw) for algorithm, sizes in hidden.items()),
        class_names=DEFAULT_CLASS_NAMES,
        thresholds=DEFAULT_THRESHOLDS,
        q_temperature=1.0,
    )


def random_agent(algorithm: Algorithm, hidden: Sequence[int], draw: np.random.Generator) -> Agent:
    """An agent with networks of these hidden layers."""
    kind = {
        Algorithm.SAC: PolicyKind.SAC,
        Algorithm.TD3: PolicyKind.TD3,
        Algorithm.DQN: PolicyKind.DQN,
    }.get(algorithm, PolicyKind.ACTOR_CRITIC)
    activation = "tanh" if kind is PolicyKind.ACTOR_CRITIC else "relu"
    critics = {PolicyKind.SAC: 2, PolicyKind.TD3: 2, PolicyKind.DQN: 0}.get(kind, 1)
    is_box = kind in (PolicyKind.SAC, PolicyKind.TD3)

    def network(inputs: int, outputs: int) -> Mlp:
        shapes = [(rows, columns) for columns, rows in pairwise((inputs, *hidden, outputs))]
        weights = [draw.normal(size=shape).astype(np.float32) / shape[1] ** 0.5 for shape in shapes]
        return Mlp(
            weights=tuple(weights),
            biases=tuple(np.zeros(shape[0], np.float32) for shape in shapes),
            activation=activation,
        )

    return Agent(
        name=algorithm.value.lower(),
        algorithm=algorithm,
        networks=Networks(
            kind=kind,
            policy=network(FEATURES, {PolicyKind.SAC: 2, PolicyKind.TD3: 1}.get(kind, 3)),
            values=tuple(network(FEATURES + is_box, 1) for _ in range(critics)),
        ),
        actions=Box(low=(-1.0,), high=(1.0,)) if is_box else Discrete(count=3),
        statistics=None,
        temperature=1.0 if algorithm is Algorithm.DQN else None,
        target_noise=0.2 if algorithm is Algorithm.TD3 else None,
    )


def measure(
    name: str, ensemble: Ensemble, model_format: ModelFormat, batch: int, rounds: int
) -> dict[str, Any]:
    """Times the merged graph and each agent's own, in turns."""
    parts = {agent.name: replace(ensemble, agents=(agent,)) for agent in ensemble.agents}
    with tempfile.TemporaryDirectory() as folder:
        graphs: Graphs = {
            key: opened(part, Path(folder) / key, model_format, batch)
            for key, part in ({MERGED: ensemble} | parts).items()
        }
    seconds: dict[str, list[float]] = {key: [] for key in graphs}
    order = random.Random(0)
    with torch.jit.optimized_execution(False):  # noqa: FBT003 - torch's signature
        for round_ in track(range(WARM_UP_CALLS + rounds), description=f"{name}, {model_format}, {batch}"):
            for key in order.sample(list(graphs), len(graphs)):
                started = time.perf_counter()
                graphs[key]()
                if round_ >= WARM_UP_CALLS:
                    seconds[key].append(time.perf_counter() - started)
    medians = {key: round(1e6 * statistics.median(taken), 1) for key, taken in seconds.items()}
    largest = max(parts, key=lambda key: medians[key])
    return {
        "agents": name,
        "format": model_format.value,
        "batch": batch,
        "merged_us": medians[MERGED],
        "alone_us": {key: medians[key] for key in parts},
        "largest": largest,
        "ratio": round(medians[MERGED] / medians[largest], 2),
    }


def opened(ensemble: Ensemble, path: Path, model_format: ModelFormat, batch: int) -> Callable[[], Any]:
    """Exports an ensemble; gives a call of it on a fixed batch."""
    model = build_model(ensemble)
    {ModelFormat.ONNX: write_onnx, ModelFormat.TORCHSCRIPT: write_torchscript}[model_format](model, path)
    run = open_artefact(path, model_format).run
    inputs = [tensor.numpy() for tensor in model.example(batch, None)]
    return lambda: run(inputs)


def missed(row: Mapping[str, Any]) -> bool:
    """Whether the merged graph costs more than it may; agents of equal sizes are shown, not judged."""
    return bool(row["ratio"] > TARGET_RATIO and row["agents"] != "equal")


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the measurements."""
    table = Table("agents", "format", "batch", "merged µs", "alone µs", "ratio to the largest", "target")
    for row in rows:
        alone = ", ".join(f"{key} {value:.0f}" for key, value in row["alone_us"].items())
        judged = "" if row["agents"] == "equal" else ("missed" if missed(row) else "met")
        ratio = f"{row['ratio']:.2f}"
        table.add_row(
            row["agents"], row["format"], f"{row['batch']}", f"{row['merged_us']:.0f}", alone, ratio, judged
        )
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
