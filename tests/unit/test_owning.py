# SPDX-License-Identifier: LGPL-2.1-or-later
"""Leases become a process's own, while others ask about it."""

import os
import signal
import time
from pathlib import Path
from typing import List
from uuid import uuid4

import pytest
from conftest import Pair

from vmguard import guard, host, instance, paths
from vmguard.claims import Claim, Mode
from vmguard.config import Config
from vmguard.domain import Domain
from vmguard.giving import end, give_back
from vmguard.host import Process, Qemu
from vmguard.instance import Instance, Want
from vmguard.leases import client, lockspace, slots, status
from vmguard.member import Here, Tolerance
from vmguard.owning import hand_over, is_known, kept_by_source, unwatch_orphans
from vmguard.taking import take, wants_of

LEASES = 40


def test_somebody_asks_about_the_very_process(pair: Pair, identity: str, tmp_path: Path) -> None:
    """sanlock answers EBUSY to the second of two commands about one process: that is no lost lease."""
    guest = pair.one.guest()
    qemu = host.process(guest.pid)
    assert qemu is not None

    def work() -> List[int]:
        paths.RUN = str(tmp_path)
        this = Here(Config(), pair.store, 1, 1, {}, host.boot_id())
        claims = [Claim(f"{identity}/{n}", Mode.EXCLUSIVE, "disk", "/d", "") for n in range(LEASES)]
        leases = [pair.store.ensure(claim.identity) for claim in claims]
        with client.Connection() as connection:
            versions = [connection.acquire(lease, shared=False) for lease in leases]
        askers: List[int] = []
        while len(askers) < 3 and 0 not in askers:
            askers.append(os.fork())
        if 0 in askers:
            while True:
                client._inquire(-1, guest.pid)
        try:
            time.sleep(0.05)
            wants = tuple(Want(claim, lver) for claim, lver in zip(claims, versions))
            me = host.process(os.getpid())
            assert me is not None
            held = Instance(instance.new_id(""), "", "web", this.boot_id, me, "held", wants, 0.0, 1, 1)
            running = hand_over(held, qemu, this)
        finally:
            for asker in askers:
                os.kill(asker, signal.SIGKILL)
                os.waitpid(asker, 0)
        assert running.owner == "qemu"
        return versions

    assert len(pair.one.run(work)) == LEASES
    guest.kill()


def test_a_source_is_asked_to_end_only_while_it_is_the_source(pair: Pair, identity: str, tmp_path: Path) -> None:
    """The lease beside the ticket may be that of the next migration by now, of the same guest, and to the same host."""
    uuid = str(uuid4())
    claims = [Claim(name, Mode.EXCLUSIVE, "disk", "/d", "") for name in (f"vm:{uuid}", identity)]

    def come(host_id: int, coming: str) -> Instance:
        return _come(_here(pair, host_id, tmp_path), uuid, claims, coming)

    def let_go() -> None:
        this = _here(pair, 1, tmp_path)
        with client.Connection() as connection:
            for claim in claims:
                give_back(pair.store.lease(claim.identity), False, claim, this, connection)

    def kept(one: Instance) -> List[str]:
        return [lease.name for lease, _ in kept_by_source(one, _here(pair, 2, tmp_path))]

    source = pair.one.run(lambda: come(1, ""))
    there = pair.two.run(lambda: come(2, "migrate"))
    assert all(want.ticket is not None and want.lver is None for want in there.wants)
    assert len(pair.two.run(lambda: kept(there))) == 2
    pair.one.run(let_go)
    assert pair.two.run(lambda: kept(there)) == []
    again = pair.one.run(lambda: come(1, "migrate"))  # before the handover has seen that they are free
    assert [want.lver for want in again.wants] == [(want.lver or 0) + 1 for want in source.wants]
    assert pair.two.run(lambda: kept(there)) == []


def _here(pair: Pair, host_id: int, run: Path) -> Here:
    paths.RUN = paths.LOG = str(run)
    host.qemu_processes = lambda: ()  # those of the machine that the tests run on are not ours
    states = {state.host_id: state for state in client.hosts(pair.store.lockspace)}
    return Here(Config(), pair.store, host_id, lockspace.generation(pair.store), states, host.boot_id())


