# SPDX-License-Identifier: LGPL-2.1-or-later
"""What must start does: a guard that refuses too much is switched off by its users."""

import time
from typing import Callable

import pytest
from conftest import Images
from guests import Disk, guest
from hosts import Host, eventually


def test_many_guests_on_one_base(node1: Host, node2: Host, images: Images) -> None:
    """Each with an overlay of its own, on both hosts; and one that has the base as a read-only disk."""
    base = images.raw("base.img")
    for host in (node1, node2):
        for number in range(3):
            overlay = images.qcow2(f"{host.name}-{number}.qcow2", backing=base)
            host.start(guest(f"{host.name}-{number}", [Disk(overlay, format="qcow2")]))
        host.start(guest(f"{host.name}-reader", [Disk(base, readonly=True)]))


def test_the_last_reader_frees_the_base(node1: Host, node2: Host, images: Images) -> None:
    """A shared lease of a host serves all its guests: it stays until the last one ends, and goes then."""
    iso = images.raw("tools.iso")
    readers = [guest(f"reader{n}", [images.raw(f"{n}.img"), Disk(iso, readonly=True)]) for n in range(3)]
    for reader in readers:
        node1.start(reader)
    writer = guest("writer", [iso])
    for reader in readers:
        assert "reader" in node2.refused(writer)
        node1.destroy(reader)
    node2.start(writer)


@pytest.mark.parametrize("kind", ["file", "block"])
def test_a_shareable_disk_runs_on_both_hosts(kind: str, node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("quorum.img") if kind == "file" else images.block("quorum")
    for host in (node1, node2):
        host.start(guest(f"on-{host.name}", [images.raw(f"{host.name}.img"), Disk(disk, kind, shareable=True)]))


def test_stop_here_start_there_at_once(node1: Host, node2: Host, images: Images) -> None:
    """Whoever is told that the guest is off may start it elsewhere, in the same moment, ten times running."""
    web = guest("web", [images.raw("web.img"), Disk(images.qcow2("data.qcow2"), format="qcow2")])
    for number in range(10):
        here = (node1, node2)[number % 2]
        here.start(web)
        here.destroy(web)


def test_defined_on_both_hosts(node1: Host, node2: Host, images: Images) -> None:
    """The usual cluster: each host knows the domain, one runs it."""
    web = guest("web", [images.raw("web.img")])
    for host in (node1, node2):
        host.define(web)
    node1.virsh("start", "web")
    done = node2.virsh("start", "web", check=False)
    assert done.status and "node1" in done.err
    node1.virsh("destroy", "web")
    node2.virsh("start", "web")


def test_sixty_four_disks(node1: Host, node2: Host, images: Images) -> None:
    disks = [images.raw(f"{number}.img") for number in range(64)]
    devices = "<controller type='scsi' index='0' model='virtio-scsi'/>" + "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{disk}'/><backingStore/>"
        f"<target dev='sd{chr(97 + number // 26)}{chr(97 + number % 26)}' bus='scsi'/>"
        f"<address type='drive' controller='0' bus='0' target='{number}' unit='0'/></disk>"
        for number, disk in enumerate(disks)
    )
    big = guest("big", devices=devices)
    node1.start(big)
    assert "big" in node2.refused(guest("small", [disks[63]]))
    node1.destroy(big)
    node2.start(big)


def test_disks_of_its_own_beside_a_refused_one(node1: Host, node2: Host, images: Images) -> None:
    taken, free = images.raw("taken.img"), images.raw("free.img")
    node1.start(guest("web1", [taken]))
    node2.refused(guest("web2", [free, taken]))
    node2.start(guest("web2", [free]))


def test_an_empty_drive_and_no_disk_at_all(node1: Host, node2: Host, images: Images) -> None:
    empty = "<disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>"
    node1.start(guest("empty", devices=empty))
    node2.start(guest("diskless"))


def test_one_file_in_two_parts(node1: Host, node2: Host, images: Images) -> None:
    """Two guests on one image by mistake are refused; after the first is gone, its log and nvram are free too."""
    serial = f"<serial type='file'><source path='{images.path('console.log')}'/></serial>"
    web = guest("web", [images.raw("web.img")], devices=serial)
    node1.start(web)
    other = guest("other", [images.raw("b.img")], devices=serial)
    done = node2.try_start(other)
    assert done.status and "console.log" in done.err, "the log that QEMU made in the meantime is not guarded"
    node1.destroy(web)
    node2.start(other)


def test_what_it_costs(node1: Host, images: Images, record_property: Callable[[str, object], None]) -> None:
    """Starting with the guard, the median of nine. Far above half a second, something is wrong."""
    seconds = []
    for number in range(9):
        web = guest(f"web{number}", [images.raw(f"{number}.img")])
        began = time.monotonic()
        node1.start(web)
        seconds.append(time.monotonic() - began)
        node1.destroy(web)
    median = sorted(seconds)[4]
    record_property("start_median", round(median, 3))
    print(f"start: median {median:.3f} s of {', '.join(f'{s:.3f}' for s in seconds)}")
    assert median < 3


def test_nothing_is_left_when_all_are_gone(node1: Host, node2: Host, images: Images) -> None:
    """A dozen guests of all sorts, ended in all ways."""
    base = images.raw("base.img")
    for number in range(4):
        for host in (node1, node2):
            overlay = Disk(images.qcow2(f"{host.name}{number}.qcow2", backing=base), format="qcow2")
            host.start(guest(f"{host.name}{number}", [overlay, images.raw(f"{host.name}{number}.img")]))
    for host in (node1, node2):
        for position, uuid in enumerate(host.domains()):
            it = guest("any", uuid=uuid)
            host.kill9(it) if position % 2 else host.destroy(it)
        eventually(lambda host=host: not host.leftovers(), f"{host} has nothing")  # type: ignore[misc]
