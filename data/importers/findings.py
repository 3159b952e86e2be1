"""Errors of an import, labels that it leaves out, and notes, each by its kind."""

from dataclasses import dataclass, field


@dataclass
class Findings:
    """Errors, what is left out, and notes of an import: each kind with all its places.

    Attributes:
        errors: Kind of each error, and its places, such as "labels/a.txt, line 3: has 6 numbers".
        left_out: The same for what the format has and COCO has not.
        notes: The same for what is read in a way that the user should know.
    """

    errors: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def error(self, kind: str, place: str) -> None:
        """Record something that is wrong; `kind` describes all of its kind, `place` has the file and the value."""
        self.errors.setdefault(kind, []).append(place)

    def leave_out(self, kind: str, place: str) -> None:
        """Record something that is not imported although nothing is wrong."""
        self.left_out.setdefault(kind, []).append(place)

    def note(self, kind: str, place: str) -> None:
        """Record how something is read."""
        self.notes.setdefault(kind, []).append(place)

    def skip_errors(self) -> None:
        """Count all errors as left out."""
        for kind, places in self.errors.items():
            self.left_out.setdefault(kind, []).extend(places)
        self.errors = {}
