"""A site's part: a Flower ClientApp around one :class:`Participant`, and the process that keeps it connected."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from momkd_fl.config.site import SiteConfig
from momkd_fl.errors import UserError
from momkd_fl.federation import messages
from momkd_fl.federation.connection import Connection
from momkd_fl.federation.egress import Gate, open_gate, payload_bytes
from momkd_fl.federation.flower import SiteSession
from momkd_fl.federation.identity import Membership, expiries, passphrase_of, proxy_of, show_ends, tell_of_ends
from momkd_fl.federation.messages import (
    EVALUATE,
    FINISH,
    HELLO,
    INITIALISE,
    JOIN,
    PLAN,
    SELECT,
    SUM_STEPS,
    TRAIN,
    Kind,
    TrainReply,
    open_request,
)
from momkd_fl.federation.participant import Participant, site_participant
from momkd_fl.federation.preflight import check_site, refuse_failures
from momkd_fl.federation.sum_keys import SumKeys
from momkd_fl.federation.sum_site import SumSite
from momkd_fl.federation.vault import open_vault
from momkd_fl.security.signing import load_signing_key
from momkd_fl.telemetry.logs import JsonLog
from momkd_fl.telemetry.metrics import ClientMetrics

Say = Callable[[str], None]
ENDS_HERE = frozenset(
    {
        "budget-exhausted",
        "contract-expired",
        "ledger-forked",
        "ledger-not-written",
        "ledger-truncated",
        "odometer-damaged",
        "odometer-not-written",
        "odometer-rolled-back",
        "withdrawals-lost",
        "withdrawals-unreadable",
    }
)
"""What ends the site's part of a run: it can send nothing more, whatever it is asked."""
NOT_THE_SITES = frozenset(
    {
        "config-unknown-key",
        "config-value",
        "contract-message",
        "contract-run",
        "contract-task",
        "contract-times",
        "message-not-finite",
        "message-schema",
        "message-version",
        "plan-missing",
    }
)
"""Greetings and plans that the coordinator, not the site, would have to mend: the site stays, for the next one. An
honest coordinator hears the code, and ends the site's part with its farewell."""


def make_client_app(
    participant: Participant,
    say: Say,
    log: JsonLog | None = None,
    metrics: ClientMetrics | None = None,
    *,
    gate: Gate,
    keys: SumKeys | None = None,
) -> ClientApp:
    """The ClientApp of one site. All code is here, installed at the site; messages bring data only.

    What it answers goes through ``gate``, and nothing else of it leaves but codes.

    A mistake at the site becomes its sentence on the site's own screen and its stable code to the coordinator.
    """
    app = ClientApp()
    sums = SumSite(participant, gate, keys)

    def serve(kind: Kind[Any, Any], request: Message, work: Callable[..., tuple[Any, messages.Arrays]]) -> Message:
        try:
            gate.admit(request)
            gate.note_withdrawn(participant.withdrawn())
            parcel = open_request(request, kind)
            gate.refuse_question(parcel)
            body, arrays = work(parcel)
            charges, task = (*participant.take_charges(), *sums.take_charges()), participant.task
            reply = gate.send(kind, request, parcel, body, arrays, task=task, charges=charges)
        except UserError as mistake:
            say(str(mistake))
            code = mistake.code
            if (kind in (HELLO, PLAN) and code not in NOT_THE_SITES) or code in ENDS_HERE:
                participant.give_up(mistake)
        except Exception:  # a bug must neither end the process nor tell the coordinator what it was holding
            traceback.print_exc(file=sys.stderr)
            code = "internal-error"
        else:
            if metrics is not None:
                _measure(metrics, parcel.round, body, received=payload_bytes(request), sent=payload_bytes(reply))
            return reply
        if log is not None:
            log.event("refused", level="error", code=code)
        return messages.refuse(request, code)

    @app.query("hello")
    def hello(request: Message, context: Context) -> Message:
        return serve(HELLO, request, sums.hello)

    @app.query("select")
    def select(request: Message, context: Context) -> Message:
        return serve(SELECT, request, sums.in_the_clear(SELECT))

    @app.query("plan")
    def plan(request: Message, context: Context) -> Message:
        return serve(PLAN, request, participant.plan)

    @app.query("initialise")
    def initialise(request: Message, context: Context) -> Message:
        return serve(INITIALISE, request, sums.in_the_clear(INITIALISE))

    @app.train()
    def train(request: Message, context: Context) -> Message:
        return serve(TRAIN, request, sums.in_the_clear(TRAIN))

    @app.evaluate()
    def evaluate(request: Message, context: Context) -> Message:
        return serve(EVALUATE, request, sums.in_the_clear(EVALUATE))

    @app.query("join")
    def join(request: Message, context: Context) -> Message:
        return serve(JOIN, request, sums.join)

    for kind in SUM_STEPS[1:]:

        @app.query(kind.name)
        def later(request: Message, context: Context, kind: Kind[Any, Any] = kind) -> Message:
            return serve(kind, request, sums.step(kind))

    @app.query("finish")
    def finish(request: Message, context: Context) -> Message:
        return serve(FINISH, request, participant.finish)

    return app


