# SPDX-License-Identifier: LGPL-2.1-or-later
"""libvirt's and sanlock's daemons: found by what /proc says, so that it works with systemd and without."""

import glob
import os
import re
import shutil
import signal
import subprocess
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from vmguard import host, paths
from vmguard.errors import Misconfigured
from vmguard.setup import others

# The daemons that start QEMU: one for everything, or one for QEMU alone (the default of newer distributions).
LIBVIRT = ("libvirtd", "virtqemud")

# Seconds. libvirtd ends within one; it may be waiting for a guest's monitor.
STOP = 60.0
# Seconds. libvirtd reconnects to all guests first.
START = 60.0

# __SO_ACCEPTCON (include/linux/net.h): somebody listens.
_ACCEPTS = 1 << 16


class Daemon(NamedTuple):
    """A running daemon. pid and start together are this process and no later one."""

    name: str
    pid: int
    start: int  # clock ticks after boot
    unit: Optional[str]  # of systemd, if systemd runs it


def find(names: Tuple[str, ...]) -> List[Daemon]:
    """The daemons of these names that run as root on this host: not those in containers, not the children they fork."""
    here = _link(os.path.join(others.PROC, "self", "ns", "pid"))
    found: Dict[int, Tuple[Daemon, int]] = {}
    for entry in os.listdir(others.PROC):
        if entry.isdigit():
            seen = _daemon(int(entry), names, here)
            if seen is not None:
                found[seen[0].pid] = seen
    return [daemon for daemon, parent in found.values() if parent not in found]


def runs(daemon: Daemon) -> bool:
    """Whether that very process lives. A zombie does not: nobody may be there to reap it."""
    stat = _stat(daemon.pid)
    return stat is not None and stat[0] not in "ZX" and stat[2] == daemon.start


def started_at(daemon: Daemon) -> float:
    """Seconds since the epoch, to about a hundredth."""
    with open(os.path.join(others.PROC, "stat"), encoding="ascii") as file:
        boot = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    return boot + daemon.start / os.sysconf("SC_CLK_TCK")


def reload(daemon: Daemon) -> None:
    """Let it look anew whether there are hooks. Nothing else of what it does changes."""
    if runs(daemon):
        os.kill(daemon.pid, signal.SIGHUP)


