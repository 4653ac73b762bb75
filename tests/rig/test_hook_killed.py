# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The hook dies at any moment: SIGKILL after increasing delays, from its first instruction to behind its end.

After each death: no second owner; what somebody else holds stays his; and what leaked is mended by the next start or by
`vmguard gc`.
"""

import os
import time
from typing import List

import pytest
from agents import watched
from conftest import Images
from guests import SCSI, Disk, guest
from hosts import Host, eventually

# The hook of a start runs some 100 ms here.
LAST = 120
STEP = int(os.environ.get("VMGUARD_RIG_STEP_MS", "4"))
DELAYS = list(range(0, LAST + 1, STEP))


def hook_processes(host: Host, operation: str) -> List[int]:
    """The processes of vmguard's hook at this operation, the parent first."""
    return sorted(pid for pid, arguments in host.processes() if "python3" in arguments[0] and operation in arguments)


def kill_hook(host: Host, operation: str, milliseconds: int, last: bool) -> bool:
    """
    Wait for the hook, wait so long, kill it: its first process, or its last; whether it was still there. On a busy machine one
    comes and goes between two looks.
    """
    end = time.monotonic() + 10
    while time.monotonic() < end:
        pids = hook_processes(host, operation)
        if pids:
            time.sleep(milliseconds / 1000)
            pids = hook_processes(host, operation)
            if not pids:
                return False
            host.run("/bin/kill", "-KILL", str(pids[-1] if last else pids[0]), check=False)
            return True
    return False


@pytest.mark.parametrize("victim", ["hook", "worker"])
def test_killed_in_prepare(victim: str, node1: Host, node2: Host, images: Images) -> None:
    """Of a start that would succeed. Afterwards the other host gets the disk, or the guest runs and it does not."""
    disk, iso = images.raw("web.img"), images.raw("tools.iso")
    died = 0
    for milliseconds in DELAYS:
        web = guest("web", [disk, Disk(iso, readonly=True)])
        other = guest("other", [disk])
        starting = node1.spawn("virsh", "-q", "create", "/dev/stdin", stdin=web.xml)
        died += kill_hook(node1, "prepare", milliseconds, last=victim == "worker")
        starting.communicate()
        if node1.runs(web):
            assert "web" in node2.refused(other), f"after {milliseconds} ms: two owners"
            node1.destroy(web)
        elif node2.try_start(other).status:
            node1.vmguard("gc")
            done = node2.try_start(other)
            assert not done.status, f"after {milliseconds} ms, not mended by gc:\n{done.err}"
        node2.remove_all_guests()
        node1.start(web)
        node1.destroy(web)
        assert_at_rest(node1, milliseconds)
        assert_at_rest(node2, milliseconds)
    assert died > len(DELAYS) // 4, "the hook was hardly ever there to be killed"


@pytest.mark.parametrize("victim", ["hook", "worker"])
def test_killed_in_a_prepare_that_refuses(victim: str, node1: Host, node2: Host, images: Images) -> None:
    """A refused start that dies half way takes nothing away from the one who has the disk."""
    disk, free = images.raw("web.img"), images.raw("free.img")
    holder = guest("holder", [disk])
    node2.start(holder)
    held = sorted(node2.leases())
    died = 0
    for milliseconds in DELAYS:
        web = guest("web", [free, disk])
        starting = node1.spawn("virsh", "-q", "create", "/dev/stdin", stdin=web.xml)
        died += kill_hook(node1, "prepare", milliseconds, last=victim == "worker")
        starting.communicate()
        assert not node1.runs(web), f"after {milliseconds} ms: two owners"
        assert sorted(node2.leases()) == held, f"after {milliseconds} ms"
        assert "holder" in node1.refused(guest("thief", [disk])), f"after {milliseconds} ms"
        assert_at_rest(node1, milliseconds)
    assert died > len(DELAYS) // 4, "the hook was hardly ever there to be killed"
    beside = guest("beside", [free])
    node2.start(beside)


def test_killed_with_all_that_could_clean_up(node1: Host, node2: Host, images: Images) -> None:
    """In the middle of a start, libvirtd as well. The agent sees what is left, and the other host gets the disks."""
    # With so many that the start takes half a second.
    disks = [Disk(images.raw(f"web{number}.img", size=4096), bus="scsi") for number in range(64)]
    web, other = guest("web", disks, devices=SCSI), guest("other", disks, devices=SCSI)
    with watched(node1) as (agent,):
        agent.tells("watching")
        starting = node1.spawn("virsh", "-q", "create", "/dev/stdin", stdin=web.xml)
        eventually(node1.leases, "it has begun", every=0)
        node1.run("/bin/kill", "-KILL", *map(str, hook_processes(node1, "prepare")))
        node1.kill("libvirtd")
        starting.communicate()
        try:
            assert "web" in node2.refused(other)
            eventually(lambda: not node1.leftovers(), "at rest, without any command", within=30)
        finally:
            node1.start_libvirtd()
        node2.start(other)


@pytest.mark.parametrize("operation", ["started", "release"])
def test_killed_later(operation: str, node1: Host, node2: Host, images: Images) -> None:
    """At the handing over to QEMU the guest runs on and is guarded; at the giving back nothing is kept for ever."""
    disk, iso = images.raw("web.img"), images.raw("tools.iso")
    died = 0
    for milliseconds in DELAYS[:: 2 if STEP < 8 else 1]:
        web, other = guest("web", [disk, Disk(iso, readonly=True)]), guest("other", [disk])
        if operation == "started":
            starting = node1.spawn("virsh", "-q", "create", "/dev/stdin", stdin=web.xml)
            died += kill_hook(node1, "started", milliseconds, last=False)
            starting.communicate()
            if node1.runs(web):
                assert "web" in node2.refused(other), f"after {milliseconds} ms: two owners"
                node1.destroy(web)
        else:
            node1.start(web)
            stopping = node1.spawn("virsh", "-q", "destroy", web.uuid)
            died += kill_hook(node1, "release", milliseconds, last=False)
            stopping.communicate()
        node1.vmguard("gc")
        for it in (other, guest("writer", [iso])):
            done = node2.try_start(it)
            assert not done.status, f"after {milliseconds} ms, not mended by gc:\n{done.err}"
        node2.remove_all_guests()
        assert_at_rest(node1, milliseconds)
    assert died, "the hook was never there to be killed"


def assert_at_rest(host: Host, milliseconds: int) -> None:
    """Perhaps after one gc."""
    if host.leftovers():
        host.vmguard("gc")
    eventually(lambda: not host.leftovers(), f"at rest after a kill at {milliseconds} ms", within=5)
