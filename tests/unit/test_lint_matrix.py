# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What lint calls a double use is what the guard refuses: every pair of a matrix of names and kinds of access, in one domain
and in two, put to both.
"""

import itertools
import os
import subprocess
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pytest
from linting import disk, domain, recorded, report

from vmguard.claims import Claim, needs_of
from vmguard.domain import parse
from vmguard.errors import Error, NamedTwice
from vmguard.holders import excludes
from vmguard.storage.facts import Facts, LiveFacts

DOUBLES = {
    *("VMG101", "VMG102", "VMG103", "VMG104", "VMG105", "VMG106", "VMG107", "VMG111"),
    *("VMG203", "VMG205", "VMG601", "VMG602", "VMG603", "VMG701"),
}
ACCESS = {"write": "", "share": "<shareable/>", "read": "<readonly/>"}


def claims(xml: str, facts: Facts) -> Optional[Dict[str, Claim]]:
    """What the guard would take; None where it refuses the domain for itself."""
    try:
        return {claim.identity: claim for claim in needs_of(parse(xml.encode()), facts).claims}
    except NamedTwice:
        raise
    except Error:
        return None


def guard_refuses_both(one: str, two: str, facts: Facts) -> Optional[bool]:
    first, second = claims(one, facts), claims(two, facts)
    if first is None or second is None:
        return None
    return any(excludes(first[same].mode, second[same].mode) for same in first.keys() & second.keys())


def doubles(*definitions: str, facts: Facts) -> List[str]:
    """The domains that have a double use."""
    return sorted({one.domain for one in report(*definitions, facts=facts).findings if one.rule in DOUBLES})


def files(folder: str) -> Dict[str, str]:
    """Names of what is there, in disguises: {path: driver}."""
    raw = os.path.join(folder, "raw.img")
    base = os.path.join(folder, "base.img")
    for path in (raw, base):
        with open(path, "wb") as file:
            file.truncate(1 << 20)
    os.symlink(raw, os.path.join(folder, "link.img"))
    os.link(raw, os.path.join(folder, "hard.img"))
    os.mkdir(os.path.join(folder, "below"))
    names = {raw: "raw", base: "raw"}
    names.update(dict.fromkeys((folder + "/link.img", folder + "/hard.img", folder + "/below/../raw.img"), "raw"))
    for name, back in (("over1.qcow2", base), ("over2.qcow2", base), ("top.qcow2", folder + "/over1.qcow2")):
        form = "raw" if back == base else "qcow2"
        path = os.path.join(folder, name)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", back, "-F", form, path], check=True)
        names[path] = "qcow2"
    names[os.path.join(folder, "missing.img")] = "raw"
    return names


def pairs(names: Dict[str, str]) -> Iterator[Tuple[str, str, str, str]]:
    ways = [(path, access) for path in names for access in ACCESS]
    for (one, how), (two, other) in itertools.combinations_with_replacement(ways, 2):
        yield one, how, two, other


def a_disk(path: str, access: str, names: Dict[str, str], name: str = "vda") -> str:
    return disk(path, name=name, driver=f"type='{names[path]}'", inside=ACCESS[access])


def compare(names: Dict[str, str], facts: Facts) -> int:
    told_apart = 0
    for one, how, two, other in pairs(names):
        case = f"{one} ({how}) and {two} ({other})"
        first, second = domain("a", a_disk(one, how, names)), domain("b", a_disk(two, other, names))
        refused = guard_refuses_both(first, second, facts)
        seen = doubles(first, second, facts=facts)
        if refused is None:
            judged = report(first, second, facts=facts)
            assert any(finding.severity == "error" for finding in judged.findings), case
        else:
            assert seen == (["a", "b"] if refused else []), (
                f"{case}: the guard {'refuses' if refused else 'accepts'}, lint says {seen}"
            )
            told_apart += 1
        both = domain("c", a_disk(one, how, names) + a_disk(two, other, names, "vdb"))
        try:
            alone: Any = claims(both, facts) is not None
        except NamedTwice:
            alone = "twice"
        seen = doubles(both, facts=facts)
        if alone is not False:
            assert bool(seen) == (alone == "twice"), f"{case} in one domain: {alone}, lint says {seen}"
            told_apart += 1
    return told_apart


def test_files_and_their_aliases(tmp_path: Any) -> None:
    assert compare(files(str(tmp_path)), LiveFacts()) > 500


RECORDED = {
    "lvm": [
        *("/dev/data/linear", "/dev/dm-0", "/dev/mapper/data-origin", "/dev/mapper/data-snap--one", "/dev/sdb"),
        *("/dev/mapper/data-thin1", "/dev/mapper/data-thin2", "/dev/mapper/data-pool0", "/dev/mapper/data-raid1"),
        *("/dev/mapper/data-raid1_rimage_0", "/dev/data/guest", "/dev/mapper/data-lvmlock"),
    ],
    "multipath": ["/dev/mapper/mpatha", "/dev/mapper/mpatha-part1", "/dev/sdb", "/dev/sdb1", "/dev/sdc", "/dev/sdd2"],
    "local": [
        *("/dev/nvme0n1", "/dev/ng0n1", "/dev/md0", "/dev/drbd0", "/dev/sdc", "/dev/rbd0", "/dev/mapper/luks-a"),
        *("/dev/mapper/mine", "/dev/mapper/plain", "/dev/sda2"),
    ],
    "filesystems": [
        "/alias/a.img",
        "/images/a.img",
        "/srv/b.img",
        "/nfs4/a.img",
        "/nfs3/a.img",
        "/dev/vdb",
        "/gl/dir/a.img",
    ],
}


@pytest.mark.parametrize("host", RECORDED)
def test_devices_of_recorded_hosts(host: str) -> None:
    assert compare(dict.fromkeys(RECORDED[host], "raw"), recorded(host)) > 20
