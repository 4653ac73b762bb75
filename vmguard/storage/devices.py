# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices given to a guest whole (PCI, SCSI, USB), NVMe disks by PCI address, and the character devices of disks."""

from vmguard._light import re
from vmguard._typing import List, Tuple
from vmguard.domain import NvmeNamespace, PciDevice, ScsiUnit, UsbDevice
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, block, disks
from vmguard.storage.facts import Devno
from vmguard.storage.host import Host

# PCI classes of controllers with storage behind them: mass storage, and Fibre Channel among the serial buses.
_STORAGE_CLASS = re.compile(r"0x(?:01|0c04)")


def pci(host: Host, device: PciDevice) -> Tuple[Storage, ...]:
    """
    A PCI device: the controller itself if it is one for storage, and the block devices that the host has behind it now.

    While a guest has it, the host sees none of these any more; that is why the controller is an object of its own.
    """
    address, sys = _pci(host, device.address)
    found = _below(host, sys)
    if found or _STORAGE_CLASS.match(host.text(sys + "/class") or ""):
        return (_controller(host, address), *found)
    return ()


def nvme(host: Host, disk: NvmeNamespace) -> Storage:
    """A namespace of an NVMe controller that QEMU drives itself. Raises Unresolvable."""
    address, sys = _pci(host, disk.address)
    controller = _controller(host, address)
    identity = f"{controller.identity}/{disk.namespace}"
    path = f"nvme://{address}/{disk.namespace}"
    for name in host.names("/sys/class/block"):
        there = host.target(f"/sys/class/block/{name}") or ""
        if not there.startswith(sys + "/") or not re.fullmatch(r"nvme\d+(c\d+)?n\d+", name):
            continue
        if (host.text(there + "/nsid") or name.rpartition("n")[2]) != str(disk.namespace):
            continue
        number = host.devno(f"/sys/class/block/{_head(name)}")
        storage = block.resolve(host, number, path) if number else disks.nvme(host, there)._replace(path=path)
        # QEMU takes the whole controller away from the host.
        beside = (one for one in _below(host, sys) if one.used_by_host)
        used = storage.used_by_host or next((f"{one.path}, beside it, is {one.used_by_host}" for one in beside), None)
        return storage._replace(
            also=(*storage.also, identity), under=(*storage.under, controller), used_by_host=used
        )
    reasons = ("the host's nvme driver does not have the controller, so only its address is known",)
    return Storage(identity, path, "nvme", under=(controller,), reasons=reasons)


def scsi(host: Host, unit: ScsiUnit) -> Tuple[Storage, ...]:
    """A SCSI unit: a disk, or a tape or changer by its own designator. Raises Unresolvable."""
    number = re.sub(r"^scsi_host", "", unit.adapter)
    address = f"{number}:{unit.bus}:{unit.target}:{unit.unit}"
    sys = host.target(f"/sys/class/scsi_device/{address}/device")
    if not sys:
        raise Unresolvable(f"scsi {address}", "the kernel has no such SCSI unit")
    names = host.names(sys + "/block")
    numbers = [found for found in (host.devno(f"{sys}/block/{name}") for name in names) if found]
    if numbers:
        return tuple(block.resolve(host, found) for found in numbers)
    return (disks.scsi(host, sys, f"scsi {address}"),)


def usb(host: Host, device: UsbDevice) -> Tuple[Storage, ...]:
    """The disks in a USB device; none for a device of another kind. Raises Unresolvable if it is not plugged in."""
    found: List[Storage] = []
    seen = False
    for name in host.names("/sys/bus/usb/devices"):
        base = f"/sys/bus/usb/devices/{name}"
        if _is_usb(host, base, device):
            seen = True
            found += _below(host, host.realpath(base))
    if not seen:
        raise Unresolvable(
            f"usb {device.bus}:{device.device} {device.vendor}:{device.product}",
            "no such USB device is plugged in",
            missing=True,
        )
    return tuple(dict.fromkeys(found))


def character(host: Host, device: Devno, path: str) -> Tuple[Storage, ...]:
    """
    The disks that a character device gives access to (sg, NVMe generic and controller), or memory that lasts; none for all
    others.
    """
    sys = host.target(f"/sys/dev/char/{device[0]}:{device[1]}") or ""
    name = sys.rpartition("/")[2]
    names: Tuple[str, ...] = ()
    if re.fullmatch(r"dax\d+\.\d+", name):
        reasons = ("persistent memory of this host",)
        return (Storage(f"dev:{host.machine_key()}/{name}", path, "dax", reasons=reasons),)
    if re.fullmatch(r"raw\d+", name):  # until kernel 5.14
        raise Unresolvable(path, "the kernel does not say which block device this raw device is bound to: name that one")
    if re.fullmatch(r"(?:sg\d+|\d+:\d+:\d+:\d+)", name):  # sg, bsg
        parent = host.target(sys + "/device") or ""
        names = host.names(parent + "/block")
        if parent and not names:
            return (disks.scsi(host, parent, path),)
    elif re.fullmatch(r"ng\d+n\d+", name):
        names = ("nvme" + name[2:],)
    elif re.fullmatch(r"nvme\d+", name):
        names = tuple(_head(one) for one in host.names(sys) if re.fullmatch(r"nvme\d+(c\d+)?n\d+", one))
    found: List[Storage] = []
    for one in names:
        number = host.devno(f"/sys/class/block/{one}")
        if number:
            found.append(block.resolve(host, number, path))
    return tuple(found)


def _pci(host: Host, address: str) -> Tuple[str, str]:
    found = re.fullmatch(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", address.lower())
    if not found:
        raise Unresolvable(address[:200], "it is not a PCI address")
    address = f"{found.group(1) or '0000'}:{found.group(2)}:{found.group(3)}.{found.group(4)}"
    sys = host.target(f"/sys/bus/pci/devices/{address}")
    if not sys:
        raise Unresolvable(address, "this host has no such PCI device")
    return address, sys


def _controller(host: Host, address: str) -> Storage:
    reasons = (f"the PCI device {address} of this machine",)
    return Storage(f"pci:{host.machine_key()}/{address}", f"pci {address}", "pci", reasons=reasons)


def _below(host: Host, sys: str) -> Tuple[Storage, ...]:
    """All whole disks whose way to the host leads through a device."""
    found: List[Storage] = []
    for name in host.names("/sys/class/block"):
        there = host.target(f"/sys/class/block/{name}") or ""
        if there.startswith(sys + "/") and not host.text(there + "/partition"):
            number = host.devno(f"/sys/class/block/{_head(name)}")
            if number:
                found.append(block.resolve(host, number))
    return tuple(dict.fromkeys(found))


def _head(name: str) -> str:
    # with native multipathing nvme0c1n2 is one path to nvme0n2
    return re.sub(r"^(nvme\d+)c\d+(n\d+)$", r"\1\2", name)


def _is_usb(host: Host, base: str, device: UsbDevice) -> bool:
    if device.bus or device.device:
        return host.text(base + "/busnum") == str(device.bus) and host.text(base + "/devnum") == str(device.device)
    wanted = [re.sub(r"^0x", "", text.lower()).rjust(4, "0") for text in (device.vendor, device.product)]
    return [host.text(base + "/idVendor"), host.text(base + "/idProduct")] == wanted
