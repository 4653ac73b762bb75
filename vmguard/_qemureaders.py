# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's options that have options of their own, one reader each: -drive, -device, -object, -chardev and the like."""

from vmguard._chardevs import pipe_uses
from vmguard._found import Found, host_path, is_memory, number, pci_address
from vmguard._qemublock import PROBED, Graph, node, takes_file_name
from vmguard._qemuopts import BadOptions, Tree, branch_of, is_on, paths_in, text_of
from vmguard._typing import Callable, Dict, List, NamedTuple, Optional, Tuple
from vmguard.domain import Access, PciDevice, UsbDevice, Use


class Argument(NamedTuple):
    """One option of QEMU with its value; option "" is an argument without one, which QEMU takes for its first disk."""

    number: int  # of the option among all arguments, from 1
    option: str  # without dashes
    value: str
    line: int

    @property
    def what(self) -> str:
        """The label of what this argument names."""
        return f"qemu argument {self.number}"


# Groups of -set whose members name storage.
_SETTABLE = frozenset(("blockdev", "chardev", "device", "drive", "fsdev", "object", "virtfs"))

# -object: which of their properties are files, and how they are used.
_OBJECT_FILES: Dict[str, Tuple[Tuple[str, Access], ...]] = {
    "authz-list-file": (("filename", Access.READ),),
    "filter-dump": (("file", Access.WRITE),),
    "igvm-cfg": (("file", Access.READ),),
    "secret": (("file", Access.READ),),
    "sev-guest": (("dh-cert-file", Access.READ), ("session-file", Access.READ)),
    "sev-snp-guest": (),
}
_OBJECTS = frozenset((
    "authz-list", "authz-pam", "authz-simple", "can-bus", "can-host-socketcan", "colo-compare", "cryptodev-backend",
    "cryptodev-backend-builtin", "cryptodev-backend-lkcf", "cryptodev-vhost-user", "dbus-vmstate", "filter-buffer",
    "filter-mirror", "filter-redirector", "filter-replay", "filter-rewriter", "input-barrier", "input-linux", "iommufd",
    "iothread", "main-loop", "memory-backend-epc", "memory-backend-memfd", "memory-backend-ram", "memory-backend-shm",
    "pef-guest", "pr-manager-helper", "qtest", "rng-builtin", "rng-egd", "s390-pv-guest", "secret_keyring", "tdx-guest",
    "thread-context", "throttle-group", "tls-cipher-suites", "tls-creds-anon", "tls-creds-psk",
    "tls-creds-x509", "x-remote-object",
    "x-vfio-user-server",
))  # fmt: skip

# Properties of devices that name by id what another argument, or libvirt, has described.
_REFERENCES = frozenset((
    "audiodev", "bus", "chardev", "drive", "fsdev", "hostmem", "id", "iothread", "memdev", "netdev", "rng", "tpmdev",
    "driver", "mac", "addr", "label", "serial", "wwn", "name", "loadparm", "mount_tag", "tag", "ver",
    "product", "vendor",
    "model", "display", "x-pci-sub-device-id", "secret", "logical_block_size", "physical_block_size",
))  # fmt: skip


def written(path: str, what: str) -> Use:
    """A file that QEMU makes and writes."""
    return Use(what, host_path(path), Access.WRITE, may_be_missing=True)


def read_file(path: Optional[str], what: str) -> List[Use]:
    """A file that QEMU reads at its start."""
    # A name without a slash is looked for among QEMU's own files; a comma separates the modules of a multiboot kernel.
    return [Use(what, host_path(path), Access.READ)] if path and "/" in path and "," not in path else []


