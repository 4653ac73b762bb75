# SPDX-License-Identifier: LGPL-2.1-or-later
"""vmguardd: what hooks never see is noticed, claimed, given back; and contained where somebody else has it."""

import json
import os
import time
from typing import Any, Dict, List

import pytest
from agents import Agent, watched
from conftest import Images
from guests import SCSI, Disk, Guest, MiB, guest
from hosts import Host, command, eventually


def record_of(host: Host, it: Guest) -> Dict[str, Any]:
    """What the host has written down of a guest."""
    folder = host.path("/run/vmguard/instances")
    for entry in os.listdir(folder):
        if entry.startswith(it.uuid) and entry.endswith(".json") and entry.count(".") == 2:
            text = host.read(f"/run/vmguard/instances/{entry}")
            return dict(json.loads(text)) if text else {}
    return {}


def claims(host: Host, it: Guest) -> Dict[str, str]:
    """The paths that a guest has leases for, and how."""
    return {
        want["claim"]["path"]: want["claim"]["mode"]
        for want in record_of(host, it).get("wants", ())
        if not want["missing"] and not want["claim"]["why"].startswith("it lies")
    }


def claimed(host: Host, it: Guest, path: str, mode: str = "exclusive", within: float = 15) -> None:
    """Wait until a guest has a lease on a path."""
    eventually(lambda: claims(host, it).get(path) == mode, f"{path} is claimed {mode}", within, every=0.01)


def not_claimed(host: Host, it: Guest, path: str, within: float = 30) -> None:
    eventually(lambda: path not in claims(host, it), f"{path} is given back", within)


def quiet(agent: Agent) -> None:
    """The agent has had its look at everything: nothing is left that `verify` finds."""
    eventually(lambda: not agent.host.vmguard("verify", check=False).status, "all that is open is claimed")


def attach(host: Host, it: Guest, disk: Disk, target: str, check: bool = True) -> int:
    return host.virsh("attach-device", it.uuid, "/dev/stdin", stdin=disk.xml(target), check=check).status


def with_scsi(images: Images, name: str = "web") -> Guest:
    return guest(name, [images.raw(name + ".img")], devices=SCSI)


# -- noticed, claimed, given back --------------------------------------------------------------------------------------


def test_a_hot_plugged_disk(node1: Host, node2: Host, images: Images) -> None:
    web, plugged = with_scsi(images), images.raw("plugged.img")
    node1.start(web)
    with watched(node1) as (agent,):
        attach(node1, web, Disk(plugged, bus="scsi"), "sda")
        claimed(node1, web, plugged)
        assert '"web"' in node2.refused(guest("thief", [plugged]))
        assert agent.tells("surprise")["after"] < 2
        mine = [held for held in node1.leases() if held.pid == node1.qemu_pid(web)]
        assert len(mine) == 3, "the domain, its disk, and what was plugged are QEMU's own"
        node1.virsh("detach-disk", web.uuid, "sda")
        not_claimed(node1, web, plugged)
        assert agent.tells("given-back")["path"] == plugged
        node2.start(guest("next", [plugged]))
        assert node1.state(web) == "running" and not agent.events("conflict", "alarm")
    assert len([held for held in node1.leases() if held.pid == node1.qemu_pid(web)]) == 2


def test_a_block_device_that_was_written_through_the_cache(node1: Host, node2: Host, images: Images) -> None:
    """It has a drain mark for as long as it is plugged; unplugged, it is written out before anybody else may have it."""
    web, plugged = with_scsi(images), images.block("plugged")
    node1.write("/etc/vmguard/vmguard.conf.d/60-drain.conf", "[leases]\ndrain = all\n")
    try:
        node1.start(web)
        with watched(node1) as (agent,):
            attach(node1, web, Disk(plugged, "block", bus="scsi"), "sda")
            claimed(node1, web, plugged)
            marks = [want["drain"] for want in record_of(node1, web)["wants"] if want["claim"]["path"] == plugged]
            assert any(marks), "nothing says that its writes may be on their way"
            node1.virsh("detach-disk", web.uuid, "sda")
            not_claimed(node1, web, plugged)
            assert not agent.events("not-drained")
        node2.start(guest("next", [Disk(plugged, "block")]))
    finally:
        node1.run("rm", "/etc/vmguard/vmguard.conf.d/60-drain.conf")


