# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a store of leases would lie, and whether other hosts see that place."""

import os
import re
from typing import List, NamedTuple, Optional

from vmguard.domain import HostPath
from vmguard.errors import BadRequest
from vmguard.storage import resolve
from vmguard.storage.facts import LiveFacts
from vmguard.storage.files import NOT_STORAGE

# Filesystems that several hosts have mounted at once. A local one on a shared disk is not among them: two hosts that
# mount it destroy it.
SHARED = frozenset(
    "gfs2 ocfs2 nfs nfs4 ceph cifs smb3 lustre gpfs beegfs afs pvfs2 scoutfs 9p virtiofs"
    " fuse.glusterfs fuse.ceph fuse.mfs fuse.moosefs fuse.lizardfs fuse.quobyte fuse.sshfs".split()
)
# What lies in memory is gone after a power cut, with the marks of hosts that are still alive.
IN_MEMORY = frozenset(("tmpfs", "ramfs"))


class Mount(NamedTuple):
    """One mounted filesystem."""

    point: str
    kind: str
    source: str
    options: str


def mounts(text: str) -> List[Mount]:
    """The mounts in /proc/self/mountinfo, in its order."""
    found = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, more = left.split(" "), right.split(" ")
        if separator and len(fields) >= 6 and len(more) >= 3:
            found.append(Mount(_plain(fields[4]), more[0], _plain(more[1]), more[2]))
    return found


def fstab_points(text: str) -> List[str]:
    """The mount points that /etc/fstab names."""
    points = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 2 and not fields[0].startswith("#") and fields[1].startswith("/"):
            points.append(os.path.normpath(_plain(fields[1])))
    return points


def mount_of(path: str, mounted: List[Mount]) -> Optional[Mount]:
    """The mount that a path lies on: the longest mount point above it, of several the last."""
    best: Optional[Mount] = None
    for mount in mounted:
        if _below(path, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def seen_by_others(mount: Optional[Mount]) -> bool:
    """Whether other hosts see what lies on this mount, as far as its kind tells."""
    if mount is None:
        return False
    if mount.kind == "gfs2" and "lockproto=lock_nolock" in mount.options.split(","):
        return False
    return mount.kind in SHARED


class Device(NamedTuple):
    """A block device that a store would lie on."""

    path: str
    what: str  # in words: "the logical volume vg/leases, 1024 MiB"
    others_see_it: bool
    used: str  # why it must not hold leases, as a clause; "": nothing is against it
    remark: str


# Names that the kernel gives in the order in which it finds devices.
_PASSING = re.compile(r"/dev/(dm-\d+|sd[a-z]+\d*|nvme\d+n\d+(p\d+)?|vd[a-z]+\d*|loop\d+)")


def device(path: str) -> Device:
    """What a block device is, and whether other hosts see it. Raises Unresolvable."""
    (storage,) = resolve(HostPath(path), LiveFacts())
    size = f"{(storage.size or 0) >> 20} MiB"
    remark = ""
    if _PASSING.fullmatch(path):
        remark = (
            f"{path} may be another device after a restart, and is then refused. Better give it a name that stays:"
            " /dev/VG/LV, or one below /dev/disk/by-id."
        )
    used = f"it is {storage.used_by_host}" if storage.used_by_host else storage.not_writable or ""
    return Device(path, f"{storage.kind}, {size}", storage.others_see_it, used, remark)


def see_unused(one: Device) -> None:
    """Raises BadRequest where a device must not become a store."""
    if one.used:
        raise BadRequest(f"{one.path} cannot hold leases: {one.used}", "name another device")


def look(path: str, mountinfo: str = "/proc/self/mountinfo", fstab: str = "/etc/fstab") -> Optional[Mount]:
    """
    The mount that a store at `path` would lie on.

    Raises BadRequest if it is, or lies below, a mount point of /etc/fstab that is not mounted: the store would come to
    lie under it, for this host alone, and vanish with the mount. Also if it would lie in memory.
    """
    real = os.path.realpath(path)
    try:
        os.stat(real)  # lets an automounter mount it
    except OSError:
        pass
    mounted = mounts(_read(mountinfo))
    # A folder of an automounter that is still one after the look at it has not been mounted.
    points = {mount.point for mount in mounted if mount.kind != "autofs"}
    for point in fstab_points(_read(fstab)):
        point = os.path.realpath(point)
        if point != "/" and _below(real, point) and point not in points:
            raise BadRequest(
                f"{path} is meant to lie on {point}, which /etc/fstab names and which is not mounted",
                f"mount it first: `mount {point}`",
            )
    mount = mount_of(real, mounted)
    if real.startswith("/dev/"):
        raise BadRequest(
            f"there is no block device {path}",
            "if it is a volume, make it active first: `vgchange --lock-start VG`, `lvchange -asy VG/LV`",
        )
    if mount is not None and mount.kind in IN_MEMORY:
        raise BadRequest(
            f"{path} lies in memory ({mount.kind} on {mount.point}) and is gone after a restart",
            "name a directory on a disk",
        )
    if mount is not None and mount.kind in NOT_STORAGE:
        raise BadRequest(f"{path} lies on {mount.kind}, which keeps no data", "name a directory on a disk")
    if os.path.exists(real) and not os.path.isdir(real):
        raise BadRequest(f"{path} is a file", "name a directory, which need not be there yet, or a block device")
    return mount


def _below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _plain(field: str) -> str:
    """Blanks and their like are octal escapes in both files."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
