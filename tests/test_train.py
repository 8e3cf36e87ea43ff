"""The whole run: what it leaves, that it learns, that its settings do what they say, and how wrong input ends it."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import hooks
import numpy as np
import pytest
import torch
from processes import ROOT, TRAIN, RunDirectory, assert_same_run, command, train, write_recipe
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny import contents, edit, english_sentences, load, make_bert_dir, parquet_bytes, put
from transformers import AutoModel

from shortstack import train as module
from shortstack.distillation.data.epochs import window_batches
from shortstack.distillation.data.labels import LabelledSentences
from shortstack.distillation.losses import LOSSES
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe, read_recipe
from shortstack.distillation.student.dimensions import project_teacher
from shortstack.distillation.training.checkpoint import FREE_TO_CHANGE
from shortstack.distillation.training.optimizer import StudentOptimizer
from shortstack.model import Embedder
from shortstack.model.pooling import Pooling

TEST_TEXT = english_sentences(30, seed=9)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def recipe(place: Path, tiny_model_dir: Path) -> Path:
    """Two epochs of 400 sentences, some of a single character or longer than the teacher reads."""
    path = write_recipe(place, tiny_model_dir, sentences=430, epochs=2)
    text, long = path.with_name("text.txt"), [f"{number} dogs see the cat " * 500 for number in range(5)]
    text.write_text("\n".join([text.read_text(), "", "  ", *"!?.;,", *long]))
    return path


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
    assert {path.stem for path in (run.path / "checkpoints").iterdir()} == {"last", "earlier", "best"}
    assert run.leftovers() == []
    figures = run.json("evaluation.json")
    for who in ("student", "teacher"):
        assert {"pearson_cosine", "spearman_cosine"} <= figures[who]["sts-dev"].keys()
    assert figures["student"]["negative_mse"] < 0 and isinstance(figures["retention"]["sts-dev"], float)
    assert len(run.json("held_out.json")["sentences"]) == 40 and run.json("data.json")["size"] == 400
    tokens = run.json("data.json")["tokens"]
    assert (tokens["min"], tokens["max"]) == (3, 64)  # "!" with [CLS] and [SEP]; as many as the teacher reads
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


def test_no_more_tokens_are_computed_at_a_time_than_the_recipe_says(recipe: Path, tmp_path: Path) -> None:
    """In labelling and in evaluation; training batches are what `batch_size` says."""
    before = functools.partial(hooks.note_batches, tmp_path / "batches")
    ended = train(recipe, "--output", tmp_path, "--epochs", "1", "--tokens-per-batch", "100", before=before)
    assert ended.status == 0, ended.err
    sizes = np.array((tmp_path / "batches").read_text().split(), dtype=int)
    assert len(sizes) > 100 and sizes.max() <= 100


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
    ours = load(path).encode(TEST_TEXT)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_it_learns(first: tuple[RunDirectory, str], tiny_model_dir: Path) -> None:
    run = first[0]
    losses, distances = run.logged("loss"), run.logged("negative_mse")
    assert losses[40] < 0.5 * losses[10]
    assert distances[40] > 0.1 * distances[0]  # both are negative: ten times nearer than untrained
    teacher = load(tiny_model_dir)
    student = load(run.path / "model")
    untrained = teacher.keep_layers([0, 2, 5]).use_precision("fp32")
    wanted = teacher.encode(TEST_TEXT)
    errors = [np.square(each.encode(TEST_TEXT) - wanted).mean() for each in (student, untrained)]
    assert errors[0] < 0.1 * errors[1]


def test_the_best_is_kept_and_the_speed_is_of_steps_only(recipe: Path) -> None:
    """By a metric that wanders, since the scores are made up: the best step is none of the last."""
    metric = "sts_dev_spearman_cosine"
    arguments = ("--name", "best", "--metric-for-best-model", metric, "--evaluate-every", "1", "--log-every", "4")
    ended = train(recipe, *arguments, before=hooks.count_seconds)
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
    assert run.logged("sentences_per_second") == dict.fromkeys(range(4, 41, 4), 20)  # a second for each step of 20


def test_two_runs_give_the_same_model_byte_by_byte(first: tuple[RunDirectory, str], recipe: Path) -> None:
    assert train(recipe, "--name", "again").status == 0
    model = first[0].path / "model"
    assert contents(model.parents[1] / "again" / "model") == contents(model)


def test_a_second_run_uses_the_labels_again_and_moves_the_first_aside(tmp_path: Path, tiny_model_dir: Path) -> None:
    recipe, runs = write_recipe(tmp_path, tiny_model_dir), tmp_path / "runs"
    assert train(recipe).status == 0
    labels = {path: path.stat().st_mtime_ns for path in (runs / "labels").rglob("*.*")}
    assert len(labels) == 3
    earlier = contents(runs / "tiny")
    (runs / "tiny.1").mkdir()  # of an earlier time
    ended = train(recipe, "--learning-rate", "1e-4")
    assert ended.status == 0 and "labels:" not in ended.err
    assert {path: path.stat().st_mtime_ns for path in labels} == labels
    assert f"{runs}/tiny was there already: moved to {runs}/tiny.2" in ended.out
    assert contents(runs / "tiny.2") == earlier


# -- settings --------------------------------------------------------------------------------------------------------


def parquet_dataset(directory: Path, splits: dict[str, dict[str, list[Any]]]) -> Path:
    """A local directory in the form of a Hub dataset: a Parquet file for each split."""
    for split, columns in splits.items():
        put(directory / "data" / f"{split}-00000-of-00001.parquet", parquet_bytes(columns))
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


def test_the_reference_recipes_successor_in_small(place: Path) -> None:
    """recipes/mxbai-large-8-plus.toml with local text of the same columns; queries get the teacher's own prompt."""
    text, folder, prompt = english_sentences(480), place / "plus", "who sees the dog and "
    teacher = make_bert_dir(
        folder / "teacher", layers=10, hidden=24, heads=4, pooling="cls", normalize=False, prompts={"query": prompt}
    )
    columns = {
        "all-nli": {"sentence1": text[:50], "sentence2": text[50:100]},
        "wikipedia-en-sentences": {"sentence": text[100:200]},
        "gooaq": {"question": text[200:280], "answer": text[280:360]},
        "natural-questions": {"query": text[360:420], "answer": text[420:]},
    }
    sources = []
    for source in read_recipe(ROOT / "recipes" / "mxbai-large-8-plus.toml").sentences:
        marks, _, plain = source.rpartition("@")
        name, _, parts = plain.removeprefix("sentence-transformers/").partition(":")
        dataset = parquet_dataset(folder / name, {"train": columns[name]})
        parts = ":".join(["", *parts.split(":")[1:]])  # a local directory has no configs
        sources.append(f"{marks}{'@' if marks else ''}{dataset}{':' + parts if parts else ''}")
    scores = {"sentence1": text[:20], "sentence2": text[20:40], "score": [number % 6 / 5 for number in range(20)]}
    sts = parquet_dataset(folder / "sts", {"validation": scores, "test": scores})
    ended = train(
        ROOT / "recipes" / "mxbai-large-8-plus.toml", "--output", str(folder), "--teacher", str(teacher),
        "--sentences", *sources, "--sts", f"sts-dev={sts}::validation", f"sts-test={sts}::test",
        "--evaluation-sentences", "40", "--max-length", "64", "--precision", "fp32",
    )  # fmt: skip
    assert ended.status == 0, ended.err
    run = RunDirectory(folder / "mxbai-large-8-plus")
    assert sum(run.json("data.json")["sources"].values()) == 440
    held_out = run.json("held_out.json")
    held = zip(held_out["sentences"], held_out["roles"], strict=True)
    asked = {sentence for sentence, role in held if role == "query"}
    assert asked and asked <= set(columns["gooaq"]["question"] + columns["natural-questions"]["query"])
    sanity = run.json("evaluation.json")["sanity"]
    assert sanity["labels_relative_difference"] < 1e-3  # to the teacher under each prompt


