"""``momkd provision`` from the first key to a site's folder, each step at its own party, and what each step refuses."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from momkd_fl.cli import main
from momkd_fl.config.base import load
from momkd_fl.config.policy import policy_from
from momkd_fl.config.site import SiteConfig
from momkd_fl.federation.identity import Membership
from momkd_fl.security.allowlist import read_allow_list
from momkd_fl.security.charter import read_charter
from momkd_fl.security.keystore import load_private_key
from momkd_fl.security.party import hosts_of, party_of
from momkd_fl.security.pki import certificate_sha256, private_key_of
from momkd_fl.security.seal import Sealed, create_seal_key, seal

PASSPHRASE = "correct horse battery staple"


@dataclass
class Steps:
    """Runs steps in this process and remembers what they say."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    said: str = ""

    def __call__(self, *arguments: object, status: int = 0) -> str:
        assert main.main(["provision", *map(str, arguments)]) == status, self.capsys.readouterr().err
        shown = self.capsys.readouterr()
        assert "Traceback" not in shown.err
        self.said = shown.out + shown.err
        return self.said

    def refused(self, code: str, *arguments: object) -> None:
        assert f"[{code}]" in self(*arguments, status=2)

    def digest(self) -> str:
        found = re.findall(r"[0-9a-f]{4}(?: [0-9a-f]{4}){7}", self.said)
        return str(found[-1])

    def party(self, name: str, *options: str) -> Path:
        """Request and certificate of a party; returns the certificate."""
        self("request", "--name", name, "--out", self.folder / name, *options)
        self("sign", self.folder / name / f"{name}.request.json", "--root", self.root, "--out", self.certificates,
             "--digest", self.digest())  # fmt: skip
        return self.certificates / f"{name}.crt"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def certificates(self) -> Path:
        return self.folder / "certificates"

    def signing(self, keyholder: str = "keyholder") -> list[object]:
        folder = self.root if keyholder == "keyholder" else self.folder / keyholder
        return ["--root", self.root, "--key", folder / f"{keyholder}.sign.key"]


@pytest.fixture
def steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Steps:
    return Steps(tmp_path, capsys)


@pytest.fixture
def founded(steps: Steps) -> Steps:
    """A consortium with one keyholder, a coordinator and a site, on list 1."""
    steps("init", "--out", steps.root, "--name", "trial")
    hub, ash = steps.party("hub", "--kind", "server", "--host", "hub.example"), steps.party("ash")
    steps("allow", hub, ash, *steps.signing(), "--out", steps.folder / "1.json")
    return steps


