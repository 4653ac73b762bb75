# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Three nodes: a third that attacks while the other two move a guest, and two that want what the third leaves behind.

They are a cluster of their own, which is made here and ends here.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Iterator, List

import pytest
from conftest import Volumes, counts, running, volumes_of, watched
from guarded import Guarded
from guests import Disk, guest, witness
from hosts import eventually, hook_words
from moves import Thieves, holds
from nodes import Node
from test_deaths import CERTAIN, RENEWAL


class Three(Guarded):
    size = 3


@pytest.fixture(scope="module")
def three(request: pytest.FixtureRequest) -> Iterator[Three]:
    with running(request, Three("three")) as made:
        yield made


@pytest.fixture
def volumes(three: Three) -> Iterator[Volumes]:
    yield from volumes_of(three)


def test_a_third_node_attacks_a_migration(three: Three, volumes: Volumes) -> None:
    disk = volumes.make("web-1", content=witness(mark=1))
    names = [Disk(path, "block", driver="cache='none'") for path in (disk.path, disk.mapper, disk.path)]
    it = guest("web", names[:1])
    one, two, third = three.hosts
    one.start(it)
    counts(three, disk)
    with watched(three, disk), Thieves([one, two, third], names, pause=0.2) as thieves:
        for source, destination in ((one, two), (two, third), (third, one)):
            source.virsh("migrate", "--live", it.uuid, f"qemu+tcp://{destination.address}/system", within=120)
            assert destination.runs(it) and not source.runs(it)
        counts(three, disk)
        eventually(lambda: holds(one, it), f"{it.name} has its leases on {one}", within=60, every=0.5)
    print(f"{len(thieves.refusals)} attempts refused")


@pytest.mark.slow
def test_two_want_what_a_dead_node_had(three: Three, volumes: Volumes) -> None:
    """Each tries all the time; when sanlock is certain of the death, one of them gets it, and the other hears of that one."""
    disk = volumes.make("web-1", content=witness(mark=1))
    names = [Disk(disk.path, "block", driver="cache='none'")]
    it = guest("web", names)
    one, two, third = three.hosts
    third.start(it)
    counts(three, disk)
    began = time.monotonic()

    def wants(node: Node) -> List[str]:
        """What it was told, until it got the guest or heard that another living node has it."""
        said: List[str] = []
        heir = guest(f"heir-{node.name}", names)
        while time.monotonic() - began < CERTAIN + 150:
            done = node.try_start(heir, within=120)
            if not done.status:
                return [*said, "has it"]
            said.append(hook_words(done.err))
            if re.search('by: +domain "heir-', said[-1]):
                return said
            time.sleep(0.5)
        raise AssertionError(said[-1:])

    with watched(three, disk):
        third.power_cut()
        with ThreadPoolExecutor() as pool:
            told = list(pool.map(wants, (one, two)))
        took = time.monotonic() - began
        counts(three, disk)
    print(f"taken over after {took:.0f} s; {len(told[0])} and {len(told[1])} attempts")
    assert sorted(words[-1] == "has it" for words in told) == [False, True], told
    assert CERTAIN - RENEWAL - 2 < took < CERTAIN + 60
