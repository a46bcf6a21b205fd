"""MTCNN: the same boxes as the implementation that its weights come from, and nothing where there is no face."""

import warnings

import numpy as np
import pytest
import torch

from hai.errors import ConfigError
from hai.faces.detectors import FaceFinder
from hai.faces.mtcnn import Mtcnn, load_weights


@pytest.fixture(scope="module")
def photo():
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture(scope="module")
def weights():
    try:
        return load_weights()
    except ConfigError as error:
        pytest.skip(str(error))


def reference(image, min_face):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("facenet_pytorch")
        boxes, scores = package.MTCNN(keep_all=True, min_face_size=min_face).detect(image)
    if boxes is None:
        return np.zeros((0, 4)), np.zeros(0)
    return np.asarray(boxes, dtype=np.float64), np.asarray(scores, dtype=np.float64)


def scenes(photo):
    crowd = np.zeros((400, 600, 3), dtype=np.uint8)
    crowd[40:300, 20:230] = photo[0:260, 120:330]
    crowd[40:300, 230:440] = photo[0:260, 120:330][:, ::-1]
    crowd[250:400, 450:600] = photo[40:190, 150:300]  # cut at two edges
    noise = np.random.default_rng(0).integers(0, 256, (120, 200, 3)).astype(np.uint8)
    return [photo, crowd, np.ascontiguousarray(photo[::2, ::2]), np.ascontiguousarray(photo[60:170, 150:290]), noise]


@pytest.mark.parametrize("min_face", [20, 40])
def test_boxes_and_scores_are_those_of_the_reference(photo, weights, min_face):
    found = 0
    for image in scenes(photo):
        boxes, scores = Mtcnn(weights, min_face)(image)
        wanted_boxes, wanted_scores = reference(image, min_face)
        order = np.argsort(-wanted_scores, kind="stable")
        np.testing.assert_allclose(boxes, wanted_boxes[order], atol=0.01)
        np.testing.assert_allclose(scores, wanted_scores[order], atol=1e-4)
        found += len(boxes)
    assert found >= 5


def test_the_face_of_a_photograph_is_found_where_it_is(photo, weights):
    boxes, scores = Mtcnn(weights, 40)(photo)
    assert len(boxes) == 1
    np.testing.assert_allclose(boxes[0], (178, 60, 266, 173), atol=4)
    assert scores[0] > 0.99


@pytest.mark.parametrize("size", [(1, 1), (11, 40), (13, 13), (64, 2)])
def test_images_too_small_for_a_face_hold_none(weights, size):
    boxes, scores = Mtcnn(weights, 12)(np.full((*size, 3), 128, dtype=np.uint8))
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


def test_large_images_are_looked_at_in_a_copy(photo, weights):
    large = np.ascontiguousarray(np.repeat(np.repeat(photo, 3, axis=0), 3, axis=1))
    finder = FaceFinder("mtcnn", detect_size=512, min_face=40, min_score=0.9, model=None)
    (face,) = finder(large)
    np.testing.assert_allclose(np.array(face.box) / 3, (178, 60, 266, 173), atol=5)


def test_unknown_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"pnet\.pt cannot be read"):
        load_weights(tmp_path)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "pnet.pt")
    with pytest.raises(ConfigError, match="not the known weight file"):
        load_weights(tmp_path)
