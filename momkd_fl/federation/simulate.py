"""A federation in one process: the same apps and messages, no network."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, RecordDict

from momkd_fl.config.base import load
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import SiteConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.client import make_client_app
from momkd_fl.federation.coordinator import Coordinator, Outcome
from momkd_fl.federation.egress import simulation_gate
from momkd_fl.federation.local import LocalGrid
from momkd_fl.federation.participant import Participant
from momkd_fl.federation.sum_keys import Peers, SumKeys
from momkd_fl.federation.watch import Watch

COORDINATOR: Final = ""
"""No site can have this name."""


def simulate(
    config: FederationConfig,
    participants: Mapping[str, Participant],
    watch: Watch,
    stop: threading.Event,
    *,
    fresh: bool = False,
) -> Outcome | None:
    """Run the whole federation over ``participants`` in this process; None when it was stopped."""
    keys = simulation_keys([*participants])
    apps = {
        site: (
            make_client_app(participant, participant.say, gate=simulation_gate(site), keys=keys[site]),
            Context(run_id=0, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        )
        for site, participant in participants.items()
    }
    coordinator = Coordinator(config, LocalGrid(apps), watch, stop, lambda: {}, fresh=fresh, keys=keys[COORDINATOR])
    return coordinator.run()


def simulation_keys(sites: Collection[str]) -> dict[str, SumKeys]:
    """Fresh signing keys of every site and of the coordinator, who all know each other."""
    made = {name: Ed25519PrivateKey.generate() for name in (COORDINATOR, *sites)}
    public = {name: key.public_key().public_bytes_raw() for name, key in made.items()}
    peers = Peers(public[COORDINATOR], {site: public[site] for site in sites})
    return {name: SumKeys(key, lambda: peers) for name, key in made.items()}


def member_sites(config: FederationConfig) -> dict[str, SiteConfig]:
    """Every member's own file.

    Raises
    ------
    UserError
        ``member-config-missing``, ``site-name-mismatch``, and what the files give rise to.
    """
    found = {}
    for name, member in config.members.items():
        if member.config is None:
            raise UserError(
                "member-config-missing",
                f"members.{name}: 'config' is missing; momkd simulate needs the path of the site's own file.",
            )
        site = load(member.config, SiteConfig, {"role": member.role})
        if site.site != name:
            raise UserError(
                "site-name-mismatch", f"{member.config}: 'site' is '{site.site}', but it is listed as '{name}'."
            )
        found[name] = site
    return found
