# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Where what lies on the device, and how it is written: docs/store-format.md in code. Pure: bytes in, facts out.

What must be either old or new lies within one sector of 512 bytes. Everything carries a checksum that covers the cluster and
the place, so that what an earlier store has left on the same device, or what was copied to another place, says nothing.
"""

import struct

from vmguard._light import sha256
from vmguard._typing import Dict, List, NamedTuple, Optional, Tuple
from vmguard.errors import StoreBroken
from vmguard.leases import Note, _cluster, _notes
from vmguard.leases._cluster import Cluster
from vmguard.leases._notes import HostRecord

FORMAT = 1

KiB, MiB = 1 << 10, 1 << 20
BLOCK = 4096  # bytes: the largest sector that sanlock knows
PIECE = 512  # bytes: the smallest; what must not tear fits in one

HEAD, MARKS = 0, BLOCK
LOCKSPACE = 1 * MiB
HOSTS = 2 * MiB  # a block for each host id
NEXT = HOSTS + 1000 * KiB  # the first place that was never given out
ALLOCATION = 3 * MiB  # the lease under which places are given out
INDEX = 4 * MiB
PLACES = 8 * MiB

# As many as have room for a note each beside every lease. (sanlock itself: 250 with sectors of 4096 bytes.)
HOST_IDS = range(1, 201)

PLACE = 4 * MiB  # three leases, then their notes
LEASES = 3 * MiB
# Below the leases of a place: what its leases are for; notes, each with the room it has.
WHAT_FOR = LEASES
LEASE_NOTES = (LEASES + 4 * KiB, LEASES + 64 * KiB)  # written in turn: the one before stays until the new one is whole
TICKET_NOTE, DRAIN_NOTE = LEASES + 124 * KiB, LEASES + 184 * KiB
HOST_NOTES = LEASES + 200 * KiB  # a block for each host id
LONG, SHORT = 60 * KiB, 16 * KiB

BUCKETS = 1024
PIECES = BLOCK // PIECE  # of a bucket
ENTRIES = 15  # of a piece

# With half of all buckets' room used, a bucket that overflows is a rarity; and 240 GiB of leases are enough.
PLACES_AT_MOST = BUCKETS * PIECES * ENTRIES // 2


def places(size: int) -> int:
    """How many storage objects a device of so many bytes has room for."""
    return min(max(size - PLACES, 0) // PLACE, PLACES_AT_MOST)


def place(number: int) -> int:
    """Where a place begins."""
    return PLACES + number * PLACE


def bytes_for(count: int) -> int:
    """The size of a device with so many places."""
    return place(count)


# -- frames: whatever is not in the index ------------------------------------------------------------------------------

_FRAME = struct.Struct("<8s16sQII")  # kind, checksum, number of the writing, length, zero


def seal(kind: bytes, cluster: str, at: int, body: bytes, number: int = 0) -> bytes:
    """A body in a frame, in whole blocks. at: where it will lie."""
    head = _FRAME.pack(kind, bytes(16), number, len(body), 0)
    frame = _FRAME.pack(kind, _checksum(cluster, at, head + body), number, len(body), 0) + body
    return frame + bytes(-len(frame) % BLOCK)


def length(kind: bytes, block: bytes) -> int:
    """How many bytes of whole blocks the frame says it has that begins with this one; 0 where none begins."""
    if len(block) < _FRAME.size or block[:8] != kind:
        return 0
    size: int = _FRAME.unpack_from(block)[3]
    return -(-(_FRAME.size + size) // BLOCK) * BLOCK


def unseal(kind: bytes, cluster: str, at: int, data: bytes) -> Optional[Tuple[int, bytes]]:
    """Number and body of a frame; None for anything that is not quite one."""
    if len(data) < _FRAME.size or data[:8] != kind:
        return None
    _, checksum, number, size, zero = _FRAME.unpack_from(data)
    body = data[_FRAME.size : _FRAME.size + size]
    head = _FRAME.pack(kind, bytes(16), number, size, zero)
    if len(body) != size or checksum != _checksum(cluster, at, head + body):
        return None
    return number, body


def _checksum(cluster: str, at: int, data: bytes) -> bytes:
    return sha256(cluster.encode() + at.to_bytes(8, "little") + data).digest()[:16]


HEAD_KIND, MARKS_KIND, SETUP_KIND = b"VMGUARD\0", b"vmgmarks", b"vmgsetup"
HOST_KIND, NEXT_KIND, NOTE_KIND, WHAT_KIND = b"vmghost\0", b"vmgnext\0", b"vmgnote\0", b"vmgwhat\0"

# -- the head ----------------------------------------------------------------------------------------------------------


class Head(NamedTuple):
    """What the first two blocks say."""

    facts: Cluster
    size: int  # bytes of the device when the store was made
    volume: str  # the uuid of the device's map if it is a logical volume; "": it is none
    number: int = 0  # of its writings


# A mark is a word in the head, which cannot tear, and names a place in the second block, which is written before and taken
# away after.
_IN_USE, _MOVED, _WAITING = "in use", "moved", "waiting"


def encode_head(head: Head) -> Tuple[bytes, bytes]:
    """The head's sector, and the block of marks that belongs to it, which is to be there as long as the head needs it."""
    facts = head.facts
    state = _MOVED if facts.moved else _WAITING if facts.instead_of else _IN_USE
    by = facts.by[:48]
    while True:
        members = _cluster.members(facts._replace(moved=None, instead_of=None, by=by))
        del members["marked"]  # the frame has a number of its own
        body = _notes.text({**members, "format": FORMAT, "state": state, "size": head.size, "volume": head.volume})
        sealed = seal(HEAD_KIND, "", HEAD, body, head.number)
        if not any(sealed[PIECE:]):
            break
        if not by:
            raise StoreBroken("", "its head does not fit in a sector")
        by = by[:-1]  # a character can take six bytes
    marks = {name: mark for name, mark in (("moved", facts.moved), ("instead_of", facts.instead_of)) if mark}
    return sealed, seal(MARKS_KIND, facts.cluster, MARKS, _notes.text(marks), head.number)


