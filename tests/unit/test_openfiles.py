# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a process has open, from a /proc that the test makes and from the real one; and how that compares with claims."""

import json
import mmap
import os
import subprocess
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import pytest

from vmguard import host
from vmguard.claims import GUESTS_SHARE_IT, LIES_UNDER, Claim, Mode
from vmguard.domain import HostPath
from vmguard.errors import Unresolvable
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.openfiles import Findings, Opened, Verdict, claims_of, compare, inspect, open_files
from vmguard.report import finding_words
from vmguard.storage import Storage, resolve
from vmguard.storage.facts import LiveFacts

LUN = Storage("lun:1", "/dev/sda", "lun")
WRITER = ["OFDLCK  ADVISORY  READ -1 fe:00:7 100 101", "OFDLCK  ADVISORY  READ -1 fe:00:7 201 201"]


# -- comparing ---------------------------------------------------------------------------------------------------------


def opened(identity: str, writable: bool = True, active: bool = True, **more: Any) -> Opened:
    storage = () if not identity else (Storage(identity, "/x", "file", under=(LUN,)),)
    fields = dict({"path": f"/{identity}", "kind": "file", "storage": storage}, **more)
    return Opened(device=(8, 1), inode=1, rdev=(0, 0), writable=writable, active=active, **fields)


def claim(identity: str, mode: Mode = Mode.EXCLUSIVE, why: str = "the guest may write it", **more: Any) -> Claim:
    fields = dict({"what": "disk vda", "path": f"/{identity}", "written": mode is Mode.EXCLUSIVE}, **more)
    return Claim(identity, mode, why=why, **fields)


def instance(*claims: Claim, missing: bool = False) -> Instance:
    wants = tuple(Want(one, 1, missing) for one in claims)
    return Instance("i", "u", "web", "b", Process(1, 1), "running", wants, 0)


def verdicts(found: Findings) -> List[Verdict]:
    return [one.verdict for one in found.objects]


SHAREABLE = claim("file:f/1", Mode.SHARED, GUESTS_SHARE_IT, written=True)
BENEATH = claim("file:f/1", Mode.SHARED, LIES_UNDER + "disk vda", written=True)


@pytest.mark.parametrize(
    ("one", "claims", "verdict"),
    [
        pytest.param(opened("file:f/1"), [claim("file:f/1")], "claimed", id="written-exclusive"),
        pytest.param(opened("file:f/1"), [SHAREABLE], "claimed", id="written-shareable"),
        pytest.param(opened("file:f/1"), [BENEATH], "written", id="written-a-lower-layer"),
        pytest.param(opened("file:f/1"), [claim("file:f/1", Mode.SHARED)], "written", id="written-backing-file"),
        pytest.param(opened("file:f/1"), [claim("file:f/1", Mode.HOST)], "written", id="written-pool"),
        pytest.param(opened("file:f/1"), [claim("file:f/2")], "written", id="written-another"),
        pytest.param(opened("file:f/1"), [], "written", id="written-nothing-claimed"),
        pytest.param(opened("file:f/1", active=False), [], "written", id="written-by-nobody-yet"),
        pytest.param(opened("file:f/1", False), [claim("file:f/1", Mode.SHARED)], "claimed", id="read-shared"),
        pytest.param(opened("file:f/1", False), [BENEATH], "claimed", id="read-a-lower-layer"),
        pytest.param(opened("file:f/1", False), [claim("file:f/1")], "claimed", id="read-exclusive"),
        pytest.param(opened("file:f/1", False), [], "read", id="read-nothing-claimed"),
        pytest.param(opened("", unknown="it is gone"), [claim("file:f/1")], "unknown", id="unknown"),
        pytest.param(opened("", kind="character"), [], "opaque", id="vfio"),
    ],
)
def test_verdicts(one: Opened, claims: List[Claim], verdict: str) -> None:
    found = compare([one], instance(*claims))
    assert [kind.value for kind in verdicts(found)] == [verdict]
    assert bool(claims_of(found)) is (verdict in ("written", "read"))
    assert finding_words(found.objects[0])


def test_another_name_of_the_same_object_is_enough() -> None:
    rbd = Storage("dev:m/rbd0", "/dev/rbd0", "rbd", also=("rbd:p/i",))
    found = compare([opened("x", storage=(rbd,))], instance(claim("rbd:p/i")))
    assert verdicts(found) == [Verdict.CLAIMED]


