# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Which filesystem it is: a uuid of the filesystem itself, the same on every host that mounts it.

Asked in the order of truth: the filesystem's own ioctl (what its superblock says now), the kernel's general one
(what it said at mount
time: `tune2fs -U` on a mounted filesystem leaves it stale), sysfs, the udev database, and the superblock on the device.
"""

import errno
import struct

from vmguard._light import re
from vmguard._typing import Callable, NamedTuple, Optional, Tuple
from vmguard.errors import Unresolvable
from vmguard.storage.facts import Devno
from vmguard.storage.host import Host, Mount, words

FS_IOC_GETFSUUID = 0x80111500  # linux/fs.h, kernel 6.9: struct fsuuid2 {u8 len; u8 uuid[16]}
EXT4_IOC_GETFSUUID = 0x8008662C  # linux/ext4.h, kernel 6.0: struct fsuuid {u32 len; u32 flags; u8 uuid[]}
XFS_IOC_FSGEOMETRY_V1 = 0x80705864  # xfs_fs.h: struct of 112 bytes, uuid at 64
BTRFS_IOC_FS_INFO = 0x8400941F  # linux/btrfs.h: struct of 1024 bytes, fsid at 16
BTRFS_IOC_INO_LOOKUP = 0xD0009412  # linux/btrfs.h: struct of 4096 bytes, u64 treeid, u64 objectid, name
BTRFS_FIRST_FREE_OBJECTID = 256  # linux/btrfs_tree.h: with treeid 0, any user may ask for the tree of the open file

# The ioctl is not known to this filesystem or kernel, or the filesystem has no uuid.
_NO_IOCTL = (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class _Superblock(NamedTuple):
    """Where a filesystem keeps its magic number and uuid, in bytes from the start of the device."""

    magic_at: int
    magic: bytes
    uuid_at: int


_SUPERBLOCKS = {
    "ext4": (_Superblock(1024 + 56, b"\x53\xef", 1024 + 104),),  # ext4.h, struct ext4_super_block
    "xfs": (_Superblock(0, b"XFSB", 32),),  # xfs_format.h, struct xfs_dsb
    "btrfs": (_Superblock(65536 + 64, b"_BHRfS_M", 65536 + 32),),  # btrfs_tree.h, struct btrfs_super_block
    # gfs2_ondisk.h: sector 128, struct gfs2_sb, the first header of type 1 (big endian)
    "gfs2": (_Superblock(65536, b"\x01\x16\x19\x70\x00\x00\x00\x01", 65536 + 256),),
    # ocfs2_fs.h: block 2 of 512 to 4096 bytes, the superblock in the inode at 192, its uuid at 144
    "ocfs2": tuple(_Superblock(2 * size, b"OCFSV2", 2 * size + 192 + 144) for size in (512, 1024, 2048, 4096)),
}
_SUPERBLOCKS["ext2"] = _SUPERBLOCKS["ext3"] = _SUPERBLOCKS["ext4"]


def uuid_of(host: Host, path: str, mount: Mount, device: Devno) -> Optional[Tuple[str, str]]:
    """
    The uuid of the filesystem that the file `path` lies on, and who said so; None if it has none.

    `device` is the filesystem's st_dev. Raises Unresolvable.
    """
    ways: Tuple[Tuple[str, Callable[[], Optional[str]]], ...] = (
        (f"the {mount.type} ioctl", lambda: _own_ioctl(host, path, mount.type)),
        ("the kernel", lambda: _general_ioctl(host, path)),
        ("sysfs", lambda: _gfs2(host, mount, device)),
        ("the udev database", lambda: _dashed_text(host.udev(device).get("ID_FS_UUID", ""))),
        ("the superblock", lambda: _on_disk(host, mount, device)),
    )
    for source, way in ways:
        found = way()
        if found:
            return found, source
    return None


def subvolume(host: Host, path: str) -> int:
    """The id of the btrfs subvolume of a file or directory. Raises Unresolvable."""
    try:
        answer = host.facts.ioctl(path, BTRFS_IOC_INO_LOOKUP, struct.pack("=QQ4080x", 0, BTRFS_FIRST_FREE_OBJECTID))
    except OSError as error:
        raise Unresolvable(path, f"its btrfs subvolume could not be asked for: {words(error)}") from error
    return int(struct.unpack_from("=Q", answer)[0])


def dashed(raw: bytes) -> Optional[str]:
    """16 bytes as a uuid in lower case; None if they are all zero or not 16."""
    if len(raw) != 16 or not any(raw):
        return None
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _dashed_text(text: str) -> Optional[str]:
    text = text.lower()
    # OCFS2 and GFS2 tools print 32 digits; a FAT or NTFS serial number is not unique enough to pass
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return dashed(bytes.fromhex(text))
    return text if _UUID.fullmatch(text) and text.strip("0-") else None


def _ioctl(host: Host, path: str, request: int, argument: bytes) -> Optional[bytes]:
    try:
        return host.facts.ioctl(path, request, argument)
    except OSError as error:
        # EACCES: a session guest may not read the file itself; the ways below do not need to
        if error.errno in _NO_IOCTL or error.errno in (errno.EACCES, errno.EPERM):
            return None
        raise Unresolvable(path, f"its filesystem could not be asked for its uuid: {words(error)}") from error


def _own_ioctl(host: Host, path: str, type_: str) -> Optional[str]:
    if type_ in ("ext2", "ext3", "ext4"):
        answer = _ioctl(host, path, EXT4_IOC_GETFSUUID, struct.pack("=II16x", 16, 0))
        return dashed(answer[8:24]) if answer else None
    if type_ == "xfs":
        answer = _ioctl(host, path, XFS_IOC_FSGEOMETRY_V1, bytes(112))
        return dashed(answer[64:80]) if answer else None
    if type_ == "btrfs":
        answer = _ioctl(host, path, BTRFS_IOC_FS_INFO, bytes(1024))
        return dashed(answer[16:32]) if answer else None
    return None


def _general_ioctl(host: Host, path: str) -> Optional[str]:
    answer = _ioctl(host, path, FS_IOC_GETFSUUID, bytes(17))
    return dashed(answer[1:17]) if answer and answer[0] == 16 else None


def _gfs2(host: Host, mount: Mount, device: Devno) -> Optional[str]:
    if mount.type != "gfs2":
        return None
    for name in host.names("/sys/fs/gfs2"):
        # "id" is "MAJOR:MINOR" of the device since 3.8; older kernels and lock_nolock name the device, hence the
        # table name too
        held = (host.text(f"/sys/fs/gfs2/{name}/id") or "").split()
        if f"{device[0]}:{device[1]}" in held:
            return _dashed_text(host.text(f"/sys/fs/gfs2/{name}/uuid") or "")
    return None


def _on_disk(host: Host, mount: Mount, device: Devno) -> Optional[str]:
    places = _SUPERBLOCKS.get(mount.type)
    # a filesystem with a number of its own (btrfs) shows its device only as the mount's source
    node = f"/dev/block/{device[0]}:{device[1]}" if device[0] else mount.source
    if not places or not node.startswith("/"):
        return None
    if device[0] and host.lookup(node) is None:
        node = "/dev/" + host.sysfs(device, mount.point).rpartition("/")[2].replace("!", "/")
    for place in places:
        if host.bytes(node, len(place.magic), place.magic_at) == place.magic:
            return dashed(host.bytes(node, 16, place.uuid_at) or b"")
    return None
