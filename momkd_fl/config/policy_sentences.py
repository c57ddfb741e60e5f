"""A contract in sentences, for who has to say yes or no to it."""

from __future__ import annotations

from collections.abc import Iterator

from momkd_fl.config.policy import ANY, Policy, TensorRule

_SCORES = {
    "withheld": "Histograms of scores do not leave: empty ones go in their place.",
    "cells": "Histograms of scores leave in cells of at least {cell} patients each: coarse, and honest about few.",
    "exact": "Histograms of scores leave exactly: a bin may hold ONE patient, and the coordinator then knows that "
    "patient's score and class.",
}


def sentences(policy: Policy) -> Iterator[str]:
    """Every line of the contract as a sentence."""
    runs = "any run" if ANY in policy.runs else f"the runs {', '.join(policy.runs)}"
    yield (
        f"Site {policy.site} may answer {runs} of the coordinator whose certificate has the SHA-256 "
        f"{policy.coordinator_sha256}, and no other, up to and including {policy.expires.isoformat()} (UTC)."
    )
    yield _tasks(policy.tasks)
    yield from _messages(policy)
    yield from _noise(policy)
    yield from _small(policy)
    yield from _summed(policy)
    yield _witnesses(policy)
    budget = policy.budget
    yield (
        f"All private releases of all runs together may cost one patient at most ε = {budget.epsilon:g} at "
        f"δ = {budget.delta:g}. The site then leaves the run. What leaves without noise is not in that sum."
    )
    yield "What is not named above is refused; the coordinator learns a code, and no reason."


def _tasks(tasks: list[str]) -> str:
    if ANY in tasks:
        return "It answers for any task that its files have labels for."
    if not tasks:
        return "It answers for no task."
    return f"It answers for these tasks and for no other: {', '.join(tasks)}."


def _messages(policy: Policy) -> Iterator[str]:
    if not policy.messages:
        yield "No message may leave."
    for kind, rule in policy.messages.items():
        times = "as often as asked" if rule.times_max is None else f"at most {rule.times_max} times a run"
        yield f"Message '{kind}', {times}, of at most {rule.bytes_max:,} bytes, may carry:"
        if not rule.tensors:
            yield "  its text only."
        for name, tensor in rule.tensors.items():
            yield f"  {name}: {_tensor(tensor)}."


def _tensor(rule: TensorRule) -> str:
    shape = "" if rule.shape is None else f" of shape {' x '.join('any' if n is None else str(n) for n in rule.shape)}"
    return f"at most {rule.numbers_max:,} numbers{shape} ({rule.dtype})"


def _noise(policy: Policy) -> Iterator[str]:
    for required, what in ((policy.dp_required.memory, "memory's sums"), (policy.dp_required.weights, "weights")):
        if required:
            yield f"The {what} leave only with noise of differential privacy, added at this site."
        else:
            yield f"The {what} may leave WITHOUT noise: their ε is then infinite, whatever the budget says."
    if policy.dp_required.noise == "local":
        yield "Noise must be enough by itself: a mere share of it, to be completed by other sites', is refused."
    else:
        yield (
            "Noise may be a SHARE of what is needed, within a secure sum. Its ε, as the budget counts it, then holds "
            "only if as many sites as the run names (privacy.noise_sites, this one among them) are honest; if all "
            "others join against this site, its own share alone protects its patients, and their ε is larger."
        )


def _summed(policy: Policy) -> Iterator[str]:
    if policy.summed.required:
        yield "What depends on patients leaves only masked, for a sum over at least three sites; never in the clear."
    else:
        yield (
            "The coordinator may ask for all of it IN THE CLEAR. Where it asks for a secure sum, a line on 'train' or "
            "another question names what goes into the sum, and 'mask' how it leaves."
        )
    if policy.summed.peers:
        yield f"Of the sites in a sum only these count, each with its key: {', '.join(sorted(policy.summed.peers))}."


def _witnesses(policy: Policy) -> str:
    asked = policy.witnesses
    if not asked.must_answer:
        return (
            "It takes the coordinator's word that no other site has seen more of its books than it has itself: an old "
            "copy that was put back may go unnoticed."
        )
    return (
        f"It works for a run only while {asked.must_answer} of these sites, each with its key, have signed for that "
        f"run that they hold the newest heads of its books: {', '.join(sorted(asked.peers))}."
    )


def _small(policy: Policy) -> Iterator[str]:
    small = policy.small_numbers
    yield (
        f"No count from 1 to {small.minimum_cell - 1} of the cohort's description leaves, nor what lets one be derived."
        if small.minimum_cell > 1
        else "The cohort's description leaves with every count, also of ONE patient."
    )
    yield (
        f"Without noise, sums of genes, scores and losses leave only with at least {small.minimum_per_class} patients "
        f"of each class, and a class of the memory with that many and {small.minimum_per_slot} in each used slot."
    )
    yield _SCORES[small.scores].format(cell=small.minimum_cell)
