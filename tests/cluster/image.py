# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The image that all nodes boot from: Debian's own packages, from the sources that this machine has configured.

It is built when it is missing (two to three minutes) and kept, under a name that is a hash of what goes into it: the folder
node/, the sources, the functions that build. A node's disk is an overlay on it. The kernel is booted directly, uncompressed,
with an initial file system of busybox and a few modules: without acceleration that halves the time to a login.
"""

import fcntl
import hashlib
import inspect
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
import zlib
from typing import Iterator, List, NamedTuple

HERE = os.path.dirname(os.path.abspath(__file__))
# Not /tmp, which may be a tmpfs: the shared disks are opened with O_DIRECT.
BASE = os.environ.get("VMGUARD_CLUSTER_BASE", "/var/tmp/vmguard-cluster")
PARTS = os.path.join(HERE, "node")
SIZE = "4G"  # of a node's disk; sparse
KEPT = 2  # images: the newest stay

INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc p /proc
/bin/busybox mount -t sysfs s /sys
/bin/busybox mount -t devtmpfs d /dev
for module in {modules}; do /bin/busybox insmod /lib/$module; done
for try in $(/bin/busybox seq 200); do [ -b /dev/vda ] && break; /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 -o noatime /dev/vda /root || exec /bin/busybox sh
/bin/busybox umount /proc /sys
/bin/busybox mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""


class Image(NamedTuple):
    """What a node is started with."""

    disk: str  # raw, never written
    kernel: str
    initrd: str
    key: str  # of ssh


def release() -> str:
    """The code name of this machine's Debian: nodes run the same."""
    with open("/etc/os-release", encoding="utf-8") as file:
        fields = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    return fields["VERSION_CODENAME"].strip('"')


def sources() -> List[str]:
    """The files that say where this machine gets Debian's packages from; those of other vendors are left out."""
    folder = "/etc/apt/sources.list.d"
    found = [os.path.join(folder, name) for name in ("debian.sources", "debian.list") if os.path.exists(f"{folder}/{name}")]
    return found or ["/etc/apt/sources.list"]


def packages() -> List[str]:
    with open(os.path.join(PARTS, "packages"), encoding="utf-8") as file:
        return [word for line in file if not line.startswith("#") for word in line.split()]


def _inputs() -> Iterator[str]:
    yield from sources()
    for folder, _, names in sorted(os.walk(PARTS)):
        yield from (os.path.join(folder, name) for name in sorted(names))


def name() -> str:
    digest = hashlib.sha256((release() + SIZE + INIT).encode())
    for step in (_build, _unpack_kernel, _make_initrd):
        digest.update(inspect.getsource(step).encode())
    for path in _inputs():
        digest.update(f"{os.path.relpath(path, HERE)}\0{stat.S_IMODE(os.stat(path).st_mode):o}\0".encode())
        with open(path, "rb") as file:
            digest.update(file.read() + b"\0")
    return digest.hexdigest()[:16]


