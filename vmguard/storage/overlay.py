# SPDX-License-Identifier: LGPL-2.1-or-later
"""overlayfs: which file of which layer a merged path really is."""

import posixpath
import stat

from vmguard._light import re
from vmguard._typing import List, NamedTuple, Optional
from vmguard.errors import Unresolvable
from vmguard.storage.facts import Stat
from vmguard.storage.host import Host, Mount, within


class Layer(NamedTuple):
    """The file behind a file of an overlay."""

    path: str
    found: Stat
    reason: str
    not_writable: Optional[str] = None


def real_file(host: Host, real: str, mount: Mount, merged: Stat) -> Layer:
    """The file in the upper layer, or in the first lower one that has it. Raises Unresolvable."""
    rest = within(mount, real).lstrip("/")
    upper = _option(mount, "upperdir")
    if upper:
        path = posixpath.join(upper, rest)
        found = host.lookup(path)
        if found and _same(found, merged):
            # with metacopy the upper file has the attributes and a lower one the data, until it is written
            metacopy = "metacopy=on" in mount.options and not stat.S_ISDIR(found.mode)
            why = "it is on an overlay with metacopy, where its data may lie in a lower layer" if metacopy else None
            return Layer(path, found, "the upper layer of an overlay", why)
    for lower in _lower(mount):
        path = posixpath.join(lower, rest)
        found = host.lookup(path)
        if found and _same(found, merged):
            why = "it lies in a lower layer of an overlay: the first write would make it another file"
            return Layer(path, found, "a lower layer of an overlay", why)
    raise Unresolvable(real, "it is on an overlay whose layers cannot be reached from here")


def _same(found: Stat, merged: Stat) -> bool:
    # A copied-up file keeps its lower inode number, so only these can be compared; a foreign directory of the same
    # name (the overlay was mounted in another mount namespace) rarely has a file of the same name and size.
    return stat.S_IFMT(found.mode) == stat.S_IFMT(merged.mode) and (
        stat.S_ISDIR(found.mode) or found.size == merged.size
    )


def _option(mount: Mount, key: str) -> Optional[str]:
    for option in mount.options:
        name, _, value = option.partition("=")
        if name == key:
            return value
    return None


def _lower(mount: Mount) -> List[str]:
    layers: List[str] = []
    for option in mount.options:
        name, _, value = option.partition("=")
        if name in ("lowerdir", "lowerdir+"):
            # "a:b::data", a colon in a name is "\:"; what follows "::" has data only, and no names of its own
            named = re.split(r"(?<!\\)::", value)[0]
            layers += [re.sub(r"\\(.)", r"\1", part) for part in re.split(r"(?<!\\):", named)]
    return [layer for layer in layers if layer.startswith("/")]