def _drive(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    access = Access.READ if text_of(options, "media") == "cdrom" else Access.WRITE
    # Always a file name here, never a node's name.
    name = text_of(options, "file")
    if name is not None:
        # Always a file name here, never a node's name. What else there is under "file" goes with it.
        beside = {key: value for key, value in branch_of(options, "file").items() if key}
        options = {key: value for key, value in options.items() if key != "file"}
        if takes_file_name(text_of(options, "driver", "format")):
            options["file"] = beside
        else:
            options.update(beside)
    return node(options, argument.what, access, PROBED, graph, name=name)


def _blockdev(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    if text_of(options, "driver") is None:
        raise BadOptions("it has no driver")
    return node(options, argument.what, Access.WRITE, None, graph)


def _object(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    kind = text_of(options, "qom-type") or ""
    what = argument.what
    if kind == "memory-backend-file":
        path = text_of(options, "mem-path")
        if path is None or is_memory(path):
            return []
        shared = is_on(options, "share") and not is_on(options, "readonly")
        return [Use(what, host_path(path), Access.WRITE if shared else Access.READ, may_be_missing=True)]
    if kind == "rng-random" or kind in _OBJECTS:
        return []
    if kind in _OBJECT_FILES:
        return [
            Use(what, host_path(text_of(options, key) or ""), access, may_be_missing=access is Access.WRITE)
            for key, access in _OBJECT_FILES[kind]
            if text_of(options, key) is not None
        ]
    if paths_in(options):
        raise BadOptions(f"objects of type '{kind}' are not known, and it names " + paths_in(options)[0])
    found.remark(f"{what} (-object)", f"objects of type '{kind}' are not known", argument.line)
    return []


def _chardev(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    kind, what = text_of(options, "backend"), argument.what
    path = text_of(options, "path")
    uses: List[Use] = []
    if kind == "file" and path is not None:
        uses.append(written(path, what))
        source = text_of(options, "input-path")
        uses += [Use(f"{what}, input", host_path(source), Access.READ)] if source is not None else []
    elif kind == "pipe" and path is not None:
        uses += pipe_uses(what, path)
    elif kind in ("parallel", "parport", "serial", "tty") and path is not None:
        uses.append(Use(what, host_path(path), Access.WRITE))
    elif path is not None and kind not in ("socket", "dbus", "hub", "pty"):
        raise BadOptions(f"character devices of type '{kind}' are not known, and it names {path}")
    log = text_of(options, "logfile")
    if log is not None:
        uses.append(written(log, f"{what}, log"))
    return uses


def _fsdev(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    path = text_of(options, "path")
    if path is None:
        found.remark(f"{argument.what} (-{argument.option})", "another process has the directory", argument.line)
        return []
    access = Access.READ if is_on(options, "readonly") else Access.SHARE
    return [Use(argument.what, host_path(path), access)]


def _device(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    kind, what = text_of(options, "driver") or "", argument.what
    label = f"{what} (-device {kind})"
    if kind.startswith("vfio-pci"):
        return _vfio(options, what, label, argument.line, found)
    if kind == "usb-host":
        return _usb_host(options, what)
    if kind in ("loader", "guest-loader"):
        keys = ("file", "kernel", "initrd")
        return [use for key in keys for use in read_file(text_of(options, key), what)]
    if kind in ("usb-mtp", "u2f-emulated"):
        path = text_of(options, "rootdir", "dir")
        if path is None:
            return []
        return [Use(what, host_path(path), Access.READ if is_on(options, "readonly") else Access.SHARE)]
    if kind.startswith(("vhost-scsi", "vhost-vdpa", "vfio-ccw")):
        raise BadOptions("which storage it has cannot be seen here")
    if kind.startswith(("vhost-user-blk", "vhost-user-scsi", "vfio-user")):
        raise BadOptions("another process has the storage (vhost-user, vfio-user)")
    if kind.startswith("vfio-") or kind.startswith("ivshmem"):
        found.remark(label, "it is taken for no storage", argument.line)
        return []
    uses = read_file(text_of(options, "romfile"), what)
    others = {key: value for key, value in options.items() if key not in _REFERENCES and key != "romfile"}
    if any(path.startswith("/") for path in paths_in(others)):
        raise BadOptions(f"devices of type '{kind}' are not known to name files, and it names " + paths_in(others)[0])
    return uses


def _vfio(options: Tree, what: str, label: str, line: int, found: Found) -> List[Use]:
    host = text_of(options, "host") or (text_of(options, "sysfsdev") or "").rstrip("/").rpartition("/")[2]
    if (text_of(options, "sysfsdev") or "").startswith("/sys/bus/mdev/"):
        found.remark(label, "a mediated device is taken for no storage", line)
        return []
    address = pci_address(host)
    if address is None:
        raise BadOptions("its PCI address is not understood")
    return [Use(what, PciDevice(address), Access.WRITE), *read_file(text_of(options, "romfile"), f"{what}, rom")]


def _usb_host(options: Tree, what: str) -> List[Use]:
    bus, device = number(text_of(options, "hostbus"), 0), number(text_of(options, "hostaddr"), 0)
    vendor, product = number(text_of(options, "vendorid"), 0), number(text_of(options, "productid"), 0)
    node_path = text_of(options, "hostdevice")
    if node_path is not None:
        bus_name, _, device_name = node_path.rpartition("/")
        bus_name = bus_name.rpartition("/")[2]
        if bus_name.isdecimal() and device_name.isdecimal():
            bus, device = int(bus_name), int(device_name)
    if (
        bus is None
        or device is None
        or vendor is None
        or product is None
        or not ((bus and device) or (vendor and product))
    ):
        raise BadOptions("its USB address is not understood")
    named = UsbDevice(bus, device, f"0x{vendor:04x}" if vendor else "", f"0x{product:04x}" if product else "")
    return [Use(what, named, Access.WRITE)]


def _files(*keys: Tuple[str, Access]) -> "Reader":
    """A reader of options of which only these keys name files."""

    def read(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
        uses: List[Use] = []
        for key, access in keys:
            path = text_of(options, key)
            if path is not None and access is Access.WRITE:
                uses.append(written(path, argument.what))
            else:
                uses += read_file(path, argument.what)
        return uses

    return read


def _acpitable(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    paths = (text_of(options, "file") or text_of(options, "data") or "").split(":")
    return [use for path in paths for use in read_file(path, argument.what)]


def _mem_path(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    path = argument.value
    return [] if is_memory(path) else [Use(argument.what, host_path(path), Access.READ, may_be_missing=True)]


def _setting(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    """-set and -global change what others have said before."""
    group = argument.value.partition(".")[0]
    if (argument.option == "set" and group in _SETTABLE - {"device"}) or "/" in argument.value:
        raise BadOptions("it may lead a device to other storage: " + argument.value)
    found.remark(f"{argument.what} (-{argument.option})", "a property is set behind libvirt's back", argument.line)
    return []


def _closed(options: Tree, argument: Argument, graph: Graph, found: Found) -> List[Use]:
    raise BadOptions("it is a file that may name any storage")


Reader = Callable[[Tree, Argument, Graph, Found], List[Use]]

# Options with options of their own: the key that may be left out, and who reads them.
OPTIONED: Dict[str, Tuple[str, Reader]] = {
    "M": ("type", _files(("kernel", Access.READ), ("initrd", Access.READ), ("dtb", Access.READ),
                         ("firmware", Access.READ), ("dumpdtb", Access.WRITE))),
    "acpitable": ("", _acpitable),
    "audiodev": ("driver", _files(("path", Access.WRITE))),
    "blockdev": ("driver", _blockdev),
    "chardev": ("backend", _chardev),
    "device": ("driver", _device),
    "drive": ("", _drive),
    "fsdev": ("fsdriver", _fsdev),
    "fw_cfg": ("name", _files(("file", Access.READ))),
    "global": ("", _setting),
    "icount": ("shift", _files(("rrfile", Access.WRITE))),
    "mem-path": ("", _mem_path),
    "object": ("qom-type", _object),
    "readconfig": ("", _closed),
    "set": ("", _setting),
    "smbios": ("", _files(("file", Access.READ), ("path", Access.READ))),
    "tpmdev": ("type", _files(("path", Access.WRITE))),
    "trace": ("enable", _files(("file", Access.WRITE), ("events", Access.READ))),
    "usbdevice": ("", _setting),
    "virtfs": ("fsdriver", _fsdev),
}  # fmt: skip
OPTIONED["machine"] = OPTIONED["M"]
