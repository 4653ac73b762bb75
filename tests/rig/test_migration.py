# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that migrate: in each way that libvirt knows, to the wrong disk, over and over with somebody after their disks."""

import glob
import json
import os
import time
from typing import Iterator, List

import pytest
from conftest import Images
from guests import Disk, guest
from hosts import Host, eventually
from moves import Thieves, Witness, migrate, migrating, settled

ROUNDS = int(os.environ.get("VMGUARD_RIG_ROUNDS", "20"))

USERFAULTFD = "/proc/sys/vm/unprivileged_userfaultfd"


@pytest.fixture
def post_copy() -> Iterator[None]:
    """QEMU does not run as root here, and post-copy needs to handle the page faults of another process."""
    with open(USERFAULTFD, encoding="ascii") as file:
        before = file.read()
    with open(USERFAULTFD, "w", encoding="ascii") as file:
        file.write("1")
    yield
    with open(USERFAULTFD, "w", encoding="ascii") as file:
        file.write(before)


WAYS = [
    [],
    ["--p2p"],
    ["--p2p", "--tunnelled"],
    ["--persistent", "--undefinesource"],
    ["--postcopy", "--postcopy-after-precopy"],
    ["--auto-converge"],
]


@pytest.mark.parametrize("options", WAYS, ids=lambda options: " ".join(options) or "direct")
def test_there_and_back(
    options: List[str], node1: Host, node2: Host, node3: Host, images: Images, post_copy: None
) -> None:
    with Witness(images) as web:
        node1.define(web.guest)
        node1.virsh("start", "web")
        for source, destination in ((node1, node2), (node2, node1)):
            migrate(web.guest, source, destination, *options)
            settled(destination, web.guest)
            eventually(lambda source=source: not source.leftovers(), "nothing is left at the source")  # type: ignore[misc]
            words = node3.refused(guest("thief", [web.disk]))
            assert f'"web" on host {destination.name}' in words, words
            assert "this host" in destination.refused(guest("thief", [web.disk]))
            web.lives()


def test_suspended_on_arrival(node1: Host, node2: Host, images: Images) -> None:
    with Witness(images) as web:
        node1.start(web.guest)
        migrate(web.guest, node1, node2, "--suspend")
        assert node2.state(web.guest) == "paused"
        settled(node2, web.guest)
        assert "web" in node1.refused(guest("thief", [web.disk]))
        node2.virsh("resume", "web")
        web.lives()


def test_suspended_before(node1: Host, node2: Host, images: Images) -> None:
    with Witness(images) as web:
        node1.start(web.guest)
        web.lives()
        node1.virsh("suspend", "web")
        migrate(web.guest, node1, node2)
        settled(node2, web.guest)
        node2.virsh("resume", "web")
        web.lives()


def test_offline_and_then_a_cold_start_at_either_end(node1: Host, node2: Host, images: Images) -> None:
    """The mark of an offline migration must not let a start pass while the guest runs at its source (attack A1)."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.define(web)
    migrate(web, node1, node2, "--offline", "--persistent")
    node1.virsh("start", "web")
    done = node2.virsh("start", "web", check=False)
    assert done.status and "it runs already" in done.err, done.err
    node2.virsh("destroy", "web", check=False)
    # A later live migration finds the definition there, with the old nonce in it.
    migrate(web, node1, node2)
    settled(node2, web)
    node2.destroy(web)
    node2.virsh("start", "web")
    assert "it runs already" in node1.virsh("start", "web", check=False).err


def test_a_migration_that_failed_early_leaves_nobody_a_permit(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    node2.define(guest("web", [disk]))  # the name is taken by another uuid: libvirt refuses after the first hook
    before = len(node2.hook_calls(web))
    done = migrate(web, node1, node2, check=False)
    assert done.status and "already" in done.err, done.err
    assert [call.operation for call in node2.hook_calls(web)[before:]] == ["migrate"]
    node2.virsh("undefine", "web")
    assert "it runs already" in node2.refused(web)


def test_the_marked_definition_started_by_hand(node1: Host, node2: Host, images: Images) -> None:
    """Whoever takes the live definition, nonce and all, and starts it has a start like any other."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    migrate(web, node1, node2)
    settled(node2, web)
    marked = web._replace(xml=node2.virsh("dumpxml", "web").out)
    assert "urn:vmguard:arrival" in marked.xml
    assert "it runs already" in node1.refused(marked)
    node2.destroy(web)
    node1.start(marked)


