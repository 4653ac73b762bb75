# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The udev rules, run by `udevadm test` among the rules of this machine, on a loop device, in a /run of their own.

There is no udevd here: what it does with the outcome is for a real machine to show.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest

from vmguard import marks

ROOT = Path(__file__).resolve().parents[2]
UDEVADM = shutil.which("udevadm", path="/usr/bin:/sbin:/bin")
# What stands for the rules of md, btrfs and LVM: they act on what blkid found.
READER = 'SUBSYSTEM=="block", ENV{ID_FS_TYPE}=="?*", ENV{SEEN_BY_OTHERS}="$env{ID_FS_TYPE}"\n'


class Udev:
    """A loop device with a filesystem on it, and a /run in which the rules lie."""

    def __init__(self, root: Path) -> None:
        image = root / "image"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        self.device = subprocess.run(
            ["losetup", "--find", "--show", str(image)], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()
        number = os.stat(self.device).st_rdev
        self.number = f"{os.major(number)}:{os.minor(number)}"
        self.run = root / "run"
        rules = self.run / "udev" / "rules.d"
        rules.mkdir(parents=True)
        for rule in (ROOT / "udev").iterdir():
            shutil.copy(rule, rules)
        (rules / "64-reader.rules").write_text(READER)
        self.held = self.run / "vmguard" / "udev"
        self.held.mkdir(parents=True)

    def test(self, action: str = "change") -> Tuple[Dict[str, str], List[str]]:
        """The properties that a device has after an event, and the tags that it has by it."""
        words = ["unshare", "--mount", "/bin/sh", "-c", 'mount --bind "$1" /run && exec udevadm test --action="$2" "$3"']
        words += ["sh", str(self.run), action, f"/sys/class/block/{os.path.basename(self.device)}"]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout
        lines = done.stdout.splitlines()
        found = dict(line.split("=", 1) for line in lines if "=" in line and line.split("=", 1)[0].isidentifier())
        return found, [tag for tag in found.get("CURRENT_TAGS", "").split(":") if tag]


@pytest.fixture
def udev(tmp_path: Path) -> Iterator[Udev]:
    if os.geteuid() or UDEVADM is None:
        pytest.skip("needs root and udevadm")
    made = Udev(tmp_path)
    try:
        yield made
    finally:
        subprocess.run(["losetup", "-d", made.device])


def test_held_and_given_back(udev: Udev) -> None:
    properties, tags = udev.test()
    assert properties["SEEN_BY_OTHERS"] == "ext4" and "vmguard" not in tags
    (udev.held / udev.number).write_text(
        "VMGUARD_HELD=1\nVMGUARD_DOMAIN=web 1\nVMGUARD_UUID=u\nVMGUARD_IDENTITY=lvm:a/b\nVMGUARD_MODE=exclusive\n"
    )
    properties, tags = udev.test()
    assert "vmguard" in tags
    assert properties["VMGUARD_DOMAIN"] == "web 1" and properties["VMGUARD_IDENTITY"] == "lvm:a/b"
    assert properties["UDISKS_IGNORE"] == "1" and properties["VMGUARD_FS_TYPE"] == "ext4"
    assert not {"SEEN_BY_OTHERS", "ID_FS_TYPE", "ID_FS_USAGE"} & set(properties)
    (udev.held / udev.number).unlink()
    properties, tags = udev.test()
    assert properties["SEEN_BY_OTHERS"] == "ext4" and "vmguard" not in tags
    assert not any(name.startswith(("VMGUARD_", "UDISKS_IGNORE")) for name in properties)


@pytest.mark.parametrize("name", ["'web", "'web'", '"web"', 'we"b', "web\\", "$name%k"])
def test_udev_has_the_whole_name(name: str, udev: Udev) -> None:
    shown = marks._shown(name)
    (udev.held / udev.number).write_text(f"VMGUARD_HELD=1\nVMGUARD_DOMAIN={shown}\nVMGUARD_MODE=exclusive\n")
    assert udev.test()[0].get("VMGUARD_DOMAIN") == shown


def test_shared_is_told_and_hides_nothing(udev: Udev) -> None:
    (udev.held / udev.number).write_text("VMGUARD_HELD=1\nVMGUARD_DOMAIN=web\nVMGUARD_MODE=shared\n")
    properties, tags = udev.test()
    assert "vmguard" in tags and properties["SEEN_BY_OTHERS"] == "ext4" and "UDISKS_IGNORE" not in properties


def test_no_program_is_run() -> None:
    for rule in (ROOT / "udev").iterdir():
        text = rule.read_text()
        assert "PROGRAM" not in text and "RUN" not in text and "{program}" not in text, rule
