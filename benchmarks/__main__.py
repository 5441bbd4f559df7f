"""`python -m benchmarks` lists the benchmarks; `python -m benchmarks NAME ...` runs some, in the order of the list.

Each prints last a line `NAME: FIGURE (bound: BOUND) holds` or `... falls short` (exit code 0 or 1); where this machine
lacks what is measured (a GPU) it says `NAME: not measured: WHY` (3). Of several, one that falls short makes the code 1.
Results, with a description of the machine, are appended to `benchmarks/results/NAME.jsonl`.
"""

import sys

from benchmarks import (
    assistant,
    chunking,
    drift,
    embedding,
    figures,
    gpu,
    index,
    index_recall,
    nightly,
    overhead,
    packing,
    rollback,
    sync,
    verdict,
)
from benchmarks.result import NotMeasured, Result, keep, machine

BENCHMARKS = {
    "demo_time": figures.demo_time,
    "dag_import": figures.dag_import,
    "orchestration": figures.orchestration,
    "noop_rerun": figures.noop_rerun,
    "packing": packing.packing,
    "trainer_overhead": overhead.trainer_overhead,
    "checkpoint_overhead": overhead.checkpoint_overhead,
    "vector_load": index.vector_load,
    "index_build": index.index_build,
    "unchanged_rows": index.unchanged_rows,
    "index_recall": index_recall.index_recall,
    "sync_noop": sync.sync_noop,
    "sync_one_percent": sync.sync_one_percent,
    "sync_memory": sync.sync_memory,
    "embed_throughput": embedding.embed_throughput,
    "embed_sorting": embedding.embed_sorting,
    "gpu_training": gpu.gpu_training,
    "chunking": chunking.chunking,
    "drift_power": drift.drift_power,
    "embedding_drift": drift.embedding_drift,
    "nightly_check": nightly.nightly_check,
    "verdict_power": verdict.verdict_power,
    "assistant_overhead": assistant.assistant_overhead,
    "assistant_load": assistant.assistant_load,
    "rollback_time": rollback.rollback_time,
}


def main(arguments: list[str]) -> int:
    """List, or run some; return the exit code."""
    if not arguments:
        for name, function in BENCHMARKS.items():
            print(f"{name:<20} {(function.__doc__ or '').splitlines()[0]}")
        return 0
    if unknown := [name for name in arguments if name not in BENCHMARKS]:
        print(
            f"expected names of {', '.join(BENCHMARKS)}, found {' '.join(unknown)}. Next: correct it.", file=sys.stderr
        )
        return 2
    try:
        codes = {run(name) for name in BENCHMARKS if name in arguments}
    finally:
        sync.close()
    return 1 if 1 in codes else max(codes)


def run(name: str) -> int:
    """Run one, keep and print its result; return its exit code."""
    try:
        result: Result = BENCHMARKS[name]()
    except NotMeasured as error:
        print(f"{name}: not measured: {error}")
        return 3
    keep(name, result)
    print(f"machine: {machine()}")
    for line in result.details:
        print(line)
    print(f"{name}: {result.figure} (bound: {result.bound}) {'holds' if result.holds else 'falls short'}")
    return 0 if result.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
