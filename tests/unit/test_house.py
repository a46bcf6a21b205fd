"""The rules of the house: layers, sizes, names that must not stand anywhere, docs that are true."""

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
import typer

import hai
from hai.cli import app
from hai.config import load_config
from hai.config.sweep import load_sweep

ROOT = Path(hai.__file__).resolve().parents[1]
MODULES = sorted((ROOT / "hai").rglob("*.py"))
JOBS = sorted((ROOT / "ray_jobs").glob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Imports point to the same layer or down. A new module is put into its layer here.
LAYERS = [
    {
        "hai",
        "hai.errors",
        "hai.types",
        "hai.paths",
        "hai.provenance",
        "hai.progress",
        "hai.console",
        "hai.cpus",
        "hai.masking",
        "hai.live",
        "hai.packages",
    },
    {"hai.config"},
    {
        "hai.data",
        "hai.by_source",
        "hai.calibration",
        "hai.error_table",
        "hai.models",
        "hai.losses",
        "hai.memory",
        "hai.metrics",
        "hai.optim",
        "hai.order",
        "hai.precision",
        "hai.results",
        "hai.pair_losses",
        "hai.rank_metrics",
        "hai.rank_results",
        "hai.rank_curves",
        "hai.label_audit",
        "hai.score_scale",
        "hai.faces",
    },
    {"hai.checkpoint", "hai.embeddings", "hai.distributed", "hai.state", "hai.sweep"},
    {"hai.tasks"},
    {
        "hai.context",
        "hai.recovery",
        "hai.step",
        "hai.predictions",
        "hai.trackers",
        "hai.journal",
        "hai.loop",
        "hai.trained",
    },
    {
        "hai.report",
        "hai.explain",
        "hai.robustness",
        "hai.predict",
        "hai.evaluation",
        "hai.ranking",
        "hai.export",
        "hai.submit",
    },
    {"hai.launch"},
    {"hai.cli", "hai.api", "hai.benchmark", "hai.doctor", "hai.notebook"},
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer_of(module: str) -> int:
    parts = module.split(".")
    top = ".".join(parts[:2])
    (layer,) = [number for number, names in enumerate(LAYERS) if top in names] or [None]
    assert layer is not None, f"{top} is in no layer; put it into LAYERS"
    return layer


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tracked_text() -> dict[str, str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    texts = {}
    for name in filter(None, listed.stdout.decode().split("\0")):
        content = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in content:
            texts[name] = content.decode("utf-8")
    return texts


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down(path):
    own = layer_of(module_name(path))
    upward = {name for name in imports_of(path) if name.split(".")[0] == "hai" and layer_of(name) > own}
    assert not upward


def test_few_files_import_ray():
    users = [path.name for path in MODULES if any(name.split(".")[0] == "ray" for name in imports_of(path))]
    assert 0 < len(users) <= 8, users


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_says_what_it_is_and_what_it_offers(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    if len(tree.body) == 1:
        return  # a package that is only a folder
    offered = {}
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        offered |= {name.id: node.value for name in targets if isinstance(name, ast.Name)}
    assert "__all__" in offered, "no __all__"
    names = ast.literal_eval(offered["__all__"])
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_modules_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450


@pytest.mark.parametrize("path", [*MODULES, *JOBS], ids=lambda path: path.name)
def test_nothing_loads_code_from_data(path):
    text = path.read_text(encoding="utf-8")
    assert not [word for word in ("pickle.load", "yaml.load(", "weights_only=False") if word in text]


UNSAFE = {  # calls that run what a file says, unless they have this argument
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "torch.jit.load": None,
    "torch.hub.load": None,
    "pickle.load": None,
    "pickle.loads": None,
    "pickle.Unpickler": None,
    "marshal.loads": None,
    "shelve.open": None,
    "joblib.load": None,
    "pd.read_pickle": None,
    "pandas.read_pickle": None,
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "yaml.load": None,
    "os.system": None,
    "os.popen": None,
    "eval": None,
    "exec": None,
    "compile": None,
    "__import__": None,
}


def unsafe_calls(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
        wanted = UNSAFE.get(name, ())
        if wanted is None or (wanted and given.get(wanted[0]) is not wanted[1]):
            found.append(f"{node.lineno}: {name}")
        found += [f"{node.lineno}: {key}=True" for key in ("shell", "trust_remote_code") if given.get(key) is True]
        if given.get("allow_pickle") is True and name.endswith("load"):
            found.append(f"{node.lineno}: {name}(allow_pickle=True)")
        if name.split(".")[-1] in ("extractall", "extract", "unpack_archive"):
            found.append(f"{node.lineno}: {name}")
    return found


@pytest.mark.parametrize("path", [*MODULES, *JOBS, *BENCHMARKS], ids=lambda path: path.name)
def test_nothing_calls_what_runs_data(path):
    assert not unsafe_calls(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "pickle.loads(b)",
        "eval(x)",
        "subprocess.run(x, shell=True)",
        "yaml.load(t, Loader=L)",
        "tarfile.open(f).extractall(to)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_calls_that_run_data_are_seen(line):
    assert unsafe_calls(line)
    assert not unsafe_calls("model.eval(); re.compile('x'); np.load(f, allow_pickle=False); torch.compile(m)")


def test_no_machine_paths_and_no_package_hosts_in_the_repository():
    folders = "|".join(["wor" + "k", "roo" + "t", "far" + "m", "home/[a-z]+", "Users/[A-Za-z]+"])
    hosts = "|".join(
        ["py" + r"thonhosted", "py" + r"pi\.org", "np" + r"mjs\.org", "deb\\.deb" + "ian", r"download\.py" + "torch"]
    )
    forbidden = re.compile(rf"(?<![\w.~])/(?:{folders})/|{hosts}")
    found = {name: forbidden.findall(text) for name, text in tracked_text().items() if forbidden.search(text)}
    assert not found


def test_import_and_help_load_nothing_heavy():
    code = (
        "import json, sys, hai\n"
        "from hai.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.stderr.write(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, encoding="utf-8")
    loaded = set(json.loads(done.stderr))
    assert not loaded & {"torch", "ray", "numpy", "pandas", "PIL", "fsspec", "sklearn", "transformers", "timm"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads_and_opens_with_command_cost_and_expectation(path):
    (load_sweep if path.parent.name == "tune" else load_config)(path)
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert f"--config {path.relative_to(ROOT)}" in path.read_text(encoding="utf-8")
    assert head.startswith("#")
    text = path.read_text(encoding="utf-8")
    assert "# Cost:" in text
    assert "# Expected:" in text


def test_the_changelog_begins_with_the_version_of_the_package():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == hai.__version__


def test_constraints_pin_every_dependency_by_name_and_version():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    assert all(re.fullmatch(r"[a-z0-9._-]+==[\w.]+", line) for line in lines)
    pinned = {line.split("==")[0] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    names = {re.split(r"[\[><= ]", wish)[0].lower().replace("_", "-") for wish in wanted} - {"hai"}
    assert names <= pinned


def blocks(path: Path) -> str:
    return "\n".join(re.findall(r"```(?:bash|sh|console)\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))


def commands(path: Path) -> list[str]:
    text = blocks(path).replace("\\\n", " ")
    return [line.split("  #")[0].removeprefix("$ ").strip() for line in text.splitlines()]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_docs_link_to_files_that_exist(path):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (path.parent / link).exists()]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_docs_show_commands_that_parse(path):
    root = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in commands(path):
        words = shlex.split(re.sub(r"^(?:[A-Z_]+=\S+ +)+", "", line))
        words = words[: words.index(">")] if ">" in words else words
        if words[:1] == ["make"]:
            assert set(words[1:]) <= targets, line
        job = next((word for word in words if re.fullmatch(r"ray_jobs/\w+\.py", word)), None)
        if job:
            assert (ROOT / job).exists(), line
            words = ["hai", Path(job).stem, *words[words.index(job) + 1 :]]
        if words[:1] == ["hai"]:
            command, arguments = root, words[1:]
            while hasattr(command, "commands"):
                assert arguments, line
                assert arguments[0] in command.commands, line
                command, arguments = command.commands[arguments[0]], arguments[1:]
            command.make_context(command.name, list(arguments))
        for word in words:
            if word.startswith("configs/"):
                assert (ROOT / word).exists(), line


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_docs_say_nothing_twice(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    counted = Counter(line for line in text.splitlines() if line.startswith("#") or len(line) > 60)
    assert not [line for line, count in counted.items() if count > 1 and not line.startswith("|")]
