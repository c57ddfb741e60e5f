"""What the tests of the commands share: signal handlers put back, a small consortium's files, old certificates."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from momkd_fl.cli.consortium import free_port, provision, write_federation, write_site
from momkd_fl.synth.cohort import SynthSite, write_consortium

DIM = 16
SITES = (
    SynthSite("ash", 26),
    SynthSite("birch", 24, genomics=False),
    SynthSite("holly", 24, genomics=False, role="evaluate"),
)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A command takes over Ctrl-C and SIGTERM; here it runs inside the tests' process."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    write_consortium(folder, SITES, seed=11, dim=DIM, mean_patches=24, tasks=("PR",))
    return folder


@pytest.fixture
def alone(hospitals: Path, tmp_path: Path) -> Path:
    """The file of a hospital that has slides and labels, and no run."""
    raw = yaml.safe_load((hospitals / "ash" / "site.yaml").read_text())
    raw["data"]["features"] = [str(hospitals / "ash" / folder) for folder in raw["data"]["features"]]
    raw["data"]["labels"]["path"] = str(hospitals / "ash" / raw["data"]["labels"]["path"])
    raw["data"].pop("genomics")
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


class Files:
    """A consortium's files, which a test may change."""

    def __init__(self, root: Path, hospitals: Path) -> None:
        self.root, self.port, self.keys = root, free_port(), root / "keys"
        self.federation, self.output = root / "federation.yaml", root / "server"
        provision(self.keys, "small consortium", [site.name for site in SITES])
        for site in SITES:
            source = hospitals / site.name / "site.yaml"
            write_site(self.site(site.name), source, self.keys, self.port, root / "state" / site.name)
        run = {
            "name": "small",
            "task": "PR",
            "encoder": {"name": f"synthetic-{DIM}", "dim": DIM},
            "output_dir": str(self.output),
            "seed": 5,
            "model": {"hidden_dim": 16, "memory_dim": 8},
            "memory": {"slots": 2, "init_iterations": 2, "anchor_iterations": 2},
            "training": {"patients_per_step": 8, "learning_rate": 1e-3, "precision": "fp32"},
            "genes": {"panel": "pam50"},
            "rounds": {"count": 1, "quorum": 2},
        }
        write_federation(self.federation, run, {site.name: site.role for site in SITES}, self.keys, self.port)
        for site in SITES:
            self.edit(self.federation, f"members.{site.name}.config", str(self.site(site.name)))

    def site(self, name: str) -> Path:
        return self.root / "sites" / f"{name}.yaml"

    def edit(self, path: Path, key: str, value: Any) -> None:
        """Set a dotted key of a file."""
        raw = place = yaml.safe_load(path.read_text("utf-8"))
        *parts, last = key.split(".")
        for part in parts:
            place = place[part]
        place[last] = value
        path.write_text(yaml.safe_dump(raw), "utf-8")

    def expire(self, name: str) -> Path:
        """Replace a certificate by one for the same key that ended yesterday."""
        path = self.keys / name / f"{name}.crt"
        old = x509.load_pem_x509_certificate(path.read_bytes())
        key = load_pem_private_key((self.keys / "root" / "ca.key").read_bytes(), None)
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(old.subject)
            .issuer_name(old.issuer)
            .public_key(old.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now - timedelta(days=1))
        )
        for extension in old.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        path.write_bytes(builder.sign(key, SHA384()).public_bytes(Encoding.PEM))
        return path


@pytest.fixture
def files(tmp_path: Path, hospitals: Path) -> Files:
    return Files(tmp_path, hospitals)


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``(module, *arguments)``: run a command of ours to its end."""

    def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", f"momkd_fl.cli.{module}", *map(str, arguments)]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture
def shown_certificate() -> Iterator[Callable[[Path], int]]:
    """``(folder)``: a port of loopback where TLS is spoken with the folder's ``server.crt``, as a server would."""
    sockets: list[socket.socket] = []

    def serve(listening: socket.socket, context: ssl.SSLContext) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    continue

    def start(folder: Path) -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
        listening = socket.create_server(("127.0.0.1", 0))
        sockets.append(listening)
        threading.Thread(target=serve, args=(listening, context), daemon=True).start()
        return int(listening.getsockname()[1])

    yield start
    for listening in sockets:
        listening.close()
