# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who this host is and what runs on it, with real processes and with a /proc that the test makes."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any, List, Optional, Sequence

import pytest
from sanlock_hosts import wait_until

from vmguard import host
from vmguard.errors import Misconfigured

UUID = "0f0e0d0c-0b0a-0908-0706-050403020100"


def stat_line(pid: int, name: str = "qemu", state: str = "S", start: int = 100) -> str:
    return f"{pid} ({name}) {state} " + " ".join(["0"] * 18) + f" {start} 0 0\n"


class Proc:
    """A /proc with processes in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, pid: int, arguments: Sequence[str], name: str = "qemu", state: str = "S", threads: str = "S") -> None:
        place = self.path / str(pid)
        place.mkdir()
        (place / "stat").write_text(stat_line(pid, name, state))
        data = b"".join(os.fsencode(argument) + b"\0" for argument in arguments)
        (place / "cmdline").write_bytes(b"" if state == "Z" else data)
        for number, thread_state in enumerate(threads):
            thread = place / "task" / str(pid + number)
            thread.mkdir(parents=True)
            (thread / "stat").write_text(stat_line(pid + number, name, thread_state))
            (thread / "cmdline").write_bytes(b"" if thread_state == "Z" else data)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    monkeypatch.setattr(host, "PROC", str(tmp_path))
    return Proc(tmp_path)


# -- which host --------------------------------------------------------------------------------------------------------


def test_the_key_is_that_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, product = tmp_path / "machine-id", tmp_path / "product_uuid"
    monkeypatch.setattr(host, "MACHINE_ID", str(machine))
    monkeypatch.setattr(host, "PRODUCT_UUID", str(product))
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    product.write_text("AA-BB\n")
    first = host.key()
    assert len(first.machine) == 16 and first.name == os.uname().nodename
    product.write_text("aa-bb")
    assert host.key() == first, "kernels differ in case"
    product.write_text("cc")
    assert host.key() != first, "a clone on other hardware"
    product.unlink()
    assert len(host.key().machine) == 16


@pytest.mark.parametrize("content", [None, "", "uninitialized\n", "xyz"])
def test_a_host_without_machine_id(content: Optional[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "machine-id"
    monkeypatch.setattr(host, "MACHINE_ID", str(path))
    if content is not None:
        path.write_text(content)
    with pytest.raises(Misconfigured):
        host.key()


def test_boot_id() -> None:
    assert len(host.boot_id()) == 36 and host.boot_id() == host.boot_id()


# -- processes ---------------------------------------------------------------------------------------------------------


def test_a_process_is_its_number_and_start() -> None:
    child = subprocess.Popen(["sleep", "60"])
    one = host.process(child.pid)
    assert one is not None and host.alive(one)
    assert not host.alive(one._replace(start=one.start + 1)), "another process of that number"
    child.kill()
    wait_until(lambda: not host.alive(one), what="a zombie is dead")
    assert host.process(child.pid) == one, "and still there for its parent"
    child.wait()
    assert host.process(child.pid) is None and not host.alive(one)


def test_a_process_whose_first_thread_is_gone_lives() -> None:
    code = (
        "import ctypes, threading, time;"
        "threading.Thread(target=time.sleep, args=(60,)).start();"
        "ctypes.CDLL(None).syscall(60, 0)"  # exit of one thread
    )
    child = subprocess.Popen(["/usr/bin/python3", "-c", code])
    try:
        one = host.process(child.pid)
        assert one is not None
        wait_until(lambda: (host._stat(f"/proc/{child.pid}/stat") or ("",))[0] == "Z", what="its first thread ended")
        assert host.alive(one)
    finally:
        child.kill()
        child.wait()
    assert not host.alive(one)


@pytest.mark.parametrize("name", ["a) R 1 2", ") ) )", "((", "x\ny", "qemu) Z 1 (x"])
def test_names_of_processes_that_look_like_more(proc: Proc, name: str) -> None:
    proc.add(5, ["x"], name=name)
    assert host.process(5) == host.Process(5, 100)
    assert host.alive(host.Process(5, 100))


@pytest.mark.parametrize("content", [b"", b"5", b"5 (x) S 1 2", b"\xff\xff"])
def test_a_stat_file_that_is_cut(proc: Proc, content: bytes) -> None:
    proc.add(5, ["x"])
    (proc.path / "5" / "stat").write_bytes(content)
    assert host.process(5) is None
    assert not host.alive(host.Process(5, 100))


# -- QEMUs -------------------------------------------------------------------------------------------------------------


def libvirt(name: str, *more: str, program: str = "/usr/bin/qemu-system-x86_64") -> List[str]:
    return [program, "-name", f"guest={name},debug-threads=on", "-S", "-uuid", UUID, *more]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (libvirt("web"), (UUID, "web", False)),
        (libvirt("a,,b"), (UUID, "a,b", False)),
        (libvirt("a,,,,uuid=x"), (UUID, "a,,uuid=x", False)),
        (libvirt("-uuid"), (UUID, "-uuid", False)),
        (libvirt("web", "-incoming", "defer"), (UUID, "web", True)),
        (libvirt("web", program="/opt/my emulator"), (UUID, "web", False)),
        (["qemu-system-aarch64", "-name", "plain", "-uuid", UUID.upper()], (UUID, "plain", False)),
        (["/usr/libexec/qemu-kvm", "--uuid", UUID, "-name", "debug-threads=on,guest=x"], (UUID, "x", False)),
        (["kvm", "-name", "x,process=y"], ("", "x", False)),
        (["kvm", "-name", "x", "-uuid", "garbage"], ("", "x", False)),
        (["/opt/other", "-uuid", UUID], None),
        (["grep", "-uuid", UUID, "-name", "x"], None),
        (["kvm", "-uuid"], None),
        (["qemu-system-x86_64"], None),
        ([""], None),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_qemus(proc: Proc, arguments: List[str], expected: Any) -> None:
    proc.add(7, arguments)
    found = [(qemu.uuid, qemu.name, qemu.incoming) for qemu in host.qemu_processes()]
    assert found == ([expected] if expected else [])


def test_a_killed_qemu_with_a_write_under_way_is_still_there(proc: Proc) -> None:
    proc.add(7, libvirt("stuck"), state="Z", threads="ZD")
    proc.add(17, libvirt("gone"), state="Z", threads="Z")
    (found,) = host.qemu_processes()
    assert found.name == "stuck" and host.alive(found.process)


def test_a_process_that_only_cleans_up_is_no_second_qemu(proc: Proc) -> None:
    """QEMU's `async-teardown`: another process with the same arguments. One that has files open may write, whatever its name."""
    for pid, comm, files in ((7, "qemu-system-x86", "3"), (8, "cleanup/7", ""), (9, "cleanup/7", "3")):
        proc.add(pid, libvirt("web"))
        (proc.path / str(pid) / "comm").write_text(comm + "\n")
        (proc.path / str(pid) / "fd").mkdir()
        if files:
            (proc.path / str(pid) / "fd" / files).write_text("")
    assert [qemu.process.pid for qemu in host.qemu_processes()] == [7, 9]


