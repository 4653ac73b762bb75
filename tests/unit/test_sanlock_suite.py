# SPDX-License-Identifier: LGPL-2.1-or-later
"""
vmguard.sanlock in place of sanlock's own Python binding: sanlock's test suite for the binding passes against it as against the
binding.

The suite is not part of this project. It is taken from VMGUARD_SANLOCK_SOURCE, a tree of sanlock's source, or from the
distribution's source package, where this machine can get that.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Dict, Iterator
from xml.etree import ElementTree

import pytest

from vmguard import sanlock
from vmguard.leases import _library

ROOT = Path(__file__).resolve().parents[2]
DAEMON = "/usr/sbin/sanlock"
SUITE = ["tests/python_test.py", "tests/daemon_test.py"]
MiB = 1 << 20

# The suite's own tests want storage with sectors of 4096 bytes from a module of that name; this one hands out what the fixture
# below has made.
USERSTORAGE = """
import os, subprocess
missing_handler = None

class Backend:
    def __init__(self, path):
        self.path = path
    def __enter__(self):
        if not self.path.startswith("/dev/"):
            open(self.path, "w").close()
            os.truncate(self.path, 64 << 20)
        else:
            subprocess.run(["blkdiscard", "-z", self.path], check=True)
        return self
    def __exit__(self, *_):
        pass

def load_config(_):
    class Config:
        BACKENDS = {"block": Backend(os.environ["BLOCK_4K"]), "file": Backend(os.environ["FILE_4K"])}
    return Config
