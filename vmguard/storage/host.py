# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One look at a host: its facts, put the way the resolvers ask for them, each asked once.

A `Host` lives as long as one `resolve`, or as its onelook.OneLook. What the kernel says does not exist is None or empty;
what it will not say is Unresolvable, never silently "no".
"""

import errno
import os
import posixpath
import stat

from vmguard._light import re, sha256
from vmguard._typing import TYPE_CHECKING, Callable, Dict, List, NamedTuple, Optional, Tuple, TypeVar
from vmguard.errors import Unresolvable
from vmguard.storage import Storage
from vmguard.storage.facts import READ_LIMIT, Devno, Facts, Stat

if TYPE_CHECKING:
    from vmguard.domain import Location
    from vmguard.storage.loops import Behind

PATH_LIMIT = 4096  # bytes, PATH_MAX of limits.h
DEPTH_LIMIT = 32  # objects beneath one another; real stacks have fewer than ten

# Not there: the name, a parent, the driver behind a sysfs attribute, or the attribute's value.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.EINVAL, errno.EISDIR, errno.EOPNOTSUPP)

_Answer = TypeVar("_Answer")


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo."""

    id: int
    device: Devno
    root: str  # the part of the filesystem that is mounted
    point: str
    type: str
    source: str
    options: Tuple[str, ...]  # of the filesystem


class Host:
    """The facts of one host, with memory."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.depth = 0  # how deep the resolvers are nested now
        self.devices: Dict[Devno, Storage] = {}  # resolved so far
        self.kept: Optional[Dict[Tuple[type, Location], Tuple[Storage, ...]]] = None  # by onelook.py alone
        self.loops: Optional[Dict[str, Behind]] = None  # loop devices in use, by their directories in sysfs
        self.pools: Dict[str, List[Devno]] = {}  # of ZFS, by their names: the devices that they lie on
        self._texts: Dict[str, Optional[str]] = {}
        self._names: Dict[str, Tuple[str, ...]] = {}
        self._mounts: Optional[Tuple[Mount, ...]] = None
        self._machine: Optional[str] = None
        self._leases: Tuple[Devno, ...] = ()
        self._leases_known = False

    @classmethod
    def of(cls, facts: Facts) -> "Host":
        """A look at the host of these facts: a new one, or the one that they keep themselves (onelook.py)."""
        kept = getattr(facts, "host", None)
        return kept if isinstance(kept, cls) else cls(facts)

    def stat(self, path: str) -> Stat:
        """What is at path. Raises Unresolvable."""
        try:
            return self.facts.stat(path)
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            raise Unresolvable(path, words(error), missing=missing) from error
        except ValueError as error:  # a NUL in the path
            raise Unresolvable(path, "it is not a path") from error

    def realpath(self, path: str) -> str:
        """The path without symbolic links. Raises Unresolvable."""
        return asked(path, lambda: self.facts.realpath(path))

    def text(self, path: str) -> Optional[str]:
        """A small text file without the white space around it; None if there is none. Raises Unresolvable."""
        if path not in self._texts:
            data = absent_is_none(path, lambda: self.facts.read(path))
            self._texts[path] = None if data is None else data.decode("utf-8", "surrogateescape").strip()
        return self._texts[path]

    def bytes(self, path: str, limit: int = READ_LIMIT, offset: int = 0) -> Optional[bytes]:
        """A piece of a file or block device; None if there is none. Raises Unresolvable."""
        return absent_is_none(path, lambda: self.facts.read(path, limit, offset))

    def names(self, path: str) -> Tuple[str, ...]:
        """What is in a directory; nothing if there is none. Raises Unresolvable."""
        if path not in self._names:
            self._names[path] = absent_is_none(path, lambda: self.facts.names(path)) or ()
        return self._names[path]

    def lookup(self, path: str) -> Optional[Stat]:
        """What is at path, None if nothing is. Raises Unresolvable."""
        return absent_is_none(path, lambda: self.facts.stat(path))

    def target(self, path: str) -> Optional[str]:
        """Where a path leads without symbolic links, None if nowhere. Raises Unresolvable."""
        return absent_is_none(path, lambda: self.facts.realpath(path))

    def sysfs(self, device: Devno, path: str) -> str:
        """The directory of a block device in /sys/devices. Raises Unresolvable."""
        found = self.target(f"/sys/dev/block/{device[0]}:{device[1]}")
        if found is None:
            raise Unresolvable(path, f"the kernel has no block device {device[0]}:{device[1]}")
        return found

    def devno(self, sys: str) -> Optional[Devno]:
        """The number of a device, from its directory in sysfs."""
        text = self.text(sys + "/dev") or ""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        return (int(found.group(1)), int(found.group(2))) if found else None

    def has_leases(self, device: Devno) -> bool:
        """Whether a block device is the store of this host's own leases. Raises Unresolvable."""
        if not self._leases_known:
            path = self.facts.lease_store()
            found = self.lookup(path) if path.startswith("/") else None
            self._leases = (found.rdev,) if found is not None and stat.S_ISBLK(found.mode) else ()
            self._leases_known = True
        return device in self._leases

    def udev(self, device: Devno) -> Dict[str, str]:
        """What udev knows of a block device: its properties."""
        lines = (self.text(f"/run/udev/data/b{device[0]}:{device[1]}") or "").split("\n")
        return {key: value for key, _, value in (line[2:].partition("=") for line in lines if line.startswith("E:"))}

    def links(self, device: Devno) -> Tuple[str, ...]:
        """The names below /dev that udev gave a block device, without "/dev/"."""
        lines = (self.text(f"/run/udev/data/b{device[0]}:{device[1]}") or "").split("\n")
        return tuple(line[2:] for line in lines if line.startswith("S:"))

    def mounts(self) -> Tuple[Mount, ...]:
        """What is mounted. Raises Unresolvable."""
        if self._mounts is None:
            path = "/proc/self/mountinfo"
            # larger than READ_LIMIT on hosts with thousands of containers
            data = asked(path, lambda: self.facts.read(path, 64 * READ_LIMIT))
            self._mounts = mounts_in(data)
        return self._mounts

    def mount_of(self, found: Stat, path: str) -> Mount:
        """The mount on which a file was found. Raises Unresolvable."""
        mount = self._listed(found)
        if mount is None:
            # mounted on the way to it: by an automounter, or a snapshot of ZFS
            self._mounts = None
            mount = self._listed(found)
        if mount is None:
            raise Unresolvable(path, "the kernel does not list the mount that it lies on")
        return mount

    def _listed(self, found: Stat) -> Optional[Mount]:
        return next((mount for mount in self.mounts() if mount.id == found.mount), None)

    def boot_id(self) -> str:
        """One string for this boot of this host. Raises Unresolvable."""
        path = "/proc/sys/kernel/random/boot_id"
        found = self.text(path)
        if not found:
            raise Unresolvable(path, "it is empty")
        return found

    def machine_key(self) -> str:
        """
        One string for this machine: 16 hexadecimal digits. Clones of one system image differ by the firmware's uuid.

        Raises Unresolvable if that uuid is hidden from this user: another key than root's would be another identity.
        """
        if self._machine is None:
            machine = self.text("/etc/machine-id") or ""
            product = self.text("/sys/class/dmi/id/product_uuid") or ""
            if machine == "uninitialized" or not (machine or product):
                raise Unresolvable("/etc/machine-id", "it does not say which machine this is")
            self._machine = sha256(f"{machine}\n{product.lower()}".encode()).hexdigest()[:16]
        return self._machine


