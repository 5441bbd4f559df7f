"""`python -m benchmarks` lists the benchmarks; `python -m benchmarks NAME` runs one.

Each prints last a line `NAME: FIGURE (bound: BOUND) holds` or `... falls short` and exits 0 or 1. Results,
with a description of the machine, are appended to `benchmarks/results/NAME.jsonl`.
"""

import sys

from benchmarks import figures, packing
from benchmarks.result import Result, keep, machine

BENCHMARKS = {
    "demo_time": figures.demo_time,
    "dag_import": figures.dag_import,
    "orchestration": figures.orchestration,
    "noop_rerun": figures.noop_rerun,
    "packing": packing.packing,
}


def main(arguments: list[str]) -> int:
    """List, or run one; return the exit code."""
    if not arguments:
        for name, function in BENCHMARKS.items():
            print(f"{name:<15} {(function.__doc__ or '').splitlines()[0]}")
        return 0
    if len(arguments) != 1 or arguments[0] not in BENCHMARKS:
        print(f"expected one of {', '.join(BENCHMARKS)}, found {' '.join(arguments)}", file=sys.stderr)
        return 2
    name = arguments[0]
    result: Result = BENCHMARKS[name]()
    keep(name, result)
    print(f"machine: {machine()}")
    for line in result.details:
        print(line)
    print(f"{name}: {result.figure} (bound: {result.bound}) {'holds' if result.holds else 'falls short'}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
