"""``momkd privacy plan``: what a budget buys, before anyone runs anything."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momkd_fl.cli.frame import OK
from momkd_fl.errors import UserError

if TYPE_CHECKING:
    from momkd_fl.privacy.accountant import Artefact
    from momkd_fl.privacy.mechanism import Release, Worth


def privacy_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``momkd privacy plan``."""
    commands = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=argparse.ArgumentParser
    )
    plan = commands.add_parser("plan", help="what a privacy budget costs in noise, and what that leaves of the memory")
    plan.add_argument(
        "--federation",
        type=Path,
        metavar="FILE",
        help="the federation's file: every artefact of that run, charged or not, and its ε; other options have no part",
    )
    plan.add_argument("--epsilon", type=_above_zero, help="ε that the memory's releases may spend")
    plan.add_argument("--delta", type=_share, default=1e-5, help="δ; well under 1 / patients")
    plan.add_argument("--patients", type=_count, help="training patients of one site, roughly")
    plan.add_argument("--sites", type=_count, default=1, help="sites like this one whose sums are added up")
    plan.add_argument("--releases", type=_count, help="how often the memory is released in the run")
    plan.add_argument("--slots", type=_count, default=2, help="slots K per class")
    plan.add_argument("--memory-dim", type=_count, default=64, help="size S of the memory's space")
    plan.add_argument("--modalities", type=_count, default=2, help="modalities released together")
    plan.add_argument("--tasks", type=_count, default=1, help="tasks released together")
    plan.add_argument("--classes", type=_count, default=2, help="classes C of a task")
    plan.add_argument("--rare-share", type=_share, default=None, help="share of the rarest class; default: 1 / classes")
    plan.add_argument(
        "--concentration",
        type=_share,
        default=0.6,
        help="how alike a slot's patients are: norm of their mean embedding, between 0 and 1; an assumption",
    )
    plan.add_argument(
        "--noise-sites",
        type=_count,
        default=None,
        help="each site adds a share of the noise, and so many honest ones make up the whole (privacy.memory: "
        "distributed, with aggregation: secagg); default: each site adds all of it",
    )
    weights = plan.add_argument_group("weights", "without these, weights leave without noise and the run's ε is ∞")
    weights.add_argument("--dpsgd-sigma", type=_above_zero, help="noise multiplier of DP-SGD")
    weights.add_argument("--dpsgd-rate", type=_share, help="probability of each patient to be in a step")
    weights.add_argument("--dpsgd-steps", type=_count, help="steps over all rounds")
    weights.add_argument("--no-weights", action="store_true", help="no weights leave (share: memory, or anchors only)")
    plan.add_argument("--json", action="store_true", help="one JSON object on stdout")
    plan.epilog = "Exit status: 0 worth running, 2 refused because noise would drown the memory, with the number."


def run_privacy(args: argparse.Namespace) -> int:
    """Print the plan.

    Raises
    ------
    UserError
        ``plan-options`` where numbers are missing; ``plan-dpsgd`` for half a setting of DP-SGD;
        ``plan-noise-sites`` where sites are too few for shares of noise; ``privacy-plan-useless`` where noise would
        drown the memory.
    """
    from momkd_fl.privacy.accountant import GaussianReleases, epsilon_of_run, joint_epsilon, sigma_for

    if args.federation is not None:
        from momkd_fl.cli.privacy_run import plan_of_run

        return plan_of_run(args.federation, as_json=args.json)
    lacking = [name for name in ("epsilon", "patients", "releases") if getattr(args, name) is None]
    if lacking:
        raise UserError(
            "plan-options",
            f"momkd privacy plan needs --{lacking[0]}, or --federation FILE for the run that a file describes. Add it.",
        )
    _refuse_few_sites(args)
    sigma = sigma_for(args.epsilon, args.delta, args.releases)
    artefacts = _artefacts(args, sigma)
    release = _release(args, sigma)
    common, rare = (_worth(args, release, share) for share in _shares(args))
    released = ((args.classes - 1) * common.released + rare.released) / args.classes
    found = {
        "epsilon_memory": joint_epsilon([GaussianReleases(sigma, args.releases)], args.delta),
        "epsilon_run": epsilon_of_run(artefacts, args.delta),
        "delta": args.delta,
        "sigma": sigma,
        "sensitivity": release.sensitivity,
        "noise_sd": release.noise_sd,
        "count_sd": release.count_sd,
        "publication_threshold_patients": _threshold(args, release),
        "cosine": common.cosine,
        "noise_to_signal": common.noise_to_signal,
        "cosine_rare_class": rare.cosine,
        "noise_to_signal_rare_class": rare.noise_to_signal,
        "share_of_slots_released": released,
        "artefacts": {each.name: _charged(each) for each in artefacts},
    }
    if args.noise_sites is not None:
        own = GaussianReleases(sigma, args.releases, args.noise_sites).alone
        local = _worth(args, replace(release, noise_sites=1), _shares(args)[0])
        found |= {
            "noise_sites": args.noise_sites,
            "epsilon_alone": _finite(joint_epsilon([own], args.delta)),
            "noise_to_signal_local": local.noise_to_signal,
        }
    if args.json:
        print(json.dumps(found | {"epsilon_run": _finite(found["epsilon_run"])}))
    else:
        print("\n".join(_sentences(args, found)))
    _refuse_useless(args, common.cosine, released)
    return OK


def _refuse_few_sites(args: argparse.Namespace) -> None:
    if args.noise_sites is not None and not 2 <= args.noise_sites < args.sites:
        raise UserError(
            "plan-noise-sites",
            f"--noise-sites is {args.noise_sites} and --sites is {args.sites}. Noise is divided among at least 2 "
            "honest sites, and a sum is opened only over one site more. Give more --sites, or leave it out.",
        )


