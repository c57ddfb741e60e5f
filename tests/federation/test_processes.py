"""Real processes over mutual TLS: a run and its simulation, kill -9 of either side, mistakes at a live server."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

from momkd_fl.cli.consortium import free_port, provision, write_site
from momkd_fl.cli.main import main as momkd
from momkd_fl.federation import state as states
from momkd_fl.federation.vault import open_vault
from momkd_fl.telemetry.logs import COORDINATOR_FIELDS, FIELDS

pytestmark = pytest.mark.process

MISTAKE = 2


def python(command: str) -> list[str]:
    """A command of ours, run by this Python."""
    return [sys.executable, "-m", f"momkd_fl.cli.{command}"]


@dataclass
class Story:
    """A run that has ended, and what was seen meanwhile."""

    party: Any
    status: dict[str, int]
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def consortium(self) -> Any:
        return self.party.consortium

    @property
    def state(self) -> states.ServerState:
        vault = open_vault(self.consortium.config().seal)
        return states.load(self.consortium.output / "checkpoint.safetensors", vault)

    def trained(self, site: str) -> list[int]:
        """Rounds that the site began to train for, in order, with repetitions."""
        return [int(number) for number in re.findall(r"Round (\d+): training\.", self.party.said(site))]


def one_sentence(text: str, code_or_word: str) -> None:
    """The last line says it, and no traceback stands above it."""
    assert "Traceback" not in text, text
    assert code_or_word in text.strip().splitlines()[-1], text


# --- a run that nothing disturbs, with two sites that cannot take part -----------------------------------------------


@pytest.fixture(scope="module")
def smooth(tmp_path_factory, hospitals, new_consortium, party) -> Story:
    root = tmp_path_factory.mktemp("smooth")
    members = {"ash": "train", "birch": "train", "cedar": "train", "holly": "evaluate"}
    metrics_port = free_port()
    consortium = new_consortium(
        root,
        members,
        rounds={"count": 3, "quorum": 2, "deadline_s": 100, "gather_s": 100},
        genes={"panel": "learnt", "count": 12},
        telemetry={"log": str(root / "server" / "log.jsonl"), "metrics_port": metrics_port},
    )
    for site, preparation in (("ash", "ffpe"), ("birch", "ffpe"), ("cedar", "frozen")):
        consortium.edit_site(site, lambda raw, kind=preparation: raw["data"].update(preparation=kind))
    one = party(consortium)
    one.start_server()
    for site in members:
        one.start_site(site)
    one.wait_said("birch", "Round 1: training.")
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        metrics = answer.read().decode()
    listening = {
        connection.laddr.ip
        for connection in psutil.Process(one.processes.running["server"].pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    status = {name: one.end(name) for name in ("server", *members)}
    return Story(one, status, {"metrics": metrics, "listening": listening})


def test_server_and_sites_end_by_themselves(smooth) -> None:
    assert smooth.status == {"server": 0, "ash": 0, "birch": 0, "cedar": MISTAKE, "holly": 0}, smooth.party.said(
        "server"
    )
    assert (smooth.consortium.output / "report.html").exists()
    for site in ("ash", "birch", "holly"):
        assert (smooth.consortium.state(site) / "model.safetensors").exists()


def test_a_fingerprint_mismatch_stops_that_site_before_round_1_with_the_field_s_name(smooth) -> None:
    one_sentence(smooth.party.said("cedar"), "'preparation'")
    named = {(one["site"], one["field"], one["stopped"]) for one in smooth.consortium.results()["differing"]}
    assert named == {("cedar", "preparation", True)}
    assert smooth.trained("cedar") == []
    assert smooth.trained("ash") == [1, 2, 3]
    assert {"code": "fingerprint-mismatch", "site": "cedar"}.items() <= smooth.consortium.results()["failures"][
        0
    ].items()


def test_an_evaluating_site_trains_nothing_and_has_its_own_predictions(smooth) -> None:
    assert smooth.trained("holly") == []
    predictions = pd.read_csv(smooth.consortium.state("holly") / "predictions_test.csv")
    labels = pd.read_csv(smooth.consortium.hospitals / "holly" / "labels.csv")
    labelled = labels[labels["PR"].isin(["positive", "negative"])]
    assert sorted(predictions["patient"]) == sorted(labelled["patient"])


def test_the_processes_reach_what_a_simulation_of_the_same_file_reaches(smooth, tmp_path) -> None:
    """Sums are formed in float64 in order of arrival and sent as float32: the last bit may differ, no more."""
    here = smooth.consortium
    files = shutil.copytree(here.root / "sites", tmp_path / "sites")
    for path in files.glob("*.yaml"):
        path.write_text(path.read_text("utf-8").replace(str(here.root / "state"), str(tmp_path / "state")), "utf-8")
    text = here.federation.read_text("utf-8").replace(str(here.output), str(tmp_path / "server"))
    text = re.sub(r"metrics_port: \d+", "metrics_port: null", text).replace(str(here.root / "sites"), str(files))
    federation = tmp_path / "federation.yaml"
    federation.write_text(text, "utf-8")
    assert momkd(["simulate", "--federation", str(federation), "--plain"]) == 0

    real, simulated = smooth.state, states.load(tmp_path / "server" / "checkpoint.safetensors")
    assert len(real.panel) == 12
    assert real.panel == simulated.panel
    assert real.best is not None
    assert simulated.best is not None
    assert real.best.round == simulated.best.round
    for group in ("weights", "memory"):
        ours, theirs = getattr(real.best, group), getattr(simulated.best, group)
        assert set(ours) == set(theirs)
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-5)
    assert [record.round for record in real.history] == [record.round for record in simulated.history]
    for ours, theirs in zip(real.history, simulated.history, strict=True):
        assert ours.states == theirs.states
        assert ours.auroc == pytest.approx(theirs.auroc, abs=1e-6)
    table = pd.read_csv(here.state("holly") / "predictions_test.csv")
    twin = pd.read_csv(tmp_path / "server" / "sites" / "holly" / "predictions_test.csv")
    pd.testing.assert_frame_equal(table, twin, rtol=0, atol=1e-5)


def test_metrics_are_served_on_loopback_while_the_run_goes_on(smooth) -> None:
    assert re.search(r'^momkd_server_sites\{state="working"\} [12]\.0$', smooth.seen["metrics"], re.MULTILINE)
    assert re.search(r"^momkd_server_round 1\.0$", smooth.seen["metrics"], re.MULTILINE)
    assert smooth.seen["listening"] == {"127.0.0.1"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_logs_hold_allow_listed_fields_only(smooth) -> None:
    always = {"time", "level", "event", "site"}
    server = lines(smooth.consortium.output / "log.jsonl")
    assert {"listening", "round_finished", "finished"} <= {line["event"] for line in server}
    assert set().union(*server) <= always | set(FIELDS) | set(COORDINATOR_FIELDS)
    for site in smooth.consortium.members:
        site_lines = lines(smooth.consortium.state(site) / "log.jsonl")
        assert site_lines
        assert set().union(*site_lines) <= always | set(FIELDS)


def test_no_patient_id_reaches_the_coordinator_or_a_log(smooth) -> None:
    consortium = smooth.consortium
    ids = {site: pd.read_csv(consortium.hospitals / site / "labels.csv")["patient"] for site in consortium.members}
    assert sum(map(len, ids.values())) == 98
    wanted = [patient.encode() for each in ids.values() for patient in each]
    at_coordinator = [path for path in consortium.output.rglob("*") if path.is_file()]
    assert {"checkpoint.safetensors", "results.json", "report.html", "log.jsonl"} <= {p.name for p in at_coordinator}
    spoken = [*consortium.root.glob("logs/*.log"), *consortium.root.glob("state/*/log.jsonl")]
    for path in [*at_coordinator, *spoken]:
        content = path.read_bytes()
        assert not [patient for patient in wanted if patient in content], path
    own = (consortium.state("holly") / "predictions_test.csv").read_bytes()
    assert wanted[-1] in own, "the search can find one"


# --- a run in which everybody is killed once -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eventful(tmp_path_factory, new_consortium, party) -> Story:
    """Round 2: a site is killed. Round 3: the server. Round 4: a site, and its state is lost with it.

    The server and the site that is killed first keep their state sealed.
    """
    root = tmp_path_factory.mktemp("eventful")
    keys = root / "keys"
    training = {"patients_per_step": 2, "learning_rate": 1e-3, "local_epochs": 8, "precision": "fp32"}
    consortium = new_consortium(
        root,
        {"ash": "train", "birch": "train"},
        rounds={"count": 5, "quorum": 2, "deadline_s": 100, "gather_s": 100},
        training=training,
        seal={"key_file": str(keys / "server" / "server.seal.key")},
    )
    seal = {"key_file": str(keys / "ash" / "ash.seal.key")}
    consortium.edit_site("ash", lambda raw: raw.update(seal=seal))
    assert momkd(["seal", "--site", str(consortium.site_file("ash"))]) == 0  # the books were made in the clear
    one, seen = party(consortium), {}
    one.start_server()
    for site in consortium.members:
        one.start_site(site)

    one.wait_said("ash", "Round 2: training.")
    one.kill("ash")
    seen["answered when killed"] = answered(consortium, "ash")
    one.start_site("ash")

    one.wait_said("birch", "Round 3: training.")
    one.kill("server")
    checkpoint = consortium.output / "checkpoint.safetensors"
    seen["round when the server was killed"] = states.load(checkpoint, open_vault(consortium.config().seal)).round
    one.start_server()

    one.wait_said("birch", "Round 4: training.")
    one.kill("birch")
    shutil.rmtree(consortium.state("birch"))
    one.start_site("birch")

    status = {name: one.end(name) for name in ("server", "ash", "birch")}
    return Story(one, status, seen)


def answered(consortium: Any, site: str) -> int:
    """How many messages the site has answered."""
    return sum(line["event"] == "answered" for line in lines(consortium.state(site) / "log.jsonl"))


def test_the_run_finishes_with_every_round_once(eventful) -> None:
    assert eventful.status == {"server": 0, "ash": 0, "birch": 0}, eventful.party.said("server")
    assert [record.round for record in eventful.state.history] == [1, 2, 3, 4, 5]
    assert [entry["round"] for entry in eventful.consortium.results()["rounds"]] == [1, 2, 3, 4, 5]
    for record in eventful.state.history:
        assert record.states == {"ash": "trained", "birch": "trained"}


def test_a_site_killed_in_mid_round_trains_that_round_again_and_all_later_ones(eventful) -> None:
    ash = eventful.trained("ash")
    assert ash[:3] == [1, 2, 2], "killed in round 2 before it had answered, sent again after the restart"
    assert set(ash) == {1, 2, 3, 4, 5}
    assert eventful.trained("birch").count(2) == 1, "the other site does not train the round again"
    assert "Going on with run" in eventful.party.said("ash")


def test_a_server_killed_in_mid_round_resumes_by_itself_and_repeats_that_round_only(eventful) -> None:
    assert eventful.seen["round when the server was killed"] == 2
    assert "Resuming run" in eventful.party.said("server")
    assert "after round 2" in eventful.party.said("server")
    birch = eventful.trained("birch")
    assert birch.count(1) == 1
    assert birch.count(3) == 2
    assert "Connected to the server again." in eventful.party.said("ash")
    assert max(eventful.trained("ash").count(number) for number in (1, 3, 5)) <= 2


def test_what_was_sealed_is_nowhere_in_the_clear_and_another_key_is_a_sentence(eventful) -> None:
    consortium = eventful.consortium
    kept = [path.name for path in [*consortium.output.iterdir(), *consortium.state("ash").iterdir()]]
    assert {"checkpoint.safetensors.sealed", "model.safetensors.sealed", "plan.safetensors.sealed"} <= set(kept)
    assert not [name for name in kept if name.endswith((".safetensors", ".csv")) and name != "results.csv"]
    books = consortium.keys / "ash" / "egress"
    assert (books / "publications.json.sealed").exists()
    assert not (books / "publications.json").exists()
    other = {"key_file": str(consortium.keys / "birch" / "birch.seal.key")}
    before = {path: path.read_bytes() for path in consortium.state("ash").iterdir() if path.suffix == ".sealed"}
    consortium.edit_site("ash", lambda raw: raw.update(seal=other))
    done = subprocess.run(
        [*python("client"), "--site", str(consortium.site_file("ash"))], stderr=subprocess.PIPE, text=True, timeout=100
    )
    assert done.returncode == MISTAKE
    one_sentence(done.stderr, "seal-broken")
    assert {path: path.read_bytes() for path in before} == before


def test_a_site_that_lost_its_state_is_greeted_again_and_the_round_repeated(eventful) -> None:
    said = eventful.party.said("server")
    assert "site birch has lost its state of this run; it will be greeted again." in said
    assert said.count("Nothing was changed; the round will be repeated.") == 1
    assert 5 in eventful.trained("birch")
    assert eventful.consortium.results()["failures"] == []


# --- mistakes, each said in one sentence -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory, new_consortium, party) -> Story:
    """One server that waits for a site, and everyone who cannot get in, all at the same time."""
    root = tmp_path_factory.mktemp("mistakes")
    members = {"ash": "train", "birch": "train", "cedar": "train", "holly": "evaluate"}
    consortium = new_consortium(root, members, rounds={"quorum": 3, "count": 1, "gather_s": 100})
    rogue, nowhere = root / "rogue", free_port()
    provision(rogue, "another consortium", ["birch"])

    source = consortium.hospitals / "birch" / "site.yaml"
    write_site(consortium.site_file("birch"), source, rogue, consortium.port, consortium.state("birch"))
    consortium.edit_site(
        "holly",
        lambda raw: raw["connection"].update(url=f"https://127.0.0.1:{nowhere}", give_up_after_s=3.0),
    )
    del consortium.members["cedar"]
    consortium.write(rounds={"quorum": 2, "count": 1, "gather_s": 100})
    one = party(consortium)
    one.start_server()
    one.wait_said("server", "Listening")
    second = subprocess.Popen(
        [*python("server"), "--config", str(consortium.federation)], stderr=subprocess.PIPE, text=True
    )
    for site in ("birch", "cedar", "holly"):
        one.start_site(site)
    status = {site: one.end(site) for site in ("birch", "cedar", "holly")}
    _, said = second.communicate(timeout=100)
    status["second server"] = second.returncode
    server = one.processes.running["server"]
    seen = {"second server": said, "server runs": server.poll() is None}
    server.send_signal(signal.SIGTERM)
    status["server"] = one.end("server", 20)
    return Story(one, status, seen)


def test_a_port_in_use(mistakes) -> None:
    assert mistakes.status["second server"] == MISTAKE
    one_sentence(mistakes.seen["second server"], f"Port {mistakes.consortium.port} of 127.0.0.1 is in use")


def test_a_server_of_another_consortium(mistakes) -> None:
    assert mistakes.status["birch"] == MISTAKE
    one_sentence(mistakes.party.said("birch"), "does not have a certificate of")


def test_a_key_that_is_not_on_the_list(mistakes) -> None:
    assert mistakes.status["cedar"] == MISTAKE
    one_sentence(mistakes.party.said("cedar"), "does not know the key of")


def test_a_server_that_is_not_there(mistakes) -> None:
    assert mistakes.status["holly"] == MISTAKE
    said = mistakes.party.said("holly")
    assert re.search(r"No answer from https://127\.0\.0\.1:\d+/? for \d+ s \(.+\); trying again", said)
    one_sentence(said, "has not answered for")


def test_the_server_outlives_them_and_ends_in_order_when_asked(mistakes) -> None:
    assert mistakes.seen["server runs"]
    assert mistakes.status["server"] == 130
    one_sentence(mistakes.party.said("server"), "Start the same command again to go on")


def test_nothing_is_left_of_any_of_them(smooth, eventful, mistakes) -> None:
    for story in (smooth, eventful, mistakes):
        assert all(process.poll() is not None for process in story.party.processes.running.values())
        for process in psutil.process_iter(["cmdline"]):
            assert str(story.consortium.root) not in " ".join(process.info["cmdline"] or [])
