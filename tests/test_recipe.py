"""Recipes: read and written without loss, every wrong value refused in one line that names the file or the flag."""

import dataclasses
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shortstack import train
from shortstack.distillation.command_line import GROUPS, add_recipe_flags, named_sources, recipe_from_arguments
from shortstack.distillation.flags import OneLineParser
from shortstack.distillation.recipe import Recipe, metric_key, read_recipe, recipe_text, teacher_overrides
from shortstack.model.files import InputError

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
FIELDS = [field.name for field in dataclasses.fields(Recipe)]


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text('sentences = ["a.txt"]\nlayers = [0, 2, 5]\n[sts]\nsts-dev = "dev.csv"\n')
    return path


def from_flags(path: Path, *flags: str) -> Recipe:
    parser = OneLineParser()
    add_recipe_flags(parser)
    return recipe_from_arguments(parser.parse_args(flags), str(path))


def usable(**changes: Any) -> Recipe:
    return dataclasses.replace(Recipe(name="r", sentences=["a.txt"], sts={"sts-dev": "dev.csv"}), **changes)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_of_the_repository_are_read_and_checked(path: Path) -> None:
    own = {
        "own-corpus": ["--sentences", "docs/*.md"],
        "other-index": ["--teacher-vectors", "vectors.npy:texts.txt"],
    }
    recipe = from_flags(path, *own.get(path.stem, []))
    assert recipe.name == path.stem and (recipe.sentences or recipe.teacher_vectors)


def test_the_reference_recipe_is_the_original_run() -> None:
    recipe = read_recipe(ROOT / "recipes" / "mxbai-large-8.toml")
    assert recipe.layers == [0, 3, 6, 9, 12, 15, 18, 21] and recipe.teacher == "mixedbread-ai/mxbai-embed-large-v1"
    assert (recipe.max_sentences, recipe.evaluation_sentences, recipe.max_length) == (1_195_425, 10_000, 512)
    assert (recipe.batch_size, recipe.learning_rate, recipe.warmup_ratio, recipe.epochs) == (64, 1e-4, 0.1, 1)
    assert (recipe.precision, recipe.dropout, recipe.weight_decay, recipe.seed) == ("fp16", 0.1, 0.0, 42)
    assert (recipe.loss, recipe.max_grad_norm, recipe.sampling) == ("mse", 1.0, "in_order")


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    for recipe in [Recipe(name="recipe"), *map(read_recipe, RECIPES), usable(layers="even:2", learning_rate=3e-5)]:
        path.write_text(recipe_text(recipe), encoding="utf-8")
        assert read_recipe(path) == recipe
    versions = tomllib.loads(path.read_text())["versions"]
    assert versions["torch"] == version("torch") and versions["transformers"] == version("transformers")


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = {"learning_rate": st.floats(allow_nan=False, allow_infinity=False), "epochs": st.integers()}


@given(teacher=texts, sentences=st.lists(texts), sts=st.dictionaries(texts, texts), **numbers)
@example(teacher="\x7f\"'\\ \n😀", sentences=["captions/😀*.gz"], sts={"a b\t": "\x7f"}, learning_rate=1e-320, epochs=1)
def test_any_text_and_number_survives(tmp_path_factory: pytest.TempPathFactory, **values: Any) -> None:
    recipe = Recipe(name="name", **values)
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(recipe_text(recipe), encoding="utf-8")
    assert read_recipe(path) == recipe


