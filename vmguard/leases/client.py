# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The calls of libsanlock, as Python.

A lease belongs to a connection: it is acquired over one that this process registered, and when the descriptor closes
it becomes an orphan of the host (all leases are acquired PERSISTENT). From there it is adopted for QEMU's pid, or
given back.

Any call hangs as long as the daemon does: callers run with a deadline, in a child. Nobody may fork while registered:
a child's copy of the descriptor keeps the lease. After os.close the daemon needs a moment to see it: until then the
lease still looks held (-EEXIST to adopt, -EBUSY).
"""

import ctypes
import errno
import os
import select
import time
from types import TracebackType

from vmguard._typing import Callable, Dict, Iterator, Optional, Sequence, Tuple, Type
from vmguard.errors import (
    BadRequest,
    CannotTell,
    LeaseDamaged,
    LeaseNewer,
    Misconfigured,
    NotJoined,
    SanlockDown,
    SanlockFailed,
    StoreBroken,
)
from vmguard.leases import HostState, Lease, Lock, Owner, slots, status
from vmguard.leases import _library as lib
from vmguard.leases.status import Facts

# A read meets another command of the same client, or a lockspace that was joined this second: milliseconds, as a rule.
_PATIENCE = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)  # seconds

_NOT_REGISTERED = (-errno.ESRCH, -errno.ESTALE, -errno.ENOTTY)

# What a read of a lease can find wrong with its bytes, or with their version. EINVAL: its sector size is not the one that all
# leases of ours have.
_DAMAGED = (*range(lib.LEADER_CHECKSUM, lib.LEADER_MAGIC + 1), -errno.EMSGSIZE, -errno.EINVAL)
# sanlock's codes for reads and writes that failed or took too long
_IO_FAILED = (lib.AIO_TIMEOUT, -210, -211, lib.LEADER_READ, lib.LEADER_WRITE)
_FILE_FAILED = tuple(-code for code in (errno.ENOENT, errno.EACCES, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENODEV))


def load() -> None:
    """Load sanlock's library now, if it is there: the first call does."""
    try:
        lib.library()
    except Misconfigured:
        pass


def _patiently(call: Callable[[], int]) -> int:
    for pause in _PATIENCE:
        code = call()
        if code not in (-errno.EAGAIN, -errno.EBUSY):
            return code
        time.sleep(pause)
    return call()


def file_failure(call: str, code: int, path: str, about: str) -> CannotTell:
    """
    What a negative result of a call means that had the daemon open a file: SanlockDown, LeaseDamaged or LeaseNewer (about:
    the name in it), StoreBroken or SanlockFailed.
    """
    error = lib.failure(call, code, path)
    if not isinstance(error, SanlockFailed):
        return error
    if code in _IO_FAILED:
        return StoreBroken(path, f"sanlock could not read or write it (code {code})")
    if code in _FILE_FAILED:
        return StoreBroken(path, f"sanlock could not open it: {os.strerror(-code)}")
    if code == lib.LEADER_VERSION:
        return LeaseNewer(path, about)
    # A store on a block device has the sectors of that.
    if code == -errno.EINVAL and os.path.isfile(path) and not _takes_sectors(path):
        return StoreBroken(
            path,
            f"its filesystem does not read and write {lib.SECTOR} bytes past the page cache, as sanlock has to",
            "on ZFS: `zfs set direct=disabled` for the dataset that it lies on, then try again; else have the store elsewhere",
        )
    if code in _DAMAGED:
        return LeaseDamaged(path, about, code)
    return error


def lease_failure(call: str, code: int, lease: Lease, about: str = "") -> CannotTell:
    """The same of a call about a lease, whose bytes tell a version that sanlock does not know from one that is damaged."""
    error = file_failure(call, code, lease.path, about or lease.name)
    if isinstance(error, LeaseNewer) and not slots.may_be_whole(lease):
        return LeaseDamaged(lease.path, error.identity, code)
    return error


