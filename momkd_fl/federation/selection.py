"""A panel that is learnt: the genes that tell the classes apart, from sums over the training sites.

Each site answers once, with sums over the training patients that have a label and genes (``selection_sums``): its
validation patients, and the sites that evaluate, have no part in it, so no label a model is judged by can shape the
panel. The strength of a gene is that of the class in ``gene ~ hospital + class``: the F statistic of the patients
of all sites put together, with every gene centred within its hospital. A gene that differs only between hospitals,
through batch or prevalence, has none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from momkd_fl.config.federation import FederationConfig
from momkd_fl.errors import UserError
from momkd_fl.federation.arrivals import check_selection
from momkd_fl.federation.dialogue import SiteGrid, ask_all
from momkd_fl.federation.messages import SELECT, Parcel, Select, SelectReply, expect_shapes

VARIANCE_FLOOR = 0.1
"""Share of the median gene's spread within classes that every gene's is taken to have at least: a gene that hardly
varies would else win on the noise of its own denominator."""

EXPLAINED_MAX = 1e-4
"""The same floor as a share of the median gene's whole spread: with hardly more patients than classes nothing is left
within classes but rounding."""

Floats = NDArray[np.float64]


def learn_panel(
    grid: SiteGrid,
    config: FederationConfig,
    run: str,
    sites: Collection[str],
    candidates: tuple[str, ...],
    say: Callable[[str], None],
    secure: Callable[[Select], dict[str, Floats]] | None = None,
) -> tuple[str, ...]:
    """The ``genes.count`` strongest of ``candidates``, in the candidates' order.

    Parameters
    ----------
    sites : training sites with genomics; each has every candidate
    secure : asks them for a secure sum instead

    Raises
    ------
    UserError
        ``selection-failed`` when a site does not answer: a panel learnt without it would depend on who was slow.
        ``selection-one-class`` when no site has training patients of two classes with genes.
    """
    if len(candidates) <= config.genes.count:
        say(f"All {len(candidates)} candidate genes are taken: genes.count is {config.genes.count}.")
        return candidates
    say(f"Choosing {config.genes.count} of {len(candidates)} genes, by sums over {len(sites)} sites.")
    body = Select(candidates=list(candidates))
    total = _ask(grid, config, run, sites, body) if secure is None else secure(body)
    if np.trace(total["balance"]) <= 0.0:
        raise UserError(
            "selection-one-class",
            "genes.panel 'learnt': no site has training patients of two classes with genes, so no gene can be told "
            "from another. Name a panel in genes.panel, or set it to 'shared'.",
        )
    return strongest(candidates, strength(total), config.genes.count)


def strength(total: Mapping[str, NDArray[np.floating]]) -> Floats:
    """F of each gene (G,), but for a factor that all genes share, from the summed ``sum``, ``sum_sq``, ``balance``.

    The sum of squares between classes is b^T B^+ b with b the gene's centred class sums and B the balance (least
    squares on the centred class indicators, Frisch-Waugh-Lovell); what it leaves of ``sum_sq`` is within classes.
    """
    sums, squares = np.asarray(total["sum"], np.float64), np.asarray(total["sum_sq"], np.float64)
    between = np.einsum("cg,cd,dg->g", sums, np.linalg.pinv(total["balance"], rcond=1e-6, hermitian=True), sums)
    within = np.maximum(squares - between, 0.0)
    varying = squares > 0.0
    if not varying.any():
        return np.zeros_like(squares)
    floor = max(
        VARIANCE_FLOOR * float(np.median(within[varying])),
        EXPLAINED_MAX * float(np.median(squares[varying])),
    )
    return np.where(varying, between / np.maximum(within, floor), 0.0)


def strongest(candidates: Sequence[str], strengths: Floats, count: int) -> tuple[str, ...]:
    """The ``count`` strongest genes; of equals the first by symbol. They keep the order of ``candidates``."""
    ranked = sorted(range(len(candidates)), key=lambda place: (-strengths[place], candidates[place]))
    return tuple(candidates[place] for place in sorted(ranked[:count]))


def _ask(grid: SiteGrid, config: FederationConfig, run: str, sites: Collection[str], body: Select) -> dict[str, Floats]:
    genes, classes = len(body.candidates), config.classes
    shapes = {"sum": (classes, genes), "sum_sq": (genes,), "balance": (classes, classes)}

    def exact(site: str, parcel: Parcel[SelectReply]) -> None:
        statistics = parcel.arrays.get("statistics", {})
        expect_shapes(statistics, shapes, f"site {site}: statistics of select")
        check_selection(site, statistics)

    answers = ask_all(grid, SELECT, body, sites, run=run, round=0, timeout_s=config.rounds.deadline_s, check=exact)
    absent = sorted(set(sites) - set(answers.parcels))
    if absent:
        why = answers.refusals.get(absent[0], "no answer in time")
        raise UserError(
            "selection-failed",
            f"site {absent[0]}: no sums to choose genes by ({why}). Look at that site's log, then start the server "
            "again.",
        )
    parts = [answers.parcels[site].arrays["statistics"] for site in sorted(sites)]
    return {name: np.sum([np.asarray(part[name], np.float64) for part in parts], axis=0) for name in shapes}
