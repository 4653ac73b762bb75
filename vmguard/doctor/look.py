# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the checks look at: read when it is first asked for, and damaged things are None here and named by their own check."""

import os
import subprocess
from typing import List, Optional, Sequence

from vmguard import config, host
from vmguard.config import Config
from vmguard.errors import Error
from vmguard.leases import status
from vmguard.leases.status import Status
from vmguard.leases.store import Store
from vmguard.setup import daemons
from vmguard.setup.daemons import Daemon


class Look:
    """This host. `root` is for tests: the files of others are read below it."""

    def __init__(self, root: str = "/") -> None:
        self.root = root
        # Set once sanlock's daemon has kept a check waiting: no other asks it again.
        self.sanlock_hangs = False

    def read(self, path: str) -> Optional[str]:
        """The text of a file of the system, None where it cannot be read."""
        data = host.read(os.path.join(self.root, path.lstrip("/")))
        return None if data is None else data.decode("utf-8", "replace")

    def listed(self, folder: str) -> List[str]:
        """The names in a folder, none where it cannot be read."""
        try:
            return sorted(os.listdir(os.path.join(self.root, folder.lstrip("/"))))
        except OSError:
            return []

    def config(self) -> Optional[Config]:
        """The configuration, None where it is damaged or this host was not set up."""
        try:
            found = config.load()
        except Error:
            return None
        return found if found.store is not None and found.host_id is not None else None

    def store(self) -> Optional[Store]:
        """The store, None where it cannot be opened."""
        found = self.config()
        try:
            return Store.open(found.store, found.cluster) if found is not None and found.store else None
        except Error:
            return None

    def sanlock(self) -> Optional[Status]:
        """What sanlock's daemon says, None where it says nothing."""
        try:
            return None if self.sanlock_hangs else status.status()
        except Error:
            return None

    def libvirt(self) -> List[Daemon]:
        """libvirt's daemons that run now."""
        return daemons.find(daemons.LIBVIRT)

    def said(self, *words: str) -> Optional[str]:
        """What a command prints, None where it is not there or fails."""
        return said(words)


def said(words: Sequence[str]) -> Optional[str]:
    """What a command prints, None where it is not there or fails."""
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
