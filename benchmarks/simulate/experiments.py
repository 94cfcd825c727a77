"""Do experiments' statistics hold what docs/experiments.md promises of them, looked at all the time?"""

from benchmarks.simulate import experiments_page, experiments_plots, page
from benchmarks.simulate.experiments_canaries import HARMFUL, HARMLESS, rolled_back_at, varied
from benchmarks.simulate.experiments_checks import (
    BROKEN,
    LATENCIES,
    SPLITS,
    assign,
    ratio_check,
    sketch_errors,
)
from benchmarks.simulate.experiments_goals import VARIANTS, Found, Size, goals_of
from benchmarks.simulate.experiments_laws import DRIFTING, LAWS
from benchmarks.simulate.experiments_sequences import (
    CANARY,
    FOUND_BY_FIXED,
    Trial,
    effect_of,
    run_trial,
)

FULL = Size(
    experiments=2000, ratio_runs=10_000, units=1_000_000, harmless=1000, harmful=500, sketched=1_000_000
)
QUICK = Size(experiments=200, ratio_runs=1000, units=100_000, harmless=40, harmful=60, sketched=100_000)


def run(*, quick: bool) -> bool:
    """All of it; whether the stated figures hold."""
    size = QUICK if quick else FULL
    found = _simulate(size)
    goals = goals_of(found, size, quick=quick)
    sections = experiments_page.sections(found, goals, size)
    for section in sections.values():
        print(section)
    if not quick:
        for name, section in sections.items():
            page.write(name, section, path=page.EXPERIMENTS_PAGE)
        experiments_plots.plot_sequences(found, page.IMAGES / "experiments_sequences.svg")
        experiments_plots.plot_canaries(found, page.IMAGES / "experiments_canaries.svg")
    return all(goal.holds for goal in goals)


def _simulate(size: Size) -> Found:
    same, different, drifting = {}, {}, {}
    keys = [(law, routing_keys) for law in LAWS for routing_keys in (True, False)]
    for number, (law, routing_keys) in enumerate(keys):
        _say(f"{number + 1}/{len(keys)} {law.text}, {'with' if routing_keys else 'without'} routing keys")
        key = (law, routing_keys)
        same[key] = run_trial(
            Trial(law=law, routing_keys=routing_keys), experiments=size.experiments, seed=(1, number)
        )
        effect = effect_of(law, same[key].spread, FOUND_BY_FIXED)
        trial = Trial(law=law, routing_keys=routing_keys, effect=effect, until=2.0, every=100)
        different[key] = run_trial(trial, experiments=size.experiments, seed=(2, number))
    for number, law in enumerate(DRIFTING):
        _say(f"{number + 1}/{len(DRIFTING)} canary steps: {law.text}")
        for routing_keys in (True, False):
            trial = Trial(law=law, routing_keys=routing_keys, shares=CANARY, every=100)
            drifting[law, routing_keys] = run_trial(
                trial, experiments=size.experiments, seed=(3, number, routing_keys)
            )
    _say("ratio checks")
    splits = {
        text: ratio_check(shares, shares, runs=size.ratio_runs, seed=4) for text, shares in SPLITS.items()
    }
    broken = ratio_check((0.5, 0.5), BROKEN, runs=size.ratio_runs, seed=5)
    _say(f"assignment of {size.units:,} units")
    assigned = assign(size.units)
    harmless, harmful = {}, {}
    for number, canary in enumerate(HARMLESS):
        _say(f"canaries: {canary.text}")
        harmless[canary.text] = rolled_back_at(canary, runs=size.harmless, seed=(6, number))
    for max_ratio, requests in VARIANTS:
        _say(f"harmful canaries: limit {max_ratio:g}, steps of at least {requests} requests")
        harmful[max_ratio, requests] = {
            canary.text: rolled_back_at(
                varied(canary, max_ratio=max_ratio, requests=requests), runs=size.harmful, seed=(7, number)
            )
            for number, canary in enumerate(HARMFUL)
        }
    _say("sketches")
    sketches = {
        text: sketch_errors(law, values=size.sketched, seed=number)
        for number, (text, law) in enumerate(LATENCIES.items())
    }
    return Found(
        same=same,
        different=different,
        drifting=drifting,
        splits=splits,
        broken=broken,
        assigned=assigned,
        harmless=harmless,
        harmful=harmful,
        sketches=sketches,
    )


def _say(text: str) -> None:
    print(f"  {text}", flush=True)
