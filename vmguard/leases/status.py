# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What the sanlock daemon of this host has in memory: itself, its lockspaces, every lease with its holder.

The library has no call for this; `sanlock client status -D` asks over the daemon's socket (sanlock_sock.h), and so
does this module: a header, then one record after the other until the daemon closes. Orphans are to be seen nowhere
else.
"""

import ctypes
import errno
import os
import struct

from vmguard._typing import Dict, Iterator, List, NamedTuple, Tuple
from vmguard.errors import SanlockDown, SanlockFailed
from vmguard.leases import Lock
from vmguard.leases import _library as lib

_MAGIC, _PROTOCOL, _CMD_STATUS = 0x04282010, 1, 5
_HEADER = struct.Struct("=8I")  # struct sm_header
_STATE = struct.Struct("=IIIxxxxQ48sIxxxx")  # struct sanlk_state
_DAEMON, _CLIENT, _LOCKSPACE, _RESOURCE = 1, 2, 3, 4
# Since 3.9 the daemon tells of its worker threads too (7), as soon as one has worked; since 5 of a further thread (8). Text, and
# nothing after it, as is all that other commands report (5, 6).
_KINDS = range(1, 9)
_MAX_TEXT = 4096  # SANLK_STATE_MAXSTR
_MAX_DISKS = 4  # SANLK_MAX_DISKS

# Lists of the daemon in which a lease is held. The others: "add", not yet; "rem", about to be freed on disk.
_HELD = ("held", "orphan")


class Facts(NamedTuple):
    """The daemon itself."""

    version: str
    host_name: str  # by which it knows its own entry in a lockspace again, and rejoins fast
    use_watchdog: bool
    uid: int  # the files of the store must be writable by this user and group
    gid: int
    pid: int
    settings: Dict[str, str]  # everything it says about itself


class Space(NamedTuple):
    """A lockspace that the daemon has joined, is joining or leaving."""

    name: str
    host_id: int
    path: str
    state: str  # "joined", "joining", "leaving"; one that has failed and waits for its holders' end is leaving too
    generation: int  # of this host in it; 0 while joining
    io_timeout: int  # seconds
    used_by_orphans: bool
    renewed: int = 0  # when our entry in it was last renewed, by the daemon's clock (its setting monotime); seconds
    renewal_result: int = 1  # of the last attempt: 1, or what went wrong


class Status(NamedTuple):
    """All of it, of one moment (the daemon locks each list while it reports it)."""

    daemon: Facts
    registered: Tuple[int, ...]  # pids
    spaces: Tuple[Space, ...]
    held: Tuple[Tuple[str, Lock], ...]  # with the name of the lockspace; a shared lease once for each pid


class _Stream:
    """Bytes of the daemon, in pieces of the wanted size."""

    def __init__(self) -> None:
        import _socket  # what `socket` is made of: that one takes 5 ms to load, in every call of the hook

        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(os.path.join(lib.run_dir(), "sanlock.sock"))
            peer = self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
            self.pid = int(struct.unpack("=iII", peer)[0])
            self._file = open(self._socket.fileno(), "rb", closefd=False)
        except OSError as error:
            self._socket.close()
            raise SanlockDown(error.errno or errno.EIO) from error

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self, size: int) -> bytes:
        """Just so many bytes, or none at the end."""
        data = self._file.read(size)
        if data and len(data) < size:
            raise SanlockDown(errno.ECONNRESET)
        return data

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def _settings(text: bytes) -> Dict[str, str]:
    pairs = (word.partition("=") for word in os.fsdecode(text.rstrip(b"\0")).split(" "))
    return {name: value for name, _, value in pairs}


class _Record(NamedTuple):
    kind: int
    number: int  # the pid of a client or holder
    version: int
    name: str
    settings: Dict[str, str]
    binary: bytes


def _text(raw: bytes) -> str:
    return os.fsdecode(raw.partition(b"\0")[0])


def _binary(stream: _Stream, kind: int) -> bytes:
    if kind == _LOCKSPACE:
        return stream.read(ctypes.sizeof(lib.Lockspace))
    if kind == _RESOURCE:
        head = stream.read(ctypes.sizeof(lib.Resource) - ctypes.sizeof(lib.Disk))
        disks = struct.unpack_from("=I", head, len(head) - 4)[0]
        if disks > _MAX_DISKS:
            raise SanlockFailed("status", -errno.EPROTO)
        return head + (stream.read(disks * ctypes.sizeof(lib.Disk)) if disks else b"")
    return b""


def _records(stream: _Stream) -> Iterator[_Record]:
    stream.send(_HEADER.pack(_MAGIC, _PROTOCOL, _CMD_STATUS, 0, _HEADER.size, 0, 0, 0))
    if not stream.read(_HEADER.size):
        raise SanlockDown(errno.ECONNRESET)
    while True:
        head = stream.read(_STATE.size)
        if not head:
            return
        kind, _, number, version, name, length = _STATE.unpack(head)
        if kind not in _KINDS or length > _MAX_TEXT:
            # A daemon that speaks otherwise: better none than half an answer.
            raise SanlockFailed("status", -errno.EPROTO)
        settings = _settings(stream.read(length)) if length else {}
        yield _Record(kind, number, version, _text(name), settings, _binary(stream, kind))


def _daemon(record: _Record, pid: int) -> Facts:
    say = record.settings
    return Facts(
        version=say.get("version_str") or say.get("version_num", ""),
        host_name=record.name,
        use_watchdog=say["use_watchdog"] != "0",
        uid=int(say["uid"]),
        gid=int(say["gid"]),
        pid=pid,
        settings=say,
    )


def _space(record: _Record) -> Space:
    say = record.settings
    state = {"spaces": "joined", "add": "joining", "rem": "leaving"}[say["list"]]
    if state == "joined" and (say.get("space_dead", "0") != "0" or say.get("killing_pids", "0") != "0"):
        state = "leaving"
    found = lib.Lockspace.from_buffer_copy(record.binary)
    return Space(
        name=record.name,
        host_id=int(found.host_id),
        path=os.fsdecode(found.host_id_disk.path),
        state=state,
        generation=int(say.get("host_generation", "0")),
        io_timeout=int(say["io_timeout"]),
        used_by_orphans=say.get("used_by_orphans", "0") != "0",
        renewed=int(say.get("renewal_last_success", "0")),
        renewal_result=int(say.get("renewal_last_result", "1")),
    )


def _lock(record: _Record) -> Tuple[str, Lock]:
    found = lib.Resource.from_buffer_copy(record.binary.ljust(ctypes.sizeof(lib.Resource), b"\0"))
    shared = bool(found.flags & lib.RES_SHARED)
    orphan = record.settings["list"] == "orphan"
    lock = Lock(_text(found.name), 0 if shared else record.version, shared, None if orphan else record.number)
    return _text(found.lockspace_name), lock


def status() -> Status:
    """
    Ask the daemon. Raises SanlockDown where it does not answer, SanlockFailed where the answer is not understood.
    Hangs with a daemon that hangs.
    """
    stream = _Stream()
    daemon: List[Facts] = []
    clients: List[int] = []
    spaces: List[Space] = []
    held: List[Tuple[str, Lock]] = []
    try:
        for record in _records(stream):
            if record.kind == _DAEMON:
                daemon.append(_daemon(record, stream.pid))
            elif record.kind == _CLIENT:
                if record.number > 0:  # -1: the daemon's own, and those that only ask
                    clients.append(record.number)
            elif record.kind == _LOCKSPACE:
                spaces.append(_space(record))
            elif record.kind == _RESOURCE and record.settings.get("list") in _HELD:
                held.append(_lock(record))
    except OSError as error:
        raise SanlockDown(error.errno or errno.EIO) from error
    except (KeyError, ValueError) as error:
        raise SanlockFailed("status", -errno.EPROTO, str(error)) from error
    finally:
        stream.close()
    if not daemon:
        raise SanlockDown(errno.ECONNRESET)
    return Status(daemon[0], tuple(clients), tuple(spaces), tuple(held))
