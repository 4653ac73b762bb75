# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration: read, checked, never guessed."""

import json
import os
from pathlib import Path
from typing import Any, Dict

import pytest

from vmguard import config, paths
from vmguard.config import Config, Guarding, WithoutWatchdog
from vmguard.errors import Misconfigured

STORE = "[store]\npath = /srv/leases\ncluster = 00ff\nhost_id = 12\n"


class Etc:
    """A host's configuration, in a folder of the test's."""

    def __init__(self, folder: Path) -> None:
        self.main = folder / "vmguard.conf"
        self.parts = folder / "vmguard.conf.d"
        self.state = folder / "state"
        self.parts.mkdir()
        self.state.mkdir()

    def record(self, **fields: Any) -> None:
        whole: Dict[str, Any] = {"cluster": "00ff", "store": "/srv/leases", "host_id": 12, **fields}
        (self.state / "host.json").write_text(json.dumps(whole))


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Etc:
    etc = Etc(tmp_path)
    monkeypatch.setattr(paths, "CONFIG", str(etc.main))
    monkeypatch.setattr(paths, "CONFIG_DIR", str(etc.parts))
    monkeypatch.setattr(paths, "STATE", str(etc.state))
    return etc


def test_never_set_up(etc: Etc) -> None:
    assert config.load() == Config()
    assert config.load().store is None
    assert config.load().mode == "enforce"
    assert not config.set_up()


def test_shipped_file_is_all_defaults(etc: Etc) -> None:
    shipped = Path(__file__).resolve().parents[2] / "conf" / "vmguard.conf"
    etc.main.write_text(shipped.read_text())
    assert config.load() == Config()


def test_every_key_of_the_shipped_file_is_known(etc: Etc) -> None:
    shipped = Path(__file__).resolve().parents[2] / "conf" / "vmguard.conf"
    text = "".join(
        line[1:] if line.startswith("#") and line[1:2].islower() and "=" in line else line
        for line in shipped.read_text().splitlines(keepends=True)
    )
    etc.main.write_text(text.replace("cluster =", "cluster = 00ff").replace("host_id =", "host_id = 3"))
    assert config.load() == Config(store="/var/lib/vmguard/store", cluster="00ff", host_id=3)


def test_everything(etc: Etc) -> None:
    etc.main.write_text(
        "# a comment\n[guard]\nmode = audit\ndeadline = 2.5\n"
        + STORE
        + "shared = yes\nsingle_host = yes\nio_timeout = 5\n[leases]\nwithout_watchdog = accept\n"
    )
    assert config.load() == Config(
        Guarding.AUDIT, 2.5, "/srv/leases", "00ff", 12, True, True, 5, WithoutWatchdog.ACCEPT
    )
    assert config.set_up()


def test_later_file_wins_key_by_key(etc: Etc) -> None:
    etc.main.write_text("[guard]\nmode = off\ndeadline = 30\n")
    (etc.parts / "50-b.conf").write_text("[guard]\nmode = enforce\n")
    (etc.parts / "10-a.conf").write_text("[guard]\nmode = audit\n[store]\nio_timeout = 3\n")
    found = config.load()
    assert (found.mode, found.deadline, found.io_timeout) == (Guarding.ENFORCE, 30, 3)


def test_others_files_are_not_read(etc: Etc) -> None:
    for name in (".10-setup.conf", ".10-setup.conf.vmguard-new", "10-setup.conf~", "10-setup.conf.rpmsave", "README"):
        (etc.parts / name).write_text("nonsense")
    assert config.load() == Config()


