# SPDX-License-Identifier: LGPL-2.1-or-later
"""The checks of `vmguard doctor` that a rig cannot break, on hosts made of files; what runs them, with checks that misbehave."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, List, Optional

import pytest

from vmguard import config, doctor, events, host, paths
from vmguard.cli.doctor import worst
from vmguard.doctor import Finding, Look, Severity, hook, libvirt, sanlock, store, system
from vmguard.doctor import check as running
from vmguard.setup import daemons, others

OK, WARNING, ERROR, UNKNOWN = Severity


class Host(Look):
    """A host of files, with what commands say."""

    def __init__(self, root: Path, **daemon: Any) -> None:
        super().__init__(str(root))
        self.says: Dict[str, Optional[str]] = {}
        self.settings = config.Config(store="/srv/store", cluster="abcd", host_id=1)
        self.daemon = SimpleNamespace(**{"use_watchdog": True, "host_name": "cafe", "version": "3.8.5", **daemon})

    def file(self, path: str, text: str) -> None:
        target = Path(self.root, path.lstrip("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def config(self) -> Optional[config.Config]:
        return self.settings

    def sanlock(self) -> Any:
        return SimpleNamespace(daemon=self.daemon)

    def libvirt(self) -> List[daemons.Daemon]:
        return [daemons.Daemon("libvirtd", 1, 1, "libvirtd.service")]

    def said(self, *words: str) -> Optional[str]:
        return self.says.get(" ".join(words[:2]))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(paths, "LOG", str(tmp_path / "log"))
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(host, "libvirt_has_sanlock_plugin", lambda pid: True)
    monkeypatch.setattr(host, "key", lambda: host.HostKey("cafe", "here"))
    monkeypatch.setattr(daemons, "plugin", lambda: "/usr/lib/libvirt/lock-driver/sanlock.so")
    monkeypatch.setattr(daemons, "systemd_runs", lambda: True)
    monkeypatch.setattr(daemons, "find", lambda names: [daemons.Daemon(names[0], 2, 1, None)])
    monkeypatch.setattr(others, "SANLOCK_CONF", str(tmp_path / "sanlock.conf"))
    return Host(tmp_path)


def severities(found: Any) -> List[Severity]:
    all_of_them = list(found)
    assert all(each.fix for each in all_of_them if each.severity in (WARNING, ERROR)), all_of_them
    assert all("\n" not in each.says + each.fix for each in all_of_them)
    return [each.severity for each in all_of_them]


# -- watchdog --------------------------------------------------------------------------------------------------------------


def test_a_watchdog_of_the_board(here: Host) -> None:
    here.file("/sys/class/watchdog/watchdog0/identity", "iTCO_wdt\n")
    assert severities(sanlock.watchdog(here)) == [OK]


def test_softdog_is_doubtful(here: Host) -> None:
    here.file("/sys/class/watchdog/watchdog0/identity", "Software Watchdog\n")
    assert severities(sanlock.watchdog(here)) == [WARNING]


def test_no_watchdog_in_the_kernel(here: Host) -> None:
    assert severities(sanlock.watchdog(here)) == [ERROR]


def test_no_wdmd(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "find", lambda names: [])
    assert severities(sanlock.watchdog(here)) == [ERROR]


@pytest.mark.parametrize("plugin, accepted, severity", [(True, False, WARNING), (False, True, WARNING), (False, False, ERROR)])
def test_sanlock_without_watchdog(
    here: Host, monkeypatch: pytest.MonkeyPatch, plugin: bool, accepted: bool, severity: Severity
) -> None:
    here.daemon.use_watchdog = False
    monkeypatch.setattr(host, "libvirt_has_sanlock_plugin", lambda pid: plugin)
    if accepted:
        here.settings = here.settings._replace(without_watchdog=config.WithoutWatchdog.ACCEPT)
    assert severities(sanlock.watchdog(here)) == [severity]


@pytest.mark.parametrize("manager, severity", [("sanlock", WARNING), ("lockd", ERROR)])
def test_no_watchdog_while_libvirt_sleeps(
    here: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manager: str, severity: Severity
) -> None:
    """Its daemon ends when nobody asks and no guest runs; what counts then is what it will load."""
    here.daemon.use_watchdog = False
    monkeypatch.setattr(here, "libvirt", lambda: [])
    monkeypatch.setattr(others, "LIBVIRT", str(tmp_path))
    (tmp_path / "qemu.conf").write_text(f'lock_manager = "{manager}"\n')
    (tmp_path / "qemu-sanlock.conf").write_text("auto_disk_leases = 0\nrequire_lease_for_disks = 0\n")
    assert severities(sanlock.watchdog(here)) == [severity]


# -- names and times -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written, now, severity",
    [
        ("our_host_name = cafe\n", "cafe", OK), ("", "cafe", OK), ("", "f00d", WARNING),
        ("our_host_name = beef\n", "f00d", WARNING),
    ],
)
def test_host_name(here: Host, written: str, now: str, severity: Severity) -> None:
    Path(others.SANLOCK_CONF).write_text(written)
    here.daemon.host_name = now
    assert severities(sanlock.host_name(here)) == [severity]


@pytest.mark.parametrize(
    "path, text, severity",
    [
        ("/etc/multipath.conf", "defaults {\n no_path_retry 12\n polling_interval 5\n}\n", OK),
        ("/etc/multipath.conf", "defaults {\n no_path_retry 18\n polling_interval 5\n}\n", WARNING),
        ("/etc/multipath.conf", "defaults {\n no_path_retry queue\n}\n", WARNING),
        ("/etc/multipath.conf", "defaults {\n # no_path_retry queue\n no_path_retry fail\n}\n", OK),
        ("/etc/multipath.conf", 'devices { device { features "1 queue_if_no_path" } }\n', WARNING),
        ("/etc/corosync/corosync.conf", "totem {\n version: 2\n}\n", OK),
        ("/etc/corosync/corosync.conf", "totem {\n token: 30000\n}\n", OK),
        ("/etc/corosync/corosync.conf", "totem {\n token: 40000\n}\n", WARNING),
        ("/etc/corosync/corosync.conf", "totem {\n # token: 90000\n token: 10000\n consensus: 80000\n}\n", WARNING),
    ],
)
def test_times_that_sanlock_must_outlast(here: Host, path: str, text: str, severity: Severity) -> None:
    here.file(path, text)
    assert severities(sanlock.timeouts(here)) == [severity]


def test_nothing_to_outlast(here: Host) -> None:
    assert severities(sanlock.timeouts(here)) == [OK]


def test_a_clone_has_sanlock_s_name_of_its_original(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is to be done must not be a restart of sanlock, which would give it that name."""
    Path(others.SANLOCK_CONF).write_text("our_host_name = beef\n")
    known = [SimpleNamespace(machine="beef", host="node1"), SimpleNamespace(machine="cafe", host="node3")]
    monkeypatch.setattr(here, "store", lambda: SimpleNamespace(hosts_known=lambda: known))
    (found,) = sanlock.host_name(here)
    assert found.severity is WARNING and "node1" in found.says and "vmguard setup" in found.fix


