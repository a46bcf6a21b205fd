"""Files that would run code, or take all memory, if anything believed them; each loaded as hai loads such a file."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import pickle
import resource
import signal
import sqlite3
import subprocess
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hai.errors import HaiError

__all__ = ["try_malice"]

_MEMORY = 3 << 30
_SECONDS, _PATIENCE = 300, 20
_DEEP = 100_000
_CONFIG = "task: detector\ndata: {image_size: 32}\nmodel: {name: compact, pretrained: false}\n"
_PICTURE_SUFFIXES = (".png", ".jpg", ".svg", ".eps", ".tif")

Trial = tuple[str, Callable[[], Any]]


def try_malice(folder: Path, *, every: int = 1) -> dict[str, Any]:
    """Load every malicious file in a process of its own.

    Args:
        folder: an empty one to work in.
        every: try each so many-th file only.

    Returns:
        `tried`: how many files; `executed`: those whose canary file was made; `crashed`: those that ended in anything
        but an answer or a HaiError, such as a traceback, a hang or more than 3 GiB of memory.
    """
    folder = Path(folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "HAI_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "benchmarks.faults.malice", str(folder), str(every)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        return {"tried": 0, "executed": [], "crashed": [f"status {done.returncode}: {done.stderr[-2000:]}"]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    environment.pop("PYTHONPATH", None)
    for name, cwd in _shadows(folder):
        hai = [str(Path(sys.executable).with_name("hai")), "runs", "--storage", "."]
        ended = subprocess.run(hai, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_SECONDS)
        found["tried"] += 1
        if ended.returncode:
            found["crashed"].append(f"{name}: {ended.stderr[-500:]}")
        if (cwd / "canary").exists():
            found["executed"].append(name)
    return found


class _Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


class _Room:
    """A folder with a canary, and what its malicious files are made of."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self.canary = folder, folder / "canary"

    def pickled(self) -> bytes:
        return pickle.dumps(_Payload(self.canary), protocol=2)

    def torch_file(self) -> bytes:
        import torch

        buffer = io.BytesIO()
        torch.save({"model": _Payload(self.canary)}, buffer)
        return buffer.getvalue()

    def object_array(self) -> bytes:
        import numpy as np

        buffer = io.BytesIO()
        np.save(buffer, np.array([_Payload(self.canary)], dtype=object), allow_pickle=True)
        return buffer.getvalue()

    def npz(self) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("embedding.npy", self.object_array())
        return buffer.getvalue()

    def python(self) -> str:
        return f"import pathlib\npathlib.Path({str(self.canary)!r}).touch()\n"

    def save(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


def _deep_json() -> str:
    return '{"a":' * _DEEP + "1" + "}" * _DEEP


# -- trials ------------------------------------------------------------------------------------------------------------


def _checkpoints(rooms: Iterator[_Room]) -> Iterator[Trial]:
    """Checkpoints whose manifest vouches for the malicious file, loaded as a resume and as serving do."""
    import torch

    from hai.checkpoint.files import write_file
    from hai.checkpoint.format import FILES, MANIFEST, _manifest_bytes, load_checkpoint, write_checkpoint
    from hai.checkpoint.store import RunFolder
    from hai.trained import load_trained

    for name in (*FILES, MANIFEST):
        for form in ("pickled", "torch_file", "object_array", "deep"):
            room = next(rooms)
            step = room.folder / "run" / "checkpoints" / "step_00000003"
            write_checkpoint(step, {"w": torch.zeros(2)}, {}, {"step": 3})
            content = _deep_json().encode() if form == "deep" else getattr(room, form)()
            (step / name).write_bytes(content)
            if name != MANIFEST:
                known = {one: write_file(room.folder / one, [(step / one).read_bytes()]) for one in FILES}
                (step / MANIFEST).write_bytes(_manifest_bytes(3, False, known))
            room.save("run/run.yaml", _CONFIG)
            yield f"{form} as {name}, loaded", lambda step=step: load_checkpoint(step)
            yield f"{form} as {name}, served", lambda step=step: load_trained(str(step.parents[1]), torch.device("cpu"))

            def resume(room: _Room = room) -> None:
                run = RunFolder(str(room.folder), "run")
                run.newest_valid()
                run.close()

            yield f"{form} as {name}, resumed", resume
    room = next(rooms)
    room.save("elsewhere/evil.pt", room.torch_file())
    (room.folder / "step_00000004").symlink_to(room.folder / "elsewhere")
    yield "a linked checkpoint", lambda: load_checkpoint(room.folder / "step_00000004")


def _run_folders(rooms: Iterator[_Room]) -> Iterator[Trial]:
    from hai.checkpoint.owner import Owner
    from hai.checkpoint.remote import locate
    from hai.checkpoint.runs import list_runs
    from hai.checkpoint.store import RunFolder

    for name in ("owner.json", "summary.json", "best.json", "metrics.jsonl", "run.yaml", "flight.json"):
        for form in ("pickled", "deep"):
            room = next(rooms)
            room.save(f"run/{name}", room.pickled() if form == "pickled" else _deep_json())

            def look(room: _Room = room) -> None:
                list_runs(str(room.folder))
                owner = Owner(locate(str(room.folder), "run"), lambda _: None)
                owner.acquire()
                owner.release()
                RunFolder(str(room.folder), "run").close()

            yield f"{form} as {name}", look


def _configs(rooms: Iterator[_Room]) -> Iterator[Trial]:
    from hai.checkpoint.runs import list_runs
    from hai.config.load import config_from_yaml_text, load_config, show_config

    room = next(rooms)
    touch = f"touch {room.canary}"
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    merges = "a0: &a0 {x: 1}\n" + "".join(
        f'a{i}: &a{i} {{!!merge "<<": [{", ".join([f"*a{i - 1}"] * 9)}]}}\n' for i in range(1, 12)
    )
    texts = [
        f"seed: !!python/object/apply:os.system ['{touch}']",
        f"seed: !!python/object/apply:subprocess.check_output [['touch', '{room.canary}']]",
        f"seed: !!python/object/new:os.system ['{touch}']",
        f"? !!python/object/apply:os.system ['{touch}']\n: 1",
        "seed: !!python/name:os.system",
        "seed: !!python/module:this",
        f"seed: !!python/object/apply:pickle.loads [!!binary {base64.b64encode(room.pickled()).decode()}]",
        *(laughs, f"{laughs}seed: *a11", f"{laughs}data: {{sources: *a11}}"),
        *(merges, f"{merges}seed: *a11", merges.replace("!!merge ", "")),
        *("[" * _DEEP, "{a: " * _DEEP, "- " * _DEEP, "a: &a [*a]", "data: &a {sources: *a}", "seed: " + "9" * 10_000),
        *(
            "seed: !!int abc",
            "seed: !!float abc",
            "seed: !!timestamp abc",
            "seed: !!binary é",
            "? [1]\n: 2",
            "seed: !!bool x",
        ),
    ]
    for text in texts:
        shown = " ".join(text[:60].split())
        yield f"config {shown}", lambda text=text: show_config(config_from_yaml_text(text))
        yield f"override {shown}", lambda text=text: config_from_yaml_text(_CONFIG, "c.yaml", [f"seed={text}"])
        path = room.save("run/run.yaml", text)
        yield f"config file {shown}", lambda path=path, text=text: (path.write_text(text), load_config(path))
        yield f"listed {shown}", lambda path=path, text=text: (path.write_text(text), list_runs(str(path.parents[1])))


def _weights(rooms: Iterator[_Room]) -> Iterator[Trial]:
    """Published weights: as model.pretrained, and in folders of Hugging Face networks with code of their own."""
    from hai.config.load import config_from_yaml_text
    from hai.models import build_model
    from hai.models.scorer import build_scorer

    def load(*overrides: str) -> None:
        config = config_from_yaml_text(_CONFIG, "c.yaml", overrides)
        build_model(config.model, config.data.image_size, 1)

    def load_ranker(*overrides: str) -> None:
        config = config_from_yaml_text(_CONFIG.replace("detector", "ranker"), "c.yaml", overrides)
        build_scorer(config, config.data.image_size)

    load("model.name=timm:test_resnet")  # what is imported only now would count as time to answer
    for model in ("compact", "timm:test_resnet"):
        for name in (
            "evil.pt",
            "evil.pth",
            "model.safetensors",
            "weights/pytorch_model.bin",
            "weights/model.safetensors",
        ):
            for form in ("pickled", "torch_file", "npz"):
                room = next(rooms)
                path = room.save(name, getattr(room, form)())
                path = path.parent if path.parent != room.folder else path
                words = (f"model.name={model}", f"model.pretrained='{path}'")
                yield f"{form} as {model}'s {name}", lambda words=words: load(*words)
    for index in (
        '{"weight_map": {"a": "../evil.pt"}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": []}',
        "[]",
        _deep_json(),
    ):
        room = next(rooms)
        room.save("evil.pt", room.torch_file())
        room.save("weights/model.safetensors.index.json", index)
        words = f"model.pretrained='{room.folder / 'weights'}'"
        yield f"index {index[:30]}", lambda words=words: load(words)
    for config in (
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
        {"model_type": "dinov2", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}},
        {"model_type": "vit", "auto_map": {"AutoModelForImageClassification": "evil.Model"}, "hidden_size": "9" * 99},
        {"auto_map": {"AutoConfig": "evil--evil.Config"}},
        {
            "model_type": "vit",
            "torch_dtype": "__import__",
            "architectures": ["os.system"],
            "quantization_config": {"a": 1},
        },
    ):
        room = next(rooms)
        room.save("net/config.json", json.dumps(config))
        room.save("net/evil.py", room.python())
        room.save("net/modeling_evil.py", room.python())
        room.save(
            "net/preprocessor_config.json", json.dumps({"auto_map": {"AutoImageProcessor": "evil.P"}, "image_mean": 3})
        )
        room.save("net/tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}}))
        room.save("net/adapter_config.json", json.dumps({"auto_mapping": {"parent_library": "evil"}}))
        room.save("net/pytorch_model.bin", room.torch_file())
        for weights in ("true", "false"):
            words = (f"model.name='hf:{room.folder / 'net'}'", f"model.pretrained={weights}")
            yield f"network {str(config)[:60]} {weights}", lambda words=words: load(*words)
            yield f"encoder {str(config)[:60]} {weights}", lambda words=words: load_ranker(*words)
    room = next(rooms)
    room.save("net/config.json", _deep_json())
    yield "a deep config.json", lambda: load(f"model.name='hf:{room.folder / 'net'}'", "model.pretrained=false")


def _pictures(rooms: Iterator[_Room]) -> Iterator[Trial]:
    """Files that are programs, or formats that others read by running programs; none may count as a picture."""
    from hai.config.schema import DataConfig, SourceConfig
    from hai.data.images import decode_image
    from hai.data.manifest import build_manifest

    room = next(rooms)
    postscript = (
        f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {room.canary}) (w) file closefile\nshowpage\n"
    )
    dos_eps = b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + len(postscript).to_bytes(4, "little") + bytes(18)
    contents = {
        "svg": f"<svg xmlns='http://www.w3.org/2000/svg'><script>touch('{room.canary}')</script></svg>".encode(),
        "eps": postscript.encode(),
        "dos eps": dos_eps + postscript.encode(),
        "pdf": f"%PDF-1.4\n1 0 obj<</OpenAction<</S/Launch/F(touch {room.canary})>>>>endobj\n".encode(),
        "fits": b"SIMPLE  =                    T"
        + b" " * 50
        + b"BITPIX  =                    8".ljust(80)
        + b"END".ljust(2800),
        "pickle": room.pickled(),
        "npy": room.object_array(),
        "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(40),
        "mvg": f"push graphic-context\nimage over 0,0 0,0 'https://x\"|touch {room.canary}\"'\npop".encode(),
        "msl": b"<?xml version='1.0'?><image><read filename='/etc/passwd'/></image>",
        "xbm": b"#define x_width 9\n#define x_height 9\nstatic char x_bits[] = {0};",
        "html": f"<script>fetch('file://{room.canary}')</script>".encode(),
        "python": room.python().encode(),
        "elf": Path(sys.executable).resolve().read_bytes()[:5000],
    }
    for kind, content in contents.items():

        def refuse(content: bytes = content) -> None:
            decode_image(content)
            raise AssertionError("it was taken for a picture")

        yield f"{kind} as a picture", refuse
    for number, (kind, content) in enumerate(contents.items()):
        room.save(f"data/{'real' if number % 2 else 'fake'}/{kind}{_PICTURE_SUFFIXES[number % 5]}", content)

    def index() -> None:
        source = SourceConfig(path=str(room.folder / "data"))
        found = build_manifest(DataConfig(sources=[source], max_bad_fraction=1.0), 1, require=())
        assert not len(found), found.path

    yield "a folder of them", index


