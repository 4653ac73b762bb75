# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Files of sanlock's that have two names in a store: the one by which they are used, and one in the folder `kept`.

Made a second time, a lease is free, whoever has it. So whoever removes its file (by hand, with an old backup that takes the
store's place, in mending the filesystem) must not have removed it. While the second name is there, the first is given back to
the same file, with all that is in it. And a copy that was put in place of the file is told from it; one of the whole store, by
the inode of its lockspace.
"""

import os

from vmguard import events
from vmguard._typing import Callable, NamedTuple, Optional

FOLDER = "kept"
_INODE = f"{FOLDER}/inode"


class Replaced(Exception):
    """The two names lead to two files."""


class Names(NamedTuple):
    """What the two names of a file lead to."""

    used: Optional[os.stat_result]
    kept: Optional[os.stat_result]

    def differ(self) -> bool:
        """Whether somebody has put another file in place of one of them."""
        return self.used is not None and self.kept is not None and not os.path.samestat(self.used, self.kept)


def names(store: int, path: str) -> Names:
    """Both names of a file; path: the first one, relative to the open directory of the store. Raises OSError."""
    return Names(_stat(store, path), _stat(store, second(path)))


def second(path: str) -> str:
    """The second name."""
    return f"{FOLDER}/{os.path.basename(path)}"


def _stat(store: int, path: str) -> Optional[os.stat_result]:
    try:
        return os.stat(path, dir_fd=store, follow_symlinks=False)
    except FileNotFoundError:
        return None


def found(store: int, path: str, is_new: Callable[[], bool] = lambda: False) -> Optional[os.stat_result]:
    """
    The file; None where there is none. If it has lost one of its names it gets it back, and that is told, unless it is just
    being made and has not had it yet.

    Raises Replaced, OSError.
    """
    both = names(store, path)
    if both.differ():
        raise Replaced(path)
    if both.used is None and both.kept is not None:
        _link(store, second(path), path)
        if not is_new():
            text = f"somebody removed {path} from the store of leases: it was put back, as it was"
            events.record("put-back", f"{text}. See who removes files there", path=path)
    elif both.used is not None and both.kept is None:
        keep(store, path)
    return both.used or both.kept


def keep(store: int, path: str) -> None:
    """Give a file its second name. Raises Replaced, OSError."""
    folder(store)
    _link(store, path, second(path))


def see_original(store: int, found: os.stat_result) -> None:
    """
    Raises Replaced where a file is a copy of the one that was there when the store was first opened: a whole store that was
    copied back may have both names. Its inode is the text of a link. Raises OSError.
    """
    try:
        number = os.readlink(_INODE, dir_fd=store)
    except FileNotFoundError:
        folder(store)
        number = str(found.st_ino)
        try:
            os.symlink(number, _INODE, dir_fd=store)
        except FileExistsError:
            number = os.readlink(_INODE, dir_fd=store)  # somebody else has just made it
    if number != str(found.st_ino):
        raise Replaced(_INODE)


def folder(store: int) -> None:
    """The folder of the second names, made if it is not there. Raises OSError."""
    try:
        os.mkdir(FOLDER, 0o750, dir_fd=store)
    except FileExistsError:
        pass
    # New leases are formatted in it by sanlock, which is not root as a rule; and a hook has the umask of libvirt.
    group, found = os.stat("leases", dir_fd=store).st_gid, os.stat(FOLDER, dir_fd=store)
    if (found.st_gid, found.st_mode & 0o777) != (group, 0o750):
        os.chown(FOLDER, -1, group, dir_fd=store)
        os.chmod(FOLDER, 0o750, dir_fd=store)


def _link(store: int, path: str, new: str) -> None:
    try:
        os.link(path, new, src_dir_fd=store, dst_dir_fd=store, follow_symlinks=False)
    except FileExistsError:
        # Somebody else has just done so; or a server whose answer got lost was asked again.
        if names(store, path if new.startswith(FOLDER) else new).differ():
            raise Replaced(path) from None
