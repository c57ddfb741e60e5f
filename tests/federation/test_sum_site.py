"""A site's part in a secure sum, message by message: repeated, restarted, out of order, and asked for what was not
agreed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.policy import SmallNumbers
from momkd_fl.errors import UserError
from momkd_fl.federation.egress import Gate, simulation_gate
from momkd_fl.federation.messages import (
    DEAL,
    EVALUATE,
    MASK,
    SECAGG,
    SHARED_SECTIONS,
    TRAIN,
    Evaluate,
    Hello,
    Join,
    Parcel,
    Plan,
    Train,
)
from momkd_fl.federation.simulate import COORDINATOR
from momkd_fl.federation.student import initial_memory, initial_weights, layout_of, reply_shapes, shape_of
from momkd_fl.federation.sum_holdings import holdings
from momkd_fl.federation.sum_numbers import SITE_FILE, SumNumbers
from momkd_fl.federation.sum_parts import Part, assembled, encoding, question_digest, train_parts
from momkd_fl.federation.sum_site import SumSite
from momkd_fl.model.momkd import architecture_hash
from momkd_fl.secagg import aggregator
from momkd_fl.secagg.encoding import Encoding
from momkd_fl.secagg.manifest import Manifest

SITES = ("ash", "birch", "cedar")
RUN = "small-00000000"


@dataclasses.dataclass
class Table:
    """Three sites that have been told the plan, and a coordinator that asks them to train."""

    made: Any
    sites: dict[str, SumSite]
    holds: dict[str, list[str]]
    config: FederationConfig

    @property
    def asked(self) -> tuple[Train, dict[str, Any]]:
        shape = shape_of(self.config, ())
        arrays = {"weights": initial_weights(self.config, shape), "memory": initial_memory(self.config, shape)}
        return Train(proximal_mu=0.0, learning_rate_share=1.0), arrays

    def parts(self) -> list[Part]:
        shape = shape_of(self.config, ())
        shapes = reply_shapes(self.config, layout_of(shape), initial_memory(self.config, shape), True)
        return train_parts(self.config, shapes, released=True)

    def manifest(self, number: int = 1, change: Any = lambda segment: segment, **other: Any) -> Manifest:
        body, arrays = self.asked
        segments = tuple(change(part.segment(self.holders(part.gate))) for part in self.parts())
        model = question_digest("train", body.model_dump_json(), {}, arrays)
        return Manifest(RUN, number, model, SITES, 3, segments, **other)

    def holders(self, gate: str | None) -> tuple[str, ...] | None:
        """Who said in its greeting that it has what the gate is about."""
        return None if gate is None else tuple(site for site in SITES if gate in self.holds[site])

    def join(self, manifest: Manifest, **body: Any) -> Parcel[Any]:
        question, arrays = self.asked
        signed = np.frombuffer(manifest.signed(self.made.keys[COORDINATOR].identity), np.uint8)
        fields = {"question": "train", "body": question.model_dump_json(), "site_weights": {}, **body}
        return Parcel("join", RUN, 1, Join(**fields), {**arrays, SECAGG: {"manifest": signed}})

    def restarted(self, site: str) -> SumSite:
        """The same site as another process would find it."""
        return SumSite(self.made.participants[site], simulation_gate(site), self.made.keys[site])

    def collected(self, parcel: Parcel[Any]) -> tuple[aggregator.Collecting, Any]:
        """Every site's keys, and the list of them for each."""
        keys = self.made.keys[COORDINATOR]
        message = parcel.arrays[SECAGG]["manifest"].tobytes()
        state, _ = aggregator.begin(message, keys.peers().identities, keys.identity)
        for site in self.sites.values():
            state = aggregator.receive(state, site.join(parcel)[1][SECAGG]["keys"].tobytes())
        return aggregator.close(state)


@pytest.fixture
def table(in_process: Any, tmp_path: Path) -> Table:
    made = in_process(
        dict.fromkeys(SITES, "train"),
        tmp_path,
        rounds={"count": 1, "quorum": 3},
        aggregation="secagg",
        memory={"slots": 1, "source": "random", "genomics": False},
    )
    sites, holds = {}, {}
    shared = made.config.model_dump(mode="json", include=set(SHARED_SECTIONS))
    for site, participant in made.participants.items():
        sites[site] = SumSite(participant, simulation_gate(site), made.keys[site])
        body, _ = sites[site].hello(Parcel("hello", RUN, 0, Hello(federation=shared), {}))
        assert "class.0" in body.holds
        holds[site] = body.holds
        architecture = architecture_hash(shape_of(made.config, ()))
        participant.plan(Parcel("plan", RUN, 0, Plan(panel=[], architecture=architecture), {}))
    return Table(made, sites, holds, made.config)