def test_a_kit_starts_a_site_that_made_its_own_keys(founded: Steps) -> None:
    folder = founded.folder
    options = ["--certificate", founded.certificates / "ash.crt", "--server-certificate",
               founded.certificates / "hub.crt", "--root", founded.root, "--list", folder / "1.json"]  # fmt: skip
    founded("kit", *options, "--url", "https://hub.example", "--proxy", "http://proxy:3128", "--out", folder / "kit")
    kit = folder / "kit"
    names = {str(path.relative_to(kit)) for path in kit.rglob("*") if path.is_file()}
    assert names == {
        "README.md", "site.yaml", "policy.template.yaml", "momkd-client.service", "client.yaml", "consortium.json",
        "allow-list.json", "keys/ca.crt", "keys/ash.crt",
    }  # fmt: skip
    assert not [path for path in kit.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    config = load(kit / "site.yaml", SiteConfig)
    assert config.connection is not None
    assert (config.connection.url, config.connection.proxy) == ("https://hub.example", "http://proxy:3128")
    assert config.tls is not None
    assert config.consortium is not None
    private_key_of(config.tls.certificate, folder / "ash" / "ash.key", None)
    own = config.consortium.model_copy(update={"seen": folder / "seen.json"})
    assert Membership(own, config.tls, "ash").allow_list.version == 1
    template = kit / "policy.template.yaml"
    policy = policy_from(template.read_bytes(), template)
    assert (policy.messages, policy.tasks) == ({}, []), "nothing is allowed before the site says so"
    assert policy.coordinator_sha256 == certificate_sha256(founded.certificates / "hub.crt")
    yaml.safe_load((kit / "client.yaml").read_text())
    founded.refused("kit-exists", "kit", *options, "--url", "https://hub.example", "--out", kit)
    founded.refused("kit-wrong-host", "kit", *options, "--url", "https://other.example", "--out", folder / "kit2")
    founded.refused("config-value", "kit", *options, "--url", "http://hub.example", "--out", folder / "kit2")
    founded("kit", *options, "--url", "https://hub.example:8443/", "--out", folder / "kit3")
    assert "`hub.example` port 8443" in (folder / "kit3" / "README.md").read_text()


def test_a_request_is_certified_only_with_the_digest_that_was_read_out(steps: Steps) -> None:
    steps("init", "--out", steps.root, "--name", "trial")
    steps("request", "--name", "ash", "--out", steps.folder / "ash")
    digest, request = steps.digest(), steps.folder / "ash" / "ash.request.json"
    sign = ["sign", request, "--root", steps.root, "--out", steps.certificates]
    steps.refused("request-unconfirmed", *sign)
    assert digest not in steps.said, "nobody is to copy what the party should read out"
    steps.refused("request-unconfirmed", *sign, "--digest", digest[:20])
    steps.refused("request-unconfirmed", *sign, "--digest", "0" * 32)
    steps(*sign, "--digest", digest.upper())
    assert party_of(steps.certificates / "ash.crt").name == "ash"
    for name in ("ash.key", "ash.sign.key"):
        assert stat.S_IMODE((steps.folder / "ash" / name).stat().st_mode) == 0o600
    steps.refused("key-exists", "request", "--name", "ash", "--out", steps.folder / "ash")


def test_k_of_n_members_sign_the_list(steps: Steps) -> None:
    for member in ("alice", "bob", "carol"):
        steps("keyholder", "--name", member, "--out", steps.folder / member)
    holders = [f"--keyholder={name}={steps.folder / name / name}.sign.pub" for name in ("alice", "bob", "carol")]
    steps("init", "--out", steps.root, "--name", "trial", *holders, "--threshold", "2")
    assert not list(steps.root.glob("*.sign.key")), "nobody holds a key that could sign alone"
    made, ash = steps.folder / "1.json", steps.party("ash")
    steps("allow", ash, *steps.signing("alice"), "--out", made)
    charter = read_charter(steps.root / "consortium.json", steps.root / "ca.crt")
    with pytest.raises(Exception, match="1 of the keyholders"):
        read_allow_list(made).check(charter, "list")
    steps.refused("allowlist-unsigned", "revoke", "ash", "--list", made, *steps.signing("bob"), "--out", "2.json")
    steps("countersign", made, *steps.signing("carol"))
    read_allow_list(made).check(charter, "list")
    steps("show", made, "--root", steps.root)
    assert "Signed by alice, carol" in steps.said
    steps("keyholder", "--name", "eve", "--out", steps.folder / "eve")
    steps.refused("keyholder-unknown", "countersign", made, *steps.signing("eve"))


def test_revoked_keys_stay_out_and_versions_rise(founded: Steps) -> None:
    first, second = founded.folder / "1.json", founded.folder / "2.json"
    founded("revoke", "ash", "--list", first, *founded.signing(), "--out", second)
    assert read_allow_list(second).version == 2
    assert read_allow_list(second).party("ash") is None
    ash = founded.certificates / "ash.crt"
    founded.refused("allowlist-revoked", "allow", ash, "--list", second, *founded.signing(), "--out", "3.json")
    founded.refused("key-exists", "allow", "--list", first, *founded.signing(), "--out", second)
    founded.refused("allowlist-days", "allow", "--list", first, *founded.signing(), "--out", "3.json", "--days", "0")
    founded("allow", "--list", second, *founded.signing(), "--out", founded.folder / "3.json", "--days", "200")
    third = read_allow_list(founded.folder / "3.json")
    assert (third.version, [one.name for one in third.parties]) == (3, ["hub"])


def test_a_renewal_is_signed_with_the_listed_key_and_needs_no_telephone(founded: Steps) -> None:
    folder, ash = founded.folder, founded.certificates / "ash.crt"
    sign = ["--root", founded.root, "--list", folder / "1.json"]
    founded("renew", "--certificate", ash, "--keys", folder / "ash")
    founded("sign", folder / "ash" / "ash.renewal.json", *sign, "--out", folder / "same")
    assert party_of(folder / "same" / "ash.crt") == party_of(ash), "same keys: the list stays as it is"
    founded("renew", "--certificate", ash, "--keys", folder / "ash", "--new-keys", folder / "fresh")
    founded("sign", folder / "fresh" / "ash.renewal.json", *sign, "--out", folder / "changed")
    changed = party_of(folder / "changed" / "ash.crt")
    assert changed.tls_key_sha256 != party_of(ash).tls_key_sha256
    assert changed.signing_key != party_of(ash).signing_key
    hub = founded.certificates / "hub.crt"
    founded("renew", "--certificate", hub, "--keys", folder / "hub")
    founded("sign", folder / "hub" / "hub.renewal.json", *sign, "--out", folder / "same")
    assert hosts_of(folder / "same" / "hub.crt") == ("hub.example",)
    founded("request", "--name", "ash", "--out", folder / "impostor")
    founded.refused(
        "request-unconfirmed", "sign", folder / "impostor" / "ash.request.json", *sign, "--out", folder / "no"
    )


def test_keys_are_encrypted_under_a_passphrase_that_stands_on_no_command_line(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOT_WORDS", PASSPHRASE)
    words = steps.folder / "words"
    words.write_text(PASSPHRASE + "\n")
    words.chmod(0o600)
    steps("init", "--out", steps.root, "--name", "trial", "--passphrase-env", "ROOT_WORDS")
    assert "not encrypted" not in steps.said
    for key in steps.root.glob("*.key"):
        assert b"ENCRYPTED" in key.read_bytes()
    steps("request", "--name", "ash", "--out", steps.folder / "ash", "--passphrase-file", words)
    load_private_key(steps.folder / "ash" / "ash.key", PASSPHRASE.encode())
    digest, request = steps.digest(), steps.folder / "ash" / "ash.request.json"
    sign = ["sign", request, "--root", steps.root, "--out", steps.certificates, "--digest", digest]
    steps.refused("key-passphrase", *sign)
    steps(*sign, "--passphrase-file", words)
    allow = ["allow", steps.certificates / "ash.crt", *steps.signing(), "--out", steps.folder / "1.json"]
    steps.refused("key-passphrase", *allow)
    steps(*allow, "--passphrase-file", words)
    words.write_text("short\n")
    steps.refused("passphrase-short", *sign, "--passphrase-file", words)
    words.chmod(0o644)
    steps.refused("key-mode", *sign, "--passphrase-file", words)


def test_show_says_what_a_document_is(founded: Steps) -> None:
    for name, text in (
        (founded.root / "consortium.json", "Charter of 'trial': 1 of keyholder"),
        (founded.folder / "ash" / "ash.request.json", "Request of 'ash', site."),
        (founded.folder / "1.json", "In: ash (site), hub (server)."),
    ):
        assert text in founded("show", name, "--root", founded.root)
        assert founded.digest()
    founded.refused("document-invalid", "show", founded.root / "ca.crt", "--root", founded.root)
    founded.refused("document-missing", "show", founded.folder / "none", "--root", founded.root)


def test_without_a_step_and_without_a_trial_s_options_it_says_so(steps: Steps) -> None:
    steps.refused("provision-step")
    steps.refused("provision-step", "--out", steps.folder / "keys")
    steps.refused("provision-step", "init", "--out", steps.folder / "r", "--name", "x", "--keyholder", "alice")
    steps.refused("charter-threshold", "init", "--out", steps.folder / "r", "--name", "x", "--threshold", "2")
    assert not (steps.folder / "r").exists()


def test_unseal_opens_a_file_for_its_owner_and_says_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, out = create_seal_key(tmp_path / "seal.key"), tmp_path / "out"
    (tmp_path / "bank").write_bytes(seal(key, b"content", Sealed("memory-bank", "her2", 3)))
    command = ["unseal", str(tmp_path / "bank"), "--out", str(out), "--key-file"]
    create_seal_key(tmp_path / "other.key")
    assert main.main([*command, str(tmp_path / "other.key")]) == 2
    assert "[seal-broken]" in capsys.readouterr().err
    assert not out.exists()
    command.append(str(tmp_path / "seal.key"))
    assert main.main(command) == 0
    assert "the memory-bank of run 'her2', round 3" in capsys.readouterr().out
    assert out.read_bytes() == b"content"
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert main.main(command) == 2
    assert "[key-exists]" in capsys.readouterr().err
    command[1] = str(tmp_path / "none")
    assert main.main(command) == 2
    assert "[sealed-missing]" in capsys.readouterr().err
