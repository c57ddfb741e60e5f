"""The start of a run, from sums and counts only: gene scaling, the fixed genomic space, anchors and slots.

Order: ``scaling`` (n, sum x, sum x^2 per gene) -> ``moments`` (n, sum z z^T, z clipped to a norm) -> the space is
fixed and sent -> ``anchors`` (a few rounds of spherical k-means within each class, METHOD section 10) -> ``slots``
(the same over histology under the initial weights, METHOD section 8). No label leaves a site; class sums do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from momkd_fl.config.federation import FederationConfig
from momkd_fl.data.gene_reference import read_reference
from momkd_fl.errors import UserError
from momkd_fl.federation.arrivals import check_start
from momkd_fl.federation.dialogue import SiteGrid, ask_all
from momkd_fl.federation.memory_bank import move_slots
from momkd_fl.federation.messages import INITIALISE, Arrays, Initialise, InitialiseReply, Parcel, expect_shapes
from momkd_fl.federation.private_plan import anchors_release, least_counts, means_release, private_plan
from momkd_fl.federation.site_sums import combined, gene_sums
from momkd_fl.federation.state import ServerState
from momkd_fl.federation.sum_parts import start_parts
from momkd_fl.federation.sums import SecureSums, Total
from momkd_fl.model.memory import SPACE
from momkd_fl.privacy.mechanism import Release

Flat = dict[str, NDArray[np.float64]]
Shapes = Mapping[str, tuple[int, ...]]
SD_FLOOR = 1e-6
PATIENTS_PER_AXIS = 3
"""Patients of each class, for each axis of the genomic space, from which a teacher of class means is trusted."""
_INCLUDED = "included."


@dataclass(frozen=True)
class Start:
    """Who takes part in the initialisation, and how to ask them.

    ``started``: the sites behind the sums of each step so far; a site that comes later trains in what came of them, and
    is told it, as the others are.
    """

    config: FederationConfig
    grid: SiteGrid
    run: str
    trainers: Collection[str]
    genomic: Collection[str]
    secure: SecureSums | None = None
    members: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    included: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """By site, whether its genomes of each class (C,) are in the last sums of anchors: 0 if withheld, or none."""
    started: dict[str, list[str]] = field(default_factory=dict)

    def sums(self, step: str, iteration: int, sites: Collection[str], arrays: Arrays, shapes: Shapes) -> Flat:
        """Ask ``sites`` for one step's sums and add them; with ``secure``, only their sum is seen.

        Raises
        ------
        UserError
            ``sum-failed``; ``initialise-failed`` when a site does not answer or answers what cannot be: the start
            needs everyone who is in, since a slot that begins without a site's patients begins elsewhere.
        """

        def exact(site: str, parcel: Parcel[InitialiseReply]) -> None:
            statistics = parcel.arrays.get("statistics", {})
            expect_shapes(statistics, shapes, f"site {site}: statistics of {step}")
            check_start(site, step, statistics, self.release(shapes))

        body = Initialise.model_validate({"step": step, "iteration": iteration})
        self.started[step] = sorted(sites)
        if self.secure is not None:
            return self._secure_sums(self.secure, body, sites, arrays, shapes)
        wait_s = self.config.rounds.deadline_s
        answers = ask_all(
            self.grid, INITIALISE, body, sites, run=self.run, round=0, timeout_s=wait_s, arrays=arrays, check=exact
        )
        absent = sorted(set(sites) - set(answers.parcels))
        if absent:
            why = answers.refusals.get(absent[0], "no answer in time")
            raise UserError(
                "initialise-failed",
                f"site {absent[0]}: no sums for initialisation step '{step}' ({why}). "
                "Look at that site's log, then start the server again.",
            )
        by_site = {site: parcel.arrays["statistics"] for site, parcel in answers}
        if step == "anchors":
            self.included.update(
                {site: (sums["counts.genomics"].sum(axis=1) > 0).astype(np.float32) for site, sums in by_site.items()}
            )
        limits = self.config.aggregation
        if "n" in shapes:
            return gene_sums(by_site, limits.patients_max)
        return combined(by_site, limits.patients_max, robust=limits.kind == "robust")

    def release(self, shapes: Shapes) -> Release | None:
        """The noise of sums of these shapes; None where they carry none."""
        sigma = private_plan(self.config).sigma
        if sigma is None:
            return None
        if "sums.means" in shapes:
            return means_release(self.config, sigma, shapes["sums.means"][-1])
        return anchors_release(self.config, sigma, shapes["sums.genomics"][-1])

    def _secure_sums(
        self, secure: SecureSums, body: Initialise, sites: Collection[str], arrays: Arrays, shapes: Shapes
    ) -> Flat:
        """As :meth:`sums`, and as there over all of the sites; zeros for a class that fewer than three of them hold.

        Two steps over different sites would tell of the one that left: its patients are ``n`` less ``n``.
        """
        total = secure.must(
            INITIALISE,
            body,
            arrays,
            start_parts(self.config, body.step, shapes),
            sites,
            members=self.members,
            run=self.run,
            what=f"initialisation step '{body.step}'",
            everyone=True,
        )
        if body.step == "anchors":
            self.included.update({site: self._gave(site, total) for site in sites})
        found = total.group("statistics")
        if body.step in ("scaling", "moments") and not found:
            raise UserError(
                "sum-failed",
                f"initialisation step '{body.step}': fewer than three sites have genomics of enough patients, so that "
                "no sum of them is seen. Set memory.genomics: false, or agree on 'plain'.",
            )
        return {name: np.asarray(found.get(name, np.zeros(shape)), np.float64) for name, shape in shapes.items()}

    def tell(self, sites: Collection[str], arrays: Arrays) -> None:
        """Send the fixed result."""
        body = Initialise(step="fixed", iteration=0)
        ask_all(
            self.grid,
            INITIALISE,
            body,
            sites,
            run=self.run,
            round=0,
            timeout_s=self.config.rounds.deadline_s,
            arrays=arrays,
        )

    def _gave(self, site: str, total: Total) -> NDArray[np.float32]:
        """Which classes' genomes of a site are in a secure sum."""
        held = set(self.members[site]["holds"]) - total.lacking.get(site, set())
        gates = held if site in total.survivors else set()
        return np.array([f"class.{c}.genomics" in gates for c in range(self.config.classes)], np.float32)

    def tell_space(self, space: Mapping[str, NDArray[np.float32]]) -> None:
        """Send the genomic space, and what belongs to it where genomes are trained on."""
        placed = {name: space[name] for name in SPACE}
        others = set(self.trainers) - set(self.genomic)
        if others:
            self.tell(others, {"space": placed})
        self.tell_class_sums(space)

    def tell_class_sums(self, space: Mapping[str, NDArray[np.float32]]) -> None:
        """Send the space with the class sums to the genomic sites, each with what it alone is told."""
        for site in sorted(self.genomic):
            self.tell({site}, {"space": {**{name: space[name] for name in SPACE}, **class_sums_for(site, space)}})


