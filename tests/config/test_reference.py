"""The reference names every key there is, and importing the models is cheap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from pydantic import BaseModel

from momkd_fl.config.base import _models
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.policy import Policy
from momkd_fl.config.reference import configuration_reference
from momkd_fl.config.site import SiteConfig


def keys(model: type[BaseModel]) -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        inner = _models(field.annotation)
        yield name, field.description or (inner[0].__doc__ if inner else None)
        for below in inner:
            yield from keys(below)


def test_every_key_is_described_and_listed() -> None:
    page = configuration_reference()
    for model in (SiteConfig, FederationConfig, Policy):
        for name, description in keys(model):
            assert description, name
            assert f".{name}`" in page or f"`{name}`" in page
            assert description.strip().splitlines()[0] in page


def test_a_page_row_has_four_cells() -> None:
    rows = [line for line in configuration_reference().splitlines() if line.startswith("|")]
    assert rows
    assert {row.replace(r"\|", "").count("|") for row in rows} == {5}


def test_reading_a_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys, momkd_fl.config.federation, momkd_fl.config.site\n"
        "print(sorted({'torch', 'pandas', 'numpy', 'flwr', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
