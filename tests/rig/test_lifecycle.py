# SPDX-License-Identifier: LGPL-2.1-or-later
"""From before QEMU exists until it is gone: everything that may happen to a guest in between leaves its leases alone."""

import os
import time
from typing import Callable

import pytest
from conftest import Images
from guests import Disk, Guest, count_in, guest, power_off_after, reset_after, witness
from hosts import Host, eventually


def still_held(holder: Host, other: Host, web: Guest, disk: str) -> None:
    assert holder.runs(web)
    words = other.refused(guest("other", [disk]))
    assert web.name in words and holder.name in words


def test_suspended(node1: Host, node2: Host, images: Images) -> None:
    disk = images.block("web")
    web = guest("web", [Disk(disk, "block")])
    node1.start(web)
    node1.virsh("suspend", web.uuid)
    words = node2.refused(guest("other", [Disk(disk, "block")]))
    assert "web" in words and "node1" in words
    node1.virsh("resume", web.uuid)
    words = node2.refused(guest("other", [Disk(disk, "block")]))
    assert "web" in words


def test_started_paused(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web, "--paused")
    assert node1.state(web) == "paused"
    still_held(node1, node2, web, disk)
    node1.virsh("resume", web.uuid)
    still_held(node1, node2, web, disk)


def test_stopped_by_an_io_error(node1: Host, node2: Host, images: Images) -> None:
    """The filesystem is full: QEMU stops the guest, and the administrator has all night."""
    small = images.raw("small.fs", size=4 << 20)
    node1.run("mkfs.ext4", "-q", "-F", small)
    device, place = node1.cluster.loop(small), images.path("small")
    node1.run("mkdir", place)
    for host in (node1, node2):
        host.run("mount", device, place)
    try:
        disk = f"{place}/web.img"
        with open(node1.path(disk), "wb") as file:
            file.write(witness(mark=1))
            file.truncate(2 << 20)  # sparse: the witness writes into a hole
        node1.shell(f"cat /dev/zero >{place}/filler 2>/dev/null; chmod 666 {disk}; sync")
        web = guest("web", [disk])
        node1.start(web)
        eventually(lambda: node1.state(web) == "paused", "QEMU stopped the guest")
        assert "I/O error" in node1.virsh("domstate", "--reason", web.uuid).out
        still_held(node1, node2, web, disk)
        node1.run("rm", f"{place}/filler")
        node1.virsh("resume", web.uuid)
        still_held(node1, node2, web, disk)
        node1.destroy(web)
    finally:
        for host in (node1, node2):
            host.remove_all_guests()
            host.run("umount", place)


def test_restart_on_power_off(node1: Host, node2: Host, images: Images) -> None:
    """libvirt resets the same QEMU; its own lock manager would kill the guest here."""
    disk = images.raw("web.img", power_off_after(ticks=9))
    web = guest("web", [disk], on_poweroff="restart")
    listener = node1.spawn("virsh", "-q", "event", "--event", "reboot", "--loop", "--timeout", "8")
    node1.start(web)
    pid = node1.qemu_pid(web)
    out, _ = listener.communicate()
    assert out.count("event 'reboot'") >= 3, out
    assert node1.qemu_pid(web) == pid
    still_held(node1, node2, web, disk)


