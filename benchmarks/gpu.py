"""Training on a GPU: patients a second, how much of that the GPU computes, and numerics, against the plain eager path.

    python -m benchmarks gpu [--out out/gpu] [--repeats 5] [--quick] [--device cuda]

Patients of 10,000 patches of 1,024 and of 1,536 float16 from the ingested store, both students, bf16, features kept in
memory after the first epoch. The plain path is the same student, its equations as they are written, one patient a
step, nothing read ahead. Without CUDA the exit status is 2; ``--device cpu`` runs the same code to see that it does.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.bags import Site, generate
from benchmarks.figures import Figure, at_most, print_figures, without_targets
from benchmarks.interleaved import Arm, interleaved, middle
from benchmarks.students import Student
from momkd_fl.model.momkd import LossWeights, Output
from momkd_fl.training.precision import TOLERANCE, autocast

DIMS = (1024, 1536)
PATCHES, PATIENTS = 10_000, 16
PER_STEP = (1, 8)
CACHE_MB = 4096


class Plain:
    """Eager autograd over the model as it is written, with a pass's own optimiser."""

    def __init__(self, student: Student) -> None:
        self.student = student
        self.optimiser = torch.optim.AdamW(student.model.to(student.device).parameters(), lr=2e-4, weight_decay=1e-4)

    def epoch(self) -> None:
        """One step for every patient."""
        one = self.student
        memory = one.memory.to(one.device)
        one.model.train()
        for patient in one.patients:
            batch = one.packer.pack([patient]).to(one.device)
            with autocast(one.precision, one.device):
                output = one.model(batch, memory)
            output = Output(**{name: value if value is None else value.float() for name, value in vars(output).items()})
            terms = one.model.loss(output, batch, memory, LossWeights())
            self.optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(torch.stack(list(terms.values())).sum())
            torch.nn.utils.clip_grad_norm_(one.model.parameters(), 5.0)
            self.optimiser.step()

    @torch.no_grad()
    def log_odds(self) -> np.ndarray:
        """(patients,) in fp32."""
        one = self.student
        memory = one.memory.to(one.device)
        one.model.to(one.device).eval()
        logits = [one.model(one.packer.pack([patient]).to(one.device), memory).logits for patient in one.patients]
        both = torch.cat(logits).double().cpu().numpy()
        return both[:, 1] - both[:, 0]


def finished(run: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """The work, and the wait until the device has done it."""

    def wrapped() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return wrapped


def computing(run: Callable[[], object], device: torch.device) -> float:
    """Kernels' and copies' seconds by the wall time of one epoch, from torch's profiler (they may overlap)."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        started = time.perf_counter()
        finished(run, device)()
        wall_us = (time.perf_counter() - started) * 1e6
    return sum(event.self_device_time_total for event in seen.key_averages()) / wall_us


def log_odds_error(student: Student) -> float:
    """Norm of the difference between our log-odds in bf16 and the plain model's in fp32, relative to theirs."""
    probabilities = student.score().probabilities
    ours = np.log(probabilities[:, 1]) - np.log(probabilities[:, 0])
    exact = Plain(student).log_odds()
    return float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))


def measure(site: Site, architecture: str, device: torch.device, repeats: int) -> list[Figure]:
    """One student at one dimension."""
    cohort = site.cohort(store=True, cache_mb=CACHE_MB, genes=architecture == "momkd")
    fast = {size: Student(architecture, cohort, "bf16", per_step=size, device=device) for size in PER_STEP}
    plain = Plain(Student(architecture, cohort, "bf16", device=device))
    arms = [Arm("plain", finished(plain.epoch, device))]
    arms += [Arm(f"fast {size}", finished(student.epoch, device)) for size, student in fast.items()]
    rounds = interleaved(arms, repeats)
    name = f"gpu.{architecture}.{site.dim}"
    figures = []
    for arm in arms:
        rates = [len(site.sizes) / seconds for seconds in rounds.of(arm.name, "wall")]
        figures.append(middle(f"{name}.patients_per_s.{arm.name.replace(' ', '_')}", rates, "patients/s"))
    best = f"fast {max(PER_STEP)}"
    figures.append(middle(f"{name}.vs_plain", rounds.ratios("plain", best, "wall"), "x wall"))
    if device.type == "cuda":
        for arm in arms:
            share = round(computing(arm.run, device), 3)
            figures.append(Figure(f"{name}.computing.{arm.name.replace(' ', '_')}", share, "of wall time"))
    error = float(f"{log_odds_error(fast[1]):.3g}")
    return [*figures, at_most(f"{name}.log_odds_error", error, "relative to fp32", TOLERANCE)]


def main() -> int:
    """Entry point; exit status 1 if numbers are off, 2 without CUDA."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a smoke run: small slides, two rounds")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was measured; run it on a machine with one.", file=sys.stderr)
        return 2
    patches, patients, repeats = (300, max(PER_STEP), 2) if args.quick else (PATCHES, PATIENTS, args.repeats)
    figures = []
    for dim in DIMS:
        site = generate(args.out, [patches] * patients, dim)
        for architecture in ("momkd", "gated_attention"):
            figures += measure(site, architecture, device, repeats)
    value = {figure.figure: figure.value for figure in figures}
    best = f"fast_{max(PER_STEP)}"
    rates = [f"{value[f'gpu.momkd.{dim}.patients_per_s.{best}']:.1f} at {dim:,}" for dim in DIMS]
    ratios = [f"{value[f'gpu.momkd.{dim}.vs_plain']:.1f}" for dim in DIMS]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    print(
        f"The MoMKD student on {where}, patients ({patches:,} patches) a second: {', '.join(rates)} dimensions; "
        f"{' and '.join(ratios)} times the plain eager path.",
        file=sys.stderr,
    )
    return print_figures(without_targets(figures) if args.quick else figures)


if __name__ == "__main__":
    sys.exit(main())
