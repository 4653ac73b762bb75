# SPDX-License-Identifier: LGPL-2.1-or-later
"""What udev knows of volumes that guests hold, and what their host keeps its hands off; the audit trail on both nodes."""

import json
import os
from typing import Any, Dict, Iterator, List

import pytest
from conftest import Volumes
from guarded import Guarded, Volume
from guests import SCSI, Disk, guest
from hosts import eventually
from nodes import Node


def block(path: str, **more: str) -> Disk:
    return Disk(path, "block", driver="cache='none'", **more)  # type: ignore[arg-type]


def properties(node: Node, volume: Volume) -> Dict[str, str]:
    """What udev knows of it on a node, when it has dealt with everything."""
    out = node.shell(f"udevadm settle; udevadm info --query=property --name={volume.path}").out
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def tagged(found: Dict[str, str]) -> bool:
    return "vmguard" in found.get("CURRENT_TAGS", "").split(":")


def audit(node: Node, *words: str) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in node.vmguard("audit", "--json", *words).out.splitlines()]


def watch(node: Node) -> None:
    node.shell("systemctl restart vmguardd", within=120)


@pytest.fixture(autouse=True)
def rules_are_known(rested: Guarded) -> None:
    for node in rested.hosts:
        node.shell("udevadm control --reload; systemctl daemon-reload")


# Debian gives the rules of device-mapper and LVM names of its own, by which they come at another place among all; Fedora has them
# under their makers' names.
NAMES = {"55-dm": "10-dm", "56-lvm": "11-dm-lvm", "60-persistent-storage-dm": "13-dm-disk", "69-lvm": "69-dm-lvm"}
# The rules of another distribution, or of another version of LVM: a folder with all of them, under those names.
OTHERS = os.environ.get("VMGUARD_CLUSTER_RULES", "")


@pytest.fixture(params=["debian", "fedora", *(["others"] if OTHERS else [])])
def order(request: pytest.FixtureRequest, rested: Guarded) -> Iterator[None]:
    """The places that the rules of device-mapper have among all."""
    here, there = "/usr/lib/udev/rules.d", "/etc/udev/rules.d"
    made = []
    for ours, theirs in NAMES.items() if request.param != "debian" else ():
        made += [f"{there}/{ours}.rules", f"{there}/{theirs}.rules"]
        for node in rested.hosts:
            node.shell(f"cp {here}/{ours}.rules {made[-1]}; ln -s /dev/null {made[-2]}")
    for name in sorted(os.listdir(OTHERS)) if request.param == "others" else ():
        with open(os.path.join(OTHERS, name), encoding="utf-8") as file:
            text = file.read()
        made.append(f"{there}/{name}")
        for node in rested.hosts:
            node.write(made[-1], text)
    for node in rested.hosts:
        node.shell("udevadm control --reload")
    yield
    for node in rested.hosts:
        node.shell(f"rm -f {' '.join(made)}; udevadm control --reload")


@pytest.mark.usefixtures("order")
def test_the_life_of_a_volume(rested: Guarded, node1: Node, node2: Node, volumes: Volumes) -> None:
    disk = volumes.make("web-1")
    web = guest("web", [block(disk.path)])
    before = properties(node1, disk)
    assert not tagged(before) and "VMGUARD_HELD" not in before
    node1.start(web)
    held = properties(node1, disk)
    assert tagged(held) and held["VMGUARD_DOMAIN"] == "web" and held["VMGUARD_UUID"] == web.uuid
    assert held["VMGUARD_MODE"] == "exclusive" and held["VMGUARD_IDENTITY"].startswith("lvm:") and held["UDISKS_IGNORE"] == "1"
    trigger = "udevadm trigger --settle --subsystem-match=block"
    for command in (trigger, f"systemctl restart systemd-udevd; {trigger}"):
        node1.shell(command, within=120)
        assert tagged(properties(node1, disk)), command
    assert not tagged(properties(node2, disk))
    node1.virsh("migrate", "--live", web.uuid, f"qemu+tcp://{node2.address}/system", within=240)
    eventually(lambda: tagged(properties(node2, disk)), "its new node knows", within=60, every=1)
    eventually(lambda: not tagged(properties(node1, disk)), "its old one does not any more", within=60, every=1)
    node2.destroy(web)
    after = properties(node2, disk)
    assert not tagged(after) and not any(name.startswith("VMGUARD_") for name in after)
    for node, ends in ((node1, "released"), (node2, "released")):
        spans = audit(node, "--held", "--disk", disk.path)
        (span,) = [one for one in spans if (one["uuid"], one["host"]) == (web.uuid, node.name)]
        assert span["domain"] == "web" and span["ended"] == ends, span
    assert [one for one in audit(node2, "--disk", disk.path) if one["event"] == "handover"]


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("held", [False, True], ids=["nobody has it", "a guest has it"])
def test_an_array_of_the_guests_own(held: bool, node1: Node, volumes: Volumes) -> None:
    """The host's udev assembles it, where nobody holds it; and lets it alone, where a guest does."""
    disk = volumes.make("raid-1", content=b"", shared=False)
    node1.shell(
        f"mdadm --create /dev/md/guests --run --force --level=1 --raid-devices=1 --metadata=1.2 {disk.path};"
        " mdadm --stop /dev/md/guests; udevadm settle",
        within=120,
    )
    if held:
        node1.start(guest("web", [block(disk.path)]))
    try:
        node1.shell(f"udevadm trigger --settle --action=change /sys/class/block/{disk.kernel}", within=120)
        found = node1.shell("cat /proc/mdstat").out
        assert (disk.kernel in found) is not held, found
        shown = properties(node1, disk)
        assert shown.get("VMGUARD_FS_TYPE" if held else "ID_FS_TYPE") == "linux_raid_member", shown
    finally:
        node1.remove_all_guests()
        # The host's udev may assemble it again as soon as it is free.
        stop = f"mdadm --stop --scan; wipefs -qaf {disk.path}; udevadm settle; ! grep -q {disk.kernel} /proc/mdstat"
        eventually(lambda: not node1.shell(stop, check=False).status, "the array is gone", within=60, every=1)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize("held", [False, True], ids=["nobody has it", "a guest has it"])
