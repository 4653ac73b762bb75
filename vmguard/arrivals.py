# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Guests that do not begin their life here: that migrate in, or are restored from a saved state.

In `prepare` they look like any other start, and must not be treated as one: a guest that migrates in has its disks in use
at its source, and is let in all the same. Who could pass for one would have a second writer's permit. So the hooks `migrate`
and `restore`, which libvirt calls before, put a fresh nonce into the domain's metadata, and leave a mark of it here. A
start is such an arrival only if

* its XML carries the nonce, and its mark is there, of this libvirtd and a moment old: it is taken away by looking;
* the persistent definition does not carry the nonce. After an offline migration it does, and the mark is there too: but
  what starts then starts cold.
"""

import os
import time

from vmguard import host, paths
from vmguard._light import dumps, loads, sha256
from vmguard._typing import List, NamedTuple, Optional, Tuple
from vmguard.domain import ARRIVAL_NAMESPACE, Domain, parse
from vmguard.errors import BadDomain, RecordBroken
from vmguard.host import Process

# libvirt goes from one hook to the next in some 10 to 150 ms; on a host that starves, in seconds.
VALID_SECONDS = 60

# Where libvirt keeps persistent definitions, see virDomainConfigFile.
DEFINITIONS = "/etc/libvirt/qemu"

# qemu_saveimage.h: how a saved state begins, when it is whole
_MAGIC = b"LibvirtQemudSave"
_SAMPLE = 64 * 1024  # bytes at either end: the definition, and the state of the devices with their clocks


class Image(NamedTuple):
    """A saved state on disk."""

    mark: str  # tells it from any other state, and knows a copy of it again
    saved: float  # seconds since the epoch: when it was written


class Arrival(NamedTuple):
    """How a guest comes to this host."""

    kind: str  # "migrate" or "restore"
    image: Optional[Image] = None  # the state it is restored from, where that could be seen


def _folder() -> str:
    return os.path.join(paths.RUN, "arrivals")


def announce(kind: str, xml: bytes, libvirtd: Process) -> bytes:
    """
    Leave a mark for a guest that comes, and put its nonce into its XML: that is what libvirt is to go on with.

    kind: "migrate" or "restore". Raises BadDomain, RecordBroken: then it must not come.
    """
    domain = parse(xml)
    nonce = os.urandom(16).hex()
    marked = _with_nonce(xml, nonce)
    image = _image_of(domain.uuid, libvirtd) if kind == "restore" else None
    mark = {
        "kind": kind,
        "uuid": domain.uuid,
        "libvirtd": list(libvirtd),
        "time": time.clock_gettime(time.CLOCK_BOOTTIME),
        "image": list(image) if image is not None else None,
    }
    path = os.path.join(_folder(), nonce)
    try:
        os.makedirs(_folder(), mode=0o700, exist_ok=True)
        _forget_old()
        with open(path + ".tmp", "w", encoding="ascii") as file:
            file.write(dumps(mark))
        os.rename(path + ".tmp", path)
    except OSError as error:
        raise RecordBroken(path, error.strerror or str(error)) from error
    return marked


def _forget_old() -> None:
    now = time.time()
    for entry in os.listdir(_folder()):
        path = os.path.join(_folder(), entry)
        try:
            if not 0 <= now - os.stat(path).st_mtime <= 10 * VALID_SECONDS:
                os.unlink(path)
        except FileNotFoundError:
            pass


def take(domain: Domain, libvirtd: Process) -> Optional[Arrival]:
    """How a domain that is about to start comes here; None for a cold start. Its mark is used up. Raises RecordBroken."""
    nonce = domain.arrival
    if len(nonce) != 32 or nonce.strip("0123456789abcdef"):
        return None
    path = os.path.join(_folder(), nonce)
    try:
        with open(path, encoding="ascii") as file:
            mark = loads(file.read())
        os.unlink(path)  # whoever takes it away has it
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RecordBroken(path, str(error)) from error
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - mark["time"]
    if mark["uuid"] != domain.uuid or mark["libvirtd"] != list(libvirtd) or not 0 <= age <= VALID_SECONDS:
        return None
    if _defined_with(nonce, domain.name):
        return None
    return Arrival(mark["kind"], Image(*mark["image"]) if mark["image"] else None)


def _defined_with(nonce: str, name: str) -> bool:
    """Whether the persistent definition carries the nonce. Raises RecordBroken where it cannot be read."""
    path = os.path.join(DEFINITIONS, name + ".xml")
    try:
        with open(path, "rb") as file:
            return nonce.encode() in file.read()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RecordBroken(path, error.strerror or str(error)) from error


# -- the nonce in the XML ----------------------------------------------------------------------------------------------


def _with_nonce(xml: bytes, nonce: str) -> bytes:
    """
    The definition with this nonce in its metadata and no other one; all else byte by byte as it was.

    Raises BadDomain where it is not well-formed or not in an encoding that has ASCII in it.
    """
    cut, place, metadata = _places(xml)
    element = f'<vmguard:arrival xmlns:vmguard="{ARRIVAL_NAMESPACE}" nonce="{nonce}"/>'
    if not metadata:
        element = f"<metadata>{element}</metadata>"
    done, position = b"", 0
    for begin, end in [*(span for span in cut if span[1] <= place), (place, place)]:
        done += xml[position:begin]
        position = end
    done += element.encode()
    for begin, end in (span for span in cut if span[1] > place):
        done += xml[position:begin]
        position = end
    return done + xml[position:]


def _behind_tag(xml: bytes, begin: int) -> int:
    """Where a tag that begins there ends; a ">" within quotes does not end it."""
    quote = 0
    for index in range(begin, len(xml)):
        byte = xml[index]
        if quote:
            quote = 0 if byte == quote else quote
        elif byte in b"\"'":
            quote = byte
        elif byte == ord(">"):
            return index + 1
    raise BadDomain("a tag in it has no end")


def _places(xml: bytes) -> Tuple[List[Tuple[int, int]], int, bool]:
    """What to cut out (old nonces, an empty <metadata/>), where to insert, and whether that is within <metadata>."""
    import pyexpat

    parser = pyexpat.ParserCreate(namespace_separator="\x1f")
    path: List[str] = []
    begins: List[int] = []
    cut: List[Tuple[int, int]] = []
    places = {"metadata": -1, "domain": -1}
    ours = f"{ARRIVAL_NAMESPACE}\x1farrival"

    def start(name: str, attributes: object) -> None:
        path.append(name)
        begins.append(parser.CurrentByteIndex)

    def end(name: str) -> None:
        here, begin, index = tuple(path), begins.pop(), parser.CurrentByteIndex
        path.pop()
        opening = _behind_tag(xml, begin)
        closing = xml[opening - 2 : opening] != b"/>"  # else it is empty, and index is behind it
        behind = xml.index(b">", index) + 1 if closing else opening
        if here == ("domain", "metadata", ours):
            cut.append((begin, behind))
        elif here == ("domain", "metadata") and closing and places["metadata"] < 0:
            places["metadata"] = index
        elif here == ("domain", "metadata") and not closing:
            cut.append((begin, behind))
        elif here == ("domain",):
            places["domain"] = index if closing else -1

    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(xml, True)
    except (pyexpat.ExpatError, LookupError, ValueError) as error:
        raise BadDomain(f"it is not well-formed: {error}") from None
    inside = places["metadata"] >= 0
    place = places["metadata"] if inside else places["domain"]
    if place < 0 or not xml.startswith(b"</", place):
        raise BadDomain("there is no place in it for a mark")
    return cut, place, inside


# -- the saved state ---------------------------------------------------------------------------------------------------


def _image_of(uuid: str, libvirtd: Process) -> Optional[Image]:
    """
    The saved state that libvirt is restoring: it has it open while it calls the hook, and says its path nowhere. Where it
    is read past the page cache, a child of libvirt has it open (libvirt_iohelper), and libvirt itself a pipe.

    None where it cannot be seen.
    """
    wanted = f"<uuid>{uuid}</uuid>".encode()
    for pid in (libvirtd.pid, *host.children(libvirtd.pid)):
        found = _image_in(f"/proc/{pid}/fd", wanted)
        if found is not None:
            return found
    return None


def _image_in(folder: str, wanted: bytes) -> Optional[Image]:
    try:
        entries = os.listdir(folder)
    except OSError:
        return None
    for entry in entries:
        try:
            link = os.readlink(f"{folder}/{entry}")
            if not link.startswith("/") or link.startswith(("/dev/", "/proc/", "/sys/")):
                continue
            # Not to wait for the other end of a named pipe.
            fd = os.open(f"{folder}/{entry}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                head = file.read(len(_MAGIC))
                if head != _MAGIC:
                    continue
                head += file.read(_SAMPLE)
                if wanted in head.lower():
                    return _portrait(file.fileno(), head)
        except OSError:
            continue  # closed meanwhile, or nothing that can be read
    return None


def _portrait(fd: int, head: bytes) -> Image:

    found = os.fstat(fd)
    tail = os.pread(fd, _SAMPLE, max(0, found.st_size - _SAMPLE))
    return Image(sha256(b"%d\n" % found.st_size + head + tail).hexdigest()[:32], found.st_mtime)
