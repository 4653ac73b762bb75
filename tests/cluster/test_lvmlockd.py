# SPDX-License-Identifier: LGPL-2.1-or-later
"""What LVM's own locks add, and what they leave to the guard: commands by hand while a guest runs."""

from conftest import Volumes, counts, watched
from guarded import VG, Guarded
from guests import Disk, guest, witness
from nodes import Node


def block(path: str) -> Disk:
    return Disk(path, "block", driver="cache='none'")


def fails(node: Node, *words: str) -> str:
    done = node.run(*words, check=False, within=90)
    assert done.status, f"{words}: {done.out}"
    return done.err


def test_volume_active_on_both_nodes(rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    disk = volumes.make("web-1", content=witness(mark=1))
    it = guest("web1", [block(disk.path)])
    node1.start(it)
    counts(rested, disk)
    with watched(rested, disk):
        assert "in use" in fails(node1, "lvchange", "-an", f"{VG}/web-1")
        for node in (node1, node2):  # what changes a volume needs it alone
            assert "locked" in fails(node, "lvrename", VG, "web-1", "other")
            assert "locked" in fails(node, "lvremove", "-f", f"{VG}/web-1")
        # but for more of it, which the other node is to be told of
        extended = node1.run("lvextend", "-L", "+8M", f"{VG}/web-1", within=90)
        assert "shared lock" in extended.err, extended
        node2.run("lvchange", "--refresh", f"{VG}/web-1", within=90)
        assert "web1" in node2.refused(guest("web2", [block(disk.path)]))
        assert "locked" in fails(node2, "lvchange", "-aey", f"{VG}/web-1")
        node2.run("lvchange", "-an", f"{VG}/web-1", within=90)
        words = node2.refused(guest("web2", [block(disk.path)]))
        assert "no such file" in words, words  # the guard activates nothing
        counts(rested, disk)
    assert node1.runs(it)


def test_volume_active_on_one_node(rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    disk = volumes.make("web-1", content=witness(mark=1), shared=False)
    it = guest("web1", [block(disk.path)])
    node1.start(it)
    counts(rested, disk)
    identity = node1.vmguard("identify", disk.path).out.splitlines()[1]
    with watched(rested, disk):
        for how in ("-asy", "-aey"):
            assert "locked by other host" in fails(node2, "lvchange", how, f"{VG}/web-1")
        assert "no such file" in node2.refused(guest("web2", [block(disk.path)]))
        node1.run("lvextend", "-L", "+8M", f"{VG}/web-1", within=90)
        assert node1.vmguard("identify", disk.path).out.splitlines()[1] == identity
        assert "web1" in node1.refused(guest("web3", [block(disk.path)]))
        counts(rested, disk)
    assert node1.runs(it)
