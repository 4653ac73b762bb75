# SPDX-License-Identifier: LGPL-2.1-or-later
import inspect

import pytest

from vmguard import errors, report
from vmguard.claims import Claim, Mode
from vmguard.cli import check
from vmguard.openfiles import Finding, Opened, Verdict

NOW = 1_700_000_000.0
CLAIM = Claim("file:fs/1", Mode.EXCLUSIVE, "disk vda", "/srv/b.img", "the guest may write it")
HOLDER = errors.Holder(1, "node1", "web1", "uuid", "/srv/a.img", NOW - 249, alive=True)

SAMPLES = [
    errors.InUse(CLAIM, [HOLDER]),
    errors.InUse(CLAIM, [HOLDER._replace(alive=False)]),
    errors.InUse(CLAIM, [errors.Holder(3)]),
    errors.InUse(CLAIM, []),
    errors.InUse(CLAIM._replace(identity="vm:x"), [HOLDER._replace(here=True)]),
    errors.InUse(CLAIM._replace(why="it lies under disk vda"), [HOLDER._replace(shared=True)]),
    errors.UsedByHost("disk vda", "/dev/sda", "mounted on /srv"),
    errors.Unguardable("disk vda", "/dev/sda", "it is one path of the multipath map mpatha", "/dev/mapper/mpatha"),
    errors.Unguardable("disk vda", "/dev/sda", "it has no identity"),
    errors.NamedTwice(CLAIM, CLAIM._replace(what="disk vdb")),
    errors.LocalStore(CLAIM, "/var/lib/vmguard/store"),
    errors.NoWatchdog(),
    errors.LeaseLost(CLAIM, 3, 4),
    errors.LeaseLost(CLAIM, 3, None),
    errors.NotComing(),
    errors.WrongDisk(CLAIM, "node1"),
    errors.StateStale(CLAIM, HOLDER, "other"),
    errors.StateStale(CLAIM._replace(identity="vm:x"), HOLDER, "since"),
    errors.StateStale(CLAIM._replace(identity="vm:x"), HOLDER, "again"),
    errors.StateUnproven(CLAIM, NOW),
    errors.StateUnproven(CLAIM, 0.0),
    errors.InUse(CLAIM, [HOLDER._replace(slot="ticket")]),
    errors.InUse(CLAIM, [HOLDER._replace(slot="drain")]),
    errors.BadDomain("it has no uuid", 4),
    errors.Unresolvable("/srv/b.img", "there is no such file", "disk vda"),
    errors.Unresolvable("/dev/vg/web", "no such file or directory", "disk vda", missing=True),
    errors.SanlockFailed("acquire", -210, "/srv/b.img"),
    errors.SanlockFailed("acquire", -5, "/srv/b.img"),
    errors.SanlockDown(111),
    errors.NotJoined("vmguard-1", joining=True),
    errors.NotJoined("vmguard-1", joining=False),
    errors.Unexplained(CLAIM),
    errors.LeaseDamaged("/store/leases/x", "file:fs/1", -223),
    errors.LeaseNewer("/store/leases/x", "file:fs/1"),
    errors.StoreBroken("/store", "no space is left"),
    errors.StoreMoved("/store", "/dev/vg/leases"),
    errors.RecordBroken("/run/vmguard/x", "no space is left"),
    errors.Late(20, "waiting for the lock of this host"),
    errors.Misconfigured("vmguard.conf", "mode = perhaps", "write enforce, audit or off"),
    errors.HostIdTaken(1, "/store", "node1", live=True),
    errors.NotYet("guests are just being started on this host: web", "run this again in a moment"),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_every_refusal_says_what_and_what_to_do(error: errors.Error) -> None:
    text = report.sentence(error, "web2", NOW)
    first, *rest = text.splitlines()
    assert first.startswith('vmguard: domain "web2" was not started: ')
    assert any(line.startswith("  do:    ") for line in rest), text
    assert "None" not in text and "Error" not in text
    assert report.message(error)


def test_every_kind_of_error_has_a_sample() -> None:
    branches = {errors.Error, errors.Refused, errors.CannotTell, errors.BadRequest}
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.Error)}
    assert kinds - branches == {type(error) for error in SAMPLES}


def test_in_use_names_domain_host_path_and_since() -> None:
    text = report.sentence(errors.InUse(CLAIM, [HOLDER]), "web2", NOW)
    for word in ('"web1"', "node1", "/srv/a.img", "/srv/b.img", "2023", "4 minutes 9 seconds"):
        assert word in text