def test_an_empty_name_takes_the_files(tmp_path: Path, recipe_file: Path) -> None:
    assert read_recipe(recipe_file).name == "small"
    recipe_file.write_text('name = ""\nsentences = ["a"]\n')
    assert from_flags(recipe_file).directory == Path("runs/small")
    recipe_file.write_text('name = "other"\nsentences = ["a"]\n')
    assert read_recipe(recipe_file).name == "other"
    assert from_flags(recipe_file, "--name", "third", "--output", str(tmp_path)).directory == tmp_path / "third"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch = 2", "unknown key 'epoch'; did you mean 'epochs'?"),
        ("Learning_Rate = 1.0", "unknown key 'Learning_Rate'; did you mean 'learning_rate'?"),
        ("zzzz = 2", "unknown key 'zzzz'"),
        ("[model]\nlayers = [1]", "unknown key 'model'"),
        ("epochs = 1.5", "epochs = 1.5 must be of type int"),
        ("epochs = true", "epochs = True must be of type int"),
        ('epochs = "2"', "epochs = '2' must be of type int"),
        ("learning_rate = nan", "learning_rate = nan must be of type float"),
        ("learning_rate = inf", "learning_rate = inf must be of type float"),
        ("learning_rate = 1" + "0" * 400, "must be of type float"),
        ('learning_rate = "1e-4"', "must be of type float"),
        ("teacher = 3", "teacher = 3 must be of type str"),
        ("teacher = 1979-05-27", "must be of type str"),
        ('sentences = "a.txt"', "sentences = 'a.txt' must be of type list[str]"),
        ('sentences = ["a", 1]', "must be of type list[str]"),
        ("layers = [0.5]", "layers = [0.5] must be of type list[int] | str"),
        ("layers = [true]", "must be of type list[int] | str"),
        ('sts = ["a"]', "must be of type dict[str, str]"),
        ("[sts]\na = 1", "must be of type dict[str, str]"),
        ("epochs = ", "not TOML"),
        ("epochs = 1\nepochs = 2", "not TOML"),
        ("epochs = " + "9" * 5000, "not TOML"),
        ("layers = " + "[" * 5000, "not TOML"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(recipe_file: Path, text: str, words: str) -> None:
    recipe_file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_recipe(recipe_file)
    message = str(caught.value)
    assert message.startswith(f"{recipe_file}: ") and words in message and len(message) < 500


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing.toml: no such recipe"):
        read_recipe(tmp_path / "missing.toml")
    with pytest.raises(InputError, match="can't be read as a recipe"):
        read_recipe(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'teacher = "caf\xe9"')
    with pytest.raises(InputError, match="latin.toml: not TOML .*utf-8"):
        read_recipe(tmp_path / "latin.toml")


def test_a_recipe_builds_on_another(tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = tmp_path / "wide.toml"
    wide.write_text('base = "small.toml"\nlayers = "all"\nepochs = 3\n[sts]\nother = "other.csv"\n')
    expected = usable(name="wide", layers="all", epochs=3, sts={"other": "other.csv"})
    assert read_recipe(wide) == expected
    assert from_flags(wide, "--epochs", "4").epochs == 4
    wider = tmp_path / "wider.toml"
    wider.write_text('base = "wide.toml"\nepochs = 5\n')
    assert read_recipe(wider) == dataclasses.replace(expected, name="wider", epochs=5)
    monkeypatch.chdir(ROOT.parent)
    wider.write_text('base = "minilm-3"\n')  # one of ours, by its name
    assert read_recipe(wider) == dataclasses.replace(read_recipe(ROOT / "recipes" / "minilm-3.toml"), name="wider")
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.toml").write_text(recipe_text(expected))  # a run's own name and versions stay its own
    wider.write_text(f'base = "{run.as_posix()}"\n')
    assert read_recipe(wider) == dataclasses.replace(expected, name="wider")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base = 3", "small.toml: base = 3 must be of type str"),
        ('base = "small.toml"', "small.toml: base = 'small.toml' leads back to this recipe"),
        ('base = "other.toml"', "other.toml: base = 'small.toml' leads back to this recipe"),
        ('base = "missing.toml"', "missing.toml: no such recipe"),
        ('base = "wrong.toml"', "wrong.toml: unknown key 'epoch'"),
    ],
)
def test_a_wrong_base_is_named(tmp_path: Path, recipe_file: Path, text: str, words: str) -> None:
    recipe_file.write_text(text)
    (tmp_path / "other.toml").write_text('base = "small.toml"')
    (tmp_path / "wrong.toml").write_text("epoch = 2")
    with pytest.raises(InputError, match=re.escape(words)):
        read_recipe(recipe_file)