def decode_head(path: str, data: bytes) -> Optional[Head]:
    """
    The head in the first two blocks of the device; None where there is none, and no damaged one either.

    Raises StoreBroken for one that is not understood.
    """
    if data[:8] != HEAD_KIND:
        return None
    found = unseal(HEAD_KIND, "", HEAD, data[:BLOCK])
    members = _notes.members(found[1]) if found is not None else None
    if found is None or members is None:
        raise StoreBroken(path, "its head is damaged")
    version = members.get("format")
    if type(version) is int and version > FORMAT:
        raise StoreBroken(path, f"its format is {version}, and this vmguard, which is older, knows up to {FORMAT}")
    facts, state, size, volume = (
        _cluster.identity(members), members.get("state"), members.get("size"), members.get("volume"),
    )  # fmt: skip
    if version != FORMAT or facts is None or type(size) is not int or not isinstance(volume, str):
        raise StoreBroken(path, "its head is damaged")
    if state == _IN_USE:
        return Head(facts, size, volume, found[0])
    marks = unseal(MARKS_KIND, facts.cluster, MARKS, data[BLOCK : 2 * BLOCK])
    named = _notes.members(marks[1]) if marks is not None else None
    # The word counts, whatever became of the name.
    unknown = ["another store", ""]
    key = {_MOVED: "moved", _WAITING: "instead_of"}.get(str(state))
    if key is None:
        raise StoreBroken(path, "its head is damaged")
    marked = _cluster.identity({**members, key: (named or {}).get(key, unknown)})
    if marked is None:
        raise StoreBroken(path, "its head is damaged")
    return Head(marked, size, volume, found[0])


# -- hosts -------------------------------------------------------------------------------------------------------------


def host_at(host_id: int) -> int:
    """Where the record of a host lies."""
    return HOSTS + (host_id - 1) * BLOCK


def encode_host(cluster: str, record: HostRecord) -> bytes:
    """The record of a host as it is stored: within one sector, whatever its host is called."""
    at, name = host_at(record.host_id), record.host
    while True:
        sealed = seal(HOST_KIND, cluster, at, _notes.encode_host(record._replace(host=name)))
        if not any(sealed[PIECE:]):
            return sealed
        name = name[:-1]


def decode_host(cluster: str, host_id: int, block: bytes) -> Optional[HostRecord]:
    """The record of a host; None where there is none. One that cannot be read says that the id is taken, and no more."""
    if not any(block):
        return None
    found = unseal(HOST_KIND, cluster, host_at(host_id), block)
    return _notes.decode_host(found[1] if found is not None else None, host_id)


# -- the index ---------------------------------------------------------------------------------------------------------

