"""Do the intervals of off-policy evaluation hold? Logs of a made-up world, on the code that serves.

A world is a finite population of contexts, so that a policy's true value is a sum and has no error of its own. Its
agents are softmax policies, its rewards depend on context and action and have unit noise.
Axes: runs, requests, agents, actions.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from benchmarks.simulate import page
from benchmarks.simulate.bandit import AGENTS, choose
from control_plane.ensembles import credit
from control_plane.ensembles.credit import Floats
from control_plane.ensembles.off_policy import Log, NotIdentifiable, PolicyValue, evaluate
from control_plane.ensembles.policies import PolicySettings, learned_weights

CONTEXTS, FEATURES, ACTIONS = 4096, 6, 3
BATCH = 50
"""Rewards between two computations of the weights."""
SIDE_BY_SIDE = 50
LEVEL, LEAST_COVERAGE = 0.95, 0.93
SEQUENCE_FACTOR = 3.04
"""Half-width, in standard errors, of the normal-mixture confidence sequence where it is tightest (level 0.95)."""
UNIFORM = (0.2, 0.2, 0.2, 0.2, 0.2)
TARGETS: dict[str, Floats] = {
    **dict(zip(AGENTS, np.eye(len(AGENTS)), strict=True)),
    "uniform": np.array(UNIFORM),
    "given": np.array((0.5, 0.3, 0.2, 0.0, 0.0)),
}
CURRENT = "current"
"""Target of a learning log: the weights it ends with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Agents and what their actions are worth; float64.

    Attributes:
        probs: [contexts, agents, actions].
        worth: Mean rewards [contexts, actions].
        values: True value of each agent [agents].
    """

    probs: Floats
    worth: Floats
    values: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How logs come about.

    Attributes:
        text: What is special, for the page.
        learns: Thompson weights that learn from the log; otherwise `weights` throughout.
        sharpness: How sure of their actions the agents are.
        gap: How much better the first agent is, in standard deviations of the reward's noise.
        entries: Of a log.
        tails: Degrees of freedom of the noise (Student's t, scaled to unit variance); None: normal.
        weights: Of the policy that doesn't learn.
        persistence: Chance that a request has the same context as the one before.
        floor: The least weight of each agent of a policy that learns.
        must_hold: Whether the stated figure is about it.
    """

    text: str
    learns: bool
    sharpness: float = 5.0
    gap: float = 0.1
    entries: int = 2000
    tails: int | None = None
    weights: tuple[float, ...] = UNIFORM
    persistence: float = 0.0
    floor: float = 0.0
    must_hold: bool = False


