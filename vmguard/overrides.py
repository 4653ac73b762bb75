# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Overrides: an administrator's word that one start of one domain is to go through, whatever the guard finds.

One start only, with a reason, on this host, until the next boot or for an hour: what was true when it was given may not be
later. A file under /run/vmguard/overrides, taken away by the start that uses it before anything else happens.
"""

import os
import time

from vmguard import paths
from vmguard._light import dumps, loads
from vmguard._typing import List, NamedTuple, Optional
from vmguard.errors import RecordBroken

# Long enough to give the word, look once more and start; short enough that a forgotten one does not lie in wait.
VALID_SECONDS = 3600


# What is left of one that was used, until the next start.
_USED = ".used"


class Override(NamedTuple):
    """One override, not yet used."""

    uuid: str
    name: str
    reason: str
    by: str  # login name of who gave it
    given: float  # seconds since the epoch


def _path(uuid: str) -> str:
    return os.path.join(paths.RUN, "overrides", uuid + ".json")


def give(override: Override) -> None:
    """Write an override down, replacing an earlier one of the same domain. Raises RecordBroken."""
    path = _path(override.uuid)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(temporary, "w", encoding="ascii") as file:
            file.write(dumps(override._asdict()))
        os.rename(temporary, path)
    except OSError as error:
        raise RecordBroken(path, error.strerror or str(error)) from error


def _read(path: str) -> Optional[Override]:
    try:
        with open(path, encoding="ascii") as file:
            override = Override(**loads(file.read()))
        age = time.time() - override.given
    except (OSError, ValueError, TypeError):
        return None  # none, or none that can be believed
    return override if 0 <= age <= VALID_SECONDS else None


def take(uuid: str) -> Optional[Override]:
    """The override for this start, if there is one that is still valid. It is gone afterwards, used or not."""
    path = _path(uuid)
    override = _read(path)
    try:
        os.rename(path, path + _USED)
        if override is None:
            _forget(uuid)
    except FileNotFoundError:
        _forget(uuid)
        return None
    except OSError as error:
        # One that cannot be taken away would be there for the next start too.
        raise RecordBroken(path, error.strerror or str(error)) from error
    return override


def _forget(uuid: str) -> None:
    try:
        os.unlink(_path(uuid) + _USED)
    except OSError:
        pass  # none; or it is there one start longer, for the agent alone


def started_by(uuid: str) -> bool:
    """Whether the last start of this domain on this host, since it was booted, went through by an override."""
    return os.path.exists(_path(uuid) + _USED)


def withdraw(uuid: str) -> bool:
    """Take an unused override back. True if there was one."""
    there = take(uuid) is not None
    _forget(uuid)
    return there


def pending() -> List[Override]:
    """All overrides that wait for their start."""
    folder = os.path.join(paths.RUN, "overrides")
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    except OSError:
        return []
    found = (_read(os.path.join(folder, name)) for name in names)
    return [override for override in found if override is not None]
