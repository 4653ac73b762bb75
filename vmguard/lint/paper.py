# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A host of which nothing is known but what a definition says: each path is a file of its own.

With these facts the guard's own claims can be made of definitions whose host is another one, and of disks that are not
there: equal then means "named by one path".
"""

import errno
import hashlib
import os
import posixpath
import stat
from typing import Tuple

from vmguard.storage.facts import READ_LIMIT, Stat
from vmguard.storage.filesystems import FS_IOC_GETFSUUID

# A filesystem that many hosts mount, so that nothing is looked for beneath it.
_MOUNTINFO = b"1 0 0:1 / / rw - gfs2 paper rw\n"
_POOLS = "/run/libvirt/storage/"
# Paths of character devices and the like, which keep nothing.
_NO_STORAGE = (
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/hwrng", "/dev/net/", "/dev/tty"),
    *("/dev/pts/", "/dev/parport", "/dev/vhost", "/dev/input/", "/dev/tpm", "/dev/vfio/", "/dev/rtc", "/dev/hpet"),
)

# Names by which udev gives a device the same link on every host.
WORLDWIDE = ("/dev/disk/by-id/wwn-", "/dev/disk/by-id/scsi-", "/dev/disk/by-id/nvme-", "/dev/disk/by-id/dm-uuid-")


class PaperFacts:
    """Facts that are only on paper. `host` is part of what a path leads to: one path on two hosts is two things."""

    def __init__(self, host: str = "") -> None:
        self._host = host
        self._uuid = _digest("host", host)[:16]

    def lease_store(self) -> str:
        return ""

    def stat(self, path: str) -> Stat:
        if path == "/" or path.startswith(("/sys/", "/proc/", "/run/udev/")):
            raise _absent(path)
        name = posixpath.normpath(path)
        if name.startswith(_NO_STORAGE):
            return Stat(stat.S_IFCHR | 0o600, (0, 1), 1, (0, 0))
        inode = int.from_bytes(_digest("path", "/" + name.lstrip("/"))[:8], "big") >> 1
        return Stat(stat.S_IFREG | 0o600, (0, 1), inode, mount=1)

    def realpath(self, path: str) -> str:
        if path.startswith(("/sys/", "/proc/")):
            raise _absent(path)
        return posixpath.normpath(path)

    def read(self, path: str, limit: int = READ_LIMIT, offset: int = 0) -> bytes:
        if path == "/proc/self/mountinfo":
            return _MOUNTINFO
        if path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
            return _digest("machine", self._host).hex()[:32].encode("ascii")
        if path.startswith(_POOLS) and path.endswith(".xml"):
            # Its volumes are files in a folder of its name: equal for equal pools and volumes, which is what counts.
            name = path[len(_POOLS) : -len(".xml")]
            target = f"<target><path>{_text('/pool ' + name)}</path></target>"
            return f"<pool type='dir'><name>{_text(name)}</name>{target}</pool>".encode()
        raise _absent(path)

    def names(self, path: str) -> Tuple[str, ...]:
        raise _absent(path)

    def ioctl(self, path: str, request: int, argument: bytes) -> bytes:
        if request == FS_IOC_GETFSUUID:
            return bytes((16,)) + self._uuid
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY), path)

    def filesystem_id(self, path: str) -> int:
        return 0


def worldwide(path: str) -> bool:
    """Whether a path names the same thing on every host."""
    return path.startswith(WORLDWIDE)


def _digest(kind: str, text: str) -> bytes:
    return hashlib.sha256(f"vmguard paper {kind} {text}".encode("utf-8", "surrogateescape")).digest()


def _text(name: str) -> str:
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _absent(path: str) -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
