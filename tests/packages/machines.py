# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A Debian release in a chroot, with namespaces of its own: where packages are installed, and taken off again, beside a real
libvirtd, QEMU and sanlock of that release.

A release is made once by mmdebstrap, from the sources that this machine is configured with, and kept. Each machine is a
layer over it (overlayfs), and goes with its test.
"""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from typing import List, NamedTuple, Optional

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "rig"))

from guests import Guest, guest  # noqa: E402, F401
from hosts import ENVIRONMENT, die_with_parent, eventually  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BASE = os.environ.get("VMGUARD_PACKAGES_BASE", "/var/tmp/vmguard-packages")

# What the packages depend on and recommend is there already: they themselves are then installed offline.
INCLUDED = (
    "python3 python3-lxml python3-libvirt python3-pyudev libvirt-daemon-system libvirt-clients sanlock qemu-system-x86"
    " qemu-utils procps bash-completion e2fsprogs iproute2"
).split()
PLUGIN = {"bookworm": "libvirt-sanlock"}  # later: libvirt-daemon-plugin-sanlock


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    out: str  # with what it said on standard error

    @property
    def text(self) -> str:
        return self.out


def mirror() -> Optional[str]:
    """Where this machine has Debian's packages from, None where it does not say."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(ORIGIN)", "Created-By: Packages"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines():
        uri, codename, origin = (line.split(" ") + ["", ""])[:3]
        if origin == "Debian" and "-" not in codename:
            return uri
    return None


def release(suite: str) -> str:
    """The folder of that release; made where it is not there. RuntimeError where it cannot be had."""
    folder = os.path.join(BASE, suite)
    if not os.path.isdir(folder):
        source = mirror()
        if source is None:
            raise RuntimeError("no source of Debian's packages is configured")
        os.makedirs(BASE, exist_ok=True)
        new = folder + ".new"
        shutil.rmtree(new, ignore_errors=True)
        included = [*INCLUDED, PLUGIN.get(suite, "libvirt-daemon-plugin-sanlock")]
        done = subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=apt", '--aptopt=APT::Install-Recommends "false"']
            # The mirror may be a snapshot of another day.
            + ['--aptopt=Acquire::Check-Valid-Until "false"']
            + [f"--include={','.join(included)}", suite, new, f"deb {source} {suite} main"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"mmdebstrap {suite}: {done.stdout}")
        os.rename(new, folder)
    return folder


INIT = """
mount --make-rprivate /
mount -t proc proc "$1/proc"
mount -t sysfs sysfs "$1/sys"
mount -t tmpfs tmpfs "$1/run"
# libvirt looks for a mount there.
mount --bind "$1/dev" "$1/dev"
mkdir -p "$1/dev/pts"
mount -t devpts devpts "$1/dev/pts"
mount --bind "$2" "$1/srv"
mkdir -p /run/lock "$1/run/lock"
exec chroot "$1" sh -c 'touch /srv/.ready; trap : CHLD; while :; do sleep 3600 & wait; done'
"""


class Machine:
    """A machine of that release, switched on. `run` runs commands on it."""

    def __init__(self, suite: str, name: str) -> None:
        self.suite = suite
        self.folder = os.path.join(BASE, f"{name}-{os.getpid()}")
        self.root = os.path.join(self.folder, "root")
        self.disk = os.path.join(self.folder, "srv")  # its /srv, on the machine's own filesystem
        for each in ("root", "upper", "work", "srv"):
            os.makedirs(os.path.join(self.folder, each))
        options = f"lowerdir={release(suite)},upperdir={self.folder}/upper,workdir={self.folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.root], check=True)
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--pid", "--ipc", "--net", "--fork", "--kill-child"]
            + ["sh", "-e", "-c", INIT, "init", self.root, self.disk],
            stdin=subprocess.DEVNULL,
            stderr=open(os.path.join(self.folder, "console"), "wb"),
            preexec_fn=die_with_parent,
        )
        eventually(lambda: os.path.exists(os.path.join(self.disk, ".ready")), f"{suite} is up")
        with open(f"/proc/{self._process.pid}/task/{self._process.pid}/children", encoding="ascii") as children:
            self.pid = int(children.read())
        # Ready is said from inside: before that its root would still be ours.
        assert os.stat(f"/proc/{self.pid}/root").st_dev != os.stat("/").st_dev
        self.write("/etc/libvirt/qemu.conf", QEMU_CONF)
        self.write("/etc/machine-id", uuid.uuid4().hex + "\n")
        self.run("ip", "link", "set", "lo", "up")
        self.libvirt = "libvirtd" if os.path.exists(self.root + "/usr/sbin/libvirtd") else "virtqemud"

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self._process.wait()
        subprocess.run(["umount", "--lazy", self.root], check=True)
        shutil.rmtree(self.folder)

    def inside(self, *words: str) -> List[str]:
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--", *words]

    def run(self, *words: str, stdin: str = "", check: bool = True, within: float = 120) -> Done:
        done = subprocess.run(
            self.inside(*words), input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**ENVIRONMENT, "DEBIAN_FRONTEND": "noninteractive"}, timeout=within,
        )  # fmt: skip
        assert not check or not done.returncode, f"{self.suite}: {' '.join(words)}: {done.returncode}\n{done.stdout}"
        return Done(done.returncode, done.stdout)

    def write(self, path: str, text: str) -> None:
        with open(f"/proc/{self.pid}/root{path}", "w", encoding="utf-8") as file:
            file.write(text)

    def read(self, path: str) -> str:
        with open(f"/proc/{self.pid}/root{path}", encoding="utf-8") as file:
            return file.read()

    def exists(self, path: str) -> bool:
        return os.path.lexists(f"/proc/{self.pid}/root{path}")

    # -- what runs on it ------------------------------------------------------------------------------------------------

    def start_daemons(self) -> None:
        """sanlock and libvirt's, as they come up on a host without a watchdog."""
        self.run(
            "sh", "-c", "mkdir -p /run/sanlock && SANLOCK_PRIVILEGED=0 sanlock daemon"
            " -w 0 -l 0 -h 0 -g 5 -U root -G root >/var/log/sanlock.out 2>&1",
        )  # fmt: skip
        self.start_libvirt()

    def start_libvirt(self) -> None:
        if not self.run("pidof", "virtlogd", check=False).out.strip():
            self.run("virtlogd", "-d")
        if self.libvirt == "virtqemud":
            for name in ("virtnetworkd", "virtstoraged", "virtnodedevd", "virtsecretd"):
                self.run(name, "-d", check=False)
        self.run(self.libvirt, "-d")
        eventually(lambda: not self.virsh("list", check=False).status, "libvirt answers", within=60)

    def virsh(self, *words: str, stdin: str = "", check: bool = True) -> Done:
        return self.run("virsh", "-q", *words, stdin=stdin, check=check)

    def start(self, one: Guest, check: bool = True) -> Done:
        self.write("/run/guest.xml", one.xml)
        return self.virsh("create", "/run/guest.xml", check=check)

    def image(self, name: str) -> str:
        path = os.path.join(self.disk, name)
        with open(path, "wb") as file:
            file.truncate(1 << 20)
        os.chmod(path, 0o666)
        return f"/srv/{name}"

    def qemu(self, one: Guest) -> str:
        """Its pid, as the machine numbers it; "" where it does not run."""
        return self.run("pgrep", "-f", f"guest={one.name},", check=False).out.strip()


QEMU_CONF = """user = "root"
group = "root"
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
"""