def code_of(action: Any) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert caught.value.sentence
    return caught.value.code


def step_of(kind: Any, name: str, message: bytes) -> Parcel[Any]:
    return Parcel(kind.name, RUN, 1, kind.request(), {SECAGG: {name: np.frombuffer(message, np.uint8)}})


def test_the_same_message_gets_the_same_bytes_and_no_further_training(table: Table) -> None:
    parcel, ash = table.join(table.manifest()), table.sites["ash"]
    first = ash.join(parcel)[1][SECAGG]["keys"].tobytes()
    state, out = table.collected(parcel)
    assert ash.join(parcel)[1][SECAGG]["keys"].tobytes() == first
    assert state.announcements["ash"] == first
    deal = step_of(DEAL, "roster", out["ash"])
    shares = ash.step(DEAL)(deal)[1][SECAGG]["shares"].tobytes()
    assert ash.step(DEAL)(deal)[1][SECAGG]["shares"].tobytes() == shares


def test_a_number_is_on_disk_before_keys_are_announced_and_never_used_again(table: Table) -> None:
    participant = table.made.participants["ash"]
    parcel = table.join(table.manifest(number=4))
    table.sites["ash"].join(parcel)
    assert SumNumbers(participant.state_dir / SITE_FILE).last(RUN) == 4
    for number in (4, 3):
        again = table.join(table.manifest(number=number))
        assert code_of(lambda again=again: table.restarted("ash").join(again)) == "sum-refused"
    assert table.restarted("ash").join(table.join(table.manifest(number=5)))


def test_a_number_stands_before_the_work_begins(table: Table) -> None:
    """A site that dies while it trains does not take part in that sum again."""
    participant = table.made.participants["ash"]

    def dies(request: Any) -> Any:
        raise KeyboardInterrupt

    participant.train = dies
    site = table.restarted("ash")
    with pytest.raises(KeyboardInterrupt):
        site.join(table.join(table.manifest(number=2)))
    assert SumNumbers(participant.state_dir / SITE_FILE).last(RUN) == 2


def test_after_a_restart_a_half_done_sum_is_refused(table: Table) -> None:
    _, out = table.collected(table.join(table.manifest()))
    assert table.sites["ash"].step(DEAL)(step_of(DEAL, "roster", out["ash"]))
    back = table.restarted("ash")
    assert code_of(lambda: back.step(DEAL)(step_of(DEAL, "roster", out["ash"]))) == "sum-unknown"


def test_a_step_out_of_order_and_an_older_sum_are_refused(table: Table) -> None:
    _, out = table.collected(table.join(table.manifest()))
    ash = table.sites["ash"]
    assert code_of(lambda: ash.step(MASK)(step_of(MASK, "delivery", out["ash"]))) == "sum-step"
    ash.join(table.join(table.manifest(number=2)))
    assert code_of(lambda: ash.step(DEAL)(step_of(DEAL, "roster", out["ash"]))) == "sum-refused"


def coarser(segment: Any) -> Any:
    return dataclasses.replace(segment, encoding=dataclasses.replace(segment.encoding, fraction_bits=1))


def ungated(segment: Any) -> Any:
    return dataclasses.replace(segment, holders=None)


def renamed(segment: Any) -> Any:
    return dataclasses.replace(segment, name="one-patient") if segment.name == "loss_sum" else segment


@pytest.mark.parametrize(
    ("change", "code"), [(coarser, "sum-segment"), (renamed, "sum-segment"), (ungated, "sum-refused")]
)
def test_a_manifest_with_other_segments_is_refused_before_any_work(table: Table, change: Any, code: str) -> None:
    parcel = table.join(table.manifest(change=change))
    table.made.participants["ash"].train = None  # calling it would be another error
    assert code_of(lambda: table.restarted("ash").join(parcel)) == code
    assert not (table.made.participants["ash"].state_dir / SITE_FILE).exists()


def test_another_model_than_the_manifest_s_is_refused(table: Table) -> None:
    parcel = table.join(table.manifest())
    parcel.arrays["weights"] = {name: value + 1 for name, value in parcel.arrays["weights"].items()}
    assert code_of(lambda: table.sites["ash"].join(parcel)) == "sum-refused"