def _takes_sectors(path: str) -> bool:
    """
    Whether a file can be read as sanlock does. Not on OpenZFS 2.3, nor on a disk of larger sectors.

    What is wrong with the bytes of a lease shows in the same code.
    """
    import mmap  # memory at the start of a page; rarely needed

    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            os.preadv(file, [mmap.mmap(-1, lib.SECTOR)], 0)
        finally:
            os.close(file)
    except OSError as error:
        return error.errno != errno.EINVAL
    return True


def parse_state(state: str) -> Iterator[Tuple[str, Lock]]:
    """
    The leases in a state string of inquire, each with its lockspace. A shared one has no version: 0.

    Raises SanlockFailed for anything that sanlock does not write.
    """
    for text in state.split(" ") if state else ():
        fields = list(split_fields(text))
        last = fields[-1]
        if len(fields) < 5 or not (last == "SH" or last.isdecimal()):
            raise SanlockFailed("inquire", -errno.EPROTO, text)
        yield fields[0], Lock(fields[1], 0 if last == "SH" else int(last), last == "SH", None)


def split_fields(text: str) -> Iterator[str]:
    """
    The fields of one lease in a state string. Colons separate them; in a path a backslash stands before whatever would be
    taken for a separator.
    """
    field, escaped = "", False
    for character in text:
        if escaped or character not in "\\:":
            field, escaped = field + character, False
        elif character == "\\":
            escaped = True
        else:
            yield field
            field = ""
    yield field


def _inquire(sock: int, pid: int) -> Tuple[int, str]:
    count, address = ctypes.c_int(), ctypes.c_void_p()
    call = lib.library().sanlock_inquire
    code = _patiently(lambda: int(call(sock, pid, 0, ctypes.byref(count), ctypes.byref(address))))
    if not address.value:
        return code, ""
    try:
        return code, os.fsdecode(ctypes.string_at(address.value))
    finally:
        lib.free(address)


def _locks(state: str, lockspace: Optional[str], pid: Optional[int]) -> Dict[str, Lock]:
    found = (pair for pair in parse_state(state) if lockspace in (None, pair[0]))
    return {lock.name: lock._replace(pid=pid) for _, lock in found}