def test_a_shareable_disk_is_shared(node1: Host, node2: Host, images: Images) -> None:
    """What QEMU opens for writing does not show that guests share it; the definition does."""
    shared = images.block("shared")
    other = guest("other", [Disk(shared, "block", shareable=True)])
    node2.start(other)
    web = with_scsi(images)
    node1.start(web)
    with watched(node1) as (agent,):
        attach(node1, web, Disk(shared, "block", shareable=True, bus="scsi"), "sda")
        claimed(node1, web, shared, "shared")
        quiet(agent)
        assert not agent.events("conflict", "alarm")
    assert node1.state(web) == "running"


def test_a_medium_is_changed(node1: Host, node2: Host, images: Images) -> None:
    iso, other = images.raw("tools.iso"), images.raw("other.iso")
    web = guest("web", [images.raw("web.img"), Disk(iso, readonly=True, device="cdrom")])
    node1.start(web)
    with watched(node1) as (agent,):
        node1.virsh("change-media", web.uuid, "hda", other, "--update")
        claimed(node1, web, other, "shared")
        not_claimed(node1, web, iso)
        assert '"web"' in node2.refused(guest("writer", [other]))
        node2.start(guest("first", [iso]))
        node1.virsh("change-media", web.uuid, "hda", "--eject")
        not_claimed(node1, web, other)
        assert not agent.events("conflict", "alarm")


def test_snapshots_copies_and_commits(node1: Host, node2: Host, images: Images) -> None:
    """What block jobs open is claimed while they run and afterwards; what they leave behind is given back."""
    disk = images.qcow2("web.qcow2")
    web = guest("web", [Disk(disk, format="qcow2")])
    node1.start(web)
    top, copy = images.path("web.s1"), images.path("copy.qcow2")
    with watched(node1) as (agent,):
        node1.virsh("snapshot-create-as", web.uuid, "s1", "--disk-only", "--no-metadata")
        claimed(node1, web, top)
        assert claims(node1, web)[disk] == "exclusive", "it is a backing file now, and nobody else's"
        node1.virsh("blockcopy", web.uuid, "vda", copy, "--wait", "--transient-job")
        claimed(node1, web, copy)
        node1.virsh("blockjob", web.uuid, "vda", "--pivot")
        not_claimed(node1, web, top)
        assert claims(node1, web)[copy] == "exclusive"
        node1.virsh("snapshot-create-as", web.uuid, "s2", "--disk-only", "--no-metadata")
        claimed(node1, web, images.path("copy.s2"))
        node1.virsh("blockcommit", web.uuid, "vda", "--active", "--wait", "--pivot")
        not_claimed(node1, web, images.path("copy.s2"))
        node1.virsh("snapshot-create-as", web.uuid, "s3", "--disk-only", "--no-metadata")
        claimed(node1, web, images.path("copy.s3"))
        node1.virsh("blockpull", web.uuid, "vda", "--wait")
        not_claimed(node1, web, copy)
        quiet(agent)
        assert not agent.events("conflict", "alarm")
        assert '"web"' in node2.refused(guest("thief", [Disk(images.path("copy.s3"), format="qcow2")]))
        assert node1.state(web) == "running"


def test_a_commit_into_what_is_shared(node1: Host, images: Images) -> None:
    base = images.raw("base.img")
    top = images.qcow2("top.qcow2", base)
    web = guest("web", [Disk(top, format="qcow2")])
    node1.start(web)
    assert claims(node1, web)[base] == "shared"
    with watched(node1) as (agent,):
        node1.virsh("blockcommit", web.uuid, "vda", "--active")
        claimed(node1, web, base)
        assert agent.tells("surprise")


@pytest.mark.parametrize("how", ["before the guard", "hook missing"])
def test_guests_without_leases(how: str, node1: Host, node2: Host, images: Images) -> None:
    disk, hook = images.raw("web.img"), "/etc/libvirt/hooks/qemu.d/50-vmguard"
    web = guest("web", [disk])

    def start_past_it() -> None:
        node1.run("chmod", "-x", hook)
        try:
            node1.start(web)
        finally:
            node1.run("chmod", "+x", hook)

    if how == "before the guard":
        start_past_it()
    with watched(node1) as (agent,):
        if how != "before the guard":
            start_past_it()
        assert agent.tells("adopted")["after"] < 5
        claimed(node1, web, disk)
        assert '"web"' in node2.refused(guest("thief", [disk]))
        quiet(agent)
        node1.destroy(web)
        eventually(lambda: not node1.leftovers(), "its leases are free", within=5)
        node2.start(guest("next", [disk]))


