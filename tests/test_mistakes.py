"""What newcomers get wrong on the command line: each is one line that names the fix."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shortstack import bench, evaluate, train
from shortstack.distillation import export
from shortstack.distillation.flags import model_of, run_of
from shortstack.distillation.prepare import __main__ as prepare
from shortstack.distillation.report import __main__ as report

COMMANDS = {
    "train": train.main,
    "evaluate": evaluate.main,
    "bench": bench.main,
    "report": report.main,
    "export": export.main,
    "prepare": prepare.main,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a recipe that has a typo, a table, an empty directory, and an empty run."""
    (tmp_path / "typo.toml").write_text("learning_rat = 1e-4\n")
    (tmp_path / "text.toml").write_text("no TOML at all\n")
    (tmp_path / "pairs.csv").write_text("question,answer\na,b\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --lr 1e-4", "there is no flag --lr; did you mean --learning-rate?"),
        ("train --lr=1e-4", "did you mean --learning-rate?"),
        ("train --bs 32", "did you mean --batch-size?"),
        ("train --per_device_train_batch_size 32", "did you mean --batch-size?"),
        ("train --num_train_epochs 3", "did you mean --epochs?"),
        ("train --data my.txt", "did you mean --sentences?"),
        ("train --model all-MiniLM-L6-v2", "did you mean --teacher?"),
        ("train --output-dir out", "did you mean --output?"),
        ("train --max-seq-length 128", "did you mean --max-length?"),
        ("train --num-layers 3", "did you mean --layers?"),
        ("train --bf16", "did you mean --precision?"),
        ("train --gpu", "did you mean --device?"),
        ("train --run-name mine", "did you mean --name?"),
        ("train --config own.toml", "did you mean RECIPE, given without a flag?"),
        ("train --sentense a.txt", "did you mean --sentences?"),
        ("train --sentences", "argument --sentences: expected at least one argument"),
        ("train --epochs three", "argument --epochs: invalid int value: 'three'"),
        ("train --layers 0-5", "'0-5' is not a list of numbers such as 0,2,5"),
        ("train --sts dev.csv --name x", "--sts: 'dev.csv' is not of the form NAME=SOURCE"),
        ("train --precision float16", "it must be one of auto, fp32, bf16, fp16"),
        ("train --loss l2", "it must be one of mse, cosine"),
        ("train --report-to mlflow", "is not one of auto, none, tensorboard, wandb"),
        ("train own-corpsu", "own-corpsu: no such recipe (did you mean own-corpus?); give a file, or one of minilm-3"),
        ("train typo.toml", "typo.toml: unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("train text.toml", "text.toml: not TOML"),
        ("train own-corpus", "give --sentences"),
        ("train minilm-3", "assets/sts/lee.tsv: no such file; fetch it with: shortstack prepare"),
        ("evaluate x --sts mine=pairs.csv", "pairs.csv:2: no column sentence1 or text1; there are: question, answer"),
        ("evaluate x --retrieval mine=empty", "empty: no queries with the ending .jsonl or .txt"),
        ("evaluate x --retrieval mine=nowhere", "nowhere: neither a directory nor QUERIES,DOCUMENTS,RELEVANCE"),
        ("evaluate x --queries q.txt", "--texts and --queries: belong to --index FILE, which is missing"),
        ("evaluate --model runs/x", "did you mean MODEL, given without a flag?"),
        ("evaluate", "the following arguments are required: MODEL"),
        ("evaluate begun", "begun has no student yet; finish the run with `python train.py begun --resume`"),
        ("bench", "give MODEL, or --shape for random weights"),
        ("bench x --limit 10", "did you mean --count?"),
        ("bench --shape bert-huge", "is neither one of bert-tiny, minilm-l6, bert-base, bert-large nor a config.json"),
        ("report runs/nothing", "no run directory, recipe.toml is missing; make one with `python train.py`"),
        ("export x --teacher y", "--teacher: belongs to --router"),
        ("prepare --teacher mpnet", "invalid choice: 'mpnet' (choose from"),
    ],
)
def test_one_line_names_the_fix(place: Path, refusal: Callable[..., str], line: str, words: str) -> None:
    command, *arguments = line.split()
    assert words in refusal(COMMANDS[command], *arguments)


def test_a_run_stands_for_its_student_and_a_student_for_its_run(place: Path) -> None:
    (place / "begun" / "model").mkdir()
    assert model_of("begun") == "begun/model" == model_of("begun/model")
    assert run_of("begun") == Path("begun") == run_of("begun/model")
    assert model_of("owner/name") == "owner/name"
