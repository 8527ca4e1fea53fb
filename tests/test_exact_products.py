"""float32 is float32 wherever a net is trained or scored, also on a device that would round products."""

import sys
import threading
from itertools import islice
from typing import Any

import pytest
import torch

from rso_lib import load, models
from rso_lib.engine.head import HeadScorer
from rso_lib.lab import bench
from rso_lib.passes import calibrate
from rso_lib.run import sgd
from rso_lib.settings import RSO, exact_products
from rso_lib.train import evaluate, train

EXACT = ("ieee", "ieee")


def flags() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.fixture(autouse=True, params=["none", "tf32"])
def found(request: pytest.FixtureRequest) -> None:
    """What another program has asked for."""
    torch.backends.cuda.matmul.fp32_precision = request.param
    request.addfinalizer(lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "none"))


def test_a_run_is_exact_and_leaves_the_products_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before, within, step = flags(), [], HeadScorer.score

    def watched(*arguments):
        within.append(flags())
        return step(*arguments)

    monkeypatch.setattr(HeadScorer, "score", watched)
    data = load("digits")
    for _ in islice(train(models.one_conv(data.shape), data, RSO(cycles=1, batch_size=100), steps=True), 3):
        assert flags() == before
    assert within == [EXACT] * 3
    with pytest.raises(KeyError), exact_products():
        raise KeyError
    assert flags() == before


@pytest.mark.parametrize("what", ["evaluate", "calibrate", "sgd", "bench"])
def test_what_else_is_exact(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, net, within, before = load("digits"), models.mnist_net((1, 8, 8)), [], flags()
    conv2d = torch.nn.functional.conv2d

    def watched(*arguments: Any, **options: Any) -> Any:
        within.append(flags())
        return conv2d(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    if what == "evaluate":
        evaluate(net, data.test)
    elif what == "calibrate":
        calibrate(net, data.train.images)
    elif what == "sgd":
        sgd.fit(net, data, sgd.SGD(epochs=1, batch_size=400, warmup=0), progress=False)
    else:
        monkeypatch.setattr(bench, "bench", lambda *_: within.append(flags()) or {})
        monkeypatch.setattr(sys, "argv", ["bench"])
        bench.main()
    assert {*within} == {EXACT}
    assert flags() == before


def test_threads_take_turns() -> None:
    """Else the one that ends last leaves what it found, which is the other's."""
    before, within = flags(), []
    entered, leave, second = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with exact_products():
            entered.set()
            leave.wait()
            within.append(flags())

    def other() -> None:
        with exact_products():
            second.set()
            threads[0].join()

    threads = [threading.Thread(target=first), threading.Thread(target=other)]
    threads[0].start()
    entered.wait()
    threads[1].start()
    second.wait(0.2)
    leave.set()
    for thread in threads:
        thread.join()
    assert within == [EXACT]
    assert flags() == before
