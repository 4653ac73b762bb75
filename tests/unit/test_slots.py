# SPDX-License-Identifier: LGPL-2.1-or-later
"""The three leases of one identity, and the one read that says that nobody has one: held against sanlock's own answer."""

import os
from typing import Tuple

import pytest
from conftest import Pair

from vmguard.leases import Lease, client, slots


def free_for_both(pair: Pair, place: Lease) -> Tuple[bool, bool]:
    """By our own read, and by sanlock's answer on the other host."""
    return slots.surely_free(place), not pair.two.run(lambda: client.owners(place))


@pytest.mark.parametrize("slot", ["lease", "ticket", "drain"])
def test_the_one_read_and_sanlock_say_the_same(pair: Pair, identity: str, slot: str) -> None:
    pair.one.run(lambda: pair.store.ensure(identity))
    place = pair.store.slot(identity, slot)
    assert free_for_both(pair, place) == (True, True)

    def hold() -> Tuple[bool, bool]:
        with client.Connection() as connection:
            connection.acquire(place, shared=False)
            held = free_for_both(pair, place)
            others = [free_for_both(pair, other) for other in slots.of(pair.store.lease(identity)) if other != place]
            assert others == [(True, True)] * 2, "the slots are each other's"
            connection.release(place)
            return held

    assert pair.one.run(hold) == (False, False)
    assert free_for_both(pair, place) == (True, True)


def test_what_is_not_quite_this_lease_is_not_surely_free(pair: Pair, identity: str) -> None:
    lease = pair.one.run(lambda: pair.store.ensure(identity))
    assert slots.surely_free(lease)
    assert not slots.surely_free(lease._replace(name=lease.name + ".t")), "of another name"
    assert not slots.surely_free(lease._replace(lockspace="vmguard-0000000000000000")), "of another lockspace"
    assert not slots.surely_free(lease._replace(path=lease.path + "x")), "missing"
    with open(lease.path, "r+b") as file:
        file.seek(lease.offset)
        file.write(b"\0" * 4)
    assert not slots.surely_free(lease), "no magic number"
    if pair.store.kind == "directory":
        os.truncate(lease.path, 100)
        assert not slots.surely_free(lease), "cut off"


def test_names_of_slots_lead_back_to_them(pair: Pair, identity: str) -> None:
    pair.one.run(lambda: pair.store.ensure(identity))
    for place in slots.of(pair.store.lease(identity)):
        assert slots.names(pair.store.lease(identity).name)[place.offset // (1 << 20) % 4] == place.name
        assert pair.store.lease_of_name(place.name) == place