def _packs(rooms: Iterator[_Room]) -> Iterator[Trial]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hai.data.manifest import load_manifest
    from hai.data.pack import load_pack
    from hai.data.remote import local_copy

    for extension in ("arrow.py_extension_type", "pandas"):
        room = next(rooms)
        evil = {b"ARROW:extension:name": extension.encode(), b"ARROW:extension:metadata": room.pickled()}
        table = pa.table({"path": ["a"]}, schema=pa.schema([pa.field("path", pa.string(), metadata=evil)]))
        table = table.replace_schema_metadata({"labels": _deep_json(), "hai": _deep_json(), "pandas": room.pickled()})
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        for form, index in (("parquet", buffer.getvalue()), ("pickle", room.pickled()), ("array", room.object_array())):
            digest = hashlib.sha256(index).hexdigest()
            name = f"index-{digest[:16]}.parquet"
            entry = {"name": name, "bytes": len(index), "sha256": digest}
            room.save(f"{form}/{name}", index)
            room.save(f"{form}/pack.json", json.dumps({"format": 1, "index": entry, "parts": []}))
            yield f"a pack's index, {form} {extension}", lambda place=room.folder / form: load_pack(place, "s")
            yield f"a manifest, {form} {extension}", lambda place=room.folder / form / name: load_manifest(place)
    for text in (
        json.dumps({"format": 1, "index": {"name": "../../evil", "bytes": 1, "sha256": "0" * 64}, "parts": []}),
        _deep_json(),
        "[]",
        '{"format": 1, "index": {"name": 5}}',
    ):
        room = next(rooms)
        room.save("pack.json", text)
        yield f"pack.json {text[:30]}", lambda room=room: load_pack(room.folder, "s")
    for content in (_deep_json(), "[]", '{"a.png": []}'):
        room = next(rooms)
        room.save("given/a.csv", "path,label\n")

        def copy(content: str = content, room: _Room = room) -> None:
            made = local_copy(f"file://{room.folder}/given")
            (made / ".copied.json").write_text(content, encoding="utf-8")
            local_copy(f"file://{room.folder}/given")

        yield f".copied.json {content[:20]}", copy


