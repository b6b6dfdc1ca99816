"""The stage: what is shown, what is asserted, and the table at the end. Colours only on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tproxy.world.pods import Pod

GREEN, RED, BLUE, DIM = "32", "31", "36;1", "2"


@dataclass(frozen=True, slots=True)
class Check:
    """One claim and whether it was seen to be true."""

    step: int
    claim: str
    passed: bool
    seen: str
    seconds: float


class Stage:
    """Prints steps as they happen and keeps the checks."""

    def __init__(self) -> None:
        self.checks: list[Check] = []
        self.step_number = 0
        self._began = self._mark = time.monotonic()

    def paint(self, text: str, colour: str) -> str:
        """Colour, on a terminal only."""
        return f"\033[{colour}m{text}\033[0m" if sys.stdout.isatty() else text

    def step(self, title: str) -> None:
        """A headline."""
        self.step_number += 1
        print(self.paint(f"\n== {self.step_number}. {title}", BLUE), flush=True)

    def say(self, text: str) -> None:
        """A line of explanation or output."""
        for line in text.rstrip().splitlines():
            print(self.paint(f"     {line[:160]}", DIM), flush=True)

    def run(self, pod: Pod, argv: Sequence[str], stdin: str = "", timeout: float = 60) -> tuple[int, str]:
        """Show a command, run it in a pod, show what it said; exit code and output."""
        shown = " ".join(word if word and " " not in word else repr(word) for word in argv)
        print(f"   {self.paint(pod.name, BLUE)}$ {shown}", flush=True)
        done = pod.run(argv, stdin=stdin, timeout=timeout)
        output = done.stdout + done.stderr
        self.say("\n".join(output.splitlines()[:6]))
        return done.returncode, output

    def check(self, claim: str, passed: bool, seen: object = "") -> None:
        """Record a claim."""
        now = time.monotonic()
        self.checks.append(Check(self.step_number, claim, bool(passed), str(seen)[:300], round(now - self._mark, 3)))
        self._mark = now
        word = self.paint("pass", GREEN) if passed else self.paint("FAIL", RED)
        print(f"   {word}  {claim}" + (f"  ({seen})" if seen and not passed else ""), flush=True)

    def attempt(self, claim: str, question: Callable[[], object]) -> None:
        """A claim that waits for something; a TimeoutError is a failed check, not the end of the demo."""
        try:
            self.check(claim, bool(answer := question()), answer)
        except TimeoutError as error:
            self.check(claim, False, error)

    def close(self, path: Path) -> int:
        """The table, the JSON file and the last line; 0 if everything passed."""
        passed = sum(check.passed for check in self.checks)
        print(self.paint("\n   step  result  claim", BLUE))
        for check in self.checks:
            word = self.paint("pass  ", GREEN) if check.passed else self.paint("FAIL  ", RED)
            print(f"   {check.step:>4}  {word}  {check.claim}")
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = round(time.monotonic() - self._began, 1)
        document = {"passed": passed, "total": len(self.checks), "seconds": seconds}
        path.write_text(json.dumps({**document, "checks": [asdict(check) for check in self.checks]}, indent=2) + "\n")
        print(f"\ndetails in {path}, {seconds} s")
        colour = GREEN if passed == len(self.checks) else RED
        print(self.paint(f"demo: {passed} of {len(self.checks)} checks passed", colour), flush=True)
        return 0 if passed == len(self.checks) and passed else 1