@pytest.mark.parametrize("settings", [["--precision", "bf16"], ["--dimensions", "8"]], ids=lambda settings: settings[0])
def test_it_learns_in_half_precision_and_in_fewer_dimensions(recipe: Path, settings: list[str]) -> None:
    name = settings[0].strip("-")
    ended = train(recipe, "--name", name, *settings)
    assert ended.status == 0, ended.err
    run = RunDirectory(recipe.parent / "runs" / name)
    distances = run.logged("negative_mse")
    assert distances[40] > 0.2 * distances[0]
    student = SentenceTransformer(str(run.path / "model"), device="cpu")
    assert student.encode(TEST_TEXT).shape == (30, 8 if "--dimensions" in settings else 32)
    assert all(tensor.dtype == torch.float32 for tensor in run.weights.values())


def test_a_student_with_all_layers_starts_as_its_teacher(recipe: Path) -> None:
    ended = train(recipe, "--name", "whole", "--layers", "0,1,2,3,4,5", "--label-precision", "fp32", "--epochs", "1")
    assert ended.status == 0, ended.err
    run = RunDirectory(recipe.parent / "runs" / "whole")
    assert run.logged("negative_mse")[0] == pytest.approx(0, abs=1e-9)
    assert run.json("evaluation.json")["best_step"] == 0
    assert "warning: training did not improve on the untrained student" in ended.out


