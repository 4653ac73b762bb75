# SPDX-License-Identifier: LGPL-2.1-or-later
"""
One definition: its XML with the place of each element, and the domain that the guard's own reader makes of it.

The reader hands each element's `line` on to what it finds. Here that number is not a line but the element's own, counting
from 1 through the document: so a use leads back to its element, even where a whole definition stands in one line.
"""

import re
from typing import Iterator, List, NamedTuple, Optional, Tuple

from vmguard import _xml
from vmguard._xml import MAX_BYTES, Element
from vmguard.claims import path_of
from vmguard.domain import Domain, Use, of_element
from vmguard.errors import BadDomain
from vmguard.lint.findings import Finding, Other, Place, Rule, Severity

# Of the element in a domain's metadata that says which findings are meant.
POLICY_NAMESPACE = "urn:vmguard:policy:1"

_ENCODING = re.compile(rb"""^[^>]{0,100}encoding=["']([A-Za-z0-9._-]+)["']""")

# As expat counts: \r by itself ends a line, too.
_LINE_END = re.compile("\r\n?|\n")


class Origin(NamedTuple):
    """Where a definition was read."""

    source: str  # a path, or "qemu:///system: web1"
    host: str = ""  # of which host it is; "" where nothing says that
    local: bool = True  # its paths are this host's
    target: bool = True  # it is to be judged; else it is only what others are compared with


class Disk(NamedTuple):
    """A <disk>, with what its attributes say."""

    element: Element
    name: str  # "vda"
    what: str  # "disk vda", as the guard calls it
    device: str  # "disk", "cdrom", "lun", "floppy"
    kind: str  # "file", "block", "network", ...
    cache: str  # "" where nothing is said
    format: str  # of the driver; "" where nothing is said
    shareable: bool
    readonly: bool
    use: Optional[Use]  # None: without a medium

    @property
    def path(self) -> str:
        """What it names, in the definition's words; "" for nothing."""
        return path_of(self.use.location) if self.use is not None else ""

    @property
    def written(self) -> bool:
        """Whether the guest may write it."""
        return self.use is not None and not self.readonly


class Allow(NamedTuple):
    """One <allow> of the definition's metadata: a finding that is meant."""

    rule: str  # code or slug, as written
    target: str  # "vdb", or "" for the whole domain
    reason: str
    number: int


class Definition:
    """One definition. `domain` is None where it is none, and `error` says why."""

    def __init__(self, xml: bytes, origin: Origin) -> None:
        self.origin = origin
        self.domain: Optional[Domain] = None
        self.error: Optional[BadDomain] = None
        self.root: Optional[Element] = None
        self.disks: List[Disk] = []
        self.xml = xml
        self._lines: Optional[List[str]] = None
        self._tree = _Places()
        try:
            self.root = self._tree.tree(xml)
            self.domain = of_element(self.root)
        except BadDomain as error:
            self.error = error
        if self.domain is not None and self.root is not None:
            self.root = _domain_element(self.root)
            self.disks = list(_disks(self.root, self.domain))

    @property
    def name(self) -> str:
        """The domain's name; "" where it could not be read."""
        return self.domain.name if self.domain is not None else ""

    def place(self, number: int) -> Optional[Place]:
        """The place of an element, by its number; None for none."""
        if not 0 < number <= len(self._tree.at):
            return None
        line, column = self._tree.at[number - 1]
        text = self._line(line)
        if line == 1 and not text.startswith("<", column):
            column -= 1  # expat counts a byte order mark
        return Place(line, column + 1, _end_of_tag(text, column) + 1, self._tree.path(number), text)

    def place_of_error(self) -> Optional[Place]:
        """Where it could not be read any further, as far as that is known."""
        if self.error is None or not self.error.line:
            return None
        if self.root is not None:
            return self.place(self.error.line)
        # the parser's own word: a line, not a number of ours
        return self.place_of_line(self.error.line)

    def place_of_line(self, line: int) -> Place:
        """A whole line, where no element is known."""
        text = self._line(line)
        indent = len(text) - len(text.lstrip())
        return Place(line, indent + 1, len(text) + 1, "", text)

    def finding(
        self,
        rule: Rule,
        what: str,
        number: int,
        text: str,
        remedy: str,
        severity: Optional[Severity] = None,
        why: str = "",
        others: Tuple[Other, ...] = (),
        unread: bool = False,
    ) -> Finding:
        """A finding about the element of that number."""
        return Finding(
            rule.code, severity or rule.severity, what, text, remedy, self.place(number), why, others, 0, unread
        )

    def allowed(self) -> List[Allow]:
        """What the metadata says is meant."""
        found: List[Allow] = []
        metadata = self.root.first("metadata") if self.root is not None and self.domain is not None else None
        for policy in metadata.all("policy", POLICY_NAMESPACE) if metadata is not None else ():
            for allow in policy.all("allow", POLICY_NAMESPACE):
                found.append(
                    Allow(
                        (allow.get("rule") or "").strip(),
                        (allow.get("target") or "").strip(),
                        (allow.get("reason") or "").strip(),
                        allow.line,
                    )
                )
        return found

    def _line(self, number: int) -> str:
        if self._lines is None:
            self._lines = _LINE_END.split(_text(self.xml))
        return self._lines[number - 1] if 0 < number <= len(self._lines) else ""


