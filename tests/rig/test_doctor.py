# SPDX-License-Identifier: LGPL-2.1-or-later
"""`vmguard doctor` on real hosts: what is broken for it, it names; what it mends, guards again."""

import json
from typing import Any, Callable, Dict, List, Tuple

import pytest
from clusters import Installed
from conftest import Images, images_of
from guests import guest
from hosts import Host, eventually
from test_setup import fresh1, fresh2, installed, words  # noqa: F401

HOOK = "/etc/libvirt/hooks/qemu.d/50-vmguard"

# What no host of the rig has: a watchdog, systemd with its units.
RIG = {"watchdog", "boot", "host-name", "agent"}


@pytest.fixture
def images(installed: Installed, request: pytest.FixtureRequest) -> Any:  # noqa: F811
    yield from images_of(installed, request.node.name)


def findings(host: Host, *options: str) -> Tuple[int, Dict[str, Any]]:
    done = host.vmguard("doctor", "--json", *options, check=False, within=120)
    assert "Traceback" not in done.err, done
    report: Dict[str, Any] = json.loads(done.out)
    assert not [each for each in report["findings"] if "error in vmguard itself" in each["says"]], report
    return done.status, report


def red(report: Dict[str, Any]) -> List[str]:
    return [each["check"] for each in report["findings"] if each["severity"] == "error"]


def test_not_set_up(fresh1: Host) -> None:  # noqa: F811
    status, report = findings(fresh1)
    assert status == 2 and red(report) == ["configuration"]
    assert "vmguard setup" in next(each["fix"] for each in report["findings"] if each["check"] == "configuration")


def test_broken_one_by_one_and_mended(fresh1: Host, fresh2: Host, images: Images) -> None:  # noqa: F811
    fresh1.vmguard(*words(fresh1))
    fresh2.vmguard(*words(fresh2))
    web = guest("web", [images.raw("web.img")])
    fresh1.start(web)
    fresh1.write("/run/free.xml", guest("free", [images.raw("free.img")]).xml)
    status, report = findings(fresh1)
    assert not red(report), report
    notgreen = {each["check"] for each in report["findings"] if each["severity"] != "ok"}
    assert notgreen <= RIG | {"denials"}, report
    assert all(each["fix"] for each in report["findings"] if each["severity"] in ("warning", "error"))

    sanlock_conf = fresh1.read("/etc/libvirt/qemu-sanlock.conf")
    own = fresh1.read("/etc/vmguard/vmguard.conf.d/10-setup.conf")

    def restore(path: str, text: str) -> Callable[[], None]:
        return lambda: fresh1.write(path, text)

    breaks: List[Tuple[str, str, Callable[[], None], bool]] = [
        ("hook", f"chmod -x {HOOK}", lambda: None, True),
        ("hook", f"rm {HOOK}", lambda: None, True),
        ("hook", f"echo '# older' >>{HOOK}", lambda: None, True),
        ("hook-alone", f"cp -p {HOOK} {HOOK}.bak", lambda: fresh1.shell(f"rm {HOOK}.bak"), False),
        (
            "register-only", "echo 'auto_disk_leases = 1' >/etc/libvirt/qemu-sanlock.conf",
            restore("/etc/libvirt/qemu-sanlock.conf", sanlock_conf), True,
        ),
        ("configuration", "echo nonsense >/etc/vmguard/vmguard.conf.d/50-x.conf",
         lambda: fresh1.shell("rm /etc/vmguard/vmguard.conf.d/50-x.conf"), False),
        ("mode", "printf '[guard]\\nmode = audit\\n' >/etc/vmguard/vmguard.conf.d/50-x.conf",
         lambda: fresh1.shell("rm /etc/vmguard/vmguard.conf.d/50-x.conf"), False),
        ("guests", f"mv {HOOK} /run/50; virsh -q create /run/free.xml; mv /run/50 {HOOK}", lambda: None, True),
        ("hook-library", f"mv {library(fresh1)}/vmguard/hook.py /run/hook.py",
         lambda: fresh1.shell(f"mv /run/hook.py {library(fresh1)}/vmguard/hook.py"), False),
    ]  # fmt: skip
    for check, how, undo, mendable in breaks:
        fresh1.shell(how)
        status, report = findings(fresh1)
        assert status == 2 and check in red(report), (how, report)
        if mendable:
            status, report = findings(fresh1, "--fix")
            assert check not in red(report), (how, report)
            assert check in [each["check"] for each in report["mended"]], (how, report)
        undo()
        status, report = findings(fresh1)
        # What libvirt has not looked for since it was mended, it is told of.
        assert not set(red(report)) - {"hook-seen"}, (how, report)
        findings(fresh1, "--fix")
    assert fresh1.read("/etc/vmguard/vmguard.conf.d/10-setup.conf") == own
    assert "in use" in fresh1.refused(guest("other", [images.path("web.img")]))
    assert fresh1.runs(web)


def library(host: Host) -> str:
    line = next(line for line in host.read(HOOK).splitlines() if line.startswith("library="))
    return line.split("'")[1]


def test_everything_is_down(fresh1: Host) -> None:  # noqa: F811
    """No daemon, no store: it says so, and says it in time."""
    fresh1.vmguard(*words(fresh1))
    for daemon in ("libvirtd", "sanlock"):
        fresh1.kill(daemon)
    store = fresh1.cluster.store  # type: ignore[attr-defined]
    fresh1.shell(f"mount -t tmpfs tmpfs {store}")
    status, report = findings(fresh1)
    assert status == 2 and {"sanlock", "store"} <= set(red(report)), report
    assert findings(fresh1, "--fix")[0] == 2
    fresh1.shell(f"umount {store}")


def test_frozen_sanlock(fresh1: Host) -> None:  # noqa: F811
    """A daemon that hangs costs the checks that ask it, and no other."""
    fresh1.vmguard(*words(fresh1))
    with fresh1.frozen("sanlock"):
        done = fresh1.vmguard("doctor", "--json", check=False, within=300)
    report = json.loads(done.out)
    by = {each["check"]: each["severity"] for each in report["findings"]}
    assert by["sanlock"] == "unknown" and by["hook"] == "ok", report


def test_not_a_member(fresh1: Host, fresh2: Host, images: Images) -> None:  # noqa: F811
    fresh1.vmguard(*words(fresh1))
    fresh1.vmguard("leave")
    status, report = findings(fresh1)
    assert red(report) == ["membership"], report
    status, report = findings(fresh1, "--fix")
    assert not red(report), report
    fresh1.start(guest("web", [images.raw("web.img")]))


def test_hook_that_libvirt_has_not_seen(fresh1: Host, images: Images) -> None:  # noqa: F811
    """There was none when its daemon started: it would never call it."""
    fresh1.vmguard(*words(fresh1))
    fresh1.shell("mv /etc/libvirt/hooks/qemu.d /etc/libvirt/away")
    fresh1.restart_libvirtd()
    fresh1.shell(f"mv /etc/libvirt/away /etc/libvirt/hooks/qemu.d; touch {HOOK}; rm -f /run/vmguard/hook-seen")
    status, report = findings(fresh1)
    assert "hook-seen" in red(report), report
    status, report = findings(fresh1, "--fix")
    assert not red(report), report
    disk = images.raw("web.img")
    fresh1.start(guest("web", [disk]))
    assert "web" in fresh1.refused(guest("other", [disk]))
    eventually(lambda: not fresh1.virsh("list", check=False).status, "libvirt answers")
