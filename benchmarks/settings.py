"""Settings of the benchmarks' students: small, since bags hold about 90 patches of 256 numbers.

Chosen on development seeds of the generator (0 to 3) and on the synthetic cohort; figures come from other seeds.
"""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, Any] = {
    "model": {"hidden_dim": 64, "memory_dim": 32, "neighbours": 4, "dropout": 0.25},
    "memory": {"slots": 4},
    "training": {"patients_per_step": 8, "learning_rate": 4e-3, "max_patches": 32, "precision": "fp32"},
    "genes": {"panel": "shared"},
    "rounds": {"count": 12},
}
