"""The report of a run: the figure's four panels, the page in a real browser, and what it does with little data."""

import copy
import html
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from shortstack.distillation.command_line import run_command
from shortstack.distillation.report.__main__ import main, summary, write_report
from shortstack.distillation.report.card import model_card
from shortstack.distillation.report.figure import figure, shown_set
from shortstack.distillation.report.frontier import Model, best_of, frontier_figure, models_of
from shortstack.distillation.report.page import TEMPLATE, report_page, series
from shortstack.distillation.report.run_files import ABOVE_ALL, RunFiles, clean
from shortstack.model.files import InputError

HOSTILE = (
    "</script><script>document.documentElement.dataset.broken = 1</script><!--<script> & \u2028 “é” \\u003c \ud800"
)
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)


def correlations(value: float) -> dict[str, Any]:
    interval = [value - 0.02, value + 0.015]
    return {"pearson_cosine": value - 0.01, "spearman_cosine": value, "spearman_interval": interval, "pairs": 12}


def some_pairs(count: int = 12) -> dict[str, list[Any]]:
    """Pairs whose student is furthest from the teacher at row 1, the hostile sentence."""
    return {
        "sentences1": [HOSTILE if row == 1 else f"first sentence {row}" for row in range(count)],
        "sentences2": [f"second sentence {row}" for row in range(count)],
        "human": [5 * row / count for row in range(count)],
        "student": [row / count + (0.4 if row == 1 else 0) for row in range(count)],
        "teacher": [row / count for row in range(count)],
    }


EVALUATION: dict[str, Any] = {
    "student": {
        "sts-dev": correlations(0.84),
        "sts-test": correlations(0.80),
        "words": correlations(0.5),
        "negative_mse": -0.05,
    },
    "teacher": {"sts-dev": correlations(0.86), "sts-test": correlations(0.82), "words": correlations(0.4)},
    "retention": {"sts-dev": 0.976, "sts-test": 0.9756, "words": 1.25},
    "difference": {"sts-dev": {"spearman": -0.02, "interval": [-0.03, -0.01], "clear": True}},
    "retrieval": {
        "captions": {
            who: {"mrr@10": 0.6, "ndcg@10": value, "recall@1": 0.5, "interval": [value - 0.05, value + 0.04]} | found
            for who, value, found in (
                ("student", 0.36, {"found@10": 0.55, "found@10_interval": [0.5, 0.6]}),
                ("teacher", 0.45, {}),
                ("asymmetric", 0.405, {"found@10": 0.65, "found@10_interval": [0.6, 0.7]}),
            )
        }
    },
    "overlap": {
        "student": {"overlap@10": 0.5, "interval": [0.4, 0.6]},
        "asymmetric": {"overlap@10": 0.6, "interval": [0.5, 0.7]},
        "sentences": 10,
        "worst": [{"sentence": HOSTILE, "found": 0.1, "nearest by the teacher": "a", "nearest by the student": "b"}],
    },
    "sanity": {"mean_cosine": 0.96, "p5_cosine": 0.91, "relative_error": 0.07, "warnings": ["<b>look here</b>"]},
    "models": {
        "student": {"layers": 2, "dimensions": 8, "parameters": 1_500_000},
        "teacher": {"layers": 6, "dimensions": 8, "parameters": 3_000_000},
    },
}
BENCH: dict[str, Any] = {
    "device": {"name": "a CPU, 2 cores"},
    "workload": {"sentences": 100},
    "rows": [
        {"system": system, "precision": precision, "layers": layers, "sentences_per_second": rate}
        for system, precision, layers, rate in [
            ("teacher", "fp32", 6, 400.0),
            ("student", "fp32", 2, 1150.0),
            ("student", "bf16", 2, 2000.0),
            ("peer", "fp32", 2, 900.0),
        ]
    ],
    "student_speedup": 2.875,
    "layer_ratio": 3.0,
    "training": [{"system": "train.py", "sentences_per_second": 170.0}],
}
RECIPE = """name = "tiny-2"
teacher = "assets/all-MiniLM-L6-v2"
layers = [0, 5]
intermediate_size = 16
sts = { "sts-dev" = "dev.csv", "sts-test" = "test.csv" }
learning_rate = 0.0004
[versions]
"torch" = "2.13.0"
"""


