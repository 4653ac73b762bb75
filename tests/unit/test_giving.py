# SPDX-License-Identifier: LGPL-2.1-or-later
"""Giving back, and what others may count upon meanwhile."""

import os
import shutil
from pathlib import Path
from typing import Dict, List, Sequence
from uuid import uuid4

import pytest
from conftest import Pair

from vmguard import cli, errand, gc, giving, guard, host, instance, membership, openfiles, paths, surprise, taking
from vmguard.audit import history
from vmguard.claims import Claim, Mode, Needs
from vmguard.config import Config
from vmguard.domain import Domain
from vmguard.errors import BadRequest, Error, LeaseLost, SanlockFailed
from vmguard.instance import Instance, Want
from vmguard.leases import Lease, client
from vmguard.member import Here, Tolerance, here
from vmguard.owning import hand_over
from vmguard.surprise import claim_more


def _this(pair: Pair, run: Path) -> Here:
    """In a child of the first host: be there, with records of its own."""
    paths.RUN = paths.LOG = str(run)
    host.qemu_processes = lambda: ()  # those of the machine that the tests run on are not ours
    return here(Config(store=pair.store.path, host_id=1))


def _begin(this: Here, *claims: Claim, others: Sequence[Instance] = ()) -> Instance:
    """The hook has said yes to a start, and there is no QEMU yet."""
    me = host.process(os.getpid())
    assert me is not None
    return guard.admit(Domain("web", str(uuid4()), ()), Needs(claims), None, others, this, me, Tolerance())


def _orphans(this: Here, identity: str) -> List[str]:
    name = this.store.lease(identity).name
    return [lock.name for lock in client.orphans(this.store.lockspace) if lock.name == name]


def test_a_start_that_begins_while_gc_asks_libvirt(directory: Pair, identity: str, tmp_path: Path) -> None:
    claim = Claim(identity, Mode.EXCLUSIVE, "disk", "/d", "")

    def work() -> List[List[str]]:
        this = _this(directory, tmp_path)
        gc.load = lambda: this.config
        begun: List[Instance] = []

        def ask() -> Dict[str, bool]:
            """It was off when libvirt looked; gc waits for the lock meanwhile."""
            if not begun:
                begun.append(_begin(this, claim))
            return {begun[0].uuid: True}

        found = [[one.text for one in gc.collect(ask)], [one.id for one in instance.load_all()], _orphans(this, identity)]
        gc.collect(ask)  # now it was there before libvirt was asked
        return [*found, [one.id for one in instance.load_all()], _orphans(this, identity)]

    said, records, orphans, records_later, orphans_later = directory.one.run(work)
    assert len(records) == len(orphans) == 1, said
    assert not records_later and not orphans_later


def test_it_is_written_down_once_that_a_guest_has_ended(directory: Pair, identity: str, tmp_path: Path) -> None:
    """Also where its leases can only be given back by a later sweep."""
    claim = Claim(identity, Mode.EXCLUSIVE, "disk", "/d", "")

    def work() -> List[str]:
        this = _this(directory, tmp_path)
        one = _begin(this, claim)
        giving.give_back, real = _not_now, giving.give_back
        for _ in range(3):
            with pytest.raises(SanlockFailed):
                giving.end(instance.load(one.id + ".json") or one, this)
        giving.give_back = real
        giving.end(instance.load(one.id + ".json") or one, this)
        return [event["event"] for event in history.read(history.Wanted())]

    assert directory.one.run(work) == ["held", "released"]


def _not_now(*_: object) -> None:
    raise SanlockFailed("release", -210, "/d")


def test_what_a_guest_comes_to_have_later_is_written_down(directory: Pair, identity: str, tmp_path: Path) -> None:
    """What libvirt makes for it after `prepare`; and what its QEMU has open that nothing had named."""
    disk, nvram, log = (Claim(f"{identity}{n}", Mode.EXCLUSIVE, "x", f"/x{n}", "the guest may write it") for n in range(3))

    def work() -> List[List[object]]:
        this = _this(directory, tmp_path)
        one = guard._add(_begin(this, disk), Needs((nvram,)), this, Tolerance())
        me = host.process(os.getpid())
        assert me is not None
        surprise.hand_over = lambda one, *_: one
        openfiles.inspect = lambda *_: openfiles.Findings()
        openfiles.Findings.surprises = lambda _: ()
        assert surprise.look(one, me, this) == one
        openfiles.Findings.surprises = lambda _: (openfiles.Finding(_open(log), openfiles.Verdict.WRITTEN, log),)
        openfiles.claims_of = lambda _: (log,)
        one = surprise.look(one, me, this)
        giving.end(one, this)
        found = history.read(history.Wanted())
        return [[span.path, span.instance.count("."), span.ended] for span in history.spans(found)]

    assert directory.one.run(work) == [[f"/x{n}", 1, "released"] for n in range(3)]


