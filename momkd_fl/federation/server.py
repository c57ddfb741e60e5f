"""The coordinator's process: Flower's server side, the run, and its report."""

from __future__ import annotations

import resource
import signal
import threading
import time

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.flower import FleetGrid, FleetServer
from momkd_fl.federation.identity import (
    Admission,
    expiries,
    passphrase_of,
    refuse_other_signer,
    show_ends,
    tell_of_ends,
)
from momkd_fl.federation.outcome import Circumstances, results_of, write_outcome
from momkd_fl.federation.rounds import Traffic
from momkd_fl.federation.sum_keys import Peers, SumKeys
from momkd_fl.federation.vault import Vault, in_the_clear, open_vault
from momkd_fl.federation.watch import Watch, open_watch
from momkd_fl.security.pki import public_key_of
from momkd_fl.security.signing import load_signing_key

MB = 1 << 20


def run_server(config: FederationConfig, stop: threading.Event, *, fresh: bool, plain: bool | None) -> Outcome | None:
    """Serve one run to its end and write the report; None when it was stopped (it can go on later).

    Raises
    ------
    UserError
        For what is missing in the configuration, for certificates and the port, and for a run that cannot go on.
    """
    if config.tls is None or config.consortium is None:
        lacking = "tls" if config.tls is None else "consortium"
        raise UserError("config-value", f"Federation '{config.name}': '{lacking}' is missing; momkd-server needs it.")
    started = time.monotonic()
    vault = open_vault(config.seal)
    vault.check(config.output_dir)
    keys = _keys(config)
    admission = Admission(config.consortium, config.tls, keys)
    signing = signing_keys(config, admission)
    server = FleetServer(
        host=config.listen.host,
        port=config.listen.port,
        ca=config.tls.ca,
        certificate=config.tls.certificate,
        private_key=config.tls.private_key,
        passphrase=passphrase_of(config.tls),
        sites=keys,
        max_message_bytes=config.listen.max_message_mb * MB,
        admits=admission.admits,
        allow_list=admission.content,
    )
    watch = open_watch(config, plain=plain)
    with watch.progress, watch.log, watch.metrics, server:
        watch.say(f"Listening at port {server.port} for {len(keys)} sites.", "listening", port=server.port)
        _tell_of_members(admission, watch)
        if config.seal is None:
            watch.say(in_the_clear(config.output_dir), "in_clear", level="warning")
        tell_of_ends(expiries(config.tls, admission.allow_list), watch.progress.say, watch.log, watch.metrics)
        tls = config.tls
        admission.changed = lambda newest: show_ends(expiries(tls, newest), watch.metrics)
        outcome = _coordinate(config, server.grid, watch, stop, vault, fresh=fresh, signing=signing)
        if outcome is None:
            watch.say("Stopped. Start the same command again to go on.", "stopped", outcome="stopped")
            return None
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        where = Circumstances("federation", time.monotonic() - started, peak_mb)
        page = write_outcome(results_of(config, outcome, where), config.output_dir)
        watch.say(f"Report: {page}", "finished", seconds=round(time.monotonic() - started, 1))
    return outcome


def _keys(config: FederationConfig) -> dict[str, EllipticCurvePublicKey]:
    keys = {}
    for site, member in config.members.items():
        if member.certificate is None:
            raise UserError(
                "config-value", f"members.{site}: 'certificate' is missing; momkd-server lets in listed keys only."
            )
        keys[site] = public_key_of(member.certificate)
    return keys


def _tell_of_members(admission: Admission, watch: Watch) -> None:
    """Say whom the consortium's list keeps out, and later of each list that is not taken."""

    def refused(mistake: UserError) -> None:
        watch.say(f"Not taken: {mistake.sentence}", "allow_list_refused", level="error", code=mistake.code)

    admission.tell = refused
    for site in admission.outsiders():
        sentence = f"{site} is not on the consortium's allow-list with this key: it is not let in."
        watch.say(sentence, "site_refused", level="error", site=site, code="allowlist-not-listed")


def signing_keys(config: FederationConfig, admission: Admission) -> SumKeys | None:
    """What secure sums are signed with; None where the run has none.

    Raises
    ------
    UserError
        ``config-value``, ``signing-key-other``, or as :func:`~momkd_fl.security.signing.load_signing_key`.
    """
    if config.aggregation.kind != "secagg":
        return None
    if config.signing_key is None or config.tls is None:
        raise UserError(
            "config-value", f"Federation '{config.name}': 'signing_key' is missing; aggregation 'secagg' needs it."
        )
    refuse_other_signer(config.signing_key, config.tls.certificate, "signing_key")
    key = load_signing_key(config.signing_key)
    return SumKeys(key, lambda: Peers(key.public_key().public_bytes_raw(), admission.allow_list.identities()))


def traffic_of(grid: FleetGrid) -> Traffic:
    """Bytes (sent, received) by site so far."""
    return lambda: {site: (one.sent, one.received) for site, one in grid.stats.traffic.items()}


def _coordinate(
    config: FederationConfig,
    grid: FleetGrid,
    watch: Watch,
    stop: threading.Event,
    vault: Vault,
    *,
    fresh: bool,
    signing: SumKeys | None,
) -> Outcome | None:
    """The run as a Flower ServerApp in this thread; a watcher turns ``stop`` into the grid's own stop."""
    outcome: list[Outcome | None] = [None]
    app = ServerApp()

    @app.main()
    def main(fleet: Grid, context: Context) -> None:
        coordinator = Coordinator(config, grid, watch, stop, traffic_of(grid), fresh=fresh, keys=signing, vault=vault)
        outcome[0] = coordinator.run()

    def pass_on() -> None:
        stop.wait()
        grid.stop()

    threading.Thread(target=pass_on, name="stop", daemon=True).start()
    context = Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={})
    previous = signal.getsignal(signal.SIGTERM)
    app(grid=grid, context=context)
    signal.signal(signal.SIGTERM, previous)
    return outcome[0]
