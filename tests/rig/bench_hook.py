# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What each call of the hook costs, as a whole process, on a guarded host: writes docs/benchmarks.md.

Run by `make bench-hook`. Each round is a whole life without a QEMU: prepare, start, started, stopped, release.
"""

import json
import os
import statistics
import sys
from typing import Dict, List, Tuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import hosts  # noqa: E402
from clusters import Guarded  # noqa: E402
from conftest import Images  # noqa: E402
from guests import guest  # noqa: E402
from hosts import PROJECT, Host  # noqa: E402

ROUNDS = 15
HOOK = "/etc/libvirt/hooks/qemu.d/50-vmguard"


# On the host: one process that stands in for libvirtd calls the hook, and takes each call's figures as /usr/bin/time does.
LIFE = """
import json, os, subprocess, sys, time
hook, rounds, xml = sys.argv[1], int(sys.argv[2]), sys.stdin.buffer.read()
found = []
for number in range(rounds + 1):
    for operation in ("prepare", "start", "started", "stopped", "release", "migrate"):
        began = time.monotonic()
        process = subprocess.Popen([hook, "bench", operation, "begin", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            process.stdin.write(xml)
            process.stdin.close()
        except BrokenPipeError:
            pass
        words = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(operation + words.decode())
        if number:  # the first makes the leases' files
            found.append((operation, (time.monotonic() - began) * 1000, usage.ru_maxrss / 1024))
print(json.dumps(found))
"""


def figures(host: Host, images: Images, disks: int) -> Dict[str, Tuple[List[float], float]]:
    """By operation: wall milliseconds of each round, and peak memory in MiB."""
    one = guest("bench", [images.raw(f"{disks}-{number}.img") for number in range(disks)])
    done = host.run("/usr/bin/python3", "-c", LIFE, HOOK, str(ROUNDS), stdin=one.xml, within=300)
    found: Dict[str, Tuple[List[float], float]] = {}
    for operation, wall, memory in json.loads(done.out):
        times, most = found.get(operation, ([], 0.0))
        found[operation] = ([*times, wall], max(most, memory))
    return found


HEAD = """# What a start pays

Whole processes of the hook, with the kernel's accounting of each (as `/usr/bin/time` has it), in milliseconds, on the
two-host rig: leases on ext4, 2 cores, the files of all leases there already. Written by `make bench-hook`.

| disks | operation | median | worst | peak memory |
|---|---|---|---|---|
"""

TAIL = """
`stopped` and `migrate` never start Python; `start`, `started` and `release` do not where no guest of the host has a record.
In these rounds no QEMU exists, so `started` finds none and adopts nothing.
"""


def main() -> int:
    hosts.sweep()
    cluster = Guarded("bench", hosts=1)
    rows = []
    try:
        cluster.boot()
        host = cluster.hosts[0]
        # Whoever calls the hook here is no libvirtd, so it has no plugin: the leases stay with the host.
        host.write("/etc/vmguard/vmguard.conf.d/90-bench.conf", "[leases]\nwithout_watchdog = accept\n")
        for disks in (1, 8, 32):
            images = Images(cluster, os.path.join(cluster.shared, str(disks)))
            for operation, (times, memory) in figures(host, images, disks).items():
                rows.append(
                    f"| {disks} | `{operation}` | {statistics.median(times):.0f} | {max(times):.0f} | {memory:.0f} MiB |\n"
                )
    finally:
        cluster.destroy()
    with open(os.path.join(PROJECT, "docs", "benchmarks.md"), "w", encoding="utf-8") as page:
        page.write(HEAD + "".join(rows) + TAIL)
    print("".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
