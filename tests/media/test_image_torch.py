"""Torch tensors are pictures too; what is no picture is a MediaError."""

import numpy as np
import pytest
import torch

import vlkit
from vlkit.errors import MediaError

RED = (200, 40, 0)


def filled(dtype=torch.uint8, scale=1.0):
    """(3, 8, 16), red."""
    values = torch.tensor(RED, dtype=torch.float64) * scale
    return values.reshape(3, 1, 1).expand(3, 8, 16).to(dtype)


@pytest.mark.parametrize(
    "tensor, expected",
    [
        (filled(), RED),
        (filled().permute(1, 2, 0), RED),
        (filled(torch.float32, 1 / 255), RED),
        (filled(torch.float16, 1 / 255), RED),
        (filled(torch.bfloat16, 1 / 255), RED),
        (filled(torch.float32, 1 / 255).requires_grad_(), RED),
        (filled(torch.uint16, 257), RED),
        (torch.full((1, 8, 16), 77, dtype=torch.uint8), (77, 77, 77)),
        (torch.full((8, 16), 77, dtype=torch.uint8), (77, 77, 77)),
        (torch.cat([filled(), torch.zeros(1, 8, 16, dtype=torch.uint8)]), (255, 255, 255)),
        (torch.ones(8, 16, dtype=torch.bool), (255, 255, 255)),
    ],
    ids=lambda value: f"{value.dtype}{tuple(value.shape)}" if hasattr(value, "dtype") else "",
)
def test_tensor(tensor, expected):
    loaded = vlkit.load_image(tensor)
    assert (loaded.mode, loaded.size) == ("RGB", (16, 8))
    np.testing.assert_allclose(loaded.getpixel((3, 3)), expected, atol=1)
    item = vlkit.user("?", tensor)["content"][0]
    assert item["image"].tobytes() == loaded.tobytes()


def test_tensor_keeps_its_orientation():
    tensor = torch.zeros(3, 8, 16, dtype=torch.uint8)
    tensor[0, 2, 5] = 255
    assert vlkit.load_image(tensor).getpixel((5, 2)) == (255, 0, 0)
    assert vlkit.load_image(tensor).getpixel((2, 5)) == (0, 0, 0)


def test_torchvision_image():
    from torchvision import tv_tensors

    assert vlkit.load_image(tv_tensors.Image(filled())).getpixel((3, 3)) == RED


@pytest.mark.parametrize(
    "tensor, words",
    [
        (filled(torch.float32), ("200", "0–1", "scale")),
        (torch.full((3, 8, 8), float("nan")), ("nan", "0–1")),
        (filled(torch.int64), ("int64", "convert")),
        (filled()[None], ("1, 3, 8, 16", "not one picture")),
        (torch.zeros(5, 8, 6), ("5, 8, 6", "not one picture")),
        (torch.empty(3, 0, 4), ("3, 0, 4", "not one picture")),
        (torch.empty(3, 8, 8, device="meta"), ("3, 8, 8", "dense numpy array")),
        (torch.zeros(8, 8).to_sparse(), ("8, 8", "dense numpy array")),
    ],
    ids=lambda value: f"{value.dtype}{tuple(value.shape)}" if hasattr(value, "dtype") else "",
)
def test_tensor_refused(tensor, words):
    with pytest.raises(MediaError) as caught:
        vlkit.load_image(tensor)
    text = str(caught.value)
    assert text.isprintable() and all(word in text for word in words), text


@pytest.mark.parametrize("thing", [torch.nn.Linear(2, 2), torch.float32, torch.Size([3, 8, 8])])
def test_other_things_of_torch(thing):
    with pytest.raises(MediaError, match="cannot read a picture from a"):
        vlkit.load_image(thing)
