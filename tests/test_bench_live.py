"""What the benchmark of the browser makes of its times, with a visit that measures nothing."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("playwright", reason="the benchmark needs Playwright: pip install playwright")

import bench_live


def test_the_file_and_the_table_hold_the_medians(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {bench_live.SLIDER: [30.0, 10.0, 20.04], bench_live.PAUSE: [5.0, 6.0]}
    monkeypatch.setattr(bench_live, "measure", lambda *_: times)
    monkeypatch.setattr(bench_live, "find_chromium", lambda: "chromium")
    monkeypatch.setattr(bench_live, "serve", lambda *_: nullcontext("url"))
    monkeypatch.setattr(bench_live, "chromium", lambda: nullcontext(SimpleNamespace(version="1.2")))
    monkeypatch.setattr(sys, "argv", ["bench_live", "--json", str(tmp_path / "live.json")])
    bench_live.main()
    made = json.loads((tmp_path / "live.json").read_text())
    assert made["machine"].keys() == {"name", "processor", "cores", "load before", "browser"}
    assert made["notebooks"].keys() == {path.stem for path in bench_live.LIVE} and len(bench_live.LIVE) > 2
    for rows in made["notebooks"].values():
        assert rows[bench_live.SLIDER] == {"count": 3, "median": 20, "least": 10, "most": 30}
        assert rows[bench_live.PAUSE] == {"count": 2, "median": 5.5, "least": 5, "most": 6}
    said = capsys.readouterr().out
    assert said.count(f"| {bench_live.SLIDER} | 3 | 20 | 10 | 30 |") == len(bench_live.LIVE)
    assert f"{made['machine']['processor']}, {made['machine']['cores']} cores, load " in said


def test_without_chromium_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_live, "find_chromium", lambda: None)
    monkeypatch.setattr(sys, "argv", ["bench_live"])
    with pytest.raises(SystemExit, match="no chromium"):
        bench_live.main()