def _caches(rooms: Iterator[_Room]) -> Iterator[Trial]:
    """The memories under HAI_CACHE: what another user of the machine, or an older version, may have put there."""
    import numpy as np
    from PIL import Image

    from hai.config.schema import DataConfig, RunConfig, SourceConfig
    from hai.data.content import check_images, stat_files
    from hai.data.dataset import ImageDataset
    from hai.data.duplicates import perceptual_hashes
    from hai.data.manifest import build_manifest
    from hai.embeddings.store import EmbeddingKey, EmbeddingStore
    from hai.paths import cache_folder

    room = next(rooms)
    files = []
    for number in range(2):
        path = room.save(f"data/{('real', 'fake')[number]}/{number}.png", b"")
        Image.new("RGB", (40, 40), (90 * number, 9, 9)).save(path)
        files.append(str(path))

    def measure() -> None:
        found = check_images(files, stat_files(files), 40.0)
        assert found.width.tolist() == [40, 40], "a malicious memory was believed"

    for form in ("pickle", "blobs", "view"):

        def remembered(form: str = form) -> None:
            memory = cache_folder() / "content.sqlite"
            memory.parent.mkdir(parents=True, exist_ok=True)
            memory.unlink(missing_ok=True)
            if form == "pickle":
                memory.write_bytes(room.pickled())
            else:
                connection = sqlite3.connect(memory)
                made = "TABLE content_1 (path TEXT PRIMARY KEY, facts BLOB, error TEXT, checksum INTEGER)"
                view = f"VIEW content_1 AS SELECT '{files[0]}' path, load_extension('x') facts, '' error, 0 checksum"
                connection.execute(f"CREATE {made if form == 'blobs' else view}")
                if form == "blobs":
                    rows = [(file, room.pickled(), room.pickled(), 0) for file in files]
                    connection.executemany("INSERT INTO content_1 VALUES (?, ?, ?, ?)", rows)
                connection.commit()
                connection.close()
            measure()

        yield f"content.sqlite: {form}", remembered

    def looked_alike() -> None:
        (cache_folder() / "perceptual-1.npy").write_bytes(room.object_array())
        keys = np.zeros((1, 32), dtype=np.uint8)
        perceptual_hashes(keys, lambda _: Path(files[0]).read_bytes(), 40.0)

    yield "perceptual-1.npy", looked_alike

    def decoded() -> None:
        source = SourceConfig(path=str(room.folder / "data"))
        data = DataConfig(sources=[source], image_size=32, cache_decoded="on")
        manifest = build_manifest(data, 1, require=())
        whole = [ImageDataset(manifest, RunConfig(data=data), None).load_image(row).copy() for row in range(2)]
        for name in ("pixels", "index"):
            for path in (cache_folder() / "decoded").rglob(name):
                path.write_bytes(room.pickled())
        dataset = ImageDataset(manifest, RunConfig(data=data), None)
        assert all((dataset.load_image(row) == whole[row]).all() for row in range(2)), "a malicious cache was believed"

    yield "decoded images", decoded
    for form in ("pickled", "torch_file", "npz"):

        def embedded(form: str = form) -> None:
            store = EmbeddingStore(
                str(room.folder / form), EmbeddingKey("r", 32, "resize", "cls", "fp32", "float32"), 4
            )
            content = getattr(room, form)()
            for name in (hashlib.sha256(content).hexdigest() + ".safetensors", "0" * 64 + ".safetensors", "index.json"):
                path = Path(store.place) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            assert store.missing(np.zeros((1, 32), dtype=np.uint8)).all()

        yield f"embedding shards: {form}", embedded


