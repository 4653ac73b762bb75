# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lease that vanishes under a running guest is noticed by its host."""

import asyncio
import os
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from conftest import Pair
from sanlock_hosts import Guest
from test_giving import _begin, _this

from vmguard import config, doctor, host, relied
from vmguard.agent import standing
from vmguard.claims import Claim, Mode
from vmguard.config import Config
from vmguard.doctor.look import Look
from vmguard.errors import NotJoined, StoreBroken
from vmguard.leases import Lease, client
from vmguard.owning import hand_over


def free(pair: Pair, lease: Lease) -> None:
    client.format_lease(lease)


def removed(pair: Pair, lease: Lease) -> None:
    for folder in ("leases", "kept"):
        os.unlink(f"{pair.store.path}/{folder}/{lease.name}")


def noise(pair: Pair, lease: Lease) -> None:
    with open(lease.path, "r+b") as file:
        file.seek(lease.offset)
        file.write(b"\xa5" * 4096)
        os.fsync(file.fileno())


CASES: Dict[str, Any] = {
    "free": (free, "exclusive", "it is free there"),
    "free, shared": (free, "shared", "not among those"),
    "noise": (noise, "exclusive", "cannot read it"),
    "removed": (removed, "exclusive", "its file is gone"),
    "removed, shared": (removed, "shared", "its file is gone"),
}


@pytest.mark.parametrize("what", CASES)
def test_a_lease_that_vanishes(pair: Pair, identity: str, tmp_path: Path, what: str) -> None:
    spoil, mode, why = CASES[what]
    if spoil is removed and pair.store.kind != "directory":
        pytest.skip("a device has no files")

    def work() -> Any:
        this = _this(pair, tmp_path)
        relied._ENDS = 0.01
        claims = [
            Claim(f"{identity}/{one.value}", one, "disk vda", f"/{one.value}", "", True, cached=one is Mode.EXCLUSIVE)
            for one in Mode
        ]
        qemu = host.process(os.getppid())
        assert qemu is not None
        one = hand_over(_begin(this, *claims), qemu, this)
        assert any(want.drain for want in one.wants)
        assert relied.vanished(this.config) == []
        spoil(pair, this.store.lease(f"{identity}/{mode}"))
        found = relied.vanished(this.config)
        config.load = lambda: this.config
        said = [one.says for one in doctor.guests.leases(Look()) if one.severity is not doctor.Severity.OK]
        return [tuple(one) for one in found], said

    (found,), (said,) = pair.one.run(work)
    domain, _, path, about, text = found
    assert (domain, path, about) == ("web", f"/{mode}", f"{identity}/{mode}")
    assert why in text and said == text


def test_somebody_else_has_it(pair: Pair, identity: str, tmp_path: Path) -> None:
    other: Guest = pair.two.guest()

    def work() -> List[str]:
        this = _this(pair, tmp_path)
        relied._ENDS = 0.01
        qemu = host.process(os.getppid())
        assert qemu is not None
        hand_over(_begin(this, Claim(identity, Mode.EXCLUSIVE, "disk vda", "/d", "")), qemu, this)
        client.format_lease(this.store.lease(identity))
        other.call("acquire", this.store.lease(identity), False)
        return [one.text for one in relied.vanished(this.config)]

    (text,) = pair.one.run(work)
    assert "held by two, at version 1 instead of 1" in text
    other.kill()


def test_the_agent_tells_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: List[Any] = []
    vanished = relied.Vanished("web", "u-u", "/d", "file:x", "the lease of /d is not on the disk")
    rounds: List[Any] = [[vanished], [vanished], StoreBroken("/s", "it is missing"), NotJoined("l", False), [vanished]]
    monkeypatch.setattr(standing, "_RELIED_EVERY", 0.0)

    async def child(work: Callable[[], None], seconds: float, heard: Callable[[Any], None]) -> Any:
        if not rounds:
            raise asyncio.CancelledError
        monkeypatch.setattr(relied.deadline, "tell", heard)
        work()
        return standing.work.Ended(True)

    def found(_: Config) -> List[relied.Vanished]:
        this = rounds.pop(0)
        if isinstance(this, Exception):
            raise this
        return list(this)

    monkeypatch.setattr(relied, "vanished", found)

    monkeypatch.setattr(standing.work, "child", child)
    made = standing.Standing(
        lambda event, text, **data: said.append((event, text, data["path"])), lambda _: None, lambda: Config(), list, ""
    )
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(made.rely())
    assert [(event, path) for event, _, path in said] == [("alarm", "/d"), ("alarm", "/s"), ("alarm", "/d")]
    assert said[0][1].endswith(relied.REMEDY) and "it is missing" in said[1][1]

