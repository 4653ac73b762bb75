# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who wrote last: that a saved state is not woken up beside what others have written since."""

import os
import signal
import time
from pathlib import Path
from typing import Any, List, Optional

import pytest
from conftest import Pair
from test_giving import _begin, _this

from vmguard import giving, guard, host, instance, surprise, taking, writers
from vmguard.arrivals import Arrival, Image
from vmguard.claims import GUESTS_SHARE_IT, Claim, Mode, Needs, claim_on_itself
from vmguard.domain import Domain
from vmguard.errors import Error, InUse, StateStale
from vmguard.instance import Want
from vmguard.leases import Writer, client, slots
from vmguard.member import Here, Tolerance
from vmguard.owning import hand_over

OURS = "the guest may write it"


def saved(this: Here, identity: str) -> str:
    """A guest has had a disk for itself, and is put to sleep: its uuid."""
    one = _begin(this, Claim(identity, Mode.EXCLUSIVE, "disk vda", "/d", OURS, written=True))
    giving.end(one, this)
    return one.uuid


def last(this: Here, identity: str) -> Optional[Writer]:
    """Who counts as the last writer, for one who acquires it now. It is given back at once."""
    claim = Claim(identity, Mode.EXCLUSIVE, "disk vda", "/d", OURS)
    with client.Connection() as connection:
        lver = taking.acquire(claim, this, connection)
        found = writers._writer_before(Want(claim, lver), this)
        connection.release(this.store.lease(identity))
    return found


@pytest.mark.parametrize("why, written", [("the guest reads it", False), (GUESTS_SHARE_IT, True)], ids=["read", "shared"])
def test_who_shares_a_disk_may_have_written_it(pair: Pair, identity: str, tmp_path: Path, why: str, written: bool) -> None:
    def work() -> bool:
        this = _this(pair, tmp_path)
        uuid = saved(this, identity)
        giving.end(_begin(this, Claim(identity, Mode.SHARED, "disk vda", "/d", why, written=written)), this)
        found = last(this, identity)
        return found is not None and found.uuid == uuid

    assert pair.one.run(work) is not written


def test_a_refused_start_of_one_who_shares_it_voids_nothing(pair: Pair, identity: str, tmp_path: Path) -> None:
    theirs = pair.two.guest()

    def work() -> bool:
        this = _this(pair, tmp_path)
        uuid = saved(this, identity)
        taken = this.store.ensure(f"{identity}/taken")
        theirs.call("acquire", taken, False)
        # Last in the order of taking.
        claims = (
            Claim(identity, Mode.SHARED, "disk vda", "/d", GUESTS_SHARE_IT, written=True),
            Claim(f"{identity}/taken", Mode.SHARED, "disk vdb", "/t", "the guest reads it"),
        )
        with pytest.raises(InUse):
            _begin(this, *claims)
        found = last(this, identity)
        return found is not None and found.uuid == uuid

    assert pair.one.run(work)
    theirs.kill()


def test_what_a_running_guest_came_to_have_it_may_have_written(directory: Pair, identity: str, tmp_path: Path) -> None:
    """It was plugged in; the look at it was killed between the lease and its note, and what it left was swept."""

    def dies() -> None:
        this = _this(directory, tmp_path)
        saved(this, identity)
        qemu = host.process(os.getppid())
        assert qemu is not None
        one = hand_over(_begin(this, Claim(f"{identity}/own", Mode.EXCLUSIVE, "disk vda", "/v", OURS)), qemu, this)
        taking.write_notes = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        against: List[Error] = []
        surprise.claim_more([Claim(identity, Mode.EXCLUSIVE, "disk vdb", "/d", OURS)], one, qemu, this, against)

    with pytest.raises(AssertionError, match="the child died"):
        directory.one.run(dies)

    def swept() -> Any:
        this = _this(directory, tmp_path)
        return len(giving.sweep(this)), last(this, identity)

    assert directory.one.run(swept) == (1, None)


def test_a_start_that_was_killed_has_written_nothing(directory: Pair, identity: str, tmp_path: Path) -> None:
    def dies() -> None:
        this = _this(directory, tmp_path)
        saved(this, identity)
        taking.write_notes = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        _begin(this, Claim(identity, Mode.EXCLUSIVE, "disk vda", "/d", OURS))

    with pytest.raises(AssertionError, match="the child died"):
        directory.one.run(dies)

    def swept() -> bool:
        this = _this(directory, tmp_path)
        return not giving.sweep(this) and last(this, identity) is not None

    assert directory.one.run(swept)


@pytest.mark.parametrize("begun", [True, False], ids=["ran", "did-not-run"])
def test_a_state_whose_guest_ran_without_its_started(directory: Pair, identity: str, tmp_path: Path, begun: bool) -> None:
    """The hook was late, libvirt let the guest go on, and it ended before an errand came: the state is used up all the same."""

    def work() -> bool:
        this = _this(directory, tmp_path)
        uuid = saved(this, identity)
        domain, me = Domain("web", uuid, ()), host.process(os.getpid())
        assert me is not None
        disk = Claim(identity, Mode.EXCLUSIVE, "disk vda", "/d", OURS, written=True)
        needs = Needs((claim_on_itself(domain), disk))
        arrival = Arrival("restore", Image("mark", time.time()))
        for _ in range(2):
            one = guard.admit(domain, needs, arrival, giving.sweep(this), this, me, Tolerance())
            guard.errand.see_to = lambda one: None
            if begun:
                guard.leave_to_errand("web", True)
            giving.end(giving.over(one), this)
            assert not os.listdir(tmp_path / "begun") if begun else not (tmp_path / "begun").exists()
        return True

    if begun:
        with pytest.raises(StateStale) as caught:
            directory.one.run(work)
        assert caught.value.how in ("since", "again")
    else:
        assert directory.one.run(work)


def test_a_drain_mark_of_an_earlier_membership_is_none(directory: Pair, identity: str, tmp_path: Path) -> None:
    """Its record waits for the page cache to be written out; the next guest on the device needs a mark that others see."""

    def work() -> Any:
        this = _this(directory, tmp_path)
        claim = Claim(identity, Mode.EXCLUSIVE, "disk vda", "/d", OURS, True, True, cached=True)
        one = _begin(this, claim)
        (want,) = one.wants
        assert want.drain is not None
        before = one._replace(state="draining", wants=(want._replace(lver=None),), generation=this.generation - 1)
        with client.Connection() as connection:  # as sanlock forgets them
            for place in slots.of(this.store.lease(identity)):
                connection.give_back(place)
        instance.write(before)
        after = guard.admit(Domain("db", "u", ()), Needs((claim,)), None, [before], this, one.libvirtd, Tolerance())
        mark = slots.drain(this.store.lease(identity))
        return after.wants[0].drain, slots.owner(mark), (this.host_id, this.generation)

    version, owner, here = directory.one.run(work)
    assert owner == (*here, version)
