# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What is measured, and how: each measure goes through all clusters in turn before it is repeated, so that a machine that
gets slower or faster hits all alike.
"""

import json
import os
import time
from typing import Callable, Dict, List, NamedTuple, Sequence, Tuple

from clusters import Guarded
from conftest import Images
from guests import Disk, Guest, guest
from hosts import Cluster, Done, Host, eventually

HOOK = "/etc/libvirt/hooks/qemu.d/50-vmguard"


class Result(NamedTuple):
    """One measure: by cluster the milliseconds of each round, or why there are none."""

    title: str
    values: Dict[str, List[float]]
    without: Dict[str, str]


class NotMeasured(Exception):
    """What a cluster cannot do, in words for the table."""


Clusters = Dict[str, Cluster]
Measure = Callable[[], Sequence[float]]


def in_turns(titles: Sequence[str], measures: Dict[str, Measure], rounds: int) -> List[Result]:
    """
    Each measure once for warming up, then `rounds` times, in turns. One call gives a value (milliseconds) for each title.

    A cluster that cannot do it says so in the first round, and is left out.
    """
    results = [Result(title, {name: [] for name in measures}, {}) for title in titles]
    left = dict(measures)
    for number in range(rounds + 1):
        for name in list(left):
            try:
                values = left[name]()
            except NotMeasured as reason:
                del left[name]
                for result in results:
                    result.values[name].clear()
                    result.without[name] = str(reason)
                continue
            if number:
                for result, value in zip(results, values):
                    result.values[name].append(value)
    return results


def milliseconds(done: Done) -> float:
    return done.seconds * 1000


def started(host: Host, it: Guest) -> float:
    """Start a defined guest as an administrator does; the milliseconds. Raises NotMeasured where that fails."""
    done = host.virsh("start", it.name, check=False)
    if done.status:
        raise NotMeasured("it does not start: " + " ".join(done.err.split())[:160])
    return milliseconds(done)


def start_and_destroy(clusters: Clusters, disks: int, rounds: int) -> List[Result]:
    """Whole `virsh start` and `virsh destroy` of a guest with so many disks."""

    def measure(cluster: Cluster) -> Measure:
        images = Images(cluster, os.path.join(cluster.shared, f"start{disks}"))
        it = guest(f"start{disks}", [images.raw(f"{number}.img") for number in range(disks)])
        host = cluster.hosts[0]
        host.define(it)
        return lambda: (started(host, it), host.destroy(it) * 1000)

    plural = "disk" if disks == 1 else "disks"
    titles = [f"`virsh start`, {disks} {plural}", f"`virsh destroy`, {disks} {plural}"]
    return in_turns(titles, {name: measure(cluster) for name, cluster in clusters.items()}, rounds)


def refuse(clusters: Clusters, rounds: int) -> List[Result]:
    """
    A guest runs on the first host; how long the second one takes to refuse another guest for its disk.

    On a block device with a node of its own on each host: QEMU's own locks would see a file on both.
    """

    def measure(cluster: Cluster) -> Measure:
        file = os.path.join(cluster.shared, "refused.img")
        with open(file, "wb") as made:
            made.truncate(2 << 20)
        device = Disk(cluster.block_device("refused", file), "block")
        first, second = cluster.hosts[:2]
        holder, other = guest("holder", [device]), guest("other", [device])
        first.start(holder)
        second.define(other)

        def once() -> Sequence[float]:
            done = second.virsh("start", other.name, check=False)
            if not done.status:
                second.destroy(other)
                first.destroy(holder)
                raise NotMeasured("both run")
            return [milliseconds(done)]

        return once

    results = in_turns(["a refusal"], {name: measure(cluster) for name, cluster in clusters.items()}, rounds)
    for cluster in clusters.values():
        cluster.hosts[0].remove_all_guests()
    return results


def owns(host: Host, it: Guest) -> bool:
    """Whether a guest that has migrated in owns its leases, and waits for none: it can go on from there."""
    mine = [held for held in host.leases() if held.pid == host.qemu_pid(it)]
    return bool(mine) and not any(held.name.endswith(".t") for held in mine)


def downtime(text: str) -> float:
    """Milliseconds, out of `virsh domjobinfo --completed`."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if name == "Total downtime" and len(words) == 2:
            return float(words[0]) * {"ms": 1, "s": 1000}[words[1]]
    raise AssertionError(f"no downtime in:\n{text}")