def test_reset_by_the_guest_and_by_libvirt(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img", reset_after(ticks=9))
    web = guest("web", [disk])
    node1.start(web)
    node1.virsh("reset", web.uuid)
    time_to_reset = node1.spawn("virsh", "-q", "event", "--event", "reboot", "--timeout", "10")
    assert time_to_reset.wait(20) == 0
    still_held(node1, node2, web, disk)


def test_switched_off_by_the_guest(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img", power_off_after(ticks=9))
    web = guest("web", [disk])
    node1.start(web)
    still_held(node1, node2, web, disk)
    eventually(lambda: node1.state(web) == "", "the guest has switched itself off")
    node2.start(guest("other", [disk]))


def test_saved_and_started_again(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.define(web)
    node1.virsh("start", "web")
    node1.virsh("managedsave", "web")
    assert node1.leftovers() == []
    node1.virsh("start", "web")
    still_held(node1, node2, web, disk)


def test_libvirtd_restarted(node1: Host, node2: Host, images: Images) -> None:
    """Killed, and back: the guest runs on, is guarded all the time, and is let go of by the new libvirtd."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    held = sorted(node1.leases())
    node1.kill("libvirtd")
    still_held(node1, node2, web, disk)
    node1.start_libvirtd()
    eventually(lambda: node1.state(web) == "running", "libvirtd has it again")
    assert sorted(node1.leases()) == held
    still_held(node1, node2, web, disk)
    node1.destroy(web)
    node2.start(guest("other", [disk]))


def test_guest_ends_while_libvirtd_is_dead(node1: Host, node2: Host, images: Images) -> None:
    disk, iso = images.raw("web.img"), images.raw("tools.iso")
    web = guest("web", [disk, Disk(iso, readonly=True)])
    node1.start(web)
    node1.kill("libvirtd")
    node1.kill9(web)
    eventually(lambda: not node2.try_start(guest("other", [disk])).status, "what it wrote is free", within=5)
    assert "web" in node2.refused(guest("writer", [iso])), "what it read is the host's until somebody looks"
    node1.start_libvirtd()
    eventually(lambda: not node2.try_start(guest("writer", [iso])).status, "what it read is free", within=10)


def test_killed_guest_is_free_at_once(
    node1: Host, node2: Host, images: Images, record_property: Callable[[str, object], None]
) -> None:
    """kill -9 of QEMU; the other host tries until it gets it. No hook has to run for that."""
    seconds = []
    for number in range(5):
        disk = images.raw(f"web{number}.img")
        web = guest(f"web{number}", [disk])
        node1.start(web)
        node1.signal("libvirtd", "STOP")
        try:
            node1.run("/bin/kill", "-KILL", str(node1.qemu_pid(web)))
            began = time.monotonic()
            # What is only read under it is the host's, and goes with the next look.
            eventually(lambda: all(held.shared for held in node1.leases()), "sanlock has freed it", 5, every=0.001)
            seconds.append(time.monotonic() - began)
            node2.start(guest(f"other{number}", [disk]))
        finally:
            node1.signal("libvirtd", "CONT")
    record_property("freed_after", [round(s, 3) for s in seconds])
    print("freed after", ", ".join(f"{s * 1000:.0f} ms" for s in seconds))
    assert max(seconds) < 2


def test_power_cut_keeps_the_disk_until_the_host_is_certainly_dead(node1: Host, node2: Host, images: Images) -> None:
    """
    sanlock's time for that is 8 io_timeouts and 60 s. Until then the refusal says that the host does not answer; after
    it the guest starts elsewhere, and with no hand's work.
    """
    disk = images.raw("web.img", witness(mark=1))
    node1.start(guest("web", [disk]))
    eventually(lambda: count_in(disk).value > 3, "it counts")
    node1.power_cut()
    cut = time.monotonic()
    other = guest("other", [disk])
    words = ""
    while time.monotonic() - cut < 12:
        words = node2.refused(other)
        assert "node1" in words
    assert "does not answer" in words, words
    eventually(lambda: not node2.try_start(other).status, "the disk is free", within=90, every=1)
    took = time.monotonic() - cut
    print(f"free after {took:.0f} s")
    assert took > 60, "sooner than sanlock may conclude"


def test_power_cut_and_back(node1: Host, node2: Host, images: Images) -> None:
    """A host that comes back gets its own leases at once; nothing of the last boot is in the way."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    node1.power_cut()
    node1.boot()
    node1.start(web)
    still_held(node1, node2, web, disk)


def test_transient_and_defined_in_turn(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    node1.define(web)
    still_held(node1, node2, web, disk)
    node1.virsh("undefine", "web")
    still_held(node1, node2, web, disk)


@pytest.mark.parametrize("way", ["snapshot", "hotplug", "eject"])
def test_changes_while_it_runs_free_everything_at_the_end(way: str, node1: Host, node2: Host, images: Images) -> None:
    """The XML of `release` names other disks than that of `prepare`: leases go back by record."""
    disk, other = Disk(images.qcow2("web.qcow2"), format="qcow2"), images.raw("other.img")
    iso = Disk(images.raw("tools.iso"), readonly=True, device="cdrom")
    web = guest("web", [disk, iso])
    node1.start(web)
    if way == "snapshot":
        node1.virsh("snapshot-create-as", web.uuid, "s1", "--disk-only", "--no-metadata", "--diskspec", "vda,snapshot=external")
    elif way == "hotplug":
        node1.virsh("attach-device", web.uuid, "/dev/stdin", stdin=Disk(other).xml("vdb"))
    else:
        node1.virsh("change-media", web.uuid, "hda", "--eject", "--force")
    assert "web" in node2.refused(guest("thief", [disk]))
    node1.destroy(web)
    node2.start(guest("next", [disk, other]))


def test_udev_is_told_of_a_device_that_is_held(node1: Host, images: Images) -> None:
    """For as long as it is, also while it is plugged; by a file, and an event that makes udev read it."""
    pyudev = pytest.importorskip("pyudev")
    device = images.block("lun")
    number = os.stat(node1.path(device)).st_rdev
    mark = node1.path(f"/run/vmguard/udev/{os.major(number)}:{os.minor(number)}")
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
    monitor.filter_by("block")
    monitor.start()

    def told() -> None:
        def found() -> bool:
            event = monitor.poll(timeout=0.1)
            return event is not None and event.action == "change" and event.device_number == number

        eventually(found, "the kernel has told of it")

    web = guest("web", [Disk(device, "block")])
    node1.start(web)
    with open(mark, encoding="ascii") as file:
        assert "VMGUARD_DOMAIN=web\n" in file.read()
    told()
    node1.destroy(web)
    assert not os.path.exists(mark)
    told()
