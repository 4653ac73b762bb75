# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard audit`: who held what when; what else was done to it; what nobody saw."""

import json
import os
from typing import Any, Dict, List

from agents import watched
from conftest import Images
from guests import SCSI, Disk, guest
from hosts import Host, command, eventually
from moves import migrate, settled
from test_agent import attach, claimed, not_claimed


def audit(host: Host, *words: str) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in host.vmguard("audit", "--json", *words).out.splitlines()]


def spans(host: Host, disk: str, here: bool = True) -> List[Dict[str, Any]]:
    # A file of an earlier test may have had the same inode, and is the same storage object by that.
    found = [one for one in audit(host, "--held", "--disk", disk) if one["path"] == disk]
    return [{**one, "over": one["until"] is not None} for one in found if not here or one["host"] == host.name]


def test_the_life_of_a_disk(node1: Host, node2: Host, images: Images) -> None:
    disk, plugged = images.raw("web.img"), images.raw("plugged.img")
    web = guest("web", [disk], devices=SCSI)
    node1.start(web)
    node2.refused(guest("thief", [disk]))
    (span,) = spans(node1, disk)
    assert (span["domain"], span["host"], span["mode"], span["over"]) == ("web", "node1", "exclusive", False)
    refusal = [one for one in audit(node2, "--disk", disk) if one["event"] == "refused"]
    assert len(refusal) == 1 and '"web" on host node1' in refusal[0]["text"]
    with watched(node1):
        attach(node1, web, Disk(plugged, bus="scsi"), "sda")
        claimed(node1, web, plugged)
        node1.virsh("detach-disk", web.uuid, "sda")
        not_claimed(node1, web, plugged)
        eventually(lambda: spans(node1, plugged)[0]["over"], "it is written down")
        # The other host knows, some seconds later.
        eventually(lambda: [one["host"] for one in spans(node2, plugged, here=False)] == ["node1"], "it is shared", within=30)
        assert spans(node1, plugged)[0]["ended"] == "given-back" and not spans(node1, disk)[0]["over"]
    migrate(web, node1, node2)
    settled(node2, web)
    (here,) = spans(node1, disk)
    assert here["over"] and here["ended"] == "released"
    (there,) = spans(node2, disk)
    assert not there["over"] and there["since"] < here["until"], "it is covered at both ends"
    eventually(lambda: [one for one in audit(node2, "--domain", "web") if one["event"] == "handover"], "is written down")
    node2.destroy(web)
    assert spans(node2, disk)[0]["over"]
    words = node1.vmguard("audit", "--disk", disk).out
    assert "held" in words and "released" in words and disk in words
    picture = node1.vmguard("audit", "--disk", disk, "--svg", "-").out
    assert picture.startswith("<svg") and "web" in picture
    assert not audit(node1, "--since", "2020-01-01", "--host", "elsewhere")


def test_it_follows(node1: Host, images: Images) -> None:
    disk = images.raw("web.img")
    out = node1.spawn("/bin/sh", "-c", f"exec vmguard audit --follow --json --domain web --since 1s >{images.path('out')}")
    try:
        eventually(lambda: os.path.exists(images.path("out")), "it listens")
        web = guest("web", [disk])

        def said() -> List[str]:
            with open(images.path("out"), encoding="ascii") as file:
                return [json.loads(line)["event"] for line in file if line.endswith("\n")]

        def held() -> bool:
            node1.start(web)
            node1.destroy(web)
            return "released" in said()

        eventually(held, "it says what happens")
        assert "held" in said()
    finally:
        for pid, words in node1.processes():
            if "audit" in words and "--follow" in words:
                node1.run("/bin/kill", str(pid), check=False)
        out.communicate()


def test_what_others_do_to_it(node1: Host, images: Images) -> None:
    """Written by somebody, whether he is still there or not; resized; mounted."""
    disk = images.block("lun")
    web = guest("web", [Disk(disk, "block")])
    node1.start(web)
    with watched(node1) as (agent,):
        agent.tells("watching")
        agent.forget()

        def written() -> bool:
            node1.shell(f"dd if=/dev/zero of={disk} bs=512 seek=3000 count=1 conv=notrunc status=none")
            return bool(agent.events("opened"))

        eventually(written, "a writer is seen", every=0.5)
        assert agent.events("opened")[0]["path"] == disk and agent.events("opened")[0]["domain"] == "web"
        agent.forget()
        writer = node1.spawn("/bin/sh", "-c", f"exec 3>>{disk}; exec sleep 60")
        told = eventually(lambda: [one for one in agent.events("opened") if one.get("program")], "who it is")
        assert told[0]["program"] in ("sh", "sleep")
        for pid, words in node1.processes():
            if words[:2] == ["sleep", "60"]:
                node1.run("/bin/kill", str(pid))
        writer.communicate()
        agent.forget()
        os.truncate(images.path("lun.backing"), 4 << 20)
        loop = next(one for one in images.cluster.loops if os.stat(one).st_rdev == os.stat(node1.path(disk)).st_rdev)
        agent.kill()
        command("losetup", "-c", loop)
        agent.start()
        resized = agent.tells("resized")
        assert resized["size"] == 4 << 20 and resized["domain"] == "web"
        assert node1.state(web) == "running"