@pytest.mark.parametrize(
    "text, where",
    [
        pytest.param("[gaurd]\nmode = off\n", "[gaurd]", id="unknown-section"),
        pytest.param("[gaurd]\n", "[gaurd]", id="unknown-empty-section"),
        pytest.param("[DEFAULT]\nmode = off\n", "[DEFAULT]", id="default-section"),
        pytest.param("[guard]\nmoed = off\n", "[guard] moed", id="unknown-key"),
        pytest.param("[guard]\nMode = off\n", "[guard] Mode", id="key-in-capitals"),
        pytest.param("[store]\nmode = off\n", "[store] mode", id="key-of-another-section"),
        pytest.param("[guard]\nmode = Off\n", "[guard] mode", id="unknown-word"),
        pytest.param("[guard]\nmode =\n", "[guard] mode", id="no-value"),
        pytest.param("[guard]\nmode = off\n  audit\n", "[guard] mode", id="value-of-two-lines"),
        pytest.param("[guard]\nmode = off # for now\n", "[guard] mode", id="comment-behind-value"),
        pytest.param("[guard]\nmode\n", "line 2", id="no-equals-sign"),
        pytest.param("mode = off\n", "line 1", id="no-section"),
        pytest.param("[guard]\nmode = off\nmode = audit\n", "line 3", id="key-twice"),
        pytest.param("[guard]\n[store]\n[guard]\n", "line 3", id="section-twice"),
        pytest.param("[guard]\ndeadline = 1.9\n", "[guard] deadline", id="deadline-too-short"),
        pytest.param("[guard]\ndeadline = 301\n", "[guard] deadline", id="deadline-too-long"),
        pytest.param("[guard]\ndeadline = nan\n", "[guard] deadline", id="deadline-nan"),
        pytest.param("[guard]\ndeadline = 1e2\n", "[guard] deadline", id="deadline-exponent"),
        pytest.param("[store]\nhost_id = 0\n", "[store] host_id", id="host-id-zero"),
        pytest.param("[store]\nhost_id = 2001\n", "[store] host_id", id="host-id-too-large"),
        pytest.param("[store]\nhost_id = 1_0\n", "[store] host_id", id="host-id-underscore"),
        pytest.param("[store]\nhost_id = \u0663\n", "[store] host_id", id="host-id-arabic"),
        pytest.param("[store]\nhost_id = " + "9" * 5000 + "\n", "[store] host_id", id="host-id-huge"),
        pytest.param("[store]\npath = leases\n", "[store] path", id="path-relative"),
        pytest.param("[store]\npath = /srv/a b\n", "[store] path", id="path-blank"),
        pytest.param("[store]\npath = /srv/a:b\n", "[store] path", id="path-colon"),
        pytest.param("[store]\npath = /srv/\\a\n", "[store] path", id="path-backslash"),
        pytest.param("[store]\npath = /srv/\u00e4\n", "[store] path", id="path-not-ascii"),
        pytest.param("[store]\npath = /srv/../a\n", "[store] path", id="path-dots"),
        pytest.param("[store]\npath = /" + "a" * 900 + "\n", "[store] path", id="path-too-long"),
        pytest.param("[store]\ncluster = XY\n", "[store] cluster", id="cluster-not-hex"),
        pytest.param("[store]\nshared = true\n", "[store] shared", id="not-yes-or-no"),
        pytest.param("[store]\npath = /srv/leases\n", "[store]", id="store-without-id"),
        pytest.param("[store]\ncluster = 00ff\nhost_id = 1\n", "[store]", id="id-without-store"),
        pytest.param("[guard]\nmode = o\0ff\n", "line 2", id="nul"),
        pytest.param("[guard]\n" + "#" * 65536, "vmguard.conf", id="too-large"),
        pytest.param("\ufeff[guard]\n", "line 1", id="byte-order-mark"),
    ],
)
def test_wrong(etc: Etc, text: str, where: str) -> None:
    etc.main.write_text(text, encoding="utf-8")
    with pytest.raises(Misconfigured) as caught:
        config.load()
    assert caught.value.where.startswith(str(etc.main))
    assert where in caught.value.where
    assert caught.value.why
    assert len(caught.value.why) < 300


def test_not_utf8(etc: Etc) -> None:
    etc.main.write_bytes(b"[guard]\n# caf\xe9\n")
    with pytest.raises(Misconfigured, match="line 2"):
        config.load()


def test_pipe_in_place_of_the_file(etc: Etc) -> None:
    os.mkfifo(etc.main)
    with pytest.raises(Misconfigured, match="regular file"):
        config.load()


def test_directory_in_place_of_the_file(etc: Etc) -> None:
    etc.main.mkdir()
    with pytest.raises(Misconfigured, match="regular file"):
        config.load()


def test_link_to_nothing(etc: Etc) -> None:
    (etc.parts / "10-setup.conf").symlink_to("/nonexistent/file")
    with pytest.raises(Misconfigured, match="link"):
        config.load()


def test_file_in_place_of_the_folder(etc: Etc) -> None:
    etc.parts.rmdir()
    etc.parts.write_text("")
    with pytest.raises(Misconfigured):
        config.load()


def test_lost_configuration_is_no_open_door(etc: Etc) -> None:
    etc.record()
    with pytest.raises(Misconfigured, match="/srv/leases"):
        config.load()
    with pytest.raises(Misconfigured):
        config.set_up()


def test_empty_configuration_is_no_open_door(etc: Etc) -> None:
    etc.record()
    (etc.parts / "10-setup.conf").write_text("")
    with pytest.raises(Misconfigured):
        config.load()


def test_set_up(etc: Etc) -> None:
    etc.record()
    etc.main.write_text(STORE)
    assert config.load().host_id == 12
    assert config.set_up()


@pytest.mark.parametrize("fields", [{"host_id": 1}, {"cluster": "11"}], ids=["host-id", "cluster"])
def test_configuration_of_another_host(etc: Etc, fields: Dict[str, Any]) -> None:
    etc.record(**fields)
    etc.main.write_text(STORE)
    with pytest.raises(Misconfigured, match=next(iter(fields))):
        config.load()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"cluster": "00ff"}', '{"cluster": 1, "store": "/a", "host_id": 1}', "[" * 60000,
     '{"cluster": "00ff", "store": "/a", "host_id": 1, "previous": []}'],
    ids=["empty", "cut-off", "list", "null", "incomplete", "wrong-type", "deep", "wrong-previous"],
)  # fmt: skip
def test_damaged_record(etc: Etc, text: str) -> None:
    etc.main.write_text(STORE)
    (etc.state / "host.json").write_text(text)
    with pytest.raises(Misconfigured, match=r"host\.json"):
        config.load()
