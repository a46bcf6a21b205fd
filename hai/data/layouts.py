"""Raw data sets as they are downloaded, recognised by their folders: every video and image with label, group, origin.

```
FaceForensics++  original_sequences/{youtube,actors}/c23/videos/071.mp4
                 manipulated_sequences/Deepfakes/c23/videos/071_054.mp4       or original/ beside Deepfakes/
DFDC             metadata.json beside the videos, one or one for each part
Celeb-DF         Celeb-real/  YouTube-real/  Celeb-synthesis/  List_of_testing_videos.txt
generic          real/ and fake/, also under train/ val/ test/; in fake/ a folder for each manipulation, in real/ one
                 for each source, or for each person where there are more than 8
```

Where frames or crops of a video lie in a folder of its name, or begin with its name, they are recognised as well.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal, NamedTuple

from hai.data.archives import shown
from hai.data.folders import VIDEO_SUFFIXES, class_folders, visible, walk
from hai.data.identities import NO_LISTS, Clip, Kind, identify, join_identities, join_namesakes, load_official
from hai.data.images import IMAGE_SUFFIXES
from hai.errors import DataError
from hai.types import LABELS, SPLITS

__all__ = ["MANIPULATIONS", "Folders", "RawFile", "RawSet", "is_layout", "list_raw"]

MANIPULATIONS: Final = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter", "DeepFakeDetection")
"""Folders that name how their fakes were made, in any case of letters."""

_MANIPULATION: Final = {name.lower(): name for name in MANIPULATIONS}
_VARIANTS: Final = frozenset(("raw", "c0", "c23", "c40", "hq", "lq"))
_BESIDE: Final = frozenset(("masks", "mask", "models", "landmarks"))
"""Folders of FaceForensics++ and of tools for it that hold no pictures of people."""

_CELEB: Final = {"celeb-real": 0, "youtube-real": 0, "celeb-synthesis": 1}
_DFDC_LABELS: Final = {"real": 0, "fake": 1}
_DFDC_SPLITS: Final = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}
_OFFICIAL: Final = {
    "faceforensics": "the official train.json, val.json and test.json are",
    "celeb-df": "the official List_of_testing_videos.txt is",
}
_MANY_PARTS: Final = 10
_MOST_SOURCES: Final = 8
_MOST_WRAPPERS: Final = 8
_METADATA: Final = "metadata.json"


Folders = Literal["auto", "sources", "people"]
"""What the folders of videos in `real/` are: people if there are more than 8 of them, or as the user says."""


@dataclass(frozen=True)
class RawFile:
    """A video or an image of a raw data set."""

    path: Path
    label: int
    """0 real, 1 fake."""
    source: str
    """The manipulation or the part of the data set; "" if there is but one."""
    group: str
    """What must stay in one split: everybody who is connected with the people in it."""
    split: str
    """train, val or test where an official list or a folder says so; "" otherwise."""
    original: str
    """Path, relative to the root, of the real file that it was made from; "" if unknown."""
    kind: Kind
    video: str = ""
    """Which images are of one video; "" for a video file and for an image that stands alone."""


@dataclass(frozen=True)
class RawSet:
    """All files of a raw data set, sorted by path."""

    layout: str
    """faceforensics, dfdc, celeb-df or generic."""
    root: Path
    """Where the layout begins; a lone folder around everything is stepped into."""
    files: list[RawFile]
    problems: list[str]
    """Lines on what does not fit together; nothing of it prevents the use of `files`."""


def list_raw(
    root: Path, *, split_files: Path | None = None, kind: Kind | None = None, folders: Folders = "auto"
) -> RawSet:
    """List a raw data set in whichever layout it comes.

    Args:
        root: its folder.
        split_files: folder with train.json, val.json and test.json of FaceForensics++ or List_of_testing_videos.txt of
            Celeb-DF; default: the data's own folder, or `splits/` in it.
        kind: only videos or only images; default: both, but no images of videos that are there themselves.
        folders: what the folders of videos in `real/` are, where the data are in no other layout.

    Raises:
        DataError: it is no folder, in no known layout or empty, or the split files cannot be understood.
    """
    if not root.is_dir():
        raise DataError(f"{root}: {'is not a folder' if root.exists() else 'there is no such folder'}")
    root, layout = _recognised(root)
    clips, problems = _list_generic(root, folders) if layout.list_clips is None else layout.list_clips(root)
    has_videos = any(clip.kind == "video" for clip in clips)
    clips = [clip for clip in clips if kind in (None, clip.kind)]
    if kind is None:
        clips, lines = _without_frames(clips)
        problems += lines
    if not clips:
        wanted = f"{kind}s" if kind else "videos or images"
        hint = "; videos become face crops with `hai preprocess`" if has_videos else ""
        raise DataError(f"{root}: holds no {wanted} in the folders of its layout, {layout.shown}{hint}")
    clips.sort(key=lambda clip: clip.path)
    lists = [split_files] if split_files else [root, root / "splits", root / "dataset" / "splits"]
    try:
        official = load_official(lists, wanted=split_files is not None)
    except DataError as error:
        if split_files or layout.name in _OFFICIAL:
            raise
        official = NO_LISTS
        problems.append(f"{error}; it was left out as no list of splits")
    if layout.name in _OFFICIAL and not official.files:
        problems.append(f"{root}: {_OFFICIAL[layout.name]} not here; files are divided by their people instead")
    groups, originals, lines = join_identities(clips, official)
    files = [
        RawFile(root / clip.path, clip.label, clip.source, group, clip.split, original, clip.kind, _video(clip))
        for clip, group, original in zip(clips, groups, originals, strict=True)
    ]
    return RawSet(layout.name, root, files, problems + lines)


def _video(clip: Clip) -> str:
    return "/".join(filter(None, (LABELS[clip.label], clip.source, clip.variant, clip.name))) if clip.frame else ""


def is_layout(root: Path) -> bool:
    """Say whether a folder is in the layout of a known data set; `real/` and `fake/` do not count."""
    return next((layout.name for layout in _LAYOUTS if layout.fits(root)), "generic") != "generic"


class _Layout(NamedTuple):
    name: str
    shown: str
    fits: Callable[[Path], bool]
    list_clips: Callable[[Path], tuple[list[Clip], list[str]]] | None
    """None where the user has a say in what folders mean."""


def _recognised(root: Path) -> tuple[Path, _Layout]:
    """Find the layout of a folder, inside lone folders too."""
    at = root
    for _ in range(_MOST_WRAPPERS):
        for layout in _LAYOUTS:
            if layout.fits(at):
                return at, layout
        inner = [item for item in visible(at) if item.is_dir()]
        if len(inner) != 1:
            break
        at = inner[0]
    known = [f"{item.name} ({layout.name})" for item in inner for layout in _LAYOUTS if layout.fits(item)]
    if known:
        raise DataError(f"{root}: holds several data sets; name one of them: {', '.join(known)}")
    found = ", ".join(item.name for item in visible(at)[:8]) or "nothing"
    forms = "; ".join(f"{layout.name}: {layout.shown}" for layout in _LAYOUTS)
    raise DataError(f"{root}: in no known layout (found: {found}); known are {forms}")


def _without_frames(clips: list[Clip]) -> tuple[list[Clip], list[str]]:
    """Leave out the images of videos that are there themselves."""
    videos = {(clip.label, clip.source, clip.variant, clip.name) for clip in clips if clip.kind == "video"}
    kept = [
        clip
        for clip in clips
        if clip.kind == "video" or (clip.label, clip.source, clip.variant, clip.name) not in videos
    ]
    left_out = len(clips) - len(kept)
    return kept, [f"{left_out} images of videos that are here too were left out"] if left_out else []


def _pictures(folder: Path, root: Path, others: Counter[str]) -> Iterator[tuple[PurePosixPath, Kind]]:
    """Yield the path relative to the root, and the kind, of each video and image below a folder; count other files."""
    for current, files in walk(folder):
        inside = PurePosixPath(Path(current).relative_to(root).as_posix())
        if _BESIDE.intersection(part.lower() for part in inside.parts):
            continue
        for file in files:
            suffix = PurePosixPath(file).suffix.lower()
            if suffix in VIDEO_SUFFIXES:
                yield inside / file, "video"
            elif suffix in IMAGE_SUFFIXES:
                yield inside / file, "image"
            else:
                others[suffix or "no suffix"] += 1


def _clip(path: PurePosixPath, kind: Kind, label: int, source: str, variant: str = "") -> Clip:
    """Describe a file whose folder or stem begins with its video's name, by its data set's scheme."""
    clip = Clip(str(path), label, source, path.stem, kind, variant=variant)
    if kind == "image":
        clip.frame, clip.name = path.name, path.parent.name
        if not identify(clip, whole=False):
            clip.name = path.stem
    if not clip.people and not identify(clip, whole=False):
        clip.people = (str(path),)
    return clip


def _strays(clips: list[Clip], others: Counter[str], scheme: str) -> list[str]:
    """Say which files are not named by the scheme, and how many are no pictures."""
    lines = [
        f"{clip.path}: not named {scheme}; nothing is known of its people, it stands alone"
        for clip in clips
        if clip.people == (clip.path,)
    ]
    return lines + _unknown(others)


def _unknown(others: Counter[str]) -> list[str]:
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    return [f"{others.total()} files are neither videos nor images and were left out ({kinds})"] if others else []


# -- FaceForensics++ ---------------------------------------------------------------------------------------------------


def _faceforensics_folders(root: Path) -> list[tuple[int, str, Path]]:
    """Return label, source and folder of each part, as the download script lays them out or flat as mirrors do."""
    parts: list[tuple[int, str, Path]] = []
    folders = {item.name.lower(): item for item in visible(root) if item.is_dir()}
    for name, label in (("original_sequences", 0), ("manipulated_sequences", 1)):
        for item in visible(folders[name]) if name in folders else ():
            if item.is_dir():
                source = _MANIPULATION.get(item.name.lower(), item.name)
                parts.append((label, "" if label == 0 and source.lower() != "actors" else source, item))
    if not parts and "original" in folders:
        fakes = [(1, _MANIPULATION[name], folder) for name, folder in folders.items() if name in _MANIPULATION]
        parts = [(0, "", folders["original"]), *fakes] if fakes else []
    return parts


def _list_faceforensics(root: Path) -> tuple[list[Clip], list[str]]:
    others: Counter[str] = Counter()
    clips: list[Clip] = []
    for label, source, folder in _faceforensics_folders(root):
        for path, kind in _pictures(folder, root, others):
            variant = next((part.lower() for part in path.parts if part.lower() in _VARIANTS), "")
            clips.append(_clip(path, kind, label, source, variant))
    return clips, _strays(clips, others, "071 (real) or 071_054 (fake: target_source)")


# -- Celeb-DF ----------------------------------------------------------------------------------------------------------


def _celeb_folders(root: Path) -> list[tuple[int, Path]]:
    found = [(_CELEB.get(item.name.lower(), -1), item) for item in visible(root) if item.is_dir()]
    return [(label, item) for label, item in found if label >= 0]


def _list_celeb(root: Path) -> tuple[list[Clip], list[str]]:
    others: Counter[str] = Counter()
    clips: list[Clip] = []
    for label, folder in _celeb_folders(root):
        source = "" if label else folder.name
        clips += [_clip(path, kind, label, source) for path, kind in _pictures(folder, root, others)]
    return clips, _strays(clips, others, "id0_0000 (real), id0_id1_0000 (fake) or 00000 (YouTube-real)")


# -- DFDC --------------------------------------------------------------------------------------------------------------


def _dfdc_tables(root: Path) -> list[Path]:
    """Find each part's metadata.json, at most two folders down."""
    return [
        table for depth in ("", "*/", "*/*/") for table in sorted(root.glob(f"{depth}{_METADATA}")) if _is_dfdc(table)
    ]


