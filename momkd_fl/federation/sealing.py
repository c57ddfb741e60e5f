"""A party that names a key for the first time: what it has in the clear is sealed, once, because its owner says so.

Nothing is sealed by itself: a file that somebody without the key put there would then pass for the party's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.site import Seal, SiteConfig
from momkd_fl.errors import UserError
from momkd_fl.federation import publications
from momkd_fl.federation.coordinator import CHECKPOINT_FILE
from momkd_fl.federation.own_student import STUDENT_FILE, STUDENT_KIND
from momkd_fl.federation.plan import MODEL_FILE, MODEL_KIND, PLAN_FILE, PLAN_KIND
from momkd_fl.federation.site_outputs import PREDICTIONS_KIND
from momkd_fl.federation.state import CHECKPOINT_KIND
from momkd_fl.federation.vault import Vault, open_vault
from momkd_fl.security.seal import Sealed
from momkd_fl.training import checkpoint


def seal_site(site: SiteConfig) -> list[Path]:
    """Where each file lies now that lay in the clear (raises UserError ``seal-key-missing`` and as :class:`Vault`)."""
    vault, folder = _vault(site.seal), site.state_dir
    named = {PLAN_FILE: PLAN_KIND, STUDENT_FILE: STUDENT_KIND, MODEL_FILE: MODEL_KIND}
    done = _seal_tensors(vault, folder, named)
    for path in sorted(folder.glob("predictions_*.csv")):
        done.append(vault.adopt(path, path.read_bytes(), Sealed(PREDICTIONS_KIND, "", 0)))
    provenance = folder / "provenance.json"
    if provenance.exists():
        content = provenance.read_bytes()
        done.append(vault.adopt(provenance, content, Sealed("provenance", str(_json(content).get("run", "")), 0)))
    if site.egress is not None and site.egress.publications.exists():
        path = site.egress.publications
        content = path.read_bytes()
        number = sum(len(each) for each in _json(content).values())
        done.append(vault.adopt(path, content, Sealed(publications.KIND, publications.RUN, number)))
    return done


def seal_coordinator(config: FederationConfig) -> list[Path]:
    """As :func:`seal_site`."""
    named = {CHECKPOINT_FILE: CHECKPOINT_KIND, MODEL_FILE: MODEL_KIND}
    return _seal_tensors(_vault(config.seal), config.output_dir, named)


def _vault(seal: Seal | None) -> Vault:
    if seal is None:
        raise UserError(
            "seal-key-missing",
            "The configuration names no key under 'seal', so that nothing can be sealed. Add 'seal: {key_file: ...}'.",
        )
    return open_vault(seal)


def _seal_tensors(vault: Vault, folder: Path, named: dict[str, str]) -> list[Path]:
    done = []
    for name, kind in named.items():
        path = folder / name
        if path.exists():
            _, meta = checkpoint.load(path)
            label = Sealed(kind, str(meta.get("run", "")), int(meta.get("round", 0)))
            done.append(vault.adopt(path, path.read_bytes(), label))
    return done


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
