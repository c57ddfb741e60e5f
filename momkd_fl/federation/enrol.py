"""Before round 1: who is there, does everyone mean the same thing, and what exactly will be run.

A site whose fingerprint or architecture does not match leaves the run here, with the name of the field.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from momkd_fl import __version__
from momkd_fl.config.federation import FederationConfig
from momkd_fl.data.fingerprint import SET_IN, Fingerprint, joined, mismatches
from momkd_fl.data.genomics import load_panel
from momkd_fl.errors import UserError
from momkd_fl.evaluation.results import Disagreement
from momkd_fl.federation import messages
from momkd_fl.federation.dialogue import Answers, SiteGrid, ask_all
from momkd_fl.federation.messages import FINISH, HELLO, PLAN, Finish, Hello, HelloReply, Parcel, Plan, PlanReply

REFUSED_STAY_SAID_S = 15.0
SHOWN_CHARACTERS = 80
"""What is shown of a site's own words."""

_FIELD_OF_CODE = {
    "encoder-mismatch": "encoder",
    "dim-mismatch": "dim",
    "patch-um-mismatch": "patch_um",
    "task-unknown": "task",
    "task-classes": "classes",
}
"""Differences that a site finds itself when it is greeted: it refuses, and tells the code alone."""


@dataclass
class Roll:
    """Who is in, who was refused and why, and every field in which a site differs."""

    accepted: dict[str, HelloReply] = field(default_factory=dict)
    refused: dict[str, UserError] = field(default_factory=dict)
    differing: list[Disagreement] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """A sentence for each difference that stops nobody."""
        return [
            f"site {one.site}: field '{one.field}' is {'not stated' if one.here is None else repr(one.here)}, the "
            f"federation's is {one.federation!r}; the run goes on."
            for one in self.differing
            if not one.stopped
        ]


def call_roll(
    grid: SiteGrid,
    config: FederationConfig,
    run: str,
    sites: Collection[str],
    members: Mapping[str, Mapping[str, Any]] | None = None,
) -> Roll:
    """Greet ``sites`` and compare their fingerprints with the federation's, field by field.

    ``members`` are the greetings of sites that are in already: whoever comes late must mean what they mean.
    """
    shared = config.model_dump(mode="json", include=set(messages.SHARED_SECTIONS))
    answers = ask_all(
        grid, HELLO, Hello(federation=shared), sites, run=run, round=0, timeout_s=config.rounds.deadline_s
    )
    roll = Roll(silent=sorted(set(sites) - set(answers.parcels) - set(answers.refusals)))
    for site, code in answers.refusals.items():
        roll.refused[site] = UserError(code, answers.sentences[site])
        if code in _FIELD_OF_CODE:
            name = _FIELD_OF_CODE[code]
            roll.differing.append(Disagreement(site, name, None, _text(_stated(config).get(name)), True))
    reference = _reference(config, {} if members is None else members)
    for site in config.members:  # in the configuration's order, so that the reference does not depend on arrival
        if site not in answers.parcels:
            continue
        hello = answers.parcels[site].body
        try:
            found = _unlisted(config, site, hello) or _compared(
                config, site, hello.fingerprint, hello.genomics, reference
            )
        except UserError as malformed:
            roll.refused[site] = malformed
            continue
        roll.differing += found
        if (stop := next((one for one in found if one.stopped), None)) is not None:
            roll.refused[site] = _refusal(config, stop)
        else:
            roll.accepted[site] = hello
            reference = _filled(reference, hello.fingerprint)
    return roll


def warned(config: FederationConfig, members: Mapping[str, Mapping[str, Any]]) -> list[Disagreement]:
    """Differences among the sites that are in, from their greetings as the server keeps them."""
    found: list[Disagreement] = []
    reference = _stated(config)
    for site in config.members:
        if site in members:
            hello = members[site]
            found += _compared(config, site, hello["fingerprint"], hello["genomics"], reference)
            reference = _filled(reference, hello["fingerprint"])
    return [replace(one, stopped=False) for one in found]


