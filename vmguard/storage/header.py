# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reading an image's header, piece by piece, within bounds."""

from vmguard._typing import Callable, Optional

PIECE_LIMIT = 1 << 20  # bytes in one piece: the longest is a vmdk descriptor, for which QEMU has the same limit
_OFFSET_LIMIT = 1 << 62  # beyond the end of any file, below what lseek takes


class BadHeader(ValueError):
    """The header is damaged or hostile; the argument says how, as a clause. Never leaves `storage`."""


class Reader:
    """Pieces of one image."""

    def __init__(self, read: Callable[[int, int], bytes], size: Optional[int] = None) -> None:
        self._read = read  # (offset, length)
        self.size = size  # bytes; None where the file does not say (a block device)

    def maybe(self, offset: int, length: int) -> bytes:
        """At most that many bytes, fewer at the end."""
        if not (0 <= offset < _OFFSET_LIMIT and 0 <= length <= PIECE_LIMIT):
            raise BadHeader("its header points outside of any file")
        return self._read(offset, length) if length else b""

    def need(self, offset: int, length: int) -> bytes:
        """Just that many bytes. Raises BadHeader if the image is shorter."""
        data = self.maybe(offset, length)
        if len(data) != length:
            raise BadHeader("it is shorter than its header says")
        return data

    def name(self, offset: int, length: int, limit: int) -> str:
        """A file name. Raises BadHeader if it is empty, too long or has a NUL in it."""
        if not 0 < length <= limit:
            raise BadHeader(f"a file name in its header is {length} bytes long, and {limit} are allowed")
        data = self.need(offset, length)
        if b"\0" in data:
            raise BadHeader("a file name in its header has a NUL in it")
        return data.decode("utf-8", "surrogateescape")
