# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What a path really is.

`resolve` turns a location, as a domain names it, into storage objects with identities that are equal on every host
and for
every alias; `chain` follows an image's backing files. All facts come in through `facts.Facts`, so a recorded host
can stand in.

    facts.py recorded.py   the narrow interface; this host, or one that was written down
    host.py                the facts, put the way the resolvers ask for them
    locate.py              which resolver is asked
    files.py               files and directories (filesystems.py, nfs.py, overlay.py)
    block.py               block devices (dm.py, lvm.py, disks.py, loops.py)
    network.py pools.py devices.py   network volumes, libvirt's pools, devices given to a guest whole
    hostuse.py             whether the host itself uses it
    images.py              image headers and backing chains (formats.py, qcow.py, vmdk.py, virtualpc.py, filenames.py)
"""

from vmguard._typing import TYPE_CHECKING, List, NamedTuple, Optional, Tuple

if TYPE_CHECKING:
    from vmguard.domain import Location
    from vmguard.storage.facts import Facts


class Storage(NamedTuple):
    """
    One storage object.

    identity is equal on every host and for every alias, made of printable ASCII without blanks. `also` are further
    identities of the very same object (a kernel rbd device is also the rbd image): whoever claims one claims all.
    """

    identity: str
    path: str  # as it was found on this host, for people
    kind: str  # "file", "lvm", "lun", "nvme", "partition", "drbd", "md", "dm", "mpath", "rbd", "nbd", "directory", ...
    also: Tuple[str, ...] = ()
    under: Tuple["Storage", ...] = ()  # directly beneath it; each with what lies under that
    one_host: Tuple["Storage", ...] = ()  # beneath it, and only one host may have them active (a thin pool)
    others_see_it: bool = False  # other hosts can reach the same object
    device: Optional[Tuple[int, int]] = None  # major, minor of a block device
    size: Optional[int] = None  # bytes
    reasons: Tuple[str, ...] = ()  # how the identity was found, a sentence each
    not_writable: Optional[str] = None  # why writing it cannot be guarded; reading may be
    instead: Optional[str] = None  # what to name in its place, where not_writable is set
    used_by_host: Optional[str] = None  # "mounted on /srv", "a physical volume of the active volume group data"


class Layer(NamedTuple):
    """One thing that an image needs besides itself."""

    location: "Location"
    format: Optional[str]  # of the layer itself; None where it is not an image of its own
    role: str  # "backing": only read; "data", "extent": written whenever the image is
    path: str  # for words


def resolve(location: "Location", facts: "Facts") -> Tuple[Storage, ...]:
    """
    What a location is: usually one object, several for a controller with its disks, none for what keeps no data (a
    socket, a terminal).

    Raises Unresolvable for what is not there or cannot be found out.
    """
    # imported here: the resolvers need the types above
    from vmguard.storage import locate

    return locate.resolve(location, facts)


def chain(path: str, format: str, facts: "Facts") -> Tuple[Layer, ...]:
    """
    Everything behind an image of the given format, in order: backing files down to the last, data files and extents.

    Raises Unresolvable for a header that is damaged, hostile or of another format than given, for a cycle, and for
    what cannot be read.
    """
    from vmguard.storage import images

    return images.chain(path, format, facts)


def describe(storage: Storage) -> List[str]:
    """A storage object and what lies beneath it, in words, a line each."""
    from vmguard.storage import words

    return words.describe(storage)