def _is_dfdc(table: Path) -> bool:
    try:
        with open(table, encoding="utf-8", errors="replace") as file:
            start = file.read(400)
    except OSError:
        return False
    return start.lstrip().startswith("{") and '"label"' in start and '.mp4"' in start


def _list_dfdc(root: Path) -> tuple[list[Clip], list[str]]:
    others: Counter[str] = Counter()
    clips: list[Clip] = []
    problems: list[str] = []
    tables = _dfdc_tables(root)
    for table in tables:
        named = _read_metadata(table, problems)
        part = "" if table.parent == root else table.parent.relative_to(root).as_posix()
        found: set[str] = set()
        for path, kind in _pictures(table.parent, root, others):
            name = path.stem if kind == "video" else path.parent.name
            name = name if name in named else path.stem.split("_")[0]
            if name not in named:
                problems.append(f"{path}: not in {table.relative_to(root)}, so its label is unknown; left out")
                continue
            label, original, split = named[name]
            found.add(name)
            # Actors are not named and appear in several videos of a part: with enough parts, a part stays together.
            people = (part,) if len(tables) >= _MANY_PARTS else (original or name,)
            frame = path.name if kind == "image" else ""
            clips.append(Clip(str(path), label, "", name, kind, frame, part, people, original, split))
        missing = sorted(set(named) - found)
        if missing:
            shown_names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            problems.append(f"{table.relative_to(root)}: names {len(missing)} videos that are not here: {shown_names}")
    if {clip.split for clip in clips} == {"train"}:  # the contest's files all say so: there is no official division
        for clip in clips:
            clip.split = ""
    others[".json"] -= len(tables)
    return clips, problems + _unknown(+others)


