# SPDX-License-Identifier: LGPL-2.1-or-later
"""What lint says, as data: rules, findings, and where in the XML they are."""

from enum import Enum
from typing import NamedTuple, Optional, Tuple


class Severity(str, Enum):
    """How bad a finding is."""

    ERROR = "error"  # data is in danger, or the guest will not start
    WARNING = "warning"  # it works today, and will endanger data in a case that does come
    NOTICE = "notice"  # worth a word

    @property
    def rank(self) -> int:
        """0 is the worst."""
        return _RANKS[self]


_RANKS = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTICE: 2}


class Needs(str, Enum):
    """What a rule must know besides the definition. A rule whose need is not met is skipped, and that is said."""

    XML = "xml"  # the definition alone
    HOST = "host"  # the storage that the paths lead to, on this host
    INVENTORY = "inventory"  # the definitions of other guests
    CLUSTER = "cluster"  # this host's configuration of vmguard, with a store that hosts share


class Rule(NamedTuple):
    """One rule. Its module is rules/<code>_<slug>.py, its page of text lies beside that."""

    code: str  # "VMG101"; never used again for anything else
    slug: str  # "duplicate-source"
    severity: Severity
    needs: Needs
    deny: bool = False  # the hook refuses such a start as well
    title: str = ""  # one line, no full stop


class Place(NamedTuple):
    """The opening tag of an element, as far as it stands in one line. Lines and columns count from 1, in characters."""

    line: int
    column: int
    end: int  # the column behind its last character
    element: str  # "/domain/devices/disk[2]/source"
    text: str  # the whole line


class Other(NamedTuple):
    """Another guest, or another place of the same one, that a finding is about."""

    domain: str
    host: str  # "" if it is not known, or is the only one
    what: str  # "disk vda"
    path: str
    source: str  # where its definition was read
    line: int


class Finding(NamedTuple):
    """One thing that is wrong in one definition."""

    rule: str
    severity: Severity
    what: str  # the place in the domain: "disk vda"; "" for the domain as a whole
    text: str  # one sentence without its full stop
    remedy: str  # what to do, a sentence without its full stop
    place: Optional[Place] = None
    why: str = ""  # how it was found out, where that is not plain
    others: Tuple[Other, ...] = ()
    more_others: int = 0  # how many there are besides
    unread: bool = False  # it says that something could not be checked
    source: str = ""  # where the definition was read; the engine fills in these four
    host: str = ""
    domain: str = ""
    suppressed: Optional[str] = None  # the reason that the definition itself gives
