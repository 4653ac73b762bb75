# SPDX-License-Identifier: LGPL-2.1-or-later
"""Domain -> claims, over storage that is made up: what storage really is has tests of its own."""

from typing import Any, Dict, Tuple

import pytest

from vmguard import claims
from vmguard.claims import Mode, late_needs, needs_of
from vmguard.domain import Access, Domain, HostPath, NotUnderstood, Use
from vmguard.errors import BadDomain, NamedTwice, Unguardable, Unresolvable, UsedByHost
from vmguard.storage import Layer, Storage

DISK = Storage("lun:disk", "/dev/sda", "lun", others_see_it=True)
PV = Storage("part:lun:disk/1", "/dev/sda1", "partition", under=(DISK,))
THIN_POOL = Storage("lvm:vg/pool", "/dev/vg/pool", "lvm", under=(PV,))

WORLD: Dict[str, Tuple[Storage, ...]] = {
    "/a.img": (Storage("file:fs/1", "/a.img", "file", under=(PV,)),),
    "/alias-of-a.img": (Storage("file:fs/1", "/a.img", "file", under=(PV,)),),
    "/base.img": (Storage("file:fs/2", "/base.img", "file"),),
    "/dev/sda": (DISK,),
    "/dev/vg/thin1": (Storage("lvm:vg/thin1", "/dev/vg/thin1", "lvm", one_host=(THIN_POOL,)),),
    "/dev/vg/thin2": (Storage("lvm:vg/thin2", "/dev/vg/thin2", "lvm", one_host=(THIN_POOL,)),),
    "/dev/sdb": (Storage("lun:mp", "/dev/sdb", "lun", not_writable="it is a leg", instead="/dev/mapper/mpatha"),),
    "/dev/sdc": (Storage("lun:c", "/dev/sdc", "lun", used_by_host="mounted on /srv"),),
    "/dev/rbd0": (Storage("rbd:p/i", "/dev/rbd0", "rbd", also=("dev:x/rbd0",)),),
    "/dev/null": (),
    "/srv/": (Storage("file:host-boot/7", "/srv/", "directory", not_writable="this host serves it by NFS"),),
    "/srv/a.img": (Storage("file:host-boot/8", "/srv/a.img", "file", not_writable="this host serves it by NFS"),),
}


@pytest.fixture(autouse=True)
def made_up_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(location: Any, facts: Any) -> Tuple[Storage, ...]:
        try:
            return WORLD[location.path]
        except KeyError:
            raise Unresolvable(location.path, "there is no such file", missing=True) from None

    monkeypatch.setattr(claims, "resolve", resolve)


FACTS: Any = None
UUID = "11111111-2222-3333-4444-555555555555"


def use(path: str, access: Access = Access.WRITE, what: str = "disk vda", **more: Any) -> Use:
    return Use(what, HostPath(path), access, **more)


def domain(*uses: Use, **more: Any) -> Domain:
    return Domain("web1", UUID, uses, **more)


def modes(*uses: Use) -> Dict[str, Mode]:
    return {claim.identity: claim.mode for claim in needs_of(domain(*uses), FACTS).claims}


def test_a_guest_claims_itself_its_disk_and_all_beneath() -> None:
    assert modes(use("/a.img")) == {
        f"vm:{UUID}": Mode.EXCLUSIVE,
        "file:fs/1": Mode.EXCLUSIVE,
        "part:lun:disk/1": Mode.SHARED,
        "lun:disk": Mode.SHARED,
    }


@pytest.mark.parametrize("access", [Access.READ, Access.SHARE])
def test_what_is_read_or_shared_is_claimed_shared(access: Access) -> None:
    assert modes(use("/base.img", access))["file:fs/2"] is Mode.SHARED


def test_backing_files_are_shared_data_files_are_not() -> None:
    backing = use("/base.img", Access.READ, "disk vda, backing file 1")
    assert modes(use("/a.img", backing=(backing,)))["file:fs/2"] is Mode.SHARED
    data = use("/base.img", Access.WRITE, "disk vda, data file 1")
    assert modes(use("/a.img", backing=(data,)))["file:fs/2"] is Mode.EXCLUSIVE


def test_one_host_layers_are_claimed_for_this_host() -> None:
    found = modes(use("/dev/vg/thin1"), use("/dev/vg/thin2", what="disk vdb"))
    assert found["lvm:vg/pool"] is Mode.HOST
    assert found["lun:disk"] is Mode.SHARED


