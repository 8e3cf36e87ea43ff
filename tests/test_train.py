"""The whole run: what it leaves, that it learns, that its settings do what they say, and how it refuses bad input."""

import dataclasses
import functools
import math
import shutil
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from processes import ROOT, TRAIN, RunDirectory, command, train, write_recipe
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny import edit, english_sentences, make_bert_dir

import train as module
from distillation.data import labels
from distillation.data.batches import window_batches
from distillation.data.labels import LabelledSentences
from distillation.losses import LOSSES
from distillation.optimizer import StudentOptimizer
from distillation.ranks import Ranks
from distillation.recipe import Recipe, read_recipe
from model import Embedder
from model.files import InputError

TEST_TEXT = english_sentences(30, seed=9)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def recipe(place: Path, tiny_model_dir: Path) -> Path:
    return write_recipe(place, tiny_model_dir, sentences=440, epochs=2)


@pytest.fixture(scope="module")
def first(recipe: Path) -> tuple[RunDirectory, str]:
    """A finished run, typed as a user would, and what it printed."""
    ended = command(TRAIN, recipe)
    assert ended.status == 0, ended.err
    return RunDirectory(recipe.parent / "runs" / "tiny"), ended.out


# -- what a run leaves -----------------------------------------------------------------------------------------------


def test_the_run_directory(first: tuple[RunDirectory, str]) -> None:
    run, out = first
    names = {path.name for path in run.path.iterdir()}
    assert names >= {"recipe.toml", "log.jsonl", "checkpoints", "model", "evaluation.json", "evaluation_pairs.json"}
    assert {path.name for path in (run.path / "checkpoints").iterdir()} == {"last.safetensors", "best.safetensors"}
    assert run.leftovers() == []
    figures = run.json("evaluation.json")
    for who in ("student", "teacher"):
        assert {"pearson_cosine", "spearman_cosine"} <= figures[who]["sts-dev"].keys()
    assert figures["student"]["negative_mse"] < 0 and isinstance(figures["retention"]["sts-dev"], float)
    assert len(run.json("held_out.json")["sentences"]) == 40 and run.json("data.json")["size"] == 400
    assert "STS set" in out and out.rstrip().endswith(str(run.path / "model"))


def test_the_recipe_of_a_run_is_the_recipe(first: tuple[RunDirectory, str], recipe: Path) -> None:
    found, given = read_recipe(first[0].path / "recipe.toml"), read_recipe(recipe)
    assert found == given
    assert '"torch" = ' in (first[0].path / "recipe.toml").read_text()


def test_the_log(first: tuple[RunDirectory, str]) -> None:
    run = first[0]
    training = {"step", "loss", "learning_rate", "grad_norm", "sentences_per_second", "idle_share", "skipped_steps"}
    training |= {"epoch"}
    for line in run.log:
        assert training <= line.keys() if "loss" in line else {"negative_mse", "sts_dev_spearman_cosine"} <= line.keys()
    assert list(run.logged("loss")) == [10, 20, 30, 40]
    assert list(run.logged("epoch").values()) == [0.5, 1.0, 1.5, 2.0]
    assert list(run.logged("negative_mse")) == [0, 10, 20, 30, 40]
    assert set(run.logged("idle_share").values()) == {0.0} and set(run.logged("skipped_steps").values()) == {0}


def test_tensorboard_shows_what_the_log_says(first: tuple[RunDirectory, str]) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    events = accumulator.EventAccumulator(str(first[0].path / "tensorboard")).Reload()
    for key in ("loss", "learning_rate", "sts_dev_spearman_cosine"):
        logged = first[0].logged(key)
        assert {event.step: event.value for event in events.Scalars(key)} == pytest.approx(logged, rel=1e-6)


