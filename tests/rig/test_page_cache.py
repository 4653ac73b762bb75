# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a dead guest wrote and its host has not: on a block device each host has a page cache of its own, and the lease alone
would be free before the medium is (A6).
"""

import os
from typing import Iterator

import pytest
from conftest import Images
from guests import Disk, count_in, guest, witness
from hosts import Host, eventually
from moves import Witness, migrate, settled

CONF = "/etc/vmguard/vmguard.conf.d/90-test.conf"


@pytest.fixture(autouse=True)
def all_drain(node1: Host, node2: Host) -> Iterator[None]:
    """A loop device on a local file is nothing that other hosts reach, to all appearances."""
    for host in (node1, node2):
        host.write(CONF, "[leases]\ndrain = all\n")
    yield
    for host in (node1, node2):
        host.run("rm", "-f", CONF, check=False)


def test_killed_with_unwritten_data(node1: Host, node2: Host, images: Images) -> None:
    """Somebody else on the host has the device open, as udev or LVM would: its last close does not write it out."""
    disk = images.block("web", witness(mark=1))
    web = guest("web", [Disk(disk, "block")])
    with open(node1.path(disk), "rb"):
        node1.start(web)
        eventually(lambda: count_in(node1.path(disk)).value > 5, "it counts")
        node1.kill9(web)
        counted = count_in(node1.path(disk)).value
        next_one = guest("next", [Disk(disk, "block")])
        eventually(lambda: not node2.try_start(next_one).status, "it is free")
        on_medium = count_in(images.path("web.backing")).value
        assert on_medium >= counted, "the other host has it before all is written"
    node2.destroy(next_one)
    eventually(lambda: not node1.leftovers() + node2.leftovers(), "nothing is left")


def test_the_mark_keeps_others_out_until_all_is_written(node1: Host, node2: Host, images: Images) -> None:
    """Writing out that hangs, with libvirt dead besides: nobody else may start."""
    disk = images.block("web", witness(mark=1))
    web = guest("web", [Disk(disk, "block")])
    node1.start(web)
    node1.kill("libvirtd")
    node1.kill9(web)
    # One that has no use for a mark of its own sees it, too.
    words = node2.refused(guest("thief", [Disk(disk, "block", driver="cache='none'")]))
    assert "its last writes are still on their way" in words, words
    node1.vmguard("gc", check=False)
    eventually(lambda: not node1.leftovers(), "an errand has written it out, and given the mark back")
    node2.start(guest("next", [Disk(disk, "block")]))
    node1.start_libvirtd()


@pytest.mark.parametrize("cache", ["none", "directsync"])
def test_without_a_cache_there_is_no_mark(cache: str, node1: Host, images: Images) -> None:
    disk = images.block("web")
    node1.start(guest("web", [Disk(disk, "block", driver=f"cache='{cache}'")]))
    assert not [held for held in node1.leases() if held.name.endswith(".d")]


def test_the_same_host_starts_again_at_once(node1: Host, images: Images) -> None:
    disk = images.block("web")
    for number in range(3):
        web = guest(f"cached{number}", [Disk(disk, "block")])
        node1.start(web)
        assert [held for held in node1.leases() if held.name.endswith(".d")]
        node1.kill9(web)
        eventually(lambda web=web: not node1.try_start(guest("again", web and [Disk(disk, "block")])).status, "again")  # type: ignore[misc]
        node1.virsh("destroy", "again")
    eventually(lambda: not node1.leftovers(), "nothing is left")


def test_migrated_with_a_cache(node1: Host, node2: Host, node3: Host, images: Images) -> None:
    with Witness(images, block=True) as web:
        node1.start(web.guest)
        for source, destination in ((node1, node2), (node2, node1)):
            migrate(web.guest, source, destination)
            settled(destination, web.guest)
            eventually(
                lambda destination=destination: any(held.name.endswith(".d") for held in destination.leases()),  # type: ignore[misc]
                "the mark has come with it",
            )
            assert "web" in node3.refused(guest("thief", [Disk(web.disk, "block")]))
        assert os.path.exists(node1.path(web.disk))
