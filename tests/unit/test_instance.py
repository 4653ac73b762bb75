# SPDX-License-Identifier: LGPL-2.1-or-later
import json
import os
from pathlib import Path

import pytest

from vmguard import instance, overrides, paths
from vmguard.claims import Claim, Mode
from vmguard.errors import RecordBroken
from vmguard.host import Process
from vmguard.instance import Instance, Want
from vmguard.overrides import Override

CLAIM = Claim("file:fs/1", Mode.EXCLUSIVE, "disk vda", "/a \udcff\n.img", "the guest may write it", True, True)
ONE = Instance(
    id="u.1",
    uuid="u",
    name='odd "name"\n\udcff ü',
    boot_id="b",
    libvirtd=Process(1, 2),
    state="held",
    wants=(Want(CLAIM, 7), Want(CLAIM._replace(mode=Mode.HOST), None, True)),
    since=12.5,
    host_id=3,
    generation=4,
    qemu=Process(5, 6),
)


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "RUN", str(tmp_path))
    return tmp_path


def test_a_record_comes_back_as_it_was() -> None:
    instance.write(ONE)
    assert instance.load_all() == [ONE]
    instance.write(ONE._replace(qemu=None, state="running"))
    assert instance.load_all() == [ONE._replace(qemu=None, state="running")]
    instance.forget(ONE)
    assert instance.load_all() == []
    instance.forget(ONE)  # twice is fine: a sweep may have been first


def test_every_field_is_kept() -> None:
    """A field that is added and not written would come back as its default, and nobody would notice."""
    instance.write(ONE)
    record = json.loads(Path(instance.directory(), "u.1.json").read_text())
    assert set(record) == {*Instance._fields, "format"}
    assert set(record["wants"][0]["claim"]) == set(Claim._fields)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "{}", '{"format": 2}', '{"format": 1, "wants": 3}', "\x00" * 100, '{"format": 1}'],
    ids=["empty", "cut", "list", "null", "bare", "newer", "wrong", "zeros", "incomplete"],
)
def test_a_record_that_cannot_be_read_is_not_skipped(content: str) -> None:
    instance.write(ONE)
    Path(instance.directory(), "x.json").write_text(content)
    with pytest.raises(RecordBroken):
        instance.load_all()
    assert instance.names() == ["u.1.json", "x.json"]


def test_a_half_written_record_is_none() -> None:
    os.makedirs(instance.directory())
    Path(instance.directory(), "u.1.json.77.tmp").write_text("{")
    assert instance.load_all() == []


def test_no_room_is_said(run: Path) -> None:
    (run / "instances").write_text("a file where a folder should be")
    with pytest.raises(RecordBroken):
        instance.write(ONE)


def test_ids_are_file_names_whatever_the_uuid() -> None:
    assert instance.new_id("../../etc/passwd").startswith("ecad.")
    assert instance.new_id("a") != instance.new_id("a")


def test_late_marker_goes_with_the_record(run: Path) -> None:
    instance.write(ONE)
    instance.mark_late(ONE)
    assert instance.is_late(ONE) and os.listdir(run / "late") == ["u.1"]
    instance.forget(ONE)
    assert not instance.is_late(ONE)


GIVEN = Override("u", "web1", "drill", "root", 0.0)


def test_override_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides.time, "time", lambda: 10.0)
    overrides.give(GIVEN)
    assert overrides.pending() == [GIVEN]
    assert overrides.take("u") == GIVEN
    assert overrides.take("u") is None


@pytest.mark.parametrize("now", [-1.0, overrides.VALID_SECONDS + 1.0], ids=["from-the-future", "expired"])
def test_override_that_is_not_valid_is_gone_too(now: float, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides.give(GIVEN)
    monkeypatch.setattr(overrides.time, "time", lambda: now)
    assert overrides.take("u") is None
    assert overrides.take("u") is None


def test_garbage_is_no_override(run: Path) -> None:
    (run / "overrides").mkdir()
    (run / "overrides" / "u.json").write_text('{"uuid": "u"}')
    assert overrides.take("u") is None
    assert not (run / "overrides" / "u.json").exists()


def test_what_a_later_version_added_is_passed_over() -> None:
    """A package that was taken back to an older version finds records of guests that run."""
    one = ONE._replace(coming="migrate", source=(1, 2), image=("mark", 3.5), wants=(Want(CLAIM, None, ticket=4, drain=5),))
    instance.write(one)
    assert instance.load_all() == [one]
    path = Path(instance.directory(), "u.1.json")
    record = json.loads(path.read_text())
    record["new"] = record["wants"][0]["new"] = record["wants"][0]["claim"]["new"] = {}
    path.write_text(json.dumps(record))
    assert instance.load_all() == [one]


def test_what_an_older_version_did_not_write_has_its_default() -> None:
    instance.write(ONE)
    path = Path(instance.directory(), "u.1.json")
    record = json.loads(path.read_text())
    for name in ("coming", "source", "image", "frozen"):
        del record[name]
    for want in record["wants"]:
        for name in ("ticket", "drain", "drains", "other_disk"):
            del want[name]
        del want["claim"]["cached"]
    path.write_text(json.dumps(record))
    assert instance.load_all() == [ONE]


def test_what_is_still_to_come() -> None:
    assert not instance.pending(ONE)
    for want in (Want(CLAIM, ticket=1), Want(CLAIM, 1, drains=True)):
        assert instance.pending(ONE._replace(wants=(Want(CLAIM, 7), want)))
    assert not instance.pending(ONE._replace(wants=(Want(CLAIM, 7, drains=True, drain=2),)))
