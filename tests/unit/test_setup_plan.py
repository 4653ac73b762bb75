# SPDX-License-Identifier: LGPL-2.1-or-later
"""What setup plans, on a host made of a temporary folder; sanlock, store and libvirt's daemons are stood in for."""

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import pytest

from vmguard import config, host, libvirtstate, membership, paths
from vmguard.errors import BadRequest, CannotTell, HostIdTaken, Misconfigured, StoreBroken, StoreMoved
from vmguard.leases import status
from vmguard.leases._cluster import Elsewhere
from vmguard.setup import daemons, hookfile, libvirtside, others, place, plan, removal, steps
from vmguard.setup.libvirtconf import get, sanlock_get

QEMU_CONF = b'# The lock manager\n#lock_manager = "lockd"\nuser = "root"\n'


class FakeStore:
    """A store as setup sees one: a folder with the cluster's id and the host ids in one file."""

    def __init__(self, path: str) -> None:
        self.path, self.by = path, "elsewhere"
        self.fields: Dict[str, Any] = json.loads(Path(path, "vmguard.json").read_text())
        self.cluster, self.io_timeout = self.fields["cluster"], self.fields["io_timeout"]
        self.facts = SimpleNamespace(moved=Elsewhere(*self.fields["moved"]) if "moved" in self.fields else None)

    @classmethod
    def create(cls, path: str, io_timeout: int) -> "FakeStore":
        os.makedirs(path)
        Path(path, "vmguard.json").write_text(json.dumps({"cluster": "abcd", "io_timeout": io_timeout, "hosts": {}}))
        return cls(path)

    @classmethod
    def open(cls, path: str, cluster: Optional[str] = None) -> "FakeStore":
        store = cls(path)
        if cluster not in (None, store.cluster):
            raise StoreBroken(path, "another cluster's")
        if store.facts.moved is not None:
            raise StoreMoved(path, store.facts.moved.path)
        return store

    @classmethod
    def look(cls, path: str) -> "FakeStore":
        try:
            return cls(path)
        except OSError as error:
            raise StoreBroken(path, "no store") from error

    def host_record(self, host_id: int) -> Any:
        machine = self.fields["hosts"].get(str(host_id))
        return None if machine is None else host.HostKey(machine, "")

    def hosts_known(self) -> Any:
        return [SimpleNamespace(machine=machine, host="elsewhere") for machine in self.fields["hosts"].values()]

    def claim_host_id(self, wanted: Optional[int], key: host.HostKey) -> int:
        number = wanted or next(n for n in range(1, 10) if str(n) not in self.fields["hosts"])
        if self.fields["hosts"].setdefault(str(number), key.machine) != key.machine:
            raise HostIdTaken(number, self.path, "elsewhere", False)
        Path(self.path, "vmguard.json").write_text(json.dumps(self.fields))
        return number

    def release_host_id(self, host_id: int, key: host.HostKey) -> None:
        if self.fields["hosts"].get(str(host_id)) != key.machine:
            raise HostIdTaken(host_id, self.path, "elsewhere", False)
        del self.fields["hosts"][str(host_id)]
        Path(self.path, "vmguard.json").write_text(json.dumps(self.fields))


