"""What float32 and TF32 are, and the count of decisions that rounding changes."""

import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from rso_lib import load, models
from rso_lib.engine.head import HeadScorer
from rso_lib.engine.sequential import SequentialScorer
from rso_lib.lab import precision
from rso_lib.lab.precision import CPU, CUDA, Decisions, compare
from rso_lib.passes import calibrate
from rso_lib.run import folder as runs
from rso_lib.run import sgd
from rso_lib.settings import RSO, arithmetic
from rso_lib.train import evaluate, train


def flags() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


@pytest.mark.parametrize("found", ["none", "tf32"])
@pytest.mark.parametrize(("name", "products"), [("float32", "ieee"), ("tf32", "tf32")])
def test_a_run_has_its_own_arithmetic_and_leaves_that_of_others(
    name: str, products: str, found: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    torch.backends.cuda.matmul.fp32_precision = found
    request.addfinalizer(lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "none"))
    before, within = flags(), []
    step = HeadScorer.score

    def watched(*arguments):
        within.append(flags())
        return step(*arguments)

    monkeypatch.setattr(HeadScorer, "score", watched)
    data = load("digits")
    settings = RSO(cycles=1, batch_size=100, precision=name)
    for _ in islice(train(models.one_conv(data.shape), data, settings, steps=True), 3):
        assert flags() == before
    assert within == [(products, products)] * 3
    with pytest.raises(KeyError), arithmetic(name):
        raise KeyError
    assert flags() == before


@pytest.mark.parametrize("what", ["evaluate", "calibrate", "sgd"])
def test_scores_and_the_baseline_are_in_float32(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a run has another precision, and where nothing is said."""
    data, net, within = load("digits"), models.mnist_net((1, 8, 8)), []
    conv2d = torch.nn.functional.conv2d

    def watched(*arguments, **options):
        within.append(flags())
        return conv2d(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "conv2d", watched)
    before = flags()
    if what == "evaluate":
        with arithmetic("tf32"):
            evaluate(net, data.test)
    elif what == "calibrate":
        with arithmetic("tf32"):
            calibrate(net, data.train.images)
    else:
        sgd.fit(net, data, sgd.SGD(epochs=1, batch_size=400, warmup=0), progress=False)
    assert {*within} == {("ieee", "ieee")}
    assert flags() == before


def test_threads_take_turns_with_the_arithmetic() -> None:
    """Else the one that ends last leaves what it found, which is the other's."""
    before, within = flags(), []
    entered, leave, second = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with arithmetic("tf32"):
            entered.set()
            leave.wait()
            within.append(flags())

    def other() -> None:
        with arithmetic("float32"):
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
    assert within == [("tf32", "tf32")]
    assert flags() == before


def test_every_decision_is_compared() -> None:
    """In float64 none differs; of each tensor as many are visited as asked for, or all."""
    data, net = load("digits"), models.two_conv((1, 8, 8))
    before = [weight.clone() for weight in net.parameters()]
    rows = list(compare(net.double(), data, RSO(batch_size=100), 3, visits=12, slices=2))
    names = [name for name, _ in net.named_parameters()]
    assert rows == [Decisions(name, min(12, net.get_parameter(name).numel()), 0) for name in names]
    assert all(torch.equal(a.double(), b) for a, b in zip(before, net.parameters(), strict=True))


def test_visits_have_the_batch_of_their_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch that grows from cycle to cycle."""
    sizes = []
    of_a_sweep = precision.Batches

    def watched(images, labels, size):
        sizes.append((size, len(images)))
        return of_a_sweep(images, labels, size)

    monkeypatch.setattr(precision, "Batches", watched)
    settings = RSO(cycles=3, first_batch=25, batch_size=400)
    list(compare(models.one_conv((1, 8, 8)), load("digits"), settings, 1, visits=1, slices=2))
    assert {*sizes} == {(100, 200)}


@pytest.mark.parametrize("kind", [models.two_conv, models.mnist_net])
def test_what_differs_is_counted(kind: Callable[..., models.Net], monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses in coarse steps tie, and a tie keeps w: at these visits float64 chooses otherwise."""
    net = kind((1, 8, 8))
    for kind_of_scorer in (SequentialScorer, HeadScorer):
        score = kind_of_scorer.score

        def coarse(self, moves, score=score):
            scores = score(self, moves)
            single = self.w[moves.tensor].dtype == torch.float32
            return scores._replace(losses=(scores.losses * 10).round()) if single else scores

        monkeypatch.setattr(kind_of_scorer, "score", coarse)
    differ = sum(row.differ for row in compare(net, load("digits"), RSO(batch_size=300), 0, visits=20, slices=2))
    visits = sum(min(20, weight.numel()) for weight in net.parameters())
    assert 0.5 * visits < differ <= visits


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    settings = RSO(cycles=1, batch_size=300)
    runs.start(tmp_path / "run", dataset="digits", net="one_conv", settings=settings, progress=False)
    monkeypatch.setattr("sys.argv", ["precision", str(tmp_path / "run"), "--visits", "5"])
    precision.main()
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head == "| arithmetic | decisions | other than in float64 | share |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == list(CPU) and set(CPU) < set(CUDA)
    visits = sum(min(5, weight.numel()) for weight in models.one_conv((1, 8, 8)).parameters())
    assert all(line.split(" | ")[1] == str(visits) for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere"),
        (["run", "--visits", "0"], "visits must be at least 1, not 0"),
        (["run", "--device", "gpu"], "gpu"),
        (["run", "--threads", "0"], "threads must be at least 1"),
        (["run", "--visit", "5"], "--visits INT"),
    ],
)
def test_the_command_says_what_is_wrong(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = RSO(cycles=1, batch_size=1294)
    runs.start("run", dataset="digits", net="one_conv", settings=settings, progress=False)
    with pytest.raises(SystemExit) as left:
        precision.main(arguments)
    assert left.value.code == 2
    assert said in capsys.readouterr().err
