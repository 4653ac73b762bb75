# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Real hosts on one machine: libvirtd, QEMU and sanlock, each host in namespaces of its own.

A Cluster is a folder on a real disk (sanlock needs O_DIRECT), a switch, and Hosts. What a host keeps over a reboot lies in
the folder; what it loses is on tmpfs. Everything ends with the process that made it, however that ends; what stays on disk
(the folder, loop devices) is swept by the next run: a folder belongs to whoever holds the lock in it.

All hosts share one kernel. QEMU's own image locks therefore reach across hosts, as they do not in a real cluster on block
devices; `Cluster.block_device` gives each host a node of its own where that matters.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import time
import uuid
from contextlib import contextmanager
from typing import Callable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, TypeVar

from guests import Guest

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(os.path.dirname(HERE))
# Not /tmp, which may be a tmpfs: kernels before 6.6 refuse O_DIRECT there.
BASE = os.environ.get("VMGUARD_RIG_BASE", "/var/tmp/vmguard-rig")
# A sanlock host is surely dead after 8 * io_timeout + 60 s; the join takes 2 * io_timeout + 1 s.
IO_TIMEOUT = 1
# What libvirt finds out about QEMU in 7 s: the same on each host, and in the next run.
CACHE = os.path.join(BASE, "cache")
QEMU_USER, QEMU_GROUP = "nobody", "nogroup"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}
PR_SET_PDEATHSIG = 1  # linux/prctl.h

T = TypeVar("T")


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def eventually(ask: Callable[[], T], what: str, within: float = 15, every: float = 0.02) -> T:
    """The first true answer of ask(); AssertionError with the last answer after `within` seconds."""
    end = time.monotonic() + within
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {within} s: {what} (last answer: {answer!r})")
        time.sleep(every)


def command(*arguments: str) -> str:
    """Run on the machine itself; the output. RuntimeError with its words where it fails."""
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stdout.strip()}")
    return done.stdout


class Done(NamedTuple):
    """A command that has ended on a host."""

    status: int
    out: str
    err: str
    seconds: float


class HookCall(NamedTuple):
    """One call of the hooks, as a second script in qemu.d saw it."""

    domain: str
    operation: str
    sub: str
    extra: str


class Held(NamedTuple):
    """A lease as `sanlock client status` lists it."""

    name: str
    shared: bool
    pid: Optional[int]  # None: an orphan


HOOK_LOG = "/var/log/rig-hooks.log"
# Four fields a call, each ended by NUL: names may hold anything else. ${1+x} forms keep it a single write.
LOG_HOOK = f"""#!/bin/sh
printf '%s\\0%s\\0%s\\0%s\\0' "$1" "$2" "$3" "$4" >>{HOOK_LOG}
exec cat >/dev/null
"""
FILTERS = ("migrate", "restore")  # their output replaces the XML
LOG_HOOK = LOG_HOOK.replace("exec cat >/dev/null", 'case "$2" in migrate|restore) exec cat;; esac\nexec cat >/dev/null')


