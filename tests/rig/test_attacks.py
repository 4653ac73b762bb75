# SPDX-License-Identifier: LGPL-2.1-or-later
"""Interleavings that were found by reading: each lost a permit, or refused what is in order, before it was mended."""

import fcntl
import json
import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

from conftest import Images
from guests import Disk, Guest, count_in, guest, witness
from hosts import Host, eventually
from moves import Witness, holds, migrate, migrating
from test_hook_killed import kill_hook

CONF = "/etc/vmguard/vmguard.conf.d/90-test.conf"


def records(host: Host) -> List[Dict[str, Any]]:
    folder = host.path("/run/vmguard/instances")
    names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    return [json.loads(host.read(f"/run/vmguard/instances/{name}")) for name in names]


def write_record(host: Host, record: Dict[str, Any]) -> None:
    host.write(f"/run/vmguard/instances/{record['id']}.json", json.dumps(record))


@contextmanager
def no_errand(host: Host, record: str) -> Iterator[None]:
    """The place of the errand of an instance is taken."""
    os.makedirs(host.path("/run/vmguard/errands"), exist_ok=True)
    place = host.path(f"/run/vmguard/errands/{record}")
    with open(place, "w", encoding="ascii") as errand:
        fcntl.flock(errand, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
        os.unlink(place)


@contextmanager
def draining(host: Host, disk: str, name: str = "dead") -> Iterator[Dict[str, Any]]:
    """A guest that is dead, and whose writes do not get to the medium: the place of its errand is taken."""
    host.write(CONF, "[leases]\ndrain = all\n")
    dead = guest(name, [Disk(disk, "block")])
    host.start(dead)
    (record,) = [record for record in records(host) if record["uuid"] == dead.uuid]
    with no_errand(host, record["id"]):
        host.kill("libvirtd")
        host.kill9(dead)
        host.vmguard("gc", check=False)
        (record,) = [one for one in records(host) if one["uuid"] == dead.uuid]
        assert record["state"] == "draining", record
        host.start_libvirtd()
        yield record
    host.run("rm", "-f", CONF, check=False)
    host.vmguard("gc", check=False)
    eventually(lambda: not host.leftovers(), "nothing is left")


def test_an_intent_that_died_does_not_end_a_drain(node1: Host, node2: Host, images: Images) -> None:
    """The guest is dead, its writes are on their way, and a new start of the same disk dies in `prepare`."""
    disk = images.block("web")
    with draining(node1, disk) as record:
        intent = dict(record, id=record["id"][:-1] + "x", state="intent", qemu=None, libvirtd=[1, 1])
        intent["wants"] = [dict(want, drain=None, lver=None) for want in record["wants"]]
        write_record(node1, intent)
        node1.vmguard("gc", check=False)
        assert "its last writes are still on their way" in node2.refused(guest("thief", [Disk(disk, "block")]))


def test_onto_a_device_that_a_third_host_drains(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    """What a dead guest has left in the page cache of a third host would come to lie over the copy."""
    here, there = images.raw("here.img"), images.block("there")
    web = guest("web", [here])
    node1.start(web)
    changed = images.path("changed.xml")
    with open(changed, "w", encoding="utf-8") as file:
        file.write(
            web.xml.replace(f'file="{here}"', f'dev="{there}"').replace("type='file' device='disk'", "type='block' device='disk'")
        )
    assert there in open(changed, encoding="utf-8").read(), web.xml
    with draining(node3, there):
        done = migrate(web, node1, node2, "--copy-storage-all", "--xml", changed, check=False)
        assert done.status and "its last writes are still on their way" in done.err, done
    assert node1.runs(web)
    migrate(web, node1, node2, "--copy-storage-all", "--xml", changed)


def test_dead_before_the_mark_has_come_with_it(node1: Host, node2: Host, images: Images) -> None:
    """The source has the mark for longer than the guest lives here: what it wrote here is to be brought out all the same."""
    disk = images.block("web", witness(mark=1))
    web = guest("web", [Disk(disk, "block")])
    node2.write(CONF, "[leases]\ndrain = all\n")
    try:
        with draining(node1, disk):
            node1.start(web)
            migrate(web, node1, node2)
            eventually(lambda: holds(node2, web), "it has its leases")
            assert not any(held.name.endswith(".d") for held in node2.leases()), "the mark is still its source's"
            for pid, arguments in list(node2.processes()):
                if any("vmguard.errand" in argument for argument in arguments):
                    node2.run("/bin/kill", "-KILL", str(pid))
            with no_errand(node2, records(node2)[0]["id"]):
                node2.kill("libvirtd")
                node2.kill9(web)
                node2.vmguard("gc", check=False)
                assert [record["state"] for record in records(node2)] == ["draining"]
                node2.start_libvirtd()
            node2.vmguard("gc", check=False)
            eventually(lambda: not node2.leftovers(), "nothing is left")
    finally:
        node2.run("rm", "-f", CONF)


def state_of(host: Host, it: Guest) -> str:
    pid = host.qemu_pid(it)
    return host.read(f"/proc/{pid}/stat").rpartition(") ")[2][:1] if pid else ""


def is_joining(host: Host) -> bool:
    return "list=add" in host.run("sanlock", "client", "status", "-D", check=False).out


def test_a_join_that_fails_when_it_is_done(node1: Host, node2: Host, images: Images) -> None:
    """This host is a member again, and all that it had is free: its guests must not go on as if nothing had happened."""
    disk = images.block("web", witness(mark=1))
    web, thief = guest("web", [Disk(disk, "block")]), guest("thief", [Disk(disk, "block")])
    node1.start(web)
    node1.kill("sanlock")
    node1.start_sanlock()
    claim = os.path.join(node1.cluster.store, "hosts", "1.json")  # type: ignore[attr-defined]
    joining = node1.spawn("vmguard", "join")
    try:
        eventually(lambda: state_of(node1, web) == "T" and is_joining(node1), "it joins", within=5)
        os.rename(claim, claim + ".away")
        joining.communicate()
        assert joining.returncode
    finally:
        os.rename(claim + ".away", claim)
    stolen = not node2.try_start(thief).status
    assert not (stolen and state_of(node1, web) not in ("T", "")), "both run"
    node1.vmguard("join", check=False)
    assert not stolen and node1.runs(web)
    before = count_in(images.path("web.backing")).value
    eventually(lambda: count_in(images.path("web.backing")).value > before, "the guest goes on")


def test_started_killed_and_made_good(node1: Host, node2: Host, images: Images) -> None:
    """QEMU has its leases in the end: as orphans of the host they would not end it with the lockspace."""
    node1.write(CONF, "[guard]\ndeadline = 2\n")
    try:
        disk = images.raw("web.img")
        web = guest("web", [disk])
        starting = node1.spawn("virsh", "-q", "create", "/dev/stdin", stdin=web.xml)
        assert kill_hook(node1, "started", 0, last=False)
        starting.communicate()
        assert node1.runs(web) and not holds(node1, web)

        def made_good() -> bool:
            node1.vmguard("gc", check=False)
            return holds(node1, web)

        eventually(made_good, "QEMU has its leases", within=10, every=0.5)
        assert "web" in node2.refused(guest("thief", [disk]))
    finally:
        node1.run("rm", "-f", CONF)


def test_nobody_leans_on_a_ticket(node1: Host, node2: Host, images: Images) -> None:
    """While a guest comes, its host has no lease of what the source still has for itself: a reader there must wait."""
    with Witness(images, busy=True) as web:
        node1.start(web.guest)
        overlay = images.path("web.overlay")
        node1.virsh("snapshot-create-as", "web", "--disk-only", "--no-metadata", "--diskspec", f"vda,file={overlay}")
        reader = guest("reader", [Disk(web.disk, readonly=True)])
        with migrating(web.guest, node1, node2):
            words = node2.refused(reader)
            assert "web" in words, words
        eventually(lambda: not node2.runs(web.guest), "it has not come")
        assert "web" in node2.refused(reader)


def test_a_lost_lease_is_the_matter_of_its_guest(node1: Host, images: Images) -> None:
    """libvirt died while a guest started, and its leases are not what they were: others start all the same."""
    web = guest("web", [images.raw("web.img")])
    node1.start(web)
    (record,) = records(node1)
    wants = [dict(want, lver=want["lver"] + 1) for want in record["wants"]]
    write_record(node1, dict(record, state="held", qemu=None, owner="host", libvirtd=[1, 1], wants=wants))
    node1.start(guest("other", [images.raw("other.img")]))


def test_saved_before_it_was_guarded_and_failed_once(node1: Host, images: Images) -> None:
    """The first attempt raised the version of its leases, and nobody wrote."""
    for number in range(200):
        images.raw(f"filler{number}", size=512)
    web = guest("web", [images.raw("web.img")])
    node1.write(CONF, "[guard]\nmode = off\n")
    try:
        node1.define(web)
        node1.virsh("start", "web")
        node1.virsh("managedsave", "web")
    finally:
        node1.run("rm", CONF)
    hook = node1.path("/etc/libvirt/hooks/qemu.d/98-no")
    with open(hook, "w", encoding="utf-8") as file:
        file.write('#!/bin/sh\ncat\n[ "$2" != start ] || exit 1\n')
    os.chmod(hook, 0o755)
    assert node1.virsh("start", "web", check=False).status
    os.unlink(hook)
    node1.virsh("start", "web")


def test_two_guests_share_memory(node1: Host, images: Images) -> None:
    """What QEMU has open and maps for it is there to be shared, and no disk."""
    shared = "<shmem name='rig-shared'><model type='ivshmem-plain'/><size unit='M'>1</size></shmem>"
    for name in ("one", "two"):
        it = guest(name, [images.raw(name)], devices=shared)
        node1.start(it)
        assert node1.runs(it)
    words = [json.loads(line)["event"] for line in node1.read("/var/log/vmguard/events.jsonl").splitlines()[-5:]]
    assert "surprise" not in words, words
