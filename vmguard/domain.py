# SPDX-License-Identifier: LGPL-2.1-or-later
"""
libvirt domain XML in, plain data out: every place where a domain names storage of its host.

The XML is untrusted input: no document type, no entities, no network; size and depth are bounded; whatever is not
understood is said, not skipped.
"""

from enum import Enum

from vmguard._typing import TYPE_CHECKING, NamedTuple, Optional, Tuple, Union
from vmguard.errors import BadDomain

if TYPE_CHECKING:
    from vmguard._xml import Element

# The types of domain that libvirt's QEMU driver runs: accelerated by KVM, not at all, by macOS or by Hyper-V.
QEMU_KINDS = frozenset(("kvm", "qemu", "hvf", "hyperv"))

# Of the one element that vmguard puts into a domain's metadata (arrivals.py).
ARRIVAL_NAMESPACE = "urn:vmguard:arrival:1"


class Access(str, Enum):
    """What the guest may do with it."""

    WRITE = "write"
    SHARE = "share"  # write, beside others: <shareable/>, or a directory exported read-write
    READ = "read"


class HostPath(NamedTuple):
    """A path on the host: file, block device, directory, whatever it turns out to be."""

    path: str


class NetworkVolume(NamedTuple):
    """A volume reached over the network by QEMU itself."""

    # rbd, nbd, iscsi, gluster, nfs, ssh, http, https, ftp, ftps, tftp, sheepdog, vxhs, or what the XML says
    protocol: str
    name: str  # image, export or path as the protocol names it
    hosts: Tuple[str, ...] = ()  # "name:port", as written, "unix:/path" for sockets


class PoolVolume(NamedTuple):
    """A volume of a libvirt storage pool."""

    pool: str
    volume: str
    mode: str = ""  # "", "host" or "direct" (iscsi pools)


class NvmeNamespace(NamedTuple):
    """An NVMe namespace that QEMU drives itself (disk type='nvme')."""

    address: str  # PCI address "0000:01:00.0"
    namespace: int


class PciDevice(NamedTuple):
    """A PCI device given to the guest whole."""

    address: str


class ScsiUnit(NamedTuple):
    """A SCSI logical unit given to the guest (hostdev type='scsi')."""

    adapter: str  # "scsi_host0"
    bus: int
    target: int
    unit: int


class UsbDevice(NamedTuple):
    """A USB device given to the guest: by bus and device number, or by vendor and product."""

    bus: int = 0
    device: int = 0
    vendor: str = ""
    product: str = ""


Location = Union[HostPath, NetworkVolume, PoolVolume, NvmeNamespace, PciDevice, ScsiUnit, UsbDevice]


class Use(NamedTuple):
    """One place where a domain names storage."""

    what: str  # for people, unique in the domain: "disk vda", "nvram", "tpm state", "serial 0", "qemu argument 3"
    location: Location
    access: Access
    # Image format as declared ("qcow2"). None: none, so nothing is behind it ("raw"). "auto": QEMU looks at the header
    # itself and follows what it finds (its own arguments only: libvirt never lets it).
    format: Optional[str] = None
    # What the XML itself names behind it: the backing store, which has the next one behind itself, and the data store.
    backing: Tuple["Use", ...] = ()
    chain_ends: bool = False  # the XML ends the backing chain in words (<backingStore/>): headers need not be followed
    may_be_missing: bool = False  # libvirt or QEMU makes it at start (logs, first nvram), or drops it (startupPolicy)
    # Whether what the guest writes goes through the page cache of the host: so it does unless cache='none' or 'directsync'
    # is asked for.
    host_cached: bool = True
    line: int = 0  # in the XML, from 1; 0: not from XML


class NotUnderstood(NamedTuple):
    """Something that may name storage and could not be read."""

    what: str  # "qemu argument 3 (-drive)"
    why: str
    line: int = 0


