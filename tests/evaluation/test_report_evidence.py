"""What the page says of the evidence: three numbers, the matrix, calibration's transfer, the rule-out view."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import pytest

from momkd_fl.evaluation import report_text
from momkd_fl.evaluation.report import html, model_card
from momkd_fl.evaluation.report_svg import LOOKS, number
from momkd_fl.evaluation.results import METHODS, Difference, Estimate, Results


def words(page: str) -> str:
    """The page's text without styles and tags."""
    return unescape(re.sub(r"<[^>]*>", "", re.sub(r"<style>.*?</style>", "", page, flags=re.S)))


@pytest.fixture(scope="module")
def full_page(full_results: Results) -> str:
    return html(full_results)


def test_three_numbers_and_the_prediction_of_every_method_are_printed(full_page: str, full_results: Results) -> None:
    text = words(full_page)
    for method in METHODS:
        held_out = full_results.held_out[method]["ODX"]
        for estimate in (held_out.pooled, held_out.within_site, held_out.prediction):
            assert f"{number(estimate.value)} ({number(estimate.low)}–{number(estimate.high)})" in text
        assert f"{LOOKS[method].name}{number(held_out.pooled.value)}" in text
        assert text.count(LOOKS[method].name) >= 3  # what it is, forest, three ways
    assert "not estimable: fewer than 4 sites" in text  # PR has two


def test_a_site_with_too_few_patients_has_no_auroc_on_the_page(results: Results) -> None:
    few = Estimate.not_estimable("fewer than 11 patients of a class")
    bare = {m: {"PR": replace(t["PR"], sites={**t["PR"].sites, "harrow": few})} for m, t in results.held_out.items()}
    text = words(html(replace(results, held_out=bare)))
    assert "Too few patients for an AUROC: harrow" in text
    assert "harrow (never trained)" not in text
    assert "granby (never trained)" in text


def test_the_matrix_is_a_table_with_the_numbers_and_shades(full_page: str, full_results: Results) -> None:
    (table,) = re.findall(r'<div class="scroll matrix".*?</div>', full_page, flags=re.S)
    by_trained = full_results.matrix["ODX"]
    assert table.count('scope="row"') == len(by_trained) == 7
    assert table.count("trained there") == 6
    cells = [e for row in by_trained.values() for e in row.values() if e.value is not None]
    for estimate in cells:
        assert f"<b>{number(estimate.value)}</b>" in table
        assert f"({number(estimate.low)}–{number(estimate.high)})" in table
    shades = [int(shade) for shade in re.findall(r'class="shade-(\d)"', table)]
    values = [float(v) for v in re.findall(r'class="shade-\d"><b>([0-9.]+)', table)]
    assert sorted(zip(values, shades, strict=True)) == sorted(zip(sorted(values), sorted(shades), strict=True))
    others = [e.value for site, e in by_trained["ashford"].items() if site != "ashford"]
    assert f"<b>{number(sum(others) / len(others))}</b>" in table
    assert '<div class="scroll matrix"' not in html(replace(full_results, matrix={}))


def test_the_calibrations_choice_and_transfer_are_told(full_page: str, full_results: Results) -> None:
    text = " ".join(words(full_page).split())
    chosen = full_results.selection["ODX"].calibration
    for kind, loss in chosen.losses.items():
        assert f"{kind} {number(loss, 3)}" in text
    pooled = next(t for t in full_results.transfer if t.patients == "held_out" and t.site is None)
    for stage, metrics in (("before", pooled.before), ("after", pooled.after)):
        brier = metrics["brier"]
        assert f"All held-out{stage}{number(brier.value)} ({number(brier.low)}–{number(brier.high)})" in text
    (figure,) = [f for f in re.findall(r"<figure.*?</figure>", full_page, flags=re.S) if "calibration-odx" in f]
    assert "<td>before</td>" in figure
    assert "<td>after</td>" in figure


def test_only_a_rule_out_task_has_the_rule_out_view(full_page: str, full_results: Results) -> None:
    text = " ".join(words(full_page).split())
    assert text.count("Rule-out: patients whom the model calls negative") == 1
    metrics = next(p for p in full_results.operating if p.task == "ODX" and p.site is None).metrics
    spared, npv = metrics["share_spared"].value, metrics["npv"].value
    assert f"would spare {100 * spared:.0f} the ODX test; {100 * spared * (1 - npv):.1f} of them" in text
    both = words(html(replace(full_results, rule_out=["PR"])))
    assert both.count("Rule-out: patients whom the model calls negative") == 2
    assert "would spare" in model_card(full_results)


def test_a_round_below_quorum_is_marked(full_results: Results) -> None:
    rounds = [replace(full_results.rounds[0], outcome="below_quorum"), *full_results.rounds[1:]]
    text = words(html(replace(full_results, rounds=rounds)))
    assert text.count(", too few") == words(html(full_results)).count(", too few") + 1
    assert "Sent and received by ashford" in text


@pytest.mark.parametrize(
    ("p_value", "p_holm", "said"), [(0.01, 0.02, "gained"), (0.03, 0.06, "cannot be told"), (0.03, None, "gained")]
)
def test_a_gain_is_claimed_only_where_p_agrees(
    results: Results, p_value: float, p_holm: float | None, said: str
) -> None:
    one = Difference("PR", "federated", "shuffled_within_class", Estimate(0.04, 0.01, 0.07), None, p_value, p_holm)
    (sentence,) = [s for s in report_text.comparisons(replace(results, differences=[one]), "PR") if "enomics" in s]
    assert said in sentence
    assert "shuffled within each class" in sentence