def test_what_vanishes_meanwhile_does_no_harm(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc.add(7, libvirt("here"))
    (proc.path / "8").mkdir()  # all its files are gone
    (proc.path / "self").mkdir()
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*real(path), "9"])
    assert [qemu.name for qemu in host.qemu_processes()] == ["here"]


def test_names_that_are_no_text(proc: Proc) -> None:
    proc.add(7, libvirt("\udcff\n"))
    (found,) = host.qemu_processes()
    assert found.name == "\udcff\n"


def test_five_hundred_processes_are_looked_at_in_time(proc: Proc) -> None:
    for pid in range(1, 501):
        proc.add(pid, ["/usr/sbin/something", "--with", "arguments"])
    proc.add(501, libvirt("one"))
    best = 9.0
    for _ in range(5):
        began = time.monotonic()
        assert len(host.qemu_processes()) == 1
        best = min(best, time.monotonic() - began)
    assert best < 0.05  # 6 ms on a machine of today; every start waits for it


# -- libvirt's plugin --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        ("7f00-7f01 r-xp 0 fe:01 1 /usr/lib/x86_64-linux-gnu/libvirt/lock-driver/sanlock.so\n", True),
        ("7f00-7f01 r-xp 0 fe:01 1 /usr/lib64/libvirt/lock-driver/sanlock.so (deleted)\n", True),
        ("7f00-7f01 r-xp 0 fe:01 1 /usr/lib64/libvirt/lock-driver/lockd.so\n", False),
        ("", None),
        (None, None),
    ],
    ids="loaded upgraded lockd kernel-thread gone".split(),
)
def test_libvirts_plugin(proc: Proc, maps: Optional[str], expected: Optional[bool]) -> None:
    proc.add(5, ["libvirtd"])
    if maps is not None:
        (proc.path / "5" / "maps").write_text(maps)
    assert host.libvirt_has_sanlock_plugin(5) is expected


