"""``momkd``: demo, simulate, study, report, check, ingest, predict, evaluate, withdraw, provision, privacy, policy,
ledger, seal and unseal."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from momkd_fl.cli.frame import OK, Parser, run_command
from momkd_fl.cli.ledger import ledger_options, run_ledger
from momkd_fl.cli.policy import policy_options, run_policy
from momkd_fl.cli.predict import evaluate_options, predict_options, run_evaluate, run_predict
from momkd_fl.cli.privacy import privacy_options, run_privacy
from momkd_fl.cli.provision import provision_options, run_provision
from momkd_fl.cli.seal import run_seal, run_unseal, seal_options, unseal_options
from momkd_fl.cli.withdraw import run_withdraw, withdraw_options


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``momkd``."""
    parser = Parser("momkd", "Federated momentum memory knowledge distillation for computational pathology.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    _demo_options(commands.add_parser("demo", help="run a whole consortium on this machine, ending in a report"))
    _simulate_options(
        commands.add_parser("simulate", help="run a federation in one process, without a network, on data at hand")
    )
    _report_options(commands.add_parser("report", help="write the report of a finished run again from its results"))
    _study_options(
        commands.add_parser("study", help="compare methods on hospitals left out, over tasks and seeds; resumable")
    )
    _check_options(commands.add_parser("check", help="look for everything that would stop or spoil a run at a site"))
    _ingest_options(commands.add_parser("ingest", help="copy a site's features once into a store that trains fast"))
    predict_options(commands.add_parser("predict", help="score a hospital's slides with the model of a finished run"))
    evaluate_options(commands.add_parser("evaluate", help="how that model does on patients it was not trained on"))
    withdraw_options(commands.add_parser("withdraw", help="take a patient out of everything that is still to come"))
    provision_options(commands.add_parser("provision", help="the consortium's keys, certificates and allow-list"))
    privacy_options(commands.add_parser("privacy", help="what a privacy budget costs, before anything is run"))
    policy_options(commands.add_parser("policy", help="the contract of what may leave a site: write, explain, sign"))
    ledger_options(commands.add_parser("ledger", help="what left this site: verify, show, export"))
    seal_options(commands.add_parser("seal", help="seal this party's files that lie in the clear"))
    unseal_options(commands.add_parser("unseal", help="read a sealed file of this party's own"))
    args = parser.parse_args(argv)
    actions = {
        "demo": _demo,
        "simulate": _simulate,
        "report": _report,
        "check": _check,
        "ingest": _ingest,
        "predict": _predict,
        "evaluate": _evaluate,
        "withdraw": _withdraw,
        "provision": _provision,
        "privacy": _privacy,
        "ledger": _ledger,
        "study": _study,
        "seal": _seal_files,
        "unseal": _unseal,
        "policy": _policy,
    }
    return run_command(f"momkd {args.command}", lambda stop: actions[args.command](args, stop))


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of everything it writes")
    parser.add_argument("--rounds", type=int, default=None, help="rounds of the federated run")
    parser.add_argument("--patients", type=int, default=None, help="patients of the largest site")
    parser.add_argument("--seed", type=int, default=0, help="seed of cohort and training")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming an interrupted demo")
    parser.add_argument("--plain", action="store_true", help="plain lines instead of the live view")


def _demo(args: argparse.Namespace, stop: threading.Event) -> int:
    from momkd_fl.cli.demo import run_demo

    report = run_demo(
        args.out.resolve(),
        stop,
        rounds=args.rounds,
        patients=args.patients,
        seed=args.seed,
        fresh=args.fresh,
        plain=args.plain or None,
    )
    if report is not None:
        print(f"Report: {report}")
    return OK


def _simulate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--federation", type=Path, required=True, help="the federation's file; members name their sites' files"
    )
    parser.add_argument(
        "--comparators", action="store_true", help="also train local-only, pooled and no-genomics models"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes for the comparators")
    parser.add_argument("--fresh", action="store_true", help="start anew instead of resuming")
    parser.add_argument("--plain", action="store_true", help="plain lines instead of the live view")


def _simulate(args: argparse.Namespace, stop: threading.Event) -> int:
    from momkd_fl.config.base import load
    from momkd_fl.config.federation import FederationConfig

    config = load(args.federation, FederationConfig)
    from momkd_fl.cli.simulate import run_simulation

    report = run_simulation(
        config, stop, comparators=args.comparators, fresh=args.fresh, plain=args.plain or None, jobs=args.jobs
    )
    if report is not None:
        print(f"Report: {report}")
    return OK


def _report_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder (its output_dir), or a results.json")
    parser.add_argument("--out", type=Path, default=None, help="folder to write into; default: beside results.json")
    parser.epilog = "Writes report.html, model_card.md, results.json and results.csv, replacing what is there."


def _report(args: argparse.Namespace, stop: threading.Event) -> int:
    from momkd_fl.cli.report import run_report

    return run_report(args.run, args.out)


def _study_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", type=Path, required=True, help="the study's file")
    parser.add_argument("--out", type=Path, required=True, help="folder of finished cells and results")
    parser.add_argument("--jobs", type=_positive, default=None, help="processes, one thread each; default: the plan's")
    parser.add_argument("--only", default=None, metavar="TEXT", help="only cells with this in TASK/METHOD/SITES/seedN")
    parser.add_argument("--status", action="store_true", help="say how far it is, and run nothing")
    parser.epilog = (
        "Exit status: 0 all well, 1 a cell failed (the same command tries it again), 2 a mistake in the plan."
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _study(args: argparse.Namespace, stop: threading.Event) -> int:
    from momkd_fl.cli.study import run_study

    return run_study(args.plan, args.out.resolve(), stop, jobs=args.jobs, only=args.only, status=args.status)


def _check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", type=Path, required=True, metavar="CONFIG", help="the site's configuration file")
    parser.add_argument("--json", action="store_true", help="findings as JSON on stdout")
    parser.add_argument("--quick", action="store_true", help="read the files' headers only, not their values")
    parser.add_argument("--offline", action="store_true", help="do not ask the server whether it is there")
    parser.epilog = "Exit status: 0 all well, 1 warnings, 2 something must be mended first."


def _check(args: argparse.Namespace, stop: threading.Event) -> int:
    from momkd_fl.config.base import load
    from momkd_fl.config.site import SiteConfig

    site = load(args.site, SiteConfig)
    from momkd_fl.cli.check import run_check

    return run_check(site, as_json=args.json, quick=args.quick, offline=args.offline)


def _ingest_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", type=Path, required=True, metavar="CONFIG", help="the site's configuration file")
    parser.add_argument("--out", type=Path, default=None, help="folder of the store; default: data.store")
    parser.add_argument(
        "--neighbours", type=int, default=8, help="neighbours k of each patch; the federation's or more"
    )
    parser.add_argument("--verify", action="store_true", help="read the store again and compare it with its checksums")
    parser.epilog = (
        "Source files are never written to. A second run ingests only what is new or has changed; an interrupted one "
        "goes on where it was. Exit status: 0 all well, 1 --verify found something, 2 slides were refused."
    )


def _ingest(args: argparse.Namespace, stop: threading.Event) -> int:
    from momkd_fl.config.base import load
    from momkd_fl.config.site import SiteConfig

    site = load(args.site, SiteConfig)
    from momkd_fl.cli.ingest import run_ingest

    return run_ingest(site, args.out, stop, neighbours=args.neighbours, only_verify=args.verify)


def _predict(args: argparse.Namespace, stop: threading.Event) -> int:
    return run_predict(args)


def _evaluate(args: argparse.Namespace, stop: threading.Event) -> int:
    return run_evaluate(args)


def _withdraw(args: argparse.Namespace, stop: threading.Event) -> int:
    return run_withdraw(args)


def _provision(args: argparse.Namespace, stop: threading.Event) -> int:
    return run_provision(args)


def _privacy(args: argparse.Namespace, stop: threading.Event) -> int:
    return run_privacy(args)


def _seal_files(args: argparse.Namespace, stop: threading.Event) -> int:
    return run_seal(args)


def _unseal(args: argparse.Namespace, stop: threading.Event) -> int:
    return run_unseal(args)


def _ledger(args: argparse.Namespace, stop: threading.Event) -> int:
    return run_ledger(args)


def _policy(args: argparse.Namespace, stop: threading.Event) -> int:
    return run_policy(args)


if __name__ == "__main__":
    sys.exit(main())
