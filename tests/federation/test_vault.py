"""Files at rest: sealed, found out when they are not the newest, and never written over when they cannot be read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from momkd_fl.cli.main import main as momkd
from momkd_fl.config.site import Seal
from momkd_fl.errors import UserError
from momkd_fl.federation import state as states
from momkd_fl.federation import vault as vaults
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.own_student import load_student, save_student
from momkd_fl.federation.plan import SitePlan, load_plan, save_plan
from momkd_fl.federation.publications import Publications
from momkd_fl.federation.vault import INDEX, Vault, open_vault
from momkd_fl.federation.watch import open_watch
from momkd_fl.security.seal import Sealed, create_seal_key
from momkd_fl.training.checkpoint import write_durably

KEY = bytes(range(32))
SEALED = Sealed("checkpoint", "her2", 3)


def code_of(action: Callable[..., object], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        action(*arguments)
    return caught.value.code


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Vault(KEY).write(tmp_path / "state", b"weights of round 3", SEALED)
    return tmp_path / "state"


def written(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.parent.iterdir()}


def test_what_is_written_comes_back_and_nothing_of_it_shows(path: Path) -> None:
    assert Vault(KEY).read(path, "checkpoint") == b"weights of round 3"
    assert set(written(path)) == {"state.sealed", INDEX}
    for content in written(path).values():
        assert b"weights" not in content
    for each in path.parent.iterdir():
        assert each.stat().st_mode & 0o777 == 0o600


def test_without_a_key_files_are_as_ever(tmp_path: Path) -> None:
    Vault().write(tmp_path / "state", b"weights", SEALED)
    assert written(tmp_path / "state") == {"state": b"weights"}
    assert Vault().read(tmp_path / "state", "checkpoint") == b"weights"
    assert Vault().read(tmp_path / "none", "checkpoint") is None
    assert Vault(KEY).read(tmp_path / "none", "checkpoint") is None


@pytest.mark.parametrize("action", ["read", "write", "check"])
def test_another_key_neither_reads_nor_writes(path: Path, action: str) -> None:
    before, other = written(path), Vault(bytes(32))
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: other.read(path, "checkpoint"),
        "write": lambda: other.write(path, b"new", SEALED),
        "check": lambda: other.check(path.parent),
    }
    assert code_of(calls[action]) == "seal-broken"
    assert written(path) == before


@pytest.mark.parametrize("action", ["read", "check", "write"])
def test_no_key_is_said_and_nothing_is_started_anew(path: Path, action: str) -> None:
    before = written(path)
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: Vault().read(path, "checkpoint"),
        "check": lambda: Vault().check(path.parent),
        "write": lambda: Vault().write(path, b"new", SEALED),
    }
    assert code_of(calls[action]) == "seal-missing-key"
    assert written(path) == before


@pytest.mark.parametrize("other", [Sealed("checkpoint", "her2", 4), Sealed("checkpoint", "odx", 3), SEALED])
def test_an_older_file_put_back_alone_is_refused(path: Path, other: Sealed) -> None:
    """Right key, other run or round; and even the same run and round, written twice."""
    old = path.with_name("state.sealed").read_bytes()
    vault = Vault(KEY)
    vault.write(path, b"newer weights", other)
    assert Vault(KEY).read(path, "checkpoint") == b"newer weights"
    path.with_name("state.sealed").write_bytes(old)
    before = written(path)
    assert code_of(Vault(KEY).read, path, "checkpoint") == "seal-other"
    assert written(path) == before


def test_a_file_in_the_place_of_another_is_refused(path: Path) -> None:
    Vault(KEY).write(path.with_name("model"), b"model", Sealed("model", "her2", 3))
    shutil.copy(path.with_name("model.sealed"), path.with_name("state.sealed"))
    assert code_of(Vault(KEY).read, path, "checkpoint") == "seal-other"
    assert code_of(Vault(KEY).read, path.with_name("model"), "checkpoint") == "seal-other"


@pytest.mark.parametrize("name", ["state.sealed", INDEX])
@pytest.mark.parametrize("harm", ["cut", "flipped", "empty"])
def test_damage_is_found_and_nothing_is_lost(path: Path, name: str, harm: str) -> None:
    file = path.with_name(name)
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes({"cut": content[:-1], "flipped": content, "empty": b""}[harm])
    before = written(path)
    assert code_of(Vault(KEY).read, path, "checkpoint") in {"seal-broken", "seal-unknown"}
    assert written(path) == before


def test_a_lost_index_is_said(path: Path) -> None:
    path.with_name(INDEX).unlink()
    assert code_of(Vault(KEY).read, path, "checkpoint") == "seal-index-missing"
    assert code_of(Vault(KEY).write, path, b"new", SEALED) == "seal-index-missing"
    shutil.copy(path.with_name("state.sealed"), path.with_name(INDEX))
    assert code_of(Vault(KEY).read, path, "checkpoint") == "seal-other"


def test_a_clear_file_beside_is_refused(path: Path) -> None:
    path.write_bytes(b"put there by somebody without the key")
    assert code_of(Vault(KEY).read, path, "checkpoint") == "seal-in-clear"
    path.with_name("state.sealed").unlink()
    assert code_of(Vault(KEY).read, path, "checkpoint") == "seal-in-clear"
    assert code_of(Vault(KEY).write, path, b"new", SEALED) == "seal-in-clear"


class KilledError(Exception):
    pass


def test_killed_at_any_moment_the_folder_can_be_read_and_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each write is three replacements; the process dies before each of them, twice in a row."""
    left = 0

    def dying(target: Path, data: bytes) -> None:
        nonlocal left
        if left == 0:
            raise KilledError
        left -= 1
        write_durably(target, data)

    monkeypatch.setattr(vaults, "write_durably", dying)
    last = b"weights of round 3"
    for number in range(16):
        new = b"weights %d" % number
        left = number % 4
        try:
            Vault(KEY).write(path, new, Sealed("checkpoint", "her2", number))
        except KilledError:
            assert number % 4 < 3
        found = Vault(KEY).read(path, "checkpoint")
        assert found == (new if number % 4 >= 2 else last)
        last = found


