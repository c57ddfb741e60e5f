"""Packs for the trainer, read, standardised and laid out by a thread ahead of it.

A pack is the consumer's until it asks for the next one: then the memory of its features is written again. Whoever
keeps features longer copies them. Features of a pack may be a cached bag's own and are never to be written to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from momkd_fl.data.cohort import Patient
from momkd_fl.model.batch import PackedBags, pack, pack_around
from momkd_fl.training.ahead import DEPTH, Ahead
from momkd_fl.training.resident import Buffers, DeviceCache, ResidentBag, Upload, fill
from momkd_fl.training.sampling import Packer, balanced_batches, sample_rows

SCORE_PATCHES = {"cpu": 4096, "cuda": 65536}
"""Patches scored in one pack, by kind of device; a larger bag is a pack of its own, which costs no copy on a CPU."""
AHEAD_BYTES = {"cpu": 1 << 30, "cuda": 4 << 30}
"""Memory that packs may hold together while one is in use, by kind of device."""


def training_packs(
    packer: Packer,
    patients: Sequence[Patient],
    steps: int,
    per_step: int,
    rng: np.random.Generator,
    max_patches: int | None,
    device: torch.device,
    dtype: torch.dtype,
    ahead_bytes: int | None = None,
    batches: Iterable[Sequence[Patient]] | None = None,
) -> Generator[tuple[PackedBags, int]]:
    """The pack and the seed of each step: class-balanced patients, sampled where larger than ``max_patches``.

    ``rng`` is drawn from ahead of the steps (batch, patches, seed of one step after the other): nobody else may use
    it meanwhile. Closing the iterator ends the thread.

    Parameters
    ----------
    dtype : of the features, float32 or bfloat16
    ahead_bytes : most that the packs may hold together; a single one may be larger. None: ``AHEAD_BYTES``
    batches : the patients of each pack, instead of class-balanced ones

    Raises
    ------
    UserError
        As :meth:`momkd_fl.data.cohort.Cohort.bag`, at the step that needs the bag.
    """

    def prepare(line: Ahead[tuple[PackedBags, int]]) -> None:
        lay_out = _layer(packer, device, dtype, line.limit_bytes)
        for chosen in balanced_batches(patients, steps, per_step, rng) if batches is None else batches:
            laid = lay_out(line, chosen, rng, max_patches)
            line.put((laid.batch, int(rng.integers(2**63))), laid.nbytes, laid.taken, laid.let_go)
            del laid

    return Ahead[tuple[PackedBags, int]](_limit(device, ahead_bytes)).run(prepare)


def scoring_packs(
    packer: Packer,
    patients: Sequence[Patient],
    device: torch.device,
    dtype: torch.dtype,
    ahead_bytes: int | None = None,
) -> Generator[tuple[Sequence[Patient], PackedBags]]:
    """Every patient once and in order, whole bags, as many as ``SCORE_PATCHES`` allows in one pack.

    On a CPU a bag that is alone in its pack is float32 whatever ``dtype`` is: nothing of its size is made beside it.

    Parameters and errors as :func:`training_packs`.
    """

    def prepare(line: Ahead[tuple[Sequence[Patient], PackedBags]]) -> None:
        lay_out = _layer(packer, device, dtype, line.limit_bytes, alone_as_read=True)
        for chosen in _groups(lay_out.size, patients, SCORE_PATCHES.get(device.type, SCORE_PATCHES["cuda"])):
            laid = lay_out(line, chosen, None, None)
            line.put((chosen, laid.batch), laid.nbytes, laid.taken, laid.let_go)
            del laid

    return Ahead[tuple[Sequence[Patient], PackedBags]](_limit(device, ahead_bytes)).run(prepare)


def _groups(size: Callable[[Patient], int], patients: Sequence[Patient], most: int) -> Iterator[list[Patient]]:
    group: list[Patient] = []
    patches = 0
    for patient in patients:
        its = size(patient)
        if group and patches + its > most:
            yield group
            group, patches = [], 0
        group.append(patient)
        patches += its
    if group:
        yield group


def _limit(device: torch.device, ahead_bytes: int | None) -> int:
    return AHEAD_BYTES.get(device.type, AHEAD_BYTES["cuda"]) if ahead_bytes is None else ahead_bytes


def _layer(
    packer: Packer, device: torch.device, dtype: torch.dtype, limit_bytes: int, *, alone_as_read: bool = False
) -> _Layer:
    if device.type == "cpu" and packer.resident is None:
        return _HostLayer(packer, dtype, limit_bytes, alone_as_read or dtype == torch.float32)
    return _DeviceLayer(packer, device, dtype, limit_bytes)


@dataclass(frozen=True)
class _Laid:
    """A pack, the bytes it holds, and what to call when it is taken and when it is let go."""

    batch: PackedBags
    nbytes: int
    taken: Callable[[], None]
    let_go: Callable[[], None]


class _Layer(ABC):
    """Lays the bags of some patients out as one pack, once there is room for it."""

    def __init__(self, packer: Packer, dtype: torch.dtype) -> None:
        self.packer, self.dtype = packer, dtype
        self.size = cache(packer.cohort.patches)

    @abstractmethod
    def __call__(
        self, line: Ahead[Any], patients: Sequence[Patient], rng: np.random.Generator | None, max_patches: int | None
    ) -> _Laid:
        """Read and lay out; nothing is drawn from ``rng`` but the samples of larger bags, in the patients' order."""

    def has(self, patient: Patient) -> bool:
        """Whether a patient's bag is held already."""
        return self.packer.cohort.cache.get(patient.key) is not None

    def needs(self, patients: Sequence[Patient], max_patches: int | None) -> int:
        """Bytes of a pack while it is made: its own, and the bags that have to be read for it."""
        cohort = self.packer.cohort
        row = cohort.dim * self.dtype.itemsize + (cohort.neighbours + 1) * 8
        packed = sum(min(self.size(patient), max_patches or self.size(patient)) for patient in patients)
        read = sum(self.size(patient) for patient in patients if not self.has(patient))
        return packed * row + read * cohort.dim * 4


