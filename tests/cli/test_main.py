"""The commands as a person meets them: help at no cost, keys, mistakes in files."""

from __future__ import annotations

import json
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from momkd_fl.cli import client, main, server
from momkd_fl.errors import UserError
from momkd_fl.security.pki import check_certificate

HEAVY = ("torch", "flwr", "pandas", "numpy", "matplotlib", "sklearn", "h5py", "rich")
HELPS = [
    ("client", ["--help"]),
    ("client", ["--version"]),
    ("server", ["--help"]),
    ("main", ["--help"]),
    ("main", ["demo", "--help"]),
    ("main", ["simulate", "--help"]),
    ("main", ["report", "--help"]),
    ("main", ["provision", "--help"]),
    ("main", ["check", "--help"]),
    ("main", ["ingest", "--help"]),
    ("main", ["privacy", "plan", "--help"]),
    ("main", ["ledger", "verify", "--help"]),
]


@pytest.mark.parametrize(("module", "arguments"), HELPS)
def test_help_imports_nothing_heavy_and_costs_no_time(module: str, arguments: list[str]) -> None:
    program = (
        "import importlib, json, sys\n"
        f"main = importlib.import_module('momkd_fl.cli.{module}').main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = json.loads(done.stderr.splitlines()[-1])
    assert not set(HEAVY) & set(loaded)
    assert done.stdout.startswith(("usage: ", "momkd-fl "))
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.3


@pytest.mark.parametrize("name", ["momkd", "momkd-server", "momkd-client"])
def test_the_installed_command(name: str) -> None:
    script = Path(sys.executable).parent / name
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("momkd-fl ")


def test_a_command_without_its_option_says_which(command) -> None:
    done = command("client")
    assert done.returncode == 2
    assert "--site" in done.stderr


def test_provision_makes_every_party_s_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["provision", "--out", str(tmp_path), "--host", "127.0.0.1", "--site", "ash", "--site", "birch"]
    assert main.main(arguments) == 0
    assert "Keep" in capsys.readouterr().out
    for party in ("server", "ash", "birch"):
        check_certificate(tmp_path / party / f"{party}.crt", tmp_path / "root" / "ca.crt")
        assert stat.S_IMODE((tmp_path / party / f"{party}.key").stat().st_mode) == 0o600
    key = (tmp_path / "ash" / "ash.key").read_bytes()
    assert main.main(arguments) == 2, "keys that exist are never replaced"
    assert (tmp_path / "ash" / "ash.key").read_bytes() == key
    assert str(tmp_path / "root" / "ca.") in capsys.readouterr().err


def test_provision_refuses_a_site_name_that_leads_elsewhere(tmp_path: Path, capsys) -> None:
    inside = tmp_path / "keys"
    assert main.main(["provision", "--out", str(inside), "--host", "localhost", "--site", "../other"]) == 2
    assert not (tmp_path / "other").exists()


# --- mistakes that are found before anything is sent -----------------------------------------------------------------


def said(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(("module", "option"), [("client", "--site"), ("server", "--config")])
def test_a_missing_file(module: str, option: str, command, tmp_path: Path) -> None:
    done = command(module, option, tmp_path / "nowhere.yaml")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "nowhere.yaml") in done.stderr


def test_an_unknown_key_is_refused_with_the_nearest_known_one(files, command) -> None:
    files.edit(files.site("ash"), "stat_dir", "x")
    files.edit(files.federation, "rounds.quorumm", 2)
    for module, option, path, key, near in (
        ("client", "--site", files.site("ash"), "stat_dir", "state_dir"),
        ("server", "--config", files.federation, "rounds.quorumm", "quorum"),
    ):
        done = command(module, option, path)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert f"'{key}' is not a known key; did you mean '{near}'?" in done.stderr


def test_an_expired_certificate_of_the_site(files, capsys) -> None:
    path = files.expire("ash")
    assert client.main(["--site", str(files.site("ash"))]) == 2
    text = said(capsys)
    assert str(path) in text
    assert "expired" in text


def test_an_expired_certificate_of_the_server(files, capsys) -> None:
    path = files.expire("server")
    assert server.main(["--config", str(files.federation)]) == 2
    text = said(capsys)
    assert str(path) in text
    assert "expired" in text


def test_an_expired_certificate_that_the_server_shows(files, capsys, shown_certificate) -> None:
    files.expire("server")
    port = shown_certificate(files.keys / "server")
    files.edit(files.site("ash"), "connection.url", f"https://127.0.0.1:{port}")
    assert client.main(["--site", str(files.site("ash"))]) == 2
    assert "certificate of the server at" in (text := said(capsys))
    assert "has expired" in text


def test_a_certificate_for_another_host(files, capsys, shown_certificate, tmp_path: Path) -> None:
    from momkd_fl.security.pki import issue_server

    issue_server(tmp_path / "elsewhere", files.keys / "root", "server", ["elsewhere.example"])
    port = shown_certificate(tmp_path / "elsewhere")
    files.edit(files.site("ash"), "connection.url", f"https://127.0.0.1:{port}")
    assert client.main(["--site", str(files.site("ash"))]) == 2
    assert "is not for the host in" in said(capsys)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("data.labels.path", "nowhere.csv", "nowhere.csv"),
        ("data.labels.patient", "patiant", "patiant"),
        ("data.features", ["nowhere"], "nowhere"),
        ("data.genomics.path", "nowhere.csv", "nowhere.csv"),
        ("tls.private_key", "nowhere.key", "nowhere.key"),
        ("connection", None, "connection"),
    ],
)
def test_a_wrong_entry_of_a_site_s_file_is_said_before_it_connects(files, capsys, key, value, word) -> None:
    files.edit(files.site("ash"), key, value)
    assert client.main(["--site", str(files.site("ash"))]) == 2
    assert word in said(capsys)


def test_a_member_without_a_certificate(files, capsys) -> None:
    files.edit(files.federation, "members.ash.certificate", None)
    assert server.main(["--config", str(files.federation)]) == 2
    assert "members.ash" in said(capsys)


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [("members.ash.config", None, "member-config-missing"), ("members.ash.config", "birch", "site-name-mismatch")],
)
def test_simulate_needs_every_member_s_own_file(files, capsys, key: str, value: str | None, code: str) -> None:
    files.edit(files.federation, key, None if value is None else str(files.site(value)))
    assert main.main(["simulate", "--federation", str(files.federation)]) == 2
    assert "ash" in said(capsys)
    from momkd_fl.config.base import load
    from momkd_fl.config.federation import FederationConfig
    from momkd_fl.federation.simulate import member_sites

    with pytest.raises(UserError) as caught:
        member_sites(load(files.federation, FederationConfig))
    assert caught.value.code == code