def _open(claim: Claim) -> openfiles.Opened:
    return openfiles.Opened(claim.path, "file", (0, 1), 5, (0, 0), writable=True, active=True, storage=())


@pytest.mark.parametrize("runs", [True, False])
def test_gc_says_what_a_record_that_stays_is_about(runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that it would only set aside, or that may not be: nothing else can be said beside it."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    monkeypatch.setattr(gc, "load", lambda: Config(store="/x", host_id=1))
    qemu = host.Qemu(host.Process(1, 1), "u1", "web", False)
    monkeypatch.setattr(host, "qemu_processes", lambda: (qemu,) if runs else ())
    (tmp_path / "instances").mkdir()
    (tmp_path / "instances" / "u1.1.json").write_text("half")
    (found,) = gc.collect(dry_run=not runs)
    assert not found.mended and ("its guest runs" in found.text) is runs


def test_gc_lets_the_host_have_a_device_that_no_guest_has(directory: Pair, identity: str, tmp_path: Path) -> None:
    """The record of its guest could not be read, and was set aside; what udev reads was not."""
    claim = Claim(identity, Mode.EXCLUSIVE, "disk", "/d", "", device="253:9999")

    def work() -> List[List[str]]:
        this = _this(directory, tmp_path)
        gc.load = lambda: this.config
        folder = tmp_path / "udev"
        record = Path(instance.directory()) / f"{_begin(this, claim).id}.json"
        gc.collect()
        before = os.listdir(folder)
        record.write_text("half")
        said = [one.text for one in gc.collect() if one.what == "mark"]
        return [before, os.listdir(folder), said]

    before, after, said = directory.one.run(work)
    assert before == ["253:9999"] and after == [] and len(said) == 1 and "253:9999" in said[0]


def test_a_start_that_failed_and_whose_release_came_to_nothing(directory: Pair, identity: str, tmp_path: Path) -> None:
    """Its libvirtd lives, so that a sweep takes it for a start under way: nothing else would ever end it."""
    claim = Claim(identity, Mode.EXCLUSIVE, "disk", "/d", "")

    def work() -> List[List[str]]:
        this = _this(directory, tmp_path)
        errand.load = lambda: this.config
        errand._run(_begin(this, claim).id)
        return [[one.id for one in instance.load_all()], _orphans(this, identity)]

    assert directory.one.run(work) == [[], []]


def test_a_join_waits_for_no_start_that_is_over(directory: Pair, identity: str, tmp_path: Path) -> None:
    """sanlock hangs while libvirt releases it, so the hook is killed; then sanlock is restarted."""
    claim = Claim(identity, Mode.EXCLUSIVE, "disk", "/d", "")

    def work() -> List[str]:
        this = _this(directory, tmp_path)
        one = _begin(this, claim)
        guard.load = lambda: this.config
        xml = f"<domain type='kvm'><name>web</name><uuid>{one.uuid}</uuid></domain>".encode()

        def hangs(config: Config) -> Here:
            raise Killed

        guard.here = hangs
        try:
            guard.release(xml, one.libvirtd)
        except Killed:
            pass
        begun = [one.id for one in membership._beginning()]
        guard.here = here
        guard.sweep(this)
        return begun + [one.id for one in instance.load_all()] + _orphans(this, identity)

    assert directory.one.run(work) == []


class Killed(BaseException):
    pass


@pytest.mark.parametrize("state", ["intent", "held"])
def test_nobody_counts_upon_what_is_half_given_back(directory: Pair, identity: str, tmp_path: Path, state: str) -> None:
    """The shared lease of a base image is given back, the next one of the same record cannot be."""
    base = Claim(f"{identity}/base", Mode.SHARED, "backing file", "/base", "")
    disk, other = (Claim(f"{identity}/{name}", Mode.SHARED, "disk", f"/{name}", "") for name in ("z", "other"))

    def work() -> List[List[str]]:
        this = _this(directory, tmp_path)
        one = _begin(this, base, disk)
        if state == "intent":
            instance.write(one._replace(state=state))
        give_back = giving.give_back

        def fails(place: Lease, shared: bool, claim: Claim, this: Here, connection: client.Connection) -> None:
            if claim == disk:
                raise SanlockFailed("release", -16, claim.path)
            give_back(place, shared, claim, this, connection)

        giving.give_back = fails
        others = giving.sweep(this, starting=(one.uuid, one.libvirtd))
        before = _orphans(this, base.identity)
        _begin(this, base, other, others=others)
        after = _orphans(this, base.identity)
        giving.give_back = give_back
        giving.sweep(this)
        return [before, after, _orphans(this, base.identity), _orphans(this, disk.identity)]

    before, after, at_the_end, left = directory.one.run(work)
    assert not before and not left
    assert len(after) == len(at_the_end) == 1


def test_a_look_that_was_killed_is_not_in_its_own_way(directory: Pair, identity: str, tmp_path: Path) -> None:
    """It leaves an intent of the guest's own for what the guest has open."""
    disk, plugged = (Claim(f"{identity}/{name}", Mode.EXCLUSIVE, "disk", f"/{name}", "") for name in ("vda", "vdb"))

    def work() -> List[str]:
        this = _this(directory, tmp_path)
        one = _begin(this, disk)
        one = hand_over(one, one.libvirtd, this)
        instance.write(one._replace(id=one.id + ".found", wants=(Want(plugged),), state="intent", qemu=None))
        against: List[Error] = []
        one = claim_more([plugged], one, one.libvirtd, this, against)
        assert not against, against
        assert not any(want.missing for want in one.wants)
        assert [one.state for one in instance.load_all()] == ["running"]
        return _orphans(this, plugged.identity)

    assert len(directory.one.run(work)) == 1


def test_a_host_that_could_not_leave_has_not_left(directory: Pair, identity: str, tmp_path: Path) -> None:
    """Else nobody would have it join again when it is thrown out one day."""

    def work() -> List[bool]:
        this = _this(directory, tmp_path)
        membership.load = lambda: this.config
        with client.Connection() as connection:
            connection.acquire(this.store.ensure(identity), shared=False)  # of no record
        with pytest.raises(BadRequest):
            membership.leave_host()
        assert membership.lost(this.config) is False
        with client.Connection() as connection:
            connection.give_back(this.store.lease(identity))
        return [os.path.exists(membership._left())]

    assert directory.one.run(work) == [False]


def test_a_join_takes_up_what_a_dead_one_had_taken(directory: Pair, identity: str, tmp_path: Path) -> None:
    """A shared lease has no version that could have grown: what a guest has of it shows nothing, and it must not die of it."""
    disk = Claim(f"{identity}/disk", Mode.EXCLUSIVE, "disk", "/disk", "")
    base = Claim(f"{identity}/base", Mode.SHARED, "backing file", "/base", "")

    def work() -> List[str]:
        this = _this(directory, tmp_path)
        one = _begin(this, disk, base)
        # As if of an earlier membership, with all but the record taken again in this one.
        wants = tuple(want._replace(lver=want.lver and want.lver - 1) for want in one.wants)
        one = one._replace(wants=wants, generation=this.generation - 1)
        again = membership._again(one, one.libvirtd, this)
        assert [want.lver for want in again.wants] == [1, 0]
        return _orphans(this, disk.identity) + _orphans(this, base.identity)

    assert len(directory.one.run(work)) == 2


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
def test_a_pool_that_another_host_had_active(directory: Pair, identity: str, tmp_path: Path, first: bool) -> None:
    """What this host knows of its metadata is not true any more, whichever of its guests asks."""
    pool = Claim(identity, Mode.HOST, "thin pool", "/dev/vg/pool", "")

    def work() -> None:
        this = _this(directory, tmp_path)
        web = _begin(this, pool)
        db = _begin(this, pool, others=[web])
        assert [web.wants[0].lver, db.wants[0].lver] == [1, None]
        web, db = (one._replace(generation=this.generation - 1) for one in (web, db))
        instance.write(web)
        instance.write(db)
        with client.Connection() as connection:
            for _ in range(2):  # of this membership, and of another host
                giving.give_back(this.store.lease(identity), False, pool, this, connection)
                taking.acquire(pool, this, connection)  # sanlock may take a moment to give it back
                connection.release(this.store.lease(identity))
        with pytest.raises(LeaseLost):
            membership._again(web if first else db, web.libvirtd, this)

    directory.one.run(work)


def test_a_leftover_is_not_somebodys(directory: Pair, identity: str, tmp_path: Path) -> None:
    """A lease and a drain mark of which there is a note, and no record any more."""
    disk = Claim(identity, Mode.EXCLUSIVE, "disk", "/disk", "", others_see_it=True, cached=True)

    def work() -> List[int]:
        this = _this(directory, tmp_path)
        versions = []
        for _ in range(10):
            one = _begin(this, disk)
            instance.forget(one)
            versions.append(one.wants[0].lver or 0)
        return versions

    assert directory.one.run(work) == list(range(1, 11))


def test_a_lease_whose_file_was_replaced_keeps_no_others(directory: Pair, identity: str, tmp_path: Path) -> None:
    """As one that is damaged: its guest has ended, and nobody can read what it had."""
    claims = [Claim(f"{identity}/{name}", Mode.SHARED, "disk", f"/{name}", "") for name in ("a", "b")]

    def work() -> List[object]:
        this = _this(directory, tmp_path)
        one = _begin(this, *claims)
        path = this.store.lease(claims[0].identity).path
        shutil.copy(path, tmp_path / "copy")
        shutil.move(tmp_path / "copy", path)
        giving.end(one, this)
        return [instance.load_all(), *(_orphans(this, claim.identity) for claim in claims)]

    assert directory.one.run(work) == [[], [], []]


def test_a_leftover_that_is_free_on_disk_first(directory: Pair, identity: str, tmp_path: Path) -> None:
    """sanlock has freed it there, and is not done with it yet: that is a matter of a moment, and no refusal."""
    disk = Claim(identity, Mode.EXCLUSIVE, "disk", "/disk", "", others_see_it=True, cached=True)

    def work() -> List[object]:
        this = _this(directory, tmp_path)
        instance.forget(_begin(this, disk))
        acquire, answers = client.Connection.acquire, [-117, -11]

        def slow(self: client.Connection, lease: Lease, shared: bool, outlive: bool = True) -> int:
            if lease.name.endswith(".d") and answers:
                raise SanlockFailed("acquire", answers.pop(0), lease.path)
            return acquire(self, lease, shared, outlive)

        setattr(client.Connection, "acquire", slow)  # noqa: B010
        return [want.drain for want in _begin(this, disk).wants]

    assert directory.one.run(work) == [2]


def test_a_disk_in_use_again_when_its_last_guest_is_written_out(directory: Pair, identity: str, tmp_path: Path) -> None:
    """On the same host, which may have it: its page cache is one."""
    disk = Claim(identity, Mode.EXCLUSIVE, "disk", str(tmp_path / "none"), "")

    def work() -> List[str]:
        this = _this(directory, tmp_path)
        # It had migrated here, and died before it had the drain mark: its lease stood in for that.
        dead = _begin(this, disk)
        dead = dead._replace(state="draining", wants=tuple(want._replace(drains=True) for want in dead.wants))
        instance.write(dead)
        _begin(this, disk, others=[dead])
        giving.drained(dead, this)
        return _orphans(this, identity)

    assert len(directory.one.run(work)) == 1


def test_a_join_that_waits_for_a_start_is_tried_again(directory: Pair, identity: str, tmp_path: Path) -> None:
    """systemd tries what ends with 1, and not what ends with 2."""

    def work() -> int:
        this = _this(directory, tmp_path)
        _begin(this, Claim(identity, Mode.EXCLUSIVE, "disk", "/disk", ""))
        membership.load = lambda: this.config
        membership._STARTS_TAKE = 0.0
        membership.lockspace.state = lambda store, host_id: "out"
        return cli.main(["join"])

    assert directory.one.run(work) == 1
