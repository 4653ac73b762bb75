# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names and times as they can be shown: names come from strangers, and go to terminals."""

import time


def quoted(name: str) -> str:
    """
    A name in double quotes, in one line, with nothing in it that a terminal would obey or a reader would not see.

    Letters of all scripts stay; control and format characters, line ends and undecodable bytes become escapes.
    """
    return '"' + plain(name).replace('"', '\\"') + '"'


def typed(name: str) -> str:
    """A name as it can be typed into a shell; a place-holder where that would take quoting."""
    return name if name and all(c.isascii() and (c.isalnum() or c in "._-+") for c in name) else "DOMAIN"


def plain(name: str) -> str:
    """The same without the quotes: for paths."""
    if name.isascii() and name.isprintable() and "\\" not in name:
        return name
    return "".join(_shown(character) for character in name)


def lines(text: str) -> str:
    """Text of several lines, names and all: what a terminal would obey, and the journal would not show, becomes an escape."""
    if text.replace("\n", " ").isprintable():
        return text
    return "".join(one if one == "\n" or one.isprintable() else _escaped(one) for one in text)


def encodable(text: str) -> bool:
    """Whether a text is one of bytes: half of a surrogate pair, which JSON may have by its number, stands for none."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeError:
        return False
    return True


def _shown(character: str) -> str:
    if character == "\\":
        return "\\\\"
    import unicodedata  # only for those who have a sentence to say

    if character == " " or unicodedata.category(character)[0] in "LNPSM":
        return character
    return _escaped(character)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def moment(seconds: float) -> str:
    """A point in time: local, to the second, with its zone."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return "an unreadable time"


def duration(seconds: float) -> str:
    """How long, in the two units that matter."""
    left = max(0, int(seconds))
    parts = []
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit}{'s' if count > 1 else ''}")
    return " ".join(parts[:2]) or "0 seconds"