class Machine:
    """The host under test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.joined = False
        self.calls: List[str] = []
        self.qemu_conf = root / "libvirt" / "qemu.conf"
        self.plugin_conf = root / "libvirt" / "qemu-sanlock.conf"
        self.hook = root / "libvirt" / "hooks" / "qemu.d" / "50-vmguard"
        (root / "libvirt").mkdir()
        self.qemu_conf.write_bytes(QEMU_CONF)
        self.qemu_conf.chmod(0o600)

    def join(self) -> None:
        assert config.load().host_id is not None
        self.joined = True

    def leave(self) -> None:
        self.joined = False
        self.calls.append("leave")

    def files(self) -> Dict[str, Any]:
        found = {}
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                data = Path(path).read_bytes()
                found[path] = (data, os.stat(path).st_mtime_ns, os.stat(path).st_mode)
        return found

    def contents(self) -> Dict[str, bytes]:
        return {path: entry[0] for path, entry in self.files().items()}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return make(tmp_path, monkeypatch)


def sanlock_is(monkeypatch: pytest.MonkeyPatch, watchdog: bool) -> None:
    """sanlock's daemon runs, under this host's name, and has joined nothing."""
    daemon = SimpleNamespace(host_name="cafe", use_watchdog=watchdog)
    monkeypatch.setattr(status, "status", lambda: SimpleNamespace(daemon=daemon, spaces=()))


def make(root: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(root)
    for name, path in (
        ("CONFIG", "etc/vmguard.conf"), ("CONFIG_DIR", "etc/vmguard.conf.d"), ("RUN", "run"), ("STATE", "state")
    ):  # fmt: skip
        monkeypatch.setattr(paths, name, str(root / path))
    monkeypatch.setattr(others, "LIBVIRT", str(root / "libvirt"))
    monkeypatch.setattr(others, "SANLOCK_CONF", str(root / "sanlock.conf"))
    monkeypatch.setattr(others, "FSTAB", str(root / "fstab"))
    monkeypatch.setattr(host, "key", lambda: host.HostKey("cafe", "here"))
    sanlock_is(monkeypatch, watchdog=True)
    monkeypatch.setattr(daemons, "find", lambda names: [])
    monkeypatch.setattr(daemons, "plugin", lambda: "/usr/lib/libvirt/lock-driver/sanlock.so")
    monkeypatch.setattr(daemons, "libvirt_version", lambda: (9, 0, 0))
    monkeypatch.setattr(daemons, "systemd_runs", lambda: False)
    monkeypatch.setattr(steps, "Store", FakeStore)
    monkeypatch.setattr(steps.lockspace, "state", lambda store, host_id: "joined" if machine.joined else "out")
    monkeypatch.setattr(membership, "join_host", machine.join)
    monkeypatch.setattr(membership, "leave_host", machine.leave)
    return machine


def do(made: plan.Plan, count: Optional[int] = None) -> None:
    plan.carry_out(made._replace(changes=made.changes[:count]), lambda change: None)


def prepare(**wishes: Any) -> plan.Plan:
    made = steps.plan(steps.Wishes(**wishes))
    do(made)
    return made


def test_looking_changes_nothing(machine: Machine) -> None:
    before = machine.files()
    assert len(steps.plan(steps.Wishes()).changes) > 5
    assert machine.files() == before


def test_second_run_has_nothing_to_do(machine: Machine) -> None:
    prepare()
    before = machine.files()
    assert steps.plan(steps.Wishes()).changes == []
    assert machine.files() == before
    assert config.load().host_id == 1
    assert machine.joined


CHANGES = 10


def test_number_of_changes(machine: Machine) -> None:
    """test_death_in_the_middle dies after each."""
    assert len(prepare().changes) == CHANGES


@pytest.mark.parametrize("made", range(CHANGES + 1))
def test_death_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int) -> None:
    (tmp_path / "a").mkdir()
    machine = make(tmp_path / "a", monkeypatch)
    do(steps.plan(steps.Wishes(single_host=True)), made)
    prepare(single_host=True)
    assert steps.plan(steps.Wishes()).changes == []
    assert config.load().single_host
    assert json.loads(Path(config.host_file()).read_text())["previous"] == {
        str(machine.qemu_conf): {"lock_manager": None},
        str(machine.plugin_conf): {"auto_disk_leases": None, "require_lease_for_disks": None},
    }
    do(removal.plan(True))
    assert machine.qemu_conf.read_bytes() == QEMU_CONF


@pytest.mark.parametrize("by_hand", [False, True])
def test_the_unit_that_leaves_at_shutdown_is_active(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    """Enabled alone it would be so from the next boot on; the shutdown comes before."""
    active, enabled = set() if by_hand else {"sanlock.service"}, set()
    monkeypatch.setattr(daemons, "systemd_runs", lambda: True)
    monkeypatch.setattr(daemons, "unit_is", lambda word, unit: unit in (active if word == "active" else enabled))
    monkeypatch.setattr(daemons, "enable_unit", enabled.add)
    monkeypatch.setattr(daemons, "start_unit", active.add)
    prepare()
    assert {"vmguard-join.service", "vmguardd.service"} <= enabled
    assert ("vmguard-join.service" in active) is not by_hand
    assert steps.plan(steps.Wishes()).changes == []
    active.discard("vmguard-join.service")
    assert len(prepare().changes) == (not by_hand)


def test_lock_manager_comes_after_its_settings(machine: Machine) -> None:
    files = [change.where for change in steps.plan(steps.Wishes()).changes]
    assert max(i for i, f in enumerate(files) if f == str(machine.plugin_conf)) < files.index(str(machine.qemu_conf))
    assert files.index(config.host_file()) < files.index(str(machine.plugin_conf))


def test_owner_and_mode_stay(machine: Machine) -> None:
    prepare()
    assert machine.qemu_conf.stat().st_mode & 0o7777 == 0o600
    assert machine.hook.stat().st_mode & 0o7777 == 0o755
    assert machine.qemu_conf.read_bytes() == QEMU_CONF.replace(b'lockd"\n', b'lockd"\nlock_manager = "sanlock"\n')


def test_link_is_followed(machine: Machine) -> None:
    real = machine.root / "real.conf"
    os.rename(machine.qemu_conf, real)
    machine.qemu_conf.symlink_to(real)
    prepare()
    assert machine.qemu_conf.is_symlink()
    assert get("", real.read_bytes(), "lock_manager") == '"sanlock"'


def test_earlier_setting_is_shown_and_comes_back(machine: Machine) -> None:
    machine.qemu_conf.write_bytes(b"lock_manager = 'lockd'  # since 2020\n")
    before = machine.contents()
    shown = [change.before for change in prepare().changes]
    assert "lock_manager = 'lockd'" in shown
    do(removal.plan(True))
    assert machine.calls == ["leave"]
    after = machine.contents()
    assert {path: after[path] for path in before} == before
    assert not os.path.exists(config.host_file())
    assert not machine.hook.exists()
    assert removal.plan(True).changes == []


def test_settings_of_a_plugin_that_is_loaded_need_a_restart(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of libvirt's own leases: its daemon reads the settings of the plugin when it starts, and never again."""
    machine.qemu_conf.write_bytes(b'lock_manager = "sanlock"\n')
    machine.plugin_conf.write_bytes(b"auto_disk_leases = 1\n")
    daemon, began = daemons.Daemon("libvirtd", 7, 1, "libvirtd.service"), time.time()
    monkeypatch.setattr(daemons, "find", lambda names: [daemon] if names == daemons.LIBVIRT else [])
    monkeypatch.setattr(daemons, "started_at", lambda _: began)
    monkeypatch.setattr(daemons, "reload", lambda _: None)
    monkeypatch.setattr(host, "libvirt_has_sanlock_plugin", lambda pid: True)
    monkeypatch.setattr(libvirtside, "_restart", lambda daemon: machine.calls.append("restart"))

    def restarts(made: plan.Plan) -> List[str]:
        return [str(change.after) for change in made.changes if "restarted" in str(change.after)]

    made = steps.plan(steps.Wishes())
    assert restarts(made)
    # It died before the restart, or was told to leave it: the next one sees it, and so does doctor.
    do(made, made.changes.index(next(change for change in made.changes if "restarted" in str(change.after))))
    began -= 60
    assert not libvirtside.has_read_settings(daemon)
    left = prepare(restart=False).left
    assert any("must be restarted" in sentence and "settings" in sentence for sentence in left)
    assert restarts(prepare()) and machine.calls == ["restart"]
    began += 120
    assert steps.plan(steps.Wishes()).changes == []
    # Back again it has them from a start, too.
    assert restarts(removal.plan(True))
    made = removal.plan(False)
    assert not restarts(made)
    do(made)
    assert any("must be restarted" in sentence for sentence in made.left)
    assert machine.plugin_conf.read_bytes() == b"auto_disk_leases = 1\n"