def class_sums_for(site: str, space: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Class sums as one site is told them: with ``class_included`` (C,), whether its own patients are in them.

    A site that came later, or whose small class its contract withheld, must not take its patients out of a sum that
    has none of them.
    """
    if "class_sums" not in space:
        return {}
    sums = {name: space[name] for name in ("class_sums", "class_counts")}
    return {**sums, "class_included": space.get(f"{_INCLUDED}{site}", np.zeros_like(space["class_counts"]))}


def initialise(state: ServerState, start: Start, say: Callable[[str], None]) -> ServerState:
    """The memory and the genomic space of round 0, by sums over the sites."""
    memory, genes = start.config.memory, len(state.panel)
    private = start.config.privacy.memory_noisy
    if genes and start.genomic:
        say(f"Scaling {genes} genes and placing the genomic space, by sums over {len(start.genomic)} sites.")
        space = public_space(start, state.panel) if private else genomic_space(start, genes)
        state = state.after(space=space)
        start.tell(start.trainers, {"space": state.space})
        if memory.mode == "anchors":
            dim = state.space["axes"].shape[0]
            anchors, moved = first_anchors(start.config, dim), np.zeros((start.config.classes, memory.slots), bool)
            if memory.source == "genomics":
                anchors, moved, classes = place_anchors(start, dim)
                if start.config.losses.soft_labels:
                    state = _with_class_sums(state, start, classes, say)
            state = state.after(memory={**state.memory, "anchors": anchors}, released={"anchors": moved})
    from_sums = memory.mode != "gradient" and memory.source != "random"
    if "slots" in state.memory and from_sums and not private and start.config.privacy.share == "all":
        say(f"Placing {memory.slots} slots per class by federated spherical k-means.")
        state = state.after(memory={**state.memory, "slots": place_slots(start, state)})
    return state


def _with_class_sums(
    state: ServerState, start: Start, classes: Mapping[str, NDArray[np.float32]], say: Callable[[str], None]
) -> ServerState:
    """The state with the sums that soft labels are made of, which the genomic sites are told; or as it was.

    A class that every site withholds has no mean, and one over few patients is mostly chance: discriminants want three
    for each axis (docs/method-research.md). Else no label is replaced.
    """
    few = np.flatnonzero(classes["class_counts"] < PATIENTS_PER_AXIS * classes["class_sums"].shape[1])
    if len(few):
        say(
            f"No soft labels: of class {int(few[0])} the sums hold fewer than {PATIENTS_PER_AXIS} patients' genomes "
            "for each axis of the space: there are few, or the sites' contracts withhold them. Every label stays."
        )
        return state
    included = {f"{_INCLUDED}{site}": value for site, value in start.included.items()}
    state = state.after(space={**state.space, **classes, **included})
    start.tell_class_sums(state.space)
    return state


def genomic_space(start: Start, genes: int) -> dict[str, NDArray[np.float32]]:
    """Mean, scale (G,), leading axes (A, G) of the panel's second moment, and sd (A,) along them."""
    ask = partial(start.sums, iteration=0, sites=start.genomic)
    first = ask("scaling", arrays={}, shapes={"n": (1,), "sum": (genes,), "sum_sq": (genes,)})
    count = max(float(first["n"][0]), 1.0)
    mean = first["sum"] / count
    scale = np.sqrt(np.maximum(first["sum_sq"] / count - mean**2, 0.0))
    scale = np.where(scale > SD_FLOOR, scale, 1.0)  # a gene that never varies stays 0 after centring
    sent = {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32)}
    second = ask("moments", arrays={"space": sent}, shapes={"n": (1,), "sum": (genes,), "outer": (genes, genes)})
    moment = second["outer"] / max(float(second["n"][0]), 1.0)
    values, vectors = np.linalg.eigh(moment)
    keep = min(start.config.memory.anchor_dim, genes)
    order = np.argsort(values)[::-1][:keep]
    axes = vectors[:, order].T
    axes = axes * np.sign(axes[np.arange(keep), np.abs(axes).argmax(axis=1)])[:, None]  # one sign on any machine
    sd = np.sqrt(np.maximum(values[order], SD_FLOOR * max(float(values[order[0]]), SD_FLOOR)))
    return {**sent, "axes": axes.astype(np.float32), "sd": sd.astype(np.float32)}


