"""The site's app: what it measures for the site's own eyes."""

from __future__ import annotations

import threading

from flwr.app import Context, RecordDict

from momkd_fl.federation.client import make_client_app
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.egress import simulation_gate
from momkd_fl.federation.local import LocalGrid
from momkd_fl.federation.watch import unwatched
from momkd_fl.telemetry.metrics import ClientMetrics


def test_a_site_s_metrics_count_rounds_bytes_and_seconds_by_phase(in_process) -> None:
    run = in_process({"ash": "train", "birch": "train"}, rounds={"count": 2, "quorum": 2, "deadline_s": 5.0})
    metrics = {site: ClientMetrics() for site in run.participants}
    apps = {
        site: (
            make_client_app(participant, participant.say, None, metrics[site], gate=simulation_gate(site)),
            Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        )
        for site, participant in run.participants.items()
    }
    outcome = Coordinator(run.config, LocalGrid(apps), unwatched(run.config), threading.Event(), lambda: {}).run()
    assert outcome is not None
    value = metrics["ash"].registry.get_sample_value
    assert value("momkd_site_rounds_total", {"outcome": "ok"}) == 2
    assert value("momkd_site_round") == 2
    for phase in ("train", "statistics", "evaluate"):
        assert value("momkd_site_phase_seconds_count", {"phase": phase}) == 2
    weights = 4 * sum(part.size for part in outcome.state.weights.values())
    assert value("momkd_site_bytes_total", {"direction": "received"}) >= 2 * weights
    assert value("momkd_site_bytes_total", {"direction": "sent"}) >= 2 * weights