def test_of_many_objects_behind_one_device_the_worst_counts() -> None:
    two = (Storage("nvme:1", "/dev/nvme0n1", "nvme"), Storage("nvme:2", "/dev/nvme0n2", "nvme"))
    found = compare([opened("x", storage=two)], instance(claim("nvme:1")))
    assert verdicts(found) == [Verdict.WRITTEN]


def test_a_lease_that_was_let_pass() -> None:
    found = compare([opened("file:f/1")], instance(claim("file:f/1"), missing=True))
    assert verdicts(found) == [Verdict.LEASELESS] and not claims_of(found)


def test_before_the_guest_arrives() -> None:
    """QEMU opens for reading what it will write: the mode shows only later, that it is not claimed shows now."""
    dormant = opened("file:f/1", writable=False, active=False)
    found = compare([dormant], instance(), incoming=True)
    assert verdicts(found) == [Verdict.DORMANT]
    assert [one.mode for one in claims_of(found) if one.identity == "file:f/1"] == [Mode.SHARED]
    assert verdicts(compare([dormant._replace(active=True)], instance(), incoming=True)) == [Verdict.READ]


@pytest.mark.parametrize("reason", ["no_storage", "directory", "below"])
def test_left_out_unless_claimed(reason: str) -> None:
    shared = opened("file:f/9", False, path="/shared", kind="directory")
    one = {
        "no_storage": opened("file:f/1", no_storage="a log"),
        "directory": opened("file:f/1", False, kind="directory"),
        "below": opened("file:f/1", path="/shared/a/b"),
    }[reason]
    given = claim("file:f/9", Mode.SHARED, GUESTS_SHARE_IT, what="filesystem 0", path="/shared", written=True)
    assert verdicts(compare([one, shared], instance(given))) == [Verdict.CLAIMED]  # the directory itself
    both = compare([one, shared], instance(given, claim("file:f/1")))
    assert verdicts(both) == [Verdict.CLAIMED, Verdict.CLAIMED]
    if reason == "below":
        assert verdicts(compare([one, shared], instance())) == [Verdict.WRITTEN], "nobody gave it the directory"
        beside = one._replace(path="/shared-not/a")
        assert Verdict.WRITTEN in verdicts(compare([beside, shared], instance(given)))


def test_what_is_claimed_and_not_open() -> None:
    itself = claim("vm:u", what="the domain itself")
    ejected = claim("file:f/2", Mode.SHARED, "the guest reads it", what="disk hda")
    kernel = claim("file:f/3", Mode.SHARED, "the guest reads it", what="kernel")
    network = claim("rbd:p/i", what="disk vdb")
    under = claim("lun:1", Mode.SHARED, LIES_UNDER + "disk vda", written=True)
    two_names = [claim("nfs:1", what="disk vdc", path="/n"), claim("nfs:2", what="disk vdc", path="/n")]
    record = instance(itself, claim("file:f/1"), ejected, kernel, network, under, *two_names)
    found = compare([opened("file:f/9"), opened("nfs:2")], record)
    assert found.not_open == (claim("file:f/1"), ejected)


def test_what_is_to_be_claimed() -> None:
    found = compare([opened("file:f/1", False), opened("file:f/2"), opened("file:f/3")], instance(claim("file:f/3")))
    assert {one.identity: one.mode for one in claims_of(found)} == {
        "file:f/1": Mode.SHARED,
        "file:f/2": Mode.EXCLUSIVE,
        "lun:1": Mode.SHARED,
    }
    assert claims_of(found)[-1].path == "/file:f/2" and claims_of(found)[-1].written
    # The whole disk and a file on it: it is too late to refuse that, and the stronger one stays.
    for order in (("file:f/1", "lun:1"), ("lun:1", "file:f/1")):
        both = compare([opened(order[0]), opened(order[1])], instance())
        assert {one.identity: one.mode for one in claims_of(both)}["lun:1"] is Mode.EXCLUSIVE


# -- looking: a /proc that the test makes ------------------------------------------------------------------------------


