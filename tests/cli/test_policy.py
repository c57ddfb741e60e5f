"""``momkd policy`` and ``momkd-client --dry-run`` as a privacy officer meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from momkd_fl.cli import client, main
from momkd_fl.config.base import load
from momkd_fl.config.site import SiteConfig
from momkd_fl.federation.dry_run import settings_for
from momkd_fl.security.detached import signature_path


def signing_key(files: Any) -> Path:
    """The key that the site's certificate names."""
    return Path(files.keys / "ash" / "ash.sign.key")


@pytest.fixture
def site(files: Any) -> Path:
    """A site of the consortium that has no contract yet."""
    folder = files.root / "egress"
    raw = yaml.safe_load(files.site("ash").read_text())
    raw["egress"] = {
        "policy": str(folder / "policy.yaml"),
        "signing_key": str(signing_key(files)),
        "ledger": str(folder / "ledger.jsonl"),
        "odometer": str(folder / "odometer.jsonl"),
        "publications": str(folder / "publications.json"),
    }
    files.site("ash").write_text(yaml.safe_dump(raw))
    return Path(files.site("ash"))


def write(files: Any, site: Path, *more: str) -> int:
    certificate = files.keys / "server" / "server.crt"
    return main.main(
        [
            "policy",
            "write",
            "--site",
            str(site),
            "--coordinator",
            str(certificate),
            "--run",
            "small",
            "--task",
            "PR",
            *more,
        ]
    )


def test_write_explain_sign_check(files: Any, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = files.root / "egress"
    assert write(files, site) == 0
    made = {path.name for path in folder.iterdir()}
    assert made == {
        "policy.yaml",
        "ledger.jsonl",
        "odometer.jsonl",
        "publications.json",
    }
    assert main.main(["check", "--site", str(site), "--quick", "--offline"]) == 2, "it is not signed"
    assert "policy-unsigned" in capsys.readouterr().out
    assert main.main(["policy", "explain", str(folder / "policy.yaml")]) == 0
    told = capsys.readouterr()
    assert "WITHOUT noise" in told.out
    assert "not signed" in told.err
    assert main.main(["policy", "sign", str(folder / "policy.yaml"), "--key", str(signing_key(files))]) == 0
    assert main.main(["check", "--site", str(site), "--quick", "--offline"]) < 2
    assert "The contract allows it" in capsys.readouterr().out
    assert write(files, site) == 2, "a contract is not overwritten"
    assert "policy-exists" in capsys.readouterr().err


def test_a_task_without_labels_is_a_slip(files: Any, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(files, site, "--task", "PRR") == 2
    assert "policy-task" in capsys.readouterr().err
    assert not (files.root / "egress").exists()


def test_an_edited_contract_is_refused(files: Any, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = files.root / "egress" / "policy.yaml"
    write(files, site)
    main.main(["policy", "sign", str(policy), "--key", str(signing_key(files))])
    policy.write_text(policy.read_text().replace("epsilon: 8.0", "epsilon: 80.0"))
    assert "80" in policy.read_text()
    assert client.main(["--site", str(site)]) == 2
    assert "policy-signature" in capsys.readouterr().err


def test_without_a_contract_the_client_does_not_start(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(files.site("ash").read_text())
    del raw["egress"]
    files.site("ash").write_text(yaml.safe_dump(raw))
    assert client.main(["--site", str(files.site("ash"))]) == 2
    assert "egress-missing" in capsys.readouterr().err


@pytest.mark.parametrize("site_name", ["ash", "holly"])
def test_a_dry_run_writes_what_would_leave_and_touches_no_book(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], site_name: str
) -> None:
    site, out = files.site(site_name), tmp_path / "looked-at"
    books = files.keys / site_name / "egress"
    before = {path.name: path.read_bytes() for path in books.iterdir()}
    asked = ["--site", str(site), "--dry-run", "--federation", str(files.federation), "--out", str(out)]
    assert client.main(asked) == 0
    assert "Nothing was sent" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in books.iterdir()} == before
    last = "train" if site_name == "ash" else "evaluate"
    (folder,) = out.glob(f"*-{last}")
    summary = (folder / "summary.txt").read_text()
    for path in folder.glob("*.npy"):
        value = np.load(path, allow_pickle=False)
        assert f"tensor {path.stem}: float32, shape {list(value.shape)}, {path.stat().st_size:,} bytes" in summary
    assert (folder / "scores.counts.npy").exists()
    assert json.loads((folder / "envelope.json").read_text())["kind"] == last
    assert not list(out.rglob("*predictions*"))
    assert client.main(asked) == 2, "an earlier dry run is not mixed with this one"


def test_settings_without_the_coordinator_s_file_are_the_site_s_own(files: Any) -> None:
    settings = settings_for(load(files.site("ash"), SiteConfig))
    assert (settings.task, settings.encoder.name, settings.encoder.dim, settings.classes) == (
        "PR",
        "synthetic-16",
        16,
        2,
    )


def test_a_dry_run_for_a_task_that_the_contract_lacks_says_so(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = files.keys / "ash" / "egress" / "policy.yaml"
    policy.write_text(yaml.safe_dump({**yaml.safe_load(policy.read_text()), "tasks": ["HER2"]}))
    main.main(["policy", "sign", str(policy), "--key", str(signing_key(files))])
    asked = ["--site", str(files.site("ash")), "--dry-run", "--federation", str(files.federation)]
    assert client.main([*asked, "--out", str(tmp_path / "out")]) == 1
    assert "contract-task" in capsys.readouterr().out
    assert not list((tmp_path / "out").iterdir())


def test_under_a_narrow_contract_a_dry_run_says_what_is_stopped(
    files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = files.keys / "ash" / "egress"
    policy = folder / "policy.yaml"
    raw = yaml.safe_load(policy.read_text())
    del raw["messages"]["train"]["tensors"]["update.genomics"]
    policy.write_text(yaml.safe_dump(raw))
    main.main(["policy", "sign", str(policy), "--key", str(signing_key(files))])
    assert signature_path(policy).exists()
    asked = ["--site", str(files.site("ash")), "--dry-run", "--federation", str(files.federation)]
    assert client.main([*asked, "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "contract-tensor" in told.out
    assert "update.genomics" in told.err
    assert not list((tmp_path / "out").glob("*-train"))
    assert list((tmp_path / "out").glob("*-evaluate"))
