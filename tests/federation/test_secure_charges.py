"""A private run of secure sums with real books: a release is debited once for each masked payload, and no oftener."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from momkd_fl.config.policy import Budget
from momkd_fl.config.site import Egress
from momkd_fl.federation.books import Books
from momkd_fl.federation.contract import contract_for
from momkd_fl.federation.coordinator import Coordinator
from momkd_fl.federation.egress import NOWHERE, Gate
from momkd_fl.federation.private_plan import private_plan
from momkd_fl.federation.simulate import COORDINATOR
from momkd_fl.federation.watch import unwatched
from momkd_fl.privacy.accountant import joint_epsilon
from momkd_fl.security.ledger import verify
from momkd_fl.synth.cohort import SynthSite, write_consortium
from tests.federation.conftest import UnreliableGrid

SITES = dict.fromkeys(("ash", "birch", "cedar"), "train")
SECTIONS: dict[str, Any] = {
    "rounds": {"count": 2, "quorum": 3, "deadline_s": 5.0},
    "memory": {"slots": 1, "assignment": "hard", "anchor_iterations": 2, "anchor_dim": 8},
    "training": {"patients_per_step": 8, "standardise": "none", "precision": "fp32"},
    "privacy": {"memory": "local", "epsilon": 8.0, "releases": 2, "metrics": "none", "site_patients": 500},
    "aggregation": "secagg",
}
BUDGET = Budget(epsilon=30.0)
"""Room for a round that is paid for twice."""


class Twice(UnreliableGrid):
    """Asks for every masked answer twice, as after a lost reply."""

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            first = list(super().send_and_receive([message], timeout=timeout))
            if not first or str(message.content["envelope"]["kind"]) != "mask":
                yield from first
                continue
            for one, again in zip(first, super().send_and_receive([message], timeout=timeout), strict=True):
                masked = [each.content.array_records["secagg"]["masked"].data for each in (one, again)]
                assert masked[0] == masked[1], "the same bytes again"
                yield again


class Story:
    """A run in which the first sum of round 1 loses cedar before it masks, and that of round 2 before it deals."""

    def __init__(self, made: Any, root: Path) -> None:
        self.made, self.where, self.gates = made, {}, {}
        for site in SITES:
            folder = root / site
            folder.mkdir(parents=True)
            names = ("policy", "signing_key", "ledger", "odometer", "publications")
            self.where[site] = Egress.model_validate({name: folder / name for name in names})
            day = datetime.now(UTC).date() + timedelta(days=9)
            policy = contract_for(
                site, "train", coordinator_sha256=NOWHERE, runs=["*"], tasks=["PR"], expires=day, budget=BUDGET
            )  # fmt: skip
            Books.create(self.where[site], made.keys[site].identity, site, BUDGET)
            self.gates[site] = Gate(policy, self.books(site))
        grid = made.grid(self.gates)
        grid.__class__ = Twice
        self.lost: list[tuple[str, int]] = []
        self.spent: dict[str, list[float]] = {site: [] for site in SITES}
        grid.answers = self._answers
        coordinator = Coordinator(
            made.config, grid, unwatched(made.config), threading.Event(), lambda: {}, keys=made.keys[COORDINATOR]
        )
        self.outcome = coordinator.run()
        for gate in self.gates.values():
            gate.close()

    def books(self, site: str) -> Books:
        return Books.open(self.where[site], self.made.keys[site].identity, BUDGET)

    def _answers(self, kind: str, number: int, site: str) -> bool:
        if site == "cedar" and (kind, number) in (("mask", 1), ("deal", 2)) and (kind, number) not in self.lost:
            self.lost.append((kind, number))
            return False
        return True

    def charges(self, site: str) -> list[Any]:
        books = self.books(site)
        try:
            return [debit.charge for debit in books.odometer._debits.values()]
        finally:
            books.close()


@pytest.fixture(scope="module")
def story(in_process: Any, tmp_path_factory: pytest.TempPathFactory, task: None) -> Story:
    root = tmp_path_factory.mktemp("charged")
    sites = tuple(SynthSite(site, 24) for site in SITES)
    write_consortium(root / "hospitals", sites, seed=11, dim=16, mean_patches=16, tasks=("PR",))
    return Story(in_process(SITES, root, hospitals=root / "hospitals", **SECTIONS), root / "books")


def test_both_rounds_were_broken_once_and_ended(story: Story) -> None:
    assert story.lost == [("mask", 1), ("deal", 2)]
    assert [record.states for record in story.outcome.state.history] == [dict.fromkeys(SITES, "trained")] * 2


def test_a_site_whose_every_payload_was_masked_once_spends_what_the_plan_says(story: Story) -> None:
    """Twice cedar's part ended before it masked: nothing was debited, and its answer went into the next sum."""
    plan = private_plan(story.made.config)
    assert Counter(map(repr, story.charges("cedar"))) == Counter(
        repr(plan.charge(part)) for part, count in plan.releases.items() for _ in range(count)
    )
    assert joint_epsilon(story.charges("cedar"), 1e-5) == pytest.approx(joint_epsilon(plan.charges, 1e-5))
    assert story.made.config.privacy.epsilon == pytest.approx(joint_epsilon(story.charges("cedar"), 1e-5))


@pytest.mark.parametrize("site", ["ash", "birch"])
def test_a_sum_that_failed_after_masking_is_a_debit_of_its_own(story: Story, site: str) -> None:
    """Round 1 was masked, and again with new noise; round 2's first sum never came to it."""
    plan = private_plan(story.made.config)
    assert len(story.charges(site)) == sum(plan.releases.values()) + 1
    expected = joint_epsilon([*plan.charges, plan.charge("slots")], 1e-5)
    assert joint_epsilon(story.charges(site), 1e-5) == pytest.approx(expected)
    assert expected > story.made.config.privacy.epsilon


@pytest.mark.parametrize("site", list(SITES))
def test_debits_are_as_many_as_masked_payloads(story: Story, site: str) -> None:
    """A masked answer that was asked for twice is in the ledger twice, with the same digest, and debited once."""
    entries = [entry for entry in verify(story.where[site].ledger).entries if entry.kind.startswith("mask-")]
    assert len({entry.digest for entry in entries}) == len(story.charges(site))
    assert len(entries) == 2 * len(story.charges(site))