class Proc:
    """A process 7 with descriptors."""

    def __init__(self, path: Path) -> None:
        self.base = path / "7"
        for name in ("fd", "fdinfo", "map_files"):
            (self.base / name).mkdir(parents=True)
        self.arguments()

    def arguments(self, *words: str) -> None:
        data = b"".join(os.fsencode(word) + b"\0" for word in ("qemu-system-x86_64", "-name", "guest=web", *words))
        (self.base / "cmdline").write_bytes(data)

    def fd(self, number: int, target: str, flags: str = "02100002", locks: Sequence[str] = ()) -> None:
        (self.base / "fd" / str(number)).symlink_to(target)
        lines = "".join(f"lock:\t{n}: {lock}\n" for n, lock in enumerate(locks, 1))
        (self.base / "fdinfo" / str(number)).write_text(f"pos:\t0\nflags:\t{flags}\nmnt_id:\t40\nino:\t7\n{lines}")

    def storage(self) -> List[Opened]:
        return [one for one in open_files(7) if not one.no_storage and one.kind != "directory"]


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    monkeypatch.setattr(host, "PROC", str(tmp_path / "proc"))
    return Proc(tmp_path / "proc")


@pytest.fixture
def image() -> Iterator[str]:
    """A file on a real filesystem: /tmp may be in memory."""
    path = f"/var/tmp/vmguard-test-{os.getpid()}.img"
    Path(path).write_bytes(b"x")
    yield path
    if os.path.exists(path):
        os.unlink(path)


@pytest.mark.parametrize(
    ("flags", "locks", "expected"),
    [
        ("02100002", WRITER, (True, True, True)),
        ("02140002", [], (True, True, False)),
        ("02100000", [], (False, True, False)),
        ("02100000", ["OFDLCK  ADVISORY  READ -1 fe:00:7 100 100"], (False, True, True)),
        ("02102001", [], (True, False, False)),
        ("02100002", ["POSIX  ADVISORY  WRITE 45 00:29:35 0 0"], (True, True, False)),
        ("02100002", ["POSIX  ADVISORY  WRITE 45 00:29:35 0 EOF"], (True, True, False)),
        ("02100002", ["POSIX  ADVISORY  READ 45 fe:00:7 203 203"], (True, True, True)),
        ("02100002", ["-> OFDLCK  ADVISORY  READ -1 fe:00:7 100 100"], (True, True, False)),
        ("02100002", ["FLOCK"], (True, True, False)),
    ],
    ids="writer nocache reader active-reader log pidfile whole-file without-ofd waits cut".split(),
)
def test_how_it_is_open(flags: str, locks: List[str], expected: Tuple[bool, bool, bool], proc: Proc, image: str) -> None:
    proc.fd(9, image, flags, locks)
    (one,) = open_files(7)
    assert (one.writable, one.readable, one.active) == expected
    assert one.path == image
    assert one.storage[0].identity == resolve(HostPath(image), LiveFacts())[0].identity


def test_descriptors_of_one_file_are_one_object(proc: Proc, image: str) -> None:
    other = image + ".link"
    os.link(image, other)
    try:
        proc.fd(3, image, "02100000")
        proc.fd(11, other, "02100002", WRITER)
        (one,) = open_files(7)
        assert one.writable and one.active and one.path == image
    finally:
        os.unlink(other)


def test_what_is_no_file(proc: Proc, tmp_path: Path) -> None:
    for number, target in enumerate(["socket:[12]", "pipe:[3]", "anon_inode:[eventfd]", "/memfd:pc.ram (deleted)", "/gone"]):
        proc.fd(number + 3, target)
    proc.fd(20, "/dev/null")
    proc.fd(21, "/proc/self/stat")
    proc.fd(22, str(tmp_path), "0300000")
    assert proc.storage() == []


def test_the_log_and_the_pidfile(proc: Proc, image: str, tmp_path: Path) -> None:
    proc.fd(1, image, "0102001")
    proc.fd(2, image, "0102001")
    proc.fd(4, image, "0102001")
    assert proc.storage() == [] and len(open_files(7)) == 1
    other = image + ".serial"
    Path(other).touch()
    try:
        proc.fd(5, other, "0102001")
        assert [one.path for one in proc.storage()] == [other], "written, and given to it by nobody"
    finally:
        os.unlink(other)
    if os.path.isdir("/dev/shm"):
        pid_file = f"/dev/shm/vmguard-test-{os.getpid()}"
        Path(pid_file).touch()
        try:
            proc.fd(6, pid_file, "0100001")
            assert proc.storage() == []
            proc.fd(7, pid_file, "0100002")
            assert [one.path for one in proc.storage()] == [pid_file], "an image in memory is one"
        finally:
            os.unlink(pid_file)


def test_a_log_that_is_read_too_is_an_image(proc: Proc, image: str) -> None:
    proc.fd(1, image, "0102001")
    proc.fd(8, image, "02100002")
    assert [one.path for one in proc.storage()] == [image]


