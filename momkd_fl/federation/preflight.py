"""Preflight of a site: its files, its certificate, its machine and the way to the server, and what would leave it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import torch

from momkd_fl.config.policy import Policy
from momkd_fl.config.policy_sentences import sentences
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.bags import BagHeader
from momkd_fl.data.check import Finding, check_data
from momkd_fl.data.check_values import Progress
from momkd_fl.errors import UserError
from momkd_fl.federation.contract import TENSORS, TO_EVALUATORS
from momkd_fl.federation.egress import contract_of
from momkd_fl.federation.identity import membership_findings, passphrase_of, proxy_of
from momkd_fl.federation.messages import KINDS
from momkd_fl.federation.session import CLOCK_OFF_MAX_S, clock_ahead_s, refusal_detail, trouble
from momkd_fl.federation.site_data import device_of
from momkd_fl.federation.transport import client_context, http_client
from momkd_fl.federation.vault import in_the_clear, open_vault
from momkd_fl.security.pki import check_certificate, days_left, private_key_of

CERTIFICATE_WARN_DAYS = 30.0
CLOCK_WARN_S = 60.0
CONTRACT_WARN_DAYS = 14
REACH_TIMEOUT_S = 10.0
_MB = 1024**2
_HIDDEN = 512  # the release's width; the site's file does not know the federation's
_BASE_MB = 700.0  # the interpreter, torch and the model

_MEANS = {
    "update": "the difference of the weights after local training",
    "statistics": "sums and counts per class and slot, over all patients of the site; of genes, sums and squares",
    "scores": "a histogram of scores per class: with few patients, close to the patients themselves",
    "secagg": "a signed message of secure aggregation: keys, sealed shares, or the masked answer itself",
}
"""What the groups of arrays in a site's replies hold."""


def check_site(site: SiteConfig, progress: Progress, *, values: bool = True, network: bool = True) -> list[Finding]:
    """Every check of a site, in the order in which a person would mend things.

    Parameters
    ----------
    values : bool
        Read every feature file whole (see :func:`momkd_fl.data.check.check_data`).
    network : bool
        Ask the server whether it is there and knows this site's key.
    """
    findings, headers = check_data(site, progress, values=values)
    findings += _resources(site, headers)
    try:
        findings += _certificate(site)
        findings += membership_findings(site)
        if network:
            findings += _server(site)
    except UserError as mistake:
        findings.append(Finding("connection", "FAIL", mistake.sentence, code=mistake.code))
    findings += _at_rest(site)
    findings += _leaving(site)
    return findings


def refuse_failures(findings: Sequence[Finding]) -> None:
    """Raise one error with every failed line; its code is that of the first."""
    failed = [found for found in findings if found.status == "FAIL"]
    if failed:
        lines = [f"{found.sentence} {found.mend}".strip() for found in failed]
        raise UserError(failed[0].code, "\n".join(lines))


def _resources(site: SiteConfig, headers: Sequence[BagHeader]) -> Iterator[Finding]:
    """Memory, GPU memory and disk that one round of the usual student would take."""
    if not headers:
        return
    largest = max(headers, key=lambda header: header.patches)
    # measured: a step holds about 2 D + 32 hidden float32 per patch, forward and backward
    step_mb = largest.patches * 4 * (2 * largest.dim + 32 * _HIDDEN) / _MB
    features_mb = sum(header.patches * (4 * header.dim + 36) for header in headers) / _MB
    cached_mb = min(features_mb, site.data.cache_mb)
    device = device_of(site)
    host_mb = _BASE_MB + cached_mb + (step_mb if device.type == "cpu" else 0.0)
    yield _enough(
        "memory", host_mb, psutil.virtual_memory().available / _MB,
        f"{largest.path.name} has {largest.patches:,} patches",
        "Lower data.cache_mb, or ask the coordinator to set training.max_patches.",
    )  # fmt: skip
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        yield _enough(
            "GPU memory", step_mb, free / _MB, "one step of the largest bag", "Free the GPU, or set device: cpu."
        )
    else:
        sentence = f"None is used; one step of the largest bag would take about {step_mb:,.0f} MB of a GPU's memory."
        yield Finding("GPU memory", "PASS", sentence)
    free_mb = shutil.disk_usage(_existing(site.state_dir)).free / _MB
    yield _enough(
        "disk", 100.0, free_mb, f"state_dir {site.state_dir}", "Free some space, or choose another state_dir."
    )
    if not os.access(_existing(site.state_dir), os.W_OK):
        yield Finding(
            "disk", "FAIL", f"state_dir {site.state_dir} cannot be written to.", "Give this account the right to.",
            "state-not-writable",
        )  # fmt: skip


def _enough(check: str, needed_mb: float, free_mb: float, why: str, mend: str) -> Finding:
    sentence = f"About {needed_mb:,.0f} MB for one round ({why}); {free_mb:,.0f} MB are free."
    if needed_mb > free_mb:
        return Finding(check, "FAIL", sentence, mend, "resources-short")
    return Finding(check, "WARN", sentence, mend) if needed_mb > 0.8 * free_mb else Finding(check, "PASS", sentence)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def _at_rest(site: SiteConfig) -> Iterator[Finding]:
    """Whether what the site keeps is sealed, and opens with the key at hand."""
    if site.seal is None:
        mend = "Name a key under 'seal', which 'momkd provision request' has made, and run 'momkd seal' once."
        yield Finding("at rest", "WARN", in_the_clear(site.state_dir), mend)
        return
    try:
        vault = open_vault(site.seal)
        vault.check(site.state_dir)
        if site.egress is not None:
            vault.check(site.egress.publications.parent)
    except UserError as mistake:
        yield Finding("at rest", "FAIL", mistake.sentence, code=mistake.code)
    else:
        yield Finding("at rest", "PASS", f"What is kept in {site.state_dir} is sealed, and the key opens it.")


