# SPDX-License-Identifier: LGPL-2.1-or-later
"""Character devices of a guest, and what is built on them: each may write a file of the host. TPM state too."""

from vmguard._found import Found, host_path
from vmguard._typing import List, Optional
from vmguard._xml import Element
from vmguard.domain import Access, HostPath, Use

# Where the system's libvirtd keeps TPM state, as every distribution builds it (localstatedir=/var).
TPM_STATE = "/var/lib/libvirt/swtpm"

# The kernel's own sources of entropy: character devices, no storage.
_ENTROPY = frozenset(("/dev/random", "/dev/urandom", "/dev/hwrng"))


def numbered(device: Element, order: int) -> str:
    """The label of a device that has no name of its own: "serial 0"."""
    return f"{device.tag} {order}"


def read_chardev(owner: Element, kind: Optional[str], what: str, found: Found) -> None:
    """
    The host's end of a character device: `owner` has its <source> and <log>. `kind` is its type.

    QEMU opens a path of type dev or pipe whatever it is, so each may be a disk.
    """
    source = owner.first("source")
    path = source.get("path") if source is not None else None
    if source is not None and path:
        if kind == "file":
            found.use(Use(what, host_path(path), Access.WRITE, may_be_missing=True, line=owner.line))
        elif kind == "dev":
            found.use(Use(what, host_path(path), Access.WRITE, line=owner.line))
        elif kind == "pipe":
            for use in pipe_uses(what, path, owner.line):
                found.use(use)
    log = owner.first("log")
    logged = log.get("file") if log is not None else None
    if log is not None and logged:
        found.use(Use(f"{what}, log", host_path(logged), Access.WRITE, may_be_missing=True, line=log.line))


def pipe_uses(what: str, path: str, line: int = 0) -> List[Use]:
    """QEMU opens PATH.in and PATH.out, and PATH itself where those are missing."""
    return [
        Use(what + part, host_path(path + suffix), Access.WRITE, may_be_missing=True, line=line)
        for part, suffix in ((", input", ".in"), (", output", ".out"), ("", ""))
    ]


def chardev(device: Element, order: int, found: Found) -> None:
    read_chardev(device, device.get("type"), numbered(device, order), found)


def rng(device: Element, order: int, found: Found) -> None:
    what = numbered(device, order)
    for backend in device.all("backend"):
        if backend.get("model") == "egd":
            read_chardev(backend, backend.get("type"), what, found)
        elif backend.get("model") == "random" and backend.text and backend.text not in _ENTROPY:
            found.use(Use(what, host_path(backend.text), Access.READ, line=backend.line))


def smartcard(device: Element, order: int, found: Found) -> None:
    what = numbered(device, order)
    read_chardev(device, device.get("type"), what, found)
    database = device.first("database")
    if database is not None and database.text:
        found.use(Use(f"{what}, database", host_path(database.text), Access.READ, line=database.line))


def tpm(device: Element, uuid: str, found: Found) -> None:
    backend = device.first("backend")
    if backend is None:
        found.puzzle("tpm", "it has no backend", device.line)
    elif backend.get("type") == "emulator":
        source = backend.first("source")
        path = source.get("path") if source is not None else None
        if path:
            found.use(Use("tpm state", host_path(path), Access.WRITE, may_be_missing=True, line=backend.line))
        elif uuid:
            found.use(
                Use("tpm state", HostPath(f"{TPM_STATE}/{uuid}"), Access.WRITE, may_be_missing=True, line=backend.line)
            )
        else:
            found.remark(
                "tpm state", "libvirt will name it after a uuid that the domain does not have yet", backend.line
            )
    elif backend.get("type") == "external":
        found.remark("tpm", "another process has its state", backend.line)
    elif backend.get("type") == "passthrough":
        device_path = backend.find("device")
        path = device_path.get("path") if device_path is not None else None
        if path and not path.startswith("/dev/tpm"):
            # To find out whether it is a TPM, QEMU writes a command to it.
            found.use(Use("tpm", host_path(path), Access.WRITE, line=backend.line))
    else:
        found.puzzle("tpm", f"its backend '{backend.get('type')}' is not known", backend.line)