def make_run(directory: Path) -> Path:
    """A run directory as train.py, evaluate.py and bench.py leave it, without the weights."""
    (directory / "model").mkdir(parents=True)
    (directory / "recipe.toml").write_text(RECIPE)
    log: list[dict[str, Any]] = [
        {"step": step, "epoch": 0.1, "loss": 1 / step, "learning_rate": 1e-4} for step in range(1, 30)
    ]
    log += [
        {"step": step, "sts_dev_spearman_cosine": 0.8 + step / 1000, "negative_mse": -1 / step} for step in (10, 20, 29)
    ]
    lines = [json.dumps(line) for line in log] + ['{"step": 30, "lo']  # a crash cut the last line
    (directory / "log.jsonl").write_text("\n".join(lines))
    pairs = {name: some_pairs() for name in ("sts-dev", "sts-test", "words")}
    data = {
        "size": 1000, "evaluation_size": 10, "tokens": {"min": 3, "mean": 12.5, "max": 40},
        "samples": ["A sample.", HOSTILE, "Another."], "sources": {"text.txt": 1000},
        "vocabulary": {"pieces": 8000, "of": 30522, "share_of_tokens": 0.94, "megabytes_saved": 34.6},
    }  # fmt: skip
    for name, value in [("evaluation", EVALUATION), ("evaluation_pairs", pairs), ("bench", BENCH), ("data", data)]:
        (directory / f"{name}.json").write_text(json.dumps(value))
    (directory / "model" / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "hidden_size": 8}))
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "tiny-2")


@pytest.fixture
def files(run: Path) -> RunFiles:
    return RunFiles.read(run)


def page_data(page: str) -> Any:
    """The data that a browser would read: up to the first end of a script, as HTML has it."""
    start = page.index('<script type="application/json" id="run">') + len('<script type="application/json" id="run">')
    return json.loads(page[start : page.index("</script", start)])


# -- everything --------------------------------------------------------------------------------------------------------


def test_write_report_writes_picture_page_and_card_and_prints_the_table(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report(run)
    picture = matplotlib.image.imread(run / "report.png")
    assert picture.shape[:2] == (1200, 1600)
    quarters = [picture[y : y + 600, x : x + 800, :3] for y in (0, 600) for x in (0, 800)]
    assert all(quarter.std() > 0.05 for quarter in quarters), "a panel is blank"
    assert page_data((run / "report.html").read_text(encoding="utf-8"))["name"] == "tiny-2"
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "| Units of each layer's MLP that were kept | 16 |" in card
    assert card.startswith("---\n") and "| Saved by the smaller vocabulary, in MB | 34.6 |" in card
    printed = capsys.readouterr().out
    assert re.search(r"sts-test +0\.800 +0\.820 +97\.6%", printed)
    assert re.search(r"mean +0\.713 +0\.693 +102\.9%", printed)
    assert re.search(r"sentences/s, fp32 +1,150 +400 +2\.88x", printed)
    for name in ("report.png", "report.html", "model/README.md"):
        assert f"wrote {run / name}" in printed


def test_the_frontier_has_each_student_in_each_precision_and_each_teacher_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / name for name in ("one", "one/bf16", "two")]
    for path, precision, sts in zip(paths, ("fp32", "bf16", "fp32"), (0.82, 0.41, 0.615), strict=True):
        if path.name != "bf16":
            (make_run(path) / "recipe.toml").write_text(RECIPE.replace("tiny-2", path.name))
            teacher = {"system": "teacher", "precision": "bf16", "layers": 6, "sentences_per_second": 700.0}
            (path / "bench.json").write_text(json.dumps(BENCH | {"rows": [*BENCH["rows"], teacher]}))
        path.mkdir(exist_ok=True)
        value = copy.deepcopy(EVALUATION)
        value["models"]["student"]["precision"] = precision
        value["student"]["sts-test"] = correlations(sts)
        for name in ("sts-dev", "words") if path.name == "two" else ():  # only sets that all have count
            del value["student"][name]
        (path / "evaluation.json").write_text(json.dumps(value))
    found = {
        (each.name, each.precision): (each.speed, each.sts, each.search) for each in models_of([paths[0], paths[2]])
    }
    assert found == {
        ("one", "fp32"): (1150.0, pytest.approx(1.0), pytest.approx(0.8)),
        ("one", "bf16"): (2000.0, pytest.approx(0.5), pytest.approx(0.8)),
        ("two", "fp32"): (1150.0, pytest.approx(0.75), pytest.approx(0.8)),
        ("all-MiniLM-L6-v2", "fp32"): (400.0, 1.0, 1.0),
        ("all-MiniLM-L6-v2", "bf16"): (700.0, 1.0, 1.0),
    }
    picture = tmp_path / "frontier.png"
    aside, labels = paths[2].rename(tmp_path / "one.1"), tmp_path / "labels"
    (aside / "recipe.toml").write_text((paths[0] / "recipe.toml").read_text())  # an earlier run of the same name
    labels.mkdir()  # as `runs/*` has it
    arguments = ["report", *map(str, (labels, paths[0], aside)), "--frontier", str(picture)]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    row = "| one | all-MiniLM-L6-v2 | 2 of 6 | 16 | 8,000 | 8 | bf16 | 6 | 2,000 | 55.0% | 80.0% | 50.0% |"
    printed = capsys.readouterr().out
    assert row in printed.splitlines() and "| one.1 | all-MiniLM-L6-v2 |" in printed
    assert matplotlib.image.imread(picture).shape[:2] == (1800, 1600)  # found@10, nDCG@10 and Spearman


