"""Tables of a study's documents, each between two marks that name it and the script that writes it:

    <!-- trainings: report.py -->
    <!-- end of trainings -->

Marks are lines by themselves, and what stands between them is the script's alone. A name stands in one place of one
document of the study: its README.md or another Markdown file in its folder or below.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from dimba_jax.files import write_whole


def of(folder: Path) -> list[Path]:
    """A study's documents."""
    found = sorted(folder.rglob("*.md"))
    return [path for path in found if path.is_file() and not any(p[0] == "." for p in path.relative_to(folder).parts)]


def put(
    tables: Mapping[str, str], documents: Collection[Path], script: str = "report.py", others: Collection[str] = ()
) -> None:
    """Writes tables, by name, into the documents that have their marks; the rest of these stays as it is.

    Args:
      others: names of the script's tables that stay as they are.

    Raises SystemExit, and writes nothing, where a name has no place or several, where marks do not pair or name a table
    that is not among these, and where a table has no rows.
    """
    before = {document: _read(document) for document in documents}
    texts, needed = dict(before), []
    for name, table in tables.items():
        if "<!-- " in table or len(table.splitlines()) < 3:
            raise SystemExit(f"the table {name!r} has no rows, or a mark in them; nothing was written:\n{table}")
        between = _between(name, script)
        places = [document for document, text in before.items() for _ in between.findall(text)]
        if len(places) == 1:
            (document,) = places
            texts[document] = between.sub(
                lambda found, table=table: f"{found[1]}\n{table}\n\n{found[4]}", texts[document]
            )
        else:
            need = f"has several places in {', '.join(map(str, places))}" if places else "has no place"
            needed.append(f"the table {name!r} {need}: it needs these two lines, once\n{''.join(_marks(name, script))}")
    if needed:
        raise SystemExit("\n".join([*needed, f"in {' or '.join(map(str, documents))}; nothing was written"]))
    for document, text in before.items():
        for name in {found[1] for found in _between(None, script).findall(text)} - {*tables, *others}:
            raise SystemExit(f"{document} has marks of {name!r}, which {script} does not make: take them away")
    changed = {document: text for document, text in texts.items() if text != before[document]}
    write_whole(changed)
    for document in changed:
        print(f"wrote tables of {document}")


def written(documents: Collection[Path], script: str = "report.py") -> dict[str, str]:
    """The tables that stand in documents, by name.

    Raises SystemExit where marks do not pair and where a name stands twice.
    """
    found: dict[str, str] = {}
    for document in documents:
        for _, name, table, _ in _between(None, script).findall(_read(document)):
            if name in found:
                raise SystemExit(f"{document}: there is another table {name!r}")
            found[name] = table.strip("\n")
    return found


def _read(document: Path) -> str:
    """A document's text, where every table's mark is followed by that of its end."""
    text = document.read_bytes().decode("utf-8")  # line ends as they are
    started = ""
    for mark in [*re.findall(r"^<!-- (.+) -->$", text, re.MULTILINE), ""]:
        begin = re.fullmatch(r"(.+): \S+\.py", mark)
        if mark == f"end of {started}":
            started = ""
        elif started and (begin or not mark):
            raise SystemExit(f"{document}: the table {started!r} has no end: close it with\n<!-- end of {started} -->")
        elif mark.startswith("end of "):
            raise SystemExit(f"{document}: the mark <!-- {mark} --> ends no table: take it away")
        elif begin:
            started = begin[1]
    return text


def _marks(name: str, script: str) -> tuple[str, str]:
    return f"<!-- {name}: {script} -->\n", f"<!-- end of {name} -->\n"


def _between(name: str | None, script: str) -> re.Pattern[str]:
    """The first mark, the name, what is between, the last mark."""
    named = r"[^\n]+" if name is None else re.escape(name)
    begin = rf"^(<!-- ({named}): {re.escape(script)} -->\n)"
    return re.compile(begin + r"((?:(?!<!-- )[^\n]*\n)*)(<!-- end of \2 -->)$", re.MULTILINE)
