import pytest
import torch

from hai.models.fourier import fourier_parts, polar_transform


@pytest.mark.parametrize(("height", "width"), [(64, 64), (224, 224), (97, 56)])
def test_parts_are_those_of_the_fast_transform(height: int, width: int) -> None:
    image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1)) + 3
    expected = torch.fft.fft2(image.double())
    real, imaginary = fourier_parts(image)
    scale = expected.abs().median()
    assert (real - expected.real).abs().max() < 1e-5 * scale + 1e-6 * expected.abs().max()
    assert (imaginary - expected.imag).abs().max() < 1e-5 * scale
    half = fourier_parts(image, width // 2 + 1)
    torch.testing.assert_close(half[0], real[..., : width // 2 + 1], rtol=0, atol=1e-5 * float(scale))


def test_where_the_transform_is_real_its_phase_is_not_rounding_error() -> None:
    image = torch.randn(4, 3, 24, 30, generator=torch.Generator().manual_seed(2)) - 5
    for part in (image, -image):
        real, _ = fourier_parts(part)
        amplitude, phase = polar_transform(part)
        expected = torch.where(real < 0, torch.pi, 0.0)
        for row, column in ((0, 0), (12, 0), (0, 15), (12, 15)):
            assert (phase[..., row, column] == expected[..., row, column]).all()
            torch.testing.assert_close(amplitude[..., row, column], real[..., row, column].abs())
