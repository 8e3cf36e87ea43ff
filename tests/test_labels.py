"""Teacher labels: what the teacher says, kept whatever happens midway, used again only where they belong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import english_sentences

from shortstack.distillation import RunError
from shortstack.distillation.data import labels as module
from shortstack.distillation.data.corpus import Corpus, Draw, build_corpus
from shortstack.distillation.data.labels import (
    EVALUATION,
    LabelledSentences,
    Labels,
    Store,
    fingerprint_parts,
    label_corpus,
    read_shards,
    shard_name,
    write_shard,
)
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe
from shortstack.model import Embedder
from shortstack.model.files import InputError
from shortstack.model.pooling import Pooling
from shortstack.model.tensors import load_tensors
from shortstack.model.tokens import Tokenized

ALONE = Ranks(0, 1, torch.device("cpu"))
TEXT = english_sentences(90)


@pytest.fixture(params=[False, True], ids=["in turn", "overlapping"])
def teacher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> Embedder:
    """Labels as on a CPU, then as beside a GPU."""
    monkeypatch.setattr(module, "overlaps", lambda device: request.param)
    return Embedder.load(tiny_model_dir, device="cpu", precision="fp32")


def make_corpus(directory: Path, text: list[str]) -> Corpus:
    directory.mkdir()
    (directory / "text.txt").write_text("\n".join(text))
    return build_corpus(directory / "corpus", [str(directory / "text.txt")], Draw(None, 10, 0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """80 sentences to train on, which are five shards, and 10 held out."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "all", TEXT)


def small_shards(**settings: Any) -> Recipe:
    return Recipe(shard_size=16, window_shards=2, **settings)


def label(teacher: Embedder, corpus: Corpus, directory: Path, storage: str = "fp32") -> Labels:
    return label_corpus(teacher, corpus, small_shards(labels=str(directory), label_precision=storage), ALONE)


def shard_contents(directory: Path) -> dict[str, dict[str, list[float]]]:
    return {
        path.name: {name: tensor.tolist() for name, tensor in load_tensors(path)[0].items()}
        for path in directory.glob("*.safetensors")
    }


def count_calls(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> Callable[[], int]:
    """Count the shards that are computed; the one of number `fail_at` fails as if the machine had run out of memory."""
    real, calls = module.finish_shard, [0]

    def counted(*args: object) -> None:
        if calls[0] == fail_at:
            raise MemoryError
        calls[0] += 1
        real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "finish_shard", counted)
    return lambda: calls[0]