def test_all_names_of_one_thing_are_claimed() -> None:
    found = modes(use("/dev/rbd0"))
    assert found["rbd:p/i"] is found["dev:x/rbd0"] is Mode.EXCLUSIVE


def test_no_storage_no_claim() -> None:
    assert modes(use("/dev/null")) == {f"vm:{UUID}": Mode.EXCLUSIVE}


@pytest.mark.parametrize(
    "first, second",
    [
        pytest.param(use("/a.img"), use("/alias-of-a.img", what="disk vdb"), id="two-names"),
        pytest.param(use("/a.img"), use("/a.img", Access.READ, "disk vdb"), id="read-beside-write"),
        pytest.param(use("/a.img"), use("/dev/sda", what="disk vdb"), id="disk-under-its-file"),
        pytest.param(use("/dev/sda"), use("/a.img", what="disk vdb"), id="file-on-its-disk"),
        pytest.param(use("/dev/vg/thin1"), use("/dev/sda", what="disk vdb"), id="disk-under-a-thin-pool"),
    ],
)
def test_one_domain_naming_one_thing_twice(first: Use, second: Use) -> None:
    with pytest.raises(NamedTwice):
        needs_of(domain(first, second), FACTS)


def test_reading_one_thing_twice_is_fine() -> None:
    modes(use("/base.img", Access.READ), use("/base.img", Access.READ, "disk vdb"))


def test_what_the_xml_and_the_header_both_say_is_said_once() -> None:
    """A data file stands in the live XML and in the image's header."""
    data = use("/base.img", Access.WRITE, "disk vda, data file 1")
    assert modes(use("/a.img", backing=(data, data)))["file:fs/2"] is Mode.EXCLUSIVE


def test_a_backing_file_that_a_commit_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live XML says that it is written; by the header of the image above it is a backing file like any other."""
    base = Layer(HostPath("/base.img"), "raw", "backing", "/base.img")
    monkeypatch.setattr(claims, "chain", lambda path, format, facts: (base,))
    written = use("/base.img", Access.WRITE, "disk vda, backing file 1")
    found = modes(use("/a.img", format="qcow2", backing=(written,)))
    assert found["file:fs/1"] is found["file:fs/2"] is Mode.EXCLUSIVE


def test_refusals_name_the_place() -> None:
    with pytest.raises(Unguardable) as leg:
        needs_of(domain(use("/dev/sdb")), FACTS)
    assert (leg.value.what, leg.value.instead) == ("disk vda", "/dev/mapper/mpatha")
    with pytest.raises(UsedByHost) as mounted:
        needs_of(domain(use("/dev/sdc")), FACTS)
    assert mounted.value.how == "mounted on /srv"
    with pytest.raises(Unresolvable) as missing:
        needs_of(domain(use("/gone")), FACTS)
    assert missing.value.what == "disk vda"


@pytest.mark.parametrize("path", ["/dev/sdb", "/dev/sdc"])
def test_reading_them_is_no_danger(path: str) -> None:
    needs_of(domain(use(path, Access.READ)), FACTS)


def test_a_directory_that_guests_share_needs_no_name_that_all_hosts_know() -> None:
    assert modes(use("/srv/", Access.SHARE, "filesystem 0"))["file:host-boot/7"] is Mode.SHARED
    for path, access in (("/srv/", Access.WRITE), ("/srv/a.img", Access.SHARE)):
        with pytest.raises(Unguardable):
            needs_of(domain(use(path, access)), FACTS)


def test_what_does_not_exist_yet_is_late() -> None:
    nvram = use("/nvram.fd", what="nvram", may_be_missing=True)
    needs = needs_of(domain(use("/a.img"), nvram), FACTS)
    assert needs.late == (nvram,)
    WORLD["/nvram.fd"] = (Storage("file:fs/9", "/nvram.fd", "file"),)
    try:
        assert [claim.identity for claim in late_needs(domain(use("/a.img"), nvram), FACTS).claims] == ["file:fs/9"]
    finally:
        del WORLD["/nvram.fd"]


def test_what_is_not_understood_is_not_let_through() -> None:
    with pytest.raises(BadDomain, match="argument 3"):
        needs_of(domain(not_understood=(NotUnderstood("qemu argument 3", "a file of options"),)), FACTS)
    with pytest.raises(BadDomain):
        needs_of(Domain("web1", "", ()), FACTS)