toml_parts = st.sampled_from([*FIELDS, "base", *"=[]{},.\n1", "-2.5", "1e999", "'a'", '"x"', "true", "07:32:00", "# a"])
near_toml = st.lists(toml_parts, max_size=12).map(lambda parts: " ".join(parts).encode())


@given(st.binary(max_size=80) | near_toml)
def test_any_bytes_are_a_recipe_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    path.write_bytes(content)
    try:
        recipe = read_recipe(path)
        recipe_text(recipe).encode()
        recipe.check()
    except InputError:
        pass


# -- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "wrong", "right"),
    [
        *((key, 0, 1) for key in ("batch_size", "gradient_accumulation", "epochs", "evaluate_every", "save_every")),
        *((key, -1, 0) for key in ("max_sentences", "max_length", "dimensions", "seed")),
        *((key, -0.1, 0.0) for key in ("weight_decay", "max_grad_norm")),
        ("seed", 2**32, 2**32 - 1),
        ("evaluation_sentences", 0, 1),
        ("max_skipped_steps", 0, 1),
        ("learning_rate", 0.0, 1e-9),
        ("timeout", 0.0, 0.1),
        ("warmup_ratio", 1.01, 1.0),
        ("warmup_ratio", -0.01, 0.0),
        ("dropout", 1.0, 0.99),
        ("dropout", -0.01, 0.0),
        ("max_length", 2, 3),
        ("pooling", "max", "cls"),
        ("sampling", "random", "in_order"),
        ("precision", "int8", "bf16"),
        ("precision", "fp64", "fp16"),
        ("label_precision", "bf16", "fp32"),
        ("loss", "mae", "cosine"),
        ("name", "a/b", "a-b_1.0"),
        ("name", "..", "..."),
        ("name", ".", ".a"),
        ("name", "labels", "labels-1"),  # directories that all runs share
        ("name", "Corpus", "corpus-1"),
        ("name", "", "ä"),
        ("metric_for_best_model", "loss", "sts_dev_pearson_cosine"),
        ("metric_for_best_model", "sts_test_spearman_cosine", "sts_dev_spearman_cosine"),
        ("metric_for_best_model", "relative_error", "negative_mse"),
    ],
)
def test_each_bound(key: str, wrong: Any, right: Any) -> None:
    usable(**{key: right}).check()
    with pytest.raises(InputError) as caught:
        usable(**{key: wrong}).check()
    assert f"{key} = {wrong!r} is not allowed; it must be" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"sts": {name: "x.csv"}}, "recipe: sts: the name") for name in ("", "a b", "a/b", "a=b", "negative_mse")),
        ({"retrieval": {"a b": "x"}}, "recipe: retrieval: the name 'a b' may hold"),
        ({"retrieval": {"sts-dev": "x"}}, "recipe: retrieval: the name 'sts-dev' is taken by another set"),
        ({"retrieval": {"mean": "x", "other": "y"}}, "the name 'mean' is taken by another set"),
        ({"sts": {"sts-dev": "a", "sts_dev": "b"}}, "sts_dev_spearman_cosine"),  # they would share a key of the log
        ({"sentences": []}, "sentences = .* at least one"),
        ({"general": ["a.txt"], "sampling": "in_order"}, "sampling = 'in_order' is not allowed; it must be mixed"),
        ({"vocabulary": "9" * 5000}, "vocabulary = .* must be a number of pieces"),
    ],
    ids=str,
)
def test_values_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    usable().check()
    with pytest.raises(InputError, match=words):
        usable(**changes).check()


def test_metric_keys_and_overrides() -> None:
    assert metric_key("sts-dev.v2", "spearman_cosine") == "sts_dev_v2_spearman_cosine"
    assert teacher_overrides(usable()) == {"pooling": None, "max_length": None}
    assert teacher_overrides(usable(pooling="cls", max_length=128)) == {"pooling": "cls", "max_length": 128}


