# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks, and whatever else a domain describes like the source of one: backing stores, mirrors, data files, NVRAM."""

from vmguard._found import Found, host_path, number
from vmguard._typing import List, NamedTuple, Optional, Tuple
from vmguard._xml import Element
from vmguard.domain import Access, HostPath, Location, NetworkVolume, NvmeNamespace, PoolVolume, Use

# Formats behind which no image can be: the bytes are the guest's own. "aio" is an old name of raw, "iso" is another;
# "fat" and "dir" are directories shown as a disk.
_PLAIN = frozenset(("raw", "aio", "iso", "fat", "dir", "none"))

# The attribute of <source> that holds the path.
_PATHS = {"file": "file", "block": "dev", "dir": "dir"}
_ANY_PATH = ("file", "dev", "dir", "name", "volume", "path", "namespace")

# Types whose storage cannot be found from the XML.
_ELSEWHERE = {
    "vhostuser": "another process has the storage (vhost-user)",
    "vhostvdpa": "the storage is behind a vDPA device",
}


class _Layer(NamedTuple):
    """One image of a chain before it is put together: the chain is read from the outside, and built from the inside."""

    use: Optional[Use]
    data: Optional[Use]


def image_format(name: Optional[str]) -> Optional[str]:
    """A declared image format as `Use.format` has it: None if nothing can be behind it. libvirt takes none for raw."""
    return None if name is None or name in _PLAIN else name


def read_disk(disk: Element, order: int, found: Found) -> None:
    """A <disk>: its source, what the XML names behind it, and the mirror a block job writes."""
    target = disk.first("target")
    name = (target.get("dev") if target is not None else None) or str(order)
    what = f"disk {name}"
    device = disk.get("device") or "disk"
    source = disk.first("source")
    readonly = disk.first("readonly") is not None and not (device == "lun" and found.rawio)
    if device == "cdrom" or readonly:
        access = Access.READ
    elif disk.first("shareable") is not None:
        access = Access.SHARE
    elif source is not None and _is_shared_base(disk, source):
        access = Access.READ
    else:
        # <transient/> as well: an overlay takes the writes, but a commit through the monitor would reach the disk.
        access = Access.WRITE
    optional = source is not None and source.get("startupPolicy") in ("optional", "requisite")
    driver = disk.first("driver")
    declared = driver.get("type") if driver is not None else None
    cached = driver is None or driver.get("cache") not in ("none", "directsync")
    use = None
    if source is not None:
        use = read_image(disk, disk.get("type") or "file", source, what, access, declared, found)
    mirror = disk.first("mirror")
    target_use = _read_mirror(mirror, f"{what}, mirror", found) if mirror is not None else None
    if use is not None and target_use is not None and mirror is not None and mirror.get("job") == "active-commit":
        # A commit writes to one of the disk's own backing files.
        use, target_use = _committing(use, target_use)
    if use is not None:
        found.use(use._replace(may_be_missing=optional, host_cached=cached, line=disk.line))
    if target_use is not None:
        found.use(target_use)


def _is_shared_base(disk: Element, source: Element) -> bool:
    """
    Whether guests have the image in common as the base of overlays of their own: <transient shareBacking='yes'/>.

    libvirt 7.4 opens it to read, and puts an overlay of that name on it before the guest runs; then that is the source.
    """
    transient = disk.first("transient")
    shared = transient is not None and transient.get("shareBacking") == "yes"
    return shared and ".TRANSIENT-" not in (source.get("file") or "")


def _read_mirror(mirror: Element, what: str, found: Found) -> Optional[Use]:
    kind = mirror.get("type")
    source = mirror.first("source")
    declared = mirror.first("format")
    if kind is not None and source is not None:
        form = declared.get("type") if declared is not None else mirror.get("format")
        return read_image(mirror, kind, source, what, Access.WRITE, form, found)
    path = mirror.get("file")
    if path:
        # The form before libvirt 1.2.6, still written beside the new one.
        return Use(what, host_path(path), Access.WRITE, image_format(mirror.get("format")), line=mirror.line)
    found.puzzle(what, "it names no target", mirror.line)
    return None


def _committing(use: Use, target: Use) -> Tuple[Use, Optional[Use]]:
    """The disk with that backing file written; the target too if it is none of them."""
    spine = [use]
    while spine[-1].location != target.location:
        if not spine[-1].backing:
            return use, target
        spine.append(spine[-1].backing[0])
    done = spine[-1]._replace(access=Access.WRITE)
    for link in reversed(spine[:-1]):
        done = link._replace(backing=(done, *link.backing[1:]))
    return done, None


def read_image(
    owner: Element, kind: str, source: Element, what: str, access: Access, declared: Optional[str], found: Found
) -> Optional[Use]:
    """
    An image with all that the XML names behind it. `owner` is the element that has <source> and <backingStore>.

    None if there is no medium, or it cannot be read (then `found` has it as not understood).
    """
    layers = [_layer(kind, source, what, access, image_format(declared), found)]
    ends = False
    store = owner.first("backingStore")
    while store is not None:
        store_kind = store.get("type")
        if store_kind is None:
            ends = True
            break
        behind = store.first("source")
        label = f"{what}, backing file {len(layers)}"
        declared_element = store.first("format")
        if behind is None:
            found.puzzle(label, "it has no source", store.line)
            break
        form = image_format(declared_element.get("type") if declared_element is not None else None)
        layers.append(_layer(store_kind, behind, label, Access.READ, form, found))
        store = store.first("backingStore")
    return _assembled(layers, ends)


