"""A new experiment from a file and from options; the server checks it. Pure but for reading the file."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STANDARD_INPUT = Path("-")


class ProposalError(ValueError):
    """The options, or the file, can't be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProposalOptions:
    """What the command line said; None: nothing."""

    experiment_id: str | None = None
    model_type: str | None = None
    variants: Sequence[str] = ()
    """`name=version`."""
    shares: Sequence[str] = ()
    """`name=share`; without any, all have the same."""
    metrics: Sequence[str] = ()
    """`name:kind:direction`."""
    guardrails: Sequence[str] = ()
    """`metric:max_ratio:limit` or `metric:max_difference:limit`."""
    fields: tuple[tuple[str, Any], ...] = ()
    """Further fields by their name in the API."""


def body_of(document: dict[str, Any], options: ProposalOptions) -> dict[str, Any]:
    """The body of POST /experiments/create: the file's, and over it the options.

    Raises:
        ProposalError: an option can't be read, or something is missing.
    """
    body = dict(document)
    if options.experiment_id is not None:
        body["experiment_id"] = options.experiment_id
    if options.variants:
        if options.model_type is None:
            raise ProposalError("--variant needs --type.")
        named: dict[str, str] = {}
        for one in options.variants:
            name, version = _split(one, "=", "name=version")
            named[name] = version
        body["model_variants"] = {
            name: {"model_type": options.model_type, "version": version} for name, version in named.items()
        }
        if not options.shares and "traffic_split" not in document:
            body["traffic_split"] = {name: 1 / len(named) for name in named}
    if options.shares:
        pairs = [_split(one, "=", "name=share") for one in options.shares]
        body["traffic_split"] = {name: _number(share, f"{name}={share}") for name, share in pairs}
    if options.metrics:
        body["metrics"] = [
            dict(zip(("name", "kind", "direction"), _split(one, ":", "name:kind:direction"), strict=True))
            for one in options.metrics
        ]
    if options.guardrails:
        body["guardrails"] = [_guardrail(one) for one in options.guardrails]
    body |= {name: value for name, value in options.fields if value is not None}
    for name, option in (("experiment_id", "--id"), ("model_variants", "--variant")):
        if name not in body:
            raise ProposalError(f"{name} is missing: {option}, or a JSON file that has it.")
    return body


def read_document(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or from standard input for `-`.

    Raises:
        ProposalError: there is none.
    """
    try:
        text = sys.stdin.read() if path == STANDARD_INPUT else path.read_text("utf-8")
        document = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ProposalError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(document, dict):
        raise ProposalError(f"{path} holds no JSON object.")
    return document


def _guardrail(text: str) -> dict[str, Any]:
    form = "metric:max_ratio:1.2 or metric:max_difference:0.01"
    metric, limit, value = _split(text, ":", form)
    if limit not in ("max_ratio", "max_difference"):
        raise ProposalError(f"Expected {form}, got {text!r}.")
    return {"metric": metric, limit: _number(value, text)}


def _split(text: str, mark: str, form: str) -> tuple[str, ...]:
    parts = tuple(text.split(mark))
    if len(parts) != form.partition(" or ")[0].count(mark) + 1 or not all(parts):
        raise ProposalError(f"Expected {form}, got {text!r}.")
    return parts


def _number(text: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ProposalError(f"Expected a number at the end of {whole!r}.") from None
