"""Reading a file: strict keys, sentences that name the place, relative paths, secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from momkd_fl.config.base import load, secret
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.errors import UserError


def site_file(folder: Path, **changes: Any) -> Path:
    raw: dict[str, Any] = {
        "site": "north",
        "state_dir": "state",
        "connection": {"url": "https://example.org:9443"},
        "tls": {"ca": "ca.crt", "certificate": "/keys/north.crt", "private_key": "~/north.key"},
        "data": {
            "features": ["features", "/elsewhere"],
            "labels": {"path": "labels.csv"},
            "tasks": {"PR": {"column": "PR", "positive": ["1"], "negative": ["0"]}},
        },
    }
    raw.update(changes)
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def federation_file(folder: Path, **changes: Any) -> Path:
    raw: dict[str, Any] = {
        "name": "run",
        "task": "PR",
        "encoder": {"name": "uni2-h", "dim": 1536},
        "output_dir": "out",
        "members": {"north": {"certificate": "north.crt"}, "south": {"certificate": "south.crt"}},
    }
    raw.update(changes)
    path = folder / "federation.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


def refusal(path: Path, model: Any) -> UserError:
    with pytest.raises(UserError) as problem:
        load(path, model)
    assert str(path) in problem.value.sentence
    return problem.value


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "etc"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    for path in (site_file(folder), site_file(folder).relative_to(tmp_path)):
        config = load(path, SiteConfig)
        assert config.state_dir == folder / "state"
        assert config.data.features == [folder / "features", Path("/elsewhere")]
        assert config.data.labels.path == folder / "labels.csv"
        assert config.tls is not None
        assert config.tls.certificate == Path("/keys/north.crt")
        assert config.tls.private_key == Path("/home/somebody/north.key")


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"sitee": "x"}, "sitee", "did you mean 'site'?"),
        ({"connection": {"url": "https://a:1", "pol_max_s": 2}}, "connection.pol_max_s", "'poll_max_s'"),
        ({"qqq": 1}, "qqq", "known keys here: connection, consortium, cuda_graphs, data"),
        (
            {
                "data": {
                    "features": ["f"],
                    "labels": {"path": "l.csv"},
                    "tasks": {"PR": {"column": "PR", "positiv": ["1"], "positive": ["1"], "negative": ["0"]}},
                }
            },
            "data.tasks.PR.positiv",
            "'positive'",
        ),
        (
            {
                "data": {
                    "features": ["f"],
                    "labels": {"path": "l.csv"},
                    "tasks": {"PR": {"column": "PR", "positive": ["1"], "negative": ["0"]}},
                    "genomics": {"path": "rna.csv", "scale": "tpm", "patients": "id"},
                }
            },
            "data.genomics.patients",
            "'patient'",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    tmp_path: Path, changes: dict[str, Any], key: str, hint: str
) -> None:
    problem = refusal(site_file(tmp_path, **changes), SiteConfig)
    assert problem.code == "config-unknown-key"
    assert f"'{key}'" in problem.sentence
    assert hint in problem.sentence


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"memory": {"momentun": 0.5}}, "memory.momentun", "'momentum'"),
        ({"rounds": {"quorom": 1}}, "rounds.quorom", "'quorum'"),
        ({"members": {"north": {"certificat": "x"}}}, "members.north.certificat", "'certificate'"),
        ({"members": {"north": {"rol": "train"}}, "rounds": {"quorum": 1}}, "members.north.rol", "'role'"),
    ],
)
def test_so_it_is_for_a_federation(tmp_path: Path, changes: dict[str, Any], key: str, hint: str) -> None:
    problem = refusal(federation_file(tmp_path, **changes), FederationConfig)
    assert problem.code == "config-unknown-key"
    assert f"'{key}'" in problem.sentence
    assert hint in problem.sentence


def test_every_mistake_gets_its_own_sentence(tmp_path: Path) -> None:
    path = federation_file(tmp_path, classes=1, rounds={"count": 0}, nam="x")
    sentences = refusal(path, FederationConfig).sentence.splitlines()
    assert len(sentences) == 3
    assert all(line.startswith(str(path)) for line in sentences)


def test_a_missing_key_is_named_and_gets_no_default(tmp_path: Path) -> None:
    path = federation_file(tmp_path)
    raw = yaml.safe_load(path.read_text())
    del raw["encoder"]["dim"]
    path.write_text(yaml.safe_dump(raw))
    problem = refusal(path, FederationConfig)
    assert problem.code == "config-value"
    assert "'encoder.dim' is missing" in problem.sentence


@pytest.mark.parametrize("text", ["a: [1", "- only\n- a list\n", "", "just a word"])
def test_a_file_that_is_not_keys_and_values(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    assert refusal(path, SiteConfig).code == "config-not-yaml"


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("site: north\nstate_dir: 'never closed\n")
    assert "at line" in refusal(path, SiteConfig).sentence


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text("site: !!python/object/apply:os.getcwd []\n")
    assert refusal(path, SiteConfig).code == "config-not-yaml"


@pytest.mark.parametrize("make", ["nothing", "folder", "binary"])
def test_a_file_that_cannot_be_read(tmp_path: Path, make: str) -> None:
    path = tmp_path / "site.yaml"
    if make == "folder":
        path.mkdir()
    elif make == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    assert refusal(path, SiteConfig).code == "config-missing"


def test_options_are_merged_over_the_file_one_level_deep(tmp_path: Path) -> None:
    path = federation_file(tmp_path, rounds={"count": 7, "quorum": 1})
    config = load(path, FederationConfig, {"rounds": {"count": 3}, "seed": 9})
    assert (config.rounds.count, config.rounds.quorum, config.seed) == (3, 1, 9)
    with pytest.raises(UserError, match=r"rounds\.cuont"):
        load(path, FederationConfig, {"rounds": {"cuont": 3}})


def test_what_was_read_cannot_be_changed(tmp_path: Path) -> None:
    config = load(site_file(tmp_path), SiteConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.site = "south"


def test_a_secret_comes_from_the_environment_and_is_never_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORTH_PASSPHRASE", "näh")
    assert secret("NORTH_PASSPHRASE", "the key's passphrase") == "näh".encode()
    assert secret(None, "the key's passphrase") is None
    for value in (None, ""):
        if value is None:
            monkeypatch.delenv("NORTH_PASSPHRASE")
        else:
            monkeypatch.setenv("NORTH_PASSPHRASE", value)
        with pytest.raises(UserError, match="NORTH_PASSPHRASE") as problem:
            secret("NORTH_PASSPHRASE", "the key's passphrase")
        assert problem.value.code == "secret-missing"