def test_a_qemu_that_libvirt_does_not_know(node1: Host, node2: Host, images: Images) -> None:
    disk, uuid = images.raw("web.img"), "11111111-2222-3333-4444-555555555555"
    words = ["-name", "plain", "-uuid", uuid, "-display", "none", "-nodefaults", "-S"]
    with watched(node1) as (agent,):
        qemu = node1.spawn("qemu-system-x86_64", *words, "-drive", f"file={disk},format=raw,if=virtio")
        try:
            agent.tells("adopted")
            eventually(lambda: "plain" in node2.try_start(guest("thief", [disk])).err, "its disk is kept")
        finally:
            for pid, arguments in node1.processes():
                if uuid in arguments:
                    node1.run("/bin/kill", "-KILL", str(pid))
            qemu.wait()
        eventually(lambda: not node1.leftovers(), "the agent has given back what it had", within=15)


# -- contained ---------------------------------------------------------------------------------------------------------


def contained(agent: Agent, web: Guest, began: float, what: str) -> None:
    """Wait until it is paused, and say how long it took."""
    eventually(lambda: agent.host.state(web) == "paused", "it is paused", every=0.01)
    print(f"DELAY {what}: {time.monotonic() - began:.2f} s")
    assert agent.tells("conflict")["domain"] == web.name
    told = agent.tells("contained")
    assert told["after"] < 5 and [one["path"] for one in told["disks"]] == [agent.tells("conflict")["path"]], told


@pytest.mark.parametrize("policy", ["alarm", "pause", "detach"])
@pytest.mark.parametrize("where", ["same host", "other host"])
def test_a_hot_plugged_disk_that_somebody_else_has(
    policy: str, where: str, node1: Host, node2: Host, images: Images
) -> None:
    theirs = images.block("theirs")
    holder, on = guest("holder", [Disk(theirs, "block")]), node1 if where == "same host" else node2
    on.start(holder)
    # On one host by another node of the same device, or QEMU's own locks would say no.
    mine = images.cluster.block_device("mine", images.path("theirs.backing")) if where == "same host" else theirs
    web = with_scsi(images)
    node1.start(web)
    with watched(node1, conflict=policy) as (agent,):
        began = time.monotonic()
        attach(node1, web, Disk(mine, "block", bus="scsi"), "sda")
        if policy == "pause":
            contained(agent, web, began, f"hot-plug, {where}, pause")
            # Whoever lets it go on without taking the disk away has it paused again.
            node1.virsh("resume", web.uuid)
            eventually(lambda: node1.state(web) == "paused", "it is paused again", within=20)
            node1.virsh("detach-disk", web.uuid, "sda")
            assert "virsh resume web" in agent.tells("conflict-over")["text"], "nobody else lets it go on"
            node1.virsh("resume", web.uuid)
            assert not node1.vmguard("verify", check=False).status
        told = agent.tells("conflict")
        assert '"holder"' in told["text"] and told["domain"] == "web" and told["path"] == mine
        if policy == "detach":
            eventually(lambda: mine not in node1.virsh("domblklist", web.uuid).out, "it is taken away", every=0.01)
            print(f"DELAY hot-plug, {where}, detach: {time.monotonic() - began:.2f} s")
            assert "detached sda" in agent.tells("contained")["text"]
            agent.tells("conflict-over")
        assert node1.state(web) == "running" and on.state(holder) == "running"
    assert mine not in claims(node1, web) and theirs in claims(on, holder)


def test_detach_of_what_it_does_not_let_go_of_pauses(node1: Host, node2: Host, images: Images) -> None:
    theirs = images.block("theirs")
    node2.start(guest("holder", [Disk(theirs, "block")]))
    web = guest("web", [images.raw("web.img")])
    node1.start(web)
    with watched(node1, conflict="detach") as (agent,):
        attach(node1, web, Disk(theirs, "block"), "vdb")  # virtio: a guest without an operating system does nothing
        eventually(lambda: node1.state(web) == "paused", "it is paused")
        assert "let go" in agent.tells("contained")["text"]


def test_a_snapshot_onto_a_name_that_is_held(node1: Host, node2: Host, images: Images) -> None:
    """By a file that is there already, and a guest of the other host has."""
    disk, held = images.qcow2("web.qcow2"), images.block("held", size=4 * MiB)
    command("qemu-img", "create", "-q", "-f", "qcow2", images.path("held.backing"), "2M")
    node2.start(guest("holder", [Disk(held, "block", format="qcow2")]))
    web = guest("web", [Disk(disk, format="qcow2")])
    node1.start(web)
    with watched(node1) as (agent,):
        began = time.monotonic()
        disks = f"<disk name='vda' snapshot='external' type='block'><source dev='{held}'/></disk>"
        xml = f"<domainsnapshot><disks>{disks}</disks></domainsnapshot>"
        node1.virsh("snapshot-create", web.uuid, "/dev/stdin", "--disk-only", "--no-metadata", stdin=xml)
        contained(agent, web, began, "snapshot onto a held name")


