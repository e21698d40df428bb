"""Tables of images as spreadsheets write them, and the files that their cells name."""

import csv
import unicodedata
from collections import defaultdict
from pathlib import Path

from emjax.errors import InputError, note

SEPARATORS = ",;\t"
# What a column may also be called, if no column has the name itself.
OTHER_NAMES = {"image": ("images", "file", "filename", "file_name"), "mask": ("masks",)}

Rows = list[tuple[int, dict[str, str]]]  # (line, {column: cell})


def read(table: str | Path) -> tuple[list[str], Rows, bool]:
    """Return (the columns, the rows, whether numbers may have decimal commas) of a CSV file.

    Columns are in small letters with _ for blanks; cells have no blanks around them; rows without
    any cell are left out.

    Raises: InputError for what is no table, and for rows of more cells than columns.
    """
    lines = _text(table).splitlines(keepends=True)
    first = lines[0] if lines else ""
    if first.lower().startswith("sep=") and len(first.strip(" \n")) == 5:  # as Excel writes it
        separator, lines[0] = first[4], "\n"
    else:
        separator = max(SEPARATORS, key=first.count)
    reader = csv.reader(lines, delimiter=separator)
    columns: list[str] = []
    rows: Rows = []
    try:
        for cells in reader:
            cells, line = [cell.strip() for cell in cells], reader.line_num
            if not any(cells):
                continue
            if not columns:
                columns = _columns(table, cells)
                continue
            if any(cells[len(columns) :]):
                raise InputError(
                    f"{table}, line {line}: {len(cells)} cells for {len(columns)} columns; put "
                    f"names that hold {separator!r} into quotes"
                )
            cells += [""] * (len(columns) - len(cells))
            row = {name: cell for name, cell in zip(columns, cells, strict=False) if name}
            rows.append((line, row))
    except csv.Error as error:
        raise InputError(f"{table}: {error}; expected a CSV file") from None
    if not rows:
        raise InputError(f"{table} lists no image")
    return [column for column in columns if column], rows, separator != ","


def _text(table: str | Path) -> str:
    """Return the text of a table: UTF-8, UTF-16 with its mark, or what Windows writes."""
    try:
        content = Path(table).read_bytes()
    except OSError as error:
        raise InputError(f"{table}: {error.strerror or error}; expected a CSV file") from None
    if content.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
        raise InputError(f"{table}: a spreadsheet; save the sheet as CSV")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        encoding = "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-16" or b"\0" in content:
            raise InputError(f"{table}: {error}; expected a CSV file") from None
        note(table, "not UTF-8, read as Windows-1252; if names are not found, save it as UTF-8")
        text = content.decode("cp1252", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _columns(table: str | Path, header: list[str]) -> list[str]:
    """Return the names of the columns as emjax calls them; those of empty columns are empty."""
    columns = ["_".join(name.casefold().replace("-", " ").split()) for name in header]
    for name, others in OTHER_NAMES.items():
        meant = [other for other in others if other in columns]
        if name not in columns and len(meant) == 1:
            columns[columns.index(meant[0])] = name
    twice = {name for name in columns if name and columns.count(name) > 1}
    if twice:
        raise InputError(f"{table} has two columns {min(twice)!r}; delete one")
    return columns


class Finder:
    """Finds the file of a cell below a folder, also where the cell is written another way."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: dict[Path, dict[str, list[Path]]] = {}

    def __call__(self, cell: str) -> Path:
        """Return root / cell; if it is not there, the one file that the cell can mean.

        That is with / for \\, in other capitals, with accents as macOS writes them, or without
        its suffix.
        """
        path = self.root / cell
        if path.exists():
            return path
        path = self.root
        for part in Path(cell.replace("\\", "/")).parts:
            after = path / part
            if not after.exists():
                found = self._entries(path)[_key(part)]
                after = found[0] if len(found) == 1 else after
            path = after
        return path if path.exists() else self.root / cell

    def _entries(self, folder: Path) -> dict[str, list[Path]]:
        """Return {name, or name without suffix: the entries of `folder` that have it}."""
        if folder not in self.listed:
            entries: dict[str, list[Path]] = defaultdict(list)
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                for name in {_key(path.name), _key(path.stem)}:
                    entries[name].append(path)
            self.listed[folder] = entries
        return self.listed[folder]


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
