# SPDX-License-Identifier: LGPL-2.1-or-later
"""The rig itself, without any guard: hosts are hosts, guests run, and nothing stays behind."""

import os
import signal
import subprocess
import sys
from typing import Iterator, List

import hosts
import pytest
from clusters import Bare
from conftest import Images, images_of, portrait
from guests import Disk, count_in, guest, power_off_after, reset_after, witness
from hosts import eventually


@pytest.fixture(scope="module")
def bare() -> Iterator[Bare]:
    made = Bare("bare", hosts=2)
    try:
        made.boot()
        yield made
    finally:
        made.destroy()


@pytest.fixture
def images(bare: Bare, request: pytest.FixtureRequest) -> Iterator[Images]:
    yield from images_of(bare, request.node.name)
    for host in bare.hosts:
        host.remove_all_guests()


def test_each_host_is_somebody(bare: Bare) -> None:
    def who(host: hosts.Host) -> List[str]:
        files = [host.read(path) for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/etc/libvirt/libvirtd.conf")]
        return [host.run("hostname").out, *files]

    one, two = (who(host) for host in bare.hosts)
    assert one[0] == "node1\n" and two[0] == "node2\n"
    assert all(a != b for a, b in zip(one, two))


def test_hosts_reach_each_other(bare: Bare) -> None:
    one, two = bare.hosts
    assert two.virsh("-c", f"qemu+tcp://{one.address}/system", "uri").out.strip().startswith("qemu+tcp")


def test_a_guest_runs_and_writes(bare: Bare, images: Images) -> None:
    disk = images.raw("web.img", witness(mark=7))
    bare.hosts[0].start(guest("web", [disk]))
    eventually(lambda: count_in(disk).value > 3, "the witness counts")
    assert count_in(disk).mark == 7


def test_a_guest_switches_itself_off(bare: Bare, images: Images) -> None:
    host, off = bare.hosts[0], guest("off", [images.raw("off.img", power_off_after(ticks=9))])
    host.start(off)
    eventually(lambda: host.state(off) == "", "it is off")
    assert [call.operation for call in host.hook_calls(off)] == ["prepare", "start", "started", "stopped", "release"]


def test_a_guest_resets_itself(bare: Bare, images: Images) -> None:
    host, again = bare.hosts[0], guest("again", [images.raw("again.img", reset_after(ticks=5))])
    listener = host.spawn("virsh", "-q", "event", "--event", "reboot", "--timeout", "20")
    host.start(again)
    assert listener.wait(30) == 0, "no reboot was seen"
    assert host.state(again) == "running"


def test_a_killed_guest_is_seen(bare: Bare, images: Images) -> None:
    host, web = bare.hosts[0], guest("killed", [images.raw("web.img")])
    host.start(web)
    host.kill9(web)
    eventually(lambda: host.state(web) == "", "libvirt has seen it", within=10)
    assert [call.operation for call in host.hook_calls(web)][-2:] == ["stopped", "release"]


def test_names_reach_the_hook_whole(bare: Bare, images: Images) -> None:
    host, odd = bare.hosts[0], guest("a b'c\"d;ü$(e)\\", [images.raw("odd.img")])
    host.start(odd)
    assert [call.operation for call in host.hook_calls(odd)] == ["prepare", "start", "started"]
    assert host.spawn_count(odd) == 1


def test_a_power_cut_ends_everything_and_keeps_the_disk(bare: Bare, images: Images) -> None:
    host, web = bare.hosts[1], guest("web", [images.raw("web.img")])
    host.define(web)
    host.virsh("start", "web")
    outside = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and web.uuid.encode() in _command_line(pid)]
    assert outside
    before = host.read("/proc/sys/kernel/random/boot_id")
    host.power_cut()
    assert not any(os.path.exists(f"/proc/{pid}/exe") for pid in outside)
    host.boot()
    assert host.read("/proc/sys/kernel/random/boot_id") != before
    assert host.state(web) == "shut off"


def _command_line(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""


def test_without_a_guard_one_kernel_refuses_a_file_late_and_takes_it_from_its_owner(bare: Bare, images: Images) -> None:
    """The trap of a rig in one kernel: QEMU's locks refuse here, but only after libvirt has changed the image's owner."""
    disk = images.raw("web.img")
    first, second = bare.hosts
    first.start(guest("web1", [disk]))
    before = portrait(disk)
    other = guest("web2", [disk])
    done = second.try_start(other)
    assert done.status and "Hook script execution failed" not in done.err and 'Failed to get "write" lock' in done.err
    assert second.ever_spawned(other)
    assert portrait(disk).owner != before.owner


def test_without_a_guard_two_hosts_write_one_block_device(bare: Bare, images: Images) -> None:
    """What it is all for. The counter of the first writer jumps back to that of the second."""
    device = images.block("web", witness(mark=1))
    backing = images.path("web.backing")
    first, second = bare.hosts
    first.start(guest("web1", [Disk(device, "block")]))
    eventually(lambda: count_in(backing).value > 20, "the first one counts")
    second.start(guest("web2", [Disk(device, "block")]))
    # Both count at one speed and from one number on, which from outside may look like one. So the first stands still for
    # a while, as on a host that is busy, and then goes on from where it was.
    first.virsh("suspend", "web1")
    stood = count_in(backing).value
    eventually(lambda: count_in(backing).value > stood + 20, "the second one counts on")
    first.virsh("resume", "web1")
    eventually(lambda: count_in(backing).value < stood + 20, "the counter has gone back", every=0.002)


def test_what_a_killed_run_left_is_swept() -> None:
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from clusters import Bare\n"
        "made = Bare('killed', hosts=1); made.boot()\n"
        "open(made.shared + '/disk', 'wb').truncate(1 << 20)\n"
        "print(made.folder, made.hosts[0].pid, made.loop(made.shared + '/disk'), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, hosts.HERE], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder, pid, loop = done.stdout.split()
    eventually(lambda: not os.path.exists(f"/proc/{pid}"), "the host died with its run")
    assert os.path.isdir(folder) and folder in hosts.command("losetup", "--list")
    hosts.sweep()
    assert not os.path.exists(folder) and folder not in hosts.command("losetup", "--list")


def test_a_run_that_lives_is_not_swept(bare: Bare) -> None:
    hosts.sweep()
    script = f"import sys; sys.path.insert(0, {hosts.HERE!r}); import hosts; hosts.sweep()"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert os.path.exists(os.path.join(bare.folder, "lock"))
    assert not bare.hosts[0].virsh("list").status
