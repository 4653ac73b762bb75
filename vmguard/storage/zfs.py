# SPDX-License-Identifier: LGPL-2.1-or-later
"""
ZFS: what names a dataset, and which devices its pool lies on.

It has no uuid that the kernel knows of, and no holders in sysfs. What it shows without its own tools: a number of each dataset
(statfs), which pools are imported, and the zvols. Which device is in which pool stands on the devices, where udev reads it.
"""

import struct

from vmguard._light import re
from vmguard._typing import List, Optional
from vmguard.errors import Unresolvable
from vmguard.storage.facts import Devno
from vmguard.storage.host import Host, asked

_POOLS = "/proc/spl/kstat/zfs"  # a folder for each imported pool, among files
_CACHE = "/etc/zfs/zpool.cache"  # the imported pools: a packed nvlist in this machine's order of bytes
_LABEL_AT = 16384  # vdev_impl.h, struct vdev_label: a packed nvlist, what is looked for at its front
# What can lie on a pool itself, and have in it the label of a copy of that very pool.
_MADE = ("zd", "loop")


def dataset(host: Host, path: str) -> Optional[str]:
    """
    The number of the dataset that a file lies on, None if ZFS tells none. Raises Unresolvable.

    It is kept in the pool: the same after a rename, a rollback, a reboot, and on another host that imports the pool. Clones,
    snapshots and what was received have one of their own. Where two datasets with one number meet on a host (a pool was
    split), the second gets a new one.
    """
    number = asked(path, lambda: host.facts.filesystem_id(path))
    return f"{number:014x}" if number else None  # of 56 bits


def devices(host: Host, name: str) -> List[Devno]:
    """The devices that a pool lies on, from the name of a dataset or zvol. Raises Unresolvable."""
    pool = re.split("[/@]", name)[0]
    if pool not in host.pools:
        names = (one for one in host.names("/sys/class/block") if not one.startswith(_MADE))
        numbers = (host.devno(f"/sys/class/block/{one}") for one in names)
        members = (number for number in numbers if number and _is_member(host, number))
        host.pools[pool] = [member for member in members if _is_of(host, member, pool)]
    return host.pools[pool]


def under_zvol(host: Host, device: Devno) -> List[Devno]:
    """The devices beneath a zvol. Raises Unresolvable."""
    for link in host.links(device):
        if link.startswith("zvol/"):
            return devices(host, link[len("zvol/") :])
    return []


def pool_of(host: Host, device: Devno) -> Optional[str]:
    """The imported pool that a device is a part of. Raises Unresolvable."""
    pools = host.names(_POOLS)
    if not pools or not _is_member(host, device):
        return None
    return next((pool for pool in pools if _is_of(host, device, pool)), None)


def _is_member(host: Host, device: Devno) -> bool:
    return host.udev(device).get("ID_FS_TYPE") == "zfs_member"


def _is_of(host: Host, device: Devno, pool: str) -> bool:
    known = host.udev(device)
    guid = known.get("ID_FS_UUID", "")
    imported = host.text(f"{_POOLS}/{pool}/guid")
    # Before OpenZFS 2.2 the kernel tells the name alone, and the pool in a guest's disk may have the same one.
    same = guid == imported if imported else known.get("ID_FS_LABEL") == pool and _is_cached(host, guid)
    return same and not _was_taken_out(host, device)


def _is_cached(host: Host, guid: str) -> bool:
    try:
        return struct.pack("=Q", int(guid)) in (host.bytes(_CACHE) or b"")
    except (ValueError, struct.error):
        return False


def _was_taken_out(host: Host, device: Devno) -> bool:
    """Whether a device was detached or removed: the pool stays on its label, as of transaction group 0."""
    try:
        label = host.bytes(f"/dev/block/{device[0]}:{device[1]}", 4096, _LABEL_AT) or b""
    except Unresolvable:
        return False  # udev's word, for who may not read the device
    # XDR: a name and its length, a type (8: uint64), how many, the value
    return struct.pack(">I4sIIQ", 3, b"txg", 8, 1, 0) in label
