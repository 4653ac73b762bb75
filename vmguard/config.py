# SPDX-License-Identifier: LGPL-2.1-or-later
"""
The configuration: what the administrator and `vmguard setup` wrote, checked and typed.

`paths.CONFIG` first, then `paths.CONFIG_DIR/*.conf` by name; the later file wins, key by key. Nothing is guessed: a key
nobody knows, a value out of range or a file that cannot be read is Misconfigured. A host that was set up and has lost
its configuration is Misconfigured too, never "not set up": or a lost file would open the door.
"""

import os
import stat
from enum import Enum

from vmguard import paths
from vmguard._light import loads
from vmguard._typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Tuple
from vmguard.errors import Misconfigured

if TYPE_CHECKING:
    import configparser

# Far above any sensible configuration; below what reading would delay a start.
MAX_BYTES = 64 * 1024

# sanlock: 512-byte sectors and 1 MiB alignment give a lockspace of 2000 hosts.
MAX_HOST_ID = 2000

# Seconds. Eight of them without a renewal cost a host its leases; beyond two minutes nobody waits for a dead host.
MIN_IO_TIMEOUT, MAX_IO_TIMEOUT = 1, 120


class Guarding(str, Enum):
    """What is done with a verdict."""

    ENFORCE = "enforce"  # a start that would endanger data is refused
    AUDIT = "audit"  # it is let through, and recorded
    OFF = "off"  # nothing is looked at


class WithoutWatchdog(str, Enum):
    """
    Guests whose leases cannot be given to QEMU, on a host without a working watchdog: such leases may vanish while the
    guest runs on.
    """

    REFUSE = "refuse"
    ACCEPT = "accept"


class OnConflict(str, Enum):
    """What the agent does with a guest that has come to write what another guest has."""

    ALARM = "alarm"  # it is said, and recorded
    PAUSE = "pause"  # the guest is stopped where it is; nothing of it is lost
    DETACH = "detach"  # the disk is taken from it; where that cannot be done, it is paused


class Config(NamedTuple):
    """A host's configuration. `store` is None where the host was never set up: then everything passes."""

    mode: Guarding = Guarding.ENFORCE
    deadline: float = 20.0  # seconds for one hook call; libvirt itself waits for ever, its list of guests with it
    store: Optional[str] = None  # absolute path of the directory of leases
    cluster: Optional[str] = None  # the store's own id, lower-case hexadecimal
    host_id: Optional[int] = None  # 1 to MAX_HOST_ID
    shared: bool = False  # other hosts see the store
    single_host: bool = False  # no other host can reach any storage of this one
    io_timeout: int = 10  # seconds; sanlock's own default
    without_watchdog: WithoutWatchdog = WithoutWatchdog.REFUSE
    # Which block devices are flushed at the end of a guest that wrote them through the page cache, before another host
    # may have them: those that other hosts are known to reach, or all.
    drain_all: bool = False
    conflict: OnConflict = OnConflict.PAUSE
    command: str = ""  # what the agent runs for each thing that it has to say


class Host(NamedTuple):
    """What `vmguard setup` recorded in paths.STATE/host.json: that this host was set up, and as whom."""

    cluster: str
    store: str
    host_id: int
    previous: Mapping[str, Any] = {}  # settings of others that setup replaced; see setup/record.py


def load() -> Config:
    """
    The configuration in force.

    Raises Misconfigured if a file is unreadable, wrong in form or incomplete, or if this host was set up as somebody
    else than the configuration says, or was set up and the configuration names no store.
    """
    config = read()
    host = recorded_host()
    if host is None:
        return config
    if config.store is None:
        raise Misconfigured(
            paths.CONFIG_DIR,
            f"this host was set up for the lease store {host.store}, but no configuration file names a store",
            f"run `vmguard setup --store {host.store}`, or `vmguard setup --remove` to stop guarding",
        )
    for key, ours, theirs in (("cluster", config.cluster, host.cluster), ("host_id", config.host_id, host.host_id)):
        if ours != theirs:
            raise Misconfigured(
                f"{paths.CONFIG_DIR}, [store] {key}",
                f"it says {ours}, but this host was set up as {theirs}",
                f"run `vmguard setup`, or put {theirs} back",
            )
    return config


def written() -> Tuple[Tuple[Any, ...], ...]:
    """
    Which files `load` would read, and when each was last changed: as long as this is the same, so is its answer.

    Raises Misconfigured like `load`.
    """
    found: List[Tuple[Any, ...]] = []
    for path in [*_files(), host_file()]:
        try:
            status = os.stat(path)
        except OSError as error:
            found.append((path, error.errno))
        else:
            found.append((path, status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns))
    return tuple(found)


def set_up() -> bool:
    """Whether this host was ever set up. Raises Misconfigured like `load`."""
    return load().store is not None


def read(without: str = "") -> Config:
    """
    The configuration as the files say it, whoever this host was set up as: for `setup`. Raises Misconfigured.

    without: path of a file to leave out; the rest need not be complete then.
    """
    values: Dict[str, Any] = {}
    last = paths.CONFIG
    for path in _files():
        found = _values(path) if path != without else {}
        if found:
            values.update(found)
            last = path
    config = Config(**values)
    if not without:
        _complete(config, last)
    return config


