"""The page and the schema of the config: up to date, whole, and of one mind with the check of the config itself."""

import json
import re
import types
import typing

import jsonschema
import pytest
from pydantic import BaseModel

from dcn import BACKENDS
from engine.config.errors import ConfigError
from engine.config.files import CONFIG_DIR, read_config
from engine.config.loading import check_config
from engine.config.options import RunConfig
from engine.config.reference import _one_line, config_schema, reference_page, renamed_page, schema_text
from models import DETECTORS

ROOT = CONFIG_DIR.parent
CONFIGS = sorted(file.name for file in CONFIG_DIR.glob("*.yaml"))
PLACE = {"images": "a", "annotations": "b"}
LEAST = {"data": {"train": PLACE, "val": PLACE}}
VALUES = [0, 1, -1, 2, 6, 0.5, -0.5, 1.5, 2**32, "cpu", "", True, None, [], [2], [0], ["x"], [0.5, 1], {}, {"x": 1}]
MODELINE = "# yaml-language-server: $schema=schema.json"


@pytest.fixture(scope="module")
def validator():
    schema = config_schema()
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def problems(validator, values) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in validator.iter_errors(values)]


def fields(kind: type[BaseModel], prefix: str = ""):
    """Every key with its field, by the models themselves."""
    for name, field in kind.model_fields.items():
        union = isinstance(field.annotation, types.UnionType)
        kinds = typing.get_args(field.annotation) if union else (field.annotation,)
        below = [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]
        yield f"{prefix}{name}", field, bool(below)
        for one in below:
            yield from fields(one, f"{prefix}{name}.")


FIELDS = [*fields(RunConfig)]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("docs/reference/config.md", reference_page),
        ("docs/reference/renamed.md", renamed_page),
        ("configs/schema.json", schema_text),
    ],
)
def test_it_is_up_to_date(file, text):
    assert (ROOT / file).read_text(encoding="utf-8") == text(), f"{file} is not up to date; run: make docs"


def test_the_page_has_every_key_once_with_its_default_and_sentence():
    rows = {}
    for line in reference_page().splitlines():
        if line.startswith("| `"):
            key, kind, default, meaning = (part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1])
            assert key not in rows
            assert kind
            rows[key.strip("`")] = (default, meaning)
    assert sorted(rows) == sorted(key for key, _, _ in FIELDS)
    for key, field, is_section in FIELDS:
        default, meaning = rows[key]
        assert meaning.replace("\\|", "|") == " ".join(field.description.split()), key
        if field.is_required():
            assert default == ("its keys'" if is_section else "required"), key
        elif not isinstance(field.default, BaseModel):
            assert json.loads(default.strip("`")) == field.default, key


def test_a_sentence_stays_in_its_cell():
    assert _one_line("pool | p6p7,\n  or none") == "pool \\| p6p7, or none"


def test_links_within_the_page_lead_somewhere():
    page = reference_page()
    headings = {line.removeprefix("## ").replace(".", "") for line in page.splitlines() if line.startswith("## ")}
    links = re.findall(r"\(#([^)]*)\)", page)
    assert links
    assert {*links} <= headings


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("seed", "integer >= 0, < 4,294,967,296"),
        ("data.augment.large_scale_jitter.scale", "list of 2 numbers >= 0.001, <= 1,000"),
        ("data.min_size", "integer >= 16, <= 16,384 or list of 1 to 100 integers >= 16, <= 16,384"),
        ("model.fpn.levels", "list of 1 to 4 integers >= 2, <= 5"),
        ("train.clip_grad_norm", "number > 0, <= 1,000,000 or null"),
        ("train.amp", "`off`, `bf16`, `fp16`"),
        ("model.dcn_backend", ", ".join(f"`{name}`" for name in ["auto", *BACKENDS])),
        ("model.detector", ", ".join(f"`{name}`" for name in DETECTORS)),
    ],
)
def test_ranges_in_words(key, row):
    assert f"\n| `{key}` | {row} |" in reference_page()


def test_the_configs_fit_the_schema_and_name_it(validator):
    assert CONFIGS
    for name in CONFIGS:
        raw = read_config(CONFIG_DIR / name)
        assert "data" in raw or "base" in raw, name
        assert problems(validator, raw) == [], name
        lines = (CONFIG_DIR / name).read_text(encoding="utf-8").splitlines()
        assert MODELINE in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))], (
            f"configs/{name}: its opening comments must end with: {MODELINE}"
        )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"base": "r50.yaml", "sed": 1}, ": Additional properties are not allowed ('sed' was unexpected)"),
        ({"base": "r50.yaml", "model": {"backbone": {"dcn_stages": [3]}}}, "model.backbone: Additional properties"),
        ({"base": "r50.yaml", "train": {"lr": "fast"}}, "train.lr: 'fast' is not of type 'number'"),
        (
            {"base": "r50.yaml", "train": {"optimizer": "adam"}},
            "train.optimizer: 'adam' is not one of ['sgd', 'adamw']",
        ),
        ({"base": "r50.yaml", "model": {"fpn": {"levels": [2, 6]}}}, "model.fpn.levels.1: 6 is greater than the max"),
        ({"base": 1}, "base: 1 is not of type 'string'"),
        ({}, ": 'data' is a required property"),
        ({"data": {"train": PLACE}}, "data: 'val' is a required property"),
        ({"data": {"train": PLACE, "val": {"images": "a"}}}, "data.val: 'annotations' is a required property"),
    ],
)
def test_what_does_not_fit(validator, values, said):
    (problem,) = problems(validator, values)
    assert problem.startswith(said)


@pytest.mark.parametrize(
    "values",
    [{"base": "r50.yaml"}, {"base": "r50.yaml", "data": {"val": {"images": "a"}}}, LEAST, LEAST | {"seed": 3}],
)
def test_a_file_with_a_base_needs_nothing_else(validator, values):
    assert problems(validator, values) == []


def test_it_agrees_with_the_check_of_the_config(validator):
    """The schema and the check reject the same values of each key: wrong types and values out of range."""
    disagreed = []
    for key, _, _ in FIELDS:
        place = validator.schema
        for part in key.split("."):
            place = next(kind for kind in [place, *place.get("anyOf", [])] if "properties" in kind)["properties"][part]
        is_named = "enum" in place  # the tools check some names only when they build what is named
        for value in VALUES:
            nested = json.loads(json.dumps(LEAST))
            *parents, last = key.split(".")
            section = nested
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
            try:
                check_config(nested, "nested")
                fits = True
            except ConfigError:
                fits = False
            if not (is_named and isinstance(value, str)) and (problems(validator, nested) == []) != fits:
                disagreed.append((key, value, fits))
    assert not disagreed


def test_the_schema_needs_no_references():
    """Some editors do not resolve references next to other keys."""
    assert "$ref" not in schema_text()
    assert "$defs" not in schema_text()
    assert config_schema()["properties"]["base"]["type"] == "string"
