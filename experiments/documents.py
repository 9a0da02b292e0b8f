"""Tables of a study's documents, each between two marks that name it and the script that writes it:

    <!-- trainings: report.py -->
    <!-- end of trainings -->

A name stands in one place of one document of the study, its README.md or a Markdown file in a folder beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


def of(folder: Path) -> list[Path]:
    """A study's documents."""
    return sorted(folder.rglob("*.md"))


def put(tables: Mapping[str, str], documents: list[Path], script: str = "report.py") -> None:
    """Writes tables, by name, into the documents that have their marks; the rest of these stays as it is.

    Raises SystemExit, and writes nothing, where a name has no place or several.
    """
    texts = {document: document.read_text(encoding="utf-8") for document in documents}
    for name, table in tables.items():
        places = [document for document, text in texts.items() if _between(name, script).search(text)]
        found = sum(len(_between(name, script).findall(text)) for text in texts.values())
        if found != 1:
            begin, end = _marks(name, script)
            where = ", ".join(map(str, places)) or " or ".join(map(str, documents))
            need = "has no place" if not found else "has several places"
            raise SystemExit(f"the table {name!r} {need} in {where}: it needs these two lines, once\n{begin}{end}")
        (document,) = places
        texts[document] = _between(name, script).sub(lambda found, new=table: _written(found, new), texts[document])
    for document, text in texts.items():
        document.write_text(text, encoding="utf-8")


def written(documents: list[Path], script: str = "report.py") -> dict[str, str]:
    """The tables that stand in documents, by name."""
    found = {}
    for document in documents:
        for _, name, table, _ in _between(None, script).findall(document.read_text(encoding="utf-8")):
            found[name] = table.strip("\n")
    return found


def _marks(name: str, script: str) -> tuple[str, str]:
    return f"<!-- {name}: {script} -->\n", f"<!-- end of {name} -->\n"


def _between(name: str | None, script: str) -> re.Pattern[str]:
    """The first mark, the name, what is between, the last mark."""
    named = r"[^\n]+?" if name is None else re.escape(name)
    begin = rf"(<!-- ({named}): {re.escape(script)} -->\n)"
    return re.compile(begin + r"((?:(?!<!-- )[^\n]*\n)*)(<!-- end of \2 -->(?:\n|\Z))")


def _written(found: re.Match[str], table: str) -> str:
    return f"{found[1]}\n{table}\n\n{found[4]}"
