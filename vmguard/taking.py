# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Taking leases: who gets a permit.

There are three leases to each storage object (leases/slots.py). A start gets its permit by the *lease*: it acquires it,
and then looks at the *ticket* and the *drain mark* beside it. Somebody else's there means that a guest is on its way, or
that a dead guest's writes are: it gives the lease back.

A guest that migrates in gets its permit beside the one that its source instance has: by the ticket where the source has
the lease, by the lease where the source has come to it by the ticket itself and has not got the lease yet. In both cases
the other one must be the source's, by its note: the same domain on the host that it comes from.

So whoever runs has the lease or the ticket of all that it writes, and each of the two keeps out everybody but the same
domain on its way. Both are acquired before the other is looked at, so of two that meet at least one sees the other.
"""

import time

from vmguard import events, host, instance
from vmguard._light import random
from vmguard._typing import Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple
from vmguard.claims import Claim, Mode
from vmguard.deadline import step
from vmguard.errors import (
    Error,
    Holder,
    InUse,
    LeaseDamaged,
    NotJoined,
    SanlockFailed,
    StoreBroken,
    Unexplained,
)
from vmguard.holders import anywhere, excludes, gone, local, matching, try_anywhere
from vmguard.instance import Instance, Want
from vmguard.leases import Lease, Note, client, slots
from vmguard.member import Here, Tolerance
from vmguard.writers import last_writers, pass_over, write_notes

# How long an acquire is tried again when sanlock says "in a moment": the lease is being released here, or two hosts met
# on it. A release takes some 10 ms; ballots that collide sleep up to a second inside sanlock.
PATIENCE = 2.0

# Codes of libsanlock (sanlock_rv.h, errno.h), by what one may conclude.
OWNED = {-243, -249}  # by a host that is alive, or that never times out
OWNER_SILENT = {-247}  # by a host that does not renew, and is not certainly dead yet
MOMENT = {-11, -16, -244, -245, -246}  # being released, busy, a lost race: ask again
HELD_HERE = {-17}  # by a process of this host
ORPHAN_HERE = {-117}  # by this host; in which mode, only our own records tell
NOT_JOINED = {-28, -241, -242}
DAMAGED = {-90} | set(range(-229, -221))  # no, or not this, lease at that place


class Source(NamedTuple):
    """Where a guest migrates from: the host that holds what it needs, for this very domain."""

    host_id: int
    generation: int
    uuid: str
    disks: Tuple[Tuple[str, str], ...]  # what it writes there, as path and identity

    def has_another(self, claim: Claim) -> bool:
        """Whether the path of the claim leads to another storage object there."""
        return any(path == claim.path and identity != claim.identity for path, identity in self.disks)


def _order(claim: Claim) -> Tuple[bool, str]:
    """
    One order on all hosts, so that of two starts that meet, the one that gets the first common lease gets the rest.
    What the guest writes comes first: it is what most refusals are about, and they are quick then.
    """
    return claim.mode is not Mode.EXCLUSIVE, claim.identity


def wants_of(claims: Iterable[Claim], this: Here) -> Tuple[Want, ...]:
    """The leases that these claims need, in the order in which they are taken."""
    everything = this.config.drain_all
    return tuple(
        Want(claim, drains=claim.cached and (claim.others_see_it or everything)) for claim in sorted(claims, key=_order)
    )


def take(start: Instance, others: Sequence[Instance], this: Here, tolerance: Tolerance) -> Instance:
    """
    Acquire every lease of an instance whose intent is written down, or give back what was taken and raise.

    Returns the instance with the version of each lease. Under tolerance, wants that could not be had are marked.
    """
    wants: List[Want] = []
    source: Optional[Source] = None
    with client.Connection() as connection:
        try:
            if start.coming == "migrate":
                step("finding out where it migrates from")
                try:
                    source = source_of(start.uuid, this)
                except Error as error:
                    tolerance.object(error)
            for want in start.wants:
                step(f"taking the lease of {want.claim.what}, {want.claim.path}")
                try:
                    wants.append(_take_one(want, others, source, this, connection))
                except Error as error:
                    tolerance.object(_about_itself(error, start))
                    wants.append(want._replace(missing=True, drains=False))
            taken = start._replace(wants=tuple(wants), source=source[:2] if source else None)
            written = last_writers(taken, this, tolerance)
        except Error:
            _roll_back(wants, this, connection)
            instance.forget(start)
            raise
    for want, writer in zip(taken.wants, written):
        write_notes(want, taken, this, writer)
    return taken


def _about_itself(error: Error, start: Instance) -> Error:
    """Where the domain itself has what it needs, somewhere else, that is what there is to say."""
    if isinstance(error, InUse) and error.holders and all(holder.uuid == start.uuid for holder in error.holders):
        for want in start.wants:
            if want.claim.identity == f"vm:{start.uuid}":
                return InUse(want.claim, error.holders)
    return error


def _roll_back(wants: Sequence[Want], this: Here, connection: client.Connection) -> None:
    for want in wants:
        if want.lver is not None and want.claim.mode is Mode.EXCLUSIVE:
            pass_over(want.claim, want.lver, this)
    for name, lock in connection.held(this.store.lockspace).items():
        connection.release(this.store.lease_of_name(name), shared=lock.shared)


def _take_one(
    want: Want, others: Sequence[Instance], source: Optional[Source], this: Here, connection: client.Connection
) -> Want:
    claim = want.claim
    holders = local(claim, others, this.host_id)
    # One that has come here and has the ticket alone: the lease is the source's, and there is nothing to share.
    holders += local(claim._replace(mode=Mode.EXCLUSIVE), _on_tickets(claim.identity, others), this.host_id)
    if holders:
        raise InUse(claim, holders)
    if not any(has(other, claim.identity, this) for other in others):
        # A pool that only one host may have active is no less so for a guest that moves.
        if source is None or claim.mode is Mode.HOST:
            want = want._replace(lver=acquire(claim, this, connection))
        else:
            want = _cover(want, source, this, connection)
    # else this host has it already, in the same mode: one lease serves all
    return _mark_drain(want, others, source, this, connection) if want.drains else want


def has(other: Instance, identity: str, this: Here) -> bool:
    """
    Whether another instance keeps this lease on our host, in the present membership. Of an intent, and of one that is over,
    nobody knows: it may not have taken it, or have given it back already.
    """
    return (
        other.state in ("held", "running")
        and other.generation == this.generation
        and any(want.claim.identity == identity and not want.missing for want in other.wants)
    )


def _on_tickets(identity: str, others: Iterable[Instance]) -> List[Instance]:
    return [
        other
        for other in others
        if any(
            want.claim.identity == identity and want.ticket is not None and want.lver is None for want in other.wants
        )
    ]


# -- a start that begins here ------------------------------------------------------------------------------------------


def acquire(claim: Claim, this: Here, connection: client.Connection) -> int:
    """
    Acquire one lease for this host, against everybody; the version at which it is held.

    Raises InUse when somebody has it or is on the way to it, CannotTell kinds when sanlock's answer is no answer to that.
    """
    lease = this.store.ensure(claim.identity)
    shared = claim.mode is Mode.SHARED
    end_of_patience = time.monotonic() + PATIENCE
    while True:
        code, holders = 0, beside(claim, lease, this)
        if not holders:  # else a needless acquire would get in the way of one who is on the way to it
            try:
                lver = connection.acquire(lease, shared=shared)
            except SanlockFailed as error:
                code = error.code
                holders = try_anywhere(claim.identity, this.store, this.states)
            else:
                holders = beside(claim, lease, this)
                if shared or holders:
                    pass_over(claim, lver, this)
                if not holders:
                    return lver
                connection.release(lease, shared=shared)
        if code in ORPHAN_HERE and free_leftover(lease, claim, this, connection):
            continue
        if [one.host_id for one in holders if one.slot == "ticket"] == [this.host_id]:
            # No record of this host wants it: we would not have come here.
            if free_leftover(slots.ticket(lease), claim, this, connection):
                continue
        # A guest's last writes are being written out: that is a matter of moments too.
        draining = all(holder.slot == "drain" and holder.alive is not False for holder in holders)
        waits = code in MOMENT or (code in OWNED and shared) or (code == 0 and draining)
        if any(
            holder.slot == "lease" and holder.domain and excludes(claim.mode, mode_of(holder)) for holder in holders
        ):
            waits = False  # a note that matches the lease: no matter of a moment
        if not waits or time.monotonic() > end_of_patience:
            raise _meaning(code, claim, lease, holders, this)
        # Two that collide must not collide again.
        time.sleep(random.uniform(0.002, 0.02))


def beside(claim: Claim, lease: Lease, this: Here) -> List[Holder]:
    """
    Who has the ticket or the drain mark of a lease. What other instances of this host have is in its records, and was
    looked at before; a drain mark of ours is about our own page cache.
    """
    found: List[Holder] = []
    for slot, place in (("ticket", slots.ticket(lease)), ("drain", slots.drain(lease))):
        if not slots.surely_free(place):
            holders = anywhere(claim.identity, this.store, this.states, slot)
            found += [one for one in holders if slot == "ticket" or one.host_id != this.host_id]
    return found


def mode_of(holder: Holder) -> Mode:
    return Mode.SHARED if holder.shared else Mode.EXCLUSIVE


def _meaning(code: int, claim: Claim, lease: Lease, holders: List[Holder], this: Here) -> Error:
    """What a failed acquire says about the lease. 0: it was free, and a slot beside it was not."""
    if code == 0 or code in OWNED or code in HELD_HERE or code in {-11, -244, -245, -246}:
        return InUse(claim, holders)
    if code in OWNER_SILENT:
        return InUse(claim, [holder._replace(alive=False) for holder in holders])
    if code in ORPHAN_HERE:
        return Unexplained(claim)
    if code in NOT_JOINED:
        return NotJoined(this.store.lockspace, joining=False)
    if code in DAMAGED:
        return LeaseDamaged(lease.path, claim.identity, code)
    error = client.file_failure("acquire", code, lease.path, claim.identity)
    return error if isinstance(error, StoreBroken) else SanlockFailed("acquire", code, claim.path)


def free_leftover(lease: Lease, claim: Claim, this: Here, connection: client.Connection) -> bool:
    """
    An orphan on this host that no record wants: a call that sanlock finished after its caller had been killed and swept.
    It is given back, unless a QEMU runs that has no record: the lease might be its.
    """
    known = {one.uuid for one in instance.load_all() if one.state != "intent"}
    if any(qemu.uuid not in known for qemu in host.qemu_processes()):
        return False
    events.record("leftover", f"gave back a lease that no record wants: {claim.path}", identity=claim.identity)
    if not connection.give_back(lease):
        return False
    # It is free a moment later; until then its note would have us take it for somebody's.
    end = time.monotonic() + PATIENCE
    while _is_owner(this, lease) and time.monotonic() < end:
        time.sleep(0.005)
    return True


def _is_owner(this: Here, lease: Lease) -> bool:
    return any((one.host_id, one.generation) == (this.host_id, this.generation) for one in client.owners(lease))


def _mark_drain(
    want: Want, others: Sequence[Instance], source: Optional[Source], this: Here, connection: client.Connection
) -> Want:
    """
    Hold the drain mark from before the first write. It was free when the lease was gained; a guest that migrates in has
    it from its source when that has written its own cache out (QEMU itself does so before it hands the guest over).
    """
    for other in others:
        for theirs in other.wants:
            if theirs.claim.identity == want.claim.identity and theirs.drain is not None:
                return want._replace(drain=theirs.drain)  # this host's cache is one, whoever filled it
    mark = slots.drain(this.store.lease(want.claim.identity))
    end_of_patience = time.monotonic() + PATIENCE
    while True:
        try:
            return want._replace(drain=connection.acquire(mark, shared=False))
        except SanlockFailed as error:
            if error.code in ORPHAN_HERE and free_leftover(mark, want.claim, this, connection):
                continue
            if source is not None and error.code in OWNED | OWNER_SILENT | MOMENT:
                return want
            if error.code not in MOMENT or time.monotonic() > end_of_patience:
                holders = try_anywhere(want.claim.identity, this.store, this.states, "drain")
                raise _meaning(error.code, want.claim, mark, holders, this) from error
        time.sleep(random.uniform(0.002, 0.02))


# -- a guest that migrates in ------------------------------------------------------------------------------------------


def source_of(uuid: str, this: Here) -> Optional[Source]:
    """
    The host that has the domain itself, by lease or ticket. None if nobody has: its source is no guarded host, or lets
    guests run without leases.
    """
    identity = f"vm:{uuid}"
    if not this.store.has(identity):
        return None
    end_of_patience = time.monotonic() + PATIENCE
    while True:
        found: Set[Optional[Source]] = set()
        for slot in ("lease", "ticket"):
            for owner, note in _owners(identity, slot, this):
                if note is None or note.uuid != uuid or owner[0] == this.host_id:
                    found.add(None)
                else:
                    found.add(Source(*owner, uuid, note.disks))
        if len({one and one[:2] for one in found}) == 1 and None not in found:
            return found.pop()  # by lease and ticket, perhaps
        # Between an acquire and its note lies a moment; two hosts at once is the same domain on the way to elsewhere.
        if not found or time.monotonic() > end_of_patience:
            return None
        time.sleep(random.uniform(0.01, 0.05))


def _owners(
    identity: str, slot: str, this: Here, only_exclusive: bool = False
) -> List[Tuple[Tuple[int, int], Optional[Note]]]:
    """Host id and generation of each present owner of a slot, each with the note that speaks of it."""
    place = this.store.slot(identity, slot)
    if slot != "lease" and slots.surely_free(place):
        return []
    owners = [owner for owner in client.owners(place) if not gone(owner, this.states)]
    if only_exclusive:
        owners = [owner for owner in owners if not owner.shared]
    if not owners:
        return []
    notes = this.store.notes(identity) if slot == "lease" else tuple(filter(None, (this.store.note(identity, slot),)))
    version = client.version(place)
    return [((owner.host_id, owner.generation), matching(owner, version, notes)) for owner in owners]


def _cover(want: Want, source: Source, this: Here, connection: client.Connection) -> Want:
    """
    A permit beside that of the source. Raises InUse where anybody but the source has anything of this storage object.
    """
    claim = want.claim
    lease = this.store.ensure(claim.identity)
    ticket = slots.ticket(lease)
    shared = claim.mode is Mode.SHARED

    def whose(slot: str) -> str:
        owners = _owners(claim.identity, slot, this, only_exclusive=shared)  # readers do not stand in a reader's way
        theirs = [owner == source[:2] and note is not None and note.uuid == source.uuid for owner, note in owners]
        return "nobody" if not owners else "source" if all(theirs) else "other"

    def drained_elsewhere() -> bool:
        # QEMU at the source writes its cache out before it hands over; ours is the one that is written through.
        hosts = {owner[0] for owner, _ in _owners(claim.identity, "drain", this)}
        return bool(hosts - {source.host_id, this.host_id})

    def freed_leftover() -> bool:
        return any(free_leftover(place, claim, this, connection) for place in (ticket, lease))

    end_of_patience = time.monotonic() + PATIENCE
    while True:
        has_lease, has_ticket = whose("lease"), whose("ticket")
        code = 0
        try:
            if drained_elsewhere():
                pass  # a dead guest's writes are on their way, and would come to lie over those of this one
            elif has_lease == "source" and has_ticket == "nobody":
                lver = connection.acquire(ticket, shared=False)
                seen, has_lease = client.version(lease), whose("lease")
                if has_lease != "other":
                    return want._replace(ticket=lver, source_lver=seen if has_lease == "source" else None)
                connection.release(ticket)
            elif has_lease == "nobody" and has_ticket in ("nobody", "source"):
                lver = connection.acquire(lease, shared=shared)
                if whose("ticket") == has_ticket and not drained_elsewhere():
                    other = has_ticket == "nobody" and source.has_another(claim) and claim.what.startswith("disk")
                    return want._replace(lver=lver, other_disk=other)
                connection.release(lease, shared=shared)
        except SanlockFailed as error:
            code = error.code
            if code in ORPHAN_HERE and freed_leftover():
                continue
        if code not in OWNED | OWNER_SILENT | MOMENT | {0}:
            raise _meaning(code, claim, lease, [], this)
        holders = [
            holder
            for slot in ("lease", "ticket", "drain")
            for holder in try_anywhere(claim.identity, this.store, this.states, slot)
            if not (shared and holder.shared)
            if slot != "drain" or holder.host_id not in (source.host_id, this.host_id)
        ]
        # No record of this host wants it: we would not have come here.
        if any(holder.host_id == this.host_id for holder in holders) and freed_leftover():
            continue
        strangers = [
            holder
            for holder in holders
            if holder.slot != "drain" and holder.uuid is not None and holder.uuid != source.uuid
        ]
        # Both the source's: it drops the ticket this moment. A note may lag behind its lease by as much.
        if strangers or time.monotonic() > end_of_patience:
            raise InUse(claim, strangers or holders)
        time.sleep(random.uniform(0.01, 0.05))
