# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the header of an image says: its format, and the names of what is behind it. Headers are written by guests and
strangers: every offset and length is checked against a bound before it is used.
"""

import struct

from vmguard._typing import Callable, Dict, NamedTuple, Optional, Tuple
from vmguard.storage import qcow, virtualpc, vmdk
from vmguard.storage.header import BadHeader, Reader

__all__ = ["BadHeader", "Behind", "CHAINED", "PLAIN", "Reader", "behind", "probe"]


class Behind(NamedTuple):
    """What an image needs besides itself."""

    backing: Optional[str] = None  # a file name in QEMU's form
    backing_format: Optional[str] = None
    data: Tuple[str, ...] = ()  # where the data itself is, raw; written with the image
    extents: Tuple[str, ...] = ()  # pieces of it, relative to the image; written with it


# Nothing is ever behind these, or QEMU knows of nothing.
PLAIN = ("raw", "luks", "vdi", "dmg", "bochs", "cloop", "parallels", "iso", "dir", "fat", "vvfat")


def _qed(reader: Reader) -> Behind:
    # QEMU, docs/interop/qed_spec.txt: little endian; features at 16, backing file name at 56, its format in a
    # feature bit
    (features,) = struct.unpack("<Q", reader.need(16, 8))
    offset, size = struct.unpack("<II", reader.need(56, 8))
    if not features & 1:
        return Behind()
    name = reader.name(offset, size, 1023)
    return Behind(name, "raw" if features & 4 else None)


def _qcow2(reader: Reader) -> Behind:
    found = qcow.version2(reader)
    return Behind(found.backing, found.format, (found.data,) if found.data else ())


def _qcow(reader: Reader) -> Behind:
    return Behind(qcow.version1(reader))


def _vmdk(reader: Reader) -> Behind:
    found = vmdk.read(reader)
    return Behind(found.parent, "vmdk" if found.parent else None, (), found.extents)


def _vpc(reader: Reader) -> Behind:
    parent = virtualpc.vpc_parent(reader)
    return Behind(parent, "vpc" if parent else None)


def _vhdx(reader: Reader) -> Behind:
    parent = virtualpc.vhdx_parent(reader)
    return Behind(parent, "vhdx" if parent else None)


CHAINED: Dict[str, Callable[[Reader], Behind]] = {
    "qcow2": _qcow2,
    "qcow": _qcow,
    "qed": _qed,
    "vmdk": _vmdk,
    "vpc": _vpc,
    "vhdx": _vhdx,
}


def behind(reader: Reader, format_: str) -> Behind:
    """What an image of that format has behind it. Raises BadHeader if it is not of that format, or damaged."""
    seen = probe(reader)
    # the cookie of a fixed vpc image is at its end only
    if seen != format_ and not (format_ == "vpc" and seen == "raw"):
        raise BadHeader(f"it is declared {format_}, but its header is {'no image header' if seen == 'raw' else seen}")
    return CHAINED[format_](reader)


def probe(reader: Reader) -> str:
    """The format by the first bytes, "raw" if they are none that QEMU knows something behind."""
    head = reader.maybe(0, 64)
    if head[:4] == b"QFI\xfb" and len(head) >= 8:
        version = int.from_bytes(head[4:8], "big")
        return "qcow" if version == 1 else "qcow2"
    for magic, format_ in (
        (b"QED\0", "qed"),
        (b"KDMV", "vmdk"),
        (b"COWD", "vmdk"),
        (b"vhdxfile", "vhdx"),
        (b"conectix", "vpc"),
    ):
        if head.startswith(magic):
            return format_
    return "vmdk" if vmdk.is_descriptor(reader) else "raw"