def agree_panel(config: FederationConfig, hellos: dict[str, HelloReply]) -> tuple[str, ...]:
    """The genes that every genomic training site has, of the named panel; empty without genomic sites.

    Where the panel is to be learnt, its candidates.

    Raises
    ------
    UserError
        ``panel-too-small`` when fewer than ``genes.minimum`` remain.
    """
    holders = {site: set(h.genes) for site, h in hellos.items() if h.genomics and h.role == "train"}
    if not holders or not config.memory.genomics:
        return ()
    common = set.intersection(*holders.values())
    asked = (config.genes.candidates or "shared") if config.genes.panel == "learnt" else config.genes.panel
    named = sorted(common) if asked == "shared" else load_panel(asked)
    panel = tuple(gene for gene in named if gene in common)
    if len(panel) < config.genes.minimum:
        lacking = sorted(holders, key=lambda site: len(holders[site] & set(named)))[0]
        raise UserError(
            "panel-too-small",
            f"genes.panel '{asked}': only {len(panel)} genes are shared by all genomic sites, "
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


def architecture_difference(site: str, ours: str) -> Disagreement:
    """For a site that builds another student; its own hash stands in the refusal's sentence."""
    return Disagreement(site, "architecture", None, ours[:12], True)


def _stated(config: FederationConfig) -> dict[str, Any]:
    """The federation's own word."""
    encoder = config.encoder
    stated = {
        "encoder": encoder.name,
        "dim": encoder.dim,
        "patch_um": encoder.patch_um,
        "magnification": encoder.magnification,
        "preprocessing": encoder.preprocessing,
        "task": config.task,
        "classes": config.classes,
        "class_names": None if config.class_names is None else joined(config.class_names),
        "software": __version__,
    }
    return {name: value for name, value in stated.items() if value is not None}


def _reference(config: FederationConfig, members: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The federation's own word where it has one; else that of the first listed site which is in and states it."""
    reference = _stated(config)
    for site in config.members:
        if site in members:
            reference = _filled(reference, members[site]["fingerprint"])
    return reference


def _filled(reference: dict[str, Any], fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {**fingerprint, **{name: value for name, value in reference.items() if value is not None}}


def _unlisted(config: FederationConfig, site: str, hello: HelloReply) -> list[Disagreement]:
    """In what this is not the site that the federation lists."""
    listed = {"site": (hello.site, site), "role": (hello.role, config.members[site].role)}
    return [
        Disagreement(site, name, _text(here), there, stopped=True)
        for name, (here, there) in listed.items()
        if here != there
    ]


def _compared(
    config: FederationConfig, site: str, fingerprint: Mapping[str, Any], genomics: bool, reference: dict[str, Any]
) -> list[Disagreement]:
    """Every field in which a site differs (raises UserError ``fingerprint-malformed``).

    What the federation's own file states and the site does not was not compared; that deserves a warning.
    """
    ours = Fingerprint.from_dict(fingerprint)
    found = [
        Disagreement(site, one.field, _text(one.ours), _text(one.reference), one.must_match)
        for one in mismatches(ours, Fingerprint.from_dict(reference), config.fingerprint)
        if genomics or one.field != "gene_scale"  # a site without genomics has no scale to state
    ]
    ignored = {name for name, asked in config.fingerprint.model_dump().items() if asked == "ignore"}
    known = ignored | {one.field for one in found}
    return found + [
        Disagreement(site, name, None, _text(value), stopped=False)
        for name, value in _stated(config).items()
        if getattr(ours, name) is None and name not in known
    ]


def _refusal(config: FederationConfig, found: Disagreement) -> UserError:
    """A difference that keeps a site out, in words."""
    site, name, here, there = found.site, found.field, found.here, found.federation
    if name == "site":
        return UserError(
            "site-name-mismatch",
            f"site {site}: field 'site' of its configuration says '{here}', but its key is on the allow-list as "
            f"'{there}'. Correct one of the two.",
        )
    if name == "role":
        return UserError(
            "role-mismatch",
            f"site {site}: field 'role' says '{here}', the federation lists it as '{there}'. Correct one of the two.",
        )
    key = SET_IN.get(name, "").replace("<task>", config.task)
    mend = f" ('{key}' of the site's file)" if key else ""
    if here is None:
        return UserError(
            "fingerprint-unstated",
            f"site {site}: field '{name}' is not stated, and the federation requires it (fingerprint.{name}: "
            f"required). State it{mend}.",
        )
    return UserError(
        "fingerprint-mismatch",
        f"site {site}: field '{name}' is {here!r}, the federation's is {there!r}. The site cannot take part until "
        f"they are the same{mend}.",
    )


def _text(value: str | float | None) -> str | None:
    return None if value is None else str(value)[:SHOWN_CHARACTERS]
