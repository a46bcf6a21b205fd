"""FFCV with images kept as JPEG, the mode whose files are as large as ours; uint8 [B, 3, 224, 224].

It is built from source: a compiler, pkg-config and the headers of OpenCV 4 and libjpeg-turbo must be there (Debian:
libopencv-dev, libturbojpeg0-dev). It decodes with libjpeg-turbo's fast, coarse DCT and resizes by area, so its pixels
are not PIL's.
"""

from collections.abc import Callable, Iterator

import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.basics import IntDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from torchvision.datasets import ImageFolder

from benchmarks.peers.contestant import BATCH, SIZE, Job, serve_batches


def prepare(job: Job) -> Callable[[], Iterator[torch.Tensor]]:
    file = str(job.scratch / "faces.beton")
    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=90), "label": IntField()}
    DatasetWriter(file, fields, num_workers=job.workers).from_indexed_dataset(ImageFolder(str(job.folder)))
    loader = Loader(
        file, batch_size=BATCH, num_workers=job.workers, order=OrderOption.RANDOM, os_cache=True, drop_last=False,
        pipelines={
            "image": [CenterCropRGBImageDecoder((SIZE, SIZE), ratio=1), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor()],
        },
    )  # fmt: skip
    return lambda: (batch for batch, _ in loader)


if __name__ == "__main__":
    serve_batches(prepare)
