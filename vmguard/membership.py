# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Joining and leaving the lockspace, with guests in mind.

A sanlock daemon that restarts has lost all leases of its host, while the QEMUs run on. The moment this host joins again,
its generation rises and every other host may take those leases. So a join first looks for guests that had leases: they
are stopped in their tracks (SIGSTOP), the host joins, and takes for each guest what it had. If a lease's version shows
that nobody was there in between, the guest goes on, from now on with its leases held by the host. If somebody was,
the guest is killed: a second writer is proven, and its next write would be the damage.
"""

import os
import signal
import time

from vmguard import events, host, hostlock, instance, paths
from vmguard._typing import List, NamedTuple, Optional, Tuple
from vmguard.claims import Mode
from vmguard.config import Config, load
from vmguard.deadline import step
from vmguard.errors import (
    BadRequest,
    CannotTell,
    Error,
    InUse,
    LeaseLost,
    Misconfigured,
    NotJoined,
    NotYet,
    SanlockFailed,
    StateUnproven,
    StoreBroken,
    StoreMoved,
)
from vmguard.giving import drain, sweep
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.leases import Lease, client, lockspace, slots
from vmguard.leases.store import Store
from vmguard.member import Here, here
from vmguard.owning import qemu_of
from vmguard.report import of_running
from vmguard.taking import HELD_HERE, MOMENT, OWNED, PATIENCE, acquire
from vmguard.writers import write_notes, writer_of


class Joined(NamedTuple):
    """What a join did."""

    was_member: bool
    kept: Tuple[str, ...] = ()  # domains that ran without leases and have them again
    killed: Tuple[str, ...] = ()  # domains whose disks somebody else had taken
    unsure: Tuple[str, ...] = ()  # domains that stay stopped: it could not be found out


def join_host() -> Joined:
    """
    Make this host a member of the lockspace of its store. Idempotent.

    Takes 2 io_timeouts + 1 s, up to 8 io_timeouts + 60 s more after a crash under another host name. Raises
    Misconfigured where this host was not set up, HostIdTaken, and the CannotTell kinds of store and sanlock.
    """
    config = load()
    if config.store is None or config.host_id is None:
        raise Misconfigured("/etc/vmguard", "this host was not set up", "run `vmguard setup`")
    mark_left(False)
    _activate(config.store)
    store = Store.open(config.store, config.cluster)
    end_of_patience = time.monotonic() + _STARTS_TAKE
    while True:
        with hostlock.held():
            if lockspace.state(store, config.host_id) == "joined" and not _any_lost(config):
                sweep(here(config))
                return Joined(was_member=True)
            beginning = _beginning()
            if not beginning:
                return _join_beside(_running(), store, config)
        # Its QEMU, which nobody could stop yet, would run while others may take what it has.
        if time.monotonic() > end_of_patience:
            names = ", ".join(sorted(one.name for one in beginning))
            raise NotYet(f"guests are just being started on this host: {names}", "run this again in a moment")
        time.sleep(0.05)


def _activate(path: str) -> None:
    """
    Make the volume of the store active, if it is one and is not. Nobody else does at boot: a shared volume group's are not
    activated by themselves. Raises StoreBroken with what LVM says.
    """
    if not path.startswith("/dev/") or os.path.exists(path):
        return
    import subprocess

    step("making the volume of the leases active")
    # -asy: shared, as all hosts need it at the same time; for a volume group that is not shared it is the same as -ay.
    command = ["lvchange", "-asy", path]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        why = done.stderr.strip().replace("\n", "; ") if done.returncode else ""
    except FileNotFoundError:
        return  # no LVM, no volume: whoever opens it says that it is not there
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    if why:
        raise StoreBroken(
            path,
            f"there is no such device, and `{' '.join(command)}` says: {why}",
            "start the locks of its volume group (`vgchange --lock-start VG`), then run `vmguard join`",
        )


# From the hook's yes to QEMU's process pass some 50 ms; on a host that starves, seconds.
_STARTS_TAKE = 30.0  # seconds


def _beginning() -> List[Instance]:
    """Starts of this boot to which the hook has said yes, and of which there is no QEMU yet."""
    boot = host.boot_id()
    return [
        one
        for one in instance.load_all()
        if one.state == "held"
        and one.boot_id == boot
        and host.process(one.libvirtd.pid) == one.libvirtd
        and qemu_of(one) is None
    ]


def _join_beside(running: List[Tuple[Instance, Process]], store: Store, config: Config) -> Joined:
    assert config.host_id is not None
    try:
        for one, qemu in running:
            instance.write(one._replace(frozen=True))
            _signal(qemu, signal.SIGSTOP)
        # The drain marks are void with the rest: what they stand for must be on the medium before.
        for one in instance.load_all():
            drain(one._replace(wants=tuple(want for want in one.wants if want.drains)))
        step("joining the lockspace")
        lockspace.join(store, config.host_id, host.key())
    except Error:
        # While it is no member, nobody can have taken what they had before sanlock calls this host dead. It may be one by
        # now, though: then what they had is free.
        now = lockspace.state(store, config.host_id)
        if now == "joined":
            _take_back(running, here(config))
        elif now != "joining":
            _thaw(running)
        raise
    return _take_back(running, here(config))


def _any_lost(config: Config) -> bool:
    """Whether a running guest was left stopped, or has leases of an earlier membership, by a join that died."""
    this = here(config)
    return any(one.frozen or one.generation != this.generation for one, _ in _running())


def _running() -> List[Tuple[Instance, Process]]:
    """Instances of this boot whose QEMU lives, with or without their leases."""
    found = []
    for one in instance.load_all():
        if one.boot_id == host.boot_id() and one.state in ("held", "running"):
            qemu = qemu_of(one)
            if qemu is not None:
                found.append((one, qemu))
    return found


def _signal(qemu: Process, number: int) -> None:
    if host.alive(qemu):
        try:
            os.kill(qemu.pid, number)
        except ProcessLookupError:
            pass


def _thaw(running: List[Tuple[Instance, Process]]) -> None:
    for _, qemu in running:  # all of them, before a record that cannot be written ends this
        _signal(qemu, signal.SIGCONT)
    for one, _ in running:
        instance.write(one._replace(frozen=False))


def _take_back(running: List[Tuple[Instance, Process]], this: Here) -> Joined:
    kept, killed, unsure = [], [], []
    for one, qemu in running:
        try:
            if one.generation == this.generation:
                _thaw([(one, qemu)])
                continue
            instance.write(_again(one, qemu, this))
        except (InUse, LeaseLost) as error:
            events.record("killed", of_running(error, one.name), domain=one.name, uuid=one.uuid, pid=qemu.pid)
            _signal(qemu, signal.SIGKILL)
            killed.append(one.name)
        except CannotTell as error:
            events.record("alarm", of_running(error, one.name), domain=one.name, uuid=one.uuid, pid=qemu.pid)
            unsure.append(one.name)
        else:
            _signal(qemu, signal.SIGCONT)
            kept.append(one.name)
            events.record("rejoined", f"{one.name} has its leases again", domain=one.name, uuid=one.uuid)
    sweep(this)
    return Joined(False, tuple(kept), tuple(killed), tuple(unsure))


def _again(one: Instance, qemu: Process, this: Here) -> Instance:
    """
    The leases of a running guest, taken anew as orphans of this host: sanlock has forgotten its QEMU for good.

    Raises LeaseLost or InUse where somebody had one in between.
    """
    records = [other for other in instance.load_all() if other.id != one.id]
    others = [other for other in records if other.generation == this.generation]
    have = {want.claim.identity for other in others for want in other.wants if not want.missing}
    # Of a layer that only one host may have active: its guests have one lease, and the record of one of them its version.
    versions = {
        want.claim.identity: want.lver
        for other in records
        for want in other.wants
        if other.generation == one.generation and want.claim.mode is Mode.HOST and want.lver is not None
    }
    # A join that died after taking some of them: those are orphans of ours, of this membership.
    already = {lock.name: lock for lock in client.orphans(this.store.lockspace)}

    def regain(want: Want, place: Lease, before: Optional[int], connection: client.Connection) -> int:
        found = already.get(place.name)
        if found is not None and found.shared and want.claim.mode is Mode.SHARED:
            return found.lver
        if found is not None:
            lver = found.lver
        elif want.claim.mode is Mode.SHARED and place.name == this.store.lease(want.claim.identity).name:
            return acquire(want.claim, this, connection)
        else:
            lver = _again_exclusively(want, place, connection)
        # Each exclusive acquire adds one: ours, and no other. So nobody else got in, whoever has what stands beside it.
        if before is not None and lver != before + 1:
            raise LeaseLost(want.claim, before + 1, lver)
        return lver

    wants = []
    with client.Connection() as connection:
        for want in one.wants:
            lease = this.store.lease(want.claim.identity)
            if want.missing or (want.claim.identity in have and want.claim.mode is not Mode.EXCLUSIVE):
                wants.append(want._replace(lver=None))  # another record has it by now
                continue
            if want.ticket is not None:
                want = want._replace(ticket=regain(want, slots.ticket(lease), want.ticket, connection))
                if want.lver is None:
                    _see_nobody_wrote(want, one, this)
            if want.lver is not None or want.ticket is None:
                before = versions.get(want.claim.identity) if want.lver is None else want.lver
                want = want._replace(lver=regain(want, lease, before, connection))
            if want.drain is not None:
                want = want._replace(drain=regain(want, slots.drain(lease), None, connection))
            wants.append(want)
    if client.daemon_facts().use_watchdog:
        client.used_by_orphans(this.store.lockspace, True)
    again = one._replace(
        wants=tuple(wants), generation=this.generation, state="running", owner="host", qemu=qemu, frozen=False
    )
    for want in again.wants:
        if not want.missing:
            write_notes(want, again, this, writer_of(want, again))
    return again


def _see_nobody_wrote(want: Want, one: Instance, this: Here) -> None:
    """
    Whether nobody has come in by the lease while the ticket was void: a start acquires the lease alone. Whoever does so from
    now on sees the ticket.

    Raises LeaseLost where the note of the lease names another writer, StateUnproven where it says nothing.
    """
    note = this.store.note(want.claim.identity)
    if note is None or note.writer is None or note.lver != client.version(this.store.lease(want.claim.identity)):
        raise StateUnproven(want.claim, 0.0)
    if note.writer.uuid != one.uuid:
        raise LeaseLost(want.claim, None, note.lver)


def _again_exclusively(want: Want, place: Lease, connection: client.Connection) -> int:
    """
    Acquire a lease or a slot whatever stands beside it: the other end of a migration of this same guest, perhaps.

    Raises LeaseLost where it is somebody's.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return connection.acquire(place, shared=False)
        except SanlockFailed as error:
            if error.code in OWNED | HELD_HERE:
                raise LeaseLost(want.claim, want.lver, None) from error
            if error.code not in MOMENT or time.monotonic() > end:
                raise
        time.sleep(0.01)


