# SPDX-License-Identifier: LGPL-2.1-or-later
"""
Definitions as tools make them: what lint says of them makes sense to somebody who reads it for the first time.

virt-install.xml, virt-clone.xml and virt-clone-skip-copy.xml are what virtinst 4.1 made; the others are in the style of
OpenStack Nova, of Proxmox VE's naming and disks, of vagrant-libvirt and of virt-manager.
"""

from pathlib import Path
from typing import List

import pytest
from linting import report

FOLDER = Path(__file__).with_name("lint_inputs")


def said(*names: str) -> List[str]:
    judged = report(
        *((FOLDER / f"{name}.xml").read_text(encoding="utf-8") for name in names), offline=True, inventory=True
    )
    return [f"{one.severity.value} {one.rule} {one.domain}: {one.text}" for one in judged.counted]


@pytest.mark.parametrize(
    "names, expected",
    [
        pytest.param(["virt-install"], [], id="virt-install"),
        pytest.param(["virt-install", "virt-clone"], [], id="virt-clone"),
        pytest.param(
            ["virt-install", "virt-clone-skip-copy"],
            [
                'error VMG102 web1: disk vda is disk vda of "web3" as well',
                'error VMG102 web3: disk vda is disk vda of "web1" as well',
            ],
            id="virt-clone-of-the-same-disk",
        ),
        pytest.param(["openstack"], [], id="openstack"),
        pytest.param(
            ["openstack", "openstack-multiattach"],
            [
                'error VMG102 instance-0000002a: disk vdb is disk vdb of "instance-0000002b" as well',
                'error VMG102 instance-0000002b: disk vdb is disk vdb of "instance-0000002a" as well',
            ],
            id="openstack-one-volume-twice",
        ),
        pytest.param(
            ["proxmox-like"],
            [
                "error VMG405 100-mailserver: disk sdb: cache='unsafe' loses writes that the guest was told are safe, when its"
                " host fails",
                "warning VMG301 100-mailserver: disk sdb: /dev/sdc may be another device after the next boot, and on the next"
                " host",
            ],
            id="proxmox-like",
        ),
        pytest.param(["vagrant-libvirt", "vagrant-libvirt-second"], [], id="vagrant-libvirt"),
        pytest.param(["virt-manager-uefi"], [], id="virt-manager"),
        pytest.param(
            ["virt-manager-uefi", "copied-by-hand"],
            [
                'error VMG602 win11: nvram is one file with nvram of "win11-copy"',
                'error VMG602 win11-copy: nvram is one file with nvram of "win11"',
            ],
            id="copied-by-hand",
        ),
    ],
)
def test_what_tools_make(names: List[str], expected: List[str]) -> None:
    assert said(*names) == expected
