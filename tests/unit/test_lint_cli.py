# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command: exit status, what is judged and what is only compared with, files that change, the page, the recipes."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Union

import pytest
from linting import disk, domain

from vmguard import events
from vmguard.cli import main
from vmguard.errors import BadRequest
from vmguard.lint import sources, watch
from vmguard.lint.site import Site
from vmguard.lint.standing import Standing
from vmguard.storage.facts import LiveFacts

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from vmguard.cli import main; sys.exit(main())",
]


@pytest.fixture
def guests(tmp_path: Path) -> Path:
    """web1 and web2 on one disk, and a network beside them."""
    folder = tmp_path / "guests"
    (folder / "node1").mkdir(parents=True)
    (folder / "node2").mkdir()
    (folder / "node1/web1.xml").write_text(domain("web1", disk("/srv/a.img")))
    (folder / "node1/web2.xml").write_text(domain("web2", disk("/srv/a.img")))
    (folder / "node2/web1.xml").write_text(domain("web1", disk("/srv/a.img")))
    (folder / "node2/default.xml").write_text("<network><name>default</name></network>")
    return folder


def judged(capsys: pytest.CaptureFixture[str], *words: object) -> "tuple[int, Any]":
    status = main(["lint", "--format", "json", *map(str, words)])
    return status, json.loads(capsys.readouterr().out)


def said(document: Any) -> List[str]:
    return [f"{one['rule']} {one['domain']}" for one in document["findings"]]


@pytest.mark.parametrize(
    "driver, words, status",
    [
        pytest.param("type='raw'", [], 0, id="clean"),
        pytest.param("type='raw' cache='unsafe'", [], 1, id="error"),
        pytest.param("type='raw' cache='unsafe'", ["--fail-on", "never"], 0, id="never"),
        pytest.param("type='raw' cache='unsafe'", ["--ignore", "VMG4"], 0, id="ignored"),
        pytest.param("type='raw' cache='unsafe'", ["--rules", "VMG1,lockfailure-action"], 0, id="other-rules"),
        pytest.param("type='raw' cache='unsafe'", ["--rules", "VMG9"], 2, id="no-such-rule"),
        pytest.param("type='raw'", ["/nowhere.xml"], 2, id="no-such-file"),
        pytest.param("type='raw'", ["--inventory", "/nowhere"], 2, id="no-such-folder"),
    ],
)
def test_exit_status(driver: str, words: List[str], status: int, tmp_path: Path) -> None:
    path = tmp_path / "web.xml"
    path.write_text(domain("web", disk("/srv/a.img", driver=driver)))
    assert main(["lint", "--offline", str(path), *words]) == status


def test_the_threshold(tmp_path: Path) -> None:
    path = tmp_path / "web.xml"
    path.write_text(domain("web", disk("/dev/sdb")))
    assert [main(["lint", "--offline", "--fail-on", least, str(path)]) for least in ("error", "warning", "notice", "never")] == [
        0, 1, 1, 0,
    ]  # fmt: skip


def test_what_cannot_be_found_out_is_no_finding_and_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "web.xml"
    path.write_text(domain("web", disk("/srv/not/there.img")))
    status, document = judged(capsys, path)
    assert (status, said(document)) == (3, ["VMG002 web"])
    path.write_text(domain("web", disk("/srv/not/there.img", driver="type='raw' cache='unsafe'")))
    status, document = judged(capsys, path)
    assert status == 1
    path.write_text("<domain>")
    assert judged(capsys, path)[0] == 3
    path.chmod(0)
    if os.geteuid():
        assert judged(capsys, path)[0] == 3


