# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that run without leases: they get them when libvirt comes back, or somebody is told."""

import os

from conftest import Images
from guests import Disk, guest
from hosts import Host, eventually
from moves import Witness

CONF = "/etc/vmguard/vmguard.conf.d/90-test.conf"


def events(host: Host) -> str:
    return host.read("/var/log/vmguard/events.jsonl")


def test_started_before_there_was_a_guard(node1: Host, node2: Host, images: Images) -> None:
    with Witness(images) as web:
        node1.write(CONF, "[guard]\nmode = off\n")
        node1.start(web.guest)
        node1.run("rm", CONF)
        assert not node1.leases()
        node1.restart_libvirtd()
        eventually(lambda: any(held.pid == node1.qemu_pid(web.guest) for held in node1.leases()), "it has its leases")
        assert "web" in node2.refused(guest("thief", [web.disk]))
        web.lives()
        node1.destroy(web.guest)
        eventually(lambda: not node1.leftovers(), "nothing is left")


def test_somebody_else_has_the_disk(node1: Host, node2: Host, images: Images) -> None:
    """A second writer runs already. It is said, loudly; nobody is killed for it."""
    disk = images.block("web")
    web, other = guest("web", [Disk(disk, "block")]), guest("other", [Disk(disk, "block")])
    node1.write(CONF, "[guard]\nmode = off\n")
    node1.start(web)
    node1.run("rm", CONF)
    node2.start(other)
    node1.restart_libvirtd()
    eventually(lambda: "alarm" in events(node1) and '\\"other\\" on host node2' in events(node1), "an alarm")
    assert node1.runs(web) and node2.runs(other)


def test_a_disk_that_was_attached(node1: Host, node2: Host, images: Images) -> None:
    disk, more = images.raw("web.img"), images.raw("more.img")
    web = guest("web", [disk])
    node1.start(web)
    node1.virsh("attach-disk", "web", more, "vdb", "--subdriver", "raw")
    node2.start(guest("probe", [images.raw("probe.img")]))
    node1.restart_libvirtd()
    eventually(lambda: not node1.vmguard("verify", check=False).status, "all that it has open is claimed")
    assert "surprise" in events(node1)
    assert "web" in node2.refused(guest("thief", [more]))


def test_libvirt_dies_while_a_guest_starts(node1: Host, node2: Host, images: Images) -> None:
    """QEMU exists, `started` was never called: what prepare took becomes its own."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    hook = node1.path("/etc/libvirt/hooks/qemu.d/40-die")
    with open(hook, "w", encoding="utf-8") as file:
        file.write('#!/bin/sh\n[ "$2" != started ] || kill -9 $PPID\n')
    os.chmod(hook, 0o755)
    assert node1.try_start(web).status
    os.unlink(hook)
    eventually(lambda: node1.daemon_pid("libvirtd") is None, "libvirt is dead")
    assert node1.runs(web)
    assert "web" in node2.refused(guest("thief", [disk]))
    node1.start_libvirtd()
    eventually(lambda: not node1.runs(web) or any(held.pid for held in node1.leases()), "it ended, or has its leases")
    if node1.runs(web):
        assert "web" in node2.refused(guest("thief", [disk]))
    else:
        eventually(lambda: not node1.leftovers(), "nothing is left")
