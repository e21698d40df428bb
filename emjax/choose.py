"""A name becomes a thing in one visible dict."""

from emjax.errors import Usage


def choose(kind, name, table):
    """The entry `name` of `table`; Usage naming `kind` and all entries if there is none."""
    if name not in table:
        raise Usage(f"no {kind} {name!r}; there are: {', '.join(sorted(table))}")
    return table[name]
