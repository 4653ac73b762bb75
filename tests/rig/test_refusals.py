# SPDX-License-Identifier: LGPL-2.1-or-later
"""
What must not start does not: on the other host or the same, by whatever path the disk is named.

Each refusal falls in libvirt's `prepare` hook: QEMU was not started, the image is untouched, and the words say who has it.
"""

import os
import re
import subprocess
from typing import Callable, Dict, Iterator, List

import pytest
from conftest import Images, portrait
from guests import Disk, count_in, guest, witness
from hosts import Host, eventually


def assert_says(words: str, holder: str, host: str, path: str) -> None:
    """The domain, the host and the path that hold it, since when, and what to do."""
    assert holder in words and host in words and path in words, words
    assert re.search(r"since \d{4}-\d\d-\d\d|since \d", words), words
    assert "do:" in words, words


def test_second_host_is_refused(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    first = guest("web1", [disk])
    node1.start(first)
    before = portrait(disk)
    second = guest("web2", [disk])
    words = node2.refused(second)
    assert_says(words, "web1", "node1", disk)
    assert "web2" in words
    assert portrait(disk) == before
    assert not node2.runs(second)
    assert node1.state(first) == "running"


def test_a_refused_start_leaves_nothing(node1: Host, node2: Host, images: Images) -> None:
    """After ten refusals the refused host has no lease and no record, and the holder's lease is the one it was."""
    disk = images.raw("web.img")
    node1.start(guest("web1", [disk]))
    held = sorted(node1.leases())
    for _ in range(10):
        node2.refused(guest("web2", [disk]))
    assert node2.leftovers() == []
    assert sorted(node1.leases()) == held


def test_the_writer_goes_on_while_others_are_refused(node1: Host, node2: Host, images: Images) -> None:
    """The independent witness: one writer, a counter that only grows."""
    disk = images.raw("web.img", witness(mark=1))
    node1.start(guest("web1", [disk]))
    eventually(lambda: count_in(disk).value > 5, "it counts")
    seen = []
    for _ in range(5):
        node2.refused(guest("web2", [disk]))
        seen.append(count_in(disk))
    assert [count.value for count in seen] == sorted(count.value for count in seen)
    assert {count.mark for count in seen} == {1}


# -- other names for one disk ------------------------------------------------------------------------------------------


def a_symlink(host: Host, disk: str) -> str:
    os.symlink(disk, disk + ".link")
    return disk + ".link"


def a_hard_link(host: Host, disk: str) -> str:
    os.link(disk, disk + ".hard")
    return disk + ".hard"


def a_bind_mount(host: Host, disk: str) -> str:
    other = disk + ".bound"
    open(other, "w").close()
    host.run("mount", "--bind", disk, other)
    return other


def a_bind_mounted_folder(host: Host, disk: str) -> str:
    folder = os.path.dirname(disk) + "/elsewhere"
    os.mkdir(folder)
    host.run("mount", "--bind", os.path.dirname(disk), folder)
    return os.path.join(folder, os.path.basename(disk))


def a_double_slash(host: Host, disk: str) -> str:
    return "/" + disk.replace("/", "//", 3)


def a_way_up_and_down(host: Host, disk: str) -> str:
    folder = os.path.dirname(disk)
    return f"{folder}/../{os.path.basename(folder)}/./{os.path.basename(disk)}"


def through_proc(host: Host, disk: str) -> str:
    return "/proc/1/root" + disk


def renamed_meanwhile(host: Host, disk: str) -> str:
    os.rename(disk, disk + ".old")
    return disk + ".old"


WAYS = [
    a_symlink, a_hard_link, a_bind_mount, a_bind_mounted_folder, a_double_slash, a_way_up_and_down, through_proc,
    renamed_meanwhile,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_by_another_path(way: Callable[[Host, str], str], node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    node1.start(guest("web1", [disk]))
    other = way(node2, disk)
    before = portrait(other if way is renamed_meanwhile else disk)
    try:
        assert_says(node2.refused(guest("web2", [other])), "web1", "node1", disk)
        assert portrait(other if way is renamed_meanwhile else disk) == before
    finally:
        node2.run("umount", other, check=False)
        node2.run("umount", os.path.dirname(other), check=False)


@pytest.mark.parametrize("offset", [0, 1024 * 1024], ids=["whole", "with_an_offset"])
def test_through_a_loop_device(offset: int, node1: Host, node2: Host, images: Images) -> None:
    """A loop device is the file behind it; a part of a file is a part of what the other guest writes."""
    disk = images.raw("web.img", size=4 << 20)
    node1.start(guest("web1", [disk]))
    device = node2.cluster.loop(disk, "--offset", str(offset))
    words = node2.refused(guest("web2", [Disk(device, "block")]))
    assert "web1" in words and "node1" in words


def test_a_file_whose_loop_device_is_in_use(node1: Host, node2: Host, images: Images) -> None:
    device = images.block("web")
    node1.start(guest("web1", [Disk(device, "block")]))
    words = node2.refused(guest("web2", [images.path("web.backing")]))
    assert "web1" in words and "node1" in words


def test_block_device_with_a_node_on_each_host(node1: Host, node2: Host, images: Images) -> None:
    """As across real hosts: QEMU's own locks would let the second one in."""
    device = images.block("web")
    node1.start(guest("web1", [Disk(device, "block")]))
    assert_says(node2.refused(guest("web2", [Disk(device, "block")])), "web1", "node1", device)


def test_a_clone_on_the_same_host(node1: Host, images: Images) -> None:
    disk = images.raw("web.img")
    node1.start(guest("web1", [disk]))
    before = portrait(disk)
    assert_says(node1.refused(guest("web2", [disk])), "web1", "node1", disk)
    assert portrait(disk) == before


def test_one_uuid_runs_once_whatever_it_is_called(node1: Host, node2: Host, images: Images) -> None:
    first = guest("web", [images.raw("a.img")])
    node1.start(first)
    words = node2.refused(guest("other", [images.raw("b.img")], uuid=first.uuid))
    assert "web" in words and "node1" in words and "do:" in words


def test_one_of_many_disks_is_enough(node1: Host, node2: Host, images: Images) -> None:
    """And the free ones among them stay free."""
    disks = [images.raw(f"{letter}.img") for letter in "abcdefghij"]
    node1.start(guest("web1", [disks[7]]))
    assert_says(node2.refused(guest("web2", disks)), "web1", "node1", disks[7])
    node1.start(guest("web3", disks[:7] + disks[8:]))


def test_a_disk_named_twice_in_one_domain(node1: Host, images: Images) -> None:
    disk = images.raw("web.img")
    os.link(disk, disk + ".again")
    assert "twice" in node1.refused(guest("web", [disk, disk + ".again"]))


# -- chains ------------------------------------------------------------------------------------------------------------


def test_an_overlay_on_what_another_guest_writes(node1: Host, node2: Host, images: Images) -> None:
    base = images.raw("base.img")
    overlay = images.qcow2("overlay.qcow2", backing=base)
    node1.start(guest("writer", [base]))
    words = node2.refused(guest("reader", [Disk(overlay, format="qcow2")]))
    assert_says(words, "writer", "node1", base)


def test_writing_a_base_that_overlays_use(node1: Host, node2: Host, images: Images) -> None:
    base = images.raw("base.img")
    middle = images.qcow2("middle.qcow2", backing=base)
    top = images.qcow2("top.qcow2", backing=middle, backing_format="qcow2")
    node1.start(guest("reader", [Disk(top, format="qcow2")]))
    for layer, form in ((base, "raw"), (middle, "qcow2")):
        words = node2.refused(guest("writer", [Disk(layer, format=form)]))
        assert "reader" in words and "node1" in words


def test_a_chain_that_only_the_images_know(node1: Host, node2: Host, images: Images) -> None:
    """A relative name in the image's header, and a symbolic link in it."""
    base = images.raw("base.img")
    os.symlink("base.img", images.path("link.img"))
    overlay = images.path("overlay.qcow2")
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "link.img", "-F", "raw", "overlay.qcow2"]
    subprocess.run(create, cwd=images.folder, check=True)
    node1.start(guest("writer", [base]))
    assert "writer" in node2.refused(guest("reader", [Disk(overlay, format="qcow2")]))


def test_reading_what_another_guest_writes(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    node1.start(guest("writer", [disk]))
    assert "writer" in node2.refused(guest("reader", [Disk(disk, readonly=True)]))


def test_writing_what_another_guest_reads(node1: Host, node2: Host, images: Images) -> None:
    iso = images.raw("tools.iso")
    node1.start(guest("reader", [images.raw("own.img"), Disk(iso, readonly=True, device="cdrom")]))
    assert "reader" in node2.refused(guest("writer", [iso]))


def test_sharing_needs_both_to_share(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("quorum.img")
    node1.start(guest("sharing", [Disk(disk, shareable=True)]))
    assert "sharing" in node2.refused(guest("alone", [disk]))


# -- not only disks ----------------------------------------------------------------------------------------------------


def nvram(path: str) -> Dict[str, str]:
    loader = "<loader readonly='yes' type='pflash'>/usr/share/seabios/bios-256k.bin</loader>"
    return {"os_extra": f"{loader}<nvram>{path}</nvram>"}


def test_an_nvram_file(node1: Host, node2: Host, images: Images) -> None:
    variables = images.raw("web_VARS.fd", size=128 * 1024)
    node1.start(guest("web1", [images.raw("a.img")], **nvram(variables)))  # type: ignore[arg-type]
    words = node2.refused(guest("web2", [images.raw("b.img")], **nvram(variables)))  # type: ignore[arg-type]
    assert_says(words, "web1", "node1", variables)
    assert "nvram" in words


def test_an_nvram_file_as_a_disk(node1: Host, node2: Host, images: Images) -> None:
    variables = images.raw("web_VARS.fd", size=128 * 1024)
    node1.start(guest("web1", [images.raw("a.img")], **nvram(variables)))  # type: ignore[arg-type]
    assert "web1" in node2.refused(guest("web2", [variables]))


@pytest.fixture
def swtpm(node2: Host) -> Iterator[None]:
    """
    libvirt asks the program for TPMs what it can do before it calls a hook. Where there is none, this says it can.
    A guest with a TPM would not run by it, and in these tests none does.
    """
    if not node2.run("sh", "-c", "command -v swtpm", check=False).status:
        yield
        return
    programs = {"swtpm": "swtpm", "swtpm_setup": "swtpm_setup", "swtpm_ioctl": "swtpm_ioctl"}
    for program, kind in programs.items():
        answer = f'{{"type": "{kind}", "features": ["tpm-1.2", "tpm-2.0", "tpm12-not-need-root"]}}'
        node2.write(f"/usr/local/bin/{program}", f"#!/bin/sh\necho '{answer}'\n")
        node2.run("chmod", "755", f"/usr/local/bin/{program}")
    yield
    for program in programs:
        node2.run("rm", "-f", f"/usr/local/bin/{program}", check=False)


def test_a_tpm_state(swtpm: None, node1: Host, node2: Host, images: Images) -> None:
    """The folder of a guest's TPM lies on shared storage, and another guest has it as a shared folder."""
    state = images.path("tpm")
    os.makedirs(state + "/tpm2")
    share = f"<filesystem type='mount' accessmode='mapped'><source dir='{state}'/><target dir='t'/></filesystem>"
    node1.start(guest("web1", [images.raw("a.img")], devices=share))
    tpm = guest("web2", [images.raw("b.img")], devices="<tpm model='tpm-tis'><backend type='emulator' version='2.0'/></tpm>")
    place = f"/var/lib/libvirt/swtpm/{tpm.uuid}"
    node2.run("mkdir", "-p", os.path.dirname(place))
    node2.run("ln", "-s", state, place)
    # Defined: libvirt deletes the TPM state of a transient guest whose start failed, whoever else has it.
    words = node2.refused(tpm, defined=True)
    node2.run("rm", place)
    assert "tpm" in words and "web1" in words and "node1" in words


def test_a_pool_volume(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    node1.start(guest("web1", [disk]))
    node2.virsh("pool-create-as", "pool1", "dir", "--target", images.folder)
    try:
        assert_says(node2.refused(guest("web2", [Disk("web.img", pool="pool1")])), "web1", "node1", disk)
    finally:
        node2.virsh("pool-destroy", "pool1")


def test_a_pool_volume_is_held_too(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    node1.virsh("pool-create-as", "pool1", "dir", "--target", images.folder)
    try:
        node1.start(guest("web1", [Disk("web.img", pool="pool1")]))
        words = node2.refused(guest("web2", [disk]))
        assert "web1" in words and "node1" in words
    finally:
        node1.remove_all_guests()
        node1.virsh("pool-destroy", "pool1")


ARGUMENTS = {
    "drive": lambda path: ["-drive", f"file={path},format=raw,if=none,id=x"],
    "blockdev": lambda path: ["-blockdev", f"driver=raw,node-name=x,file.driver=file,file.filename={path}"],
    "blockdev_json": lambda path: ["-blockdev", f'{{"driver":"file","node-name":"x","filename":"{path}"}}'],
    "hda": lambda path: ["-hdb", path],
}


@pytest.mark.parametrize("form", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_a_disk_named_only_in_qemu_arguments(form: Callable[[str], List[str]], node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("web.img")
    node1.start(guest("web1", [disk]))
    words = node2.refused(guest("web2", [images.raw("b.img")], arguments=form(disk)))
    assert "web1" in words and "node1" in words


def test_what_cannot_be_understood_is_refused_in_other_words(node1: Host, images: Images) -> None:
    words = node1.refused(guest("web", [images.raw("a.img")], arguments=["-readconfig", "/etc/qemu.conf"]))
    assert "cannot tell" in words and "in use" not in words


def test_a_log_file(node1: Host, node2: Host, images: Images) -> None:
    """A character device writes as a disk does."""
    disk = images.raw("web.img")
    node1.start(guest("web1", [disk]))
    serial = f"<serial type='file'><source path='{disk}'/></serial>"
    assert "web1" in node2.refused(guest("web2", [images.raw("b.img")], devices=serial))


# -- names -------------------------------------------------------------------------------------------------------------

NAMES = {
    "blanks": "my web server",
    "quotes": "it's \"the\" `web`",
    "umlauts": "Grüße-от-世界",
    "shell": "$(touch pwned); touch pwned #",
    "option": "--help",
    "xml": "<a>&amp;&lt;",
    "long": "w" * 200,
    "json": '{"a":"\\u0000"}',
    "percent": "%s%n%d{name}",
    "tab": "a\tb",
    "line_end": "a\nvmguard: all is well",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names_of_all_kinds(name: str, node1: Host, node2: Host, images: Images) -> None:
    """As the one who holds, and as the one who is refused; the words stay readable."""
    disk = images.raw("web.img")
    holder = guest(name, [disk])
    node1.start(holder)
    words = node2.refused(guest("plain", [disk]))
    # Quoted, so that nobody takes the name for words of ours: with \\" for ", and line ends and tabs as \\n and \\t.
    assert re.sub(r"\\([\"\\])", r"\1", words).find(name.splitlines()[0].split("\t")[0]) > 0, words
    assert "node1" in words
    assert len(words.splitlines()) == 4, "the name broke the lines of the refusal"
    node1.destroy(holder)
    node2.start(guest("plain", [disk]))
    words = node1.refused(guest(name, [disk]))
    assert "plain" in words and "node2" in words
    assert not os.path.exists(node1.path("/pwned")) and not os.path.exists(node2.path("/pwned"))


def test_an_image_with_a_name_of_all_kinds(node1: Host, node2: Host, images: Images) -> None:
    disk = images.raw("a 'b' \"c\" ü $(touch pwned) <&>,=.img")
    node1.start(guest("web1", [disk]))
    words = node2.refused(guest("web2", [disk]))
    assert "web1" in words and "node1" in words


def test_a_disk_that_is_mounted_on_the_host(node1: Host, images: Images) -> None:
    disk = images.raw("fs.img", size=16 << 20)
    node1.run("mkfs.ext4", "-q", "-F", disk)
    device = node1.cluster.loop(disk)
    place = images.path("mnt")
    os.mkdir(place)
    node1.run("mount", device, place)
    try:
        words = node1.refused(guest("web", [Disk(device, "block")]))
        assert "mounted" in words and place in words
    finally:
        node1.run("umount", place)


def test_a_missing_image_is_no_disk_in_use(node1: Host, images: Images) -> None:
    words = node1.refused(guest("web", [images.path("nowhere.img")]))
    assert "cannot tell" in words and "nowhere.img" in words


def test_hotplugged_disks_are_not_given_away_at_the_end(node1: Host, node2: Host, images: Images) -> None:
    """A disk that came by hotplug shows up in the XML of `release`: another guest's lease on it must stay."""
    theirs, own = images.block("theirs"), images.raw("own.img")
    node2.start(guest("theirs", [Disk(theirs, "block")]))
    mine = guest("mine", [own])
    node1.start(mine)
    plugged = Disk(theirs, "block").xml("vdb")
    node1.virsh("attach-device", mine.uuid, "/dev/stdin", stdin=plugged)
    node1.destroy(mine)
    words = node1.refused(guest("again", [Disk(theirs, "block")]))
    assert "theirs" in words and "node2" in words
