"""What the fields of a config mean. Imports nothing heavy."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emjax.errors import UsageError

RECIPES = Path(__file__).parents[1] / "configs"  # installed beside emjax, and so in a checkout

Config = Any  # an ml_collections.ConfigDict: its fields are not known to a type checker


def plain(config: Config) -> dict[str, Any]:
    """Return a config as it reads back from JSON."""
    return json.loads(config.to_json())


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every field of a nested dict."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def parts_of(train: Sequence) -> list[tuple[str, str, float]]:
    """Return a config's `data.train` as [(name, split, weight)]."""
    return [(*train, 1.0)] if isinstance(train[0], str) else list(train)


def recipes() -> dict[str, Path]:
    """Return {name: file} of the recipes that come with emjax."""
    return {path.stem: path for path in sorted(RECIPES.glob("[!_]*.py"))}


def find_recipe(name: str) -> Path:
    """Return the file of the recipe `name`: an existing file, or the name of one of `recipes()`.

    Raises: UsageError that lists the known names.
    """
    known = recipes()
    if Path(name).is_file():
        return Path(name)
    if name in known:
        return known[name]
    near = Path(name).stem if Path(name).stem in known else ""
    raise UsageError(
        f"--config={name}: expected a file or one of {', '.join(known)}, and there is no such file"
        + (f"; use --config={near}" if near else "")
    )
