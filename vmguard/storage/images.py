# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The chain behind an image: what QEMU will open besides the image itself.

QEMU reads the headers when it starts, so what they say now is what a start will use: a header that cannot be read or
believed is "cannot tell", never "nothing behind it".
"""

import posixpath
import stat

from vmguard._typing import List, NamedTuple, Optional, Set, Tuple
from vmguard.domain import HostPath, Location
from vmguard.errors import Unresolvable
from vmguard.storage import Layer, filenames, formats
from vmguard.storage.facts import Devno, Facts
from vmguard.storage.host import Host, check_path

DEPTH_LIMIT = 200  # layers, as libvirt (qemuDomainStorageSourceValidateDepth)
LAYER_LIMIT = 5000  # layers and extents together


class _Image(NamedTuple):
    """An image that is about to be opened."""

    path: str
    format: Optional[str]  # None: not declared
    backing: Optional[filenames.Named] = None  # in place of what the header says
    ends: bool = False


def chain(path: str, format_: str, facts: Facts) -> Tuple[Layer, ...]:
    """See `vmguard.storage.chain`."""
    host = Host.of(facts)
    found: List[Layer] = []
    seen: Set[Tuple[Devno, int]] = set()
    image: Optional[_Image] = _Image(path, format_)
    while image is not None:
        key = _key(host, image.path)
        if key in seen:
            raise Unresolvable(path, f"its backing chain comes back to {image.path}")
        seen.add(key)
        if len(seen) > DEPTH_LIMIT or len(found) > LAYER_LIMIT:
            raise Unresolvable(path, f"its backing chain has more than {DEPTH_LIMIT} layers")
        image = _step(host, image, found)
    return tuple(found)


def _step(host: Host, image: _Image, found: List[Layer]) -> Optional[_Image]:
    """Add what one image names; the next image to look at, None at the end of the chain."""
    reader = _reader(host, image.path)
    try:
        format_ = image.format or formats.probe(reader)
        if format_ in formats.PLAIN:
            return None
        if format_ not in formats.CHAINED:
            raise Unresolvable(image.path, f"images of format '{format_[:40]}' are not known")
        behind = formats.behind(reader, format_)
    except formats.BadHeader as error:
        raise Unresolvable(image.path, str(error)) from error
    directory = posixpath.dirname(image.path)
    for name in behind.data:
        found += [_layer(location, "raw", "data") for location in _data_files(host, name, directory)]
    for name in behind.extents:
        found.append(_layer(filenames.parse(name, directory).location, None, "extent"))
    if image.ends:
        return None
    named = image.backing
    if named is None:
        if behind.backing is None:
            return None
        named = filenames.parse(behind.backing, directory)
    # the header's word on the format is on its own backing file, not on one that a name above put in its place
    declared = None if image.backing else behind.backing_format
    return _next(image, named, named.format or declared, found)


def _next(image: _Image, named: filenames.Named, format_: Optional[str], found: List[Layer]) -> Optional[_Image]:
    if isinstance(named.location, HostPath):
        check_path(named.location.path)
        found.append(_layer(named.location, format_, "backing"))
        return _Image(named.location.path, format_, named.backing, named.ends)
    found.append(_layer(named.location, format_, "backing"))
    if format_ in formats.PLAIN or named.ends:
        return None
    raise Unresolvable(image.path, f"its backing file {_words(named.location)} cannot be read for what is behind it")


def _data_files(host: Host, name: str, directory: str) -> List[Location]:
    """
    The external data file of a qcow2 image.

    QEMU opens a relative name from its own working directory, "/" under libvirt; a libvirt that knows of data files
    names them itself, beside the image. Which of the two will do it is not known here, so each that exists counts.
    """
    ways = {filenames.parse(name, base).location: None for base in (directory, "/")}
    there = [way for way in ways if not isinstance(way, HostPath) or host.lookup(way.path)]
    if not there:
        raise Unresolvable(_words(next(iter(ways))), "the data file of the image is not there")
    return there


def _layer(location: Location, format_: Optional[str], role: str) -> Layer:
    return Layer(location, format_, role, _words(location))


def _words(location: Location) -> str:
    return location.path if isinstance(location, HostPath) else ":".join(str(part) for part in location[:2])


def _key(host: Host, path: str) -> Tuple[Devno, int]:
    check_path(path)
    found = host.stat(path)
    if stat.S_ISBLK(found.mode):
        return found.rdev, -1
    if not stat.S_ISREG(found.mode):
        raise Unresolvable(path, "it is neither a file nor a block device")
    return found.device, found.inode


def _reader(host: Host, path: str) -> formats.Reader:
    found = host.stat(path)

    def read(offset: int, length: int) -> bytes:
        data = host.bytes(path, length, offset)
        if data is None:
            raise Unresolvable(path, "it vanished while it was read")
        return data

    return formats.Reader(read, None if stat.S_ISBLK(found.mode) else found.size)
