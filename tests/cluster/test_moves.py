# SPDX-License-Identifier: LGPL-2.1-or-later
"""Live migration between nodes, of guests on volumes, while others try to take the volume."""

import pytest
from conftest import Volumes, counts, watched
from guarded import Guarded
from guests import Disk, guest, witness
from hosts import eventually
from moves import Thieves, holds
from nodes import Node

MOVES = 10


@pytest.mark.parametrize(
    "times", [pytest.param(1, marks=pytest.mark.smoke, id="once"), pytest.param(MOVES, id="ten-times")]
)
def test_migration_under_attack(rested: Guarded, node1: Node, node2: Node, volumes: Volumes, times: int) -> None:
    """No third start gets the volume, the counter never goes back, and the leases go with the guest."""
    disk = volumes.make("web-1", content=witness(mark=1))
    names = [Disk(path, "block", driver="cache='none'") for path in (disk.path, disk.mapper)]
    it = guest("web", names[:1])
    node1.start(it)
    counts(rested, disk)
    source, destination = node1, node2
    with watched(rested, disk), Thieves([node1, node2], names, pause=0.2) as thieves:
        for _ in range(times):
            done = source.virsh("migrate", "--live", it.uuid, f"qemu+tcp://{destination.address}/system", within=120)
            print(f"{source} to {destination}: {done.seconds:.1f} s")
            assert destination.runs(it) and not source.runs(it)
            source, destination = destination, source
        counts(rested, disk)
        eventually(lambda: holds(source, it), f"{it.name} has its leases on {source}", within=60, every=0.5)
    print(f"{len(thieves.refusals)} attempts refused")
