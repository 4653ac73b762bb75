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
    mark.<n>                 whoever changed vmguard.json for the n-th time, when the store was moved
    kept/<name>              the same file as leases/<name>; kept/lockspace: as lockspace
    kept/inode               a link that leads nowhere, and names the inode of the lockspace
    */new.*                  files that are being made

Lease files and the lockspace are never deleted and never made a second time: a lease made anew is free, whoever has
it, and in a lockspace made anew every other host is dead. What somebody else deletes has a second name (_twice.py); a lease
that has lost both is known to have been there by the notes beside it.
"""

import errno
import os
import stat
from contextlib import contextmanager

from vmguard._light import re
from vmguard._typing import Iterator, List, Optional, Set, Tuple
from vmguard.claims import Mode
from vmguard.errors import LeaseDamaged, StoreBroken
from vmguard.leases import Lease, Note, _cluster, _files, _notes, _twice, client, slots
from vmguard.leases._cluster import Cluster, Elsewhere
from vmguard.leases._notes import HostRecord
from vmguard.leases.store import Store, lease_name, see_in_use

# Of a lease, or of a note beside it.
_NAME = re.compile(r"([0-9a-f]{40})(\..*note)?")
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
            if found != self.facts:
                raise self._changed()
            facts = facts._replace(marked=self._turn(fd))
            owner = (os.geteuid(), os.fstat(fd).st_gid)
            new = _files.make(fd, _cluster.encode(facts), 0o640, owner)
            try:
                os.link(new, f"mark.{facts.marked}", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
                _files.replace(fd, new, "vmguard.json")
            except (FileExistsError, FileNotFoundError):
                _files.drop(fd, new)
                raise self._changed() from None
            # Both names, so that nothing is left of the file of before: a client of NFS that knows it by name goes on reading
            # it for up to a minute, unless the server says that it is gone.
            _files.replace(fd, _files.make(fd, _cluster.encode(facts), 0o640, owner), "setup.json")
        self.facts, self.converted = facts, facts.converted

    def _turn(self, fd: int) -> int:
        """
        The number of the next change of vmguard.json. Raises StoreBroken where somebody else is at it.

        Each change is first given its number, by a link that stays, and then its place, by renaming the file that was
        linked. So of two that have read the same, however long one of them hangs in between, one has the number; and
        whoever has it and is dead, or hung for an hour, comes too late: his file is gone.
        """
        number = self.facts.marked + 1
        while True:
            try:
                mark = os.stat(f"mark.{number}", dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return number
            with os.scandir(fd) as entries:
                waiting = [one.name for one in entries if one.name.startswith("new.") and one.inode() == mark.st_ino]
            if set(waiting).difference(_files.abandoned(fd)):
                raise self._changed()
            for entry in waiting:
                _files.drop(fd, entry)
            number += 1

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
        with _files.directory(self.path) as root:
            return self._found(root, self.lease(identity), identity) is not None

    def ensure(self, identity: str) -> Lease:
        lease = self.lease(identity)
        with _files.directory(self.path) as root:
            found = self._found(root, lease, identity)
        if found is None:
            self._make(lease, identity)
        elif not stat.S_ISREG(found.st_mode) or found.st_size < slots.FILE_BYTES:
            raise LeaseDamaged(lease.path, identity, -errno.EMSGSIZE)
        return lease

    @staticmethod
    def _found(root: int, lease: Lease, about: str) -> Optional[os.stat_result]:
        """The file of a lease; None where there is none. Raises LeaseDamaged for one that was replaced, OSError."""
        try:
            return _twice.found(root, f"leases/{lease.name}", lambda: slots.never_held(lease))
        except _twice.Replaced:
            raise LeaseDamaged(lease.path, about, -errno.ESTALE) from None

    def _make(self, lease: Lease, about: str, anew: bool = False) -> None:
        """
        Make the file of a lease, if there is none. Raises LeaseDamaged where there was one before, unless it is to be anew.
        """
        facts = client.daemon_facts()
        with self._open(".") as root:
            _twice.folder(root)
            with _files.directory(_twice.FOLDER, root, shown=os.path.join(self.path, _twice.FOLDER)) as fd:
                # Zeros, and synced: blocks that are there before sanlock writes past the page cache.
                new = _files.make(fd, bytes(slots.FILE_BYTES), 0o660, (facts.uid, facts.gid))
                try:
                    # What was made in this folder shows a client of NFS what others have made in it.
                    if not anew and self._found(root, lease, about) is None and self._is_noted(root, lease.name):
                        raise LeaseDamaged(lease.path, about, -errno.ENOENT)
                    for slot in slots.of(lease):
                        client.format_lease(slot._replace(path=os.path.join(self.path, _twice.FOLDER, new)))
                    _files.place(fd, new, lease.name)  # False: somebody else was first, and theirs is as good
                except BaseException:
                    _files.drop(fd, new)
                    raise
            self._found(root, lease, about)  # has its first name from here on

    def _is_noted(self, root: int, name: str) -> bool:
        """Whether a note beside a lease is left, of whatever contents."""
        slot_notes = [f"{name}{suffix}.note" for suffix in slots.SUFFIXES.values()]
        host_notes = [f"{name}.{host_id}.note" for host_id in self._host_ids()]
        return any(os.access(f"leases/{entry}", os.F_OK, dir_fd=root) for entry in slot_notes + host_notes)

    def lease_names(self) -> List[str]:
        found: Set[str] = set()
        for folder in ("leases", _twice.FOLDER):
            with self._open(folder) as fd:
                # By its notes one is known that has gone.
                found |= {match.group(1) for match in map(_NAME.fullmatch, os.listdir(fd)) if match}
        return sorted(found)

    def damaged_slots(self, name: str) -> Tuple[str, ...]:
        with self._open(".") as root:
            both = _twice.names(root, f"leases/{name}")
        if both.differ() or not (both.used or both.kept):
            return tuple(slots.SUFFIXES)
        path = f"leases/{name}" if both.used is not None else _twice.second(name)
        return self._damaged_of(self._place(name)._replace(path=os.path.join(self.path, path)))

    def _make_free(self, name: str, damaged: Tuple[str, ...]) -> None:
        with self._open(".") as root:
            both = _twice.names(root, f"leases/{name}")
            if not both.differ() and self._found(root, self._place(name), name):
                super()._make_free(name, damaged)
                return
            for folder in ("leases", _twice.FOLDER):
                _files.drop(root, f"{folder}/{name}")
        self._make(self._place(name), name, anew=True)

    def unnamed(self) -> Tuple[str, ...]:
        with self._open(".") as root:
            both = {name: _twice.names(root, f"leases/{name}") for name in self.lease_names()}
        return tuple(name for name, one in both.items() if (one.used is None) != (one.kept is None))

    def name_again(self, name: str) -> None:
        with self._open(".") as root:
            self._found(root, self._place(name), name)

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
        for folder in (".", "leases", _twice.FOLDER, "hosts"):
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
