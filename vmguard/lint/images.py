# SPDX-License-Identifier: LGPL-2.1-or-later
"""What rules ask of the headers of images."""

import stat
from typing import Iterator, Tuple

from vmguard.domain import HostPath, Use
from vmguard.errors import Error
from vmguard.lint.document import Disk
from vmguard.lint.looking import storages
from vmguard.lint.site import Site
from vmguard.lint.subject import Subject
from vmguard.storage import formats
from vmguard.storage.filenames import parse
from vmguard.storage.header import BadHeader, Reader

_DEPTH = 200  # as images.py


def header_format(disk: Disk, site: Site) -> str:
    """The format by the header of the image that a disk names; "" if it cannot be looked at."""
    path = _path(disk.use, site) if disk.use is not None else ""
    if not path:
        return ""
    try:
        return formats.probe(_reader(path, site))
    except (OSError, Error, BadHeader, ValueError):
        return ""


def unsaid_formats(one: Subject, use: Use, site: Site) -> Iterator[Tuple[str, str]]:
    """(image, backing file) for each image of a chain that names a backing file, and no format for it."""
    path, form = _path(use, site), use.format or ""
    for _ in range(_DEPTH):
        if not path or form not in formats.CHAINED:
            return
        try:
            behind = formats.behind(_reader(path, site), form)
            if behind.backing is None:
                return
            named = parse(behind.backing, path.rpartition("/")[0])
        except (OSError, Error, BadHeader, ValueError):
            return  # VMG002 and VMG402 say so
        form = named.format or behind.backing_format or ""
        if not form:
            yield path, behind.backing
            return
        path = named.location.path if isinstance(named.location, HostPath) else ""


def _path(use: Use, site: Site) -> str:
    if isinstance(use.location, HostPath):
        return use.location.path
    if site.facts is None:
        return ""
    return next((one.path for one in storages(use, site.facts) if one.path.startswith("/")), "")


def _reader(path: str, site: Site) -> Reader:
    facts = site.facts
    assert facts is not None
    found = facts.stat(path)
    if not (stat.S_ISREG(found.mode) or stat.S_ISBLK(found.mode)):
        raise ValueError("no image")
    return Reader(
        lambda offset, length: facts.read(path, length, offset), None if stat.S_ISBLK(found.mode) else found.size
    )
