"""Features on their way to a device: rounded as torch rounds, in memory that is used again but never too early."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from momkd_fl.training.resident import Buffers, Upload, device_cache, fill

CPU = torch.device("cpu")


def arrays(*rows: int, dim: int = 40) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((count, dim)).astype(np.float32) for count in rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filling_rounds_as_torch_does(dtype: torch.dtype) -> None:
    bags = arrays(3, 2000, 1)
    out = torch.empty(2004, 40, dtype=dtype)
    fill(out, bags)
    assert torch.equal(out, torch.from_numpy(np.concatenate(bags)).to(dtype))


def test_memory_given_back_is_taken_again_unless_it_is_large() -> None:
    buffers = Buffers(4000, pinned=False)
    first = buffers.take(10, 100, torch.float32)
    second = buffers.take(10, 100, torch.float32)
    place = first.data_ptr()
    assert second.data_ptr() != place
    buffers.give_back(first)
    again = buffers.take(20, 100, torch.bfloat16)
    assert (again.data_ptr(), again.shape, again.dtype) == (place, (20, 100), torch.bfloat16)
    large = buffers.take(11, 100, torch.float32)
    buffers.give_back(large)
    assert buffers._idle == []


def test_copies_do_not_depend_on_the_buffer_being_used_again() -> None:
    upload, bags = Upload(CPU, 1 << 20), arrays(*range(5, 15))
    there = [upload(bag, torch.bfloat16) for bag in bags]
    for tensor, bag in zip(there, bags, strict=True):
        assert torch.equal(tensor, torch.from_numpy(bag).bfloat16())


def test_a_cpu_keeps_no_bags_a_second_time() -> None:
    assert device_cache(CPU) is None
