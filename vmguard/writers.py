# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Who wrote last: the notes beside the leases, and whether a saved state may go on from there.

A note says in words who has a lease. It also says who wrote last under it, which outlives the holder: a guest that was put to
sleep goes on from memory, and must find its disks as it left them.
"""

import time

from vmguard import events, host
from vmguard._typing import List, Optional, Tuple
from vmguard.claims import Claim, Mode
from vmguard.errors import CannotTell, Error, Holder, StateStale, StateUnproven
from vmguard.instance import Instance, Want
from vmguard.leases import Note, Writer, client
from vmguard.member import Here, Tolerance
from vmguard.report import message


def last_writers(taken: Instance, this: Here, tolerance: Tolerance) -> List[Optional[Writer]]:
    """
    Who counts as the last writer of each thing that was taken.

    A start that begins here: itself, from now on, because its guest runs before the next hook. One that arrives runs
    later: until then it is who was before. Raises StateStale or StateUnproven where a saved state is no longer true.
    """
    written: List[Optional[Writer]] = []
    for want in taken.wants:
        if not taken.coming:
            written.append(writer_of(want, taken))
            continue
        before = _writer_before(want, this) if want.lver is not None and want.claim.mode is Mode.EXCLUSIVE else None
        written.append(before)
        if taken.coming == "restore" and want.lver is not None and want.claim.mode is Mode.EXCLUSIVE:
            try:
                _check_state(want, before, taken, this)
            except Error as error:
                tolerance.object(error)
    return written


def writer_of(want: Want, one: Instance) -> Optional[Writer]:
    """The instance itself as a writer."""
    return Writer(want.lver, one.uuid, one.name, host.name(), one.since) if want.lver is not None else None


# Before the first version of a lease.
_NOBODY = Writer(0, "", "", "", 0.0)


def _writer_before(want: Want, this: Here) -> Optional[Writer]:
    """Who wrote last, where that is certain: the note was written by the owner before us, and no other acquired between."""
    note = this.store.note(want.claim.identity)
    if want.lver == 1 and (note is None or note.lver != 0):  # 0: what a conversion knew of an earlier store
        return _first_writer(this)
    return note.writer if note is not None and want.lver is not None and note.lver == want.lver - 1 else None


def _first_writer(this: Here) -> Optional[Writer]:
    """Who wrote before the first version of a lease. In a store that took another's place nothing shows who it was."""
    return None if this.store.converted else _NOBODY


def _check_state(want: Want, before: Optional[Writer], taken: Instance, this: Here) -> None:
    """Whether the saved state that the instance is restored from still fits this disk."""
    claim = want.claim
    mark, saved = taken.image or ("", 0.0)
    if before == _NOBODY:
        return  # nobody has ever written under this lease: the guest was saved before it was guarded
    if before is None:
        raise StateUnproven(claim, saved)
    writer = Holder(0, before.host, before.domain, before.uuid, since=before.since)
    if before.uuid != taken.uuid:
        raise StateStale(claim, writer, "other")
    if saved and saved < before.since:
        raise StateStale(claim, writer, "since")
    if claim.identity.startswith("vm:") and mark:
        note = this.store.note(claim.identity)
        if note is not None and mark in note.restored:
            raise StateStale(claim, writer, "again")


def pass_over(claim: Claim, lver: int, this: Here) -> None:
    """
    A lease is given back with nothing written: let the note say so, as far as it knew who wrote. Else the version alone
    would look as if somebody had.

    lver: at which it is held; 0 where it is held shared, by one who reads it. That raises the version, too.
    """
    try:
        note = this.store.note(claim.identity)
        if not lver and note is not None:
            lver = client.version(this.store.lease(claim.identity))
        if note is None and lver == 1:  # the first that ever had it
            mode, nobody = Mode.EXCLUSIVE.value, _first_writer(this)
            note = Note(claim.identity, mode, 0, 0, 0, host.name(), "", "", claim.path, time.time(), writer=nobody)
        if note is not None and note.lver == lver - 1 and note.writer is not None:
            this.store.write_note(note._replace(lver=lver, host_id=this.host_id, generation=this.generation))
    except CannotTell as error:
        events.record("no-note", message(error), identity=claim.identity)


def write_notes(want: Want, owner: Instance, this: Here, writer: Optional[Writer]) -> None:
    """Say in words who has what. A note that cannot be written costs a later refusal its words, nothing else."""
    if want.lver is not None:
        write_note(want, owner, this, "lease", want.lver, writer)
    if want.ticket is not None:
        write_note(want, owner, this, "ticket", want.ticket)
    if want.drain is not None:
        write_note(want, owner, this, "drain", want.drain)


def write_note(want: Want, owner: Instance, this: Here, slot: str, lver: int, writer: Optional[Writer] = None) -> None:
    """One note of `write_notes`."""
    claim = want.claim
    note = Note(
        identity=claim.identity,
        mode=claim.mode.value if slot == "lease" else Mode.EXCLUSIVE.value,
        host_id=this.host_id,
        generation=this.generation,
        lver=lver,
        host=host.name(),
        domain=owner.name,
        uuid=owner.uuid,
        path=claim.path,
        since=owner.since,
        instance=owner.id,
        slot=slot,
        writer=writer,
    )
    try:
        if slot != "drain" and claim.identity.startswith("vm:"):
            written = [want.claim for want in owner.wants if want.claim.mode is Mode.EXCLUSIVE and not want.missing]
            disks = tuple((claim.path, claim.identity) for claim in written[:_DISKS_NAMED] if claim != want.claim)
            note = note._replace(restored=_restored(owner, this), disks=disks)
        this.store.write_note(note)
    except CannotTell as error:
        events.record("no-note", message(error), identity=claim.identity)


# More than fit on a machine of libvirt (a note has 64 KiB).
_DISKS_NAMED = 200

# As many as anybody keeps of one guest; the oldest are forgotten.
_STATES_KEPT = 64


def _restored(owner: Instance, this: Here) -> Tuple[str, ...]:
    """The saved states of a domain that are used up: those of before, and the one that it runs from now."""
    before = this.store.note(f"vm:{owner.uuid}")
    marks = before.restored if before is not None else ()
    if owner.image is not None and owner.state == "running" and owner.image[0] not in marks:
        marks = (*marks, owner.image[0])
    return marks[-_STATES_KEPT:]