class Domain(NamedTuple):
    """A domain, as far as storage goes."""

    name: str
    uuid: str  # lower case, with dashes
    uses: Tuple[Use, ...]
    not_understood: Tuple[NotUnderstood, ...] = ()
    # Arguments and elements that were seen, name no storage, and are worth a word.
    remarks: Tuple[NotUnderstood, ...] = ()
    arrival: str = ""  # the nonce that our `migrate` or `restore` hook put into its metadata; "" if there is none


def parse(xml: bytes) -> Domain:
    """
    Read a domain definition, live or persistent, or the status file libvirt keeps of a running domain.

    Raises BadDomain for whatever is not a domain of a QEMU kind, is too large or too deep, or carries a document type.
    """
    from vmguard._xml import read

    return of_element(read(xml))


def of_element(root: "Element") -> Domain:
    """The same, of XML that was read already. Whatever `line` its elements carry, the uses have. Raises BadDomain."""
    # The readers import the types above.
    from vmguard._boot import QEMU_NAMESPACE, read_boot, read_overrides
    from vmguard._devices import read_devices
    from vmguard._found import Found

    root = _domain_of(root)
    name = _name(root.first("name"), root.line)
    uuid = _uuid(root.first("uuid"))
    found = Found()
    read_boot(root, name, found)
    read_devices(root, uuid, found)
    read_overrides(root, found)
    if root.first("commandline", QEMU_NAMESPACE) is not None:
        # Few domains need it.
        from vmguard.qemuargs import read_commandline

        read_commandline(root, found)
    return Domain(
        name,
        uuid,
        tuple(found.uses),
        tuple(found.not_understood),
        tuple(found.remarks),
        _arrival(root.first("metadata")),
    )


def _arrival(metadata: Optional["Element"]) -> str:
    mark = metadata.first("arrival", ARRIVAL_NAMESPACE) if metadata is not None else None
    return (mark.get("nonce") or "") if mark is not None else ""


def who(xml: bytes) -> Tuple[str, str]:
    """
    Name and uuid alone, for those who ask nothing else: without the readers of everything. Raises BadDomain like `parse`,
    but for what is in the rest.
    """
    root = _root(xml)
    return _name(root.first("name"), root.line), _uuid(root.first("uuid"))


def _root(xml: bytes) -> "Element":
    """The <domain>, of a kind that is QEMU's."""
    from vmguard._xml import read

    return _domain_of(read(xml))


def _domain_of(root: "Element") -> "Element":
    if root.tag == "domstatus" and not root.namespace:
        inner = root.first("domain")
        if inner is None:
            raise BadDomain("it is a status without a domain", root.line)
        root = inner
    if root.tag != "domain" or root.namespace:
        raise BadDomain(f"it is a <{root.tag}>, not a <domain>", root.line)
    if root.get("type") not in QEMU_KINDS:
        raise BadDomain(f"it is a domain of type '{root.get('type')}', which is not run by QEMU", root.line)
    return root


def _name(element: Optional["Element"], line: int) -> str:
    if element is None or not element.text:
        raise BadDomain("it has no name", line)
    # libvirt refuses it as well: files are named after domains.
    if "/" in element.text:
        raise BadDomain("its name has a slash", element.line)
    return element.text


def uuid_in(text: str) -> str:
    """
    A uuid in the one form that everything else here compares; "" where the text is none.

    Like libvirt, which takes 32 hexadecimal digits with blanks around and blanks and dashes between them.
    """
    digits = text.strip(" \t\r\n\v\f").replace("-", "").replace(" ", "").lower()
    if len(digits) != 32 or not all(digit in "0123456789abcdef" for digit in digits):
        return ""
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def _uuid(element: Optional["Element"]) -> str:
    """The uuid of a domain; "" if there is none (libvirt makes one up at start)."""
    if element is None or not element.text:
        return ""
    found = uuid_in(element.text)
    if not found:
        raise BadDomain("its uuid is malformed", element.line)
    return found
