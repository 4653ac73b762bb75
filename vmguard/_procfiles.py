# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a QEMU has open, as the kernel shows it.

    /proc/PID/fd/N          leads to the very inode, whatever its name means by now: deleted, replaced, or in the mount
                            namespace that libvirt gives each QEMU
    /proc/PID/fdinfo/N      how it was opened, and QEMU's image locks
    /proc/PID/map_files     files that are mapped, their descriptors closed

Storage is found by the same resolvers as in the guard, from these links, so that identities are equal.

What is left out, unless it is claimed (`_no_storage` says why for each):

    * nothing that is a file: sockets, pipes, memfds, event counters; files of /proc and /sys
    * character devices that are no way to a disk; those that may be one and cannot be looked into are named
    * directories; and files below a directory that the guest was given, which the claim on that covers
    * QEMU's standard output and error: the log that libvirt gave it
    * files written and never read, in memory (tmpfs): libvirt's pidfile
    * the guest's memory: huge pages, and the file that libvirt names after the memory object
    * deleted files: no other QEMU can come to open them (snapshot=on keeps what is written in one)
    * files below /usr and /etc that are only read: firmware

Everything else is an object of its own, so whatever else QEMU writes is a surprise, if it is not claimed.
"""

import json
import os
import stat

from vmguard import host
from vmguard._typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, locate
from vmguard.storage.facts import READ_LIMIT, Devno, LiveFacts, Stat
from vmguard.storage.files import MEMORY, NOT_STORAGE
from vmguard.storage.host import Host, Mount, mounts_in, words

O_PATH = 0o10000000  # asm-generic/fcntl.h: such a descriptor can neither read nor write
_ACCESS = 0o3  # fcntl.h, O_ACCMODE

# block/file-posix.c: QEMU locks byte 100 + n for each permission that it has on an image, 200 + n for each that it does
# not share. A node that is not active yet has neither.
_LOCKS = range(100, 300)

# Majors of admin-guide/devices.txt: memory devices, terminals, misc (kvm, tun, vhost, ...), input, sound, pts.
_PLAIN_MAJORS = frozenset((1, 4, 5, 10, 13, 116, *range(136, 144)))
USB = 189  # devices.txt: /dev/bus/usb
# The names of devices that may give access to a disk which nothing shows: they are named, not looked into.
_OPAQUE = ("/dev/vfio/", "/dev/vhost-vdpa", "/dev/bus/usb/")


class Opened(NamedTuple):
    """One object that QEMU has open, by however many descriptors."""

    path: str  # as QEMU sees it; for people
    kind: str  # "file", "block", "character", "directory"
    device: Devno  # of the filesystem that it was found on
    inode: int
    rdev: Devno  # of the device, (0, 0) for files
    writable: bool = False  # some descriptor or mapping can write
    readable: bool = True
    active: bool = False  # QEMU has its image locks: the node is in use, not waiting for its guest
    deleted: bool = False
    link: str = ""  # the path that leads to this very inode while QEMU lives: /proc/PID/fd/N
    storage: Tuple[Storage, ...] = ()  # what it is
    unknown: str = ""  # why that could not be found out
    no_storage: str = ""  # why it is of no interest as long as it is not claimed


def open_files(pid: int) -> Tuple[Opened, ...]:
    """
    What a QEMU has open, storage and what might be; nothing if it is gone.

    Raises Unresolvable where the kernel does not let us look (it takes root).
    """
    base = _with_files(pid)
    if base is None:
        return ()
    facts = _OpenFacts(base)
    look = Host(facts)
    found: Dict[Tuple[str, Devno, int], Opened] = {}
    for one in _descriptors(base):
        _merge(found, one)
    for one in _mappings(base):
        _merge(found, one)
    memory = _memory_objects(base)
    standard = {_key(one) for one in _standard(base)}
    return tuple(_identified(one, look, facts, memory, _key(one) in standard) for one in found.values())


def _key(one: Opened) -> Tuple[str, Devno, int]:
    """What makes two descriptors lead to one thing. A device by its number: libvirt makes nodes of its own."""
    return (one.kind, one.rdev, 0) if one.rdev != (0, 0) else (one.kind, one.device, one.inode)


def _merge(found: Dict[Tuple[str, Devno, int], Opened], one: Opened) -> None:
    known = found.get(_key(one))
    found[_key(one)] = (
        one
        if known is None
        else known._replace(
            writable=known.writable or one.writable,
            readable=known.readable or one.readable,
            active=known.active or one.active,
        )
    )


def _with_files(pid: int) -> Optional[str]:
    """The directory in /proc of the process; of one of its threads, where the first has ended and the others write on."""
    base = f"{host.PROC}/{int(pid)}"
    if _listed(base + "/fd"):
        return base
    return next((thread for thread in host.threads(pid) if _listed(thread + "/fd")), None)


def _listed(path: str) -> List[str]:
    try:
        return sorted(os.listdir(path), key=lambda name: int(name) if name.isdecimal() else 0)
    except (FileNotFoundError, ProcessLookupError):
        return []
    except OSError as error:
        raise Unresolvable(path, words(error)) from error


def _descriptors(base: str) -> Iterator[Opened]:
    for name in _listed(base + "/fd"):
        one = _object(f"{base}/fd/{name}")
        if one is None:
            continue
        lines = (host.read(f"{base}/fdinfo/{name}") or b"").decode("ascii", "replace").split("\n")
        flags = next((int(line.split()[1], 8) for line in lines if line.startswith("flags:")), 0)
        access = flags & _ACCESS
        usable = not flags & O_PATH
        if not usable and one.kind != "directory":
            continue
        yield one._replace(
            writable=usable and access in (os.O_WRONLY, os.O_RDWR),
            readable=usable and access in (os.O_RDONLY, os.O_RDWR),
            active=any(_image_lock(line) for line in lines if line.startswith("lock:")),
        )


def _image_lock(line: str) -> bool:
    # "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1474967 100 101"; a lock that is waited for has "->" after the number
    parts = line.split()
    return len(parts) >= 4 and "->" not in parts and parts[-2].isdecimal() and int(parts[-2]) in _LOCKS


def _mappings(base: str) -> Iterator[Opened]:
    """Files that are mapped so that the guest's writes reach them."""
    for line in (host.read(base + "/maps") or b"").split(b"\n"):
        # 7f00-7f01 rw-s 00000000 fe:00 1474977    /path
        parts = line.split(None, 5)
        if len(parts) < 6 or parts[1][1:2] != b"w" or parts[1][3:4] != b"s" or not parts[5].startswith(b"/"):
            continue
        one = _object(f"{base}/map_files/{parts[0].decode('ascii')}", os.fsdecode(parts[5]))
        if one is not None and one.kind == "file":
            yield one._replace(writable=True)


