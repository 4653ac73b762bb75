# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard metrics`, check_vmguard, and what docs/monitoring has for Prometheus and Icinga."""

import ctypes
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from vmguard import events, paths
from vmguard.cli import main, metrics, plugin, status
from vmguard.cli.status import Warned
from vmguard.config import Config
from vmguard.errors import SanlockDown, StoreBroken

ROOT = Path(__file__).resolve().parents[2]


def report(*more: Warned, guarded: bool = True, name: str = "web", **changes: Any) -> Dict[str, Any]:
    """What `vmguard status` has of a host with one guest."""
    instance = {
        "domain": "web", "uuid": "u1", "state": "running", "owner": "qemu", "pid": 1, "since": 0.0, "leases": 3,
        "without_lease": [], "contested": [], "note": "", "stopped_by_join": False,
    }  # fmt: skip
    made: Dict[str, Any] = {
        "mode": "enforce", "vanished": [], "notes": [], "agent": {"watching": True}, "store": {},
        "guests": [{"name": name, "uuid": "u1", "pid": 1, "guarded": guarded}],
        "lockspace": {"name": "l", "state": "joined", "renewed_ago": 7, "io_timeout": 10, "renewal_result": 1},
        "hosts": [{"host_id": 1, "name": "a", "state": "live"}, {"host_id": 2, "name": 'b"', "state": "dead"}],
    }  # fmt: skip
    made["instances"] = [{**instance, **changes.pop("instance", {})}]
    made.update(changes)
    warned = [*status._warnings(made, Config(store="/x")), *more]
    made["warnings"] = [one.text for one in warned]
    made["critical"] = [one.text for one in warned if one.critical]
    return made


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(paths, "LOG", str(tmp_path / "log"))
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(status, "_hook_warnings", lambda: [])
    return tmp_path