class Connection:
    """
    This process, registered with sanlock, for the time of a `with`. Raises SanlockDown where there is no daemon.

    All that it holds at the end, or at its death, becomes an orphan.
    """

    def __init__(self) -> None:
        self._fd = -1

    def __enter__(self) -> "Connection":
        fd = int(lib.library().sanlock_register())
        if fd < 0:
            raise SanlockDown(-fd)
        os.set_inheritable(fd, False)
        self._fd = fd
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        os.close(self._fd)
        self._fd = -1

    def _failure(self, call: str, code: int, about: str) -> CannotTell:
        gone = select.poll()
        gone.register(self._fd, select.POLLRDHUP)
        # -1 is both "not held" and "the daemon closed in the middle"
        if code in (-errno.ECONNRESET, -errno.EPIPE) or gone.poll(0):
            return SanlockDown(errno.ECONNRESET)
        return SanlockFailed(call, code, about)

    def acquire(self, lease: Lease, shared: bool, outlive: bool = True) -> int:
        """
        Take one lease, to be kept by the host beyond this process, unless it is not to outlive it. Returns the version
        it is held at; 0 for a shared one.

        Never waits for an owner's death. Raises SanlockFailed with sanlock's code for every no: who reads it knows
        what it means for the claim (-243, -244, -245 live owner elsewhere, -247 owner not certainly dead, -EEXIST
        held on this host, -EUCLEAN an orphan of either mode, -EAGAIN shared elsewhere or just being released, -ENOSPC
        not joined).
        """
        return self._acquire(lease, shared, lib.RES_PERSISTENT if outlive else 0, 0)

    def take_up(self, lease: Lease, shared: bool) -> int:
        """
        Take over an orphan of this host, which becomes one again when the connection ends. Returns as `acquire`.

        Where there is none sanlock acquires anew. Raises SanlockFailed (-EUCLEAN: the orphan is of the other mode),
        StoreBroken and LeaseDamaged.
        """
        version(lease)  # as in `adopt`
        return self._acquire(lease, shared, lib.RES_PERSISTENT, lib.ACQUIRE_ORPHAN)

    def convert(self, lease: Lease, shared: bool) -> int:
        """
        Make what this connection holds a shared lease, or an exclusive one. At no moment is it free: who dies over it
        leaves an orphan of the one mode or the other. Returns as `acquire`.

        What other processes of this host hold of it sanlock overlooks. Raises SanlockFailed (-EAGAIN: another host has
        it shared); then it is held as before.
        """
        item = lib.resource(lease, lib.RES_SHARED if shared else 0)
        call = lib.library().sanlock_convert
        code = call(self._fd, -1, lib.ACQUIRE_OWNER_NOWAIT, lib.reference(item))
        if code < 0:
            raise self._failure("convert", code, lease.path)
        return self._version(lease, shared)

    def _acquire(self, lease: Lease, shared: bool, flags: int, call_flags: int) -> int:
        item = lib.resource(lease, flags | (lib.RES_SHARED if shared else 0))
        call_flags |= lib.ACQUIRE_OWNER_NOWAIT
        code = lib.library().sanlock_acquire(self._fd, -1, call_flags, 1, lib.one(item), None)
        if code < 0:
            raise self._failure("acquire", code, lease.path)
        return self._version(lease, shared)

    def _version(self, lease: Lease, shared: bool) -> int:
        held = self.held(lease.lockspace).get(lease.name)
        if held is None or held.shared != shared:
            raise SanlockFailed("acquire", -errno.ENOLCK, lease.path)  # lost again within the millisecond
        return held.lver

    def release(self, lease: Lease, shared: bool = False) -> None:
        """
        Give back what this connection itself acquired. On disk it is free when this returns. Raises SanlockFailed.
        """
        code = lib.library().sanlock_release(
            self._fd, -1, 0, 1, lib.one(lib.resource(lease, lib.RES_SHARED if shared else 0))
        )
        if code < 0:
            raise self._failure("release", code, lease.path)

    def held(self, lockspace: Optional[str] = None) -> Dict[str, Lock]:
        """What this connection holds, by name; of one lockspace, or of all. Raises SanlockDown, SanlockFailed."""
        code, state = _inquire(self._fd, -1)
        if code < 0:
            raise self._failure("inquire", code, "")
        return _locks(state, lockspace, os.getpid())

    def give_back(self, lease: Lease) -> bool:
        """
        Release an orphan of this host: False if there is none of that name. It is free on disk a few milliseconds later
        (until then acquire answers -EAGAIN). Raises SanlockDown, SanlockFailed.
        """
        # Over a connection of one's own: without, sanlock answers EBUSY. The name is never empty here (resource()
        # sees to that): an empty one would release every orphan of the lockspace.
        code = lib.library().sanlock_release(self._fd, -1, lib.REL_ORPHAN, 1, lib.one(lib.resource(lease)))
        if code < 0:
            raise self._failure("release orphan", code, lease.path)
        return int(code) > 0


def _pid(pid: int) -> int:
    if pid <= 0:
        raise BadRequest(f"{pid} is no process")
    return pid


def adopt(pid: int, leases: Sequence[Lease]) -> None:
    """
    Give exclusive orphans to a registered process: from now on they are released when it ends.

    One call for each: in one for several, sanlock's roll-back after a failure frees those already adopted while their
    guest runs. Where no orphan is left sanlock acquires anew: compare the versions in `held_by` afterwards. Stops at
    the first failure with SanlockFailed (-ESRCH: the process is not registered; -EUCLEAN: the orphan is a shared
    one), StoreBroken or LeaseDamaged; what was adopted until then stays adopted.
    """
    _pid(pid)
    flags = lib.ACQUIRE_ORPHAN | lib.ACQUIRE_OWNER_NOWAIT
    for lease in leases:
        item = lib.resource(lease)
        # An adoption whose open fails leaves the lease owned on disk and unknown to the daemon: see first that it can
        # be opened.
        version(lease)
        code = lib.library().sanlock_acquire(-1, pid, flags, 1, lib.one(item), None)
        if code < 0:
            raise lib.failure("adopt", code, lease.path)