def test_a_store_that_is_not_there(here: Host, tmp_path: Path) -> None:
    """Why is said once; and not that nobody else was ever seen in it."""
    here.settings = here.settings._replace(store=str(tmp_path / "store"), shared=True)
    (found,) = store.store(here)
    assert found.severity is ERROR and "is missing: not mounted?" in found.says and ".:" not in found.says
    assert list(store.shared(here)) == []


def test_just_joined(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """For some seconds no other host was seen to renew: that says nothing about the place of the store."""
    here.settings = here.settings._replace(store="/srv/store", shared=True)
    here.file(others.MOUNTINFO, "1 0 0:1 / / rw - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(here, "store", lambda: SimpleNamespace(io_timeout=10))
    members = [SimpleNamespace(host_id=2, state="unknown", host="node2")]
    monkeypatch.setattr(store.lockspace, "members", lambda _: members)
    assert severities(store.shared(here)) == [UNKNOWN]
    members[0].state = "live"
    assert severities(store.shared(here)) == [OK]
    del members[0]
    assert severities(store.shared(here)) == [WARNING]


@pytest.mark.parametrize("kind, found", [("gfs2", [WARNING]), ("ocfs2", []), ("nfs4", []), ("ext4", [])])
def test_store_that_a_host_which_hangs_holds_up(here: Host, kind: str, found: List[Severity]) -> None:
    here.file(others.MOUNTINFO, f"1 0 0:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:2 / /srv rw - {kind} /dev/vg/shared rw\n")
    here.settings = here.settings._replace(shared=True)
    assert severities(store.of_turns(here)) == found
    here.settings = here.settings._replace(shared=False)
    assert severities(store.of_turns(here)) == []


@pytest.mark.parametrize(
    "line, severities_",
    [
        ("/dev/vg/shared /srv gfs2 noatime,_netdev 0 0", [WARNING]),
        ("/dev/vg/shared /srv gfs2 noatime,_netdev,x-systemd.device-timeout=10min 0 0", [OK]),
        ("/dev/vg/shared /srv gfs2 noauto 0 0", [OK]),
        ("/dev/vg/shared /sr gfs2 noatime 0 0", []),
        ("# /dev/vg/shared /srv gfs2 noatime 0 0", []),
        ("nas:/vmguard /srv nfs _netdev 0 0", []),
        ("/dev/vg/shared /srv", []),
    ],
)
def test_mount_of_the_store(here: Host, line: str, severities_: List[Severity]) -> None:
    here.file("/etc/fstab", f"/dev/sda1 / ext4 defaults 0 1\n{line}\n")
    assert severities(store.mount(here)) == severities_


# -- boot, plugin ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "enabled, order, saved, severity",
    [
        (True, "libvirtd.service libvirt-guests.service", "enabled", OK),
        (True, "libvirtd.service", "disabled", OK),
        (True, "libvirtd.service", "enabled", ERROR),
        (True, "", "disabled", ERROR),
        (False, "libvirtd.service", "disabled", ERROR),
    ],
)
def test_boot(
    here: Host, monkeypatch: pytest.MonkeyPatch, enabled: bool, order: str, saved: str, severity: Severity
) -> None:
    monkeypatch.setattr(daemons, "unit_is", lambda word, unit: enabled)
    here.says = {"systemctl is-enabled": saved, "systemctl show": order}
    here.file("/etc/libvirt/qemu/autostart/web.xml", "")
    assert severities(libvirt.boot(here)) == [severity]


def test_boot_without_systemd(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "systemd_runs", lambda: False)
    assert severities(libvirt.boot(here)) == [UNKNOWN]


@pytest.mark.parametrize("loaded, severity", [(True, OK), (False, ERROR), (None, UNKNOWN)])
def test_plugin(here: Host, monkeypatch: pytest.MonkeyPatch, loaded: Optional[bool], severity: Severity) -> None:
    monkeypatch.setattr(host, "libvirt_has_sanlock_plugin", lambda pid: loaded)
    assert severities(libvirt.plugin(here)) == [severity]


def test_settings_that_the_plugin_has_not_read(here: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "LIBVIRT", str(tmp_path))
    (tmp_path / "qemu.conf").write_text('lock_manager = "sanlock"\n')
    (tmp_path / "qemu-sanlock.conf").write_text("auto_disk_leases = 0\nrequire_lease_for_disks = 0\n")
    for began, severity in ((60, OK), (-60, WARNING)):
        monkeypatch.setattr(daemons, "started_at", lambda _, began=began: time.time() + began)
        assert severities(libvirt.register_only(here)) == [severity]


@pytest.mark.parametrize("manager, severity", [('"lockd"', WARNING), ('"sanlock"', ERROR), ("'sanlock'", ERROR)])
def test_no_plugin(
    here: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manager: str, severity: Severity
) -> None:
    """Removed from a host that is set up, it keeps libvirt's daemon from its next start."""
    monkeypatch.setattr(daemons, "plugin", lambda: None)
    monkeypatch.setattr(others, "LIBVIRT", str(tmp_path))
    assert severities(libvirt.plugin(here)) == [WARNING]
    (tmp_path / "qemu.conf").write_text(f"lock_manager = {manager}\n")
    assert severities(libvirt.plugin(here)) == [severity]


# -- denials, versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "log, severity, fix",
    [
        ("", OK, ""),
        ('audit: apparmor="DENIED" operation="open" profile="firefox" name="/x"\n', OK, ""),
        ('audit: apparmor="DENIED" profile="libvirtd" name="/usr/lib/vmguard/x" requested_mask="x"\n', ERROR, "apparmor"),
        ("audit: avc:  denied  { write } for comm=\"sanlock\" scontext=x\n", ERROR, "setsebool"),
        ("audit: avc:  denied  { write } for comm=\"sanlock\" permissive=0\n", ERROR, "setsebool"),
        ("audit: avc:  denied  { write } for comm=\"sanlock\" permissive=1\n", WARNING, "setsebool"),
    ],
)
def test_denials(here: Host, log: str, severity: Severity, fix: str) -> None:
    here.says = {"journalctl -k": log}
    found = list(system.denials(here))
    assert severities(found) == [severity]
    assert fix in found[0].fix