def _shadows(folder: Path) -> Iterator[tuple[str, Path]]:
    """Run folders with modules that Python would import if it looked there."""
    names = ("sitecustomize", "usercustomize", "json", "yaml", "typer", "rich", "hai", "numpy")
    room = _Room(folder / "shadows")
    for name in names:
        room.save(f"{name}.py", room.python())
        room.save(f"run/{name}.py", room.python())
    room.save("evil.pth", f"import os; os.system('touch {room.canary}')\n")
    room.save("run/summary.json", "{}")
    yield "modules in a run folder", room.folder


def _give_up(*_: Any) -> None:
    raise TimeoutError(f"no answer within {_PATIENCE} s")


def _main(folder: Path, every: int) -> None:
    import torch

    torch.set_num_threads(1)
    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, mapped + _MEMORY))
    signal.signal(signal.SIGALRM, _give_up)
    made: list[_Room] = []

    def new_rooms() -> Iterator[_Room]:
        while True:
            made.append(_Room(folder / "rooms" / str(len(made))))
            yield made[-1]

    rooms = new_rooms()
    tried, executed, crashed = 0, list[str](), list[str]()
    count = 0
    for trials in (_checkpoints, _run_folders, _configs, _weights, _pictures, _packs, _caches):
        for name, load in trials(rooms):
            count += 1
            if count % every:
                continue
            tried += 1
            signal.alarm(_PATIENCE)
            try:
                load()
            except HaiError:
                pass
            except BaseException as error:  # its text may be what explodes
                crashed.append(
                    f"{name}: {type(error).__name__} at {''.join(traceback.format_tb(error.__traceback__)[-2:])}"
                )
            finally:
                signal.alarm(0)
            for room in made:
                if room.canary.exists():
                    executed.append(name)
                    room.canary.unlink()
    print(json.dumps({"tried": tried, "executed": executed, "crashed": crashed}))


if __name__ == "__main__":
    _main(Path(sys.argv[1]), int(sys.argv[2]))
