# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's notations for options: key=value lists with doubled commas, JSON, and dotted keys for what is nested."""

from vmguard._light import json
from vmguard._typing import Any, Dict, List, Optional, Tuple, Union

# A node of options. The key "" holds a plain value beside nested ones: file=/x,file.locking=off.
Tree = Dict[str, Union[str, "Tree"]]

# QEMU's words for yes; everything else is taken for no, which is never the safer side of "read-only".
_YES = frozenset(("on", "yes", "true", "y"))
# What makes a drive read-only. Of "readonly=off,readonly=on" QEMU 7.2 takes the first, of other keys the last: where
# these contradict each other, they say nothing.
_ONCE = frozenset(("media", "read-only", "readonly"))
# Dotted keys and JSON may nest; QEMU itself has no use for more than a chain of filters.
MAX_NESTING = 64


class BadOptions(Exception):
    """Options that cannot be read. Private to the readers of QEMU's arguments, which turn it into NotUnderstood."""


def split(text: str) -> List[str]:
    """The parts between single commas, with doubled commas made single."""
    parts, current, position = [], [], 0
    while position < len(text):
        comma = text.find(",", position)
        if comma < 0:
            break
        current.append(text[position:comma])
        if text[comma + 1 : comma + 2] == ",":
            current.append(",")
            position = comma + 2
        else:
            parts.append("".join(current))
            current = []
            position = comma + 1
    current.append(text[position:])
    parts.append("".join(current))
    return parts


def pairs(text: str, implied: str = "") -> List[Tuple[str, str]]:
    """
    The keys and values of a list, in order. A first part without a key has the key `implied`, if there is one; any
    other part without "=" is a switch that is on, or off with "no" before it.
    """
    found = []
    for order, part in enumerate(split(text)):
        key, equals, value = part.partition("=")
        if order == 0 and implied and not equals:
            found.append((implied, part))
        elif equals:
            found.append((key, value))
        elif part.startswith("no") and len(part) > 2:
            found.append((part[2:], "off"))
        elif part:
            found.append((part, "on"))
    return found


def tree(text: str, implied: str = "") -> Tree:
    """Options in either notation, nested. Raises BadOptions."""
    if text.startswith("{"):
        return from_json(text)
    flat: List[Tuple[str, Any]] = [(key, value) for key, value in pairs(text, implied)]
    return nested(flat)


def from_json(text: str) -> Tree:
    """JSON options, nested; dotted keys in it too, as QEMU's json: file names may have them. Raises BadOptions."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise BadOptions("it is not JSON") from None
    if not isinstance(value, dict):
        raise BadOptions("it is not a JSON object")
    return nested(list(value.items()))


def _once(members: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for key, value in members:
        if key in found:
            raise ValueError("a key is there twice")
        found[key] = value
    return found


def nested(flat: List[Tuple[str, Any]], depth: int = 0) -> Tree:
    """Dotted keys unfolded. Where a key is repeated, the last counts, as in QEMU. Raises BadOptions."""
    if depth > MAX_NESTING:
        raise BadOptions("it is nested too deep")
    root: Tree = {}
    for key, value in flat:
        names = key.split(".")
        if len(names) > MAX_NESTING:
            raise BadOptions("it is nested too deep")
        branch = root
        for name in names[:-1]:
            inner = branch.get(name)
            if not isinstance(inner, dict):
                inner = {} if inner is None else {"": inner}
                branch[name] = inner
            branch = inner
        _put(branch, names[-1], _plain(value, depth))
    return root


def _put(branch: Tree, name: str, value: Union[str, Tree]) -> None:
    there = branch.get(name)
    if name in _ONCE and there is not None and there != value:
        value = ""
    if isinstance(there, dict):
        if isinstance(value, dict):
            there.update(value)
        else:
            there[""] = value
    else:
        if isinstance(there, str) and isinstance(value, dict):
            value.setdefault("", there)
        branch[name] = value


def _plain(value: Any, depth: int) -> Union[str, Tree]:
    if isinstance(value, dict):
        return nested(list(value.items()), depth + 1)
    if isinstance(value, list):
        return nested([(str(order), item) for order, item in enumerate(value)], depth + 1)
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)


def text_of(options: Tree, *keys: str) -> Optional[str]:
    """The plain value of the first of these keys that has one that is not empty."""
    for key in keys:
        value = options.get(key)
        if isinstance(value, dict):
            value = value.get("")
        if isinstance(value, str) and value:
            return value
    return None


def is_on(options: Tree, *keys: str) -> bool:
    """Whether a switch is on: by one of these names at least, and by none of them off."""
    said = [text_of(options, key) for key in keys if key in options]
    return bool(said) and all(value in _YES for value in said)


def branch_of(options: Tree, key: str) -> Tree:
    """The nested options under a key; empty if there are none."""
    value = options.get(key)
    return value if isinstance(value, dict) else {}


def paths_in(options: Tree) -> List[str]:
    """Every value with a slash in it: what may be a path, where nothing better is known."""
    found: List[str] = []
    waiting: List[Tree] = [options]
    while waiting:
        for value in waiting.pop().values():
            if isinstance(value, dict):
                waiting.append(value)
            elif "/" in value:
                found.append(value)
    return found
