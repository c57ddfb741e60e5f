"""A run on the port that hospitals let through, by way of their proxy, with outbound connections only."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.process

PORT = 443
MEMBERS = {"ash": "train", "birch": "train"}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    """A tunnelling proxy: its port, and its log of (target, first bytes) lines."""
    log = tmp_path_factory.mktemp("proxy") / "log"
    script = Path(__file__).with_name("connect_proxy.py")
    running = subprocess.Popen([sys.executable, str(script), str(log)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    yield int(running.stdout.readline()), log
    running.terminate()
    running.communicate(timeout=10)


def must_bind() -> None:
    try:
        with socket.create_server(("127.0.0.1", PORT)):
            pass
    except OSError as why:
        pytest.skip(f"port {PORT} of loopback cannot be bound here: {why}")


def test_a_run_through_a_proxy_to_port_443(
    tmp_path: Path, new_consortium: Any, party: Any, proxy: tuple[int, Path]
) -> None:
    must_bind()
    proxy_port, log = proxy
    consortium = new_consortium(
        tmp_path,
        MEMBERS,
        rounds={"count": 1, "quorum": 2, "deadline_s": 100, "gather_s": 100},
        memory={"slots": 1, "source": "random", "genomics": False},
    )
    consortium.port = PORT
    consortium.write()
    reached = {"url": f"https://127.0.0.1:{PORT}", "proxy": f"http://127.0.0.1:{proxy_port}"}
    for site in MEMBERS:
        consortium.edit_site(site, lambda raw: raw["connection"].update(reached))
    one = party(consortium)
    one.start_server()
    for site in MEMBERS:
        one.start_site(site)
    one.wait_said("ash", "Round 1: training.")
    connections = psutil.Process(one.processes.running["ash"].pid).net_connections("inet")
    status = {name: one.end(name) for name in ("server", *MEMBERS)}
    assert set(status.values()) == {0}, one.said("server") + one.said("ash")
    assert consortium.results()["rounds"][0]["sites"]["trained"] == sorted(MEMBERS)
    assert not [each for each in connections if each.status == psutil.CONN_LISTEN], "a site listens to nobody"
    assert {each.raddr.port for each in connections if each.raddr} == {proxy_port}
    lines = [line.split(" ") for line in log.read_text("utf-8").splitlines()]
    assert {target for target, _ in lines} == {f"127.0.0.1:{PORT}"}
    assert all(first.startswith("16") for _, first in lines), "a TLS handshake, and nothing before it"
