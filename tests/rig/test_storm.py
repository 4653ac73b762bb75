# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts start one disk under two names in the same moment, many times: one of them gets it, or none, never both."""

import os
from typing import Callable, List, Tuple

from conftest import Images
from guests import Disk, Guest, guest
from hosts import Host, eventually

PAIRS = int(os.environ.get("VMGUARD_RIG_PAIRS", "80"))
LANES = 4  # pairs at a time
# Both refused is no damage; as a habit it would be no guard either.
TOLERABLE = 0.05


def test_pairs_of_starts(
    node1: Host, node2: Host, images: Images, record_property: Callable[[str, object], None]
) -> None:
    """
    On block devices with a node on each host, so that QEMU's own locks do not help; every second pair with two disks,
    named in opposite order. Some pairs at a time, each about disks of its own.
    """
    disks = [
        (Disk(images.block(f"{lane}a"), "block"), Disk(images.block(f"{lane}b"), "block")) for lane in range(LANES)
    ]
    winners: List[str] = []
    while len(winners) < PAIRS:
        pairs = [pair_of(len(winners) + lane, disks[lane], node1, node2) for lane in range(LANES)]
        starting = [
            [(host, it, host.spawn("virsh", "-q", "create", "/dev/stdin", stdin=it.xml)) for host, it in pair]
            for pair in pairs
        ]
        ending = []
        for pair in starting:
            errors = [process.communicate()[1] for _, _, process in pair]
            won = [host for host, _, process in pair if process.returncode == 0]
            running = [(host, it) for host, it, _ in pair if host.runs(it)]
            assert len(running) < 2, f"both run: {[it.name for _, it in running]}"
            assert [host for host, _ in running] == won
            assert_refused_by_hook(errors, len(won))
            winners.append(won[0].name if won else "none")
            ending += [host.spawn("virsh", "-q", "destroy", it.uuid) for host, it in running]
        for process in ending:
            process.communicate()
    counts = {name: winners.count(name) for name in ("node1", "node2", "none")}
    record_property("winners", counts)
    print(f"{len(winners)} pairs: {counts}")
    assert counts["none"] <= TOLERABLE * len(winners), counts


def pair_of(number: int, disks: Tuple[Disk, Disk], node1: Host, node2: Host) -> List[Tuple[Host, Guest]]:
    """Two guests for one disk or two, the hosts in turns."""
    chosen = disks if number % 2 else disks[:1]
    pair = [(node1, guest(f"a{number}", chosen)), (node2, guest(f"b{number}", chosen[::-1]))]
    return pair if number % 4 < 2 else pair[::-1]


def assert_refused_by_hook(errors: List[str], won: int) -> None:
    refused = [error for error in errors if error]
    assert len(refused) == 2 - won
    assert all("Hook script execution failed" in error and "vmguard" in error for error in refused), refused


def test_many_hands_on_one_disk(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    """Three hosts, three names each, all at once, on one file."""
    disk = images.block("web")
    for _ in range(max(1, PAIRS // 40)):
        attempts = [
            (host, guest(f"{host.name}-{number}", [Disk(disk, "block")]))
            for number in range(3)
            for host in (node1, node2, node3)
        ]
        starting = [host.spawn("virsh", "-q", "create", "/dev/stdin", stdin=it.xml) for host, it in attempts]
        for process in starting:
            process.communicate()
        running = [it.name for host, it in attempts if host.runs(it)]
        assert len(running) < 2, running
        for host, it in attempts:
            if host.runs(it):
                host.destroy(it)


def test_one_domain_everywhere(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    """What a restart of all hosts with autostart does: the same definition, everywhere, at once."""
    web: Guest = guest("web", [Disk(images.block("web"), "block")])
    for _ in range(max(1, PAIRS // 20)):
        hosts = (node1, node2, node3)
        starting = [host.spawn("virsh", "-q", "create", "/dev/stdin", stdin=web.xml) for host in hosts]
        for process in starting:
            process.communicate()
        running = [host for host in hosts if host.runs(web)]
        assert len(running) < 2, running
        for host in running:
            host.destroy(web)
            eventually(lambda host=host: not host.runs(web), "it has ended")  # type: ignore[misc]
