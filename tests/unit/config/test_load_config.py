import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hai.config import config_fields, config_from_yaml_text, config_reference, config_schema, load_config, show_config
from hai.config.compare import Difference, compare_configs
from hai.config.text import dump_yaml, inline_yaml, parse_yaml
from hai.errors import ConfigError

SOURCES = "data: {sources: [{name: a, path: a.csv}, {name: b, path: b.csv}]}\n"


def problems(text: str = "", *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_yaml_text(text, "x.yaml", overrides)
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("optim: {learnin_rate: 0.1}", "optim.learnin_rate = 0.1; unknown key; did you mean optim.learning_rate?"),
        ("learning_rate: 0.1", "learning_rate = 0.1; unknown key; did you mean optim.learning_rate?"),
        ("optim: {lr: 0.1}", "optim.lr = 0.1; unknown key; did you mean optim.learning_rate?"),
        ("optimizer: {x: 1}", "optimizer = {x: 1}; unknown key; did you mean optim?"),
        ("data: {path: a}", "data.path = a; unknown key; did you mean data.sources.0.path?"),
        ("1: 2", "1 = 2; unknown key; `hai config schema` lists the keys"),
        ("train: {max_epochs: ten}", "train.max_epochs = ten; must be a whole number >= 1, or null"),
        ("train: {max_epochs: '10'}", "train.max_epochs = '10'; must be a whole number >= 1, or null"),
        ("train: {max_epochs: true}", "train.max_epochs = true; must be a whole number >= 1, or null"),
        ("train: {max_epochs: null}", "train.max_steps = null; max_epochs is null too; set at least one of them"),
        ("train: {mixed_precision: f8}", "train.mixed_precision = f8; must be true or false, or one of bf16, fp16"),
        ("optim: {name: adam}", "optim.name = adam; must be one of adamw, sgd; did you mean adamw?"),
        ("optim: {learning_rate: -1}", "optim.learning_rate = -1; must be a number > 0 and <= 10"),
        ("optim: {learning_rate: .nan}", "optim.learning_rate = .nan; must be a number > 0 and <= 10"),
        ("optim: {betas: [0.9, 1]}", "optim.betas = [0.9, 1]; must be two numbers, 0 <= beta < 1"),
        ("optim: {betas: [0.9]}", "optim.betas = [0.9]; must be a list of 2 values, each a number"),
        ("optim: {min_learning_rate: 1.0}", "optim.min_learning_rate = 1.0; must not exceed learning_rate = 0.0001"),
        ("optim:", "optim = null; must be a section of keys; remove the line for the default"),
        ("data: {sources: [{}]}", "data.sources.0.path is missing; must be text of at least one letter: A folder with"),
        (
            "data: {sources: [{name: ff/c23, path: a}]}",
            "data.sources.0.name = ff/c23; must hold no /, which sets the parts of a source apart in metrics",
        ),
        ("data: {sources: [a]}", "data.sources.0 = a; must be a section of keys"),
        (
            "data: {sources: [{path: a}, {path: b}]}",
            "data.sources = [{path: a}, {path: b}]; name 'data' is used twice; every source needs a name of its own",
        ),
        ("data: {split_ratios: [1, 1, 1]}", "data.split_ratios = [1, 1, 1]; must be three shares >= 0 that sum to 1"),
        ("augment: {jpeg_quality: [90, 60]}", "augment.jpeg_quality = [90, 60]; must be two numbers, 1 <= low <= high"),
        ("model: {name: resnet}", "model.name = resnet; must be text matching ^(dual_branch|dual_branch_v2|compact|"),
        ("model: {unfreeze_after_epochs: 2}", "model.unfreeze_after_epochs = 2; has no effect with freeze_backbone"),
        ("loss: {cross_entropy: 0}", "loss.soft_f1 = 0.0; cross_entropy and focal are 0 too; at least one weight must"),
        ("loss: {phases: [{from_epoch: 2}]}", "loss.phases.0.soft_f1 = 0.0; cross_entropy and focal are 0 too; at "),
        (
            "loss: {phases: [{from_epoch: 2, focal: 1}, {from_epoch: 1, focal: 1}]}",
            "loss.phases = [{from_epoch: 2, focal: 1}, {from_epoch: 1, focal: 1}]; from_epoch = [2, 1]; must increase",
        ),
        ("loss: {class_weights: [1, 0]}", "loss.class_weights = [1, 0]; must be two numbers > 0, of real and of fake"),
        ("scale: {num_workers: 4:1}", "scale.num_workers = '4:1'; must be a number >= 1 or MIN:MAX with 1 <= MIN <="),
        ("scale: {num_workers: 0}", "scale.num_workers = 0; must be a number >= 1 or MIN:MAX with 1 <= MIN <= MAX"),
        ("scale: {use_gpu: yes}", "scale.use_gpu = 'yes'; must be true or false, or null"),
    ],
)
def test_one_mistake_is_one_line_that_names_file_key_value_and_rule(text, line):
    (told,) = problems(text)
    assert told.startswith(f"x.yaml: {line}")