def test_runs_of_one_name_in_two_outputs_are_told_apart(tmp_path: Path) -> None:
    """As `distill(..., output="a")` and `output="b"` make them."""
    paths = [make_run(tmp_path / place / "tiny-2") for place in ("a", "b")]
    assert {model.name for model in models_of(paths)} == {"tiny-2", str(paths[1]), "all-MiniLM-L6-v2"}


def test_the_frontier_is_what_no_other_beats_in_both() -> None:
    points: Any = [(1.0, 0.9, "a"), (2.0, 0.8, "b"), (3.0, 0.85, "c"), (4.0, 0.5, "d"), (4.0, 0.6, "e")]
    assert [name for _, _, name in best_of(points, fewer=False)] == ["e", "c", "a"]
    assert [name for _, _, name in best_of(points, fewer=True)] == ["a"]


def test_a_name_is_not_drawn_over_the_numbers_of_its_axis() -> None:
    """The slowest model's name finds no room on its right, where another point is."""
    slow = Model("a-teacher-of-a-long-name", "a", "6", None, None, 8, "bf16", 90.0, 100.0, 1.0, 1.0, 1.0)
    others = [replace(slow, name=str(speed), teacher="b", speed=speed) for speed in (300.0, 20_000.0)]
    picture = frontier_figure([slow, *others])
    names = [text for axes in picture.axes for text in axes.texts]
    assert len(names) >= 3
    assert all(name.get_window_extent().x0 >= name.axes.bbox.x0 for name in names)


