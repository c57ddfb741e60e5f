from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from momkd_fl.evaluation import report_text
from momkd_fl.evaluation.comparison import Models, Scores
from momkd_fl.evaluation.report import html, model_card, with_curves, write_report
from momkd_fl.evaluation.report_svg import LOOKS, number
from momkd_fl.evaluation.results import METHODS, Difference, Disagreement, Estimate, Failure, Method, Results

TaskScores = Mapping[str, Mapping[Method, Models]]
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Collects what the tests ask for, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        wanted = attributes.items()
        return sum(name == tag and all(found.get(key) == value for key, value in wanted) for name, found in self.tags)


@pytest.fixture(scope="module")
def drawn(results: Results, scores: TaskScores) -> Results:
    return with_curves(results, scores)


@pytest.fixture(scope="module")
def page(drawn: Results) -> str:
    return html(drawn)


def test_the_page_is_whole_and_needs_nothing_from_outside(page: str) -> None:
    parsed = Page(page)
    assert parsed.count("script") == parsed.count("link") == parsed.count("img") == 0
    for _, attributes in parsed.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith("#")
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert set(re.findall(r"https?://[^\"'<> ]+", page)) <= {"http://www.w3.org/2000/svg"}


def test_no_patient_is_in_the_page(page: str, scores: TaskScores) -> None:
    federated = scores["PR"]["federated"]
    assert isinstance(federated, Scores)
    assert not [patient for patient in federated.ids if re.search(rf"\b{patient}\b", page)]


def test_ids_are_unique_and_references_resolve(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    references |= set(re.findall(r'aria-labelledby="([^"]+)"', page))
    assert references <= set(ids)


def test_every_figure_is_valid_described_and_has_its_numbers(page: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", page, flags=re.S)
    assert len(figures) == 7
    for figure in figures:
        (svg,) = re.findall(r"<svg.*?</svg>", figure, flags=re.S)
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert len(root.get("aria-label") or "") > 40
        assert figure.count("<tr>") > 2
        assert "<details>" in figure


def test_figures_take_their_colours_from_the_page(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.S))
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawings)) <= {"#000000"}  # the renderer's default, never stroked
    declared = set(re.findall(r"--([a-z]+):", page))
    assert set(re.findall(r"var\(--([a-z]+)\)", page)) <= declared
    assert {look.variable for look in LOOKS.values()} <= declared


def _contrast(one: str, two: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_and_lines_have_contrast_in_light_dark_and_print(page: str) -> None:
    blocks = re.findall(r":root \{([^}]*)\}", page)
    assert len(blocks) == 3
    for block in blocks:
        colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", block))
        for name in set(colours) - {"paper", "wash", "line", "tint"}:
            assert _contrast(colours[name], colours["paper"]) >= 4.5, (name, block)
            assert _contrast(colours[name], colours["wash"]) >= 4.5, (name, block)


def test_the_headline_and_comparisons_come_first_and_are_the_numbers(page: str, drawn: Results) -> None:
    text = " ".join(Page(page).text.split())
    value = drawn.held_out["federated"]["PR"].pooled
    assert f"AUROC of {number(value.value)} (95% interval {number(value.low)} to {number(value.high)})" in text[:400]
    assert text.index("The same model trained on the pooled data") < text.index("AUROC by hospital")
    assert "Six simulated hospitals trained one model together." in text


def test_who_took_part_is_a_grid_of_sites_by_rounds(page: str) -> None:
    parsed = Page(page)
    for state, cells in {"trained": 6 * 20 - 5, "missing": 3, "late": 1, "refused": 1}.items():
        assert parsed.count("span", **{"class": f"cell {state}"}) - 1 == cells  # one more in the legend
    assert "message-not-finite" in parsed.text


def test_the_same_results_make_the_same_bytes(drawn: Results, page: str) -> None:
    assert html(drawn) == page


def test_hostile_names_stay_text(drawn: Results) -> None:
    name = "<script>alert(1)</script>$x$"
    renamed = replace(drawn, name=name, failures=[Failure(name)], cohorts=[*drawn.cohorts])
    page = html(replace(renamed, tasks=["PR", name]))
    assert Page(page).count("script") == 0
    assert "&lt;script&gt;" in page


def test_a_federation_page_hides_small_counts_and_says_what_is_missing(federation_results: Results) -> None:
    text = " ".join(Page(html(federation_results)).text.split())
    assert "not estimable" in text
    assert "<11" in text
    assert "not disclosed" in text
    assert "No ROC is drawn: patients' scores stay at their hospitals" in text
    assert "This run made no comparison" in text
    assert "ε = ∞" in text
    assert "Synthetic" not in text


def test_a_run_without_any_held_out_hospital_still_has_a_page(federation_results: Results) -> None:
    training = [cohort for cohort in federation_results.cohorts if cohort.role == "train"]
    bare = replace(federation_results, cohorts=training, held_out={}, operating=[], rounds=[], memory_map=[])
    text = " ".join(Page(html(bare)).text.split())
    assert "no held-out hospital was scored" in text


def test_several_tasks_have_a_section_each(drawn: Results) -> None:
    held_out = {method: by_task | {"HER2": by_task["PR"]} for method, by_task in drawn.held_out.items()}
    text = Page(html(replace(drawn, tasks=["PR", "HER2"], held_out=held_out))).text
    assert "PR: does it hold" in text
    assert "HER2: does it hold" in text


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.01, 0.07, "gained"), (-0.07, -0.01, "lost"), (-0.02, 0.05, "cannot be told")]
)
def test_a_gain_is_claimed_only_where_the_interval_says_so(
    results: Results, low: float, high: float, said: str
) -> None:
    middle = (low + high) / 2
    one = Difference("PR", "federated", "no_genomics_control", Estimate(middle, low, high))
    sentences = report_text.comparisons(replace(results, differences=[one]), "PR")
    assert [said in sentence for sentence in sentences if sentence.startswith(("Genomics", "Whether"))] == [True]


