# SPDX-License-Identifier: LGPL-2.1-or-later
"""The udev rules among those of each release, by its own udevadm; Debian 12's are run by the unit tests."""

import os
import subprocess
from pathlib import Path
from typing import Dict, Iterator, NamedTuple

import pytest
from machines import Machine
from test_deb import Built, apt, put

HELD = "VMGUARD_HELD=1\nVMGUARD_DOMAIN=web 1\nVMGUARD_UUID=u\nVMGUARD_IDENTITY=lvm:a/b\nVMGUARD_MODE=exclusive\n"


class Device(NamedTuple):
    """A loop device with a filesystem in it, on a machine that vmguard was installed on."""

    machine: Machine
    name: str
    number: str

    def properties(self) -> Dict[str, str]:
        """What a change event comes to."""
        out = self.machine.run("udevadm", "test", "--action=change", f"/sys/class/block/{self.name}").out
        lines = [line.strip() for line in out.splitlines()]
        return dict(line.split("=", 1) for line in lines if "=" in line and line.split("=", 1)[0].isidentifier())


@pytest.fixture
def device(machine: Machine, built: Built, tmp_path: Path) -> Iterator[Device]:
    if not machine.exists("/usr/bin/udevadm"):
        pytest.skip(f"{machine.suite} has libvirt without udev here: tests/unit/test_udev_rules.py has its rules")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    words = ["losetup", "--find", "--show", str(image)]
    path = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        status = os.stat(path).st_rdev
        machine.run("mknod", path, "b", str(os.major(status)), str(os.minor(status)))
        machine.run("mkdir", "-p", "/run/vmguard/udev")
        apt(machine, "install", *put(machine, built, "0.1.0"))
        yield Device(machine, os.path.basename(path), f"{os.major(status)}:{os.minor(status)}")
    finally:
        subprocess.run(["losetup", "-d", path], check=True)


def test_a_held_device_is_left_alone(device: Device) -> None:
    before = device.properties()
    assert before["ID_FS_TYPE"] == "ext4" and "vmguard" not in before["TAGS"]
    device.machine.write(f"/run/vmguard/udev/{device.number}", HELD)
    held = device.properties()
    assert "vmguard" in held["CURRENT_TAGS"].split(":") and held["VMGUARD_DOMAIN"] == "web 1"
    assert held["UDISKS_IGNORE"] == "1" and held["VMGUARD_FS_TYPE"] == "ext4"
    assert not {"ID_FS_TYPE", "ID_FS_USAGE"} & set(held)
    device.machine.run("rm", f"/run/vmguard/udev/{device.number}")
    after = device.properties()
    assert after["ID_FS_TYPE"] == "ext4" and "vmguard" not in after["CURRENT_TAGS"].split(":")
    assert not [name for name in after if name.startswith(("VMGUARD_", "UDISKS_IGNORE"))]