def test_a_copy_to_an_image_that_is_held(node1: Host, node2: Host, images: Images) -> None:
    disk, held = images.raw("web.img", size=8 * MiB), images.block("held", size=8 * MiB)
    node2.start(guest("holder", [Disk(held, "block")]))
    web = guest("web", [disk])
    node1.start(web)
    with watched(node1, conflict="detach") as (agent,):
        began = time.monotonic()
        job = ["--reuse-external", "--transient-job", "--blockdev", "--format", "raw", "--bandwidth", "1"]
        node1.virsh("blockcopy", web.uuid, "vda", held, *job)
        eventually(lambda: held not in node1.virsh("dumpxml", web.uuid).out, "it is aborted", every=0.01)
        print(f"DELAY copy to a held image, detach: {time.monotonic() - began:.2f} s")
        assert "aborted the copy of vda" in agent.tells("contained")["text"]
        assert node1.state(web) == "running"


def test_a_guest_that_is_paused_does_not_go_on_to_copy(node1: Host, node2: Host, images: Images) -> None:
    """A block job does not need the guest's processors."""
    disk, held = images.raw("web.img", size=64 * MiB), images.block("held", size=64 * MiB)
    command("dd", "if=/dev/urandom", f"of={disk}", "bs=1M", "count=64", "conv=notrunc", "status=none")
    node2.start(guest("holder", [Disk(held, "block")]))
    web = guest("web", [disk])
    node1.start(web)
    with watched(node1) as (agent,):
        job = ["--reuse-external", "--transient-job", "--blockdev", "--format", "raw", "--bandwidth", "8"]
        node1.virsh("blockcopy", web.uuid, "vda", held, *job)
        told = agent.tells("contained")
        assert node1.state(web) == "paused"
        written = command("sha256sum", node1.path(held))
        time.sleep(5)
        assert command("sha256sum", node1.path(held)) == written
        assert held not in node1.virsh("dumpxml", web.uuid).out
        assert "paused" in told["text"] and "block job of vda" in told["text"]
        agent.tells("conflict-over")
        node1.virsh("resume", web.uuid)
        assert node1.state(web) == "running"


def test_a_commit_of_what_is_not_the_topmost(node1: Host, node2: Host, images: Images) -> None:
    """The definition of the guest does not say where it writes to."""
    base = images.block("base", size=128 * MiB)
    command("dd", "if=/dev/zero", f"of={images.path('base.backing')}", "bs=1M", "count=128", "conv=notrunc", "status=none")
    middle, top, other = (images.qcow2(f"{name}.qcow2", size=128 * MiB) for name in ("middle", "top", "other"))
    command("qemu-io", "-f", "qcow2", "-c", "write -P 170 0 128M", middle)
    for upper, lower, kind in ((middle, base, "raw"), (top, middle, "qcow2"), (other, base, "raw")):
        command("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", lower, "-F", kind, upper)
    web = guest("web", [Disk(top, format="qcow2")])
    node1.start(web)
    node2.start(guest("other", [Disk(other, format="qcow2")]))
    with watched(node1) as (agent,):
        node1.virsh("blockcommit", web.uuid, "vda", "--top", middle, "--base", base, "--bandwidth", "8")
        assert "aborted the block job of vda" in agent.tells("contained")["text"]
        assert not node1.virsh("blockjob", web.uuid, "vda", "--info", "--raw").out.strip()


def test_a_copy_of_a_guest_that_is_paused_already(node1: Host, node2: Host, images: Images) -> None:
    """By an administrator; and libvirt does not answer: as it is paused, nothing would seem to be left to do."""
    disk, held = images.raw("web.img", size=8 * MiB), images.block("held", size=8 * MiB)
    node2.start(guest("holder", [Disk(held, "block")]))
    web = guest("web", [disk])
    node1.start(web)
    node1.virsh("suspend", web.uuid)
    node1.virsh("blockcopy", web.uuid, "vda", held, "--reuse-external", "--transient-job", "--blockdev", "--format", "raw")
    with node1.frozen("libvirtd"), watched(node1) as (agent,):
        assert "stopped its process" in agent.tells("contained", within=30)["text"]