class _HostLayer(_Layer):
    def __init__(self, packer: Packer, dtype: torch.dtype, limit_bytes: int, alone_as_read: bool) -> None:
        super().__init__(packer, dtype)
        self.alone_as_read = alone_as_read
        self.buffers = Buffers(limit_bytes // DEPTH, pinned=False)

    def __call__(
        self, line: Ahead[Any], patients: Sequence[Patient], rng: np.random.Generator | None, max_patches: int | None
    ) -> _Laid:
        line.wait_for_room(self.needs(patients, max_patches))
        bags = []
        for patient in patients:
            line.check()
            bags.append(self.packer.bag(patient, rng, max_patches))
        if len(bags) == 1 and self.alone_as_read:
            batch = pack(bags, *self.packer.targets(patients))
            return _Laid(batch, _bytes(batch), _nothing, _nothing)
        arrays, near = zip(*bags, strict=True)
        buffer = self.buffers.take(sum(map(len, arrays)), arrays[0].shape[1], self.dtype)
        fill(buffer, arrays)
        batch = pack_around(buffer, near, *self.packer.targets(patients))
        return _Laid(batch, _bytes(batch), _nothing, lambda: self.buffers.give_back(buffer))


class _DeviceLayer(_Layer):
    """Bags are copied to the device one by one, on a stream of its own, and joined there; some stay there."""

    def __init__(self, packer: Packer, device: torch.device, dtype: torch.dtype, limit_bytes: int) -> None:
        super().__init__(packer, dtype)
        self.device = device
        self.resident = DeviceCache(0) if packer.resident is None else packer.resident
        cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self.upload = Upload(device, limit_bytes // DEPTH)

    def __call__(
        self, line: Ahead[Any], patients: Sequence[Patient], rng: np.random.Generator | None, max_patches: int | None
    ) -> _Laid:
        line.wait_for_room(self.needs(patients, max_patches))
        features, near = [], []
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            for patient in patients:
                line.check()
                bag = self._bag(patient)
                values, index = bag.features, bag.neighbours
                if max_patches is not None and rng is not None and len(index) > max_patches:
                    rows, index = sample_rows(index, max_patches, rng)
                    values = values[torch.from_numpy(rows).to(self.device)]
                features.append(values)
                near.append(index)
            joined = features[0] if len(features) == 1 else torch.cat(features)
            batch = pack_around(joined, near, *self.packer.targets(patients)).to(self.device)
        if self.stream is None:
            return _Laid(batch, _bytes(batch), _nothing, _nothing)
        arrived = self.stream.record_event()
        return _Laid(batch, _bytes(batch), lambda: _wait_for(batch, arrived, self.device), _nothing)

    def has(self, patient: Patient) -> bool:
        return self.resident.get((patient.key, self.dtype)) is not None or super().has(patient)

    def _bag(self, patient: Patient) -> ResidentBag:
        kept = self.resident.get((patient.key, self.dtype))
        if kept is None:
            bag = self.packer.cohort.bag(patient)
            kept = ResidentBag(self.upload(bag.features, self.dtype), bag.neighbours)
            self.resident.put((patient.key, self.dtype), kept)
        return kept


def _wait_for(batch: PackedBags, arrived: torch.cuda.Event, device: torch.device) -> None:
    """Let the consumer's stream, not the host, wait for the copies; their memory lives until that stream is done."""
    compute = torch.cuda.current_stream(device)
    compute.wait_event(arrived)
    for value in vars(batch).values():
        if isinstance(value, Tensor):
            value.record_stream(compute)


def _bytes(batch: PackedBags) -> int:
    return batch.features.nbytes + batch.neighbours.nbytes


def _nothing() -> None:
    pass
