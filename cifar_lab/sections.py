"""The sections of an experiment file but for [model]: settings, their defaults and limits."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


class Section(BaseModel):
    """Immutable; unknown keys and wrong types are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """Classes, split and augmentation."""

    labels: Literal["fine", "coarse"] = Field("fine", description="coarse: the superclasses of CIFAR-100")
    classes: tuple[str, ...] = Field((), strict=False, description="two or more classes to keep; default all")
    val_size: int | None = Field(
        None,
        ge=0,
        le=10**9,
        description="validation images; default a tenth of the training set, at least one per class",
    )
    split_seed: int = Field(0, ge=0, lt=1 << 32)
    splits: Literal["fixed", "varied"] = Field(
        "fixed", description="varied: the seed of a run is also its split_seed, to estimate how a procedure varies"
    )
    train_size: int | None = Field(
        None, ge=1, le=10**9, description="training images to use; the classes keep their shares; default all"
    )
    label_noise: float = Field(0.0, ge=0, lt=1, description="share of the training images that get a wrong label")
    flip: bool = Field(True, description="mirror a training image every other time it is seen")
    translate: int = Field(2, ge=0, le=16, description="largest shift of a training image, pixels")
    jitter: float = Field(0.0, ge=0, le=1, description="largest relative change of brightness and contrast")
    cutout: int = Field(0, ge=0, le=64, description="side of the square that is cut out of a training image, pixels")
    mixup: float = Field(
        0.0, ge=0, le=100, description="alpha: an image keeps Beta(a, a) of itself, the rest is another"
    )
    cutmix: float = Field(0.0, ge=0, le=100, description="alpha: a square of 1 - Beta(a, a) of the image is replaced")
    sides: tuple[Annotated[int, Field(ge=16, le=32, strict=True)], ...] = Field(
        (32,),
        strict=False,
        min_length=1,
        max_length=1000,
        description="sides of the training images in pixels, each for an equal share of the epochs",
    )

    @model_validator(mode="after")
    def _different_classes(self) -> Self:
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"data.classes = {list(self.classes)}: name two or more different classes")
        return self


class OptimConfig(Section):
    """The settings that all optimisers have, with the defaults of SGD.

    The learning rates rise linearly during `warmup` (with "one-cycle": along a cosine), then follow `schedule`: to zero
    in a straight line or along a cosine; by the factor `gamma` at each of the `milestones`; or constant.
    """

    kind: str
    learning_rate: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decay_vectors: bool = Field(True, description="whether weight decay includes biases and norms: one axis")
    schedule: Literal["linear", "cosine", "one-cycle", "step", "constant"] = "linear"
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the steps in which the learning rates rise")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.5, 0.75), strict=False, max_length=100, description="of the schedule step, shares of the steps"
    )
    gamma: float = Field(0.1, gt=0, le=1, description="of the schedule step")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient of all weights")
    ema: float = Field(
        0.0, ge=0, lt=1, description="decay per step of a moving average of the weights, used for validation and test"
    )

    @model_validator(mode="after")
    def _settings_of_the_schedule(self) -> Self:
        if self.schedule == "one-cycle" and not self.warmup:
            raise ValueError('optim.schedule = "one-cycle" rises first; give optim.warmup, such as 0.3')
        for key in ("milestones", "gamma"):
            if self.schedule != "step" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f'optim.{key} is for optim.schedule = "step", which is {self.schedule!r}')
        return self


class MuonConfig(OptimConfig):
    """Muon for the filters of convolutions, SGD with Nesterov momentum for the other parameters.

    Not for filters that see the pixels or have one channel each: these are left to SGD.
    """

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(0.05, gt=0, description="of SGD; for the CNN, 0.01 times the batch size works well")
    momentum: float = Field(0.85, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(0.0, ge=0, description="of SGD")
    filter_learning_rate: float = Field(0.12, gt=0, description="of Muon, relative to a filter bank's norm")
    filter_momentum: float = Field(0.6, ge=0, lt=1, description="of Muon")
    label_smoothing: float = Field(0.2, ge=0, lt=1)


class SGDConfig(OptimConfig):
    """SGD with momentum for all parameters (torch.optim.SGD)."""

    kind: Literal["sgd"]
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = True


class AdamWConfig(OptimConfig):
    """AdamW for all parameters (torch.optim.AdamW)."""

    kind: Literal["adamw"]
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), strict=False
    )
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.01, ge=0)


OPTIMISERS: dict[str, type[OptimConfig]] = {"muon": MuonConfig, "sgd": SGDConfig, "adamw": AdamWConfig}


def _kind(values: Any) -> str:
    return values.get("kind", "muon") if isinstance(values, dict) else getattr(values, "kind", "muon")


Optim = Annotated[
    Annotated[MuonConfig, Tag("muon")] | Annotated[SGDConfig, Tag("sgd")] | Annotated[AdamWConfig, Tag("adamw")],
    Discriminator(_kind),
]


class TrainerConfig(Section):
    """Epochs, batch sizes, precision, devices."""

    epochs: int = Field(8, ge=1, le=100_000)
    batch_size: int = Field(500, ge=1, le=10**6, description="images per optimiser step")
    micro_batch_size: int | None = Field(
        None, ge=1, le=10**6, description="images that go through the network at once; default the whole batch"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 if the device is faster in it")
    threads: int = Field(1, ge=1, le=1024, description="CPU threads of one run; their number changes the last bits")
    devices: int = Field(1, ge=1, le=1024, description="devices that share each batch; batch norm sees one's share")
    captured: bool = Field(False, description="on CUDA, the training step becomes one launch: a CUDA graph")
    tta: bool = Field(False, description="also score the test set with test-time augmentation")

    @model_validator(mode="after")
    def _whole_parts(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            part = f"trainer.micro_batch_size = {self.micro_batch_size}"
            raise ValueError(f"trainer.batch_size = {self.batch_size} is no multiple of {part}")
        whole = "micro_batch_size" if self.micro_batch_size else "batch_size"
        if getattr(self, whole) % self.devices:
            raise ValueError(f"trainer.{whole} = {getattr(self, whole)} can't be shared by {self.devices} devices")
        return self
