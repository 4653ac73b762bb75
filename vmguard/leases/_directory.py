# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The store as a directory, on storage that all hosts share:

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

from vmguard._light import re
from vmguard._typing import Iterator, List, Optional, Tuple
from vmguard.claims import Mode
from vmguard.errors import LeaseDamaged, StoreBroken
from vmguard.leases import Lease, Note, _cluster, _files, _notes, client, slots
from vmguard.leases._cluster import Cluster, Elsewhere
from vmguard.leases._notes import HostRecord
from vmguard.leases.store import Store, lease_name, see_in_use

_NAME = re.compile(r"[0-9a-f]{40}")
_RECORD = re.compile(r"([1-9][0-9]{0,3})\.json")


def make(path: str, io_timeout: int, instead_of: Optional[Elsewhere]) -> None:
    """A store in this directory, if there is none; see Store.create. Raises StoreBroken, SanlockDown, SanlockFailed."""
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
            _cluster.set_up(fd, path, io_timeout, (facts.uid, facts.gid), owner, instead_of)


class DirectoryStore(Store):
    """A store in a directory."""

    kind = "directory"

    def __init__(self, path: str, cluster: Cluster) -> None:
        super().__init__(path, cluster, os.path.join(path, "lockspace"), 0)

    @classmethod
    def at(cls, path: str) -> "DirectoryStore":
        """The store in this directory. Raises StoreBroken."""
        with _files.directory(path) as fd:
            found = _cluster.read(fd, path, "vmguard.json")
            if found is None:
                begun = _files.read(fd, "setup.json", _notes.LIMIT) is not None
                raise StoreBroken(path, "its setup has not finished" if begun else "no store is in it: not mounted?")
            _cluster.see_lockspace(fd, path)
        return cls(path, found)

    def mark_moved(self, to: Elsewhere) -> None:
        self._mark(self.facts._replace(moved=to))

    def mark_in_use(self, converted: float = 0.0) -> None:
        self._mark(self.facts._replace(moved=None, instead_of=None, converted=converted or self.converted))

    def _mark(self, facts: Cluster) -> None:
        with _files.directory(self.path) as fd:
            found = _cluster.read(fd, self.path, "vmguard.json")
            if found is None or (found.cluster, found.moved) != (self.cluster, self.facts.moved):
                raise StoreBroken(self.path, "somebody else has just changed it", "run this again")
            group = os.fstat(fd).st_gid
            # Both names, so that nothing is left of the file of before: a client of NFS that knows it by name goes on reading
            # it for up to a minute, unless the server says that it is gone.
            for name in ("vmguard.json", "setup.json"):
                new = _files.make(fd, _cluster.encode(facts), 0o640, (os.geteuid(), group))
                _files.replace(fd, new, name)
        self.facts, self.converted = facts, facts.converted

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
            if found.moved != self.facts.moved:
                see_in_use(self.path, found)
            with _files.directory(name, root, shown=os.path.join(self.path, name)) as fd:
                yield fd

    # -- leases --------------------------------------------------------------------------------------------------------

    def lease_path(self, name: str) -> str:
        """Where the lease of this name is."""
        return os.path.join(self.path, "leases", name)

    def _place(self, name: str) -> Lease:
        return Lease(self.lockspace, name, self.lease_path(name))

    def has(self, identity: str) -> bool:
        try:
            os.stat(self.lease(identity).path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _files.broken(self.path, error) from error
        return True

    def ensure(self, identity: str) -> Lease:
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

    def lease_names(self) -> List[str]:
        with self._open("leases") as fd:
            return sorted(entry for entry in os.listdir(fd) if _NAME.fullmatch(entry))

    def _whole(self, place: Lease) -> bool:
        try:
            return os.stat(place.path).st_size >= place.offset + slots.MiB
        except OSError as error:
            raise _files.broken(place.path, error) from error

    def forget(self, name: str) -> None:
        with self._open("leases") as fd:
            for entry in os.listdir(fd):
                if entry.startswith(name + ".") and entry.endswith(".note"):
                    _files.drop(fd, entry)
            os.fsync(fd)

    def leftovers(self) -> Tuple[str, ...]:
        return tuple(os.path.join(self.path, *parts) for parts in self._abandoned())

    def clean(self) -> Tuple[str, ...]:
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
        name = lease_name(note.identity) + slots.SUFFIXES[note.slot]
        if note.slot == "lease" and note.mode != Mode.EXCLUSIVE.value:
            name += f".{note.host_id}"
        with _files.directory(os.path.join(self.path, "leases")) as fd:
            sync = bool(note.restored)
            new = _files.make(fd, _notes.encode_note(note), 0o640, sync=sync)
            _files.replace(fd, new, name + ".note", sync)

    def note(self, identity: str, slot: str = "lease") -> Optional[Note]:
        name = lease_name(identity)
        with _files.directory(os.path.join(self.path, "leases")) as fd:
            data = _files.read(fd, f"{name}{slots.SUFFIXES[slot]}.note", _notes.LIMIT)
        note = _notes.decode_note(data) if data is not None else None
        return note if note is not None and (note.identity, note.slot) == (identity, slot) else None

    def notes_of_name(self, name: str) -> Tuple[Note, ...]:
        found = []
        with _files.directory(os.path.join(self.path, "leases")) as fd:
            for entry in (f"{name}.note", *(f"{name}.{host_id}.note" for host_id in self._host_ids())):
                data = _files.read(fd, entry, _notes.LIMIT)
                note = _notes.decode_note(data) if data is not None else None
                if note is not None and lease_name(note.identity) == name:
                    found.append(note)
        return tuple(found)

    # -- host ids ------------------------------------------------------------------------------------------------------

    def _host_ids(self) -> List[int]:
        with _files.directory(os.path.join(self.path, "hosts")) as fd:
            matches = (_RECORD.fullmatch(entry) for entry in os.listdir(fd))
            return sorted(int(match.group(1)) for match in matches if match)

    def host_record(self, host_id: int) -> Optional[HostRecord]:
        with _files.directory(os.path.join(self.path, "hosts")) as fd:
            name = f"{host_id}.json"
            data = _files.read(fd, name, _notes.LIMIT)
            if data is None:
                try:
                    os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    return None
            return _notes.decode_host(data, host_id)

    def hosts_known(self) -> Tuple[HostRecord, ...]:
        records = (self.host_record(host_id) for host_id in self._host_ids())
        return tuple(record for record in records if record is not None)

    def _enter(self, record: HostRecord) -> bool:
        with self._open("hosts") as fd:
            return _files.place(fd, _files.make(fd, _notes.encode_host(record), 0o640), f"{record.host_id}.json")

    def _rewrite(self, record: HostRecord) -> None:
        with self._open("hosts") as fd:
            _files.replace(fd, _files.make(fd, _notes.encode_host(record), 0o640), f"{record.host_id}.json")

    def _strike(self, host_id: int) -> None:
        with self._open("hosts") as fd:
            _files.drop(fd, f"{host_id}.json")
            os.fsync(fd)
