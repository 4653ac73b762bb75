# SPDX-License-Identifier: LGPL-2.1-or-later
"""The completion for bash, asked as bash asks it."""

import shutil
import subprocess
from pathlib import Path
from typing import List

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path("/usr/share/bash-completion/bash_completion")

ASK = """
source {library}
source {script}
virsh() {{ printf '%s\\n' web1 web2 db; }}
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${{#COMP_LINE}} COMP_TYPE=9 COMP_KEY=9
_vmguard vmguard "${{@: -1}}" "${{@: -2:1}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not LIBRARY.exists() or shutil.which("bash") is None:
        pytest.skip("needs bash and bash-completion")
    path = tmp_path_factory.mktemp("completion") / "vmguard"
    path.write_text(subprocess.run([ROOT / "packaging/completion"], stdout=subprocess.PIPE, text=True, check=True).stdout)
    return path


def asked(script: Path, *words: str) -> List[str]:
    ask = ASK.format(library=LIBRARY, script=script)
    command = ["bash", "--norc", "-c", ask, "bash", "vmguard", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout.split()


def test_subcommands(script: Path) -> None:
    found = asked(script, "s")
    assert {"setup", "status"} <= set(found) and all(word.startswith("s") for word in found)


def test_every_subcommand_has_its_options(script: Path) -> None:
    commands = [word for word in asked(script, "") if not word.startswith("-")]
    assert len(commands) > 10
    for command in commands:
        assert "--help" in asked(script, command, "--h"), command


@pytest.mark.parametrize(
    "words, found",
    [
        (["setup", "--st"], ["--store"]),
        (["setup", "--mode", "a"], ["audit"]),
        (["setup", "--shared", ""], ["yes", "no", "auto"]),
        (["explain", "we"], ["web1", "web2"]),
        (["setup", "--host-id", ""], []),
        (["nothing-of-that-name", ""], []),
    ],
)
def test_what_is_offered(script: Path, words: List[str], found: List[str]) -> None:
    assert sorted(asked(script, *words)) == sorted(found)


def test_a_guest_may_be_called_anything(script: Path, tmp_path: Path) -> None:
    """Whoever may name a guest must not have a command run by root's TAB."""
    name = f"$(cd {tmp_path} && touch x) y"
    text = ASK.replace("web1 web2 db", f"'{name}' db")
    command = ["bash", "--norc", "-c", text.format(library=LIBRARY, script=script), "bash", "vmguard", "explain", ""]
    offered = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    assert not (tmp_path / "x").exists()
    # As it is to stand on the command line.
    printed = subprocess.run(["bash", "-c", f"printf '%s\\n' {' '.join(offered)}"], stdout=subprocess.PIPE, text=True, check=True)
    assert printed.stdout.splitlines() == [name, "db"]


def test_paths(script: Path, tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir()
    assert asked(script, "setup", "--store", f"{tmp_path}/l") == [f"{tmp_path}/leases"]
    assert asked(script, "identify", f"{tmp_path}/l") == [f"{tmp_path}/leases"]


def test_bash_and_shellcheck_have_nothing_against_it(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-s", "bash", script], check=True)