def test_removal_leaves_what_somebody_changed_since(machine: Machine) -> None:
    prepare()
    machine.qemu_conf.write_bytes(b'lock_manager = "lockd"\n')
    do(removal.plan(True))
    assert machine.qemu_conf.read_bytes() == b'lock_manager = "lockd"\n'


@pytest.mark.parametrize("error, ends", [(BadRequest("x"), True), (CannotTell(), False)], ids=["guests", "sanlock"])
def test_removal_with_guests_or_without_sanlock(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception, ends: bool
) -> None:
    def leave() -> None:
        raise error

    prepare()
    monkeypatch.setattr(membership, "leave_host", leave)
    made = removal.plan(True)
    if ends:
        with pytest.raises(BadRequest):
            do(made)
        assert machine.hook.exists()
        assert config.load().store is not None
    else:
        do(made)
        assert not machine.hook.exists()
        assert made.left


def test_no_plugin(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "plugin", lambda: None)
    made = prepare()
    assert machine.qemu_conf.read_bytes() == QEMU_CONF
    assert any("sanlock" in sentence and "package" in sentence for sentence in made.left)
    assert machine.hook.exists()
    machine.qemu_conf.write_bytes(b'lock_manager = "sanlock"\n')
    assert any("does not start" in sentence for sentence in prepare().left)


