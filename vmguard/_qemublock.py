# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's block devices as its own options describe them: file names with protocols, and graphs of drivers."""

from vmguard._disks import host_and_port, image_format
from vmguard._found import host_path, number, pci_address
from vmguard._light import re
from vmguard._qemuopts import MAX_NESTING, BadOptions, Tree, branch_of, from_json, is_on, text_of
from vmguard._typing import Dict, List, Optional, Set, Tuple
from vmguard.domain import Access, Location, NetworkVolume, NvmeNamespace, Use

# Not declared: QEMU looks at the header itself, and follows what it finds there.
PROBED = "auto"

_FORMATS = frozenset((
    "bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc",
))  # fmt: skip
# Drivers that pass through to one child or more, and the keys of those.
_FILTERS: Dict[str, Tuple[str, ...]] = {
    "blkdebug": ("image",),
    "blklogwrites": ("file", "log"),
    "blkreplay": ("image",),
    "blkverify": ("test", "raw"),
    "compress": ("file",),
    "copy-before-write": ("file", "target"),
    "copy-on-read": ("file",),
    "preallocate": ("file",),
    "replication": ("file",),
    "snapshot-access": ("file",),
    "throttle": ("file",),
}
_FILES = frozenset(("file", "host_cdrom", "host_device", "host_floppy", "io_uring"))
_NOTHING = frozenset(("null-aio", "null-co"))
_URLS = frozenset(("ftp", "ftps", "http", "https"))
_NETWORK = frozenset(("gluster", "iscsi", "iser", "nbd", "nfs", "rbd", "sftp", "sheepdog", "ssh", "tftp", "vxhs"))


# QEMU allows a node below many others; reading it for each must end somewhere.
_MAX_VISITS = 10_000


class Graph:
    """The named nodes of a command line, and those that some other node was seen to refer to."""

    def __init__(self, nodes: Dict[str, Tree]) -> None:
        self.nodes = nodes
        self.taken: Set[str] = set()
        self._visits = 0

    def visit(self, depth: int) -> None:
        """Count a node that is read. Raises BadOptions where that finds no end."""
        self._visits += 1
        if depth > MAX_NESTING or self._visits > _MAX_VISITS:
            raise BadOptions("it is nested too deep, or in a ring")


def protocol_of(name: str) -> Optional[str]:
    """The protocol of a file name: what is before a colon that comes before any slash."""
    for position, letter in enumerate(name):
        if letter == "/":
            return None
        if letter == ":":
            return name[:position]
    return None


def named_file(name: str, what: str, access: Access, form: Optional[str], graph: Graph, depth: int = 0) -> List[Use]:
    """What a file name means, as -drive file= and -hda take it. Raises BadOptions for what cannot be read."""
    graph.visit(depth)
    protocol = protocol_of(name)
    if protocol is None:
        return [Use(what, host_path(name), access, form)]
    rest = name[len(protocol) + 1 :]
    if protocol == "file":
        # As a URL ("file:///x") or as a bare path ("file:/x").
        return [Use(what, host_path(rest[2:] if rest.startswith("///") else rest), access, form)]
    if protocol in _FILES:
        return [Use(what, host_path(rest), access, form)]
    if protocol == "json":
        return node(from_json(rest), what, access, form, graph, depth + 1)
    if protocol == "fat":
        words, path = [], rest
        while path.partition(":")[0] in ("rw", "floppy", "12", "16", "32"):
            word, _, path = path.partition(":")
            words.append(word)
        return [Use(what, host_path(path), access if "rw" in words else Access.READ)]
    if protocol in ("blkdebug", "blkverify", "blkreplay"):
        first, colon, second = rest.partition(":")
        if not colon:
            raise BadOptions(f"its {protocol} file name is incomplete")
        uses = named_file(second, what, access, form, graph, depth + 1)
        if protocol == "blkverify":
            uses += named_file(first, f"{what}, raw copy", access, None, graph, depth + 1)
        return uses
    if protocol in _NOTHING:
        return []
    location = _from_url(protocol, rest, name)
    return [Use(what, location, access, form)]


