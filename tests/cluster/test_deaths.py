# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Nodes that die, lose their storage, their network, their daemons, or the right time.

Each test prints what it measured; `pytest -rP` shows it. Times are of the test's own clock.
"""

import time
from typing import Iterator, Tuple

import pytest
from conftest import Volumes, counts, watched
from guarded import IO_TIMEOUT, STORE, Guarded
from guests import Disk, Guest, guest, witness
from hosts import eventually, hook_words
from nodes import Node

# sanlock: a host whose last renewal is so old is dead: it has been reset by its watchdog. The renewal before the death may be
# as much younger as two of them are apart.
CERTAIN = 8 * IO_TIMEOUT + 60
RENEWAL = 2 * IO_TIMEOUT


def block(path: str) -> Disk:
    return Disk(path, "block", driver="cache='none'")


def takes_over(node: Node, it: Guest, since: float, within: float) -> Tuple[float, int]:
    """Try to start a guest until that succeeds; seconds since `since`, and how often it was refused before."""
    refused = 0
    while True:
        done = node.try_start(it, within=120)
        if not done.status:
            return time.monotonic() - since, refused
        hook_words(done.err)  # nobody else refused it
        refused += 1
        assert time.monotonic() - since < within, f"still refused:\n{done.err}"
        time.sleep(1)


@pytest.mark.slow
def test_a_node_dies_with_its_guest(rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    """It starts elsewhere when sanlock is certain of the death, no sooner and hardly later."""
    disk = volumes.make("web-1", content=witness(mark=1))
    it = guest("web", [block(disk.path)])
    node2.start(it)
    counts(rested, disk)
    with watched(rested, disk):
        node2.power_cut()
        took, refused = takes_over(node1, it, time.monotonic(), within=CERTAIN + 120)
        counts(rested, disk)
    print(f"taken over after {took:.0f} s and {refused} refusals; sanlock's own time is {CERTAIN - RENEWAL} to {CERTAIN} s")
    assert refused and took > CERTAIN - RENEWAL - 2
    assert took < CERTAIN + 30


@pytest.mark.slow
@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_a_node_loses_its_storage(rested: Guarded, node1: Node, node2: Node, volumes: Volumes, how: str) -> None:
    """
    Its guest ends or the watchdog resets it, before the other node can have the disk; nothing is written afterwards.

    With the leases on GFS2 storage that hangs costs the other node its leases, too (docs/cluster-gfs2.md): its guest ends,
    and the agent joins again. test_leases_on_volume has the same without that.
    """
    disk, other = (volumes.make(name, content=witness(mark=1)) for name in ("web-1", "web-2"))
    it, bystander = guest("web", [block(disk.path)]), guest("bystander", [block(other.path)])
    node2.start(it)
    node1.start(bystander)
    counts(rested, disk)
    with watched(rested, disk):
        began = time.monotonic()
        if how == "hangs":
            node2.hang_storage()
        else:
            node2.fail_storage()
        off = node2.gone(within=CERTAIN + 60)
        print(f"reset {off:.0f} s after its storage {how}")
        took, refused = takes_over(node1, it, began, within=CERTAIN + 150)
        counts(rested, disk)
        fate = "runs on" if node1.runs(bystander) else "was ended"
    print(f"taken over after {took:.0f} s and {refused} refusals; the other node's guest {fate}")
    assert off < took


@pytest.fixture
def without_plugin(rested: Guarded, node2: Node) -> Iterator[Node]:
    """The second node with a libvirt whose sanlock plugin is not switched on: its guests' leases stay with the host."""
    saved = node2.read("/etc/libvirt/qemu.conf")
    node2.shell("sed -i '/^lock_manager/d' /etc/libvirt/qemu.conf; systemctl restart libvirtd")
    yield node2
    if not node2.is_on():
        rested.recover(node2)
    node2.remove_all_guests()
    node2.write("/etc/libvirt/qemu.conf", saved)
    node2.restart_libvirtd()


@pytest.mark.slow
def test_a_node_without_the_plugin_loses_its_storage(
    rested: Guarded, node1: Node, without_plugin: Node, volumes: Volumes
) -> None:
    """Nobody ends its guest: the watchdog resets the node before another can have the disk."""
    disk = volumes.make("web-1", content=witness(mark=1))
    it = guest("web", [block(disk.path)])
    without_plugin.start(it)
    assert {held.pid for held in without_plugin.leases()} == {None}
    counts(rested, disk)
    with watched(rested, disk):
        began = time.monotonic()
        without_plugin.fail_storage()
        off = without_plugin.gone(within=CERTAIN + 60)
        print(f"reset {off:.0f} s after its storage failed")
        took, refused = takes_over(node1, it, began, within=CERTAIN + 150)
        counts(rested, disk)
    print(f"taken over after {took:.0f} s and {refused} refusals")
    assert off < took


