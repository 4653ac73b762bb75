# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Whether the host itself uses a device or file: mounted, swapped to, held by something above it, served to others.

Something that merely lies on it is no use (a signature of LVM, an unmounted loop device, the devices that kpartx made).
"""

import stat

from vmguard._light import re
from vmguard._typing import List, Optional, Tuple
from vmguard.storage import block, dm, loops, lvm, zfs
from vmguard.storage.facts import Devno, Stat
from vmguard.storage.host import DEPTH_LIMIT, Host, unescape

_MOUNTED = ("ext4", "xfs", "f2fs")  # have a directory for each mounted device, whatever the mount namespace
# LIO and nvmet, the kernel's own targets: the attribute that names the file or device they serve
# targetcli writes udev_path; of a target that was made without it the kernel's own words tell (target_core_file.c, _iblock.c).
_LIO_FILE = re.compile(r"File: (/.*?)  Size: ")
_LIO_DEVICE = re.compile(r"Major: (\d+) Minor: (\d+)")
_SERVED = (("/sys/kernel/config/target/core", "udev_path"), ("/sys/kernel/config/nvmet/subsystems", "device_path"))


def of_device(host: Host, sys: str, device: Devno) -> Optional[str]:
    """
    What the host does with a block device or, if it is a whole disk, with any partition of it. Raises Unresolvable.
    """
    used = _directly(host, sys, device, 0)
    if not used and host.text(sys + "/partition"):
        disk = sys.rpartition("/")[0]
        number = host.devno(disk)
        used = _alone(host, disk, number) if number else None
        return f"{used} (the whole of {block.node(host, disk)})" if used else None
    return used


def of_file(host: Host, found: Stat) -> Optional[str]:
    """What the host does with a regular file. Raises Unresolvable."""
    for path, there in _swaps(host):
        if stat.S_ISREG(there.mode) and (there.device, there.inode) == (found.device, found.inode):
            return f"swap space of this host ({path})"
    if stat.S_ISREG(found.mode):
        return _through_loops(host, loops.over(host, file=(found.device, found.inode)), 0) or _served(host, found)
    return None


def _directly(host: Host, sys: str, device: Devno, depth: int) -> Optional[str]:
    if depth > DEPTH_LIMIT:
        return "held by devices nested deeper than can be followed"
    used = _alone(host, sys, device)
    if used:
        return used
    for name in host.names(sys):
        part = f"{sys}/{name}"
        if host.text(part + "/partition"):
            number = host.devno(part)
            used = _directly(host, part, number, depth + 1) if number else None
            if used:
                return f"its partition {block.node(host, part)} is {used}"
    for holder, below in _partition_maps(host, sys):
        used = _directly(host, holder, below, depth + 1)
        if used:
            return f"its partition {block.node(host, holder)} is {used}"
    return _through_loops(host, loops.over(host, device=device), depth + 1)


def _alone(host: Host, sys: str, device: Devno) -> Optional[str]:
    """The use of just this device, not of its partitions."""
    for mount in host.mounts():
        # an overlay or bind mount shows the number of what it is made from; any of them will do
        if mount.device == device:
            return f"mounted on {mount.point}"
    if host.has_leases(device):
        return "where vmguard has the leases of this host"
    name = sys.rpartition("/")[2]
    for type_ in _MOUNTED:
        if host.names(f"/sys/fs/{type_}/{name}"):
            return f"mounted in another mount namespace ({type_})"
    for uuid in host.names("/sys/fs/btrfs"):
        if name in host.names(f"/sys/fs/btrfs/{uuid}/devices"):
            return f"a device of the mounted btrfs {uuid}"
    if host.target(sys + "/bcachefs"):  # a link that bch2_dev_sysfs_online makes; the mount has a number of its own
        return "a device of a mounted bcachefs"
    pool = zfs.pool_of(host, device)
    if pool:
        return f"a device of the imported ZFS pool {pool}"
    for path, there in _swaps(host):
        if stat.S_ISBLK(there.mode) and there.rdev == device:
            return f"swap space of this host ({path})"
    for holder in host.names(sys + "/holders"):
        held = _holder(host, holder, sys)
        if held:
            return held
    return _served(host, Stat(stat.S_IFBLK, (0, 0), 0, device))


def _holder(host: Host, name: str, below: str) -> Optional[str]:
    """What a device above does with the one below; None for a multipath map and for mere partitions."""
    above = f"/sys/class/block/{name}"
    uuid = host.text(above + "/dm/uuid") or ""
    if uuid.startswith("mpath-") or dm.is_partition(uuid):
        return None
    volume = lvm.title(host, above)
    if volume:
        if lvm.group(host, below) == volume.partition("/")[0]:
            return f"a part of the active logical volume {volume}"
        return f"a physical volume under the active logical volume {volume}"
    return f"held by the active device {block.node(host, host.target(above) or above)}"


def _partition_maps(host: Host, sys: str) -> List[Tuple[str, Devno]]:
    found: List[Tuple[str, Devno]] = []
    for name in host.names(sys + "/holders"):
        above = f"/sys/class/block/{name}"
        number = host.devno(above)
        if number and dm.is_partition(host.text(above + "/dm/uuid") or ""):
            found.append((host.sysfs(number, above), number))
    return found


def _through_loops(host: Host, found: List[str], depth: int) -> Optional[str]:
    for sys in found:
        number = host.devno(sys)
        used = _directly(host, sys, number, depth + 1) if number else None
        if used:
            return f"behind {block.node(host, sys)}, which is {used}"
    return None


def _swaps(host: Host) -> List[Tuple[str, Stat]]:
    found: List[Tuple[str, Stat]] = []
    for line in (host.text("/proc/swaps") or "").splitlines()[1:]:
        path = unescape(line.split()[0]) if line.split() else ""
        there = host.lookup(path) if path.startswith("/") else None
        if there:
            found.append((path, there))
    return found


def _served(host: Host, found: Stat) -> Optional[str]:
    for base, attribute in _SERVED:
        for one in host.names(base):
            for two in _objects(host, f"{base}/{one}"):
                path = host.text(f"{two}/{attribute}") or ""
                info = "" if path else host.text(f"{two}/info") or ""
                opened = _LIO_FILE.search(info)
                path = opened.group(1) if opened else path
                there = host.lookup(path) if path.startswith("/") else None
                number = _LIO_DEVICE.search(info)
                rdev = (int(number.group(1)), int(number.group(2))) if number else there.rdev if there else None
                if stat.S_ISBLK(found.mode):
                    same = rdev == found.rdev
                else:
                    same = there is not None and (there.device, there.inode) == (found.device, found.inode)
                if same:
                    return f"served to other hosts ({two})"
    return None


def _objects(host: Host, base: str) -> List[str]:
    space = base + "/namespaces" if "/nvmet/" in base else base
    return [f"{space}/{name}" for name in host.names(space)]
