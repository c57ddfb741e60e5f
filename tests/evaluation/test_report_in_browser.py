"""The page as a browser shows it: nothing sticks out, overlaps, or is too pale or too small to read."""

from __future__ import annotations

import html as markup
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from momkd_fl.evaluation.report import html
from momkd_fl.evaluation.results import Results

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
WIDTHS = (1280, 390)
SCHEMES = {"light": 1, "dark": 0}
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000")

PROBE = """
function channels(text) {
  const numbers = text.match(/-?[\\d.]+/g).map(Number);
  const [r, g, b, a = 1] = numbers, scale = text.startsWith("color(") ? 255 : 1;
  return [r * scale, g * scale, b * scale, a];
}
function behind(view, element) {
  let under = [];
  for (let at = element; at; at = at.parentElement) {
    const colour = channels(view.getComputedStyle(at).backgroundColor);
    if (colour[3] > 0) under.push(colour);
    if (colour[3] === 1) break;
  }
  let [r, g, b] = under.pop();
  for (const top of under.reverse()) [r, g, b] = [r, g, b].map((v, i) => v * (1 - top[3]) + top[i] * top[3]);
  return [r, g, b];
}
function luminance(rgb) {
  const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function contrast(one, two) {
  const [low, high] = [luminance(one), luminance(two)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}
function look(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, pale = [], small = [], overlapping = [], cut = [];
  const wide = page.documentElement.scrollWidth - page.documentElement.clientWidth;
  for (const svg of page.querySelectorAll("svg")) {
    const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent.trim(), t.getBoundingClientRect()]);
    const edge = svg.getBoundingClientRect();
    texts.forEach(([name, a], i) => {
      if (a.left < edge.left - 2 || a.right > edge.right + 2) cut.push(name);
      texts.slice(i + 1).forEach(([other, b]) => {
        const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (x > 2 && y > 0.35 * Math.min(a.height, b.height)) overlapping.push(name + " / " + other);
      });
    });
    for (const text of svg.querySelectorAll("text")) {
      const scale = text.getScreenCTM();
      const size = parseFloat(view.getComputedStyle(text).fontSize) * Math.hypot(scale.a, scale.b);
      if (size < 8) small.push(text.textContent.trim() + " " + size.toFixed(1));
    }
  }
  page.querySelectorAll("details").forEach(one => one.open = true);
  for (const element of page.querySelectorAll("body *")) {
    const words = [...element.childNodes].filter(n => n.nodeType === 3 && n.textContent.trim());
    if (!words.length || element.closest(".vh, style")) continue;
    const style = view.getComputedStyle(element), svg = element.closest("svg");
    const ink = channels(svg ? style.fill : style.color).slice(0, 3);
    const ratio = contrast(ink, behind(view, svg ? svg.parentElement : element));
    if (ratio < 4.5) pale.push(words[0].textContent.trim().slice(0, 40) + " " + ratio.toFixed(2));
  }
  return {wide, pale, small, overlapping, cut, background: luminance(behind(view, page.body))};
}
addEventListener("load", () => {
  const found = Object.fromEntries([...document.querySelectorAll("iframe")].map(f => [f.width, look(f)]));
  document.body.replaceChildren(Object.assign(document.createElement("pre"), {textContent: JSON.stringify(found)}));
});
"""


def run(*arguments: str) -> str:
    assert BROWSER is not None
    done = subprocess.run([BROWSER, *OPTIONS, *arguments], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@pytest.fixture(scope="module")
def page(full_results: Results) -> str:
    return html(full_results)


@pytest.fixture(scope="module", params=SCHEMES)
def seen(request: pytest.FixtureRequest, page: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe measured, by width."""
    inside = markup.escape(re.sub(r"<meta http-equiv[^>]*>", "", page))
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{inside}"></iframe>' for width in WIDTHS)
    wrapper = tmp_path_factory.mktemp("browser") / "wrapper.html"
    wrapper.write_text(
        f"<!doctype html><meta charset=utf-8><script>{PROBE}</script><body>{frames}</body>", encoding="utf-8"
    )
    told = run(f"--blink-settings=preferredColorScheme={SCHEMES[request.param]}", "--dump-dom", wrapper.as_uri())
    (found,) = re.findall(r"<pre>(.*?)</pre>", told, flags=re.S)
    return {"scheme": request.param, **json.loads(markup.unescape(found))}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_reads_well(seen: dict[str, Any], width: int) -> None:
    found = seen[str(width)]
    assert found["wide"] <= 0
    assert found["pale"] == []
    assert found["small"] == []
    assert found["overlapping"] == []
    assert found["cut"] == []
    assert (found["background"] < 0.2) == (seen["scheme"] == "dark")


def test_the_page_prints(page: str, tmp_path: Path) -> None:
    source, pdf = tmp_path / "report.html", tmp_path / "report.pdf"
    source.write_text(page, encoding="utf-8")
    run("--no-pdf-header-footer", f"--print-to-pdf={pdf}", source.as_uri())
    sheets = len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes()))
    assert 4 <= sheets <= 20