def test_denials_in_the_log_of_auditd(here: Host) -> None:
    here.file("/var/log/audit/audit.log", 'type=AVC msg=audit(1): avc:  denied  { execute } name="/etc/libvirt/hooks/qemu"\n')
    assert severities(system.denials(here)) == [ERROR]


def test_denials_before_this_boot_are_over(here: Host) -> None:
    denial = 'avc:  denied  { execute } name="/etc/libvirt/hooks/qemu"\n'
    here.file("/proc/stat", "cpu 1 2\nbtime 1700000000\n")
    here.file("/var/log/audit/audit.log", f"type=AVC msg=audit(1699999999.120:4): {denial}")
    assert severities(system.denials(here)) == [OK]
    here.file("/var/log/audit/audit.log", f"type=AVC msg=audit(1700000000.120:4): {denial}")
    assert severities(system.denials(here)) == [ERROR]


def test_log_that_cannot_be_read(here: Host) -> None:
    assert severities(system.denials(here)) == [UNKNOWN]


@pytest.mark.parametrize("version, severity", [("3.8.5", OK), ("5.1.1", OK), ("3.6.0", WARNING)])
def test_versions(here: Host, version: str, severity: Severity) -> None:
    here.daemon.version = version
    assert severities(system.versions(here)) == [severity]