def _from_url(protocol: str, rest: str, name: str) -> Location:
    base, _, transport = protocol.partition("+")
    if protocol == "rbd":
        # Options follow after a colon; one that is part of a name has a backslash before it.
        return NetworkVolume("rbd", re.sub(r"\\(.)", r"\1", re.split(r"(?<!\\):", rest)[0]))
    if protocol == "nbd" and not rest.startswith("//"):
        return _old_nbd(rest)
    if base == "nvme" and rest.startswith("//"):
        address, _, namespace = rest[2:].rpartition("/")
        return _nvme(address, namespace)
    if base not in _URLS and base not in _NETWORK:
        raise BadOptions(f"its protocol '{protocol}' is not known")
    if not rest.startswith("//"):
        if base == "sheepdog":
            return NetworkVolume(base, rest)
        raise BadOptions(f"its {protocol} address is not a URL")
    # Rare, and slow to import.
    from urllib.parse import parse_qs, unquote, urlsplit

    try:
        url = urlsplit("x:" + rest)
        server, port = url.hostname or "", url.port
    except ValueError:
        raise BadOptions(f"its {protocol} address is not a URL") from None
    path = unquote(url.path)
    socket = parse_qs(url.query).get("socket", [""])[0]
    hosts: Tuple[str, ...] = (host_and_port(server, str(port) if port else ""),) if server else ()
    if transport == "unix" or (socket and not server):
        hosts = ("unix:" + socket,)
    if base in ("ssh", "sftp", "nfs") or base in _URLS or base == "tftp":
        return NetworkVolume("ssh" if base == "sftp" else base, path, hosts)
    return NetworkVolume("iscsi" if base == "iser" else base, path[1:], hosts)


def _old_nbd(rest: str) -> NetworkVolume:
    address, _, export = rest.partition(":exportname=")
    return NetworkVolume("nbd", export, (address,))


def _nvme(address: str, namespace: str) -> NvmeNamespace:
    pci, space = pci_address(address), number(namespace)
    if pci is None or space is None:
        raise BadOptions("its NVMe address is incomplete")
    return NvmeNamespace(pci, space)


def node(
    options: Tree,
    what: str,
    access: Access,
    form: Optional[str],
    graph: Graph,
    depth: int = 0,
    name: Optional[str] = None,
) -> List[Use]:
    """
    What a node of the block graph uses.

    `name` is a file name that may begin with a protocol; a "filename" among the options may not. `form` is the image
    format that the nodes above have given. Raises BadOptions for what cannot be read.
    """
    graph.visit(depth)
    if is_on(options, "read-only", "readonly") and access is not Access.READ:
        access = Access.READ
    driver = text_of(options, "driver", "format")
    literal = text_of(options, "filename")
    if driver in _FORMATS or (driver is None and "file" in options):
        return _image(options, driver, what, access, form, graph, depth, name)
    if driver in _FILTERS:
        return _filter(options, driver or "", what, access, form, graph, depth)
    if driver == "quorum":
        children = branch_of(options, "children")
        uses: List[Use] = []
        for key in sorted(children):
            uses += _child(children, key, f"{what}, child {key}", access, form, graph, depth)
        return uses
    if driver == "vvfat":
        path = text_of(options, "dir")
        if path is not None:
            return [Use(what, host_path(path), access if is_on(options, "rw") else Access.READ)]
    if driver in _NOTHING:
        return []
    if literal is not None and (driver is None or driver in _FILES):
        return [Use(what, host_path(literal), access, form)]
    name = name or literal
    if name is not None:
        full = name if driver is None or protocol_of(name) is not None else f"{driver}:{name}"
        return named_file(full, what, access, form, graph, depth + 1)
    if driver is None and depth == 0:
        return []  # A drive without a medium.
    return [Use(what, _location(options, driver), access, form)]


def _image(
    options: Tree,
    driver: Optional[str],
    what: str,
    access: Access,
    form: Optional[str],
    graph: Graph,
    depth: int,
    name: Optional[str],
) -> List[Use]:
    if driver == "raw":
        form = None if form == PROBED else form
    elif driver is not None:
        form = image_format(driver)
    if name is not None:
        uses = node(branch_of(options, "file"), what, access, form, graph, depth + 1, name)
    elif "file" in options:
        uses = _child(options, "file", what, access, form, graph, depth)
    else:
        raise BadOptions(f"its {driver} image names no file")
    behind: List[Use] = []
    if "backing" in options and (text_of(options, "backing") is not None or branch_of(options, "backing")):
        behind += _child(options, "backing", f"{what}, backing file", Access.READ, PROBED, graph, depth)
    if "data-file" in options:
        behind += _child(options, "data-file", f"{what}, data file", access, None, graph, depth)
    if "header" in options:
        # Of a LUKS image: in a file of its own, which a change of keys writes.
        behind += _child(options, "header", f"{what}, header", access, None, graph, depth)
    if not uses:
        return behind
    ends = uses[0].chain_ends or "backing" in options
    return [uses[0]._replace(backing=(*uses[0].backing, *behind), chain_ends=ends), *uses[1:]]


