"""Another set of classes than that of an annotation file: merged, renamed, and only some of them kept."""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from .coco_file import DatasetError, category_names
from .shown import shown

_MAX_NAMES = 20


@dataclass(frozen=True)
class ClassChanges:
    """Changes of the classes of an annotation file.

    `merge` and `rename` refer to names in the file. `keep` refers to the names that result.

    Attributes:
        keep: Names of the classes that remain; the boxes of others are left out. None keeps all.
        merge: Old names by the new name.
        rename: New name by the old name.
    """

    keep: Sequence[str] | None = None
    merge: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)

    def contradictions(self) -> Iterator[str]:
        """Yield what cannot hold for the classes of any file."""
        lists = {f"merge.{new}": names for new, names in self.merge.items()}
        if self.keep is not None:
            lists["keep"] = self.keep
        for where, names in lists.items():
            if not names:
                yield f"`{where}` must name at least one class, got an empty list"
            for name in _repeated(names):
                yield f"`{where}` names {shown(name)} more than once"
        for old in _repeated([*chain.from_iterable(map(set, self.merge.values())), *self.rename]):
            uses = [f"`merge.{new}`" for new, names in self.merge.items() if old in names]
            uses += ["`rename`"] if old in self.rename else []
            yield f"class {shown(old)} must have one new name, got it in {' and '.join(uses)}"
        for new in _repeated([*self.merge, *self.rename.values()]):
            yield f"several entries give the new name {shown(new)}; join the classes in one list of `merge`"


class ClassesKept(NamedTuple):
    """The effect of `ClassChanges` on an annotation file.

    Attributes:
        classes_before: Number of classes in the file.
        classes: Number of classes that remain.
        boxes_before: Number of annotations in the file, crowd regions included.
        boxes: Number of annotations that remain.
    """

    classes_before: int
    classes: int
    boxes_before: int
    boxes: int

    def __str__(self) -> str:
        """Describe the effect in one line."""
        return (
            f"{self.classes_before:,} -> {self.classes:,} classes, {self.boxes:,} of {self.boxes_before:,} annotations"
        )


def change_categories(
    names: Mapping[int, str], changes: ClassChanges, path: Path
) -> tuple[dict[int, str], dict[int, int]]:
    """Apply changes to the category names of a file.

    The id of a class remains, and a merged class has the smallest id of its parts.

    Args:
        names: Unique category names by id.
        changes: The changes.
        path: Annotation file, for the error.

    Returns:
        The new names by id, in ascending order, and the new id of each category whose boxes remain.

    Raises:
        DatasetError: If a name is unknown or contradicts another one; the message lists all of them.
    """
    problems = [*changes.contradictions()]
    known = {*names.values()}
    for where, used in (*((f"merge.{new}", old) for new, old in changes.merge.items()), ("rename", changes.rename)):
        problems += [f"`{where}`: {unknown_class(old, known)}" for old in used if old not in known]
    new_name = {old: new for new, group in changes.merge.items() for old in group} | dict(changes.rename)
    new_names = dict.fromkeys((*changes.merge, *changes.rename.values()))
    for new in new_names:
        if new in known and new not in new_name:
            problems.append(
                f"new name {shown(new)} must not be that of another class of the file; to join them, add it to `merge`"
            )
    renamed = {key: new_name.get(name, name) for key, name in names.items()}
    resulting = {*renamed.values(), *new_names}
    for name in changes.keep or ():
        if name not in resulting:
            problems.append(f"`keep`: {unknown_class(name, resulting, new_name.get(name))}")
    if problems:
        lines = [f"  - {problem}" for problem in problems]
        raise DatasetError("\n".join([f"data.classes does not fit the annotation file {path}:", *lines]))
    kept = {key: name for key, name in renamed.items() if changes.keep is None or name in changes.keep}
    id_of = {name: min(key for key, other in kept.items() if other == name) for name in kept.values()}
    return dict(sorted((key, name) for name, key in id_of.items())), {key: id_of[name] for key, name in kept.items()}


def change_classes(raw: dict[str, Any], changes: ClassChanges, path: Path) -> tuple[dict[str, Any], ClassesKept]:
    """Return a completed file with other classes, without the annotations of the others, and the effect.

    All images remain. The entries of annotations are changed in place.

    Raises:
        DatasetError: See `change_categories`.
    """
    before = category_names(raw)
    names, new_id = change_categories(before, changes, path)
    kept = [annotation for annotation in raw["annotations"] if annotation["category_id"] in new_id]
    for annotation in kept:
        annotation["category_id"] = new_id[annotation["category_id"]]
    entries = {entry["id"]: entry for entry in raw["categories"]}
    categories = [entries[key] | {"name": name} for key, name in names.items()]
    effect = ClassesKept(len(before), len(names), len(raw["annotations"]), len(kept))
    return raw | {"annotations": kept, "categories": categories}, effect


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def unknown_class(name: str, known: Collection[str], new: str | None = None) -> str:
    """Describe a name that is not known, with its new name, the closest names, or all names."""
    same = [other for other in sorted(known) if other.strip().lower() == name.strip().lower()]
    close = same or difflib.get_close_matches(name, sorted(known), 1)
    names = close or sorted(known)
    shortlist = ", ".join(map(shown, names[:_MAX_NAMES])) + (", ..." if len(names) > _MAX_NAMES else "")
    hint = f"did you mean {shortlist}" if close else f"the classes are {shortlist}"
    return f"no class has the name {shown(name)}; {hint if new is None else f'its new name is {shown(new)}'}"
