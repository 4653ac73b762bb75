# SPDX-License-Identifier: LGPL-2.1-or-later
"""
libsanlock_client as it lies in memory: structures, constants, prototypes.

The library is LGPL, depends on libc alone, and has kept its soname and these structures from 3.8 to 5.1. Sources of
the numbers: sanlock.h, sanlock_resource.h, sanlock_admin.h.
"""

import ctypes
import errno
import os

from vmguard._typing import Any, List, Optional
from vmguard.errors import BadRequest, CannotTell, Misconfigured, SanlockDown, SanlockFailed
from vmguard.leases import Lease

SONAME = "libsanlock_client.so.1"

NAME_LEN = 48  # SANLK_NAME_LEN, with the zero at its end: a name of 48 crashes inquire
PATH_LEN = 1024  # SANLK_PATH_LEN, with the zero at its end and the escapes that our paths have none of

ALIGN = 1 << 20  # bytes of a lockspace or lease: room for 2000 hosts with sectors of 512 bytes, for 250 with 4096
SECTOR = 512  # bytes; of a file, whatever lies under it

RES_SHARED = 0x4
RES_PERSISTENT = 0x8
# Without these the daemon guesses from the record it reads, and takes the size of a damaged one at its word.
_ALIGN1M = 0x10  # SANLK_RES_ALIGN1M, SANLK_LSF_ALIGN1M
_SECTORS = {512: 0x100, 4096: 0x200}  # SANLK_RES_SECTOR512, _SECTOR4K, and the same as SANLK_LSF_

ACQUIRE_ORPHAN = 0x2
ACQUIRE_OWNER_NOWAIT = 0x8  # SANLK_CONVERT_OWNER_NOWAIT, too
REL_ORPHAN = 0x4

REM_UNUSED = 0x2

REQ_FORCE = 1  # SANLK_REQ_FORCE: the owner's daemon kills the process that has it

CONFIG_USED_BY_ORPHANS = 0x4
CONFIG_UNUSED_BY_ORPHANS = 0x8

HOST_MASK = 0xF
HOST_STATES = {1: "unknown", 2: "free", 3: "live", 4: "fail", 5: "dead"}

# sanlock_rv.h
AIO_TIMEOUT = -202
WD_ERROR = -203
LEADER_READ, LEADER_WRITE = -220, -221
LEADER_MAGIC, LEADER_VERSION, LEADER_CHECKSUM = -223, -224, -229
ACQUIRE_IDLIVE, ACQUIRE_OWNED_RETRY = -243, -247
HOSTID_BUSY = -262

# What sanlock can take and inquire can give back. A blank or a colon in a name crashes inquire; a backslash in a path
# is dropped on the way.
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_PATH = frozenset(map(chr, range(ord("!"), ord("~") + 1))) - {":", "\\"}  # printable ASCII without blank


class Disk(ctypes.Structure):
    """struct sanlk_disk"""

    _fields_ = [
        ("path", ctypes.c_char * PATH_LEN),
        ("offset", ctypes.c_uint64),
        ("pad1", ctypes.c_uint32),
        ("pad2", ctypes.c_uint32),
    ]


