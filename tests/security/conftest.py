"""One consortium per module: making keys is quick, but not free."""

from __future__ import annotations

from pathlib import Path

import pytest

from momkd_fl.security.pki import create_root, issue_server, issue_site


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``root``, ``server`` and ``north``; tests read it and leave it as it is."""
    folder = tmp_path_factory.mktemp("consortium")
    create_root(folder / "root", "trial")
    issue_server(folder / "server", folder / "root", "server", ["localhost", "127.0.0.1", "::1"])
    issue_site(folder / "north", folder / "root", "north")
    return folder
