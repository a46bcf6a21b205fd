from pathlib import Path

import pytest

import hai
from hai.config import load_config
from hai.config.sweep import SweepSettings, is_sweep, load_sweep, show_sweep, sweep_changes
from hai.errors import ConfigError

DOCS = Path(hai.__file__).parents[1] / "docs" / "sweeps.md"
BASE = """
task: ranker
data: {sources: [{path: art}]}
train: {max_epochs: 9}
"""
SWEEP = """
base: base.yaml
pairs: {margin: 0.7}
space:
  pairs.margin: {uniform: [0.2, 2], when: {pairs.loss: margin}}
  pairs.loss: {choice: [margin, bradley_terry]}
  optim.learning_rate: {loguniform: [1e-5, 1e-2]}
sweep: {num_trials: 5}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE, encoding="utf-8")
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP, encoding="utf-8")
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_sweep(path, overrides)
    return [line.replace(f"{path}: ", "") for line in str(caught.value).splitlines()]


def test_a_sweep_lies_over_its_base_and_the_command_line_over_both(file: Path) -> None:
    sweep = load_sweep(file, ["train.max_epochs=4", "sweep.seed=3", "space.model.num_heads={grid: [1, 5]}"])
    assert (sweep.base.train.max_epochs, sweep.base.pairs.margin, sweep.base.task) == (4, 0.7, "ranker")
    assert (sweep.settings.num_trials, sweep.settings.seed, sweep.settings.scheduler) == (5, 3, "asha")
    assert list(sweep.space) == ["pairs.loss", "optim.learning_rate", "model.num_heads", "pairs.margin"]
    assert "optim.learning_rate" not in load_sweep(file, ["space.optim.learning_rate=null"]).space


def test_a_base_beside_the_file_is_found_from_anywhere(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_sweep(file).base.train.max_epochs == 9
    file.write_text("base: bass.yaml\nspace: {pairs.margin: {choice: [1]}}", encoding="utf-8")
    assert problems(file)[0].endswith(f"did you mean {tmp_path / 'base.yaml'}?")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("space.optim.learnin_rate={choice: [1]}", "space.optim.learnin_rate; unknown key; did you mean optim.learn"),
        ("space.optim={choice: [1]}", "space.optim; is a section; name a key in it, such as optim.name"),
        ("space.scale.num_workers={choice: [1]}", "space.scale.num_workers; says where or how a run is carried out"),
        ("space.seed={choice: [1]}", "space.seed; decides what is in which split"),
        ("space.train.ema_decay={chioce: [0.9]}", "space.train.ema_decay = {chioce: [0.9]}; must be one of loguniform"),
        ("space.train.ema_decay=0.9", "space.train.ema_decay = 0.9; must be one of loguniform, uniform, randint"),
        ("space.train.ema_decay={uniform: [0.9]}", "space.train.ema_decay = {uniform: [0.9]}; uniform must be two nu"),
        ("space.train.ema_decay={uniform: [0.9, 0.1]}", "space.train.ema_decay = {uniform: [0.9, 0.1]}; uniform must"),
        (
            "space.optim.weight_decay={loguniform: [0, 1]}",
            "space.optim.weight_decay = {loguniform: [0, 1]}; loguniform",
        ),
        ("space.model.num_heads={randint: [1, 2.5]}", "space.model.num_heads = {randint: [1, 2.5]}; randint must be t"),
        ("space.model.num_heads={choice: []}", "space.model.num_heads = {choice: []}; choice must be a list of values"),
        ("space.model.num_heads={choice: [1, 1]}", "space.model.num_heads = {choice: [1, 1]}; choice names a value tw"),
        ("space.optim.weight_decay={choice: [7]}", "space: optim.weight_decay = 7; must be a number >= 0 and <= 1"),
        ("space.optim.learning_rate={uniform: [0.1, 50]}", "space: optim.learning_rate = 50.0; must be a number > 0"),
        ("space.model.num_heads={uniform: [1, 9]}", "space: model.num_heads = 1.0; must be a whole number"),
        ("space.model.head={choice: [linaer]}", "space: model.head = linaer; must be one of linear, mlp; did you mean"),
        (
            "space.model.head={choice: [mlp], when: {pairs.los: margin}}",
            "space.model.head.when.pairs.los; is no key of",
        ),
        (
            "space.pairs.loss={choice: [margin], when: {pairs.margin: 1}}",
            "space: the conditions of pairs.margin, pairs.loss wait for each other; remove one `when`",
        ),
        (
            "space.model.head={choice: [mlp], when: {pairs.loss: [margin, hinge]}}",
            "space.model.head.when.pairs.loss = hinge; pairs.loss never takes this value; choice: margin, bradley",
        ),
        ("sweep.num_trails=3", "sweep.num_trails = 3; unknown key; did you mean num_trials?"),
        ("sweep.num_trials=0", "sweep.num_trials = 0; must be a whole number >= 1, or null"),
        (
            "sweep.searcher=optuna2",
            "sweep.searcher = optuna2; must be one of random, optuna, grid; did you mean optuna",
        ),
        ("sweep.searcher=grid", "sweep.searcher = grid; optim.learning_rate, pairs.margin have no finite list; use"),
        ("sweep.num_trials=null", "sweep.num_trials = null; only searcher grid knows where to end; give a number"),
        ("sweep.scheduler=pbt", "sweep.scheduler = pbt; pairs.loss cannot change in the middle of training; only keys"),
        ("train.max_epochs=0", "command line: train.max_epochs = 0; must be a whole number >= 1, or null"),
    ],
)
def test_mistakes_are_named(file: Path, override: str, line: str) -> None:
    found = problems(file, override)
    assert len(found) == 1, found
    assert found[0].startswith(line)


def test_all_mistakes_are_named_at_once(file: Path) -> None:
    found = problems(file, "sweep.mode=maximum", "train.max_epochs=0", "space.seed={choice: [1]}", "optim.lr=1")
    assert len(found) == 4


def test_a_grid_without_end_is_refused_unless_a_number_ends_it(file: Path) -> None:
    keys = ["optim.weight_decay", "model.dropout", "train.ema_decay", "augment.brightness"]
    listed = "[" + ", ".join(f"0.{number:02d}" for number in range(1, 11)) + "]"
    space = [f"space.{key}={{grid: {listed}}}" for key in keys]
    given = [*space, "space.pairs.margin=null", "space.optim.learning_rate=null", "sweep.searcher=grid"]
    assert problems(file, *given, "sweep.num_trials=null") == [
        "sweep.num_trials = null; the grid has 20,000 combinations; give a number"
    ]
    assert load_sweep(file, [*given, "sweep.num_trials=7"]).settings.num_trials == 7


def test_pbt_says_what_it_asks_of_the_run(file: Path) -> None:
    text = "\n".join(problems(file, "sweep.scheduler=pbt", "sweep.searcher=optuna", "space.pairs.loss=null",
                              "space.pairs.margin=null", "train.eval_every_epochs=2",
                              "train.early_stopping_patience=3"))  # fmt: skip
    for part in ("searcher must be random", "interval_epochs = 1 must be a multiple", "patience must be null"):
        assert part in text


def test_a_sweep_is_no_run_config(file: Path) -> None:
    with pytest.raises(ConfigError, match="so it is a sweep; hai tune --config"):
        load_config(file)
    assert is_sweep(file)
    assert not is_sweep(file.parent / "base.yaml")
    assert not is_sweep(file.parent / "nothing.yaml")


def test_a_run_config_is_no_sweep(file: Path) -> None:
    assert problems(file.parent / "base.yaml")[0].startswith("space = {}; must name the keys to try")


def test_the_docs_name_every_setting_with_its_default() -> None:
    rows = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for name in SweepSettings.model_fields:
        assert any(f"`{name}`" in row.split("|")[1] for row in rows), name
    for kind in ("loguniform", "uniform", "randint", "choice", "grid", "when"):
        assert any(f"`{kind}: " in row for row in rows), kind


def test_what_a_sweep_that_goes_on_may_change(file: Path) -> None:
    old = show_sweep(load_sweep(file))
    assert not sweep_changes(old, show_sweep(load_sweep(file, ["sweep.num_trials=9", "sweep.max_concurrent=1"])))
    changed = load_sweep(file, ["sweep.num_trials=2", "sweep.seed=1", "space.pairs.loss={choice: [margin]}"])
    assert [line.partition(":")[0] for line in sweep_changes(old, show_sweep(changed))] == [
        "sweep.num_trials", "sweep.seed", "space.pairs.loss",
    ]  # fmt: skip
