"""Metrics as Prometheus reads them, by the parsers of its official library, which has no types."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and labels."""


def samples(text: str, *, openmetrics: bool = False) -> Samples:
    """Every sample of a text. Raises AssertionError for one that is there twice, ValueError for what is malformed."""
    module = import_module("prometheus_client.openmetrics.parser" if openmetrics else "prometheus_client.parser")
    families: Iterator[Any] = module.text_string_to_metric_families(text)
    found: Samples = {}
    for family in families:
        assert family.documentation
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, "a sample twice"
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    """That of the one sample of the name `usbvfiod_...` that has these labels."""
    wanted = set(labels.items())
    [only] = [each for (its, given), each in found.items() if its == f"usbvfiod_{name}" and wanted <= given]
    return only
