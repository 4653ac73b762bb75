# SPDX-License-Identifier: LGPL-2.1-or-later
"""The store on a block device."""

import os
import time

from vmguard import host
from vmguard._typing import List, Optional, Tuple
from vmguard.claims import Mode
from vmguard.errors import LeaseDamaged, NotJoined, SanlockDown, StoreBroken
from vmguard.leases import Lease, Note, _notes, client, slots
from vmguard.leases import _library as lib
from vmguard.leases._cluster import Cluster, Elsewhere
from vmguard.leases._notes import HostRecord
from vmguard.leases.device import layout
from vmguard.leases.device.blocks import Blocks
from vmguard.leases.device.index import Index
from vmguard.leases.device.layout import READY, Head
from vmguard.leases.store import Store, lease_name, see_in_use

# Seconds between the writing of a host record, where there was none, and the look whether it is still there: of two hosts
# that claim one id at the same time, the later writer has it. A write takes milliseconds; one that takes longer than this
# loses the id to nobody: the join looks at the record again, and sanlock itself lets only one of two hosts in.
SETTLES = 2.0

SECTORS = (512, 4096)  # bytes; sanlock knows no others


def exists(path: str) -> bool:
    """Whether there is a store on this device, whole or damaged. Raises StoreBroken where it cannot be read."""
    return Blocks(path).read(layout.HEAD)[:8] == layout.HEAD_KIND


def volume_of(blocks: Blocks) -> str:
    """The uuid of the device's map, if it is a logical volume; "": it is none."""
    major, minor = os.major(blocks.number), os.minor(blocks.number)
    uuid = (host.read(f"/sys/dev/block/{major}:{minor}/dm/uuid") or b"").decode("ascii", "replace").strip()
    return uuid if uuid.startswith("LVM-") else ""


def head_on(blocks: Blocks) -> Head:
    """The head of the store on a device. Raises StoreBroken, also where the device is not the one it was made on."""
    path = blocks.path
    if blocks.sector not in SECTORS:
        raise StoreBroken(path, f"its sectors have {blocks.sector} bytes, and sanlock knows only 512 and 4096")
    data = blocks.read(layout.HEAD, 2 * layout.BLOCK)
    head = layout.decode_head(path, data)
    if head is None:
        if data[:8] == layout.SETUP_KIND:
            raise StoreBroken(path, "its setup has not finished", "run `vmguard setup` again")
        raise StoreBroken(path, "no store is on it: another device?")
    if head.facts.sector != blocks.sector:
        made = head.facts.sector
        raise StoreBroken(path, f"it was made on a device with sectors of {made} bytes, and has {blocks.sector} here")
    if head.volume and volume_of(blocks) != head.volume:
        # A snapshot or copy has the same cluster id: two hosts with a copy each would protect nothing.
        raise StoreBroken(
            path,
            "it is not the logical volume that the store was made on: a copy, or a snapshot",
            "have the volume itself under this path",
        )
    if blocks.size() < head.size:
        raise StoreBroken(path, f"it has {blocks.size()} bytes, and had {head.size} when the store was made")
    return head


