# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The one door through which facts of a host come in.

Everything that `storage` knows of a host it asks through `Facts`: six questions, each answered or refused with an
OSError, and where its leases are. `LiveFacts` answers for this host, `recorded.RecordedFacts` for one that was written down.
"""

import errno
import fcntl
import os
import stat

from vmguard._typing import NamedTuple, Protocol, Tuple

READ_LIMIT = 1 << 20  # bytes; nothing in /proc, /sys, the udev database or an image header that matters here is larger

_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

Devno = Tuple[int, int]  # major, minor


class Stat(NamedTuple):
    """What the kernel says of a path, symbolic links followed."""

    mode: int  # type and permissions, as st_mode
    device: Devno  # of the filesystem
    inode: int
    rdev: Devno = (0, 0)  # of the device that this node stands for
    size: int = 0  # bytes; 0 for devices
    mount: int = 0  # the id of the mount in /proc/self/mountinfo


class Facts(Protocol):
    """What a host tells. Each method raises OSError as the kernel would."""

    def stat(self, path: str) -> Stat:
        """What is at path."""

    def realpath(self, path: str) -> str:
        """The path without symbolic links; it exists."""

    def read(self, path: str, limit: int = READ_LIMIT, offset: int = 0) -> bytes:
        """At most `limit` bytes of a file or block device."""

    def names(self, path: str) -> Tuple[str, ...]:
        """What is in a directory, sorted."""

    def ioctl(self, path: str, request: int, argument: bytes) -> bytes:
        """What a reading ioctl on a file, directory or block device makes of `argument`."""

    def filesystem_id(self, path: str) -> int:
        """The number that the filesystem of a path has given itself (statfs(2), f_fsid); 0 if it has none."""

    def lease_store(self) -> str:
        """Where vmguard keeps the leases of this host; "": nowhere, or that is not known. Never raises."""


class LiveFacts:
    """The facts of this host."""

    def lease_store(self) -> str:
        from vmguard import config
        from vmguard.errors import Misconfigured

        try:
            return config.load().store or ""
        except Misconfigured:
            return ""

    def stat(self, path: str) -> Stat:
        fd = _hold(path)
        try:
            found = os.fstat(fd)
            return Stat(
                found.st_mode,
                (os.major(found.st_dev), os.minor(found.st_dev)),
                found.st_ino,
                (os.major(found.st_rdev), os.minor(found.st_rdev)),
                found.st_size,
                _mount_id(fd),
            )
        finally:
            os.close(fd)

    def realpath(self, path: str) -> str:
        fd = _hold(path)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    def read(self, path: str, limit: int = READ_LIMIT, offset: int = 0) -> bytes:
        fd = _open(path)
        try:
            if offset:
                os.lseek(fd, offset, os.SEEK_SET)
            data = bytearray()
            # sysfs and procfs give a page at a time
            while len(data) < limit:
                part = os.read(fd, limit - len(data))
                if not part:
                    break
                data += part
            return bytes(data)
        finally:
            os.close(fd)

    def names(self, path: str) -> Tuple[str, ...]:
        return tuple(sorted(os.listdir(path)))

    def ioctl(self, path: str, request: int, argument: bytes) -> bytes:
        fd = _open(path)
        try:
            answer = bytearray(argument)
            fcntl.ioctl(fd, request, answer)
            return bytes(answer)
        finally:
            os.close(fd)

    def filesystem_id(self, path: str) -> int:
        fd = _hold(path)
        try:
            return os.fstatvfs(fd).f_fsid
        finally:
            os.close(fd)


def _hold(path: str) -> int:
    # O_PATH resolves the name as open() would, and has no effect on what it names
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def _open(path: str) -> int:
    """Open for reading what has no side effect on opening: no tape is rewound, no fifo waited for."""
    held = _hold(path)
    try:
        found = os.fstat(held)
        mode = found.st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISBLK(mode)):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        # by the held descriptor: the same object, whatever happened to the name since
        same = f"/proc/self/fd/{held}"
        try:
            return os.open(same, _FLAGS)
        except PermissionError:
            if os.geteuid() or not found.st_uid:
                raise
            return _open_as(found.st_uid, found.st_gid, same)
    finally:
        os.close(held)


def _open_as(user: int, group: int, path: str) -> int:
    """
    Open for reading as the owner of a file: a server of NFS that takes root for nobody (root_squash, which is its default)
    lets root read less than the guest's QEMU.
    """
    # Of this thread alone, and of what it does with files. Rarely needed, and slow to import.
    import ctypes

    libc = ctypes.CDLL(None)
    libc.setfsgid(group)
    libc.setfsuid(user)
    try:
        return os.open(path, _FLAGS)
    finally:
        libc.setfsuid(os.geteuid())
        libc.setfsgid(os.getegid())


def _mount_id(fd: int) -> int:
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, 4096)  # of an O_PATH descriptor: four short lines
    finally:
        os.close(info)
    _, found, rest = text.partition(b"mnt_id:")
    return int(rest.split(None, 1)[0]) if found else 0