def get() -> Image:
    """The image; built first if this machine does not have it. Two that ask at once get the same one."""
    folder = os.path.join(BASE, "images", name())
    image = Image(*(os.path.join(folder, part) for part in ("disk", "vmlinux", "initrd", "key")))
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with open(folder + ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(folder):
            making = folder + ".making"
            _remove(making)
            os.makedirs(making)
            print(f"building the image of the nodes in {folder}: two to three minutes", file=sys.stderr)
            _build(making)
            os.rename(making, folder)
            _forget_old(os.path.dirname(folder))
        os.utime(folder)
    return image


def _build(folder: str) -> None:
    root = os.path.join(folder, "root")
    left_out = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("man", "doc", "locale", "info")]
    with open(os.path.join(folder, "log"), "w", encoding="utf-8") as log:
        for command in (
            ["mmdebstrap", "--variant=minbase", "--aptopt=Apt::Install-Recommends false", *left_out]
            + ["--include=" + ",".join(packages()), release(), root, *sources()],
            [os.path.join(PARTS, "finish"), root],
        ):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            if done.returncode:
                raise RuntimeError(f"{command[0]} failed, see {log.name}")
        (version,) = os.listdir(root + "/lib/modules")
        _unpack_kernel(f"{root}/boot/vmlinuz-{version}", os.path.join(folder, "vmlinux"))
        _make_initrd(root, version, os.path.join(folder, "initrd"))
        shutil.copy(root + "/root/.ssh/id_ed25519", os.path.join(folder, "key"))
        disk = os.path.join(folder, "disk")
        # Checksums of metadata cost time without acceleration, and the disk does not live long.
        options = ["-O", "^metadata_csum", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-m", "0"]
        subprocess.run(["mke2fs", "-q", "-t", "ext4", *options, "-d", root, disk, SIZE], check=True, stdout=log, stderr=log)
    _remove(root)


def _unpack_kernel(source: str, target: str) -> None:
    """The ELF file inside a bzImage: where it is and how it is packed, by the header that the boot protocol defines."""
    with open(source, "rb") as file:
        data = file.read()
    sectors = data[0x1F1]
    begin, length = struct.unpack_from("<II", data, 0x248)
    begin += (sectors + 1) * 512
    packed = data[begin : begin + length]
    if packed.startswith(b"\xfd7zXZ\0"):
        unpacked = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(b"\x1f\x8b\x08"):
        unpacked = zlib.decompressobj(31).decompress(packed)
    else:  # zstd; the last four bytes are the length
        unpacked = subprocess.run(["zstd", "-dc"], input=packed[:-4], stdout=subprocess.PIPE, check=True).stdout
    assert unpacked.startswith(b"\x7fELF"), source
    with open(target, "wb") as file:
        file.write(unpacked)


def _make_initrd(root: str, version: str, target: str) -> None:
    modules: List[str] = []
    # Network and shared disks are there before udev asks for all modules at once, which takes half a minute.
    for module in ("virtio_pci", "virtio_blk", "ext4", "virtio_net", "virtio_scsi", "sd_mod"):
        words = ["chroot", root, "modprobe", "-S", version, "--show-depends", module]
        for line in subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines():
            path = line.split()[1] if line.startswith("insmod ") else ""
            if path and path not in modules:
                modules.append(path)
    folder = target + ".files"
    for part in ("bin", "lib", "dev", "proc", "sys", "root"):
        os.makedirs(os.path.join(folder, part))
    shutil.copy(root + "/bin/busybox", folder + "/bin/")
    for path in modules:
        shutil.copy(root + path, folder + "/lib/")
    with open(folder + "/init", "w", encoding="ascii") as file:
        file.write(INIT.format(modules=" ".join(map(os.path.basename, modules))))
    os.chmod(folder + "/init", 0o755)
    with open(target, "wb") as file:
        subprocess.run("find . | cpio -o -H newc --quiet", shell=True, cwd=folder, stdout=file, check=True)
    shutil.rmtree(folder)


def _remove(folder: str) -> None:
    # A builder that was killed can have left /proc mounted there.
    with open("/proc/self/mounts", encoding="utf-8") as file:
        below = [line.split()[1] for line in file if line.split()[1].startswith(folder + "/")]
    for target in reversed(below):
        subprocess.run(["umount", "--lazy", target], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def _forget_old(folder: str) -> None:
    """Remove all but the newest, and what builders that were killed left: nobody holds its lock."""
    found = [entry.path for entry in os.scandir(folder) if entry.is_dir()]
    making = [path for path in found if path.endswith(".making")]
    for path in sorted(set(found) - set(making), key=os.path.getmtime)[:-KEPT]:
        _remove(path)
    for path in making:
        with open(path[: -len(".making")] + ".lock", "w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            _remove(path)


if __name__ == "__main__":
    print("\n".join(get()))
