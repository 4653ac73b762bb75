# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests on logical volumes of the shared group, by every name a volume has; leases on GFS2."""

import struct
from uuid import UUID

import pytest
from conftest import Images, Volumes
from guarded import Guarded
from guests import IDLE, Disk, guest, witness
from hosts import eventually
from nodes import Node


def block(path: str) -> Disk:
    return Disk(path, "block", driver="cache='none'")


@pytest.mark.smoke
def test_second_node_is_refused(rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    """Also by the witness: one writer, whose counter only grows."""
    disk = volumes.make("web-1", content=witness(mark=1))
    first = guest("web1", [block(disk.path)])
    node1.start(first)
    eventually(lambda: rested.count(disk).value > 5, "it counts", within=60)
    before = rested.count(disk)
    words = node2.refused(guest("web2", [block(disk.path)]))
    assert "web1" in words and "node1" in words and disk.path in words and "do:" in words, words
    eventually(lambda: rested.count(disk).value > before.value + 5, "it counts on", within=60)
    assert rested.count(disk).mark == 1
    assert node1.state(first) == "running"


NAMES = {
    "mapper": lambda volume, uuid: volume.mapper,
    "kernel": lambda volume, uuid: f"/dev/{volume.kernel}",
    "by-id-name": lambda volume, uuid: f"/dev/disk/by-id/dm-name-{volume.mapper.rpartition('/')[2]}",
    "by-id-uuid": lambda volume, uuid: f"/dev/disk/by-id/dm-uuid-{uuid}",
}


@pytest.mark.smoke
def test_every_name_of_a_volume_is_that_volume(node1: Node, node2: Node, volumes: Volumes) -> None:
    disk = volumes.make("db--one-2")
    node1.start(guest("db1", [block(disk.path)]))
    there = node2.run("readlink", "-f", disk.path).out.strip().rpartition("/")[2]
    uuid = node2.run("cat", f"/sys/class/block/{there}/dm/uuid").out.strip()
    for name in NAMES.values():
        path = name(disk._replace(kernel=there), uuid)
        assert node2.exists(path), path
        words = node2.refused(guest("db2", [block(path)]))
        assert "db1" in words and disk.path in words and path in words, words


def swap_space(uuid: str, label: str) -> bytes:
    """A boot sector that halts, and behind it what blkid takes for a swap space: a volume with a name of its content's."""
    page = bytearray(IDLE.ljust(4096, b"\0"))
    struct.pack_into("<III16s16s", page, 1024, 1, 100, 0, UUID(uuid).bytes, label.encode())
    page[4086:] = b"SWAPSPACE2"
    return bytes(page)


def test_a_volume_by_the_names_of_its_content(node1: Node, node2: Node, volumes: Volumes) -> None:
    """by-uuid and by-label lead to it; of two volumes with one content they lead to either, and the guard sees which."""
    uuid = "5ca1ab1e-0000-4000-8000-00000000cafe"
    disk = volumes.make("web-1", content=swap_space(uuid, "web-root"))
    names = [f"/dev/disk/by-uuid/{uuid}", "/dev/disk/by-label/web-root"]
    for node in (node1, node2):
        node.shell("udevadm trigger --settle --subsystem-match=block")
        eventually(lambda node=node: all(map(node.exists, names)), "the names are there", within=60)  # type: ignore[misc]
    node1.start(guest("web1", [block(names[0])]))
    for path in (*names, disk.path):
        for node in (node1, node2):
            words = node.refused(guest("web2", [block(path)]))
            assert "web1" in words and names[0] in words and path in words, words


def test_a_renamed_volume_is_the_same(rested: Guarded, node1: Node, volumes: Volumes) -> None:
    """LVM renames only what one node has alone."""
    disk = volumes.make("old-name", shared=False)
    node1.start(guest("web1", [block(disk.path)]))
    volumes.names.append("new-name")
    node1.run("lvrename", "-qq", "vg-guests/old-name", "new-name", within=90)
    renamed = rested.find("new-name")
    assert renamed.kernel == disk.kernel and not node1.exists(disk.path)
    words = node1.refused(guest("web2", [block(renamed.path)]))
    assert "web1" in words and disk.path in words and renamed.path in words, words


def test_a_map_renamed_by_hand_is_the_same(node1: Node, node2: Node, volumes: Volumes) -> None:
    disk = volumes.make("web-1")
    node1.start(guest("web1", [block(disk.path)]))
    node2.shell(f"dmsetup rename {disk.mapper.rpartition('/')[2]} other-name; udevadm settle")
    try:
        words = node2.refused(guest("web2", [block("/dev/mapper/other-name")]))
        assert "web1" in words and disk.path in words, words
    finally:
        node2.shell(f"dmsetup rename other-name {disk.mapper.rpartition('/')[2]}; udevadm settle")


@pytest.mark.smoke
def test_an_image_on_gfs2_is_refused_on_the_second_node(node1: Node, node2: Node, images: Images) -> None:
    disk = images.raw("web.img")
    node1.start(guest("web1", [disk]))
    words = node2.refused(guest("web2", [disk]))
    assert "web1" in words and "node1" in words and disk in words, words
