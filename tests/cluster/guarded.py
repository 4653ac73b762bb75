# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The cluster as its administrator makes it: guests on single volumes of one shared volume group, leases and image files on GFS2.

    vg-guests       on the partition main1 and the whole disk `more`; lvmlockd, `lock_type sanlock`; the volumes are active on
                    all nodes, so that guests can migrate
    /srv/shared     GFS2 on vg-guests/shared, by lock_dlm: images, and vmguard's store
"""

import hashlib
import os
import struct
import subprocess
from typing import List, NamedTuple, Sequence, Tuple

from guests import IDLE, SECTOR, WITNESS_LBA, Count
from hosts import LOG_HOOK, PROJECT, eventually
from nodes import BOOT, Machines, Node, each

VG = "vg-guests"
MOUNT = "/srv/shared"
STORE = MOUNT + "/vmguard"
# Seconds. GFS2 stands still while a dead node is fenced and its journal replayed: eight times this must be longer than
# corosync's token (4 s) and consensus (4.8 s) with that, or the survivor loses its own leases.
IO_TIMEOUT = 4
INSTALLED = "/usr/src/vmguard.sha256"
# Without any one of these a node looks well, and dies the wrong way.
UNITS = ("node-identity", "corosync", "dlm", "wdmd", "sanlock", "lvmlockd", "libvirtd")
HOOK_FOLDER = "/etc/libvirt/hooks/qemu.d"


class Volume(NamedTuple):
    """A logical volume, active on all nodes."""

    name: str
    path: str  # /dev/VG/LV
    kernel: str  # its name below /dev, on each node: dm-N
    at: Tuple[str, int]  # the shared disk and the byte in it where it begins; of a linear volume

    @property
    def mapper(self) -> str:
        return "/dev/mapper/" + "-".join(part.replace("-", "--") for part in (VG, self.name))


class Guarded(Machines):
    """Storage, membership, vmguard."""

    def prepare(self) -> None:
        """From new nodes to a cluster that runs; of a kept one nothing but the project is laid anew."""
        if not all(node.pid for node in self.hosts):
            self.boot([node for node in self.hosts if not node.pid])
        each(self.hosts, lambda node: node.run("systemctl", "is-active", *UNITS))
        first = self.hosts[0]
        if not first.exists(f"/dev/{VG}"):
            self._make_storage()
        source = self.source()
        digest = hashlib.sha256(source).hexdigest()
        stale = [node for node in self.hosts if node.read(INSTALLED).strip() != digest or not self.healthy(node)]
        each(stale, lambda node: self.install(node, source))
        for node in stale:  # the first makes the store, the others find it
            self.set_up(node)
            node.write(INSTALLED, digest)

    def _make_storage(self) -> None:
        first = self.hosts[0]
        first.shell(
            "sgdisk -Z /dev/disk/by-id/{0}; sgdisk -n1:0:+4G -n2:0:+64M -n3:0:+64M /dev/disk/by-id/{0}".format(
                os.path.basename(self.disks[0].by_id)
            )
        )
        each(self.hosts, lambda node: node.shell(f"blockdev --rereadpt {self.disks[0].by_id}; udevadm settle"))
        # A host that comes back under the name it died with is waited for by nobody. Setup would write one of its own, which
        # sanlock reads when it starts.
        named = "mkdir -p /etc/sanlock && echo our_host_name = {} >/etc/sanlock/sanlock.conf && systemctl restart sanlock"
        each(self.hosts, lambda node: node.shell(named.format(node.name)))
        # While there is no shared group and the DLM runs, lvmlockd has taken the DLM for the home of its global lock.
        each(self.hosts, lambda node: node.shell("lvmlockctl --stop-lockspaces --wait 1; systemctl stop dlm"))
        each(self.hosts, lambda node: node.run("systemctl", "restart", "lvmlockd"))
        # The global lock lies in the group that is just being made: pvcreate cannot take it.
        parts = f"{self.disks[0].by_id}-part1 {self.disks[1].by_id}"
        first.shell(f"pvcreate -y --config global/use_lvmlockd=0 {parts}", within=120)
        first.shell(f"vgcreate --shared --lock-type sanlock {VG} {parts}", within=120)
        # The other nodes may not have heard yet that there is a group, or made the device of its leases.
        def start_locks(node: Node) -> None:
            words = "systemctl start dlm; vgchange --lock-start"
            eventually(lambda: not node.shell(words, check=False, within=120).status, f"{node} has its locks", 120, 1)

        each(self.hosts, start_locks)
        self.volume("shared", 1024)
        for node in self.hosts:
            # sanlock may wait for the end of the node's own earlier life, longer than systemd's 90 seconds for a device.
            options = "noatime,_netdev,x-systemd.device-timeout=10min"
            node.shell(f"echo '/dev/{VG}/shared {MOUNT} gfs2 {options} 0 0' >>/etc/fstab; mkdir -p {MOUNT}")
        first.shell(f"mkfs.gfs2 -q -O -p lock_dlm -t nodes:shared -j 3 -J 32 /dev/{VG}/shared", within=120)
        each(self.hosts, lambda node: node.shell(f"systemctl daemon-reload; mount {MOUNT}", within=120))
        first.shell(f"mkdir -p {STORE} {MOUNT}/images; chmod 777 {MOUNT}/images")

    # -- the project ----------------------------------------------------------------------------------------------------

    def source(self) -> bytes:
        """The project, as a tar that is the same for the same files."""
        parts = ["Makefile", "vmguard", "hooks", "udev", "conf", "man", "packaging", "docs"]
        plain = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--exclude=__pycache__"]
        return subprocess.run(["tar", "-C", PROJECT, *plain, "-c", *parts], stdout=subprocess.PIPE, check=True).stdout

    def install(self, node: Node, source: bytes) -> None:
        """As a user does from the sources."""
        node.run("sh", "-c", "rm -rf /usr/src/vmguard; mkdir /usr/src/vmguard; tar -C /usr/src/vmguard -x", stdin=source)
        node.shell("make -C /usr/src/vmguard install prefix=/usr", within=180)
        node.write(f"{HOOK_FOLDER}/99-log", LOG_HOOK, 0o755)

    def set_up(self, node: Node) -> None:
        node.vmguard(*self.setup_words(node), within=180)
        eventually(lambda: self.healthy(node), f"{node} is set up", within=60)

    def setup_words(self, node: Node) -> List[str]:
        return ["setup", "--yes", "--store", STORE, "--host-id", str(node.number), "--io-timeout", str(IO_TIMEOUT)]

    def healthy(self, node: Node) -> bool:
        """Whether the node is on, its daemons answer and it is a member."""
        if not node.is_on():
            return False
        done = node.shell("pidof -s sanlock && sanlock client status && virsh -q list >&2", check=False)
        return not done.status and any(line.startswith("s vmguard") for line in done.out.splitlines())

    def recover(self, node: Node) -> None:
        """Switch a node off and on, with its guests and what it defined gone."""
        if node.is_on():
            left = "/etc/libvirt/qemu/*.xml /etc/libvirt/qemu/autostart/* /var/lib/libvirt/qemu/save/*"
            node.shell(f"rm -rf {left}; sync", check=False)
        if node.pid:
            node.power_cut()
        self.boot([node])
        eventually(lambda: self.healthy(node), f"{node} is a member again", within=BOOT, every=1)

    # -- volumes --------------------------------------------------------------------------------------------------------

    def volume(
        self, name: str, megabytes: int = 8, content: bytes = IDLE, options: Sequence[str] = (), shared: bool = True
    ) -> Volume:
        """Make a volume, active on all nodes, or on the first alone; `content` is written to its beginning."""
        words = ["lvcreate", "-qq", "-y", "-Wy", "-Zy", "--activate", "sy" if shared else "ey", "-n", name]
        self.hosts[0].run(*words, "-L", f"{megabytes}M", *options, VG, within=90)
        if shared:
            others = [node for node in self.hosts[1:] if node.pid]
            each(others, lambda node: node.run("lvchange", "-qq", "-asy", f"{VG}/{name}", within=90))
        found = self.find(name)
        if content:
            self.hosts[0].run("dd", f"of={found.path}", "conv=fsync", "oflag=direct", "bs=512", "status=none", stdin=content)
        return found

    def find(self, name: str) -> Volume:
        """Where it lies, told by device-mapper and sysfs of the first node."""
        path = f"/dev/{VG}/{name}"
        asked = (
            f"readlink -f {path}; dmsetup table {path}; cd /sys/class/block; for part in sd*; do"
            " echo $(cat $part/dev) $(cat $part/start 2>/dev/null || echo 0)"
            " $(cat $part/device/wwid $part/../device/wwid 2>/dev/null); done"
        )
        kernel, table, *parts = self.hosts[0].shell(asked).out.splitlines()
        _, _, target, *words = table.split()
        at = ("", 0)
        if target == "linear":
            device, start, *wwid = next(fields for fields in map(str.split, parts) if fields[0] == words[0])
            disk = next(disk for disk in self.disks if wwid and disk.wwn[2:] in wwid[0])
            at = (self.file(disk), (int(start) + int(words[1])) * SECTOR)
        return Volume(name, path, os.path.basename(kernel), at)

    def remove(self, *names: str) -> None:
        """Deactivate everywhere, and remove."""
        volumes = [f"{VG}/{name}" for name in names]
        others = [node for node in self.hosts[1:] if node.pid]
        each(others, lambda node: node.run("lvchange", "-qq", "-an", *volumes, check=False, within=90))
        self.hosts[0].run("lvremove", "-qq", "-f", *volumes, check=False, within=120)

    def count(self, volume: Volume) -> Count:
        """What the witness last wrote on a linear volume: read below the nodes, none of which is asked."""
        file, byte = volume.at
        assert file, f"{volume.name} is not linear"
        with open(file, "rb") as disk:
            disk.seek(byte + WITNESS_LBA * SECTOR)
            return Count(*struct.unpack("<II", disk.read(8)))