def test_parts_of_the_system(proc: Proc) -> None:
    program = os.path.realpath("/usr/bin/env")
    proc.fd(3, program, "02100000")
    assert proc.storage() == []
    proc.fd(4, program, "02100002")
    assert [one.path for one in proc.storage()] == [program], "what is written is no part of the system"


@pytest.mark.parametrize("name", ["own", "another"])
def test_memory_of_the_guest(name: str, proc: Proc, image: str) -> None:
    proc.fd(3, image)
    words = {"qom-type": "memory-backend-file", "id": os.path.basename(image) if name == "own" else "m1", "mem-path": image}
    proc.arguments("-object", json.dumps(words), "-device", '{"mem-path"')
    assert len(proc.storage()) == (0 if name == "own" else 1)


def test_what_is_mapped_and_closed(proc: Proc, image: str) -> None:
    proc.fd(0, "/dev/null")
    (proc.base / "map_files" / "7f00-7f01").symlink_to(image)
    line = "{}-{} {} 00000000 fe:00 7                    {}\n"
    maps = line.format("7f00", "7f01", "rw-s", image) + line.format("7f02", "7f03", "r--p", "/usr/lib/x.so")
    (proc.base / "maps").write_text(maps + "7f04-7f05 rw-s 00000000 00:01 9  /dev/zero (deleted)\n7f06-7f07 rw-p 0 0:0 0\n")
    (one,) = proc.storage()
    assert one.path == image and one.writable


def test_a_first_thread_that_has_ended(proc: Proc, image: str) -> None:
    thread = proc.base / "task" / "8"
    (thread / "fd").mkdir(parents=True)
    (thread / "fdinfo").mkdir()
    (thread / "stat").write_text("8 (qemu) D " + " ".join(["0"] * 18) + " 100 0 0\n")
    (thread / "fd" / "9").symlink_to(image)
    (thread / "fdinfo" / "9").write_text("flags:\t02100002\n")
    assert [one.path for one in proc.storage()] == [image]


def test_nothing_of_a_process_that_is_gone(proc: Proc) -> None:
    assert open_files(8) == ()
    assert inspect(instance(claim("file:f/1")), Process(8, 1)) == Findings()


# -- looking: real processes -------------------------------------------------------------------------------------------


def holder(path: str, flags: str, closes: bool = False) -> "subprocess.Popen[str]":
    """A process that has a file open, or mapped alone."""
    code = (
        "import mmap, os, sys\n"
        f"fd = os.open({path!r}, {flags})\n"
        + (f"m = mmap.mmap(fd, 1, mmap.MAP_SHARED, {int(mmap.PROT_READ | mmap.PROT_WRITE)}); os.close(fd)\n" if closes else "")
        + "print('open', flush=True); sys.stdin.read()\n"
    )
    words = ["/usr/bin/python3", "-I", "-S", "-c", code]
    found = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert found.stdout and found.stdout.readline() == "open\n"
    return found


@pytest.mark.parametrize("fate", ["there", "deleted", "replaced", "renamed"])
def test_the_inode_counts_and_not_the_name(fate: str, image: str) -> None:
    identity = resolve(HostPath(image), LiveFacts())[0].identity
    process = holder(image, "os.O_RDWR")
    try:
        if fate in ("deleted", "replaced"):
            os.unlink(image)
        if fate == "replaced":
            Path(image).write_bytes(b"another")
        if fate == "renamed":
            os.rename(image, image + ".2")
        found = compare(open_files(process.pid), instance(claim(identity)))
        (one,) = [one for one in found.objects if one.opened.path.startswith(image)]
        assert one.verdict is Verdict.CLAIMED and one.opened.storage[0].identity == identity
        assert one.opened.deleted is (fate in ("deleted", "replaced"))
        unclaimed = [one.opened.path for one in compare(open_files(process.pid), instance()).objects]
        assert bool([path for path in unclaimed if path.startswith(image)]) is (fate in ("there", "renamed"))
    finally:
        process.communicate("")
        if os.path.exists(image + ".2"):
            os.unlink(image + ".2")


def test_a_mapping_alone(image: str) -> None:
    process = holder(image, "os.O_RDWR", closes=True)
    try:
        found: Optional[List[Opened]] = None
        try:
            found = [one for one in open_files(process.pid) if one.path == image]
        except Unresolvable:
            pytest.skip("the kernel shows mapped files to root only")
        assert [one.writable for one in found] == [True]
    finally:
        process.communicate("")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look at every process")
def test_a_process_of_somebody_else() -> None:
    with pytest.raises(Unresolvable):
        open_files(1)