def leave_host() -> bool:
    """
    Leave the lockspace, that of a store whose place another one has taken, too. False if this host was no member.

    Raises BadRequest while a guest here needs its leases: sanlock would kill it.
    """
    config = load()
    if config.store is None or config.host_id is None:
        raise Misconfigured("/etc/vmguard", "this host was not set up", "run `vmguard setup`")
    store = Store.look(config.store)
    if store.facts.moved is None:
        store = Store.open(config.store, config.cluster)
    with hostlock.held():
        if lockspace.state(store, config.host_id) == "out":
            mark_left(True)
            return False
        try:
            left = sweep(here(config))
        except (NotJoined, StoreMoved):
            left = []
        if left:
            names = ", ".join(sorted(one.name for one in left))
            raise BadRequest(f"guests on this host need their leases: {names}", "stop or migrate them first")
        mark_left(True)
        try:
            lockspace.leave(store, config.host_id)
        except BadRequest:
            mark_left(False)  # it is a member still
            raise
        return True


def _left() -> str:
    return os.path.join(paths.RUN, "left")


def mark_left(has: bool) -> None:
    """Remember that somebody has made this host leave, so that nobody else has it join again; or forget it."""
    try:
        if has:
            os.close(os.open(_left(), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        else:
            os.unlink(_left())
    except OSError:
        pass  # the agent would join again what somebody made leave, or leave it to him: no harm is in either


def lost(config: Config) -> bool:
    """
    Whether this host ought to be a member and is none: it lost its leases with the storage of the store, or with sanlock,
    and nobody has made it leave. Raises Misconfigured, and the CannotTell kinds of store and sanlock.
    """
    if config.store is None or config.host_id is None or os.path.exists(_left()):
        return False
    store = Store.open(config.store, config.cluster)
    # This question first, which costs little: for the state sanlock lists every lease that the host has.
    if client.joined(store.lockspace, config.host_id, store.lockspace_path, store.lockspace_offset, store.sector):
        return False
    return lockspace.state(store, config.host_id) == "out"