@pytest.mark.slow
def test_the_network_splits(rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    """Storage lives: one node fences the other, the guest of the one that stays runs on, the other's is taken over."""
    disks = [volumes.make(name, content=witness(mark=1)) for name in ("web-1", "web-2")]
    guests = [guest(disk.name, [block(disk.path)]) for disk in disks]
    for node, it, disk in zip((node1, node2), guests, disks):
        node.start(it)
        counts(rested, disk)
    with watched(rested, disks[0]), watched(rested, disks[1]):
        began = time.monotonic()
        node2.pull_cable()
        eventually(lambda: not (node1.is_on() and node2.is_on()), "one is fenced", within=120, every=0.2)
        print(f"fenced after {time.monotonic() - began:.0f} s")
        stays, lost = (node1, node2) if node1.is_on() else (node2, node1)
        lost.gone(within=10)
        node2.plug_cable()
        takes_over(stays, guests[lost.number - 1], began, within=CERTAIN + 150)
        assert stays.runs(guests[stays.number - 1])
        for disk in disks:
            counts(rested, disk)


@pytest.mark.slow
@pytest.mark.parametrize("daemon", ["sanlock", "wdmd"])
def test_a_daemon_of_the_watchdog_dies(rested: Guarded, node1: Node, node2: Node, volumes: Volumes, daemon: str) -> None:
    """A node whose sanlock or wdmd is killed while guests run is reset."""
    disk = volumes.make("web-1", content=witness(mark=1))
    it = guest("web", [block(disk.path)])
    node2.start(it)
    counts(rested, disk)
    with watched(rested, disk):
        began = time.monotonic()
        node2.run("pkill", "-KILL", "-x", daemon)
        off = node2.gone(within=CERTAIN + 60)
        print(f"reset {off:.0f} s after {daemon} was killed")
        took, _ = takes_over(node1, it, began, within=CERTAIN + 150)
    assert off < took


def test_gfs2_stands_still_while_a_node_is_fenced(rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    """The store is not to be had meanwhile: starts wait or are refused in words, what runs runs on."""
    disk, other = (volumes.make(name, content=witness(mark=1)) for name in ("web-1", "web-2"))
    it = guest("web", [block(disk.path)])
    node1.start(it)
    counts(rested, disk)
    rested.strip.works.clear()
    try:
        with watched(rested, disk):
            node2.power_cut()
            asked = len(rested.strip.asked)
            eventually(lambda: len(rested.strip.asked) > asked, "the strip is asked", within=60, every=0.2)
            began = time.monotonic()
            starting = node1.spawn("virsh", "-q", "create", "/dev/stdin", stdin=guest("new", [block(other.path)]).xml)
            last = node1.renewal()[0]
            # One renewal was due; more, with the time that corosync takes to miss a node, would cost the leases. That a time is
            # up is no state of the node's: nothing tells of it.
            eventually(lambda: time.monotonic() - began > RENEWAL, "a renewal was due", within=60, every=1)
            # Whoever renewed last has the lock of the file, and goes on; or he that died had it, and there is no renewal.
            print(f"{'renewed' if node1.renewal()[0] > last else 'not renewed'} meanwhile")
            counts(rested, disk)
    finally:
        rested.strip.works.set()
    out, err = starting.communicate(timeout=120)
    print(f"a start while GFS2 stood still: {time.monotonic() - began:.0f} s, status {starting.returncode} {err.strip()}")
    if starting.returncode:
        hook_words(err)
    counts(rested, disk)
    eventually(lambda: node1.exists(STORE + "/lockspace"), "GFS2 goes on", within=60)
    assert rested.healthy(node1) and node1.runs(it)


@pytest.mark.parametrize("jump", ["+3 hours", "-3 hours"])
def test_the_clock_jumps(rested: Guarded, node1: Node, node2: Node, volumes: Volumes, jump: str) -> None:
    disk = volumes.make("web-1", content=witness(mark=1))
    it = guest("web", [block(disk.path)])
    node1.start(it)
    back = "-3 hours" if jump[0] == "+" else "+3 hours"
    with watched(rested, disk):
        node1.run("date", "-s", jump)
        try:
            last = node1.renewal()[0]
            eventually(lambda: node1.renewal()[0] > last + 2 * RENEWAL, "it renews at the new time", within=90, every=1)
            counts(rested, disk)
            assert "web" in node2.refused(guest("web2", [block(disk.path)]))
            assert "web" in node1.refused(guest("web3", [block(disk.path)]))
            assert rested.healthy(node1) and node1.runs(it)
        finally:
            node1.run("date", "-s", back)


@pytest.mark.slow
def test_cold_start(rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    """
    The power fails everywhere and comes back: storage, membership, libvirt come up in that order, and each autostarted guest
    runs once, also one that is defined on both nodes.
    """
    disks = [volumes.make(name, content=witness(mark=1)) for name in ("web-1", "web-2", "both")]
    guests = [guest(disk.name, [block(disk.path)]) for disk in disks]
    for node, mine in ((node1, guests[0]), (node2, guests[1]), (node1, guests[2]), (node2, guests[2])):
        node.define(mine)
        node.virsh("autostart", mine.uuid)
    node1.run("sync")
    node2.run("sync")
    for node in (node1, node2):
        node.power_cut()
    began = time.monotonic()
    rested.boot()

    def runs() -> bool:
        return node1.runs(guests[0]) and node2.runs(guests[1]) and (node1.runs(guests[2]) or node2.runs(guests[2]))

    eventually(runs, "all guests run", within=240, every=1)
    print(f"all guests run {time.monotonic() - began:.0f} s after the power came back")
    assert node1.runs(guests[2]) != node2.runs(guests[2])
    for disk in disks:
        counts(rested, disk)
    for node in (node1, node2):
        asked = "systemctl show -p ActiveEnterTimestampMonotonic --value vmguard-join libvirtd"
        joined, libvirt = map(int, node.shell(asked).out.split())
        assert 0 < joined <= libvirt, f"{node}: libvirtd started before the node was a member"