def test_claims_of_protection_follow_the_run(results: Results) -> None:
    plain = " ".join(report_text.not_guaranteed(results))
    assert "coordinator saw each site's own update" in plain
    assert "No differential privacy bound" in plain
    epsilon = {cohort.site: 4.0 for cohort in results.cohorts}
    guarded = replace(results, protection=replace(results.protection, aggregation="secagg", epsilon=epsilon))
    assert "coordinator saw" not in " ".join(report_text.not_guaranteed(guarded))
    assert "No differential privacy bound" not in " ".join(report_text.not_guaranteed(guarded))


def test_the_model_card_is_markdown_with_even_tables(drawn: Results, federation_results: Results) -> None:
    for one in (drawn, federation_results):
        card = model_card(one)
        assert card.startswith("# Model card: example-consortium")
        assert "## What is not guaranteed" in card
        for block in re.findall(r"(?:^\|.*\n)+", card, flags=re.M):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1
            assert re.fullmatch(r"\|(?: --- \|)+", block.splitlines()[1])
        assert "&lt;" not in card


def test_a_field_that_differs_is_in_page_and_card_and_no_news_is_said_too(drawn: Results) -> None:
    found = Disagreement("caldera", "scanner", "AT2 | 40x", "GT450", stopped=False)
    other = Disagreement("farrow", "dim", None, "1024", stopped=True)
    told = replace(drawn, differing=[found, other])
    text = Page(html(told)).text
    for cells in (
        ("caldera", "scanner", "AT2 | 40x", "GT450", "took part, with a warning"),
        ("farrow", "dim", "not told", "1024", "kept out"),
    ):
        assert "".join(cells) in text
    assert "| caldera | scanner | AT2 \\| 40x | GT450 | took part, with a warning |" in model_card(told)
    assert "Where hospitals differ" not in model_card(drawn)
    assert "No hospital's data differ" in Page(html(drawn)).text


def test_files_are_written_and_replaced(results: Results, scores: TaskScores, tmp_path: Path) -> None:
    page, card = write_report(results, scores, tmp_path / "out" / "report.html")
    assert "ROC on held-out hospitals" in page.read_text(encoding="utf-8")
    write_report(results, {}, page)
    assert "ROC on held-out hospitals" not in page.read_text(encoding="utf-8")
    assert sorted(path.name for path in page.parent.iterdir()) == [card.name, page.name]


def test_every_method_has_a_look_of_its_own() -> None:
    assert set(LOOKS) == set(METHODS)
    drawn_as = {(look.marker, str(look.dash)) for look in LOOKS.values()}
    assert len(drawn_as) == len(LOOKS)