FIXED = Setting(text="fixed weights", learns=False, must_hold=True)
LEARNING = Setting(text="learning weights", learns=True, must_hold=True)
SETTINGS = (
    FIXED,
    LEARNING,
    Setting(text="fixed, less sure agents", learns=False, sharpness=0.8, must_hold=True),
    Setting(text="learning, less sure agents", learns=True, sharpness=0.8, must_hold=True),
    Setting(text="learning, all agents equal", learns=True, gap=0.0, must_hold=True),
    Setting(text="learning, logs of 300", learns=True, entries=300),
    Setting(text="fixed, t3 noise", learns=False, tails=3),
    Setting(text="learning, t3 noise", learns=True, tails=3),
    Setting(text="learning, a context stays for 10 requests on average", learns=True, persistence=0.9),
    Setting(text="learning, best agent ahead by 0.5", learns=True, gap=0.5),
    Setting(text="learning, best agent ahead by 1", learns=True, gap=1.0),
    Setting(text="the same with a floor of 0.02", learns=True, gap=1.0, floor=0.02),
    Setting(text="rare support: weights 0.96 and four times 0.01", learns=False, weights=(0.96, *[0.01] * 4)),
    Setting(text="no support: weights 1, 0, 0, 0, 0", learns=False, weights=(1.0, *[0.0] * 4)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """What became of one target's intervals over all logs of a setting.

    Attributes:
        truth: Its value in each log that was answered.
        values: What was estimated from these.
        refused: Logs that were not_identifiable.
    """

    truth: list[float] = field(default_factory=list)
    values: list[PolicyValue] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Logs with a number."""
        return len(self.values)

    def coverage(self, kind: str = "") -> float:
        """Share of the intervals that hold the truth: of the adaptive one, "ips", "snips", "dr", or "sequence"."""
        return float(np.mean([low <= true <= high for true, (low, high) in self._intervals(kind)]))

    def width(self, kind: str = "") -> float:
        """Median width of the intervals; some have a few very wide ones."""
        return float(np.median([high - low for _, (low, high) in self._intervals(kind)]))

    def bias(self, kind: str = "") -> float:
        """Mean error of the estimates."""
        estimates = [value.estimate if not kind else getattr(value, kind).estimate for value in self.values]
        return float(np.mean(np.subtract(estimates, self.truth)))

    def _intervals(self, kind: str) -> Iterator[tuple[float, tuple[float, float]]]:
        for true, value in zip(self.truth, self.values, strict=True):
            if kind == "sequence":
                half = SEQUENCE_FACTOR * value.dr.standard_error
                yield true, (value.dr.estimate - half, value.dr.estimate + half)
            else:
                one = getattr(value, kind) if kind else value.interval
                yield true, (one.lower, one.upper)


def run(*, quick: bool) -> bool:
    """Simulates all settings; with `quick` the first two, a hundred logs each."""
    runs, settings = (100, SETTINGS[:2]) if quick else (1000, SETTINGS)
    found = {}
    for number, setting in enumerate(settings):
        found[setting.text] = outcomes = simulate(setting, runs=runs, seed=number)
        print(f"  {setting.text}: {line_of(outcomes)}", flush=True)
    # Beyond what chance may do to so few logs, where there are few.
    slack = 2.33 * (LEAST_COVERAGE * (1 - LEAST_COVERAGE) / runs) ** 0.5 if quick else 0.0
    held = all(
        outcomes[name].coverage() >= LEAST_COVERAGE - slack
        for setting, outcomes in zip(settings, found.values(), strict=True)
        if setting.must_hold
        for name in TARGETS
    )
    print(f"  every target's interval covers in at least {LEAST_COVERAGE:.0%}: {'yes' if held else 'NO'}")
    if not quick:
        page.write("off_policy", section(found, runs))
    return held


def simulate(setting: Setting, *, runs: int, seed: int) -> dict[str, Outcomes]:
    """Evaluates all targets on logs of a setting, name to outcomes."""
    world = make_world(setting, seed=1000)
    random = np.random.default_rng(seed)
    outcomes: dict[str, Outcomes] = defaultdict(Outcomes)
    for begin in range(0, runs, SIDE_BY_SIDE):
        for log, current in make_logs(setting, world, random, runs=min(SIDE_BY_SIDE, runs - begin)):
            targets = TARGETS | ({CURRENT: current} if setting.learns else {})
            try:
                evaluation = evaluate(log, targets, level=LEVEL)
            except NotIdentifiable:
                answered: Mapping[str, PolicyValue] = {}
            else:
                answered = evaluation.policies
            for name, weights in targets.items():
                if (value := answered.get(name)) is None:
                    outcomes[name].refused.append(1)
                else:
                    outcomes[name].truth.append(float(weights @ world.values))
                    outcomes[name].values.append(value)
    return dict(outcomes)


def make_world(setting: Setting, *, seed: int) -> World:
    """Agents that are equally good but for the first, which is better by `gap`."""
    random = np.random.default_rng(seed)
    features = random.standard_normal((CONTEXTS, FEATURES))
    tastes = random.standard_normal((len(AGENTS), FEATURES, ACTIONS)) * setting.sharpness
    powers = np.exp(np.einsum("nf,afk->nak", features, tastes) / 3)
    probs = powers / powers.sum(axis=-1, keepdims=True)
    worth = 0.3 * np.sin(features @ random.standard_normal((FEATURES, ACTIONS)))
    worth += 0.15 * random.standard_normal(ACTIONS)
    values = np.einsum("nak,nk->a", probs, worth) / CONTEXTS
    wanted = np.full(len(AGENTS), values.mean()) + setting.gap * np.eye(len(AGENTS))[0]
    overlaps = np.einsum("nak,njk->aj", probs, probs) / CONTEXTS
    worth += np.einsum("nak,a->nk", probs, np.linalg.solve(overlaps, wanted - values))
    return World(probs=probs, worth=worth, values=wanted)


def make_logs(
    setting: Setting, world: World, random: np.random.Generator, *, runs: int
) -> Iterator[tuple[Log, Floats]]:
    """Logs with the weights that each ends with."""
    contexts = random.integers(CONTEXTS, size=(runs, setting.entries))
    if setting.persistence:
        is_new = random.random(contexts.shape) >= setting.persistence
        is_new[:, 0] = True
        last_new = np.maximum.accumulate(np.where(is_new, np.arange(setting.entries), 0), axis=1)
        contexts = np.take_along_axis(contexts, last_new, axis=1)
    policy = PolicySettings(floor=setting.floor)
    weights = np.broadcast_to(np.array(setting.weights), (runs, len(AGENTS)))
    statistics: Floats = np.zeros((runs, len(AGENTS), 4))
    parts: list[tuple[npt.NDArray[np.generic], ...]] = []
    for begin in range(0, setting.entries, BATCH):
        here = contexts[:, begin : begin + BATCH]
        probs = world.probs[here]
        mixture = np.einsum("ra,rbak->rbk", weights, probs)
        actions = choose(mixture, random)
        rewards = world.worth[here, actions] + noise(setting, random, here.shape)
        propensity = np.take_along_axis(mixture, actions[..., np.newaxis], -1)[..., 0]
        in_force = np.broadcast_to(weights[:, np.newaxis], (*here.shape, len(AGENTS)))
        parts.append((in_force, actions, propensity, rewards))
        if setting.learns:
            shares = credit.credits(probs, weights[:, np.newaxis], actions)
            statistics = statistics + credit.contribution(shares, rewards, np.ones(1)).sum(axis=1)
            weights = np.array([learned_weights(policy, AGENTS, one)[0] for one in statistics])
    in_force, actions, propensity, rewards = (
        np.concatenate(part, axis=1) for part in zip(*parts, strict=True)
    )
    for one in range(runs):
        log = Log(
            agent_probs=world.probs[contexts[one]],
            weights=in_force[one],
            action=actions[one],
            propensity=propensity[one],
            reward=rewards[one],
            sampled=np.ones(setting.entries, np.bool_),
        )
        yield log, weights[one]


def noise(setting: Setting, random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Of unit variance."""
    if setting.tails is None:
        return random.standard_normal(shape)
    scale = (setting.tails / (setting.tails - 2)) ** 0.5
    return np.asarray(random.standard_t(setting.tails, size=shape) / scale)


def answered_of(outcomes: Mapping[str, Outcomes]) -> dict[str, Outcomes]:
    """Targets that don't depend on the log, answered in at least a twentieth of the logs: else a share says little."""
    return {
        name: outcomes[name]
        for name in TARGETS
        if outcomes[name].answered >= (outcomes[name].answered + len(outcomes[name].refused)) / 20
    }


def worst(outcomes: Mapping[str, Outcomes], kind: str = "") -> str:
    """The least coverage over the targets."""
    coverages = [one.coverage(kind) for one in answered_of(outcomes).values()]
    return f"{min(coverages):.1%}" if coverages else "–"


def line_of(outcomes: Mapping[str, Outcomes]) -> str:
    """A setting in a line, for the terminal."""
    kinds = ("", "dr", "ips", "snips", "sequence")
    shares = ", ".join(f"{kind or 'adaptive'} {worst(outcomes, kind)}" for kind in kinds)
    refused = sum(len(outcomes[name].refused) for name in TARGETS)
    return f"least coverage {shares}; {refused} refused"


def section(found: Mapping[str, Mapping[str, Outcomes]], runs: int) -> str:
    """The page's section."""
    fixed, learning = found[FIXED.text], found[LEARNING.text]
    targets = page.table(
        ("target", *(f"{text}: {what}" for text in ("fixed", "learning") for what in _TARGET_COLUMNS)),
        [
            (name, *(cell for found_one in (fixed, learning) for cell in target_cells(found_one.get(name))))
            for name in (*TARGETS, CURRENT)
        ],
    )
    settings = page.table(
        (
            "logs",
            "answered",
            "`interval`",
            "median width",
            "DR",
            "its width",
            "IPS",
            "SNIPS",
            "sequence",
            "its width",
        ),
        [setting_row(text, outcomes) for text, outcomes in found.items()],
    )
    return f"{_INTRODUCTION.format(runs=runs, batch=BATCH)}\n{targets}\n{_BETWEEN}\n{settings}\n{page.machine()}\n"


_TARGET_COLUMNS = ("`interval`", "DR, IPS, SNIPS", "median width (DR's)", "bias (DR's)", "refused")


def target_cells(one: Outcomes | None) -> tuple[str, ...]:
    """A target's part of a row."""
    if one is None or not one.answered:
        return ("–",) * len(_TARGET_COLUMNS)
    return (
        f"{one.coverage():.1%}",
        ", ".join(f"{one.coverage(kind):.1%}" for kind in ("dr", "ips", "snips")),
        f"{one.width():.3f} ({one.width('dr'):.3f})",
        f"{one.bias():+.3f} ({one.bias('dr'):+.3f})",
        f"{len(one.refused)}",
    )


def setting_row(text: str, outcomes: Mapping[str, Outcomes]) -> tuple[str, ...]:
    """A row of the second table."""
    shown = answered_of(outcomes).values()
    answered = sum(outcomes[name].answered for name in TARGETS)
    refused = sum(len(outcomes[name].refused) for name in TARGETS)

    def width(kind: str) -> str:
        return f"{np.mean([one.width(kind) for one in shown]):.2f}"

    return (
        text,
        f"{answered / (answered + refused):.1%}",
        worst(outcomes),
        width(""),
        worst(outcomes, "dr"),
        width("dr"),
        worst(outcomes, "ips"),
        worst(outcomes, "snips"),
        worst(outcomes, "sequence"),
        width("sequence"),
    )


_INTRODUCTION = """\
{runs:,} logs of 2,000 requests in each setting, five agents (the first is better by a tenth of the reward's
noise, unless said otherwise), three actions, rewards with unit noise. A share below is how many of the 95 %
intervals hold the target's true value. `interval` is the one to read ([off_policy.md](off_policy.md)); beside
it are the naive ones of the doubly robust (DR), inverse propensity (IPS) and self-normalised (SNIPS) estimates.
The figure to hold is 93 % for each agent alone, uniform and given weights (0.5, 0.3, 0.2, 0, 0), under fixed
and under learning weights (Thompson, renewed after every {batch} rewards). `current` is the weights that a
learning log ends with: a target picked by the same log, which no interval here allows for.
"""
_BETWEEN = """\
Settings, with the **least** coverage over those seven targets (of those answered in at least a twentieth of the
logs), and the mean over them of the median widths. The first two are those above. `sequence` is a confidence
sequence (normal mixture, as for experiments) around the DR estimate, where it is tightest: it holds at all
times, not only once, and pays with half as much width again. Where it would count, with learning weights that
give agents up, it does about as well as `interval`. What isn't answered was `not_identifiable`.
"""
