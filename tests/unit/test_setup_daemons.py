# SPDX-License-Identifier: LGPL-2.1-or-later
"""What /proc says of daemons."""

import os
import socket
from pathlib import Path

from vmguard.setup import daemons


def test_a_daemon_listens_once_it_takes_connections(tmp_path: Path) -> None:
    this = daemons.Daemon("libvirtd", os.getpid(), 0, None)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        before = daemons.listens(this)
        server.bind(str(tmp_path / "sock"))
        assert daemons.listens(this) == before
        server.listen()
        assert daemons.listens(this)
        client.connect(str(tmp_path / "sock"))
    assert daemons.listens(this) == before is False