class _Places(_xml._Builder):
    """The guard's own reader, which notes the place of each element and numbers it."""

    def __init__(self) -> None:
        super().__init__()
        self.at: List[Tuple[int, int]] = []  # by number: line from 1, column from 0
        self._elements: List[Element] = []
        self._parents: List[int] = []

    def tree(self, xml: bytes) -> Element:
        """Raises BadDomain as _xml.read does, with lines that are lines."""
        try:
            return _xml.read(xml, self)
        finally:
            # The parser holds this object by its handlers: a circle, which would keep each definition for long.
            del self._parser

    def _start(self, name: str, attributes: List[str]) -> None:
        parser = self._parser
        self.at.append((parser.CurrentLineNumber, parser.CurrentColumnNumber))
        opened = self._open
        self._parents.append(opened[-1].line if opened else 0)
        super()._start(name, attributes)
        element = opened[-1]
        element.line = len(self.at)
        self._elements.append(element)

    def path(self, number: int) -> str:
        """Like an XPath: siblings of one name are counted from 1 where there is more than one."""
        steps: List[str] = []
        while number:
            element, parent = self._elements[number - 1], self._parents[number - 1]
            step = element.tag
            same = [one.line for one in self._elements[parent - 1].all(step, element.namespace)] if parent else []
            if len(same) > 1:
                step += f"[{same.index(number) + 1}]"
            steps.append(step)
            number = parent
        return "/" + "/".join(reversed(steps))


def _text(xml: bytes) -> str:
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8-sig")):
        if xml.startswith(mark):
            return xml.decode(encoding, "replace")
    declared = _ENCODING.match(xml)
    try:
        return xml.decode(declared.group(1).decode("ascii") if declared else "utf-8", "replace")
    except LookupError:
        return xml.decode("utf-8", "replace")


def _end_of_tag(text: str, column: int) -> int:
    """The column behind the ">" of a tag, or behind the line where it goes on in the next."""
    quote = ""
    for position in range(column, len(text)):
        character = text[position]
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == ">":
            return position + 1
    return len(text.rstrip())


def _domain_element(root: Element) -> Element:
    inner = root.first("domain") if root.tag == "domstatus" else None
    return inner if inner is not None else root


def _disks(root: Element, domain: Domain) -> Iterator[Disk]:
    uses = {use.line: use for use in domain.uses if not use.what.endswith(", mirror")}
    order = 0
    for devices in root.all("devices"):
        for element in devices.all("disk"):
            use = uses.get(element.line)
            target, driver = element.first("target"), element.first("driver")
            name = (target.get("dev") if target is not None else None) or str(order)
            device = element.get("device") or "disk"
            yield Disk(
                element,
                name,
                use.what if use is not None else f"disk {name}",
                device,
                element.get("type") or "file",
                (driver.get("cache") if driver is not None else None) or "",
                (driver.get("type") if driver is not None else None) or "",
                element.first("shareable") is not None,
                device == "cdrom" or element.first("readonly") is not None,
                use,
            )
            order += 1


def within(disk: Disk, *tags: str) -> int:
    """The number of an element of a disk, of the disk itself where it has none."""
    found = disk.element.find(*tags)
    return found.line if found is not None else disk.element.line


def too_large(xml: bytes) -> bool:
    """Whether it is more than the reader would take."""
    return len(xml) > MAX_BYTES
