# SPDX-License-Identifier: LGPL-2.1-or-later
import pytest

from vmguard.text import duration, moment, plain, quoted


@pytest.mark.parametrize(
    "name, shown",
    [
        pytest.param("web1", '"web1"', id="plain"),
        pytest.param("Büro 2 ☃", '"Büro 2 ☃"', id="letters-of-all-scripts"),
        pytest.param('a"b', '"a\\"b"', id="quote"),
        pytest.param("a\nb\r\tc", '"a\\nb\\r\\tc"', id="line-ends"),
        pytest.param("\x1b[31mred", '"\\x1b[31mred"', id="terminal-escape"),
        pytest.param("a\u202egpj.exe", '"a\\u202egpj.exe"', id="right-to-left-override"),
        pytest.param("a\u00a0b", '"a\\xa0b"', id="blank-that-is-none"),
        pytest.param("a\u2028b", '"a\\u2028b"', id="unicode-line-end"),
        pytest.param("a\udcffb", '"a\\udcffb"', id="undecodable-byte"),
        pytest.param("a\\b", '"a\\\\b"', id="backslash"),
    ],
)
def test_quoted(name: str, shown: str) -> None:
    assert quoted(name) == shown
    assert len(quoted(name).splitlines()) == 1


def test_plain_keeps_paths() -> None:
    assert plain("/srv/images/web 1.img") == "/srv/images/web 1.img"


@pytest.mark.parametrize(
    "seconds, words",
    [(-5, "0 seconds"), (0.9, "0 seconds"), (61, "1 minute 1 second"), (3600, "1 hour"), (90061, "1 day 1 hour")],
)
def test_duration(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize("seconds", [1e300, float("nan"), float("inf"), -1e18])
def test_moment_of_a_forged_note(seconds: float) -> None:
    assert moment(seconds) == "an unreadable time"
