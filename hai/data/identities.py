"""Who is in a video, read from its name, and what must therefore stay in one split."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np

from hai.data.archives import shown
from hai.data.splits import linked
from hai.errors import DataError
from hai.types import LABELS, SPLITS

__all__ = [
    "NO_LISTS",
    "Clip",
    "Kind",
    "Official",
    "identify",
    "join_groups",
    "join_identities",
    "join_namesakes",
    "load_official",
]

_CELEB_LIST: Final = "List_of_testing_videos.txt"
_NAMED: Final = 5
"""How many of many things a line names."""


Kind = Literal["video", "image"]


@dataclass
class Clip:
    """A video file, or an image of a video, on the way to a `RawFile`."""

    path: str
    """Relative to the data's root, / between parts."""
    label: int
    source: str
    """The manipulation or the part of the data set; "" if there is but one."""
    name: str
    """Of the video within its label and source."""
    kind: Kind
    frame: str = ""
    """File name of an image within its video; "" for a video."""
    variant: str = ""
    """Which of several copies of the data set it belongs to, such as a compression; made from videos of the same."""
    people: tuple[str, ...] = ()
    """Keys of what connects videos: the person seen first, then the one whose face was put in; a DFDC part."""
    made_from: str = ""
    """`name` of the real video."""
    split: str = ""


class _Rule(NamedTuple):
    """How a data set names its videos; templates expand the match of the pattern."""

    label: int
    pattern: re.Pattern[str]
    people: tuple[str, ...]
    made_from: str = ""


_RULES: Final = (
    # FaceForensics++: TARGET_SOURCE; the folder "dataset" of its repository explains both schemes.
    _Rule(1, re.compile(r"(\d{3})_(\d{3})(?!\d)"), (r"\1", r"\2"), r"\1"),
    # Google's DeepFakeDetection: TARGET_SOURCE__SCENE__EXPERIMENT.
    _Rule(1, re.compile(r"(\d\d)_(\d\d)__(.+?)__[0-9A-Z]{8}"), (r"actor\1", r"actor\2"), r"\1__\3"),
    _Rule(0, re.compile(r"(\d\d)__[^.]+"), (r"actor\1",)),
    # Celeb-DF: idTARGET_idSOURCE_VIDEO.
    _Rule(1, re.compile(r"(id\d+)_(id\d+)_(\d{4})(?!\d)"), (r"\1", r"\2"), r"\1_\3"),
    _Rule(0, re.compile(r"(id\d+)_(\d{4})(?!\d)"), (r"\1",)),
    # FaceForensics++'s real videos, and the lone videos of Celeb-DF's YouTube-real.
    _Rule(0, re.compile(r"(\d{3})(?!\d)"), (r"\1",)),
    _Rule(0, re.compile(r"(\d{5})(?!\d)"), (r"youtube\1",)),
)

# fmt: off
_CONTINUED: Final = (331, 524, 566, 605, 614, 618, 639, 685, 686, 755, 766, 769, 787, 837, 875, 883, 937, 942, 954, 967,
                     973, 982, 993)
"""Videos of FaceForensics++ that come from the same YouTube video as the one with the next number: its
`dataset/conversion_dict.json` maps 1000 sequences to 977 videos."""
# fmt: on


def identify(clip: Clip, *, whole: bool) -> bool:
    """Read people and origin from a clip's name; say whether it follows a known scheme.

    Args:
        clip: `name`, `people` and `made_from` are set.
        whole: the scheme must explain the whole name, not only how it begins.
    """
    for rule in _RULES:
        match = rule.pattern.fullmatch(clip.name) if whole else rule.pattern.match(clip.name)
        if rule.label == clip.label and match:
            clip.name = match.group()
            clip.people = tuple(match.expand(person) for person in rule.people)
            clip.made_from = match.expand(rule.made_from)
            return True
    return False


def join_namesakes(clips: list[Clip], names: list[str]) -> None:
    """Let fakes share the people of the real video of their name, whatever folders its name lies in.

    Args:
        clips: of a fake that follows no scheme, `people` and `made_from` become those of its namesake; a fake of a
            scheme gets the people besides its own.
        names: of their videos, with the folders below real/ or fake/ that name no source, / between parts.
    """
    real: dict[str, list[Clip]] = defaultdict(list)
    for clip, name in zip(clips, names, strict=True):
        if clip.label == 0:
            real[name].append(clip)
    for clip, name in zip(clips, names, strict=True):
        parts = name.split("/")
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        found = next((real[end] for end in ends if end in real), []) if clip.label else []
        people = tuple(person for namesake in found for person in namesake.people)
        if found and not clip.made_from:
            clip.people, clip.made_from = people, found[0].name if len({item.name for item in found}) == 1 else ""
        else:
            clip.people += people


