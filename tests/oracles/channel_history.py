"""Which policy of a channel a roll-back makes current: a plain list of undo steps."""

from __future__ import annotations


class ChannelHistory:
    """The policies that led to a channel's current one; what was rolled back is forgotten."""

    def __init__(self) -> None:
        """Begin without a policy."""
        self._policies: list[str] = []

    @property
    def current(self) -> str:
        """The current policy."""
        return self._policies[-1]

    def activate(self, policy_id: str) -> None:
        """Make a policy current."""
        if self._policies[-1:] != [policy_id]:
            self._policies.append(policy_id)

    def roll_back(self) -> bool:
        """Forget the current policy; return False, and forget nothing, if none is before it."""
        if len(self._policies) < 2:
            return False
        self._policies.pop()
        return True