def _assembled(layers: List[_Layer], ends: bool) -> Optional[Use]:
    done: Optional[Use] = None
    for depth, layer in reversed(list(enumerate(layers))):
        behind: Tuple[Use, ...] = tuple(use for use in (done, layer.data) if use is not None)
        if layer.use is None:
            # Not understood, and said so; what is behind it still counts.
            done = done if done is not None else layer.data
            continue
        last = depth == len(layers) - 1
        done = layer.use._replace(backing=behind, chain_ends=ends and last)
    return done


def _layer(kind: str, source: Element, what: str, access: Access, form: Optional[str], found: Found) -> _Layer:
    location = read_source(kind, source, what, found)
    use = None if location is None else Use(what, location, access, form, line=source.line)
    if source.get("fdgroup") is not None:
        found.puzzle(
            what, "it is opened through a file descriptor that was handed to libvirt, whatever its path", source.line
        )
    data = None
    store = source.first("dataStore")
    if store is not None:
        data = _data_store(store, f"{what}, data file", access, found)
    return _Layer(use, data)


def _data_store(store: Element, what: str, access: Access, found: Found) -> Optional[Use]:
    source = store.first("source")
    if source is None:
        found.puzzle(what, "it has no source", store.line)
        return None
    location = read_source(store.get("type") or "file", source, what, found)
    # A data file is raw by definition of qcow2, so its chain ends there.
    return None if location is None else Use(what, location, access, chain_ends=True, line=store.line)


def read_source(kind: str, source: Element, what: str, found: Found) -> Optional[Location]:
    """What a <source> of that type names. None if nothing, or nothing that can be read (then `found` has it)."""
    if kind in _PATHS:
        path = source.get(_PATHS[kind])
        if path:
            return host_path(path)
        if any(source.get(attribute) for attribute in _ANY_PATH):
            found.puzzle(what, f"its source does not fit type='{kind}'", source.line)
        return None
    if kind == "network":
        return _network(source, what, found)
    if kind == "volume":
        return _volume(source, what, found)
    if kind == "nvme":
        address = read_pci(source.first("address"))
        namespace = number(source.get("namespace"))
        if address is None or namespace is None:
            found.puzzle(what, "its NVMe address is incomplete", source.line)
            return None
        return NvmeNamespace(address, namespace)
    found.puzzle(what, _ELSEWHERE.get(kind, f"its type '{kind}' is not known"), source.line)
    return None


def _volume(source: Element, what: str, found: Found) -> Optional[PoolVolume]:
    pool, volume = source.get("pool"), source.get("volume")
    if pool is None and volume is None:
        return None
    if not pool or not volume:
        found.puzzle(what, "it names a pool or a volume, not both", source.line)
        return None
    return PoolVolume(pool, volume, source.get("mode") or "")


def _network(source: Element, what: str, found: Found) -> Optional[NetworkVolume]:
    protocol = source.get("protocol")
    name = source.get("name") or ""
    if not protocol or (not name and protocol != "nbd"):
        found.puzzle(what, "its network source has no protocol or no name", source.line)
        return None
    snapshot = source.first("snapshot")
    if snapshot is not None and snapshot.get("name"):
        name = f"{name}@{snapshot.get('name')}"
    return NetworkVolume(protocol, name, read_hosts(source))


def read_hosts(source: Element) -> Tuple[str, ...]:
    """The <host> elements of a network source, as NetworkVolume has them."""
    hosts = []
    for host in source.all("host"):
        if host.get("transport") == "unix":
            hosts.append("unix:" + (host.get("socket") or ""))
        else:
            hosts.append(host_and_port(host.get("name") or "", host.get("port") or ""))
    return tuple(hosts)


def host_and_port(name: str, port: str) -> str:
    """ "name:port", with an IPv6 address in brackets; without a port just the name."""
    if ":" in name and not name.startswith("["):
        name = f"[{name}]"
    return f"{name}:{port}" if port else name


def read_pci(address: Optional[Element]) -> Optional[str]:
    """The PCI address of an <address>, None if it is not there or makes no sense."""
    if address is None:
        return None
    domain = number(address.get("domain"), 0)
    bus = number(address.get("bus"), 0)
    slot = number(address.get("slot"), 0)
    function = number(address.get("function"), 0)
    if domain is None or bus is None or slot is None or function is None:
        return None
    if domain > 0xFFFFFFFF or bus > 0xFF or slot > 0x1F or function > 7:
        return None
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"


def read_path(path: Optional[str]) -> Optional[HostPath]:
    """A path in the text of an element, None if it is empty."""
    return host_path(path) if path else None
