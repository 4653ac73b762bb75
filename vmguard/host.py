# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host: who it is, which boot this is, which processes and which QEMUs run on it."""

import os

from vmguard._light import re, sha256
from vmguard._typing import Dict, List, NamedTuple, Optional, Tuple
from vmguard.errors import Misconfigured, Unresolvable

# Where the facts come from; a test points them elsewhere.
PROC = "/proc"
MACHINE_ID = "/etc/machine-id"
PRODUCT_UUID = "/sys/class/dmi/id/product_uuid"  # readable by root alone; not on every architecture


class HostKey(NamedTuple):
    """Which machine this is, across boots and renames."""

    machine: str  # 16 hexadecimal digits
    name: str  # its host name now, for people


class Process(NamedTuple):
    """A process, told apart from a later one of the same number."""

    pid: int
    start: int  # clock ticks after boot


class Qemu(NamedTuple):
    """A QEMU that runs a guest."""

    process: Process
    uuid: str  # lower case; empty where its arguments name none
    name: str  # empty likewise
    incoming: bool  # it was started to receive a guest; stays so after it has


def read(path: str) -> Optional[bytes]:
    """The whole of a small file; None where it cannot be read (any more)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, 65536)
        while True:
            more = os.read(fd, 65536) if data else b""
            if not more:
                return data
            data += more
    except OSError:
        return None
    finally:
        os.close(fd)


def name() -> str:
    """The host's own name."""
    return os.uname().nodename


def key() -> HostKey:
    """
    Which machine this is. To be asked as root: others cannot read the product's uuid and get another answer.

    Two machines cloned from one image share it where their firmware does not tell them apart. Raises Misconfigured
    without a machine id.
    """
    machine_id = (read(MACHINE_ID) or b"").strip()
    if not re.fullmatch(
        rb"[0-9a-f]{32}", machine_id
    ):  # machine-id(5): "uninitialized", or empty, before the first boot
        raise Misconfigured(MACHINE_ID, "this host has no machine id", "run `systemd-machine-id-setup`")
    product = (read(PRODUCT_UUID) or b"").strip().lower()
    return HostKey(sha256(machine_id + b"\n" + product).hexdigest()[:16], name())


def boot_id() -> str:
    """One string for this boot. Raises Unresolvable."""
    path = os.path.join(PROC, "sys/kernel/random/boot_id")
    data = read(path)
    if not data:
        raise Unresolvable(path, "it cannot be read")
    return data.decode("ascii", "replace").strip()


def _stat(path: str) -> Optional[Tuple[str, int]]:
    """State and start of a process or thread: fields 3 and 22 of its stat file, see proc(5)."""
    data = read(path)
    # The second field is the name in brackets, and a name may hold brackets and blanks of its own.
    fields = data.rpartition(b") ")[2].split() if data else []
    if len(fields) < 20:
        return None
    return fields[0].decode("ascii", "replace"), int(fields[19])


def began() -> float:
    """When this process's parent began, as seconds on the clock of processes (CLOCK_BOOTTIME), to a hundredth."""
    found = _stat(f"{PROC}/{os.getppid()}/stat")
    return found[1] / os.sysconf("SC_CLK_TCK") if found is not None else 0.0


_DEAD = ("Z", "X", "x")


def process(pid: int) -> Optional[Process]:
    """
    The process that has this number now, dead ones included until their parent has seen it; None if there is none.
    """
    found = _stat(f"{PROC}/{int(pid)}/stat")
    return None if found is None else Process(pid, found[1])


def alive(one: Process) -> bool:
    """
    Whether this very process still runs. A process whose first thread has ended does, while another one is left:
    killed, but with a write under way.
    """
    found = _stat(f"{PROC}/{one.pid}/stat")
    if found is None or found[1] != one.start:
        return False
    return found[0] not in _DEAD or bool(threads(one.pid))


def stopped(one: Process) -> bool:
    """Whether this very process was stopped by a signal, and has not been let go on."""
    return _stat(f"{PROC}/{one.pid}/stat") == ("T", one.start)


def threads(pid: int) -> List[str]:
    """The directories in /proc of the living threads of a process."""
    base = f"{PROC}/{pid}/task"
    try:
        threads = os.listdir(base)
    except OSError:
        return []
    states = ((f"{base}/{thread}", _stat(f"{base}/{thread}/stat")) for thread in threads)
    return [path for path, state in states if state is not None and state[0] not in _DEAD]


def children(parent: int) -> List[int]:
    """The processes that a process has begun and that have not been adopted by another."""
    try:
        pids = [int(entry) for entry in os.listdir(PROC) if entry.isdecimal()]
    except OSError:
        return []
    return [pid for pid in pids if _parent(pid) == parent]


