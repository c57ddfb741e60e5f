"""The annotated examples in ``sites/`` are valid and fit one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig

SITES = Path(__file__).parents[2] / "sites"
HOSPITALS = sorted(SITES.glob("hospital-*.yaml"))


def test_there_is_an_example_of_each_kind() -> None:
    configs = [load(path, SiteConfig) for path in HOSPITALS]
    assert {config.role for config in configs} == {"train", "evaluate"}
    assert {config.data.genomics is None for config in configs if config.role == "train"} == {True, False}


@pytest.mark.parametrize("path", HOSPITALS, ids=lambda path: path.stem)
def test_a_hospital_s_example_can_join_the_example_federation(path: Path) -> None:
    site = load(path, SiteConfig)
    federation = load(SITES / "federation.yaml", FederationConfig)
    member = federation.members[site.site]
    assert member.role == site.role
    assert member.certificate is not None
    assert federation.task in site.data.tasks
    assert site.connection is not None
    assert site.connection.url.endswith(f":{federation.listen.port}")
    assert site.tls is not None
    assert site.tls.certificate == member.certificate
    assert federation.tls is not None
    assert federation.tls.ca == site.tls.ca
