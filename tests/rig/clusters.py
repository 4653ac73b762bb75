# SPDX-License-Identifier: LGPL-2.1-or-later
"""The three kinds of clusters: guarded by vmguard, with libvirt's own sanlock plugin, with nothing but QEMU's locks."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import List, Sequence

from hosts import IO_TIMEOUT, PROJECT, Cluster, Host, command, eventually


class Bare(Cluster):
    """Nothing guards but QEMU's own image locks."""


class Plugin(Cluster):
    """libvirt's sanlock plugin as its documentation has it: a lease for each disk, by the hash of its path."""

    qemu_conf = 'lock_manager = "sanlock"\n'

    def prepare(self) -> None:
        self.lease_dir = os.path.join(self.folder, "leases")
        os.makedirs(self.lease_dir)

    def plugin_conf(self, host: Host) -> str:
        return (
            f'auto_disk_leases = 1\ndisk_lease_dir = "{self.lease_dir}"\nhost_id = {host.number}\n'
            f'io_timeout = {IO_TIMEOUT}\nuser = "root"\ngroup = "root"\n'
        )


class Guarded(Cluster):
    """vmguard, installed and set up as its documentation has it."""

    def prepare(self) -> None:
        self.store = os.path.join(self.folder, "store")
        os.makedirs(self.store)
        self.tree = os.path.join(self.folder, "tree")
        # A user's make would install the working tree too; from a copy, so that no run leaves files in it.
        source = os.path.join(self.folder, "source")
        shutil.copytree(PROJECT, source, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
        done = subprocess.run(
            ["make", "-C", source, "install", f"DESTDIR={self.tree}", "prefix=/usr/local"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not done.returncode, f"make install:\n{done.stdout}"

    def boot(self, hosts: Sequence[Host] = ()) -> None:
        """Side by side: each join takes 3 s."""
        chosen = list(hosts or self.hosts)
        new = [host for host in chosen if not os.path.exists(host.folder + "/var/lib/vmguard/host.json")]
        for host in chosen:
            host.power_on()
        with ThreadPoolExecutor() as pool:
            list(pool.map(Host.come_up, chosen))
        # The first setup makes the store, the others find it.
        for host in new[:1]:
            self.set_up(host)
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.set_up, new[1:]))

    def set_up(self, host: Host) -> None:
        host.vmguard(*self.setup_words(str(host.number)))
        eventually(lambda: self.healthy(host), f"{host} is set up", within=20)

    def setup_words(self, host_id: str) -> List[str]:
        words = ["setup", "--yes", "--store", self.store, "--host-id", host_id, "--io-timeout", str(IO_TIMEOUT)]
        # That the rig's folder is seen by all hosts shows in no mount table.
        return [*words, "--shared", "yes"]

    def join(self, host: Host) -> None:
        if os.path.exists(host.path("/var/lib/vmguard/host.json")):
            host.vmguard("join")

    def healthy(self, host: Host) -> bool:
        """Whether the host is on, its daemons answer and it is a member."""
        if not host.pid or not host.daemon_pid("sanlock") or not host.daemon_pid("libvirtd"):
            return False
        return bool(host.lockspaces()) and not host.virsh("list", check=False).status

    def recover(self, host: Host) -> None:
        """Switch a host off and on, with its guests and what it defined gone."""
        if host.pid:
            host.power_cut()
        shutil.rmtree(host.folder + "/etc/libvirt/qemu", ignore_errors=True)
        self.boot([host])


class SmallStore(Guarded):
    """The store on a filesystem of its own, small, mounted on each host: one that can fill, freeze and go away."""

    def prepare(self) -> None:
        super().prepare()
        self.filesystem = os.path.join(self.folder, "store.fs")
        self.store_device = self.make_filesystem(self.filesystem, megabytes=320)  # a hundred leases

    def make_filesystem(self, file: str, megabytes: int) -> str:
        with open(file, "wb") as made:
            made.truncate(megabytes << 20)
        command("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", file)
        return self.loop(file)

    def plug_in(self, host: Host) -> None:
        super().plug_in(host)
        self.mount_store(host)

    def mount_store(self, host: Host) -> None:
        host.run("mount", self.store_device, self.store)

    def forget_loops(self) -> None:
        """All but the store's: tests forget those of their images."""
        if self.hosts_are_off():
            super().forget_loops()
            return
        kept, self.loops = self.loops[:1], self.loops[1:]
        super().forget_loops()
        self.loops = kept

    def hosts_are_off(self) -> bool:
        return not any(host.pid for host in self.hosts)


class Installed(Guarded):
    """vmguard is installed and `vmguard setup` was not run."""

    def set_up(self, host: Host) -> None:
        pass


class OnDevice(Guarded):
    """The store on a block device that each host reaches through a node of its own, as a LUN or a shared volume is."""

    megabytes = 8192  # sparse: places are never given back, and a run of all tests takes hundreds

    def prepare(self) -> None:
        super().prepare()
        self.backing = os.path.join(self.folder, "store.device")
        with open(self.backing, "wb") as made:
            made.truncate(self.megabytes << 20)
        self.store = "/dev/rig/leases"
        self.store_loops: List[str] = []

    def plug_in(self, host: Host) -> None:
        super().plug_in(host)
        if not os.path.exists(f"{host.folder}/dev/rig/leases"):
            before = len(self.loops)
            self.block_device("leases", self.backing, [host])
            self.store_loops += self.loops[before:]

    def forget_loops(self) -> None:
        """All but the store's: tests forget those of their images."""
        if any(host.pid for host in self.hosts):
            self.loops = [device for device in self.loops if device not in self.store_loops]
            super().forget_loops()
            self.loops = list(self.store_loops)
        else:
            super().forget_loops()


class Moving(OnDevice):
    """The store in a directory, and an empty device to which it can be moved."""

    def prepare(self) -> None:
        super().prepare()
        self.device, self.store = self.store, os.path.join(self.folder, "store")