@dataclass(frozen=True)
class Official:
    """What official lists of splits say."""

    splits: dict[str, str]
    """Name of a video or person -> split."""
    labels: dict[str, int]
    """Name of a video -> its label there."""
    files: list[Path]
    problems: list[str]


NO_LISTS: Final = Official({}, {}, [], [])


def load_official(folders: Iterable[Path], *, wanted: bool) -> Official:
    """Read train.json, val.json and test.json of FaceForensics++, and Celeb-DF's list of testing videos.

    Args:
        folders: the first one that holds any of them counts; a file stands for its folder.
        wanted: somebody asked for it, so one must be there.

    Raises:
        DataError: nothing is there though it is wanted, or a file cannot be understood.
    """
    folders = list(folders)
    for folder in folders:
        folder = folder.parent if folder.is_file() else folder
        lists = [folder / f"{split}.json" for split in SPLITS if (folder / f"{split}.json").is_file()]
        if lists or (folder / _CELEB_LIST).is_file():
            return _read_pairs(lists) if lists else _read_celeb(folder / _CELEB_LIST)
    if wanted:
        raise DataError(
            f"{folders[0]}: no split files; must be a folder with train.json, val.json and test.json "
            f"(FaceForensics++) or {_CELEB_LIST} (Celeb-DF)"
        )
    return NO_LISTS


def _read_pairs(files: list[Path]) -> Official:
    splits: dict[str, str] = {}
    problems: list[str] = []
    for file in files:
        try:
            pairs = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{file}: cannot be read as JSON ({error})") from None
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and all(isinstance(name, str) for name in pair) for pair in pairs
        ):
            raise DataError(f'{file}: must be a list of pairs of names, such as [["071", "054"]]')
        names = [name for pair in pairs for name in pair]
        problems += [f"{file}: {shown(n)} is in {splits[n]} as well; it stays there" for n in names if n in splits]
        splits = dict.fromkeys(names, file.stem) | splits
    return Official(splits, {}, files, problems)


def _read_celeb(file: Path) -> Official:
    labels: dict[str, int] = {}
    problems: list[str] = []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        code, _, path = line.strip().partition(" ")
        if code in ("0", "1") and path.strip():
            labels[Path(path.strip().replace("\\", "/")).stem] = 1 - int(code)  # there 1 means real
        elif line.strip():
            problems.append(f"{file}:{number}: {shown(line)}; must be 0 or 1 and a path")
    return Official(dict.fromkeys(labels, "test"), labels, [file], problems)


def _assign_official(clips: list[Clip], official: Official) -> list[str]:
    """Set the splits that official lists give; return what does not fit together, one line each."""
    problems = list(official.problems)
    found: set[str] = set()
    unlisted: Counter[str] = Counter()
    for clip in clips:
        keys = [key for key in (clip.name, *clip.people) if key in official.splits]
        found.update(keys)
        if not keys:
            unlisted[clip.source] += 1
            continue
        clip.split = official.splits[keys[0]]
        if official.labels.get(keys[0], clip.label) != clip.label:
            problems.append(
                f"{clip.path}: {official.files[0].name} says {LABELS[official.labels[keys[0]]]}, its folder "
                f"{LABELS[clip.label]}; the folder is believed"
            )
        others = {official.splits[key] for key in keys} - {clip.split}
        if others and not official.labels:
            problems.append(f"{clip.path}: {clip.split} by its first person, {', '.join(sorted(others))} by the second")
    missing = sorted(set(official.splits) - found)
    if missing and official.files:
        where = official.files[0].parent if len(official.files) > 1 else official.files[0]
        problems.append(f"{where}: names {len(missing)} videos that are not here: {_few(missing)}")
    if official.files and not official.labels:  # a list of test videos leaves the others to be divided
        problems += [
            f"{count} files{f' of {source}' if source else ''} are in no official split; they are divided"
            for source, count in sorted(unlisted.items())
        ]
    return problems


def join_identities(clips: list[Clip], official: Official) -> tuple[list[str], list[str], list[str]]:
    """Find what must stay in one split: videos that share a person, over any number of steps.

    Where an official split cuts through such a component, the official split holds, each side is a group of its own,
    and a problem says how many.

    Args:
        clips: their `split` is set from the official lists.
        official: the lists.

    Returns:
        The group of each clip, the path of the real file it was made from or "", and the problems.
    """
    problems = _assign_official(clips, official)
    component = _components(clips)
    # what no list names goes with its people; a list of test videos keeps them from the others
    groups, cut = _divide(component, [clip.split for clip in clips], keep_open=bool(official.labels))
    originals, lines = _originals(clips)
    return groups, originals, problems + cut + lines + _unbalanced(clips, groups)


