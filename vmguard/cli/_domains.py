# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which domain a user means: a file, a name or a uuid."""

import os
from typing import Any, Dict, Optional

from vmguard._xml import MAX_BYTES
from vmguard.domain import Domain, parse
from vmguard.errors import BadRequest

URI = "qemu:///system"


def _libvirt() -> Optional[Any]:
    """libvirt's module, silent; None where it is not installed."""
    try:
        import libvirt
    except ImportError:
        return None
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


def domain_of(name: str) -> Domain:
    """
    The domain of a file (anything with a slash, or that exists), else of libvirt's, by name or uuid.

    Raises BadRequest if there is none, BadDomain if it cannot be read.
    """
    if "/" in name or os.path.isfile(name):
        return parse(_file(name))
    return parse(_from_libvirt(name))


def _file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadRequest(f"{path}: {error.strerror}") from error


def _from_libvirt(name: str) -> bytes:
    libvirt = _libvirt()
    if libvirt is None:
        return _defined(name)
    try:
        connection = libvirt.openReadOnly(URI)
    except libvirt.libvirtError:
        return _defined(name)
    try:
        for lookup in (connection.lookupByName, connection.lookupByUUIDString):
            try:
                found = lookup(name)
                return str(found.XMLDesc(0)).encode("utf-8", "surrogateescape")
            except (libvirt.libvirtError, ValueError):
                continue
    finally:
        connection.close()
    remedy = "virsh list --all shows them; for one that is not defined, name the file of its XML, with a / in it"
    raise BadRequest(f"libvirt knows no domain {name!r}", remedy)


def _defined(name: str) -> bytes:
    """Without libvirt's help: its files."""
    path = os.path.join("/etc/libvirt/qemu", name + ".xml")
    if not os.path.exists(path):
        raise BadRequest(f"libvirt does not answer, and there is no {path}", "start libvirt's daemon, or name a file")
    return _file(path)


def off() -> Dict[str, bool]:
    """By uuid, whether libvirt says that a domain neither runs nor has a job. Empty where libvirt does not answer."""
    libvirt = _libvirt()
    if libvirt is None:
        return {}
    try:
        connection = libvirt.openReadOnly(URI)
        try:
            # A domain with a job under way does not answer isActive until the job ends, so an answer is an answer.
            return {one.UUIDString(): not one.isActive() for one in connection.listAllDomains()}
        finally:
            connection.close()
    except libvirt.libvirtError:
        return {}
