# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest writes what it had a shared lease for: that lease becomes an exclusive one, and is never free meanwhile."""

import os
import signal
from pathlib import Path
from typing import Any, Callable, Iterator, List, Tuple

import pytest
from conftest import Pair
from sanlock_hosts import Guest
from test_giving import _begin, _this

from vmguard import host, instance
from vmguard.claims import Claim, Mode
from vmguard.errors import Error, InUse, SanlockFailed
from vmguard.instance import Instance
from vmguard.leases import Lease, client, slots
from vmguard.member import Here
from vmguard.owning import hand_over
from vmguard.surprise import claim_more

BASE = ("disk vda, backing file 1", "/base", "it is read")


def reader(this: Here, identity: str) -> Instance:
    """A guest that reads a base image; the process of the tests is its QEMU."""
    qemu = host.process(os.getppid())
    assert qemu is not None
    return hand_over(_begin(this, Claim(identity, Mode.SHARED, *BASE)), qemu, this)


def look(this: Here, identity: str, one: Instance) -> Tuple[Instance, List[Error]]:
    """It has been found to write it."""
    against: List[Error] = []
    assert one.qemu is not None
    return claim_more([Claim(identity, Mode.EXCLUSIVE, *BASE)], one, one.qemu, this, against), against


def modes(one: Instance) -> List[Tuple[str, bool]]:
    return [(want.claim.mode.value, want.missing) for want in one.wants]


def tries(other: Guest, lease: Lease, shared: bool = False) -> int:
    """What a guest of the other host is told that wants it."""
    try:
        other.call("acquire", lease, shared)
    except SanlockFailed as error:
        return error.code
    other.call("release", lease, shared)
    return 0


@pytest.fixture
def other(pair: Pair) -> Iterator[Guest]:
    found = pair.two.guest()
    yield found
    found.kill()


def test_it_becomes_an_exclusive_lease(pair: Pair, other: Guest, identity: str, tmp_path: Path) -> None:
    def work() -> Any:
        this = _this(pair, tmp_path)
        one = reader(this, identity)
        lease = this.store.lease(identity)
        assert tries(other, lease) == -11 and tries(other, lease, shared=True) == 0
        one, against = look(this, identity, one)
        assert not against and modes(one) == [("exclusive", False)], (against, one)
        assert instance.load_all() == [one], "an intent is left"
        assert one.wants[0].lver == client.version(lease)
        assert tries(other, lease) == -243
        note = pair.store.note(identity)
        assert note is not None and (note.lver, note.writer and note.writer.uuid) == (one.wants[0].lver, one.uuid)
        return [lock[1:] for lock in client.orphans(pair.store.lockspace) if lock.name == lease.name], one.wants[0].lver

    orphans, lver = pair.one.run(work)
    assert orphans == [(lver, False, None)]


STEPS = ("intent", "take_up", "convert", "after", "record", "forget")


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_each_step(directory: Pair, identity: str, tmp_path: Path, step: str) -> None:
    """No record ever claims what its host has not got, no other host gets it, and the next look goes on."""

    def dies(at: Any, name: str, after: bool = False) -> None:
        real = getattr(at, name)

        def work(*arguments: Any, **named: Any) -> Any:
            done = real(*arguments, **named) if after else None
            os.kill(os.getpid(), signal.SIGKILL)
            return done

        setattr(at, name, work)

    def work() -> None:
        this = _this(directory, tmp_path)
        one = reader(this, identity)
        write = instance.write
        if step == "record":
            instance.write = lambda new: write(new) if new.id != one.id else os.kill(os.getpid(), signal.SIGKILL)
        elif step == "intent":
            dies(instance, "write", after=True)
        elif step == "forget":
            dies(instance, "forget")
        else:
            dies(client.Connection, "convert" if step == "after" else step, after=step in ("after", "take_up"))
        look(this, identity, one)

    with pytest.raises(AssertionError, match="the child died"):
        directory.one.run(work)

    def at_rest() -> Any:
        this = _this(directory, tmp_path)
        (one,) = (one for one in instance.load_all() if one.state == "running")
        return modes(one), [owner.shared for owner in client.owners(this.store.lease(identity)) if owner.host_id == 1]

    (mode,), (shared,) = directory.one.run(at_rest)
    assert mode in (("shared", False), ("exclusive", False)) and not (mode[0] == "exclusive" and shared)
    other = directory.two.guest()
    lease = directory.store.lease(identity)
    assert tries(other, lease) in (-11, -243), "another host has got what this one reads"

    def again() -> Any:
        this = _this(directory, tmp_path)
        (one,) = (one for one in instance.load_all() if one.state == "running")
        one, against = look(this, identity, one)
        assert one.wants[0].lver == client.version(this.store.lease(identity))
        return modes(one), against, len(instance.load_all())

    assert directory.one.run(again) == ([("exclusive", False)], [], 1)
    assert tries(other, lease) == -243
    other.kill()


def kept(pair: Pair, identity: str, tmp_path: Path, before: Callable[[], Any]) -> None:
    """Something is in the way: it stays a reader."""

    def work() -> Any:
        this = _this(pair, tmp_path)
        one = reader(this, identity)
        before()
        one, against = look(this, identity, one)
        assert len(against) == 1 and isinstance(against[0], InUse), against
        assert modes(one) == [("shared", False), ("exclusive", True)] and one.wants[1].contested
        lease = this.store.lease(identity)
        return [owner.shared for owner in client.owners(lease) if owner.host_id == 1], len(instance.load_all())

    assert pair.one.run(work) == ([True], 1)


def test_another_host_reads_it_too(pair: Pair, other: Guest, identity: str, tmp_path: Path) -> None:
    kept(pair, identity, tmp_path, lambda: other.call("acquire", pair.store.lease(identity), True))


def test_another_host_comes_to_read_it_this_moment(pair: Pair, other: Guest, identity: str, tmp_path: Path) -> None:
    """After our look at the owners: sanlock itself sees it."""
    take_up = client.Connection.take_up

    def late(self: client.Connection, *arguments: Any, **named: Any) -> int:
        if not other.call("held"):
            other.call("acquire", pair.store.lease(identity), True)
        return take_up(self, *arguments, **named)

    kept(pair, identity, tmp_path, lambda: setattr(client.Connection, "take_up", late))


def test_a_guest_on_its_way_has_the_ticket(pair: Pair, other: Guest, identity: str, tmp_path: Path) -> None:
    kept(pair, identity, tmp_path, lambda: other.call("acquire", slots.ticket(pair.store.lease(identity)), False))