def _come(this: Here, uuid: str, claims: List[Claim], coming: str) -> Instance:
    me = host.process(os.getpid())
    assert me is not None
    one = Instance(
        f"{uuid}.{this.host_id}", uuid, "web", this.boot_id, me, "intent", wants_of(claims, this), 0.0, this.host_id,
        this.generation, coming=coming,
    )  # fmt: skip
    return take(one, [], this, Tolerance())


def test_a_migration_comes_again_after_its_hook_was_killed(pair: Pair, identity: str, tmp_path: Path) -> None:
    """What sanlock finished after that, and after the sweep, no record wants."""
    uuid = str(uuid4())
    claims = [Claim(name, Mode.EXCLUSIVE, "disk", "/d", "") for name in (f"vm:{uuid}", identity)]
    pair.one.run(lambda: _come(_here(pair, 1, tmp_path), uuid, claims, ""))

    def again() -> List[bool]:
        with client.Connection() as connection:
            connection.acquire(slots.ticket(pair.store.lease(identity)), shared=False)
        one = _come(_here(pair, 2, tmp_path), uuid, claims, "migrate")
        return [want.ticket is not None for want in one.wants]

    assert pair.two.run(again) == [True, True]


def test_whose_record_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any user can start a process with a guest's uuid, or with none: the record of the guest is not its."""
    records = [Instance(f"i{pid}", uuid, "web", "", Process(1, 1), "running", (), 0, qemu=Process(pid, 1))
               for pid, uuid in ((7, "u"), (8, ""))]  # fmt: skip
    parents = {9: [7, 2], 10: [2], 11: [2]}
    monkeypatch.setattr(host, "parents", lambda pid: parents.get(pid, []))

    def known(pid: int, uuid: str) -> bool:
        return is_known(Qemu(Process(pid, 1), uuid, "web", False), records)

    assert known(7, "u") and known(8, "")
    assert known(9, "u"), "a script that libvirt has started, which runs QEMU"
    assert not known(10, "u") and not known(11, "")
    records.append(records[0]._replace(qemu=None, state="held"))
    assert known(10, "u"), "one that has not met its QEMU yet"


def test_a_guest_that_ran_before_is_watched(pair: Pair, tmp_path: Path) -> None:
    """Its QEMU is unknown to sanlock, and nothing else would end it when its leases are lost with their storage."""

    def work() -> List[bool]:
        this = _here(pair, 1, tmp_path)
        facts = client.daemon_facts()._replace(use_watchdog=True)
        client.daemon_facts = lambda: facts
        qemu = host.process(os.getppid())
        assert qemu is not None
        guard.chosen = lambda name, uuid: qemu
        guard.look = lambda one, qemu, this: one
        found = []
        for ends in (False, True):
            if ends:
                (one,) = instance.load_all()
                host.alive = lambda one: False
                end(one, this)
            else:
                guard.adopt(Domain("web", str(uuid4()), ()), qemu, this)
            found += [one.used_by_orphans for one in status.status().spaces if one.name == this.store.lockspace]
        return found

    assert pair.one.run(work) == [True, False]


def test_a_guest_that_waits_for_its_drain_mark_is_watched(pair: Pair, identity: str, tmp_path: Path) -> None:
    """It has migrated in, its source is still writing out, and what it writes itself is in the page cache of this host."""

    def work() -> List[bool]:
        this = _here(pair, 1, tmp_path)
        client.used_by_orphans(this.store.lockspace, True)
        me = host.process(os.getpid())
        assert me is not None
        found = []
        for drains in (True, False):
            want = Want(Claim(identity, Mode.EXCLUSIVE, "disk", "/d", ""), 1, drains=drains)
            one = Instance("u.1", "u", "web", this.boot_id, me, "running", (want,), 0.0, 1, this.generation, owner="qemu")
            instance.write(one)
            unwatch_orphans(this, was_hosts=True)
            found += [one.used_by_orphans for one in status.status().spaces if one.name == this.store.lockspace]
        return found

    assert pair.one.run(work) == [True, False]
