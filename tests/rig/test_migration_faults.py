# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Migrations that fail: whoever dies at whatever moment, the guest that lives has its disk, nobody else gets it, and nothing
needs a hand.
"""

import os
import signal
import subprocess
import time
from typing import Iterator

import pytest
from conftest import Images
from guests import Disk, guest
from hosts import Host, eventually
from moves import Thieves, Witness, finish, migrate, migrating, settled, words


@pytest.fixture
def busy(images: Images) -> Iterator[Witness]:
    with Witness(images, busy=True, block=True) as web:
        yield web


def at_source_alone(web: Witness, source: Host, destination: Host) -> None:
    """The migration has come to nothing."""
    eventually(lambda: not destination.runs(web.guest), "QEMU is gone at the destination", within=40)
    eventually(lambda: not destination.leftovers(), "the destination has nothing left")
    assert source.runs(web.guest)
    if source.state(web.guest) == "paused":
        source.virsh("resume", "web")
    web.lives()
    for host in (source, destination):
        assert '"web"' in host.refused(guest("thief", [Disk(web.disk, "block")]))


def at_destination_alone(web: Witness, source: Host, destination: Host, within: float = 15) -> None:
    """The guest is there, has its leases, and the source has nothing."""
    settled(destination, web.guest, within)
    assert not source.runs(web.guest)
    web.lives()
    for host in (source, destination):
        if host.pid:
            assert '"web"' in host.refused(guest("thief", [Disk(web.disk, "block")]))


def test_aborted(busy: Witness, node1: Host, node2: Host) -> None:
    node1.start(busy.guest)
    with migrating(busy.guest, node1, node2):
        node1.virsh("domjobabort", "web")
    at_source_alone(busy, node1, node2)
    node1.virsh("destroy", "web")
    eventually(lambda: not node1.leftovers(), "nothing is left")


def test_refused_by_a_later_hook_at_the_destination(busy: Witness, node1: Host, node2: Host) -> None:
    node1.start(busy.guest)
    for operation in ("prepare", "start", "started"):
        hook = node2.path("/etc/libvirt/hooks/qemu.d/98-no")
        with open(hook, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\n[ "$2" != {operation} ] || exit 1\n[ "$2" != migrate ] || cat\n')
        os.chmod(hook, 0o755)
        try:
            assert migrate(busy.guest, node1, node2, check=False).status
        finally:
            os.unlink(hook)
        at_source_alone(busy, node1, node2)


def test_the_destinations_qemu_is_killed(busy: Witness, node1: Host, node2: Host) -> None:
    node1.start(busy.guest)
    with migrating(busy.guest, node1, node2) as process:
        node2.kill9(busy.guest)
        assert process.wait(30)
    at_source_alone(busy, node1, node2)


def test_the_sources_qemu_is_killed(busy: Witness, node1: Host, node2: Host) -> None:
    """Nobody has the guest then; its disk is free at once."""
    node1.start(busy.guest)
    with migrating(busy.guest, node1, node2) as process:
        node1.kill9(busy.guest)
        assert process.wait(30)
    eventually(lambda: not node2.runs(busy.guest), "QEMU is gone at the destination")
    eventually(lambda: not node1.leftovers() + node2.leftovers(), "nothing is left")
    node2.start(guest("next", [Disk(busy.disk, "block")]))
    busy.lives()


@pytest.mark.parametrize("way", [[], ["--p2p"]], ids=["direct", "p2p"])
@pytest.mark.parametrize("which", ["source", "destination"])
def test_libvirtd_is_killed(which: str, way: "list[str]", busy: Witness, node1: Host, node2: Host) -> None:
    victim = node1 if which == "source" else node2
    node1.start(busy.guest)
    with migrating(busy.guest, node1, node2, *way) as process:
        victim.kill("libvirtd")
        # While it is down nobody gets in.
        assert '"web"' in (node2 if victim is node1 else node1).refused(guest("thief", [Disk(busy.disk, "block")]))
        victim.start_libvirtd()
        process.wait(60)
    at_source_alone(busy, node1, node2)


def test_the_destination_host_dies(busy: Witness, node1: Host, node2: Host, node3: Host) -> None:
    node1.start(busy.guest)
    with migrating(busy.guest, node1, node2) as process:
        node2.power_cut()
        # TCP to a host that says nothing any more ends when libvirt's keepalive has given up: half a minute.
        process.wait(60)
    assert node1.runs(busy.guest)
    busy.lives()
    assert '"web"' in node3.refused(guest("thief", [Disk(busy.disk, "block")]))
    migrated = migrate(busy.guest, node1, node3, "--auto-converge", check=False)
    assert "migrating" in migrated.err or not migrated.status, migrated.err


def switched_with_source_stuck(web: Witness, source: Host, destination: Host) -> "subprocess.Popen[str]":
    """
    Migrate, and stop libvirt at the source before it ends its QEMU: the guest runs at the destination, and its QEMU at the
    source is still there, paused, with its leases.

    libvirt gives some milliseconds for that. A source that was quicker has the guest migrated back, and another try.
    """
    for _ in range(8):
        process = source.spawn(*words(web.guest, destination))
        pid = source.qemu_pid(web.guest)
        libvirtd = source.outside_pid(source.daemon_pid("libvirtd") or 0)
        eventually(
            lambda: "reason='migrated'" in destination.read("/run/libvirt/qemu/web.xml"), "the guest runs", every=0.0005
        )
        os.kill(libvirtd, signal.SIGSTOP)
        if source.qemu_pid(web.guest) == pid:
            web.lives()
            return process
        os.kill(libvirtd, signal.SIGCONT)
        finish(process)
        migrate(web.guest, destination, source)
        settled(source, web.guest)
    raise AssertionError("the source was always too quick")


def test_the_source_host_dies_after_the_switch(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    """The destination has the ticket; the lease comes when sanlock says that the source is certainly dead, not later."""
    with Witness(images, block=True) as web:
        node1.start(web.guest)
        process = switched_with_source_stuck(web, node1, node2)
        node1.power_cut()
        began = time.monotonic()
        finish(process, within=1)
        with Thieves([node2, node3], [Disk(web.disk, "block")] * 2, pause=0.5):
            settled(node2, web.guest, within=120)
        took = time.monotonic() - began
        print(f"the lease came {took:.0f} s after the source's death")
        assert 60 < took < 90, took
        web.lives()


def test_sanlock_stops_for_a_while(busy: Witness, node1: Host, node2: Host) -> None:
    """Shorter than its lockspace lives without renewal: 8 io_timeouts."""
    node1.start(busy.guest)
    for host in (node1, node2):
        with migrating(busy.guest, node1, node2) as process:
            with host.frozen("sanlock"):
                host.shell("sleep 3")
            node1.virsh("domjobabort", "web")
            process.wait(60)
        at_source_alone(busy, node1, node2)


def test_sanlock_stops_at_the_destination(node1: Host, node2: Host, images: Images) -> None:
    node2.write("/etc/vmguard/vmguard.conf.d/90-test.conf", "[guard]\ndeadline = 3\n")
    try:
        with Witness(images, block=True) as web:
            node1.start(web.guest)
            with node2.frozen("sanlock"):
                done = migrate(web.guest, node1, node2, check=False)
                assert done.status and "was not started" in done.err, done.err
            web.lives()
            migrate(web.guest, node1, node2)
            at_destination_alone(web, node1, node2)
    finally:
        node2.run("rm", "/etc/vmguard/vmguard.conf.d/90-test.conf")


def test_the_network_is_cut(busy: Witness, node1: Host, node2: Host) -> None:
    """Storage lives, the hosts do not hear each other: both sides must come to one mind by themselves."""
    node1.start(busy.guest)
    with migrating(busy.guest, node1, node2, "--p2p") as process:
        node2.plug_out()
        process.wait(90)
        assert '"web"' in node2.refused(guest("thief", [Disk(busy.disk, "block")]))
    node2.cluster.plug_in(node2)
    at_source_alone(busy, node1, node2)


def test_the_paused_source_cannot_go_on(node1: Host, node2: Host, images: Images) -> None:
    """
    libvirt at the source dies after the guest has gone: its QEMU stays, paused, with the lease, and `virsh resume` calls no
    hook (A12). The destination's handover has sanlock kill it.
    """
    with Witness(images, block=True) as web:
        node1.start(web.guest)
        process = switched_with_source_stuck(web, node1, node2)
        node1.signal("libvirtd", "KILL")
        began = time.monotonic()
        finish(process)
        eventually(lambda: not node1.runs(web.guest), "QEMU at the source is gone", within=30)
        print(f"killed after {time.monotonic() - began:.1f} s")
        node1.start_libvirtd()
        at_destination_alone(web, node1, node2)
