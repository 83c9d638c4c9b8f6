"""The search space of a sweep: an experiment file, fixed overrides, ranges of other settings, and seeds."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cifar_lab.config import Config, parse_config
from cifar_lab.errors import UsageError
from cifar_lab.experiment_files import EXPERIMENTS, read_experiment, variant_name

MOST_SEEDS = 20  # of a trial
RANGE = re.compile(r"([^=]+)=\s*(\S+?)\.\.([^:\s]+)(:log)?\s*")


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, inclusive, both int or both float; with `log`, sampled uniformly in the logarithm."""

    low: float
    high: float
    log: bool

    def __str__(self) -> str:
        return f"{self.low}..{self.high}{':log' if self.log else ''}"


@dataclass(frozen=True)
class Space:
    """The experiment `name`, the texts of its file and its network's at the start, `fixed` overrides, and `ranges`.

    source: the text of the network's file, None if it is to be searched for; seeds: those of each trial.
    """

    name: str
    file: str
    text: str
    source: str | None
    fixed: tuple[str, ...]
    ranges: Mapping[str, Range]
    seeds: tuple[int, ...] = (0,)

    def config(self, settings: Mapping[str, float]) -> Config:
        """The experiment with these settings. Raises UsageError if one is invalid."""
        given = [*self.fixed, *(f"{key}={value!r}" for key, value in settings.items())]
        return parse_config(self.text, self.file, given, self.source)

    def study_name(self, config_hash: str) -> str:
        """The name of the study, the same for the same search on the same images."""
        ranges = sorted((key, str(value)) for key, value in self.ranges.items())
        seeds = [self.seeds] if self.seeds != (0,) else []
        return f"{self.name}-{hashlib.sha256(json.dumps([ranges, config_hash, *seeds]).encode()).hexdigest()[:6]}"

    @property
    def score(self) -> str:
        """What a trial is judged by."""
        if len(self.seeds) == 1:
            return f"val/acc of seed {self.seeds[0]}"
        return f"mean val/acc of seeds {', '.join(map(str, self.seeds))}"

    @property
    def reference(self) -> str:
        """The experiment with the fixed overrides, as a name for other commands."""
        found = self.name if Path(self.file).parent == EXPERIMENTS else self.file
        for override in self.fixed:
            found = variant_name(found, override.replace(" ", ""))
        return found

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.ranges.items())


def parse_space(name: str, file: str, overrides: Sequence[str], seeds: tuple[int, ...] = (0,)) -> Space:
    """The space of `overrides`: those with `low..high` or `low..high:log` are ranges, of integers for an integer.

    Raises UsageError if there is no range, if one is malformed or has an invalid end, or for too many seeds.
    """
    if len(seeds) > MOST_SEEDS:
        raise UsageError(f"--seeds: a trial can have {MOST_SEEDS} seeds, not {len(seeds):,}")
    ranges, fixed = {}, []
    for override in overrides:
        if match := RANGE.fullmatch(override):
            key, low, high, log = match.groups()
            ranges[key.strip()] = _range(override, low, high, bool(log))
        else:
            fixed.append(override)
    if not ranges:
        raise UsageError("nothing to search; give a range, such as --set optim.learning_rate=0.05..0.5:log")
    text, path = read_experiment(file)
    space = Space(name, path, text, None, tuple(fixed), ranges, seeds)
    space = replace(space, source=space.config({}).model.source)
    for end in ("low", "high"):
        settings = space.config({key: getattr(value, end) for key, value in ranges.items()}).flat()
    for key, found in ranges.items():
        if isinstance(settings[key], float):
            ranges[key] = replace(found, low=float(found.low), high=float(found.high))
    return space


def _range(text: str, low: str, high: str, log: bool) -> Range:
    for number in (int, float):
        with suppress(ValueError):
            ends = number(low), number(high)
            if float("-inf") < ends[0] < ends[1] < float("inf") and (ends[0] > 0 or not log):
                return Range(*ends, log)
    raise UsageError(f"--set {text}: write section.key=low..high with low below high; with :log both above 0")