def test_command_help_and_wrong_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def status(*arguments: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["report.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            run_command(main)
        return stop.value.code

    assert status("--help") == 0
    assert "RUN" in capsys.readouterr().out
    for arguments in (["no-such-run"], [], ["a", "b"], ["a", "--frontier", "a.png"]):
        assert status(*arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("evaluation.json", None, "python evaluate.py"),
        ("evaluation.json", "[1, 2]", "must hold a JSON object"),
        ("bench.json", '{"rows": [', "not JSON"),
        ("recipe.toml", "name = ", "not TOML"),
        ("model/config.json", None, "no student"),
    ],
)
def test_a_missing_or_damaged_file_is_named(run: Path, name: str, content: str | None, message: str) -> None:
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        write_report(run)
    assert name.split("/")[0] in str(error.value)
    assert not (run / "report.html").exists()


def test_log_survives_a_cut_line_and_a_resumed_step(run: Path) -> None:
    with open(run / "log.jsonl", "a") as log:
        log.write('\n{"step": 5, "loss": 0.125}\n{"step": 31, "loss": NaN}\n')
    lines = RunFiles.read(run).log
    assert [line["step"] for line in lines] == [*range(1, 30), 31]
    assert lines[4] == {"step": 5, "epoch": 0.1, "loss": 0.125, "learning_rate": 1e-4}
    assert lines[-1]["loss"] is None


def test_a_run_without_teacher_speed_pairs_log_or_data_still_gives_a_report(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("evaluation_pairs.json", "bench.json", "data.json", "log.jsonl"):
        (run / name).unlink()
    (run / "evaluation.json").write_text(json.dumps({"student": EVALUATION["student"]}))
    write_report(run)
    assert re.search(r"sts-dev +0\.840 +– +–", capsys.readouterr().out)
    texts = texts_of(figure(RunFiles.read(run)))
    assert any("--teacher" in text for text in texts)
    assert any("bench.py" in text for text in texts)


# -- the figure --------------------------------------------------------------------------------------------------------


def texts_of(picture: Figure) -> list[str]:
    return [text.get_text() for text in picture.findobj(Text) if isinstance(text, Text) and text.get_text()]


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_panels_say_what_they_show(files: RunFiles) -> None:
    titles = [axes.get_title(loc="left") for axes in figure(files).axes]
    assert titles == [
        "Search: found of the teacher's first ten, 95% intervals",
        "Spearman with human scores, 95% intervals",
        "Speed: 2.88 times the teacher's; layer ratio 3.00",
        "sts-test: student's Spearman 0.800",
    ]
    assert all(axes.get_xlabel() for axes in figure(files).axes)
    files.evaluation.pop("retrieval")
    del files.searches
    assert figure(files).axes[0].get_title(loc="left") == "What is gained, per set: 2.0 points on average"


def test_search_panel_shows_what_the_student_finds_alone_and_over_the_teachers_documents(files: RunFiles) -> None:
    search = figure(files).axes[0]
    assert [bar.get_width() for bar in bars(search)] == [0.55, 0.65]
    assert [text.get_text() for text in search.texts] == [
        "55%; nDCG@10 0.360 of 0.450",
        "65%; nDCG@10 0.405 of 0.450",
    ]


def test_search_panel_of_a_run_that_was_evaluated_without_its_teacher(files: RunFiles) -> None:
    student = files.evaluation["retrieval"]["captions"]["student"]
    del student["found@10"]
    files.evaluation["retrieval"]["captions"] = {"student": student}
    search = figure(files).axes[0]
    assert [bar.get_width() for bar in bars(search)] == [0.36]
    assert [text.get_text() for text in search.texts] == ["0.360"]


def test_the_users_own_sets_come_first_and_lead_the_headline(files: RunFiles) -> None:
    files.recipe["retrieval"] = {"wikipedia": "assets/retrieval/wikipedia", "manual": "my/manual"}
    sets = files.evaluation["retrieval"]
    files.evaluation["retrieval"] = {"wikipedia": sets["captions"], "manual": copy.deepcopy(sets["captions"])}
    files.evaluation["retrieval"]["manual"]["student"]["found@10"] = 0.83
    assert [(row.name, row.own) for row in files.searches] == [("manual", True), ("wikipedia", False)]
    assert "search on manual finds 83.0% of the teacher's first ten documents" in files.headline


def test_the_projects_sets_are_known_where_the_recipe_does_not_name_them(files: RunFiles) -> None:
    files.recipe["retrieval"] = {"wikipedia": "assets/retrieval/wikipedia"}
    found = files.evaluation["retrieval"]["captions"]
    files.evaluation["retrieval"] = dict.fromkeys(("wikipedia", "manuals", "mine"), found)
    assert [(row.name, row.own) for row in files.searches] == [("mine", True), ("wikipedia", False), ("manuals", False)]


def test_the_headline_leads_with_what_is_kept_worst(files: RunFiles) -> None:
    assert files.headline == (
        "2 of 6 layers, search on captions finds 55.0% of the teacher's first ten documents, "
        "keeps 80.0% of the teacher's search on captions, elsewhere 97.6% to 125.0%, 2.88 times as fast"
    )
    assert summary(files).splitlines()[-2:] == [ABOVE_ALL, files.headline]
    card = model_card(files)
    assert f"**{files.headline}.**" in card and ABOVE_ALL in card
    assert "| captions | 55.0% | 0.3600 | 80.0% | 65.0% | 0.4050 | 90.0% | 0.4500 |" in card
    files.evaluation["student"]["words"] = correlations(0.39)
    del files.results, files.kept
    assert ABOVE_ALL not in summary(files) and ABOVE_ALL not in model_card(files)


def test_lost_panel_has_teacher_minus_student_in_points(files: RunFiles) -> None:
    del files.evaluation["retrieval"]
    lost = figure(files).axes[0]
    assert [round(bar.get_width(), 6) for bar in bars(lost)] == [2.0, 2.0, -10.0]
    assert {"+2.0", "−10.0"} <= {text.get_text() for text in lost.texts}


def test_speed_panel_compares_only_precisions_that_both_were_measured_in(files: RunFiles) -> None:
    speed = figure(files).axes[2]
    assert sorted(bar.get_width() for bar in bars(speed)) == [400.0, 1150.0]


def test_scatter_shows_the_last_test_set_else_the_first(files: RunFiles) -> None:
    row = shown_set(files)
    assert row is not None and row.name == "sts-test"
    del files.evaluation["student"]["sts-test"], files.results
    row = shown_set(files)
    assert row is not None and row.name == "sts-dev"


@pytest.mark.parametrize("sets", [0, 1, 8])
@pytest.mark.parametrize("best", [0.9, 0.05], ids=["high", "around zero"])
def test_no_label_is_cut_off_or_lies_on_another(files: RunFiles, sets: int, best: float) -> None:
    names = [f"a-rather-long-name-of-a-set-{place}-$x$" for place in range(sets)]
    values = [best - 0.06 * place for place in range(sets)]
    files.evaluation["student"] = {name: correlations(value) for name, value in zip(names, values, strict=True)}
    files.evaluation["teacher"] = {name: correlations(best) for name in names}
    files.pairs = {name: clean(some_pairs()) for name in names}
    picture = figure(files)
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    assert picture._suptitle is not None  # type: ignore[attr-defined]
    parts = [*picture.axes, *picture.legends, picture._suptitle]  # type: ignore[attr-defined]
    boxes = [part.get_tightbbox(canvas.get_renderer()) for part in parts]
    for part, box in zip(parts, boxes, strict=True):
        assert min(box.x0, box.y0) >= 0 and box.x1 <= 1600 and box.y1 <= 1200, f"{part} is cut off"
        assert box.count_overlaps(boxes) == 1, f"{part} overlaps more than itself"
    for axes in picture.axes:
        names_written = [label.get_window_extent() for label in axes.get_yticklabels()]
        for written in (names_written, [text.get_window_extent() for text in axes.texts]):
            middles = [box.padded(-0.2 * box.height) for box in written]
            assert all(box.count_overlaps(middles) == 1 for box in middles), "two labels lie on each other"


# -- the page ----------------------------------------------------------------------------------------------------------


def test_text_cannot_break_out_of_the_page(files: RunFiles) -> None:
    page, template = report_page(files), TEMPLATE.read_text(encoding="utf-8")
    for mark in ("<script", "</script", "<!--"):
        assert page.count(mark) == template.count(mark)
    shown = page_data(page)["pairs"]["words"]["sentences"]
    assert HOSTILE.replace("\ud800", "?") in shown, (
        "the sentence must arrive as it was, but for the half surrogate pair"
    )


def test_page_needs_no_network() -> None:
    template = TEMPLATE.read_text(encoding="utf-8")
    assert "default-src 'none'" in template
    addresses = set(re.findall(r"https?://[^\"'\s]+", template))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of SVG, not fetched
    assert not re.search(r"\bsrc=|@import|url\(", template)


def test_page_of_many_long_pairs_stays_below_2_mb_and_keeps_the_greatest_differences(files: RunFiles) -> None:
    count = 20_000
    rng = np.random.default_rng(0)
    teacher = rng.uniform(size=count).round(6)
    student = (teacher + rng.normal(scale=0.01, size=count)).round(6)
    student[12_345] = teacher[12_345] - 5
    pairs = {
        "sentences1": [f"<{row}> " + "words " * 30 for row in range(count)],
        "sentences2": [f"<{row}> " + "others " * 30 for row in range(count)],
        "human": teacher.tolist(), "student": student.tolist(), "teacher": teacher.tolist(),
    }  # fmt: skip
    files.pairs = {"one": pairs, "two": pairs, "short": clean(some_pairs(5000))}
    page = report_page(files)
    assert len(page.encode()) < 2_000_000
    shown = page_data(page)["pairs"]
    assert shown["one"]["total"] == count and 500 < len(shown["one"]["rows"]) <= 3000
    assert len(shown["short"]["rows"]) == 3000
    first = shown["one"]["rows"][0]
    assert shown["one"]["sentences"][first[0]].startswith("<12345>")


def test_curves_are_averaged_to_what_a_screen_can_show() -> None:
    log = [{"step": step, "loss": float(step)} for step in range(1, 20_001)]
    points = series(log, "loss")
    assert 400 < len(points) <= 600
    assert points[0] == [34, 17.5]  # the mean of 1 to 34
    assert points[-1][0] == 20_000
    assert series(log, "absent") == []


# -- the page in a browser ---------------------------------------------------------------------------------------------

ACT = """<script>
const figure = document.querySelector("svg");
figure.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
document.documentElement.dataset.byKey = document.querySelector("[aria-live]").textContent;
const circle = figure.querySelectorAll(".point")[7].getBoundingClientRect();
const at = { clientX: circle.x + circle.width / 2, clientY: circle.y + circle.height / 2, bubbles: true };
figure.dispatchEvent(new PointerEvent("pointermove", at));
document.documentElement.dataset.byPointer = document.querySelector("[aria-live]").textContent;
document.querySelector("button.pick").click();
document.documentElement.dataset.byRow = document.querySelector("[aria-live]").textContent;
const choice = document.querySelector("select");
choice.value = "words";
choice.dispatchEvent(new Event("change"));
document.documentElement.dataset.bySet = document.querySelector("svg").getAttribute("aria-label");
document.getElementById("theme").click();
document.documentElement.dataset.afterClick = getComputedStyle(document.body).backgroundColor;
</script>"""


def browse(page: Path, *flags: str) -> str:
    """Open a page in headless Chromium; what it writes to stdout."""
    if CHROMIUM is None:
        pytest.skip("no Chromium installed (Debian: apt-get install chromium)")
    plain = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    own = [f"--user-data-dir={page.parent / 'profile'}", "--virtual-time-budget=3000"]
    command = [CHROMIUM, *plain, *own, *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def attribute(dom: str, name: str) -> str | None:
    """A data attribute of the <html> element."""
    opening = re.search(r"<html.*?>(?=<head)", dom, re.DOTALL)
    assert opening
    found = re.search(rf'\bdata-{name}="([^"]*)"', opening[0])
    return html.unescape(found[1]) if found else None


def test_browser_draws_the_page_and_answers_keys_pointer_and_choices(files: RunFiles, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(report_page(files).replace("</body>", ACT + "</body>"), encoding="utf-8")
    dom = browse(page, "--dump-dom", "--window-size=1280,2000", "--blink-settings=preferredColorScheme=1")
    assert attribute(dom, "rendered") == "true"
    assert attribute(dom, "error") is None
    assert attribute(dom, "broken") is None, "a sentence ran as a script"
    for name, place in [("by-key", 2), ("by-pointer", 7), ("by-row", 1)]:
        text = attribute(dom, name) or ""
        assert f"second sentence {place}" in text
        assert all(word in text for word in ("people", "student", "teacher"))
    assert (attribute(dom, "by-set") or "").startswith("words: student over human, 12 pairs")
    assert attribute(dom, "after-click") == "rgb(18, 22, 28)"
    assert "&lt;b&gt;look here&lt;/b&gt;" in dom
    for text in ("mrr@10", "a CPU, 2 cores", "0.0004", "Training loss", "Negative MSE"):
        assert text in dom
    assert "NaN" not in dom.split("<main")[1].split("<script")[0]


@pytest.mark.parametrize(("scheme", "paper"), [(1, 255), (0, 18)], ids=["light", "dark"])
def test_screenshot_is_not_blank(files: RunFiles, tmp_path: Path, scheme: int, paper: int) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(report_page(files), encoding="utf-8")
    browse(
        page, f"--screenshot={picture}", "--window-size=1280,1400", f"--blink-settings=preferredColorScheme={scheme}"
    )
    pixels = (matplotlib.image.imread(picture)[..., :3] * 255).round()
    assert pixels[2, 2, 0] == paper
    inked = np.abs(pixels - pixels[2, 2]).sum(axis=2) > 100
    assert inked[:200].any() and inked[200:700].any() and inked[700:].any()


def test_browser_draws_the_page_of_a_run_with_little_data(run: Path, tmp_path: Path) -> None:
    for name in ("evaluation_pairs.json", "bench.json", "data.json", "log.jsonl"):
        (run / name).unlink()
    (run / "evaluation.json").write_text('{"student": {}}')
    page = tmp_path / "page.html"
    page.write_text(report_page(RunFiles.read(run)), encoding="utf-8")
    dom = browse(page, "--dump-dom")
    assert attribute(dom, "rendered") == "true" and attribute(dom, "error") is None
    assert "python bench.py" in dom


AUDIT = """<script>
const wide = [document.documentElement.scrollHeight, document.documentElement.scrollWidth];
for (const details of document.querySelectorAll("details")) details.open = true;
axe.run(document).then(({ violations, passes }) => {
  const found = violations.map((each) => [each.id, each.nodes.slice(0, 3).map((node) => node.html)]);
  parent.document.documentElement.dataset[`at${innerWidth}`] = JSON.stringify([...wide, passes.length, found]);
});
</script>"""


def test_the_page_is_short_fits_its_window_and_has_no_barriers(files: RunFiles, tmp_path: Path) -> None:
    """At the widths of a laptop and a phone; axe-core sees all that is folded opened."""
    axe_core = pytest.importorskip("axe_core_python", reason="axe-core-python is not installed: pip install '.[test]'")
    script = (Path(axe_core.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    sets = files.evaluation["retrieval"]
    files.evaluation["retrieval"] = {f"a-rather-long-name-{place}": sets["captions"] for place in range(6)}
    long = "A document of many words. " * 40
    missed = {"query": long, "found": 0.1, "teacher": [long] * 5, "student": [long] * 5}
    files.evaluation["missed"] = {name: [missed] * 5 for name in files.evaluation["retrieval"]}
    files.pairs["sts-test"]["sentences1"][1] = long
    audit = f"<script>{script.replace('</script', '<' + chr(92) + '/script')}</script>{AUDIT}</body>"
    inner = html.escape(report_page(files).replace("</body>", audit))
    page = tmp_path / "frames.html"  # a window can't be as narrow as a phone, a frame can
    frames = [
        f'<iframe srcdoc="{inner}" style="border:0; width:{width}px; height:900px"></iframe>' for width in (1280, 390)
    ]
    page.write_text(f"<html><head></head><body>{''.join(frames)}</body></html>", encoding="utf-8")
    dom = browse(page, "--dump-dom", "--window-size=1400,1900", "--virtual-time-budget=30000")
    for width, limit in ((1280, 4000), (390, 8000)):
        measured = attribute(dom, f"at{width}")
        assert measured, f"no audit at {width}"
        height, page_width, passes, violations = json.loads(measured)
        assert violations == [] and passes > 20
        assert 1000 < height < limit and page_width <= width


def test_a_column_is_sorted_by_a_click_on_its_head(files: RunFiles, tmp_path: Path) -> None:
    act = """<script>
    const heads = [...document.querySelectorAll("#similarity th button")];
    const first = () => document.querySelector("#similarity tbody th").textContent;
    const student = heads.find((head) => head.textContent === "Student");
    student.click();
    document.documentElement.dataset.falling = first() + " " + student.parentNode.getAttribute("aria-sort");
    student.click();
    document.documentElement.dataset.rising = first() + " " + student.parentNode.getAttribute("aria-sort");
    </script></body>"""
    page = tmp_path / "page.html"
    page.write_text(report_page(files).replace("</body>", act), encoding="utf-8")
    dom = browse(page, "--dump-dom")
    assert attribute(dom, "falling") == "sts-dev descending" and attribute(dom, "rising") == "words ascending"


def test_table_without_sets_has_its_header(files: RunFiles) -> None:
    files.evaluation, files.bench = {"student": {}}, {}
    assert summary(files).splitlines()[-1] == "2 layers"


def test_no_name_in_the_frontier_lies_on_another_or_on_a_point() -> None:
    models = [
        Model(
            f"student-{place}", "teacher", "3 of 6", None, None, 384, "fp32", 60.0 + place // 2, 500.0, 0.6, 0.9, 0.98
        )
        for place in range(8)
    ]
    models.append(Model("teacher", "teacher", "6", None, None, 384, "fp32", 90.0, 300.0, 1.0, 1.0, 1.0))
    picture = frontier_figure(models)
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    for axes in picture.axes:
        names = [text.get_window_extent() for text in axes.texts]
        assert names and all(box.count_overlaps(names) == 1 for box in names), "two names lie on each other"
        points = axes.transData.transform(np.concatenate([np.asarray(each.get_offsets()) for each in axes.collections]))
        assert not any(box.contains(x, y) for box in names for x, y in points), "a name lies on a point"