def _read_metadata(table: Path, problems: list[str]) -> dict[str, tuple[int, str, str]]:
    """Read label, original's name or "", and split or "" of each video of a part, by its name without suffix."""
    try:
        entries = json.loads(table.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{table}: cannot be read as JSON ({error}); was it cut off? download it again") from None
    named: dict[str, tuple[int, str, str]] = {}
    for file, entry in entries.items():
        values: dict[str, Any] = entry if isinstance(entry, dict) else {}
        label = _DFDC_LABELS.get(str(values.get("label")).lower())
        if label is None:
            problems.append(f"{table}: {shown(file)}: label = {values.get('label')!r}; must be REAL or FAKE; left out")
            continue
        original = values.get("original")
        stem = PurePosixPath(original).stem if label and isinstance(original, str) else ""
        named[PurePosixPath(file).stem] = label, stem, _DFDC_SPLITS.get(str(values.get("split")).lower(), "")
    return named


# -- real/ and fake/ ---------------------------------------------------------------------------------------------------


def _list_generic(root: Path, folders: Folders) -> tuple[list[Clip], list[str]]:
    """List real/ and fake/: names of known schemes tell people, other videos of one name belong together."""
    others: Counter[str] = Counter()
    found: list[tuple[Clip, list[str]]] = []
    for split, label, folder in class_folders(root, LABELS):
        for path, kind in _pictures(folder, root, others):
            within = list((root / path).relative_to(folder).parts[:-1])
            made = next((part for part in within if part.lower() in _MANIPULATION), "")
            if made:
                within.remove(made)
            source = _MANIPULATION.get(made.lower(), "")
            clip = Clip(str(path), label, source, path.stem, kind, split=SPLITS[split] if split >= 0 else "")
            if kind == "image" and within:  # a folder of images is a video
                clip.name, clip.frame = within[-1], path.name
            found.append((clip, within))
    depth, lines = _person_depth([within for clip, within in found if not clip.label and not clip.frame], folders)
    persons = {within[depth] for clip, within in found if not clip.label and not clip.frame and len(within) > depth}
    plain: list[str] = []
    for clip, within in found:
        alone = clip.kind == "image" and not within
        name = clip.path if alone else "/".join(within if clip.frame else [*within, clip.name])
        person = next((part for part in within if part in persons), "") if clip.kind == "video" else ""
        if clip.kind == "video" and within and not clip.source and within[0] != person:
            clip.source = within[0]
            plain.append(name.removeprefix(f"{within[0]}/"))
        else:
            plain.append(name)
        if not identify(clip, whole=True):
            clip.name, clip.people = name, (person or name,)
        elif person:
            clip.people += (person,)
    clips = [clip for clip, _ in found]
    join_namesakes(clips, plain)
    return clips, lines + _unknown(others)


def _person_depth(folders: list[list[str]], mode: Folders) -> tuple[int, list[str]]:
    """Find which level of folders in real/ names people: the first with more of them than there are kinds of sources.

    Args:
        folders: of each real video, from real/ down.
        mode: what the user says of the first level.

    Returns:
        The level, from 0, or one that no video reaches; and what is to be said about it.
    """
    deepest = max(map(len, folders), default=0)
    if mode == "people":
        return 0, []
    for depth in range(1 if mode == "sources" else 0, deepest):
        if len({tuple(parts[: depth + 1]) for parts in folders if len(parts) > depth}) > _MOST_SOURCES:
            return depth, []
    first = sorted({parts[0] for parts in folders if parts})
    if mode == "sources" or len(first) < 2:
        return deepest, []
    return deepest, [
        f"real/: its {len(first)} folders ({', '.join(map(shown, first))}) count as sources; if each holds one person, "
        "say --folders people, or the same person may be in training and validation"
    ]


_LAYOUTS: Final = (
    _Layout(
        "faceforensics",
        "original_sequences/ and manipulated_sequences/, or original/ and Deepfakes/",
        lambda root: bool(_faceforensics_folders(root)),
        _list_faceforensics,
    ),
    _Layout("celeb-df", "Celeb-real/ and Celeb-synthesis/", lambda root: bool(_celeb_folders(root)), _list_celeb),
    _Layout("generic", "real/ and fake/", lambda root: any(class_folders(root, LABELS)), None),
    _Layout("dfdc", f"videos beside their {_METADATA}", lambda root: bool(_dfdc_tables(root)), _list_dfdc),
)