def migrate(clusters: Clusters, rounds: int) -> List[Result]:
    """Live migration there and back: how long the command takes, and how long the guest stands still."""

    def measure(cluster: Cluster) -> Measure:
        images = Images(cluster, os.path.join(cluster.shared, "moves"))
        it = guest("mover", [images.raw("mover.img")])
        here, there = cluster.hosts[:2]
        here.start(it)
        places = [here, there]

        def once() -> Sequence[float]:
            source, destination = places
            to = f"qemu+tcp://{destination.address}/system"
            # libvirt takes the rig's filesystem for a local one.
            done = source.virsh("migrate", "--live", "--unsafe", it.name, to, check=False)
            if done.status:
                raise NotMeasured("it does not migrate: " + " ".join(done.err.split())[:160])
            stood = downtime(destination.virsh("domjobinfo", "--completed", it.name).out)
            if isinstance(cluster, Guarded):
                eventually(lambda: owns(destination, it), "the guest owns its leases at its destination")
            places.reverse()
            return milliseconds(done), stood

        return once

    titles = ["live migration", "its downtime"]
    results = in_turns(titles, {name: measure(cluster) for name, cluster in clusters.items()}, rounds)
    for cluster in clusters.values():
        for host in cluster.hosts:
            host.remove_all_guests()
    return results


def storm(clusters: Clusters, guests: int, rounds: int) -> List[Result]:
    """So many guests, a disk each, started on one host at the same moment: until the last one runs."""

    def measure(cluster: Cluster) -> Measure:
        images = Images(cluster, os.path.join(cluster.shared, "storm"))
        host = cluster.hosts[0]
        them = [guest(f"storm{number}", [images.raw(f"{number}.img")]) for number in range(guests)]
        for it in them:
            host.define(it)

        def all_at_once(*words: str) -> float:
            began = time.monotonic()
            for process in [host.spawn("virsh", "-q", *words, it.name) for it in them]:
                error = process.communicate()[1]
                assert process.returncode == 0, f"{words[0]} in a storm: {error}"
            return (time.monotonic() - began) * 1000

        return lambda: (all_at_once("start"), all_at_once("destroy"))

    titles = [f"{guests} starts at once", f"{guests} destroys at once"]
    return in_turns(titles, {name: measure(cluster) for name, cluster in clusters.items()}, rounds)


# -- what a guest costs while it runs -----------------------------------------------------------------------------------


# In the arguments of every process of ours: hook script, hook and errand, command.
OURS = ("/50-vmguard", "from vmguard.", "/bin/vmguard")


class Footprint(NamedTuple):
    """What running guests add to a host."""

    processes: float  # for each guest, its QEMU not counted
    ours: int  # processes of vmguard while the guests run
    sanlock_kib: float  # resident memory of the sanlock daemon, for each guest


def footprint(cluster: Cluster, guests: int) -> Footprint:
    """Before and after so many guests, with one disk each, have started."""
    host = cluster.hosts[0]

    def look() -> Tuple[int, int, int]:
        running = [arguments for _, arguments in host.processes()]
        others = [words for words in running if "qemu-system" not in words[0]]
        ours = [words for words in others if any(mark in word for word in words for mark in OURS)]
        sanlock = host.daemon_pid("sanlock")
        lines = host.read(f"/proc/{sanlock}/status").splitlines() if sanlock else []
        resident = sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
        return len(others), len(ours), resident

    images = Images(cluster, os.path.join(cluster.shared, "footprint"))
    before = look()
    for number in range(guests):
        host.start(guest(f"resident{number}", [images.raw(f"{number}.img")]))
    # What comes and goes is not resident: wait until no hook runs.
    eventually(lambda: look()[1] == 0 or not isinstance(cluster, Guarded), "no process of vmguard runs", within=10)
    after = look()
    host.remove_all_guests()
    return Footprint((after[0] - before[0]) / guests, after[1], (after[2] - before[2]) / guests)


# -- the hook alone -----------------------------------------------------------------------------------------------------

# On the host: one process that stands in for libvirtd calls the hook, and takes each call's figures as /usr/bin/time does.
LIFE = """
import json, os, subprocess, sys, time
hook, rounds, xml = sys.argv[1], int(sys.argv[2]), sys.stdin.buffer.read()
found = []
for number in range(rounds + 1):
    for operation in ("prepare", "start", "started", "stopped", "release"):
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


class Call(NamedTuple):
    """One operation of the hook, as a whole process."""

    disks: int
    operation: str
    values: List[float]  # milliseconds
    memory: float  # MiB at its peak


def hook_calls(cluster: Guarded, disks: int, rounds: int) -> List[Call]:
    """A whole life without a QEMU, again and again: prepare, start, started, stopped, release."""
    host = cluster.hosts[0]
    # Whoever calls the hook here is no libvirtd, so it has no plugin: the leases stay with the host.
    host.write("/etc/vmguard/vmguard.conf.d/90-bench.conf", "[leases]\nwithout_watchdog = accept\n")
    images = Images(cluster, os.path.join(cluster.shared, f"hook{disks}"))
    it = guest("bench", [images.raw(f"{number}.img") for number in range(disks)])
    done = host.run("/usr/bin/python3", "-c", LIFE, HOOK, str(rounds), stdin=it.xml, within=300)
    found: Dict[str, Call] = {}
    for operation, wall, memory in json.loads(done.out):
        before = found.get(operation, Call(disks, operation, [], 0.0))
        found[operation] = before._replace(values=[*before.values, wall], memory=max(before.memory, memory))
    return list(found.values())