"""


def from_apt(folder: Path) -> str:
    """Unpack the source package of sanlock there; "" where it cannot be had."""
    words = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(ORIGIN) $(SIGNED_BY)", "Created-By: Packages"]
    if shutil.which("apt-get") is None or shutil.which("dpkg-source") is None:
        return ""
    listed = subprocess.run(words, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    found = [line.split(" ") for line in listed if line.split(" ")[2:3] == ["Debian"] and "-" not in line.split(" ")[1]]
    if not found:
        return ""
    uri, codename, _, signed = found[0][:4]
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb-src {f'[signed-by={signed}] ' if signed else ''}{uri} {codename} main\n")
    os.chmod(folder, 0o777)
    options = ["-q", "-o", f"Dir::Etc::sourcelist={folder}/sources.list", "-o", "Dir::Etc::sourceparts=/dev/null"]
    options += ["-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}", "-o", "Dir::State::status=/dev/null"]
    for command in (["update"], ["source", "sanlock"]):
        done = subprocess.run(["apt-get", *options, *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            return ""
    return next((str(path) for path in folder.glob("sanlock-*/") if (path / "tests").is_dir()), "")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The suite as it runs from a built tree, with storage of 4096-byte sectors."""
    if os.geteuid() != 0 or not os.access(DAEMON, os.X_OK):
        pytest.skip("needs root, and sanlock")
    source = os.environ.get("VMGUARD_SANLOCK_SOURCE") or from_apt(tmp_path_factory.mktemp("source"))
    if not source:
        pytest.skip("the source package of sanlock cannot be had here; VMGUARD_SANLOCK_SOURCE names a tree of it")
    # sanlock reads and writes past the page cache, which not every /tmp can do.
    folder = Path("/var/tmp") / f"vmguard-sanlock-suite-{os.getpid()}"
    (folder / "src").mkdir(parents=True)
    shutil.copytree(os.path.join(source, "tests"), folder / "tests")
    (folder / "src" / "sanlock").symlink_to(DAEMON)
    (folder / "modules").mkdir()
    (folder / "modules" / "userstorage.py").write_text(USERSTORAGE)
    (folder / "run").mkdir()
    loops = []
    try:
        for name in ("block", "file"):
            (folder / name).touch()
            os.truncate(folder / name, 128 * MiB)
            words = ["losetup", "--find", "--show", "--sector-size", "4096", str(folder / name)]
            loops.append(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
        (folder / "mounted").mkdir()
        subprocess.run(["mkfs.ext4", "-q", "-b", "4096", loops[1]], check=True)
        subprocess.run(["mount", loops[1], folder / "mounted"], check=True)
        (folder / "loop").write_text(loops[0])
        yield folder
    finally:
        subprocess.run(["umount", folder / "mounted"], stderr=subprocess.DEVNULL)
        for loop in loops:
            subprocess.run(["losetup", "--detach", loop])
        shutil.rmtree(folder)


def outcomes(folder: Path, name: str, module: str) -> Dict[str, str]:
    """Each test's outcome: "passed", "skipped", or what went wrong."""
    modules = folder / name
    modules.mkdir()
    if module:
        (modules / "sanlock.py").write_text(module)
    report = folder / f"{name}.xml"
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "USER": "root", "LC_ALL": "C.UTF-8", "SANLOCK_PRIVILEGED": "0",
        "SANLOCK_RUN_DIR": str(folder / "run"), "PYTHONPATH": f"{modules}:{folder / 'modules'}",
        "BLOCK_4K": (folder / "loop").read_text(), "FILE_4K": str(folder / "mounted" / "file"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={folder}"]
        + [f"--basetemp={folder}/{name}-tmp", f"--junitxml={report}", *SUITE],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert report.exists() and done.returncode in (0, 1), done.stdout
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [f"{each.tag}: {each.get('message')}" for each in case if each.tag in ("failure", "error")]
        skipped = "skipped" if case.find("skipped") is not None else "passed"
        found[f"{case.get('classname')}::{case.get('name')}"] = wrong[0] if wrong else skipped
    return found


OURS = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from vmguard import sanlock
sys.modules["sanlock"] = sanlock
"""


def test_suite_passes_as_against_the_binding(suite: Path) -> None:
    ours = outcomes(suite, "ours", OURS)
    passed = [name for name, outcome in ours.items() if outcome == "passed"]
    assert len(passed) > 100, ours
    wrong = {name: outcome for name, outcome in ours.items() if outcome not in ("passed", "skipped")}
    if subprocess.run(["/usr/bin/python3", "-I", "-c", "import sanlock"], stderr=subprocess.DEVNULL).returncode:
        # Nothing to compare with: then all of it must pass.
        assert not wrong
        return
    theirs = outcomes(suite, "theirs", "")
    print(f"{len(passed)} of {len(ours)} pass; against the binding {list(theirs.values()).count('passed')}")
    assert ours.keys() == theirs.keys()
    worse = {name: outcome for name, outcome in wrong.items() if theirs[name] == "passed"}
    assert not worse
    assert [name for name in ours if ours[name] == "skipped"] == [name for name in theirs if theirs[name] == "skipped"]


# -- without the suite ----------------------------------------------------------------------------------------------------


def test_everything_that_the_binding_offers_is_there() -> None:
    binding = pytest.importorskip("sanlock")
    for name in dir(binding):
        if name.startswith("_"):
            continue
        theirs, ours = getattr(binding, name), getattr(sanlock, name)
        if callable(theirs):
            assert callable(ours), name
        else:
            assert ours == theirs, name


@pytest.mark.parametrize("name", ["write_resource", "read_resource_owners", "acquire", "release", "request", "get_lvb"])
def test_names_that_sanlock_cannot_take(name: str) -> None:
    """The binding cuts them off at 48 bytes, and its inquire crashes then."""
    more = {"acquire": {"slkfd": 9}, "get_lvb": {"size": 1}}.get(name, {})
    for bad in (b"x" * _library.NAME_LEN, b"a\0b"):
        with pytest.raises(ValueError):
            getattr(sanlock, name)(b"space", bad, [("/nowhere", 0)], **more)
        with pytest.raises(ValueError):
            getattr(sanlock, name)(bad, b"lease", [("/nowhere", 0)], **more)
    with pytest.raises(TypeError):
        getattr(sanlock, name)("space", b"lease", [("/nowhere", 0)], **more)


def test_errors_are_those_of_the_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    error = sanlock._failed(-2, "x")
    assert (error.errno, error.args[2]) == (2, "No such file or directory")
    assert sanlock._failed(-223, "x").errno == -223
    with pytest.raises(sanlock.SanlockException) as raised:
        sanlock.acquire(b"space", b"lease", [("/nowhere", 0)])
    assert raised.value.errno == 22
    with pytest.raises(sanlock.SanlockException) as raised:
        sanlock.get_alignment("/nowhere")
    assert raised.value.errno == 2


