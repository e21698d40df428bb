"""Recipes. A variant is a flat dict of changed fields.

A value that is a dict replaces the field, None removes it.
"""

import copy

from ml_collections import ConfigDict

from emjax.errors import choose


def varied(config, names, variants):
    """`config` changed by the variants called `names`, joined by commas, one after the other.

    Raises: UsageError for an unknown name, listing the known ones.
    """
    removed = set()
    for name in filter(None, names.split(",")):
        for field, value in choose("variant", name, variants).items():
            if field.split(".")[0] in removed:
                continue
            if value is None:
                del config[field]
                removed.add(field)
            elif isinstance(value, dict):
                config[field] = ConfigDict(copy.deepcopy(value))  # no placeholder is shared
            else:
                config.update_from_flattened_dict({field: value})
    return config