_PIECE_HEAD = struct.Struct("<4sHBx16s8x")  # "VMGi", bucket, piece, checksum
_ENTRY = struct.Struct("<20sIBxHI")

EMPTY, RESERVED, READY, SPOILT, REMOVED = range(5)


class Entry(NamedTuple):
    """One entry of the index."""

    name: str  # of the lease, 40 hexadecimal digits
    place: int
    # RESERVED: its leases are being made. READY: they are there, for good. SPOILT: whoever made them died over it; the place
    # is nobody's. REMOVED: it was one of these two.
    state: int
    # Who reserved it: a command of that host's sanlock may reach the place as long as that membership lasts.
    host_id: int = 0
    generation: int = 0


Piece = Dict[int, Entry]  # by position; what is not in it is empty


def bucket_of(name: str) -> int:
    """The bucket in which the search for a name begins. Names are hashes."""
    return int(name[:8], 16) % BUCKETS


def bucket_at(bucket: int) -> int:
    """Where a bucket lies."""
    return INDEX + bucket * BLOCK


def encode_piece(cluster: str, bucket: int, piece: int, entries: Piece) -> bytes:
    """One sector of the index."""
    body = bytearray(ENTRIES * _ENTRY.size)
    for position, one in entries.items():
        name, generation = bytes.fromhex(one.name), one.generation % (1 << 32)
        _ENTRY.pack_into(body, position * _ENTRY.size, name, one.place, one.state, one.host_id, generation)
    head = _PIECE_HEAD.pack(b"VMGi", bucket, piece, bytes(16))
    checksum = _checksum(cluster, bucket_at(bucket), head + body)
    return _PIECE_HEAD.pack(b"VMGi", bucket, piece, checksum) + bytes(body)


def decode_piece(cluster: str, bucket: int, piece: int, data: bytes) -> Optional[Piece]:
    """The entries in a sector of the index by their positions; None for anything that is not quite one."""
    if not any(data[_PIECE_HEAD.size :]):
        return {} if data == encode_piece(cluster, bucket, piece, {}) else None
    found: Piece = {}
    for position in range(ENTRIES):
        name, number, state, host_id, generation = _ENTRY.unpack_from(data, _PIECE_HEAD.size + position * _ENTRY.size)
        if state != EMPTY:
            found[position] = Entry(name.hex(), number, state, host_id, generation)
    # Written again it must come out the same: checksum, place and all.
    if any(one.state > REMOVED for one in found.values()):
        return None
    return found if encode_piece(cluster, bucket, piece, found) == data else None


def decode_bucket(cluster: str, bucket: int, block: bytes) -> List[Optional[Piece]]:
    """The pieces of a bucket."""
    return [decode_piece(cluster, bucket, piece, block[piece * PIECE : (piece + 1) * PIECE]) for piece in range(PIECES)]


def empty_index(cluster: str) -> bytes:
    """The whole index of a new store: an index of zeros is a damaged one, and no empty one."""
    return b"".join(encode_piece(cluster, bucket, piece, {}) for bucket in range(BUCKETS) for piece in range(PIECES))


# -- notes -------------------------------------------------------------------------------------------------------------


def fitting(note: Note, room: int) -> bytes:
    """
    A note as it is stored, within so many bytes, frame and all. What does not fit is left out, the least needed first: the
    last of the disks, the oldest used-up states, the middle of a path and of a name.
    """
    room -= _FRAME.size
    while True:
        body = _notes.encode_note(note)
        if len(body) <= room:
            return body
        if note.disks:
            note = note._replace(disks=note.disks[: len(note.disks) // 2])
        elif note.restored:
            note = note._replace(restored=note.restored[-(len(note.restored) // 2) :] if len(note.restored) > 1 else ())
        elif max(len(note.path), len(note.domain)) > 16:
            note = note._replace(path=_shorter(note.path), domain=_shorter(note.domain))
        elif note.writer is not None and len(note.writer.domain) > 16:
            note = note._replace(writer=note.writer._replace(domain=_shorter(note.writer.domain)))
        else:
            raise StoreBroken("", f"a note about {note.identity[:64]!r} has no room beside its lease")


def _shorter(text: str) -> str:
    """Without a quarter in its middle."""
    if len(text) <= 16:
        return text
    keep = len(text) * 3 // 8
    return text[:keep] + "…" + text[-keep:]
