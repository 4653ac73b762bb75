# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Membership of this host in the lockspace: joining, leaving, who else is there.

sanlock lets a host back in at once that bears the name of the last one with its id. A cloned machine bears it too,
and would take over the id of its living original. So before a join nothing of which is known for certain, the id's
record is watched: a living host renews it.
"""

import errno
import os
import time

from vmguard import host
from vmguard._typing import NamedTuple, Optional, Tuple
from vmguard.errors import BadRequest, HostIdTaken, LeaseDamaged, Misconfigured, NotJoined, NotYet
from vmguard.leases import HostState, _files, client, slots, status
from vmguard.leases import _library as lib
from vmguard.leases.status import Space
from vmguard.leases.store import Store

# The record of a host (slots.RECORD, with the name of the owner where a lease has its own): the second half of the
# sector is for messages.
_RECORD_LEN = 256
_MAGIC = 0x12212010  # DELTA_DISK_MAGIC
_IO_TIMEOUT = slice(174, 176)  # of a record: that of its host

_POLL = 0.1  # seconds

# What was given back this moment, sanlock still has for some milliseconds: it writes to the disk on its own time.
_RELEASES = 1.0  # seconds


class Member(NamedTuple):
    """A host of the lockspace, with what the store knows of it."""

    host_id: int
    generation: int
    state: str  # as in HostState
    timestamp: int
    host: Optional[str]  # its name


class _Renewal(NamedTuple):
    """The record of one host id in the lockspace."""

    timestamp: int  # seconds of that host's own clock; 0: it left in order, or was never there
    owner: str  # the name by which sanlock knows that host
    raw: bytes


def _renewal(store: Store, host_id: int) -> _Renewal:
    """What is on disk, now: read past every cache. Raises StoreBroken, LeaseDamaged."""
    offset = (host_id - 1) * store.sector
    block = offset - offset % slots.BLOCK
    return _record(store, _read(store, block), offset - block)


def _read(store: Store, offset: int, length: int = slots.BLOCK) -> bytes:
    try:
        return slots.read(store.lockspace_path, store.lockspace_offset + offset, length)
    except OSError as error:
        raise _files.broken(store.lockspace_path, error) from error


def _record(store: Store, data: bytes, begin: int) -> _Renewal:
    path, raw = store.lockspace_path, data[begin : begin + _RECORD_LEN]
    if len(raw) < _RECORD_LEN:
        raise LeaseDamaged(path, store.lockspace, -errno.EMSGSIZE)
    fields = slots.RECORD.unpack_from(raw)
    if fields[0] != _MAGIC:
        raise LeaseDamaged(path, store.lockspace, lib.LEADER_MAGIC)
    return _Renewal(fields[11], os.fsdecode(fields[10].partition(b"\0")[0]), raw)


def _see_nobody_alive(store: Store, host_id: int) -> None:
    """
    Watch the record of a host id for longer than any living host leaves it unrenewed in ordinary times.

    Raises HostIdTaken as soon as it changes.
    """
    first = _renewal(store, host_id)
    if first.timestamp == 0:
        return
    end = time.monotonic() + _renewed_within(store.io_timeout)
    while time.monotonic() < end:
        time.sleep(_POLL)
        now = _renewal(store, host_id)
        if now.raw != first.raw:
            if now.timestamp == 0:
                return  # it has just left
            raise HostIdTaken(host_id, store.path, now.owner, live=True)


def _renewed_within(io_timeout: int) -> int:
    """
    Seconds. Renewed every 2 io_timeouts (sanlock's id_renewal_seconds), checked once a second, written within another
    io_timeout.
    """
    return 3 * io_timeout + 1


def renewed_within(record: bytes) -> int:
    """Seconds in which a living host renews this record of a lockspace, which may be none; 0: nobody does."""
    fields = slots.RECORD.unpack_from(record)
    if fields[0] != _MAGIC or fields[11] == 0:
        return 0
    return _renewed_within(int.from_bytes(record[_IO_TIMEOUT], "little"))


class Entry(NamedTuple):
    """A host that is in the lockspace, or was when it died."""

    host_id: int
    generation: int
    timestamp: int


def entries(store: Store) -> Tuple[Entry, ...]:
    """
    Every host that has not left in order, by what is on disk: alive, dead, or just joining. Whether this host is a
    member or not. Raises StoreBroken, LeaseDamaged.
    """
    data = _read(store, 0, lib.ALIGN)
    found = []
    for host_id in lib.host_ids(store.sector):
        record = _record(store, data, (host_id - 1) * store.sector)
        if record.timestamp != 0:
            generation = slots.RECORD.unpack_from(record.raw)[7]
            found.append(Entry(host_id, int(generation), record.timestamp))
    return tuple(found)


def surely_dead(io_timeout: int) -> int:
    """Seconds without a renewal after which a host certainly has no lease: sanlock's calc_host_dead_seconds."""
    return 8 * io_timeout + 60


def _space(store: Store) -> Optional[Space]:
    for space in status.status().spaces:
        if space.name == store.lockspace:
            return space
    return None


def state(store: Store, host_id: int) -> str:
    """
    "joined", "joining", "leaving" (also: failed, and sanlock is ending its users) or "out".

    Raises Misconfigured where sanlock is in the lockspace by another host id or path; SanlockDown, SanlockFailed.
    """
    space = _space(store)
    if space is None:
        return "out"
    if (space.host_id, space.path) != (host_id, store.lockspace_path):
        raise Misconfigured(
            "sanlock",
            f"it is in the lockspace {space.name} as host {space.host_id}, by {space.path}",
            "run `vmguard setup`",
        )
    return space.state


def generation(store: Store) -> int:
    """
    This host's generation in the lockspace: it rises with each join. Raises NotJoined, SanlockDown, SanlockFailed.
    """
    space = _space(store)
    if space is None or space.state != "joined":
        raise NotJoined(store.lockspace, joining=space is not None and space.state == "joining")
    return space.generation


def join(store: Store, host_id: int, key: host.HostKey) -> None:
    """
    Become a member, and wait until sanlock knows the other hosts. Nothing happens where this host is one.

    Takes 2 io_timeouts and a second after an ordered end or a mere restart, 3 more io_timeouts after the first boot
    or a power cut, and minutes where the last host with this id had another name for sanlock. The caller sees to it
    that no guest of this host still runs on leases of an earlier membership, and gives it a deadline.

    Raises HostIdTaken (another machine claimed the id, or a living host renews it), BadRequest (nobody claimed it),
    Misconfigured, StoreBroken, LeaseDamaged (the lockspace is not the cluster's), NotYet (sanlock is just leaving),
    SanlockDown, SanlockFailed.
    """
    boot = host.boot_id()
    now = state(store, host_id)
    if now == "leaving":
        raise NotYet("sanlock is just ending an earlier membership of this host", "run this again in a moment")
    if now == "out":
        client.check_lockspace(store.lockspace, store.lockspace_path, store.lockspace_offset, store.sector)
        if not store.joined_before(host_id, key, boot):
            _see_nobody_alive(store, host_id)
        _add(store, host_id)
    while state(store, host_id) == "joining":
        time.sleep(_POLL)
    _meet(store, host_id)
    if not store.joined_before(host_id, key, boot):
        store.record_join(host_id, key, boot)


def _item(store: Store, host_id: int) -> lib.Lockspace:
    return lib.lockspace(store.lockspace, host_id, store.lockspace_path, store.lockspace_offset, store.sector)


def _add(store: Store, host_id: int) -> None:
    item = _item(store, host_id)
    code = lib.library().sanlock_add_lockspace_timeout(lib.reference(item), 0, store.io_timeout)
    if code >= 0 or code in (-errno.EEXIST, -errno.EINPROGRESS):
        return
    if code == lib.HOSTID_BUSY:
        raise HostIdTaken(host_id, store.path, _renewal(store, host_id).owner, live=True)
    if code == -errno.EAGAIN:
        raise NotJoined(store.lockspace, joining=False)
    if code == lib.WD_ERROR:
        raise Misconfigured("sanlock", "it shall use the watchdog, and wdmd does not answer", "start wdmd")
    raise client.file_failure("add lockspace", code, store.lockspace_path, store.lockspace)


def _meet(store: Store, host_id: int) -> None:
    """Wait until sanlock has looked at the members for the first time: a second or two after the join."""
    end = time.monotonic() + 3 * store.io_timeout + 1
    while True:
        try:
            if any(member.host_id == host_id for member in client.hosts(store.lockspace)):
                return
        except NotJoined as error:
            if not error.joining:
                raise
        if time.monotonic() > end:
            raise NotJoined(store.lockspace, joining=True)
        time.sleep(_POLL)


def leave(store: Store, host_id: int) -> None:
    """
    Leave the lockspace; nothing happens where this host is not in it. Two to three seconds.

    Raises BadRequest while leases are held, orphans too: sanlock would kill their holders. Misconfigured, SanlockDown,
    SanlockFailed.
    """
    if state(store, host_id) == "out":
        return
    item = _item(store, host_id)
    end = time.monotonic() + _RELEASES
    code = lib.library().sanlock_rem_lockspace(lib.reference(item), lib.REM_UNUSED)
    while code == -errno.EBUSY and time.monotonic() < end:
        time.sleep(_POLL)
        code = lib.library().sanlock_rem_lockspace(lib.reference(item), lib.REM_UNUSED)
    if code == -errno.EBUSY:
        raise BadRequest("leases of this lockspace are held on this host", "stop or migrate the guests first")
    if code < 0 and code not in (-errno.ENOENT, -errno.EINPROGRESS):
        raise lib.failure("remove lockspace", code, store.lockspace)
    while state(store, host_id) != "out":
        time.sleep(_POLL)


def members(store: Store) -> Tuple[Member, ...]:
    """Every host that sanlock has seen in the lockspace. Raises NotJoined, SanlockDown, SanlockFailed."""
    found: Tuple[HostState, ...] = client.hosts(store.lockspace)
    return tuple(Member(*member, host=store.host_name(member.host_id)) for member in found)