def test_the_student_is_a_model_of_the_field(first: tuple[RunDirectory, str]) -> None:
    path = str(first[0].path / "model")
    theirs = SentenceTransformer(path, device="cpu").encode(TEST_TEXT)
    ours = Embedder.load(path, device="cpu", precision="fp32").encode(TEST_TEXT)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_it_learns(first: tuple[RunDirectory, str], tiny_model_dir: Path) -> None:
    run = first[0]
    losses, distances = run.logged("loss"), run.logged("negative_mse")
    assert losses[40] < 0.5 * losses[10]
    assert distances[40] > 0.05 * distances[0]  # both are negative: twenty times nearer than untrained
    teacher = Embedder.load(tiny_model_dir, device="cpu", precision="fp32")
    student = Embedder.load(run.path / "model", device="cpu", precision="fp32")
    untrained = teacher.keep_layers([0, 2, 5]).use_precision("fp32")
    wanted = teacher.encode(TEST_TEXT)
    errors = [np.square(each.encode(TEST_TEXT) - wanted).mean() for each in (student, untrained)]
    assert errors[0] < 0.1 * errors[1]


def test_the_best_is_what_is_kept(recipe: Path) -> None:
    """By a metric that wanders, since the scores are made up: the best step is none of the last."""
    metric = "sts_dev_spearman_cosine"
    ended = train(recipe, "--name", "best", "--metric-for-best-model", metric, "--evaluate-every", "1")
    assert ended.status == 0, ended.err
    run = RunDirectory(recipe.parent / "runs" / "best")
    by_step = run.logged(metric)
    assert list(by_step) == list(range(41))
    best = max(by_step, key=lambda step: by_step[step])
    assert best not in (0, 40)
    figures = run.json("evaluation.json")
    assert figures["best_step"] == best
    assert figures["student"]["sts-dev"]["spearman_cosine"] == pytest.approx(by_step[best])
    kept = load_file(run.path / "checkpoints" / "best.safetensors")
    assert all(torch.equal(kept[f"bert.{name}"], tensor) for name, tensor in run.weights.items())


def test_a_second_run_uses_the_labels_again_and_moves_the_first_aside(place: Path, tiny_model_dir: Path) -> None:
    recipe = write_recipe(place / "twice", tiny_model_dir)
    assert train(recipe).status == 0
    labels = {path: path.stat().st_mtime_ns for path in (recipe.parent / "runs" / "labels").rglob("*.*")}
    assert len(labels) == 3
    earlier = RunDirectory(recipe.parent / "runs" / "tiny").weights
    ended = train(recipe, "--learning-rate", "1e-4")
    assert ended.status == 0 and "labels:" not in ended.err
    assert {path: path.stat().st_mtime_ns for path in labels} == labels
    aside = RunDirectory(recipe.parent / "runs" / "tiny.1")
    assert f"{recipe.parent}/runs/tiny was there already: moved to {aside.path}" in ended.out
    assert all(torch.equal(tensor, aside.weights[name]) for name, tensor in earlier.items())
    assert train(recipe).status == 0 and (recipe.parent / "runs" / "tiny.2").is_dir()


# -- settings --------------------------------------------------------------------------------------------------------


def parquet_dataset(directory: Path, splits: dict[str, dict[str, list[Any]]]) -> Path:
    """A local directory in the form of a Hub dataset: a Parquet file for each split."""
    (directory / "data").mkdir(parents=True)
    for split, columns in splits.items():
        parquet.write_table(pa.table(columns), directory / "data" / f"{split}-00000-of-00001.parquet")
    return directory


