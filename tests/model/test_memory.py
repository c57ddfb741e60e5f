"""The memory as a value, the fixed genomic space, and the monitor of attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from momkd_fl.model.memory import Memory, effective_patches, gene_scores


def test_arrays_make_the_same_memory(make_memory: Callable[..., Memory]) -> None:
    memory = make_memory()
    assert memory.slots is not None
    assert memory.anchors is not None
    assert memory.space is not None
    arrays = {"slots": memory.slots.numpy(), "anchors": memory.anchors.numpy()}
    again = Memory.from_arrays(arrays, {name: value.numpy() for name, value in vars(memory.space).items()})
    assert again.slots is not None
    assert again.space is not None
    assert torch.equal(again.slots, memory.slots)
    assert torch.equal(again.space.axes, memory.space.axes)
    assert Memory.from_arrays({}, {}) == Memory()


def test_the_fixed_space_gives_unit_vectors_that_one_gene_cannot_rule(make_memory: Callable[..., Memory]) -> None:
    space = make_memory().space
    assert space is not None
    z = torch.randn(6, len(space.mean), generator=torch.Generator().manual_seed(0))
    far = z.clone()
    far[:, 0] = 1e6
    torch.testing.assert_close(space.embed(z).norm(dim=1), torch.ones(6))
    assert float(space.embed(far).abs().max()) < 1.0  # each axis is clipped before the length is taken


def test_scaled_genes_are_bounded_in_norm() -> None:
    mean, scale = np.full(16, 2.0), np.full(16, 0.5)
    near = np.full(16, 2.25, np.float32)
    np.testing.assert_allclose(gene_scores(near, mean, scale), 0.5)
    far = gene_scores(np.full(16, 1e4, np.float32), mean, scale)
    assert np.linalg.norm(far) == pytest.approx(1.5 * 4.0, rel=1e-5)


def test_effective_patches_counts_the_patches_that_are_looked_at() -> None:
    bag = torch.tensor([0] * 8 + [1] * 4)
    even = torch.cat([torch.full((8,), 1 / 8), torch.full((4,), 1 / 4)])[:, None]
    one = torch.zeros(12, 1)
    one[[2, 9]] = 1.0
    assert float(effective_patches(even, bag, 2)) == pytest.approx((8 + 4) / 2, rel=1e-5)
    assert float(effective_patches(one, bag, 2)) == pytest.approx(1.0)
