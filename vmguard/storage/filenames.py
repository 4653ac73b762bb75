# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's file names, as image headers and option strings hold them: paths, URIs, `json:{...}`."""

import posixpath

from vmguard._light import json, re
from vmguard._typing import Any, Dict, List, NamedTuple, Optional, Tuple
from vmguard.domain import HostPath, Location, NetworkVolume, NvmeNamespace
from vmguard.errors import Unresolvable
from vmguard.text import encodable

_JSON_DEPTH = 32
# Drivers that pass on what lies in their "file" (or "image") child.
_FILTERS = ("copy-on-read", "throttle", "compress", "preallocate", "blklogwrites", "copy-before-write")
_FORMATS = ("raw", "qcow2", "qcow", "qed", "vmdk", "vpc", "vhdx", "vdi", "luks", "parallels", "dmg", "bochs", "cloop")


class Named(NamedTuple):
    """What a file name leads to."""

    location: Location
    format: Optional[str] = None  # where the name says it
    backing: Optional["Named"] = None  # where the name says it, in place of the header's
    ends: bool = False  # the name says that nothing is behind it


def parse(name: str, directory: str) -> Named:
    """
    A name found in an image that lies in `directory`. Raises Unresolvable for what is not understood.

    As QEMU does (path_combine): a name without a protocol and a leading "/" is relative to the image's directory as the
    image was named, symbolic links not followed.
    """
    if "\0" in name or not name:
        raise Unresolvable(directory, "the image names a file with an empty name or a NUL byte in it")
    if name.startswith("json:"):
        return _json(name, directory)
    protocol, colon, rest = name.partition(":")
    # a protocol is what comes before a colon, if no "/" does
    if not colon or "/" in protocol:
        return Named(HostPath(posixpath.join(directory, name)))
    if protocol in ("file", "host_device", "host_cdrom"):
        # "file:" strips nothing but itself, "file:///x" is the path ///x
        return Named(HostPath(posixpath.join(directory, rest)))
    return Named(_network(protocol, rest, name))


def _network(protocol: str, rest: str, name: str) -> Location:
    if protocol == "nvme":
        found = re.fullmatch(r"//([0-9A-Fa-f:.]+)/(\d{1,10})", rest)
        if found:
            return NvmeNamespace(found.group(1), int(found.group(2)))
        raise Unresolvable(name[:200], "it is not nvme://ADDRESS/NAMESPACE")
    if protocol == "nbd" and not rest.startswith("//"):
        found = re.fullmatch(r"(unix:[^:]+|\[[^]]*\]:\d+|[^:]*:\d+)(?::exportname=(.*))?", rest)
        if not found:
            raise Unresolvable(name[:200], "it is not nbd:HOST:PORT or nbd:unix:PATH")
        return NetworkVolume("nbd", found.group(2) or "", (found.group(1),))
    if protocol == "rbd":
        # POOL/IMAGE[@SNAPSHOT][:OPTION=VALUE...], a ":" in a name is "\:"
        image = re.sub(r"\\(.)", r"\1", re.split(r"(?<!\\):", rest)[0])
        return NetworkVolume("rbd", image)
    base, plus, _ = protocol.partition("+")
    if not rest.startswith("//"):
        raise Unresolvable(name[:200], f"the protocol {protocol} is not understood")
    authority, _, path = rest[2:].partition("/")
    path, _, query = path.partition("?")
    if base not in (
        "nbd",
        "iscsi",
        "gluster",
        "ssh",
        "nfs",
        "http",
        "https",
        "ftp",
        "ftps",
        "tftp",
        "sheepdog",
        "vxhs",
    ):
        raise Unresolvable(name[:200], f"the protocol {protocol} is not understood")
    path = _unquoted(path)
    host = authority.rpartition("@")[2]
    if plus and protocol.endswith("+unix"):
        socket = re.search(r"(?:^|&)socket=([^&]*)", query)
        host = f"unix:{_unquoted(socket.group(1))}" if socket else "unix:"
    if base in ("ssh", "nfs", "http", "https", "ftp", "ftps", "tftp"):
        path = "/" + path
    return NetworkVolume(base, path, (host,) if host else ())


def _json(name: str, directory: str) -> Named:
    try:
        value = json.loads(name[len("json:") :])
    except (ValueError, RecursionError) as error:
        raise Unresolvable(name[:200], "the file name is damaged JSON") from error
    if not isinstance(value, dict):
        raise Unresolvable(name[:200], "the file name is JSON, but no object")
    return _options(_nested(value, name), directory, name, 0)


