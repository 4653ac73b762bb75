# SPDX-License-Identifier: LGPL-2.1-or-later
"""The audit's monitor, with the real libudev and pyudev, on devices and events that umockdev makes."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import pytest

ROOT = Path(__file__).resolve().parents[2]
WRAPPER = shutil.which("umockdev-wrapper")

# In a process of its own: umockdev stands between it and /sys.
SCRIPT = """
import asyncio, ctypes, json, os, sys, time
sys.path.insert(0, sys.argv[1])
from vmguard import instance, paths
from vmguard.audit import monitor
from vmguard.claims import Claim, Mode
from vmguard.host import Process
from vmguard.instance import Instance, Want

mock = ctypes.CDLL("libumockdev.so.0")
mock.umockdev_testbed_new.restype = ctypes.c_void_p
bed = ctypes.c_void_p(mock.umockdev_testbed_new())

def add(number, name, uuid):
    text = f"P: /devices/virtual/block/dm-{number}\\nN: dm-{number}\\nE: DEVNAME=/dev/dm-{number}\\nE: DEVTYPE=disk\\n"
    text += f"E: MAJOR=253\\nE: MINOR={number}\\nE: SUBSYSTEM=block\\nE: DM_NAME={name}\\nE: DM_UUID={uuid}\\n"
    text += f"A: dev=253:{number}\\\\n\\nA: size=2048\\\\n\\nA: dm/name={name}\\\\n\\nA: dm/uuid={uuid}\\\\n\\n"
    error = ctypes.c_void_p()
    assert mock.umockdev_testbed_add_from_string(bed, text.encode(), ctypes.byref(error)), "not added"

def happens(number, action):
    mock.umockdev_testbed_uevent(bed, f"/sys/devices/virtual/block/dm-{number}".encode(), action.encode())

def put(number, name, value):
    mock.umockdev_testbed_set_attribute(
        bed, f"/sys/devices/virtual/block/dm-{number}".encode(), name.encode(), value.encode())

paths.RUN = sys.argv[2]
told = []
add(4, "vg-web", "LVM-aabb")
claim = Claim("lvm:a/b", Mode.EXCLUSIVE, "disk vda", "/dev/vg/web", "the guest may write it", device="253:4")
instance.write(Instance("i", "u", "web", "", Process(1, 1), "running", (Want(claim),), time.time()))

async def until(word):
    for _ in range(500):
        if any(one["event"] == word for one in told):
            return
        await asyncio.sleep(0.01)
    raise SystemExit(f"{word} was not told: {told}")

async def main():
    watch = monitor.Monitor(lambda event, text, **data: told.append({"event": event, **data}), lambda _: True)
    watch.start()
    assert watch._udev is not None
    put(4, "size", "4096\\n")
    happens(4, "change")
    await until("resized")
    add(9, "vg-web-real", "LVM-aabb-real")
    happens(9, "add")
    await until("snapshotted")
    watch.stop()

asyncio.run(main())
print(json.dumps(told), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(WRAPPER is None, reason="needs umockdev")
def test_events_of_udev_arrive(tmp_path: Path) -> None:
    pytest.importorskip("pyudev")
    done = subprocess.run(
        [str(WRAPPER), "/usr/bin/python3", "-I", "-c", SCRIPT, str(ROOT), str(tmp_path / "run")],
        capture_output=True, text=True, timeout=120, env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    told: List[Dict[str, Any]] = json.loads(done.stdout)
    # umockdev tells of what is added by itself.
    assert list(dict.fromkeys(one["event"] for one in told)) == ["watching", "resized", "snapshotted"]
    assert told[1]["size"] == 4096 * 512 and told[1]["domain"] == "web"