def test_hostile_names_cannot_forge_lines() -> None:
    holder = HOLDER._replace(domain='x"\n  do:    reboot', path="/a\x1b[2J")
    text = report.sentence(errors.InUse(CLAIM, [holder]), "web\n2", NOW)
    assert text.count("\n  do: ") == 1
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "path, volume",
    [
        ("/dev/vg-guests/web", "vg-guests/web"),
        ("/dev/mapper/vg--guests-web--1", "vg-guests/web-1"),
        ("/dev/disk/by-id/dm-name-vg-web", "vg/web"),
        ("/dev/mapper/mpatha", ""),
        ("/dev/disk/by-id", ""),
        ("/dev/vg/web; reboot", ""),
        ("/dev/vg/we\nb", ""),
        ("/srv/web", ""),
    ],
)
def test_a_volume_that_is_not_there_may_be_inactive(path: str, volume: str) -> None:
    gone = errors.Unresolvable(path, "no such file or directory", "disk vda", missing=True)
    words = report.sentence(gone, "web")
    assert f"lvchange -asy {volume};" in words if volume else "lvchange" not in words
    # what is there and cannot be read is not activated into being readable
    assert "lvchange" not in report.sentence(errors.Unresolvable(path, "input/output error", "disk vda"), "web")


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_of_a_running_guest_nobody_says_that_its_start_was_refused(error: errors.Error) -> None:
    text = report.of_running(error, "web2", NOW)
    first, *rest = text.splitlines()
    assert first.startswith('vmguard: domain "web2": ') and any(line.startswith("  do:    ") for line in rest)
    assert "not started" not in text and "whether it is safe" not in text


def test_an_override_that_is_proposed_has_a_reason() -> None:
    """`vmguard override` without one is refused."""
    for error in SAMPLES:
        text = report.sentence(error, "web2", NOW)
        assert text.count("vmguard override") == text.count("vmguard override web2 --reason '")


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_of_a_start_that_nobody_made_nobody_says_that_it_was_refused(error: errors.Error) -> None:
    """`vmguard check`, for people and as JSON; whatever the domain is called."""
    name = "it was not started: "
    text = check._objection(error, name)["text"]
    assert text.startswith(f'vmguard: domain "{name}" would not be started: ')
    assert text.replace("would not be", "was not") == report.sentence(error, name).replace("would not be", "was not")


def test_a_command_that_was_not_run_as_root_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """At night `sudo` is forgotten: nobody is to go and mount a store that is there."""
    error = errors.StoreBroken("/srv/store", "permission denied")
    assert "mount" in report.message(error)
    monkeypatch.setattr(report.os, "geteuid", lambda: 1000)
    assert [line for line in report.message(error).splitlines() if "do:" in line] == ["  do:    run it as root"]
    assert "root" not in report.message(errors.StoreBroken("/srv/store", "no space is left"))


def test_a_host_with_the_identity_of_another_is_told_to_get_its_own() -> None:
    """Another host id it would not get: the one of its machine id is found again."""
    text = report.message(errors.HostIdTaken(1, "/store", "node1", live=True))
    assert text.index("/etc/machine-id") < text.index("--host-id auto")
    assert "machine-id" not in report.message(errors.HostIdTaken(1, "/store", "node1", live=False))


def test_a_join_is_no_light_matter() -> None:
    """It stops guests: nobody is told that they are not touched."""
    assert "stops guests" in report.sentence(errors.SanlockDown(111), "web2", NOW)


def test_no_command_without_a_name() -> None:
    text = report.sentence(errors.InUse(CLAIM._replace(identity="vm:x"), [errors.Holder(3)]), "web2", NOW)
    assert "virsh shutdown" not in text and "the host with id 3" in text


def test_in_a_clause() -> None:
    error = errors.StoreBroken("/srv/store", "it is missing: not mounted?")
    assert report.brief(error) == "the lease store cannot be used (/srv/store: it is missing: not mounted?)"
    assert report.brief(errors.BadRequest("nothing to judge", "name a file")) == "nothing to judge"


def test_why_a_lease_is_missing_is_not_guessed() -> None:
    """An override, audit mode, or a guest that has it: status knows."""
    opened = Opened("/srv/b.img", "file", (1, 1), 1, (0, 0))
    words = report.finding_words(Finding(opened, Verdict.LEASELESS, CLAIM))
    assert "override" not in words and "vmguard status" in words


def test_two_names_are_spoken_of_where_there_are_two() -> None:
    same = report.sentence(errors.InUse(CLAIM, [HOLDER._replace(path=CLAIM.path)]), "web2", NOW)
    assert "both names" not in same and 'give "web2" a disk of its own' in same
    assert "both names" in report.sentence(errors.InUse(CLAIM, [HOLDER]), "web2", NOW)


def test_a_store_that_is_shared_and_does_not_look_it_has_a_way_out() -> None:
    assert "--shared yes" in report.sentence(errors.LocalStore(CLAIM, "/srv/store"), "web2", NOW)