def _nested(flat: Dict[str, Any], name: str) -> Dict[str, Any]:
    """ "a.b": c as "a": {"b": c}, as QEMU takes both."""
    result: Dict[str, Any] = {}
    for key, value in flat.items():
        at = result
        *way, last = key.split(".")
        for part in way[:_JSON_DEPTH]:
            deeper = at.setdefault(part, {})
            if not isinstance(deeper, dict):
                raise Unresolvable(name[:200], f"the file name gives {part} twice")
            at = deeper
        if isinstance(value, dict):
            value = _nested(value, name)
        if isinstance(at.get(last), dict) and isinstance(value, dict):
            at[last].update(value)
        elif last in at:
            raise Unresolvable(name[:200], f"the file name gives {key} twice")
        else:
            at[last] = value
    return result


def _options(options: Dict[str, Any], directory: str, name: str, depth: int) -> Named:
    if depth > _JSON_DEPTH:
        raise Unresolvable(name[:200], "the file name is nested too deep")
    driver = _text(options, "driver")
    child = options.get("file", options.get("image"))
    if driver in _FORMATS or driver in _FILTERS or (not driver and child is not None):
        if not isinstance(child, dict):
            raise Unresolvable(name[:200], "the file name refers to a node of another QEMU")
        inner = _options(child, directory, name, depth + 1)
        format_ = driver if driver in _FORMATS else inner.format
        if "data-file" in options:
            raise Unresolvable(name[:200], "the file name gives another data file than the image")
        if "backing" not in options:
            return inner._replace(format=format_)
        backing = options["backing"]
        if backing is None:
            return inner._replace(format=format_, backing=None, ends=True)
        if not isinstance(backing, dict):
            raise Unresolvable(name[:200], "the file name refers to a node of another QEMU")
        return inner._replace(format=format_, backing=_options(backing, directory, name, depth + 1))
    filename = _text(options, "filename") or _text(options, "url")
    if driver in ("", "file", "host_device", "host_cdrom"):
        if not filename:
            raise Unresolvable(name[:200], "the file name has no filename in it")
        # with a driver it is a path as it stands; without one a name like any other
        if driver:
            return Named(HostPath(posixpath.join(directory, filename)))
        if filename.startswith("json:") and depth:
            raise Unresolvable(name[:200], "the file name is nested too deep")
        return parse(filename, directory)
    if filename and driver in ("http", "https", "ftp", "ftps", "nbd", "iscsi", "gluster", "nfs", "ssh", "rbd"):
        return parse(filename, directory)
    return Named(_volume(driver, options, name))


def _volume(driver: str, options: Dict[str, Any], name: str) -> Location:
    if driver == "nvme":
        number = _text(options, "namespace")
        if number.isdecimal():
            return NvmeNamespace(_text(options, "device"), int(number))
    hosts = _servers(options)
    if driver == "rbd":
        parts = [_text(options, "pool"), _text(options, "namespace"), _text(options, "image")]
        snapshot = _text(options, "snapshot")
        return NetworkVolume(
            "rbd", "/".join(part for part in parts if part) + (f"@{snapshot}" if snapshot else ""), hosts
        )
    if driver == "nbd":
        return NetworkVolume("nbd", _text(options, "export"), hosts)
    if driver == "iscsi":
        return NetworkVolume(
            "iscsi", f"{_text(options, 'target')}/{_text(options, 'lun') or 0}", (_text(options, "portal"),)
        )
    if driver == "gluster":
        return NetworkVolume("gluster", f"{_text(options, 'volume')}/{_text(options, 'path').lstrip('/')}", hosts)
    if driver in ("ssh", "nfs"):
        return NetworkVolume(driver, _text(options, "path"), hosts)
    if driver == "sheepdog":
        return NetworkVolume("sheepdog", _text(options, "vdi"), hosts)
    raise Unresolvable(name[:200], f"the block driver '{driver}' is not understood")


def _servers(options: Dict[str, Any]) -> Tuple[str, ...]:
    given = options.get("server", options)
    servers: List[Any] = given if isinstance(given, list) else [given]
    if isinstance(given, dict) and given.get("0") is not None:
        servers = [given[key] for key in sorted(given)]
    found: List[str] = []
    for server in servers:
        if not isinstance(server, dict):
            continue
        socket = _text(server, "path") if server.get("type") == "unix" or not _text(server, "host") else ""
        port = _text(server, "port")
        found.append(f"unix:{socket}" if socket else _text(server, "host") + (f":{port}" if port else ""))
    return tuple(one for one in found if one)


def _text(options: Dict[str, Any], key: str) -> str:
    value = options.get(key)
    if isinstance(value, str) and not encodable(value):
        raise Unresolvable(ascii(value)[:200], f"the file name has a {key} that is no text")
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def _unquoted(text: str) -> str:
    raw = re.sub(
        rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found.group(1), 16)]), text.encode("utf-8", "surrogateescape")
    )
    return raw.decode("utf-8", "surrogateescape")
