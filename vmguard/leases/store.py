# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The store: a directory on storage that all hosts share.

    vmguard.json             which cluster this is; there only once the lockspace is
    setup.json               the same file, one step earlier: while it is there alone, a setup is under way or died
    lockspace                sanlock's, 1 MiB: which hosts live
    leases/<name>            sanlock's, 3 MiB: the leases of one identity (slots.py); <name> is a hash of the identity
    leases/<name>.note       who has it exclusively, in words
    leases/<name>.<id>.note  for whom the host <id> has it, shared or for itself
    leases/<name>.t.note     who has the ticket; <name>.d.note: the drain mark
    hosts/<id>.json          which machine is host <id>
    */new.*                  files that are being made

Lease files and the lockspace are never deleted and never made a second time: a lease made anew is free, whoever has
it, and in a lockspace made anew every other host is dead.
"""

import errno
import os
import stat
from contextlib import contextmanager

from vmguard._light import re, sha256
from vmguard._typing import Iterator, List, Optional, Tuple
from vmguard.claims import Mode
from vmguard.errors import BadRequest, LeaseDamaged, StoreBroken
from vmguard.leases import Lease, Note, _cluster, _files, _notes, client, slots
from vmguard.leases._cluster import Cluster
from vmguard.leases._hostids import HostIds

_NAME = re.compile(r"[0-9a-f]{40}")


def lease_name(identity: str) -> str:
    """The name of the lease of an identity: 40 characters that sanlock and every filesystem take."""
    return sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:40]


class Store(HostIds):
    """
    A store that is there and whole. Made by `open` or `create`.

    path, cluster (32 hexadecimal digits), lockspace (its name), io_timeout (seconds), created (seconds since the epoch)
    and by (a host's name) are facts; no method changes them.
    """

    def __init__(self, path: str, cluster: Cluster) -> None:
        self.path = path
        self.cluster, self.lockspace, self.io_timeout, self.created, self.by = cluster

    # -- the store itself ----------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str, cluster: Optional[str] = None) -> "Store":
        """
        The store at this path, which must be that of the cluster, if one is named.

        Raises StoreBroken, which says why.
        """
        why = _cluster.refusal(path)
        if why is not None:
            raise StoreBroken(path, why)
        path = os.path.normpath(path)
        with _files.directory(path) as fd:
            found = _cluster.read(fd, path, "vmguard.json")
            if found is None:
                begun = _files.read(fd, "setup.json", _notes.LIMIT) is not None
                raise StoreBroken(path, "its setup has not finished" if begun else "no store is in it: not mounted?")
            if cluster is not None and found.cluster != cluster:
                raise StoreBroken(path, f"it is the store of another cluster ({found.cluster}, not {cluster})")
            _cluster.see_lockspace(fd, path)
        return cls(path, found)

    @classmethod
    def create(cls, path: str, io_timeout: int) -> "Store":
        """
        The store at this path, made if there is none yet; a setup that died half way is finished.

        The last directory of the path is made, too, if it is missing. Two that create at the same moment end in one
        store, with the io_timeout (seconds) of one of them. Raises BadRequest for a path or time that cannot be,
        StoreBroken, SanlockDown.
        """
        why = _cluster.refusal(path)
        if why is not None:
            raise BadRequest(f"{path}: {why}", "choose another directory")
        if io_timeout not in _cluster.IO_TIMEOUTS:
            raise BadRequest(f"an io_timeout of {io_timeout} seconds", f"from 1 to {_cluster.IO_TIMEOUTS[-1]} seconds")
        path = os.path.normpath(path)
        facts = client.daemon_facts()
        owner = (os.geteuid(), facts.gid)
        try:
            os.mkdir(path, 0o750)
            os.chown(path, *owner)
        except FileExistsError:
            pass
        except OSError as error:
            raise _files.broken(path, error) from error
        with _files.directory(path) as fd:
            if _cluster.read(fd, path, "vmguard.json") is None:
                _cluster.set_up(fd, path, io_timeout, (facts.uid, facts.gid), owner)
        return cls.open(path)

    @contextmanager
    def _open(self, name: str) -> Iterator[int]:
        """
        A directory of the store, after a look whether it still is this store: no file of ours may come to lie in a
        mount point that has lost its filesystem.
        """
        with _files.directory(self.path) as root:
            found = _cluster.read(root, self.path, "vmguard.json")
            if found is None:
                raise StoreBroken(self.path, "no store is in it any more: not mounted?")
            if found.cluster != self.cluster:
                raise StoreBroken(self.path, f"it has become the store of another cluster, {found.cluster}")
            with _files.directory(name, root, shown=os.path.join(self.path, name)) as fd:
                yield fd

    # -- leases --------------------------------------------------------------------------------------------------------

    def lease_path(self, name: str) -> str:
        """Where the lease of this name is."""
        return os.path.join(self.path, "leases", name)

    def lease(self, identity: str) -> Lease:
        """The lease of an identity. Touches nothing."""
        return self.lease_of_name(lease_name(identity))

    def lease_of_name(self, name: str) -> Lease:
        """The lease of this name, which may be that of a ticket or drain mark. Touches nothing."""
        bare, _, slot = name.partition(".")
        return slots.at(Lease(self.lockspace, bare, self.lease_path(bare)), slot)

    def slot(self, identity: str, slot: str) -> Lease:
        """The "lease", "ticket" or "drain" mark of an identity. Touches nothing."""
        return slots.at(self.lease(identity), slots.SUFFIXES[slot].lstrip("."))

    def has(self, identity: str) -> bool:
        """Whether there is a lease of this identity already. Raises StoreBroken."""
        try:
            os.stat(self.lease(identity).path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _files.broken(self.path, error) from error
        return True

    def ensure(self, identity: str) -> Lease:
        """
        The lease of an identity, made if it is not there yet.

        Raises LeaseDamaged where the file is no whole lease file, StoreBroken, SanlockDown, SanlockFailed.
        """
        lease = self.lease(identity)
        try:
            found = os.stat(lease.path)
        except FileNotFoundError:
            self._make(lease)
            return lease
        except OSError as error:
            raise _files.broken(lease.path, error) from error
        if not stat.S_ISREG(found.st_mode) or found.st_size < slots.FILE_BYTES:
            raise LeaseDamaged(lease.path, identity, -errno.EMSGSIZE)
        return lease

    def _make(self, lease: Lease) -> None:
        facts = client.daemon_facts()
        with self._open("leases") as fd:
            # Zeros, and synced: blocks that are there before sanlock writes past the page cache.
            new = _files.make(fd, bytes(slots.FILE_BYTES), 0o660, (facts.uid, facts.gid))
            try:
                for slot in slots.of(lease):
                    client.format_lease(slot._replace(path=self.lease_path(new)))
                _files.place(fd, new, lease.name)  # False: somebody else was first, and theirs is as good
            except BaseException:
                _files.drop(fd, new)
                raise

    def _lease_names(self) -> List[str]:
        with self._open("leases") as fd:
            return sorted(entry for entry in os.listdir(fd) if _NAME.fullmatch(entry))

    def damaged(self) -> Tuple[str, ...]:
        """
        The names of lease files that do not read as the leases of that name. Reads them all: a millisecond each.

        Raises StoreBroken, SanlockDown, SanlockFailed.
        """
        found = []
        for name in self._lease_names():
            if self._is_damaged(self.lease_of_name(name)):
                found.append(name)
        return tuple(found)

    @staticmethod
    def _is_damaged(lease: Lease) -> bool:
        try:
            for slot in slots.of(lease):
                client.version(slot)
            # The first sectors alone may be whole: sanlock reads no further to tell the version.
            return os.stat(lease.path).st_size < slots.FILE_BYTES
        except LeaseDamaged:
            return True
        except OSError as error:
            raise _files.broken(lease.path, error) from error

    def reformat(self, name: str) -> None:
        """
        Make a damaged lease file a free lease. The caller has proven that no host can be holding it.

        Its notes go first: versions start from 0 again, and an old note must not match. Raises BadRequest for a lease
        that is not damaged or not there, StoreBroken, SanlockDown, SanlockFailed.
        """
        if name not in self._lease_names():
            raise BadRequest(f"the store has no lease {name}")
        lease = self.lease_of_name(name)
        if not self._is_damaged(lease):
            raise BadRequest(f"the lease {name} is not damaged")
        with self._open("leases") as fd:
            for entry in os.listdir(fd):
                if entry.startswith(name + ".") and entry.endswith(".note"):
                    _files.drop(fd, entry)
            os.fsync(fd)
        for slot in slots.of(lease):
            client.format_lease(slot)

    def leftovers(self) -> Tuple[str, ...]:
        """Paths of files that were being made by a process that died: known for this host, after an hour for others."""
        return tuple(os.path.join(self.path, *parts) for parts in self._abandoned())

    def clean(self) -> Tuple[str, ...]:
        """Remove the leftovers; their paths. Raises StoreBroken."""
        found = self._abandoned()
        for folder, entry in found:
            with self._open(folder) as fd:
                _files.drop(fd, entry)
        return tuple(os.path.normpath(os.path.join(self.path, *parts)) for parts in found)

    def _abandoned(self) -> List[Tuple[str, str]]:
        found = []
        for folder in (".", "leases", "hosts"):
            with self._open(folder) as fd:
                found += [(folder, entry) for entry in _files.abandoned(fd)]
        return found

    # -- notes ---------------------------------------------------------------------------------------------------------

    def write_note(self, note: Note) -> None:
        """
        Put a note beside its lease: one for its exclusive holder, one per host else. Raises StoreBroken.

        The disk is not waited for. A power cut may bring an older note back, or an empty file: its version is not the
        lease's then, so it says nothing. But which saved states are used up is in the notes alone: those are on disk
        when this returns.
        """
        name = lease_name(note.identity) + slots.SUFFIXES[note.slot]
        if note.slot == "lease" and note.mode != Mode.EXCLUSIVE.value:
            name += f".{note.host_id}"
        with _files.directory(os.path.join(self.path, "leases")) as fd:
            sync = bool(note.restored)
            new = _files.make(fd, _notes.encode_note(note), 0o640, sync=sync)
            _files.replace(fd, new, name + ".note", sync)

    def note(self, identity: str, slot: str = "lease") -> Optional[Note]:
        """The note of the exclusive holder of a slot, true only where the lease agrees. Raises StoreBroken."""
        name = lease_name(identity)
        with _files.directory(os.path.join(self.path, "leases")) as fd:
            data = _files.read(fd, f"{name}{slots.SUFFIXES[slot]}.note", _notes.LIMIT)
        note = _notes.decode_note(data) if data is not None else None
        return note if note is not None and (note.identity, note.slot) == (identity, slot) else None

    def notes(self, identity: str) -> Tuple[Note, ...]:
        """What the notes beside a lease say: true only where the lease agrees. Raises StoreBroken."""
        return self.notes_of_name(lease_name(identity))

    def notes_of_name(self, name: str) -> Tuple[Note, ...]:
        """The same for the name of a lease."""
        found = []
        with _files.directory(os.path.join(self.path, "leases")) as fd:
            for entry in (f"{name}.note", *(f"{name}.{host_id}.note" for host_id in self._host_ids())):
                data = _files.read(fd, entry, _notes.LIMIT)
                note = _notes.decode_note(data) if data is not None else None
                if note is not None and lease_name(note.identity) == name:
                    found.append(note)
        return tuple(found)

    def noted(self) -> Tuple[str, ...]:
        """Every identity that a readable note speaks of. Raises StoreBroken."""
        found = (self.identity_of(name) for name in self._lease_names())
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
