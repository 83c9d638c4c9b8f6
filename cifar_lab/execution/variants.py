"""Variants of experiments that differ in the value of one setting."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_lab.config import Config, load_config
from cifar_lab.errors import UsageError
from cifar_lab.experiment_files import split_variant, variant_name


@dataclass(frozen=True)
class Variant:
    """An experiment with one value of a setting, `text` as its name has it; `plain` is the experiment without it."""

    experiment: str
    text: str
    value: Any
    config: Config
    plain: Config

    def name(self, key: str) -> str:
        return variant_name(self.experiment, f"{key}={self.text}")


def parse_variants(files: Mapping[str, str], key: str, values: Sequence[str], given: Sequence[str]) -> list[Variant]:
    """A variant of each experiment, by name in `files`, for each of the `values` of section.key.

    given: overrides that all of them have. Raises UsageError if one of the configs is invalid, a value is there twice,
    or the setting is overridden as well.
    """
    if not re.fullmatch(r"[^.=\s]+\.[^=\s]+", key):
        raise UsageError(f"--key {key}: write section.key, such as optim.learning_rate")
    for override in [*given, *(own for file in files.values() for own in split_variant(file)[1])]:
        if override.partition("=")[0].strip() == key:
            raise UsageError(f"{key} takes each of --values, so it can't be set to one value as well: {override}")
    variants = []
    for name, file in files.items():
        plain = load_config(file, given)
        for text in values:
            config = load_config(file, [*given, f"{key}={text}"])
            value = config.flat()[key]
            variants.append(Variant(name, _written(value, text), value, config, plain))
    texts = [variant.text for variant in variants[: len(values)]]
    if twice := [text for text in dict.fromkeys(texts) if texts.count(text) > 1]:
        raise UsageError(f"--values has {twice[0]} twice")
    return variants


def _written(value: Any, text: str) -> str:
    """How a name has the value, the same for all ways to write it: 0.001 for 1e-3, 4 for 4.0."""
    if isinstance(value, str):
        return text
    return json.dumps(value, separators=(",", ":")).removesuffix(".0")