def test_second_copy_of_the_hook(here: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "LIBVIRT", str(tmp_path))
    monkeypatch.setattr(daemons, "libvirt_version", lambda: (9, 0, 0))
    folder = tmp_path / "hooks" / "qemu.d"
    folder.mkdir(parents=True)
    for name in ("50-vmguard", ".50-vmguard.swp", "50-vmguard~"):
        (folder / name).write_text("#!/bin/sh\n#\n#\n# vmguard's hook: libvirt calls it for every step in a guest's life\n")
    (folder / "60-others").write_text("#!/bin/sh\n")
    (folder / "50-vmguard").chmod(0o755)
    assert severities(hook.alone(here)) == [OK]
    (folder / ".50-vmguard.swp").chmod(0o755)
    (folder / "50-vmguard~").chmod(0o755)
    assert severities(hook.alone(here)) == [ERROR, ERROR]


# -- what runs them --------------------------------------------------------------------------------------------------------


def test_an_error_of_a_check_is_its_own(here: Host) -> None:
    def broken(_: Look) -> Any:
        raise ZeroDivisionError

    found = doctor.run(running.Check("broken", broken, None), here)
    assert [(each.check, each.severity) for each in found] == [("broken", UNKNOWN)]
    assert "ZeroDivisionError" in Path(events.path()).read_text()


def test_a_check_that_hangs(here: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def hanging(_: Look) -> Any:
        time.sleep(60)

    monkeypatch.setattr(running, "PATIENCE", 0.3)
    began = time.monotonic()
    found = doctor.run(running.Check("hanging", hanging, None), here)
    assert [each.severity for each in found] == [UNKNOWN] and time.monotonic() - began < 20


def test_a_file_that_is_gone_in_between(here: Host) -> None:
    def gone(_: Look) -> Any:
        open("/nowhere/x")
        yield

    assert severities(doctor.run(running.Check("gone", gone, None), here)) == [UNKNOWN]


@pytest.mark.parametrize(
    "found, status",
    [([], 0), ([OK], 0), ([OK, WARNING], 1), ([WARNING, UNKNOWN], 3), ([UNKNOWN, ERROR, OK], 2)],
)
def test_exit_status(found: List[Severity], status: int) -> None:
    assert worst([Finding("x", severity, "") for severity in found]) == status


def test_names_are_one_each_and_what_is_mendable_has_a_cure() -> None:
    names = [one.name for one in doctor.checks()]
    assert len(names) == len(set(names)) > 20
