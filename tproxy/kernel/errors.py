"""What goes wrong with Linux, in our words: what we were doing, what Linux said, what an operator can do."""

from __future__ import annotations


class KernelError(Exception):
    """A kernel feature or capability that is missing, or a call that failed. The command line exits with 3."""

    def __init__(self, doing: str, said: object, advice: str = "") -> None:
        super().__init__(f"{doing}: {said}" + (f"; {advice}" if advice else ""))
        self.doing, self.said, self.advice = doing, said, advice
