# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The leases on a volume of the shared group, with no cluster filesystem under them: moved there from GFS2 as an administrator
would, and back at the end.
"""

import json
import os
import time
from typing import Iterator

import pytest
from conftest import Volumes, counts, watched
from guarded import IO_TIMEOUT, STORE, VG, Guarded, Volume
from guests import Disk, guest, witness
from hosts import eventually
from nodes import Node, each
from test_deaths import CERTAIN, takes_over

LEASES = f"/dev/{VG}/leases"


def block(path: str) -> Disk:
    return Disk(path, "block", driver="cache='none'")


def move(cluster: Guarded, to: str) -> None:
    first, *others = [node for node in cluster.hosts if node.pid]
    each(others, lambda node: node.vmguard("leave", within=120))
    first.vmguard("store", "convert", "--yes", to, within=240)
    for node in others:
        refused = node.vmguard("join", check=False, within=120)
        assert refused.status and f"vmguard setup --store {to}" in refused.err, refused
        node.vmguard("setup", "--yes", "--store", to, within=180)
    each([first, *others], lambda node: eventually(lambda: cluster.healthy(node), f"{node} is a member", within=60))


@pytest.fixture(scope="module")
def leases(cluster: Guarded) -> Iterator[Volume]:
    # 190 places: for what all other tests have left in the store, too.
    found = cluster.volume("leases", 768, content=b"")
    move(cluster, LEASES)
    yield found
    cluster.hosts[0].run("rm", "-rf", STORE)
    move(cluster, STORE)
    cluster.remove("leases")


def test_second_node_is_refused(
    leases: Volume, rested: Guarded, node1: Node, node2: Node, volumes: Volumes
) -> None:
    disk = volumes.make("web-1", content=witness(mark=1))
    first = guest("web1", [block(disk.path)])
    node1.start(first)
    counts(rested, disk)
    with watched(rested, disk):
        words = node2.refused(guest("web2", [block(disk.mapper)]))
        assert "web1" in words and "node1" in words and disk.path in words, words
        counts(rested, disk)
    status = node2.vmguard("status").out
    assert f"store {LEASES} (shared)" in status and "web1" in status, status
    node1.destroy(first)
    node2.start(guest("web2", [block(disk.path)]))


def test_the_leases_are_no_disk(
    leases: Volume, rested: Guarded, node1: Node, node2: Node, volumes: Volumes
) -> None:
    """By no name; nor what they lie on. Other volumes of the group are free, as the tests beside this one show."""
    for name in (leases.path, leases.mapper, f"/dev/{leases.kernel}"):
        words = node1.refused(guest("thief", [block(name)]))
        assert "vmguard has the leases" in words, words
    for under in (rested.disks[0].by_id + "-part1", rested.disks[0].by_id):
        words = node2.refused(guest("thief", [block(under)]))
        assert "in use by this host itself" in words, words
    node1.write("/tmp/thief.xml", guest("thief", [block(LEASES)]).xml)
    lint = node1.vmguard("lint", "/tmp/thief.xml", check=False)
    assert "VMG110" in lint.out, lint


def places(node: Node) -> int:
    """How many storage objects have room in the store."""
    return int(json.loads(node.vmguard("status", "--json", check=False).out)["store"]["room"]["places"])


def test_larger_while_it_is_in_use(
    leases: Volume, rested: Guarded, node1: Node, node2: Node, volumes: Volumes
) -> None:
    disk, late = volumes.make("web-1"), volumes.make("late-1")
    web = guest("web1", [block(disk.path)])
    node1.start(web)
    fill = (
        "from vmguard.leases.store import Store\n"
        "from vmguard.errors import StoreBroken\n"
        f"store = Store.open('{LEASES}')\n"
        "try:\n"
        "    for n in range(999): store.ensure(f'filler:{n}')\n"
        "except StoreBroken as error: print(error.why)\n"
    )
    before = places(node1)
    said = node1.run("/usr/bin/python3", "-c", fill, within=240).out
    assert f"all its {before} places" in said, said
    words = node2.refused(guest("late", [block(late.path)]))
    assert f"all its {before} places" in words and "lvextend" in words, words
    node1.run("lvextend", "-qq", "-L", "+64M", f"{VG}/leases", within=120)
    node1.start(guest("late", [block(late.path)]))
    words = node2.refused(guest("thief", [block(late.path)]))
    if "late" not in words:
        assert "lvchange --refresh" in words, words
        node2.run("lvchange", "--refresh", f"{VG}/leases", within=120)
        words = node2.refused(guest("thief", [block(late.path)]))
    assert "late" in words, words
    assert places(node2) == before + 16
    assert node1.state(web) == "running"


@pytest.mark.slow
def test_a_node_whose_storage_hangs_is_alone(
    leases: Volume, rested: Guarded, node1: Node, node2: Node, volumes: Volumes
) -> None:
    """It is reset, its guest can start elsewhere afterwards; the other node renews on, and its guest runs on."""
    disk, other = (volumes.make(name, content=witness(mark=1)) for name in ("web-1", "web-2"))
    web, bystander = guest("web", [block(disk.path)]), guest("bystander", [block(other.path)])
    node2.start(web)
    node1.start(bystander)
    counts(rested, disk)
    counts(rested, other)
    with watched(rested, disk), watched(rested, other):
        began = time.monotonic()
        node2.hang_storage()
        late = []
        while node2.is_on():
            last = node1.renewal()[0]
            eventually(lambda last=last: node1.renewal()[0] > last, "the other node renews", within=5 * IO_TIMEOUT, every=0.2)  # type: ignore[misc]
            late.append(node1.renewal()[0] - last)
            assert time.monotonic() - began < CERTAIN + 60, "it is not reset"
        node2.gone(within=5)
        off = time.monotonic() - began
        took, refused = takes_over(node1, web, began, within=CERTAIN + 150)
        counts(rested, disk)
        counts(rested, other)
        assert node1.runs(bystander)
    print(f"reset {off:.0f} s after its storage hung, taken over after {took:.0f} s and {refused} refusals")
    print(f"the other node's renewals were {max(late)} s apart at most")
    assert off < took


def test_a_node_that_dies_and_comes_back(
    leases: Volume, rested: Guarded, node1: Node, node2: Node, volumes: Volumes
) -> None:
    """Its boot activates the volume, and joins."""
    disk = volumes.make("web-1", content=witness(mark=1))
    node2.start(guest("web1", [block(disk.path)]))
    counts(rested, disk)
    node2.power_cut()
    words = node1.refused(guest("thief", [block(disk.path)]))
    assert "node2" in words, words
    rested.boot([node2])
    eventually(lambda: rested.healthy(node2), "node2 is a member again", within=240, every=1)
    assert os.path.basename(LEASES) in node2.run("lvs", "--noheadings", "-o", "lv_name,lv_active", VG, within=60).out
    node2.run("lvchange", "-asy", f"{VG}/web-1", within=90)
    node2.start(guest("web1", [block(disk.path)]))
    counts(rested, disk)
