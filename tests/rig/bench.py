# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a guard costs: writes docs/benchmarks.md and docs/benchmarks.svg. Run by `make bench`.

    bench.py [--rounds N] [--storms N] [--guests N] [--disks 1,8,32] [--to FOLDER]
"""

import argparse
import os
import sys
import time
from typing import List, Sequence

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import bench_measures as measures  # noqa: E402
import bench_page  # noqa: E402
import hosts  # noqa: E402
from clusters import Bare, Guarded, Plugin  # noqa: E402
from hosts import PROJECT  # noqa: E402

PAGE = os.path.join(PROJECT, "docs", "benchmarks.md")
# From here on the page is written by hand, and kept.
BY_HAND = "\n## Where the time goes\n"


def options(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.py", description="What a guard costs.")
    parser.add_argument("--rounds", type=int, default=15, help="of every measure (default: 15)")
    parser.add_argument("--storms", type=int, default=5, help="rounds of the storm (default: 5)")
    parser.add_argument("--guests", type=int, default=20, help="guests of the storm (default: 20)")
    parser.add_argument("--disks", default="1,8,32", help="numbers of disks (default: 1,8,32)")
    parser.add_argument("--to", default=os.path.join(PROJECT, "docs"), help="folder of the page and the drawing")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Measure, write both files, print the page."""
    chosen = options(words)
    disks = [int(number) for number in chosen.disks.split(",")]
    began = time.monotonic()
    hosts.sweep()
    guarded = Guarded("bench-guarded", hosts=2)
    clusters: measures.Clusters = {
        "bare": Bare("bench-bare", hosts=2),
        "plugin": Plugin("bench-plugin", hosts=2),
        "guarded": guarded,
    }
    results: List[measures.Result] = []
    calls: List[measures.Call] = []
    try:
        for cluster in clusters.values():
            cluster.boot()
        for number in disks:
            results += measures.start_and_destroy(clusters, number, chosen.rounds)
        results += measures.refuse(clusters, chosen.rounds)
        results += measures.migrate(clusters, chosen.rounds)
        results += measures.storm(clusters, chosen.guests, chosen.storms)
        footprints = {name: measures.footprint(cluster, 4) for name, cluster in clusters.items()}
        for number in disks:
            calls += measures.hook_calls(guarded, number, chosen.rounds)
    finally:
        for cluster in clusters.values():
            cluster.destroy()
    with open(PAGE, encoding="utf-8") as file:
        _, mark, rest = file.read().partition(BY_HAND)
    text = bench_page.page(
        results, footprints, calls, chosen.rounds, chosen.storms, len(os.sched_getaffinity(0)), mark + rest
    )
    for name, content in (("benchmarks.md", text), ("benchmarks.svg", bench_page.drawing(results))):
        with open(os.path.join(chosen.to, name), "w", encoding="utf-8") as file:
            file.write(content)
    print(text)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
