# SPDX-License-Identifier: LGPL-2.1-or-later
"""The script in libvirt's folder: where it comes from, where it goes."""

import os
import re
from typing import Optional, Tuple

import vmguard
from vmguard.errors import Misconfigured
from vmguard.setup import others
from vmguard.setup.plan import contents

# Since then libvirt runs every script in hooks/qemu.d, beside hooks/qemu.
FOLDER_SINCE = (6, 5)

MODE = 0o755


def target(version: Optional[Tuple[int, ...]]) -> str:
    """Path of the hook for this version of libvirt; None: not known, so not an old one."""
    hooks = os.path.join(others.LIBVIRT, "hooks")
    if version is not None and version < FOLDER_SINCE:
        return os.path.join(hooks, "qemu")
    return os.path.join(hooks, "qemu.d", "50-vmguard")


def library() -> str:
    """The folder that this very package lies in."""
    return os.path.dirname(os.path.dirname(os.path.abspath(vmguard.__file__)))


def source() -> str:
    """
    The shipped script: PREFIX/share/vmguard/hook for whatever PREFIX the library lies below, or hooks/qemu of the
    source tree.

    Raises Misconfigured if it is nowhere.
    """
    above = library()
    candidates = [os.path.join(above, "hooks", "qemu")]
    while above != "/":
        above = os.path.dirname(above)
        candidates.append(os.path.join(above, "share", "vmguard", "hook"))
    for path in candidates:
        if os.path.isfile(path):
            return path
    raise Misconfigured(library(), "share/vmguard/hook is missing", "install vmguard again")


def script() -> bytes:
    """The script as it is to lie in libvirt's folder: it names the library that wrote it, wherever Python looks."""
    path, where = source(), library()
    if not re.fullmatch(r"[A-Za-z0-9/._+-]+", where):
        why = "a path with such characters cannot be named in the hook"
        raise Misconfigured(where, why, "install vmguard elsewhere")
    text = contents(path) or b""
    filled, count = re.subn(rb"(?m)^library='[^'\n]*'$", b"library='" + where.encode() + b"'", text)
    if count != 1:
        raise Misconfigured(path, "it is not vmguard's hook", "install vmguard again")
    return filled


def is_ours(data: bytes) -> bool:
    """Whether a script in libvirt's folder is vmguard's, of whatever version."""
    return b"\n# vmguard's hook:" in data


def installed(path: str) -> bool:
    """Whether the script is there, as it should be, and executable: libvirt passes over one that is not."""
    if contents(path) != script():
        return False
    status = os.stat(path)
    return status.st_mode & 0o7777 == MODE and status.st_uid == 0