def _parent(pid: int) -> int:
    """The process that has begun this one; 0 for one that is gone, or that nobody has begun."""
    data = read(f"{PROC}/{pid}/stat")
    fields = data.rpartition(b") ")[2].split() if data else []  # as in _stat; the fourth is the parent
    return int(fields[1]) if len(fields) > 1 else 0


def parents(pid: int) -> List[int]:
    """The process that has begun this one, that one's, and so on up."""
    found: List[int] = []
    pid = _parent(pid)
    while pid > 1:
        found.append(pid)
        pid = _parent(pid)
    return found


def owner(pid: int) -> Optional[int]:
    """The user that a process runs as; None if it is gone."""
    try:
        return os.stat(f"{PROC}/{pid}").st_uid
    except OSError:
        return None


def _arguments(pid: str) -> Tuple[str, ...]:
    data = read(f"{PROC}/{pid}/cmdline")
    if not data:
        # A kernel thread, or a dead first thread: then the others still have the arguments.
        found = _stat(f"{PROC}/{pid}/stat") if data is not None else None
        if found is None or found[0] not in _DEAD:
            return ()
        left = threads(int(pid))
        data = read(f"{left[0]}/cmdline") if left else None
    if not data or (b"-uuid\0" not in data and b"-name\0" not in data):
        return ()
    return tuple(os.fsdecode(argument) for argument in data.rstrip(b"\0").split(b"\0"))


_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_PROGRAM = re.compile(r"(qemu-(system-.+|kvm)|kvm)")


def _option(arguments: Tuple[str, ...], wanted: str) -> str:
    value = ""
    for i in range(1, len(arguments) - 1):
        if arguments[i] in ("-" + wanted, "--" + wanted):
            value = arguments[i + 1]  # of several the last counts
    return value


def _guest(value: str) -> str:
    """The guest's name in the value of -name: "guest=NAME,key=value" or "NAME,key=value", with commas in it doubled."""
    parts = value.replace(",,", "\0").split(",")
    keys: Dict[str, str] = dict(part.partition("=")[::2] for part in parts if "=" in part)
    first = parts[0] if "=" not in parts[0] else ""
    return keys.get("guest", first).replace("\0", ",")


def _qemu(arguments: Tuple[str, ...]) -> Optional[Tuple[str, str]]:
    """
    uuid and name, if this is a QEMU with a guest.

    libvirt's <emulator> may be called anything: by its arguments, then. Named otherwise than QEMU, it must have both as
    libvirt gives them.
    """
    uuid, naming = _option(arguments, "uuid").lower(), _option(arguments, "name")
    uuid = uuid if _UUID.fullmatch(uuid) else ""
    called_so = _PROGRAM.fullmatch(os.path.basename(arguments[0])) is not None
    if (called_so and (uuid or naming)) or (uuid and naming.startswith("guest=")):
        return uuid, _guest(naming)
    return None


def qemu_processes() -> Tuple[Qemu, ...]:
    """Every QEMU on this host, whoever started it. Those that come or go meanwhile may be in it or not."""
    found = []
    try:
        pids = os.listdir(PROC)
    except OSError as error:
        raise Unresolvable(PROC, error.strerror or str(error)) from error
    for pid in pids:
        one = qemu(int(pid)) if pid.isdecimal() else None
        if one is not None:
            found.append(one)
    return tuple(sorted(found))


def qemu(pid: int) -> Optional[Qemu]:
    """The QEMU that has this number; None if it is none, or gone."""
    arguments = _arguments(str(pid))
    names = _qemu(arguments) if arguments else None
    one = process(pid) if names else None
    if not names or one is None or _only_cleans_up(pid):
        return None
    incoming = any(argument in ("-incoming", "--incoming") for argument in arguments)
    return Qemu(one, names[0], names[1], incoming)


def _only_cleans_up(pid: int) -> bool:
    """
    Whether it is the second process of a QEMU with `-run-with async-teardown=on`, which has its arguments and its memory and
    nothing open: it waits for QEMU's end to give back the memory, and can write nothing.
    """
    if not (read(f"{PROC}/{pid}/comm") or b"").startswith(b"cleanup/"):  # QEMU's util/async-teardown.c
        return False
    try:
        return not os.listdir(f"{PROC}/{pid}/fd")
    except OSError:
        return False


def is_incoming(pid: int) -> bool:
    """Whether this QEMU was started to receive a guest."""
    return any(argument in ("-incoming", "--incoming") for argument in _arguments(str(int(pid))))


def libvirt_has_sanlock_plugin(pid: int) -> Optional[bool]:
    """Whether this libvirtd or virtqemud has loaded its sanlock lock driver; None where that cannot be seen."""
    maps = read(f"{PROC}/{int(pid)}/maps")
    if not maps:
        return None
    return b"/lock-driver/sanlock.so" in maps