def test_the_key_is_in_a_file_or_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = create_seal_key(tmp_path / "a.seal.key")
    open_vault(Seal(key_file=tmp_path / "a.seal.key")).write(tmp_path / "state", b"weights", SEALED)
    monkeypatch.setenv("SITE_SEAL_KEY", key.hex())
    assert open_vault(Seal(key_env="SITE_SEAL_KEY")).read(tmp_path / "state", "checkpoint") == b"weights"
    (tmp_path / "link").symlink_to(tmp_path / "a.seal.key")
    assert code_of(open_vault, Seal(key_file=tmp_path / "link")) == "key-symlink"
    os.chmod(tmp_path / "a.seal.key", 0o644)
    assert code_of(open_vault, Seal(key_file=tmp_path / "a.seal.key")) == "key-mode"
    for wrong in ({}, {"key_file": tmp_path, "key_env": "A"}):
        with pytest.raises(ValueError, match="one of the two"):
            Seal.model_validate(wrong)


def test_a_site_s_files_go_through_the_vault(tmp_path: Path) -> None:
    vault, plan = Vault(KEY), SitePlan("her2", {"task": "HER2"}, ("ESR1",), "hash", {"mean": np.ones(1)})
    save_plan(tmp_path, plan, vault)
    weights = {"histology": np.arange(5, dtype=np.float32)}
    save_student(tmp_path, "her2", 2, weights, vault)
    assert load_plan(tmp_path, "her2", Vault(KEY)).panel == ("ESR1",)
    found = load_student(tmp_path, "her2", Vault(KEY))
    assert found is not None
    np.testing.assert_array_equal(found["histology"], weights["histology"])
    assert code_of(load_plan, tmp_path, "her2", Vault(bytes(32))) == "seal-broken", "not taken for no plan"
    assert code_of(load_plan, tmp_path, "her2") == "seal-missing-key"
    assert load_student(tmp_path, "another run", Vault(KEY)) is None


def test_counts_that_left_are_sealed_too(tmp_path: Path) -> None:
    path, vault = tmp_path / "publications.json", Vault(KEY)
    Publications.create(path, vault).publish("slides", [7], 11)
    assert code_of(Publications, path) == "publications-unreadable" or not path.exists()
    again = Publications(path, Vault(KEY))
    again.publish("slides", [9], 11)
    shutil.copy(tmp_path / "publications.json.sealed", tmp_path / "old")
    again.publish("slides", [30], 11)
    shutil.copy(tmp_path / "old", tmp_path / "publications.json.sealed")
    assert code_of(Publications, path, Vault(KEY)) == "seal-other", "an old copy forgets what was withheld"


