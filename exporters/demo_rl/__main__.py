"""`python -m exporters.demo_rl`: trains the agents of the demonstration ensemble, scores them and writes the report.

Writes `rl_ensemble-v1.0.zip` and `eurusd_test_observations.npz` into one folder, and its section of the report beside
the documentation. Takes about two minutes on one core; more do not help networks this small.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from exporters.demo.dataset import build_dataset
from exporters.demo.market_data import find_bars_file, read_bars
from exporters.demo_rl.agents import PLANS, AgentPlan, TrainedAgent
from exporters.demo_rl.archive import write_ensemble
from exporters.demo_rl.environment import OBSERVATION_NAMES, Market, Positions, build_markets, observe
from exporters.demo_rl.evaluation import evaluate, greedy, q_temperature, walk
from exporters.demo_rl.report import Run, write_report
from exporters.demo_rl.training import train_agent

SEED = 20171229
THREADS = 1
TEST_OBSERVATIONS = 512


def main() -> None:
    """Runs the whole demonstration."""
    parser = argparse.ArgumentParser(prog="python -m exporters.demo_rl", description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=Path("checkpoints"), help="folder for the files")
    parser.add_argument(
        "--report", type=Path, default=Path("docs/demo_models.md"), help="where the report goes"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()

    started = time.monotonic()
    torch.set_num_threads(THREADS)
    console = Console()
    bars = read_bars(find_bars_file())
    markets = build_markets(bars, build_dataset(bars))
    agents = train_agents(PLANS, markets.train, seed=arguments.seed)
    temperature = q_temperature(agents, markets.train)
    evaluation = evaluate(agents, markets, temperature=temperature)

    arguments.checkpoints.mkdir(parents=True, exist_ok=True)
    positions = walk(markets.test, greedy(agents, temperature))
    write_test_observations(arguments.checkpoints / "eurusd_test_observations.npz", markets.test, positions)
    path = arguments.checkpoints / "rl_ensemble-v1.0.zip"
    write_ensemble(path, agents, q_temperature=temperature)
    run = Run(
        seed=arguments.seed,
        threads=THREADS,
        seconds=time.monotonic() - started,
        size_bytes=path.stat().st_size,
        observations=TEST_OBSERVATIONS,
        temperature=temperature,
    )
    write_report(arguments.report, agents, evaluation, run)
    console.print(f"{path} and {arguments.report} written in {run.seconds:.0f} s")


def train_agents(plans: Sequence[AgentPlan], market: Market, *, seed: int) -> tuple[TrainedAgent, ...]:
    """Trains the agents one after the other, and shows how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    agents = []
    with Progress(*columns) as progress:
        tasks = [progress.add_task(f"{plan.name} steps", total=plan.steps, start=False) for plan in plans]
        for number, (plan, task) in enumerate(zip(plans, tasks, strict=True)):
            progress.start_task(task)

            def advance(steps: int, task: TaskID = task) -> None:
                progress.update(task, completed=steps)

            agents.append(train_agent(plan, market, seed=seed + number, on_steps=advance))
            progress.update(task, completed=plan.steps)
            progress.stop_task(task)
    return tuple(agents)


def write_test_observations(path: Path, market: Market, positions: Positions) -> None:
    """Saves evenly spread observations along a walk: raw input, time of the bar, and the return of the next hour.

    Args:
        path: Of the file.
        market: The test part.
        positions: Of the walk, int64 [bars - 1].
    """
    held = np.concatenate([[0], positions[:-1]])
    rows = np.linspace(0, len(held) - 1, TEST_OBSERVATIONS).round().astype(np.int64)
    np.savez_compressed(
        path,
        x=observe(market.features[rows], held[rows]),
        last_bar_time=market.time[rows],
        next_return_bp=market.next_return_bp[rows],
        feature_names=np.array(OBSERVATION_NAMES),
    )


if __name__ == "__main__":
    main()
