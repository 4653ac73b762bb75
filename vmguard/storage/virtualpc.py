# SPDX-License-Identifier: LGPL-2.1-or-later
"""vpc (VHD, big endian) and vhdx (little endian): where a differencing image keeps the name of its parent."""

import struct

from vmguard._typing import Dict, Optional
from vmguard.storage.header import BadHeader, Reader

_DIFFERENCING = 4  # VHD 1.0, disk type
_LOCATOR_LIMIT = 1 << 16  # bytes of one name or table; a Windows path has 64 KiB at most

# MS-VHDX 2.2.3, 2.6.2; the first three fields of a GUID on disk are little endian
_REGION_TABLES = (192 * 1024, 256 * 1024)
_METADATA_REGION = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")  # 8b7ca206-4790-4b9a-b8fe-575f050f886e
_FILE_PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")  # caa16737-fa36-4d43-b3b6-33f0aa44e76b
_PARENT_LOCATOR = bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")  # a8d35f2d-b30b-454d-abf7-d3d84834ab0c


def vpc_parent(reader: Reader) -> Optional[str]:
    """The parent of a differencing VHD, None for the other kinds."""
    footer = reader.maybe(0, 512)
    if footer[:8] != b"conectix":
        # a fixed image has its footer at the end
        if reader.size is not None and (reader.size < 512 or reader.need(reader.size - 512, 8) != b"conectix"):
            raise BadHeader("it is declared vpc, but has no footer of that format")
        return None
    if len(footer) < 64:
        raise BadHeader("it is shorter than its header says")
    offset, kind = struct.unpack_from(">Q36xI", footer, 16)
    if kind != _DIFFERENCING:
        return None
    header = reader.need(offset, 1024)
    if header[:8] != b"cxsparse":
        raise BadHeader("its dynamic header is damaged")
    for number in range(8):
        code, _, length, _, at = struct.unpack_from(">4sIIIQ", header, 576 + 24 * number)
        if code == b"W2ru" and 0 < length <= _LOCATOR_LIMIT:
            return _windows(reader.need(at, length).decode("utf-16-le", "replace"))
    return _windows(header[64:576].decode("utf-16-be", "replace").split("\0")[0])


def vhdx_parent(reader: Reader) -> Optional[str]:
    """The parent of a differencing VHDX, None for the other kinds."""
    items = _metadata(reader)
    parameters = items.get(_FILE_PARAMETERS, b"")
    if len(parameters) < 8:
        raise BadHeader("it has no file parameters")
    if not struct.unpack_from("<I", parameters, 4)[0] & 2:  # HasParent
        return None
    locator = items.get(_PARENT_LOCATOR, b"")
    if len(locator) < 20:
        raise BadHeader("it has a parent, which it does not name")
    named: Dict[str, str] = {}
    for number in range(min(struct.unpack_from("<H", locator, 18)[0], 64)):
        if 20 + 12 * (number + 1) > len(locator):
            raise BadHeader("its parent locator is damaged")
        key, value, key_length, value_length = struct.unpack_from("<IIHH", locator, 20 + 12 * number)
        word = locator[key : key + key_length].decode("utf-16-le", "replace")
        named[word] = locator[value : value + value_length].decode("utf-16-le", "replace")
    name = named.get("relative_path") or named.get("absolute_win32_path") or named.get("volume_path") or ""
    return _windows(name)


def _metadata(reader: Reader) -> Dict[bytes, bytes]:
    for at in _REGION_TABLES:
        table = reader.maybe(at, 65536)
        if table[:4] != b"regi" or len(table) < 16:
            continue
        (count,) = struct.unpack_from("<I", table, 8)
        for number in range(min(count, 2047)):
            if 16 + 32 * (number + 1) > len(table):
                break
            guid, offset, _ = struct.unpack_from("<16sQI", table, 16 + 32 * number)
            if guid == _METADATA_REGION:
                return _items(reader, offset)
    raise BadHeader("its region tables are damaged")


def _items(reader: Reader, region: int) -> Dict[bytes, bytes]:
    table = reader.need(region, 32)
    if table[:8] != b"metadata":
        raise BadHeader("its metadata table is damaged")
    (count,) = struct.unpack_from("<10xH", table)
    found: Dict[bytes, bytes] = {}
    for number in range(min(count, 1024)):
        guid, offset, length = struct.unpack_from("<16sII", reader.need(region + 32 * (number + 1), 32))
        if guid in (_FILE_PARAMETERS, _PARENT_LOCATOR):
            if length > _LOCATOR_LIMIT:
                raise BadHeader("an item of its metadata is too long")
            found[guid] = reader.need(region + offset, length)
    return found


def _windows(name: str) -> str:
    name = name.rstrip("\0").replace("\\", "/")
    if not name:
        raise BadHeader("it has a parent, which it does not name")
    if name[1:2] == ":" or name.startswith("//"):
        raise BadHeader(f"its parent is named as Windows does: {name[:200]}")
    return name
