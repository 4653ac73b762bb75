# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A plan: what is to be changed on this host, each change with what stood there before.

A plan is made by looking only, shown, and then carried out in its order. A death at any point leaves a host on which a
second plan has the rest: every change is whole or not there at all, and is planned only if the host is not yet as it
should be.
"""

import os
from typing import Callable, List, NamedTuple, Optional

from vmguard.errors import Misconfigured


class Change(NamedTuple):
    """One change. `before` and `after` are for people: None before is "nothing there", None after is "taken away"."""

    what: str  # "libvirt's lock manager"
    where: str  # file, daemon or unit
    before: Optional[str]
    after: Optional[str]
    apply: Callable[[], None]


class Plan(NamedTuple):
    """
    changes: in the order in which they are made. remarks: what is good to know. left: what the administrator has to do,
    for the guard to be whole.
    """

    changes: List[Change]
    remarks: List[str]
    left: List[str]


def carry_out(plan: Plan, say: Callable[[Change], None]) -> None:
    """Make the changes, saying each before it is made. The first error ends it: what follows may rest on it."""
    for change in plan.changes:
        say(change)
        change.apply()


def contents(path: str) -> Optional[bytes]:
    """A file's bytes, None if there is none. Raises Misconfigured if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as e:
        raise Misconfigured(path, f"it cannot be read: {e.strerror}") from None


def replace(path: str, data: bytes, mode: int = 0o644, staging: Optional[str] = None) -> None:
    """
    Put `data` in place of the file, whole or not at all, also over a power cut. Owner and mode stay; a symbolic link
    stays a link and its target is replaced. `mode` is for a new file; missing folders are made. `staging`: the folder, on
    the same filesystem, in which the new file is made, where the target's own is read by somebody at any moment.

    Raises Misconfigured where it cannot be written.
    """
    target = os.path.realpath(path)
    folder = os.path.dirname(target)
    # Hidden and without the ending of any configuration file: if this process dies, nobody reads what is left.
    temporary = os.path.join(staging or folder, f".{os.path.basename(target)}.vmguard-new")
    try:
        os.makedirs(folder, mode=0o755, exist_ok=True)
        try:
            os.unlink(temporary)
        except FileNotFoundError:
            pass
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _write(fd, data)
            _like(fd, target, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, target)
        _sync_folder(folder)
    except OSError as e:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise Misconfigured(path, f"it cannot be written: {e.strerror}") from None


def remove(path: str) -> None:
    """Remove a file, or see that it is gone. Raises Misconfigured."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError as e:
        raise Misconfigured(path, f"it cannot be removed: {e.strerror}") from None


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _like(fd: int, target: str, mode: int) -> None:
    """Owner, group and mode of the file that is replaced, or `mode`, whatever the umask is."""
    try:
        old = os.stat(target)
    except FileNotFoundError:
        os.fchmod(fd, mode)
        return
    os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, old.st_mode & 0o7777)


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
