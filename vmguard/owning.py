# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Leases become QEMU's own.

From then on sanlock frees them when QEMU dies, and kills QEMU when they are lost, with no process of ours alive.
"""

import time

from vmguard import host, instance, libvirtstate
from vmguard._typing import Dict, Iterable, Optional, Sequence, Tuple
from vmguard.claims import Mode
from vmguard.errors import LeaseLost, SanlockFailed
from vmguard.holders import gone
from vmguard.host import Process, Qemu
from vmguard.instance import Instance, Want
from vmguard.leases import Lease, Lock, client, slots
from vmguard.member import Here
from vmguard.taking import HELD_HERE, MOMENT, NOT_JOINED, ORPHAN_HERE, OWNED, OWNER_SILENT
from vmguard.writers import write_note, writer_of

BUSY = {-16}  # another command about the same process is under way: that says nothing about a lease

# Between the end of a connection and what sanlock makes of it lie milliseconds.
_SETTLES = 1.0  # seconds


def qemu_of(one: Instance) -> Optional[Process]:
    """The living QEMU of an instance: the one it was handed to, else one that carries its uuid."""
    if one.qemu is not None:
        return one.qemu if host.alive(one.qemu) else None
    return chosen(one.name, one.uuid)


def chosen(name: str, uuid: str) -> Optional[Process]:
    """
    The living QEMU of a domain: of several that carry its uuid the one that libvirt has started. Any user can start a
    process with these arguments, and leases that it got would end with it.
    """
    found = [qemu.process for qemu in host.qemu_processes() if qemu.uuid == uuid]
    if len(found) < 2:
        return found[0] if found else None
    pid = libvirtstate.pid_of(name, uuid)
    return next((one for one in found if one.pid == pid), None) or max(found, key=lambda one: one.start)


def record_of(qemu: Qemu, records: Iterable[Instance]) -> Optional[Instance]:
    """The record of this very QEMU; else one of its domain that has not met its QEMU yet."""
    found = [one for one in records if one.qemu == qemu.process]
    found = found or [one for one in records if one.qemu is None and one.uuid == qemu.uuid]
    return found[0] if found else None


def is_known(qemu: Qemu, records: Sequence[Instance]) -> bool:
    """
    Whether a record is of this QEMU; or of an emulator that runs it as its child: what libvirt has started has the leases.
    """
    if record_of(qemu, records) is not None:
        return True
    mine = [one.qemu.pid for one in records if one.uuid == qemu.uuid and one.qemu is not None]
    return bool(mine) and not set(mine).isdisjoint(host.parents(qemu.process.pid))


def _places(want: Want, this: Here) -> Tuple[Tuple[Lease, int], ...]:
    """The exclusive leases and tickets of a want, each with the version that it must have."""
    if want.missing:
        return ()
    lease = this.store.lease(want.claim.identity)
    found = []
    if want.ticket is not None:
        found.append((slots.ticket(lease), want.ticket))
    if want.claim.mode is Mode.EXCLUSIVE and (want.lver is not None or want.ticket is None):
        found.append((lease, want.lver or 0))
    return tuple(found)


def _stays_with_host(want: Want) -> bool:
    """
    Until a guest that migrated in has its drain mark, what it has must outlive its QEMU: its last writes are in the page
    cache of this host then, and nothing else says so.
    """
    return want.drains and want.drain is None


def hand_over(held: Instance, qemu: Process, this: Here) -> Instance:
    """
    Make QEMU the owner of the exclusive leases and tickets of an instance, and prove that nobody had them since prepare.

    Raises LeaseLost if somebody may have. Without libvirt's plugin QEMU is unknown to sanlock: the leases stay with
    the host, and the proof is the same.
    """
    owned = [(want, *pair) for want in held.wants for pair in _places(want, this)]
    orphans: Dict[str, Lock] = {}
    if client.registered(qemu.pid):
        owner, mine = "qemu", [one for one in owned if not _stays_with_host(one[0])]
        end = time.monotonic() + _SETTLES
        while True:
            before = client.held_by(qemu.pid)  # not empty where an earlier hand-over was cut short
            try:
                client.adopt(qemu.pid, [lease for _, lease, _ in mine if lease.name not in before])
                break
            except SanlockFailed as error:
                # Somebody else asks about this very QEMU, or the last holder's end has not been seen yet.
                if error.code not in MOMENT | HELD_HERE or time.monotonic() > end:
                    if error.code in (OWNED | OWNER_SILENT | MOMENT | NOT_JOINED) - BUSY:
                        raise LeaseLost(owned[0][0].claim, owned[0][2], None) from error
                    raise
            time.sleep(0.002)
        now = client.held_by(qemu.pid)
    else:
        owner, mine, now = "host", [], {}
    if len(mine) < len(owned):
        orphans = {lock.name: lock for lock in client.orphans(this.store.lockspace)}
    for want, lease, lver in owned:
        lock = now.get(lease.name) or orphans.get(lease.name)
        if lock is None or lock.lver != lver:
            raise LeaseLost(want.claim, lver, lock.lver if lock else None)
    running = held._replace(state="running", qemu=qemu, owner=owner)
    instance.write(running)
    instance.unmark_late(running)  # what has not come to exist by now, QEMU does not have open
    if running.coming and held.state != "running":
        for want in running.wants:  # it had not run so far: from now on it may write
            if want.lver is not None and want.claim.mode is Mode.EXCLUSIVE:
                write_note(want, running, this, "lease", want.lver, writer_of(want, running))
    if owner == "qemu":
        unwatch_orphans(this)
    return running


def watch_orphans(this: Here, qemu: Process) -> None:
    """
    Before leases are taken for a guest that runs already: where its QEMU cannot own them, their loss is to reset the host, if
    there is a watchdog.
    """
    if client.daemon_facts().use_watchdog and not client.registered(qemu.pid):
        client.used_by_orphans(this.store.lockspace, True)


def unwatch_orphans(this: Here, was_hosts: bool = False) -> None:
    """
    When no guest depends on leases that its host has for it, their loss is no reason to reset the host. Under the host
    lock. A drain mark is such a lease, held already or still the source's: what it stands for must not reach the medium when
    it is somebody else's.

    was_hosts: whether there was such a guest until now; otherwise there is something to be done with a watchdog alone.
    """
    if (was_hosts or client.daemon_facts().use_watchdog) and not any(
        one.state in ("intent", "held")
        or (one.state == "running" and one.owner == "host")
        or any(want.drains or want.drain is not None for want in one.wants)
        for one in instance.load_all()
    ):
        client.used_by_orphans(this.store.lockspace, False)


# -- a guest that has migrated in: from the ticket to the lease --------------------------------------------------------


def ready(one: Instance, this: Here) -> bool:
    """Whether something that the instance still waits for is free. Reads only; without the host lock."""
    return any(_free(place, this) for want in one.wants for place in _awaited(want, this))


def kept_by_source(one: Instance, this: Here) -> Tuple[Tuple[Lease, int], ...]:
    """
    The leases that the instance waits for and its source has had all the time, with their versions. Not those that have been
    let go since: who has them now is where this very guest is going next, perhaps back to its source.
    """
    waits = ((this.store.lease(want.claim.identity), want.source_lver) for want in one.wants if want.ticket is not None)
    return tuple(
        (lease, lver)
        for lease, lver in waits
        if lver is not None and client.owners(lease) and client.version(lease) == lver
    )


def _awaited(want: Want, this: Here) -> Tuple[Lease, ...]:
    lease = this.store.lease(want.claim.identity)
    waits = (lease,) if want.ticket is not None else ()
    return (*waits, slots.drain(lease)) if want.drains and want.drain is None else waits


def _free(place: Lease, this: Here) -> bool:
    return slots.surely_free(place) or all(gone(owner, this.states) for owner in client.owners(place))


def settle(one: Instance, qemu: Process, this: Here) -> Instance:
    """
    Take for a guest that has migrated in what its source has let go of. Under the host lock.

    The ticket is dropped only when the lease is QEMU's. Nothing else needs to be proven: as long as QEMU has the ticket,
    nobody was let in. A settling that is cut short anywhere is taken up again where it was.
    """
    for index in range(len(one.wants)):
        want = one.wants[index]
        if want.drains and want.drain is None:
            drain = _gain(want, slots.drain(this.store.lease(want.claim.identity)), None, this)
            if drain is not None:
                want = want._replace(drain=drain)
                one = _keep(one, index, want)
                write_note(want, one, this, "drain", drain)
                if want.lver is not None and want.ticket is None and one.owner == "qemu":
                    _gain(want, this.store.lease(want.claim.identity), qemu, this)  # it was the host's until now
        if want.ticket is not None:
            lease = this.store.lease(want.claim.identity)
            exclusive = want.claim.mode is Mode.EXCLUSIVE
            lver = _gain(want, lease, qemu if exclusive and one.owner == "qemu" else None, this)
            if lver is None:
                continue
            want = want._replace(lver=lver)
            one = _keep(one, index, want)  # from here on both are given back, whatever happens
            write_note(want, one, this, "lease", lver, writer_of(want, one))
            _drop(slots.ticket(lease), qemu if one.owner == "qemu" else None)
            one = _keep(one, index, want._replace(ticket=None))
    return one


def _keep(one: Instance, index: int, want: Want) -> Instance:
    one = one._replace(wants=(*one.wants[:index], want, *one.wants[index + 1 :]))
    instance.write(one)
    return one


def _gain(want: Want, place: Lease, qemu: Optional[Process], this: Here) -> Optional[int]:
    """The version at which a lease is now ours (the host's, or QEMU's own); None while somebody else has it."""
    shared = want.claim.mode is Mode.SHARED and "." not in place.name
    if qemu is not None:
        lock = client.held_by(qemu.pid).get(place.name)
        if lock is not None:
            return lock.lver
    with client.Connection() as connection:
        try:
            lver = connection.acquire(place, shared=shared)
        except SanlockFailed as error:
            if error.code not in ORPHAN_HERE:  # of ours, from a settling that was cut short
                if error.code in OWNED | OWNER_SILENT | MOMENT | HELD_HERE:
                    return None
                raise
            orphan = {lock.name: lock for lock in client.orphans(this.store.lockspace)}.get(place.name)
            if orphan is None or orphan.shared != shared:
                return None  # it is gone by now, or another one: what we have must not be dropped for it
            lver = orphan.lver
    if qemu is None:
        return lver
    end = time.monotonic() + _SETTLES
    while True:
        try:
            client.adopt(qemu.pid, [place])
            break
        except SanlockFailed as error:
            if error.code not in HELD_HERE | MOMENT or time.monotonic() > end:
                raise
        time.sleep(0.002)
    return client.held_by(qemu.pid)[place.name].lver


def _drop(ticket: Lease, qemu: Optional[Process]) -> None:
    if qemu is not None:
        client.release_of(qemu.pid, ticket)
    # The host's, until its guest had the drain mark.
    with client.Connection() as connection:
        connection.give_back(ticket)
