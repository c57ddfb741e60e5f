"""Before round 1: who is there, does everyone mean the same thing, and what exactly will be run.

A site whose fingerprint or architecture does not match leaves the run here, with the name of the field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from momkd_fl.config.federation import FederationConfig
from momkd_fl.data.fingerprint import Fingerprint, mismatches
from momkd_fl.data.genomics import load_panel
from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.dialogue import Answers, SiteGrid, ask_all
from momkd_fl.federation.messages import FINISH, HELLO, PLAN, Finish, Hello, HelloReply, Parcel, Plan, PlanReply

REFUSED_STAY_SAID_S = 15.0


@dataclass
class Roll:
    """Who is in, who was refused and why, and what only deserves a warning."""

    accepted: dict[str, HelloReply] = field(default_factory=dict)
    refused: dict[str, UserError] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)


def call_roll(grid: SiteGrid, config: FederationConfig, run: str, sites: Collection[str]) -> Roll:
    """Greet ``sites`` and compare their fingerprints with the federation's, field by field."""
    shared = config.model_dump(mode="json", include=set(messages.SHARED_SECTIONS))
    answers = ask_all(
        grid, HELLO, Hello(federation=shared), sites, run=run, round=0, timeout_s=config.rounds.deadline_s
    )
    roll = Roll(silent=sorted(set(sites) - set(answers.parcels) - set(answers.refusals)))
    for site, code in answers.refusals.items():
        roll.refused[site] = UserError(code, answers.sentences[site])
    reference: dict[str, Any] | None = None
    for site in config.members:  # in the configuration's order, so that the reference does not depend on arrival
        if site not in answers.parcels:
            continue
        hello = answers.parcels[site].body
        reference = reference or _reference(config, [parcel.body for _, parcel in answers])
        try:
            _check_hello(config, site, hello)
            roll.warnings += _check_fingerprint(site, hello, reference)
        except UserError as mistake:
            roll.refused[site] = mistake
        else:
            roll.accepted[site] = hello
    return roll


def agree_panel(config: FederationConfig, hellos: dict[str, HelloReply]) -> tuple[str, ...]:
    """The genes that every genomic training site has, of the named panel; empty without genomic sites.

    Raises
    ------
    UserError
        ``panel-too-small`` when fewer than ``genes.minimum`` remain.
    """
    holders = {site: set(h.genes) for site, h in hellos.items() if h.genomics and h.role == "train"}
    if not holders or not config.memory.genomics:
        return ()
    common = set.intersection(*holders.values())
    named = sorted(common) if config.genes.panel == "shared" else load_panel(config.genes.panel)
    panel = tuple(gene for gene in named if gene in common)
    if len(panel) < config.genes.minimum:
        lacking = sorted(holders, key=lambda site: len(holders[site] & set(named)))[0]
        raise UserError(
            "panel-too-small",
            f"genes.panel '{config.genes.panel}': only {len(panel)} genes are shared by all genomic sites, "
            f"genes.minimum is {config.genes.minimum}. Site {lacking} has the fewest of them.",
        )
    return panel


def send_plan(
    grid: SiteGrid, config: FederationConfig, run: str, sites: Iterable[str], panel: tuple[str, ...], architecture: str
) -> Answers[PlanReply]:
    """Tell the sites what will be run; a site that builds another architecture is refused."""

    def same_architecture(site: str, parcel: Parcel[PlanReply]) -> None:
        if parcel.body.architecture != architecture:
            raise UserError(
                "architecture-mismatch",
                f"site {site}: field 'architecture' is {parcel.body.architecture[:12]}, the federation's is "
                f"{architecture[:12]}. Install the same version of momkd-fl at the site.",
            )

    body = Plan(panel=list(panel), architecture=architecture)
    wait_s = config.rounds.deadline_s
    return ask_all(grid, PLAN, body, list(sites), run=run, round=0, timeout_s=wait_s, check=same_architecture)


def dismiss(grid: SiteGrid, run: str, refused: dict[str, UserError]) -> None:
    """Tell refused sites why, so that their own screen says it; they stop by themselves."""
    for site, mistake in refused.items():
        body = Finish(outcome="refused", code=mistake.code, sentence=mistake.sentence)
        ask_all(grid, FINISH, body, [site], run=run, round=0, timeout_s=REFUSED_STAY_SAID_S)


def _reference(config: FederationConfig, hellos: list[HelloReply]) -> dict[str, Any]:
    """The federation's own word where it has one; else that of the first listed site that states the field."""
    order = list(config.members)
    listed = sorted((h for h in hellos if h.site in config.members), key=lambda hello: order.index(hello.site))
    reference: dict[str, Any] = {}
    for hello in listed or hellos:
        reference |= {name: value for name, value in hello.fingerprint.items() if reference.get(name) is None}
    stated = {"encoder": config.encoder.name, "dim": config.encoder.dim, "patch_um": config.encoder.patch_um}
    return reference | {name: value for name, value in stated.items() if value is not None}


def _check_hello(config: FederationConfig, site: str, hello: HelloReply) -> None:
    if hello.site != site:
        raise UserError(
            "site-name-mismatch",
            f"site {site}: field 'site' of its configuration says '{hello.site}', but its key is on the "
            f"allow-list as '{site}'. Correct one of the two.",
        )
    if hello.role != config.members[site].role:
        raise UserError(
            "role-mismatch",
            f"site {site}: field 'role' says '{hello.role}', the federation lists it as "
            f"'{config.members[site].role}'. Correct one of the two.",
        )


def _check_fingerprint(site: str, hello: HelloReply, reference: dict[str, Any]) -> list[str]:
    """Warnings; raises ``fingerprint-mismatch`` for a field that must match."""
    warnings = []
    for found in mismatches(Fingerprint.from_dict(hello.fingerprint), Fingerprint.from_dict(reference)):
        sentence = f"site {site}: field '{found.field}' is {found.ours!r}, the federation's is {found.reference!r}"
        if found.must_match:
            raise UserError("fingerprint-mismatch", f"{sentence}. The site cannot take part until they are the same.")
        warnings.append(f"{sentence}; the run goes on.")
    return warnings
