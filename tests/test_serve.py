"""The reader without torch gives the Embedder's embeddings from the exported files, and imports nothing heavy."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from processes import command
from tiny import AWKWARD, edit, english_sentences, load, make_bert_dir, make_family_dir

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install '.[onnx]'")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install '.[onnx]'")

from shortstack import serve  # noqa: E402 (torch may be there without the extra)

SENTENCES = AWKWARD + english_sentences(20)
ENGINES = [name for name in ("onnxruntime", "openvino") if serve.find_spec(name)]
KINDS = ["prompts, cls, lower-cased", "mpnet"]

EXPORT = """
import sys
from shortstack.distillation.export import export

for directory in sys.argv[1:]:
    export(directory)
"""
ENCODE = """
import json, signal, sys
import numpy as np
from shortstack.serve import Embedder

directory, engine, sentences, result = sys.argv[1:]
exact, int8 = Embedder(directory, engine=engine), Embedder(directory, "int8", engine, threads=1)
sentences = json.loads(sentences)
found = exact.encode(sentences)
np.savez(
    result, found=found, int8=int8.encode(sentences), one=exact.encode(sentences[0]), none=exact.encode([]),
    prompt=exact.encode(["dog"], prompt="the "), query=exact.encode_query(["dog"]),
    document=exact.encode_document(["dog"]), similarity=exact.similarity(found, found), dimensions=exact.dimensions,
)
del exact, int8
try:
    signal.raise_signal(signal.SIGINT)  # as by Ctrl-C, which OpenVINO would let end in a segmentation fault
except KeyboardInterrupt:
    pass
heavy = {"torch", "transformers", "datasets", "scipy", "pyarrow"} & sys.modules.keys()
print("heavy:", *heavy)
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model directory of each kind with its exported files."""
    place = tmp_path_factory.mktemp("serve")
    plain = make_bert_dir(
        place / "bert", layers=2, pooling="cls", normalize=False,
        prompts={"query": "who sees ", "passage": "a dog: "}, default_prompt="query",
    )  # fmt: skip
    edit(plain / "sentence_bert_config.json", do_lower_case=True)
    mpnet = make_family_dir(place / "mpnet", "mpnet")  # its graph has no segments, and padding is number 1
    ended = command("-c", EXPORT, plain, mpnet)
    assert ended.status == 0, ended
    return dict(zip(KINDS, (plain, mpnet), strict=True))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_embeds_as_the_embedder_does(exported: dict[str, Path], tmp_path: Path, kind: str, engine: str) -> None:
    """In a process without torch, as where it serves."""
    ours = load(exported[kind])
    expected = ours.encode(SENTENCES)
    ended = command("-c", ENCODE, exported[kind], engine, json.dumps(SENTENCES), tmp_path / "found.npz")
    assert ended.status == 0 and ended.out.strip() == "heavy:", ended
    light = np.load(tmp_path / "found.npz")
    assert light["found"].dtype == np.float32 and light["dimensions"] == ours.dimensions
    wanted = {"found": expected, "one": expected[0], "prompt": ours.encode(["dog"], prompt="the ")}
    wanted |= {role: ours.encode(["dog"], prompt=ours.role_prompt(role)) for role in ("query", "document")}
    wanted["similarity"] = ours.similarity(expected, expected)
    for name, embeddings in wanted.items():
        np.testing.assert_allclose(light[name], embeddings, atol=1e-5, err_msg=name)
    assert light["none"].shape == (0, ours.dimensions)
    cosines = (serve.unit_rows(light["int8"]) * serve.unit_rows(expected)).sum(axis=1)
    assert cosines.mean() > 0.97


def test_batches_hold_every_sentence_once_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "TOKENS_PER_BATCH", 20)
    lengths = [5, 30, 1, 7, 7, 2, 11]
    found = list(serve.batches(lengths))
    assert sorted(sum(found, [])) == list(range(7))
    assert all(len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= 20 for rows in found)
    assert found[0] == [2, 5, 0]


def test_only_some_texts_are_tokens_at_a_time(exported: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A million texts take the memory of CHUNK of them, and of the result."""
    embedder = serve.Embedder(exported[KINDS[0]], engine="onnxruntime", threads=1)
    whole = embedder.encode(SENTENCES)
    together: list[int] = []
    embed = embedder._embed
    monkeypatch.setattr(embedder, "_embed", lambda texts: (together.append(len(texts)), embed(texts))[1])
    monkeypatch.setattr(serve, "CHUNK", 8)
    np.testing.assert_allclose(embedder.encode(SENTENCES), whole, atol=1e-6)
    assert max(together) == 8 and sum(together) == len(SENTENCES)


def test_what_is_missing_is_named(tiny_model_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="onnx/model.onnx is missing; write it with"):
        serve.Embedder(tiny_model_dir, engine="onnxruntime")
    with pytest.raises(ValueError, match="engine 'onnxruntime' with precision 'bf16': choose among"):
        serve.Embedder(tiny_model_dir, "bf16", "onnxruntime")
    assert serve.installed_engine() == "onnxruntime"


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_get_their_own_vectors(exported: dict[str, Path], engine: str) -> None:
    embedder = serve.Embedder(exported[KINDS[1]], engine=engine, threads=1)
    texts = english_sentences(60)
    wanted = [embedder.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(embedder.encode, texts))
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_text_is_cut_on_the_side_that_the_model_says(exported: dict[str, Path], tmp_path: Path) -> None:
    model = Path(shutil.copytree(exported[KINDS[1]], tmp_path / "left"))
    edit(model / "tokenizer_config.json", truncation_side="left")
    (model / "checksums.json").unlink(missing_ok=True)
    long = " ".join(english_sentences(60))
    found, of_the_start = (serve.Embedder(path).encode(long) for path in (model, exported[KINDS[1]]))
    np.testing.assert_allclose(found, load(model).encode(long), atol=1e-5)
    assert not np.allclose(found, of_the_start, atol=1e-3)


def test_another_layout_is_one_line(exported: dict[str, Path], tmp_path: Path) -> None:
    """As transformers and sentence-transformers 6 write it, without what this reader goes by."""
    plain, theirs = (Path(shutil.copytree(exported[KINDS[0]], tmp_path / name)) for name in ("plain", "theirs"))
    (plain / "config_sentence_transformers.json").unlink()
    (theirs / "sentence_bert_config.json").write_text("{}")
    for model in (plain, theirs):
        with pytest.raises(ValueError, match="not as shortstack writes it; where torch is, Embedder.load"):
            serve.Embedder(model)
