# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The same cases put to QEMU's own locks, to libvirt's sanlock plugin and to vmguard.

The disk is a block device with a node of its own on each host: as across real hosts, QEMU's locks on it do not reach the other
one. What happened is written to docs/comparison.md; vmguard must have refused each case, before QEMU.
"""

import os
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

import pytest
from clusters import Bare, Guarded, Plugin
from conftest import Images
from guests import Disk, Guest, guest
from hosts import PROJECT, Cluster, Host


class Case(NamedTuple):
    """A guest that runs on the first host, and one that must not start, and where."""

    first: Guest
    second: Guest
    where: Host


def web(images: Images, **more: str) -> Tuple[str, Guest]:
    disk = images.block("web")
    return disk, guest("web1", [Disk(disk, "block")], **more)  # type: ignore[arg-type]


def overlay_on(disk: str, host: Host, images: Images) -> str:
    """A qcow2 image over a device that only the hosts see."""
    overlay = images.path("overlay.qcow2")
    host.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "raw", overlay)
    os.chmod(overlay, 0o666)
    return overlay


def second_host(one: Host, two: Host, images: Images) -> Case:
    """the same path, on a second host"""
    disk, first = web(images)
    return Case(first, guest("web2", [Disk(disk, "block")]), two)


def symlink(one: Host, two: Host, images: Images) -> Case:
    """a symlink to it, on a second host"""
    disk, first = web(images)
    os.symlink(disk, images.path("link"))
    return Case(first, guest("web2", [Disk(images.path("link"), "block")]), two)


def other_node(one: Host, two: Host, images: Images) -> Case:
    """another device of the same storage, on the same host"""
    disk, first = web(images)
    return Case(first, guest("web2", [Disk(one.cluster.loop(images.path("web.backing")), "block")]), one)


def same_uuid(one: Host, two: Host, images: Images) -> Case:
    """another name and another disk, the same uuid, on a second host"""
    _, first = web(images)
    return Case(first, guest("web2", [images.raw("own.img")], uuid=first.uuid), two)


def base_written(one: Host, two: Host, images: Images) -> Case:
    """an overlay whose base another guest writes"""
    disk, first = web(images)
    overlay = overlay_on(disk, one, images)
    return Case(first, guest("web2", [Disk(overlay, format="qcow2")]), two)


def overlay_used(one: Host, two: Host, images: Images) -> Case:
    """a base that an overlay uses"""
    disk = images.block("web")
    overlay = overlay_on(disk, one, images)
    return Case(guest("web1", [Disk(overlay, format="qcow2")]), guest("web2", [Disk(disk, "block")]), two)


def argument(one: Host, two: Host, images: Images) -> Case:
    """named only in qemu:commandline"""
    disk, first = web(images)
    return Case(first, guest("web2", arguments=["-drive", f"if=none,id=x,format=raw,file={disk}"]), two)


def one_shares(one: Host, two: Host, images: Images) -> Case:
    """shareable here, exclusive there"""
    disk, first = web(images)
    return Case(first, guest("web2", [Disk(disk, "block", shareable=True, driver="cache='none'")]), two)


def read_beside(one: Host, two: Host, images: Images) -> Case:
    """read-only beside a writer"""
    disk, first = web(images)
    return Case(first, guest("web2", [Disk(disk, "block", readonly=True)]), two)


CASES = [
    second_host, symlink, other_node, same_uuid, base_written, overlay_used, argument, one_shares, read_beside,
]  # fmt: skip
PAUSED = "the same path, while the first guest is suspended"

REFUSED = "refused before QEMU"


def outcome(case: Case, suspended: bool = False) -> str:
    holder = case.where.cluster.hosts[0]
    holder.start(case.first)
    try:
        if suspended:
            holder.virsh("suspend", case.first.uuid)
        before = case.where.spawn_count(case.second)
        done = case.where.try_start(case.second)
        if not done.status:
            return "**both run**"
        if case.where.spawn_count(case.second) == before:
            return REFUSED
        return "refused after QEMU had opened it" if "Failed to acquire lock" in done.err else "QEMU refuses"
    finally:
        for host in case.where.cluster.hosts[:2]:
            host.remove_all_guests()


def play(cluster: Cluster) -> Dict[str, str]:
    """What each case came to, by its words."""
    found = {}
    one, two = cluster.hosts[:2]
    plays: List[Tuple[Callable[[Host, Host, Images], Case], str, bool]] = [
        (case, str(case.__doc__), False) for case in CASES
    ]
    for case, words, suspended in [*plays, (second_host, PAUSED, True)]:
        folder = os.path.join(cluster.shared, f"comparison-{len(found)}")
        found[words] = outcome(case(one, two, Images(cluster, folder)), suspended)
        cluster.forget_loops()
    return found


@pytest.fixture
def bare() -> Iterator[Cluster]:
    yield from booted(Bare("bare", hosts=2))


@pytest.fixture
def plugin() -> Iterator[Cluster]:
    yield from booted(Plugin("plugin", hosts=2))


def booted(cluster: Cluster) -> Iterator[Cluster]:
    try:
        cluster.boot()
        yield cluster
    finally:
        cluster.destroy()


HEAD = """# The same cases, put to three guards

Two hosts, real libvirtd, QEMU and sanlock; the disk is a block device with a node of its own on each host, as a LUN or a
shared volume is. A guest runs, a second one is started. Written by `tests/rig/test_comparison.py`, each time it runs.

| case | QEMU's own locks | libvirt's sanlock plugin (`auto_disk_leases = 1`) | vmguard |
|---|---|---|---|
"""

TAIL = """
*refused before QEMU*: in libvirt's `prepare` hook; nothing was opened or labelled. *refused after QEMU had opened it*: the plugin
takes its leases when the guest's CPUs are about to run; QEMU has opened the image for writing by then, and libvirt has set its
owner. *QEMU refuses*: it may not open the device, whose owner libvirt did not set for an argument. *both run*: two guests
on one storage object, or one domain twice.
"""


def test_the_same_cases(rested: Guarded, bare: Cluster, plugin: Cluster) -> None:
    columns = [play(bare), play(plugin), play(rested)]
    rows = [f"| {words} | " + " | ".join(column[words] for column in columns) + " |\n" for words in columns[0]]
    with open(os.path.join(PROJECT, "docs", "comparison.md"), "w", encoding="utf-8") as page:
        page.write(HEAD + "".join(rows) + TAIL)
    assert set(columns[2].values()) == {REFUSED}
    assert "**both run**" in columns[0].values(), "the cases show nothing: QEMU's locks alone would do"
