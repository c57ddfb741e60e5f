"""Metrics are on loopback alone and carry no label of a patient or class."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from momkd_fl.errors import UserError
from momkd_fl.telemetry.metrics import ClientMetrics, ServerMetrics, pseudonyms
from momkd_fl.telemetry.vocabulary import CONNECTION_STATES, OUTCOMES, PHASES, SITE_STATES

SITES = ["st-marys", "charite", "mayo"]


def scrape(port: int | None) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_a_coordinator_s_figures_can_be_scraped() -> None:
    with ServerMetrics(rounds=20, sites=SITES) as metrics:
        metrics.serve(0)
        metrics.round_started(3)
        with metrics.phase("aggregate"):
            pass
        metrics.round_ended()
        metrics.traffic("mayo", sent=100, received=40)
        metrics.traffic("mayo", sent=1)
        metrics.states({"mayo": "working", "charite": "working", "st-marys": "missing"})
        metrics.memory(slot_movement=0.02, effective_slots=3.5)
        metrics.validation(auroc=0.8, loss=None)
        text = scrape(metrics.port)
    got = {
        (s.name, *sorted(s.labels.values())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }
    assert got["momkd_server_rounds_planned",] == 20
    assert got["momkd_server_round",] == 3
    assert got["momkd_server_rounds_total", "ok"] == 1
    assert got["momkd_server_phase_seconds_count", "aggregate"] == 1
    assert got["momkd_server_bytes_total", "sent", "site-02"] == 101
    assert got["momkd_server_bytes_total", "received", "site-02"] == 40
    assert got["momkd_server_sites", "working"] == 2
    assert got["momkd_server_sites", "missing"] == 1
    assert got["momkd_server_sites", "expected"] == 0
    assert got["momkd_server_memory_slot_movement",] == 0.02
    assert got["momkd_server_memory_effective_slots",] == 3.5
    assert got["momkd_server_validation_auroc",] == 0.8


def test_labels_are_pseudonyms_and_listed_words_only() -> None:
    with ServerMetrics(rounds=2, sites=SITES) as metrics:
        metrics.serve(0)
        metrics.seconds("train", 1.0)
        for site in SITES:
            metrics.traffic(site, sent=1, received=1)
        text = scrape(metrics.port)
    assert not any(site in text for site in SITES)
    allowed = {*PHASES, *SITE_STATES, *OUTCOMES, "sent", "received", *pseudonyms(SITES).values()}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            assert set(labels.values()) <= allowed
            assert set(labels) <= {"site", "direction", "phase", "state", "outcome"}


def test_a_site_s_figures_can_be_scraped() -> None:
    with ClientMetrics() as metrics:
        metrics.serve(0)
        metrics.connection("active")
        metrics.traffic(sent=10, received=20)
        with pytest.raises(RuntimeError, match="boom"), metrics.phase("train"):
            raise RuntimeError("boom")
        text = scrape(metrics.port)
    assert 'momkd_site_connection{momkd_site_connection="active"} 1.0' in text
    assert all(f'momkd_site_connection="{state}"' in text for state in CONNECTION_STATES)
    assert 'momkd_site_bytes_total{direction="received"} 20.0' in text
    assert 'momkd_site_phase_seconds_count{phase="train"} 1.0' in text


@pytest.mark.parametrize(
    "act",
    [
        lambda: ClientMetrics().seconds("TCGA-A6-2671", 1.0),
        lambda: ClientMetrics().connection("TCGA-A6-2671"),
        lambda: ClientMetrics().round_ended("TCGA-A6-2671"),
        lambda: ServerMetrics(1, SITES).states({"mayo": "TCGA-A6-2671"}),
    ],
)
def test_a_label_outside_the_vocabulary_is_refused_and_not_repeated(act: Callable[[], None]) -> None:
    with pytest.raises(ValueError, match="vocabulary") as refusal:
        act()
    assert "TCGA" not in str(refusal.value)


def test_the_endpoint_listens_on_loopback_alone() -> None:
    with ClientMetrics() as metrics:
        metrics.serve(0)
        assert metrics._endpoint is not None
        assert metrics._endpoint[0].server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"{port}.*telemetry.metrics_port") as problem:
            ClientMetrics().serve(port)
    assert problem.value.code == "metrics-port-in-use"


def test_closing_frees_the_port_and_may_be_repeated() -> None:
    metrics = ClientMetrics()
    metrics.serve(0)
    port = metrics.port
    assert port is not None
    metrics.close()
    metrics.close()
    assert metrics.port is None
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_two_in_one_process_do_not_share_figures() -> None:
    first, second = ClientMetrics(), ClientMetrics()
    first.traffic(sent=5)
    assert first.registry.get_sample_value("momkd_site_bytes_total", {"direction": "sent"}) == 5
    assert second.registry.get_sample_value("momkd_site_bytes_total", {"direction": "sent"}) is None