def test_a_default_prompt_is_text_like_any_other(tmp_path: Path, model_copy: Path) -> None:
    """Labels, layer search, projection and evaluation put it before each sentence: as if it stood in the text."""
    runs, prompt = [], "the dog sees "
    for name, model, text in (("model", prompt, ""), ("text", "", prompt)):
        edit(model_copy / "config_sentence_transformers.json", prompts={"sts": model}, default_prompt_name="sts")
        recipe = write_recipe(tmp_path / name, model_copy, prompt=text, layers="auto:2", dimensions=8)
        ended = train(recipe)
        assert ended.status == 0, ended.err
        runs.append(RunDirectory(tmp_path / name / "runs" / "tiny"))
    assert_same_run(*runs)
    ours, theirs = (run.json("evaluation.json") for run in runs)
    for part in ("student", "teacher", "sanity"):
        assert ours[part] == theirs[part]


def one_step(student: Embedder, teacher: Embedder, **settings: Any) -> tuple[float, float]:
    """Loss and gradient norm of one step on TEST_TEXT."""
    tokens = teacher.tokenize(TEST_TEXT)
    window = LabelledSentences(tokens, torch.as_tensor(teacher.encode(TEST_TEXT)))
    [batch] = window_batches(window.lengths, len(tokens), np.random.default_rng(0))
    recipe, ranks = Recipe(**settings), Ranks(0, 1, torch.device("cpu"))
    optimizer = StudentOptimizer(student.train(), recipe, ranks)
    loss = module.train_step(student, optimizer, window.take(batch), recipe, ranks)
    return float(loss), float(optimizer.grad_norm)


