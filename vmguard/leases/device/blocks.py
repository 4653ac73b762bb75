# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A block device, read and written past every cache: what another host has written shows in no page cache of this one.

It stays open from the first look on, so that all reads are of one device, whatever becomes of its name.
"""

import fcntl
import mmap
import os
import stat

from vmguard.errors import StoreBroken
from vmguard.leases import _files, slots

BLKSSZGET = 0x1268  # linux/fs.h: the logical size of a sector

BLOCK = slots.BLOCK  # bytes: all that is read, and most that is written, is a multiple of it


class Blocks:
    """An open device. Each method raises StoreBroken where the device fails."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            self.number = os.fstat(self._fd).st_rdev
            if not stat.S_ISBLK(os.fstat(self._fd).st_mode):
                raise StoreBroken(path, "it is no block device any more")
            self.sector = int.from_bytes(fcntl.ioctl(self._fd, BLKSSZGET, bytes(4)), "little")
        except OSError as error:
            raise _files.broken(path, error) from error

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def size(self) -> int:
        """Bytes, now: it can grow."""
        try:
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise _files.broken(self.path, error) from error

    def read(self, offset: int, length: int = BLOCK) -> bytes:
        """Just so many bytes; both must be multiples of a block."""
        try:
            # direct reading wants an aligned buffer; an anonymous mapping is one
            with mmap.mmap(-1, length) as memory:
                done = 0
                while done < length:
                    with memoryview(memory)[done:] as rest:
                        more = os.preadv(self._fd, [rest], offset + done)
                    if more <= 0:
                        raise StoreBroken(self.path, f"it ends at {offset + done} bytes, and more was written to it")
                    done += more
                return memory[:]
        except OSError as error:
            raise _files.broken(self.path, error) from error

    def write(self, offset: int, data: bytes, sync: bool = True) -> None:
        """
        Write whole sectors. sync: on the medium when this returns, past the device's own cache too.

        One sector is written at once or not at all, as sanlock itself takes for granted; of several, any may be missing.
        """
        assert offset % self.sector == 0 and len(data) % self.sector == 0
        try:
            # By the open descriptor: the same device. Open for writing no longer than needed, and never kept so.
            fd = os.open(
                f"/proc/self/fd/{self._fd}",
                os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC | (os.O_DSYNC if sync else 0),
            )
            try:
                with mmap.mmap(-1, len(data)) as memory:
                    memory[:] = data
                    done = 0
                    while done < len(data):
                        with memoryview(memory)[done:] as rest:
                            done += os.pwritev(fd, [rest], offset + done)
            finally:
                os.close(fd)
        except OSError as error:
            raise _files.broken(self.path, error) from error