def asked(path: str, question: Callable[[], _Answer]) -> _Answer:
    """The answer to a question about a path. Raises Unresolvable with the kernel's words for what went wrong."""
    try:
        return question()
    except OSError as error:
        raise Unresolvable(path, words(error)) from error
    except ValueError as error:  # a NUL in the path
        raise Unresolvable(path, "it is not a path") from error


def absent_is_none(path: str, question: Callable[[], _Answer]) -> Optional[_Answer]:
    """Like `asked`, but None if the kernel says that there is no such thing."""
    try:
        return question()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise Unresolvable(path, words(error)) from error
    except ValueError as error:
        raise Unresolvable(path, "it is not a path") from error


def words(error: OSError) -> str:
    """What an OSError means, as a clause."""
    said = os.strerror(error.errno) if error.errno else str(error)
    return said[:1].lower() + said[1:]


def check_path(path: str) -> None:
    """Raises Unresolvable for what the kernel could not take as the absolute name of anything."""
    if "\0" in path:
        raise Unresolvable(path.replace("\0", "\\0")[:200], "a path cannot contain a NUL byte")
    try:
        length = len(os.fsencode(path))
    except UnicodeError as error:
        raise Unresolvable(ascii(path)[:200], "it is not a path in this system's encoding") from error
    if length >= PATH_LIMIT:
        raise Unresolvable(path[:200] + "...", f"a path cannot be longer than {PATH_LIMIT - 1} bytes")
    if not path.startswith("/"):
        raise Unresolvable(path, "it is not an absolute path" if path else "the path is empty")


def plain(text: str) -> str:
    """Any text as printable ASCII without blanks, reversibly: what else is in it becomes %XX."""
    data = text.encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in data)


def unescape(text: str) -> str:
    """Undo the \\040 form that the kernel gives blanks in /proc."""
    data = text.encode("utf-8", "surrogateescape")
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found.group(1), 8) & 0xFF]), data).decode(
        "utf-8", "surrogateescape"
    )


def inside(path: str, directory: str) -> bool:
    """Whether path is the directory or below it, both without symbolic links."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def within(mount: Mount, path: str) -> str:
    """The place in the mounted filesystem of a path without symbolic links."""
    rest = posixpath.relpath(path, mount.point) if inside(path, mount.point) else "."
    return posixpath.normpath(posixpath.join(mount.root, rest))


def mounts_in(data: bytes) -> Tuple[Mount, ...]:
    """The lines of a mountinfo file."""
    found = [_mount(line) for line in data.decode("utf-8", "surrogateescape").split("\n")]
    return tuple(mount for mount in found if mount)


def _mount(line: str) -> Optional[Mount]:
    # 36 35 98:0 /root /point rw,noatime shared:1 - type source options; the optional fields before "-" vary in number
    front, dash, back = line.partition(" - ")
    left: List[str] = front.split(" ")
    right: List[str] = back.split(" ")
    if not dash or len(left) < 6 or len(right) < 3:
        return None
    major, _, minor = left[2].partition(":")
    return Mount(
        int(left[0]),
        (int(major), int(minor)),
        unescape(left[3]),
        unescape(left[4]),
        right[0],
        unescape(right[1]),
        tuple(unescape(option) for option in right[2].split(",")),
    )
