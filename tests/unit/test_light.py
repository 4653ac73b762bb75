# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the hook uses in place of heavier modules: the same as those, where it is used; and they stay out of the hook."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmguard import _light, config

ROOT = Path(__file__).parents[2]

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.characters(whitelist_categories=["Cs"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_json_comes_back_and_is_the_same(what: Any) -> None:
    text = _light.dumps(what)
    assert text == json.dumps(what)
    assert _light.loads(f" {text}\n") == what


@given(st.text(alphabet='{}[]",:0123456789.eE-+ truefalsn\\u\n\x00\ufeff'))
def test_json_takes_what_json_takes(text: str) -> None:
    def outcome(read: Callable[[str], Any]) -> str:
        try:
            return repr(read(text))
        except ValueError:
            return "error"

    assert outcome(_light.loads) == outcome(json.loads)


def test_json_of_anything() -> None:
    assert _light.dumps({"path": Path("/x")}, anything=True) == '{"path": "/x"}'
    with pytest.raises(TypeError):
        _light.dumps({"path": Path("/x")})


def test_sha256() -> None:
    assert _light.sha256(b"x").hexdigest() == hashlib.sha256(b"x").hexdigest()


LINES = st.sampled_from(
    [
        "",
        "[guard]",
        "[store]",
        "[guard ]",
        "[none]",
        "mode = audit",
        "mode=off",
        "mode = audit # x",
        " mode = x",
        "\tx",
        "mode",
    ]
    + [
        "# comment",
        "; comment",
        "path = /a=b",
        "path =",
        "= x",
        "x: y",
        "a_b = [c]",
        "[guard] = x",
        "é = x",
        "path = é",
        "x\r",
    ]
)


@given(st.lists(LINES).map("\n".join))
def test_plain_settings_are_what_configparser_says(text: str) -> None:
    """Of a file that it does not leave to configparser."""
    found = config._plain_settings(text)
    if found is not None:
        assert sorted(found) == sorted(config._settings("file", text))


def test_a_plain_file_is_read_as_one() -> None:
    shipped = (ROOT / "conf" / "vmguard.conf").read_text()
    assert config._plain_settings(shipped) is not None
    assert config._plain_settings("[guard]\nmode = audit\n") == [("guard", "mode", "audit")]


def isolated(code: str) -> str:
    command = ["/usr/bin/python3", "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def test_hook_loads_none_of_the_heavy_ones() -> None:
    loaded = isolated("import vmguard.hook; print(*sys.modules)").split()
    assert "vmguard.guard" in loaded
    heavy = {"json", "re", "hashlib", "random", "configparser", "socket", "subprocess", "argparse", "signal", "libvirt"}
    assert not heavy & set(loaded)
    # What a path is, `prepare` asks; every other call has no use for it, and would load it as well.
    resolvers = {f"vmguard.storage.{name}" for name in ("block", "disks", "dm", "files", "lvm", "network")}
    assert not resolvers & set(loaded)


NAMED = """
from vmguard._typing import NamedTuple, Optional, Tuple
class Pair(NamedTuple):
    '''Two.'''
    left: int
    right: Optional[Tuple[int, ...]] = None
    @property
    def both(self): return (self.left, self.right)
    def moved(self): return self._replace(left=self.left + 1)
"""
SAYS: Dict[str, str] = {
    "repr(Pair(1))": "Pair(left=1, right=None)",
    "Pair(left=1, right=(2,)).both": "(1, (2,))",
    "Pair(1).moved()[0]": "2",
    "type(Pair(1).moved()).__name__": "Pair",
    "Pair(1)._asdict()": "{'left': 1, 'right': None}",
    "Pair(*[1, 2]) == (1, 2) and hash(Pair(1, 2)) == hash((1, 2)) and Pair(1, 2) < Pair(2, 0)": "True",
    "Pair._fields": "('left', 'right')",
    "Pair._field_defaults": "{'right': None}",
    "isinstance(Pair(1), tuple) and not hasattr(Pair(1), '__dict__')": "True",
    "__import__('copy').copy(Pair(1, 2)) == Pair(1, 2)": "True",
    "error(lambda: Pair()), error(lambda: Pair(1, 2, 3)), error(lambda: Pair(1, x=2))": "TypeError TypeError TypeError",
    "error(lambda: Pair(1)._replace(x=2)) in ('ValueError', 'TypeError')": "True",
    "error(lambda: setattr(Pair(1), 'left', 2))": "AttributeError",
}
ERROR = """
def error(call):
    try: call()
    except Exception as found: return type(found).__name__
"""


@pytest.mark.parametrize("before", ["", "import typing"], ids=["light", "typing"])
def test_named_tuples_are_named_tuples(before: str) -> None:
    """Made here or by typing, they behave alike."""
    out = isolated(before + NAMED + ERROR + "\n".join(f"print({expression})" for expression in SAYS))
    assert out.splitlines() == list(SAYS.values())


@pytest.mark.parametrize("text", ["{", '{"a": 1', '{"a" 1}', "[1,", '"', "nul", "", " ", "{]", '{"a": yes}', "[1] 2"])
def test_what_is_no_json_is_said_without_json_being_loaded(text: str) -> None:
    said = isolated(f"""
from vmguard._light import loads
try: loads({text!r})
except ValueError: print("ValueError")
""")
    assert said == "ValueError"
