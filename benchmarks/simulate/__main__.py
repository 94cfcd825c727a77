"""Runs the simulations and renews their part of docs/ensembles_validation.md and docs/experiments_validation.md.

    python -m benchmarks.simulate --full             # all, as `make simulate`
    python -m benchmarks.simulate --quick weights    # one, smaller; writes no page

Each simulation is a module of this package, named in `SIMULATIONS`, with one function

    def run(*, quick: bool) -> bool

that is seeded, prints its progress and tables, returns whether the stated figures hold, and where it isn't quick puts
its tables between its own markers of a page with `page.write`.
"""

import argparse
import importlib
import sys
import time

SIMULATIONS = ("weights", "off_policy", "experiments")


def main() -> int:
    """Runs those that are asked for; 1 where a stated figure doesn't hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__.split("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="fewer runs; writes no page")
    size.add_argument("--full", action="store_true", help="all runs, and the page (default)")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SIMULATIONS))
    options = parser.parse_args()
    if unknown := set(options.names) - set(SIMULATIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SIMULATIONS)}")
    held = True
    for name in options.names or SIMULATIONS:
        print(f"• {name}", flush=True)
        begun_s = time.monotonic()
        held &= importlib.import_module(f"benchmarks.simulate.{name}").run(quick=options.quick)
        print(f"  {time.monotonic() - begun_s:.0f} s", flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