def test_a_short_key_suggests_every_key_it_may_stand_for():
    (line,) = problems("train: {batch_size: 32}")
    assert line.endswith("did you mean train.global_batch_size or train.micro_batch_size or train.eval_batch_size?")


def test_all_mistakes_are_told_at_once_each_with_where_it_was_made():
    lines = problems(
        "seed: 1\nseed: 2\noptim: {lr: 1, learning_rate: 2, min_learning_rate: 3}\n" + SOURCES,
        "train.max_epochs=0",
        "data.sources.1.weight=0",
        "data.sources.7.path=a",
        "nonsense",
        "augment.flip=[",
        "model.dropot=0.1",
        "seed.x=3",
        "logging={every_steps: 1, every_steps: 2}",
    )
    starts = {
        "x.yaml:2: seed; the key stands twice",
        "x.yaml: optim.lr = 1",
        "x.yaml: optim.min_learning_rate = 3; must not exceed learning_rate = 2",
        "command line: train.max_epochs = 0",
        "command line: data.sources.1.weight = 0",
        "command line: data.sources.7.path; data.sources has 2 entries",
        "command line: 'nonsense' is no override; write key=value",
        "command line: augment.flip: not valid YAML",
        "command line: model.dropot = 0.1; unknown key; did you mean model.dropout?",
        "command line: seed = {x: 3}; must be a whole number",
        "command line: logging: every_steps; the key stands twice",
    }
    assert len(lines) == len(starts)
    assert all(sum(line.startswith(start) for line in lines) == 1 for start in starts)


@pytest.mark.parametrize("text", ["a: [1\nb: 2", "\tseed: 1", "seed: *a", "--- 1\n--- 2", "seed: \x00", "? [1]\n: 2"])
def test_broken_yaml_is_one_line(text):
    (line,) = problems(text)
    assert line.startswith("x.yaml")
    assert ": not valid YAML: " in line


def test_broken_yaml_names_the_line():
    assert problems("seed: 1\ntrain:\n  a: b: c")[0].startswith("x.yaml:3: not valid YAML: mapping values are not")


