# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Settings in the configuration files of libvirt (qemu.conf, qemu-sanlock.conf) and sanlock (sanlock.conf).

These files belong to others. An edit changes the one value it is about; comments, order, spelling and line ends of the
rest stay byte for byte. A file that libvirt itself could not read is not touched.

libvirt's grammar (src/util/virconf.c): `name = value`, ended by a line end or `;`. A value is a number, a 'string' or
"string" in one line without escapes, a triple-quoted string over many, or a list of values in brackets over many. Of a
name given twice the first counts.
"""

import re
from typing import List, NamedTuple, Optional, Tuple, Union

from vmguard.errors import Misconfigured

Value = Union[int, str]

_BLANKS = re.compile(rb"[ \t]*")
_BLANKS_AND_ENDS = re.compile(rb"[ \t\r\n]*")
_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9_]*")
_NUMBER = re.compile(rb"[-+]?[0-9]+")
_STRINGS = (
    re.compile(rb'"""(.*?)"""', re.DOTALL),
    re.compile(rb'"([^"\r\n]*)"'),
    re.compile(rb"'([^'\r\n]*)'"),
)
_COMMENT = re.compile(rb"#[^\r\n]*")
_MAX_DEPTH = 20


class Setting(NamedTuple):
    """One `name = value`; the numbers are byte offsets in the file."""

    name: bytes
    start: int  # of the name
    value: Tuple[int, int]


class _Syntax(Exception):
    def __init__(self, at: int, why: str) -> None:
        super().__init__(at, why)
        self.at = at
        self.why = why


def get(path: str, data: bytes, name: str) -> Optional[str]:
    """The value of a setting as it is written in the file, None where it is not set. Raises Misconfigured."""
    found = _find(path, data, name)[0]
    return None if found is None else data[slice(*found.value)].decode("utf-8", "surrogateescape")


def change(path: str, data: bytes, name: str, value: Value) -> bytes:
    """
    The file with this setting. Where it was not set, it comes after its commented example, or at the end.

    Raises Misconfigured if the file is not in libvirt's form.
    """
    return put(path, data, name, written(value))


def put(path: str, data: bytes, name: str, text: str) -> bytes:
    """Like `change`, with the value as it is to stand in the file: what `get` gave."""
    raw = text.encode("utf-8", "surrogateescape")
    found, comments = _find(path, data, name)
    if found is not None:
        start, end = found.value
        return data[:start] + raw + data[end:]
    line = name.encode() + b" = " + raw
    end_of_line = b"\r\n" if b"\r\n" in data else b"\n"
    example = re.compile(rb"#[ \t]*" + re.escape(name.encode()) + rb"[ \t]*=")
    for start, end in comments:
        if example.match(data, start):
            return data[:end] + end_of_line + line + (data[end:] or end_of_line)
    before = data if not data or data.endswith((b"\n", b"\r")) else data + end_of_line
    return before + line + end_of_line


def drop(path: str, data: bytes, name: str) -> bytes:
    """The file without this setting; its line goes if nothing else is on it. Raises Misconfigured."""
    found = _find(path, data, name)[0]
    if found is None:
        return data
    start, end = found.start, found.value[1]
    rest = re.compile(rb"[ \t]*;?[ \t]*").match(data, end)
    assert rest is not None  # it matches nothing, too
    line_start = max(data.rfind(b"\n", 0, start), data.rfind(b"\r", 0, start)) + 1
    alone_before = not data[line_start:start].strip()
    line_end = re.compile(rb"\r\n|\n|\r|\Z").match(data, rest.end())
    if alone_before and line_end:
        return data[:line_start] + data[line_end.end() :]
    return data[:start] + data[rest.end() :]


def written(value: Value) -> str:
    """A value in libvirt's form. Strings have no escapes there, so not every string can be written."""
    if isinstance(value, int):
        return str(value)
    if re.search('["\r\n]', value):
        raise ValueError(value)
    return f'"{value}"'


def _find(path: str, data: bytes, name: str) -> Tuple[Optional[Setting], List[Tuple[int, int]]]:
    """The setting that counts, and where the comments are."""
    try:
        settings, comments = _scan(data)
    except _Syntax as e:
        line = len(re.findall(rb"\r\n|\n|\r", data[: e.at])) + 1
        raise Misconfigured(f"{path}, line {line}", e.why, "libvirt cannot read it either: mend that line") from None
    wanted = name.encode()
    return next((setting for setting in settings if setting.name == wanted), None), comments


def _scan(data: bytes) -> Tuple[List[Setting], List[Tuple[int, int]]]:
    settings: List[Setting] = []
    comments: List[Tuple[int, int]] = []
    at = _skip(_BLANKS_AND_ENDS, data, 0)
    while at < len(data):
        comment = _COMMENT.match(data, at)
        if comment:
            comments.append(comment.span())
            at = comment.end()
        else:
            setting = _setting(data, at)
            settings.append(setting)
            at = _skip(_BLANKS, data, setting.value[1])
            comment = _COMMENT.match(data, at)
            if comment:
                at = comment.end()
            elif data[at : at + 1] == b";":
                at += 1
            elif at < len(data) and data[at] not in b"\r\n":
                raise _Syntax(at, "there is something behind the value")
        at = _skip(_BLANKS_AND_ENDS, data, at)
    return settings, comments


def _setting(data: bytes, at: int) -> Setting:
    name = _NAME.match(data, at)
    if name is None:
        raise _Syntax(at, "no setting begins like this")
    equals = _skip(_BLANKS, data, name.end())
    if data[equals : equals + 1] != b"=":
        raise _Syntax(equals, f"after {name.group().decode()} there is no =")
    start = _skip(_BLANKS, data, equals + 1)
    return Setting(name.group(), at, (start, _value_end(data, start)))


def _value_end(data: bytes, at: int, depth: int = 0) -> int:
    for form in (_NUMBER, *_STRINGS):
        match = form.match(data, at)
        if match:
            return match.end()
    if data[at : at + 1] != b"[" or depth >= _MAX_DEPTH:
        raise _Syntax(at, "the value is no number, string or list")
    at = _skip(_BLANKS_AND_ENDS, data, at + 1)
    while data[at : at + 1] != b"]":
        at = _skip(_BLANKS_AND_ENDS, data, _value_end(data, at, depth + 1))
        if data[at : at + 1] == b",":
            at = _skip(_BLANKS_AND_ENDS, data, at + 1)
        elif data[at : at + 1] != b"]":
            raise _Syntax(at, "the list is not closed with ]")
    return at + 1


def _skip(what: "re.Pattern[bytes]", data: bytes, at: int) -> int:
    match = what.match(data, at)
    return at if match is None else match.end()


def sanlock_get(data: bytes, name: str) -> Optional[str]:
    """
    A setting of sanlock.conf, None where it is not set: `name = value`, the name at the very beginning of the line, the
    value up to the first blank. The last one counts (sanlock's main.c, read_config_file).
    """
    found = None
    for line in data.split(b"\n"):
        match = re.match(rb"([^ =\t]+)[^=]*=\s*(\S+)", line)
        if match and match.group(1) == name.encode() and not line.startswith(b"#"):
            found = match.group(2).decode("utf-8", "surrogateescape")
    return found


def sanlock_add(data: bytes, name: str, value: str) -> bytes:
    """sanlock.conf with one more setting at its end."""
    before = data if not data or data.endswith(b"\n") else data + b"\n"
    return before + f"{name} = {value}\n".encode()
