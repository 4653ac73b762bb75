# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which cluster a store is of; and what makes a directory one: vmguard.json, the lockspace, how they come into being."""

import os
import time

from vmguard import host
from vmguard._typing import Any, Dict, NamedTuple, Optional, Tuple
from vmguard.errors import StoreBroken
from vmguard.leases import _files, _notes, _twice, client
from vmguard.leases import _library as lib

FORMAT = 2  # 2: a lease file has three leases in it

# Seconds. sanlock keeps it in 8 bits; eight of them without a renewal cost a host its leases.
IO_TIMEOUTS = range(1, 121)


class Elsewhere(NamedTuple):
    """Another store."""

    path: str
    cluster: str


class Cluster(NamedTuple):
    """What a store says of itself."""

    cluster: str  # 32 hexadecimal digits
    lockspace: str
    io_timeout: int
    created: float
    by: str
    sector: int = lib.SECTOR  # bytes, of what it lies on
    converted: float = 0.0  # when it took the place of another store; 0.0: it did not
    moved: Optional[Elsewhere] = None  # the store that has taken its place
    instead_of: Optional[Elsewhere] = None  # the one whose place it is to take; it has not yet
    marked: int = 0  # how often this was changed, where that is counted here


def refusal(path: str) -> Optional[str]:
    """Why a store cannot be at this path."""
    if not os.path.isabs(path):
        return "its path is not absolute"
    # room for the longest name below it
    if not lib.path_fits(path) or len(path) > lib.PATH_LEN - 128:
        return "sanlock cannot take a path with blanks, colons, backslashes or non-ASCII characters, or so long a one"
    return None


def identity(found: Dict[str, Any]) -> Optional[Cluster]:
    """The cluster in members of JSON; None if they name none."""
    cluster, timeout, sector = found.get("cluster"), found.get("io_timeout"), found.get("sector")
    if not (isinstance(cluster, str) and _is_hex(cluster, 32) and found.get("lockspace") == lockspace_of(cluster)):
        return None
    if type(timeout) is not int or timeout not in IO_TIMEOUTS:
        return None
    if found.get("align") != lib.ALIGN or type(sector) is not int:
        return None
    by, marked = found.get("by"), found.get("marked", 0)
    if type(marked) is not int:
        return None
    moved, instead_of = (_elsewhere(found.get(name)) for name in ("moved", "instead_of"))
    # A mark that cannot be read must not look like none.
    if any(
        (found.get(name) is None) != (mark is None) for name, mark in (("moved", moved), ("instead_of", instead_of))
    ):
        return None
    return Cluster(
        cluster,
        lockspace_of(cluster),
        timeout,
        _notes.number(found.get("created")) or 0.0,
        by if isinstance(by, str) else "",
        sector,
        _notes.number(found.get("converted")) or 0.0,
        moved,
        instead_of,
        marked,
    )


def _elsewhere(found: Any) -> Optional[Elsewhere]:
    if isinstance(found, list) and len(found) == 2 and all(isinstance(one, str) for one in found):
        return Elsewhere(*found)
    return None


def members(cluster: Cluster) -> Dict[str, Any]:
    """The same as members of JSON."""
    found: Dict[str, Any] = {"format": FORMAT, "align": lib.ALIGN, **cluster._asdict()}
    return {name: value for name, value in found.items() if value is not None}


def encode(cluster: Cluster) -> bytes:
    """As it stands in vmguard.json."""
    return _notes.text(members(cluster))


def new(io_timeout: int, sector: int, instead_of: Optional[Elsewhere]) -> Cluster:
    """A cluster that has not been before."""
    name = os.urandom(16).hex()
    return Cluster(name, lockspace_of(name), io_timeout, time.time(), host.name(), sector=sector, instead_of=instead_of)


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and set(text) <= set("0123456789abcdef")


def lockspace_of(cluster: str) -> str:
    """The name of the lockspace of a cluster."""
    return f"vmguard-{cluster[:16]}"


def read(fd: int, path: str, name: str) -> Optional[Cluster]:
    """What the file says; None where it is missing. Raises StoreBroken for one that is not understood, OSError."""
    data = _files.read(fd, name, _notes.LIMIT)
    if data is None:
        return None
    found = _notes.members(data) or {}
    version = found.get("format")
    if type(version) is int and version > FORMAT:
        raise StoreBroken(path, f"its format is {version}, and this vmguard, which is older, knows up to {FORMAT}")
    if type(version) is int and 0 < version < FORMAT:
        raise StoreBroken(path, f"its format is {version}, of a vmguard from before its first release: make a new one")
    cluster = identity(found) if version == FORMAT else None
    if cluster is None or cluster.sector != lib.SECTOR:
        raise StoreBroken(path, f"its {name} is damaged")
    return cluster


def see_lockspace(fd: int, path: str) -> None:
    """Raises StoreBroken where the lockspace is not whole, or not the one that the hosts are in, OSError."""
    found = _lockspace(fd, path)
    if found is None or found.st_size < lib.ALIGN:
        raise StoreBroken(path, "its lockspace file is missing or short; others may have it open: never make it anew")


def _lockspace(fd: int, path: str) -> Optional[os.stat_result]:
    try:
        found = _twice.found(fd, "lockspace")
        if found is not None:
            _twice.see_original(fd, found)
        return found
    except _twice.Replaced:
        raise StoreBroken(
            path,
            "its lockspace is another file than it was, as when a backup was put in its place; hosts may be in the old one",
            "docs/recovery.md says how to tell the two apart (Files of the store that were removed or replaced)",
        ) from None


def set_up(
    fd: int,
    path: str,
    io_timeout: int,
    daemon: Tuple[int, int],
    owner: Tuple[int, int],
    instead_of: Optional[Elsewhere] = None,
) -> None:
    """
    The steps of a setup, each of which may have been done by another or by one that died.

    The first to link setup.json decides on the cluster; vmguard.json is a further link to that same file. So
    setup.json stays: removed, it could be made again, of another cluster, by one that looked before the end and acts
    after it.
    """
    if _files.read(fd, "setup.json", _notes.LIMIT) is None:
        made = _files.make(fd, encode(new(io_timeout, lib.SECTOR, instead_of)), 0o640, owner)
        _files.place(fd, made, "setup.json")
    cluster = read(fd, path, "setup.json")
    if cluster is None:
        raise StoreBroken(path, "its setup.json has gone")
    for folder in ("leases", "hosts"):
        try:
            os.mkdir(folder, 0o750, dir_fd=fd)
        except FileExistsError:
            pass
        os.chown(folder, *owner, dir_fd=fd)
    _twice.folder(fd)
    if _lockspace(fd, path) is None:
        made = _files.make(fd, bytes(lib.ALIGN), 0o660, daemon)
        try:
            client.format_lockspace(cluster.lockspace, os.path.join(path, made), cluster.io_timeout)
            _files.place(fd, made, "lockspace")
            _twice.keep(fd, "lockspace")
        except BaseException:
            _files.drop(fd, made)
            raise
    client.check_lockspace(cluster.lockspace, os.path.join(path, "lockspace"))
    try:
        os.link("setup.json", "vmguard.json", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except FileExistsError:
        pass
    os.fsync(fd)