def promtool(*words: object, stdin: str = "") -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool")
    done = subprocess.run(
        [program, *map(str, words)], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=ROOT / "docs" / "monitoring",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics_are_well_formed() -> None:
    counts = metrics.Counts({"refused": 3}, [1] * (len(metrics.BUCKETS) + 1), 12.5)
    text = metrics.page(report(), False, counts, (0.001, 0.25))
    promtool("check", "metrics", stdin=text)
    lines = text.splitlines()
    assert "vmguard_refusals_total 3" in lines and "vmguard_guests 1" in lines
    assert 'vmguard_hook_prepare_seconds_bucket{le="+Inf"} 10' in lines and "vmguard_hook_prepare_seconds_sum 12.5" in lines
    assert "vmguard_lockspace_renewal_age_seconds 7" in lines
    # All digits of what grows: what comes to it in a minute is less than a millionth.
    large = metrics.page(report(), False, metrics.Counts({"refused": 1234567}, counts.hook, 123456.789), None).splitlines()
    assert "vmguard_refusals_total 1234567" in large and "vmguard_hook_prepare_seconds_sum 123456.789" in large
    # What is not known is left out, not made up.
    nothing = metrics.page(report(lockspace={}, hosts=[]), True, counts, None)
    promtool("check", "metrics", stdin=nothing)
    assert "renewal" not in nothing and "vmguard_known 0" in nothing


def test_counts_go_on_over_rotation(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_BYTES", 2000)
    monkeypatch.setattr(events, "_tell_system", lambda _: None)
    total = 0
    for _ in range(20):
        for _ in range(3):
            events.record("refused", "x" * 100, took=0.2)
            total += 1
        counts = metrics._counts()
        assert counts.events["refused"] == total and sum(counts.hook) == total
    assert len(events.files()) == events.KEPT + 1
    with open(events.path(), "ab") as file:
        file.write(b'{"time": 1, "event": "refu')  # somebody is just writing
    assert metrics._counts().events["refused"] == total
    assert metrics._counts().hook_seconds == pytest.approx(total * 0.2, abs=0.1)


def test_counts_begin_with_the_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the oldest file that is kept: where that was thrown away meanwhile, all would count as new at once."""
    monkeypatch.setattr(events, "_tell_system", lambda _: None)
    events.record("refused")
    began = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    with open(events.path(), "a") as file:
        file.write(json.dumps({"time": began - 60, "event": "refused", "text": "", "took": 0.1}) + "\n")
    assert metrics._counts().events == {"refused": 1}
    assert metrics._counts() == metrics.Counts({"refused": 1}, [0] * (len(metrics.BUCKETS) + 1), 0.0)


def test_a_full_disk_is_not_filled_with_halves(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "report_of", lambda ask=True: (report(), []))
    target = places / "node" / "vmguard.prom"
    target.mkdir(parents=True)  # what can be written and not put in place
    assert main(["metrics", "--output", str(target)]) == 2
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("hangs", ["sanlock", "nothing"])
def test_figures_while_sanlock_has_stopped(
    hangs: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is one of the figures, and keeps none of the others back: systemd would end us without a word."""

    def report_of(ask: bool = True) -> Any:
        if ask and hangs == "sanlock":
            time.sleep(5)
        return report(**({} if ask else {"lockspace": {}, "hosts": []})), []

    monkeypatch.setattr(status, "report_of", report_of)
    monkeypatch.setattr(metrics, "_PATIENCE", 0.5)
    monkeypatch.setattr(metrics, "_latency", lambda _: None)
    answered = hangs == "nothing"
    assert main(["metrics"]) == (0 if answered else 3)
    lines = capsys.readouterr().out.splitlines()
    assert f"vmguard_known {answered:d}" in lines and "vmguard_guests 1" in lines
    assert f"vmguard_lockspace_joined {answered:d}" in lines


@pytest.mark.parametrize(
    "kept", ['{"events": {"refu', '{"events": {}, "hook": [1], "hook_seconds": 1, "inode": 1, "offset": 1}', "[]"]
)
def test_counts_that_cannot_be_used(kept: str, places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a file, or one of a version with other buckets."""
    monkeypatch.setattr(events, "_tell_system", lambda _: None)
    (places / "run" / "metrics.json").write_text(kept)
    events.record("refused", took=99)
    assert metrics._counts() == metrics.Counts({"refused": 1}, [0] * len(metrics.BUCKETS) + [1], 99.0)
    assert [one.name for one in (places / "run").iterdir()] == ["metrics.json"]


def test_alert_rules_name_what_there_is() -> None:
    rules = ROOT / "docs" / "monitoring" / "vmguard.rules.yml"
    text = rules.read_text()
    counts = metrics.Counts({}, [0] * (len(metrics.BUCKETS) + 1), 0.0)
    names = set(re.findall(r"^# TYPE (\S+)", metrics.page(report(), False, counts, (0.1, 0.1)), re.M))
    used = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\bvmguard_\w+", "".join(re.findall(r"expr:.*\n.*", text)))}
    assert used and used <= names, used - names
    # A rule of which the labels of two figures do not match never fires, and is valid.
    tested = set(re.findall(r"alertname: (\w+)", (rules.parent / "vmguard.test.yml").read_text()))
    assert set(re.findall(r"alert: (\w+)", text)) == tested
    promtool("check", "rules", rules)
    promtool("test", "rules", "vmguard.test.yml")


# -- check_vmguard -----------------------------------------------------------------------------------------------------

LINE = re.compile(r"VMGUARD (OK|WARNING|CRITICAL|UNKNOWN) - [^|]+( \| \S+=[\d.]+s?;\S*( \S+=[\d.]+s?;\S*)*)?\Z")


def check(capsys: pytest.CaptureFixture[str], *words: str) -> Tuple[int, List[str]]:
    try:
        code = plugin.main(list(words))
    except SystemExit as end:
        code = int(end.code or 0)
    lines = capsys.readouterr().out.splitlines()
    assert LINE.match(lines[0]), lines[0]
    assert lines[0].split()[1] == plugin.WORDS[code]
    return code, lines


@pytest.mark.parametrize(
    "changes, code, words",
    [
        ({}, 0, "1 guests, 3 leases"),
        ({"agent": {"watching": False}}, 1, "vmguardd"),
        ({"lockspace": {"state": "leaving"}}, 2, "not a member"),
        ({"instance": {"contested": ["/dev/a|b"], "without_lease": ["/dev/a|b"]}}, 2, "/dev/a/b"),
        ({"instance": {"without_lease": ["/dev/x"]}}, 1, "without leases"),
        ({"guarded": False}, 2, "without any lease"),
        ({"guarded": False, "name": ""}, 2, "a QEMU (pid 1) runs"),
        ({"instance": {"stopped_by_join": True}}, 2, "stopped"),
        ({"more": [Warned("the hook /x is missing, not executable", True)]}, 2, "hook"),
        ({"more": [Warned("mode = audit: nothing is refused")]}, 1, "audit"),
    ],
)
def test_check(
    changes: Dict[str, Any], code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = report(*changes.pop("more", ()), **changes)
    monkeypatch.setattr(status, "report_of", lambda: (made, []))
    found, lines = check(capsys)
    assert found == code and words in lines[0], lines


@pytest.mark.parametrize("name, code", [("webhook", 1), ("mode", 1), (" ", 1), ("a|b='c';d\n", 1)])
def test_check_whatever_a_guest_is_called(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name decides neither how bad it is, nor what else is said."""
    made = report(Warned("mode = audit: nothing is refused"), instance={"domain": name, "without_lease": ["/dev/x"]})
    monkeypatch.setattr(status, "report_of", lambda: (made, []))
    found, lines = check(capsys)
    assert found == code and any("mode = audit" in line for line in lines), lines
    assert sum("without leases" in line for line in lines) == 1


def test_check_thresholds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(status, "report_of", lambda: (report(), []))
    assert check(capsys, "-w", "5", "-c", "20")[0] == 1
    assert check(capsys, "-w", "5", "-c", "6")[0] == 2
    code, lines = check(capsys, "-w", "10", "-c", "20")
    assert code == 0 and "renewal=7s;10;20;0" in lines[0]
    assert check(capsys, "-w", "@5:8")[0] == 1
    for nonsense in ("nonsense", "@", "-", ":", "5:4", "1:2:3", "0x5", "1e3", "5;6", "nan"):
        assert check(capsys, f"-w{nonsense}")[0] == 3, nonsense
    old = report(lockspace={"state": "joined", "renewed_ago": 12345678, "io_timeout": 10})
    monkeypatch.setattr(status, "report_of", lambda: (old, []))
    assert "renewal=12345678s;30;60;0" in check(capsys)[1][0], "figures have no exponents"
    monkeypatch.setattr(status, "report_of", lambda: (report(), []))
    assert check(capsys, "--what")[0] == 3
    Path(paths.LOG).mkdir()
    Path(events.path()).write_text(json.dumps({"time": time.time(), "event": "refused", "text": ""}) + "\n")
    assert check(capsys, "--refusals-warning", "0")[0] == 1
    assert check(capsys, "--refusals-critical", "0")[0] == 2
    assert check(capsys)[0] == 0


def test_check_when_nothing_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(status, "report_of", lambda: (report(lockspace={}), [SanlockDown(111)]))
    code, lines = check(capsys)
    assert code == 3 and "sanlock" in lines[0]
    # Every start is refused then: that is no footnote to what is worth a word.
    made = report(lockspace={}, agent={"watching": False})
    monkeypatch.setattr(status, "report_of", lambda: (made, [StoreBroken("/srv/store", "it is missing: not mounted?")]))
    code, lines = check(capsys)
    assert code == 3 and "the lease store cannot be used (/srv/store: it is missing: not mounted?)" in lines[0]
    assert "vmguardd does not run" in lines[1]

    def broken() -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(status, "report_of", broken)
    code, lines = check(capsys)
    assert code == 3 and "ValueError: a bug" in lines[0]


def test_check_when_a_call_does_not_come_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library of a sanlock that has stopped goes on to wait whatever signal comes; and so does the kernel, for NFS."""

    def hang() -> None:
        mutex = ctypes.create_string_buffer(64)
        for _ in range(2):
            ctypes.CDLL(None).pthread_mutex_lock(mutex)

    monkeypatch.setattr(status, "report_of", hang)
    code, lines = check(capsys, "-t", "1")
    assert code == 3 and "no answer within 1 seconds" in lines[0]


@pytest.mark.parametrize(
    "text, inside, outside",
    [("10", (0, 5, 10), (-1, 11)), ("10:", (10, 99), (9,)), ("~:10", (-5, 10), (11,)), ("10:20", (10, 20), (9, 21)),
     ("@10:20", (9, 21), (10, 15, 20))],
)  # fmt: skip
def test_ranges(text: str, inside: Tuple[float, ...], outside: Tuple[float, ...]) -> None:
    """The table of the plugins' development guidelines."""
    found = plugin.Range(text)
    assert not any(map(found.alerts, inside)) and all(map(found.alerts, outside))


def test_icinga_takes_the_command() -> None:
    program = shutil.which("icinga2", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("needs icinga2")
    folder = Path(tempfile.mkdtemp(prefix="vmguard-icinga-"))  # it reads its files as a user of its own
    folder.chmod(0o755)
    main = folder / "icinga2.conf"
    text = (ROOT / "docs" / "monitoring" / "vmguard.conf").read_text()
    main.write_text(
        'const PluginDir = "/usr/lib/nagios/plugins"\nconst NodeName = "node1"\n' + text
        + 'object Host "node1" { check_command = "vmguard" }\n'
        'object Service "vmguard" { host_name = "node1"\n check_command = "vmguard"\n vars.vmguard_no_agent = true }\n'
    )  # fmt: skip
    done = subprocess.run(
        [program, "daemon", "-C", "-c", str(main)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    shutil.rmtree(folder)
    assert done.returncode == 0, done.stdout
    assert "1 CheckCommand" in done.stdout