def _measure(metrics: ClientMetrics, number: int, body: Any, *, received: int, sent: int) -> None:
    metrics.traffic(sent=sent, received=received)
    if isinstance(body, TrainReply):
        metrics.round_started(number)
        for phase, seconds in body.seconds.items():
            metrics.seconds(phase, seconds)
        metrics.round_ended()


def run_site(config: SiteConfig, stop: threading.Event) -> None:
    """Take part until the run is over.

    Raises
    ------
    UserError
        For a configuration without ``connection``, ``tls`` or ``consortium``; where this site or the coordinator is not
        on the allow-list; for what :class:`SiteSession` cannot mend by trying
        again; for a mistake in the site's files; and when the coordinator turned the site away, with its reason.
    """
    if config.connection is None or config.tls is None or config.consortium is None:
        lacking = next(name for name in ("connection", "tls", "consortium") if getattr(config, name) is None)
        raise UserError("config-value", f"Site '{config.site}': '{lacking}' is missing; momkd-client needs it.")
    with JsonLog(config.telemetry.log, config.site) as log, ClientMetrics() as metrics:
        if config.telemetry.metrics_port is not None:
            metrics.serve(config.telemetry.metrics_port)

        def say(sentence: str) -> None:
            print(f"[{config.site}] {sentence}", file=sys.stderr, flush=True)

        _preflight(config, say)
        membership = Membership(config.consortium, config.tls, config.site)
        vault = open_vault(config.seal)
        vault.check(config.state_dir)
        gate = open_gate(config, vault)
        ends = partial(expiries, config.tls, contract=gate.policy.expires)
        tell_of_ends(ends(membership.allow_list), say, log, metrics)
        membership.changed = lambda newest: show_ends(ends(newest), metrics)
        participant = site_participant(config, say, vault)
        session = SiteSession(
            config.connection.url,
            ca=config.tls.ca,
            certificate=config.tls.certificate,
            private_key=config.tls.private_key,
            passphrase=passphrase_of(config.tls),
            poll_max_s=config.connection.poll_max_s,
            give_up_after_s=config.connection.give_up_after_s,
            say=Connection(say, log, metrics).event,
            proxy=proxy_of(config.connection),
            meet=membership.meet,
            coordinator_sha256=gate.policy.coordinator_sha256,
        )
        context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
        assert config.egress is not None  # or there were no gate
        keys = SumKeys(load_signing_key(config.egress.signing_key), membership.peers)
        app = make_client_app(participant, say, log, metrics, gate=gate, keys=keys)
        try:
            session.run(app, context, stop, lambda _: participant.over)
        finally:
            gate.close()
        if participant.mistake is not None:
            raise participant.mistake


def _preflight(config: SiteConfig, say: Say) -> None:
    """The checks of ``momkd check`` that need neither the server nor every value, before anything is asked."""
    findings = check_site(config, lambda what, done, total: None, values=False, network=False)
    for found in findings:
        if found.status == "WARN":
            say(f"{found.sentence} {found.mend}".strip())
    refuse_failures(findings)
    say("The site's files passed the checks ('momkd check' shows them all).")
