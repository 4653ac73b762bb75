# SPDX-License-Identifier: LGPL-2.1-or-later
"""
vmdk: the text descriptor, alone in a file or within a sparse image, names a parent and extents (VMware, Virtual Disk
Format 5.0).
"""

import struct

from vmguard._light import re
from vmguard._typing import List, NamedTuple, Optional, Tuple
from vmguard.storage.header import PIECE_LIMIT, BadHeader, Reader

_SECTOR = 512
_NO_PARENT = "ffffffff"
_EXTENTS_LIMIT = 4096  # 2 GB extents of an 8 TB disk
_EXTENT = re.compile(r'^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+([A-Z0-9]+)(?:\s+"([^"\n]*)")?', re.MULTILINE)


class Description(NamedTuple):
    """What a descriptor names."""

    parent: Optional[str] = None
    extents: Tuple[str, ...] = ()


def is_descriptor(reader: Reader) -> bool:
    """
    Whether it is a descriptor in a file of its own: after comments and empty lines comes a version, as QEMU tests
    it.
    """
    for line in reader.maybe(0, 2048).split(b"\n"):
        line = line.strip()
        if line and not line.startswith(b"#"):
            return re.match(rb"version\s*=\s*[1-3]\b", line) is not None
    return False


def read(reader: Reader) -> Description:
    """What the descriptor of a vmdk image names."""
    magic = reader.need(0, 4)
    if magic == b"COWD":  # an extent of an ESX snapshot; the descriptor is another file
        return Description()
    if magic != b"KDMV":
        return _described(reader.maybe(0, PIECE_LIMIT), extents=True)
    # struct SparseExtentHeader, packed, little endian: descriptor's offset at 28, its size at 36, in sectors
    offset, size = struct.unpack("<QQ", reader.need(28, 16))
    if not offset or not size:
        return Description()
    if size * _SECTOR > PIECE_LIMIT:
        raise BadHeader(f"its descriptor is {size * _SECTOR} bytes long")
    # the extent that it lists is the image itself
    return _described(reader.maybe(offset * _SECTOR, size * _SECTOR), extents=False)


def _described(data: bytes, extents: bool) -> Description:
    text = data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    content = _value(text, "parentCID")
    parent = _value(text, "parentFileNameHint")
    if content and content.lower() != _NO_PARENT and not parent:
        raise BadHeader("it has a parent, which its descriptor does not name")
    named: List[str] = []
    for kind, name in _EXTENT.findall(text) if extents else ():
        if kind == "ZERO":
            continue
        if not name:
            raise BadHeader("an extent in its descriptor has no name")
        named.append(name)
        if len(named) > _EXTENTS_LIMIT:
            raise BadHeader("its descriptor has too many extents")
    if extents and not named and not parent:
        raise BadHeader("its descriptor names no extents")
    # QEMU looks at the hint alone
    return Description(parent, tuple(named))


def _value(text: str, key: str) -> Optional[str]:
    found = re.search(rf'^\s*{key}\s*=\s*"?([^"\r\n]*?)"?\s*$', text, re.MULTILINE)
    return found.group(1) if found and found.group(1) else None
