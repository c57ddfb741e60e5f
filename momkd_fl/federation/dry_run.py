"""What a site would send, on its own disk: one round with a coordinator in the same process, and no connection.

The code is the site's own from the reading of its files to the gate; only the coordinator's choices (settings, weights
of the first round) are stood in for. Budget and ledger are not touched.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from flwr.app import ArrayRecord, Context, Message, RecordDict

from momkd_fl.config.aggregation import Aggregation
from momkd_fl.config.base import parse
from momkd_fl.config.federation import FederationConfig, Member
from momkd_fl.config.policy import ANY, Summed
from momkd_fl.config.site import SiteConfig
from momkd_fl.data.load import load_cohort
from momkd_fl.errors import UserError
from momkd_fl.federation.client import make_client_app
from momkd_fl.federation.contract import Outgoing
from momkd_fl.federation.dialogue import ask_all
from momkd_fl.federation.egress import Gate, contract_of
from momkd_fl.federation.enrol import agree_panel, call_roll, send_plan
from momkd_fl.federation.initialise import Start, initialise
from momkd_fl.federation.local import LocalGrid
from momkd_fl.federation.messages import EVALUATE, TRAIN, Evaluate, Train
from momkd_fl.federation.participant import site_participant
from momkd_fl.federation.plan import PLAN_FILE, PLAN_KIND
from momkd_fl.federation.state import ServerState
from momkd_fl.federation.student import initial_memory, initial_weights, shape_of
from momkd_fl.federation.vault import open_vault
from momkd_fl.model.momkd import architecture_hash

ROUND_S: Final = 86400.0
Say = Callable[[str], None]


def dry_run(site: SiteConfig, federation: FederationConfig, out: Path, say: Say) -> list[str]:
    """Write each message of a first round into ``out``; returns the codes by which the gate or the site refused some.

    Parameters
    ----------
    federation : FederationConfig
        The coordinator's file, or its shared sections.
    out : Path
        A folder that does not exist yet.

    Raises
    ------
    UserError
        ``dry-run-folder``, as :func:`~momkd_fl.federation.egress.contract_of`, and for the site's files.
    """
    policy = contract_of(site)
    if out.exists():
        raise UserError("dry-run-folder", f"{out}: exists already. Choose a folder that does not, with --out.")
    out.mkdir(parents=True)
    written: list[Path] = []

    def keep(outgoing: Outgoing, message: Message) -> None:
        written.append(write_message(out, len(written) + 1, outgoing, message))
        say(f"Not sent, but written: {written[-1]}")

    named = federation.name if policy.runs == [ANY] or federation.name in policy.runs else policy.runs[0]
    if federation.aggregation.kind == "secagg":
        say("This run's answers go into secure sums; what is written is what goes into them, before it is masked.")
        policy = policy.model_copy(update={"summed": Summed()})
    plain = Aggregation()  # a sum has three sites, and a dry run one
    changes: dict[str, Any] = {"members": {site.site: Member(role=site.role)}, "name": named, "aggregation": plain}
    if federation.privacy.noise_shares > 1:
        say("In this run the site adds a share of the noise; what is written carries the whole of it.")
        changes["privacy"] = federation.privacy.model_copy(update={"memory": "local"})
    alone = federation.model_copy(update=changes)
    with tempfile.TemporaryDirectory(prefix="momkd-dry-run-") as scratch:
        trial = site.model_copy(update={"state_dir": Path(scratch)})
        participant = site_participant(trial, say)
        app = make_client_app(participant, say, gate=Gate(policy, None, keep))
        context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
        return _one_round(alone, LocalGrid({site.site: (app, context)}), site)


def _one_round(config: FederationConfig, grid: LocalGrid, site: SiteConfig) -> list[str]:
    """Greet, plan, initialise, train, evaluate: what a coordinator would ask this site; codes of refusals."""
    run, name = f"{config.name}-00000000", site.site
    roll = call_roll(grid, config, run, [name])
    if roll.refused:
        return [mistake.code for mistake in roll.refused.values()]
    panel = agree_panel(config, roll.accepted)
    shape = shape_of(config, panel)
    hello = roll.accepted[name]
    state = ServerState(
        run, 0, "", architecture_hash(shape), panel, {name: hello.model_dump()},
        initial_weights(config, shape), initial_memory(config, shape), seed=config.seed,
    )  # fmt: skip
    planned = send_plan(grid, config, run, roll.accepted, panel, state.architecture)
    refused = list(planned.refusals.values())
    if refused:
        return refused
    if site.role == "train":
        genomic = [name] if hello.genomics and panel else []
        try:
            state = initialise(state, Start(config, grid, run, [name], genomic), lambda sentence: None)
        except UserError as mistake:
            refused.append(mistake.code)
        body = Train(proximal_mu=0.0, learning_rate_share=1.0)
        sent: Any = {"weights": state.weights, "memory": state.memory}
        trained = ask_all(grid, TRAIN, body, [name], run=run, round=1, timeout_s=ROUND_S, arrays=sent)
        refused += trained.refusals.values()
    split: Any = "validation" if site.role == "train" else "test"
    asked = Evaluate(split=split, threshold=None, calibration=None, final=True)
    sent = {"weights": state.weights, "memory": state.memory}
    evaluated = ask_all(grid, EVALUATE, asked, [name], run=run, round=1, timeout_s=ROUND_S, arrays=sent)
    return [*refused, *evaluated.refusals.values()]


def write_message(out: Path, number: int, outgoing: Outgoing, message: Message) -> Path:
    """One folder a message: ``summary.txt`` to read, ``envelope.json``, and each tensor's bytes as they would go."""
    folder = out / f"{number:02d}-{outgoing.kind}"
    folder.mkdir()
    envelope = dict(message.content["envelope"])
    (folder / "envelope.json").write_text(json.dumps(envelope, indent=1), "utf-8")
    lines = [
        f"message: {outgoing.kind} of run {outgoing.run}, round {outgoing.round}",
        f"noise charged to the budget: {', '.join(map(repr, outgoing.charges)) or 'none'}",
        f"text ({len(str(envelope['body']).encode()):,} bytes): {envelope['body']}",
    ]
    for group, record in message.content.items():
        if isinstance(record, ArrayRecord):
            for name, array in record.items():
                (folder / f"{group}.{name}.npy").write_bytes(array.data)
                lines.append(_tensor_line(f"{group}.{name}", array.numpy(), len(array.data)))
    (folder / "summary.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def _tensor_line(name: str, value: np.ndarray[Any, Any], size: int) -> str:
    spread = f"from {value.min():.6g} to {value.max():.6g}, mean {value.mean():.6g}" if value.size else "no numbers"
    return f"tensor {name}: {value.dtype}, shape {list(value.shape)}, {size:,} bytes, {spread}"


def settings_for(site: SiteConfig) -> FederationConfig:
    """The federation's settings where its file is not at hand: those of the site's last run, else defaults."""
    try:
        shared = dict(open_vault(site.seal).read_tensors(site.state_dir / PLAN_FILE, PLAN_KIND)[1]["federation"])
    except UserError as mistake:
        if mistake.code not in ("checkpoint-missing", "checkpoint-corrupt"):
            raise
        task = next(iter(site.data.tasks))
        cohort = load_cohort(site, task=task, classes=len(site.data.tasks[task].values_by_class))
        shared = {"name": "dry-run", "task": task, "encoder": {"name": cohort.encoder, "dim": cohort.dim}}
        shared["classes"] = len(site.data.tasks[task].values_by_class)
    members = {site.site: {"role": site.role}, "another-site": {"role": "train"}}
    rest = {"output_dir": ".", "members": members, "rounds": {"quorum": 1}}
    return parse({**rest, **shared}, FederationConfig, Path("the settings of the dry run"))