@pytest.mark.parametrize("accept", [True, False], ids=["accepted", "refused"])
def test_neither_plugin_nor_watchdog(machine: Machine, monkeypatch: pytest.MonkeyPatch, accept: bool) -> None:
    sanlock_is(monkeypatch, watchdog=False)
    monkeypatch.setattr(daemons, "plugin", lambda: None)
    made = prepare(accept_no_watchdog=accept)
    assert any("guests are refused" in sentence for sentence in made.left) is not accept
    assert config.load().without_watchdog == ("accept" if accept else "refuse")


def test_hook_that_is_not_executable_is_mended(machine: Machine) -> None:
    prepare()
    machine.hook.chmod(0o644)
    assert [change.where for change in prepare().changes] == [str(machine.hook)]
    assert machine.hook.stat().st_mode & 0o111


def test_refresh_brings_a_hook_of_ours_up_to_date_and_no_other(machine: Machine) -> None:
    machine.qemu_conf.parent.joinpath("hooks").mkdir()
    hookfile.refresh()
    assert not machine.hook.exists()
    prepare()
    machine.hook.write_bytes(machine.hook.read_bytes() + b"# older\n")
    machine.hook.chmod(0o644)
    main = machine.root / "libvirt" / "hooks" / "qemu"
    main.write_text("#!/bin/sh\n")
    hookfile.refresh()
    assert machine.hook.read_bytes() == hookfile.script()
    # One that somebody has switched off stays off: `status` and `doctor` say so.
    assert machine.hook.stat().st_mode & 0o111 == 0
    assert main.read_text() == "#!/bin/sh\n"
    assert sorted(path.name for path in machine.hook.parent.iterdir()) == ["50-vmguard"]


