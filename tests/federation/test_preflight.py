"""The preflight of certificates, machine and server; and what leaves, from the messages' own schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from momkd_fl.cli.consortium import free_port, provision
from momkd_fl.config.site import Seal, SiteConfig
from momkd_fl.data.check import Finding
from momkd_fl.errors import UserError
from momkd_fl.federation import preflight
from momkd_fl.federation.messages import KINDS
from momkd_fl.federation.preflight import check_site, refuse_failures
from momkd_fl.federation.vault import open_vault
from momkd_fl.security.pki import issue_site
from momkd_fl.security.seal import Sealed, create_seal_key


def site_of(hospitals: Path, tmp_path: Path, keys: Path, port: int, **changes: Any) -> SiteConfig:
    import yaml

    raw = yaml.safe_load((hospitals / "ash" / "site.yaml").read_text())
    base = hospitals / "ash"
    raw["state_dir"] = str(tmp_path / "state")
    raw["connection"] = {"url": f"https://127.0.0.1:{port}"}
    raw["tls"] = {
        "ca": str(keys / "root" / "ca.crt"),
        "certificate": str(keys / "ash" / "ash.crt"),
        "private_key": str(keys / "ash" / "ash.key"),
    }
    return SiteConfig.model_validate({**raw, **changes}, context={"base": base})


def look(site: SiteConfig, **options: bool) -> list[Finding]:
    return check_site(site, lambda what, done, total: None, **options)


def test_a_site_is_told_whether_what_it_keeps_is_sealed(hospitals: Path, tmp_path: Path, keys: Path) -> None:
    clear = of(look(site_of(hospitals, tmp_path, keys, free_port()), network=False), "at rest")
    assert [(found.status, "seal" in found.mend) for found in clear] == [("WARN", True)]
    create_seal_key(tmp_path / "a.seal.key")
    create_seal_key(tmp_path / "b.seal.key")
    site = site_of(hospitals, tmp_path, keys, free_port(), seal={"key_file": str(tmp_path / "a.seal.key")})
    assert site.seal is not None
    open_vault(site.seal).write(site.state_dir / "x", b"content", Sealed("x", "run", 0))
    assert [found.status for found in of(look(site, network=False), "at rest")] == ["PASS"]
    other = site.model_copy(update={"seal": Seal(key_file=tmp_path / "b.seal.key")})
    assert [found.code for found in of(look(other, network=False), "at rest")] == ["seal-broken"]


def of(findings: list[Finding], check: str) -> list[Finding]:
    return [found for found in findings if found.check == check]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    provision(folder, "small consortium", ["ash"])
    return folder


def test_a_server_that_is_not_there_is_a_warning(hospitals: Path, tmp_path: Path, keys: Path) -> None:
    findings = look(site_of(hospitals, tmp_path, keys, free_port()))
    assert [found.status for found in of(findings, "server")] == ["WARN"]
    assert [found.status for found in of(findings, "certificate")] == ["PASS"]
    assert not [found for found in findings if found.status == "FAIL"]


def test_without_network_the_server_is_not_asked(hospitals: Path, tmp_path: Path, keys: Path) -> None:
    assert not of(look(site_of(hospitals, tmp_path, keys, free_port()), network=False), "server")


def test_a_certificate_near_its_end_is_a_warning(hospitals: Path, tmp_path: Path, keys: Path) -> None:
    issue_site(tmp_path / "short", keys / "root", "ash", days=10)
    tls = {
        "ca": str(keys / "root" / "ca.crt"),
        "certificate": str(tmp_path / "short" / "ash.crt"),
        "private_key": str(tmp_path / "short" / "ash.key"),
    }
    findings = look(site_of(hospitals, tmp_path, keys, free_port(), tls=tls), network=False)
    assert [found.status for found in of(findings, "certificate")] == ["WARN"]


def test_a_key_of_another_certificate_fails(hospitals: Path, tmp_path: Path, keys: Path) -> None:
    issue_site(tmp_path / "other", keys / "root", "ash")
    tls = {
        "ca": str(keys / "root" / "ca.crt"),
        "certificate": str(keys / "ash" / "ash.crt"),
        "private_key": str(tmp_path / "other" / "ash.key"),
    }
    findings = look(site_of(hospitals, tmp_path, keys, free_port(), tls=tls), network=False)
    with pytest.raises(UserError) as mistake:
        refuse_failures(findings)
    assert mistake.value.code == "key-of-another-certificate"


def test_memory_that_does_not_suffice_fails(
    hospitals: Path, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "_BASE_MB", 1e9)
    findings = look(site_of(hospitals, tmp_path, keys, free_port()), network=False)
    assert [found.code for found in of(findings, "memory")] == ["resources-short"]


def test_what_a_gpu_would_need_is_said_without_one(hospitals: Path, tmp_path: Path, keys: Path) -> None:
    (found,) = of(look(site_of(hospitals, tmp_path, keys, free_port(), device="cpu"), network=False), "GPU memory")
    assert found.status == "PASS"
    assert "MB" in found.sentence


@pytest.mark.parametrize(("off_s", "status"), [(0.4, "PASS"), (-90.0, "WARN"), (4000.0, "FAIL")])
def test_the_clock(off_s: float, status: str) -> None:
    assert [found.status for found in preflight._clock(off_s)] == [status]


@pytest.mark.parametrize("role", ["train", "evaluate"])
def test_what_leaves_is_every_reply_a_site_of_that_role_gives(
    hospitals: Path, tmp_path: Path, keys: Path, role: str
) -> None:
    findings = look(site_of(hospitals, tmp_path, keys, free_port(), role=role), network=False)
    said = " ".join(found.sentence for found in of(findings, "leaves the site"))
    for kind in KINDS:
        if role == "evaluate" and kind.name in ("train", "initialise", "select"):
            assert f"'{kind.name}'" not in said
        else:
            assert all(field in said for field in kind.reply.model_fields)


def test_who_is_on_the_allow_list_and_signs_with_the_listed_key(hospitals: Path, tmp_path: Path, keys: Path) -> None:
    consortium = {
        "charter": str(keys / "consortium.json"),
        "allow_list": str(keys / "allow-list.json"),
        "seen": str(tmp_path / "seen.json"),
    }
    folder = keys / "ash"
    egress = dict.fromkeys(("policy", "ledger", "odometer", "publications"), str(tmp_path / "none"))
    signing = {"signing_key": str(folder / "ash.sign.key")}
    port = free_port()
    site = site_of(hospitals, tmp_path, keys, port, consortium=consortium, egress=egress | signing)
    assert [found.status for found in of(look(site, network=False), "allow-list")] == ["PASS"]
    other = {"signing_key": str(keys / "server" / "server.sign.key")}
    site = site_of(hospitals, tmp_path, keys, port, consortium=consortium, egress=egress | other)
    assert [found.code for found in of(look(site, network=False), "allow-list")] == ["signing-key-other"]
    site = site_of(hospitals, tmp_path, keys, port)
    assert [found.status for found in of(look(site, network=False), "allow-list")] == ["WARN"]