def recorded_host() -> Optional[Host]:
    """What setup recorded, None if this host was never set up. Raises Misconfigured if the record cannot be read."""
    path = host_file()
    text = _contents(path)
    if text is None:
        return None
    try:
        fields = loads(text)
        host = Host(fields["cluster"], fields["store"], fields["host_id"], fields.get("previous", {}))
        if not (isinstance(host.cluster, str) and isinstance(host.store, str) and type(host.host_id) is int):
            raise TypeError
        if not isinstance(host.previous, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Misconfigured(
            path, "this record of the host's set-up is damaged", "remove it and run `vmguard setup` again"
        ) from None
    return host


def host_file() -> str:
    """Path of the record that this host was set up."""
    return os.path.join(paths.STATE, "host.json")


def _files() -> List[str]:
    try:
        names = os.listdir(paths.CONFIG_DIR)
    except FileNotFoundError:
        names = []
    except OSError as e:
        raise _unreadable(paths.CONFIG_DIR, e) from None
    # Hidden files are an editor's, or a half-made one of ours.
    extra = sorted(name for name in names if name.endswith(".conf") and not name.startswith("."))
    return [paths.CONFIG] + [os.path.join(paths.CONFIG_DIR, name) for name in extra]


def _unreadable(path: str, error: OSError) -> Misconfigured:
    return Misconfigured(path, f"it cannot be read: {os.strerror(error.errno or 0)}", "make it readable, or remove it")


def _contents(path: str) -> Optional[str]:
    """A file's text, None if there is no such file. A pipe in its place must not hold up a guest's start for ever."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        # A dangling link is no "never set up": somebody put it there, and what it points at is lost.
        if os.path.islink(path):
            raise Misconfigured(path, "it is a symbolic link to nothing", "put its target back") from None
        return None
    except OSError as e:
        raise _unreadable(path, e) from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Misconfigured(path, "it is not a regular file", "remove it")
        data = b""
        while len(data) <= MAX_BYTES:
            more = os.read(fd, MAX_BYTES + 1 - len(data))
            if not more:
                break
            data += more
    except OSError as e:
        raise _unreadable(path, e) from None
    finally:
        os.close(fd)
    if len(data) > MAX_BYTES:
        raise Misconfigured(path, f"it is larger than {MAX_BYTES // 1024} KiB", "remove what does not belong there")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise Misconfigured(f"{path}, line {line}", "it is not text in UTF-8", "mend that line") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise Misconfigured(f"{path}, line {line}", "it has a NUL byte: half written", "write the file anew")
    return text


def _values(path: str) -> Dict[str, Any]:
    """The checked values of one file, by the name of Config's field."""
    text = _contents(path)
    if text is None:
        return {}
    found: Dict[str, Any] = {}
    for section, key, value in _plain_settings(text) or _settings(path, text):
        where = f"{path}, [{section}] {key}"
        if (section, key) not in _KEYS:
            known = "the settings are: " + ", ".join(sorted(f"[{a}] {b}" for a, b in _KEYS))
            raise Misconfigured(where, "there is no such setting", known)
        field, check = _KEYS[(section, key)]
        found[field] = check(where, value)
    return found


def _plain_settings(text: str) -> Optional[List[Tuple[str, str, str]]]:
    """
    Section, key and value of each setting in a file of nothing but sections, comments and `key = value`, each on a line
    that begins with it and each once; None for any other. configparser would say the same, and takes 5 ms to load.
    """
    if not text.isascii():
        return None
    found: Dict[Tuple[str, str], str] = {}
    sections: List[str] = []
    for line in text.split("\n"):
        line = line.rstrip(" ")
        if not line or line.startswith(("#", ";")):
            continue
        key, equals, value = line.partition("=")
        key, value = key.rstrip(" "), value.strip(" ")
        if not line.isprintable() or line.startswith(" "):
            return None
        if line.startswith("[") and line.endswith("]") and line[1:-1].isalpha() and line[1:-1] in _SECTIONS:
            if line[1:-1] in sections:
                return None
            sections.append(line[1:-1])
        elif equals and sections and key.replace("_", "").isalnum() and (sections[-1], key) not in found:
            found[(sections[-1], key)] = value
        else:
            return None
    return [(*place, value) for place, value in found.items()]


def _settings(path: str, text: str) -> List[Tuple[str, str, str]]:
    """Section, key and value of each setting in a file of any form. Raises Misconfigured for one that is none."""
    import configparser

    # No section is called "\n", so [DEFAULT] is a section as unknown as any other.
    parser = configparser.RawConfigParser(delimiters=("=",), default_section="\n", empty_lines_in_values=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text)
    except configparser.Error as e:
        raise _bad_form(path, e) from None
    found = []
    for section in parser.sections():
        if section not in _SECTIONS:
            sections = "the sections are: " + ", ".join(sorted(_SECTIONS))
            raise Misconfigured(f"{path}, [{section}]", "there is no such section", sections)
        found += [(section, key, value) for key, value in parser.items(section)]
    return found


def _bad_form(path: str, error: "configparser.Error") -> Misconfigured:
    import configparser

    line = getattr(error, "lineno", None)
    if line is None and isinstance(error, configparser.ParsingError) and error.errors:
        line = error.errors[0][0]
    where = path if line is None else f"{path}, line {line}"
    if isinstance(error, configparser.DuplicateOptionError):
        why = f"[{error.section}] {error.option} is given twice"
    elif isinstance(error, configparser.DuplicateSectionError):
        why = f"section [{error.section}] is given twice"
    elif isinstance(error, configparser.MissingSectionHeaderError):
        why = "a setting stands before the first [section]"
    else:
        why = "it is neither `key = value`, a [section], nor a comment"
    return Misconfigured(where, why, "mend that line")


def _complete(config: Config, path: str) -> None:
    """A store without its id, or an id without a store, is half a configuration."""
    parts = (("path", config.store), ("cluster", config.cluster), ("host_id", config.host_id))
    named = [key for key, value in parts if value]
    if named and len(named) < 3:
        missing = [key for key, value in parts if not value]
        raise Misconfigured(
            f"{path}, [store]",
            "it has {} but no {}".format(" and ".join(named), " and no ".join(missing)),
            "run `vmguard setup`, which writes all three",
        )


def _one_of(kind: Callable[[str], Any], *words: str) -> Callable[[str, str], Any]:
    def check(where: str, value: str) -> Any:
        if value not in words:
            raise _bad_value(where, value, "one of: {}".format(", ".join(words)))
        return kind(value)

    return check


def _is_number(text: str) -> bool:
    # int() would take "1_0", "+1" and Arabic digits.
    return 1 <= len(text) <= 6 and text.isascii() and text.isdigit()


def _number(low: int, high: int, unit: str = "") -> Callable[[str, str], int]:
    def check(where: str, value: str) -> int:
        if not _is_number(value) or not low <= int(value) <= high:
            raise _bad_value(where, value, f"a whole number{unit} from {low} to {high}")
        return int(value)

    return check


def _seconds(low: float, high: float) -> Callable[[str, str], float]:
    def check(where: str, value: str) -> float:
        whole, point, part = value.partition(".")
        in_form = _is_number(whole) and (not point or (_is_number(part) and len(part) <= 3))
        if not in_form or not low <= float(value) <= high:
            raise _bad_value(where, value, f"seconds, from {low:g} to {high:g}")
        return float(value)

    return check


def _store_path(where: str, value: str) -> str:
    if not store_path_fits(value):
        wanted = "an absolute path in ASCII, without blanks, colons and backslashes, of 900 bytes at most"
        raise _bad_value(where, value, wanted)
    return value


def store_path_fits(path: str) -> bool:
    """
    Whether sanlock can keep leases below this path. A blank, colon or backslash makes its own listing of leases fail or
    crash; it cuts paths at 1023 bytes, and 900 leave room for a lease's name.
    """
    fits = path.startswith("/") and len(path) <= 900 and all("!" <= c <= "~" and c not in ":\\" for c in path)
    return fits and ".." not in path.split("/")


def _program(where: str, value: str) -> str:
    if value and not value.startswith("/") or not value.isprintable():
        raise _bad_value(where, value, "the absolute path of a program")
    return value


def _cluster(where: str, value: str) -> str:
    if not 4 <= len(value) <= 64 or not set(value) <= set("0123456789abcdef"):
        raise _bad_value(where, value, "the id in lower-case hexadecimal that `vmguard setup` gave the store")
    return value


def _bad_value(where: str, value: str, wanted: str) -> Misconfigured:
    shown = ascii(value if len(value) <= 80 else value[:77] + "...")
    return Misconfigured(where, f"{shown if value else 'nothing'} is no value for it", f"give {wanted}")


def _yes(word: str) -> bool:
    return word == "yes"


def _all(word: str) -> bool:
    return word == "all"


_KEYS: Dict[Tuple[str, str], Tuple[str, Callable[[str, str], Any]]] = {
    ("guard", "mode"): ("mode", _one_of(Guarding, "enforce", "audit", "off")),
    ("guard", "deadline"): ("deadline", _seconds(2, 300)),
    ("store", "path"): ("store", _store_path),
    ("store", "cluster"): ("cluster", _cluster),
    ("store", "host_id"): ("host_id", _number(1, MAX_HOST_ID)),
    ("store", "shared"): ("shared", _one_of(_yes, "yes", "no")),
    ("store", "single_host"): ("single_host", _one_of(_yes, "yes", "no")),
    ("store", "io_timeout"): ("io_timeout", _number(MIN_IO_TIMEOUT, MAX_IO_TIMEOUT, " of seconds")),
    ("leases", "without_watchdog"): ("without_watchdog", _one_of(WithoutWatchdog, "refuse", "accept")),
    ("leases", "drain"): ("drain_all", _one_of(_all, "shared", "all")),
    ("agent", "conflict"): ("conflict", _one_of(OnConflict, "alarm", "pause", "detach")),
    ("agent", "command"): ("command", _program),
}
_SECTIONS = frozenset(section for section, _ in _KEYS)
