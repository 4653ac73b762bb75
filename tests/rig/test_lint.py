# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lint on real hosts: it names every disguise of a disk, before a start, as the hook refuses it afterwards."""

import json
import os
import shutil
import subprocess
from typing import Any, Callable, Dict, List, Tuple

import pytest
from conftest import Images
from guests import Disk, Guest, guest
from hosts import Host, eventually


def findings(host: Host, *words: str) -> Tuple[int, List[Dict[str, Any]]]:
    done = host.vmguard("lint", "--format", "json", *words, check=False)
    assert done.status in (0, 1, 3), done
    return done.status, json.loads(done.out)["findings"]


def said(found: List[Dict[str, Any]], domain: str = "") -> List[str]:
    return [
        f"{one['rule']} {one['what']}" for one in found if domain in ("", one["domain"]) and one["severity"] == "error"
    ]


Way = Callable[[Host, Images, str], Disk]


def symlink(host: Host, images: Images, disk: str) -> Disk:
    os.symlink(disk, disk + ".link")
    return Disk(disk + ".link")


def hard_link(host: Host, images: Images, disk: str) -> Disk:
    os.link(disk, disk + ".hard")
    return Disk(disk + ".hard")


def bind_mount(host: Host, images: Images, disk: str) -> Disk:
    other = disk + ".bound"
    open(other, "w").close()
    host.run("mount", "--bind", disk, other)
    return Disk(other)


def loop_device(host: Host, images: Images, disk: str) -> Disk:
    return Disk(host.cluster.loop(disk), "block")


def pool_volume(host: Host, images: Images, disk: str) -> Disk:
    host.virsh("pool-create-as", "pool1", "dir", "--target", images.folder)
    return Disk(os.path.basename(disk), pool="pool1")


def through_proc(host: Host, images: Images, disk: str) -> Disk:
    return Disk("/proc/1/root" + disk)


def overlay(host: Host, images: Images, disk: str) -> Disk:
    return Disk(images.qcow2("overlay.qcow2", backing=disk), format="qcow2")


def overlay_of_an_overlay(host: Host, images: Images, disk: str) -> Disk:
    middle = images.qcow2("middle.qcow2", backing=disk)
    return Disk(images.qcow2("top.qcow2", backing=middle, backing_format="qcow2"), format="qcow2")


WAYS: List[Tuple[Way, str, str]] = [
    (symlink, "VMG103", "disk vda"),
    (hard_link, "VMG103", "disk vda"),
    (bind_mount, "VMG103", "disk vda"),
    (loop_device, "VMG103", "disk vda"),
    (pool_volume, "VMG103", "disk vda"),
    (through_proc, "VMG103", "disk vda"),
    (overlay, "VMG104", "disk vda, backing file 1"),
    (overlay_of_an_overlay, "VMG104", "disk vda, backing file 2"),
]


@pytest.mark.parametrize("way, rule, what", WAYS, ids=[way.__name__ for way, _, _ in WAYS])
def test_a_disguise_is_named_and_refused(way: Way, rule: str, what: str, node1: Host, images: Images) -> None:
    disk = images.raw("web.img")
    web1 = guest("web1", [disk])
    try:
        web2 = guest("web2", [way(node1, images, disk)])
        for one in (web1, web2):
            node1.define(one)
        status, found = findings(node1, "--all")
        assert status == 1
        assert f"{rule} disk vda" in said(found, "web1") and f"{rule} {what}" in said(found, "web2"), found
        (mine,) = [one for one in found if one["domain"] == "web2" and one["rule"] == rule]
        assert mine["others"][0]["domain"] == "web1" and mine["others"][0]["path"] == disk
        # and the hook says the same
        node1.start(web1)
        assert "web1" in node1.refused(web2, defined=True)
    finally:
        node1.virsh("pool-destroy", "pool1", check=False)


def test_its_neighbours_are_clean(node1: Host, images: Images) -> None:
    """Overlays of one base, each with its own; a shared disk; an installation medium that all have."""
    base, quorum, iso = images.raw("base.img"), images.raw("quorum.img"), images.raw("tools.iso")
    for number in range(3):
        disks = [
            Disk(images.qcow2(f"{number}.qcow2", backing=base), format="qcow2", driver="cache='none'"),
            Disk(quorum, shareable=True, driver="cache='none'"),
            Disk(iso, device="cdrom", readonly=True),
        ]
        node1.define(guest(f"web{number}", disks))
    status, found = findings(node1, "--all")
    assert (status, said(found)) == (0, [])


def test_two_hosts_from_one_place(node1: Host, node2: Host, images: Images) -> None:
    """A guest that both hosts define is one guest; another one on the same disk is found from either side."""
    disk = images.raw("web.img")
    both = guest("both", [images.raw("both.img")])
    for host in (node1, node2):
        host.define(both)
    node1.define(guest("web1", [disk]))
    os.link(disk, disk + ".hard")
    node2.define(guest("web2", [disk + ".hard"]))
    for host, other in ((node1, node2), (node2, node1)):
        status, found = findings(host, "--all", "--connect", f"qemu+tcp://{other.address}/system")
        assert status == 1
        assert said(found, "both") == []
        assert said(found, "web1") == said(found, "web2") == ["VMG103 disk vda"]
        assert {(one["domain"], one["host"]) for one in found if one["rule"] == "VMG103"} == {
            ("web1", "node1"),
            ("web2", "node2"),
        }


