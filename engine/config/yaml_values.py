"""Plain values from YAML 1.2: bounded in size and depth, with texts as they are written and errors with a line."""

import re
import typing
import warnings
from collections.abc import Callable
from typing import Any

import yaml

from data.shown import escaped, shortened, shown
from models.options import MAX_DEPTH, MAX_VALUES

MAX_DIGITS = 100
_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$")
_LIKE_A_COMMENT = re.compile(r"[ \t]+(#\S[^\r\n]*)")
_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "null": lambda text: None,
    "bool": lambda text: text == "true",
    "int": int,
    "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
}


class YamlError(ValueError):
    """A text is not valid YAML, or has parts that a config does not support; the message has one line.

    Attributes:
        line: number of the line, from 1 on; None if the parser does not name it.
    """

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem)
        self.line = line


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2.

    PyYAML follows 1.1, where 1e-4 is a string, off is false, 1:30 is 90 and 012 is 10.
    """

    yaml_implicit_resolvers: typing.ClassVar[dict] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Return the next node; its tag is one of YAML's own tags and fits the value."""
        event, tag = self.peek_event(), getattr(self.peek_event(), "tag", None)
        if self.depth > MAX_DEPTH:
            raise _at(event, f"lists and mappings must be nested at most {MAX_DEPTH} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if tag not in (None, "!"):
            written = self.resolve(yaml.ScalarNode, node.value, (True, False)) if node.id == "scalar" else node.tag
            known = {"scalar": _SCALARS, "sequence": ("seq",), "mapping": ("map",)}[node.id]
            if tag.removeprefix(_TAG) not in known:
                raise _at(event, f"the tag {shown(tag.replace(_TAG, '!!'))} is not supported")
            if tag not in (written, f"{_TAG}str", f"{_TAG}seq", f"{_TAG}map"):
                raise _at(event, f"{shown(node.value)} does not fit its tag {tag.replace(_TAG, '!!')}")
        return node


_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"^(?:~|null|)$"), ["~", "n", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Loader.add_implicit_resolver(f"{_TAG}int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes strings that YAML 1.1 or 1.2 would read as another type."""


_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))


def read_yaml(text: str, is_text: Callable[[str], bool], key: str = "") -> Any:
    """Return the plain values of a YAML document: mappings with text keys, lists, texts, numbers, booleans and None.

    Args:
        text: the document.
        is_text: whether an option, by its dotted key, is a text. `2024` or `1e5` is then the text as it is written.
        key: dotted key that the document is a value of; empty for a whole config.

    Raises:
        YamlError: if the text is not valid YAML, or is too large.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise YamlError(_one_line(problem), mark and mark.line + 1) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(f"the character {text[error.position]!a} is not allowed", line) from None
    return None if node is None else _Values(text, is_text).of(node, key)


def write_yaml(values: dict[str, Any]) -> str:
    """Return plain values as YAML from which every reader of YAML 1.1 or 1.2 reads the same values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=120)


class _Values:
    """Converts the nodes of one document into plain values."""

    def __init__(self, text: str, is_text: Callable[[str], bool]) -> None:
        self.text, self.is_text = text, is_text
        self.count = 0
        self.open: list[yaml.Node] = []  # the nodes around the current one

    def of(self, node: yaml.Node, key: str) -> Any:
        self.count += 1
        if self.count > MAX_VALUES:
            raise _at(node, f"the document must have at most {MAX_VALUES:,} values, aliases counted in full")
        if any(node is parent for parent in self.open):
            raise _at(node, "an anchor must not contain its own alias")
        if len(self.open) > MAX_DEPTH:
            raise _at(node, f"lists and mappings must be nested at most {MAX_DEPTH} deep")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        self.open.append(node)
        value = self._mapping(node, key) if isinstance(node, yaml.MappingNode) else self._list(node, key)
        self.open.pop()
        return value

    def _list(self, node: yaml.SequenceNode, key: str) -> list:
        return [self.of(item, key) for item in node.value]

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            if not isinstance(name_node, yaml.ScalarNode):
                raise _at(name_node, "a key must be a text, not a list or mapping")
            name = name_node.value
            if name == "<<" and name_node.style is None:
                raise _at(name_node, "merge keys (<<) are not supported; use `base`, or write out the values")
            if name in values:
                raise _at(name_node, f"key {shown(name)} is given twice")
            values[name] = self.of(value_node, f"{key}.{name}" if key else name)
        return values

    def _scalar(self, node: yaml.ScalarNode, key: str) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if self.is_text(key):
            self._warn_of_comment(node, key)
            return None if kind == "null" else node.value
        if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
            raise _at(node, f"a number must have at most {MAX_DIGITS} characters, got {len(node.value):,}")
        return _SCALARS[kind](node.value)

    def _warn_of_comment(self, node: yaml.ScalarNode, key: str) -> None:
        """Warn of `a/run #2/train`, which YAML reads as the text a/run and a comment."""
        comment = _LIKE_A_COMMENT.match(self.text, node.end_mark.index) if node.style is None else None
        if comment:
            warnings.warn(
                f"{key} is {shown(node.value)}: YAML reads {shown(comment[1])} in line {node.end_mark.line + 1} as a "
                "comment. Put quotes around the whole text if it belongs to the text, or a space after # if not",
                UserWarning,
                stacklevel=2,
            )


def _at(place: yaml.Node | yaml.Event, problem: str) -> YamlError:
    return YamlError(problem, place.start_mark.line + 1)


def _one_line(text: str) -> str:
    return shortened(escaped(text))
