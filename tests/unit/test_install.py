# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make install`, and the hook as it is installed: what it asks the library, what it does where the library is gone."""

import os
import subprocess
import threading
from pathlib import Path
from typing import Dict, Iterator, List

import pytest

from vmguard.lint import inotify

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str) -> "subprocess.CompletedProcess[str]":
    # Without the flags of the `make check` that may be running this.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}
    return subprocess.run(
        ["make", "-s", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dict[str, Path]]:
    """Installed below a prefix where Python does not look for libraries."""
    root = tmp_path_factory.mktemp("installed")
    settings = {
        "prefix": root / "opt", "sysconfdir": root / "etc", "localstatedir": root / "var", "unitdir": root / "units",
        "tmpfilesdir": root / "tmpfiles.d", "udevrulesdir": root / "rules.d",
        "plugindir": root / "plugins",
    }  # fmt: skip
    done = make("install", *[f"{name}={path}" for name, path in settings.items()])
    assert done.returncode == 0, done.stdout
    yield settings


def test_command_runs(places: Dict[str, Path], tmp_path: Path) -> None:
    command = places["prefix"] / "bin" / "vmguard"
    assert command.read_text().startswith("#!/usr/bin/python3 -I\n")
    done = subprocess.run([command, "setup", "--help"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert "--dry-run" in done.stdout


def test_library_is_the_installed_one(places: Dict[str, Path]) -> None:
    library = places["prefix"] / "lib" / "vmguard"
    code = f"import sys; sys.path.insert(0, '{library}'); from vmguard.setup import hookfile; print(hookfile.source())"
    done = subprocess.run(["/usr/bin/python3", "-I", "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == str(places["prefix"] / "share" / "vmguard" / "hook")
    assert (library / "vmguard" / "__pycache__").is_dir()
    assert not list(library.rglob(".mypy_cache"))


def test_hook_is_what_setup_would_write(places: Dict[str, Path]) -> None:
    library = places["prefix"] / "lib" / "vmguard"
    hook = places["sysconfdir"] / "libvirt" / "hooks" / "qemu.d" / "50-vmguard"
    assert hook.stat().st_mode & 0o7777 == 0o755
    code = (
        f"import sys; sys.path.insert(0, '{library}'); from vmguard.setup import hookfile;"
        " sys.stdout.buffer.write(hookfile.script())"
    )
    done = subprocess.run(["/usr/bin/python3", "-I", "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout == hook.read_bytes()
    assert f"\nlibrary='{library}'\n".encode() in done.stdout


def test_units_name_the_command(places: Dict[str, Path]) -> None:
    unit = (places["unitdir"] / "vmguard-join.service").read_text()
    assert f"ExecStart={places['prefix']}/bin/vmguard join" in unit
    assert "@" not in unit


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local", "/opt/x"])
def test_destdir_holds_everything(tmp_path: Path, prefix: str) -> None:
    arguments = [f"DESTDIR={tmp_path}", f"prefix={prefix}"]
    done = make("install", *arguments)
    assert done.returncode == 0, done.stdout
    text = (tmp_path / prefix[1:] / "bin" / "vmguard").read_text()
    assert str(tmp_path) not in text
    library = next(line.split('"')[1] for line in text.splitlines() if "sys.path" in line)
    assert library.startswith(prefix + "/lib")
    assert (tmp_path / library[1:] / "vmguard" / "hook.py").is_file()
    if prefix == "/usr":
        assert not library.startswith("/usr/local")

    own = tmp_path / "etc" / "vmguard" / "vmguard.conf"
    own.write_text("[guard]\nmode = audit\n")
    (tmp_path / library[1:] / "vmguard" / "gone.py").write_text("")
    hook = tmp_path / "etc/libvirt/hooks/qemu.d/50-vmguard"
    watched = inotify.Folders([str(hook.parent)])
    assert make("install", *arguments).returncode == 0
    # At no moment is it away, or cannot be run.
    assert list(watched.changes(0)) == [(str(hook), True)] and hook.stat().st_mode & 0o7777 == 0o755
    watched.close()
    assert own.read_text() == "[guard]\nmode = audit\n"
    assert not (tmp_path / library[1:] / "vmguard" / "gone.py").exists()

    (tmp_path / "var/lib/vmguard/host.json").write_text("{}")
    assert make("uninstall", *arguments).returncode != 0
    (tmp_path / "var/lib/vmguard/host.json").unlink()
    assert make("uninstall", *arguments).returncode == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own]


class Hook:
    """The hook script with a stand-in for the library, and folders of the test's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seen = root / "seen"
        self.library = root / "lib"
        self.state = root / "state"
        (root / "lib" / "vmguard").mkdir(parents=True)
        for name in ("state", "conf", "conf/vmguard.conf.d", "run/instances", "run/late"):
            (root / name).mkdir(parents=True)
        (self.library / "vmguard" / "__init__.py").write_text("")
        self.answer(0)
        text = (ROOT / "hooks" / "qemu").read_text()
        for name, path in (("library=''", "lib"), ("state=/var/lib/vmguard", "state"), ("conf=/etc/vmguard", "conf"),
                           ("run=/run/vmguard", "run")):  # fmt: skip
            assert f"\n{name}\n" in text
            text = text.replace(f"\n{name}\n", f"\n{name.split('=')[0]}='{root / path}'\n")
        text = text.replace("/var/lib/vmguard/host.json", f"{self.state}/host.json")
        text = text.replace("/etc/vmguard/vmguard.conf", f"{root}/conf/vmguard.conf")
        self.script = root / "hook"
        self.script.write_text(text)
        self.script.chmod(0o755)

    def answer(self, status: int) -> None:
        """What the library is to say; in a file, as code of the same second and size counts as unchanged."""
        (self.root / "answer").write_text(str(status))
        (self.library / "vmguard" / "hook.py").write_text(
            "import sys\n"
            "def main(arguments):\n"
            f"    open({str(self.seen)!r}, 'w').write('\\n'.join(arguments + [sys.stdin.read()]))\n"
            "    print('noise')\n"
            f"    return int(open({str(self.root / 'answer')!r}).read())\n"
        )

    def run(self, operation: str) -> "subprocess.CompletedProcess[str]":
        self.seen.unlink(missing_ok=True)
        done = subprocess.run(
            [self.script, "a guest", operation, "begin", "-"],
            input="<domain/>",
            capture_output=True,
            text=True,
        )
        # What a filter prints is the definition that libvirt goes on with.
        assert done.stdout == ("noise\n" if operation in ("migrate", "restore") else "")
        return done

    def asked(self) -> List[str]:
        return self.seen.read_text().split("\n") if self.seen.exists() else []


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


def test_prepare_passes_everything_on(hook: Hook) -> None:
    assert hook.run("prepare").returncode == 0
    assert hook.asked() == [str(os.getpid()), "a guest", "prepare", "begin", "-", "<domain/>"]


@pytest.mark.parametrize(
    "operation, answers",
    [
        ("prepare", {0: 0, 1: 1, 3: 3}),
        ("start", {0: 0, 1: 1, 3: 3}),
        ("started", {0: 0, 1: 0, 2: 0, 3: 1}),
        ("release", {0: 0, 1: 0, 3: 0}),
        ("reconnect", {0: 0, 1: 0, 3: 0}),
        ("migrate", {0: 0, 1: 1, 3: 3}),
        ("restore", {0: 0, 1: 1, 3: 3}),
    ],
)
def test_exit_status(hook: Hook, operation: str, answers: Dict[int, int]) -> None:
    (hook.root / "run/instances/one.json").write_text("")
    (hook.root / "run/late/one").write_text("")
    for theirs, ours in answers.items():
        hook.answer(theirs)
        assert hook.run(operation).returncode == ours
        assert hook.asked()


QUIET = ["start", "started", "release", "stopped", "attach", "new", ""]


@pytest.mark.parametrize("operation", QUIET)
def test_nothing_to_ask(hook: Hook, operation: str) -> None:
    hook.answer(1)
    assert hook.run(operation).returncode == 0
    assert not hook.asked()


@pytest.mark.parametrize("operation", ["stopped", "attach"])
def test_never_asked(hook: Hook, operation: str) -> None:
    (hook.root / "run/instances/one.json").write_text("")
    (hook.root / "run/late/one").write_text("")
    hook.answer(1)
    assert hook.run(operation).returncode == 0
    assert not hook.asked()


@pytest.mark.parametrize("how", ["record", "part", "main", "no-line-end"])
def test_library_gone_from_a_host_that_is_set_up(hook: Hook, how: str) -> None:
    (hook.library / "vmguard" / "hook.py").unlink()
    if how == "record":
        (hook.state / "host.json").write_text("")
    elif how == "part":
        (hook.root / "conf/vmguard.conf.d/10-setup.conf").write_text("# x\n[store]\npath = /srv/leases\n")
    elif how == "main":
        (hook.root / "conf/vmguard.conf").write_text("[store]\npath=/srv/leases\n")
    else:
        (hook.root / "conf/vmguard.conf").write_text("[store]\npath\t=\t/srv/leases")
    done = hook.run("prepare")
    assert done.returncode == 1
    assert done.stderr.startswith("vmguard: the guest cannot be started")
    assert str(hook.library) in done.stderr
    # It names what to remove. The store may lie in the folder of the state, and libvirt's earlier settings do.
    assert f"({hook.script})" in done.stderr and str(hook.state) not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert hook.run("reconnect").returncode == 0


def test_library_gone_from_a_host_that_never_was_set_up(hook: Hook) -> None:
    (hook.library / "vmguard" / "hook.py").unlink()
    (hook.root / "conf/vmguard.conf").write_text("[store]\n#path = /srv/leases\n")
    done = hook.run("prepare")
    assert (done.returncode, done.stderr) == (0, "")


def test_library_that_is_just_being_replaced(hook: Hook) -> None:
    """An update has half of it there: the start waits a moment, and is answered by the whole."""
    (hook.state / "host.json").write_text("")
    good = (hook.library / "vmguard" / "hook.py").read_text()
    (hook.library / "vmguard" / "hook.py").write_text("from vmguard.added import main\n")
    later = threading.Timer(0.7, lambda: (hook.library / "vmguard" / "added.py").write_text(good))
    later.start()
    assert hook.run("prepare").returncode == 0
    later.join()
    assert hook.asked()


@pytest.mark.parametrize(
    "file, text, guards",
    [
        ("", "", False),
        ("state/host.json", "", True),
        ("conf/vmguard.conf.d/10-setup.conf", "[store]\npath = /srv/store\n", True),
        ("conf/vmguard.conf", "path=/srv/store\n", True),
        ("conf/vmguard.conf", "# path = /srv/store\n", False),
        ("conf/vmguard.conf.d/10-setup.conf/unreadable", "", True),
    ],
)
def test_library_that_does_not_load(hook: Hook, file: str, text: str, guards: bool) -> None:
    """A host of which anything says that it was set up refuses; also where its record is lost, or cannot be read."""
    (hook.library / "vmguard" / "hook.py").write_text("import nothing_of_that_name\n")
    if file:
        (hook.root / file).parent.mkdir(exist_ok=True)
        (hook.root / file).write_text(text)
    done = hook.run("prepare")
    assert done.returncode == (1 if guards else 0)
    assert "Traceback" not in done.stderr
    assert ("nothing_of_that_name" in done.stderr) is guards


def test_whose_a_hook_is() -> None:
    """By its fourth line: an administrator's own may mention it."""
    from vmguard.setup import hookfile

    assert hookfile.is_ours((ROOT / "hooks" / "qemu").read_bytes())
    own = b"#!/bin/sh\n# mine\n# vmguard's hook: libvirt calls it for every step in a guest's life, and mine beside it\nexit 0\n"
    assert not hookfile.is_ours(own) and not hookfile.is_ours(own.replace(b"# mine\n", b"# mine\n#\n#\n"))


@pytest.mark.parametrize("mounted, left", [("none", False), ("state", True), ("state/store", True)])
def test_purge_takes_no_store_of_a_cluster(tmp_path: Path, mounted: str, left: bool) -> None:
    """The default place of a store may be where all hosts have mounted theirs."""
    if subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", tmp_path], stderr=subprocess.DEVNULL).returncode:
        pytest.skip("needs root, to mount")
    text = (ROOT / "packaging/deb/vmguard.postrm").read_text()
    for path, name in (("/var/lib/vmguard", "state"), ("/etc/vmguard", "conf"), ("/var/log/vmguard", "log"),
                       ("/run/vmguard", "run"), ("/etc/libvirt", "libvirt")):  # fmt: skip
        assert path in text
        text = text.replace(path, str(tmp_path / name))
    (tmp_path / "postrm").write_text(text)
    for name in ("state/store", "conf", "log", "run", "none"):
        (tmp_path / name).mkdir(parents=True)
    script = (
        f"mount -t tmpfs tmpfs {tmp_path}/{mounted} && mkdir -p {tmp_path}/state/store && touch {tmp_path}/state/store/lockspace"
        f" && sh {tmp_path}/postrm purge || exit 9; test -e {tmp_path}/state/store/lockspace"
    )
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script])
    assert done.returncode == (0 if left else 1)
    assert not (tmp_path / "conf").exists() and (tmp_path / "state").exists() is left


@pytest.mark.parametrize("script, library", [
    ("deb/vmguard.postinst", "/usr/lib/python3/dist-packages"), ("rpm/vmguard.spec", "%{python3_sitelib}"),
])  # fmt: skip
def test_the_packages_hook_is_of_the_packages_library(tmp_path: Path, script: str, library: str) -> None:
    """Python looks below /usr/local first, where an installation from the source may have left another version."""
    text = (ROOT / "packaging" / script).read_text()
    (code,) = [line[len("refresh='") : -1] for line in text.splitlines() if line.startswith("refresh='")]
    assert library in code
    (tmp_path / "vmguard/setup").mkdir(parents=True)
    (tmp_path / "vmguard/setup/hookfile.py").write_text("def refresh(): print(__file__)\n")
    words = ["/usr/bin/python3", "-I", "-c", code.replace(library, str(tmp_path))]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == f"{tmp_path}/vmguard/setup/hookfile.py\n"
