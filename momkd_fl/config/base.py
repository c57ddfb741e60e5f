"""Strict models, paths relative to their file, and errors as sentences."""

from __future__ import annotations

import difflib
import os
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo

from momkd_fl.errors import UserError


class Strict(BaseModel):
    """Base of every section: unknown keys are refused, values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _resolve(path: Path, info: ValidationInfo) -> Path:
    base = (info.context or {}).get("base")
    path = path.expanduser()
    return path if base is None or path.is_absolute() else (Path(base) / path)


FilePath = Annotated[Path, AfterValidator(_resolve)]
"""A path; a relative one is relative to the folder of the file that names it."""

ModelT = TypeVar("ModelT", bound=Strict)


def load(path: Path, model: type[ModelT], overrides: dict[str, Any] | None = None) -> ModelT:
    """Read one YAML file into its model.

    Parameters
    ----------
    path : Path
        The file. Relative paths inside it are taken from its folder.
    overrides : dict, optional
        Top-level sections merged over the file's (one level deep), as commands do for their options.

    Raises
    ------
    UserError
        ``config-missing``, ``config-not-yaml``, ``config-unknown-key`` or ``config-value``: one
        sentence per mistake, each naming the file and the key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise UserError(
            "config-missing", f"{path}: the configuration cannot be read ({_why(reason)}). Check the path."
        ) from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as reason:
        mark = getattr(reason, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError("config-not-yaml", f"{path}{where}: this is not valid YAML. Mend the line.") from None
    if not isinstance(raw, dict):
        raise UserError("config-not-yaml", f"{path}: expected keys and values at the top level, found none.")
    for key, value in (overrides or {}).items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and isinstance(raw.get(key), dict) else value
    return parse(raw, model, path)


def parse(raw: dict[str, Any], model: type[ModelT], path: Path) -> ModelT:
    """Validate ``raw`` as if it had been read from ``path`` (see :func:`load`)."""
    try:
        return model.model_validate(raw, context={"base": path.resolve().parent})
    except ValidationError as errors:
        lines = [_sentence(path, model, error) for error in errors.errors()]
        unknown = any(error["type"] == "extra_forbidden" for error in errors.errors())
        raise UserError("config-unknown-key" if unknown else "config-value", "\n".join(dict.fromkeys(lines))) from None


def secret(variable: str | None, purpose: str) -> bytes | None:
    """The secret that the environment variable ``variable`` holds; None where no variable is named.

    Raises
    ------
    UserError
        ``secret-missing`` when the variable is named in the configuration but not set.
    """
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise UserError(
            "secret-missing", f"The environment variable {variable} ({purpose}) is not set. Export it first."
        )
    return value.encode()


def _why(reason: Exception) -> str:
    return getattr(reason, "strerror", None) or type(reason).__name__


def _sentence(path: Path, model: type[Strict], error: Any) -> str:
    parts = [str(part) for part in error["loc"]]
    key = ".".join(parts)
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, parts[:-1])
        near = difflib.get_close_matches(parts[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys here: {', '.join(sorted(known))}."
        return f"{path}: '{key}' is not a known key; {hint}"
    if error["type"] == "missing":
        return f"{path}: '{key}' is missing; it has no default."
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: '{key}': {message[:1].lower()}{message[1:]} (got {error['input']!r})."


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    origin = typing.get_origin(annotation)
    if origin is not None or isinstance(annotation, types.UnionType):
        for inner in typing.get_args(annotation):
            found += _models(inner)
    return found


def _known_keys(model: type[BaseModel], parts: list[str]) -> list[str]:
    """Field names at the place ``parts`` leads to, through dictionaries, lists and optional sections."""
    here = [model]
    for part in parts:
        below: list[type[BaseModel]] = []
        for place in here:
            if part in place.model_fields:
                below += _models(place.model_fields[part].annotation)
            else:
                below.append(place)  # a dictionary's or list's key: stay at the model it holds
        here = below or here
    return [name for place in here for name in place.model_fields]
