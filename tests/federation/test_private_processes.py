"""Private runs as real processes: what the run card states, what the odometers hold, a site killed after it spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from momkd_fl.config.base import load
from momkd_fl.config.site import SiteConfig
from momkd_fl.federation.artefacts import account
from momkd_fl.federation.books import odometer_key
from momkd_fl.privacy.accountant import joint_epsilon
from momkd_fl.privacy.odometer import Budget, Odometer
from momkd_fl.security.ledger import verify
from momkd_fl.security.signing import load_signing_key

pytestmark = pytest.mark.process
MEMBERS = {"ash": "train", "birch": "train", "holly": "evaluate"}
SECTIONS: dict[str, Any] = {
    "memory": {"slots": 1, "assignment": "hard", "anchor_iterations": 2, "anchor_dim": 8, "momentum": 0.5},
    "rounds": {"count": 3, "quorum": 2, "deadline_s": 100, "gather_s": 100},
}
TRAINING = {"patients_per_step": 8, "learning_rate": 1e-3, "precision": "fp32", "standardise": "none"}
EPSILON = 4.0
"""Of the run; the sites' contracts allow 8, so that a round that is paid for twice ends nobody's part."""
MEMORY = {"memory": "local", "epsilon": EPSILON, "releases": 3, "site_patients": 500}


def odometer_of(consortium: Any, site: str) -> Odometer:
    egress = load(consortium.site_file(site), SiteConfig).egress
    return Odometer(egress.odometer, odometer_key(load_signing_key(egress.signing_key)), Budget(8.0, 1e-5))


def odometer_file(consortium: Any, site: str) -> Path:
    return consortium.keys / site / "egress" / "odometer.jsonl"


# --- noise on memory and weights; a site is killed when it has just spent --------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, new_consortium: Any, party: Any) -> Any:
    privacy = {**MEMORY, "weights": "dpsgd", "steps": 12}
    training = {**TRAINING, "local_steps": 4}
    root = tmp_path_factory.mktemp("both")
    consortium = new_consortium(root, MEMBERS, **SECTIONS, training=training, privacy=privacy)
    one = party(consortium)
    one.start_server()
    for site in MEMBERS:
        one.start_site(site)
    one.wait_said("ash", "Round 2: training.")
    path = odometer_file(consortium, "ash")
    before = path.read_bytes()
    while path.read_bytes() == before and one.processes.running["ash"].poll() is None:
        pass
    one.kill("ash")
    one.spent_when_killed = path.read_bytes()
    one.epsilon_when_killed = odometer_of(consortium, "ash").receipt.epsilon_spent
    one.start_site("ash")
    one.status = {name: one.end(name) for name in ("server", *MEMBERS)}
    return one


def test_it_ends_in_a_report_whose_run_card_states_epsilon(both: Any) -> None:
    assert set(both.status.values()) == {0}, both.said("server")
    planned = account(both.consortium.config()).epsilon
    assert planned == pytest.approx(EPSILON, rel=0.01)
    stated = both.consortium.results()["protection"]["epsilon"]
    assert stated == {"ash": pytest.approx(planned), "birch": pytest.approx(planned), "holly": 0.0}
    assert f"{planned:.2f}" in (both.consortium.output / "report.html").read_text("utf-8")


def test_a_site_killed_after_it_had_spent_is_never_refunded(both: Any) -> None:
    content = odometer_file(both.consortium, "ash").read_bytes()
    whole = both.spent_when_killed[: both.spent_when_killed.rfind(b"\n") + 1]
    assert whole.count(b"\n") > 1
    assert content.startswith(whole), "no line is taken back"
    assert len(content) > len(whole)
    spent = odometer_of(both.consortium, "ash").receipt.epsilon_spent
    assert spent > both.epsilon_when_killed > 0
    ledger = verify(both.consortium.keys / "ash" / "egress" / "ledger.jsonl")
    shown = [entry.epsilon_spent for entry in ledger.entries]
    assert shown == sorted(shown), "what the ledger shows as spent never falls"
    assert shown[-1] == pytest.approx(spent)


def test_an_undisturbed_site_spends_no_more_than_the_run_card_states(both: Any) -> None:
    stated = both.consortium.results()["protection"]["epsilon"]["birch"]
    assert 0 < odometer_of(both.consortium, "birch").receipt.epsilon_spent <= stated * (1 + 1e-6)
    assert odometer_of(both.consortium, "holly").receipt.epsilon_spent == 0


def test_every_site_holds_the_heads_that_the_others_signed(both: Any) -> None:
    for site in MEMBERS:
        text = (both.consortium.keys / site / "egress" / "peers.json").read_text("utf-8")
        keys = {
            other: load_signing_key(both.consortium.keys / other / f"{other}.sign.key").public_key().public_bytes_raw()
            for other in MEMBERS
        }
        assert {other for other, key in keys.items() if key.hex() in text} == set(MEMBERS) - {site}


# --- share: memory ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, new_consortium: Any, party: Any) -> Any:
    root = tmp_path_factory.mktemp("alone")
    privacy = {**MEMORY, "share": "memory"}
    consortium = new_consortium(root, MEMBERS, **SECTIONS, training=TRAINING, privacy=privacy)
    one = party(consortium)
    one.start_server()
    for site in MEMBERS:
        one.start_site(site)
    one.status = {name: one.end(name) for name in ("server", *MEMBERS)}
    return one


def test_without_shared_weights_the_run_card_states_an_unconditional_epsilon(alone: Any) -> None:
    assert set(alone.status.values()) == {0}, alone.said("server")
    protection = alone.consortium.results()["protection"]
    assert protection["epsilon"]["ash"] == pytest.approx(EPSILON, rel=0.01)
    assert not protection["memory_conditional"]
    assert (alone.consortium.state("ash") / "model.safetensors").exists()
    charges = [debit.charge for debit in odometer_of(alone.consortium, "ash")._debits.values()]
    assert joint_epsilon(charges, 1e-5) <= protection["epsilon"]["ash"] * (1 + 1e-6)
