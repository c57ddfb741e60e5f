"""``docs/configuration.md``, written from the models."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from momkd_fl.config.base import _models
from momkd_fl.config.federation import FederationConfig
from momkd_fl.config.policy import Policy
from momkd_fl.config.site import SiteConfig
from momkd_fl.config.study import StudyPlan

_HEAD = """# Configuration reference

Written by `make docs` from the models in `momkd_fl/config`; a test fails when it is out of date.
Unknown keys are refused with the nearest known key. Relative paths are relative to the file that names
them. Secrets are never written in a file: a key ending in `_env` names the environment variable to read.
"""


def configuration_reference() -> str:
    """The whole reference as Markdown."""
    parts = [_HEAD]
    for title, model in (
        ("A site: `momkd-client --site config.yaml`", SiteConfig),
        ("A federation: `momkd-server --config federation.yaml`", FederationConfig),
        ("A study: `momkd study --plan study.yaml`", StudyPlan),
        ("A site's contract: `momkd policy explain policy.yaml`", Policy),
    ):
        parts.append(f"## {title}\n")
        parts += _sections(model, "")
    return "\n".join(parts).rstrip() + "\n"


def _sections(model: type[BaseModel], prefix: str) -> list[str]:
    lines = [(model.__doc__ or "").strip().splitlines()[0], ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    below: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        inner = _models(field.annotation)
        if inner:
            keyed = typing.get_origin(field.annotation) is dict
            below.append((f"{prefix}{name}.{'<name>.' if keyed else ''}", inner[0]))
        lines.append(f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {field.description or _doc(inner)} |")
    lines.append("")
    for path, inner_model in below:
        lines += [f"### `{path.rstrip('.')}`", "", *_sections(inner_model, path)]
    return lines


def _doc(inner: list[type[BaseModel]]) -> str:
    return (inner[0].__doc__ or "").strip().splitlines()[0] if inner else ""


def _type(field: FieldInfo) -> str:
    return _type_name(field.annotation)


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "none"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in args)
    if origin is typing.Annotated:
        return _type_name(args[0])
    if origin is list:
        return f"list of {_type_name(args[0])}"
    if origin is dict:
        return f"{_type_name(args[1])} by name"
    if args:
        return " \\| ".join(_type_name(arg) for arg in args)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return {"str": "text", "int": "integer", "float": "number", "bool": "yes/no", "Path": "path", "Any": "any"}.get(
        getattr(annotation, "__name__", ""), str(annotation)
    )


def _default(field: FieldInfo) -> str:
    if field.default is not PydanticUndefined:
        return "none" if field.default is None else f"`{field.default}`"
    return "**required**" if field.is_required() else "its defaults"