@pytest.mark.parametrize("knew", [True, False])
def test_a_daemon_that_knows_the_hook_knows_the_new_one(
    knew: bool, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the file at each call. One that never looked still has to."""
    prepare()
    machine.hook.write_bytes(machine.hook.read_bytes() + b"# older\n")
    began = os.stat(machine.hook).st_ctime + (60 if knew else -60)
    daemon = daemons.Daemon("libvirtd", 7, 1, "libvirtd.service")
    monkeypatch.setattr(daemons, "find", lambda names: [daemon])
    monkeypatch.setattr(daemons, "started_at", lambda _: began)
    assert libvirtside.has_seen_hook(daemon) is knew
    hookfile.refresh()
    monkeypatch.setattr(daemons, "started_at", lambda _: began - 120)  # the new file is younger
    assert libvirtside.has_seen_hook(daemon) is knew


def test_a_daemon_that_was_told_of_a_hook_that_went_away(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved aside and back: if it was reloaded in between, it calls none, and nothing tells."""
    prepare()
    daemon = daemons.Daemon("libvirtd", 7, 1, "libvirtd.service")
    monkeypatch.setattr(daemons, "find", lambda names: [daemon] if names == daemons.LIBVIRT else [])
    monkeypatch.setattr(daemons, "started_at", lambda _: os.stat(machine.hook).st_ctime - 60)
    monkeypatch.setattr(daemons, "reload", lambda _: None)
    assert not libvirtside.has_seen_hook(daemon)
    libvirtside.tell(daemon)
    assert libvirtside.has_seen_hook(daemon)
    time.sleep(0.02)  # the kernel's clock of files
    machine.hook.rename(machine.root / "aside")
    libvirtside.tell(daemon)
    (machine.root / "aside").rename(machine.hook)
    assert not libvirtside.has_seen_hook(daemon)
    assert any("told to look" in str(change.after) for change in prepare().changes)
    assert libvirtside.has_seen_hook(daemon)


def test_guests_that_run_already_get_their_leases(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    running = host.Qemu(host.Process(1, 1), "u-u-i-d", "web", False)
    by_hand = running._replace(uuid="other", name="by-hand")
    monkeypatch.setattr(libvirtstate, "pid_of", lambda name, uuid: 1 if (name, uuid) == ("web", "u-u-i-d") else None)
    monkeypatch.setattr(host, "qemu_processes", lambda: (running, by_hand))
    made = steps.plan(steps.Wishes())
    assert [change.where for change in made.changes if "already" in change.what] == ["web"]
    do(made)
    assert ["web" in sentence and "libvirt does not answer" in sentence for sentence in made.left].count(True) == 1


@pytest.mark.parametrize("keep", [True, False])
def test_removal_that_keeps_guests(machine: Machine, monkeypatch: pytest.MonkeyPatch, keep: bool) -> None:
    def leave() -> None:
        raise BadRequest("guests on this host need their leases: web")

    prepare()
    monkeypatch.setattr(membership, "leave_host", leave)
    made = removal.plan(True, keep_guests=keep)
    if not keep:
        with pytest.raises(BadRequest) as caught:
            do(made)
        assert machine.hook.exists() and "--keep-guests" in caught.value.remedy
        return
    do(made)
    assert not machine.hook.exists() and not os.path.exists(config.host_file())
    assert any("web" in sentence for sentence in made.left)


def test_old_libvirt(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "libvirt_version", lambda: (6, 0, 0))
    hook = machine.root / "libvirt" / "hooks" / "qemu"
    hook.parent.mkdir()
    hook.write_text("#!/bin/sh\n")
    made = prepare()
    assert hook.read_text() == "#!/bin/sh\n"
    assert any(str(hook) in sentence for sentence in made.left)
    hook.unlink()
    prepare()
    assert libvirtside.hookfile.is_ours(hook.read_bytes())


def test_lost_configuration_is_written_again(machine: Machine) -> None:
    prepare()
    own = Path(paths.CONFIG_DIR, "10-setup.conf")
    before = own.read_bytes()
    own.write_text("[store]\npath = /x\n")
    with pytest.raises(Misconfigured):
        config.load()
    prepare()
    assert own.read_bytes() == before


def test_lost_store_is_not_made_anew(machine: Machine) -> None:
    prepare()
    Path(paths.STATE, "store", "vmguard.json").unlink()
    with pytest.raises(Misconfigured, match="there is none"):
        steps.plan(steps.Wishes())


def test_second_host_of_a_cluster(machine: Machine) -> None:
    path = str(machine.root / "shared")
    FakeStore.create(path, 3).claim_host_id(1, host.HostKey("beef", "there"))
    prepare(store=path, shared=True)
    found = config.load()
    assert (found.store, found.host_id, found.io_timeout, found.shared) == (path, 2, 3, True)
    with pytest.raises(HostIdTaken):
        prepare(host_id=1)


def test_a_store_that_others_have_entered_and_that_does_not_look_shared(machine: Machine) -> None:
    """A filesystem that vmguard does not know for a shared one, or a cloned disk: that is for the administrator to say."""
    path = str(machine.root / "shared")
    FakeStore.create(path, 3).claim_host_id(1, host.HostKey("beef", "there"))
    (remark,) = [one for one in steps.plan(steps.Wishes(store=path)).remarks if "against itself" in one]
    assert "others have entered it (elsewhere)" in remark and "--shared yes" in remark
    assert not any("against itself" in one for one in steps.plan(steps.Wishes(store=path, shared=True)).remarks)


def test_another_store(machine: Machine) -> None:
    prepare()
    path = str(machine.root / "other")
    FakeStore.create(path, 10)
    Path(path, "vmguard.json").write_text(json.dumps({"cluster": "ffff", "io_timeout": 10, "hosts": {}}))
    machine.calls.clear()
    prepare(store=path)
    assert machine.calls == ["leave"]
    assert config.load().cluster == "ffff"


@pytest.mark.parametrize(
    "wishes",
    [{"store": one} for one in ("/srv/a b", "/srv/ä", "/dev/shm/store", "/proc/store", "/etc/passwd")],
    ids=["blank", "not-ascii", "in-memory", "no-storage", "file"],
)
def test_no_place_for_a_store(machine: Machine, wishes: Dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        steps.plan(steps.Wishes(**wishes))


@pytest.mark.parametrize("below", ["", "/leases"], ids=["itself", "below"])
def test_mount_point_that_is_not_mounted(tmp_path: Path, below: str) -> None:
    point = tmp_path / "with blank"
    point.mkdir()
    fstab = tmp_path / "fstab"
    fstab.write_text("# /dev/x /srv\n/dev/vg/lv " + str(point).replace(" ", "\\040") + " gfs2 defaults 0 0\n")
    mountinfo = tmp_path / "mountinfo"
    root = "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    mountinfo.write_text(root)
    with pytest.raises(BadRequest, match="not mounted"):
        place.look(str(point) + below, str(mountinfo), str(fstab))
    escaped = str(point).replace(" ", "\\040")
    mountinfo.write_text(root + f"30 20 253:0 / {escaped} rw shared:1 - gfs2 /dev/dm-0 rw\n")
    mount = place.look(str(point) + below, str(mountinfo), str(fstab))
    assert mount is not None and mount.kind == "gfs2"
    assert place.seen_by_others(mount)


@pytest.mark.parametrize(
    "kind, options, shared",
    [
        ("gfs2", "rw", True), ("gfs2", "rw,lockproto=lock_nolock", False), ("nfs4", "rw", True), ("ext4", "rw", False),
        ("xfs", "rw", False), ("fuse.glusterfs", "rw", True), ("overlay", "rw", False),
    ],
)  # fmt: skip
def test_who_sees_a_filesystem(kind: str, options: str, shared: bool) -> None:
    assert place.seen_by_others(place.Mount("/", kind, "x", options)) is shared


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_text("old")

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Misconfigured, match="No space"):
        plan.replace(str(path), b"new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_another_store_while_others_are_in_the_one_before(machine: Machine) -> None:
    """Two hosts with a store each would not see each other's guests."""
    path = str(machine.root / "shared")
    FakeStore.create(path, 10).claim_host_id(1, host.HostKey("beef", "there"))
    prepare(store=path, shared=True)
    before = machine.contents()
    with pytest.raises(BadRequest, match="as do others: elsewhere") as caught:
        prepare(store=str(machine.root / "other"))
    assert "vmguard store convert" in caught.value.remedy
    assert machine.contents() == before


def made_at(path: Path, cluster: str, moved: Optional[Elsewhere] = None) -> str:
    """A store of this cluster, which may have moved."""
    FakeStore.create(str(path), 10)
    fields = {"cluster": cluster, "io_timeout": 10, "hosts": {"1": "beef", "2": "cafe"}}
    path.joinpath("vmguard.json").write_text(json.dumps({**fields, "moved": list(moved)} if moved else fields))
    return str(path)


def test_a_host_that_missed_a_conversion_goes_where_the_others_went(machine: Machine) -> None:
    """A store that it made by itself, or another one, would not be theirs."""
    first = machine.root / "first"
    prepare(store=made_at(first, "aaaa"), shared=True, host_id=2)
    last = machine.root / "last"
    between = machine.root / "between"
    first.joinpath("vmguard.json").unlink()
    first.rmdir()
    made_at(first, "aaaa", Elsewhere(str(between), "bbbb"))
    before = machine.contents()
    # Nothing can be seen of it yet: where it went is known all the same.
    for wrong in (machine.root / "typo", Path(made_at(machine.root / "another", "ffff"))):
        with pytest.raises(BadRequest, match=f"has moved to the store {between}'") as caught:
            prepare(store=str(wrong))
        assert f"vmguard setup --store {between}" in caught.value.remedy
    # It has moved on since.
    made_at(between, "bbbb", Elsewhere(str(last), "cccc"))
    made_at(last, "cccc")
    with pytest.raises(BadRequest, match=f"has moved to the store {last}'"):
        prepare(store=str(machine.root / "typo"))
    assert {path: machine.contents()[path] for path in before} == before
    prepare(store=str(last))
    assert (config.load().store, config.load().cluster) == (str(last), "cccc")
    assert config.load().shared, "as the others said when they moved: to type it again nobody is told"


def test_a_host_of_its_own_that_moves_is_asked_nothing(machine: Machine) -> None:
    first, last = machine.root / "first", machine.root / "last"
    prepare(store=made_at(first, "aaaa"), host_id=2)
    first.joinpath("vmguard.json").unlink()
    first.rmdir()
    made_at(first, "aaaa", Elsewhere(made_at(last, "cccc"), "cccc"))
    prepare(store=str(last))
    assert not config.load().shared


def test_another_store_while_the_one_before_cannot_be_looked_at(machine: Machine) -> None:
    """It could not be left, and a new one would have been made by then."""
    prepare()
    Path(paths.STATE, "store", "vmguard.json").unlink()
    before = machine.contents()
    with pytest.raises(Misconfigured, match="cannot leave it") as caught:
        prepare(store=str(machine.root / "other"))
    assert "vmguard setup --remove" in caught.value.remedy
    assert machine.contents() == before


@pytest.mark.parametrize("wanted", [None, 7], ids=["auto", "chosen"])
def test_a_clone_gets_a_host_id_of_its_own(machine: Machine, monkeypatch: pytest.MonkeyPatch, wanted: Optional[int]) -> None:
    """It has the configuration of its original, which keeps its own."""
    prepare()
    monkeypatch.setattr(host, "key", lambda: host.HostKey("babe", "clone"))
    sanlock_is(monkeypatch, watchdog=True)
    prepare(host_id=wanted)
    assert config.load().host_id == (wanted or 2)
    assert FakeStore(str(config.load().store)).fields["hosts"] == {"1": "cafe", str(wanted or 2): "babe"}
    # Nor is it sanlock's name for its original, by which sanlock takes a host for the one that was there before.
    assert sanlock_get(Path(others.SANLOCK_CONF).read_bytes(), "our_host_name") == "babe"
    assert steps.plan(steps.Wishes()).changes == []


def test_a_name_of_somebody_s_own_stays(machine: Machine) -> None:
    """Only that of another host of the store goes."""
    Path(others.SANLOCK_CONF).write_text("our_host_name = rack7\n")
    prepare()
    assert Path(others.SANLOCK_CONF).read_text() == "our_host_name = rack7\n"


@pytest.mark.parametrize("again", [5, None, 6])
@pytest.mark.parametrize("made", range(6))
def test_death_while_a_host_gets_another_id(machine: Machine, made: int, again: Optional[int]) -> None:
    """Whatever is asked for afterwards: the id that is configured is this host's."""
    prepare()
    do(steps.plan(steps.Wishes(host_id=5)), made)
    prepare(host_id=again)
    found = config.load()
    assert found.host_id == again or again is None
    assert FakeStore(str(found.store)).fields["hosts"][str(found.host_id)] == "cafe"
    assert steps.plan(steps.Wishes()).changes == []
