# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The API of sanlock's own Python binding (`import sanlock`), over libsanlock_client.

RHEL 10 and Debian 14 have dropped the binding; programs that use it go on with

    try:
        import sanlock
    except ImportError:
        from vmguard import sanlock

Same functions, arguments, constants, results and exceptions as the binding of 3.8 and 3.9; what each call means is in
sanlock's own documentation. Every call may hang as long as the daemon does. Two things differ, on purpose: a name that does not
fit into sanlock's 47 bytes is a ValueError (the binding cuts it off, or crashes), and a registered connection is not inherited
by child processes, whose copy would keep its leases.

vmguard itself does not use this: see leases/client.py, which says no where these calls would do harm.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from typing import Any, Dict, List, Optional, Tuple, Union

from vmguard.leases import _library as lib
from vmguard.leases.client import split_fields

Path = Union[str, bytes, "os.PathLike[str]", "os.PathLike[bytes]"]
Disks = List[Tuple[Path, int]]

# sanlock.h, sanlock_resource.h, sanlock_admin.h
LSFLAG_ADD, LSFLAG_REM = 0x1, 0x2
REQ_FORCE, REQ_GRACEFUL = 0x1, 0x2
HOST_UNKNOWN, HOST_FREE, HOST_LIVE, HOST_FAIL, HOST_DEAD = range(1, 6)
SETEV_CUR_GENERATION, SETEV_CLEAR_HOSTID, SETEV_CLEAR_EVENT = 0x1, 0x2, 0x4
SETEV_REPLACE_EVENT, SETEV_ALL_HOSTS = 0x8, 0x10
RES_LVER, RES_SHARED = 0x1, 0x4
SECTOR_SIZE = (512, 4096)
ALIGN_SIZE = (1 << 20, 2 << 20, 4 << 20, 8 << 20)

_ALIGN_FLAGS = dict(zip(ALIGN_SIZE, (0x10, 0x20, 0x40, 0x80)))
_SECTOR_FLAGS = dict(zip(SECTOR_SIZE, (0x100, 0x200)))
_ASYNC, _REM_UNUSED, _INQ_WAIT, _WRITE_CLEAR, _ACQUIRE_LVB, _REQUEST_NEXT_LVER = 0x1, 0x2, 0x1, 0x1, 0x1, 0x1
_HELPER_LEN = 128  # SANLK_HELPER_PATH_LEN, SANLK_HELPER_ARGS_LEN
_MAX_LVB = 4096
_BLKSSZGET = 0x1268  # linux/fs.h: the sector size of a block device
_EVENT = ("host_id", "generation", "event", "data")
_HOST = ("host_id", "generation", "timestamp", "io_timeout", "flags")
_U64 = 0xFFFFFFFFFFFFFFFF


class SanlockException(Exception):
    """args: errno (positive; sanlock's own codes are negative), what failed, what the number means."""

    @property
    def errno(self) -> Any:
        """The first argument."""
        return self.args[0]


class _Event(ctypes.Structure):
    """struct sanlk_host_event"""

    _fields_ = [(name, ctypes.c_uint64) for name in _EVENT]


_prototyped: Optional[Any] = None


def _library() -> Any:
    global _prototyped
    if _prototyped is None:
        loaded = lib.library()
        integer, flags, text, pointer = ctypes.c_int, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_void_p
        for name, arguments in {
            "killpath": [integer, flags, text, text],
            "get_lockspaces": [pointer, pointer, flags],
            "reg_event": [text, pointer, flags],
            "get_event": [integer, flags, pointer, pointer, pointer],
            "end_event": [integer, text, flags],
            "set_event": [text, pointer, flags],
            "set_lvb": [flags, pointer, text, integer],
            "get_lvb": [flags, pointer, pointer, integer],
        }.items():
            function = getattr(loaded, "sanlock_" + name)
            function.argtypes, function.restype = arguments, integer
        loaded.sanlock_strerror.argtypes, loaded.sanlock_strerror.restype = [integer], text
        _prototyped = loaded
    return _prototyped


def _failed(code: int, what: str) -> SanlockException:
    if -200 < code < 0:
        return SanlockException(-code, what, os.strerror(-code))
    return SanlockException(code, what, (_library().sanlock_strerror(code) or b"").decode(errors="replace"))


