# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the commands say of guests that run, or were refused, to somebody who has never seen them."""

import os

from conftest import Images
from guests import Disk, guest
from hosts import Host, eventually


def test_a_guest_that_runs(node1: Host, node2: Host, images: Images) -> None:
    """That it runs is all that stands against its start; and what it reads with others is held by somebody."""
    one = guest("web", [images.raw("web.img")])
    node1.define(one)
    node1.virsh("start", one.uuid)
    for host in (node1, node2):
        host.define(one)
        done = host.vmguard("check", "web", check=False)
        assert done.status == 1 and done.out.count("would not be started") == 1, done.out
        assert "it runs already" in done.out and "a disk of its own" not in done.out
    shown = node1.vmguard("explain", "web", check=False).out
    assert "held by nobody" not in shown, shown
    node1.destroy(one)
    assert "would start" in node1.vmguard("check", "web").out


def test_a_managed_save_is_named(node1: Host, images: Images) -> None:
    """`virsh start` goes on from it, and that is not what was looked at."""
    one = guest("web", [images.raw("web.img")])
    node1.define(one)
    node1.virsh("start", one.uuid)
    assert "managed save" not in node1.vmguard("check", "web", check=False).out
    node1.virsh("managedsave", one.uuid)
    assert "managed save" in node1.vmguard("check", "web").out


def test_a_refusal_is_found_by_every_name_of_the_disk(node1: Host, images: Images) -> None:
    disk, other = images.raw("web.img"), images.path("hard.img")
    os.link(disk, other)
    one, thief = guest("web", [disk]), guest("thief", [other])
    node1.start(one)
    node1.refused(thief)
    for path in (disk, other):
        shown = node1.vmguard("audit", "--disk", path).out
        assert " refused       thief" in shown, shown
    node1.destroy(one)


def test_what_an_override_let_pass_was_started(node1: Host, node2: Host, images: Images) -> None:
    disk = Disk(images.block("web"), "block", driver="cache='none'")
    one, other = guest("web", [disk]), guest("other", [disk])
    node1.start(one)
    node2.define(other)
    node2.vmguard("override", "other", "--reason", "for a test")
    node2.virsh("start", other.uuid)
    shown = node2.vmguard("audit", "--domain", "other").out
    assert 'domain "other" would not have been started: disk vda is in use' in shown
    assert "was not started" not in shown
    node2.destroy(other)
    node1.destroy(one)


def test_a_guest_that_is_not_defined(node1: Host, images: Images) -> None:
    """It is named by the file of its definition, and what was typed without one says so."""
    one = guest("transient", [images.raw("web.img")])
    file = images.path("transient.xml")
    with open(file, "w", encoding="utf-8") as written:
        written.write(one.xml)
    done = node1.vmguard("explain", "transient", check=False)
    assert done.status == 2 and "not defined" in done.err and "file" in done.err
    assert "would start" in node1.vmguard("check", file).out
    node1.vmguard("override", file, "--reason", "for a test")
    node1.vmguard("override", file, "--withdraw")


def test_nothing_written_down_is_said(node1: Host) -> None:
    done = node1.vmguard("audit", "--domain", "nobody")
    assert (done.out, done.err) == ("", "nothing is written down about that\n")


def test_a_guest_without_leases_is_named_where_its_host_is_no_member(node1: Host, images: Images) -> None:
    """sanlock was restarted: before the join, and after it, when it could not end the guest any more."""
    one = guest("web", [images.raw("web.img")])
    node1.start(one)
    assert "sanlock cannot end them" not in node1.vmguard("status", check=False).out
    node1.kill("sanlock")
    shown = node1.vmguard("status", check=False).out
    assert "held:" not in shown, "nobody knows what is held"
    node1.start_sanlock()
    shown = node1.vmguard("status", check=False).out
    assert "no guest can start, and without their leases run: web" in shown, shown
    node1.vmguard("join")
    shown = node1.vmguard("status", check=False).out
    assert "sanlock cannot end them when those are lost: web." in shown, shown
    node1.destroy(one)
    eventually(lambda: not node1.leftovers(), "at rest")


def test_what_is_not_claimed_has_a_remedy(node1: Host, images: Images) -> None:
    """No agent runs, and no hook is called for a snapshot."""
    one = guest("web", [images.raw("web.img")])
    node1.start(one)
    overlay = images.path("over")
    node1.virsh("snapshot-create-as", one.uuid, "s1", "--disk-only", "--no-metadata", "--diskspec", f"vda,file={overlay}")
    shown = node1.vmguard("verify", check=False).out
    assert "NOT CLAIMED" in shown and "restart libvirt's daemon" in shown, shown
    node1.restart_libvirtd()
    eventually(lambda: not node1.vmguard("verify", check=False).status, "it is claimed")
    node1.destroy(one)
