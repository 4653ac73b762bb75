# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes of the files in some folders, as the kernel tells them."""

import ctypes
import os
import select
import struct
from typing import Dict, Iterable, Iterator, Optional, Tuple

# linux/inotify.h. libvirt writes a new file and renames it: a move; editors write in place, or do the same.
_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _DELETE, _OVERFLOW = 0x008, 0x040, 0x080, 0x200, 0x4000
_EVENT = struct.Struct("iIII")  # struct inotify_event: wd, mask, cookie, len; the name follows


class Folders:
    """Watches folders, not what is below them."""

    def __init__(self, paths: Iterable[str]) -> None:
        """Raises OSError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._call(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify")
        self._paths: Dict[int, str] = {}
        mask = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _DELETE
        for path in paths:
            number = self._call(self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask), path)
            self._paths[number] = path

    def close(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """For those who wait for several things."""
        return self._fd

    def changes(self, timeout: Optional[float] = None) -> Iterator[Tuple[str, bool]]:
        """
        (path, whether it is there) of each file that changed, waiting for the first.

        timeout: seconds; nothing is said when they have passed. A path "" means that some changes got lost.
        """
        if not select.select([self._fd], [], [], timeout)[0]:
            return
        data = os.read(self._fd, 65536)
        while data:
            number, mask, _, length = _EVENT.unpack_from(data)
            name = os.fsdecode(data[_EVENT.size : _EVENT.size + length].rstrip(b"\0"))
            data = data[_EVENT.size + length :]
            if mask & _OVERFLOW:
                yield "", False
            elif number in self._paths and name:
                yield os.path.join(self._paths[number], name), bool(mask & (_CLOSE_WRITE | _MOVED_TO))

    @staticmethod
    def _call(answer: int, about: str) -> int:
        if answer < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), about)
        return answer


_OPEN, _CLOSE_WRITTEN, _IGNORED = 0x020, 0x008, 0x8000


class Files:
    """Watches files and device nodes: who opens one is not told, only that somebody does."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = Folders._call(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify")
        self._numbers: Dict[str, int] = {}
        self._paths: Dict[int, str] = {}

    def fileno(self) -> int:
        """For those who wait for several things."""
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def watch(self, paths: Iterable[str]) -> None:
        """Watch these and no others. What is not there is not watched."""
        wanted = set(paths)
        for path in set(self._numbers) - wanted:
            number = self._numbers.pop(path, None)
            if number is None:
                continue  # `changes` was told meanwhile, in another thread, that it is gone
            self._paths.pop(number, None)
            self._libc.inotify_rm_watch(self._fd, number)
        for path in wanted - set(self._numbers):
            number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), _OPEN | _CLOSE_WRITTEN)
            if number >= 0:
                self._numbers[path], self._paths[number] = number, path

    def changes(self) -> Iterator[Tuple[str, bool]]:
        """(path, whether it was written: else it was opened) of what has happened. A path "": some got lost."""
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        while data:
            number, mask, _, length = _EVENT.unpack_from(data)
            data = data[_EVENT.size + length :]
            path = self._paths.get(number)
            if mask & _OVERFLOW:
                yield "", False
            elif mask & _IGNORED and path is not None:
                self._numbers.pop(path, None)
                self._paths.pop(number, None)
            elif path is not None:
                yield path, bool(mask & _CLOSE_WRITTEN)