def test_define(node1: Host, images: Images, tmp_path: Any) -> None:
    """What is wrong is not defined; with a reason it is, and the reason is written down."""
    disk = images.raw("web.img")
    os.link(disk, disk + ".hard")
    good, bad = guest("web1", [disk]), guest("web2", [disk + ".hard"])

    def define(one: Guest, *words: str) -> Any:
        path = images.path(one.name + ".xml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(one.xml)
        return node1.vmguard("define", *words, path, check=False)

    done = define(good)
    assert done.status == 0 and '"web1" is defined.' in done.out, done
    done = define(good)
    assert done.status == 0, "a second time, it is the same guest"
    done = define(bad)
    assert done.status == 1 and "VMG103" in done.out, done
    assert "web2" not in node1.virsh("list", "--all", "--name").out.split()
    assert define(bad, "--force", " ").status == 2
    assert define(bad, "--force", "never both").status == 0
    assert "web2" in node1.virsh("list", "--all", "--name").out.split()
    event = json.loads(node1.read("/var/log/vmguard/events.jsonl").splitlines()[-1])
    assert (event["event"], event["text"], event["rules"]) == ("defined-by-force", "never both", ["VMG103"])
    assert define(guest("web3", [images.path("gone.img")])).status == 3


def watched(host: Host, *words: str) -> "Tuple[subprocess.Popen[str], List[str]]":
    process = host.spawn("vmguard", "lint", "--watch", "--format", "github", *words)
    assert process.stderr is not None and process.stdout is not None
    assert "watching" in process.stderr.readline()
    return process, []


def test_what_virsh_defines_is_seen(node1: Host, images: Images) -> None:
    """Through libvirt's files on this host, and through its events from another."""
    disk = images.raw("web.img")
    node1.define(guest("web1", [disk]))
    for words in (["--all"], ["--connect", "qemu:///system"]):
        process, _ = watched(node1, *words)
        try:
            web2 = guest("web2", [disk])
            node1.define(web2)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "VMG102" in line and "web2" in line, line
            node1.virsh("undefine", web2.uuid)
        finally:
            process.kill()
            process.wait()


def test_the_page_of_two_hosts(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    node1.define(guest("web1", [disk]))
    node2.define(guest("web2", [disk]))
    out = images.path("page.html")
    node1.vmguard("report", "--all", "--connect", f"qemu+tcp://{node2.address}/system", "--html", out)
    with open(out, encoding="utf-8") as file:
        page = file.read()
    assert "Storage of 2 guests on 2 hosts" in page and 'class="clash"' in page
    eventually(
        lambda: not [name for name in os.listdir(images.folder) if name.startswith(".vmguard")], "nothing is left"
    )


@pytest.mark.skipif(shutil.which("virt-install") is None, reason="virt-install is not installed")
def test_what_virt_install_and_virt_clone_define(node1: Host, images: Images) -> None:
    """As they come: nothing to complain of; but for a clone that was told to keep the disk of the original."""
    one, iso = images.qcow2("web1.qcow2"), images.raw("install.iso")
    install = [
        "virt-install",
        "--connect",
        "qemu:///system",
        "--name",
        "web1",
        "--memory",
        "64",
        "--import",
        "--virt-type",
    ]
    install += [
        "qemu",
        "--disk",
        f"path={one},format=qcow2,cache=none",
        "--disk",
        f"{iso},device=cdrom",
        "--network",
        "none",
    ]
    made = node1.run(*install, "--osinfo", "linux2022", "--graphics", "none", "--noautoconsole", "--print-xml")
    node1.write(images.path("web1.xml"), made.out)
    node1.virsh("define", images.path("web1.xml"))
    clone = ["virt-clone", "--connect", "qemu:///system", "--original", "web1"]
    node1.run(*clone, "--name", "web2", "--file", images.path("web2.qcow2"))
    assert findings(node1, "--all") == (0, [])
    node1.run(*clone, "--name", "web3", "--auto-clone", "--skip-copy", "vda")
    status, found = findings(node1, "--all")
    assert status == 1
    assert sorted(f"{one['rule']} {one['domain']} {one['what']}" for one in found) == [
        "VMG102 web1 disk vda",
        "VMG102 web3 disk vda",
    ]
    if os.environ.get("VMGUARD_KEEP"):
        for name in ("web1", "web2", "web3"):
            with open(os.path.join(os.environ["VMGUARD_KEEP"], name + ".xml"), "w", encoding="utf-8") as file:
                file.write(node1.virsh("dumpxml", name, "--inactive").out)