class Resource(ctypes.Structure):
    """struct sanlk_resource, with the one disk that our leases have."""

    _fields_ = [
        ("lockspace_name", ctypes.c_char * NAME_LEN),
        ("name", ctypes.c_char * NAME_LEN),
        ("lver", ctypes.c_uint64),
        ("data64", ctypes.c_uint64),
        ("data32", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("num_disks", ctypes.c_uint32),
        ("disk", Disk),
    ]


class Lockspace(ctypes.Structure):
    """struct sanlk_lockspace"""

    _fields_ = [
        ("name", ctypes.c_char * NAME_LEN),
        ("host_id", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("host_id_disk", Disk),
    ]


class Host(ctypes.Structure):
    """struct sanlk_host"""

    _fields_ = [
        ("host_id", ctypes.c_uint64),
        ("generation", ctypes.c_uint64),
        ("timestamp", ctypes.c_uint64),
        ("io_timeout", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


_library: Optional[Any] = None


def library() -> Any:
    """The library, loaded once. Raises Misconfigured where it is not installed."""
    global _library
    if _library is None:
        try:
            loaded = ctypes.CDLL(SONAME)
        except OSError as error:
            raise Misconfigured(SONAME, str(error), "install sanlock and its client library") from error
        integer, flags, text = ctypes.c_int, ctypes.c_uint32, ctypes.c_char_p
        count, resource, lockspace = (ctypes.POINTER(t) for t in (ctypes.c_int, Resource, Lockspace))
        word, hosts = ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(ctypes.POINTER(Host))
        # resource pointers: an array of one
        one = ctypes.POINTER(resource)
        prototypes = {
            "register": [],
            "acquire": [integer, integer, flags, integer, one, ctypes.c_void_p],
            "release": [integer, integer, flags, integer, one],
            "convert": [integer, integer, flags, resource],
            # the reply as an address: it must be freed
            "inquire": [integer, integer, flags, count, ctypes.POINTER(ctypes.c_void_p)],
            "read_resource": [resource, flags],
            "read_resource_owners": [resource, flags, hosts, count],
            "write_resource": [resource, integer, integer, flags],
            "read_lockspace": [lockspace, flags, word],
            "write_lockspace": [lockspace, integer, flags, flags],
            "add_lockspace_timeout": [lockspace, flags, flags],
            "inq_lockspace": [lockspace, flags],
            "rem_lockspace": [lockspace, flags],
            "get_hosts": [text, ctypes.c_uint64, hosts, count, flags],
            "set_config": [text, flags, flags, ctypes.c_void_p],
            "request": [flags, flags, resource],
            "version": [flags, word, word],
        }
        for name, arguments in prototypes.items():
            function = getattr(loaded, "sanlock_" + name)
            function.argtypes, function.restype = arguments, integer
        _library = loaded
    return _library


def free(address: Any) -> None:
    """Give memory back that the library allocated."""
    libc = ctypes.CDLL(None)
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    libc.free(ctypes.cast(address, ctypes.c_void_p))


def name_fits(name: str) -> bool:
    """Whether sanlock can take this as the name of a lockspace or lease."""
    return 0 < len(name) < NAME_LEN and _NAME.issuperset(name)


def path_fits(path: str) -> bool:
    """Whether sanlock can take this as the path of a lockspace or lease."""
    return path.startswith("/") and len(path) < PATH_LEN and _PATH.issuperset(path)


def sizes(sector: int) -> int:
    """The flags of a lockspace or lease that say how it lies on the disk. Raises BadRequest for what sanlock cannot do."""
    if sector not in _SECTORS:
        raise BadRequest(f"sanlock knows no sectors of {sector} bytes")
    return _ALIGN1M | _SECTORS[sector]


def resource(lease: Lease, flags: int = 0) -> Resource:
    """
    The lease as the library wants it. Raises BadRequest for one that would crash sanlock, or mean another than it
    says.
    """
    if not (name_fits(lease.lockspace) and name_fits(lease.name) and path_fits(lease.path)):
        raise BadRequest(f"sanlock cannot take the lease {lease.name!r} of {lease.lockspace!r} in {lease.path!r}")
    if lease.offset < 0 or lease.offset % ALIGN:
        raise BadRequest(f"the offset {lease.offset} in {lease.path} is no multiple of {ALIGN}")
    found = Resource()
    found.lockspace_name, found.name = lease.lockspace.encode(), lease.name.encode()
    # Of sectors of 512 the daemon makes sure by itself.
    found.flags, found.num_disks = flags | (sizes(lease.sector) if lease.sector != SECTOR else 0), 1
    found.disk.path, found.disk.offset = lease.path.encode(), lease.offset
    return found


def one(item: Resource) -> Any:
    """An array of pointers with this one in it."""
    return (ctypes.POINTER(Resource) * 1)(ctypes.pointer(item))


def lockspace(name: str, host_id: int, path: str, offset: int = 0, sector: int = SECTOR) -> Lockspace:
    """The lockspace as the library wants it; one that is only named needs no place. Raises BadRequest."""
    if not (name_fits(name) and path_fits(path)):
        raise BadRequest(f"sanlock cannot take the lockspace {name!r} in {path!r}")
    if not 0 <= host_id <= 2000:  # what 1 MiB of 512-byte sectors has room for, beside the lease's own records
        raise BadRequest(f"{host_id} is no host id: they go from 1 to 2000")
    found = Lockspace()
    found.name, found.host_id, found.flags = name.encode(), host_id, sizes(sector)
    found.host_id_disk.path, found.host_id_disk.offset = path.encode(), offset
    return found


def host_ids(sector: int) -> range:
    """The host ids that a lockspace of 1 MiB has records for."""
    return range(1, 2001 if sector == SECTOR else 251)


def reference(item: Any) -> Any:
    """A structure as an argument."""
    return ctypes.byref(item)


def host_list(hosts: Any, count: int) -> List[Host]:
    """Copy and free an array of hosts that the library allocated."""
    if not hosts:
        return []
    try:
        return [Host.from_buffer_copy(hosts[i]) for i in range(count)]
    finally:
        free(hosts)


# Codes that say that the daemon could not be reached, or something about a file: only asking the daemon again can tell.
_PERHAPS_DOWN = (-errno.ENOENT, -errno.EACCES, -errno.ECONNREFUSED, -errno.EPERM)
_BROKE_OFF = (-errno.ECONNRESET, -errno.EPIPE)


def failure(call: str, code: int, about: str = "") -> CannotTell:
    """The error that a negative result of a call over a connection of its own means."""
    if code in _BROKE_OFF:
        return SanlockDown(-code)
    if code in _PERHAPS_DOWN:
        answer = daemon_answer()
        if answer < 0:
            return SanlockDown(-answer)
    return SanlockFailed(call, code, about)


def daemon_answer() -> int:
    """0 where the daemon answers, else a negative errno. Hangs with a daemon that hangs."""
    version, protocol = ctypes.c_uint32(), ctypes.c_uint32()
    return int(library().sanlock_version(0, ctypes.byref(version), ctypes.byref(protocol)))


def run_dir() -> str:
    """Where the daemon's socket is. The library reads the variable once a process: it must not change later."""
    return os.environ.get("SANLOCK_RUN_DIR", "/run/sanlock")