def test_a_volume_group_of_the_guests_own(held: bool, node1: Node, volumes: Volumes) -> None:
    """On a host that looks for volume groups on volumes (scan_lvs), as many do."""
    disk = volumes.make("outer", megabytes=24, content=b"", shared=False)
    config = "--config devices/scan_lvs=1"
    node1.shell(
        "mkdir -p /etc/lvm/profile; cp -a /etc/lvm/lvm.conf /etc/lvm/lvm.conf.kept;"
        " echo 'devices { scan_lvs = 1 }' >>/etc/lvm/lvm.conf"
    )
    try:
        made = "--config 'devices/scan_lvs=1 global/use_lvmlockd=0'"
        node1.shell(
            f"pvcreate -qq -y {made} {disk.path} && vgcreate -qq {made} inner {disk.path}"
            f" && lvcreate -qq -y {made} -L 4M -n root inner && vgchange -qq {made} -an inner; udevadm settle",
            within=180,
        )
        if held:
            node1.start(guest("web", [block(disk.path)]))
        node1.shell(f"lvchange --refresh {config} vg-guests/outer; udevadm settle", within=120)
        node1.shell("systemctl list-units --plain 'lvm-activate-*'", check=False)

        def active() -> bool:
            return node1.exists("/dev/mapper/inner-root")

        if held:
            node1.shell("sleep 2; udevadm settle")
            assert not active(), "the host has activated what is the guest's"
        else:
            eventually(active, "the host activates it: that is the trap", within=60, every=1)
    finally:
        node1.shell("dmsetup remove inner-root; mv /etc/lvm/lvm.conf.kept /etc/lvm/lvm.conf", check=False)


def test_what_others_do_to_a_volume(node1: Node, volumes: Volumes) -> None:
    disk = volumes.make("web-1", shared=False)
    node1.start(guest("web", [block(disk.path)]))
    watch(node1)
    try:
        began = len(audit(node1))

        def told(word: str) -> List[Dict[str, Any]]:
            return [one for one in audit(node1)[began:] if one["event"] == word]

        node1.shell("lvextend -qq -L +4M vg-guests/web-1", within=90)
        eventually(lambda: told("resized"), "resized", within=30, every=1)
        volumes.names.append("other-name")
        node1.shell("lvrename -qq vg-guests/web-1 other-name", within=90)
        eventually(lambda: told("renamed"), "renamed", within=30, every=1)
        node1.shell(f"dd if=/dev/zero of={disk.mapper.replace('web--1', 'other--name')} bs=512 seek=100 count=1 status=none")
        eventually(lambda: told("opened"), "written", within=30, every=1)
        assert all(one["domain"] == "web" for word in ("resized", "renamed", "opened") for one in told(word))
    finally:
        node1.shell("systemctl stop vmguardd")


def test_a_volume_that_is_activated_elsewhere(node1: Node, node2: Node, volumes: Volumes) -> None:
    """The other node's agent says so, and the trail of the disk has it on both nodes."""
    disk = volumes.make("web-1")
    node2.shell("lvchange -qq -an vg-guests/web-1", within=90)
    web = guest("web", [block(disk.path)])
    node1.start(web)
    watch(node2)
    try:
        node2.shell("lvchange -qq -asy vg-guests/web-1", within=90)
        for node in (node2, node1):

            def told(node: Node = node) -> List[Dict[str, Any]]:
                return [one for one in audit(node, "--disk", disk.path) if one["event"] == "activated"]

            (one,) = eventually(told, f"{node} has it in the trail", within=90, every=1)
            assert (one["domain"], one["uuid"], one["host"]) == ("web", web.uuid, "node2") and "node1" in one["text"], one
    finally:
        node2.shell("systemctl stop vmguardd")


def test_the_agent_as_a_service(node1: Node, node2: Node, volumes: Volumes) -> None:
    """Under systemd, with all that the unit takes away from it: it claims, contains, and lives on as it is watched."""
    theirs, own = volumes.make("theirs-1"), volumes.make("own-1")
    node2.start(guest("holder", [block(theirs.path)]))
    web = guest("web", [block(own.path)], devices=SCSI)
    node1.start(web)
    watch(node1)
    try:
        node1.virsh("attach-device", web.uuid, "/dev/stdin", stdin=block(theirs.path, bus="scsi").xml("sda"))
        eventually(lambda: node1.state(web) == "paused", "it is paused", within=60)
        (told,) = [one for one in audit(node1, "--domain", "web") if one["event"] == "conflict"]
        assert "holder" in told["text"]
        assert node1.shell("systemctl show -P NRestarts -P ActiveState vmguardd").out.split() == ["0", "active"]
    finally:
        node1.shell("systemctl stop vmguardd")
