"""JSON schema of config files for editors, and documentation pages with every key and every old name."""

import json
from collections.abc import Iterator
from typing import Any

from models.options import REMOVAL, OldValue, renamed_options

from .options import RunConfig
from .sections import keys_of

_BASE = "Another YAML file, next to this file or in configs/, that this file overrides section by section."
_BOUNDS = {"minimum": ">= {}", "exclusiveMinimum": "> {}", "maximum": "<= {}", "exclusiveMaximum": "< {}"}
_HEAD = """# Every key of a config

Written by `make docs` from `engine/config/options.py`; do not edit this page.

A config is a YAML file, as those in `configs/`. A key of a section is written below it, or on the command
line with dots: `python tools/train.py --config r50_dcn.yaml train.batch_size=4 model.backbone.dcn_v2_stages=[3,4]`.
Unknown keys, wrong types and numbers out of range are errors. The tool reports all of them at once, with a "did you
mean" for misspelt keys.

- `base: other.yaml` inherits from another file: sections are merged, all other values, also lists, are replaced.
- Values follow YAML 1.2: `1e-4` is a number, `off` and `no` are strings, `null` means no value.
- An option of type string takes the text as it is: `images: 2024` is a folder. On the command line, quotes, blanks and
  `#` belong to the text. Only `null`, `~` and nothing mean no value, where null is allowed.
- `~` and `~user` at the start of a path are the home folder. Environment variables are not replaced.
- Where the default is `required`, the file or one of its bases must give a value.

## Completion in editors

`configs/schema.json` is a JSON schema of these keys. The files in `configs/` name it in a comment:

```yaml
# yaml-language-server: $schema=schema.json
```

The path is relative to the file. VS Code with the extension *YAML* of Red Hat reads this comment, and so does every
editor with `yaml-language-server` (Neovim, Helix, Emacs, Zed). The editor completes keys, shows their meaning and
underlines errors. For files in other folders, write the path of `schema.json` into the comment, or set it in VS Code's
`settings.json`: `"yaml.schemas": {"configs/schema.json": "experiments/*.yaml"}`.

Note: the schema does not check combinations of keys. The tools check them at the start.
"""

_RENAMED_HEAD = f"""# Renamed keys

Written by `make docs`; do not edit this page.

A config with an old key loads as if it had the new one, and the tool prints a warning. Release {REMOVAL} no longer
reads the keys that have that release in the last column. Checkpoints and run folders of earlier releases load without a
warning. A config that has an old key and its new key is an error.

See also the renamed [command-line options](command-line.md#renamed-options) and
[TensorBoard tags](metrics-and-tags.md#renamed-tags).

| old | new | read until |
|---|---|---|
"""


def config_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 7, without references) of a config file.

    Required keys are required only in files without a `base`.
    """
    schema = RunConfig.model_json_schema()
    inlined = _inline(schema, schema["$defs"])
    demands = _without_requirements(inlined)
    inlined["properties"] = {"base": {"type": "string", "description": _BASE}} | inlined["properties"]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A config of resnet-dcn",
        **inlined,
        "if": {"not": {"required": ["base"]}},
        "then": demands,
    }


def schema_text() -> str:
    """Return the schema as the text of its file."""
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


def reference_page() -> str:
    """Return a Markdown page with a table for each section: key, type, default and meaning."""
    schema = RunConfig.model_json_schema()
    tree = _inline(schema, schema["$defs"])
    lines = [_HEAD]
    for name, section in _sections(tree, ""):
        lines += [f"## {name or 'Top level'}", "", f"{_one_line(section['description'])}", ""]
        lines += ["| key | type and range | default | meaning |", "|---|---|---|---|"]
        required = section.get("required", [])
        for key, field in section["properties"].items():
            dotted = f"{name}.{key}" if name else key
            if _section_of(field):
                kind, default = f"section, see [below](#{_anchor(dotted)})", _default(field, "its keys'")
            else:
                kind = _type(field)
                default = "required" if key in required else _default(field, "")
            lines.append(f"| `{dotted}` | {kind} | {default} | {_one_line(field['description'])} |")
        lines.append("")
    return "\n".join(lines)


def renamed_page() -> str:
    """Return a Markdown page with a table of the old names of options and values."""
    marks = {key: field.metadata for key, field in keys_of(RunConfig)}
    rows = [
        (f"`{old}`", ", ".join(f"`{key}`" for key in new), REMOVAL if is_deprecated else "always")
        for old, new, is_deprecated in renamed_options(marks)
    ]
    for key, own in marks.items():
        values = [mark for mark in own if isinstance(mark, OldValue)]
        rows += [(f"`{key}: {mark.old}`", f"`{key}: {mark.new}`", REMOVAL) for mark in values]
    return _RENAMED_HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """Return a schema without references, pydantic's titles and the defaults of whole sections."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        node = target | {key: value for key, value in node.items() if key != "$ref"}
    is_section = _section_of(node) and node.get("default") is not None
    dropped = {"$defs", "title"} | ({"default"} if is_section else set())
    inlined = {key: _inline(value, definitions) for key, value in node.items() if key not in dropped}
    if "properties" in node:
        inlined["properties"] = {key: _inline(value, definitions) for key, value in node["properties"].items()}
    return inlined


def _without_requirements(section: dict[str, Any]) -> dict[str, Any]:
    """Remove `required` from a section and its subsections; return a schema with the same requirements."""
    below = {
        key: _without_requirements(field) for key, field in section.get("properties", {}).items() if _section_of(field)
    }
    demands: dict[str, Any] = {key: section.pop(key) for key in ("required",) if key in section}
    if below := {key: demand for key, demand in below.items() if demand}:
        demands["properties"] = below
    return demands


def _section_of(field: dict[str, Any]) -> dict[str, Any] | None:
    """Return the section that a field contains, also as an alternative to null; None for an option."""
    return next((kind for kind in [field, *field.get("anyOf", [])] if "properties" in kind), None)


def _sections(section: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each section with its dotted name, parents first."""
    yield name, section
    for key, field in section["properties"].items():
        below = _section_of(field)
        if below:
            yield from _sections(below, f"{name}.{key}" if name else key)


def _type(field: dict[str, Any]) -> str:
    """Describe the type and range of a field."""
    if "anyOf" in field:
        return " or ".join(_type(kind) for kind in field["anyOf"])
    if names := field.get("enum"):
        return ", ".join(f"`{name}`" for name in names)
    if field.get("type") == "array" and "items" in field:
        least, most = field.get("minItems", 0), field["maxItems"]
        count = f"{least} " if least == most else f"{least} to {most} "
        kind, _, bounds = _type(field["items"]).partition(" ")
        return f"list of {count}{kind}s {bounds}".strip()
    if values := field.get("additionalProperties"):
        return f"mapping of names to {_type(values)}"
    bounds = [form.format(f"{field[key]:,}".removesuffix(".0")) for key, form in _BOUNDS.items() if key in field]
    return " ".join([field.get("type", "anything"), ", ".join(bounds)]).strip()


def _default(field: dict[str, Any], otherwise: str) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else otherwise


def _anchor(dotted: str) -> str:
    """Return the anchor of a heading."""
    return dotted.replace(".", "")


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
