# SPDX-License-Identifier: LGPL-2.1-or-later
"""The leases in a folder on NFS. The first node serves it, and mounts it as the others do."""

from typing import Iterator

import pytest
from conftest import Volumes, counts, watched
from guarded import STORE, Guarded
from guests import guest, witness
from hosts import eventually
from nodes import Node, each
from test_leases_on_volume import block, move

MOUNTED = "/mnt/leases"
LEASES = f"{MOUNTED}/vmguard"
# As oVirt mounts its domains: a server that does not answer is an error after some time, never a wait without end.
OPTIONS = "vers=4.2,soft,timeo=50,retrans=2"


@pytest.fixture(scope="module")
def served(cluster: Guarded) -> Iterator[Node]:
    """The node that serves the leases."""
    one = cluster.hosts[0]
    one.run("mkdir", "-p", "/srv/leases")
    one.write("/etc/exports", "/srv/leases 10.99.0.0/24(rw,sync,no_root_squash,no_subtree_check)\n")
    one.shell("systemctl start rpcbind nfs-server; exportfs -ra", within=180)
    mount = f"systemctl start rpcbind; mkdir -p {MOUNTED}; mount -t nfs -o {OPTIONS} 10.99.0.1:/srv/leases {MOUNTED}"
    each(cluster.hosts, lambda node: node.shell(mount, within=180))
    one.run("mkdir", "-p", LEASES)
    move(cluster, LEASES)
    yield one
    one.run("rm", "-rf", STORE)
    move(cluster, STORE)
    each(cluster.hosts, lambda node: node.shell(f"umount -f -l {MOUNTED}", check=False, within=90))
    one.shell("exportfs -ua; systemctl stop nfs-server; rm -rf /srv/leases /etc/exports", check=False, within=90)


def test_second_node_is_refused(served: Node, rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    disk = volumes.make("web-1", content=witness(mark=1))
    for there, here in ((node1, node2), (node2, node1)):
        it = guest("web1", [block(disk.path)])
        there.start(it)
        counts(rested, disk)
        with watched(rested, disk):
            words = here.refused(guest("web2", [block(disk.mapper)]))
            assert "web1" in words and there.name in words and disk.path in words, words
            counts(rested, disk)
        status = here.vmguard("status").out
        assert f"store {LEASES} (shared)" in status and "web1" in status, status
        there.destroy(it)


def test_the_server_pauses(served: Node, rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    """Shorter than the leases live: nothing is lost, and what could not be looked up was refused in words."""
    disk = volumes.make("web-1", content=witness(mark=1))
    it = guest("web1", [block(disk.path)])
    node2.start(it)
    counts(rested, disk)
    with watched(rested, disk):
        served.run("systemctl", "stop", "nfs-server", within=90)
        try:
            eventually(lambda: node2.renewal()[1] != 1, "a renewal fails", within=60)
        finally:
            served.run("systemctl", "start", "nfs-server", within=90)
        eventually(lambda: node2.renewal()[1] == 1, "a renewal succeeds", within=90)
        assert "web1" in node1.refused(guest("web2", [block(disk.path)]))
        counts(rested, disk)
    assert node2.runs(it) and rested.healthy(node1) and rested.healthy(node2)
