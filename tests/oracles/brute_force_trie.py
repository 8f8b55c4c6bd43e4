"""A set of SIDs that answers a trie's questions by looking at every SID."""

from __future__ import annotations

from collections.abc import Iterable

Sid = tuple[int, ...]


class BruteForceTrie:
    """Holds the SIDs as they are; every answer is a scan."""

    def __init__(self, sids: Iterable[Iterable[int]]) -> None:
        """Keep each SID once."""
        self.sids: set[Sid] = {tuple(int(code) for code in sid) for sid in sids}

    def prefixes(self, length: int) -> list[Sid]:
        """Distinct prefixes of a length, in lexicographic order."""
        return sorted({sid[:length] for sid in self.sids})

    def children(self, prefix: Sid) -> list[int]:
        """Codes that follow a prefix, rising."""
        return sorted({sid[len(prefix)] for sid in self.sids if sid[: len(prefix)] == prefix})