def _done(code: int, what: str) -> int:
    if code < 0:
        raise _failed(code, what)
    return code


# -- arguments ------------------------------------------------------------------------------------------------------------


def _name(name: bytes) -> bytes:
    if not isinstance(name, bytes):
        raise TypeError(f"Argument type is not bytes: {name!r}")
    if b"\0" in name:
        raise ValueError("embedded null byte")
    if len(name) >= lib.NAME_LEN:
        raise ValueError(f"Name is too long: {name!r}")
    return name


def _path(path: Path, limit: int = lib.PATH_LEN) -> bytes:
    found = os.fsencode(path)
    if b"\0" in found:
        raise ValueError("embedded null byte")
    if len(found) >= limit:
        raise ValueError(f"Path is too long: {found!r}")
    return found


def _geometry(align: int, sector: int) -> int:
    if align not in _ALIGN_FLAGS:
        raise ValueError(f"Invalid align value: {align}")
    if sector not in _SECTOR_FLAGS:
        raise ValueError(f"Invalid sector value: {sector}")
    return _ALIGN_FLAGS[align] | _SECTOR_FLAGS[sector]


def _lockspace(name: bytes, host_id: int, path: Path, offset: int, flags: int = 0) -> lib.Lockspace:
    found = lib.Lockspace()
    found.name, found.host_id, found.flags = _name(name), host_id, flags
    found.host_id_disk.path, found.host_id_disk.offset = _path(path), offset
    return found


def _disk(disk: Any) -> Tuple[bytes, int]:
    if not isinstance(disk, tuple) or len(disk) != 2 or not isinstance(disk[1], int):
        raise ValueError(f"Invalid disk {disk!r}")
    try:
        path = os.fsencode(disk[0])
    except TypeError:
        raise ValueError(f"Invalid disk {disk!r}") from None
    return _path(path), disk[1] & _U64


def _resource(lockspace: bytes, name: bytes, disks: Disks, flags: int = 0) -> Any:
    """struct sanlk_resource with so many disks."""
    if not isinstance(disks, list):
        raise TypeError(f"disks must be list, not {type(disks).__name__}")
    places = [_disk(disk) for disk in disks]

    class Resource(ctypes.Structure):
        _fields_ = [*lib.Resource._fields_[:-1], ("disks", lib.Disk * len(places))]

    found = Resource()
    found.lockspace_name, found.name = _name(lockspace), _name(name)
    found.flags, found.num_disks = flags, len(places)
    for number, (path, offset) in enumerate(places):
        found.disks[number].path, found.disks[number].offset = path, offset
    return found


def _pointer(item: Any) -> Any:
    return ctypes.cast(ctypes.pointer(item), ctypes.POINTER(lib.Resource))


def _pointers(item: Any) -> Any:
    return (ctypes.POINTER(lib.Resource) * 1)(_pointer(item))


def _version(item: Any, version: Optional[int]) -> None:
    if version is not None:
        if version & _U64 == _U64:
            raise _failed(errno.EINVAL, "Unable to convert the version value")
        item.flags |= RES_LVER
        item.lver = version & _U64


def _one_of(slkfd: int, pid: int, code: int) -> None:
    if slkfd == -1 and pid == -1:
        raise _failed(code, "Invalid slkfd and pid values")


def _hosts(found: Any, count: ctypes.c_int) -> List[Dict[str, int]]:
    return [{name: int(getattr(host, name)) for name in _HOST} for host in lib.host_list(found, count.value)]


# -- the binding's functions ----------------------------------------------------------------------------------------------


def register() -> int:
    """Register this process with the daemon: the descriptor of its connection, which holds what is acquired over it."""
    fd = _done(_library().sanlock_register(), "Sanlock registration failed")
    os.set_inheritable(fd, False)
    return fd


