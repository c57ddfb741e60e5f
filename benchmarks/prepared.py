"""Federation files over sites' files that are there already, and where the real tables are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

REAL_DATA = Path(os.environ.get("MOMKD_REAL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def write_federation(
    path: Path,
    task: str,
    encoder: Mapping[str, Any],
    sites: Mapping[str, Path],
    roles: Mapping[str, str],
    settings: Mapping[str, Any],
    seed: int,
) -> Path:
    """Write ``path``, a federation of ``sites`` for ``momkd simulate``; its results go to a folder of the same name.

    Paths inside are relative to the file. One training site alone is a quorum.
    """
    raw = {
        "name": path.stem,
        "task": task,
        "encoder": dict(encoder),
        "output_dir": path.stem,
        "members": {
            site: {"role": roles[site], "config": os.path.relpath(file, path.parent)} for site, file in sites.items()
        },
        "seed": seed,
        **settings,
    }
    trainers = sum(role == "train" for role in roles.values())
    raw["rounds"] = {"quorum": trainers, **settings.get("rounds", {})}
    path.write_text(yaml.safe_dump(raw, sort_keys=False), "utf-8")
    return path
