# SPDX-License-Identifier: LGPL-2.1-or-later
import os
import signal
import time
from typing import Tuple

import pytest

from vmguard import deadline
from vmguard.errors import Late


def test_outcome_comes_back() -> None:
    assert deadline.run(10, lambda: (1, "no: \udcff \u2603")) == (1, "no: \udcff \u2603")


def test_late_says_what_it_was_at() -> None:
    def work() -> deadline.Outcome:
        deadline.step("counting sheep")
        signal.pause()
        return 0, ""

    began = time.monotonic()
    with pytest.raises(Late) as caught:
        deadline.run(0.2, work)
    assert caught.value.doing == "counting sheep"
    assert caught.value.tolerated == ""
    assert time.monotonic() - began < 5


def test_late_child_is_killed() -> None:
    read, write = os.pipe()

    def work() -> deadline.Outcome:
        os.write(write, b"x")
        signal.pause()
        return 0, ""

    with pytest.raises(Late):
        deadline.run(0.3, work)
    os.close(write)
    assert os.read(read, 10) == b"x"
    assert os.read(read, 10) == b"", "its end of the pipe is still open: it lives"
    os.close(read)


def test_child_killed_by_somebody_is_late() -> None:
    def work() -> deadline.Outcome:
        deadline.step("dying")
        os.kill(os.getpid(), signal.SIGKILL)
        return 0, ""

    with pytest.raises(Late) as caught:
        deadline.run(10, work)
    assert caught.value.doing == "dying"


def test_child_that_ignores_its_end_does_not_delay() -> None:
    def work() -> deadline.Outcome:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        while True:
            signal.pause()

    began = time.monotonic()
    with pytest.raises(Late):
        deadline.run(0.2, work)
    assert time.monotonic() - began < 5


def test_bug_travels_with_its_trace() -> None:
    def work() -> deadline.Outcome:
        raise ZeroDivisionError("by hand")

    with pytest.raises(deadline.Bug, match=r"(?s)Traceback.*by hand"):
        deadline.run(10, work)


def test_override_turns_late_around() -> None:
    def work() -> deadline.Outcome:
        deadline.tolerate("override by root: drill")
        signal.pause()
        return 0, ""

    with pytest.raises(Late) as caught:
        deadline.run(0.2, work)
    assert caught.value.tolerated == "override by root: drill"


def test_child_has_no_standard_descriptors_of_ours() -> None:
    """libvirt waits until nobody has the hook's standard output and error open any more."""

    def work() -> deadline.Outcome:
        return 0, ",".join(os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2))

    assert deadline.run(10, work) == (0, "/dev/null,/dev/null,/dev/null")


def test_child_dies_with_its_parent() -> None:
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:

        def work() -> deadline.Outcome:
            os.write(write, f"{os.getpid()}\n".encode())
            signal.pause()
            return 0, ""

        deadline.run(60, work)
        os._exit(0)
    os.close(write)
    assert os.read(read, 100).strip().isdigit()
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    assert os.read(read, 10) == b"", "somebody still has the pipe open"
    os.close(read)


def test_long_text_is_not_cut() -> None:
    text = "x" * 300_000
    outcome: Tuple[int, str] = deadline.run(10, lambda: (0, text))
    assert outcome == (0, text)


def test_a_long_answer_takes_no_longer_than_its_length() -> None:
    """A year's trail of several hosts. It was copied whole for each piece of it that came."""
    length = 64 << 20
    assert deadline.run(10, lambda: (0, "x" * length)) == (0, "x" * length)
