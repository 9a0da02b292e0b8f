"""Generated question paraphrases: data for the quickstart and for tests, with nothing to download.

A pair is a cell (an entity under a template pair) with a modifier. Whole cells are held out: no test cell
occurs in training, though each of its entities and templates does, so a model must recombine what it knows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from dimba_jax.config import SyntheticConfig
from dimba_jax.data.examples import DataError, Example, Split
from dimba_jax.data.grammar import TOPICS, TemplatePair

HELD_OUT = 20  # one pair in so many goes to validation, and as many to test
MIN_PAIRS = 500  # below it, an entity might be missing from training


@dataclass(frozen=True)
class Cell:
    """An entity (both its forms) under a template pair."""

    entity: tuple[str, str]
    template: TemplatePair

    def pairs(self) -> Iterator[tuple[str, str]]:
        for source_modifier, target_modifier in self.template.modifiers:
            yield (
                _fill(self.template.source, self.entity, source_modifier),
                _fill(self.template.target, self.entity, target_modifier),
            )


def load_synthetic(config: SyntheticConfig, split: Split) -> list[Example]:
    """One split of the generated pairs: a tenth of them is held out, half of it for each of valid and test.

    Deterministic in the config. Every entity and every template occurs in training.

    Raises:
      DataError: more pairs than the grammar holds, or too few to cover it.
    """
    held_out = config.pairs // HELD_OUT
    sizes = {"train": config.pairs - 2 * held_out, "valid": held_out, "test": held_out}
    cells = split_cells(config.seed)
    capacity = min(
        sum(len(cell.template.modifiers) for cell in cells["train"]) * HELD_OUT // (HELD_OUT - 2),
        *(sum(len(cell.template.modifiers) for cell in cells[name]) * HELD_OUT for name in ("valid", "test")),
    )
    if not MIN_PAIRS <= config.pairs <= capacity:
        raise DataError(
            f"config.data.synthetic.pairs={config.pairs}: the grammar gives between {MIN_PAIRS} and {capacity} pairs"
        )
    rng = random.Random(f"{config.seed} {split}")
    pairs = _rounds(cells[split], rng)[: sizes[split]]
    rng.shuffle(pairs)
    return [Example(source, (target,), row) for row, (source, target) in enumerate(pairs)]


def split_cells(seed: int) -> dict[Split, list[Cell]]:
    """The cells of each split; train's come in an order whose start already meets all entities and templates."""
    rng = random.Random(f"{seed} cells")
    shuffled = [rng.sample(topic.entities, len(topic.entities)) for topic in TOPICS]
    cells: dict[Split, list[Cell]] = {"train": [], "valid": [], "test": []}
    for diagonal in range(max(len(topic.templates) for topic in TOPICS)):
        for topic, entities in zip(TOPICS, shuffled, strict=True):
            count = len(topic.templates)
            if diagonal >= count:
                continue
            # Held out is the start of the first diagonal: an entity loses one template, and templates take turns.
            held_out = math.ceil(len(entities) * count / HELD_OUT) if diagonal == 0 else 0
            for i, entity in enumerate(entities):
                split: Split = "test" if i < held_out else "valid" if i < 2 * held_out else "train"
                cells[split].append(Cell(entity, topic.templates[(i + diagonal) % count]))
    return cells


def _rounds(cells: list[Cell], rng: random.Random) -> list[tuple[str, str]]:
    """One pair of every cell, then a second one of every cell, and so on: any start covers the grammar evenly."""
    per_cell = []
    for cell in cells:
        pairs = list(cell.pairs())
        rng.shuffle(pairs)
        per_cell.append(pairs)
    longest = max(len(pairs) for pairs in per_cell)
    return [pairs[turn] for turn in range(longest) for pairs in per_cell if turn < len(pairs)]


def _fill(template: str, entity: tuple[str, str], modifier: str) -> str:
    return " ".join(template.format(*entity, m=modifier).split()).replace(" ?", "?")
