# SPDX-License-Identifier: LGPL-2.1-or-later
"""Changes of the files in some folders, as the kernel tells them."""

import ctypes
import errno
import os
import select
import struct
from typing import Dict, Iterable, Iterator, Optional, Set, Tuple

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


_OPEN, _CLOSE_WRITTEN, _ATTRIB, _MOVE_SELF, _IGNORED = 0x020, 0x008, 0x004, 0x800, 0x8000


class Files:
    """Watches files and device nodes: who opens one is not told, only that somebody does."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = Folders._call(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify")
        self._numbers: Dict[str, int] = {}
        self._paths: Dict[int, Set[str]] = {}  # of one file by several names the kernel has one number
        self._inodes: Dict[str, Optional[Tuple[int, int]]] = {}
        self._moved: Set[str] = set()

    def fileno(self) -> int:
        """For those who wait for several things."""
        return self._fd

    def close(self) -> None:
        os.close(self._fd)

    def watch(self, paths: Iterable[str]) -> bool:
        """
        Watch these and no others. What is not there is not watched, nor is a folder: what happens in it is not known to be about
        what is held. False where the kernel has no room for more.
        """
        wanted = set(paths)
        self._inodes = {path: inode for path, inode in self._inodes.items() if path in wanted}
        for path in set(self._numbers) - wanted:
            number = self._numbers.pop(path, None)
            if number is None:
                continue  # `changes` was told meanwhile, in another thread, that it is gone
            self._paths.get(number, set()).discard(path)
            if not self._paths.get(number):
                self._paths.pop(number, None)
                self._libc.inotify_rm_watch(self._fd, number)
        self._moved &= wanted
        mask = _OPEN | _CLOSE_WRITTEN | _ATTRIB | _MOVE_SELF
        for path in wanted - set(self._numbers):
            if os.path.isdir(path):
                continue
            number = self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
            if number < 0 and ctypes.get_errno() == errno.ENOSPC:
                return False
            if number >= 0:
                self._numbers[path], self._inodes[path] = number, _inode(path)
                self._paths.setdefault(number, set()).add(path)
        return True

    def name_of(self, path: str) -> str:
        """"" where the name of a file that is watched leads to it still; else "moved", "gone", or "taken" by another file."""
        known, now = self._inodes.get(path), _inode(path)
        if known is None or known == now:
            self._moved.discard(path)
            return ""
        return "moved" if path in self._moved else "gone" if now is None else "taken"

    def changes(self) -> Iterator[Tuple[str, str]]:
        """
        (path, what) of what has happened: "opened", "written", "moved", or that its mode, owner or links have "changed". A path
        "": some got lost.
        """
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        while data:
            number, mask, _, length = _EVENT.unpack_from(data)
            data = data[_EVENT.size + length :]
            paths = tuple(self._paths.get(number, ()))
            if mask & _OVERFLOW:
                yield "", ""
            elif mask & _IGNORED:
                self._paths.pop(number, None)
                for path in paths:
                    self._numbers.pop(path, None)
            else:
                words = {_CLOSE_WRITTEN: "written", _MOVE_SELF: "moved", _ATTRIB: "changed"}
                what = next((word for bit, word in words.items() if mask & bit), "opened")
                self._moved |= set(paths) if what == "moved" else set()
                yield from ((path, what) for path in paths)


def _inode(path: str) -> Optional[Tuple[int, int]]:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
