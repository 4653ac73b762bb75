# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A host that was written down, and the pen to write one with.

A record is JSON with six tables, each keyed by absolute path, each value an answer or {"error": "ENOENT"}:

    files        text, or {"hex": "..."}, or {"hex": "...", "at": 65536} for a piece of something large
    links        where a symbolic link points
    stat         {"type": "block", "rdev": "253:0"}, or {"type": "file", "device": "253:5", "inode": 17, "mount": 40,
                 "size": 1}
    directories  names; directories that files, links and stat imply need not be listed
    ioctl        keyed "path 0xrequest": hex
    filesystems  the number that a filesystem gives itself, in hex

What the record does not have does not exist (ENOENT), what no ioctl is recorded for has none (ENOTTY), and a filesystem
whose number is not recorded has none (0).
"""

import errno
import json
import os
import posixpath
import stat

from vmguard._typing import Any, Callable, Dict, Optional, Tuple, TypeVar
from vmguard.storage.facts import READ_LIMIT, Devno, Facts, Stat

_TYPES = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "block": stat.S_IFBLK,
    "character": stat.S_IFCHR,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}
_TABLES = ("files", "links", "stat", "directories", "ioctl", "filesystems")
_Answer = TypeVar("_Answer")
_LINKS = 40  # symbolic links followed in one path, as Linux does


class RecordedFacts:
    """The facts of a recorded host."""

    def __init__(self, record: Dict[str, Any]) -> None:
        self._files: Dict[str, Any] = record.get("files", {})
        self._links: Dict[str, Any] = record.get("links", {})
        self._stat: Dict[str, Any] = record.get("stat", {})
        self._directories: Dict[str, Any] = record.get("directories", {})
        self._ioctl: Dict[str, Any] = record.get("ioctl", {})
        self._filesystems: Dict[str, Any] = record.get("filesystems", {})
        self._implied: Dict[str, Dict[str, None]] = {"/": {}}
        for table in (self._files, self._links, self._stat, self._directories):
            for path, value in table.items():
                if not (isinstance(value, dict) and "error" in value):
                    self._imply(path)

    @classmethod
    def load(cls, path: str) -> "RecordedFacts":
        """Read a record. Raises OSError and ValueError."""
        with open(path, encoding="utf-8") as file:
            return cls(json.load(file))

    def lease_store(self) -> str:
        return ""

    def stat(self, path: str) -> Stat:
        for name in (path, self.realpath(path)) if path not in self._stat else (path,):
            if name in self._stat:
                return _stat_of(_answer(self._stat[name], path))
        name = self.realpath(path)
        if name in self._files:
            return Stat(stat.S_IFREG | 0o444, (0, 0), 1)
        return Stat(stat.S_IFDIR | 0o755, (0, 0), 1)

    def realpath(self, path: str) -> str:
        whole = self._links.get(path)
        if isinstance(whole, dict):
            _answer(whole, path)
        rest = [part for part in path.split("/") if part not in ("", ".")]
        done = "/"
        followed = 0
        if isinstance(whole, str):
            followed, rest = 1, posixpath.join(posixpath.dirname(path), whole).split("/")
        while rest:
            part = rest.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                done = posixpath.dirname(done)
                continue
            here = posixpath.join(done, part)
            target = self._links.get(here)
            if isinstance(target, str) and target != here:
                followed += 1
                if followed > _LINKS:
                    raise _error(errno.ELOOP, path)
                if target.startswith("/"):
                    done = "/"
                rest = target.split("/") + rest
                continue
            done = here
        if not (done in self._files or done in self._stat or done in self._implied):
            raise _error(errno.ENOENT, path)
        return done

    def read(self, path: str, limit: int = READ_LIMIT, offset: int = 0) -> bytes:
        name = path if path in self._files else self.realpath(path)
        if name not in self._files:
            raise _error(errno.EISDIR if name in self._implied else errno.EIO, path)
        value = _answer(self._files[name], path)
        data, at = (value.encode("utf-8", "surrogateescape"), 0) if isinstance(value, str) else _piece(value)
        if offset < at:
            data, at = bytes(at - offset) + data, offset
        return bytes(data[offset - at : offset - at + limit])

    def names(self, path: str) -> Tuple[str, ...]:
        name = path if path in self._directories else self.realpath(path)
        listed = self._directories.get(name)
        if listed is not None:
            return tuple(sorted(_answer(listed, path)))
        if name not in self._implied:
            raise _error(errno.ENOTDIR, path)
        return tuple(sorted(self._implied[name]))

    def ioctl(self, path: str, request: int, argument: bytes) -> bytes:
        for name in (path, self.realpath(path)):
            value = self._ioctl.get(f"{name} {request:#x}")
            if value is not None:
                answer = bytes.fromhex(_answer(value, path))
                return answer + argument[len(answer) :]
        raise _error(errno.ENOTTY, path)

    def filesystem_id(self, path: str) -> int:
        for name in (path, self.realpath(path)):
            if name in self._filesystems:
                return int(_answer(self._filesystems[name], path), 16)
        return 0

    def _imply(self, path: str) -> None:
        if path in self._directories:
            self._implied.setdefault(path, {})
        while path != "/":
            parent, name = posixpath.split(path)
            self._implied.setdefault(parent, {})[name] = None
            path = parent


class Recording:
    """Passes each question on and writes down the answer, so that this very host can be resolved again elsewhere."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.lease_store = facts.lease_store
        self.record: Dict[str, Dict[str, Any]] = {table: {} for table in _TABLES}

    def save(self, path: str) -> None:
        """Write what was asked so far as a record. Raises OSError."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.record, file, indent=1, sort_keys=True)
            file.write("\n")

    def stat(self, path: str) -> Stat:
        found = self._ask("stat", path, lambda: self._facts.stat(path))
        self.record["stat"][path] = {
            "type": next((name for name, bits in _TYPES.items() if stat.S_IFMT(found.mode) == bits), "character"),
            "device": _colon(found.device),
            "inode": found.inode,
            "rdev": _colon(found.rdev),
            "size": found.size,
            "mount": found.mount,
        }
        return found

    def realpath(self, path: str) -> str:
        found = self._ask("links", path, lambda: self._facts.realpath(path))
        if found != path:
            self.record["links"][path] = found
        # it exists: all that is known of it until its stat is asked for
        self.record["stat"].setdefault(found, {"type": "file"})
        return found

    def read(self, path: str, limit: int = READ_LIMIT, offset: int = 0) -> bytes:
        found = self._ask("files", path, lambda: self._facts.read(path, limit, offset))
        try:
            value: Any = found.decode("utf-8")
        except UnicodeDecodeError:
            value = {"hex": found.hex()}
        if offset:
            value = {"hex": found.hex(), "at": offset}
        self.record["files"].setdefault(path, value)
        return found

    def names(self, path: str) -> Tuple[str, ...]:
        found = self._ask("directories", path, lambda: self._facts.names(path))
        self.record["directories"][path] = list(found)
        return found

    def ioctl(self, path: str, request: int, argument: bytes) -> bytes:
        key = f"{path} {request:#x}"
        found = self._ask("ioctl", key, lambda: self._facts.ioctl(path, request, argument))
        self.record["ioctl"][key] = found.rstrip(b"\0").hex() or "00"
        return found

    def filesystem_id(self, path: str) -> int:
        found = self._ask("filesystems", path, lambda: self._facts.filesystem_id(path))
        self.record["filesystems"][path] = f"{found:x}"
        return found

    def _ask(self, table: str, key: str, ask: Callable[[], _Answer]) -> _Answer:
        """The answer. A refusal is written down, and raised."""
        try:
            return ask()
        except OSError as error:
            self.record[table][key] = {"error": errno.errorcode.get(error.errno or errno.EIO, "EIO")}
            raise


def _answer(value: Any, path: str) -> Any:
    if isinstance(value, dict) and "error" in value:
        raise _error(getattr(errno, value["error"], errno.EIO), path)
    return value


def _piece(value: Dict[str, Any]) -> Tuple[bytes, int]:
    return bytes.fromhex(value["hex"]), int(value.get("at", 0))


def _stat_of(value: Dict[str, Any]) -> Stat:
    return Stat(
        _TYPES[value["type"]] | 0o600,
        _devno(value.get("device")),
        int(value.get("inode", 1)),
        _devno(value.get("rdev")),
        int(value.get("size", 0)),
        int(value.get("mount", 0)),
    )


def _devno(text: Optional[str]) -> Devno:
    major, _, minor = (text or "0:0").partition(":")
    return int(major), int(minor)


def _colon(device: Devno) -> str:
    return f"{device[0]}:{device[1]}"


def _error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)
