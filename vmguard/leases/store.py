# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The store: what all hosts of a cluster share. Which hosts there are and live, the leases of each storage object, and who
has them, in words.

There are two kinds, a directory (_directory.py) and a block device (device/). Nobody else needs to know which it is:
`Store.open` looks.
"""

import os
import stat
import time

from vmguard._light import sha256
from vmguard._typing import Iterable, List, NamedTuple, Optional, Tuple
from vmguard.claims import Mode
from vmguard.errors import BadRequest, LeaseDamaged, LeaseNewer, StoreBroken, StoreMoved
from vmguard.leases import Lease, Note, _cluster, client, slots
from vmguard.leases._cluster import Cluster, Elsewhere
from vmguard.leases._hostids import HostIds
from vmguard.leases._notes import HostRecord


def lease_name(identity: str) -> str:
    """The name of the lease of an identity: 40 characters that sanlock and every filesystem take."""
    return sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def is_device(path: str) -> bool:
    """Whether a store at this path is one on a block device. False where nothing can be seen there."""
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def exists(path: str) -> bool:
    """Whether a store has been made at this path, whether it is whole or damaged by now. Raises StoreBroken."""
    if is_device(path):
        from vmguard.leases.device import store as device

        return device.exists(path)
    return os.path.exists(os.path.join(path, "vmguard.json"))


def load(path: str) -> None:
    """
    Load the code that opens a store at this path: for a process whose children would each load it anew. Touches no storage.
    """
    if path.startswith("/dev/"):
        import vmguard.leases.device.store
    else:
        import vmguard.leases._directory  # noqa: F401
    client.load()


class Judged(NamedTuple):
    """The names of leases that sanlock on this host cannot read."""

    damaged: List[str]  # what is there does not read as the lease of that name
    newer: List[str]  # it is whole, in a format of a later version of sanlock


class Store(HostIds):
    """
    A store that is there and whole. Made by `open` or `create`.

    path, cluster (32 hexadecimal digits), lockspace (its name), io_timeout (seconds), created (seconds since the epoch),
    by (a host's name) and converted (when it took the place of another store; 0.0: never) are facts; no method changes
    them. So is where the lockspace lies: lockspace_path, lockspace_offset, and the bytes of a sector there.
    """

    kind: str  # "directory" or "device"

    def __init__(self, path: str, cluster: Cluster, lockspace_path: str, lockspace_offset: int) -> None:
        self.path = path
        self.facts = cluster
        self.cluster, self.lockspace, self.io_timeout, self.created, self.by = cluster[:5]
        self.converted, self.sector = cluster.converted, cluster.sector
        self.lockspace_path, self.lockspace_offset = lockspace_path, lockspace_offset

    # -- the store itself ----------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str, cluster: Optional[str] = None) -> "Store":
        """
        The store at this path, which must be that of the cluster, if one is named.

        Raises StoreBroken, which says why: StoreMoved where another store has taken its place.
        """
        found = cls.look(path)
        if cluster is not None and found.cluster != cluster:
            raise StoreBroken(path, f"it is the store of another cluster ({found.cluster}, not {cluster})")
        see_in_use(path, found.facts)
        return found

    @classmethod
    def look(cls, path: str) -> "Store":
        """The store at this path, also one that is not in use, not yet or no longer. Raises StoreBroken."""
        why = _cluster.refusal(path)
        if why is not None:
            raise StoreBroken(path, why)
        path = os.path.normpath(path)
        if is_device(path):
            from vmguard.leases.device.store import DeviceStore

            return DeviceStore.at(path)
        if path.startswith("/dev/"):
            raise StoreBroken(
                path,
                "there is no such device: is the volume active?",
                "make it active (`vgchange --lock-start VG`, `lvchange -asy VG/LV`), then run `vmguard join`",
            )
        from vmguard.leases._directory import DirectoryStore

        return DirectoryStore.at(path)

    @classmethod
    def create(cls, path: str, io_timeout: int, instead_of: Optional[Elsewhere] = None) -> "Store":
        """
        The store at this path, made if there is none yet; a setup that died half way is finished.

        A directory: the last one of the path is made, too, if it is missing. A block device: it must be empty. Two that
        create at the same moment end in one store, with the io_timeout (seconds) of one of them. instead_of: the store
        whose place it is to take; until then it cannot be opened. Raises BadRequest for a path or time that cannot be,
        StoreBroken, SanlockDown.
        """
        why = _cluster.refusal(path)
        if why is not None:
            raise BadRequest(f"{path}: {why}", "choose another directory")
        if io_timeout not in _cluster.IO_TIMEOUTS:
            raise BadRequest(f"an io_timeout of {io_timeout} seconds", f"from 1 to {_cluster.IO_TIMEOUTS[-1]} seconds")
        path = os.path.normpath(path)
        if is_device(path):
            from vmguard.leases.device import making

            making.make(path, io_timeout, instead_of)
        else:
            from vmguard.leases import _directory

            _directory.make(path, io_timeout, instead_of)
        return cls.look(path) if instead_of is not None else cls.open(path)

    def mark_moved(self, to: Elsewhere) -> None:
        """
        Say for good that another store has taken the place of this one: nobody opens it any more. At once or not at all.
        Said once more it makes certain that whoever had set the mark before cannot take it away any more.

        Raises StoreBroken, also where somebody has changed the marks since this store was looked at: of two that do so
        at once, one has done it.
        """
        raise NotImplementedError

    def mark_in_use(self, converted: float = 0.0) -> None:
        """
        Take a mark away again; converted: when this store took the place of another. At once or not at all. Raises
        StoreBroken.
        """
        raise NotImplementedError

    def _changed(self) -> StoreBroken:
        """What is wrong where the marks are not what they were when this store was looked at."""
        return StoreBroken(self.path, "somebody else has just changed it, or is about to", "run this again")

    def carry(self, records: Iterable[HostRecord]) -> None:
        """Enter hosts into a store that nobody uses yet, by the ids that they have elsewhere. Raises StoreBroken."""
        for record in records:
            self._rewrite(record._replace(boot=""))

    def room(self) -> Optional[Tuple[int, int]]:
        """How many storage objects have their leases in it, and how many could; None: as many as the disk has room for."""
        return None

    # -- leases --------------------------------------------------------------------------------------------------------

    def lease(self, identity: str) -> Lease:
        """
        The lease of an identity, which has been made. Changes nothing. Raises StoreBroken where it has no place.
        """
        return self.lease_of_name(lease_name(identity))

    def lease_of_name(self, name: str) -> Lease:
        """The lease of this name, which may be that of a ticket or drain mark. Raises as `lease`."""
        bare, _, slot = name.partition(".")
        return slots.at(self._place(bare), slot)

    def slot(self, identity: str, slot: str) -> Lease:
        """The "lease", "ticket" or "drain" mark of an identity. Raises as `lease`."""
        return slots.at(self.lease(identity), slots.SUFFIXES[slot].lstrip("."))

    def _place(self, name: str) -> Lease:
        raise NotImplementedError

    def has(self, identity: str) -> bool:
        """Whether there is a lease of this identity already. Raises StoreBroken."""
        raise NotImplementedError

    def ensure(self, identity: str) -> Lease:
        """
        The lease of an identity, made if it is not there yet.

        Raises LeaseDamaged where there is something else in its place, StoreBroken, NotJoined (on a block device it is
        made by members alone), SanlockDown, SanlockFailed.
        """
        raise NotImplementedError

    def lease_names(self) -> List[str]:
        """The names of all leases there are. Raises StoreBroken."""
        raise NotImplementedError

    def judged(self) -> Judged:
        """
        Which leases sanlock cannot read. Reads them all: a millisecond each. Raises StoreBroken, SanlockDown, SanlockFailed.
        """
        found = Judged([], [])
        for name in self.lease_names():
            try:
                if self.damaged_slots(name):
                    found.damaged.append(name)
            except LeaseNewer:
                found.newer.append(name)
        return found

    def damaged_slots(self, name: str) -> Tuple[str, ...]:
        """Which of the three leases of this name are damaged: "lease", "ticket", "drain". Raises as `judged`, LeaseNewer."""
        return self._damaged_of(self._place(name))

    def _damaged_of(self, lease: Lease) -> Tuple[str, ...]:
        return tuple(slot for slot, place in zip(slots.SUFFIXES, slots.of(lease)) if self._is_damaged(place))

    def _is_damaged(self, place: Lease) -> bool:
        try:
            client.version(place)
            return not self._whole(place)
        except LeaseDamaged:
            return True

    def _whole(self, place: Lease) -> bool:
        """Whether all is there that sanlock reads no further to tell the version."""
        return True

    def reformat(self, name: str) -> None:
        """
        Make what is damaged of a lease, its ticket and its drain mark free. The caller has proven that no host can be holding
        that; what is not damaged may be held, and stays as it is.

        Its notes go first: versions start from 0 again, and an old note must not match. One of version 0 takes their place:
        without, the next who has the lease would be the first who ever wrote. Raises BadRequest for a lease that is not damaged
        or not there, LeaseNewer for one that is of a newer sanlock, StoreBroken, SanlockDown, SanlockFailed.
        """
        if name not in self.lease_names():
            raise BadRequest(f"the store has no lease {name}")
        damaged = self.damaged_slots(name)
        if not damaged:
            raise BadRequest(f"the lease {name} is not damaged")
        identity = self.identity_of(name)
        before = self.note(identity) if identity is not None else None
        self.forget(name)
        if identity is not None:
            mode, restored = Mode.EXCLUSIVE.value, before.restored if before is not None else ()
            self.write_note(Note(identity, mode, 0, 0, 0, "", "", "", "", time.time(), restored=restored))
        self._make_free(name, damaged)

    def _make_free(self, name: str, damaged: Tuple[str, ...]) -> None:
        for slot in damaged:
            client.format_lease(self.lease_of_name(name + slots.SUFFIXES[slot]))

    def unnamed(self) -> Tuple[str, ...]:
        """The names of leases whose file somebody has removed, and which are still there by another name. Raises StoreBroken."""
        return ()

    def name_again(self, name: str) -> None:
        """Put such a file back in its place, as it is: who has the lease has it. Raises StoreBroken, LeaseDamaged."""

    def forget(self, name: str) -> None:
        """Drop the notes beside a lease, which is there. Raises StoreBroken."""
        raise NotImplementedError

    def damage(self) -> Tuple[str, ...]:
        """What is damaged of the store itself and can be made anew, in words. Raises StoreBroken."""
        return ()

    def mend(self) -> None:
        """
        Make it anew. Under the host lock. Raises StoreBroken, also where that is not safe now, LeaseDamaged, SanlockDown,
        SanlockFailed, NotJoined.
        """

    def leftovers(self) -> Tuple[str, ...]:
        """What a process left half made that died, and nobody needs. Raises StoreBroken, NotJoined, SanlockDown."""
        raise NotImplementedError

    def clean(self) -> Tuple[str, ...]:
        """Remove the leftovers; what they were. Raises as `leftovers`, SanlockFailed."""
        raise NotImplementedError

    # -- notes ---------------------------------------------------------------------------------------------------------

    def write_note(self, note: Note) -> None:
        """
        Put a note beside its lease: one for its exclusive holder, one per host else. Raises StoreBroken.

        The disk is not waited for. A power cut may bring an older note back, or none: its version is not the lease's
        then, so it says nothing. But which saved states are used up is in the notes alone: those are on disk when this
        returns.
        """
        raise NotImplementedError

    def note(self, identity: str, slot: str = "lease") -> Optional[Note]:
        """The note of the exclusive holder of a slot, true only where the lease agrees. Raises StoreBroken."""
        raise NotImplementedError

    def notes(self, identity: str) -> Tuple[Note, ...]:
        """What the notes beside a lease say: true only where the lease agrees. Raises StoreBroken."""
        return self.notes_of_name(lease_name(identity))

    def notes_of_name(self, name: str) -> Tuple[Note, ...]:
        """The same for the name of a lease."""
        raise NotImplementedError

    def noted(self) -> Tuple[str, ...]:
        """Every identity that a readable note speaks of. Raises StoreBroken."""
        found = (self.identity_of(name) for name in self.lease_names())
        return tuple(identity for identity in found if identity is not None)

    def identity_of(self, name: str) -> Optional[str]:
        """
        The identity that a lease is for, where a note beside it says so: from the name alone it cannot be told.

        Never raises: it is for sentences.
        """
        try:
            notes = self.notes_of_name(name)
        except StoreBroken:
            return None
        return notes[0].identity if notes else None


def see_in_use(path: str, found: Cluster) -> None:
    """Raises StoreMoved where another store has taken its place, StoreBroken where it has not taken another's yet."""
    if found.moved is not None:
        raise StoreMoved(path, found.moved.path)
    if found.instead_of is not None:
        old = found.instead_of.path
        raise StoreBroken(
            path,
            f"it is to take the place of {old}, and the conversion has not finished",
            f"run `vmguard store convert {path}` on a host that is set up for {old}",
        )
