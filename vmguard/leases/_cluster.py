# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes a directory a store: vmguard.json, the lockspace, and how they come into being."""

import os
import time

from vmguard import host
from vmguard._typing import Dict, NamedTuple, Optional, Tuple
from vmguard.errors import StoreBroken
from vmguard.leases import _files, _notes, client
from vmguard.leases import _library as lib

FORMAT = 2  # 2: a lease file has three leases in it

# Seconds. sanlock keeps it in 8 bits; eight of them without a renewal cost a host its leases.
IO_TIMEOUTS = range(1, 121)


class Cluster(NamedTuple):
    """What vmguard.json says."""

    cluster: str  # 32 hexadecimal digits
    lockspace: str
    io_timeout: int
    created: float
    by: str


def refusal(path: str) -> Optional[str]:
    """Why a store cannot be at this path."""
    if not os.path.isabs(path):
        return "its path is not absolute"
    # room for the longest name below it
    if not lib.path_fits(path) or len(path) > lib.PATH_LEN - 128:
        return "sanlock cannot take a path with blanks, colons, backslashes or non-ASCII characters, or so long a one"
    return None


def _identity(data: bytes) -> Optional[Cluster]:
    found = _notes.members(data)
    if found is None:
        return None
    cluster, lockspace, timeout = found.get("cluster"), found.get("lockspace"), found.get("io_timeout")
    if not (isinstance(cluster, str) and _is_hex(cluster, 32) and lockspace == _lockspace(cluster)):
        return None
    if type(timeout) is not int or timeout not in IO_TIMEOUTS:
        return None
    if (found.get("align"), found.get("sector")) != (lib.ALIGN, lib.SECTOR):
        return None
    created, by = found.get("created"), found.get("by")
    return Cluster(
        cluster,
        lockspace,
        timeout,
        _notes.number(created) or 0.0,
        by if isinstance(by, str) else "",
    )


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and set(text) <= set("0123456789abcdef")


def _lockspace(cluster: str) -> str:
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
    cluster = _identity(data) if version == FORMAT else None
    if cluster is None:
        raise StoreBroken(path, f"its {name} is damaged")
    return cluster


def see_lockspace(fd: int, path: str) -> None:
    try:
        size = os.stat("lockspace", dir_fd=fd).st_size
    except FileNotFoundError:
        size = 0
    if size < lib.ALIGN:
        raise StoreBroken(path, "its lockspace file is missing or short; others may have it open: never make it anew")


def set_up(fd: int, path: str, io_timeout: int, daemon: Tuple[int, int], owner: Tuple[int, int]) -> None:
    """
    The steps of a setup, each of which may have been done by another or by one that died.

    The first to link setup.json decides on the cluster; vmguard.json is a further link to that same file. So
    setup.json stays: removed, it could be made again, of another cluster, by one that looked before the end and acts
    after it.
    """
    name = _random_cluster()
    content: Dict[str, object] = {
        "format": FORMAT,
        "cluster": name,
        "lockspace": _lockspace(name),
        "align": lib.ALIGN,
        "sector": lib.SECTOR,
        "io_timeout": io_timeout,
        "created": time.time(),
        "by": host.name(),
    }
    if _files.read(fd, "setup.json", _notes.LIMIT) is None:
        _files.place(fd, _files.make(fd, _notes.text(content), 0o640, owner), "setup.json")
    cluster = read(fd, path, "setup.json")
    if cluster is None:
        raise StoreBroken(path, "its setup.json has gone")
    for folder in ("leases", "hosts"):
        try:
            os.mkdir(folder, 0o750, dir_fd=fd)
        except FileExistsError:
            pass
        os.chown(folder, *owner, dir_fd=fd)
    if not os.access("lockspace", os.F_OK, dir_fd=fd):
        new = _files.make(fd, bytes(lib.ALIGN), 0o660, daemon)
        try:
            client.format_lockspace(cluster.lockspace, os.path.join(path, new), cluster.io_timeout)
            _files.place(fd, new, "lockspace")
        except BaseException:
            _files.drop(fd, new)
            raise
    client.check_lockspace(cluster.lockspace, os.path.join(path, "lockspace"))
    try:
        os.link("setup.json", "vmguard.json", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
    except FileExistsError:
        pass
    os.fsync(fd)


def _random_cluster() -> str:
    return os.urandom(16).hex()
