# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard setup` on real hosts: from installed to guarding, again, half way, and back."""

import os
import signal
import time
from typing import Dict, Iterator, List

import pytest
from clusters import Installed
from conftest import Images, images_of
from guests import Disk, guest
from hosts import Host, eventually


@pytest.fixture
def installed() -> Iterator[Installed]:
    made = Installed("installed", hosts=2)
    try:
        made.boot()
        yield made
    finally:
        made.destroy()


@pytest.fixture
def fresh1(installed: Installed) -> Host:
    return installed.hosts[0]


@pytest.fixture
def fresh2(installed: Installed) -> Host:
    return installed.hosts[1]


@pytest.fixture
def images(installed: Installed, request: pytest.FixtureRequest) -> Iterator[Images]:
    yield from images_of(installed, request.node.name)


def words(host: Host, number: str = "", *more: str) -> List[str]:
    assert isinstance(host.cluster, Installed)
    return [*host.cluster.setup_words(number or str(host.number)), *more]


def files_of(host: Host) -> Dict[str, bytes]:
    """All that a setup may change on a host's disk."""
    found = {}
    for top in ("/etc/libvirt", "/etc/vmguard", "/etc/sanlock", "/etc/default", "/var/lib/vmguard"):
        for folder, _, names in os.walk(host.folder + top):
            for name in names:
                path = os.path.join(folder, name)
                with open(path, "rb") as file:
                    found[path[len(host.folder) :]] = file.read()
    return found


def test_installed_and_not_set_up_guards_nothing_and_says_so(fresh1: Host, fresh2: Host, images: Images) -> None:
    """An installation alone must not stop anybody's guests."""
    device = images.block("web")
    for host in (fresh1, fresh2):
        host.start(guest(f"on-{host.name}", [Disk(device, "block")]))
    done = fresh1.vmguard("status", check=False)
    assert "setup" in done.out + done.err


def test_dry_run_changes_nothing(fresh1: Host) -> None:
    before = files_of(fresh1)
    done = fresh1.vmguard(*words(fresh1, "", "--dry-run"))
    assert "lock_manager" in done.out or "lock manager" in done.out
    assert files_of(fresh1) == before
    assert not os.path.exists(fresh1.cluster.store + "/lockspace")  # type: ignore[attr-defined]


def test_set_up_twice_and_guarding(fresh1: Host, fresh2: Host, images: Images) -> None:
    for host in (fresh1, fresh2):
        host.vmguard(*words(host))
    assert "Nothing to do" in fresh1.vmguard(*words(fresh1)).out
    device = images.block("web")
    fresh1.start(guest("web1", [Disk(device, "block")]))
    text = fresh2.refused(guest("web2", [Disk(device, "block")]))
    assert "web1" in text and "node1" in text
    status = fresh1.vmguard("status")
    assert "web1" in status.out


def test_guests_run_on_through_setup(fresh1: Host, images: Images) -> None:
    """libvirtd is restarted. A guest that ran before has no leases, and `vmguard status` says so."""
    web = guest("web", [images.raw("web.img")])
    fresh1.start(web)
    pid = fresh1.qemu_pid(web)
    fresh1.vmguard(*words(fresh1))
    assert fresh1.qemu_pid(web) == pid
    eventually(lambda: fresh1.state(web) == "running", "libvirtd has it again")
    done = fresh1.vmguard("status", check=False)
    assert "web" in done.out, done


def test_remove_leaves_the_host_as_it_was(fresh1: Host, images: Images) -> None:
    before = files_of(fresh1)
    fresh1.vmguard(*words(fresh1))
    assert files_of(fresh1) != before
    web = guest("web", [images.raw("web.img")])
    fresh1.start(web)
    fresh1.destroy(web)
    fresh1.vmguard("setup", "--remove", "--yes")
    after = files_of(fresh1)
    changed = [path for path in sorted({*before, *after}) if before.get(path) != after.get(path)]
    # sanlock's name for this host is not vmguard's to take back; the hook came with the installation.
    assert not {*changed} - {"/etc/sanlock/sanlock.conf", "/etc/libvirt/hooks/qemu.d/50-vmguard"}
    fresh1.start(web)


def test_two_hosts_cannot_have_one_id(fresh1: Host, fresh2: Host) -> None:
    fresh1.vmguard(*words(fresh1, "1"))
    done = fresh2.vmguard(*words(fresh2, "1"), check=False)
    assert done.status and "host id 1" in done.err and "node1" in done.err, done
    fresh2.vmguard(*words(fresh2, "2"))


def test_automatic_ids_at_the_same_moment(fresh1: Host, fresh2: Host, images: Images) -> None:
    both = [host.spawn("vmguard", *words(host, "auto")) for host in (fresh1, fresh2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    device = images.block("web")
    fresh1.start(guest("web1", [Disk(device, "block")]))
    assert "web1" in fresh2.refused(guest("web2", [Disk(device, "block")]))


@pytest.mark.parametrize("milliseconds", [100, 200, 300, 450, 600, 900, 1500, 2500])
def test_killed_half_way_and_run_again(milliseconds: int, fresh1: Host, images: Images) -> None:
    setup = fresh1.spawn("vmguard", *words(fresh1))
    time.sleep(milliseconds / 1000)
    for pid, arguments in fresh1.processes():
        if "setup" in arguments and any(argument.endswith("/vmguard") for argument in arguments):
            fresh1.run("/bin/kill", "-KILL", str(pid), check=False)
    setup.send_signal(signal.SIGKILL)
    setup.communicate()
    if not fresh1.daemon_pid("libvirtd"):
        fresh1.start_libvirtd()  # systemd would have
    fresh1.vmguard(*words(fresh1))
    web = guest("web", [images.raw("web.img")])
    fresh1.start(web)
    assert "web" in fresh1.refused(guest("other", [images.path("web.img")]))


def test_without_sanlock(fresh1: Host) -> None:
    before = files_of(fresh1)
    fresh1.kill("sanlock")
    done = fresh1.vmguard(*words(fresh1), check=False)
    assert done.status and "sanlock" in done.err and "Traceback" not in done.err, done
    assert files_of(fresh1) == before
    fresh1.start_sanlock()
    fresh1.vmguard(*words(fresh1))


def test_a_hook_that_was_switched_off_is_mended(fresh1: Host, images: Images) -> None:
    """libvirt passes over a hook that is not executable, without a word."""
    fresh1.vmguard(*words(fresh1))
    fresh1.shell("chmod -x /etc/libvirt/hooks/qemu.d/*vmguard*")
    done = fresh1.vmguard("status", check=False)
    fresh1.vmguard(*words(fresh1))
    disk = images.raw("web.img")
    fresh1.start(guest("web", [disk]))
    assert "web" in fresh1.refused(guest("other", [disk]))
    assert "hook" in done.out + done.err, "status does not say that the hook is off"
