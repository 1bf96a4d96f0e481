"""What a conversion did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Change(NamedTuple):
    """One module: its path in the network, its class before and after, and what else there is to say."""

    path: str
    before: str
    after: str
    note: str = ""


@dataclass
class Report:
    """What became what; ``print`` it.

    Attributes:
        to: the target.
        changes: one :class:`Change` for each module whose class or sizes changed, or whose convolutions are computed
            by rule.
        kept: how many modules run as they are.
    """

    to: str
    changes: list[Change] = field(default_factory=list)
    kept: int = 0

    def __str__(self) -> str:
        rows = [("module", "before", "after", ""), *self.changes]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths)), row[3]]).rstrip() for row in rows]
        return "\n".join([f"converted to {self.to!r}:", *lines, f"{self.kept} other modules run as they are"])
