# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a definition allows, and what is wrong with how it does."""

from pathlib import Path
from typing import List

import pytest
from linting import disk, domain, found, report


def allowing(*allows: str, devices: str = "") -> str:
    inside = "".join(f"<g:allow {one}/>" for one in allows)
    devices = devices or disk("/dev/sdb") + disk("/dev/sdc", name="vdb")
    return domain(
        "web1",
        devices,
        outside=f"  <metadata><g:policy xmlns:g='urn:vmguard:policy:1'>{inside}</g:policy></metadata>\n",
    )


@pytest.mark.parametrize(
    "allows, left",
    [
        pytest.param([], ["VMG301 web1 disk vda", "VMG301 web1 disk vdb"], id="nothing"),
        pytest.param(["rule='VMG301' reason='r'"], [], id="the-domain"),
        pytest.param(["rule='VMG301' target='vdb' reason='r'"], ["VMG301 web1 disk vda"], id="one-disk"),
        pytest.param(
            ["rule='unstable-device-name' target='disk vda' reason='r'"], ["VMG301 web1 disk vdb"], id="by-name"
        ),
        pytest.param(
            ["rule='VMG301' target='vda'"],
            ["VMG003 web1", "VMG301 web1 disk vda", "VMG301 web1 disk vdb"],
            id="no-reason",
        ),
        pytest.param(
            ["rule='VMG301' reason=' '"], ["VMG003 web1", "VMG301 web1 disk vda", "VMG301 web1 disk vdb"], id="blank"
        ),
        pytest.param(["rule='VMG999' reason='r'", "rule='VMG301' reason='r'"], ["VMG003 web1"], id="no-such-rule"),
        pytest.param(["reason='r'", "rule='VMG301' reason='r'"], ["VMG003 web1"], id="no-rule"),
        pytest.param(["rule='VMG301' reason='r'", "rule='VMG405' reason='r'"], ["VMG003 web1"], id="not-needed"),
        pytest.param(
            ["rule='VMG301' reason='r'", "rule='VMG301' target='vdz' reason='r'"], ["VMG003 web1"], id="elsewhere"
        ),
        pytest.param(["rule='VMG301' reason='r'", "rule='VMG304' reason='r'"], [], id="of-a-rule-that-was-left-out"),
    ],
)
def test_allows(allows: List[str], left: List[str]) -> None:
    assert sorted(found(allowing(*allows), offline=True)) == left


def test_one_is_not_needed_only_if_all_was_looked_at(tmp_path: Path) -> None:
    """Two names of one disk are found where both definitions are given; a cache only where the disk is there."""
    (tmp_path / "a.img").write_bytes(b"")
    (tmp_path / "b.img").symlink_to("a.img")
    twice = "rule='VMG103' reason='never both, ticket 7'"
    one = allowing(twice, devices=disk(f"{tmp_path}/a.img"))
    assert found(one) == []
    assert found(one, domain("web2", disk("/srv/a.img")), offline=True) == []
    assert found(one, domain("web2", disk(f"{tmp_path}/b.img"))) == ["VMG103 web2 disk vda"]
    (tmp_path / "c.img").write_bytes(b"")
    assert found(one, domain("web2", disk(f"{tmp_path}/c.img"))) == ["VMG003 web1"]
    gone = allowing("rule='VMG404' reason='it never migrates'", devices=disk(f"{tmp_path}/gone.img"))
    assert found(gone) == ["VMG002 web1 disk vda"]


def test_what_is_allowed_is_kept_with_its_reason() -> None:
    judged = report(allowing("rule='VMG301' target='vda' reason='one disk'"), offline=True)
    assert [(one.what, one.suppressed) for one in judged.findings] == [("disk vda", "one disk"), ("disk vdb", None)]


def test_a_double_use_can_be_allowed() -> None:
    """Between two definitions, by the one that says so."""
    one = allowing("rule='VMG102' target='vda' reason='never both, ticket 7'", devices=disk("/srv/a.img"))
    assert found(one, domain("web2", disk("/srv/a.img")), offline=True) == ["VMG102 web2 disk vda"]


def test_a_backing_file_goes_with_its_disk() -> None:
    chain = "<backingStore type='file'><format type='raw'/><source file='/srv/base.img'/><backingStore/></backingStore>"
    overlay = disk("/srv/over.qcow2", driver="type='qcow2'", inside=chain)
    one = allowing("rule='VMG104' target='vda' reason='the base is not written any more'", devices=overlay)
    assert found(one, domain("web2", disk("/srv/base.img")), offline=True) == ["VMG104 web2 disk vda"]