# -- what is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("storage", "tolerance"), [("fp32", 1e-6), ("fp16", 2**-11)])
@pytest.mark.parametrize("fixture", ["tiny_model_dir", "tiny_cls_dir"])
def test_labels_are_the_teachers_embeddings(
    request: pytest.FixtureRequest, tmp_path: Path, corpus: Corpus, fixture: str, storage: str, tolerance: float
) -> None:
    teacher = Embedder.load(request.getfixturevalue(fixture), device="cpu", precision="fp32")
    found = label(teacher, corpus, tmp_path / "labels", storage)
    everything = [(found.evaluation(), corpus.evaluation().sentences)]
    for number in range(found.shards):
        shard = read_shards([found.directory / shard_name(number)], found.fingerprint)
        everything.append((shard, corpus.training(16 * number, 16 * (number + 1)).sentences))
    assert found.shards == 5 and found.rows == 80 and found.dimensions == teacher.dimensions
    for shard, sentences in everything:
        expected = torch.as_tensor(teacher.encode(sentences))
        assert shard.labels.dtype == (torch.float16 if storage == "fp16" else torch.float32)
        scale = float(expected.abs().max())
        torch.testing.assert_close(shard.labels.float(), expected, atol=tolerance * scale, rtol=0)
        for ours, theirs in zip(shard.tokens, teacher.tokenize(sentences), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_token_statistics(tmp_path: Path, teacher: Embedder, corpus: Corpus) -> None:
    found = label(teacher, corpus, tmp_path / "labels")
    lengths = [len(tokens) for tokens in teacher.tokenize(corpus.training(0, 80).sentences)]
    assert found.tokens == {"min": min(lengths), "mean": pytest.approx(np.mean(lengths)), "max": max(lengths)}
    assert label(teacher, corpus, tmp_path / "labels").tokens == found.tokens  # from what is on disk


def test_without_a_directory_it_has_the_fingerprints_name(tmp_path: Path, teacher: Embedder, corpus: Corpus) -> None:
    names = set()
    for storage in ("fp32", "fp16", "fp32"):
        names.add(
            label_corpus(teacher, corpus, small_shards(output=str(tmp_path), label_precision=storage), ALONE).directory
        )
    assert {path.parent for path in names} == {tmp_path / "labels"} and len(names) == 2


# -- used again, or not ----------------------------------------------------------------------------------------------


def test_finished_labels_are_used_again(
    tmp_path: Path, teacher: Embedder, corpus: Corpus, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(teacher, corpus, tmp_path / "labels")
    computed = count_calls(monkeypatch)
    copied = shutil.copytree(tiny_model_dir, tmp_path / "the same model elsewhere")
    label(Embedder.load(copied, device="cpu", precision="fp32"), corpus, tmp_path / "labels")
    assert computed() == 0


def change_a_weight(teacher: Embedder) -> None:
    with torch.no_grad():
        teacher.bert.encoder.layer[0].output.dense.weight[0, 0] += 1e-4


CHANGES: dict[str, tuple[str, Callable[[Embedder], object]]] = {
    "weights": ("teacher", change_a_weight),
    "dense": ("teacher", lambda teacher: setattr(teacher, "dense", torch.nn.Linear(32, 32, bias=False))),
    "pooling": ("pooling", lambda teacher: setattr(teacher.settings, "pooling", Pooling.CLS)),
    "normalize": ("pooling", lambda teacher: setattr(teacher.settings, "normalize", False)),
    "max_length": ("max_length", lambda teacher: teacher.set_max_length(20)),
    "lowercase": ("max_length", lambda teacher: setattr(teacher.settings, "lowercase", True)),
    "precision": ("precision", lambda teacher: teacher.use_precision("bf16")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_labels_of_another_teacher_are_refused(tmp_path: Path, teacher: Embedder, corpus: Corpus, change: str) -> None:
    directory = tmp_path / "labels"
    label(teacher, corpus, directory)
    before = shard_contents(directory)
    part, apply = CHANGES[change]
    apply(teacher)
    with pytest.raises(InputError, match=f"{directory}: these labels are of another {part}; give another --labels"):
        label(teacher, corpus, directory)
    assert shard_contents(directory) == before


def test_labels_of_other_sentences_or_storage_are_refused(tmp_path: Path, teacher: Embedder, corpus: Corpus) -> None:
    directory = tmp_path / "labels"
    label(teacher, corpus, directory)
    other = make_corpus(tmp_path / "other", [*TEXT[:-1], "One other sentence."])
    with pytest.raises(InputError, match="of another sentences;"):
        label(teacher, other, directory)
    with pytest.raises(InputError, match="of another sentences and precision;"):
        label(teacher, other, directory, "fp16")


def test_a_fingerprint_does_not_depend_on_what_makes_no_difference(
    teacher: Embedder, corpus: Corpus, tiny_model_dir: Path
) -> None:
    teacher.settings.origin = "elsewhere"
    again = Embedder.load(tiny_model_dir, device="cpu", precision="fp32")
    assert fingerprint_parts(teacher, corpus, Recipe()) == fingerprint_parts(again, corpus, Recipe())


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_crash_keeps_the_finished_shards(
    tmp_path: Path, teacher: Embedder, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    label(teacher, corpus, whole)
    with monkeypatch.context() as patch:
        count_calls(patch, fail_at=3)
        with pytest.raises(MemoryError):
            label(teacher, corpus, tmp_path / "crashed")
    finished = shard_contents(tmp_path / "crashed")
    assert set(finished) == {shard_name(EVALUATION), shard_name(0), shard_name(1)}
    computed = count_calls(monkeypatch)
    label(teacher, corpus, tmp_path / "crashed")
    assert computed() == 3
    assert shard_contents(tmp_path / "crashed") == shard_contents(whole)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other file"])
def test_a_damaged_shard_is_labelled_again(
    tmp_path: Path, teacher: Embedder, corpus: Corpus, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], damage: str,
) -> None:  # fmt: skip
    directory = tmp_path / "labels"
    label(teacher, corpus, directory)
    before = shard_contents(directory)
    path = directory / shard_name(3)
    content = path.read_bytes()
    flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    path.write_bytes({"flip": flipped, "cut": content[:-1]}.get(damage, b""))
    if damage == "other file":
        save_file({"weight": torch.zeros(3)}, path)
    computed = count_calls(monkeypatch)
    label(teacher, corpus, directory)
    assert computed() == 1 and shard_contents(directory) == before
    assert "labelling it again" in capsys.readouterr().out


def test_a_shard_in_anothers_place_is_found(
    tmp_path: Path, teacher: Embedder, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tiny_cls_dir: Path
) -> None:
    """A neighbour's, or that of the same number of another teacher: computed again, and refused while training."""
    directory, theirs = tmp_path / "labels", tmp_path / "theirs"
    labels = label(teacher, corpus, directory)
    label(Embedder.load(tiny_cls_dir, device="cpu", precision="fp32"), corpus, theirs)
    before = shard_contents(directory)
    computed = count_calls(monkeypatch)
    for count, other in enumerate([directory / shard_name(1), theirs / shard_name(3)], start=1):
        shutil.copy(other, directory / shard_name(3))
        with pytest.raises(InputError, match="00003.safetensors: not this shard of these labels; run again with"):
            labels.read([2, 3])
        label(teacher, corpus, directory)
        assert computed() == count and shard_contents(directory) == before


def test_labels_that_the_teacher_does_not_give_are_refused_before_training(
    tmp_path: Path, teacher: Embedder, corpus: Corpus
) -> None:
    labels = label(teacher, corpus, tmp_path / "labels")
    assert labels.difference < 1e-5
    stale = labels.evaluation()
    store = Store(labels.directory, labels.fingerprint, 16, "fp32")
    write_shard(store, EVALUATION, LabelledSentences(stale.tokens, -stale.labels))
    with pytest.raises(InputError, match="these labels differ from the teacher's embeddings by 200% of their length"):
        label(teacher, corpus, tmp_path / "labels")


def test_of_two_teachers_at_the_same_moment_one_gets_the_directory(
    tmp_path: Path, teacher: Embedder, corpus: Corpus, tiny_cls_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's manifest comes after this run has looked for one."""
    other = Embedder.load(tiny_cls_dir, device="cpu", precision="fp32")
    real = module.flush_to_disk

    def late(path: Path) -> None:
        monkeypatch.setattr(module, "flush_to_disk", real)
        label(other, corpus, tmp_path / "labels")
        real(path)

    monkeypatch.setattr(module, "flush_to_disk", late)
    with pytest.raises(InputError, match="these labels are of another teacher"):
        label(teacher, corpus, tmp_path / "labels")
    assert label(other, corpus, tmp_path / "labels").difference < 1e-5


def test_embeddings_that_are_no_numbers_stop_with_the_sentence(
    tmp_path: Path, teacher: Embedder, corpus: Corpus
) -> None:
    real = teacher.embed

    def broken(tokens: Tokenized, **options: object) -> torch.Tensor:
        embeddings = real(tokens, **options)  # type: ignore[arg-type]
        embeddings[2] = torch.nan
        return embeddings

    teacher.embed = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(RunError) as caught:
        label(teacher, corpus, tmp_path / "labels")
    assert corpus.evaluation().sentences[2][:60] in str(caught.value) and "not finite" in str(caught.value)
    assert not shard_contents(tmp_path / "labels")


def test_labels_beyond_fp16_stop_the_run(tmp_path: Path) -> None:
    tokens = Tokenized(np.array([1, 2], dtype=np.int32), np.array([2]))
    shard = LabelledSentences(tokens, torch.tensor([[1.0, 70_000.0]]))
    with pytest.raises(RunError, match="65504; run with --label-precision fp32"):
        write_shard(Store(tmp_path, "", 1, "fp16"), "a", shard)
    write_shard(Store(tmp_path, "", 1, "fp32"), "b", shard)
    assert [path.name for path in tmp_path.iterdir()] == ["b.safetensors"]


def test_a_damaged_manifest(tmp_path: Path, teacher: Embedder, corpus: Corpus) -> None:
    label(teacher, corpus, tmp_path / "labels")
    (tmp_path / "labels" / "labels.json").write_text("{")
    with pytest.raises(InputError, match="labels.json: not JSON"):
        label(teacher, corpus, tmp_path / "labels")
    for other in ("[]", "{}", '{"parts": {"teacher": 1}}'):
        (tmp_path / "labels" / "labels.json").write_text(other)
        with pytest.raises(InputError, match="labels: these labels are of another teacher and "):
            label(teacher, corpus, tmp_path / "labels")