class DeviceStore(Store):
    """A store on a block device."""

    kind = "device"
    host_ids = layout.HOST_IDS

    def __init__(self, blocks: Blocks, head: Head) -> None:
        super().__init__(blocks.path, head.facts, blocks.path, layout.LOCKSPACE)
        self.head = head
        self._blocks = blocks
        self.index = Index(blocks, self.cluster, self.lockspace)

    @classmethod
    def at(cls, path: str) -> "DeviceStore":
        """The store on this device. Raises StoreBroken."""
        blocks = Blocks(path)
        return cls(blocks, head_on(blocks))

    def mark_moved(self, to: Elsewhere) -> None:
        self._mark(self.facts._replace(moved=to))

    def mark_in_use(self, converted: float = 0.0) -> None:
        self._mark(self.facts._replace(moved=None, instead_of=None, converted=converted or self.converted))

    def _mark(self, facts: Cluster) -> None:
        try:
            # Whoever else wants to change it waits meanwhile, however long this takes.
            with self.index.alone():
                self._write_marks(facts)
        except (NotJoined, SanlockDown, LeaseDamaged):
            # Who is no member cannot keep the others from it, and looks whether somebody came in between.
            self._write_marks(facts)
            time.sleep(SETTLES)
            found = head_on(self._blocks)
            if (found.number, found.facts.moved, found.facts.instead_of) != (self.head.number, facts.moved, facts.instead_of):
                raise self._changed() from None
        self.facts, self.converted = facts, facts.converted

    def _write_marks(self, facts: Cluster) -> None:
        self._see_it_is_ours()
        if head_on(self._blocks).number != self.head.number:
            raise self._changed()
        self.head = self.head._replace(facts=facts, number=self.head.number + 1)
        head, marks = layout.encode_head(self.head)
        # The name of the other store is there as long as a word in the head needs it.
        if facts.moved or facts.instead_of:
            self._blocks.write(layout.MARKS, marks)
            self._blocks.write(layout.HEAD, head)
        else:
            self._blocks.write(layout.HEAD, head)
            self._blocks.write(layout.MARKS, marks)

    def _see_it_is_ours(self) -> None:
        """A last look before the store itself is changed: one that was converted meanwhile is left alone."""
        found = head_on(self._blocks).facts
        if found.cluster != self.cluster:
            raise StoreBroken(self.path, f"it has become the store of another cluster, {found.cluster}")
        if found.moved != self.facts.moved:
            see_in_use(self.path, found)

    def room(self) -> Optional[Tuple[int, int]]:
        total = layout.places(self._blocks.size())
        return len(self.lease_names()), total

    # -- leases --------------------------------------------------------------------------------------------------------

    def _number(self, name: str) -> int:
        number = self.index.place_of(name)
        if number is None:
            raise StoreBroken(self.path, f"there is no lease {name} on it")
        if layout.place(number + 1) > self._blocks.size():
            raise self.index.behind_its_end()
        return number

    def _place(self, name: str) -> Lease:
        return self.index.lease_at(name, self._number(name))

    def has(self, identity: str) -> bool:
        return self.index.place_of(lease_name(identity)) is not None

    def ensure(self, identity: str) -> Lease:
        name = lease_name(identity)
        if self.index.place_of(name) is None:
            self._see_it_is_ours()
            self.index.give_out(name, identity)
        return self._place(name)

    def lease_names(self) -> List[str]:
        return sorted(one.entry.name for one in self.index.everything()[0] if one.entry.state == READY)

    def damage(self) -> Tuple[str, ...]:
        damaged = self.index.everything()[1]
        found = [f"the index of {self.path} is damaged in {len(damaged)} of its sectors"] if damaged else []
        if self._guard_is_damaged():
            found.append(f"the lease of {self.path} under which others are made is damaged")
        return tuple(found)

    def _guard_is_damaged(self) -> bool:
        """Without a question to the daemon: whether there is one is no matter of the store."""
        guard = self.index.guard()
        block = self._blocks.read(guard.offset)
        found = slots.record(block)
        return found is None or found[:2] != (guard.lockspace, guard.name) or not slots.whole(block)

    def mend(self) -> None:
        self._see_it_is_ours()
        if self._guard_is_damaged():
            self._see_nobody_makes_leases()
            client.format_lease(self.index.guard())
        self.index.mend()

    def _see_nobody_makes_leases(self) -> None:
        """
        Raises StoreBroken where another host may hold the lease under which that is done: made anew, it is free. On this host
        it is the caller who keeps the others out.
        """
        here = self.index.membership()[0]
        others = [one for one in client.hosts(self.lockspace) if one.state not in ("free", "dead")]
        names = ", ".join(self.host_name(one.host_id) or str(one.host_id) for one in others if one.host_id != here)
        if names:
            raise StoreBroken(
                self.path,
                f"{names} may be making leases",
                "run `vmguard leave` there, or wait until `vmguard status` calls those hosts dead",
            )

    def leftovers(self) -> Tuple[str, ...]:
        return tuple(self._words(one.entry.place) for one in self.index.spoilt(self._over))

    def clean(self) -> Tuple[str, ...]:
        return tuple(self._words(one.entry.place) for one in self.index.free_spoilt(self._over))

    def _over(self, host_id: int, generation: int) -> bool:
        """Whether a membership has ended, in order or by certain death. The generation: its lower 32 bits."""
        from vmguard.leases import lockspace

        for entry in lockspace.entries(self):
            if entry.host_id == host_id:
                dead = any(
                    (one.host_id, one.generation, one.state) == (host_id, entry.generation, "dead")
                    for one in client.hosts(self.lockspace)
                )
                return dead or entry.generation % (1 << 32) > generation
        return True

    def _words(self, number: int) -> str:
        return f"{self.path}, place {number}, half made"

    # -- notes ---------------------------------------------------------------------------------------------------------

    def write_note(self, note: Note) -> None:
        place = layout.place(self._number(lease_name(note.identity)))
        number = 0
        if note.slot != "lease":
            at, room = place + (layout.TICKET_NOTE if note.slot == "ticket" else layout.DRAIN_NOTE), layout.SHORT
            room = layout.LONG if note.slot == "ticket" else layout.SHORT
        elif note.mode != Mode.EXCLUSIVE.value:
            if note.host_id not in layout.HOST_IDS:
                raise StoreBroken(self.path, f"there is no room in it for the notes of host {note.host_id}")
            at, room = place + layout.HOST_NOTES + (note.host_id - 1) * layout.BLOCK, layout.BLOCK
        else:
            # Into the older one of the two.
            numbers = [(found[0] if found is not None else 0) for found in self._lease_notes(place)]
            older = numbers.index(min(numbers))
            at, room, number = place + layout.LEASE_NOTES[older], layout.LONG, max(numbers) + 1
        body = layout.fitting(note, room)
        sealed = layout.seal(layout.NOTE_KIND, self.cluster, at, body, number)
        self._blocks.write(at, sealed, sync=bool(note.restored))

    def _lease_notes(self, place: int) -> List[Optional[Tuple[int, bytes]]]:
        return [self._frame(place + offset, layout.LONG) for offset in layout.LEASE_NOTES]

    def _frame(self, at: int, room: int) -> Optional[Tuple[int, bytes]]:
        """The number and body of a note; None where there is none, or a torn one."""
        data = self._blocks.read(at)
        length = layout.length(layout.NOTE_KIND, data)
        if layout.BLOCK < length <= room:
            data += self._blocks.read(at + layout.BLOCK, length - layout.BLOCK)
        return layout.unseal(layout.NOTE_KIND, self.cluster, at, data)

    def note(self, identity: str, slot: str = "lease") -> Optional[Note]:
        number = self.index.place_of(lease_name(identity))
        if number is None:
            return None
        place = layout.place(number)
        if slot == "lease":
            found = [one for one in self._lease_notes(place) if one is not None]
            newest = max(found) if found else None
        elif slot == "ticket":
            newest = self._frame(place + layout.TICKET_NOTE, layout.LONG)
        else:
            newest = self._frame(place + layout.DRAIN_NOTE, layout.SHORT)
        note = _notes.decode_note(newest[1]) if newest is not None else None
        return note if note is not None and (note.identity, note.slot) == (identity, slot) else None

    def notes_of_name(self, name: str) -> Tuple[Note, ...]:
        number = self.index.place_of(name)
        if number is None:
            return ()
        place = layout.place(number)
        frames = [one for one in self._lease_notes(place) if one is not None]
        found = [max(frames)[1]] if frames else []
        at = place + layout.HOST_NOTES
        data = self._blocks.read(at, len(layout.HOST_IDS) * layout.BLOCK)
        for begin in range(0, len(data), layout.BLOCK):
            block = data[begin : begin + layout.BLOCK]
            frame = layout.unseal(layout.NOTE_KIND, self.cluster, at + begin, block)
            if frame is not None:
                found.append(frame[1])
        notes = (_notes.decode_note(body) for body in found)
        return tuple(note for note in notes if note is not None and lease_name(note.identity) == name)

    def forget(self, name: str) -> None:
        place = layout.place(self._number(name))
        for offset in (*layout.LEASE_NOTES, layout.TICKET_NOTE, layout.DRAIN_NOTE):
            self._blocks.write(place + offset, bytes(layout.BLOCK))
        self._blocks.write(place + layout.HOST_NOTES, bytes(len(layout.HOST_IDS) * layout.BLOCK))

    def identity_of(self, name: str) -> Optional[str]:
        try:
            number = self.index.place_of(name)
            if number is None:
                return None
            at = layout.place(number) + layout.WHAT_FOR
            found = layout.unseal(layout.WHAT_KIND, self.cluster, at, self._blocks.read(at))
        except StoreBroken:
            return None
        members = _notes.members(found[1]) if found is not None else None
        identity = (members or {}).get("identity")
        if isinstance(identity, str) and lease_name(identity) == name:
            return identity
        return super().identity_of(name)  # too long for its place, or lost

    # -- host ids ------------------------------------------------------------------------------------------------------

    def host_record(self, host_id: int) -> Optional[HostRecord]:
        if host_id not in layout.HOST_IDS:
            return None
        return layout.decode_host(self.cluster, host_id, self._blocks.read(layout.host_at(host_id)))

    def hosts_known(self) -> Tuple[HostRecord, ...]:
        data = self._blocks.read(layout.HOSTS, len(layout.HOST_IDS) * layout.BLOCK)
        records = (
            layout.decode_host(self.cluster, host_id, data[(host_id - 1) * layout.BLOCK : host_id * layout.BLOCK])
            for host_id in layout.HOST_IDS
        )
        return tuple(record for record in records if record is not None)

    def _enter(self, record: HostRecord) -> bool:
        if self.host_record(record.host_id) is not None:
            return False
        self._rewrite(record)
        time.sleep(SETTLES)
        found = self.host_record(record.host_id)
        return found is not None and found.machine == record.machine

    def _rewrite(self, record: HostRecord) -> None:
        self._see_it_is_ours()
        sealed = layout.encode_host(self.cluster, record)
        self._blocks.write(layout.host_at(record.host_id), sealed)

    def _strike(self, host_id: int) -> None:
        self._see_it_is_ours()
        if host_id in layout.HOST_IDS:
            self._blocks.write(layout.host_at(host_id), bytes(layout.BLOCK))


assert lib.ALIGN == layout.MiB
