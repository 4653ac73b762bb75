# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Files that come into being whole or not at all, in directories that other hosts see at the same time.

A file is written and synced under a name of its own, which says who makes it; then it is linked (the first one wins) or
renamed (the last one does). What a dead maker left behind is known by that name.
"""

import errno
import os
import stat
import time
from contextlib import contextmanager

from vmguard import host
from vmguard._light import re
from vmguard._typing import Iterator, List, Optional, Tuple
from vmguard.errors import StoreBroken

# boot (8 digits of its id), pid and start of the maker, then chance
_NEW = re.compile(r"new\.([0-9a-f]{8})\.(\d+)\.(\d+)\.[0-9a-f]{8}")

# A maker on another host cannot be looked at. Making a file takes milliseconds, and a frozen filesystem lasts minutes.
ABANDONED = 3600  # seconds

_WHY = {
    errno.ENOENT: "it is missing: not mounted?",
    errno.ENOTDIR: "it is no directory",
    errno.EACCES: "permission denied",
    errno.EPERM: "its filesystem does not permit it (links and owners must be settable by root)",
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "it is mounted read-only",
    errno.EIO: "an input/output error",
    errno.ESTALE: "its server does not know it any more",
}


def broken(path: str, error: OSError) -> StoreBroken:
    """The error as a fact about the store."""
    return StoreBroken(path, _WHY.get(error.errno or 0) or error.strerror or str(error))


@contextmanager
def directory(path: str, below: Optional[int] = None, shown: str = "") -> Iterator[int]:
    """
    A directory, open: what is done through the descriptor cannot land elsewhere if something is mounted or unmounted
    there.

    Raises StoreBroken, also for an OSError of the body.
    """
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=below)
        yield fd
    except OSError as error:
        raise broken(shown or path, error) from error
    finally:
        if fd >= 0:
            os.close(fd)


def read(fd: int, name: str, limit: int) -> Optional[bytes]:
    """
    A small regular file of a directory; None where there is none, or something else, or a larger one. Raises OSError.
    """
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        data = b""
        while len(data) <= limit:
            more = os.read(file, limit + 1 - len(data))
            if not more:
                return data
            data += more
        return None
    finally:
        os.close(file)


def make(fd: int, data: bytes, mode: int, owner: Optional[Tuple[int, int]] = None, sync: bool = True) -> str:
    """
    A new file in a directory, on disk when this returns; its name, to be linked or renamed. Raises OSError, and then
    leaves nothing behind.

    owner: user and group; None: those of this process. sync: False spares the wait for the disk; a power cut may then
    leave an empty file.
    """
    me = host.process(os.getpid())
    start = me.start if me is not None else 0
    name = f"new.{host.boot_id()[:8]}.{os.getpid()}.{start}.{os.urandom(4).hex()}"
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=fd)
    try:
        written = 0
        while written < len(data):
            written += os.write(file, data[written:])
        if owner is not None:
            os.fchown(file, *owner)
        os.fchmod(file, mode)
        if sync:
            os.fsync(file)
    except BaseException:
        os.unlink(name, dir_fd=fd)
        raise
    finally:
        os.close(file)
    return name


def drop(fd: int, name: str) -> None:
    """Remove a file if it is there. Raises OSError."""
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass


def place(fd: int, new: str, name: str) -> bool:
    """Give a new file its name, unless there is one: False then. The new name is gone afterwards. Raises OSError."""
    try:
        os.link(new, name, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
        placed = True
    except FileExistsError:
        # A server whose answer got lost is asked again, and then finds its own work in the way.
        placed = _same(fd, new, name)
    finally:
        drop(fd, new)
    os.fsync(fd)
    return placed


def _same(fd: int, one: str, other: str) -> bool:
    first, second = (os.stat(name, dir_fd=fd, follow_symlinks=False) for name in (one, other))
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


def replace(fd: int, new: str, name: str, sync: bool = True) -> None:
    """Give a new file its name, in place of one that may be there. Raises OSError."""
    try:
        os.rename(new, name, src_dir_fd=fd, dst_dir_fd=fd)
    except OSError:
        drop(fd, new)
        raise
    if sync:
        os.fsync(fd)


def abandoned(fd: int) -> List[str]:
    """The files that dead makers left in a directory. Raises OSError."""
    return [entry for entry in os.listdir(fd) if _NEW.fullmatch(entry) and _is_abandoned(fd, entry)]


def _is_abandoned(fd: int, entry: str) -> bool:
    found = _NEW.fullmatch(entry)
    assert found is not None
    boot, pid, start = found.group(1), int(found.group(2)), int(found.group(3))
    if boot == host.boot_id()[:8]:
        return host.process(pid) != host.Process(pid, start)
    try:
        return time.time() - os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mtime > ABANDONED
    except FileNotFoundError:
        return False
