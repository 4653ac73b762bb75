# SPDX-License-Identifier: LGPL-2.1-or-later
"""qcow and qcow2 headers (QEMU, docs/interop/qcow2.txt; version 1: block/qcow.c). All numbers are big endian."""

import struct

from vmguard._typing import NamedTuple, Optional
from vmguard.storage.header import BadHeader, Reader

_NAME_LIMIT = 1023  # bytes, both versions
_EXTERNAL_DATA = 1 << 2  # incompatible feature bit
_KNOWN = (
    1 << 5
) - 1  # incompatible features up to QEMU 9: dirty, corrupt, external data, compression type, extended L2
_BACKING_FORMAT = 0xE2792ACA
_DATA_FILE = 0x44415441
_EXTENSION_LIMIT = 1 << 16  # bytes of all extensions: they lie in the first cluster with the header


class Header(NamedTuple):
    """What a qcow2 header names."""

    backing: Optional[str] = None
    format: Optional[str] = None
    data: Optional[str] = None


def version1(reader: Reader) -> Optional[str]:
    """The backing file of a qcow image of version 1."""
    offset, size = struct.unpack(">QI", reader.need(8, 12))
    return reader.name(offset, size, _NAME_LIMIT) if offset else None


def version2(reader: Reader) -> Header:
    """What a qcow2 image, versions 2 and 3, names."""
    version, offset, size, bits = struct.unpack(">IQII", reader.need(4, 20))
    if version not in (2, 3):
        raise BadHeader(f"it is qcow2 of version {version}, which is not known")
    if not 9 <= bits <= 21:
        raise BadHeader(f"its header gives clusters of 2^{bits} bytes")
    features, length = (0, 72) if version == 2 else struct.unpack(">Q20xI", reader.need(72, 32))
    if features & ~_KNOWN:
        raise BadHeader(f"it has features that are not known ({features:#x})")
    if length % 8 or not 72 <= length <= 1 << bits:
        raise BadHeader(f"its header is {length} bytes long")
    backing = reader.name(offset, size, _NAME_LIMIT) if offset and size else None
    if backing and offset >= 1 << bits:
        raise BadHeader("its backing file's name does not lie in its first cluster")
    end = min(offset if backing else 1 << bits, length + _EXTENSION_LIMIT)
    named = _extensions(reader, length, end)
    data = named.data
    if features & _EXTERNAL_DATA and not data:
        raise BadHeader("its data is in another file, which its header does not name")
    return Header(backing, named.format, data if features & _EXTERNAL_DATA else None)


def _extensions(reader: Reader, at: int, end: int) -> Header:
    found = Header()
    while at + 8 <= end:
        raw = reader.maybe(at, 8)
        if len(raw) < 8:
            break
        kind, size = struct.unpack(">II", raw)
        if kind == 0:
            break
        at += 8
        if at + size > end:
            raise BadHeader("an extension of its header is longer than the header")
        if kind == _BACKING_FORMAT and size:
            # 15 is QEMU's limit
            found = found._replace(format=reader.name(at, size, 15))
        if kind == _DATA_FILE:
            found = found._replace(data=reader.name(at, size, _NAME_LIMIT))
        at += (size + 7) & ~7
    return found