# --- a run


def test_a_sealed_run_resumes_and_leaves_nothing_in_the_clear(in_process, tmp_path, stop) -> None:
    members = {"ash": "train", "birch": "train"}
    one = in_process(members, root=tmp_path, rounds={"count": 1, "quorum": 2})
    for site, participant in one.participants.items():
        participant.vault = Vault(KEY if site == "ash" else KEY[::-1])

    def coordinator(vault: Vault, **options: Any) -> Coordinator:
        watch = open_watch(one.config, plain=True)
        return Coordinator(one.config, one.grid(), watch, stop, lambda: {}, vault=vault, **options)

    first = coordinator(Vault(KEY))
    outcome = first.run()
    assert outcome is not None
    names = {each.relative_to(tmp_path).as_posix() for each in tmp_path.rglob("*") if each.is_file()}
    for name in ("model.safetensors", "plan.safetensors", "predictions_validation.csv", "provenance.json"):
        assert f"state/ash/{name}.sealed" in names
        assert f"state/ash/{name}" not in names
    assert {"server/checkpoint.safetensors.sealed", "server/model.safetensors.sealed"} <= names
    assert not {each for each in names if each.endswith((".safetensors", ".csv"))}
    state = states.load(tmp_path / "server" / "checkpoint.safetensors", Vault(KEY))
    assert state.round == 1
    for wrong, code in ((Vault(bytes(32)), "seal-broken"), (Vault(), "seal-missing-key")):
        assert code_of(coordinator, wrong) == code
    again = coordinator(Vault(KEY)).run()
    assert again is not None
    assert again.state.run == outcome.state.run
    fresh = coordinator(Vault(KEY), fresh=True)
    assert list((tmp_path / "server").glob("checkpoint.*.old.sealed"))
    assert fresh._resumed() is None


# --- the owner


def test_the_owner_seals_what_was_clear_and_reads_what_is_sealed(tmp_path: Path, hospitals: Path, capsys: Any) -> None:
    key = tmp_path / "ash.seal.key"
    create_seal_key(key)
    raw = yaml.safe_load((hospitals / "ash" / "site.yaml").read_text("utf-8"))
    raw["data"] = {
        **raw["data"], "features": [str(tmp_path)], "labels": {"path": "labels.csv"}, "genomics": None, "slides": None,
    }  # fmt: skip
    raw |= {"state_dir": "state", "seal": {"key_file": str(key)}}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(raw), "utf-8")
    folder = tmp_path / "state"
    save_plan(folder, SitePlan("her2", {"task": "HER2"}, ("ESR1",)))
    save_student(folder, "her2", 2, {"histology": np.ones(3, np.float32)})
    (folder / "predictions_test.csv").write_text("patient,label,p0,p1\nP1,1,0.2,0.8\n")
    site = str(tmp_path / "site.yaml")
    assert momkd(["seal", "--site", site]) == 0
    assert sorted(each.name for each in folder.iterdir()) == [
        INDEX, "plan.safetensors.sealed", "predictions_test.csv.sealed", "student.safetensors.sealed",
    ]  # fmt: skip
    assert load_plan(folder, "her2", open_vault(Seal(key_file=key))).panel == ("ESR1",)
    capsys.readouterr()
    assert momkd(["seal", "--site", site]) == 0
    assert "Nothing lies in the clear" in capsys.readouterr().out
    out = tmp_path / "predictions.csv"
    command = ["unseal", str(folder / "predictions_test.csv.sealed"), "--out", str(out)]
    assert momkd([*command, "--key-file", str(key)]) == 0
    assert "the predictions of run" in capsys.readouterr().out
    assert out.read_text().startswith("patient,label")
    assert out.stat().st_mode & 0o777 == 0o600
    shutil.copy(out, folder / "predictions_test.csv")
    assert momkd(["seal", "--site", site]) == 2
    assert "seal-both" in capsys.readouterr().err