def restart(daemon: Daemon) -> None:
    """
    Stop it and start it as it was started. Guests run on.

    Raises Misconfigured if it does not end, or does not come back.
    """
    if daemon.unit is not None:
        _systemctl("restart", daemon.unit)
        return
    argv, environment, folder, program = _how_started(daemon)
    os.kill(daemon.pid, signal.SIGTERM)
    if not until(lambda: not runs(daemon), STOP):
        raise Misconfigured(daemon.name, f"process {daemon.pid} did not end within {STOP:.0f} s", "restart it by hand")
    process = subprocess.Popen(
        argv,
        executable=program,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def answers() -> bool:
        return any(listens(one) for one in find((daemon.name,)))

    # With -d it goes into the background by itself, and the first process ends.
    until(lambda: answers() or (process.poll() is not None and not find((daemon.name,))), START)
    if not answers():
        command = " ".join(argv)
        raise Misconfigured(daemon.name, "it was stopped and did not start again", f"start it by hand: `{command}`")


def listens(daemon: Daemon) -> bool:
    """Whether it has a socket of the Unix domain that takes connections."""
    links = [_link(path) for path in glob.glob(os.path.join(others.PROC, str(daemon.pid), "fd", "*"))]
    # num, refcount, protocol, flags, type, state, inode, path (proc_net(5))
    lines = [line.split() for line in _read(daemon.pid, "net/unix").decode("utf-8", "replace").splitlines()[1:]]
    return any(f"socket:[{line[6]}]" in links for line in lines if int(line[3], 16) & _ACCEPTS)


def gets_plugin(name: str) -> bool:
    """Whether the daemon of this name has libvirt's sanlock plugin in memory, or soon does."""
    return until(lambda: any(host.libvirt_has_sanlock_plugin(daemon.pid) for daemon in find((name,))), START)


def plugin() -> Optional[str]:
    """Path of libvirt's sanlock plugin, None if it is not installed."""
    paths = [path for pattern in others.PLUGINS for path in glob.glob(pattern)]
    return paths[0] if paths else None


def plugin_package() -> str:
    """The name of the plugin's package, by the distribution's family."""
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        text = ""
    if re.search(r'(?m)^(ID|ID_LIKE)=.*\b(fedora|rhel|centos)\b', text):
        return "libvirt-daemon-plugin-sanlock (older: libvirt-lock-sanlock)"
    if re.search(r'(?m)^ID=debian$', text) and re.search(r'(?m)^VERSION_ID="?(9|1[0-2])\b', text):
        return "libvirt-sanlock"
    return "libvirt-daemon-plugin-sanlock (older: libvirt-sanlock)"


def libvirt_version() -> Optional[Tuple[int, ...]]:
    """The version of the installed libvirt daemon, None if there is none or it does not say."""
    for name in LIBVIRT:
        program = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/usr/local/sbin")
        if program is None:
            continue
        try:
            done = subprocess.run([program, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            continue
        match = re.search(rb"(\d+)\.(\d+)\.(\d+)", done.stdout)
        if match:
            return tuple(int(part) for part in match.groups())
    return None


# Seconds. The agent touches its file every other one.
_AGENT_SILENT = 15.0


def agent_watches() -> bool:
    """Whether vmguardd is at work."""
    try:
        ago = time.time() - os.stat(os.path.join(paths.RUN, "watching.json")).st_mtime
        return abs(ago) < _AGENT_SILENT  # else its clock has been set back since, and nobody has written there
    except OSError:
        return False


def systemd_runs() -> bool:
    """Whether systemd is this host's init."""
    return os.path.isdir(others.SYSTEMD)


def unit_is(word: str, unit: str) -> bool:
    """systemctl is-active or is-enabled."""
    done = subprocess.run(["systemctl", "--quiet", f"is-{word}", unit], stdin=subprocess.DEVNULL, timeout=60)
    return done.returncode == 0


def start_unit(unit: str) -> None:
    """Start a unit. Raises Misconfigured with what systemd says."""
    _systemctl("start", unit)


def enable_unit(unit: str) -> None:
    """Have a unit started at boot. Raises Misconfigured."""
    _systemctl("daemon-reload")
    _systemctl("enable", unit)


def disable_unit(unit: str) -> None:
    """No longer start a unit at boot. Raises Misconfigured."""
    _systemctl("disable", unit)


def stop_unit(unit: str) -> None:
    """Stop a unit, and do not start it at boot any more. Raises Misconfigured."""
    _systemctl("disable", "--now", unit)


def _systemctl(*arguments: str) -> None:
    command = ["systemctl", *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Misconfigured(" ".join(command), str(e)) from None
    if done.returncode:
        why = done.stderr.strip().replace("\n", "; ") or f"exit status {done.returncode}"
        raise Misconfigured(" ".join(command), why, f"see `systemctl status {arguments[-1]}`")


def _daemon(pid: int, names: Tuple[str, ...], here: str) -> Optional[Tuple[Daemon, int]]:
    name = _read(pid, "comm").decode(errors="replace").strip()
    if name not in names:
        return None
    stat = _stat(pid)
    owner = re.search(rb"(?m)^Uid:\s+\d+\s+(\d+)", _read(pid, "status"))
    if stat is None or stat[0] in "ZX" or owner is None or owner.group(1) != b"0":
        return None
    # A container's daemon has its own configuration, hooks and guests. Kernel without namespaces: one for all.
    if _link(os.path.join(others.PROC, str(pid), "ns", "pid")) != here:
        return None
    unit = re.search(r"(?m)/(" + re.escape(name) + r"\.service)$", _read(pid, "cgroup").decode(errors="replace"))
    return Daemon(name, pid, stat[2], unit.group(1) if unit and systemd_runs() else None), stat[1]


def _stat(pid: int) -> Optional[Tuple[str, int, int]]:
    """State, parent and start time: fields 3, 4 and 22 of proc_pid_stat(5). The name before them may hold blanks."""
    text = _read(pid, "stat").decode(errors="replace")
    fields = text[text.rfind(")") + 2 :].split()
    return (fields[0], int(fields[1]), int(fields[19])) if len(fields) > 19 else None


def _how_started(daemon: Daemon) -> Tuple[List[str], Dict[str, str], str, str]:
    argv = [os.fsdecode(part) for part in _read(daemon.pid, "cmdline").split(b"\0")[:-1]]
    environment = {}
    for entry in _read(daemon.pid, "environ").split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals:
            environment[os.fsdecode(name)] = os.fsdecode(value)
    # An update has replaced the program: the new one has the old one's path.
    program = _link(os.path.join(others.PROC, str(daemon.pid), "exe"))
    program = program[: -len(" (deleted)")] if program.endswith(" (deleted)") else program
    folder = _link(os.path.join(others.PROC, str(daemon.pid), "cwd"))
    if not argv or not os.path.isfile(program):
        raise Misconfigured(daemon.name, "how it was started cannot be found out", "restart it by hand")
    return argv, environment, folder if os.path.isdir(folder) else "/", program


def _read(pid: int, name: str) -> bytes:
    try:
        with open(os.path.join(others.PROC, str(pid), name), "rb") as file:
            return file.read()
    except OSError:
        return b""  # it has ended


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def until(true: Callable[[], bool], seconds: float) -> bool:
    """Wait for a state, so long at most; whether it came."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def has_argument(daemon: Daemon, argument: str) -> bool:
    """Whether this stands on the daemon's command line."""
    return argument.encode() in _read(daemon.pid, "cmdline").split(b"\0")
