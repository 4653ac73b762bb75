# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The three leases of one identity, side by side in one file or at one place of a device:

    lease    whoever may use the storage object has it
    ticket   whoever is on the way to it has it: a guest that migrates in, until it gets the lease itself
    drain    a host that may still have unwritten data of a dead guest in its page cache has it

Side by side, so that whoever sees one of them sees all: over NFS a file that another host has just made can stay
invisible for a while.
"""

import mmap
import os
import struct

from vmguard._typing import Optional, Tuple
from vmguard.leases import Lease

MiB = 1 << 20
# What follows the name of the lease in that of the slot, and in the name of its note.
SUFFIXES = {"lease": "", "ticket": ".t", "drain": ".d"}
_OFFSETS = {"": 0, "t": MiB, "d": 2 * MiB}
FILE_BYTES = 3 * MiB

# leader.h: magic, version, flags, sector size, number of hosts, of hosts at most, owner, generation, lver, lockspace,
# name, timestamp; on disk in little-endian order. A lockspace and a lease begin with the same fields.
RECORD = struct.Struct("<4I5Q48s48sQ")
_LEASE_MAGIC = 0x06152010  # PAXOS_DISK_MAGIC
_CHECKSUM = RECORD.size + 8  # where it is, after a field that is not used
BLOCK = 4096  # bytes that direct reading wants at once, on any disk


def at(lease: Lease, slot: str) -> Lease:
    """The slot of a lease: "" itself, "t" its ticket, "d" its drain mark."""
    if not slot:
        return lease
    return lease._replace(name=f"{lease.name}.{slot}", offset=lease.offset + _OFFSETS[slot])


def names(name: str) -> Tuple[str, str, str]:
    """The names of all three, by that of the lease."""
    return name, f"{name}.t", f"{name}.d"


def ticket(lease: Lease) -> Lease:
    """The ticket beside a lease."""
    return at(lease, "t")


def drain(lease: Lease) -> Lease:
    """The drain mark beside a lease."""
    return at(lease, "d")


def of(lease: Lease) -> Tuple[Lease, Lease, Lease]:
    """All three."""
    return lease, ticket(lease), drain(lease)


def read(path: str, offset: int, length: int = BLOCK) -> bytes:
    """The block at an offset, or several, past every cache. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        # direct reading wants an aligned buffer; an anonymous mapping is one
        with mmap.mmap(-1, length) as memory:
            return memory[: os.preadv(fd, [memory], offset)]
    finally:
        os.close(fd)


def _block(lease: Lease) -> bytes:
    """The block that a slot's record lies in; none where it cannot be read."""
    try:
        return read(lease.path, lease.offset)
    except OSError:
        return b""


def surely_free(lease: Lease) -> bool:
    """
    Whether nobody holds this slot exclusively, by one read of its record instead of a question to the daemon.

    True only for a record that is sanlock's, of this very slot, and free. Whatever else is there, and whatever cannot be
    read: False, and sanlock is to be asked.
    """
    return record(_block(lease)) == (lease.lockspace, lease.name, 0)  # LEASE_FREE


def never_held(lease: Lease) -> bool:
    """Whether this slot is as it was made: free, at version 0. False where that cannot be read."""
    block = _block(lease)
    return record(block) == (lease.lockspace, lease.name, 0) and not RECORD.unpack_from(block)[8]


def owner(lease: Lease) -> Optional[Tuple[int, int, int]]:
    """
    Host id, generation and version by which this slot is held exclusively, by one read of its record. None where it is free,
    and where anything else is found, or nothing can be read: sanlock is to be asked then.
    """
    block = _block(lease)
    found = record(block) if len(block) == BLOCK else None
    if found is None or found[:2] != (lease.lockspace, lease.name) or not found[2]:
        return None
    host_id, generation, lver = RECORD.unpack_from(block)[6:9]
    return host_id, generation, lver


def whole(block: bytes) -> bool:
    """Whether the checksum of the record that begins with these bytes is right."""
    return checksum(block) == block[_CHECKSUM : _CHECKSUM + 4]


def checksum(block: bytes) -> bytes:
    """The checksum that belongs to a record: sanlock's, a CRC-32C."""
    crc = 0xFFFFFFFE
    for byte in block[:_CHECKSUM]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc.to_bytes(4, "little")


def may_be_whole(lease: Lease) -> bool:
    """Whether the record of this slot is whole, in whatever version of sanlock's format, as far as it can be read."""
    try:
        return whole(read(lease.path, lease.offset))
    except OSError:
        return True


def record(block: bytes) -> Optional[Tuple[str, str, int]]:
    """Lockspace, name and timestamp (0: free) of the lease that begins with these bytes; None if none does."""
    if len(block) < RECORD.size:
        return None
    fields = RECORD.unpack_from(block)
    if fields[0] != _LEASE_MAGIC:
        return None
    lockspace, name = (text.partition(b"\0")[0].decode("ascii", "replace") for text in fields[9:11])
    return lockspace, name, fields[11]