def test_onto_the_disk_of_somebody_else(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    """`--xml` and `--copy-storage-all` can name any path: what another guest has is refused, whoever lives (A2)."""
    disk, theirs = images.raw("web.img"), images.raw("theirs.img")
    web, other = guest("web", [disk]), guest("other", [theirs])
    node1.start(web)
    for holder in (node1, node2, node3):
        holder.start(other)
        changed = images.path("changed.xml")
        with open(changed, "w", encoding="utf-8") as file:
            file.write(web.xml.replace(disk, theirs))
        for options in ([], ["--copy-storage-all"]):
            done = migrate(web, node1, node2, "--xml", changed, *options, check=False)
            assert done.status and '"other"' in done.err and "is in use" in done.err, done.err
        holder.destroy(other)
    assert node1.runs(web)


def test_storage_is_copied(node1: Host, node2: Host, images: Images) -> None:
    """To a disk of the destination's own, which has a lease of its own."""
    here, there = images.raw("here.img"), images.raw("there.img", content=b"")
    web = guest("web", [here])
    node1.start(web)
    changed = images.path("changed.xml")
    with open(changed, "w", encoding="utf-8") as file:
        file.write(web.xml.replace(here, there))
    migrate(web, node1, node2, "--copy-storage-all", "--xml", changed)
    settled(node2, web)
    eventually(lambda: not node1.leftovers(), "nothing is left at the source")
    assert "web" in node1.refused(guest("thief", [there]))
    node1.start(guest("next", [here]))
    with open(here, "rb") as one, open(there, "rb") as other:
        assert one.read(512) == other.read(512)


def test_the_same_path_is_another_disk(node1: Host, node2: Host, images: Images) -> None:
    """Nothing is copied: the guest would go on writing, from memory, over a disk that it has never seen."""
    for host in (node1, node2):
        host.cluster.block_device("web", images.raw(f"{host}.backing"), [host])
    web = guest("web", [Disk("/dev/rig/web", "block")])
    node1.start(web)
    done = migrate(web, node1, node2, check=False)
    assert done.status
    said = [line for line in node2.read("/var/log/vmguard/events.jsonl").splitlines() if '"ended"' in line][-1]
    assert "another disk here than on host node1" in said, said
    assert node1.runs(web) and not node2.runs(web)
    eventually(lambda: not node2.leftovers(), "the destination has nothing left")
    migrate(web, node1, node2, "--copy-storage-all")
    settled(node2, web)


def test_a_disk_that_was_attached_while_it_ran(node1: Host, node2: Host, images: Images) -> None:
    """The source has no lease for it; the destination takes it."""
    disk, more = images.raw("web.img"), images.raw("more.img")
    web = guest("web", [disk])
    node1.start(web)
    node1.virsh("attach-disk", "web", more, "vdb", "--subdriver", "raw")
    migrate(web, node1, node2)
    settled(node2, web)
    assert "web" in node1.refused(guest("thief", [more]))


def test_with_a_backing_file_that_was_the_disk(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    """After a snapshot the source still has the base for itself alone, and the destination reads it (A17)."""
    base = images.qcow2("web.qcow2")
    web = guest("web", [Disk(base, format="qcow2")])
    node1.start(web)
    overlay = images.path("web.overlay")
    node1.virsh("snapshot-create-as", "web", "--disk-only", "--no-metadata", "--diskspec", f"vda,file={overlay}")
    migrate(web, node1, node2)
    eventually(lambda: not any(held.name.endswith(".t") for held in node2.leases()), "no ticket is left")
    for path in (base, overlay):
        assert "web" in node3.refused(guest("thief", [Disk(path, format="qcow2")]))
    node3.start(guest("reader", [Disk(images.qcow2("clone", base, "qcow2"), format="qcow2")]))


@pytest.mark.parametrize("watching", ["source", "destination"])
def test_one_side_only_watches(watching: str, node1: Host, node2: Host, images: Images) -> None:
    with Witness(images) as web:
        host = node1 if watching == "source" else node2
        host.write("/etc/vmguard/vmguard.conf.d/90-test.conf", "[guard]\nmode = audit\n")
        try:
            node1.start(web.guest)
            migrate(web.guest, node1, node2)
            settled(node2, web.guest)
            web.lives()
        finally:
            host.run("rm", "/etc/vmguard/vmguard.conf.d/90-test.conf")


def test_from_a_host_of_a_later_version(node1: Host, node2: Host, images: Images) -> None:
    """
    Members that are new in its notes are passed over. Notes of another format say nothing: then whose the disk is cannot be
    known, and nobody gets in.
    """
    with Witness(images) as web:
        node1.start(web.guest)
        notes = [path for path in glob.glob(node1.cluster.store + "/leases/*.note") if web.guest.uuid in open(path).read()]  # type: ignore[attr-defined]
        before = {path: open(path, encoding="ascii").read() for path in notes}
        for path, text in before.items():
            with open(path, "w", encoding="ascii") as file:
                file.write(text.replace('"format": 1', '"format": 2'))
        done = migrate(web.guest, node1, node2, check=False)
        assert done.status and "its note does not say which domain" in done.err and "node1" in done.err, done.err
        for path, text in before.items():
            with open(path, "w", encoding="ascii") as file:
                file.write(text.replace('"format": 1', '"new": [1], "format": 1'))
        migrate(web.guest, node1, node2)
        settled(node2, web.guest)


def test_from_a_host_that_had_no_hook(node1: Host, node2: Host, images: Images) -> None:
    """It runs without leases there: it has all of them here before it comes."""
    with Witness(images) as web:
        node1.write("/etc/vmguard/vmguard.conf.d/90-test.conf", "[guard]\nmode = off\n")
        try:
            node1.start(web.guest)
            assert not node1.leases()
            migrate(web.guest, node1, node2)
        finally:
            node1.run("rm", "/etc/vmguard/vmguard.conf.d/90-test.conf")
        settled(node2, web.guest)
        web.lives()
        assert "web" in node1.refused(guest("thief", [web.disk]))


def test_in_a_hurry(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    """A to B to C to A with no time in between: the handovers are still under way (A18)."""
    with Witness(images) as web:
        node1.start(web.guest)
        for source, destination in ((node1, node2), (node2, node3), (node3, node1), (node1, node2), (node2, node1)):
            migrate(web.guest, source, destination)
        settled(node1, web.guest)
        web.lives()


def test_on_from_a_host_whose_handover_died(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    """On its ticket alone a guest is protected, and can go on (A15)."""
    with Witness(images) as web:
        node1.start(web.guest)
        # Nothing of it must come to run: the errand cannot be spawned.
        node2.run("mv", "/run/vmguard/errands", "/run/vmguard/errands.away", check=False)
        node2.write("/run/vmguard/errands", "")
        migrate(web.guest, node1, node2)
        eventually(lambda: not node1.leases(), "the source has let go")
        tickets = [held for held in node2.leases() if held.name.endswith(".t")]
        assert tickets and all(held.pid == node2.qemu_pid(web.guest) for held in tickets)
        for host in (node1, node3):
            words = host.refused(guest("thief", [web.disk]))
            assert '"web" on host node2' in words and "migrating" in words, words
        migrate(web.guest, node2, node3)
        settled(node3, web.guest)
        node2.run("rm", "/run/vmguard/errands")
        migrate(web.guest, node3, node2)
        settled(node2, web.guest)
        web.lives()


def test_the_next_hook_sends_a_lost_errand_again(node1: Host, node2: Host, images: Images) -> None:
    with Witness(images) as web:
        node1.start(web.guest)
        node2.run("mkdir", "-p", "/run/vmguard")
        node2.run("rm", "-rf", "/run/vmguard/errands")
        node2.write("/run/vmguard/errands", "")
        migrate(web.guest, node1, node2)
        node2.run("rm", "/run/vmguard/errands")
        assert any(held.name.endswith(".t") for held in node2.leases())
        node2.start(guest("other", [images.raw("other.img")]))
        settled(node2, web.guest)


@pytest.mark.parametrize("hosts", [2, 3])
def test_there_and_back_among_thieves(
    hosts: int, node1: Host, node2: Host, node3: Host, images: Images, request: pytest.FixtureRequest
) -> None:
    """
    All the time somebody tries on each host to start the disk by another name; on block devices with a node on each host, so
    that QEMU's own locks do not help.
    """
    nodes = [node1, node2, node3][:hosts]
    with Witness(images, block=True) as web:
        node1.start(web.guest)
        aliases = []
        for host in nodes:
            host.run("ln", "-sf", web.disk, "/dev/rig/alias")
            aliases.append(Disk("/dev/rig/alias", "block"))
        began = time.monotonic()
        with Thieves(nodes, aliases) as thieves:
            for number in range(2 * ROUNDS):
                source, destination = nodes[number % hosts], nodes[(number + 1) % hosts]
                migrate(web.guest, source, destination)
        print(f"{2 * ROUNDS} migrations, {len(thieves.refusals)} attempts refused, {time.monotonic() - began:.0f} s")
        settled(nodes[2 * ROUNDS % hosts], web.guest)
        web.lives()


def test_thieves_while_both_run(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    with Witness(images, busy=True, block=True) as web:
        node1.start(web.guest)
        with migrating(web.guest, node1, node2):
            for host in (node1, node2, node3):
                words = host.refused(guest("thief", [Disk(web.disk, "block")]))
                assert '"web"' in words, words
            assert json.loads(node3.vmguard("status", "--json").out)
        assert node1.runs(web.guest)
        eventually(lambda: not node2.leftovers(), "the destination has nothing")
        web.lives()
