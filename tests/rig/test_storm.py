# SPDX-License-Identifier: LGPL-2.1-or-later
"""Two hosts start one disk under two names in the same moment, many times: one of them gets it, or none, never both."""

import os
from typing import Callable, List

from conftest import Images
from guests import Disk, Guest, guest
from hosts import Host, eventually

PAIRS = int(os.environ.get("VMGUARD_RIG_PAIRS", "200"))
# Both refused is no damage; as a habit it would be no guard either.
TOLERABLE = 0.05


def test_pairs_of_starts(
    node1: Host, node2: Host, images: Images, record_property: Callable[[str, object], None]
) -> None:
    """
    On a block device with a node on each host, so that QEMU's own locks do not help; every second pair with two disks,
    named in opposite order.
    """
    first, second = images.block("one"), images.block("two")
    winners: List[str] = []
    for number in range(PAIRS):
        disks = [Disk(first, "block")] + ([Disk(second, "block")] if number % 2 else [])
        pair = (
            (node1, guest(f"a{number}", disks)),
            (node2, guest(f"b{number}", disks[::-1])),
        )
        if number % 4 > 1:
            pair = pair[::-1]
        starting = [host.spawn("virsh", "-q", "create", "/dev/stdin", stdin=it.xml) for host, it in pair]
        errors = [process.communicate()[1] for process in starting]
        won = [(host, it) for (host, it), process in zip(pair, starting) if process.returncode == 0]
        running = [host.name for host, it in pair if host.runs(it)]
        assert len(running) < 2 and len(won) < 2, f"pair {number}: both run"
        assert running == [host.name for host, _ in won], f"pair {number}"
        assert_refused_by_hook(errors, len(won))
        winners.append(running[0] if running else "none")
        for host, it in won:
            host.destroy(it)
    counts = {name: winners.count(name) for name in ("node1", "node2", "none")}
    record_property("winners", counts)
    print(f"{PAIRS} pairs: {counts}")
    assert counts["none"] <= TOLERABLE * PAIRS, counts


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
