"""What the notebooks' cells call: packages, logins, data, the commands with a live view, pages, and the end.

Commands run as `hai` does at home, in a process of their own: new code needs no restart, a training leaves no memory
taken, and the packages that this kernel has loaded do not matter. This module loads nothing but the standard library
until its functions are called, because it is what installs the rest.
"""

from __future__ import annotations

import codecs
import fcntl
import html
import os
import pty
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hai
from hai.errors import ConfigError, DataError, HaiError
from hai.live import NotebookTerminal
from hai.masking import without_secrets
from hai.packages import KEPT, install_missing, installed_versions, lacking, pip_install, requirements_of

if TYPE_CHECKING:
    pass

__all__ = [
    "ROOT",
    "bring",
    "finish",
    "install",
    "is_colab",
    "log_in",
    "place",
    "run",
    "show_page",
    "show_tensorboard",
]


def _root() -> Path:
    code = Path(hai.__file__).resolve().parents[1]
    return code if (code / "pyproject.toml").is_file() else Path.cwd()


ROOT: Final = _root()
"""The folder of the code, which relative paths start from; of an installed package, where the kernel started."""

_DRIVE: Final = "drive/MyDrive"
_WIDTH: Final = 100
_REDRAW_SECONDS: Final = 0.25
_COMMAND: Final = (
    "import fcntl, signal, sys, termios; signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "fcntl.ioctl(0, termios.TIOCSCTTY, 0); sys.argv[0] = 'hai'; from hai.cli import main; main()"
)
"""Ends with its kernel, which closes the terminal, even where `nohup` started the notebook's server."""


def is_colab() -> bool:
    """Tell whether this kernel runs in Google Colab."""
    return "COLAB_RELEASE_TAG" in os.environ


# Packages


def install(*extras: str, in_kernel: bool = False) -> None:
    """Install what the code at ROOT needs and this machine lacks; what is there keeps its version, torch first of all.

    Args:
        extras: optional parts of hai, such as "sweep".
        in_kernel: the notebook also imports hai's heavy parts itself, as `hai.tune` does, so that a package which was
            renewed must not be loaded in its old version.

    Raises:
        ConfigError: no set of packages fits what is installed, or the session has to be restarted once.
    """
    os.environ["PYTHONPATH"] = _python_path()
    before = installed_versions()
    wanted = lacking(requirements_of(ROOT, extras), before)
    if wanted:
        install_missing(wanted, before)
    if shutil.which("hai") is None and (ROOT / "pyproject.toml").is_file():
        pip_install("--no-deps", "-e", str(ROOT))
    after = installed_versions()
    moved = [f"{name} {before[name]} -> {after.get(name)}" for name in KEPT if before.get(name) != after.get(name)]
    if moved and "torch" in before:
        raise ConfigError(
            f"packages: {', '.join(moved)} changed, which must not be; start a new session, run all again"
        )
    new = [
        f"{name} {version}" for name, version in sorted(after.items()) if before.get(name) != version and name != "hai"
    ]
    print(f"installed {', '.join(new)}" if new else "nothing to install", end="")
    print(f"; torch {after.get('torch')} as it was; hai {hai.__version__} from {ROOT}")
    pillow = sys.modules.get("PIL")
    if in_kernel and pillow is not None and pillow.__version__ != after.get("pillow"):
        raise ConfigError(
            "this session has loaded the old Pillow already; choose Runtime > Restart session and run all, once"
        )


# Places and logins


def place(storage: str) -> str:
    """Return where runs are kept: what the form says, and outside Colab `runs/` instead of a folder on its Drive.

    A relative path starts from the folder of the code, but in Colab, where that is fetched anew, from beside it.
    """
    if "://" in storage:
        return storage
    if not storage or (not is_colab() and storage.startswith("/content/")):
        storage = "runs"
    return str((Path.cwd() if is_colab() else ROOT) / Path(storage).expanduser())


def log_in(source: str, storage: str = "", settings: str = "") -> None:
    """Find the logins that a run wants and hand them to its commands; nothing secret is printed or kept.

    Kaggle: Colab's secrets, what Kaggle's own tools use, kaggle.json on the Drive, or a dialog to upload it. Google
    Cloud: Colab's dialog. Weights & Biases: Colab's secret WANDB_API_KEY.

    Args:
        source: where the data are.
        storage: where runs are kept.
        settings: the run's overrides.

    Raises:
        ConfigError: Kaggle is asked and there is no login.
    """
    from hai.data.kaggle import is_kaggle

    if is_kaggle(source):
        _log_in_to_kaggle()
    if "wandb" in settings and is_colab() and not os.environ.get("WANDB_API_KEY"):
        from google.colab import userdata

        with suppress(Exception):  # there is none, or the notebook may not read it: wandb says what it lacks
            os.environ["WANDB_API_KEY"] = userdata.get("WANDB_API_KEY")
    if "gs://" in f"{source} {storage} {settings}" and is_colab():
        from google.colab import auth

        auth.authenticate_user()


def _log_in_to_kaggle() -> None:
    from hai.data.kaggle import find_login, login_help

    if find_login() is None and is_colab():
        target = Path("~/.kaggle/kaggle.json").expanduser()
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.touch(0o600)
        target.chmod(0o600)
        try:
            _bring_kaggle_json(target)
        finally:
            if not target.stat().st_size:
                target.unlink()
    login = find_login()
    if login is None:
        raise ConfigError(f"Kaggle: no login was found; {login_help()}")
    known = {"KAGGLE_API_TOKEN": login.token, "KAGGLE_USERNAME": login.username, "KAGGLE_KEY": login.key}
    if login.origin.startswith("Colab"):  # which answers the kernel only
        os.environ.update({name: value for name, value in known.items() if value})
    print(f"Kaggle: login from {login.origin}")


