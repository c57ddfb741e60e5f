"""The generated pages: ``docs/configuration.md``, ``docs/errors.md``, and the kit's files below ``deploy``."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

from momkd_fl.cli.frame import OK, run_command
from momkd_fl.cli.provision_kit import COMPOSE, UNIT, render
from momkd_fl.config.reference import configuration_reference
from momkd_fl.errors import UserError

_ERRORS_HEAD = """# Errors a person can mend

Written by `make docs` from every `UserError` in the source; a test fails when it is out of date.
The sentence on the screen names the file, row, field or site in place of each `…`. A code is stable.
What goes wrong in a running federation, and how to mend it, is in [failure-modes.md](failure-modes.md).

| code | where | sentence |
|---|---|---|
"""


@dataclass(frozen=True)
class ErrorUse:
    """One ``UserError(code, sentence)`` in the source; ``…`` stands for what is filled in."""

    code: str
    module: str
    sentence: str


_PLACES = {"UserError": (0, 1), "Finding": (4, 2)}
"""Where the code and the sentence stand among the arguments."""


def user_errors(package: Path) -> list[ErrorUse]:
    """Every ``UserError`` and every coded preflight ``Finding`` in ``package``, by code, module and sentence."""
    found: set[tuple[str, str, str]] = set()
    for path in sorted(package.rglob("*.py")):
        room = ".".join(path.relative_to(package).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _name(node.func) in _PLACES:
                code_at, sentence_at = _PLACES[_name(node.func)]
                sentence = _template(_argument(node, sentence_at, "sentence"))
                for code in _codes(_argument(node, code_at, "code")):
                    if code:
                        found.add((code, room, sentence))
    return [ErrorUse(*each) for each in sorted(found)]


def error_reference(package: Path) -> str:
    """The page of all errors as Markdown."""
    rows = (
        f"| `{use.code}` | `{use.module}` | {use.sentence.replace('|', chr(92) + '|')} |"
        for use in user_errors(package)
    )
    return _ERRORS_HEAD + "\n".join(rows) + "\n"


def pages(root: Path) -> dict[Path, str]:
    """Path and text of every generated page of the checkout at ``root``."""
    return {
        root / "docs" / "configuration.md": configuration_reference(),
        root / "docs" / "errors.md": error_reference(root / "momkd_fl"),
        root / "deploy" / "systemd" / UNIT: render(UNIT, in_repository=True),
        root / "deploy" / "compose" / COMPOSE: render(COMPOSE, in_repository=True),
    }


def main(root: Path | None = None) -> int:
    """Write the pages that have changed, naming them.

    Raises
    ------
    UserError
        ``docs-no-checkout`` where ``root`` (default: the current folder) is not a checkout.
    """
    root = Path.cwd() if root is None else root
    if not (root / "momkd_fl").is_dir() or not (root / "docs").is_dir():
        raise UserError("docs-no-checkout", f"{root}: no folders momkd_fl and docs here. Run it in the checkout.")
    for path, text in pages(root).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.relative_to(root)}")
    return OK


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _argument(call: ast.Call, position: int, keyword: str) -> ast.expr | None:
    if len(call.args) > position:
        return call.args[position]
    return next((given.value for given in call.keywords if given.arg == keyword), None)


def _codes(node: ast.expr | None) -> list[str]:
    """The literal codes of a call; none where it passes on the code of an error listed elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return _codes(node.body) + _codes(node.orelse)
    return []


def _template(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant):
        return " ".join(str(node.value).split())
    if isinstance(node, ast.JoinedStr):
        parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        return " ".join("".join(parts).split())
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{_template(node.left)} {_template(node.right)}"
    if isinstance(node, ast.IfExp):
        return f"{_template(node.body)} / {_template(node.orelse)}"
    return "…"


if __name__ == "__main__":
    sys.exit(run_command("momkd docs", lambda stop: main()))
