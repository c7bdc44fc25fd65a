"""What became of recorded rankings, for people and for files."""

from dataclasses import asdict, dataclass
from typing import Any

from distilrec.teachers.vector_files import listed


@dataclass(frozen=True, slots=True)
class RecordedReport:
    """What became of recorded rankings. All of `rows` end in one of five counts, the last of which is `kept`; those that were
    gathered count as one each ranking.

    Attributes:
        rows: rows read.
        unknown_keys: rows whose key is not in the data set; `unknown_key_ids` has the first of them.
        held_out: rows of histories or examples that have no part in training.
        repeated_rows: rows for an example that an earlier row was for.
        gathered_rows: rows of one item at most, gathered with others for the same example into `gathered` rankings.
        gathered: rankings made of them.
        empty_lists: rows left without any known item.
        kept: rows imported.
        mentions: item ids in the lists of rows that were not dropped for their key.
        unknown_items: mentions of items outside the catalogue, dropped; `unknown_item_ids` has the first of them.
        repeated_items: mentions of an item that stood in the same list before, dropped.
        reordered: lists put in the descending order of their scores.
        reversed: those of them whose scores rose all the way.
        item_vectors: [N, D], or None.
    """

    rows: int = 0
    unknown_keys: int = 0
    unknown_key_ids: tuple[str, ...] = ()
    held_out: int = 0
    repeated_rows: int = 0
    gathered_rows: int = 0
    gathered: int = 0
    empty_lists: int = 0
    kept: int = 0
    mentions: int = 0
    unknown_items: int = 0
    unknown_item_ids: tuple[str, ...] = ()
    repeated_items: int = 0
    reordered: int = 0
    reversed: int = 0
    item_vectors: tuple[int, int] | None = None

    def lines(self) -> list[str]:
        """Return what a reader should know, a line each."""
        lines = []
        if self.rows:
            lines.append(f"{self.rows:,} rows read, {self.kept:,} {'rankings ' if self.gathered else ''}kept")
        if self.gathered:
            lines.append(f"{self.gathered_rows:,} rows of one item each gathered into {self.gathered:,} rankings")
        for count, text in (
            (self.unknown_keys, f"rows dropped, unknown to the data set ({listed([*self.unknown_key_ids])})"),
            (self.held_out, "rows dropped, held out from training"),
            (self.repeated_rows, "rows dropped, for an example that had one"),
            (self.empty_lists, "rows dropped, without any item of the catalogue"),
            (
                self.unknown_items,
                f"of {self.mentions:,} item ids dropped, unknown ({listed([*self.unknown_item_ids])})",
            ),
            (self.repeated_items, f"of {self.mentions:,} item ids dropped, repeated in their list"),
            (self.reordered, "lists put in the order of their scores"),
        ):
            if count:
                lines.append(f"{count:,} {text}")
        if self.reversed > self.kept / 2:
            lines.append(
                f"the scores of {self.reversed:,} lists rise from first to last: if lower is surer, they are distances"
            )
        if self.item_vectors:
            lines.append(f"item vectors: {self.item_vectors[0]:,} x {self.item_vectors[1]:,}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Return all counts under their names."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
