# SPDX-License-Identifier: LGPL-2.1-or-later
"""Editing files that belong to others: the one value changes, every other byte stays."""

import pytest

from vmguard.errors import Misconfigured
from vmguard.setup.libvirtconf import change, drop, get, put, sanlock_add, sanlock_get, written

SHIPPED = b"""\
# Accepted values
# are "sanlock" and "lockd".
#
#lock_manager = "lockd"

# The next one
#user = "root"
"""


def edit(data: bytes) -> bytes:
    return change("qemu.conf", data, "lock_manager", "sanlock")


@pytest.mark.parametrize(
    "before, after",
    [
        pytest.param(b"", b'lock_manager = "sanlock"\n', id="empty"),
        pytest.param(b"#x", b'#x\nlock_manager = "sanlock"\n', id="no-line-end"),
        pytest.param(
            SHIPPED,
            SHIPPED.replace(b'"lockd"\n', b'"lockd"\nlock_manager = "sanlock"\n', 1),
            id="after-its-example",
        ),
        pytest.param(b"#lock_manager = 1", b'#lock_manager = 1\nlock_manager = "sanlock"\n', id="example-at-end"),
        pytest.param(b"a = 1\r\n", b'a = 1\r\nlock_manager = "sanlock"\r\n', id="crlf"),
        pytest.param(b'lock_manager="lockd"\n', b'lock_manager="sanlock"\n', id="spelling-stays"),
        pytest.param(b"lock_manager\t= 'nop' # x\nb=2", b'lock_manager\t= "sanlock" # x\nb=2', id="comment-stays"),
        pytest.param(b'a=1; lock_manager = "x"; b=2\n', b'a=1; lock_manager = "sanlock"; b=2\n', id="semicolons"),
        pytest.param(b'lock_manager = """a\nb"""\n', b'lock_manager = "sanlock"\n', id="triple-quoted"),
        pytest.param(
            b'lock_manager = "a"\nlock_manager = "b"\n',
            b'lock_manager = "sanlock"\nlock_manager = "b"\n',
            id="first-one-counts",
        ),
        pytest.param(
            b'a = """\nlock_manager = "x"\n"""\n',
            b'a = """\nlock_manager = "x"\n"""\nlock_manager = "sanlock"\n',
            id="not-inside-a-string",
        ),
        pytest.param(
            b'a = [\n "#lock_manager = 1",\n [ 1, -2 ],\n]\n# \xff\n',
            b'a = [\n "#lock_manager = 1",\n [ 1, -2 ],\n]\n# \xff\nlock_manager = "sanlock"\n',
            id="not-inside-a-list",
        ),
        pytest.param(b"lock_manager2 = 1\n", b'lock_manager2 = 1\nlock_manager = "sanlock"\n', id="longer-name"),
    ],
)
def test_change(before: bytes, after: bytes) -> None:
    assert edit(before) == after
    assert edit(after) == after
    assert get("qemu.conf", after, "lock_manager") == '"sanlock"'


@pytest.mark.parametrize(
    "data, line",
    [
        pytest.param(b"a = 1\nlock_manager\n", 2, id="no-equals"),
        pytest.param(b'a = "x\n', 1, id="open-string"),
        pytest.param(b"\n\na = [ 1, 2\n", 4, id="open-list"),
        pytest.param(b"a = b\n", 1, id="bare-word"),
        pytest.param(b"a = 1 2\n", 1, id="two-values"),
        pytest.param(b"= 1\n", 1, id="no-name"),
        pytest.param(b"<<<<<<< HEAD\n", 1, id="merge-conflict"),
        pytest.param(b"a = " + b"[" * 5000, 1, id="deep"),
        pytest.param(b"a\0 = 1\n", 1, id="nul"),
    ],
)
def test_what_libvirt_cannot_read_is_left_alone(data: bytes, line: int) -> None:
    with pytest.raises(Misconfigured, match=f"line {line}"):
        edit(data)


@pytest.mark.parametrize(
    "before, after",
    [
        pytest.param(b"a = 1\nb = 2\nc = 3\n", b"a = 1\nc = 3\n", id="a-line"),
        pytest.param(b"b = 2", b"", id="last-line"),
        pytest.param(b"a=1; b = 2; c=3\n", b"a=1; c=3\n", id="among-others"),
        pytest.param(b"b = 2 # why\n", b"# why\n", id="comment-stays"),
        pytest.param(b"#b = 1\n", b"#b = 1\n", id="not-set"),
        pytest.param(b"  b = [\n1,\n2 ]\r\nc=3\r\n", b"c=3\r\n", id="list"),
    ],
)
def test_drop(before: bytes, after: bytes) -> None:
    assert drop("f", before, "b") == after


@pytest.mark.parametrize("text", ["'lockd' ", '"""\nx\n"""', "[ 1 , 'a' ]"], ids=["quotes", "lines", "list"])
def test_what_stood_there_comes_back(text: str) -> None:
    text = text.strip()
    before = b"# top\nlock_manager = " + text.encode() + b"\n# end\n"
    saved = get("f", before, "lock_manager")
    assert saved == text
    assert put("f", edit(before), "lock_manager", saved) == before


def test_set_and_dropped_again() -> None:
    assert drop("f", edit(SHIPPED), "lock_manager") == SHIPPED


def test_no_escape_can_be_written() -> None:
    assert written(0) == "0"
    with pytest.raises(ValueError):
        written('a"; b = "')


def test_sanlock_conf() -> None:
    data = b"# our_host_name = a\n our_host_name = b\nour_host_name=c d\nio_timeout = 2\n"
    assert sanlock_get(data, "our_host_name") == "c"
    assert sanlock_get(b"#our_host_name = a\n", "our_host_name") is None
    added = sanlock_add(b"x = 1", "our_host_name", "q")
    assert added == b"x = 1\nour_host_name = q\n"
    assert sanlock_get(added, "our_host_name") == "q"
