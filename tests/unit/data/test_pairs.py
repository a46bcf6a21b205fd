import numpy as np
import pytest
import torch
from PIL import Image

from hai.config.load import config_from_yaml_text
from hai.data.dataset import ImageDataset
from hai.data.manifest import build_manifest
from hai.data.pairs import ComparisonDataset


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("HAI_CACHE", str(tmp_path / "cache"))
    lines = ["left,right,preference,split"]
    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        lines.append(f"{k}.png,{(k + 1) % 8}.png,{('left', 'right', 'tie')[k % 3]},train")
    (tmp_path / "comparisons.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = f"task: ranker\ndata: {{image_size: 32, sources: [{{path: {tmp_path / 'comparisons.csv'}}}]}}"
    config = config_from_yaml_text(text, "test")
    return config, build_manifest(config.data, 0, task="ranker", require=("train",))


def test_equal_images_at_equal_positions(run):
    config, manifest = run
    images = ImageDataset(manifest, config, "train")
    pairs = ComparisonDataset(images, manifest, "train")
    assert len(pairs) == 8
    assert pairs.strata()[0].tolist() == [0] * 8
    requests = [(0, np.array([3, 1, 7])), (0, np.array([0, 5]))]
    stream = pairs.batches(requests, device=torch.device("cpu"), training=False)
    for (_, positions), batch in zip(requests, stream, strict=True):
        assert batch["image"].shape == (len(positions), 2, 3, 32, 32)
        assert batch["index"].tolist() == manifest.comparisons[positions, :2].tolist()
        assert batch["label"].tolist() == manifest.comparisons[positions, 2].tolist()
        prepared = pairs.prepare(batch, epoch=0, training=False)
        for k, sides in enumerate(batch["index"].tolist()):
            for side, row in enumerate(sides):
                assert np.array_equal(batch["image"][k, side].permute(1, 2, 0).numpy(), images.load_image(row))
        expected = images.prepare({**batch, "image": batch["image"].flatten(0, 1)}, epoch=0, training=False)
        assert torch.equal(prepared["image"].flatten(0, 1), expected["image"])
        assert torch.equal(prepared["label"], batch["label"])
    stream.close()


class Embedded:
    closed = False

    def batches(self, requests, *, device, training):
        def loaded():
            try:
                for _, positions in requests:
                    index = torch.from_numpy(positions)
                    yield {"embedding": index[:, None] * torch.ones(4), "index": index, "label": index}
            finally:
                self.closed = True

        return loaded()

    def prepare(self, batch, *, epoch, training):
        assert batch["embedding"].dim() == 2
        return batch


def test_embeddings_and_close(run):
    _, manifest = run
    inner = Embedded()
    pairs = ComparisonDataset(inner, manifest, "train")
    stream = pairs.batches([(0, np.array([2, 4]))] * 3, device=torch.device("cpu"), training=True)
    batch = pairs.prepare(next(stream), epoch=0, training=True)
    assert batch["embedding"].shape == (2, 2, 4)
    assert torch.equal(batch["embedding"][..., 0].long(), batch["index"])
    stream.close()
    assert inner.closed
