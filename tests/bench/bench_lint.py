#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""
How long lint takes over many definitions, and how much memory: beside `virt-xml-validate` over the same files, in one run.

    python3 tests/bench/bench_lint.py [DEFINITIONS ...]

Each definition is one that virt-install writes (130 lines), with two disks that exist: an image and an overlay of a base
that all share. One in a hundred has the disk of its neighbour. virt-xml-validate is put to a sample of the files and scaled
up, and the table says so.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from typing import List, Tuple

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SAMPLE = 100
SIZES = (1000, 2500, 5000, 10000)

HEAD = """<domain type='kvm'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <metadata>
    <libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
      <libosinfo:os id="http://debian.org/debian/12"/>
    </libosinfo:libosinfo>
  </metadata>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>4194304</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <cpu mode='host-passthrough' check='none' migratable='on'/>
  <clock offset='utc'>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='hpet' present='no'/>
  </clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{one}'/>
      <target dev='vda' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none'/>
      <source file='{two}'/>
      <target dev='vdb' bus='virtio'/>
      <address type='pci' domain='0x0000' bus='0x05' slot='0x00' function='0x0'/>
    </disk>
    <controller type='usb' index='0' model='qemu-xhci' ports='15'>
      <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>
    </controller>
    <controller type='pci' index='0' model='pcie-root'/>
"""
PORT = """    <controller type='pci' index='{n}' model='pcie-root-port'>
      <model name='pcie-root-port'/>
      <target chassis='{n}' port='0x{port:x}'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x{slot:02x}' function='0x{function}'/>
    </controller>
"""
TAIL = """    <interface type='bridge'>
      <mac address='{mac}'/>
      <source bridge='br0'/>
      <model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/>
    </interface>
    <serial type='pty'>
      <target type='isa-serial' port='0'>
        <model name='isa-serial'/>
      </target>
    </serial>
    <console type='pty'>
      <target type='serial' port='0'/>
    </console>
    <channel type='unix'>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
      <address type='virtio-serial' controller='0' bus='0' port='1'/>
    </channel>
    <input type='tablet' bus='usb'>
      <address type='usb' bus='0' port='1'/>
    </input>
    <graphics type='vnc' port='-1' autoport='yes' listen='127.0.0.1'/>
    <video>
      <model type='virtio' heads='1' primary='yes'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x0'/>
    </video>
    <memballoon model='virtio'>
      <address type='pci' domain='0x0000' bus='0x06' slot='0x00' function='0x0'/>
    </memballoon>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
      <address type='pci' domain='0x0000' bus='0x07' slot='0x00' function='0x0'/>
    </rng>
  </devices>
</domain>
"""


def make(folder: str, count: int) -> None:
    """Definitions and the images that they name."""
    images = os.path.join(folder, "images")
    os.makedirs(images)
    os.makedirs(os.path.join(folder, "guests"))
    base = os.path.join(images, "base.img")
    with open(base, "wb") as file:
        file.truncate(1 << 20)
    first = os.path.join(images, "0.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", first], check=True)
    with open(first, "rb") as file:
        overlay = file.read()
    ports = "".join(PORT.format(n=n, port=15 + n, slot=2 + (n - 1) // 8, function=(n - 1) % 8) for n in range(1, 15))
    for number in range(count):
        one, two = (os.path.join(images, f"{number}.{form}") for form in ("img", "qcow2"))
        with open(one, "wb") as file:
            file.truncate(1 << 20)
        with open(two, "wb") as file:
            file.write(overlay)
        if number % 100 == 99:
            one = os.path.join(images, f"{number - 1}.img")
        mac = f"52:54:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
        name = f"guest{number}"
        text = HEAD.format(name=name, uuid=uuid.uuid5(uuid.NAMESPACE_OID, name), one=one, two=two) + ports
        with open(os.path.join(folder, "guests", name + ".xml"), "w", encoding="utf-8") as out:
            out.write(text + TAIL.format(mac=mac))


def lint(folder: str, *options: str) -> Tuple[float, float, float, int]:
    """Seconds, seconds of processor time, MiB of the largest process, findings."""
    script = (
        "import sys, resource; sys.path.insert(0, sys.argv.pop(1)); from vmguard.cli import main; status = main();"
        "print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)),"
        "file=sys.stderr)"
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, ROOT, "lint", "--format", "github", *options, os.path.join(folder, "guests")],
        capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    findings = [line for line in done.stdout.splitlines() if not line.startswith("::debug")]
    return seconds, processor, int(done.stderr.split()[-1]) / 1024, len(findings)


def validate(folder: str, count: int) -> float:
    """Seconds for all, from a sample."""
    names = sorted(os.listdir(os.path.join(folder, "guests")))[:SAMPLE]
    began = time.monotonic()
    for name in names:
        subprocess.run(
            ["virt-xml-validate", os.path.join(folder, "guests", name), "domain"], capture_output=True, check=True
        )
    return (time.monotonic() - began) / len(names) * count


def main(sizes: List[int]) -> None:
    heads = ("definitions", "disks", "lint", "processor time", "a definition", "one process", "--offline", "memory", "findings")
    print("| " + " | ".join((*heads, "virt-xml-validate")) + " |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for count in sizes:
        folder = tempfile.mkdtemp(prefix="vmguard-bench-lint-", dir="/var/tmp")
        try:
            make(folder, count)
            lint(folder)  # what the kernel has to read, it has read
            seconds, processor, memory, findings = lint(folder)
            alone, _, _, _ = lint(folder, "--jobs", "1")
            offline, _, _, _ = lint(folder, "--offline")
            beside = f"{validate(folder, count):.0f} s" if shutil.which("virt-xml-validate") else "not installed"
            print(
                f"| {count} | {2 * count} | {seconds:.1f} s | {processor:.1f} s |"
                f" {processor / count * 1000:.2f} ms | {alone:.1f} s | {offline:.1f} s |"
                f" {memory:.0f} MiB | {findings} | {beside} |",
                flush=True,
            )
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main([int(word) for word in sys.argv[1:]] or list(SIZES))