def get_alignment(path: Path) -> int:
    """Bytes that a lease takes there: 1 MiB with sectors of 512 bytes, 8 MiB with sectors of 4096."""
    try:
        fd = os.open(_path(path), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            return ALIGN_SIZE[0] if _sector(fd) == SECTOR_SIZE[0] else ALIGN_SIZE[3]
        finally:
            os.close(fd)
    except OSError as error:
        raise _failed(-(error.errno or errno.EIO), "Unable to get device alignment") from None


def _sector(fd: int) -> int:
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        answer = fcntl.ioctl(fd, _BLKSSZGET, b"\0" * 4)
        return int(struct.unpack("=I", answer)[0])
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        try:
            os.preadv(fd, [memoryview(memory)[: SECTOR_SIZE[0]]], 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return SECTOR_SIZE[1]
    return SECTOR_SIZE[0]


def write_lockspace(
    lockspace: bytes,
    path: Path,
    offset: int = 0,
    max_hosts: int = 0,
    iotimeout: int = 0,
    align: int = ALIGN_SIZE[0],
    sector: int = SECTOR_SIZE[0],
) -> None:
    """Format a lockspace. Over one that is in use it ends its hosts."""
    item = _lockspace(lockspace, 0, path, offset, _geometry(align, sector))
    code = _library().sanlock_write_lockspace(ctypes.byref(item), max_hosts, 0, iotimeout)
    _done(code, "Sanlock lockspace write failure")


def read_lockspace(
    path: Path, offset: int = 0, align: int = ALIGN_SIZE[0], sector: int = SECTOR_SIZE[0]
) -> Dict[str, Any]:
    """lockspace and iotimeout of what is formatted there."""
    item, timeout = _lockspace(b"", 0, path, offset, _geometry(align, sector)), ctypes.c_uint32()
    code = _library().sanlock_read_lockspace(ctypes.byref(item), 0, ctypes.byref(timeout))
    _done(code, "Sanlock lockspace read failure")
    return {"lockspace": bytes(item.name), "iotimeout": int(timeout.value)}


def write_resource(
    lockspace: bytes,
    resource: bytes,
    disks: Disks,
    max_hosts: int = 0,
    num_hosts: int = 0,
    clear: bool = False,
    align: int = ALIGN_SIZE[0],
    sector: int = SECTOR_SIZE[0],
) -> None:
    """Format a lease, held or not; with clear, take it away."""
    item = _resource(lockspace, resource, disks, _geometry(align, sector))
    flags = _WRITE_CLEAR if clear else 0
    code = _library().sanlock_write_resource(_pointer(item), max_hosts, num_hosts, flags)
    _done(code, "Sanlock resource write failure")


def read_resource(
    path: Path, offset: int = 0, align: int = ALIGN_SIZE[0], sector: int = SECTOR_SIZE[0]
) -> Dict[str, Any]:
    """lockspace, resource and version of the lease there."""
    item = _resource(b"", b"", [(_path(path), offset)], _geometry(align, sector))
    _done(_library().sanlock_read_resource(_pointer(item), 0), "Sanlock resource read failure")
    return {"lockspace": bytes(item.lockspace_name), "resource": bytes(item.name), "version": int(item.lver)}


def read_resource_owners(
    lockspace: bytes, resource: bytes, disks: Disks, align: int = ALIGN_SIZE[0], sector: int = SECTOR_SIZE[0]
) -> List[Dict[str, int]]:
    """The hosts that own the lease on disk, alive or not."""
    item = _resource(lockspace, resource, disks, _geometry(align, sector))
    found, count = ctypes.POINTER(lib.Host)(), ctypes.c_int()
    code = _library().sanlock_read_resource_owners(_pointer(item), 0, ctypes.byref(found), ctypes.byref(count))
    _done(code, "Unable to read resource owners")
    return _hosts(found, count)


def add_lockspace(
    lockspace: bytes, host_id: int, path: Path, offset: int = 0, iotimeout: int = 0, wait: bool = True
) -> None:
    """Join a lockspace."""
    item = _lockspace(lockspace, host_id, path, offset)
    code = _library().sanlock_add_lockspace_timeout(ctypes.byref(item), 0 if wait else _ASYNC, iotimeout)
    _done(code, "Sanlock lockspace add failure")


def inq_lockspace(lockspace: bytes, host_id: int, path: Path, offset: int = 0, wait: bool = False) -> Optional[bool]:
    """Whether this host is in the lockspace; None while it joins or leaves."""
    item = _lockspace(lockspace, host_id, path, offset)
    code = _library().sanlock_inq_lockspace(ctypes.byref(item), _INQ_WAIT if wait else 0)
    if code == -errno.ENOENT:
        return False
    if code == -errno.EINPROGRESS:
        return None
    return _done(code, "Sanlock lockspace inquire failure") == 0


def rem_lockspace(
    lockspace: bytes, host_id: int, path: Path, offset: int = 0, wait: bool = True, unused: bool = False
) -> None:
    """Leave a lockspace. Whoever holds a lease in it is killed, unless `unused`: then it is EBUSY."""
    item = _lockspace(lockspace, host_id, path, offset)
    flags = (0 if wait else _ASYNC) | (_REM_UNUSED if unused else 0)
    _done(_library().sanlock_rem_lockspace(ctypes.byref(item), flags), "Sanlock lockspace remove failure")


def get_lockspaces() -> List[Dict[str, Any]]:
    """The lockspaces that the daemon is in, joins (LSFLAG_ADD) or leaves (LSFLAG_REM)."""
    found, count = ctypes.POINTER(lib.Lockspace)(), ctypes.c_int()
    code = _library().sanlock_get_lockspaces(ctypes.byref(found), ctypes.byref(count), 0)
    try:
        _done(code, "Sanlock get lockspaces failure")
        return [
            {
                "lockspace": bytes(found[n].name),
                "host_id": int(found[n].host_id),
                "path": os.fsdecode(found[n].host_id_disk.path),
                "offset": int(found[n].host_id_disk.offset),
                "flags": int(found[n].flags),
            }
            for n in range(count.value)
        ]
    finally:
        if found:
            lib.free(found)


def get_hosts(lockspace: bytes, host_id: int = 0) -> List[Dict[str, int]]:
    """The hosts of a lockspace, or one of them, with HOST_* in their flags."""
    found, count = ctypes.POINTER(lib.Host)(), ctypes.c_int()
    call = _library().sanlock_get_hosts
    code = call(_name(lockspace), host_id, ctypes.byref(found), ctypes.byref(count), 0)
    _done(code, "Sanlock get hosts failure")
    return _hosts(found, count)


def acquire(
    lockspace: bytes,
    resource: bytes,
    disks: Disks,
    slkfd: int = -1,
    pid: int = -1,
    shared: bool = False,
    lvb: bool = False,
    version: Optional[int] = None,
) -> None:
    """Acquire a lease over a connection, or for a registered process. Waits for the end of an owner that seems dead."""
    _one_of(slkfd, pid, errno.EINVAL)
    item = _resource(lockspace, resource, disks, RES_SHARED if shared else 0)
    _version(item, version)
    code = _library().sanlock_acquire(slkfd, pid, _ACQUIRE_LVB if lvb else 0, 1, _pointers(item), None)
    _done(code, "Sanlock resource not acquired")


def release(lockspace: bytes, resource: bytes, disks: Disks, slkfd: int = -1, pid: int = -1) -> None:
    """Release a lease."""
    item = _resource(lockspace, resource, disks)
    _done(_library().sanlock_release(slkfd, pid, 0, 1, _pointers(item)), "Sanlock resource not released")


def inquire(slkfd: int = -1, pid: int = -1) -> List[Dict[str, Any]]:
    """What a connection or a registered process holds, by the daemon's memory."""
    _one_of(slkfd, pid, -errno.EINVAL)
    count, address = ctypes.c_int(), ctypes.c_void_p()
    code = _library().sanlock_inquire(slkfd, pid, 0, ctypes.byref(count), ctypes.byref(address))
    try:
        _done(code, "Inquire error")
        state = os.fsdecode(ctypes.string_at(address.value)) if address.value else ""
    finally:
        if address.value:
            lib.free(address)
    return [_held(text) for text in state.split(" ")] if count.value > 0 else []


def _held(text: str) -> Dict[str, Any]:
    # lockspace:resource:path:offset[:path:offset...]:version, SH in place of the version of a shared one
    fields = list(split_fields(text))
    lockspace, resource, *places, version = fields if len(fields) >= 5 else [text, "", ""]
    try:
        shared = version == "SH"
        return {
            "lockspace": os.fsencode(lockspace),
            "resource": os.fsencode(resource),
            "flags": RES_SHARED if shared else RES_LVER,
            "version": 0 if shared else int(version),
            "disks": [(path, int(offset)) for path, offset in zip(places[::2], places[1::2])],
        }
    except ValueError:
        # A name or path with a character that the daemon does not escape.
        raise _failed(-errno.ELIBSCN, "Error parsing inquire state string") from None


def request(
    lockspace: bytes, resource: bytes, disks: Disks, action: int = REQ_GRACEFUL, version: Optional[int] = None
) -> None:
    """Ask the owner of a lease to give it up, or to be killed."""
    item = _resource(lockspace, resource, disks)
    _version(item, version)
    flags = _REQUEST_NEXT_LVER if version is None else 0
    _done(_library().sanlock_request(flags, action, _pointer(item)), "Sanlock request not submitted")


def killpath(path: Path, args: List[Path], slkfd: int = -1) -> None:
    """The program that is run to stop the process of a connection when its lockspace is lost."""
    program = os.fsencode(path)
    if len(program) >= _HELPER_LEN:
        raise _failed(errno.EINVAL, "Killpath path argument too long")
    if not isinstance(args, list):
        raise TypeError(f"args must be list, not {type(args).__name__}")
    words = [os.fsencode(word).replace(b"\\", b"\\\\").replace(b" ", b"\\ ") for word in args]
    line = b" ".join(words)
    if len(line) >= _HELPER_LEN:
        raise _failed(errno.EINVAL, "Killpath arguments are too long")
    _done(_library().sanlock_killpath(slkfd, 0, program, line), "Killpath script not configured")


def reg_event(lockspace: bytes) -> int:
    """A descriptor that is readable when another host has sent an event."""
    return _done(_library().sanlock_reg_event(_name(lockspace), None, 0), "Unable to register event fd")


def get_event(fd: int) -> List[Dict[str, int]]:
    """The events that are there."""
    found: List[Dict[str, int]] = []
    event, host_id, generation = _Event(), ctypes.c_uint64(), ctypes.c_uint64()
    while True:
        places = [ctypes.byref(each) for each in (event, host_id, generation)]
        code = _library().sanlock_get_event(fd, 0, *places)
        if code == -errno.EAGAIN:
            return found
        if code:
            raise _failed(code, "Unable to get events")
        sender = {"from_host_id": int(host_id.value), "from_generation": int(generation.value)}
        found.append({**sender, **{name: int(getattr(event, name)) for name in _EVENT}})


def end_event(fd: int, lockspace: bytes) -> None:
    """End a descriptor of reg_event."""
    _done(_library().sanlock_end_event(fd, _name(lockspace), 0), "Unable to unregister event fd")


def set_event(lockspace: bytes, host_id: int, generation: int, event: int, data: int = 0, flags: int = 0) -> None:
    """Send an event to a host, or with SETEV_ALL_HOSTS to all."""
    item = _Event(host_id, generation, event, data)
    _done(_library().sanlock_set_event(_name(lockspace), ctypes.byref(item), flags), "Unable to set event")


def set_lvb(lockspace: bytes, resource: bytes, disks: Disks, data: bytes) -> None:
    """Write the value block of a lease that was acquired with lvb=True; others see it once it is released."""
    if not isinstance(data, bytes):
        raise TypeError(f"Argument type is not bytes: {data!r}")
    item = _resource(lockspace, resource, disks)
    _done(_library().sanlock_set_lvb(0, ctypes.byref(item), data, len(data)), "Unable to set lvb")


def get_lvb(lockspace: bytes, resource: bytes, disks: Disks, size: int) -> bytes:
    """The first bytes of the value block of a lease that was acquired with lvb=True."""
    if not 0 < size <= _MAX_LVB:
        raise ValueError(f"Invalid size {size}, must be in range: 0 < size <= {_MAX_LVB}")
    item, data = _resource(lockspace, resource, disks), ctypes.create_string_buffer(size)
    _done(_library().sanlock_get_lvb(0, ctypes.byref(item), data, size), "Unable to get lvb")
    return data.raw