@pytest.mark.parametrize("words", [["--rules", "VMG4"], ["--ignore", "VMG001"]], ids=["rules", "ignore"])
def test_what_cannot_be_read_passes_no_rule(words: List[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "web.xml").write_text("<domain>")
    status, document = judged(capsys, "--offline", *words, tmp_path)
    assert status == 3 and [one["rule"] for one in document["findings"]] == ["VMG001"]


def test_a_domain_with_a_prefix_is_not_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """libvirt defines it; vmguard reads no such thing, and says so."""
    (tmp_path / "web.xml").write_text(domain("web", disk("/srv/a.img")))
    other = domain("new", disk("/srv/a.img")).replace("<domain ", "<x:domain xmlns:x='urn:x' ").replace("</domain", "</x:domain")
    (tmp_path / "new.xml").write_text(other)
    status, document = judged(capsys, "--offline", tmp_path)
    assert status == 3 and document["summary"]["definitions"] == 2


def test_a_folder_is_judged_whole(guests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """web1 on two hosts is one guest; the network is none."""
    status, document = judged(capsys, "--inventory", guests)
    assert status == 1
    assert document["summary"]["definitions"] == 3
    assert sorted(said(document)) == ["VMG102 web1", "VMG102 web1", "VMG102 web2"]


def test_a_file_is_judged_against_the_rest(guests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, document = judged(capsys, "--offline", "--inventory", guests, guests / "node1/web2.xml")
    assert status == 1 and said(document) == ["VMG102 web2"]
    assert (document["summary"]["definitions"], document["summary"]["compared"]) == (1, 2)
    (finding,) = document["findings"]
    assert {other["domain"] for other in finding["others"]} == {"web1"}


def test_what_cannot_be_compared_with_is_said(
    guests: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """web2 has a disk of its own, but nobody knows what web1 has."""
    (guests / "node1/web2.xml").write_text(domain("web2", disk("/srv/b.img")))
    (guests / "node1/web1.xml").write_text("<domain>")
    words = ("--offline", "--inventory", guests, guests / "node1/web2.xml")
    status, document = judged(capsys, *words)
    assert (status, [one["source"] for one in document["findings"]]) == (3, [str(guests / "node1/web1.xml")])
    assert (document["summary"]["definitions"], document["summary"]["compared"]) == (2, 1)

    read = sources.read_one

    def refused(path: str, folder: bool = True) -> Optional[bytes]:
        if path.endswith("node1/web1.xml"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return read(path, folder)

    monkeypatch.setattr(sources, "read_one", refused)
    status, document = judged(capsys, *words)
    assert status == 3 and "Permission denied" in document["findings"][0]["text"]


def test_one_path_on_two_hosts_is_a_warning(guests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (guests / "node1/web1.xml").unlink()
    status, document = judged(capsys, "--offline", "--inventory", guests)
    assert status == 0
    assert {(one["rule"], one["severity"]) for one in document["findings"]} == {("VMG102", "warning")}
    assert all("different hosts" in one["why"] for one in document["findings"])
    for name in ("node1/web2.xml", "node2/web1.xml"):  # a name that is the same everywhere
        path = guests / name
        path.write_text(path.read_text().replace("/srv/a.img", "/dev/disk/by-id/wwn-0x600a0b80000f1e1c"))
    assert judged(capsys, "--offline", "--inventory", guests)[0] == 1


def test_names_that_a_terminal_has_no_letters_for(tmp_path: Path) -> None:
    path = tmp_path / "web.xml"
    path.write_text(domain("日本", disk("/dev/sdb")), encoding="utf-8")
    done = subprocess.run(
        [*COMMAND, "lint", "--offline", str(path)],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "iso-8859-1"},
    )  # fmt: skip
    assert done.returncode == 0 and b"\\u65e5\\u672c" in done.stdout


@pytest.mark.timeout(30)
def test_many_comments_before_a_definition(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = "<?xml version='1.0'?>\n" + "<!-- a line of a licence -->\n" * 60
    (tmp_path / "web.xml").write_text(head + domain("web", disk("/srv/a.img")))
    (tmp_path / "network.xml").write_text("\ufeff" + head + "<network><name>a domain's</name></network>")
    status, document = judged(capsys, "--offline", tmp_path / "web.xml", tmp_path / "network.xml")
    assert (status, document["summary"]["definitions"]) == (0, 1)


def test_a_guest_of_two_hosts_is_compared_on_its_own_host(guests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """web1 is defined on node0 as well, whose path may be another one; on node1 web2 has its disk."""
    (guests / "node2").rename(guests / "node0")
    status, document = judged(capsys, "--offline", "--inventory", guests, guests / "node1/web2.xml")
    assert [(one["rule"], one["severity"]) for one in document["findings"]] == [("VMG102", "error")]
    assert status == 1


def test_a_definition_of_no_host_may_be_of_any(guests: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --offline equal paths are one disk, unless they are known to be of two hosts."""
    new = guests.parent / "new.xml"
    new.write_text(domain("new", disk("/srv/a.img")))
    status, document = judged(capsys, "--offline", "--inventory", guests, new)
    assert (status, [(one["rule"], one["severity"]) for one in document["findings"]]) == (1, [("VMG102", "error")])


def test_nothing_to_judge(tmp_path: Path) -> None:
    assert main(["lint"]) == 2
    assert main(["lint", str(tmp_path)]) == 2


def test_a_folder_that_cannot_be_looked_into_is_not_an_empty_one(
    guests: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = guests.parent / "empty"
    empty.mkdir()
    file = guests / "node1/web1.xml"
    assert main(["lint", "--offline", str(file), "--inventory", str(empty)]) == 2

    def refusing(look: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def refused(path: Any) -> Any:
            if str(path).endswith(("node2", sources.DEFINED)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
            return look(path)

        return refused

    for look in ("scandir", "listdir"):
        monkeypatch.setattr(os, look, refusing(getattr(os, look)))
    monkeypatch.setattr(sources, "library", lambda: None)
    for words in ([str(guests)], [str(file), "--inventory", str(guests)], ["--all"]):
        assert main(["lint", "--offline", *words]) == 2
        assert "Permission denied" in capsys.readouterr().err


def test_output_and_rules(guests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lint.sarif"
    main(["lint", "--offline", "--format", "sarif", "--output", str(out), str(guests)])
    assert json.loads(out.read_text())["version"] == "2.1.0"
    capsys.readouterr()
    assert main(["rules", "--json"]) == 0
    rules = json.loads(capsys.readouterr().out)["rules"]
    assert len(rules) == 42 and rules[0]["code"] == "VMG001"
    assert main(["explain", "VMG101"]) == 0
    assert "SEVERITY: error" in capsys.readouterr().out.replace("severity", "SEVERITY")


def test_libvirts_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lxml")
    if not os.path.exists("/usr/share/libvirt/schemas/domain.rng"):
        pytest.skip("libvirt's schema is not installed")
    path = tmp_path / "web.xml"
    path.write_text(domain("web", disk("/srv/a.img")))
    assert judged(capsys, "--offline", "--validate", path)[0] == 0
    path.write_text(domain("web", disk("/srv/a.img", inside="<shareabel/>")))
    assert judged(capsys, "--offline", path)[0] == 0
    status, document = judged(capsys, "--offline", "--validate", path)
    assert status == 1 and said(document) == ["VMG001 web"] and document["findings"][0]["place"]["line"]


def test_many_processes_find_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(240):
        (tmp_path / f"{number:03}.xml").write_text(domain(f"g{number}", disk(f"/srv/{number // 2}.img")))
    documents = [judged(capsys, "--offline", "--jobs", jobs, tmp_path)[1] for jobs in (1, 3)]
    assert documents[0] == documents[1] and len(documents[0]["findings"]) == 240


def test_a_thing_that_hundreds_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(300):
        (tmp_path / f"{number:03}.xml").write_text(domain(f"g{number}", disk("/srv/one.img")))
    document = judged(capsys, "--offline", tmp_path)[1]
    assert len(document["findings"]) == 300
    assert all(len(one["others"]) == 5 and one["more_others"] >= 290 for one in document["findings"])


class Libvirt:
    """As much of libvirt's module as lint asks for: domains by name, each with its XML, or with the code of an error."""

    VIR_DOMAIN_XML_INACTIVE, VIR_ERR_NO_DOMAIN, VIR_ERR_RPC = 2, 42, 39

    class libvirtError(Exception):
        def get_error_code(self) -> int:
            return int(self.args[0])

        def get_error_message(self) -> str:
            return f"error {self.args[0]}"

    class Domain(NamedTuple):
        title: str
        answer: Union[str, int]

        def name(self) -> str:
            return self.title

        def isPersistent(self) -> bool:
            return True

        def XMLDesc(self, _flags: int) -> str:
            if isinstance(self.answer, int):
                raise Libvirt.libvirtError(self.answer)
            return self.answer

    uri, host = "qemu:///system", os.uname().nodename

    def __init__(self, **domains: Union[str, int]) -> None:
        self.domains = domains

    def open(self, _uri: str) -> "Libvirt":
        return self

    openReadOnly = open

    def getURI(self) -> str:
        return self.uri

    def getHostname(self) -> str:
        return self.host

    def listAllDomains(self) -> "List[Libvirt.Domain]":
        return [self.Domain(*one) for one in self.domains.items()]

    def defineXML(self, text: str) -> "Libvirt.Domain":
        text.encode("utf-8")  # as the real one does
        return self.Domain("new", text)

    def close(self) -> None:
        pass


def test_a_domain_that_went_is_no_trouble(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the list of domains and the question for its XML."""
    web = domain("web", disk("/srv/a.img"))
    monkeypatch.setattr(sources, "library", lambda: Libvirt(web=web, build7=Libvirt.VIR_ERR_NO_DOMAIN))
    status, document = judged(capsys, "--offline", "--all")
    assert (status, document["summary"]["definitions"]) == (0, 1)
    monkeypatch.setattr(sources, "library", lambda: Libvirt(web=web, build7=Libvirt.VIR_ERR_RPC))
    assert judged(capsys, "--offline", "--all")[0] == 3


@pytest.mark.parametrize("uri", ["node2", "qemu+ssh://node2/system"], ids=["alias", "whole"])
def test_a_connection_by_an_alias(uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What it leads to is another host, whose paths are not looked for here."""
    there = Libvirt(web=domain("web", disk("/srv/not/here.img")))
    there.uri, there.host = "qemu+ssh://node2/system", "node2.example.org"
    monkeypatch.setattr(sources, "library", lambda: there)
    status, document = judged(capsys, "--connect", uri)
    assert (status, said(document), document["summary"]["definitions"]) == (0, [], 1)


def test_what_is_no_definition_is_not_defined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, path = tmp_path / "a.img", tmp_path / "new.xml"
    image.write_bytes(b"")
    monkeypatch.setattr(sources, "library", lambda: Libvirt(web=domain("web", "")))
    path.write_text("<network><name>default</name></network>")
    assert main(["define", str(path)]) == 2 and "it is no domain" in capsys.readouterr().err
    path.write_text("<?xml version='1.0' encoding='iso-8859-1'?>" + domain("é", disk(str(image))), encoding="iso-8859-1")
    assert main(["define", str(path)]) == 2 and "UTF-8" in capsys.readouterr().err
    path.write_text(domain("é", disk(str(image))))
    assert main(["define", str(path)]) == 0


def test_a_record_of_force_names_no_other_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new.xml"
    path.write_text("<domain type='xen'><name>new</name></domain>")
    monkeypatch.setattr(sources, "library", lambda: Libvirt(web=domain("web", "")))
    said: List[Any] = []
    monkeypatch.setattr(events, "record", lambda *words, **data: said.append(data["domain"]))
    assert main(["define", "--force", "an experiment", str(path)]) == 0
    assert said == [""]


@pytest.fixture
def watching(guests: Path) -> "Iterator[subprocess.Popen[str]]":
    process = subprocess.Popen(
        [*COMMAND, "lint", "--watch", "--offline", "--format", "github", "node1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=guests,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # who runs the tests in the background ignores it
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline().startswith("watching 2 definitions")
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.timeout(60)
def test_changes_are_judged_as_they_come(watching: "subprocess.Popen[str]", guests: Path) -> None:
    assert watching.stdout is not None
    new = guests / "node1/web3.xml"
    new.write_text(domain("web3", disk("/srv/a.img")))
    line = watching.stdout.readline()
    assert "VMG102" in line and "web3.xml" in line
    # as libvirt writes: beside it, then renamed; now it is clean, and says nothing
    aside = guests / "node1/web3.xml.new"
    aside.write_text(domain("web3", disk("/srv/c.img")))
    aside.rename(new)
    other = guests / "node1/web4.xml"
    other.write_text(domain("web4", disk("/srv/c.img")))
    line = watching.stdout.readline()
    assert "VMG102" in line and "web4.xml" in line
    new.unlink()
    other.write_text(domain("web4", disk("/srv/c.img", driver="type='raw' cache='unsafe'")))
    line = watching.stdout.readline()
    assert "VMG405" in line, "web3 is gone, and its disk is free"
    # those that were there at the beginning go and change, too
    (guests / "node1/web1.xml").unlink()
    (guests / "node1/web2.xml").write_text(domain("web2", disk("/srv/b.img")))
    other.write_text(domain("web4", disk("/srv/a.img")))
    (guests / "node1/web5.xml").write_text(domain("web5", disk("/dev/sdb")))
    assert "web5.xml" in watching.stdout.readline(), "nobody else has the disk of web4"
    watching.send_signal(signal.SIGINT)
    assert watching.wait(20) == 130


def test_a_watch_ends_with_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when libvirt is restarted. It would hear of nothing any more, and say nothing."""
    closed: List[Any] = []

    class Watched(Libvirt):
        VIR_DOMAIN_EVENT_ID_LIFECYCLE = 0

        def domainEventRegisterAny(self, *_words: object) -> None:
            pass

        def setKeepAlive(self, *_words: object) -> None:
            pass

        def registerCloseCallback(self, heard: Any, opaque: Any) -> None:
            closed.append(lambda: heard(self, 1, opaque))

    monkeypatch.setattr(sources, "library", Watched)
    monkeypatch.setattr(watch, "_looping", threading.Event())
    watch._looping.set()  # there is no loop of libvirt's to run
    watching = watch.Watch(Standing(lambda: Site(None), {}), [], ["qemu+ssh://node2/system"])
    closed[0]()
    with pytest.raises(BadRequest, match="the connection was closed"):
        watching.next()


class Page(HTMLParser):
    """Which elements there are, whether they are closed, and what they load."""

    EMPTY = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: List[str] = []
        self.counts: Dict[str, int] = {}
        self.loads: List[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loads += [
            value or "" for key, value in attrs if key in ("src", "href") and not (value or "").startswith("#")
        ]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page(guests: Path, tmp_path: Path) -> None:
    (guests / "node2/x.xml").write_text(domain("&lt;script>alert(1)", disk("/srv/&lt;b>.img", driver="")))
    out = tmp_path / "page.html"
    assert main(["report", "--offline", "--inventory", str(guests), "--html", str(out)]) == 0
    page = Page()
    text = out.read_text(encoding="utf-8")
    page.feed(text)
    assert page.open == [] and page.loads == []
    assert "script" not in page.counts and "<b>.img" not in text
    assert page.counts["svg"] == 1
    assert "Storage of 3 guests on 2 hosts" in text


def test_a_host_is_looked_at_once(tmp_path: Path) -> None:
    """What a definition asks of the host does not grow with the definitions before it."""
    from linting import report

    asked: List[str] = []

    class Counting(LiveFacts):
        def read(self, path: str, limit: int = 1 << 20, offset: int = 0) -> bytes:
            asked.append(path)
            return super().read(path, limit, offset)

    image = tmp_path / "a.img"
    image.write_bytes(b"")
    report(*(domain(f"g{n}", disk(str(image), inside="<readonly/>")) for n in range(20)), facts=Counting())
    assert asked.count("/proc/self/mountinfo") == 1


# -- the recipes of docs/lint.md ---------------------------------------------------------------------------------------


def recipe(name: str) -> str:
    text = (ROOT / "docs/lint.md").read_text(encoding="utf-8")
    found = re.search(rf"<!-- recipe: {name} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found.group(1)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command, in the path."""
    program = tmp_path / "bin/vmguard"
    program.parent.mkdir()
    program.write_text(
        f"#!/usr/bin/python3\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom vmguard.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def test_recipe_for_git(installed: Path, guests: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*words: str) -> "subprocess.CompletedProcess[str]":
        names = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        return subprocess.run(["git", *names, *words], cwd=guests, capture_output=True, text=True)

    git("init", "-q")
    hook = guests / ".git/hooks/pre-commit"
    hook.write_text(recipe("pre-commit"))
    hook.chmod(0o755)
    (guests / "node1/web2.xml").write_text(domain("web2", disk("/srv/b.img")))
    git("add", ".")
    done = git("commit", "-m", "clean")
    assert done.returncode == 0, done
    (guests / "node1/web2.xml").write_text(domain("web2", disk("/srv/a.img")))
    git("add", ".")
    done = git("commit", "-m", "double")
    assert done.returncode == 1 and "VMG102" in done.stdout + done.stderr
    git("rm", "-q", "--cached", "-r", "node1")
    (guests / "node2/default.xml").write_text(
        "<?xml version='1.0'?>\n<!-- a bridge -->\n<network><name>d</name></network>"
    )
    git("add", "node2")
    done = git("commit", "-m", "no domain at all")
    assert done.returncode == 0, done


@pytest.mark.parametrize("path, status", [("/srv/a.img", 1), ("/srv/b.img", 0)])
def test_recipe_for_ci(installed: Path, guests: Path, path: str, status: int) -> None:
    (guests / "node1/web2.xml").write_text(domain("web2", disk(path)))
    done = subprocess.run(["/bin/sh", "-eu", "-c", recipe("ci")], cwd=guests.parent, capture_output=True, text=True)
    assert done.returncode == status, done
    assert json.loads((guests.parent / "lint.sarif").read_text())["runs"]


@pytest.mark.parametrize("broken", [False, True])
def test_recipe_for_ansible(installed: Path, guests: Path, broken: bool) -> None:
    if shutil.which("ansible-playbook") is None:
        pytest.skip("ansible is not installed")
    if broken:
        (guests / "node1/web3.xml").write_text("<domain>")
        for name in ("node1/web1.xml", "node2/web1.xml"):
            (guests / name).unlink()
    playbook = installed / "lint.yml"
    playbook.write_text(
        recipe("ansible").replace("--all", f"--offline {guests}").replace("hosts: all", "hosts: localhost")
    )
    done = subprocess.run(
        ["ansible-playbook", "-i", "localhost,", "-c", "local", str(playbook)],
        capture_output=True, text=True, env={**os.environ, "ANSIBLE_LOCALHOST_WARNING": "0", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert (done.returncode != 0) == broken, done.stdout + done.stderr
    assert broken or "web2: disk vda is disk vda of" in done.stdout.replace('\\"', '"')
