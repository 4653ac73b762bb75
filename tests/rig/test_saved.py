# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that were put to sleep: they wake up on the disks that they fell asleep on, or not at all."""

import os
import shutil
import time
from typing import List

import pytest
from conftest import Images
from guests import Guest, count_in, guest, witness
from hosts import Host, eventually
from moves import Witness


def saved(host: Host, it: Guest, file: str) -> None:
    host.virsh("save", it.uuid, file)
    assert not host.runs(it)


def refused_to_wake(host: Host, *command: str) -> str:
    done = host.virsh(*command, check=False)
    assert done.status and "Hook script execution failed" in done.err, done.err
    return done.err


def test_managed_save(node1: Host, images: Images) -> None:
    with Witness(images) as web:
        node1.define(web.guest)
        for _ in range(2):
            node1.virsh("start", "web")
            web.lives()
            node1.virsh("managedsave", "web")
        node1.virsh("start", "web")
        web.lives()


def test_written_elsewhere_in_between(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    web, other = guest("web", [disk]), guest("other", [disk])
    node1.define(web)
    node1.virsh("start", "web")
    node1.virsh("managedsave", "web")
    node2.start(other)
    node2.destroy(other)
    words = refused_to_wake(node1, "start", "web")
    assert "the saved state does not fit its disks any more" in words
    assert 'by:    domain "other" on host node2' in words and "since" in words, words
    assert os.path.exists(node1.path("/var/lib/libvirt/qemu/save/web.save")), "the state is not lost by it"
    node1.vmguard("override", "web", "--reason", "I know what I do")
    node1.virsh("start", "web")


def test_refused_starts_in_between_change_nothing(node1: Host, node2: Host, images: Images) -> None:
    """They raise the version of leases, and write nothing (A11)."""
    disk, spare = images.raw("web.img"), images.raw("spare.img")
    web, keeper = guest("web", [disk]), guest("keeper", [spare])
    node1.define(web)
    node1.virsh("start", "web")
    node1.virsh("managedsave", "web")
    node1.start(keeper)
    for _ in range(3):
        node2.refused(guest("thief", [disk, spare]))
        node2.refused(guest("thief", [spare, disk]))
    node1.virsh("start", "web")


def test_a_restore_that_failed_can_be_tried_again(node1: Host, images: Images) -> None:
    with Witness(images) as web:
        node1.define(web.guest)
        node1.virsh("start", "web")
        node1.virsh("managedsave", "web")
        hook = node1.path("/etc/libvirt/hooks/qemu.d/98-no")
        with open(hook, "w", encoding="utf-8") as file:
            file.write('#!/bin/sh\ncat\n[ "$2" != start ] || exit 1\n')
        os.chmod(hook, 0o755)
        for _ in range(2):
            assert node1.virsh("start", "web", check=False).status
        os.unlink(hook)
        node1.virsh("start", "web")
        web.lives()


def test_moved_to_the_other_host(node1: Host, node2: Host, images: Images) -> None:
    with Witness(images) as web:
        file, moved = images.path("web.save"), images.path("moved.save")
        node1.start(web.guest)
        web.lives()
        saved(node1, web.guest, file)
        shutil.copyfile(file, moved)
        node2.virsh("restore", moved)
        web.lives()
        assert "web" in node1.refused(guest("thief", [web.disk]))
        saved(node2, web.guest, file)
        node1.virsh("restore", file)
        web.lives()


@pytest.mark.parametrize("copied", [False, True], ids=["itself", "a copy"])
def test_a_state_wakes_up_once(copied: bool, node1: Host, node2: Host, images: Images) -> None:
    """The second time the disk is what it became the first time (A11)."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    file, copy = images.path("web.save"), images.path("copy.save")
    node1.start(web)
    saved(node1, web, file)
    node1.virsh("restore", file)
    node1.destroy(web)
    if copied:
        shutil.copyfile(file, copy)  # and so is younger than the guest's last start
    words = refused_to_wake(node2, "restore", copy if copied else file)
    assert "this state was restored before" in words or "the guest has run since" in words, words
    node1.start(web)


@pytest.mark.parametrize("how", [[], ["--bypass-cache"]], ids=["cached", "direct"])
def test_started_afresh_since(how: List[str], node1: Host, node2: Host, images: Images) -> None:
    # Busy: more memory in use than fits into a pipe, so that libvirt's helper is not done before it is asked.
    disk = images.raw("web.img", witness(mark=1, busy=True))
    web = guest("web", [disk])
    file = images.path("web.save")
    node1.start(web)
    eventually(lambda: count_in(disk).value > 3, "it is busy")
    saved(node1, web, file)
    began = os.stat(file).st_mtime
    eventually(lambda: time.time() > began + 0.1, "time goes on")
    node2.start(web)
    node2.destroy(web)
    if how:
        # libvirt says that its helper died, instead of why it gave up.
        assert node1.virsh("restore", file, *how, check=False).status
        words = node1.read("/var/log/vmguard/events.jsonl").splitlines()[-1]
    else:
        words = refused_to_wake(node1, "restore", file)
    assert "the guest has run since the state was saved" in words and "node2" in words, words


def test_saved_before_it_was_guarded(node1: Host, images: Images) -> None:
    for number in range(200):
        images.raw(f"filler{number}", size=512)  # inodes of files that other tests have had, and deleted, have leases
    with Witness(images) as web:
        node1.write("/etc/vmguard/vmguard.conf.d/90-test.conf", "[guard]\nmode = off\n")
        try:
            node1.define(web.guest)
            node1.virsh("start", "web")
            node1.virsh("managedsave", "web")
        finally:
            node1.run("rm", "/etc/vmguard/vmguard.conf.d/90-test.conf")
        node1.virsh("start", "web")
        web.lives()


def test_snapshot_with_memory_is_reverted_to(node1: Host, images: Images) -> None:
    from guests import Disk

    disk = images.qcow2("web.qcow2")
    web = guest("web", [Disk(disk, format="qcow2")])
    node1.define(web)
    node1.virsh("start", "web")
    node1.virsh("snapshot-create-as", "web", "first")
    node1.virsh("snapshot-revert", "web", "first")
    assert node1.state(web) == "running"
    assert "web" in node1.refused(guest("thief", [Disk(disk, format="qcow2")]))
    node1.destroy(web)
    node1.virsh("snapshot-revert", "web", "first", "--running")
    assert "web" in node1.refused(guest("thief", [Disk(disk, format="qcow2")]))
