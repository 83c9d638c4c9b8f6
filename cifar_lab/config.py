"""What determines a run, except its seed: loaded from an experiment file, validated, hashed."""

import errno
import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

EXPERIMENTS = Path("experiments")
DISK_TROUBLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR)


class UserError(Exception):
    """A mistake or a circumstance that the user can mend: shown as one line, never as a traceback."""

    exit_code = 1


class UsageError(UserError):
    """A wrong command line or experiment file."""

    exit_code = 2


def disk_trouble(error: BaseException) -> str:
    """One line for what a disk did not allow; "" for another error."""
    if not isinstance(error, OSError) or error.errno not in DISK_TROUBLE:
        return ""
    return f"{error.filename2 or error.filename or Path.cwd()}: {error.strerror}"


class Section(BaseModel):
    """Frozen; refuses unknown keys and wrong types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LinearConfig(Section):
    """Multinomial logistic regression on the 3,072 pixel values."""

    kind: Literal["linear"]


class CNNConfig(Section):
    """Three stages of `depth` convolutions with `width`, 2 `width` and 4 `width` channels."""

    kind: Literal["cnn"]
    width: int = Field(16, ge=1)
    depth: int = Field(2, ge=1)


class DataConfig(Section):
    """Split and augmentation."""

    val_size: int | None = Field(None, ge=1, description="images held out; a tenth of the training set if not given")
    split_seed: int = Field(0, ge=0)
    flip: bool = Field(True, description="mirror half of the training images")
    translate: int = Field(2, ge=0, le=16, description="largest shift of a training image, pixels")


class OptimConfig(Section):
    """SGD with Nesterov momentum; the rate rises linearly to `learning_rate`, then falls linearly to zero."""

    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    warmup: float = Field(0.2, ge=0, lt=1, description="share of the steps in which the rate rises")


class TrainerConfig(Section):
    """How long, in what pieces, and with what arithmetic."""

    epochs: int = Field(8, ge=1)
    batch_size: int = Field(128, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 where the device has it in hardware"
    )
    threads: int = Field(1, ge=1, description="CPU threads of one run; they determine its last bits")


class Config(Section):
    """Everything but the seed and the images."""

    model: Annotated[LinearConfig | CNNConfig, Field(discriminator="kind")]
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    trainer: TrainerConfig = TrainerConfig()

    def hash(self, data_digest: str) -> str:
        """12 hex digits that runs share exactly when they differ in nothing but the seed."""
        content = json.dumps([self.model_dump(), data_digest], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def flat(self) -> dict[str, Any]:
        """`{"optim.learning_rate": 0.05, ...}`, every key of every section."""
        return {
            f"{section}.{key}": value for section, values in self.model_dump().items() for key, value in values.items()
        }

    def toml(self) -> str:
        """An experiment file that loads to this config."""
        lines = []
        for section, values in self.model_dump(exclude_none=True).items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]
        return "\n".join(lines)


def load_config(name: str, overrides: list[str] | None = None) -> Config:
    """Config of `experiments/<name>.toml`, or of a file named by its path, with `section.key=value` overrides applied.

    Raises UsageError: no such file, not TOML, an unknown key, a wrong type or value.
    """
    path = Path(name) if name.endswith(".toml") else EXPERIMENTS / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.toml"))) or "none"
        raise UsageError(f"no experiment {name!r}; {EXPERIMENTS}/ has: {known}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    for override in overrides or []:
        section, key, value = _parse_override(override)
        if not isinstance(values.setdefault(section, {}), dict):
            raise UsageError(f"{path}: {section} is not a section; write [{section}]")
        values[section][key] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {_first_line(error)}") from None


def experiment_name(name: str) -> str:
    """`cnn` for `cnn` and for `some/path/cnn.toml`."""
    return Path(name).stem if name.endswith(".toml") else name


def _parse_override(text: str) -> tuple[str, str, Any]:
    name, equals, raw = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        raise UsageError(f"--set {text}: write --set section.key=value, such as --set optim.learning_rate=0.1")
    try:
        return section, key, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return section, key, raw.strip()  # a bare word is a string


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if part not in ("linear", "cnn")]
    where = ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"unknown key {where}; known here: {', '.join(_known_keys(location[:-1], first['loc']))}"
    if first["type"] == "union_tag_not_found":
        return 'model.kind is missing; write [model] kind = "linear" or "cnn"'
    if first["type"] == "union_tag_invalid":
        return f"model.kind = {first['input']['kind']!r}: use linear or cnn"
    return f"{where} = {first['input']!r}: {first['msg']}" if first["type"] != "missing" else f"{where} is missing"


def _known_keys(sections: list[str], location: tuple) -> list[str]:
    if not sections:
        return list(Config.model_fields)
    if sections[0] == "model":
        return list((LinearConfig if location[1] == "linear" else CNNConfig).model_fields)
    return list(Config.model_fields[sections[0]].annotation.model_fields)