def test_what_is_done_to_files(node1: Host, node2: Host, images: Images) -> None:
    """An image that somebody had open before the agent came, a base that guests share, a name that is taken away."""
    disk, base = images.raw("web.img"), images.raw("base.iso")
    readers = [guest(name, [Disk(base, readonly=True), images.raw(f"{name}.img")]) for name in ("one", "two")]
    web = guest("web", [disk])
    for one in (web, *readers):
        node1.start(one)
    before = node1.spawn("/bin/sh", "-c", f"exec 3>>{disk}; exec sleep 60")
    try:
        with watched(node1) as (agent,):
            assert agent.tells("opened", within=30)["path"] == disk
            agent.forget()

            def written() -> bool:
                # While a guest is looked at, nobody knows whether it was its QEMU that has closed a file.
                node1.shell(f"dd if=/dev/zero of={base} bs=512 count=1 conv=notrunc status=none")
                return bool(agent.events("opened"))

            eventually(written, "a writer is seen", every=1)
            assert {one["path"] for one in agent.events("opened")} == {base}
            node1.shell(f"rm {disk}")
            assert agent.tells("removed")["path"] == disk
            others = [one for one in agent.events("opened", "removed", "renamed") if one["path"] not in (disk, base)]
            assert not others, others
            assert not [one for one in agent.events("opened") if "qemu" in one.get("program", "")], "a guest that shares it"
    finally:
        for pid, words in node1.processes():
            if words[:2] == ["sleep", "60"]:
                node1.run("/bin/kill", str(pid))
        before.communicate()


def test_gaps_are_marked(node1: Host, images: Images) -> None:
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    with watched(node1) as (agent,):
        agent.tells("watching")
        agent.forget()
        agent.kill()
        node1.run("touch", "-d", "1 minute ago", "/run/vmguard/watching.json")
        agent.start()
        told = agent.tells("unseen")
        assert 59 < told["to"] - told["from"] < 75
        assert [one for one in audit(node1, "--disk", disk) if one["event"] == "unseen"], "whatever is asked for"
        agent.forget()
        agent.kill("TERM")
        agent.start()
        agent.tells("watching")
        assert not agent.events("unseen"), "it was away for less than its own pause"




def test_rotation_loses_nothing(node1: Host, images: Images) -> None:
    node1.shell("cp -a /var/log/vmguard /var/log/vmguard.kept")
    try:
        node1.shell("truncate -s 17M /var/log/vmguard/events.jsonl; echo >>/var/log/vmguard/events.jsonl")
        web = guest("web", [images.raw("web.img")])
        node1.start(web)
        node1.destroy(web)
        names = node1.shell("ls /var/log/vmguard").out.split()
        assert "events.jsonl.1" in names and "events.jsonl" in names
        found = [one["event"] for one in audit(node1, "--domain", web.uuid, "--host", "node1")]
        assert found == ["held", "released"]
    finally:
        node1.shell("rm -rf /var/log/vmguard && mv /var/log/vmguard.kept /var/log/vmguard")


PLUGIN = "import sys; from vmguard.cli.plugin import main; sys.exit(main())"


def test_figures_of_a_host(node1: Host, node2: Host, images: Images) -> None:
    """`vmguard metrics` and check_vmguard, of a host that is well, and of one that is not."""

    def figures() -> Dict[str, float]:
        lines = node1.vmguard("metrics", check=False).out.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def check() -> str:
        # On a machine that is busy a renewal takes longer than three of the io_timeouts of the rig.
        done = node1.run("/usr/bin/python3", "-c", PLUGIN, "-w", "60", "-c", "120", check=False)
        line = done.out.splitlines()[0]
        assert line.split()[1] == ("OK", "WARNING", "CRITICAL", "UNKNOWN")[done.status], done
        print(line)
        return line

    node1.vmguard("doctor", "--fix", check=False)  # other tests take the hook away, and put it back
    before = figures()
    web, theirs = guest("web", [images.raw("web.img")], devices=SCSI), images.block("theirs")
    with watched(node1):
        node1.start(web)
        eventually(lambda: "VMGUARD OK - 1 guests" in check(), "all is well")
        node1.refused(guest("thief", [images.path("web.img")]))
        node2.start(guest("holder", [Disk(theirs, "block")]))
        attach(node1, web, Disk(theirs, "block", bus="scsi"), "sda")
        eventually(lambda: "VMGUARD CRITICAL" in check() and "writes what others have" in check(), "it is not well")
        now = eventually(lambda: figures() if figures()["vmguard_contained_total"] else None, "it is contained")
        assert now["vmguard_refusals_total"] == before["vmguard_refusals_total"] + 1
        assert now["vmguard_leases_contested"] == 1 and now["vmguard_conflicts_total"] > before["vmguard_conflicts_total"]
        assert now["vmguard_hook_prepare_seconds_count"] >= before["vmguard_hook_prepare_seconds_count"] + 2
        assert now["vmguard_lockspace_joined"] == 1 and now["vmguard_lockspace_renewal_age_seconds"] < 20
        with node1.frozen("libvirtd"):
            assert figures()["vmguard_guests"] == 1
    assert "vmguardd does not run" in check() or "CRITICAL" in check()