def test_a_commit_into_what_another_guest_reads(node1: Host, node2: Host, images: Images) -> None:
    base = images.block("base", size=4 * MiB)
    tops = [images.qcow2(f"{name}.qcow2") for name in ("web", "other")]
    for top in tops:
        command("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", base, "-F", "raw", top)
    web, other = (guest(name, [Disk(top, format="qcow2")]) for name, top in zip(("web", "other"), tops))
    node1.start(web)
    node2.start(other)
    with watched(node1) as (agent,):
        began = time.monotonic()
        node1.virsh("blockcommit", web.uuid, "vda", "--active")
        contained(agent, web, began, "commit into what another guest reads")
        assert claims(node1, web)[base] == "shared", "what it reads it by is still there"


def test_a_guest_without_leases_beside_one_that_has_them(node1: Host, node2: Host, images: Images) -> None:
    theirs, hook = images.block("theirs"), "/etc/libvirt/hooks/qemu.d/50-vmguard"
    holder, web = guest("holder", [Disk(theirs, "block")]), guest("web", [Disk(theirs, "block")])
    node2.start(holder)
    with watched(node1) as (agent,):
        node1.run("chmod", "-x", hook)
        try:
            began = time.monotonic()
            node1.start(web)
        finally:
            node1.run("chmod", "+x", hook)
        contained(agent, web, began, "started past the hook")
        node2.destroy(holder)
        assert "virsh resume web" in agent.tells("conflict-over")["text"]
        assert claims(node1, web)[theirs] == "exclusive"


def test_what_an_override_let_pass_is_taken_when_it_is_free(node1: Host, node2: Host, images: Images) -> None:
    """It was about one start: whoever wants the disk next is refused, and the guest was left in peace meanwhile."""
    disk = Disk(images.block("theirs"), "block", driver="cache='none'")
    holder, web = guest("holder", [disk]), guest("web", [disk])
    node2.start(holder)
    node1.define(web)
    with watched(node1) as (agent,):
        node1.vmguard("override", "web", "--reason", "for a test")
        node1.virsh("start", web.uuid)
        time.sleep(8)
        assert node1.state(web) == "running" and claims(node1, web).get(disk.path) is None
        assert not agent.events("conflict", "contained", "alarm")
        node2.destroy(holder)
        agent.tells("conflict-over")
        assert claims(node1, web)[disk.path] == "exclusive"
        assert '"web"' in node2.refused(holder)
        assert "runs without leases" not in node1.vmguard("status", check=False).out


def test_audit_mode_only_says_so(node1: Host, node2: Host, images: Images) -> None:
    theirs = images.block("theirs")
    node2.start(guest("holder", [Disk(theirs, "block")]))
    web = with_scsi(images)
    node1.start(web)
    node1.write("/etc/vmguard/vmguard.conf.d/60-audit.conf", "[guard]\nmode = audit\n")
    try:
        with watched(node1) as (agent,):
            attach(node1, web, Disk(theirs, "block", bus="scsi"), "sda")
            agent.tells("conflict")
            agent.tells("conflict")
            assert node1.state(web) == "running" and not agent.events("contained")
    finally:
        node1.run("rm", "/etc/vmguard/vmguard.conf.d/60-audit.conf")


# -- daemons that come and go ------------------------------------------------------------------------------------------


def test_libvirtd_restarted_twice(node1: Host, images: Images) -> None:
    web, plugged = with_scsi(images), images.raw("plugged.img")
    node1.start(web)
    with watched(node1) as (agent,):
        for _ in range(2):
            node1.restart_libvirtd()
            attach(node1, web, Disk(plugged, bus="scsi"), "sda")
            claimed(node1, web, plugged)
            node1.virsh("detach-disk", web.uuid, "sda")
            not_claimed(node1, web, plugged)
        assert node1.state(web) == "running" and not agent.events("conflict", "alarm")


def test_libvirtd_that_hangs(node1: Host, node2: Host, images: Images) -> None:
    """It goes on looking; and a guest that libvirt does not pause is stopped all the same."""
    theirs, hook = images.block("theirs"), "/etc/libvirt/hooks/qemu.d/50-vmguard"
    holder, web = guest("holder", [Disk(theirs, "block")]), guest("web", [Disk(theirs, "block")])
    node2.start(holder)
    node1.run("chmod", "-x", hook)
    try:
        node1.start(web)
    finally:
        node1.run("chmod", "+x", hook)
    with node1.frozen("libvirtd"):
        with watched(node1) as (agent,):
            agent.tells("conflict")
            assert "stopped its process" in agent.tells("contained", within=40)["text"]
            pid = node1.qemu_pid(web)
            assert "\nState:\tT" in node1.read(f"/proc/{pid}/status")
    node1.run("/bin/kill", "-CONT", str(pid))
    node1.destroy(web)


