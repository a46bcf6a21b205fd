"""The config's sections on data: sources, what becomes of an image, random changes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from hai.config.section import Section, check_range, fixed, free, refuse_login

__all__ = ["AugmentConfig", "DataConfig", "SourceConfig"]

Split = Literal["train", "val", "test"]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class SourceConfig(Section):
    """One source of labelled images."""

    name: str = fixed("data", "Name of the source in tables, metrics and weights.", min_length=1)
    path: str = free(
        ...,
        "A folder with real/ and fake/, or for the ranker with one folder per tier (also under train/ val/ test/), a "
        "CSV, a pack, or a zip of any of these; local, a URL, kaggle:OWNER/DATASET or kaggle:competitions/NAME. "
        "Relative paths start at the working directory.",
        min_length=1,
    )
    image_dir: str | None = free(
        None,
        "Folder that the CSV's paths start from; default: the CSV's own folder, for the ranker `images/` in it if "
        "there is one.",
    )
    weight: float = fixed(1.0, "Share of the source in an epoch under `data.sampling: weighted`.", gt=0)
    splits: list[Split] | None = fixed(
        None,
        "Splits this source contributes to; rows of other splits are left out, rows without a split are divided over "
        "these. [val] makes a validation source that is never trained on.",
    )

    @field_validator("name")
    @classmethod
    def _no_part(cls, value: str) -> str:
        if "/" in value:
            raise ValueError("must hold no /, which sets the parts of a source apart in metrics")
        return value

    @field_validator("path", "image_dir")
    @classmethod
    def _no_login(cls, value: str | None) -> str | None:
        return refuse_login(value)


class DataConfig(Section):
    """What to learn from."""

    sources: list[SourceConfig] = fixed([], "The sources, at least one for training.")
    image_size: int = fixed(224, "Height and width of the model's input, pixels.", ge=32, le=2048)
    geometry: Literal["resize", "pad", "crop"] = fixed(
        "resize",
        "How an image becomes square: `resize` squashes it, `pad` keeps its aspect and pads with black, `crop` takes a "
        "square at native resolution (random in training, central otherwise; smaller images are enlarged first).",
    )
    sampling: Literal["proportional", "balanced", "weighted"] = fixed(
        "proportional",
        "`proportional`: every training example once an epoch. `balanced`: classes equally often, within a class "
        "sources equally often, within a source its parts, such as manipulations. `weighted`: the same with sources by "
        "their `weight`.",
    )
    split_ratios: list[float] = fixed(
        [0.8, 0.1, 0.1], "Shares of train, val and test for rows without a split.", min_length=3, max_length=3
    )
    tiers: list[str] = fixed(["S", "A", "B", "C"], "Ranker: names of the tiers, the best first.", min_length=2)
    score_column: str | None = fixed(
        None, "Ranker: numeric column of the CSV that scores are also compared with, higher is better."
    )
    near_duplicate_distance: int | None = fixed(
        4,
        "Ranker: images whose perceptual hashes differ in at most this many of 64 bits stay in one split when rows "
        "without a split are divided; null: only equal files do.",
        ge=0,
        le=16,
    )
    cache_embeddings: Literal["auto", "on", "off"] = free(
        "auto",
        "Ranker: encode each image once and keep the features; auto: where the backbone stays frozen and no random "
        "change of images is asked for.",
    )
    embedding_cache: str | None = free(
        None, "Folder or URL of the kept features, shared by all runs; default: HAI_CACHE/embeddings."
    )
    embedding_precision: Literal["float32", "float16"] = fixed(
        "float32", "Number format of the kept features; float16 takes half the space."
    )
    max_bad_fraction: float = free(
        0.01, "Largest share of unreadable images; above it the run stops before training.", ge=0, le=1
    )
    max_megapixels: float = fixed(40.0, "Larger images are refused as decompression bombs, megapixels.", gt=0, le=1000)
    num_threads: int | None = free(
        None,
        "Decoding threads per worker; null: the worker's CPUs, more on network drives. Changes speed only.",
        ge=1,
        le=256,
    )
    cache_decoded: Literal["auto", "on", "off"] = free(
        "auto", "Keep decoded images on local disk after epoch 1; auto: when they fit in half of the free space."
    )

    @field_validator("embedding_cache")
    @classmethod
    def _no_login(cls, value: str | None) -> str | None:
        return refuse_login(value)

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, value: list[SourceConfig]) -> list[SourceConfig]:
        names = [source.name for source in value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"name {repeated[0]!r} is used twice; every source needs a name of its own")
        return value

    @field_validator("tiers")
    @classmethod
    def _tiers_differ(cls, value: list[str]) -> list[str]:
        if len({tier.strip().lower() for tier in value}) < len(value) or not all(tier.strip() for tier in value):
            raise ValueError("must be names that differ in more than the case of letters")
        return value

    @field_validator("split_ratios")
    @classmethod
    def _ratios_sum_to_one(cls, value: list[float]) -> list[float]:
        if min(value) < 0 or abs(sum(value) - 1.0) > 1e-6:
            raise ValueError("must be three shares >= 0 that sum to 1")
        return value


class AugmentConfig(Section):
    """Random changes to training images; each draw is a function of (seed, epoch, example)."""

    flip: Probability = fixed(0.0, "Probability of a horizontal flip.")
    rotation_degrees: float = fixed(0.0, "Largest rotation, degrees, uniform in +-this.", ge=0, le=180)
    rotation_probability: Probability = fixed(1.0, "Probability of a rotation.")
    brightness: float = fixed(0.0, "Brightness factor, uniform in 1 +- this.", ge=0, le=1)
    contrast: float = fixed(0.0, "Contrast factor, uniform in 1 +- this.", ge=0, le=1)
    saturation: float = fixed(0.0, "Saturation factor, uniform in 1 +- this.", ge=0, le=1)
    hue: float = fixed(0.0, "Hue shift, uniform in +-this, turns.", ge=0, le=0.5)
    jitter_probability: Probability = fixed(1.0, "Probability of the four colour changes together.")
    jpeg_probability: Probability = fixed(0.0, "Probability of a JPEG compression.")
    jpeg_quality: list[int] = fixed([60, 100], "Lowest and highest JPEG quality, uniform.", min_length=2, max_length=2)
    noise_probability: Probability = fixed(0.0, "Probability of Gaussian noise.")
    noise_std: float = fixed(0.02, "Standard deviation of the noise, in units of the full range 0-1.", ge=0, le=1)
    blur_probability: Probability = fixed(0.0, "Probability of a Gaussian blur.")
    blur_sigma: list[float] = fixed(
        [0.3, 1.5], "Smallest and largest blur, pixels, uniform.", min_length=2, max_length=2
    )
    resize_probability: Probability = fixed(0.0, "Probability of resizing down and back up.")
    resize_scale: list[float] = fixed(
        [0.5, 1.0], "Smallest and largest scale of that resize, uniform.", min_length=2, max_length=2
    )

    @property
    def changes_images(self) -> bool:
        """Say whether any change has a chance."""
        jitter = self.jitter_probability * max(self.brightness, self.contrast, self.saturation, self.hue)
        rotation = self.rotation_probability * self.rotation_degrees
        noise = self.noise_probability * self.noise_std
        others = (self.flip, self.jpeg_probability, self.blur_probability, self.resize_probability)
        return max(jitter, rotation, noise, *others) > 0

    @field_validator("jpeg_quality")
    @classmethod
    def _quality_range(cls, value: list[int]) -> list[int]:
        check_range([float(number) for number in value], 1, 100)
        return value

    @field_validator("blur_sigma")
    @classmethod
    def _sigma_range(cls, value: list[float]) -> list[float]:
        return check_range(value, 0.01, 5)

    @field_validator("resize_scale")
    @classmethod
    def _scale_range(cls, value: list[float]) -> list[float]:
        return check_range(value, 0.05, 1)
