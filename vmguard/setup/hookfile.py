# SPDX-License-Identifier: LGPL-2.1-or-later
"""The script in libvirt's folder: where it comes from, where it goes."""

import os
import re
import shutil
import subprocess
from typing import Optional, Tuple

import vmguard
from vmguard.errors import Misconfigured
from vmguard.setup import others
from vmguard.setup.plan import contents, replace

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
    """Whether a script in libvirt's folder is vmguard's, of whatever version: by its fourth line. The packages ask the same."""
    lines = data.split(b"\n", 4)
    return len(lines) > 4 and lines[3].startswith(b"# vmguard's hook: libvirt calls it for every step in a guest's life")


def put(path: str) -> None:
    """
    Write the script to its place, executable, whole or not at all. Raises Misconfigured.

    It is made beside qemu.d: libvirt runs every executable file in there, hidden ones too, and for a moment there would be
    two.
    """
    replace(path, script(), MODE, staging=os.path.join(others.LIBVIRT, "hooks"))
    os.chown(path, 0, 0)
    os.chmod(path, MODE)
    _label(path)


def _label(path: str) -> None:
    """SELinux: the label that the policy has for this place. Best effort: without a policy there is nothing to do."""
    program = shutil.which("restorecon", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if program is not None and os.path.exists("/sys/fs/selinux/enforce"):
        subprocess.run([program, "-F", path], stdin=subprocess.DEVNULL, timeout=60)


def refresh() -> None:
    """
    What a package does after an update: where setup has put a hook of ours, of any version, it becomes that of this one. A
    hook that is not there stays away, and one that is not executable is for `vmguard doctor` to name. Raises Misconfigured.
    """
    for version in ((0,), FOLDER_SINCE):
        path = target(version)
        there = contents(path)
        if there is not None and is_ours(there) and there != script():
            from vmguard.setup import libvirtside  # which needs this module

            # A daemon that knows the hook reads the new text at its next call: it need not look again.
            with libvirtside.still_seen():
                replace(path, script(), MODE, staging=os.path.join(others.LIBVIRT, "hooks"))
                _label(path)


def installed(path: str) -> bool:
    """Whether the script is there, as it should be, and executable: libvirt passes over one that is not."""
    if contents(path) != script():
        return False
    status = os.stat(path)
    return status.st_mode & 0o7777 == MODE and status.st_uid == 0