def _object(link: str, target: str = "") -> Optional[Opened]:
    """What a link of /proc leads to; None for what is no file, and what has just been closed."""
    try:
        target = target or os.readlink(link)
        if not target.startswith("/") or target.startswith(("/memfd:", "/SYSV")):
            return None
        found = os.stat(link)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except OSError as error:
        raise Unresolvable(link, words(error)) from error
    kind = _KINDS.get(stat.S_IFMT(found.st_mode))
    rdev = (os.major(found.st_rdev), os.minor(found.st_rdev))
    if kind is None or (kind == "character" and rdev[0] in _PLAIN_MAJORS and not target.startswith(_OPAQUE)):
        return None
    deleted = found.st_nlink == 0
    path = target[: -len(" (deleted)")] if deleted and target.endswith(" (deleted)") else target
    device = (os.major(found.st_dev), os.minor(found.st_dev))
    return Opened(path, kind, device, found.st_ino, rdev, deleted=deleted, link=link)


_KINDS = {stat.S_IFREG: "file", stat.S_IFBLK: "block", stat.S_IFCHR: "character", stat.S_IFDIR: "directory"}


def _standard(base: str) -> Iterator[Opened]:
    """Standard output and error: whoever executed QEMU gave it these."""
    for name in ("1", "2"):
        one = _object(f"{base}/fd/{name}")
        if one is not None:
            yield one


def _arguments(base: str) -> List[str]:
    return [os.fsdecode(word) for word in (host.read(base + "/cmdline") or b"").split(b"\0")]


def was_started_incoming(pid: int) -> bool:
    """Whether a QEMU was started to receive a guest."""
    return any(word in ("-incoming", "--incoming") for word in _arguments(f"{host.PROC}/{int(pid)}"))