def test_sanlock_gone_and_back(node1: Host, node2: Host, images: Images) -> None:
    web, plugged = with_scsi(images), images.raw("plugged.img")
    node1.start(web)
    with watched(node1) as (agent,):
        node1.kill("sanlock")
        attach(node1, web, Disk(plugged, bus="scsi"), "sda")
        agent.tells("not-inspected")
        node1.start_sanlock()
        agent.tells("rejoined", within=60)  # nobody ran `vmguard join`
        claimed(node1, web, plugged, within=30)
        assert '"web"' in node2.refused(guest("thief", [plugged]))
        assert node1.state(web) == "running" and not agent.events("conflict")


def test_a_host_that_was_made_to_leave_stays_away(node1: Host) -> None:
    lost = "from vmguard.config import load; from vmguard.membership import lost; print(lost(load()))"
    try:
        node1.vmguard("leave")
        assert node1.run("/usr/bin/python3", "-c", lost).out.split() == ["False"]
        (name,) = (node1.vmguard("join", within=60), node1.lockspaces())[1]
        assert node1.run("/usr/bin/python3", "-c", lost).out.split() == ["False"]
        node1.run("sanlock", "client", "rem_lockspace", "-s", f"{name}:1:{node1.cluster.store}/lockspace:0", within=60)
        assert node1.run("/usr/bin/python3", "-c", lost).out.split() == ["True"]
        with watched(node1) as (agent,):
            agent.tells("rejoined", within=60)
            assert node1.lockspaces() == [name]
    finally:
        node1.vmguard("join", within=60)


def test_without_it_the_guard_holds(node1: Host, node2: Host, images: Images) -> None:
    """It is killed: what it has claimed stays claimed, starts and ends need nobody."""
    web, plugged = with_scsi(images), images.raw("plugged.img")
    node1.start(web)
    with watched(node1) as (agent,):
        attach(node1, web, Disk(plugged, bus="scsi"), "sda")
        claimed(node1, web, plugged)
        agent.kill()
        assert '"web"' in node2.refused(guest("thief", [plugged]))
        node1.destroy(web)
        assert not node1.leftovers()
        node2.start(guest("next", [plugged]))
        agent.start()




# -- definitions -------------------------------------------------------------------------------------------------------


def test_definitions_are_judged_when_they_change(node1: Host, images: Images) -> None:
    """Defined, edited, cloned; attached with --config, of which libvirt 9.0.0 tells nobody; and undefined."""
    disk, extra = images.raw("web.img"), images.raw("extra.img")
    web, clone = guest("web", [disk]), guest("clone", [disk])
    third = guest("third", [images.raw("third.img")])
    out = images.path("said")
    node1.write("/var/lib/vmguard/say", f"#!/bin/sh\ncat >>{out}\n")
    node1.run("chmod", "755", "/var/lib/vmguard/say")
    node1.write("/etc/vmguard/vmguard.conf.d/60-say.conf", "[agent]\ncommand = /var/lib/vmguard/say\n")
    try:
        with watched(node1) as (agent,):
            node1.define(web)
            node1.define(clone)
            def told(domain: str) -> List[Dict[str, Any]]:
                return [one for one in agent.events("lint") if one["domain"] == domain and one["severity"] == "error"]

            assert '"web"' in eventually(lambda: told("clone"), "the clone is judged")[0]["text"]
            eventually(lambda: "definition: clone" in node1.vmguard("status", check=False).out, "status says it")
            eventually(lambda: os.path.exists(out) and '"lint"' in open(out).read(), "the command was run")
            node1.define(third)
            agent.forget()
            node1.virsh("attach-disk", "third", extra, "vdb", "--config")
            node1.virsh("attach-disk", "third", disk, "vdc", "--config")
            eventually(lambda: told("third"), "what was attached is judged")
            for it in (third, clone):
                node1.virsh("undefine", it.name)
                status = f"definition: {it.name}"
                eventually(lambda status=status: status not in node1.vmguard("status", check=False).out, "gone")  # type: ignore[misc]
    finally:
        node1.run("rm", "-f", "/etc/vmguard/vmguard.conf.d/60-say.conf")