def first_anchors(config: FederationConfig, dim: int) -> NDArray[np.float32]:
    """Orthogonal anchors (C, K, A), before anything of a genome is in them."""
    return spread_directions(config.classes, config.memory.slots, dim, config.seed)


def place_anchors(
    start: Start, dim: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, NDArray[np.float32]]]:
    """Genomic anchors (C, K, A) by spherical k-means within each class, over sums; and which ever moved, (C, K).

    Last come the sums over the slots of each class, ``class_sums`` (C, A) and ``class_counts`` (C,): those of its
    patients, since a patient's shares of the slots sum to 1.

    With private memory every iteration is a release: an anchor moves where its noisy count passes the threshold.
    """
    config = start.config
    anchors = first_anchors(config, dim)
    moved = np.zeros(anchors.shape[:2], bool)
    least = config.memory.min_count
    plan = private_plan(config)
    if plan.sigma is not None:
        least = least_counts(config, [anchors_release(config, plan.sigma, dim)] * len(start.genomic))["genomics"]
    shapes = {"sums.genomics": anchors.shape, "counts.genomics": anchors.shape[:2]}
    for iteration in range(config.memory.anchor_iterations):
        total = start.sums("anchors", iteration, start.genomic, {"memory": {"anchors": anchors}}, shapes)
        length = np.linalg.norm(total["sums.genomics"], axis=-1, keepdims=True)
        seen = (total["counts.genomics"][..., None] >= least) & (length > 1e-9)
        moved |= seen[..., 0]
        anchors = np.where(seen, total["sums.genomics"] / np.maximum(length, 1e-9), anchors).astype(np.float32)
    classes = {"class_sums": total["sums.genomics"].sum(axis=1), "class_counts": total["counts.genomics"].sum(axis=1)}
    return anchors, moved, {name: value.astype(np.float32) for name, value in classes.items()}


