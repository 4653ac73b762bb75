# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Hosts for tests: a real sanlock daemon each, side by side on this machine, over one directory or device.

The client library reads SANLOCK_RUN_DIR once in a process, so whatever a host does is done in a child of its own.
io_timeout 1: a join takes 3 seconds, the certain death of a host 68. The directory must take direct I/O: tmpfs on
older kernels does not.
"""

import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import suppress
from typing import Any, Callable, List, Optional, Tuple

SANLOCK = "/usr/sbin/sanlock"
BASE = "/var/tmp"


def wait_until(true: Callable[[], Any], seconds: float = 10.0, what: str = "") -> Any:
    """Poll until something is true; its value. Fails the test when time is up."""
    end = time.monotonic() + seconds
    while True:
        value = true()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what or true}")
        time.sleep(0.01)


def _send(fd: int, content: Any) -> None:
    data = pickle.dumps(content)
    data = len(data).to_bytes(4, "big") + data
    while data:
        data = data[os.write(fd, data) :]


def _receive(fd: int, seconds: float) -> Any:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            assert select.select([fd], [], [], seconds)[0], f"no answer within {seconds} s"
            more = os.read(fd, size - len(data))
            assert more, "the child died"
            data += more
        return data

    return pickle.loads(exactly(int.from_bytes(exactly(4), "big")))


def _outcome(work: Callable[[], Any]) -> Tuple[bool, Any]:
    try:
        return True, work()
    except BaseException as error:
        return False, (type(error), error.args, error.__dict__)


def _unpack(outcome: Tuple[bool, Any]) -> Any:
    good, value = outcome
    if good:
        return value
    kind, arguments, members = value
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(members)
    raise error


class Guest:
    """
    A child of a host that is registered with its sanlock, as a QEMU is under libvirt's plugin. It can also acquire.
    """

    def __init__(self, host: "Host") -> None:
        self._in, child_out = os.pipe()
        child_in, self._out = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with suppress(BaseException):
                os.close(self._in)
                os.close(self._out)
                host.enter()
                self._serve(child_in, child_out)
            os._exit(1)
        os.close(child_in)
        os.close(child_out)
        _unpack(_receive(self._in, 10))

    @staticmethod
    def _serve(fd_in: int, fd_out: int) -> None:
        from vmguard.leases import client

        with client.Connection() as connection:
            _send(fd_out, (True, None))
            while True:
                method, arguments = _receive(fd_in, 3600)
                _send(fd_out, _outcome(lambda: getattr(connection, method)(*arguments)))  # noqa: B023

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of its Connection."""
        _send(self._out, (method, arguments))
        return _unpack(_receive(self._in, 30))

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class Host:
    """One host: its daemon, and whatever is run on it."""

    def __init__(self, base: str, name: str) -> None:
        self.name = name
        self.run_dir = os.path.join(base, f"run-{name}")
        self.daemon: Optional[subprocess.Popen[bytes]] = None
        self.guests: List[Guest] = []
        os.makedirs(self.run_dir, exist_ok=True)

    def enter(self) -> None:
        """In a child: be this host."""
        os.environ["SANLOCK_RUN_DIR"] = self.run_dir

    def start(self) -> None:
        """Start the daemon and wait for its socket."""
        environment = dict(os.environ, SANLOCK_RUN_DIR=self.run_dir, SANLOCK_PRIVILEGED="0")
        command = [SANLOCK, "daemon", "-D", "-w", "0", "-h", "0", "-l", "0", "-U", "root", "-G", "root"]
        command += ["-e", self.name, "-g", "5", "-L", "-1", "-S", "-1"]
        self.daemon = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        wait_until(self._answers, 10, "the socket of sanlock")

    def _answers(self) -> bool:
        assert self.daemon is not None and self.daemon.poll() is None, "sanlock ended"
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(os.path.join(self.run_dir, "sanlock.sock")) == 0

    def stop(self) -> None:
        """End the daemon as a power cut would, and all guests."""
        for guest in self.guests:
            guest.kill()
        self.guests.clear()
        self.kill_daemon()

    def kill_daemon(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon = None

    def run(self, work: Callable[[], Any], seconds: float = 60) -> Any:
        """work() in a child on this host; its result or exception."""
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                os.close(receive)
                self.enter()
                _send(send, _outcome(work))
            os._exit(0)
        os.close(send)
        try:
            return _unpack(_receive(receive, seconds))
        finally:
            os.close(receive)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def guest(self) -> Guest:
        found = Guest(self)
        self.guests.append(found)
        return found


class Cluster:
    """Some hosts over one directory or device."""

    def __init__(self) -> None:
        self.base = tempfile.mkdtemp(prefix="vmguard-test-", dir=BASE)
        self.hosts: List[Host] = []
        self.devices: List[str] = []

    def host(self, name: str) -> Host:
        """One more host, running."""
        found = Host(self.base, name)
        self.hosts.append(found)
        found.start()
        return found

    @property
    def store_path(self) -> str:
        return os.path.join(self.base, "store")

    def device(self, megabytes: int = 64, sector: int = 512) -> str:
        """An empty block device."""
        file = os.path.join(self.base, f"device{len(self.devices)}")
        with open(file, "wb") as made:
            made.truncate(megabytes << 20)
        command = ["losetup", "--find", "--show", "--sector-size", str(sector), file]
        self.devices.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        return self.devices[-1]

    def grow(self, device: str, megabytes: int) -> None:
        """What lvextend does."""
        os.truncate(os.path.join(self.base, f"device{self.devices.index(device)}"), megabytes << 20)
        subprocess.run(["losetup", "--set-capacity", device], check=True)

    def place(self, kind: str) -> str:
        """Where a store of this kind can be made."""
        return self.store_path if kind == "directory" else self.device(sector=4096 if kind == "device4k" else 512)

    def close(self) -> None:
        for host in self.hosts:
            host.stop()
        for device in self.devices:
            subprocess.run(["losetup", "--detach", device])
        shutil.rmtree(self.base)
