# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The index: which place a lease has, and how one is given out.

One block is read to find a lease: names are hashes, and say in which bucket the search begins. A bucket that is full goes
on in the next one. An entry that is READY never changes again.

A place is given out under a lease of sanlock's, held by the process that does it and gone with it. The order of the writes
makes each of them a place to die:

    1. NEXT goes up: the place is this lease's or nobody's.
    2. The entry, RESERVED. It is not found by others yet.
    3. sanlock formats the three leases.
    4. What they are for, in words.
    5. The entry, READY.

A place that was reserved by somebody who died over it is not gone on with: his command may still be on its way to the
disk in the daemon, or in a queue of the kernel. It is SPOILT until his host has left, and the lease gets another place.
"""

import errno
import time
from contextlib import contextmanager

from vmguard._light import random
from vmguard._typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple
from vmguard.errors import LeaseDamaged, NotJoined, SanlockFailed, StoreBroken
from vmguard.leases import Lease, _notes, client, slots, status
from vmguard.leases.device import layout
from vmguard.leases.device.blocks import Blocks
from vmguard.leases.device.layout import READY, REMOVED, RESERVED, SPOILT, Entry, Piece

# Seconds. To give a place out takes some 20 ms; when a cluster starts at once, each host may want some dozens.
PATIENCE = 10.0

_WAIT = {-243, -244, -245, -246, -errno.EAGAIN, -errno.EBUSY, -errno.EEXIST}  # somebody is just at it
_SILENT = {-247}  # the host that is at it does not answer
_NOT_JOINED = {-errno.ENOSPC, -241, -242}

_DAMAGED = "its index is damaged"
_REPAIR = "run `vmguard gc --repair`: it makes the index anew from the leases themselves"

_UNREADABLE = 1 << 64  # as a version: higher than any


class Found(NamedTuple):
    """An entry, and where it stands."""

    bucket: int
    piece: int
    position: int
    entry: Entry


class Index:
    """The index of one store."""

    def __init__(self, blocks: Blocks, cluster: str, lockspace: str) -> None:
        self.blocks, self.cluster, self.lockspace = blocks, cluster, lockspace
        self._known: Dict[str, int] = {}

    @property
    def path(self) -> str:
        return self.blocks.path

    # -- looking -------------------------------------------------------------------------------------------------------

    def place_of(self, name: str) -> Optional[int]:
        """Which place a lease has; None: it has none. Raises StoreBroken, also where damage hides the answer."""
        if name not in self._known:
            found, _, whole = self._search(name)
            ready = [one.entry.place for one in found if one.entry.state == READY]
            if len(ready) > 1 or not (ready or whole):
                raise StoreBroken(self.path, _DAMAGED, _REPAIR)
            if not ready:
                return None
            self._known[name] = ready[0]
        return self._known[name]

    def _search(self, name: str) -> Tuple[List[Found], Optional[Found], bool]:
        """
        The entries of a name; a position that another one could take (its entry is of no meaning); whether all was
        readable.
        """
        found: List[Found] = []
        free: Optional[Found] = None
        for step in range(layout.BUCKETS):
            bucket = (layout.bucket_of(name) + step) % layout.BUCKETS
            full = True
            for piece, entries in enumerate(self._bucket(bucket)):
                if entries is None:
                    return found, None, False
                for position in range(layout.ENTRIES):
                    one = entries.get(position)
                    if one is not None and one.name == name and one.state != REMOVED:
                        found.append(Found(bucket, piece, position, one))
                    if one is None or one.state == REMOVED:
                        free = free or Found(bucket, piece, position, Entry(name, 0, REMOVED))
                        full = full and one is not None
            if not full:
                return found, free, True
        return found, free, True

    def _bucket(self, bucket: int) -> List[Optional[Piece]]:
        return layout.decode_bucket(self.cluster, bucket, self.blocks.read(layout.bucket_at(bucket)))

    def everything(self) -> Tuple[List[Found], List[Tuple[int, int]]]:
        """All entries, and the bucket and number of each piece that is damaged. Tens of milliseconds."""
        found: List[Found] = []
        damaged: List[Tuple[int, int]] = []
        data = self.blocks.read(layout.INDEX, layout.BUCKETS * layout.BLOCK)
        for bucket in range(layout.BUCKETS):
            block = data[bucket * layout.BLOCK : (bucket + 1) * layout.BLOCK]
            for piece, entries in enumerate(layout.decode_bucket(self.cluster, bucket, block)):
                if entries is None:
                    damaged.append((bucket, piece))
                else:
                    found += [Found(bucket, piece, position, one) for position, one in sorted(entries.items())]
        return found, damaged

    # -- giving out ----------------------------------------------------------------------------------------------------

    def lease_at(self, name: str, number: int) -> Lease:
        """The lease of this name at a place."""
        return Lease(self.lockspace, name, self.path, layout.place(number), self.blocks.sector)

    def guard(self) -> Lease:
        """The lease under which places are given out."""
        return Lease(self.lockspace, "allocation", self.path, layout.ALLOCATION, self.blocks.sector)

    def give_out(self, name: str, what_for: str) -> int:
        """
        A place for a lease, which another host may have made meanwhile. what_for: the identity.

        Raises StoreBroken where the device is full or damaged, LeaseDamaged, NotJoined, SanlockDown, SanlockFailed.
        """
        with self.alone() as connection:
            known = self.place_of(name)
            if known is not None:
                return known
            found, free, _ = self._search(name)
            for one in found:
                self._set(one, one.entry._replace(state=SPOILT))
            if free is None:
                raise StoreBroken(self.path, "its index is full")
            number = self._next(name)
            host_id, generation = self.membership()
            entry = Entry(name, number, RESERVED, host_id, generation)
            self._set(free, entry)
            for slot in slots.of(self.lease_at(name, number)):
                client.format_lease(slot)
            self.say_what_for(number, what_for)
            self._see_alone(connection)  # else it is too late to make it visible
            self._set(free, entry._replace(state=READY))
            self._known[name] = number
            return number

    @contextmanager
    def alone(self) -> Iterator[client.Connection]:
        """Hold the lease under which the index is changed. Raises StoreBroken where it cannot be had in time."""
        place = self.guard()
        with client.Connection() as connection:
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    connection.acquire(place, shared=False, outlive=False)
                    break
                except SanlockFailed as error:
                    self._no(error, time.monotonic() > end)
                time.sleep(random.uniform(0.002, 0.02))
            try:
                yield connection
            finally:
                try:
                    connection.release(place)
                except SanlockFailed:
                    pass  # it goes with the connection

    def _see_alone(self, connection: client.Connection) -> None:
        """
        Raises NotJoined or SanlockDown where the lease has been taken away from us: others may be at it by now, and what we have
        read is of the past.
        """
        if self.guard().name not in connection.held(self.lockspace):
            raise NotJoined(self.lockspace, joining=False)

    def _no(self, error: SanlockFailed, late: bool) -> None:
        """What it means that the lease could not be had; returns if it is to be tried again."""
        if error.code in _NOT_JOINED:
            raise NotJoined(self.lockspace, joining=False) from error
        if error.code in _SILENT:
            why = "a host that does not answer any more was just making a lease in it"
            raise StoreBroken(
                self.path, why, "try again when sanlock calls that host dead (`vmguard status`), or it is back"
            ) from error
        if error.code not in _WAIT:
            raise client.lease_failure("acquire", error.code, self.guard()) from error
        if late:
            why = f"other hosts have been making leases in it for {PATIENCE:.0f} s"
            raise StoreBroken(self.path, why, "start it again in a moment") from error

    def membership(self) -> Tuple[int, int]:
        """This host's id and generation in the lockspace. Raises NotJoined, SanlockDown."""
        for space in status.status().spaces:
            if space.name == self.lockspace:
                return space.host_id, space.generation
        raise NotJoined(self.lockspace, joining=False)

    def behind_its_end(self) -> StoreBroken:
        """What is wrong where this host sees less of the device than has been given out."""
        return StoreBroken(
            self.path,
            f"a lease lies behind its end: it has {self.blocks.size()} bytes here, and has been made larger",
            "have this host look at its size again: `lvchange --refresh VG/LV`",
        )

    def _next(self, name: str) -> int:
        """
        A place that is nobody's, and is nobody else's from here on. Raises StoreBroken.

        Nothing is believed about it that can be looked at: where leases of ours lie, none is made.
        """
        room = layout.places(self.blocks.size())
        number = self._mark()
        after = number or 0
        if number is None or number >= room or not self._unused(number):
            found = self.everything()[0]
            taken = {one.entry.place for one in found if one.entry.state != REMOVED}
            free = (one for one in range(room) if one not in taken and self._unused(one))
            number = next(free, room)
            # The count itself may be lost, and tells others whether they see the whole device: it never goes down.
            after = max([after, *(one.entry.place + 1 for one in found)])
        if number >= room:
            raise StoreBroken(self.path, f"all its {room} places for leases are taken", self.larger())
        after = max(number + 1, after)
        body = _notes.text({"next": after})
        self._write(layout.NEXT, layout.seal(layout.NEXT_KIND, self.cluster, layout.NEXT, body))
        return number

    @staticmethod
    def larger() -> str:
        """What to do about a device that is too small."""
        return (
            "make it larger: each place takes 4 MiB (`lvextend -L +1G VG/LV`, then `lvchange --refresh VG/LV` on the"
            " other hosts), and start it again"
        )

    def _mark(self) -> Optional[int]:
        found = layout.unseal(layout.NEXT_KIND, self.cluster, layout.NEXT, self.blocks.read(layout.NEXT))
        members = _notes.members(found[1]) if found is not None else None
        number = (members or {}).get("next")
        return number if type(number) is int and number >= 0 else None

    def _unused(self, number: int) -> bool:
        """Whether no lease of this store's lies at a place, whole or in part."""
        begin = layout.place(number)
        for offset in range(begin, begin + layout.LEASES, layout.MiB):
            found = slots.record(self.blocks.read(offset))
            if found is not None and found[0] == self.lockspace:
                return False
        return True

    def say_what_for(self, number: int, identity: str) -> None:
        """Write down which identity a place is for: as much of it as there is room for."""
        at = layout.place(number) + layout.WHAT_FOR
        text = identity
        while len(_notes.text({"identity": text})) > layout.BLOCK // 2:
            text = text[: len(text) // 2]
        self._write(at, layout.seal(layout.WHAT_KIND, self.cluster, at, _notes.text({"identity": text})))

    def _set(self, where: Found, entry: Entry) -> None:
        """Write one entry: a sector, all the rest of which stays as it is."""
        entries = self._bucket(where.bucket)[where.piece]
        if entries is None:
            raise StoreBroken(self.path, _DAMAGED, _REPAIR)
        entries[where.position] = entry
        self._write_piece(where.bucket, where.piece, entries)

    def _write_piece(self, bucket: int, piece: int, entries: Piece) -> None:
        data = layout.encode_piece(self.cluster, bucket, piece, entries)
        at = layout.bucket_at(bucket)
        if self.blocks.sector == layout.PIECE:
            self.blocks.write(at + piece * layout.PIECE, data)
        else:
            block = bytearray(self.blocks.read(at))
            block[piece * layout.PIECE : (piece + 1) * layout.PIECE] = data
            self.blocks.write(at, bytes(block))

    def _write(self, at: int, block: bytes) -> None:
        self.blocks.write(at, block)

    # -- tidying -------------------------------------------------------------------------------------------------------

    def spoilt(self, over: Callable[[int, int], bool]) -> List[Found]:
        """
        Places on which somebody died. over: whether the membership of that host id and generation has ended.
        """
        found = [one for one in self.everything()[0] if one.entry.state in (RESERVED, SPOILT)]
        return [one for one in found if over(one.entry.host_id, one.entry.generation)]

    def free_spoilt(self, over: Callable[[int, int], bool]) -> List[Found]:
        """Give such places free again. Raises StoreBroken, NotJoined, SanlockDown, SanlockFailed."""
        if not self.spoilt(over):
            return []
        with self.alone() as connection:
            found = self.spoilt(over)
            for one in found:
                self._see_alone(connection)
                # Nobody ever saw these leases: the entry was never READY.
                # The last one first: whoever dies here leaves what looks half made.
                begin = layout.place(one.entry.place)
                for offset in reversed(range(begin, begin + layout.LEASES, layout.MiB)):
                    self.blocks.write(offset, bytes(layout.BLOCK))
                self._set(one, one.entry._replace(state=REMOVED))
            return found

    def mend(self) -> None:
        """
        Make the damaged pieces of the index anew, from the leases themselves: each begins with its name.

        A piece is written with all that belongs into it, or stays damaged: dying here loses no entry. Raises LeaseDamaged
        where it is not clear which place is a lease's, StoreBroken where this host may not see all of them, and what `alone`
        raises.
        """
        with self.alone() as connection:
            found, damaged = self.everything()
            if not damaged:
                return
            self._see_the_whole(found)
            taken = {one.entry.place for one in found if one.entry.state != REMOVED}
            known = {one.entry.name for one in found if one.entry.state == READY}
            lost: Dict[str, List[Tuple[int, int]]] = {}  # by name: version and place
            for number in range(layout.places(self.blocks.size())):
                lease = self._lease_at(number) if number not in taken else None
                if lease is not None and lease[0] not in known:
                    lost.setdefault(lease[0], []).append((lease[1], number))
            pieces: Dict[Tuple[int, int], Piece] = {where: {} for where in damaged}
            for one in found:
                pieces.setdefault((one.bucket, one.piece), {})[one.position] = one.entry
            added = set()
            for name, places in lost.items():
                # One place is the lease's, on others somebody may have died: those nobody ever acquired.
                if sorted(places)[-2:-1] >= [(1, 0)]:
                    raise LeaseDamaged(self.path, name, -errno.EUCLEAN)
                where = self._put(Entry(name, max(places)[1], READY), pieces, set(damaged))
                added.add(where)
            self._see_alone(connection)  # to look at every place can take minutes
            # What goes into a whole piece first: it may have been in a damaged one, which is then written without it.
            for bucket, piece in sorted(added - set(damaged)):
                self._write_piece(bucket, piece, pieces[bucket, piece])
            self._write_buckets(sorted({bucket for bucket, _ in damaged}), pieces)

    def _see_the_whole(self, found: List[Found]) -> None:
        """
        Raises StoreBroken where a place may lie behind the end that this host sees: a piece that is written without it is
        whole, and the lease would be made a second time.
        """
        if self._mark() is None and any(self.blocks.read(layout.NEXT)):
            raise StoreBroken(
                self.path,
                "its index is damaged, and so is the count of the places that were given out",
                "`lvchange --refresh VG/LV` on every host; then start a guest on a disk that no guest had yet: with that they"
                " are counted anew, and `vmguard gc --repair` goes on",
            )
        given_out = max([self._mark() or 0, *(one.entry.place + 1 for one in found)])
        if given_out > layout.places(self.blocks.size()):
            raise self.behind_its_end()

    def _put(
        self, entry: Entry, pieces: Dict[Tuple[int, int], Piece], damaged: Set[Tuple[int, int]]
    ) -> Tuple[int, int]:
        """Put an entry where a search finds it: in a damaged piece of its bucket, where it will have been, if there is one."""
        for step in range(layout.BUCKETS):
            bucket = (layout.bucket_of(entry.name) + step) % layout.BUCKETS
            for piece in sorted(range(layout.PIECES), key=lambda one: (bucket, one) not in damaged):  # noqa: B023
                entries = pieces.setdefault((bucket, piece), {})
                for position in range(layout.ENTRIES):
                    if position not in entries:
                        entries[position] = entry
                        return bucket, piece
        raise StoreBroken(self.path, "its index is full")

    def _write_buckets(self, buckets: List[int], pieces: Dict[Tuple[int, int], Piece]) -> None:
        """Write whole buckets, those that stand side by side at once: of a whole index sector by sector takes minutes."""
        while buckets:
            run = [one for number, one in enumerate(buckets[:256]) if one == buckets[0] + number]
            data = b"".join(
                layout.encode_piece(self.cluster, bucket, piece, pieces.get((bucket, piece), {}))
                for bucket in run
                for piece in range(layout.PIECES)
            )
            self.blocks.write(layout.bucket_at(run[0]), data)
            buckets = buckets[len(run) :]

    def _lease_at(self, number: int) -> Optional[Tuple[str, int]]:
        """
        Name and version of the lease at a place; None where there is none, or a half made one.

        One whose records are damaged in part is there all the same: by any of the three its name is known, and making it
        a second time would give it away. Its version counts as high. Raises LeaseDamaged where the three disagree.
        """
        begin = layout.place(number)
        blocks = [self.blocks.read(begin + part * layout.MiB) for part in range(3)]
        found = [slots.record(block) for block in blocks]
        ours = [one[1] if one is not None and one[0] == self.lockspace else "" for one in found]
        name = max(one.partition(".")[0] for one in ours)
        if not name:
            return None
        right = [one == wanted for one, wanted in zip(ours, slots.names(name))]
        if len(name) != 40 or any(one and not good for one, good in zip(ours, right)):
            raise LeaseDamaged(self.path, name, -errno.EUCLEAN)
        version = int(slots.RECORD.unpack_from(blocks[0])[8]) if right[0] else _UNREADABLE
        # They are formatted in this order, and nobody acquires any of them before all three are there.
        if right in ([True, False, False], [True, True, False]) and version == 0:
            return None
        return name, version
