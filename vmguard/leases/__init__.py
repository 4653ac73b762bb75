# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Leases: sanlock, the store, who holds what.

    client.py     the calls of libsanlock, as Python
    store.py      what all hosts share: lockspace, leases, notes, host ids; in a directory, or on a block device
    slots.py      the three leases of one identity: the lease itself, the ticket, the drain mark
    lockspace.py  joining, leaving, who else is there
    status.py     what the daemon of this host has in memory
"""

from vmguard._typing import NamedTuple, Optional, Tuple


class Lease(NamedTuple):
    """One lease on disk, as sanlock addresses it."""

    lockspace: str
    name: str  # a hash of the identity, see store.lease_name
    path: str
    offset: int = 0
    sector: int = 512  # bytes, of the device that it lies on; of a file always 512


class Owner(NamedTuple):
    """One entry of a lease's owners on disk. Counts only if that host is alive with that very generation."""

    host_id: int
    generation: int
    shared: bool = False


class HostState(NamedTuple):
    """A member of the lockspace as sanlock on this host sees it."""

    host_id: int
    generation: int
    # "live": renewed lately. "fail": not renewed for 6 to 8 io_timeouts or more. "dead": certainly has no lease any
    # more (8 io_timeouts + 60 s). "free": left in order. "unknown": just joined, not seen renewing yet.
    state: str
    timestamp: int = 0


class Writer(NamedTuple):
    """The last instance that may have written a storage object."""

    lver: int  # at which it held the lease
    uuid: str
    domain: str
    host: str
    since: float  # seconds since the epoch: its start


class Note(NamedTuple):
    """
    Who holds a lease, in words, beside the lease file. Written by the holder after it acquired. It counts only if
    host_id, generation and (for exclusive ones) lver match what the lease itself says.
    """

    identity: str
    mode: str  # claims.Mode value
    host_id: int
    generation: int
    lver: int
    host: str
    domain: str
    uuid: str
    path: str
    since: float  # seconds since the epoch
    instance: str = ""
    slot: str = "lease"  # or "ticket", "drain": which of the leases of the identity this speaks of
    # Who wrote last, up to and with this lver. None: that is not known.
    writer: Optional[Writer] = None
    # Of the lease of a domain itself: marks of its saved states that have been restored, and are so used up.
    restored: Tuple[str, ...] = ()
    # Likewise: what its guest writes, each as path and identity. A destination sees by it whether a path is the same disk.
    disks: Tuple[Tuple[str, str], ...] = ()
    format: int = 1


class Lock(NamedTuple):
    """A lease as sanlock's daemon on this host has it in memory."""

    name: str
    lver: int  # 0: a shared one, which has no version of its own
    shared: bool
    pid: Optional[int] = None  # None: an orphan
