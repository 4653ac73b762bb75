# SPDX-License-Identifier: LGPL-2.1-or-later
"""Identities on this very host: files, links, mounts and loop devices as the kernel makes them."""

import contextlib
import errno
import os
import shutil
import subprocess
import time

import pytest

from vmguard.domain import HostPath
from vmguard.errors import Unresolvable
from vmguard.storage import resolve
from vmguard.storage.facts import LiveFacts
from vmguard.storage.onelook import OneLook
from vmguard.storage.recorded import RecordedFacts, Recording

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def one(path, facts=None):
    (storage,) = resolve(HostPath(str(path)), facts or LiveFacts())
    return storage


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": PATH}).stdout


@contextlib.contextmanager
def attached(*arguments):
    """A loop device, or a skip where there can be none."""
    if os.geteuid() or not shutil.which("losetup", path=PATH):
        pytest.skip("needs root and losetup")
    try:
        device = run("losetup", "--find", "--show", *arguments).strip()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no loop device to be had: {error.stderr}")
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(target, *arguments):
    if os.geteuid():
        pytest.skip("needs root to mount")
    os.makedirs(target, exist_ok=True)
    try:
        run("mount", *arguments, str(target))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"cannot mount: {error.stderr}")
    try:
        yield str(target)
    finally:
        run("umount", str(target))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"x" * 65536)
    return path


def test_aliases_are_one_and_other_files_are_not(tmp_path, image):
    os.link(image, tmp_path / "hard")
    os.symlink("disk.img", tmp_path / "soft")
    os.symlink(tmp_path, tmp_path / "folder")
    aliases = [
        "disk.img",
        "hard",
        "soft",
        "folder/disk.img",
        "folder/folder/soft",
        "../" + tmp_path.name + "/hard",
        "./disk.img",
    ]
    assert {one(f"{tmp_path}/{alias}").identity for alias in aliases} == {one(image).identity}
    others = []
    for number in range(50):
        other = tmp_path / f"other{number}"
        other.write_bytes(b"x" * 65536)
        others.append(one(other).identity)
    assert len({*others, one(image).identity}) == 51


def test_rename_keeps_the_identity(tmp_path, image):
    before = one(image).identity
    os.rename(image, tmp_path / "renamed")
    assert one(tmp_path / "renamed").identity == before
    image.write_bytes(b"y")
    assert one(image).identity != before


def test_directory(tmp_path):
    storage = one(tmp_path)
    assert storage.kind == "directory" and storage.identity != one(tmp_path.parent).identity


def test_what_keeps_no_data(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in ("/dev/null", "/dev/zero", tmp_path / "fifo"):
        assert resolve(HostPath(str(path)), LiveFacts()) == ()


def test_missing_dangling_and_endless(tmp_path):
    os.symlink("nowhere", tmp_path / "dangling")
    os.symlink("endless", tmp_path / "endless")
    for name, missing in (("none", True), ("dangling", True), ("endless", False)):
        with pytest.raises(Unresolvable) as caught:
            one(tmp_path / name)
        assert caught.value.missing is missing
        assert caught.value.why


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_that_a_server_takes_for_nobody_reads_as_the_owner(image, monkeypatch):
    """NFS with root_squash: what QEMU will read, root may not."""

    def acting():
        with open("/proc/thread-self/status", encoding="ascii") as file:
            return [line.split()[4] for line in file if line.startswith(("Uid:", "Gid:"))]

    def squashed(path, flags, *arguments, **more):
        if acting()[0] == "0" and path.startswith("/proc/self/fd/") and os.path.samefile(path, image):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *arguments, **more)

    real = os.open
    image.chmod(0o600)
    os.chown(image, 1234, 4321)
    monkeypatch.setattr(os, "open", squashed)
    assert LiveFacts().read(str(image), 4) == b"xxxx"
    assert acting() == ["0", "0"]
    os.chown(image, 0, 0)
    with pytest.raises(PermissionError):
        LiveFacts().read(str(image), 4)


def test_bind_mount(tmp_path, image):
    with mounted(tmp_path / "bound", "--bind", str(tmp_path)) as point:
        assert one(f"{point}/disk.img").identity == one(image).identity


def test_tmpfs_belongs_to_this_boot(tmp_path):
    with mounted(tmp_path / "memory", "-t", "tmpfs", "vmguard-test") as point:
        with open(f"{point}/a", "w"), open(f"{point}/b", "w"):
            first, second = one(f"{point}/a"), one(f"{point}/b")
        boot = open("/proc/sys/kernel/random/boot_id").read().strip()
        assert boot in first.identity and first.identity != second.identity and not first.others_see_it


def test_overlay(tmp_path):
    with mounted(tmp_path / "layers", "-t", "tmpfs", "vmguard-test") as base:
        for name in ("lower", "upper", "work"):
            os.mkdir(f"{base}/{name}")
        for name in ("lower/only-lower", "lower/changed", "upper/only-upper"):
            with open(f"{base}/{name}", "w") as file:
                file.write(name)
        options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
        with mounted(tmp_path / "merged", "-t", "overlay", "-o", options, "overlay") as merged:
            assert one(f"{merged}/only-upper").identity == one(f"{base}/upper/only-upper").identity
            assert not one(f"{merged}/only-upper").not_writable
            lower = one(f"{merged}/only-lower")
            assert lower.identity == one(f"{base}/lower/only-lower").identity and lower.not_writable
            with open(f"{merged}/changed", "a") as file:
                file.write("more")
            changed = one(f"{merged}/changed")
            assert changed.identity == one(f"{base}/upper/changed").identity and not changed.not_writable


