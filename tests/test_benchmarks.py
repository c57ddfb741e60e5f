"""What the performance suite computes from its timings, and that its arms do the work that it says they do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import evidence, gpu, roof, suite, tables
from benchmarks.audit import AUDITS
from benchmarks.bags import Site, generate
from benchmarks.growth import slope
from benchmarks.interleaved import Arm, Rounds, interleaved, middle, middle_at_most
from benchmarks.students import Student

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return generate(tmp_path_factory.mktemp("bench"), (40, 50, 60), dim=32)


def spin(cpu_s: float) -> None:
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        pass


def test_arms_take_turns_and_the_warm_up_is_not_counted():
    order: list[str] = []
    arms = [Arm(name, lambda name=name, s=s: (order.append(name), spin(s))) for name, s in (("a", 0.02), ("b", 0.01))]
    rounds = interleaved(arms, 3)
    assert order == ["a", "b"] * 4
    assert len(rounds.of("a")) == len(rounds.of("b", "wall")) == 3
    assert rounds.ratios("a", "b") == pytest.approx([2.0] * 3, rel=0.5)


def test_time_asleep_is_wall_time_only():
    rounds = interleaved([Arm("asleep", lambda: time.sleep(0.03))], 1)
    assert rounds.of("asleep", "wall")[0] >= 0.03
    assert rounds.of("asleep")[0] < 0.02


def test_a_figure_has_its_median_its_quartiles_and_its_verdict():
    figure = middle("x", [1.0, 2.0, 3.0, 4.0, 100.0], "s", least=3.0)
    assert (figure.value, figure.spread, figure.target, figure.holds) == (3.0, (2.0, 4.0), ">=3", True)
    assert middle_at_most("x", [4.0], "s", 3.0).holds is False
    assert middle("x", [4.0], "s").holds is None


@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
def test_the_roof_counts_the_products_of_a_step(site: Site, architecture: str):
    """Against torch's own count on the plain student; it counts the small heads too, which the formula leaves out."""
    student = Student(architecture, site.cohort(store=True), "fp32")
    batch = student.packer.pack(student.patients)
    with FlopCounterMode(display=False) as counted:
        output = student.model(batch, student.memory)
        (output.logits.sum() + (0 if output.patches is None else output.patches.sum())).backward()
    by_formula = roof.flop_per_patch(student.shape) * sum(site.sizes)
    assert counted.get_total_flops() == pytest.approx(by_formula, rel=0.04)


def test_the_best_size_is_the_one_with_the_best_median():
    rounds = Rounds({"cpu": {"matmul fp32 2": [1.0, 1.0, 9.0], "matmul fp32 4": [16.0, 16.0, 0.1]}, "wall": {}})
    assert roof.best(rounds, "fp32", (2, 4)) == [16.0, 16.0, 16 / 9]


def test_a_slope_is_that_of_the_logarithms():
    assert slope([10, 100, 1000], [2.0, 20.0, 200.0]) == pytest.approx(1.0)
    assert slope([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ["momkd", "gated_attention"])
def test_our_arm_meets_every_patient_once_and_learns(site: Site, architecture: str, precision: str):
    momkd = architecture == "momkd"
    student = Student(architecture, site.cohort(store=momkd, genes=momkd), precision)
    reports = [student.pass_over_all() for _ in range(4)]
    assert [report.steps for report in reports] == [3] * 4
    assert reports[-1].losses["classification"] < reports[0].losses["classification"]
    assert ("reconstruction" in reports[0].losses) is momkd
    assert np.isfinite(student.score().probabilities).all()


def test_a_site_that_is_there_is_used_again(site: Site):
    before = site.slides[0].stat().st_mtime_ns
    assert generate(site.folder.parent, site.sizes, site.dim) == site
    assert site.slides[0].stat().st_mtime_ns == before


def test_peak_memory_is_that_of_the_work_alone():
    code = (
        "import numpy as np; from benchmarks.peak import over_imports; a = np.ones(40 << 17)\n"
        "over_imports(lambda: np.ones(25 << 17).sum())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert 24 <= found["over_mb"] <= 30
    assert found["peak_mb"] > 65


def test_the_table_shows_what_was_measured_what_was_missed_and_what_is_pending(tmp_path: Path):
    row, missed = suite.ROWS[0], suite.ROWS[1]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{suite.MARKS[0]}\nold\n{suite.MARKS[1]}\nafter\n", "utf-8")
    suite.fill(
        page,
        {
            row.figure: {"figure": row.figure, "value": 5.5, "spread": [5.25, 6.0], "holds": True},
            missed.figure: {"figure": missed.figure, "value": 0.5, "holds": False},
        },
    )
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert f"| {row.figure} | {row.target} | 5.5 (5.25 to 6) |" in text
    assert f"| {missed.figure} | {missed.target} | 0.5 **missed** |" in text
    assert text.count(suite.PENDING) == len(suite.ROWS) - 2


def test_the_evidence_page_has_every_audit_and_says_which_was_not_run(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{evidence.MARKS[0]}\nold\n{evidence.MARKS[1]}\nafter\n", "utf-8")
    evidence.fill(page, {"gate.x": {"figure": "gate.x", "value": 1, "unit": "ms"}}, tables.table)
    assert "old" in page.read_text("utf-8"), "without any audit the page is left as it is"
    missed = {"figure": "audit.release.epsilon", "value": 5.0, "unit": "epsilon", "target": "<=4", "holds": False}
    evidence.fill(page, {missed["figure"]: missed}, tables.table)
    text = page.read_text("utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| audit.release.epsilon | 5 epsilon |  | <=4 | **no** |" in text
    assert text.count("Not measured yet.") == len(evidence.SECTIONS) - 1
    assert {f"audit.{name}" for name in AUDITS} <= set(evidence.SECTIONS)


def test_without_a_gpu_the_gpu_benchmark_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks gpu"])
    assert gpu.main() == 2
    assert "no CUDA device" in capsys.readouterr().err
