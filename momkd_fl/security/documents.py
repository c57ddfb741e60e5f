"""What the consortium's signed files have in common: one canonical form, a bound on size, a digest to read aloud."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from momkd_fl.errors import UserError

DOCUMENT_BYTES_MAX = 4 << 20
FORMATS = {"charter": "momkd-charter-1", "allow-list": "momkd-allow-list-1", "request": "momkd-request-1"}
SPOKEN_DIGITS = 32
"""Hexadecimal digits of a digest that two people compare: 128 bits, too many to find another file for."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Ed25519Key = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Document(BaseModel):
    """A file that somebody signs; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def canonical(self, *without: str) -> bytes:
        """The one way to write it, less the fields ``without``."""
        body = self.model_dump(mode="json", exclude=set(without))
        return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()

    def digest(self, *without: str) -> str:
        """SHA-256 of :meth:`canonical`, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical(*without)).hexdigest()

    def text(self) -> bytes:
        """The file: JSON for people."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True).encode() + b"\n"


DocumentT = TypeVar("DocumentT", bound=Document)


def parse_document(content: bytes, model: type[DocumentT], where: str, what: str) -> DocumentT:
    """``content`` as a ``model``; nothing about its signatures is said yet.

    Parameters
    ----------
    where : str
        Path or address, for the sentence.
    what : str
        What it should be, such as 'an allow-list'.

    Raises
    ------
    UserError
        ``document-invalid``.
    """
    try:
        if len(content) > DOCUMENT_BYTES_MAX:
            raise ValueError
        return model.model_validate_json(content)
    except (ValidationError, ValueError):
        raise UserError(
            "document-invalid",
            f"{where}: is not {what} of this version of momkd-fl, or it was damaged. Ask who made it for it again.",
        ) from None


def read_document(path: Path, model: type[DocumentT], what: str) -> DocumentT:
    """As :func:`parse_document`, from a file (also raises ``document-missing``)."""
    try:
        with path.open("rb") as file:
            content = file.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as problem:
        raise UserError(
            "document-missing", f"{path}: cannot be read ({problem.strerror}). It should be {what}; check the path."
        ) from None
    return parse_document(content, model, str(path), what)


def format_of(path: Path) -> str:
    """What a document says it is, one of :data:`FORMATS`' values where it is ours (raises ``document-missing``)."""
    try:
        found = json.loads(path.read_bytes()[: DOCUMENT_BYTES_MAX + 1])
    except OSError as problem:
        raise UserError(
            "document-missing", f"{path}: cannot be read ({problem.strerror}). It should be a document; check the path."
        ) from None
    except ValueError:
        return ""
    return str(found.get("format", "")) if isinstance(found, dict) else ""


def spoken(digest: str) -> str:
    """The digits of a digest that two people compare, in groups of four."""
    return " ".join(digest[start : start + 4] for start in range(0, SPOKEN_DIGITS, 4))


def same_digest(typed: str, digest: str) -> bool:
    """Whether what somebody typed is at least the spoken digits of ``digest``."""
    digits = "".join(typed.split()).lower()
    return len(digits) >= SPOKEN_DIGITS and digest.startswith(digits)