class Host:
    """One host. `boot` brings it up, `power_cut` takes it away between two instructions."""

    def __init__(self, cluster: "Cluster", number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.name = f"node{number}"
        self.address = f"10.99.0.{number}"
        self.folder = os.path.join(cluster.folder, self.name)
        self.pid = 0  # of its first process, 0 while it is off
        self.was_on = False  # whether it should be on now: tests switch hosts off
        self._unshare: Optional[subprocess.Popen[bytes]] = None
        self._make_disk()

    def __repr__(self) -> str:
        return self.name

    # -- what lies on its disk ------------------------------------------------------------------------------------------

    PERSISTENT = (
        "/etc/libvirt",
        "/etc/vmguard",
        "/etc/sanlock",
        "/etc/default",
        "/var/lib/libvirt",
        "/var/lib/vmguard",
        "/var/log",
    )

    def _make_disk(self) -> None:
        for target in self.PERSISTENT:
            os.makedirs(self.folder + target)
            os.makedirs(target, exist_ok=True)
        shutil.copytree("/etc/libvirt", self.folder + "/etc/libvirt", dirs_exist_ok=True)
        shutil.copytree("/etc/default", self.folder + "/etc/default", dirs_exist_ok=True)
        shutil.rmtree(self.folder + "/etc/libvirt/qemu/networks", ignore_errors=True)
        if self.cluster.tree and os.path.isdir(self.cluster.tree + "/etc"):
            shutil.copytree(self.cluster.tree + "/etc", self.folder + "/etc", dirs_exist_ok=True)
        self._write("/etc/machine-id", uuid.uuid4().hex + "\n")
        self._write("/etc/hosts", "127.0.0.1 localhost\n" + "".join(f"10.99.0.{n} node{n}\n" for n in range(1, 10)))
        self._write("/etc/resolv.conf", "")
        self._write(
            "/etc/libvirt/libvirtd.conf",
            f'host_uuid = "{uuid.uuid4()}"\nlisten_tls = 0\nlisten_tcp = 1\nlisten_addr = "{self.address}"\n'
            'auth_tcp = "none"\nauth_unix_rw = "none"\nunix_sock_group = "root"\n'
            'log_outputs = "2:file:/var/log/libvirt/libvirtd.log"\n',
        )
        self._write(
            "/etc/libvirt/qemu.conf",
            f'user = "{QEMU_USER}"\ngroup = "{QEMU_GROUP}"\ndynamic_ownership = 1\nremember_owner = 0\n'
            'security_driver = "none"\nstdio_handler = "file"\ncgroup_controllers = []\nnamespaces = []\n'
            f'migration_host = "{self.address}"\nmigration_address = "{self.address}"\n' + self.cluster.qemu_conf,
        )
        self._write("/etc/libvirt/qemu-sanlock.conf", self.cluster.plugin_conf(self))
        self._write("/etc/libvirt/hooks/qemu.d/99-log", LOG_HOOK, 0o755)
        os.makedirs(self.folder + "/var/log/libvirt/qemu", exist_ok=True)
        os.makedirs(self.folder + "/dev/rig")
        # A KVM that nobody can open. Where QEMU's user may not open it and root may, libvirt asks QEMU what it can do
        # before each start, which takes 7 s.
        os.mknod(self.folder + "/dev/kvm", stat.S_IFCHR | 0o600, os.makedev(10, 99))

    def _write(self, path: str, text: str, mode: int = 0o644) -> None:
        path = self.folder + path
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, mode)

    # -- on and off -----------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch on, and come up as a host does: sanlock, the join, libvirtd, in that order."""
        self.power_on()
        self.come_up()

    def power_on(self) -> None:
        """
        Namespaces and network; no daemon yet. Only in the main thread: a host dies with the thread that made it.
        """
        assert not self.pid, f"{self} is on"
        self.was_on = True
        boot_id = os.path.join(self.folder, "boot_id")
        with open(boot_id, "w", encoding="ascii") as file:
            file.write(str(uuid.uuid4()) + "\n")
        ready = os.path.join(self.folder, "ready")
        if os.path.exists(ready):
            os.unlink(ready)
        os.makedirs("/dev/rig", exist_ok=True)
        mounts = [f"{self.folder}{target}={target}" for target in self.PERSISTENT]
        mounts += [f"{self.folder}{file}={file}" for file in ("/etc/machine-id", "/etc/hosts", "/etc/resolv.conf")]
        mounts += [f"{boot_id}=/proc/sys/kernel/random/boot_id"]
        mounts += ["=/run", f"{self.folder}/dev/rig=/dev/rig", f"{CACHE}=/var/cache/libvirt"]
        if os.path.exists("/dev/kvm"):
            mounts.append(f"{self.folder}/dev/kvm=/dev/kvm")
        if self.cluster.tree:
            mounts.append(f"{self.cluster.tree}/usr/local=/usr/local")
        self._unshare = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--pid", "--ipc", "--net", "--fork", "--kill-child", "/usr/bin/python3"]
            + ["-I", "-S", os.path.join(HERE, "init.py"), self.name, ready, *mounts],
            stdin=subprocess.DEVNULL,
            stdout=open(self.folder + "/console", "ab"),
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        eventually(lambda: os.path.exists(ready) or self._unshare.poll() is not None, f"{self} is up")  # type: ignore[union-attr]
        if self._unshare.poll() is not None:
            with open(self.folder + "/console", encoding="utf-8") as console:
                raise RuntimeError(f"{self} does not boot: {console.read()}")
        with open(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children", encoding="ascii") as children:
            self.pid = int(children.read())
        self.cluster.plug_in(self)

    def come_up(self) -> None:
        self.start_sanlock()
        self.cluster.join(self)
        self.start_libvirtd()

    def power_cut(self) -> None:
        """Nothing on the host runs one more instruction."""
        if self._unshare is not None:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
            self._unshare.wait()
        self._unshare, self.pid = None, 0

    def plug_out(self) -> None:
        """Take the network cable away; `Cluster.plug_in` gives it back."""
        self.run("ip", "link", "del", "eth0")

    # -- commands -------------------------------------------------------------------------------------------------------

    def path(self, path: str) -> str:
        """How a path of this host is reached from outside."""
        return f"/proc/{self.pid}/root{path}"

    def read(self, path: str) -> str:
        """The text of a file of this host, "" if there is none."""
        try:
            with open(self.path(path), encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def inside(self, *words: str) -> List[str]:
        assert self.pid, f"{self} is off"
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--", *words]

    def write(self, path: str, text: str) -> None:
        """Write a file of this host."""
        with open(self.path(path), "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)

    def run(self, *words: str, stdin: str = "", check: bool = True, within: float = 60) -> Done:
        """Run a command on this host. A failure is an error of the test unless check is off."""
        began = time.monotonic()
        done = subprocess.run(
            self.inside(*words),
            input=stdin.encode("utf-8", "surrogateescape"),
            capture_output=True,
            env=ENVIRONMENT,
            timeout=within,
        )
        out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
        result = Done(done.returncode, out, err, time.monotonic() - began)
        if check and result.status:
            raise AssertionError(f"{self}: {' '.join(words)}: status {result.status}\n{out}{err}")
        return result

    def spawn(self, *words: str, stdin: str = "") -> "subprocess.Popen[str]":
        """Begin a command on this host and do not wait."""
        process = subprocess.Popen(
            self.inside(*words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=ENVIRONMENT,
            text=True,
            preexec_fn=die_with_parent,
        )
        assert process.stdin
        try:
            process.stdin.write(stdin)
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already, and its status says why
        process.stdin = None
        return process

    def shell(self, script: str, check: bool = True, within: float = 60) -> Done:
        return self.run("/bin/sh", "-c", script, check=check, within=within)

    def virsh(self, *words: str, stdin: str = "", check: bool = True, within: float = 60) -> Done:
        return self.run("virsh", "-q", *words, stdin=stdin, check=check, within=within)

    def vmguard(self, *words: str, check: bool = True, within: float = 60) -> Done:
        return self.run("vmguard", *words, check=check, within=within)

    # -- daemons --------------------------------------------------------------------------------------------------------

    def start_sanlock(self, preload: str = "") -> None:
        # Without SANLOCK_PRIVILEGED=0 it needs CAP_SYS_RESOURCE, which containers lack. -w 0: there is no watchdog here.
        self.shell(
            f"mkdir -p /run/sanlock && LD_PRELOAD={preload} SANLOCK_PRIVILEGED=0 sanlock daemon "
            f"-w 0 -l 0 -h 0 -g 5 -U root -G root -e {self.name} >/var/log/sanlock.out 2>&1"
        )
        eventually(lambda: not self.run("sanlock", "client", "status", check=False).status, f"{self}: sanlock answers")

    def start_libvirtd(self, wait: bool = True) -> None:
        self.run("libvirtd", "-d", "-l")
        if wait:
            eventually(lambda: not self.virsh("list", check=False).status, f"{self}: libvirtd answers")

    def daemon_pid(self, daemon: str) -> Optional[int]:
        """As the host itself numbers it."""
        file = {"sanlock": "/run/sanlock/sanlock.pid", "libvirtd": "/run/libvirtd.pid"}[daemon]
        text = self.read(file).strip()
        return int(text) if text and os.path.exists(self.path(f"/proc/{text}")) else None

    def outside_pid(self, pid: int) -> int:
        """The number that the machine has for a process of this host."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/status", encoding="ascii", errors="replace") as file:
                        spaces = next((line.split() for line in file if line.startswith("NSpid:")), [])
                    if spaces[-1:] == [str(pid)] and os.stat(f"/proc/{entry}/ns/pid").st_ino == self._pid_space():
                        return int(entry)
                except (FileNotFoundError, ProcessLookupError):
                    continue
        raise AssertionError(f"{self}: no process {pid}")

    def _pid_space(self) -> int:
        return os.stat(f"/proc/{self.pid}/ns/pid").st_ino

    def signal(self, daemon: str, name: str) -> None:
        """Send STOP, CONT, KILL or TERM to sanlock or libvirtd."""
        pid = self.daemon_pid(daemon)
        assert pid, f"{self}: {daemon} does not run"
        self.run("/bin/kill", f"-{name}", str(pid))

    def kill(self, daemon: str) -> None:
        pid = self.daemon_pid(daemon)
        self.signal(daemon, "KILL")
        eventually(lambda: self.daemon_pid(daemon) != pid, f"{self}: {daemon} is gone")

    @contextmanager
    def frozen(self, daemon: str) -> Iterator[None]:
        self.signal(daemon, "STOP")
        try:
            yield
        finally:
            self.signal(daemon, "CONT")

    def restart_libvirtd(self) -> None:
        if self.daemon_pid("libvirtd"):
            self.kill("libvirtd")
        self.start_libvirtd()

    # -- guests ---------------------------------------------------------------------------------------------------------

    def try_start(self, guest: Guest, *options: str, within: float = 60) -> Done:
        """Start a transient guest; the outcome, whatever it is."""
        return self.virsh("create", *options, "/dev/stdin", stdin=guest.xml, check=False, within=within)

    def start(self, guest: Guest, *options: str) -> None:
        done = self.try_start(guest, *options)
        assert not done.status, f"{self} did not start {guest.name!r}:\n{done.err}"

    def define(self, guest: Guest) -> None:
        self.virsh("define", "/dev/stdin", stdin=guest.xml)

    def refused(self, guest: Guest, *options: str, defined: bool = False) -> str:
        """
        Start a guest, which the guard must refuse in `prepare`; its words. With `defined` it is defined first.

        Not just any failure: the hook said no, QEMU's log did not grow a start, and `start` was never reached.
        """
        spawned, calls = self.spawn_count(guest), len(self.hook_calls(guest))
        if defined:
            self.define(guest)
            done = self.virsh("start", *options, guest.uuid, check=False)
        else:
            done = self.try_start(guest, *options)
        assert done.status, f"{self} started {guest.name!r}, which it must not"
        words = hook_words(done.err)
        assert self.spawn_count(guest) == spawned, f"{self} refused {guest.name!r} only after QEMU had been started"
        operations = [call.operation for call in self.hook_calls(guest)[calls:]]
        assert "prepare" in operations and "start" not in operations, operations
        return words

    def destroy(self, guest: Guest) -> float:
        """Switch a guest off; the seconds it took."""
        return self.virsh("destroy", guest.uuid).seconds

    def state(self, guest: Guest) -> str:
        """running, paused, "shut off", ...; "" for a guest it does not know."""
        return self.virsh("domstate", guest.uuid, check=False).out.strip()

    def runs(self, guest: Guest) -> bool:
        return self.qemu_pid(guest) is not None

    def qemu_pid(self, guest: Guest) -> Optional[int]:
        """The QEMU of a guest, as the host numbers it; found by its command line, whatever libvirt says."""
        for pid, arguments in self.processes():
            if guest.uuid in arguments and "qemu-system" in arguments[0]:
                return pid
        return None

    def processes(self) -> Iterator[Tuple[int, List[str]]]:
        folder = self.path("/proc")
        for entry in os.listdir(folder):
            if entry.isdigit():
                try:
                    with open(f"{folder}/{entry}/cmdline", "rb") as file:
                        arguments = file.read().decode("utf-8", "surrogateescape").split("\0")
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if arguments[0]:
                    yield int(entry), arguments

    def kill9(self, guest: Guest) -> None:
        """Kill a guest's QEMU, and wait until the kernel has let go of it."""
        pid = self.qemu_pid(guest)
        assert pid, f"{self}: {guest.name!r} does not run"
        self.run("/bin/kill", "-KILL", str(pid))
        eventually(lambda: not self.runs(guest), f"{self}: QEMU of {guest.name!r} is gone")

    def spawn_count(self, guest: Guest) -> int:
        """How often libvirt has begun to start a QEMU for a domain of this name: the log gets a line before each exec."""
        return sum(
            ": starting up libvirt version" in line for line in self.read(f"/var/log/libvirt/qemu/{guest.name}.log").splitlines()
        )

    def ever_spawned(self, guest: Guest) -> bool:
        return self.spawn_count(guest) > 0

    def hook_calls(self, guest: Optional[Guest] = None) -> List[HookCall]:
        fields = self.read(HOOK_LOG).split("\0")[:-1]
        calls = [HookCall(*fields[i : i + 4]) for i in range(0, len(fields) - 3, 4)]
        return [call for call in calls if guest is None or call.domain == guest.name]

    # -- leases ---------------------------------------------------------------------------------------------------------

    def leases(self) -> List[Held]:
        """What sanlock on this host holds, in whatever form."""
        done = self.run("sanlock", "client", "status", "-D", check=False)
        return parse_status(done.out)

    def lockspaces(self) -> List[str]:
        done = self.run("sanlock", "client", "status", check=False)
        return [line.split()[1].split(":")[0] for line in done.out.splitlines() if line.startswith("s ")]

    def leftovers(self) -> List[str]:
        """Leases and records of vmguard, in words: on a host without guests there are none."""
        found = [f"{self}: lease {lease}" for lease in self.leases()]
        folder = self.path("/run/vmguard/instances")
        if os.path.isdir(folder):
            found += [f"{self}: record {entry}" for entry in sorted(os.listdir(folder)) if entry.endswith(".json")]
        return found

    # -- after a test ---------------------------------------------------------------------------------------------------

    def domains(self) -> List[str]:
        return self.virsh("list", "--all", "--uuid").out.split()

    def remove_all_guests(self) -> None:
        for one in self.virsh("list", "--uuid").out.split():
            self.virsh("destroy", one, check=False)
        for one in self.domains():
            self.virsh("undefine", "--managed-save", "--snapshots-metadata", "--nvram", one, check=False)


def hook_words(error: str) -> str:
    """What the hook said, out of virsh's error text; AssertionError if somebody else refused."""
    assert "Hook script execution failed" in error, f"not the hook refused it:\n{error}"
    _, mark, words = error.partition("unexpected exit status 1: ")
    assert mark, f"the hook did not end with status 1:\n{error}"
    return words.strip()


def parse_status(text: str) -> List[Held]:
    """Lines `r LOCKSPACE:NAME:PATH:OFFSET:LVER|SH p PID`, each with indented details if asked for with -D."""
    found = []
    for line in text.splitlines():
        if line.startswith("r "):
            words = line.split()
            name = words[1].split(":")[1]
            shared = words[1].endswith(":SH")
            pid = int(words[words.index("p") + 1]) if "p" in words else None
            found.append(Held(name, shared, None if pid in (None, -1) or "ORPHAN" in words else pid))
    return found


def finish_pipe(process: "subprocess.Popen[str]", within: float = 30) -> None:
    """See a command end, or end it. What it started inside the host may outlive it, with its pipes."""
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


class Cluster:
    """Hosts with a switch between them and one folder that all see under the same path."""

    qemu_conf = ""  # lines of qemu.conf

    def __init__(self, name: str, hosts: int) -> None:
        self.name = name
        self.tree = ""  # what is installed on all hosts, as `make install` put it there
        self.folder = os.path.join(BASE, f"{os.getpid()}-{name}")
        os.makedirs(self.folder)
        os.makedirs(CACHE, exist_ok=True)
        self._lock = os.open(os.path.join(self.folder, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.shared = os.path.join(self.folder, "shared")
        os.makedirs(self.shared)
        os.chmod(self.shared, 0o777)
        self._switch = subprocess.Popen(
            ["unshare", "--net", "sleep", "infinity"], preexec_fn=die_with_parent, stdin=subprocess.DEVNULL
        )
        own = os.stat("/proc/self/ns/net").st_ino
        eventually(lambda: os.stat(f"/proc/{self._switch.pid}/ns/net").st_ino != own, "the switch has its own network")
        command("nsenter", "-t", str(self._switch.pid), "-n", "ip", "link", "add", "name", "br0", "type", "bridge")
        command("nsenter", "-t", str(self._switch.pid), "-n", "ip", "link", "set", "br0", "up")
        self.loops: List[str] = []
        self.prepare()
        self.hosts = [Host(self, number + 1) for number in range(hosts)]

    def prepare(self) -> None:
        """What there must be before the hosts' disks are written."""

    def plugin_conf(self, host: Host) -> str:
        return "auto_disk_leases = 0\nrequire_lease_for_disks = 0\n"

    def join(self, host: Host) -> None:
        """Make a host that has just booted a member, before its libvirtd starts."""

    def boot(self, hosts: Sequence["Host"] = ()) -> None:
        """Switch on these hosts, or all."""
        for host in hosts or self.hosts:
            host.boot()

    def plug_in(self, host: Host) -> None:
        switch = str(self._switch.pid)
        port = f"p{host.number}"
        # The address of its card stays, whenever it is switched on: the others remember it.
        card = ["name", "eth0", "address", f"52:54:00:99:00:{host.number:02x}", "netns", str(host.pid)]
        command("nsenter", "-t", switch, "-n", "ip", "link", "add", port, "type", "veth", "peer", *card)
        command("nsenter", "-t", switch, "-n", "ip", "link", "set", port, "master", "br0", "up")
        command("nsenter", "-t", str(host.pid), "-n", "ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            command("nsenter", "-t", str(host.pid), "-n", "ip", "link", "set", link, "up")

    # -- storage --------------------------------------------------------------------------------------------------------

    def loop(self, file: str, *options: str) -> str:
        """A loop device on a file; it goes with the cluster."""
        device = command("losetup", "--find", "--show", *options, file).strip()
        self.loops.append(device)
        return device

    def block_device(self, name: str, file: str, hosts: Optional[Sequence[Host]] = None) -> str:
        """
        One file as a block device under one path on each host: /dev/rig/NAME.

        As on real hosts the device nodes, and so QEMU's own locks on them, are each host's own.
        """
        for host in hosts or self.hosts:
            number = os.stat(self.loop(file)).st_rdev
            node = f"{host.folder}/dev/rig/{name}"
            if os.path.exists(node):
                os.unlink(node)
            os.mknod(node, 0o60660, number)
        return f"/dev/rig/{name}"

    def forget_loops(self) -> None:
        for device in self.loops:
            subprocess.run(["losetup", "-d", device], stderr=subprocess.DEVNULL)
        self.loops.clear()

    def destroy(self) -> None:
        for host in self.hosts:
            host.power_cut()
        self._switch.kill()
        self._switch.wait()
        self.forget_loops()
        os.close(self._lock)
        sweep_folder(self.folder)


# -- what a killed run left ---------------------------------------------------------------------------------------------


def sweep_folder(folder: str) -> None:
    """Remove a folder of a cluster whose processes are gone: loop devices on its files, mounts below it, the files."""
    for line in reversed(open("/proc/self/mounts", encoding="utf-8").read().splitlines()):
        target = line.split()[1]
        if target.startswith(folder + "/"):
            subprocess.run(["umount", "--lazy", target])
    for line in command("losetup", "--list", "--noheadings", "--raw", "--output", "NAME,BACK-FILE").splitlines():
        device, _, file = line.partition(" ")
        if file.startswith(folder + "/"):
            subprocess.run(["losetup", "-d", device])
    shutil.rmtree(folder, ignore_errors=True)


def sweep() -> None:
    """Remove what earlier runs left that could not clean up. Folders of runs that still live are locked, and stay."""
    os.makedirs(BASE, exist_ok=True)
    for entry in os.listdir(BASE):
        folder = os.path.join(BASE, entry)
        try:
            lock = os.open(os.path.join(folder, "lock"), os.O_RDWR)
        except FileNotFoundError:
            continue  # just being made
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep_folder(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
