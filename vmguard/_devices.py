# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything in <devices> but disks: pass-through, directories, memory, TPM, character devices, and the unknown."""

from vmguard._chardevs import chardev, numbered, rng, smartcard, tpm
from vmguard._disks import read_disk, read_source
from vmguard._found import Found, host_path, is_memory
from vmguard._passthrough import hostdev, pci
from vmguard._typing import Callable, Dict, List, Tuple
from vmguard._xml import Element
from vmguard.domain import Access, Use

# Devices of libvirt 9.0 to 12.1 that name nothing which a guest could write and keep.
_HARMLESS = frozenset((
    "acpi", "controller", "crypto", "emulator", "graphics", "hub", "input", "iommu", "memballoon", "nvram", "panic",
    "redirfilter", "sound", "video", "vsock", "watchdog",
))  # fmt: skip

_SYSTEM_PROGRAMS = (
    "/usr/bin/",
    "/usr/libexec/",
    "/usr/lib/",
    "/bin/",
    "/run/current-system/",
    "/run/libvirt/nix-emulators/",
)


def read_devices(root: Element, uuid: str, found: Found) -> None:
    """All devices of a domain. `uuid` is the domain's, "" if it has none: libvirt names TPM state after it."""
    counts: Dict[str, int] = {}
    devices = [device for parent in root.all("devices") for device in parent.children if not device.namespace]
    # The capability is the whole process's, whichever device it was asked for.
    found.rawio = any(device.get("rawio") == "yes" for device in devices)
    serials = any(device.tag == "serial" for device in devices)
    for device in devices:
        order = counts.get(device.tag, 0)
        counts[device.tag] = order + 1
        if device.tag == "console" and order == 0 and serials and _is_first_serial(device):
            continue
        if device.tag == "tpm":
            tpm(device, uuid, found)
        elif device.tag == "emulator":
            _emulator(device, found)
        elif device.tag in _READERS:
            _READERS[device.tag](device, order, found)
        elif device.tag not in _HARMLESS:
            _unknown(device, found)
        if device.tag != "disk":
            _rom(device, order, found)


def _is_first_serial(console: Element) -> bool:
    """libvirt shows the first serial port as the first console too; where they differ, the serial port counts."""
    target = console.first("target")
    kind = target.get("type") if target is not None else None
    return kind is None or kind == "serial"


def _emulator(device: Element, found: Found) -> None:
    if not device.text.startswith(_SYSTEM_PROGRAMS):
        found.remark("emulator", "it is a program of its own, which may open anything: " + device.text, device.line)


def _rom(device: Element, order: int, found: Found) -> None:
    rom = device.first("rom")
    path = rom.get("file") if rom is not None else None
    if rom is not None and path:
        found.use(Use(f"{numbered(device, order)}, rom", host_path(path), Access.READ, line=rom.line))


def _lease(device: Element, order: int, found: Found) -> None:
    key, target = device.first("key"), device.first("target")
    path = target.get("path") if target is not None else None
    what = f"lease {key.text if key is not None else order}"
    if path:
        # sanlock writes a sector of it, beside the leases of other guests: no disk, but not this guest's alone either.
        found.use(Use(what, host_path(path), Access.SHARE, line=device.line))


def _filesystem(device: Element, order: int, found: Found) -> None:
    what = numbered(device, order)
    source = device.first("source")
    kind = device.get("type") or "mount"
    readonly = device.first("readonly") is not None
    if source is None or kind == "ram":
        return
    if source.get("socket"):
        found.remark(what, "another process has the directory (virtiofsd)", device.line)
    elif kind in ("mount", "bind") and source.get("dir"):
        location = host_path(source.get("dir") or "")
        found.use(Use(what, location, Access.READ if readonly else Access.SHARE, line=device.line))
    elif kind in ("file", "block", "volume"):
        named = read_source(kind, source, what, found)
        if named is not None:
            found.use(Use(what, named, Access.READ if readonly else Access.WRITE, line=device.line))
    else:
        found.puzzle(what, f"its type '{kind}' is not known, or it has no source", device.line)


def _memory(device: Element, order: int, found: Found) -> None:
    what = numbered(device, order)
    source = device.first("source")
    path = source.first("path") if source is not None else None
    if path is None or not path.text or is_memory(path.text):
        return
    readonly = device.find("target", "readonly") is not None
    # Without a word on access, whether it is shared depends on NUMA cells and the memory's backing: it may be.
    private = device.get("access") == "private" and device.get("model") == "nvdimm"
    access = Access.READ if readonly or private else Access.WRITE
    found.use(Use(what, host_path(path.text), access, line=path.line))


def _pstore(device: Element, order: int, found: Found) -> None:
    path = device.first("path")
    if path is not None and path.text:
        found.use(Use("pstore", host_path(path.text), Access.WRITE, may_be_missing=True, line=device.line))


def _audio(device: Element, order: int, found: Found) -> None:
    path = device.get("path")
    if device.get("type") == "file" and path:
        found.use(Use(numbered(device, order), host_path(path), Access.WRITE, may_be_missing=True, line=device.line))


def _shmem(device: Element, order: int, found: Found) -> None:
    found.remark(numbered(device, order), "memory shared with others is no storage", device.line)


def _interface(device: Element, order: int, found: Found) -> None:
    what = numbered(device, order)
    source, backend, script = device.first("source"), device.first("backend"), device.first("script")
    if device.get("type") == "hostdev":
        if source is not None:
            pci(source, what, found)
        else:
            found.puzzle(what, "it has no source", device.line)
    log = backend.get("logFile") if backend is not None else None
    if log:
        found.use(Use(f"{what}, log", host_path(log), Access.WRITE, may_be_missing=True, line=device.line))
    if script is not None:
        found.remark(what, "libvirt runs a script for it: " + (script.get("path") or ""), script.line)


def _unknown(device: Element, found: Found) -> None:
    what = f"device <{device.tag}>"
    named: List[Tuple[str, int]] = []
    for element in device.walk():
        named.extend((value, element.line) for value in element.attributes.values() if value.startswith("/"))
        if element.text.strip().startswith("/"):
            named.append((element.text.strip(), element.line))
    if named:
        found.puzzle(what, "this kind of device is not known, and it names " + named[0][0], named[0][1])
    else:
        found.remark(what, "this kind of device is not known", device.line)


_READERS: Dict[str, Callable[[Element, int, Found], None]] = {
    "audio": _audio,
    "channel": chardev,
    "console": chardev,
    "disk": read_disk,
    "filesystem": _filesystem,
    "hostdev": hostdev,
    "interface": _interface,
    "lease": _lease,
    "memory": _memory,
    "parallel": chardev,
    "pstore": _pstore,
    "redirdev": chardev,
    "rng": rng,
    "serial": chardev,
    "shmem": _shmem,
    "smartcard": smartcard,
}
