"""Experiment files, found by name: `experiments/<name>.toml`, or a path.

A variant of one has its overrides in its name: `cnn[optim.learning_rate=4]`.
"""

from pathlib import Path

from cifar_lab.errors import UsageError, printable

EXPERIMENTS = Path("experiments")
LONGEST = 1 << 20  # largest size of an experiment file in bytes


def read_experiment(name: str) -> tuple[str, str]:
    """Text and path of `experiments/<name>.toml`, or of a path to a .toml file. Raises UsageError."""
    path = Path(name) if name.endswith(".toml") else EXPERIMENTS / f"{name}.toml"
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a file")
        with path.open("rb") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise UsageError(f"{path} is no experiment file: it has more than {LONGEST:,} bytes")
        return text.decode().removeprefix("\ufeff"), str(path)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in EXPERIMENTS.glob("*.toml"))) or "none"
        raise UsageError(f"no experiment {name!r}; {EXPERIMENTS}/ has: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None


def split_variant(name: str) -> tuple[str, list[str]]:
    """`cnn` and `["optim.momentum=0.9"]` for `cnn[optim.momentum=0.9]`; a name that is no variant has no overrides."""
    base, bracket, rest = name.partition("[")
    return (base, rest[:-1].split("][")) if bracket and name.endswith("]") else (name, [])


def variant_name(name: str, override: str) -> str:
    """The name of `name` with one more override, section.key=value."""
    return f"{name}[{override}]"


def experiment_name(name: str) -> str:
    """`cnn` for `cnn` and for `some/path/cnn.toml`; a variant keeps its overrides.

    Raises UsageError for a name with unprintable characters.
    """
    base, own = split_variant(name)
    found = Path(base).stem if base.endswith(".toml") else base
    for override in own:
        found = variant_name(found, override)
    if not found.isprintable():
        raise UsageError(f"an experiment can't have the name {printable(found)!r}")
    return found
