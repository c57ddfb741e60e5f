"""What a gene is called: symbols, Ensembl ids, and the panels that are named by symbol."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

from momkd_fl.errors import UserError

PANELS = ("odx21", "pam50")
"""Panels that come with the package (``data/panels/*.txt``)."""

_ALIASES = {"CTSL2": "CTSV", "ORC6L": "ORC6", "KNTC2": "NDC80", "CDCA1": "NUF2"}

_ENSEMBL = re.compile(r"(ENSG\d{11})(?:\.\d+)?(?:_PAR_Y)?")


def canonical_gene(name: str) -> str:
    """A gene as it is compared: a symbol in upper case, and today's symbol for a former one.

    An Ensembl id loses its version and becomes the symbol where ``panels/ensembl.csv`` has it (the
    genes of the package's panels; ids as the HGNC lists them); any other Ensembl id stays the name.
    """
    symbol = name.strip().upper()
    ensembl = _ENSEMBL.fullmatch(symbol)
    if ensembl:
        return _symbols_of_ensembl().get(ensembl.group(1), ensembl.group(1))
    return _ALIASES.get(symbol, symbol)


def is_ensembl(name: str) -> bool:
    """Whether ``name`` is an Ensembl id of a human gene, with or without its version."""
    return _ENSEMBL.fullmatch(name.strip().upper()) is not None


def count_known(names: Iterable[str]) -> int:
    """How many names are Ensembl ids or among the well-known symbols: the sign of an axis of genes."""
    known = _known_symbols()
    return sum(canonical_gene(name) in known or is_ensembl(name) for name in names)


def load_panel(name: str | Path) -> tuple[str, ...]:
    """Genes of a panel: 'odx21', 'pam50', or a text file with one gene a line ('#' starts a comment).

    Raises
    ------
    UserError
        ``panel-missing``, ``panel-empty`` or ``panel-duplicated``.
    """
    if str(name) in PANELS:
        text = _packaged(f"{name}.txt")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError):
            raise UserError(
                "panel-missing", f"{name}: neither a known panel ({', '.join(PANELS)}) nor a readable text file."
            ) from None
    genes = _listed(text)
    if not genes:
        raise UserError("panel-empty", f"{name}: the panel names no gene. Write one symbol a line.")
    twice = sorted({gene for gene in genes if genes.count(gene) > 1})
    if twice:
        raise UserError("panel-duplicated", f"{name}: {', '.join(twice[:8])} stand in the panel twice. Keep one each.")
    return tuple(genes)


def panel_columns(genes: Sequence[str], panel: Sequence[str]) -> tuple[list[int], list[str]]:
    """Places in ``genes`` of the panel's genes, in the panel's order, and the genes that have none.

    Raises
    ------
    UserError
        ``genes-no-overlap``.
    """
    place = {gene: number for number, gene in enumerate(genes)}
    wanted = [canonical_gene(gene) for gene in panel]
    missing = [gene for gene in wanted if gene not in place]
    if len(missing) == len(wanted):
        raise UserError(
            "genes-no-overlap",
            f"The expression table has none of the panel's {len(wanted)} genes (wanted {', '.join(wanted[:4])}...; "
            f"found {', '.join(genes[:4])}...). Name its columns by gene symbol.",
        )
    return [place[gene] for gene in wanted if gene in place], missing


def _listed(text: str) -> list[str]:
    rows = (row.split("#", 1)[0] for row in text.splitlines())
    return [canonical_gene(row) for row in rows if row.strip()]


def _packaged(name: str) -> str:
    return (resources.files("momkd_fl.data") / "panels" / name).read_text(encoding="utf-8")


@cache
def _symbols_of_ensembl() -> dict[str, str]:
    return dict(row.split(",") for row in _packaged("ensembl.csv").splitlines()[1:])


@cache
def _known_symbols() -> frozenset[str]:
    return frozenset(gene for name in (*PANELS, "common") for gene in _listed(_packaged(f"{name}.txt")))
