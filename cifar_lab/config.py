"""The configuration of a run: loaded from an experiment file, validated, hashed."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from cifar_lab import network_files
from cifar_lab.errors import UsageError
from cifar_lab.experiment_files import read_experiment, split_variant
from cifar_lab.sections import OPTIMISERS, DataConfig, MuonConfig, Optim, Section, TrainerConfig

DEFAULTS = 1  # to be raised when the default of a setting changes
Size = Annotated[int, Field(ge=1, le=65_536, strict=True)]


class ModelConfig(Section):
    """The settings that all networks have. A network file defines its own in a subclass `Config` (see network_files).

    source: the text of the file, if it is not of this package; fixed_side: whether the network takes 32 pixels only.
    """

    source: ClassVar[str] = ""
    fixed_side: ClassVar[bool] = False
    kind: str
    one_vs_one: bool = Field(False, description="two-class classifiers per pair of classes, coupled into one")

    def __reduce__(self) -> tuple[Any, ...]:  # for processes and nodes that do not have the file
        return model_section, (self.model_dump(), self.source)


def model_section(values: Any, source: str | None = None) -> ModelConfig:
    """The settings `values` of a network, whose file has the text `source`; by default that is searched for.

    Raises UsageError if no kind of network, or one that is not there, is named, ValidationError for other settings.
    """
    return values if isinstance(values, ModelConfig) else _section_class(values, source).model_validate(values)


def _section_class(values: Any, source: str | None) -> type[ModelConfig]:
    if not isinstance(values, dict) or not isinstance(kind := values.get("kind"), str):
        raise UsageError(f"model.kind is missing; write [model] kind = one of {', '.join(network_files.kinds())}")
    source = network_files.find_source(kind) if source is None else source
    module = network_files.load(kind, source)
    section: type[ModelConfig] = vars(module)["Config"]
    if not issubclass(section, ModelConfig):
        raise UsageError(f"{network_files.FOLDER}/{kind}.py: Config is no subclass of cifar_lab.config.ModelConfig")
    if section.source != source:  # a subclass, because the file may have taken the class of another network
        own = {"source": source, "__annotations__": {"source": ClassVar[str]}, "__module__": module.__name__}
        section = type(section.__name__, (section,), own)
        vars(module)["Config"] = section
    return section


class Config(Section):
    """Everything but the seed and the images."""

    model: SerializeAsAny[ModelConfig]
    data: DataConfig = DataConfig()
    optim: Optim = MuonConfig()
    trainer: TrainerConfig = TrainerConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _of_its_kind(cls, values: Any) -> ModelConfig:
        return model_section(values)

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.model.fixed_side and set(self.data.sides) != {32}:
            raise ValueError(f"data.sides = {list(self.data.sides)}: {self.model.kind} takes 32 pixels only")
        if self.model.one_vs_one and (self.data.mixup or self.data.cutmix):
            raise ValueError("model.one_vs_one needs images of one class each; leave data.mixup and data.cutmix at 0")
        if self.optim.ema and self.trainer.devices > 1:
            raise ValueError(f"optim.ema is for one device, not for trainer.devices = {self.trainer.devices}")
        if self.trainer.captured and (self.optim.ema or self.trainer.devices > 1):
            raise ValueError("trainer.captured can't be used with optim.ema or several trainer.devices; leave it out")
        return self

    def of_run(self, seed: int) -> "Config":
        """The config of one run: with varied splits, its seed is also the split_seed."""
        if self.data.splits == "fixed":
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"split_seed": seed})})

    def hash(self, data_digest: str) -> str:
        """12 hex digits, equal for two runs if and only if they differ in nothing but the seed.

        Settings with default values are left out, so that a new one changes no hash; DEFAULTS counts their changes.
        """
        settings = {**self.model_dump(exclude_defaults=True), "network": self.model.source}
        content = json.dumps([settings, DEFAULTS, data_digest], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def flat(self) -> dict[str, Any]:
        """Every key of every section: `{"optim.learning_rate": 0.05, ...}`."""
        return {
            f"{section}.{key}": value for section, values in self.model_dump().items() for key, value in values.items()
        }

    def toml(self, changes_only: bool = False) -> str:
        """An experiment file that loads to this config; with `changes_only`, without keys that equal their defaults."""
        lines = []
        for section, values in self.model_dump(exclude_none=True, exclude_defaults=changes_only).items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]
        return "\n".join(lines)


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Config of `experiments/<name>.toml`, or of a path to a .toml file, with `section.key=value` overrides.

    A variant's own overrides come first (see split_variant). Raises UsageError for a missing file, invalid TOML, an
    unknown key, a wrong type or value.
    """
    file, own = split_variant(name)
    return parse_config(*read_experiment(file), [*own, *overrides])


def parse_config(text: str, place: str, overrides: Sequence[str] = (), source: str | None = None) -> Config:
    """Config from the text of an experiment file, with overrides; `place` names the file in messages.

    source: the text of the network's file; by default it is searched for.
    Raises UsageError for invalid TOML, an unknown key, a wrong type or value, or a network file with an error.
    """
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also for numbers with thousands of digits
        raise UsageError(f"{place}: {error}") from None
    for override in overrides:
        section, key, value = _parse_override(override)
        if not isinstance(values.setdefault(section, {}), dict):
            raise UsageError(f"{place}: {section} is not a section; write [{section}]")
        values[section][key] = value
    model = values.get("model")
    try:
        Config.model_validate({**values, "model": ModelConfig(kind="")})  # before torch is loaded with the network
        kind = _section_class(model, source)
        try:
            values["model"] = kind.model_validate(model)
        except ValidationError as error:
            raise UsageError(_first_line(error, kind)) from None
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{place}: {_first_line(error)}") from None
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None


def _parse_override(text: str) -> tuple[str, str, Any]:
    name, equals, raw = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise UsageError(f"--set {text}: write --set section.key=value, such as --set optim.learning_rate=0.1")
    try:
        return section, key, tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        return section, key, raw.strip()  # a bare word is a string


def _first_line(error: ValidationError, model: type[ModelConfig] | None = None) -> str:
    """model: the class of the section [model], if the error is in that."""
    first = error.errors()[0]
    location = [*(["model"] if model else []), *map(str, first["loc"])]
    sections = {name: type(field.default) for name, field in Config.model_fields.items()}
    if location[:1] == ["optim"] and location[1:]:
        sections["optim"] = OPTIMISERS[location.pop(1)]
    where = ".".join(location)
    if first["type"] == "extra_forbidden":
        section = model or (sections[location[0]] if location[1:] else Config)
        return f"unknown key {where}; known here: {', '.join(section.model_fields)}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "union_tag_invalid":
        return f"optim.kind = {first['input']['kind']!r}: use {', '.join(OPTIMISERS)}"
    return f"{where} = {first['input']!r}: {first['msg']}" if first["type"] != "missing" else f"{where} is missing"