def release_of(pid: int, lease: Lease) -> None:
    """Release a lease that a registered process has. Nothing happens where it has none. Raises SanlockFailed."""
    code = lib.library().sanlock_release(-1, _pid(pid), 0, 1, lib.one(lib.resource(lease)))
    # EPERM, ENOENT: it does not hold that one
    if code < 0 and code not in (-errno.EPERM, -errno.ENOENT):
        raise lib.failure("release", code, lease.path)


def request_end(lease: Lease, lver: int) -> None:
    """
    Ask the host that owns the lease at this version to kill the process that has it. Heeded when that host's sanlock renews
    the next time, within some io_timeouts; not for orphans. Raises LeaseDamaged, StoreBroken, SanlockFailed, SanlockDown.
    """
    item = lib.resource(lease)
    # A request asks for the next version, and lapses when somebody has got it.
    item.lver = lver + 1
    code = lib.library().sanlock_request(0, lib.REQ_FORCE, ctypes.byref(item))
    if code < 0:
        raise lib.failure("request", code, lease.path)


def held_by(pid: int, lockspace: Optional[str] = None) -> Dict[str, Lock]:
    """What a registered process holds, by name. Raises SanlockFailed (-ESRCH: it is not registered), SanlockDown."""
    code, state = _inquire(-1, _pid(pid))
    if code < 0:
        raise lib.failure("inquire", code, str(pid))
    return _locks(state, lockspace, pid)


def registered(pid: int) -> bool:
    """Whether a process is registered with sanlock. Raises SanlockDown, SanlockFailed."""
    code, _ = _inquire(-1, _pid(pid))
    if code < 0 and code not in _NOT_REGISTERED:
        raise lib.failure("inquire", code, str(pid))
    return code >= 0


def owners(lease: Lease) -> Tuple[Owner, ...]:
    """
    Who owns the lease on disk, each exclusively or shared, dead or alive: compare with `hosts`.

    A host that is just acquiring it shared shows for some milliseconds as its exclusive owner. Raises LeaseDamaged,
    StoreBroken, SanlockDown, SanlockFailed.
    """
    item = lib.resource(lease, lib.sizes(lease.sector))
    found, count = ctypes.POINTER(lib.Host)(), ctypes.c_int()
    call = lib.library().sanlock_read_resource_owners
    code = _patiently(lambda: int(call(ctypes.byref(item), 0, ctypes.byref(found), ctypes.byref(count))))
    if code < 0:
        raise lease_failure("read owners", code, lease)
    # Only an exclusive owner is in the leader record, which has a timestamp.
    return tuple(
        Owner(int(host.host_id), int(host.generation), shared=host.timestamp == 0)
        for host in lib.host_list(found, count.value)
    )


def version(lease: Lease) -> int:
    """
    The lease's version on disk: it grows with each acquire.

    Raises LeaseDamaged where there are other bytes than a lease of this name, StoreBroken where sanlock cannot open
    or read it, SanlockDown, SanlockFailed.
    """
    item = lib.resource(lease, lib.sizes(lease.sector))
    code = _patiently(lambda: int(lib.library().sanlock_read_resource(ctypes.byref(item), 0)))
    if code < 0:
        raise lease_failure("read", code, lease)
    return int(item.lver)


def format_lease(lease: Lease) -> None:
    """
    Make the lease's place on disk a free lease, whatever was there. Raises StoreBroken, SanlockDown, SanlockFailed.
    """
    item = lib.resource(lease, lib.sizes(lease.sector))
    code = lib.library().sanlock_write_resource(ctypes.byref(item), 0, 0, 0)
    if code < 0:
        raise file_failure("format", code, lease.path, lease.name)


def _not_joined(lockspace: str) -> NotJoined:
    joining = any(space.name == lockspace and space.state == "joining" for space in status.status().spaces)
    return NotJoined(lockspace, joining)


