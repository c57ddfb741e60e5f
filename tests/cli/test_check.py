"""``momkd check`` as a person meets it: exit status, JSON, mends, and a real server that knows or refuses the key."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from momkd_fl.cli import main
from momkd_fl.security.pki import issue_site


@pytest.fixture
def site(hospitals: Path, tmp_path: Path) -> Path:
    raw = yaml.safe_load((hospitals / "ash" / "site.yaml").read_text())
    raw["state_dir"] = str(tmp_path / "state")
    data = raw["data"]
    data["features"] = [str(hospitals / "ash" / folder) for folder in data["features"]]
    data["labels"]["path"] = str(hospitals / "ash" / data["labels"]["path"])
    if "slides" in data:
        data["slides"]["path"] = str(hospitals / "ash" / data["slides"]["path"])
    data["genomics"]["path"] = str(hospitals / "ash" / data["genomics"]["path"])
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def test_warnings_are_status_1_and_json_says_the_same(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["check", "--site", str(site)]) == 1, "no server is configured: a warning"
    shown = capsys.readouterr().out
    assert "WARN" in shown
    assert "->" in shown
    assert main.main(["check", "--site", str(site), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == 1
    assert {found["status"] for found in told["findings"]} == {"PASS", "WARN"}
    assert all(found["mend"] for found in told["findings"] if found["status"] == "WARN")


def test_a_mistake_is_status_2_with_its_code(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = yaml.safe_load(site.read_text())
    raw["data"]["genomics"]["path"] = "absent.csv"
    site.write_text(yaml.safe_dump(raw))
    assert main.main(["check", "--site", str(site), "--quick", "--offline"]) == 2
    shown = capsys.readouterr()
    assert "table-missing" in shown.out
    assert "Traceback" not in shown.out + shown.err


def test_nothing_of_the_hospital_is_written_to(site: Path, hospitals: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (hospitals / "ash").rglob("*")}
    main.main(["check", "--site", str(site)])
    assert {path: path.stat().st_mtime_ns for path in (hospitals / "ash").rglob("*")} == before


@pytest.fixture
def running_server(files) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "momkd_fl.cli.server", "--config", str(files.federation)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for _ in range(600):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", files.port)) == 0:
                break
        assert process.poll() is None
        time.sleep(0.1)
    yield
    process.kill()
    process.wait()


def asked(site: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, str]]:
    """Status and code of the findings about the server and the clock."""
    main.main(["check", "--site", str(site), "--quick", "--json"])
    found = json.loads(capsys.readouterr().out)["findings"]
    return {one["check"]: (one["status"], one["code"]) for one in found if one["check"] in ("server", "clock")}


@pytest.mark.process
def test_a_real_server_answers_and_one_that_does_not_know_the_key(
    files, running_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    site = files.site("ash")
    assert asked(site, capsys) == {"server": ("PASS", ""), "clock": ("PASS", "")}
    issue_site(files.root / "stranger", files.keys / "root", "ash")
    files.edit(site, "tls.certificate", str(files.root / "stranger" / "ash.crt"))
    files.edit(site, "tls.private_key", str(files.root / "stranger" / "ash.key"))
    assert asked(site, capsys)["server"] == ("FAIL", "key-not-allowed")
