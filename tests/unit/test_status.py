# SPDX-License-Identifier: LGPL-2.1-or-later
"""What sanlock's daemons of several versions say of themselves, as they were recorded; real ones are asked in test_client."""

import os
import socket
import struct
import threading
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from vmguard import host, paths
from vmguard.cli import main, verify
from vmguard.errors import BadRequest, SanlockFailed
from vmguard.leases import status

HEADER = struct.pack("=8I", 0x04282010, 1, 5, 0, 32, 0, 0, 0)
Record = Tuple[int, str]

DAEMON = (1, "our_host_name=cafe use_watchdog=1 uid=0 gid=0 version_str=3.9.5\0")
CLIENT = (2, "ci=0 fd=5 pid=4711 flags=0 restricted=0\0")
WORKER = (7, "cmd_last=write_lockspace busy=0 work_count=1 io_count=2 to_count=0 paxos_hugebuf_created=0\0")  # 3.9.5
THREAD = (8, "busy=0 thread_id=22 work_count=0 io_count=0 to_count=0 miscompares=0\0")  # 5.1.1


def spoken(records: List[Record]) -> bytes:
    found = HEADER
    for kind, text in records:
        name = b"cafe" if kind == 1 else b""
        found += struct.pack("=IIIxxxxQ48sIxxxx", kind, 0, 4711 if kind == 2 else 0, 0, name, len(text)) + text.encode()
    return found


class Daemon:
    """Answers one command with these bytes."""

    def __init__(self, folder: Path) -> None:
        self.answer = b""
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(str(folder / "sanlock.sock"))
        self.listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self.listening.accept()
            except OSError:
                return
            peer.recv(32)
            peer.sendall(self.answer)
            peer.close()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    monkeypatch.setitem(os.environ, "SANLOCK_RUN_DIR", str(tmp_path))
    made = Daemon(tmp_path)
    yield made
    made.listening.close()


@pytest.mark.parametrize(
    "records",
    [[DAEMON, CLIENT], [DAEMON, WORKER, WORKER, CLIENT], [DAEMON, THREAD, WORKER, CLIENT]],
    ids=["3.8", "3.9", "5.1"],
)
def test_daemon_and_its_clients(daemon: Daemon, records: List[Record]) -> None:
    daemon.answer = spoken(records)
    found = status.status()
    assert (found.daemon.host_name, found.daemon.version, found.daemon.use_watchdog) == ("cafe", "3.9.5", True)
    assert (found.registered, found.spaces, found.held) == ((4711,), (), ())


@pytest.mark.parametrize("records", [[DAEMON, (9, "")], [DAEMON, (0, "")], [DAEMON, (2, "x" * 5000)]], ids=["9", "0", "long"])
def test_what_no_known_daemon_says_is_no_answer(daemon: Daemon, records: List[Record]) -> None:
    """Better none than half of one: what follows it may be a lease."""
    daemon.answer = spoken(records)
    with pytest.raises(SanlockFailed):
        status.status()


def test_what_a_process_calls_itself_goes_to_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Any user can start a process with QEMU's arguments; bytes that are no text must not keep the others from being shown."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    names = ("\x1b]0;owned\x07", "\udcff", "web")
    found = tuple(host.Qemu(host.process(os.getpid()) or host.Process(0, 0), "", name, False) for name in names)
    monkeypatch.setattr(host, "qemu_processes", lambda: found)
    monkeypatch.setattr(verify, "open_files", lambda _pid: ())
    assert main(["verify"]) == 1
    out = capsys.readouterr().out
    assert out.encode("utf-8") and "\x1b" not in out and "warning: web " in out


@pytest.mark.parametrize("name", ["web", "AAAAAAAA-2222-3333-4444-555555555555", "aaaaaaaa222233334444555555555555"])
def test_verify_takes_a_uuid_however_it_is_written(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As virsh does, and as people copy it."""
    uuids = ("aaaaaaaa-2222-3333-4444-555555555555", "")
    found = tuple(host.Qemu(host.Process(1, 1), uuid, "web" if uuid else "other", False) for uuid in uuids)
    monkeypatch.setattr(host, "qemu_processes", lambda: found)
    assert verify._chosen([name]) == [found[0]] and verify._chosen([]) == list(found)
    with pytest.raises(BadRequest):
        verify._chosen(["none"])