def hosts(lockspace: str) -> Tuple[HostState, ...]:
    """
    The hosts that were ever seen alive in the lockspace, by host id.

    Raises NotJoined, also for the first moments after a join, when sanlock has not looked at the others yet;
    SanlockDown, SanlockFailed.
    """
    name = lib.lockspace(lockspace, 0, "/").name
    found, count = ctypes.POINTER(lib.Host)(), ctypes.c_int()
    call = lib.library().sanlock_get_hosts
    code = _patiently(lambda: int(call(name, 0, ctypes.byref(found), ctypes.byref(count), 0)))
    if code == -errno.EAGAIN:
        raise NotJoined(lockspace, joining=True)
    if code < 0:
        error = lib.failure("get hosts", code, lockspace)
        raise _not_joined(lockspace) if code == -errno.ENOENT and isinstance(error, SanlockFailed) else error
    return tuple(
        HostState(
            int(host.host_id),
            int(host.generation),
            lib.HOST_STATES.get(host.flags & lib.HOST_MASK, "unknown"),
            int(host.timestamp),
        )
        for host in lib.host_list(found, count.value)
    )


def joined(
    lockspace: str, host_id: int, path: str, offset: int = 0, sector: int = lib.SECTOR
) -> Optional[bool]:
    """
    Whether this host is in the lockspace, with that host id and place; None while it joins or leaves.

    Raises SanlockDown, SanlockFailed.
    """
    item = lib.lockspace(lockspace, host_id, path, offset, sector)
    code = lib.library().sanlock_inq_lockspace(ctypes.byref(item), 0)
    if code == -errno.EINPROGRESS:
        return None
    if code < 0:
        error = lib.failure("inquire lockspace", code, lockspace)
        if code != -errno.ENOENT or isinstance(error, SanlockDown):
            raise error
    return bool(code == 0)


def locks(lockspace: str) -> Tuple[Lock, ...]:
    """
    Every lease of the lockspace that this host holds, orphans too; a shared one once for each process. Not those that
    are just being acquired or freed. Raises SanlockDown, SanlockFailed.
    """
    return tuple(lock for space, lock in status.status().held if space == lockspace)


def orphans(lockspace: str) -> Tuple[Lock, ...]:
    """The leases that the host holds for no living process. Raises as `locks`."""
    return tuple(lock for lock in locks(lockspace) if lock.pid is None)


def used_by_orphans(lockspace: str, on: bool) -> None:
    """
    Whether the loss of the lockspace resets the host (by its watchdog) as long as there are orphans in it.

    Raises NotJoined, SanlockDown, SanlockFailed.
    """
    command = lib.CONFIG_USED_BY_ORPHANS if on else lib.CONFIG_UNUSED_BY_ORPHANS
    code = lib.library().sanlock_set_config(lib.lockspace(lockspace, 0, "/").name, 0, command, None)
    if code < 0:
        error = lib.failure("set config", code, lockspace)
        if code in (-errno.ENOENT, -errno.ENOSPC) and isinstance(error, SanlockFailed):
            raise _not_joined(lockspace)
        raise error


def daemon_facts() -> Facts:
    """What the daemon says about itself. Raises SanlockDown, SanlockFailed."""
    return status.status().daemon


def format_lockspace(name: str, path: str, io_timeout: int, offset: int = 0, sector: int = lib.SECTOR) -> None:
    """
    Make a file, or a place of a device, a lockspace in which nobody is, whatever was there. Raises StoreBroken,
    SanlockDown, SanlockFailed.
    """
    item = lib.lockspace(name, 0, path, offset, sector)
    code = lib.library().sanlock_write_lockspace(ctypes.byref(item), 0, 0, io_timeout)
    if code < 0:
        raise file_failure("format lockspace", code, path, name)


def check_lockspace(name: str, path: str, offset: int = 0, sector: int = lib.SECTOR) -> None:
    """
    That the lockspace of this name is there.

    Raises LeaseDamaged where it is none, or another, StoreBroken, SanlockDown, SanlockFailed.
    """
    item, timeout = lib.lockspace(name, 1, path, offset, sector), ctypes.c_uint32()
    code = _patiently(lambda: int(lib.library().sanlock_read_lockspace(ctypes.byref(item), 0, ctypes.byref(timeout))))
    if code < 0:
        raise file_failure("read lockspace", code, path, name)