def join_groups(groups: list[str], labels: list[int], splits: list[str]) -> tuple[list[str], list[str]]:
    """Join groups by people: those of a scheme, such as the folders `071_054` and `071`, and fakes with their namesake.

    Where given splits cut through what is joined, each side is a group of its own. A group that is itself in several
    splits keeps its name, so that it is refused.

    Args:
        groups: names of videos, / between folders; the last part counts for schemes; "" stands alone.
        labels: 0 real, 1 fake.
        splits: train, val, test, or "" where none is given.

    Returns:
        The new groups, and a line if splits cut through some.
    """
    keys = [key for key in dict.fromkeys(zip(groups, labels, strict=True)) if key[0]]
    clips = [Clip(group, label, "", group.rpartition("/")[2], "image") for group, label in keys]
    known = [identify(clip, whole=True) for clip in clips]
    if not any(clip.label and found for clip, found in zip(clips, known, strict=True)):
        known = [False] * len(clips)  # numbers alone name no people
    for clip, found in zip(clips, known, strict=True):
        if not found:
            clip.name, clip.people = clip.path, (clip.path,)
    join_namesakes(clips, [group for group, _ in keys])
    joined = dict(zip(keys, _components(clips), strict=True))
    components = [joined.get(key, "") for key in zip(groups, labels, strict=True)]
    result, lines = _divide(components, splits, keep_open=False)
    own: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        own[group].add(split)
    torn = {group for group, found in own.items() if group and len(found - {""}) > 1}
    return [group if group in torn else name for group, name in zip(groups, result, strict=True)], lines


def _divide(groups: list[str], splits: list[str], *, keep_open: bool) -> tuple[list[str], list[str]]:
    """Make a group of each side of a given split that cuts through one; say in a line how many it cuts.

    Args:
        groups: "" stands alone.
        splits: "" where none is given.
        keep_open: what has no split is a side too; else it goes with the first of the others.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        found[group].add(split)
    found.pop("", None)
    if not keep_open:
        found = {group: sides - {""} or {""} for group, sides in found.items()}
    cut = {group for group, sides in found.items() if len(sides) > 1}
    if not cut:
        return groups, []
    sided = [
        _side(group, split, found[group]) if group in cut else group
        for group, split in zip(groups, splits, strict=True)
    ]
    named = _few([f"{group} ({', '.join(sorted(found[group] - {''}))})" for group in sorted(cut)])
    return sided, [
        f"{len(cut)} of {len(found)} groups of people lie on both sides of the given split: {named}; "
        "scores there are too good"
    ]


def _side(group: str, split: str, splits: set[str]) -> str:
    """Name the part of a group that lies in one split; what has none goes with the first if it cannot stay out."""
    first = next(known for known in SPLITS if known in splits)
    split = split if split in splits else first
    return f"{group} ({split})" if split else group


def _components(clips: list[Clip]) -> list[str]:
    """Name the component of each clip by its first person."""
    everyone = sorted({person for clip in clips for person in clip.people})
    position = {person: i for i, person in enumerate(everyone)}
    pairs = {(position[clip.people[0]], position[person]) for clip in clips for person in clip.people}
    if any(clip.label == 1 and re.fullmatch(r"\d{3}_\d{3}", clip.name) for clip in clips):
        both = [(f"{number:03d}", f"{number + 1:03d}") for number in _CONTINUED]
        pairs |= {(position[a], position[b]) for a, b in both if a in position and b in position}
    codes = linked(len(everyone), np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2))
    first: dict[int, str] = {}
    for person, code in zip(everyone, codes.tolist(), strict=True):
        first.setdefault(code, person)
    return [first[int(codes[position[clip.people[0]]])] for clip in clips]


def _originals(clips: list[Clip]) -> tuple[list[str], list[str]]:
    """Find the real file of each clip, "" if unknown; say what cannot be found or lies in another split."""
    real = {(clip.variant, clip.name, clip.frame): clip for clip in clips if clip.label == 0}
    result: list[str] = []
    missing: list[str] = []
    apart = 0
    for clip in clips:
        found = real.get((clip.variant, clip.made_from, clip.frame)) if clip.label == 1 and clip.made_from else None
        result.append(found.path if found else "")
        if clip.made_from and found is None and not clip.frame:
            missing.append(clip.path)
        apart += found is not None and found.split != clip.split
    problems = []
    if missing:
        problems.append(f"the real videos of {len(missing)} fakes are not here, such as those of {_few(missing)}")
    if apart:
        problems.append(f"{apart} fakes are in another split than the real file they were made from")
    return result, problems


def _unbalanced(clips: list[Clip], groups: list[str]) -> list[str]:
    """Say when one group holds most of what is still to be divided."""
    open_groups = Counter(group for clip, group in zip(clips, groups, strict=True) if not clip.split)
    if len(clips) < 20 or not open_groups:
        return []
    name, count = open_groups.most_common(1)[0]
    if count <= open_groups.total() / 2:
        return []
    return [
        f"group {name!r} holds {count} of {open_groups.total()} files to be divided, its people are swapped among "
        "each other; it stays in one split, so shares will be off"
    ]


def _few(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
