# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests of the rig: domain XML, and the few bytes of machine code that they boot."""

import struct
import uuid as uuids
from typing import NamedTuple, Optional, Sequence, Union
from xml.sax.saxutils import escape, quoteattr

SECTOR = 512
MiB = 1024 * 1024
WITNESS_LBA = 2048  # where the witness counts: 1 MiB into its disk


class Disk(NamedTuple):
    """One <disk> of a guest."""

    path: str
    kind: str = "file"  # file, block
    format: str = "raw"
    readonly: bool = False
    shareable: bool = False
    device: str = "disk"
    driver: str = ""  # further attributes of <driver>: "cache='none'"
    backing_ends: bool = True  # "<backingStore/>": libvirt and QEMU look for no backing file
    pool: str = ""  # of a pool volume: path is the volume's name then
    bus: str = ""  # "scsi": one that QEMU unplugs at once, whatever the guest thinks of it

    def xml(self, target: str) -> str:
        if self.pool:
            kind, source = "volume", f"pool={quoteattr(self.pool)} volume={quoteattr(self.path)}"
        else:
            kind, source = self.kind, f"{'dev' if self.kind == 'block' else 'file'}={quoteattr(self.path)}"
        flags = ("<readonly/>" if self.readonly else "") + ("<shareable/>" if self.shareable else "")
        ends = "<backingStore/>" if self.backing_ends and self.format == "raw" else ""
        bus = self.bus or ("ide" if self.device == "cdrom" else "virtio")
        return (
            f"<disk type='{kind}' device='{self.device}'><driver name='qemu' type='{self.format}' {self.driver}/>"
            f"<source {source}/>{ends}<target dev='{target}' bus='{bus}'/>{flags}</disk>"
        )


class Guest(NamedTuple):
    """A domain to be started."""

    name: str
    uuid: str
    xml: str


def target_names(prefix: str = "vd") -> Sequence[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [prefix + a for a in letters] + [prefix + a + b for a in letters for b in letters]


def guest(
    name: str,
    disks: Sequence[Union[str, Disk]] = (),
    uuid: Optional[str] = None,
    on_poweroff: str = "destroy",
    os_extra: str = "",
    devices: str = "",
    arguments: Sequence[str] = (),
    cdrom_boots: bool = False,
) -> Guest:
    """A domain with these disks; a path alone is a raw image file, written exclusively."""
    uuid = uuid or str(uuids.uuid4())
    full = [disk if isinstance(disk, Disk) else Disk(disk) for disk in disks]
    virtio, ide = iter(target_names("vd")), iter(target_names("hd"))
    disk_xml = "".join(disk.xml(next(ide) if disk.device == "cdrom" else next(virtio)) for disk in full)
    commandline = "".join(f"<qemu:arg value={quoteattr(argument)}/>" for argument in arguments)
    commandline = f"<qemu:commandline>{commandline}</qemu:commandline>" if commandline else ""
    boot = "<boot dev='cdrom'/>" if cdrom_boots else "<boot dev='hd'/>"
    return Guest(
        name,
        uuid,
        f"""<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{escape(name)}</name><uuid>{uuid}</uuid>
  <memory unit='MiB'>48</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type>{os_extra}{boot}</os>
  <features><acpi/></features>
  <on_poweroff>{on_poweroff}</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
    {disk_xml}{devices}
    <controller type='usb' model='none'/><memballoon model='none'/>
  </devices>{commandline}
</domain>""",
    )


# For disks with bus "scsi".
SCSI = "<controller type='scsi' index='0' model='virtio-scsi'/>"

# -- what they boot -----------------------------------------------------------------------------------------------------


def boot_sector(code: bytes) -> bytes:
    assert len(code) <= 510
    return code.ljust(510, b"\0") + b"\x55\xaa"


# sti; l: hlt; jmp l
IDLE = boot_sector(b"\xfb\xf4\xeb\xfd")


def power_off_after(ticks: int) -> bytes:
    """Switch off (ACPI S5 of machine `pc`) after so many timer ticks of 55 ms."""
    return boot_sector(
        b"\xfb"  # sti
        + b"\xb9" + struct.pack("<H", ticks)  # mov cx, ticks
        + b"\xf4\xe2\xfd"  # l: hlt; loop l
        + b"\xba\x04\x06\xb8\x00\x20\xef"  # mov dx, 0x604; mov ax, 0x2000; out dx, ax
        + b"\xf4\xeb\xfd"  # hlt; jmp $-1
    )  # fmt: skip


def reset_after(ticks: int) -> bytes:
    """Reset (keyboard controller) after so many timer ticks of 55 ms."""
    return boot_sector(b"\xfb\xb9" + struct.pack("<H", ticks) + b"\xf4\xe2\xfd" + b"\xb0\xfe\xe6\x64" + b"\xf4\xeb\xfd")


# Write to 512 KiB of memory: eight segments from 0x1000 on.
_DIRTY = (
    b"\xbb\x00\x10"  # mov bx, 0x1000
    b"\x8e\xc3\x31\xff\xa1\x00\x7e\xb9\x00\x80\xf3\xab"  # d: mov es, bx; di=0; mov ax, [0x7e00]; cx=0x8000; rep stosw
    b"\x81\xc3\x00\x10\x81\xfb\x00\x90\x75\xea"  # add bx, 0x1000; cmp bx, 0x9000; jne d
)


def witness(mark: int, busy: bool = False) -> bytes:
    """
    Read the counter at WITNESS_LBA, then add one and write it back with `mark` beside it at each timer tick, for ever.

    With one writer the counter grows by one a write; a second writer makes it jump back. One that is `busy` changes 9 MB
    of memory a second besides: with a bandwidth below that its migration never ends.
    """
    dirty = _DIRTY if busy else b""  # before the hlt
    code = (
        b"\xfa\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0\xbc\x00\x7c\xfb"  # cli; ax=ds=es=ss=0; sp=0x7c00; sti
        b"\xb4\x42\xe8" + struct.pack("<h", 0x17 + len(dirty)) +  # mov ah, 0x42 (read); call disk
        b"\x66\xc7\x06\x04\x7e" + struct.pack("<I", mark) +  # mov dword [0x7e04], mark
        b"\x66\xff\x06\x00\x7e"  # again: inc dword [0x7e00]
        b"\xb8\x00\x43\xe8" + struct.pack("<h", 3 + len(dirty)) +  # mov ax, 0x4300 (write, no verify); call disk
        dirty +
        b"\xf4\xeb" + struct.pack("b", -14 - len(dirty))  # hlt; jmp again
    )  # fmt: skip
    packet = 0x7C00 + len(code) + 8
    code += b"\xbe" + struct.pack("<H", packet) + b"\xb2\x80\xcd\x13\xc3"  # disk: si=packet; dl=0x80; int 0x13; ret
    code += struct.pack("<BBHHHQ", 16, 0, 1, 0x7E00, 0, WITNESS_LBA)
    return boot_sector(code)


class Count(NamedTuple):
    """What the witness last wrote."""

    value: int
    mark: int


def count_in(path: str) -> Count:
    with open(path, "rb") as file:
        file.seek(WITNESS_LBA * SECTOR)
        return Count(*struct.unpack("<II", file.read(8)))