def _certificate(site: SiteConfig) -> Iterator[Finding]:
    if site.tls is None:
        yield Finding(
            "certificate", "WARN", "The section 'tls' is missing; momkd-client needs it.",
            "Add it; 'momkd simulate' does without.",
        )  # fmt: skip
        return
    check_certificate(site.tls.certificate, site.tls.ca)
    private_key_of(site.tls.certificate, site.tls.private_key, passphrase_of(site.tls))
    left = days_left(site.tls.certificate)
    sentence = f"{site.tls.certificate} fits its key and root, and is good for {left:.0f} more days."
    if left < CERTIFICATE_WARN_DAYS:
        yield Finding("certificate", "WARN", sentence, "Ask whoever keeps the root key for a new one in time.")
    else:
        yield Finding("certificate", "PASS", sentence)


def _server(site: SiteConfig) -> Iterator[Finding]:
    """Reachable, trusted, knows the key, and its clock."""
    if site.tls is None or site.connection is None:
        if site.connection is None:
            yield Finding(
                "server", "WARN", "The section 'connection' is missing; momkd-client needs it.",
                "Add it; 'momkd simulate' does without.",
            )  # fmt: skip
        return
    url, tls = site.connection.url, site.tls
    context = client_context(tls.ca, tls.certificate, tls.private_key, passphrase_of(tls))
    try:
        with http_client(context, REACH_TIMEOUT_S, proxy_of(site.connection)) as client:
            response = client.get(url)
    except httpx.TransportError as problem:
        reason = trouble(problem, url, tls.ca)
        yield Finding(
            "server", "WARN", f"The server at {url} does not answer ({reason}).",
            "It may not have been started yet; else ask the coordinator, and check address and firewall.",
        )  # fmt: skip
        return
    if refusal_detail(response) == "key-not-allowed":
        yield Finding(
            "server", "FAIL", f"The server at {url} does not know the key of {tls.certificate}.",
            "Send the coordinator that certificate, and ask to be put on its list of sites.", "key-not-allowed",
        )  # fmt: skip
    else:
        yield Finding("server", "PASS", f"The server at {url} answers, and knows this site's key.")
    yield from _clock(clock_ahead_s(response))


def _clock(ahead_s: float | None) -> Iterator[Finding]:
    if ahead_s is None:
        return
    sentence = f"This machine's clock and the coordinator's differ by {ahead_s:+.0f} s."
    if abs(ahead_s) > CLOCK_OFF_MAX_S:
        yield Finding("clock", "FAIL", sentence, "Set the clock (NTP).", "clock-skew")
    elif abs(ahead_s) > CLOCK_WARN_S:
        yield Finding("clock", "WARN", sentence, "Set the clock (NTP); up to an hour is corrected for.")
    else:
        yield Finding("clock", "PASS", sentence)


def _leaving(site: SiteConfig) -> Iterator[Finding]:
    """What the messages of this version can carry from this site, and whether its contract lets them."""
    policy: Policy | None = None
    if site.egress is None:
        yield Finding(
            "contract", "WARN", "The section 'egress' is missing; momkd-client needs it, and sends nothing without.",
            "Add it, and write a contract with 'momkd policy write'; 'momkd simulate' does without.",
        )  # fmt: skip
    else:
        try:
            policy = contract_of(site)
        except UserError as mistake:
            yield Finding("contract", "FAIL", mistake.sentence, code=mistake.code)
        else:
            yield from _contract(policy, (policy.expires - datetime.now(UTC).date()).days)
    for kind in KINDS:
        if site.role == "train" or kind.name in TO_EVALUATORS:
            carried = [*kind.reply.model_fields, *(f"{group} ({_MEANS[group]})" for group in sorted(kind.reply_groups))]
            if policy is not None:
                yield _allowed(policy, kind.name, carried)
            elif carried:
                yield Finding("leaves the site", "PASS", f"Answering '{kind.name}': {'; '.join(carried)}.")


def _contract(policy: Policy, days: int) -> Iterator[Finding]:
    sentence = " ".join(sentences(policy))
    if days < CONTRACT_WARN_DAYS:
        yield Finding("contract", "WARN", sentence, f"It ends in {days} days: set 'expires' anew, and sign it.")
    else:
        yield Finding("contract", "PASS", sentence)
    asked = policy.witnesses
    if 0 < 2 * asked.must_answer <= len(asked.peers):
        mend = "Ask for more than half (witnesses.must_answer), and sign it: then any two such groups share a site."
        few = f"{asked.must_answer} of {len(asked.peers)} sites must say how far the books are; others may know more."
        yield Finding("contract", "WARN", few, mend)


def _allowed(policy: Policy, kind: str, carried: Sequence[str]) -> Finding:
    """Whether the contract lets a kind of message go, and which of its tensors it would stop."""
    what = f"Answering '{kind}': {'; '.join(carried) or 'nothing but that it was done'}."
    rule = policy.messages.get(kind)
    if rule is None:
        mend = f"Add messages.{kind} to the contract and sign it, if this is to leave; a run may not ask for it."
        return Finding("leaves the site", "WARN", f"{what} The contract does not allow it.", mend)
    lacking = [name for name in TENSORS[kind] if name not in rule.tensors]
    if lacking:
        mend = f"Add them under messages.{kind}.tensors and sign it, if they are to leave."
        return Finding("leaves the site", "WARN", f"{what} The contract stops it with {', '.join(lacking)}.", mend)
    return Finding("leaves the site", "PASS", f"{what} The contract allows it, up to {rule.bytes_max:,} bytes.")
