# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A real cluster: two or three virtual machines with Debian's kernel, LVM with lvmlockd, sanlock behind a watchdog, corosync, DLM
and GFS2, libvirtd with guests of their own.

A `Node` is a `Host` of the rig, reached by ssh: `run`, `virsh`, `start`, `refused`, `leases` and their like are the same. What
only a machine has is new: `power_cut` and `boot`, `hang_storage`, `fail_storage`, `pull_cable`, its clock. A node that resets
itself, as its watchdog does, goes off and stays off: `gone` waits for that, and `boot` is the hand on the button.

`Machines` are the nodes with what is between them: two networks in a namespace of their own, of which `control` is the test's
and never fails; shared disks; a power strip, which the nodes' fence agent asks over a serial line. `Guarded` adds what an
administrator does: the shared volume group `vg-guests`, GFS2 at /srv/shared, vmguard from `make install`, `vmguard setup`.

Everything ends with the process that made it; what stays on disk is swept by the next run, by locks, as the rig's is.
"""

import fcntl
import json
import os
import shlex
import signal
import socket
import subprocess
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import image
from guests import Guest, MiB
from hosts import Done, Held, Host, command, die_with_parent, eventually, parse_status, sweep_folder

# Seconds. Without acceleration a node takes 20 to 40 to a login, two at once a minute; on a machine with a load of 30, six.
BOOT = 600.0
GiB = 1024 * MiB
MEMORY = int(os.environ.get("VMGUARD_CLUSTER_MEMORY", "2048"))  # MiB a node

KERNEL_WORDS = (
    "console=ttyS0 quiet loglevel=4 mitigations=off nokaslr no_timer_check tsc=reliable random.trust_cpu=on net.ifnames=0"
    " panic=-1 audit=0 selinux=0 apparmor=0 systemd.show_status=0 rcupdate.rcu_expedited=1 nowatchdog"
)


class SharedDisk(NamedTuple):
    """A disk that all nodes see under the same designator, by one or more paths."""

    name: str
    size: int
    paths: int = 1

    @property
    def wwn(self) -> str:
        """NAA 5, as the nodes see it in VPD page 0x83."""
        return f"0x5000c500{int.from_bytes(self.name.encode()[:4].ljust(4), 'big'):08x}"

    @property
    def by_id(self) -> str:
        return f"/dev/disk/by-id/wwn-{self.wwn}"


# What the nodes of a test are made of, unless it says so: the volume group's first disk (partitioned), its second (whole), one
# for anything, and one with two paths.
DISKS = (
    SharedDisk("main", 6 * GiB),
    SharedDisk("more", 2 * GiB),
    SharedDisk("bare", 256 * MiB),
    SharedDisk("path", 128 * MiB, paths=2),
)


class Monitor:
    """One conversation with a QEMU of the rig."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(path)
        self._file = self._socket.makefile("r", encoding="utf-8")
        self._file.readline()
        self.say("qmp_capabilities")

    def say(self, word: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": word, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self._file.readline())
            if "return" in answer:
                return answer["return"]
            assert "error" not in answer, f"{word}: {answer}"

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()


class Node(Host):
    """One machine."""

    cluster: "Machines"  # type: ignore[assignment]

    def __init__(self, cluster: "Machines", number: int) -> None:
        self.cluster = cluster
        self.number = number
        self.name = f"node{number}"
        self.address = f"10.99.0.{number}"
        self.folder = os.path.join(cluster.folder, self.name)
        self.pid = 0  # of its QEMU, as long as that was not seen to end
        self.was_on = False
        self.cut_at: Optional[float] = None  # when its power was cut, if that was how it went off last
        self._master: Optional[subprocess.Popen[bytes]] = None
        self._logins = 0
        self._socket = ""
        self.disk = os.path.join(self.folder, "disk")
        if os.path.isdir(self.folder):
            self._find()
            return
        os.makedirs(self.folder)
        command("qemu-img", "create", "-q", "-f", "qcow2", "-b", cluster.image.disk, "-F", "raw", self.disk)

    def _find(self) -> None:
        """Of a cluster that was kept: what runs."""
        pid = self.kept_pid()
        if pid:
            self.pid, self.was_on = pid, True
            self.cluster.strip.serve(self)
            eventually(self._logs_in, f"{self} lets us in", within=BOOT, every=0.3)

    def kept_pid(self) -> int:
        try:
            with open(self.folder + "/pid", encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return pid if self.disk.encode() in file.read() else 0
        except (FileNotFoundError, ProcessLookupError):
            return 0

    # -- on and off -----------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Only in the main thread: a machine dies with the thread that made it."""
        assert not self.pid, f"{self} is on"
        self.was_on = True
        n = self.number
        words = ["qemu-system-x86_64", "-name", self.name, "-uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, self.folder))]
        words += ["-M", "pc,usb=off,vmport=off", *self.cluster.acceleration, "-smp", "2", "-m", str(MEMORY)]
        words += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        machine_id = uuid.uuid5(uuid.NAMESPACE_URL, self.folder).hex
        append = f"{KERNEL_WORDS} systemd.hostname={self.name} systemd.machine_id={machine_id}"
        append += f" node.number={n} node.of={self.cluster.size}"
        words += ["-kernel", self.cluster.image.kernel, "-initrd", self.cluster.image.initrd, "-append", append]
        words += ["-drive", f"if=none,id=root,file={self.disk},format=qcow2,cache=unsafe,discard=unmap"]
        words += ["-device", "virtio-blk-pci,drive=root", "-device", "virtio-scsi-pci,id=scsi", "-device", "virtio-rng-pci"]
        for disk, path in self.cluster.paths():
            # Every node has it open: no lock of this machine may stand for one of the cluster.
            file = f"file={self.cluster.file(disk)},format=raw,cache=none,aio=threads,file.locking=off"
            words += ["-drive", f"if=none,id={disk.name}{path},{file}"]
            sizes = "logical_block_size=512,physical_block_size=512"
            words += ["-device", f"scsi-hd,drive={disk.name}{path},share-rw=on,serial={disk.name},wwn={disk.wwn},{sizes}"]
        for net, byte in (("lan", 0x99), ("control", 0x98)):
            words += ["-netdev", f"tap,id={net},ifname={net}{n},script=no,downscript=no"]
            words += ["-device", f"virtio-net-pci,netdev={net},mac=52:54:00:{byte:02x}:00:{n:02x},romfile="]
        words += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=strip,path={self.folder}/strip,server=on,wait=off"]
        words += ["-device", "virtserialport,chardev=strip,name=strip"]
        words += ["-chardev", f"file,id=console,path={self.folder}/console,append=on", "-serial", "chardev:console"]
        words += ["-qmp", f"unix:{self.folder}/monitor,server=on,wait=off"]
        self.pid = self.cluster.begin(words, self.folder + "/qemu")
        with open(self.folder + "/pid", "w", encoding="ascii") as pid_file:
            pid_file.write(str(self.pid))
        eventually(lambda: self._answers_monitor() or not self.is_on(), f"{self} is switched on", within=30)
        if not self.is_on():
            with open(self.folder + "/qemu", encoding="utf-8") as file:
                raise RuntimeError(f"{self} does not start: {file.read()}")
        self.cluster.strip.serve(self)

    def come_up(self) -> None:
        """Wait for the login, and until systemd has started everything there is to start."""
        eventually(self._logs_in, f"{self} lets us in", within=BOOT, every=0.3)
        self.run("systemctl", "is-system-running", "--wait", check=False, within=BOOT)

    def is_on(self) -> bool:
        return bool(self.pid) and lives(self.pid)

    def power_cut(self) -> None:
        """Nothing on the node runs one more instruction, and nothing it was writing is written any more."""
        if self.pid:
            self.cut_at = time.monotonic()
            self.switch_off()
            self._off()

    def switch_off(self) -> None:
        """What the power strip does, from any thread: the node is off when it returns, and `gone` sees it."""
        pid = self.pid
        if pid and lives(pid):
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: not lives(pid), f"{self} is off")

    def gone(self, within: float) -> float:
        """Wait until the node is off, by its own watchdog or by another's fence agent; the seconds that took."""
        began = time.monotonic()
        eventually(lambda: not self.is_on(), f"{self} is off", within=within, every=0.1)
        self._off()
        return time.monotonic() - began

    def shut_down(self) -> None:
        """As an administrator does."""
        self.run("systemctl", "poweroff", check=False)
        self.gone(BOOT)

    def _off(self) -> None:
        self.log_out()
        if os.path.exists(f"{self.folder}/pid"):
            os.unlink(f"{self.folder}/pid")
        self.pid = 0

    def log_out(self) -> None:
        if self._master is not None:
            self._master.kill()
            self._master.wait()
            self._master = None
        if os.path.exists(self._socket):
            os.unlink(self._socket)

    def monitor(self) -> Monitor:
        return Monitor(self.folder + "/monitor")

    def _answers_monitor(self) -> bool:
        try:
            self.monitor().__exit__()
        except OSError:
            return False
        return True

    # -- faults ---------------------------------------------------------------------------------------------------------

    def hang_storage(self) -> None:
        """No shared disk answers any more: what is asked of it neither succeeds nor fails."""
        self._limit(1)

    def release_storage(self) -> None:
        """It answers again; what hung is carried out now, however late that is."""
        self._limit(0)

    def _limit(self, bytes_per_second: int) -> None:
        none = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
        with self.monitor() as monitor:
            for disk, path in self.cluster.paths():
                monitor.say("block_set_io_throttle", device=f"{disk.name}{path}", bps=bytes_per_second, **none)

    def fail_storage(self) -> None:
        """Every shared disk answers with an error at once, as when the last path is gone."""
        self.shell("for disk in /sys/bus/scsi/devices/[0-9]*/state; do echo offline >$disk; done")

    def mend_storage(self) -> None:
        self.shell("for disk in /sys/bus/scsi/devices/[0-9]*/state; do echo running >$disk; done")

    def pull_cable(self) -> None:
        """The cluster's network; that of the test stays."""
        self.cluster.switch("ip", "link", "set", f"lan{self.number}", "down")

    def plug_cable(self) -> None:
        self.cluster.switch("ip", "link", "set", f"lan{self.number}", "up")

    # -- commands -------------------------------------------------------------------------------------------------------

    def _ssh(self, *options: str) -> List[str]:
        words = ["ssh", "-F", "none", "-i", self.cluster.image.key, "-S", self._socket, "-o", "LogLevel=ERROR"]
        words += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
        return [*words, *options, f"root@10.98.0.{self.number}"]

    def _logs_in(self) -> bool:
        """Open the one connection that all commands share."""
        assert self.is_on(), f"{self} went off while it was booting:\n{self.console()[-2000:]}"
        if self._master is None or self._master.poll() is not None:
            # A name of its own: a connection to what the node was before ends later than that, and takes its socket with it.
            self._logins += 1
            self._socket = os.path.join(self.folder, f"ssh-{os.getpid()}-{self._logins}")
            # It cannot die with its parent, the thread that waits for this node. A node that is gone ends it, within two minutes.
            alive = ["-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=30", "-o", "ServerAliveCountMax=4"]
            self._master = subprocess.Popen(
                self.cluster.in_network(*self._ssh(*alive, "-M", "-N")),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        check = subprocess.run(self._ssh("-O", "check"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return not check.returncode

    def inside(self, *words: str) -> List[str]:
        assert self.pid, f"{self} is off"
        # Never a connection of its own: that would leave the namespace.
        return self._ssh("-o", "ControlMaster=no", "-o", "ProxyCommand=false") + [shlex.join(words)]

    def run(
        self, *words: str, stdin: Union[str, bytes] = "", check: bool = True, within: float = 60
    ) -> Done:
        """Run a command on this node. A failure is an error of the test unless check is off."""
        done = self.run_bytes(*words, stdin=stdin, check=check, within=within)
        return Done(done[0], *(text.decode("utf-8", "surrogateescape") for text in done[1:3]), done[3])

    def run_bytes(
        self, *words: str, stdin: Union[str, bytes] = b"", check: bool = True, within: float = 60
    ) -> Tuple[int, bytes, bytes, float]:
        began = time.monotonic()
        if isinstance(stdin, str):
            stdin = stdin.encode("utf-8", "surrogateescape")
        done = subprocess.run(self.inside(*words), input=stdin, capture_output=True, timeout=within * self.cluster.patience)
        if check and done.returncode:
            raise AssertionError(f"{self}: {shlex.join(words)}: status {done.returncode}\n{(done.stdout + done.stderr).decode()}")
        return done.returncode, done.stdout, done.stderr, time.monotonic() - began

    def path(self, path: str) -> str:
        raise NotImplementedError("a file of a node is reached by `read`, `write` and `run`")

    def exists(self, path: str) -> bool:
        return not self.run("test", "-e", path, check=False).status

    def read(self, path: str) -> str:
        return self.run("cat", path, check=False).out

    def write(self, path: str, text: Union[str, bytes], mode: int = 0o644) -> None:
        self.run("sh", "-c", f"mkdir -p {shlex.quote(os.path.dirname(path))}; cat >{shlex.quote(path)}", stdin=text)
        self.run("chmod", f"{mode:o}", path)

    def console(self) -> str:
        try:
            with open(self.folder + "/console", encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def processes(self) -> Iterator[Tuple[int, List[str]]]:
        for line in self.run("ps", "-e", "-ww", "-o", "pid=,args=").out.splitlines():
            pid, *arguments = line.split()
            if arguments:
                yield int(pid), arguments

    def qemu_pid(self, guest: Guest) -> Optional[int]:
        # Not `ps`, which goes through all of /proc: this is asked often.
        found = self.run("pgrep", "-f", f"[q]emu-system-x86_64 .*{guest.uuid}", check=False).out.split()
        return int(found[0]) if found else None

    def remove_all_guests(self) -> None:
        self.shell(
            "for it in $(virsh -q list --uuid); do virsh -q destroy $it; done; for it in $(virsh -q list --all --uuid);"
            " do virsh -q undefine --managed-save --snapshots-metadata --nvram $it; done",
            check=False,
        )

    # -- daemons --------------------------------------------------------------------------------------------------------

    def daemon_pid(self, daemon: str) -> Optional[int]:
        found = self.run("pidof", "-s", daemon, check=False).out.split()
        return int(found[0]) if found else None

    def start_sanlock(self, preload: str = "") -> None:
        self.run("systemctl", "start", "sanlock")

    def start_libvirtd(self, wait: bool = True) -> None:
        self.run("systemctl", "start", "libvirtd")

    def restart_libvirtd(self) -> None:
        self.run("systemctl", "restart", "libvirtd")

    # -- leases ---------------------------------------------------------------------------------------------------------

    def leases(self) -> List[Held]:
        """What vmguard's leases on this node are; lvmlockd has its own."""
        lines = self.run("sanlock", "client", "status", "-D", check=False).out.splitlines()
        return parse_status("\n".join(line for line in lines if not line.startswith("r lvm_")))

    def renewal(self) -> Tuple[int, int]:
        """Of vmguard's lockspace: when it was last renewed, by sanlock's clock, and how the last try ended (1: well)."""
        lines = self.run("sanlock", "client", "status", "-D").out.split("\ns vmguard", 1)[1].split("\ns ", 1)[0].splitlines()
        found = dict(line.strip().split("=", 1) for line in lines if "=" in line)
        return int(found["renewal_last_success"]), int(found["renewal_last_result"])

    def lockspaces(self) -> List[str]:
        return [name for name in super().lockspaces() if not name.startswith("lvm_")]

    def leftovers(self) -> List[str]:
        found = [f"{self}: lease {lease}" for lease in self.leases()]
        records = self.run("sh", "-c", "ls /run/vmguard/instances/*.json 2>/dev/null", check=False).out.split()
        return found + [f"{self}: record {os.path.basename(record)}" for record in records]

    # -- logs -----------------------------------------------------------------------------------------------------------

    def collect(self, folder: str) -> None:
        """What a person needs who asks why: journal, sanlock's log, the hook's calls, device-mapper, console."""
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "console"), "w", encoding="utf-8") as file:
            file.write(self.console())
        if not self.is_on():
            return
        questions = {
            "journal": "journalctl --no-pager --boot -o short-precise",
            "sanlock.log": "cat /var/log/sanlock.log; sanlock client status -D; sanlock client host_status",
            "cluster": "corosync-quorumtool; dlm_tool status; dlm_tool ls; lvmlockctl --info; systemctl --failed --no-legend",
            "storage": "lsblk -o NAME,KNAME,TYPE,SIZE,MOUNTPOINTS; dmsetup info -c; dmsetup table; lvs -a -o+devices,lv_uuid",
            "guests": "virsh list --all; tail -n 40 /var/log/libvirt/qemu/*.log",
            "vmguard": "vmguard status; tail -n 60 /var/log/vmguard/events.jsonl",
        }
        for name, question in questions.items():
            with open(os.path.join(folder, name), "wb") as file:
                try:
                    file.write(self.run_bytes("sh", "-c", f"({question}) 2>&1", check=False, within=20)[1])
                except subprocess.TimeoutExpired:
                    file.write(b"no answer\n")


class Strip:
    """The power strip. A node's fence agent says `off N` on its serial line, and hears `is off N` when that is so."""

    def __init__(self, machines: "Machines") -> None:
        self._machines = machines
        self.asked: List[Tuple[float, str, int]] = []  # when (monotonic), by whom, whom
        self.works = threading.Event()  # cleared, it hears and does nothing
        self.works.set()
        self._one_at_a_time = threading.Lock()

    def serve(self, node: Node) -> None:
        line = socket.socket(socket.AF_UNIX)
        line.connect(node.folder + "/strip")
        threading.Thread(target=self._serve, args=(node, line), daemon=True).start()

    def _serve(self, node: Node, line: socket.socket) -> None:
        with line, line.makefile("r", encoding="ascii", errors="replace") as questions:
            try:
                for question in questions:
                    word, _, number = question.strip().partition(" ")
                    if word == "off" and number.isdigit() and 0 < int(number) <= len(self._machines.hosts):
                        self.asked.append((time.monotonic(), node.name, int(number)))
                        self.works.wait()
                        with self._one_at_a_time:  # of two nodes that ask for each other one stays
                            if node.is_on():
                                self._machines.hosts[int(number) - 1].switch_off()
                                line.sendall(f"is off {number}\n".encode())
            except OSError:
                pass  # that node is off itself


class Machines:
    """Nodes with what is between them."""

    size = 2
    disks: Sequence[SharedDisk] = DISKS

    def __init__(self, name: str, kept: bool = False) -> None:
        """A new cluster, all off; with `kept` the one of that name that an earlier process left running, if there is one."""
        self.image = image.get()
        self.acceleration = acceleration(self.image)
        # What is a second with acceleration is up to four without.
        self.patience = 1.0 if "kvm" in self.acceleration else 4.0
        self.kept = kept
        self.folder = os.path.join(runs(), name if kept else f"{os.getpid()}-{name}")
        if kept:
            self._drop_other_images()
        found = os.path.exists(self.folder + "/network")
        os.makedirs(self.folder, exist_ok=True)
        self._lock = os.open(os.path.join(self.folder, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.strip = Strip(self)
        if not found:
            self._wire()
        else:
            with open(self.folder + "/network", encoding="ascii") as file:
                self._network = int(file.read())
        self.hosts: List[Node] = []
        for number in range(1, self.size + 1):
            self.hosts.append(Node(self, number))

    def _wire(self) -> None:
        """Networks and disks."""
        self._network = self.begin(["unshare", "--net", "sleep", "infinity"], os.devnull, in_network=False)
        with open(self.folder + "/network", "w", encoding="ascii") as file:
            file.write(str(self._network))
        own = os.stat("/proc/self/ns/net").st_ino
        eventually(lambda: os.stat(f"/proc/{self._network}/ns/net").st_ino != own, "the nodes have their own network")
        for bridge in ("lan", "control"):
            self.switch("ip", "link", "add", bridge, "type", "bridge")
            self.switch("ip", "link", "set", bridge, "up")
        self.switch("ip", "address", "add", "10.98.0.254/24", "dev", "control")
        for number in range(1, self.size + 1):
            for net in ("lan", "control"):
                self.switch("ip", "tuntap", "add", f"{net}{number}", "mode", "tap")
                self.switch("ip", "link", "set", f"{net}{number}", "master", net, "up")
        for disk in self.disks:
            self._make(disk)

    def _drop_other_images(self) -> None:
        """A kept cluster of another image is of no use."""
        try:
            with open(self.folder + "/image", encoding="ascii") as file:
                same = file.read() == self.image.disk
        except FileNotFoundError:
            same = False
        if not same:
            end_kept(self.folder)
            os.makedirs(self.folder)
            with open(self.folder + "/image", "w", encoding="ascii") as file:
                file.write(self.image.disk)

    def begin(self, words: Sequence[str], log: str, in_network: bool = True) -> int:
        """Start a process that ends with this one, or not if the cluster is kept; its number."""
        process = subprocess.Popen(
            self.in_network(*words) if in_network else words,
            stdin=subprocess.DEVNULL,
            stdout=open(log, "ab"),
            stderr=subprocess.STDOUT,
            preexec_fn=os.setsid if self.kept else die_with_parent,
        )
        return process.pid

    def _make(self, disk: SharedDisk) -> None:
        # QEMU tells the size of a sector by reading the first: in a hole it finds 4096 bytes, and then writes back what
        # other nodes have just written beside the 512 that one wrote. Where leases lie there must be no hole.
        with open(self.file(disk), "wb") as file:
            for _ in range(min(64, disk.size // MiB)):
                file.write(bytes(MiB))
            file.truncate(disk.size)

    def file(self, disk: SharedDisk) -> str:
        return os.path.join(self.folder, f"{disk.name}.disk")

    def paths(self) -> Iterator[Tuple[SharedDisk, int]]:
        for disk in self.disks:
            for path in range(disk.paths):
                yield disk, path

    def in_network(self, *words: str) -> List[str]:
        return ["nsenter", "-t", str(self._network), "-n", "--", *words]

    def switch(self, *words: str) -> str:
        return command(*self.in_network(*words))

    def boot(self, nodes: Sequence[Node] = ()) -> None:
        """Switch on these nodes, or all."""
        chosen = list(nodes or self.hosts)
        self._see_fenced(chosen)
        for node in chosen:
            node.power_on()
        each(chosen, Node.come_up)

    def _see_fenced(self, nodes: Sequence[Node]) -> None:
        """
        Wait until the others have had those fenced that they have just lost: else they are switched off while they boot.

        Others that are no members of anything fence nobody: after 45 s, longer than corosync and DLM need, it goes on.
        """
        for node in nodes:
            cut, node.cut_at = node.cut_at, None
            while cut is not None and any(other.is_on() for other in self.hosts if other is not node):
                if time.monotonic() - cut > 45 or any(at > cut and whom == node.number for at, _, whom in self.strip.asked):
                    break
                time.sleep(0.1)

    def destroy(self) -> None:
        if self.kept:
            for node in self.hosts:
                node.log_out()
            os.close(self._lock)
            return
        for node in self.hosts:
            node.power_cut()
        os.kill(self._network, signal.SIGKILL)
        os.waitpid(self._network, 0)
        os.close(self._lock)
        sweep_folder(self.folder)


def each(nodes: Sequence[Node], do: Any) -> List[Any]:
    """The same on several nodes at once."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(do, nodes))


def lives(pid: int) -> bool:
    """Whether a process runs; a child of ours that has ended is reaped."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
    except ChildProcessError:
        pass  # another's, or reaped before
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- the machine below --------------------------------------------------------------------------------------------------


def acceleration(image: "image.Image") -> List[str]:  # noqa: F821
    """
    Options for QEMU: KVM where it runs this kernel, found out by doing so; else translation, which runs it anywhere.

    A /dev/kvm that exists says little: inside other machines it may run a boot loader and no kernel.
    VMGUARD_CLUSTER_ACCEL=kvm or tcg decides.
    """
    translated = ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,-la57"]
    kvm = ["-accel", "kvm", "-cpu", "host"]
    asked = os.environ.get("VMGUARD_CLUSTER_ACCEL")
    if asked:
        return kvm if asked == "kvm" else translated
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return translated
    answer = os.path.join(os.path.dirname(image.kernel), "kvm-runs-it")
    if not os.path.exists(answer):
        works = _boots(image, kvm)
        with open(answer, "w", encoding="ascii") as file:
            file.write("yes" if works else "no")
    with open(answer, encoding="ascii") as file:
        return kvm if file.read() == "yes" else translated


def _boots(image: "image.Image", options: List[str]) -> bool:  # noqa: F821
    """Whether the kernel comes to its first process, which switches off."""
    append = "console=ttyS0 panic=-1 rdinit=/bin/busybox -- poweroff -f"
    words = ["qemu-system-x86_64", "-M", "pc", *options, "-m", "512", "-nodefaults", "-display", "none", "-no-reboot"]
    words += ["-kernel", image.kernel, "-initrd", image.initrd, "-append", append, "-serial", "stdio"]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        return False
    return b"Power down" in done.stdout


def end_kept(folder: str) -> None:
    """End the processes of a kept cluster, found by their own files, and remove it."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        for file, mark in ((f"{folder}/{name}/pid", f"{folder}/{name}/disk"), (f"{folder}/network", "infinity")):
            try:
                with open(file, encoding="ascii") as numbers:
                    pid = int(numbers.read())
                with open(f"/proc/{pid}/cmdline", "rb") as words:
                    if mark.encode() in words.read():
                        os.kill(pid, signal.SIGKILL)
                        eventually(lambda pid=pid: not lives(pid), f"process {pid} has ended")  # type: ignore[misc]
            except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
                pass
    sweep_folder(folder)


def runs() -> str:
    folder = os.path.join(image.BASE, "runs")
    os.makedirs(folder, exist_ok=True)
    return folder


def sweep() -> None:
    """Remove what earlier runs left that could not clean up. Folders of runs that still live are locked, and stay."""
    for entry in os.listdir(runs()):
        folder = os.path.join(runs(), entry)
        if os.path.exists(folder + "/image"):
            continue  # is kept
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


if __name__ == "__main__":
    sweep()
    for entry in os.listdir(runs()):
        if os.path.exists(os.path.join(runs(), entry, "image")):
            end_kept(os.path.join(runs(), entry))
