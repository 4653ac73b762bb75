# SPDX-License-Identifier: LGPL-2.1-or-later
"""The units of systemd: that it understands them, and in what order a host with them comes up."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path
from typing import List

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "packaging/systemd").glob("*.service"))


def values(unit: Path, section: str, key: str) -> List[str]:
    """All words of a key that may be given several times."""

    class Several(dict):  # type: ignore[type-arg]
        def __setitem__(self, name: str, value: object) -> None:
            if isinstance(value, list) and name in self:
                self[name].extend(value)
            else:
                super().__setitem__(name, value)

    parser = configparser.RawConfigParser(strict=False, dict_type=Several, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(unit)
    return str(parser.get(section, key, fallback="")).split()


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_it(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = re.sub(r"@bindir@/\w+", "/bin/true", unit.read_text())
    (tmp_path / unit.name).write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit.name)]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert unit.name not in done.stdout and str(tmp_path) not in done.stdout, done.stdout


def test_the_join_stands_between_storage_and_libvirt() -> None:
    unit = ROOT / "packaging/systemd/vmguard-join.service"
    assert {"libvirtd.service", "virtqemud.service", "libvirt-guests.service"} <= set(values(unit, "Unit", "Before"))
    after = set(values(unit, "Unit", "After"))
    assert {"sanlock.service", "wdmd.service", "local-fs.target", "remote-fs.target"} <= after
    assert {"dlm.service", "lvmlockd.service", "multipathd.service", "drbd.service", "corosync.service"} <= after
    assert values(unit, "Unit", "BindsTo") == ["sanlock.service"]
    # Neither Requires nor Wants of libvirt's: its daemons come up whatever becomes of the join.
    assert not values(unit, "Unit", "RequiredBy") and "libvirtd.service" not in values(unit, "Install", "WantedBy")


def test_the_agent_reaches_block_devices() -> None:
    """The store may be one, guests' headers are read from them, and caches flushed."""
    text = (ROOT / "packaging/systemd/vmguardd.service").read_text()
    # Until systemd 253 (Ubuntu 22.04, RHEL 9) ProtectClock= allows the clock's device, and with that no other.
    assert not re.findall(r"(?m)^(PrivateDevices|DevicePolicy|DeviceAllow|ProtectClock)=", text)
    assert "CAP_SYS_TIME" not in text
