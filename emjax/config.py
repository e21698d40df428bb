"""What the fields of a config mean. Imports nothing heavy."""

import json


def plain(config):
    """A config as it reads back from JSON."""
    return json.loads(config.to_json())


def flat(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def parts_of(train):
    """A config's `data.train` as [(name, split, weight)]."""
    return [(*train, 1.0)] if isinstance(train[0], str) else train
