"""An exported student without torch: sentences in, vectors out, by ONNX Runtime or OpenVINO.

    python -m shortstack.distillation.export runs/minilm-3/model      # where torch is: writes onnx/ into the directory

    from shortstack.serve import Embedder                             # where it is not; the extra is [serve]
    embedder = Embedder("runs/minilm-3/model", precision="int8")
    embeddings = embedder.encode(["one sentence", "another"])         # (2, dimensions) float32 numpy

The methods are those of `shortstack.Embedder`, and in fp32 so are the embeddings, to 1e-5. This file needs numpy,
tokenizers and one of the two engines, and nothing else of this package.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, normalizers

CHUNK = 4096  # sentences tokenised and sorted together: memory stays bounded whatever their number
TOKENS_PER_BATCH = 2048  # padding included; more is no faster on a CPU, and takes memory in proportion
OUTPUT = "sentence_embedding"
FILES = {  # what `export` writes, by engine and precision
    ("onnxruntime", "fp32"): "onnx/model.onnx",
    ("onnxruntime", "int8"): "onnx/model_qint8_avx512_vnni.onnx",
    ("openvino", "fp32"): "openvino/openvino_model.xml",
    ("openvino", "int8"): "openvino/openvino_model_qint8_quantized.xml",
}
ROLE_PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}  # the first that a model has


class Graph(NamedTuple):
    """An exported file that an engine has loaded."""

    inputs: list[str]
    dimensions: int
    run: Callable[[dict[str, np.ndarray]], np.ndarray]  # the inputs to embeddings, (b, dimensions)


class Embedder:
    """A model directory with exported files, ready to encode.

    Args:
        path: directory as `Embedder.save` writes it, with the files of `shortstack export` in it.
        precision: fp32 or int8.
        engine: onnxruntime or openvino; None takes the one that is installed, ONNX Runtime first.
        threads: processor cores to use; 0 for all.

    Raises:
        FileNotFoundError: no exported file of this engine and precision is there.
        ValueError: an unknown engine or precision, or a model that this module can't run.
    """

    def __init__(self, path: str | Path, precision: str = "fp32", engine: str | None = None, threads: int = 0) -> None:
        self.path = Path(path)
        engine = engine or installed_engine()
        if (engine, precision) not in FILES:
            raise ValueError(f"engine {engine!r} with precision {precision!r}: choose among {sorted(FILES)}")
        file = self.path / FILES[engine, precision]
        if not file.exists():
            raise FileNotFoundError(f"{file} is missing; write it with: shortstack export {path}")
        self._graph = (open_onnx if engine == "onnxruntime" else open_openvino)(file, threads)
        self.dimensions = self._graph.dimensions
        try:
            whole = read_json(self.path / "config_sentence_transformers.json")
            transformer = read_json(self.path / "sentence_bert_config.json")
            self.max_length: int = transformer["max_seq_length"]
            side = read_json(self.path / "tokenizer_config.json").get("truncation_side", "right")
        except (FileNotFoundError, KeyError):
            raise ValueError(
                f"{path}: not as shortstack writes it; where torch is, Embedder.load(MODEL).save(DIRECTORY), then "
                "shortstack export DIRECTORY"
            ) from None
        self.prompts: dict[str, str] = whole.get("prompts") or {}
        self.default_prompt_name: str | None = whole.get("default_prompt_name")
        self._padding_id = read_json(self.path / "config.json").get("pad_token_id") or 0
        self._tokenizer = Tokenizer.from_file(str(self.path / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.max_length, direction=side)
        if transformer.get("do_lower_case"):
            parts = [part for part in (normalizers.Lowercase(), self._tokenizer.normalizer) if part is not None]
            self._tokenizer.normalizer = normalizers.Sequence(parts)

    def encode(
        self, sentences: str | Sequence[str], prompt_name: str | None = None, prompt: str | None = None
    ) -> np.ndarray:
        """Embed sentences: (n, dimensions) float32, row i for sentence i; for a single string (dimensions,).

        Args:
            sentences: one sentence, or many; beside the result only a few thousand are in memory as tokens.
            prompt_name: name of one of the model's prompts to put before each sentence.
            prompt: the text itself to put before each; used instead of `prompt_name` if both are given.

        Raises:
            KeyError: the model has no prompt of that name.
        """
        if prompt is None:
            name = self.default_prompt_name if prompt_name is None else prompt_name
            prompt = "" if name is None else self.prompts[name]
        if isinstance(sentences, str):
            return self._embed([prompt + sentences])[0]
        result = np.empty((len(sentences), self.dimensions), np.float32)
        for start in range(0, len(sentences), CHUNK):
            texts = [prompt + text for text in sentences[start : start + CHUNK]]
            result[start : start + len(texts)] = self._embed(texts)
        return result

    def encode_query(self, sentences: str | Sequence[str]) -> np.ndarray:
        """`encode` under the model's prompt for queries, if it has one."""
        return self.encode(sentences, prompt=self._role_prompt("query"))

    def encode_document(self, sentences: str | Sequence[str]) -> np.ndarray:
        """`encode` under the model's prompt for documents, if it has one."""
        return self.encode(sentences, prompt=self._role_prompt("document"))

    @staticmethod
    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine similarity of every row of a (n, d) with every row of b (m, d): (n, m)."""
        return unit_rows(a) @ unit_rows(b).T

    def _role_prompt(self, role: str) -> str:
        return next((self.prompts[name] for name in ROLE_PROMPTS[role] if name in self.prompts), "")

    def _embed(self, texts: list[str]) -> np.ndarray:
        """Embed some texts in batches of nearly equal length."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        result = np.empty((len(texts), self.dimensions), np.float32)
        for indices in batches([len(tokens) for tokens in ids]):
            result[indices] = self._graph.run(self._pad([ids[index] for index in indices]))
        return result

    def _pad(self, ids: list[list[int]]) -> dict[str, np.ndarray]:
        """The graph's inputs for token lists, shortest first: (b, longest) int64 each."""
        shape = len(ids), len(ids[-1])
        inputs = {name: np.zeros(shape, np.int64) for name in self._graph.inputs}
        inputs["input_ids"][:] = self._padding_id
        for row, tokens in enumerate(ids):
            inputs["input_ids"][row, : len(tokens)] = tokens
            inputs["attention_mask"][row, : len(tokens)] = 1
        return inputs


