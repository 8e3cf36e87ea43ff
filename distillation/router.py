"""The asymmetric pair for sentence-transformers: the student embeds queries, the teacher documents.

    python -m distillation.export runs/minilm-3/model --router

Documents are embedded once, queries all the time. So a search can use the teacher's quality for the documents and the
student's speed for the queries: both embed into the same space. The directory has a Router (sentence-transformers 5 or
newer) over two whole model directories, `query` and `document`, each of which loads by itself too:

    model = SentenceTransformer("runs/minilm-3/router")
    scores = model.similarity(model.encode_query(queries), model.encode_document(documents))
"""

import shutil
from pathlib import Path

from shortstack.distillation.recipe import overrides_for, read_recipe
from shortstack.distillation.run import run_directory
from shortstack.model import Embedder
from shortstack.model.files import InputError, atomic_directory, check_replaceable, read_json, write_json

CONFIG = "router_config.json"
LIBRARY = "config_sentence_transformers.json"  # prompts, similarity


def export_router(model: str, teacher: str | None = None, output: Path | None = None) -> Path:
    """Write the Router of a student and its teacher, by default that of the run which made it, beside the student.

    Raises:
        InputError: no teacher known, embeddings of different lengths, or something else at `output`.
    """
    run = run_directory(model)
    recipe = read_recipe(run / "recipe.toml") if run is not None else None
    name = teacher or (recipe.known_teacher if recipe else None)
    if name is None:
        raise InputError(f"{model}: no run names its teacher; give --teacher")
    if output is None and not Path(model).is_dir():
        raise InputError(f"{model}: is no directory here; say with --output where to write the router")
    path = output or Path(model).parent / "router"
    write_router(
        Embedder.load(model, "cpu", "fp32"), Embedder.load(name, "cpu", "fp32", **overrides_for(name, recipe)), path
    )
    return path


def write_router(student: Embedder, teacher: Embedder, path: Path) -> None:
    """Write the pair, whole or not at all; a router that is there is replaced."""
    if student.dimensions != teacher.dimensions:
        raise InputError(
            f"{student.settings.origin} has {student.dimensions} dimensions, its teacher {teacher.dimensions}; "
            "a router needs a pair that lives in one space"
        )
    check_replaceable(path, [CONFIG], "router", "--output")
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    with atomic_directory(path) as directory:
        for route, embedder in (("query", student), ("document", teacher)):
            embedder.save(directory / route)
            for module in read_json(directory / route / "modules.json"):
                folder = f"{route}/{module['path']}".rstrip("/")
                types[folder] = module["type"]
                structure.setdefault(route, []).append(folder)
        parameters = {"default_route": "document", "allow_empty_key": True}
        write_json(directory / CONFIG, {"types": types, "structure": structure, "parameters": parameters})
        router = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}
        write_json(directory / "modules.json", [router])
        shutil.copy(directory / "document" / LIBRARY, directory / LIBRARY)