def _artefacts(args: argparse.Namespace, sigma: float) -> list[Artefact]:
    """Everything that a run with this plan lets out."""
    from momkd_fl.privacy.accountant import Artefact, GaussianReleases, PoissonSteps

    given = [args.dpsgd_sigma, args.dpsgd_rate, args.dpsgd_steps]
    private = all(each is not None for each in given)
    if any(each is not None for each in given) and (not private or args.no_weights):
        raise UserError(
            "plan-dpsgd",
            "DP-SGD needs all of --dpsgd-sigma, --dpsgd-rate and --dpsgd-steps, and none of them goes with "
            "--no-weights. Give the three, or leave them out.",
        )
    steps = PoissonSteps(args.dpsgd_sigma, args.dpsgd_rate, args.dpsgd_steps) if private else None
    releases = GaussianReleases(sigma, args.releases, args.noise_sites or 1)
    found = [Artefact("memory sums and counts", True, releases)]
    found += [] if args.no_weights else [Artefact("weights", True, steps)]
    return [*found, Artefact("slots at the start, from a public seed", False)]


def _release(args: argparse.Namespace, sigma: float) -> Release:
    from momkd_fl.privacy.mechanism import Release

    shape = (args.classes, args.slots, args.memory_dim)
    parts = {str(part): shape for part in range(args.modalities * args.tasks)}
    return Release(parts, sigma, noise_sites=args.noise_sites or 1)


def _shares(args: argparse.Namespace) -> tuple[float, float]:
    """Of a class that is not the rarest, and of the rarest."""
    rare = 1 / args.classes if args.rare_share is None else args.rare_share
    return ((1 - rare) / (args.classes - 1) if args.classes > 1 else rare), rare


def _worth(args: argparse.Namespace, release: Release, share: float) -> Worth:
    from momkd_fl.privacy.mechanism import worth

    count = args.patients * args.sites * share / args.slots
    return worth(release, args.memory_dim, count, args.concentration, sites=args.sites)


def _threshold(args: argparse.Namespace, release: Release) -> float:
    from momkd_fl.privacy.mechanism import publication_threshold

    return publication_threshold(release, args.sites)


def _sentences(args: argparse.Namespace, found: dict[str, Any]) -> list[str]:
    lines = [
        f"Memory: {args.releases} releases at ε = {found['epsilon_memory']:.3f}, δ = {args.delta:g} need a noise "
        f"multiplier of σ = {found['sigma']:.3f}.",
        f"One patient moves a release by at most {found['sensitivity']:.3f}; the noise on each number has a standard "
        f"deviation of {found['noise_sd']:.2f}, on a count of {found['count_sd']:.1f} patients a site.",
        f"A slot leaves its place only at a noisy count of {found['publication_threshold_patients']:.0f} patients or "
        f"more; expected share of slots released: {found['share_of_slots_released']:.0%}.",
        f"Expected cosine of a slot's direction to the true one: {found['cosine']:.2f} (noise is "
        f"{found['noise_to_signal']:.2f} of the signal), if a slot's patients agree by {args.concentration:g}.",
    ]
    if args.rare_share is not None:
        lines.append(
            f"In the rarest class: cosine {found['cosine_rare_class']:.2f}, noise "
            f"{found['noise_to_signal_rare_class']:.2f} of the signal."
        )
    if args.noise_sites is not None:
        alone = found["epsilon_alone"]
        lines.append(
            f"Each site adds a share of the noise. ε is CONDITIONAL on at least {args.noise_sites} honest sites in "
            f"every sum; if all others join against one site, its patients' ε is "
            f"{'∞' if alone is None else format(alone, '.1f')}. With local noise, which depends on nobody, noise would "
            f"be {found['noise_to_signal_local']:.2f} of the signal."
        )
    lines += [f"- {name}: {charge}" for name, charge in found["artefacts"].items()]
    if math.isinf(found["epsilon_run"]):
        return [
            *lines,
            "The run's ε is ∞: what is marked 'without noise' depends on patients and is not bounded. The memory's own "
            "ε is conditional on the weights, unless the memory lies in a space that no weights touch (anchors).",
        ]
    return [
        *lines,
        f"All of it together: ε = {found['epsilon_run']:.3f} at δ = {args.delta:g}, as long as nothing else leaves "
        "that depends on patients: no scaling, gene panel, threshold or validation score without noise.",
    ]


def _charged(artefact: Artefact) -> str:
    if not artefact.depends_on_data:
        return "public"
    if artefact.charge is None:
        return "without noise"
    return "charged, conditionally" if getattr(artefact.charge, "noise_sites", 1) > 1 else "charged"


def _refuse_useless(args: argparse.Namespace, cosine: float, released: float) -> None:
    from momkd_fl.privacy.mechanism import USEFUL_COSINE, USEFUL_SHARE

    if cosine >= USEFUL_COSINE and released >= USEFUL_SHARE:
        return
    if cosine < USEFUL_COSINE:
        number = f"would be noise: expected cosine {cosine:.2f}, under {USEFUL_COSINE:g}"
    else:
        number = f"would hardly move: expected share of slots released {released:.1%}, under {USEFUL_SHARE:.0%}"
    raise UserError(
        "privacy-plan-useless",
        f"With {args.patients} patients a site (sites: {args.sites}) and {args.releases} releases at ε = "
        f"{args.epsilon:g} the memory {number}. Release less often, in fewer slots or a smaller space, with more "
        "sites, or let this site only evaluate.",
    )


def _finite(value: float) -> float | None:
    """JSON has no infinity: None."""
    return None if math.isinf(value) else value


def _above_zero(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1")
    return value
