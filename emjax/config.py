"""What the fields of a config mean. Imports nothing heavy."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
