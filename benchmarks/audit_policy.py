"""Lines of a site's contract and the tests that forbid by each; the tests themselves are in tests/federation."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

from pydantic import BaseModel

from benchmarks.figures import Figure, at_least, at_most
from momkd_fl.config.policy import Policy

TESTS = Path(__file__).resolve().parent.parent / "tests" / "federation" / "test_contract.py"
COMPLETE = "test_every_line_of_the_contract_has_a_deny_test"


def figures(quick: bool) -> list[Figure]:
    """Lines that a contract can have, and whether all tests of them pass: the one of completeness among them."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(TESTS)]
        subprocess.run(command, cwd=TESTS.parents[2], stdout=sys.stderr, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    passed = {str(case.get("name")) for case in cases if not len(case)}
    return [
        Figure("audit.policy.lines", float(len(set(_lines(Policy)))), "lines of a contract"),
        Figure("audit.policy.tests", float(len(cases)), "tests"),
        at_most("audit.policy.failed", float(len(cases) - len(passed)), "tests", 0),
        at_least("audit.policy.every_line_has_one", float(COMPLETE in passed), "1: yes", 1),
    ]


def _lines(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every line of the contract; of a section by name, the section itself too, since its keys are lines."""
    for name, field in model.model_fields.items():
        inner = list(_models(field.annotation))
        if not inner or "dict" in str(field.annotation):
            yield prefix + name
        for below in inner:
            yield from _lines(below, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for part in get_args(annotation):
        yield from _models(part)
