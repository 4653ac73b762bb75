# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who activates a volume: LVM and the administrator, never vmguard. What lvmlockd and system IDs then do with it, beside a guest.
"""

from typing import Iterator

import pytest
from conftest import Volumes
from guarded import VG, Guarded
from guests import Disk, guest
from hosts import eventually
from kinds import disk, wipe
from nodes import Node


def block(path: str) -> Disk:
    return Disk(path, "block", driver="cache='none'")


def test_a_volume_that_is_not_active_here(node1: Node, node2: Node, volumes: Volumes) -> None:
    """It is refused with the command that activates it; vmguard does not, also where it could."""
    made = volumes.make("web-1")
    node2.run("lvchange", "-qq", "-an", f"{VG}/web-1", within=90)
    for path in (made.path, made.mapper):
        words = node2.refused(guest("web1", [block(path)]))
        assert path in words and f"lvchange -asy {VG}/web-1" in words, words
    assert not node2.exists(made.path)
    node2.run("lvchange", "-qq", "-asy", f"{VG}/web-1", within=90)
    node2.start(guest("web1", [block(made.path)]))


def test_a_volume_that_another_node_has_alone(node1: Node, node2: Node, volumes: Volumes) -> None:
    """LVM says so when the command of the refusal is tried; the guest of the other node is none the wiser."""
    made = volumes.make("web-1", shared=False)
    web = guest("web1", [block(made.path)])
    node1.start(web)
    assert f"lvchange -asy {VG}/web-1" in node2.refused(guest("web2", [block(made.path)]))
    for how in ("-asy", "-aey", "-ay"):
        done = node2.run("lvchange", how, f"{VG}/web-1", check=False, within=90)
        assert done.status and "locked" in done.err, done
    assert node1.state(web) == "running"


def test_commands_by_hand_while_a_guest_runs(node1: Node, node2: Node, volumes: Volumes) -> None:
    """What LVM lets pass changes nothing for the guard; what would take the disk from under the guest LVM does not let pass."""
    made = volumes.make("web-1")
    web = guest("web1", [block(made.path)])
    node1.start(web)
    in_use = node1.run("lvchange", "-an", f"{VG}/web-1", check=False, within=90)
    assert in_use.status and "in use" in in_use.err, in_use
    name = f"{VG}/web-1"
    for words in (["lvremove", "-f", name], ["lvchange", "-aey", name], ["lvrename", name, "web-2"]):
        done = node2.run(*words, check=False, within=90)
        assert done.status, (words, done)
    assert node2.exists(made.path)
    node2.run("lvchange", "-qq", "-an", f"{VG}/web-1", within=90)  # it is not in use there
    done = node1.virsh("migrate", "--live", web.uuid, f"qemu+tcp://{node2.address}/system", check=False, within=120)
    assert done.status and f"lvchange -asy {VG}/web-1" in done.err, done
    assert node1.state(web) == "running"
    node2.run("lvchange", "-qq", "-asy", f"{VG}/web-1", within=90)
    words_of = node2.refused(guest("web2", [block(made.path)]))
    assert "web1" in words_of and "node1" in words_of, words_of


def test_a_volume_that_grows_under_its_guest(rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    made = volumes.make("web-1", shared=False)
    web = guest("web1", [block(made.path)])
    node1.start(web)
    before = node1.vmguard("identify", made.path).out
    node1.run("lvextend", "-qq", "-L", "+8M", f"{VG}/web-1", within=90)
    node1.virsh("blockresize", web.uuid, "vda", "16M", within=60)
    assert "16M" in node1.virsh("domblkinfo", "--human", web.uuid, "vda").out.replace(" ", "").replace("16.000MiB", "16M")
    assert node1.vmguard("identify", made.path).out.split()[:3] == before.split()[:3]
    words = node1.refused(guest("web2", [block(made.mapper)]))
    assert "web1" in words, words


# A host that goes by another's system ID, as a clone of its image does. `extra_system_ids` is not enough to activate.
OVERRIDE = 'global { system_id_source="lvmlocal" } local { host_id=2 system_id="node1" }'


@pytest.fixture
def owned(rested: Guarded) -> Iterator[str]:
    """A group of the first node, by its system ID, on a disk that both see."""
    path = disk(rested, "bare").by_id
    wipe(rested, path)
    for node in rested.hosts:
        node.shell("sed -i 's/.*system_id_source = .*/\\tsystem_id_source = \"uname\"/' /etc/lvm/lvm.conf")
    one = rested.hosts[0]
    one.shell(f"vgcreate -qq -y --lock-type none owned {path} && lvcreate -qq -y -n web -L 8M owned", within=90)
    yield "/dev/owned/web"
    for node in rested.hosts:
        node.remove_all_guests()
        node.shell("vgchange -qq -an owned", check=False, within=90)
    for node in rested.hosts:
        node.shell("vgremove -qq -ff -y owned", check=False, within=90)
        node.shell("sed -i 's/.*system_id_source = .*/\\tsystem_id_source = \"none\"/' /etc/lvm/lvm.conf")
    wipe(rested, path)


def test_a_group_of_another_system_id(rested: Guarded, node1: Node, node2: Node, owned: str) -> None:
    web = guest("web1", [block(owned)])
    node1.start(web)
    assert "lvchange -asy owned/web" in node2.refused(guest("web2", [block(owned)]))
    done = node2.run("lvchange", "-asy", "owned/web", check=False, within=90)
    assert done.status and "system ID" in done.err, done
    # Who overrides that has gone past LVM. Not past the leases.
    done = node2.shell(f"vgchange -ay --config '{OVERRIDE}' owned 2>&1; udevadm settle", within=90)
    eventually(lambda: node2.exists(owned), f"it is active on both ({done.out})", within=60)
    words = node2.refused(guest("web2", [block(owned)]))
    assert "web1" in words and "node1" in words, words
    node2.run("vgchange", "-qq", "-an", "--config", OVERRIDE, "owned", within=90)
    # The group given away while its guest runs: the device stays, and the lease.
    node1.run("vgchange", "-qq", "-y", "--systemid", "node2", "owned", check=False, within=90)
    assert node1.state(web) == "running"
