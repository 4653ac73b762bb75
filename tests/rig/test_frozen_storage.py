# SPDX-License-Identifier: LGPL-2.1-or-later
"""The storage of one host stands still: its guests are dead before anybody else may start them."""

import os
import time

import pytest
from conftest import Images
from guests import Disk, guest
from hosts import HERE, IO_TIMEOUT, Host, command, eventually
from moves import Witness


@pytest.fixture
def frozen_library(images: Images) -> str:
    library = images.path("frozen.so")
    command("cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", library, os.path.join(HERE, "frozen.c"))
    return library


def test_the_guest_is_dead_before_another_starts(
    frozen_library: str, node1: Host, node2: Host, images: Images
) -> None:
    """As sanlock has it: killed 8 io_timeouts after the last renewal, free for others 60 s after that."""
    node1.kill("sanlock")
    node1.start_sanlock(preload=frozen_library)
    node1.vmguard("join")
    with Witness(images, block=True) as web:
        node1.start(web.guest)
        web.lives()
        began = time.monotonic()
        node1.write("/run/storage-is-frozen", "")
        next_one = guest("next", [Disk(web.disk, "block")])
        dead = 0.0
        while True:
            done = node2.try_start(next_one)
            if not dead and not node1.runs(web.guest):
                dead = time.monotonic() - began
            if not done.status:
                break
            assert "vmguard" in done.err, done.err
            assert time.monotonic() - began < 120, "it never comes free"
        free = time.monotonic() - began
        assert dead, "it is given to another host while its guest lives"
        print(f"io_timeout {IO_TIMEOUT}: dead after {dead:.0f} s, started elsewhere after {free:.0f} s")
        assert dead < 8 * IO_TIMEOUT + 20 < 8 * IO_TIMEOUT + 55 < free < 8 * IO_TIMEOUT + 75
    node1.run("rm", "/run/storage-is-frozen")
    node1.kill("sanlock")
    node1.start_sanlock()
    eventually(lambda: not node1.vmguard("join", check=False).status, "it is a member again", within=30)
