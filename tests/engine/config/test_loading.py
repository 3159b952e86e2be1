"""YAML, bases, overrides, and error messages."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.errors import ConfigError
from engine.config.files import CONFIG_DIR, find_config
from engine.config.loading import check_config, dump_config, flatten, load_config

LEAST = "data: {train: {images: a, annotations: b}, val: {images: c, annotations: d}}\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "run.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def problems(file, overrides=()) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value).splitlines()


def test_all_errors_are_reported_at_once(write):
    file = write(
        LEAST
        + """
sed: 1
batch_size: 4
device: 3
model:
  detector: faster_rcnn
  lr: 1
  backbone: {dcn_v2_stage: [2], dcn_v2_stages: [2, x], offset-groups: 2, frozen_stages: 5}
train: {lr: fast, epochs: 1.5, amp: 1, clip_grad_norm: 0}
"""
    )
    head, *lines = problems(file)
    assert head == f"{file} is not a valid config:"
    assert set(lines) == {
        "  - sed: unknown key, did you mean 'seed'?",
        "  - batch_size: unknown key, did you mean 'train.batch_size'?",
        "  - device: expected auto, cpu, cuda, cuda:N or mps, got '3'",
        "  - model.lr: unknown key, did you mean 'train.lr'?",
        "  - model.backbone.dcn_v2_stage: unknown key, did you mean 'model.backbone.dcn_v2_stages'?",
        "  - model.backbone.dcn_v2_stages.1: expected a valid integer, got 'x'",
        "  - model.backbone.offset-groups: unknown key, did you mean 'model.backbone.offset_groups'?",
        "  - model.backbone.frozen_stages: expected less than or equal to 4, got 5",
        "  - train.lr: expected a valid number, got 'fast'",
        "  - train.epochs: expected a valid integer, got 1.5",
        "  - train.amp: expected 'off', 'bf16' or 'fp16', got '1'",
        "  - train.clip_grad_norm: expected greater than 0, got 0",
    }


@pytest.mark.parametrize(
    ("key", "guess"),
    [
        ("dcn_v2_stages", "model.backbone.dcn_v2_stages"),
        ("model.dcn_v2_stages", "model.backbone.dcn_v2_stages"),
        ("modl.detector", "model.detector"),
        ("train.learning_rate", None),
        ("data.train.image", "data.train.images"),
        ("train.batch-size", "train.batch_size"),
        ("my-own", None),
    ],
)
def test_unknown_keys_keep_their_name_and_get_a_guess(write, key, guess):
    text = "\n".join(problems(write(LEAST), [f"{key}=1"]))
    assert f"  - {key}: unknown key" + (f", did you mean '{guess}'?" if guess else "") in text.splitlines()


def test_1e_4_is_a_number_and_off_a_word(write):
    config = load_config(write(LEAST + "train: {lr: 1e-4, amp: off}"), ["train.weight_decay=5e-5", "train.amp=off"])
    assert (config.train.lr, config.train.weight_decay, config.train.amp) == (1e-4, 5e-5, "off")


@pytest.mark.parametrize(
    "text", ["seed: 012", "seed: 1:30", "data: {keep_images_without_boxes: no}", "data: {max_size: off}"]
)
def test_words_of_yaml_1_1_are_no_numbers_and_no_booleans(write, text):
    value = text.rpartition(": ")[2].strip("}")
    assert f"got {value!r}" in "\n".join(problems(write(text)))


def test_a_repeated_key_is_an_error(write):
    text = "\n".join(problems(write(LEAST + "train:\n  lr: 0.1\n  epochs: 2\n  lr: 0.2\n")))
    assert "line 5: key 'lr' is given twice" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "must contain a mapping of options, got ['a']"),
        ("", "must contain a mapping of options, got nothing"),
        ("a: [1", "is not valid YAML"),
        ("a: b: c", "is not valid YAML"),
        ("? [a]\n: 1", "is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("a: \x00", "is not valid YAML"),
    ],
)
def test_files_that_hold_no_options(write, text, said):
    file = write(text)
    head = problems(file)[0]
    assert head.startswith(str(file))
    assert said in head


def test_a_file_of_other_bytes(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xff\xfe\x81")
    assert "is not valid YAML" in problems(file)[0]


def test_bases_merge_mappings_and_replace_lists(write):
    write(
        LEAST + "train: {lr: 0.1, milestones: [1, 2, 3]}\nmodel: {backbone: {name: resnet18, dcn_v2_stages: [4]}}",
        "a.yaml",
    )
    write("base: a.yaml\ntrain: {epochs: 3, clip_grad_norm: null}\nseed: 5", "b.yaml")
    config = load_config(write("base: b.yaml\ntrain: {milestones: [4]}\nmodel: {backbone: {dcn_v2_stages: [2, 3]}}"))
    assert config.train.lr == 0.1
    assert config.train.epochs == 3
    assert config.train.clip_grad_norm is None
    assert config.train.milestones == [4.0]
    assert config.model.backbone.name == "resnet18"
    assert config.model.backbone.dcn_v2_stages == [2, 3]
    assert config.seed == 5


def test_a_base_is_next_to_its_file_or_in_configs(write):
    write(LEAST + "seed: 3", "demo.yaml")
    assert load_config(write("base: demo.yaml")).seed == 3
    shipped = load_config(write("base: demo_dcn.yaml"))
    assert shipped == load_config(CONFIG_DIR / "demo_dcn.yaml")


def test_a_cycle_of_bases_is_an_error(write):
    write("base: b.yaml", "a.yaml")
    file = write("base: a.yaml", "b.yaml")
    assert "form a cycle" in problems(file)[0]
    assert "form a cycle" in problems(write("base: run.yaml"))[0]


def test_the_error_about_a_missing_base_names_its_file(write):
    (line,) = problems(write("base: demo_dnc.yaml"))
    assert line.startswith(f"{write('base: demo_dnc.yaml')}: `base`: config demo_dnc.yaml does not exist (resolved: /")
    assert line.endswith("did you mean 'demo_dcn'?")
    assert "`base` must name one YAML file, got ['a.yaml']" in problems(write("base: [a.yaml]"))[0]


def test_overrides(write):
    file = write(LEAST + "model: {backbone: {dcn_v2_stages: [2, 3, 4]}}\ntrain: {lr: 0.1}")
    config = load_config(
        file,
        [
            "train.epochs=1",
            "model.backbone.dcn_v2_stages=[3,4]",
            "data.min_size=[480, 512]",
            "train.max_steps=null",
            "train.clip_grad_norm=~",
            "data.download_hint=a=b",
            "train={epochs: 2, momentum: 0.5}",
            "model.backbone.weights=",
        ],
    )
    assert config.model.backbone.dcn_v2_stages == [3, 4]
    assert config.data.min_size == [480, 512]
    assert config.train.max_steps is None
    assert config.train.clip_grad_norm is None
    assert config.data.download_hint == "a=b"
    assert (config.train.epochs, config.train.momentum, config.train.lr) == (2, 0.5, 0.1)
    assert config.model.backbone.weights is None
    assert load_config(file, ["train.lr=1e-3", "train.lr=1e-2"]).train.lr == 0.01


def test_overrides_that_are_not_valid(write):
    overrides = [
        "train",
        "=3",
        "train.lr=[1",
        "train.epochs: 3",
        "data.download_hint=a",
        "data.download_hint.x=1",
        "train.amp=off",
    ]
    head, *lines = problems(write(LEAST), overrides)
    assert head == "the command line does not fit the config:"
    assert lines == [
        "  - 'train': expected key=value, as in train.epochs=1",
        "  - '=3': expected key=value, as in train.epochs=1",
        "  - train.lr: '[1' is not a valid YAML value: while parsing a flow sequence: "
        "expected ',' or ']', but got '<stream end>'",
        "  - 'train.epochs: 3': expected key=value, as in train.epochs=1",
        "  - data.download_hint.x: 'download_hint' is not a section",
    ]


def test_overrides_do_not_leak_into_the_next_load(write):
    file = write(LEAST + "train: {milestones: [1]}")
    load_config(file, ["train.milestones=[5]", "seed=9"])
    assert load_config(file).train.milestones == [1.0]
    assert load_config(file).seed == 0


def test_bare_names_are_looked_up_in_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("r50_dcn.yaml") == CONFIG_DIR / "r50_dcn.yaml"
    assert find_config("r50_dcn") == CONFIG_DIR / "r50_dcn.yaml"
    (tmp_path / "r50_dcn.yaml").write_text(LEAST)
    assert find_config("r50_dcn.yaml").resolve() == tmp_path / "r50_dcn.yaml"
    with pytest.raises(ConfigError, match="does not exist"):
        find_config("elsewhere/demo.yaml")


@pytest.mark.parametrize(
    ("name", "guess"), [("r50_dc", "r50_dcn"), ("demo_dnc.yaml", "demo_dcn"), ("zebra.yaml", None)]
)
def test_an_unknown_config_lists_what_exists(name, guess):
    with pytest.raises(ConfigError) as caught:
        find_config(name)
    text = str(caught.value)
    assert all(file.name in text for file in CONFIG_DIR.glob("*.yaml"))
    assert re.search(r"resolved: /.*" + name, text)
    assert ("did you mean" in text) == bool(guess)
    assert guess is None or text.endswith(f"did you mean {guess!r}?")


def test_flatten():
    assert dict(flatten({"a": 1, "b": {"c": [2], "d": {"e": None}}})) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_what_is_dumped_loads_to_the_same(tmp_path):
    for file in sorted(CONFIG_DIR.glob("*.yaml")):
        config = load_config(file)
        (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        assert load_config(tmp_path / "config.yaml") == config, file.name


POSITIVE = st.floats(min_value=0, exclude_min=True, max_value=1000)
# texts that YAML 1.1 and 1.2 read in different ways
WORDS = st.sampled_from(
    ["1e5", "1.5e3", "1e-4", "off", "no", "012", "1:30", "~", "null", "", " a ", "#", "0x1", "<<", "=", "5."]
)


@given(
    lr=POSITIVE,
    milestones=st.lists(POSITIVE, max_size=3),
    blur=st.floats(0, 1),
    stages=st.lists(st.integers(1, 4), unique=True),
    min_size=st.integers(16, 800) | st.lists(st.integers(16, 800), min_size=1),
    source=st.none() | WORDS | st.text(),
    images=WORDS.filter(bool) | st.text(st.characters(exclude_categories=["C"]), min_size=1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_config_survives_its_yaml(lr, milestones, blur, stages, min_size, source, images, seed, tmp_path_factory):
    place = {"images": images, "annotations": "a.json"}
    config = check_config(
        {
            "data": {
                "train": place,
                "val": place,
                "augment": {"blur": blur},
                "min_size": min_size,
                "download_hint": source,
            },
            "model": {"backbone": {"dcn_v2_stages": stages}},
            "train": {"lr": lr, "milestones": milestones},
            "seed": seed,
        },
        "drawn",
    )
    file = tmp_path_factory.mktemp("drawn") / "config.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    assert load_config(file) == config
