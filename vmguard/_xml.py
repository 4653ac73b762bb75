# SPDX-License-Identifier: LGPL-2.1-or-later
"""
A small reader of untrusted XML: elements, attributes, text and line numbers, and nothing that XML can do to its reader.

No document type and so no entities of its own, no external anything; size, depth and number of elements are bounded.
"""

import pyexpat

from vmguard._typing import Dict, Iterator, List, Optional, Tuple
from vmguard.errors import BadDomain

# libvirt's own limit for a domain XML over the wire is VIR_NET_MESSAGE_STRING_MAX, 4 MiB.
MAX_BYTES = 4 * 1024 * 1024
# libxml2 stops at 256, so nothing deeper ever came from libvirt. A backing chain of libvirt (at most 200) fits.
MAX_DEPTH = 256
# The largest domains known have some thousand elements.
MAX_ELEMENTS = 100_000

# Between namespace and name; not a legal character of XML, so in no namespace.
_SEPARATOR = "\x1f"


class Element:
    """
    One element. `tag` is the bare name; `namespace` is "" for libvirt's own elements.

    Attributes go by their bare names, as libvirt (xmlGetProp) looks them up; of two with one name the first counts.
    """

    __slots__ = ("tag", "namespace", "attributes", "children", "line", "_text")

    def __init__(self, tag: str, namespace: str, attributes: Dict[str, str], line: int) -> None:
        self.tag = tag
        self.namespace = namespace
        self.attributes = attributes
        self.children: List[Element] = []
        self.line = line  # from 1
        self._text: List[str] = []

    @property
    def text(self) -> str:
        """The element's own text, blanks and all; that of its children is not in it."""
        return "".join(self._text)

    def get(self, attribute: str) -> Optional[str]:
        """An attribute's value, None if it is not there."""
        return self.attributes.get(attribute)

    def all(self, tag: str, namespace: str = "") -> Iterator["Element"]:
        """The children of that name, in order."""
        return (child for child in self.children if child.tag == tag and child.namespace == namespace)

    def first(self, tag: str, namespace: str = "") -> Optional["Element"]:
        """The first child of that name: where libvirt expects one, it takes the first."""
        return next(self.all(tag, namespace), None)

    def find(self, *tags: str) -> Optional["Element"]:
        """The first element down that way, trying each branch (as the XPath ./a/b does)."""
        found = [self]
        for tag in tags:
            found = [child for element in found for child in element.all(tag)]
        return found[0] if found else None

    def walk(self) -> Iterator["Element"]:
        """This element and all below it."""
        waiting = [self]
        while waiting:
            element = waiting.pop()
            yield element
            waiting.extend(reversed(element.children))


class _Builder:
    def __init__(self) -> None:
        self.root: Optional[Element] = None
        self._open: List[Element] = []
        self._count = 0
        self._parser = pyexpat.ParserCreate(namespace_separator=_SEPARATOR)
        self._parser.buffer_text = True
        self._parser.ordered_attributes = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype

    def feed(self, xml: bytes) -> None:
        self._parser.Parse(xml, True)

    def _start(self, name: str, attributes: List[str]) -> None:
        line = self._parser.CurrentLineNumber
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise BadDomain("it has too many elements", line)
        if len(self._open) >= MAX_DEPTH:
            raise BadDomain("its elements are nested too deep", line)
        named: Dict[str, str] = dict(zip(attributes[::2], attributes[1::2])) if attributes else {}
        for key in named:
            if _SEPARATOR in key:  # hardly ever
                named = _bare(attributes)
                break
        namespace, tag = _split(name) if _SEPARATOR in name else ("", name)
        element = Element(tag, namespace, named, line)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, name: str) -> None:
        self._open.pop()

    def _characters(self, text: str) -> None:
        self._open[-1]._text.append(text)

    def _doctype(self, name: str, system: Optional[str], public: Optional[str], subset: bool) -> None:
        raise BadDomain("it carries a document type", self._parser.CurrentLineNumber)


def _bare(attributes: List[str]) -> Dict[str, str]:
    named: Dict[str, str] = {}
    for key, value in zip(attributes[::2], attributes[1::2]):
        named.setdefault(_split(key)[1], value)
    return named


def _split(name: str) -> Tuple[str, str]:
    namespace, separator, bare = name.rpartition(_SEPARATOR)
    return (namespace, bare) if separator else ("", name)


def read(xml: bytes, builder: Optional[_Builder] = None) -> Element:
    """The root element. Raises BadDomain for what is not well-formed, or is more than the limits above allow."""
    if len(xml) > MAX_BYTES:
        raise BadDomain("it is larger than 4 MiB")
    builder = builder or _Builder()
    try:
        builder.feed(xml)
    except pyexpat.ExpatError as error:
        raise BadDomain("it is not well-formed: " + pyexpat.ErrorString(error.code), error.lineno) from None
    except (LookupError, ValueError, UnicodeError):
        # What Python's codecs raise for an encoding that they do not know, or of which they know too much.
        raise BadDomain("its encoding is not understood") from None
    if builder.root is None:
        raise BadDomain("it is empty")
    return builder.root