def test_uneven_public_weights_are_refused(table: Table) -> None:
    for weights in ({"ash": 100.0}, {"birch": 1e-6}):
        parcel = table.join(table.manifest(), site_weights=weights)
        assert code_of(lambda parcel=parcel: table.sites["ash"].join(parcel)) == "sum-weights"


def test_nothing_of_patients_is_answered_in_the_clear(table: Table) -> None:
    body, arrays = table.asked
    asked: Parcel[Any] = Parcel("train", RUN, 1, body, arrays)
    assert code_of(lambda: table.sites["ash"].in_the_clear(TRAIN)(asked)) == "sum-asked-plain"
    question = Evaluate(split="validation", threshold=None, calibration=None, final=False)
    reply, sent = table.sites["ash"].in_the_clear(EVALUATE)(Parcel("evaluate", RUN, 1, question, arrays))
    assert sent == {}
    assert reply.loss_sum == []
    assert reply.cohort.patients is None


def test_a_key_that_the_contract_does_not_name_does_not_count(table: Table) -> None:
    """With two of the three pinned, the third by another key, no sum has three sites that the site knows."""
    keys = table.made.keys["ash"].peers().identities
    pins = {site: key.hex() for site, key in keys.items()}
    for peers, refused in ((pins, False), ({**pins, "birch": "0" * 64}, True)):
        gate = simulation_gate("ash")
        summed = gate.policy.summed.model_copy(update={"peers": peers})
        own = Gate(gate.policy.model_copy(update={"summed": summed}), None)
        site = SumSite(table.made.participants["ash"], own, table.made.keys["ash"])
        parcel = table.join(table.manifest(number=7))
        if refused:
            parcel = table.join(table.manifest(number=8))
            assert code_of(lambda site=site, parcel=parcel: site.join(parcel)) == "sum-refused"
        else:
            assert site.join(parcel)


def test_a_class_of_few_patients_is_not_held(table: Table) -> None:
    cohort = table.made.participants["ash"].cohort_for(table.config)
    training = cohort.labelled("train")
    counts = [sum(patient.label == c for patient in training) for c in (0, 1)]
    some = holdings(cohort, table.config, SmallNumbers(minimum_per_class=max(counts), scores="exact"))
    assert f"class.{int(np.argmax(counts))}" in some
    assert (f"class.{int(np.argmin(counts))}" in some) is (counts[0] == counts[1])
    assert "validation" in holdings(cohort, table.config, SmallNumbers(minimum_per_class=1, scores="exact"))
    assert "validation" not in holdings(cohort, table.config, SmallNumbers(minimum_per_class=1, scores="withheld"))


def test_a_damaged_file_of_numbers_begins_no_sum(table: Table) -> None:
    path = table.made.participants["ash"].state_dir / SITE_FILE
    path.write_text('{"small": ')
    assert code_of(lambda: table.sites["ash"].join(table.join(table.manifest()))) == "sum-numbers-unreadable"


@given(rows=st.integers(1, 4), width=st.integers(1, 5), seed=st.integers(0, 99))
def test_parts_and_what_is_assembled_of_them_are_inverse(rows: int, width: int, seed: int) -> None:
    answer = {
        "statistics.counts.histology": np.random.default_rng(seed).normal(size=(rows, width)),
        "update.histology": np.random.default_rng(seed + 1).normal(size=width),
    }
    code = Encoding(8, 9.0)
    parts = [Part("statistics.counts.histology", (width,), code, row=row) for row in range(rows)]
    parts.append(Part("update.histology", (width,), code))
    back = assembled(parts, {part.name: part.of(answer) for part in parts}, rows)
    for name, value in answer.items():
        np.testing.assert_array_equal(back[name], value)
    kept = assembled(parts[1:], {part.name: part.of(answer) for part in parts[1:]}, rows)
    if rows > 1:
        assert not kept["statistics.counts.histology"][0].any(), "a withheld class is zeros"


@given(limit=st.floats(1e-3, 2.0**40), weight=st.floats(1.0, 10.0))
def test_an_encoding_never_wraps(limit: float, weight: float) -> None:
    raw = {
        "name": "r",
        "task": "PR",
        "encoder": {"name": "e", "dim": 8},
        "output_dir": "o",
        "members": {"a": {}, "b": {}},
    }
    found = encoding(FederationConfig.model_validate(raw), limit, weight)
    assert found.fits(50)
    assert found.fraction_bits == 32 or not dataclasses.replace(found, fraction_bits=found.fraction_bits + 1).fits(50)
