"""The files that a host reads: workflows and the devcontainer."""

import json
import re

import pytest
import yaml

from utils.profiles import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DEVCONTAINER = ROOT / ".devcontainer" / "devcontainer.json"
MAKEFILES = (ROOT / "Makefile", ROOT / "solutions" / "instructors.mk")


def make_targets() -> set[str]:
    text = "\n".join(path.read_text() for path in MAKEFILES)
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


@pytest.mark.parametrize("path", [*WORKFLOWS, DEVCONTAINER], ids=lambda path: path.name)
def test_hosted_file_calls_only_make_targets_that_exist(path):
    called = set(re.findall(r"\bmake ([a-z-]+)(?![\w=])", path.read_text()))
    assert called - make_targets() == set()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_only_reads_the_repository_by_default(path):
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflow_pins_actions_of_third_parties_by_commit(path):
    used = re.findall(r"uses: (\S+)", path.read_text())
    others = [action for action in used if not action.startswith("actions/")]
    assert [action for action in others if not re.search(r"@[0-9a-f]{40}$", action)] == []


def test_pages_workflow_publishes_no_solutions():
    text = (ROOT / ".github" / "workflows" / "pages.yml").read_text()
    assert re.findall(r"make site (.*)", text) == ["SOLUTIONS=no EXECUTE=yes TO=site"]


def test_devcontainer_sets_up_the_course():
    assert json.loads(DEVCONTAINER.read_text())["postCreateCommand"] == "make setup"