# -- flags -----------------------------------------------------------------------------------------------------------


def test_flags_win_over_the_file(recipe_file: Path) -> None:
    flags = "--learning-rate 5e-4 --max-sentences 4000 --sts sts-test=t=1.csv b=c --sentences x y --precision fp32"
    recipe = from_flags(recipe_file, *flags.split())
    assert (recipe.learning_rate, recipe.max_sentences, recipe.precision) == (5e-4, 4000, "fp32")
    assert recipe.sts == {"sts-test": "t=1.csv", "b": "c"} and recipe.sentences == ["x", "y"]
    assert recipe.layers == [0, 2, 5] and recipe.epochs == 1  # the file's own, and the default
    repeated = from_flags(recipe_file, "--sentences", "x", "--sentences", "y", "--sts", "a=1", "--sts", "b=2")
    assert repeated.sentences == ["x", "y"] and repeated.sts == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("text", "layers"),
    [("0,2,5", [0, 2, 5]), ("0, 2 ,5", [0, 2, 5]), ("5", [5]), ("even:3", "even:3"), ("all", "all")],
)
def test_spellings_of_layers(recipe_file: Path, text: str, layers: Any) -> None:
    assert from_flags(recipe_file, "--layers", text).layers == layers


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs", "x"], "argument --epochs: invalid int value: 'x'; see --help"),
        (["--epochs", "0"], "epochs = 0 is not allowed; it must be at least 1"),
        (["--epochs"], "argument --epochs: expected one argument"),
        (["--learning-rate", "nan"], "--learning-rate: learning_rate = nan must be of type float"),
        (["--lerning-rate", "1"], "there is no flag --lerning-rate; did you mean --learning-rate?"),
        (["--layers", "0,,2"], "--layers: '0,,2' is not a list of numbers such as 0,2,5"),
        (["--layers", "2-4"], "--layers: '2-4' is not a list of numbers"),
        (["--sts", "dev.csv"], "--sts: 'dev.csv' is not of the form NAME=SOURCE"),
        (["--sts", "dev="], "--sts: 'dev=' is not of the form NAME=SOURCE"),
        (["--sts", "=dev.csv"], "--sts: the name '' may hold letters"),
        (["--sts", "a=1", "--sts", "a=2"], "--sts: the name 'a' is given twice"),
        (["--name", ""], "name = '' is not allowed"),
        (["--sentences", "caf\udce9.txt"], "--sentences: sentences = ['caf\\udce9.txt'] is not UTF-8"),
    ],
)
def test_a_wrong_flag_is_named(recipe_file: Path, flags: list[str], words: str) -> None:
    with pytest.raises(InputError) as caught:
        from_flags(recipe_file, *flags)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_sources_by_name(tmp_path: Path) -> None:
    assert named_sources(["a=1", "b=2=3"], "--sts") == {"a": "1", "b": "2=3"}
    (tmp_path / "sets" / "manuals").mkdir(parents=True)
    directory = f"{tmp_path}/sets/manuals"
    assert named_sources([f"{directory}/", "b=2"], "--retrieval") == {"manuals": f"{directory}/", "b": "2"}
    with pytest.raises(InputError, match="^--retrieval: 'a' is not"):
        named_sources(["a"], "--retrieval")


def test_each_field_has_a_group_in_help() -> None:
    assert sorted(" ".join(GROUPS.values()).split()) == sorted(FIELDS)


def test_help_lists_every_field_with_its_default(
    call: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stopped:
        call(train.main, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    for field in dataclasses.fields(Recipe):
        flag, default = "--" + field.name.replace("_", "-"), getattr(Recipe(), field.name)
        explained = field.metadata["help"] + ("" if default in ("", [], {}) else f" (recipe's default: {default})")
        assert f" {flag} " in text and explained in text