def _filter(
    options: Tree, driver: str, what: str, access: Access, form: Optional[str], graph: Graph, depth: int
) -> List[Use]:
    keys = [key for key in _FILTERS[driver] if key in options]
    if not keys:
        raise BadOptions(f"its driver {driver} names nothing that is understood")
    uses: List[Use] = []
    for key in keys:
        first = key == _FILTERS[driver][0]
        label = what if first else f"{what}, {key}"
        uses += _child(options, key, label, access, form if first else None, graph, depth)
    return uses


def _child(
    options: Tree, key: str, what: str, access: Access, form: Optional[str], graph: Graph, depth: int
) -> List[Use]:
    """A child node, described in place or by its name. A name that no argument gave is libvirt's own."""
    inner = branch_of(options, key)
    described = {name: value for name, value in inner.items() if name}
    plain = text_of(options, key)
    if described:
        return node(described, what, access, form, graph, depth + 1, name=plain)
    if plain is None:
        raise BadOptions(f"its {key} is empty")
    if plain not in graph.nodes:
        return []
    graph.taken.add(plain)
    return node(graph.nodes[plain], what, access, form, graph, depth + 1)


def _location(options: Tree, driver: Optional[str]) -> Location:
    """What a protocol driver's own options name. Raises BadOptions."""
    if driver is None:
        raise BadOptions("its driver is missing")
    if driver == "nvme":
        return _nvme(text_of(options, "device") or "", text_of(options, "namespace") or "")
    hosts = _hosts(options, driver)
    if driver == "nbd":
        return NetworkVolume("nbd", text_of(options, "export") or "", hosts)
    if driver == "rbd":
        parts = [text_of(options, key) for key in ("pool", "namespace", "image")]
        if parts[0] is None or parts[2] is None:
            raise BadOptions("its rbd image is incomplete")
        snapshot = text_of(options, "snapshot")
        return NetworkVolume(
            "rbd", "/".join(part for part in parts if part) + (f"@{snapshot}" if snapshot else ""), hosts
        )
    if driver in ("iscsi", "iser"):
        target = text_of(options, "target")
        if target is None:
            raise BadOptions("its iscsi target is missing")
        portal = text_of(options, "portal")
        return NetworkVolume("iscsi", f"{target}/{text_of(options, 'lun') or '0'}", (portal,) if portal else ())
    if driver == "gluster":
        volume, path = text_of(options, "volume"), text_of(options, "path")
        if volume is None or path is None:
            raise BadOptions("its gluster volume is incomplete")
        return NetworkVolume("gluster", f"{volume}/{path.lstrip('/')}", hosts)
    if driver in _URLS:
        url = text_of(options, "url")
        if url is None or "://" not in url:
            raise BadOptions(f"its {driver} address is not a URL")
        return _from_url(driver, url.partition(":")[2], url)
    path = text_of(options, "path", "vdi", "vdisk-id")
    if driver in _NETWORK and path is not None:
        return NetworkVolume(driver, path, hosts)
    if driver in _FILES:
        raise BadOptions("its file name is missing")
    raise BadOptions(f"its driver '{driver}' is not known, or names nothing that is understood")


def _hosts(options: Tree, driver: str) -> Tuple[str, ...]:
    server = branch_of(options, "server")
    servers = [branch_of(server, key) for key in sorted(server) if key.isdigit()] or [server or options]
    found = []
    for one in servers:
        # Beside the server's own, "path" is the socket for nbd alone; elsewhere it is the file on the server.
        unix = text_of(one, "path", "socket") if server or driver == "nbd" else None
        host = text_of(one, "host")
        if unix is not None:
            found.append("unix:" + unix)
        elif host is not None:
            found.append(host_and_port(host, text_of(one, "port") or ""))
    return tuple(found)


def takes_file_name(driver: Optional[str]) -> bool:
    """Whether a driver (None: to be probed) opens another node by its key "file", and not a file name itself."""
    return driver is None or driver in _FORMATS or driver in _FILTERS or driver == "quorum"
