"""What can be wrong with a data folder, said so that it can be put right: file, line, field, value, remedy."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN = 80  # characters of a bad value that are repeated to the reader


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with a data folder.

    Attributes:
        file: Name of the file inside the folder.
        line: Line, from 1; 0 where the file as a whole is meant.
        field: Field at fault.
        value: What was found there.
        remedy: What to do about it.
    """

    file: str
    line: int
    field: str
    value: str
    remedy: str

    @property
    def message(self) -> str:
        """Field, value and remedy in one sentence."""
        return f"{self.field} is {self.value}: {self.remedy}"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}"


class DataFolderError(Exception):
    """A data folder cannot be read.

    Attributes:
        problem: The first thing found wrong; its parts are also attributes of the error.
    """

    def __init__(self, file: str, line: int, field: str, value: str, remedy: str) -> None:
        self.problem = Problem(file, line, field, value, remedy)
        self.file, self.line, self.field, self.value, self.remedy = file, line, field, value, remedy
        super().__init__(file, line, field, value, remedy)

    def __str__(self) -> str:
        return str(self.problem)

    @classmethod
    def of(cls, problem: Problem) -> DataFolderError:
        """Return the error that reports `problem`."""
        return cls(problem.file, problem.line, problem.field, problem.value, problem.remedy)


def shown(value: object) -> str:
    """Return a value as a report repeats it: quoted, and cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"