def _bring_kaggle_json(target: Path) -> None:
    """Copy what lies on the Drive, or ask for it."""
    for name in ("kaggle.json", ".kaggle/kaggle.json", "kaggle/kaggle.json"):
        file = Path.cwd() / _DRIVE / name
        if file.is_file():
            target.write_bytes(file.read_bytes())
            return
    from google.colab import files

    print("kaggle.json, please: Kaggle > Settings > API > Create New Token downloads it")
    with suppress(ValueError):  # nothing was chosen
        files.upload_file(str(target))


# Data, commands, pages


def bring(source: str, inside: str = "") -> str:
    """Bring data to this machine's disk, once, and return where they are.

    Args:
        source: `demo`, or what `hai data fetch` takes: kaggle:OWNER/DATASET, a URL, a folder or archive on the Drive.
        inside: the folder or table in it to train on; empty: all of it.

    Raises:
        HaiError: it cannot be had.
    """
    from hai.data.kaggle import is_kaggle
    from hai.paths import is_mount

    folder = (Path.cwd() if is_colab() else ROOT) / "data" / re.sub(r"[^\w.-]+", "-", source).strip("-.")
    if source == "demo":
        run("data", "demo", "--output", str(folder))
    elif "://" in source or is_kaggle(source) or is_mount(ROOT / source):
        run("data", "fetch", source, "--to", str(folder))
    else:
        folder = ROOT / Path(source).expanduser()
    target = folder / inside
    if not target.exists():
        names = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else []
        raise DataError(f"{target}: is not there; {folder} holds: {', '.join(names) or 'nothing'}")
    return str(target)


def run(*words: str) -> None:
    """Run `hai` with these words, as on a command line, and show live what it prints.

    Stopping the cell asks the command to save and end, as Ctrl-C does; stopping it three times ends it at once.

    Raises:
        HaiError: it did not end well; what it printed says why.
    """
    shown = without_secrets(shlex.join(["hai", *words]))
    terminal = NotebookTerminal()
    terminal.write(f"$ {shown}\r\n")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, _WIDTH, 0, 0))
    environment = {
        **os.environ,
        "PYTHONPATH": _python_path(),
        "TERM": "xterm",
        "NO_COLOR": "1",
        "PYTHONUNBUFFERED": "1",
    }
    environment.pop("MPLBACKEND", None)  # the kernel's draws into cells
    try:
        with subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *words],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment, start_new_session=True,
        ) as process:  # fmt: skip
            _follow(process, ours, terminal)
    finally:
        os.close(theirs)
        os.close(ours)
    if process.returncode == 3:
        raise HaiError("stopped, with everything saved; run this cell again to go on")
    if process.returncode:
        raise HaiError(
            f"hai {words[0]} ended with status {process.returncode}; mend what it says above and run this cell again"
        )


def _python_path() -> str:
    """Return the PYTHONPATH of commands and Ray's workers, which has this code first."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", str(ROOT))]
    return os.pathsep.join([str(ROOT), *others])


def _follow(process: subprocess.Popen[bytes], stream: int, terminal: NotebookTerminal) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        try:
            ended = process.poll() is not None
            while select.select([stream], [], [], 0.0 if ended else _REDRAW_SECONDS)[0]:
                terminal.write(decoder.decode(os.read(stream, 1 << 16)))
                if not ended:
                    break
            terminal.flush()
            if ended:
                return
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def show_page(page: str | Path, height: int = 800) -> None:
    """Show a report in the notebook.

    Args:
        page: a file, or the URL of one on a storage.
        height: in pixels.

    Raises:
        DataError: there is none.
    """
    from IPython.display import HTML, display

    from hai.checkpoint.reach import reach
    from hai.checkpoint.remote import open_remote

    text = str(page)
    if "://" in text:
        folder, _, name = text.rpartition("/")
        remote: Any = open_remote(folder)
        content = reach(folder, lambda: remote.read(name))
    else:
        file = ROOT / text
        content = file.read_bytes() if file.is_file() else None
    if content is None:
        raise DataError(f"{text}: there is no such page yet; run the cells above")
    inner = html.escape(content.decode("utf-8"), quote=True)
    display(HTML(f'<div><iframe srcdoc="{inner}" style="width:100%;height:{height}px;border:0"></iframe></div>'))


def show_tensorboard(storage: str, name: str) -> None:
    """Show TensorBoard of a run in the notebook; it draws what comes while the run goes on."""
    from IPython import get_ipython

    from hai.checkpoint.records import TENSORBOARD
    from hai.checkpoint.remote import locate

    folder = locate(storage, name).path / TENSORBOARD
    folder.mkdir(parents=True, exist_ok=True)
    program = Path(sys.executable).with_name("tensorboard")
    if program.exists():  # a kernel's PATH may lack the folder of its Python
        os.environ.setdefault("TENSORBOARD_BINARY", str(program))
    shell: Any = get_ipython()
    shell.run_line_magic("load_ext", "tensorboard")
    shell.run_line_magic("tensorboard", f"--logdir {shlex.quote(str(folder))}")


def finish(disconnect: bool = False) -> None:
    """Wait until the Drive has sent everything on, and give the machine back if asked.

    Args:
        disconnect: end the session, which otherwise costs on until Colab ends it.
    """
    if not is_colab():
        print("done; this is not Colab, nothing is to be unmounted")
        return
    from google.colab import drive, runtime

    if (Path.cwd() / _DRIVE).is_dir():
        drive.flush_and_unmount()
        print("the Drive has everything; Runtime > Run all mounts it again")
    if disconnect:
        runtime.unassign()
