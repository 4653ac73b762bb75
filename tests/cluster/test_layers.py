# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What lies above or below a disk that somebody has: refused in both directions, across nodes.

The volume group `plain` has no lock manager: both nodes may have it active, snapshots and thin volumes too, and nothing but the
guard stands between them.
"""

from typing import Iterator

import pytest
from guarded import MOUNT, VG, Guarded
from guests import Disk, guest
from hosts import eventually
from nodes import Node, each


def block(path: str) -> Disk:
    return Disk(path, "block", driver="cache='none'")


class Bare:
    """The shared disk that nobody has laid anything on yet."""

    def __init__(self, cluster: Guarded) -> None:
        self.cluster = cluster
        self.one, self.two = cluster.hosts[:2]
        self.path = next(disk for disk in cluster.disks if disk.name == "bare").by_id

    def wipe(self) -> None:
        each(self.cluster.hosts, Node.remove_all_guests)
        # What a run that was killed left active, without metadata any more, and the links to it: in the way of a new group.
        maps = "for _ in 1 2 3; do dmsetup ls | cut -f1 | grep ^plain- | xargs -r -n1 dmsetup remove; done"
        gone = f"vgchange -qq -an plain; {maps}; udevadm settle; find /dev/plain -xtype l -delete; rmdir /dev/plain"
        each(self.cluster.hosts, lambda node: node.shell(gone, check=False))
        wiped = f"wipefs -qaf {self.path}-part* {self.path}; sgdisk -Z {self.path}"
        self.one.shell(f"vgremove -qq -ff -y plain; {wiped}", check=False)
        self.look()

    def look(self) -> None:
        """Each node reads anew what lies there."""
        each(self.cluster.hosts, lambda node: node.shell(f"blockdev --rereadpt {self.path}; udevadm settle", check=False))

    def partition(self) -> None:
        self.one.shell(f"sgdisk -n1:0:+32M -n2:0:+32M {self.path}")
        self.look()
        for node in self.cluster.hosts:
            eventually(lambda node=node: node.exists(self.path + "-part2"), "the partitions are there", within=90)  # type: ignore[misc]

    def group(self, *volumes: str) -> None:
        """Make `plain` with these volumes, each the words behind `lvcreate`, active on the first node."""
        lines = [f"lvcreate -qq -y {volume}" for volume in volumes]
        self.one.shell(f"set -e; vgcreate -qq -y --lock-type none plain {self.path}; " + "; ".join(lines), within=120)

    def activate(self, node: Node) -> None:
        node.shell("vgchange -qq -ay plain; udevadm settle", within=90)

    def deactivate(self, node: Node) -> None:
        node.shell("vgchange -qq -an plain; udevadm settle", within=90)


@pytest.fixture
def bare(rested: Guarded) -> Iterator[Bare]:
    made = Bare(rested)
    made.wipe()
    yield made
    for node in rested.hosts:
        if node.pid:
            node.remove_all_guests()
    made.wipe()


def test_physical_volume_under_a_volume(node1: Node, node2: Node, bare: Bare) -> None:
    bare.group("-n web -L 8M plain")
    volume, disk = guest("web1", [block("/dev/plain/web")]), guest("disk1", [block(bare.path)])
    node1.start(volume)
    words = node2.refused(disk)
    assert "web1" in words and "node1" in words, words
    assert "physical volume under the active logical volume plain/web" in node1.refused(guest("disk2", [block(bare.path)]))
    node1.destroy(volume)
    bare.deactivate(node1)
    eventually(lambda: not node1.leftovers(), "at rest", within=60)
    node2.start(disk)
    bare.activate(node1)
    words = node1.refused(volume)
    assert "disk1" in words and "node2" in words, words


def test_partition_and_its_disk(node1: Node, node2: Node, bare: Bare) -> None:
    bare.partition()
    part, disk = guest("part1", [block(bare.path + "-part1")]), guest("disk1", [block(bare.path)])
    other = guest("part2", [block(bare.path + "-part2")])
    node1.start(part)
    words = node2.refused(disk)
    assert "part1" in words and "node1" in words, words
    node2.start(other)  # its neighbour is another disk
    node1.destroy(part)
    assert "part2" in node1.refused(disk)
    node2.destroy(other)
    eventually(lambda: not node1.leftovers() and not node2.leftovers(), "at rest", within=60)
    node2.start(disk)
    words = node1.refused(part)
    assert "disk1" in words and "node2" in words, words


def test_snapshot_and_origin(node1: Node, node2: Node, bare: Bare) -> None:
    bare.group("-n web -L 16M plain", "-n web-old -s -L 16M plain/web")
    bare.activate(node2)
    origin, snapshot = guest("web1", [block("/dev/plain/web")]), guest("old1", [block("/dev/plain/web-old")])
    node1.start(origin)
    words = node2.refused(snapshot)
    assert "web1" in words and "node1" in words and "/dev/plain/web" in words, words
    node1.destroy(origin)
    eventually(lambda: not node1.leftovers(), "at rest", within=60)
    node2.start(snapshot)
    words = node1.refused(origin)
    assert "old1" in words and "node2" in words, words
    for hidden in ("web-real", "web--old-cow"):
        words = node1.refused(guest("hidden", [block(f"/dev/mapper/plain-{hidden}")]))
        assert "hidden layer" in words, words


def test_thin_volumes_of_one_pool_on_two_nodes(node1: Node, node2: Node, bare: Bare) -> None:
    bare.group("-n pool --type thin-pool -L 64M plain", *(f"-n {it} -V 32M --thinpool pool plain" for it in ("web", "db")))
    bare.activate(node2)
    web, db = guest("web1", [block("/dev/plain/web")]), guest("db1", [block("/dev/plain/db")])
    node1.start(web)
    words = node2.refused(guest("web2", [block("/dev/plain/web")]))
    assert "web1" in words and "node1" in words, words
    words = node2.refused(db)
    assert "pool" in words and "node1" in words, words
    node1.start(db)  # where the pool is, there is room for both
    for hidden in ("pool", "pool-tpool", "pool_tdata", "pool_tmeta"):
        node1.refused(guest("hidden", [block(f"/dev/mapper/plain-{hidden}")]))


def test_volume_that_the_node_has_mounted_or_built_on(node1: Node, bare: Bare) -> None:
    bare.group("-n fs -L 32M plain", "-n pv -L 32M plain")
    node1.shell("mkfs.ext4 -q /dev/plain/fs; mkdir -p /mnt/fs; mount /dev/plain/fs /mnt/fs")
    try:
        assert "mounted on /mnt/fs" in node1.refused(guest("web1", [block("/dev/plain/fs")]))
    finally:
        node1.run("umount", "/mnt/fs")
    scan = "--config devices/scan_lvs=1"
    made = f"vgcreate -qq -y {scan} --lock-type none inner /dev/plain/pv; lvcreate -qq -y {scan} -n in -L 8M inner"
    node1.shell(made, within=120)
    try:
        words = node1.refused(guest("web1", [block("/dev/plain/pv")]))
        assert "physical volume under the active logical volume inner/in" in words, words
    finally:
        node1.shell(f"vgremove -qq -ff -y {scan} inner", within=120)
    node1.start(guest("web1", [block("/dev/plain/pv")]))


def test_the_volume_of_the_leases(node1: Node, node2: Node) -> None:
    for node in (node1, node2):
        words = node.refused(guest("thief", [block(f"/dev/{VG}/shared")]))
        assert f"mounted on {MOUNT}" in words, words
    words = node1.refused(guest("thief", [block(f"/dev/mapper/{VG.replace('-', '--')}-lvmlock")]))
    assert f"locks of the volume group {VG}" in words, words


MULTIPATH = """
defaults {
    user_friendly_names yes
    find_multipaths no
}
blacklist {
    wwid ".*"
}
blacklist_exceptions {
    wwid "3%s"
}
"""


@pytest.fixture
def paths(rested: Guarded) -> Iterator[str]:
    """The designator of the disk with two paths; the first node has made one map of them."""
    node = rested.hosts[0]
    wwn = next(disk for disk in rested.disks if disk.paths == 2).wwn[2:]
    node.write("/etc/multipath.conf", MULTIPATH % wwn)
    node.shell("systemctl start multipathd; multipath; udevadm settle")
    yield wwn
    for each_node in rested.hosts:
        if each_node.pid:
            each_node.remove_all_guests()
    node.shell("multipath -F; systemctl stop multipathd.socket multipathd; rm /etc/multipath.conf; udevadm settle", check=False)


def test_leg_of_a_multipath_map(node1: Node, node2: Node, paths: str) -> None:
    asked = f"grep -l {paths} /sys/class/block/sd*/device/wwid | cut -d/ -f5"
    legs, legs_there = (node.shell(asked).out.split() for node in (node1, node2))
    assert len(legs) == len(legs_there) == 2
    (name,) = node1.shell("cat /sys/class/block/dm-*/dm/name | grep ^mpath").out.split()
    node1.start(guest("web1", [block(f"/dev/mapper/{name}")]))
    for leg in legs:
        assert f"one path of the multipath map {name}" in node1.refused(guest("leg", [block(f"/dev/{leg}")]))
    for leg in legs_there:  # that node knows of no map
        words = node2.refused(guest("leg", [block(f"/dev/{leg}")]))
        assert "web1" in words and "node1" in words and name in words, words
