# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where definitions come from: files, folders of files, libvirt connections."""

import os
import re
import sys
from typing import Any, Callable, Iterable, Iterator, List, Optional, Tuple
from urllib.parse import urlsplit

from vmguard._xml import MAX_BYTES
from vmguard.errors import BadRequest
from vmguard.lint.document import Origin

# Gives the XML of one definition; None for a file that holds something else of libvirt's. Raises OSError.
Reader = Callable[[], Optional[bytes]]
Source = Tuple[Origin, Reader]

URI = "qemu:///system"
DEFINED = "/etc/libvirt/qemu"

# Beside definitions of domains, folders have networks, pools, and whatever else. libvirt looks at the name without its prefix.
_DOMAIN = re.compile(rb"<\s*(?:[^\s<>:/]+:)?(?:domain|domstatus)[\s>]")
# What may stand before the root element: a byte order mark, the declaration, comments. One at a time: in one pattern for all
# of them, each way to divide the comments would be tried.
_ASIDE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?.*?\?>|<!--.*?-->)", re.DOTALL)
# What else libvirt has in XML, and may be meant by *.xml.
_OTHERS = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*<(?:network|networkport|pool|poolstate|volume|nwfilter|filter|filterbinding|secret"
    rb"|interface|device|domainsnapshot|domaincheckpoint|domainbackup|capabilities|domainCapabilities|cpu)[\s>]"
)


def files(names: Iterable[str], host: str, local: bool, empty: bool = False) -> Iterator[Source]:
    """
    Files, "-" for standard input, and all *.xml below folders. empty: a folder without any will do.

    Raises BadRequest for what is not there: a misspelt name must not pass for a clean definition.
    """
    for name in names:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
            yield Origin("standard input", host, local), lambda data=data: data  # type: ignore[misc]
        elif os.path.isdir(name):
            for path in _below(name, empty):
                yield Origin(path, host, local), _reader(path, folder=True)
        elif os.path.exists(name):
            yield Origin(name, host, local), _reader(name, folder=False)
        else:
            raise BadRequest(f"{name}: there is no such file", "a domain of libvirt: vmguard lint --all")


def folder(path: str, empty: bool = False) -> Iterator[Source]:
    """
    Definitions of other hosts: HOST/*.xml, and *.xml of hosts that are not named. Raises BadRequest.

    Anything below counts, so a checkout of a repository can be given, with a folder for each host or without. empty: as above.
    """
    if not os.path.isdir(path):
        raise BadRequest(f"{path}: there is no such folder")
    for name in _below(path, empty):
        inside = os.path.relpath(name, path).split(os.sep)
        yield Origin(name, inside[0] if len(inside) > 1 else "", local=False), _reader(name, folder=True)


def connection(uri: str) -> List[Source]:
    """All domains of a libvirt connection. Raises BadRequest if it cannot be had."""
    libvirt = library()
    if libvirt is None:
        raise BadRequest("libvirt's Python module is not installed", "install python3-libvirt")
    try:
        opened = libvirt.openReadOnly(uri)
        try:
            host, local = whose(opened)
            return [_of_connection(libvirt, uri, host, local, domain) for domain in opened.listAllDomains()]
        finally:
            opened.close()
    except libvirt.libvirtError as error:
        raise BadRequest(f"{uri}: {error.get_error_message()}") from error


def everything() -> List[Source]:
    """All domains of this host: libvirt's word, or its files where it does not answer."""
    if library() is not None:
        try:
            return connection(URI)
        except BadRequest:
            pass
    host = os.uname().nodename
    try:
        names = sorted(name for name in os.listdir(DEFINED) if name.endswith(".xml"))
    except OSError as error:
        why = f"libvirt does not answer, and {DEFINED}: {error.strerror}"
        raise BadRequest(why, "start libvirt's daemon, or name files") from error
    return [(Origin(f"{DEFINED}/{name}", host), _reader(f"{DEFINED}/{name}", folder=True)) for name in names]


def whose(opened: Any) -> Tuple[str, bool]:
    """The host that a connection leads to, and whether it is this one."""
    host = str(opened.getHostname())
    # by the URI that libvirt has: the one that was given may be an alias (uri_aliases in libvirt.conf)
    if urlsplit(str(opened.getURI())).hostname is None or is_here(host):
        return os.uname().nodename, True
    return host, False


def is_here(host: str) -> bool:
    """Whether that is a name of this host."""
    return host.partition(".")[0] == os.uname().nodename.partition(".")[0]


def _of_connection(libvirt: Any, uri: str, host: str, local: bool, domain: Any) -> Source:
    name = str(domain.name())
    origin = Origin(f"{uri}: {name}", host, local)
    try:
        # What will be started next; a transient domain has only what runs.
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE if domain.isPersistent() else 0
        data = str(domain.XMLDesc(flags)).encode("utf-8", "surrogateescape")
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return origin, lambda: None  # it has ended, or was undefined, since it was listed
        why = error.get_error_message()

        def gone() -> bytes:
            raise OSError(0, why)

        return origin, gone
    return origin, lambda: data


def library() -> Optional[Any]:
    """libvirt's module, silent; None where it is not installed."""
    try:
        import libvirt
    except ImportError:
        return None
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


def _below(path: str, empty: bool) -> List[str]:
    def refused(error: OSError) -> None:
        # else what is in there would pass for nothing
        raise BadRequest(f"{error.filename}: {error.strerror}") from error

    found = []
    for place, folders, names in os.walk(path, onerror=refused):
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        # libvirt's folder autostart/ has links to the definitions themselves
        for name in sorted(names):
            full = os.path.join(place, name)
            if name.endswith(".xml") and not os.path.islink(full):
                found.append(full)
    if not found and not empty:
        raise BadRequest(f"{path}: there is no *.xml below it", "name a folder with definitions")
    return found


def read_one(path: str, folder: bool = True) -> Optional[bytes]:
    """
    The definition in a file. None if it holds something else of libvirt's; or, in a folder, no domain at all.

    Raises OSError.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    return None if (folder and not _is_domain(data)) or _is_other(data) else data


def _reader(path: str, folder: bool) -> Reader:
    return lambda: read_one(path, folder)


def _is_domain(data: bytes) -> bool:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True  # UTF-16: the parser will tell
    return _DOMAIN.search(data) is not None


def _is_other(data: bytes) -> bool:
    at = 0
    aside = _ASIDE.match(data)
    while aside is not None:
        at = aside.end()
        aside = _ASIDE.match(data, at)
    return _OTHERS.match(data, at) is not None