def _memory_objects(base: str) -> List[str]:
    """
    The paths of memory objects that are called like their file: libvirt names the guest's memory so, nobody else; and those
    of <shmem>, which several guests have by intent.
    """
    found: List[str] = []
    for word in _arguments(base):
        if not word.startswith("{") or '"mem-path"' not in word:
            continue
        try:
            given = json.loads(word)
            path, name = given["mem-path"], given["id"]
        except (ValueError, KeyError, TypeError):
            continue
        if not (isinstance(path, str) and isinstance(name, str)):
            continue
        shared = path.startswith("/dev/shm/") and name.startswith("shmmem-")  # qemuBuildShmemBackendMemProps of libvirt
        if os.path.basename(path) == name or shared:
            found.append(path)
    return found


# -- what it is --------------------------------------------------------------------------------------------------------


def _identified(one: Opened, look: Host, facts: "_OpenFacts", memory: Sequence[str], standard: bool) -> Opened:
    try:
        mount = look.mount_of(look.stat(one.link), one.path) if one.kind == "file" else None
    except Unresolvable as error:
        return one._replace(unknown=error.why)
    why = _no_storage(one, mount, memory, standard)
    if mount is not None and mount.type in (*NOT_STORAGE, "hugetlbfs"):
        return one._replace(no_storage=why)
    try:
        storage = locate.path(look, one.link)
    except Unresolvable as error:
        if error.missing:
            return one._replace(no_storage="it was closed meanwhile")
        return one._replace(unknown=error.why, no_storage=why)
    if one.kind == "character" and not storage and not _opaque(one):
        why = "a character device that is no way to a disk"
    return one._replace(storage=tuple(found._replace(path=one.path) for found in storage), no_storage=why)


def _opaque(one: Opened) -> bool:
    return one.rdev[0] == USB or one.path.startswith(_OPAQUE) and one.path != "/dev/vfio/vfio"


def _no_storage(one: Opened, mount: Optional[Mount], memory: Sequence[str], standard: bool) -> str:
    """Why a file is of no interest unless it is claimed; "" if it is of interest."""
    if one.kind != "file" or mount is None:
        return ""
    if mount.type in NOT_STORAGE:
        return f"{mount.type} keeps no data"
    if mount.type == "hugetlbfs" or one.path in memory:
        return "memory of the guest"
    if one.deleted:
        return "deleted: nobody else can open it"
    if not one.readable and standard:
        return "the log that QEMU was started with"
    # QEMU opens images to read them, always.
    if not one.readable and mount.type in MEMORY:
        return "written only, and in memory: a pidfile"
    if not one.writable and one.path.startswith(("/usr/", "/etc/")):
        return "a part of the system that is read"
    return ""


class _OpenFacts(LiveFacts):
    """
    The facts of this host, for paths that lead into a process: what it has open may lie on mounts of its own namespace.

    libvirt's default (namespaces = ["mount"]) gives each QEMU a copy of all mounts, with other ids.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        self._mounts: Optional[Tuple[Mount, ...]] = None

    def read(self, path: str, limit: int = READ_LIMIT, offset: int = 0) -> bytes:
        """Among the mounts are those of the process."""
        data = super().read(path, limit, offset)
        if path != "/proc/self/mountinfo" or _same_namespace(self._base):
            return data
        return data + (host.read(self._base + "/mountinfo") or b"")

    def stat(self, path: str) -> Stat:
        found = super().stat(path)
        if not self._is_link(path):
            return found
        if self._mounts is None:
            self._mounts = mounts_in(self.read("/proc/self/mountinfo", 64 * READ_LIMIT))
        if any(mount.id == found.mount for mount in self._mounts):
            return found
        # Opened in a third namespace, and handed over: any mount of the same filesystem will do.
        same = [mount.id for mount in self._mounts if mount.device == found.device]
        return found._replace(mount=same[0]) if same else found

    def realpath(self, path: str) -> str:
        """The name, if it still leads to this inode from here; else the link itself, which always does."""
        if not self._is_link(path):
            return super().realpath(path)
        name = super().realpath(path)
        try:
            return name if os.path.samestat(os.stat(name), os.stat(path)) else path
        except OSError:
            return path

    def _is_link(self, path: str) -> bool:
        return path.startswith((self._base + "/fd/", self._base + "/map_files/"))


def _same_namespace(base: str) -> bool:
    try:
        return os.readlink(base + "/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        return False