def test_loop_device_is_its_file(image):
    with attached(str(image)) as whole, attached("--offset", "4096", str(image)) as part:
        file = one(image)
        assert one(whole).identity == one(part).identity == file.identity
        assert one(whole).kind == "loop" and any("part of the file" in reason for reason in one(part).reasons)
        assert file.used_by_host is None  # a loop device that merely exists


def test_loop_device_whose_file_was_renamed_or_replaced(tmp_path, image):
    identity = one(image).identity
    with attached(str(image)) as device:
        os.rename(image, tmp_path / "renamed")
        assert one(device).identity == identity
        # another file under the name that the kernel shows is not what is behind the device
        os.rename(tmp_path / "renamed", tmp_path / "again")
        shown = open(f"/sys/block/{os.path.basename(device)}/loop/backing_file").read().strip()
        assert shown == str(tmp_path / "again")
        with mounted(tmp_path, "-t", "tmpfs", "vmguard-test"):
            with open(shown, "wb") as file:
                file.write(b"z" * 65536)
            with pytest.raises(Unresolvable):
                one(device)
        os.unlink(tmp_path / "again")
        with pytest.raises(Unresolvable):
            one(device)


@pytest.mark.parametrize("type_, megabytes", [("ext4", 16), ("xfs", 320), ("btrfs", 128)])
def test_filesystem_on_a_loop_device(tmp_path, type_, megabytes):
    if not shutil.which(f"mkfs.{type_}", path=PATH) or type_ not in open("/proc/filesystems").read():
        pytest.skip(f"no {type_} here")
    path = tmp_path / "fs.img"
    with open(path, "wb") as file:
        file.truncate(megabytes << 20)
    uuid = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
    how = {"ext4": ["-q", "-U", uuid], "xfs": ["-q", "-m", f"uuid={uuid}"], "btrfs": ["-q", "-U", uuid]}[type_]
    run(f"mkfs.{type_}", *how, str(path))
    with attached(str(path)) as device, mounted(tmp_path / "point", device) as point:
        with open(f"{point}/a", "w") as file:
            file.write("a")
        storage = one(f"{point}/a")
        assert storage.identity.startswith(f"file:{uuid}/") and not storage.not_writable
        assert [beneath.identity for beneath in storage.under] == [one(path).identity]
        how = f"the mounted btrfs {uuid}" if type_ == "btrfs" else f"mounted on {point}"
        assert how in one(device).used_by_host
        assert how in one(path).used_by_host
        if type_ == "btrfs" and shutil.which("btrfs", path=PATH):
            run("btrfs", "subvolume", "snapshot", point, f"{point}/snapshot")
            assert os.stat(f"{point}/a").st_ino == os.stat(f"{point}/snapshot/a").st_ino
            assert one(f"{point}/snapshot/a").identity != storage.identity


def test_all_sources_of_a_uuid_agree(tmp_path):
    from vmguard.storage import filesystems
    from vmguard.storage.host import Host

    path = tmp_path / "fs.img"
    with open(path, "wb") as file:
        file.truncate(16 << 20)
    uuid = "0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d"
    run("mkfs.ext4", "-q", "-U", uuid, str(path))
    with attached(str(path)) as device, mounted(tmp_path / "point", device) as point:
        host = Host(LiveFacts())
        mount = host.mount_of(host.stat(point), point)
        assert filesystems._own_ioctl(host, point, "ext4") in (uuid, None)
        assert filesystems._general_ioctl(host, point) in (uuid, None)
        assert filesystems._on_disk(host, mount, mount.device) == uuid


def test_partition_of_a_loop_device(tmp_path):
    if not shutil.which("sfdisk", path=PATH):
        pytest.skip("needs sfdisk")
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["sfdisk", "-q", str(path)], input="2048,8192\n10240,\n", text=True, check=True, env={"PATH": PATH})
    with attached("--partscan", str(path)) as device:
        deadline = time.monotonic() + 10
        while not os.path.exists(device + "p2") and time.monotonic() < deadline:
            time.sleep(0.05)
        if not os.path.exists(device + "p2"):
            pytest.skip("the kernel made no partition devices")
        storage = one(device + "p2")
        assert storage.identity == f"part:{one(path).identity}/2"
        assert [beneath.identity for beneath in storage.under] == [one(path).identity]


def test_recording_of_this_host_replays(tmp_path, image):
    recording = Recording(LiveFacts())
    live = one(image, recording)
    recording.save(str(tmp_path / "host.json"))
    assert one(image, RecordedFacts.load(str(tmp_path / "host.json"))) == live


def test_recording_of_an_unused_device_replays(tmp_path):
    """Unlike one with a filesystem that is mounted, it is asked for the leases of this host."""
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    with attached(str(path)) as device:
        recording = Recording(LiveFacts())
        live = one(device, recording)
        recording.save(str(tmp_path / "host.json"))
        assert one(device, RecordedFacts.load(str(tmp_path / "host.json"))) == live


def test_the_number_of_a_filesystem(tmp_path, image):
    said = int(run("stat", "--file-system", "--format", "%i", str(image)), 16)
    # coreutils shows the two halves in the order in which they lie in memory
    number = LiveFacts().filesystem_id(str(image))
    assert said and number == (said >> 32 | said << 32) & (1 << 64) - 1
    assert OneLook(LiveFacts()).filesystem_id(str(image)) == number
    recording = Recording(LiveFacts())
    recording.filesystem_id(str(image))
    recording.stat(str(image))
    assert RecordedFacts(recording.record).filesystem_id(str(image)) == number
    with pytest.raises(OSError):
        recording.filesystem_id(str(tmp_path / "nothing"))
    with pytest.raises(OSError) as caught:
        RecordedFacts(recording.record).filesystem_id(str(tmp_path / "nothing"))
    assert caught.value.errno == errno.ENOENT


def test_no_side_effect_of_looking(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError):
        LiveFacts().read(str(tmp_path / "fifo"))
