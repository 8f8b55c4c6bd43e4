"""The baselines of next-item prediction, in loops over events, as their definitions read."""

from collections import Counter, defaultdict
from collections.abc import Sequence


def popularity(sequences: Sequence[Sequence[int]], items: int) -> list[int]:
    """Return all items by falling count, ties by item."""
    counts = Counter(item for sequence in sequences for item in sequence)
    return sorted(range(items), key=lambda item: (-counts[item], item))


def transition_rank(
    sequences: Sequence[Sequence[int]],
    history: Sequence[int],
    items: int,
    k: int,
    *,
    window: int,
    last: int,
    decay: float,
) -> list[int]:
    """Return the best k items after a history, popularity filling what is left."""
    counts: dict[tuple[int, int], float] = defaultdict(float)
    for sequence in sequences:
        for earlier in range(len(sequence)):
            for later in range(earlier + 1, min(earlier + window, len(sequence) - 1) + 1):
                counts[sequence[earlier], sequence[later]] += 1 / (later - earlier)
    again = any(len(set(sequence)) < len(sequence) for sequence in sequences)
    seen = set() if again else set(history)
    scores: dict[int, float] = defaultdict(float)
    for age, item in enumerate(reversed(history[-last:])):
        for other in range(items):
            scores[other] += decay**age * counts[item, other]
    ranked = sorted((item for item in scores if scores[item] > 0), key=lambda item: (-round(scores[item], 6), item))
    ranked += [item for item in popularity(sequences, items) if item not in ranked]
    return [item for item in ranked if item not in seen][:k]