@pytest.mark.parametrize("text", ["[1, 2]", "seed", "3"])
def test_a_file_that_is_no_mapping_is_refused(text):
    assert problems(text)[0].startswith("x.yaml: must hold `key: value` lines, found ")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "baseline.yaml").write_text("seed: 1", encoding="utf-8")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(ConfigError, match=r"baselin\.yml: no such config file; did you mean .*baseline\.yaml\?$"):
        load_config(tmp_path / "baselin.yml")
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read as UTF-8 text"):
        load_config(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_overrides_are_yaml_and_reach_into_lists():
    config = config_from_yaml_text(
        SOURCES,
        overrides=[
            "optim.learning_rate=1e-4",
            "data.sources.1.path=c=d.csv",
            "data.sources.2={name: c, path: 'x: y'}",
            "logging.wandb={tags: [a, b]}",
            "logging.wandb.mode=offline",
            "scale.num_workers=1:4",
            "data.cache_decoded=on",
            "train.early_stopping_patience=",
            "name=2026-11-20",
            "storage=${HOME}",
        ],
    )
    assert config.optim.learning_rate == 1e-4
    assert [source.path for source in config.data.sources] == ["a.csv", "c=d.csv", "x: y"]
    assert (config.logging.wandb.tags, config.logging.wandb.mode) == (["a", "b"], "offline")
    assert (config.scale.num_workers, config.data.cache_decoded) == ("1:4", "on")
    assert (config.train.early_stopping_patience, config.name, config.storage) == (None, "2026-11-20", "${HOME}")


def test_a_list_can_be_started_from_the_command_line():
    assert config_from_yaml_text("", overrides=["data.sources.0.path=faces"]).data.sources[0].path == "faces"
    assert config_from_yaml_text(SOURCES, overrides=["data.sources=[]"]).data.sources == []


def test_a_shown_config_reads_back_equal():
    config = config_from_yaml_text(
        SOURCES, overrides=["scale.num_workers=2:3", "optim.learning_rate=1e-05", "name='1e3'"]
    )
    assert config_from_yaml_text(show_config(config)) == config


def test_lists_are_not_shared_between_configs():
    config_from_yaml_text("").optim.betas.append(0.5)
    assert config_from_yaml_text("").optim.betas == [0.9, 0.999]


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
tree = st.recursive(plain, lambda part: st.lists(part) | st.dictionaries(st.text("abc"), part), max_leaves=8)


@settings(max_examples=50)
@given(tree)
def test_every_value_survives_being_written_and_read(value):
    assert parse_yaml(dump_yaml(value), "") == (value, [])
    assert parse_yaml(inline_yaml(value, 10**6), "") == (value, [])


@pytest.mark.parametrize(
    "text", ["1:4", "on", "off", "yes", "1e-4", "010", "0o7", "2026-11-20", "~", "=", "<<", "1_000"]
)
def test_strings_that_some_yaml_reads_otherwise_are_quoted(text):
    assert inline_yaml(text)[0] == "'"


def test_schema_explains_every_field_to_an_editor():
    schema = config_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    fields = config_fields()
    assert {"seed", "data.sources.N.path", "loss.phases.N.focal", "logging.wandb.mode"} <= fields.keys()
    for key, node in fields.items():
        assert node["description"].endswith("."), key
        assert node["resume"] in {"fixed", "raise", "free"}, key
        assert "default" in node or key in {"data.sources.N.path", "loss.phases.N.from_epoch"}, key
    assert all(definition["additionalProperties"] is False for definition in schema["$defs"].values())


def test_reference_page_has_a_row_for_every_key():
    page = config_reference()
    assert all(f"| `{key}` |" in page for key in config_fields())
    assert page == Path("docs/config.md").read_text(encoding="utf-8"), "out of date: run `make docs`"


def difference(old: str, new: str) -> list[Difference]:
    base = "train: {max_epochs: 10, early_stopping_patience: 5}\n"
    return compare_configs(config_from_yaml_text(base, overrides=[old]), config_from_yaml_text(base, overrides=[new]))


@pytest.mark.parametrize(
    ("field", "old", "new", "allowed"),
    [
        ("seed", 1, 2, False),
        ("optim.learning_rate", 0.1, 0.2, False),
        ("model.freeze_backbone", True, False, False),
        ("train.max_epochs", 10, 11, True),
        ("train.max_epochs", 10, 9, False),
        ("train.max_steps", 10, None, True),
        ("train.max_steps", None, 10, False),
        ("train.early_stopping_patience", 5, None, True),
        ("train.micro_batch_size", None, 2, True),
        ("scale.num_workers", 2, "1:2", True),
        ("logging.wandb.mode", "online", "offline", True),
        ("storage", None, "elsewhere", True),
    ],
)
def test_what_a_resume_may_change(field, old, new, allowed):
    found = difference(f"{field}={inline_yaml(old)}", f"{field}={inline_yaml(new)}")
    assert found == [Difference(field, old, new, allowed)]


def test_sources_are_compared_by_name():
    old = "data.sources=[{name: a, path: a.csv}, {name: b, path: b.csv}]"
    assert difference(old, "data.sources=[{name: b, path: b.csv}, {name: a, path: a.csv}]") == []
    assert difference(
        old, "data.sources=[{name: a, path: x.csv, image_dir: i, weight: 2}, {name: c, path: b.csv}]"
    ) == [
        Difference("data.sources.a.path", "a.csv", "x.csv", True),
        Difference("data.sources.a.image_dir", None, "i", True),
        Difference("data.sources.a.weight", 1.0, 2, False),
        Difference("data.sources.b", {"name": "b", "path": "b.csv"}, None, False),
        Difference("data.sources.c", None, {"name": "c", "path": "b.csv"}, False),
    ]


def test_phases_are_compared_as_a_whole():
    (found,) = difference("seed=42", "loss.phases=[{from_epoch: 3, focal: 1}]")
    assert (found.field, found.allowed) == ("loss.phases", False)


def test_reading_a_config_loads_neither_torch_nor_ray():
    code = (
        "import sys, hai.config as c\n"
        "try: c.config_from_yaml_text('optim: {lr: 1}')\n"
        "except Exception as error: print(error)\n"
        "print(sorted({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    assert done.stdout.splitlines()[-1] == "[]"
