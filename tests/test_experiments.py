"""What a batch decides, and settings against each other, on cases small enough to work out by hand."""

import pytest

from rso_lib import RSO, Data, engine, experiments, load, models


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits")


# Settings against each other


@pytest.mark.parametrize("measure", ["compare", "julia_table"])
def test_an_interrupt_ends_the_comparison(measure: str, digits: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of a run is no result. The first run is stopped in its first sweep, the others would not be."""
    step, steps = engine.HeadSearch.step, []

    def interrupted(*arguments):
        steps.append(arguments)
        if len(steps) == 9:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(engine.HeadSearch, "step", interrupted)
    base, variants = RSO(cycles=1, batch_size=200), {"a": {}, "b": {"order": "input"}}
    with pytest.raises(KeyboardInterrupt):
        if measure == "compare":
            experiments.compare(models.one_conv, digits, base, variants, [0], progress=False)
        else:
            experiments.julia_table(digits, {"one_conv": [200, 400]}, cycles=1, progress=False)
    assert len(steps) == 9