def test_the_reference_recipe_in_small(place: Path) -> None:
    """recipes/mxbai-large-8.toml as it is; only teacher, text and what depends on their size is put in its place."""
    text, folder = english_sentences(400), place / "reference"
    teacher = make_bert_dir(folder / "teacher", layers=24, hidden=24, heads=4, pooling="cls", normalize=False)
    pairs = parquet_dataset(folder / "pairs", {"train": {"sentence1": text[:100], "sentence2": text[60:160]}})
    wiki = parquet_dataset(folder / "wiki", {"train": {"sentence": text[160:]}})
    scores = {"sentence1": text[:20], "sentence2": text[20:40], "score": [number % 6 / 5 for number in range(20)]}
    sts = parquet_dataset(folder / "sts", {"validation": scores, "test": scores})
    ended = train(
        ROOT / "recipes" / "mxbai-large-8.toml", "--output", str(folder), "--teacher", str(teacher),
        "--sentences", f"{pairs}::train:sentence1,sentence2", str(wiki),
        "--sts", f"sts-dev={sts}::validation", f"sts-test={sts}::test", "--evaluation-sentences", "40",
        "--max-sentences", "260", "--precision", "bf16", "--gradient-accumulation", "2", "--evaluate-every", "2",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    run = RunDirectory(folder / "mxbai-large-8")
    used = read_recipe(run.path / "recipe.toml")
    assert used.layers == [0, 3, 6, 9, 12, 15, 18, 21] and used.dropout == 0.1 and used.batch_size == 64
    assert len({name.split(".")[2] for name in run.weights if name.startswith("encoder.layer.")}) == 8
    # 160 distinct sentences of the first source and 240 of the second; 20 of each are held out, the second is cut
    assert list(run.json("data.json")["sources"].values()) == [140, 120]
    held_out = run.json("held_out.json")["sentences"]
    assert len(set(held_out) & set(text[:160])) == 20 and len(set(held_out) & set(text[160:])) == 20
    by_step = run.logged("sts_dev_spearman_cosine")
    assert list(by_step) == [0, 2, 4, 5]
    assert run.json("evaluation.json")["best_step"] == max(by_step, key=lambda step: by_step[step])
    student = SentenceTransformer(str(run.path / "model"), device="cpu")
    assert student[1].get_config_dict()["pooling_mode"] == "cls" and len(student) == 2  # and no normalisation
    assert not np.allclose(np.linalg.norm(student.encode(TEST_TEXT), axis=1), 1, atol=0.1)


def test_gradient_accumulation_takes_the_same_steps(recipe: Path) -> None:
    runs = [RunDirectory(recipe.parent / "runs" / f"pieces-{pieces}") for pieces in (1, 4)]
    for run, pieces in zip(runs, ("1", "4"), strict=True):
        settings = ["--gradient-accumulation", pieces, "--learning-rate", "2e-4"]
        assert train(recipe, "--name", run.path.name, *settings).status == 0
    one, four = runs
    assert four.logged("loss") == pytest.approx(one.logged("loss"), abs=1e-5, rel=1e-4)
    for name, tensor in one.weights.items():
        torch.testing.assert_close(four.weights[name], tensor, atol=1e-5, rtol=1e-5)


def test_fewer_dimensions(recipe: Path) -> None:
    ended = train(recipe, "--name", "short", "--dimensions", "8")
    assert ended.status == 0, ended.err
    run = RunDirectory(recipe.parent / "runs" / "short")
    student = SentenceTransformer(str(run.path / "model"), device="cpu")
    assert student.encode(TEST_TEXT).shape == (30, 8)
    distances = run.logged("negative_mse")
    assert distances[40] > 0.2 * distances[0]


def test_a_student_with_all_layers_starts_as_its_teacher(recipe: Path) -> None:
    ended = train(recipe, "--name", "whole", "--layers", "0,1,2,3,4,5", "--label-precision", "fp32", "--epochs", "1")
    assert ended.status == 0, ended.err
    run = RunDirectory(recipe.parent / "runs" / "whole")
    assert run.logged("negative_mse")[0] == pytest.approx(0, abs=1e-9)
    assert run.json("evaluation.json")["best_step"] == 0
    assert "warning: training did not improve on the untrained student" in ended.out


def test_bf16_trains_on_a_cpu(recipe: Path) -> None:
    ended = train(recipe, "--name", "bf16", "--precision", "bf16")
    assert ended.status == 0, ended.err
    run = RunDirectory(recipe.parent / "runs" / "bf16")
    distances = run.logged("negative_mse")
    assert distances[40] > 0.1 * distances[0]
    assert all(tensor.dtype == torch.float32 for tensor in run.weights.values())


def one_step(student: Embedder, teacher: Embedder, **settings: Any) -> tuple[float, float]:
    """Loss and gradient norm of one step on TEST_TEXT."""
    tokens = teacher.tokenize(TEST_TEXT)
    window = LabelledSentences(tokens, torch.as_tensor(teacher.encode(TEST_TEXT)))
    [batch] = window_batches(window.lengths, len(tokens), np.random.default_rng(0))
    recipe, ranks = Recipe(**settings), Ranks(0, 1, torch.device("cpu"))
    optimizer = StudentOptimizer(student.train(), recipe, ranks)
    loss = module.train_step(student, optimizer, window, batch, recipe, ranks)
    return float(loss), float(optimizer.grad_norm)


def test_the_loss_is_computed_in_fp32_under_bf16(
    tiny_cls_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # the unnormalised student's own output is bf16 there
    teacher = Embedder.load(tiny_cls_dir, device="cpu", precision="fp32")
    seen = []

    def mse(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.extend([student.dtype, labels.dtype])
        return (student - labels).square().mean(dim=1)

    monkeypatch.setitem(LOSSES, "mse", mse)
    one_step(teacher.keep_layers([0, 7]), teacher, precision="bf16")
    assert seen == [torch.float32, torch.float32]


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_cls_dir: Path) -> None:
    teacher = Embedder.load(tiny_cls_dir, device="cpu", precision="fp32")
    loss, norm = one_step(teacher.keep_layers([0, 7]), teacher, precision="fp32")
    for pieces in (2, 7):
        again = one_step(teacher.keep_layers([0, 7]), teacher, precision="fp32", gradient_accumulation=pieces)
        assert again == pytest.approx((loss, norm), rel=1e-4)


def test_the_learning_rate_rises_and_falls_in_lines(first: tuple[RunDirectory, str]) -> None:
    recipe = Recipe(learning_rate=2.0, warmup_ratio=0.1)
    rates = [module.learning_rate_at(step, 40, recipe) for step in range(40)]
    np.testing.assert_allclose(rates[:4], [0.5, 1, 1.5, 2])
    np.testing.assert_allclose(np.diff(rates[4:]), -2 / 36)
    assert rates[4] == 2.0 and rates[-1] == pytest.approx(2 / 36)
    assert all(math.isfinite(module.learning_rate_at(step, 3, Recipe(warmup_ratio=1.0))) for step in range(3))
    for step, rate in first[0].logged("learning_rate").items():
        wanted = module.learning_rate_at(step - 1, 40, Recipe(learning_rate=1e-3))
        assert rate == pytest.approx(wanted)


def test_settings_that_change_no_step_may_change_on_resume() -> None:
    names = {field.name for field in dataclasses.fields(Recipe)}
    assert set(module.FREE_TO_CHANGE) <= names


# -- memory ----------------------------------------------------------------------------------------------------------


def peak_memory(recipe: Path, sentences: int, window: int) -> int:
    """Peak memory of a run on this many sentences, in bytes."""
    name = f"memory-{sentences}-{window}"
    path = recipe.parent / name
    before = functools.partial(hooks.measure_memory, path, 256, window)
    ended = train(recipe, "--name", name, "--max-sentences", str(sentences), before=before)
    assert ended.status == 0, ended.err
    return int(path.read_text())


def test_memory_does_not_grow_with_the_corpus(place: Path) -> None:
    """Eight times the sentences, 16 KB of label each. Windows as large as the corpus show that growth would be seen."""
    teacher = make_bert_dir(
        place / "wide", layers=1, hidden=8, heads=1, dense=(4096, "torch.nn.modules.linear.Identity")
    )
    recipe = write_recipe(
        place / "memory", teacher, sentences=8232, layers=[0], batch_size=64, label_precision="fp32",
        evaluate_every=1000, save_every=1000,
    )  # fmt: skip
    few, many = (peak_memory(recipe, sentences, window=2) for sentences in (1024, 8192))
    everything = peak_memory(recipe, 8192, window=1000)
    labels = 4 * 4096 * (8192 - 1024)
    assert everything - few > labels
    assert many - few < labels / 4


# -- bad input -------------------------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


BAD_RECIPES = {
    "unknown key": ("batchsize = 3", "unknown key 'batchsize'; did you mean 'batch_size'?"),
    "not TOML": ("layers = [", "not TOML"),
    "wrong type": ("seed = 'many'", "seed = 'many' must be of type int"),
    "value out of range": ("epochs = 0", "epochs = 0 is not allowed; it must be at least 1"),
    "metric of no set": ("metric_for_best_model = 'bleu'", "metric_for_best_model = 'bleu' is not allowed"),
}

BAD_FILES = {
    "missing": (None, "bad.txt: no such file"),
    "empty": (b"", "bad.txt: no sentences in it"),
    "only blanks": (b" \n\n\t\n", "bad.txt: no sentences in it"),
    "not UTF-8": (b"fine\ncaf\xe9 au lait\n", "bad.txt:2: not UTF-8"),
    "too few": (b"one\ntwo\n", "2 distinct sentences, but 40 to hold out and 1 to train on are needed"),
}

BAD_STS = {
    "missing": (None, "bad.tsv: no such file"),
    "missing column": ("sentence1\tscore\na\t1\n", "bad.tsv:2: no column sentence2 or text2"),
    "score that is no number": ("sentence1\tsentence2\tscore\na\tb\t1\nc\td\thigh\n", "bad.tsv:3: score 'high' is not"),
    "score that is NaN": ("sentence1\tsentence2\tscore\na\tb\t1\nc\td\tnan\n", "bad.tsv:3: score 'nan' is not"),
    "one pair": ("sentence1\tsentence2\tscore\na\tb\t1\n", "1 pairs; a correlation needs two or more"),
}

BAD_FLAGS = {
    "unknown flag": (["--batchsize", "3"], "unrecognized arguments: --batchsize 3; see --help"),
    "no number": (["--batch-size", "many"], "argument --batch-size: invalid int value: 'many'; see --help"),
    "sts without a name": (["--sts", "pairs.tsv"], "--sts: 'pairs.tsv' is not of the form NAME=SOURCE"),
    "layer outside the teacher": (["--layers", "0,6"], "layer"),
    "unknown strategy": (["--layers", "odd:3"], "layers"),
    "device that is not there": (["--device", "cuda:77"], "device: cuda:77 can't be used"),
    "fp16 on a CPU": (["--precision", "fp16"], "fp16"),
    "more positions than there are": (["--max-length", "9999"], "max_length: 9999 must be from 3 to 512"),
    "more dimensions than the teacher's": (["--dimensions", "64"], "dimensions: 64 must be below the teacher's 32"),
    "more micro-batches than sentences": (
        ["--gradient-accumulation", "64"],
        "batch_size: a batch of 20 sentences can't be split",
    ),
    "a Hub name without the Hub": (["--teacher", "nobody/no-such-model"], "nobody/no-such-model"),
}


def refusal(recipe: Path, *arguments: str) -> str:
    """The error line of a run that must not start; it leaves no half-written file, and an earlier run as it was."""
    ended = train(recipe, *arguments)
    assert ended.status == 2, (ended.status, ended.err)
    assert "Traceback" not in ended.err
    runs = recipe.parent / "runs"
    if runs.exists():
        assert RunDirectory(runs).leftovers() == [] and not list(runs.glob("*/recipe.toml"))
    return ended.error


@pytest.fixture
def fresh(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return write_recipe(tmp_path, tiny_model_dir)


@pytest.mark.parametrize("case", BAD_RECIPES)
def test_a_bad_recipe_is_refused(fresh: Path, case: str) -> None:
    line, message = BAD_RECIPES[case]
    path = fresh.with_name("bad.toml")
    path.write_text(f"{line}\n{fresh.read_text()}")
    assert message in refusal(path) and ("bad.toml" in refusal(path) or "recipe:" in refusal(path))


def test_a_missing_recipe_is_refused(fresh: Path) -> None:
    assert "missing.toml: no such recipe" in refusal(fresh.with_name("missing.toml"))


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_text_is_refused(fresh: Path, case: str) -> None:
    content, message = BAD_FILES[case]
    path = fresh.with_name("bad.txt")
    if content is not None:
        path.write_bytes(content)
    assert message in refusal(fresh, "--sentences", str(path))


@pytest.mark.parametrize("case", BAD_STS)
def test_bad_sts_files_are_refused(fresh: Path, case: str) -> None:
    content, message = BAD_STS[case]
    path = fresh.with_name("bad.tsv")
    if content is not None:
        path.write_text(content)
    assert message in refusal(fresh, "--sts", f"sts-dev={path}")


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags_are_refused(fresh: Path, case: str) -> None:
    arguments, message = BAD_FLAGS[case]
    assert message in refusal(fresh, *arguments)


def test_a_teacher_that_is_no_bert_is_refused(fresh: Path, model_copy: Path) -> None:
    edit(model_copy / "config.json", model_type="roberta", architectures=["RobertaModel"])
    line = refusal(fresh, "--teacher", str(model_copy))
    assert str(model_copy / "config.json") in line and "roberta" in line


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_teacher_is_refused(fresh: Path, model_copy: Path, keep: int) -> None:
    path = model_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: truncated or not a safetensors file" in refusal(fresh, "--teacher", str(model_copy))


def test_a_teacher_without_its_files_is_refused(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refusal(fresh, "--teacher", str(tmp_path / "empty"))
    assert str(tmp_path / "nowhere") in refusal(fresh, "--teacher", str(tmp_path / "nowhere"))


def test_labels_of_another_teacher_are_refused(fresh: Path, tmp_path: Path, tiny_cls_dir: Path) -> None:
    labels = tmp_path / "labels"
    assert train(fresh, "--labels", str(labels)).status == 0
    before = {path: path.read_bytes() for path in labels.iterdir()}
    shutil.rmtree(tmp_path / "runs")
    line = refusal(fresh, "--labels", str(labels), "--teacher", str(tiny_cls_dir), "--layers", "0,1")
    assert line.startswith(f"error: {labels}: these labels are of another teacher and pooling")
    assert line.endswith("give another --labels directory, or delete this one")
    assert {path: path.read_bytes() for path in labels.iterdir()} == before


def test_empty_and_overlong_sentences_are_trained_on_as_they_are(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir)
    text = tmp_path / "text.txt"
    short, long = ["!", "?", ".", ";", ","], [f"{number} dogs see the cat " * 500 for number in range(5)]
    text.write_text("\n".join([text.read_text(), "", "  ", *short, *long]))
    assert train(recipe).status == 0
    tokens = RunDirectory(tmp_path / "runs" / "tiny").json("data.json")["tokens"]
    assert (tokens["min"], tokens["max"]) == (3, 64)  # "!" with [CLS] and [SEP]; as many as the teacher reads


def test_one_line_at_the_command_line(fresh: Path) -> None:
    """Once as a user types it, without the tests' own way of starting."""
    ended = command("train.py", fresh, "--sentences", "nowhere.txt", cwd=ROOT)
    assert (ended.status, ended.out, ended.err) == (2, "", "error: nowhere.txt: no such file\n")


def test_help(fresh: Path) -> None:
    ended = train(fresh, "--help")
    assert ended.status == 0 and "micro-batches for each rank's share of a batch" in " ".join(ended.out.split())


# -- further training ------------------------------------------------------------------------------------------------


def test_a_student_is_trained_further(first: tuple[RunDirectory, str], recipe: Path) -> None:
    """It begins with the weights it is given, not with the teacher's layers."""
    student = first[0].path / "model"
    ended = train(recipe, "--name", "further", "--start-from", str(student), "--learning-rate", "1e-5")
    assert ended.status == 0, ended.err
    before, after = first[0].logged("negative_mse"), RunDirectory(recipe.parent / "runs" / "further")
    assert after.logged("negative_mse")[0] == pytest.approx(max(before.values()), rel=1e-4)
    assert f"student: {student}" in ended.out


def test_a_student_of_another_teacher_is_not_trained_further(recipe: Path, tiny_cls_dir: Path) -> None:
    ended = train(recipe, "--name", "further", "--start-from", str(tiny_cls_dir))
    assert ended.status == 2
    assert "has 48 dimensions, the labels have 32; name a student of this teacher" in ended.error


def test_a_last_window_too_small_for_the_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the loop: two shards make a window, and the three sentences that are left a batch of their own."""
    monkeypatch.setattr(labels, "SHARD", 16)
    monkeypatch.setattr(labels, "WINDOW", 2)
    recipe, ranks = Recipe(batch_size=8), Ranks(0, 4, torch.device("cpu"))
    module.check_batches(recipe, 36, ranks)
    with pytest.raises(InputError, match="a batch of 3 sentences can't be split over 4 ranks"):
        module.check_batches(recipe, 35, ranks)
