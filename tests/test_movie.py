"""The moving picture of steps: what it shows is what the run did."""

import io

import pytest
import torch
from PIL import Image

from rso_lib import RSO, Data, load, models, train
from rso_lib.algorithm import cross_entropy
from rso_lib.lab import movie
from rso_lib.passes import losses_along
from rso_lib.sweep import Step


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


def settings(data: Data) -> RSO:
    return RSO(cycles=1, batch_size=len(data.train), order="shuffled")


EVERY = {"block1.conv.weight": 18}


def test_shots_are_steps_of_the_run(digits: Data) -> None:
    """The run is the one without a camera, and the three dots lie on the valley."""
    net, alone = (models.one_conv(digits.shape) for _ in range(2))
    made = [step for step in train(alone, digits, settings(digits), steps=True) if isinstance(step, Step)]
    shots = list(movie.shots(net, digits, settings(digits), EVERY))
    assert all(map(torch.equal, net.parameters(), alone.parameters()))
    filmed = [step for step in made if step.layer in EVERY and step.index in (0, 18)]
    assert [(shot.step.layer, shot.step.index) for shot in shots] == [(step.layer, step.index) for step in filmed]
    for shot, step in zip(shots, filmed, strict=True):
        valley, winner = shot.valley, int(step.losses.argmin())
        assert valley.losses.tolist() == step.losses.tolist()
        assert float(valley.places[winner]) == pytest.approx(valley.chosen, abs=1e-6)
        low, high = valley.values[[0, -1]]
        assert bool(((valley.places > low) & (valley.places < high)).all())
        assert float(valley.along[20]) == pytest.approx(float(step.losses[0]), abs=1e-5)  # in the middle is w
        changed = torch.nan_to_num(shot.tiles[1] - shot.tiles[0]).nonzero().tolist()
        assert changed == ([list(shot.cell)] if winner else [])


def test_a_valley_is_the_loss_of_all_images(digits: Data) -> None:
    net = models.one_conv(digits.shape)
    bias = net.get_parameter("head.linear.bias").detach().view(-1)
    with torch.no_grad():
        loss = lambda: cross_entropy(net(digits.train.images), digits.train.labels)  # noqa: E731
        along = losses_along(loss, bias, 3, torch.tensor([0.0, 1.0]))
        assert float(bias[3]) == 0
        assert float(along[0]) == float(cross_entropy(net(digits.train.images), digits.train.labels))
    assert along[0] != along[1]


def test_each_step_has_two_frames(digits: Data) -> None:
    gif = Image.open(io.BytesIO(movie.make_movie(models.one_conv(digits.shape), digits, settings(digits), EVERY)))
    assert (gif.format, gif.n_frames, gif.info["loop"]) == ("GIF", 4, 0)
    assert [gif.seek(k) or gif.info["duration"] for k in range(4)] == [1500, 900, 1500, 2000]  # slow at the beginning
