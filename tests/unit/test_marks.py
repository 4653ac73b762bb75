# SPDX-License-Identifier: LGPL-2.1-or-later
"""The files that udev's rules read, and the events that make it read them."""

from pathlib import Path
from typing import Tuple

import pytest

from vmguard import marks, paths
from vmguard.claims import Claim, Mode
from vmguard.host import Process
from vmguard.instance import Instance, Want


def claim(device: str, mode: Mode = Mode.EXCLUSIVE) -> Claim:
    return Claim("lvm:a/b", mode, "disk vda", "/dev/vg/web", "the guest may write it", device=device)


def instance(name: str, *wants: Want, state: str = "running") -> Instance:
    return Instance(name, "u-" + name, name, "", Process(1, 1), state, wants, 0)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tuple[Path, Path]:
    """The folder of the marks, and of a device with two partitions."""
    monkeypatch.setattr(paths, "RUN", str(tmp_path / "run"))
    monkeypatch.setattr(marks, "SYS", str(tmp_path / "sys"))
    device = tmp_path / "sys/dev/block/253:4"
    for place in (device, device / "sda1", device / "queue"):
        place.mkdir(parents=True)
        (place / "uevent").write_text("")
    (device / "sda1" / "partition").write_text("1\n")
    return tmp_path / "run" / "udev", device


def said(device: Path) -> Tuple[str, str, str]:
    places = (device, device / "sda1", device / "queue")
    text = tuple((place / "uevent").read_text() for place in places)
    for place in places:
        (place / "uevent").write_text("")
    return text  # type: ignore[return-value]


def test_put_and_dropped(places: Tuple[Path, Path]) -> None:
    folder, device = places
    want = Want(claim("253:4"), lver=1)
    marks.put(instance('we"b\n1 é', want), (want,))
    lines = (folder / "253:4").read_text().splitlines()
    assert lines[0] == "VMGUARD_HELD=1" and "VMGUARD_MODE=exclusive" in lines and len(lines) == 5
    assert lines[1] == 'VMGUARD_DOMAIN=we"b\\n1 \\xe9'
    assert said(device) == ("change", "change", "")
    marks.drop((want,), ())
    assert not list(folder.iterdir())
    assert said(device) == ("change", "change", "")


@pytest.mark.parametrize(
    "name, shown", [("'web'", "\\x27web'"), ("'web", "\\x27web"), (' "web"', '\\x22web"'), ("we'b", "we'b")]
)
def test_quotes_are_of_the_name(name: str, shown: str, places: Tuple[Path, Path]) -> None:
    """udev takes those away that are around a value, and a value with one of them for none."""
    folder, _ = places
    marks.put(instance(name), (Want(claim("253:4")),))
    assert f"VMGUARD_DOMAIN={shown}" in (folder / "253:4").read_text().splitlines()


def test_another_guest_has_it_still(places: Tuple[Path, Path]) -> None:
    folder, _ = places
    shared = Want(claim("253:4", Mode.SHARED))
    marks.put(instance("a", shared), (shared,))
    marks.drop((shared,), (instance("intent", shared, state="intent"), instance("b", shared)))
    assert "VMGUARD_DOMAIN=b" in (folder / "253:4").read_text()


def test_what_is_no_device_of_the_guest_or_not_held(places: Tuple[Path, Path]) -> None:
    folder, device = places
    marks.put(instance("a"), (Want(claim("")), Want(claim("253:4"), missing=True)))
    assert not folder.exists() and said(device) == ("", "", "")


def test_marks_of_nobody(places: Tuple[Path, Path]) -> None:
    """Of a guest whose record could not be read, or that was killed while it wrote one."""
    folder, device = places
    want = Want(claim("253:4"), lver=1)
    one = instance("a", want)
    assert marks.stray([one]) == []
    marks.put(one, (want,))
    (folder / "9:9.77.tmp").write_text("")
    said(device)
    assert marks.stray([one]) == ["9:9.77.tmp"] and marks.stray([]) == ["253:4", "9:9.77.tmp"]
    for name in marks.stray([]):
        marks.remove(name)
    assert not list(folder.iterdir()) and said(device) == ("change", "change", "")


def test_it_never_fails(places: Tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = places
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")
    marks.put(instance("a"), (Want(claim("253:4")),))
    marks.drop((Want(claim("9:9")),), ())
