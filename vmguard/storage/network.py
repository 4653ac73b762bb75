# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Volumes reached over the network, by QEMU itself or by the kernel: equal whichever of the two, and whichever server
is named first.
"""

import posixpath

from vmguard._light import re
from vmguard._typing import Optional, Tuple
from vmguard.domain import NetworkVolume
from vmguard.errors import Unresolvable
from vmguard.storage import Storage, block
from vmguard.storage.host import Host, plain
from vmguard.text import encodable

_READ_ONLY = ("http", "https", "ftp", "ftps", "tftp")  # QEMU's curl driver has no write; tftp is for boot loaders
_NBD_PORT = "10809"  # IANA
_HERE = ("localhost", "localhost.localdomain", "ip6-localhost", "::1", "[::1]", "0.0.0.0", "::", "[::]", "")


def resolve(host: Host, volume: NetworkVolume) -> Storage:
    """A volume that QEMU reaches by itself. Raises Unresolvable."""
    protocol, name = volume.protocol.lower(), volume.name
    path = f"{protocol}:{name}"
    if "\0" in name or len(name) > 4096 or not encodable("".join((protocol, name, *volume.hosts))):
        raise Unresolvable(ascii(path)[:200], "it is not the name of a volume")
    if protocol == "rbd":
        return _rbd(name, path)
    if protocol == "iscsi":
        target, _, unit = name.partition("/")
        if not target or not re.fullmatch(r"\d*", unit):
            raise Unresolvable(path, "it is not TARGET/UNIT")
        # libvirt takes unit 0 where none is named
        identity = f"iscsi:{plain(target.lower())}/{int(unit or 0)}"
        return _shared(identity, path, "iscsi", f"unit {int(unit or 0)} of the iSCSI target {target}")
    if protocol == "gluster":
        return _gluster(name, path)
    if protocol == "nbd":
        return _nbd(host, volume, path)
    if protocol in ("sheepdog", "vxhs"):
        return _shared(f"net:{protocol}/{plain(name)}", path, protocol, f"the {protocol} volume {name}")
    servers = ",".join(sorted(one.lower() for one in volume.hosts)) or "-"
    identity = f"net:{plain(protocol)}/{plain(servers)}/{plain(name)}"
    if protocol in _READ_ONLY:
        why = f"{protocol} is for reading only"
    elif protocol in ("nfs", "ssh"):
        why = f"the same file has other names on its server, which {protocol} does not show"
    else:
        why = f"what a volume of protocol {protocol} is, is not known"
    return _shared(identity, path, protocol or "network", f"named by {protocol} and its servers")._replace(
        not_writable=why
    )


def kernel_rbd(host: Host, sys: str) -> Storage:
    """An rbd device of the kernel: the same as the image that QEMU would open by itself. Raises Unresolvable."""
    node = block.node(host, sys)
    number = re.sub(r"\D", "", block.kname(sys))
    base = f"/sys/bus/rbd/devices/{number}"
    pool, image = host.text(base + "/pool"), host.text(base + "/name")
    if not pool or not image:
        raise Unresolvable(node, "the kernel does not say which rbd image it is")
    space, snapshot = host.text(base + "/pool_ns") or "", host.text(base + "/current_snap") or "-"
    storage = _rbd_image(pool, space, image, snapshot if snapshot != "-" else "", node)
    cluster = host.text(base + "/cluster_fsid")
    return storage._replace(reasons=(*storage.reasons, f"mapped by the kernel from the cluster {cluster or '?'}"))


def _rbd(name: str, path: str) -> Storage:
    # POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]; QEMU takes the pool "rbd" where none is named
    image, _, snapshot = name.partition("@")
    parts = image.split("/")
    if not 1 <= len(parts) <= 3 or not all(parts[:1] + parts[-1:]):
        raise Unresolvable(path, "it is not POOL/IMAGE or POOL/NAMESPACE/IMAGE")
    pool = parts[0] if len(parts) > 1 else "rbd"
    return _rbd_image(pool, parts[1] if len(parts) == 3 else "", parts[-1], snapshot, path)


def _rbd_image(pool: str, space: str, image: str, snapshot: str, path: str) -> Storage:
    # Without the cluster, which the network form does not show: two clusters with one pool and image name exclude
    # each other.
    identity = "rbd:" + "/".join(plain(part) for part in (pool, space, image) if part)
    reason = f"the rbd image {image} of the pool {pool}" + (f", namespace {space}" if space else "")
    if snapshot:
        why = "a snapshot of an rbd image cannot be written"
        return _shared(f"{identity}@{plain(snapshot)}", path, "rbd", f"the snapshot {snapshot} of {reason}")._replace(
            not_writable=why
        )
    return _shared(identity, path, "rbd", reason)


def _gluster(name: str, path: str) -> Storage:
    volume, _, inner = name.lstrip("/").partition("/")
    inner = posixpath.normpath("/" + inner).lstrip("/")
    if not volume or not inner or ".." in name.split("/"):
        raise Unresolvable(path, "it is not VOLUME/PATH")
    return _shared(
        f"gluster:{plain(volume)}/{plain(inner)}", path, "gluster", f"the file {inner} of the gluster volume {volume}"
    )


def _nbd(host: Host, volume: NetworkVolume, path: str) -> Storage:
    server = volume.hosts[0].lower() if volume.hosts else ""
    socket = server.startswith("unix:") or server.startswith("/")
    name, port = _split(server)
    reason = "named by its server and export"
    if socket or name in _HERE or name.startswith("127."):
        where = plain(server) if socket else f"localhost:{port}"
        storage = _shared(f"nbd:{host.machine_key()}/{where}/{plain(volume.name)}", path, "nbd", reason)
        return storage._replace(not_writable="its server runs on this host, and what that serves is not known")
    return _shared(f"nbd:{plain(name)}:{port}/{plain(volume.name)}", path, "nbd", reason)


def _split(server: str) -> Tuple[str, str]:
    """A server's name without a final dot, and its port."""
    found: Optional[re.Match[str]] = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::(\d+))?", server)
    if not found:
        return server, _NBD_PORT  # an IPv6 address without brackets
    return found.group(1).rstrip("."), str(int(found.group(2) or _NBD_PORT))


def _shared(identity: str, path: str, kind: str, reason: str) -> Storage:
    return Storage(identity, path, kind, others_see_it=True, reasons=(reason,))
