# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A cluster moves from a directory to a block device and back. At no moment can two hosts use two stores; who missed it is told
where to go; what is known of saved states goes along.
"""

import time
from typing import Iterator

import pytest
from clusters import Moving
from conftest import Images, images_of
from guests import guest
from hosts import Host, eventually
from moves import Witness


@pytest.fixture
def moving() -> Iterator[Moving]:
    made = Moving("moving", hosts=2)
    try:
        made.boot()
        yield made
    finally:
        made.destroy()


@pytest.fixture
def node1(moving: Moving) -> Host:
    return moving.hosts[0]


@pytest.fixture
def node2(moving: Moving) -> Host:
    return moving.hosts[1]


@pytest.fixture
def images(moving: Moving, request: pytest.FixtureRequest) -> Iterator[Images]:
    yield from images_of(moving, request.node.name)


def enter(host: Host, store: str) -> None:
    host.vmguard("setup", "--yes", "--store", store, "--shared", "yes")


def works(node1: Host, node2: Host, images: Images, name: str) -> None:
    """A guest runs on one host, and the other does not get its disk."""
    web = guest(name, [images.raw(f"{name}.img")])
    node1.start(web)
    assert name in node2.refused(guest("thief", [images.path(f"{name}.img")]))
    node1.destroy(web)
    node2.start(web)
    assert name in node1.refused(guest("thief", [images.path(f"{name}.img")]))
    node2.destroy(web)


def live_hosts(host: Host) -> "list[str]":
    return sorted(line.split()[1] for line in host.vmguard("status").out.splitlines() if "live" in line)


def test_there_and_back(moving: Moving, node1: Host, node2: Host, images: Images) -> None:
    works(node1, node2, images, "before")
    with Witness(images) as kept, Witness(images, name="stale") as stale:
        for one in (kept, stale):
            node1.define(one.guest)
            node1.virsh("start", one.guest.uuid)
            one.lives()
            node1.virsh("managedsave", one.guest.uuid)
        # Somebody else writes the disk of one of them.
        other = guest("other", [stale.disk])
        node2.start(other)
        node2.destroy(other)

        node2.vmguard("leave")
        old = moving.store
        done = node1.vmguard("store", "convert", "--yes", "--shared", "yes", moving.device)
        assert f"vmguard setup --store {moving.device}" in done.out, done
        missed = node2.vmguard("join", check=False)
        assert missed.status and f"vmguard setup --store {moving.device}" in missed.err, missed
        words = node2.refused(guest("late", [images.raw("late.img")]))
        assert f"vmguard setup --store {moving.device}" in words, words
        # Whatever a host does that was set up for the old one, it is not made anew.
        for host in (node1, node2):
            again = host.vmguard("setup", "--yes", "--store", old, check=False)
            assert again.status and "has taken its place" in again.err, again
        enter(node2, moving.device)
        assert "Nothing to do" in node1.vmguard("setup", "--dry-run").out
        # That another one lives shows when it has renewed its membership once more.
        eventually(lambda: live_hosts(node2) == ["node1", "node2"], "each sees the other", every=0.2)
        works(node1, node2, images, "after")
        # The one whose disk nobody wrote goes on; the other does not, and the words are the usual ones.
        node1.virsh("start", kept.guest.uuid)
        kept.lives()
        node1.destroy(kept.guest)
        refused = node1.virsh("start", stale.guest.uuid, check=False)
        assert refused.status and "other" in refused.err and "saved state" in refused.err, refused

    back = moving.folder + "/back"
    node2.vmguard("leave")
    node1.vmguard("store", "convert", "--yes", "--shared", "yes", back)
    assert f"vmguard setup --store {back}" in node2.vmguard("join", check=False).err
    enter(node2, back)
    works(node1, node2, images, "back")


def test_a_state_of_which_nothing_is_known(moving: Moving, node1: Host, node2: Host, images: Images) -> None:
    """Saved before it was guarded; the lease it would have had was never made. In a new store that shows nothing any more."""
    node1.write("/etc/vmguard/vmguard.conf.d/90-test.conf", "[guard]\nmode = off\n")
    with Witness(images) as web:
        node1.define(web.guest)
        node1.virsh("start", web.guest.uuid)
        web.lives()
        node1.virsh("managedsave", web.guest.uuid)
        node1.run("rm", "/etc/vmguard/vmguard.conf.d/90-test.conf")
        node2.vmguard("leave")
        node1.vmguard("store", "convert", "--yes", "--shared", "yes", moving.device)
        refused = node1.virsh("start", web.guest.uuid, check=False)
        assert refused.status and "nothing shows" in refused.err, refused


def test_not_while_anybody_has_anything(moving: Moving, node1: Host, node2: Host, images: Images) -> None:
    def refused(what: str) -> None:
        done = node1.vmguard("store", "convert", "--yes", "--shared", "yes", moving.device, check=False)
        assert done.status and what in done.err and "Traceback" not in done.err, done

    web = guest("web", [images.raw("web.img")])
    refused("node2")  # a member, with or without guests
    node2.start(web)
    refused("node2")
    node2.destroy(web)
    node2.vmguard("leave")
    node1.start(web)
    refused("web")
    node1.destroy(web)
    # Gone without leaving: not certainly dead.
    node2.vmguard("join")
    node2.power_cut()
    refused("node2")
    node2.boot()
    node2.vmguard("leave")
    # A place that is somebody's already.
    node1.run("dd", "if=/dev/urandom", f"of={moving.device}", "bs=4096", "count=1", "oflag=direct")
    refused("not empty")
    node1.run("dd", "if=/dev/zero", f"of={moving.device}", "bs=4096", "count=1", "oflag=direct")
    node2.vmguard("join")
    works(node1, node2, images, "unharmed")


@pytest.mark.parametrize("milliseconds", [300, 1200, 2600, 3000, 4000, 5500, 7000, 8500, 10000])
def test_killed_half_way(milliseconds: int, moving: Moving, node1: Host, node2: Host, images: Images) -> None:
    """The old store is in use, or the same command finishes it; a host that was away finds one of the two."""
    works(node1, node2, images, "before")
    node2.vmguard("leave")
    moved = node1.spawn("vmguard", "store", "convert", "--yes", "--shared", "yes", moving.device)
    time.sleep(milliseconds / 1000)
    for pid, arguments in node1.processes():
        if "convert" in arguments:
            node1.run("/bin/kill", "-KILL", str(pid), check=False)
    moved.communicate()
    if not node1.daemon_pid("libvirtd"):
        node1.start_libvirtd()
    after = guest("after", [images.raw("after.img")])
    away = node2.vmguard("join", check=False)
    done = node1.try_start(after)
    if not away.status:
        # Nothing has happened yet: the old one, for both.
        assert not done.status, done
        assert "after" in node2.refused(guest("thief", [images.path("after.img")]))
        node1.destroy(after)
        eventually(lambda: not node1.leftovers(), "at rest")
        node2.vmguard("leave")
    else:
        assert moving.device in away.err, away
        assert done.status or node1.vmguard("store").out.startswith(f"store {moving.device}"), done
        if not done.status:
            node1.destroy(after)
            eventually(lambda: not node1.leftovers(), "at rest")
    if node1.vmguard("setup", "--yes", "--store", moving.device, "--shared", "yes", check=False).status:
        node1.vmguard("store", "convert", "--yes", "--shared", "yes", moving.device)
    enter(node2, moving.device)
    works(node1, node2, images, "moved")