def test_the_loss_is_computed_in_fp32_under_bf16(tiny_cls_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output of this student, which is not normalised, is bf16 there."""
    teacher = load(tiny_cls_dir)
    seen = []

    def mse(student: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.extend([student.dtype, labels.dtype])
        return (student - labels).square().mean(dim=1)

    monkeypatch.setitem(LOSSES, "mse", mse)
    one_step(teacher.keep_layers([0, 7]), teacher, precision="bf16")
    assert seen == [torch.float32, torch.float32]


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_cls_dir: Path) -> None:
    teacher = load(tiny_cls_dir)
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
    assert set(FREE_TO_CHANGE) <= names


# -- memory ----------------------------------------------------------------------------------------------------------


def peak_memory(recipe: Path, sentences: int, window: int) -> int:
    """Peak memory of a run on this many sentences, in bytes."""
    name = f"memory-{sentences}-{window}"
    path = recipe.parent / name
    before = functools.partial(hooks.overlapping, functools.partial(hooks.measure_memory, path))
    sizes = ("--max-sentences", str(sentences), "--window-shards", str(window))
    ended = train(recipe, "--name", name, *sizes, before=before)
    assert ended.status == 0, ended.err
    return int(path.read_text())


def test_memory_does_not_grow_with_the_corpus(place: Path) -> None:
    """Four times the sentences, 16 KB of label each; few of them are windows enough to fill all that is made ahead.

    Windows as large as the corpus show that growth would be seen.
    """
    teacher = make_bert_dir(
        place / "wide", layers=1, hidden=8, heads=1, dense=(4096, "torch.nn.modules.linear.Identity")
    )
    recipe = write_recipe(
        place / "memory", teacher, sentences=8232, layers=[0], batch_size=64, label_precision="fp32",
        evaluate_every=1000, save_every=1000, shard_size=256,
    )  # fmt: skip
    few, many = (peak_memory(recipe, sentences, window=2) for sentences in (2048, 8192))
    everything = peak_memory(recipe, 8192, window=1000)
    labels = 4 * 4096 * (8192 - 2048)
    assert everything - few > labels
    assert many - few < labels / 4


# -- wrong input -----------------------------------------------------------------------------------------------------

WRONG = {  # one for each stage between the command line and the first step; the rest are tests of the stage itself
    "sts": (["--sts", "dev={folder}/sts.tsv"], "sts.tsv:2: score 'high' is not a finite number"),
    "teacher": (["--teacher", "{folder}/teacher"], "config.json: the architecture is 'modernbert'"),
    "text": (["--sentences", "{folder}/text.txt"], "text.txt:2: not UTF-8"),
    "layers": (["--layers", "0,6"], "layers: 6 is outside the teacher, which has layers 0 to 5"),
    "batches": (["--gradient-accumulation", "64"], "batch_size: a batch of 20 sentences can't be split"),
    "dimensions": (["--dimensions", "64"], "dimensions: 64 must be below the teacher's 32"),
    "start": (["--start-from", "{other}"], "has 48 dimensions, the labels have 32; name a student of this teacher"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_line_and_leaves_the_earlier_run(
    first: tuple[RunDirectory, str], recipe: Path, model_copy: Path, tiny_cls_dir: Path, case: str
) -> None:
    folder, before = model_copy.parent, contents(first[0].path)
    edit(model_copy.rename(folder / "teacher") / "config.json", model_type="modernbert")
    (folder / "sts.tsv").write_text("sentence1\tsentence2\tscore\na\tb\thigh\n")
    (folder / "text.txt").write_bytes(b"fine\ncaf\xe9 au lait\n")
    arguments, message = WRONG[case]
    ended = train(recipe, *(argument.format(folder=folder, other=tiny_cls_dir) for argument in arguments))
    assert ended.status == 2 and message in ended.error
    assert contents(first[0].path) == before and not (recipe.parent / "runs" / "tiny.1").exists()
    assert RunDirectory(recipe.parent / "runs").leftovers() == []


def test_one_line_at_the_command_line(recipe: Path) -> None:
    """Once as a user types it, without the tests' own way of starting."""
    ended = command("train.py", recipe, "--sentences", "nowhere.txt", cwd=ROOT)
    assert (ended.status, ended.out, ended.err) == (2, "", "error: nowhere.txt: no such file\n")


# -- further training ------------------------------------------------------------------------------------------------


def test_a_student_is_trained_further(first: tuple[RunDirectory, str], recipe: Path) -> None:
    """It begins with the weights it is given, not with the teacher's layers."""
    student = first[0].path / "model"
    ended = train(
        recipe, "--name", "further", "--start-from", str(student), "--layers", "all", "--learning-rate", "1e-5"
    )
    assert ended.status == 0, ended.err
    before, after = first[0].logged("negative_mse"), RunDirectory(recipe.parent / "runs" / "further")
    assert after.logged("negative_mse")[0] == pytest.approx(max(before.values()), rel=1e-4)
    assert f"student: layers 0, 1, 2 of {student}, " in ended.out


def test_a_student_starts_from_some_layers_of_another(first: tuple[RunDirectory, str], recipe: Path) -> None:
    student = first[0].path / "model"
    flags = ("--name", "fewer", "--start-from", str(student), "--learning-rate", "1e-7")
    assert train(recipe, *flags, "--layers", "2").status == 0
    run = RunDirectory(recipe.parent / "runs" / "fewer")
    assert first[0].json("data.json")["teacher_layers"] == [0, 2, 5]
    assert run.json("data.json")["teacher_layers"] == [5]  # of the teacher, not of the student it is made of
    assert run.json("model/config_sentence_transformers.json")["shortstack"]["teacher_layers"] == [5]
    fewer = run.weights
    kept = {name: tensor for name, tensor in first[0].weights.items() if "layer.2." in name}
    assert kept and not any("layer.2." in name for name in fewer)
    for name, tensor in kept.items():
        torch.testing.assert_close(fewer[name.replace("layer.2.", "layer.0.")], tensor, rtol=0, atol=1e-4)
    ended = train(recipe, *flags, "--layers", "0,3")
    assert (ended.status, ended.err) == (2, f"error: layers: 3 is outside {student}, which has layers 0 to 2\n")


def test_a_student_of_fewer_dimensions_is_trained_further_in_its_own_space(recipe: Path, place: Path) -> None:
    """On other text, whose own projection would be another one."""
    assert train(recipe, "--name", "short", "--dimensions", "8").status == 0
    short, text = RunDirectory(recipe.parent / "runs" / "short"), place / "other.txt"
    text.write_text("\n".join(f"{sentence} and no dog" for sentence in english_sentences(300, seed=4)))
    flags = ("--start-from", short.path / "model", "--layers", "all", "--learning-rate", "1e-6", "--epochs", "1")
    ended = train(recipe, "--name", "longer", "--dimensions", "8", *flags, "--sentences", text)
    assert ended.status == 0, ended.err
    longer = RunDirectory(recipe.parent / "runs" / "longer")
    assert longer.logged("negative_mse")[0] > 3 * short.logged("negative_mse")[40]  # in another basis: a hundred times
    refused = train(recipe, "--name", "refused", *flags)
    assert "has 8 dimensions, the labels have 32; name a student of this teacher, or give --dimensions 8" in refused.err


def test_a_projection_that_is_not_kept_is_refused(first: tuple[RunDirectory, str], recipe: Path, place: Path) -> None:
    """As in students that were made before it was."""
    teacher = load(first[0].path / "model")
    project_teacher(teacher, TEST_TEXT, 8)
    teacher.save(place / "unkept")
    ended = train(recipe, "--start-from", place / "unkept", "--layers", "all", "--dimensions", "8")
    assert ended.status == 2 and "keeps no projection of the teacher to 8 dimensions" in ended.error


def test_a_student_without_layers(place: Path, tiny_model_dir: Path, tiny_cls_dir: Path) -> None:
    """Word vectors, norm and pooling: trained like any other, read by transformers and sentence-transformers."""
    recipe = write_recipe(place / "none", tiny_model_dir, epochs=2, layers="none", learning_rate=1e-2)
    ended = train(recipe)
    assert ended.status == 0, ended.err
    assert "student: layers none of the teacher" in ended.out
    run = RunDirectory(place / "none" / "runs" / "tiny")
    student = load(run.path / "model")
    assert (
        student.bert.config.num_hidden_layers == 0
        and len(AutoModel.from_pretrained(run.path / "model").encoder.layer) == 0
    )
    ours = student.encode(TEST_TEXT)
    np.testing.assert_allclose(
        SentenceTransformer(str(run.path / "model"), device="cpu").encode(TEST_TEXT), ours, atol=1e-5
    )
    plain = load(tiny_model_dir).keep_layers([]).encode(TEST_TEXT)
    teacher = load(tiny_model_dir).encode(TEST_TEXT)
    assert ((ours - teacher) ** 2).mean() < ((plain - teacher) ** 2).mean()
    assert train(run.path / "recipe.toml", "--name", "again").status == 0
    mean = train(write_recipe(place / "mean", tiny_cls_dir, layers="none", pooling="mean"))
    assert mean.status == 0, mean.err
    start = ("--start-from", tiny_cls_dir, "--layers", "none")  # a student of the same teacher, with cls pooling
    further = train(write_recipe(place / "further", tiny_cls_dir, pooling="mean"), *start)
    assert further.status == 0, further.err
    assert load(place / "further" / "runs" / "tiny" / "model").settings.pooling is Pooling.MEAN
    refused = train(write_recipe(place / "cls", tiny_cls_dir, layers="none"))
    assert refused.status == 2 and "none needs a teacher with mean pooling" in refused.err
    refused = train(recipe, "--intermediate-size", "8")
    assert refused.status == 2 and "intermediate_size: a student of no layers has none" in refused.err
