# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The same guard, with its leases on a block device: what shows whether it holds is told once more on such a store, by the tests
that tell it of a directory. Then what only a device can have.
"""

import os
import time
from typing import Iterator

import pytest
from clusters import Guarded, OnDevice
from conftest import Images
from guests import Disk, guest
from hosts import Host, eventually

# Collected here, they get this module's cluster.
from test_allowed import (  # noqa: F401
    test_many_guests_on_one_base,
    test_nothing_is_left_when_all_are_gone,
    test_sixty_four_disks,
    test_stop_here_start_there_at_once,
    test_the_last_reader_frees_the_base,
    test_what_it_costs,
)
from test_attacks import (  # noqa: F401
    test_nobody_leans_on_a_ticket,
    test_saved_before_it_was_guarded_and_failed_once,
    test_started_killed_and_made_good,
)
from test_faults import (  # noqa: F401
    impatient,
    test_libvirtd_killed_during_a_start,
    test_sanlock_dies,
    test_sanlock_hangs,
)
from test_hook_killed import (  # noqa: F401
    test_killed_in_a_prepare_that_refuses,
)
from test_lifecycle import (  # noqa: F401
    test_killed_guest_is_free_at_once,
    test_libvirtd_restarted,
    test_power_cut_and_back,
    test_saved_and_started_again,
)
from test_migration import post_copy, test_there_and_back  # noqa: F401
from test_page_cache import (  # noqa: F401
    all_drain,
    test_killed_with_unwritten_data,
    test_migrated_with_a_cache,
    test_the_mark_keeps_others_out_until_all_is_written,
)
from test_refusals import (  # noqa: F401
    test_a_refused_start_leaves_nothing,
    test_an_overlay_on_what_another_guest_writes,
    test_block_device_with_a_node_on_each_host,
    test_names_of_all_kinds,
    test_reading_what_another_guest_writes,
    test_second_host_is_refused,
    test_the_writer_goes_on_while_others_are_refused,
    test_writing_what_another_guest_reads,
)
from test_saved import (  # noqa: F401
    test_a_restore_that_failed_can_be_tried_again,
    test_a_state_wakes_up_once,
    test_managed_save,
    test_moved_to_the_other_host,
    test_read_by_somebody_in_between,
    test_refused_starts_in_between_change_nothing,
    test_started_afresh_since,
    test_written_elsewhere_in_between,
)

if os.environ.get("VMGUARD_RIG_SLOW"):
    # A quarter of an hour more: `make stress`.
    from test_faults import test_somebody_else_wrote_while_sanlock_was_dead  # noqa: F401
    from test_frozen_storage import frozen_library, test_the_guest_is_dead_before_another_starts  # noqa: F401
    from test_hook_killed import test_killed_in_prepare, test_killed_later  # noqa: F401
    from test_lifecycle import test_power_cut_keeps_the_disk_until_the_host_is_certainly_dead  # noqa: F401
    from test_migration import test_there_and_back_among_thieves  # noqa: F401
    from test_migration_faults import test_the_source_host_dies_after_the_switch  # noqa: F401
    from test_storm import (  # noqa: F401
        test_many_hands_on_one_disk,
        test_one_domain_everywhere,
        test_pairs_of_starts,
    )
    from test_stress import test_contended_starts  # noqa: F401


@pytest.fixture(scope="module")
def cluster(swept: None) -> Iterator[Guarded]:
    made = OnDevice("on-device", hosts=3)
    try:
        made.boot(made.hosts[:2])
        yield made
    finally:
        made.destroy()


def test_the_store_is_no_disk(node1: Host, node2: Host, images: Images) -> None:
    """By no name; not even to a guest that only this host knows of."""
    node1.run("ln", "-sf", "/dev/rig/leases", "/run/alias")
    for name in ("/dev/rig/leases", "/run/alias"):
        words = node1.refused(guest("thief", [Disk(name, "block")]))
        assert "vmguard has the leases" in words, words
    node2.refused(guest("thief", [Disk("/dev/rig/leases", "block")]))
    node1.start(guest("web", [images.raw("web.img")]))


def test_what_status_says(node1: Host, images: Images) -> None:
    node1.start(guest("web", [images.raw("web.img")]))
    status = node1.vmguard("status").out
    assert "store /dev/rig/leases (shared)" in status and "room for 2046" in status and "web" in status, status
    store = node1.vmguard("store").out
    assert "block device" in store and "room for 2046" in store, store
    doctor = node1.vmguard("doctor", check=False).out
    assert "more storage objects" in doctor and "a block device" in doctor and "no block device" not in doctor, doctor
    again = node1.vmguard("setup", "--dry-run").out
    assert "Nothing to do" in again, again


def damage(host: Host, offset: int, blocks: int = 1) -> None:
    host.run(
        "dd", "if=/dev/urandom", "of=/dev/rig/leases", "bs=4096", f"seek={offset // 4096}", f"count={blocks}",
        "oflag=direct", "conv=notrunc",
    )  # fmt: skip


def offset_of(host: Host, guest_name: str) -> int:
    """Where the lease lies that QEMU of a guest has on its disk: as sanlock itself says."""
    lines = host.run("sanlock", "client", "status").out.splitlines()
    offsets = [int(line.split(":")[3]) for line in lines if line.startswith("r ")]
    return max(offsets)


def test_a_damaged_lease(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    offset = offset_of(node1, "web") // (1 << 22) * (1 << 22)
    node1.destroy(web)
    damage(node1, offset)
    words = node2.refused(web)
    assert "damaged" in words and "vmguard gc --repair" in words, words
    assert node2.vmguard("gc", "--repair", check=False).status == 1
    node1.vmguard("gc", "--repair")
    node2.start(web)
    node1.refused(guest("thief", [disk]))


def test_a_damaged_index(node1: Host, node2: Host, images: Images) -> None:
    """All of it: refused in words, what runs goes on, and nobody gets a second lease on what is held."""
    disk = images.raw("web.img")
    web, thief = guest("web", [disk]), guest("thief", [disk])
    node1.start(web)
    damage(node2, 4 << 20, 1024)
    words = node2.refused(thief)
    assert "index is damaged" in words and "gc --repair" in words, words
    assert "web" in node1.refused(thief), "what its own records say is still known"
    assert node1.state(web) == "running"
    node2.vmguard("gc", "--repair")
    assert "web" in node2.refused(thief)
    node1.destroy(web)
    node2.start(thief)


def test_the_device_is_not_there(node1: Host, node2: Host, images: Images) -> None:
    """Its name is gone for a while: not active, say. What runs goes on."""
    disk = images.raw("web.img")
    web = guest("web", [disk])
    node1.start(web)
    node1.run("mv", "/dev/rig/leases", "/dev/rig/elsewhere")
    try:
        words = node1.refused(guest("other", [images.raw("other.img")]))
        assert "no such device" in words and "lvchange" in words, words
        assert node1.state(web) == "running"
        assert "web" in node2.refused(guest("thief", [disk]))
    finally:
        node1.run("mv", "/dev/rig/elsewhere", "/dev/rig/leases")
    node1.start(guest("other", [images.path("other.img")]))


@pytest.fixture
def small(swept: None) -> Iterator[OnDevice]:
    class Small(OnDevice):
        megabytes = 40  # 8 places

    made = Small("small-device", hosts=2)
    try:
        made.boot()
        yield made
    finally:
        made.destroy()


def test_a_full_device_grows(small: OnDevice) -> None:
    """Guests whose leases there are start, others do not; and all do when it is larger."""
    from hosts import command

    node1, node2 = small.hosts
    images = Images(small, small.shared + "/full")
    first = guest("first", [images.raw("first.img")])
    for host in (node1, node2):  # what lies under the image is each host's own here
        host.start(first)
        host.destroy(first)
    refused = ""
    for number in range(8):
        done = node1.try_start(guest(f"g{number}", [images.raw(f"{number}.img")]))
        if done.status:
            refused = done.err
            break
    assert "all its 8 places" in refused and "lvextend" in refused, refused
    node2.start(first)
    assert "warning" in node1.vmguard("status", check=False).out
    with open(small.backing, "r+b") as file:
        file.truncate(80 << 20)
    for device in small.store_loops:
        command("losetup", "--set-capacity", device)
    node1.start(guest(f"g{number}", [images.path(f"{number}.img")]))
    node2.start(guest("more", [images.raw("more.img")]))


def test_it_costs_little(node1: Host, images: Images) -> None:
    """The first start makes the leases, which takes longer; the second finds them."""
    web = guest("web", [images.raw("web.img")])
    seconds = []
    for _ in range(4):
        began = time.monotonic()
        node1.start(web)
        seconds.append(time.monotonic() - began)
        node1.destroy(web)
        eventually(lambda: not node1.leftovers(), "at rest")
    print("starts:", *(f"{one * 1000:.0f} ms" for one in seconds))