def public_space(start: Start, panel: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """The genomic space of a private run: public-seed axes, and a scale that is public or released once with noise.

    Raises
    ------
    UserError
        ``gene-reference`` where the table of a public scale lacks a gene or cannot be read.
    """
    config, genes = start.config, len(panel)
    dim = min(config.memory.anchor_dim, genes)
    axes = {"axes": public_axes(dim, genes, config.seed), "sd": np.ones(dim, np.float32)}
    if config.privacy.gene_reference is not None:
        return {**read_reference(Path(config.privacy.gene_reference), panel), **axes}
    shapes = {"sums.means": (1, 1, genes), "counts.means": (1, 1)}
    total = start.sums("scaling", 0, start.genomic, {}, shapes)
    count = max(float(total["counts.means"].item()), config.privacy.minimum_count)
    place = np.clip(total["sums.means"][0, 0] * np.sqrt(genes) / count, -1.0, 1.0)
    mean = config.privacy.gene_centre + config.privacy.gene_range * place
    scale = np.full(genes, config.privacy.gene_sd)
    return {"mean": mean.astype(np.float32), "scale": scale.astype(np.float32), **axes}


def place_slots(start: Start, state: ServerState) -> NDArray[np.float32]:
    """Histology slots (C, K, S) by the statistics of a round, taken with momentum 0."""
    slots = state.memory["slots"]
    shapes = {"sums.histology": slots.shape, "counts.histology": slots.shape[:2]}
    for iteration in range(start.config.memory.init_iterations):
        sent: Arrays = {"weights": state.weights, "memory": {**state.memory, "slots": slots}}
        total = start.sums("slots", iteration, start.trainers, sent, shapes)
        slots, _ = move_slots(
            slots,
            {"histology": total["sums.histology"]},
            {"histology": total["counts.histology"]},
            momentum=0.0,
            genomic_weight=0.0,
            min_count=start.config.memory.min_count,
        )
    return slots


def public_axes(rows: int, columns: int, seed: int) -> NDArray[np.float32]:
    """Orthonormal rows (rows, columns), rows <= columns, that follow from the seed alone."""
    rng = np.random.default_rng((seed, rows, columns))
    basis, upper = np.linalg.qr(rng.standard_normal((columns, rows)))
    return np.asarray((basis * np.sign(np.diag(upper))).T, np.float32)


def spread_directions(classes: int, slots: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Seeded unit vectors (C, K, dim), orthogonal as far as the dimension allows."""
    rng = np.random.default_rng((seed, classes, slots, dim))
    rows: list[NDArray[np.float64]] = []
    while len(rows) < classes * slots:
        basis, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
        rows += list(basis.T)
    return np.stack(rows[: classes * slots]).reshape(classes, slots, dim).astype(np.float32)
