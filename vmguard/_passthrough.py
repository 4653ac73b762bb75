# SPDX-License-Identifier: LGPL-2.1-or-later
"""Devices of the host given to a guest: PCI, USB, SCSI."""

from vmguard._chardevs import numbered
from vmguard._disks import read_hosts, read_pci
from vmguard._found import Found, number
from vmguard._xml import Element
from vmguard.domain import Access, NetworkVolume, PciDevice, ScsiUnit, UsbDevice, Use


def hostdev(device: Element, order: int, found: Found) -> None:
    """A <hostdev>, `order` being its place among them, from 0."""
    what = numbered(device, order)
    kind, source = device.get("type"), device.first("source")
    if (device.get("mode") or "subsystem") != "subsystem":
        found.puzzle(what, f"its mode '{device.get('mode')}' is not known to QEMU guests", device.line)
    elif kind == "mdev" and device.get("model") == "vfio-ccw":
        found.puzzle(what, "which disk the channel device is cannot be seen", device.line)
    elif kind == "mdev":
        found.remark(what, "a mediated device is taken for no storage", device.line)
    elif source is None:
        found.puzzle(what, "it has no source", device.line)
    elif kind == "pci":
        pci(source, what, found)
    elif kind == "usb":
        _usb(source, what, found)
    elif kind == "scsi":
        _scsi(device, source, what, found)
    elif kind == "scsi_host":
        found.puzzle(what, f"what storage the vhost-scsi target {source.get('wwpn')} has cannot be seen", device.line)
    else:
        found.puzzle(what, f"its type '{kind}' is not known", device.line)


def pci(source: Element, what: str, found: Found) -> None:
    """The PCI device that a <source> names."""
    address = read_pci(source.first("address"))
    if address is None:
        found.puzzle(what, "its PCI address is incomplete", source.line)
    else:
        found.use(Use(what, PciDevice(address), Access.WRITE, line=source.line))


def _usb(source: Element, what: str, found: Found) -> None:
    address, vendor, product = source.first("address"), source.first("vendor"), source.first("product")
    bus = number(address.get("bus"), 0) if address is not None else 0
    device = number(address.get("device"), 0) if address is not None else 0
    vendor_id = number(vendor.get("id"), 0) if vendor is not None else 0
    product_id = number(product.get("id"), 0) if product is not None else 0
    if bus is None or device is None or vendor_id is None or product_id is None:
        found.puzzle(what, "its USB address makes no sense", source.line)
        return
    if not (bus or device or vendor_id or product_id):
        if address is None or address.get("port") is None:
            found.puzzle(what, "its USB address is incomplete", source.line)
        else:
            found.puzzle(what, "a USB device by its port is not understood", source.line)
        return
    missing = source.get("startupPolicy") in ("optional", "requisite")
    vendor_text = f"0x{vendor_id:04x}" if vendor_id else ""
    product_text = f"0x{product_id:04x}" if product_id else ""
    named = UsbDevice(bus, device, vendor_text, product_text)
    found.use(Use(what, named, Access.WRITE, may_be_missing=missing, line=source.line))


def _scsi(device: Element, source: Element, what: str, found: Found) -> None:
    if device.first("readonly") is not None and not found.rawio:
        access = Access.READ
    else:
        access = Access.SHARE if device.first("shareable") is not None else Access.WRITE
    protocol = source.get("protocol")
    if protocol == "iscsi" and source.get("name"):
        volume = NetworkVolume("iscsi", source.get("name") or "", read_hosts(source))
        found.use(Use(what, volume, access, line=source.line))
        return
    adapter, address = source.first("adapter"), source.first("address")
    name = adapter.get("name") if adapter is not None else None
    if protocol in (None, "adapter") and name and address is not None:
        bus, target, unit = (number(address.get(part)) for part in ("bus", "target", "unit"))
        if bus is not None and target is not None and unit is not None:
            found.use(Use(what, ScsiUnit(name, bus, target, unit), access, line=source.line))
            return
    found.puzzle(what, "its SCSI address is incomplete", source.line)
