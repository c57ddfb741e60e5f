"""``momkd-client`` with a tap on its wire: python -m benchmarks.tapped_site SITE.yaml WIRE [--leak].

Everything the site sends is also appended to WIRE as it is before TLS: request lines, headers, bodies. ``--leak`` makes
a site that leaks, for the control of the leak scan: a patient's id among its genes' names, a patient's genes and a
patch at the head of its weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from momkd_fl.cli.client import main as momkd_client
from momkd_fl.federation import flower
from momkd_fl.federation.participant import Participant


def tap(wire: Path) -> None:
    """Have every HTTP client of the transport write down what it sends."""
    make = flower.http_client

    def note(request: httpx.Request) -> None:
        said = f"{request.method} {request.url}\n{dict(request.headers)}\n".encode()
        with wire.open("ab") as file:
            file.write(said + request.read() + b"\n")

    def tapped(*args: Any, **kwargs: Any) -> httpx.Client:
        client = make(*args, **kwargs)
        client.event_hooks = {"request": [note], "response": []}
        return client

    flower.http_client = tapped


def leak() -> None:
    """Break the participant so that it tells of its first patient."""
    hello, train = Participant.hello, Participant.train

    def telling(self: Participant, request: Any) -> Any:
        reply, arrays = hello(self, request)
        assert self._loaded is not None
        return reply.model_copy(update={"genes": [*reply.genes, self._loaded[0].patients[0].id]}), arrays

    def sending(self: Participant, request: Any) -> Any:
        reply, arrays = train(self, request)
        assert self._loaded is not None
        cohort = self._loaded[0]
        patient = next(each for each in cohort.patients if each.genes is not None)
        assert patient.genes is not None
        planted = np.concatenate([patient.genes[:8], cohort.bag(patient).features[0][:8]]).astype(np.float32)
        update = np.array(arrays["update"]["histology"])
        update[: len(planted)] = planted
        return reply, {**arrays, "update": {**arrays["update"], "histology": update}}

    Participant.hello, Participant.train = telling, sending  # type: ignore[method-assign]


def main() -> int:
    """Entry point: the client's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path)
    parser.add_argument("wire", type=Path)
    parser.add_argument("--leak", action="store_true")
    args = parser.parse_args()
    tap(args.wire)
    if args.leak:
        leak()
    return momkd_client(["--site", str(args.site)])


if __name__ == "__main__":
    sys.exit(main())