def batches(lengths: list[int]) -> Iterator[list[int]]:
    """Indices in ascending order of length, in batches of at most TOKENS_PER_BATCH tokens, padding included."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def installed_engine() -> str:
    """The engine that is installed.

    Raises:
        ImportError: none is.
    """
    for name in ("onnxruntime", "openvino"):
        if find_spec(name) is not None:
            return name
    raise ImportError("no engine to run the model with; pip install onnxruntime, or openvino")


def open_onnx(file: Path, threads: int) -> Graph:
    """Load a file into ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    (dimensions,) = [value.shape[-1] for value in session.get_outputs() if value.name == OUTPUT]
    return Graph(names, dimensions, lambda inputs: session.run([OUTPUT], inputs)[0])


def open_openvino(file: Path, threads: int) -> Graph:
    """Load a file into OpenVINO."""
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    settings |= {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = compile_openvino(file, settings)
    names = [value.get_any_name() for value in compiled.inputs]
    dimensions = compiled.output(OUTPUT).get_partial_shape()[1].get_length()
    lock = Lock()  # all calls share one request, and with it its inputs

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        with lock:
            return compiled(inputs)[OUTPUT]

    return Graph(names, dimensions, run)


def compile_openvino(file: Path, settings: dict[str, Any]) -> Any:
    """OpenVINO's compiled model for the CPU.

    OpenVINO 2026.4 gives the thread that compiles a stack for signal handlers, and frees it with the model. In the main
    thread, Ctrl-C would then end the process by a segmentation fault.
    """
    import openvino

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(openvino.Core().compile_model, str(file), "CPU", settings).result()


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows divided by their L2 norm; one vector (d,) counts as one row."""
    rows = np.atleast_2d(vectors)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
