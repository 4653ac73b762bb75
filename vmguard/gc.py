# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a sweep cannot decide alone: collected, decided with more evidence, and said.

The hooks sweep what is certain. Left for here: records that cannot be read, starts that libvirt began and never ended,
leases of this host that no record explains, remains of lease files, and damaged leases.
"""

import os

from vmguard import events, host, hostlock, instance, marks
from vmguard._typing import Callable, Dict, List, NamedTuple, Optional, Set
from vmguard.config import load
from vmguard.errors import BadRequest, Misconfigured, RecordBroken, StoreBroken
from vmguard.giving import end, flush, sweep
from vmguard.holders import gone
from vmguard.instance import Instance
from vmguard.leases import HostState, Owner, client, slots
from vmguard.leases.store import lease_name
from vmguard.member import Here, here
from vmguard.owning import qemu_of
from vmguard.text import plain, quoted

NEWER = "was made by a newer version of sanlock: update sanlock on this host"


class Found(NamedTuple):
    """One thing that gc came upon."""

    what: str  # "record", "start", "lease", "mark", "temporary file", "damaged lease", "newer lease", "damaged store"
    text: str  # what it is, and what was done or has to be done
    mended: bool


def collect(
    ask_libvirt: Callable[[], Dict[str, bool]] = dict, repair: bool = False, force: str = "", dry_run: bool = False
) -> List[Found]:
    """
    Look for everything that holds back a start without need, and mend what is certain.

    ask_libvirt: by uuid, whether libvirt says that a domain neither runs nor starts.
    repair: make damaged leases anew where nobody can hold them. force: a reason to do that although another host
    might. Raises the kinds of `member.here` where this host is no member.
    """
    config = load()
    if config.store is None:
        raise Misconfigured("/etc/vmguard", "this host was not set up", "run `vmguard setup`")
    if force and not repair:
        raise BadRequest("--force is for --repair only", "vmguard gc --repair --force 'REASON'")
    found: List[Found] = []
    # Not under the lock: libvirt answers when the hook has, which may wait for the lock. A start that began after libvirt was
    # asked is none of those that it spoke of.
    begun = set(instance.names())
    is_off = ask_libvirt()
    with hostlock.held():
        found += _broken_records(dry_run)
        if not all(one.mended for one in found):
            return found  # beside one that stays nothing can be decided
        this = here(config)
        found += _damaged_store(this, repair and not dry_run)
        if not dry_run:
            before = {one.id: one for one in instance.load_all()}
            left = {one.id for one in sweep(this)}
            found += [_swept(one) for one in before.values() if one.id not in left]
        found += _unended_starts(begun, is_off, this, dry_run)
        found += _unexplained_leases(this, dry_run)
        found += _stray_marks(dry_run)
        found += [Found("temporary file", plain(path), not dry_run) for path in _leftovers(this, dry_run)]
        found += _put_back(this, dry_run)
        found += _damaged(this, repair and not dry_run, force)
    for one in found:
        if one.mended:
            events.record("gc", one.text, what=one.what, reason=force)
    return found


def _damaged_store(this: Here, repair: bool) -> List[Found]:
    damage = this.store.damage()
    how, mended = "`vmguard gc --repair` makes it anew", False
    if damage and repair:
        try:
            this.store.mend()
            how, mended = "made anew", True
        except StoreBroken as error:
            how = f"it cannot be made anew: {error.why}; {error.remedy or 'mend the store'}"
    return [Found("damaged store", f"{text}: {how}", mended) for text in damage]


def _swept(one: Instance) -> Found:
    return Found("start", f"gave back what a start of {quoted(one.name)} had left behind", True)


def _broken_records(dry_run: bool) -> List[Found]:
    """Records that cannot be read stop every start. One whose guest is gone is set aside; its leases are found below."""
    found = []
    alive = {qemu.uuid for qemu in host.qemu_processes()}
    for name in instance.names():
        try:
            instance.load(name)
        except RecordBroken as error:
            path = os.path.join(instance.directory(), name)
            text = f"record {plain(path)} cannot be read ({error.why})"
            if name.split(".")[0] in alive:
                found.append(Found("record", f"{text}; its guest runs: stop the guest, then run this again", False))
                continue
            if not dry_run:
                os.rename(path, path + ".broken")
            found.append(Found("record", f"{text}; set aside as {name}.broken", not dry_run))
    return found


def _unended_starts(begun: Set[str], off: Dict[str, bool], this: Here, dry_run: bool) -> List[Found]:
    found = []
    for one in instance.load_all():
        if one.state != "held" or qemu_of(one) is not None:
            continue
        text = f"a start of {quoted(one.name)} has leases and no QEMU"
        if one.id + ".json" not in begun or not off.get(one.uuid, False):
            found.append(Found("start", f"{text}; libvirt may still be busy with it", False))
        else:
            if not dry_run:
                end(one, this)
            found.append(Found("start", f"{text}; libvirt says it is off: given back", not dry_run))
    return found


def _unexplained_leases(this: Here, dry_run: bool) -> List[Found]:
    """Orphans of this host that no record wants. A QEMU without a record might live on one: then they stay."""
    wanted: Set[str] = set()
    for one in instance.load_all():
        for want in one.wants:
            if not want.missing:
                wanted |= set(slots.names(lease_name(want.claim.identity)))
    orphans = [lock for lock in client.orphans(this.store.lockspace) if lock.name not in wanted]
    if not orphans:
        return []
    known = {one.uuid for one in instance.load_all()}
    strangers = [qemu for qemu in host.qemu_processes() if qemu.uuid not in known]
    found = []
    for lock in orphans:
        lease = this.store.lease_of_name(lock.name)
        identity = this.store.identity_of(lock.name.partition(".")[0])
        text = f"lease {lock.name} ({identity or 'of unknown storage'}) is held for no start"
        if strangers:
            names = ", ".join(quoted(qemu.name) for qemu in strangers)
            found.append(Found("lease", f"{text}; guests without a record run and might need it: {names}", False))
            continue
        if not dry_run:
            _write_out(lock.name, identity, this)
            with client.Connection() as connection:
                connection.give_back(lease)
        found.append(Found("lease", f"{text}: given back", not dry_run))
    return found


def _write_out(name: str, identity: Optional[str], this: Here) -> None:
    """A drain mark stands for what may still be in the page cache of this host."""
    note = this.store.note(identity, "drain") if name.endswith(".d") and identity else None
    if note is not None:
        try:
            flush(note.path)
        except OSError as error:
            events.record("not-drained", f"{note.path} was not written out: {error.strerror}", identity=identity)


def _stray_marks(dry_run: bool) -> List[Found]:
    """Of guests whose record could not be read: udev hides the device from its host, whatever it has come to be."""
    found = []
    for name in marks.stray(instance.load_all()):
        text = f"udev takes the device {plain(name)} for a guest's, and no record does"
        if not dry_run:
            marks.remove(name)
        found.append(Found("mark", text if dry_run else f"{text}: taken away", not dry_run))
    return found


def _leftovers(this: Here, dry_run: bool) -> List[str]:
    return list(this.store.leftovers() if dry_run else this.store.clean())


def _put_back(this: Here, dry_run: bool) -> List[Found]:
    """Files of leases that somebody removed. That needs no decision: they are as they were, with whoever has them."""
    found = []
    for name in this.store.unnamed():
        if not dry_run:
            this.store.name_again(name)
        what = this.store.identity_of(name) or "of unknown storage"
        found.append(Found("lease", f"the file of lease {name} ({what}) had been removed: put back, as it was", not dry_run))
    return found


def _damaged(this: Here, repair: bool, force: str) -> List[Found]:
    judged = this.store.judged()
    found = [
        Found("newer lease", f"lease {name} ({this.store.identity_of(name) or 'of unknown storage'}) {NEWER}", False)
        for name in judged.newer
    ]
    for name in judged.damaged:
        text = f"lease {name} ({this.store.identity_of(name) or 'of unknown storage'}) is damaged"
        obstacle = _may_be_held(name, this)
        if obstacle and not force:
            found.append(Found("damaged lease", f"{text}; {obstacle}", False))
        elif not repair:
            found.append(Found("damaged lease", f"{text}; `vmguard gc --repair` makes it anew", False))
        else:
            this.store.reformat(name)
            found.append(Found("damaged lease", f"{text}: made anew", True))
    return found


def _may_be_held(name: str, this: Here) -> str:
    """Why somebody may be holding a lease that nobody can read any more; "" if that is out of the question."""
    for one in instance.load_all():
        if any(lease_name(want.claim.identity) == name and not want.missing for want in one.wants):
            return f"{quoted(one.name)} on this host has it: stop that first"
    if any(lock.name in slots.names(name) for lock in client.locks(this.store.lockspace)):
        return "this host holds it, for a guest without a record: stop that first"
    others = {number: state for number, state in this.states.items() if number != this.host_id}
    # Host 0 is nobody: such a note only says that a new beginning was made.
    notes = [note for note in this.store.notes_of_name(name) if note.host_id]
    live = [number for number, state in sorted(others.items()) if _may_live(state)]
    if live and not notes:
        names = ", ".join(this.store.host_name(number) or str(number) for number in live)
        return f"no note says who had it last, and {names} may: make sure there, then use --force REASON"
    for slot in this.store.damaged_slots(name) if notes else ():
        if slot != "lease":
            notes += filter(None, (this.store.note(notes[0].identity, slot),))
    for note in notes:
        if note.host_id in others and not gone(Owner(note.host_id, note.generation), others):
            return f"{note.host} had it last, for {quoted(note.domain)}: run `vmguard gc --repair` there"
    return ""


def _may_live(state: HostState) -> bool:
    return state.state not in ("free", "dead")
