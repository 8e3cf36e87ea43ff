"""A recipe: every setting of a run, in one dataclass; read from TOML, overridden by flags of the same names."""

import dataclasses
import difflib
import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_type_hints

from shortstack.distillation.curves import trackers_of
from shortstack.model.files import InputError

# Names that a set can't have, since other figures have them.
RESERVED = ("negative_mse", "relative_error", "mean_cosine", "p5_cosine", "agreement", "overlap@10", "mean_found@10",
            "own-documents")  # fmt: skip
# The losses and precisions that train, by name; their code needs torch, which takes seconds to import.
LOSSES = ("mse", "cosine")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Fields that are numbers of at least 0 or 1, and those that are one of a few words.
AT_LEAST = {
    0: "max_sentences max_length tokens_per_batch intermediate_size dimensions weight_decay max_grad_norm",
    1: "batch_size gradient_accumulation epochs log_every evaluate_every save_every shard_size window_shards "
       "evaluation_sentences max_skipped_steps",
}  # fmt: skip
CHOICES = {
    "pooling": ("teacher", "cls", "mean"),
    "reading": ("auto", "lines", "passages"),
    "sampling": ("mixed", "in_order"),
    "precision": PRECISIONS,
    "label_precision": ("fp16", "fp32"),
    "loss": LOSSES,
}
SHARED = ("labels", "corpus")  # directories under `output` that belong to all runs
RECIPES = Path(__file__).parent.parent / "recipes"  # in a checkout as in an installed package
PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "scipy")


def setting(default: Any, help: str) -> Any:
    """A recipe field with its line of help; lists and dictionaries are copied for each recipe."""
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class Recipe:
    """Every setting of a run. Each field is a key in a recipe file and a flag with dashes for underscores."""

    name: str = setting("", "name of the run directory under OUTPUT; empty takes the recipe file's name")
    teacher: str = setting("assets/all-MiniLM-L6-v2", "teacher: a model directory or a Hub name, of BERT's kind")
    teacher_vectors: list[str] = setting(
        [], "texts with a teacher's vectors, instead of TEACHER and SENTENCES: FILE:text,embedding or VECTORS.npy:TEXTS"
    )
    start_from: str = setting("", "a student to train further, a directory or Hub name; empty starts from the teacher")
    layers: list[int] | str = setting(
        "even:3", "layers to keep, of the teacher or START_FROM: 0,2,5, all, none, even:3 or auto:3, which tries them"
    )
    vocabulary: int | str = setting(
        "", "pieces of the tokenizer to keep: a number, 30000, or a share of the text's tokens, 99.9%; empty for all"
    )
    intermediate_size: int = setting(0, "units of each layer's MLP to keep, those that matter most; 0 for all")
    pooling: str = setting("teacher", "pooling: teacher (as its own files say), cls or mean")
    sentences: list[str] = setting(
        [], "text to train on: files, globs, directories, Hub datasets NAME[:CONFIG[:SPLIT[:COLUMNS]]]"
    )
    reading: str = setting("auto", "how SENTENCES are read: lines, passages, or auto: passages for documents only")
    general: list[str] = setting([], "general text to mix in, sources as for SENTENCES")
    sampling: str = setting("mixed", "mixed draws from all sources; in_order uses up one source before the next")
    max_sentences: int = setting(0, "training sentences, 0 for all")
    evaluation_sentences: int = setting(1000, "sentences held out to measure the MSE on")
    sts: dict[str, str] = setting({}, "sets to judge by: NAME=PATH or NAME=HUB_NAME, any number")
    retrieval: dict[str, str] = setting({}, "collections to judge search by: NAME=DIRECTORY, as evaluate.py takes them")
    max_length: int = setting(0, "tokens of a sentence that are read, 0 for as many as the teacher reads")
    batch_size: int = setting(64, "sentences per optimizer step, over all ranks together")
    gradient_accumulation: int = setting(1, "micro-batches for each rank's share of a batch, to save memory")
    learning_rate: float = setting(1e-4, "peak learning rate")
    warmup_ratio: float = setting(0.1, "share of the steps in which the learning rate rises from 0")
    epochs: int = setting(1, "passes over the sentences")
    weight_decay: float = setting(0.0, "decoupled weight decay of AdamW")
    max_grad_norm: float = setting(1.0, "gradients are clipped to this L2 norm, 0 for never")
    dropout: float = setting(0.0, "probability of dropout in the student while it trains")
    loss: str = setting("mse", f"distance to the teacher's embedding: {', '.join(LOSSES)}")
    dimensions: int = setting(0, "length of the student's embeddings, by PCA of the teacher's; 0 for the teacher's own")
    precision: str = setting("auto", "auto, fp32, bf16, or fp16 (GPU); a GPU labels and evaluates in fp16 beside bf16")
    tokens_per_batch: int = setting(0, "tokens computed at a time in labelling and evaluation; 0: suits the device")
    label_precision: str = setting("fp16", "how labels are stored: fp16 or fp32")
    shard_size: int = setting(16_384, "sentences whose labels make one file")
    window_shards: int = setting(4, "files of labels in memory at once; their sentences are shuffled together")
    labels: str = setting("", "directory of the teacher's labels; empty for OUTPUT/labels/FINGERPRINT")
    evaluate_every: int = setting(500, "optimizer steps between evaluations; the last step always evaluates")
    log_every: int = setting(10, "optimizer steps between lines of log.jsonl")
    report_to: str = setting("auto", "curves beside log.jsonl: auto (TensorBoard if installed), none, wandb...")
    save_every: int = setting(500, "optimizer steps between checkpoints")
    metric_for_best_model: str = setting("negative_mse", "best step by: negative_mse, mean_found@10, ...")
    seed: int = setting(42, "for shuffling and dropout")
    device: str = setting("auto", "auto, cpu, cuda or cuda:N")
    output: str = setting("runs", "directory that run directories are made in")
    max_skipped_steps: int = setting(20, "steps in a row with a NaN or infinite gradient after which the run stops")
    timeout: float = setting(1800.0, "seconds that ranks wait for each other before the run stops")

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.output) / self.name

    @property
    def known_teacher(self) -> str | None:
        """The teacher's directory or Hub name; None of one that is known only by its vectors."""
        return None if self.teacher_vectors else self.teacher

    def check(self) -> None:
        """Check for values that make no sense.

        Raises:
            InputError: names the field, its value and what is allowed.
        """
        for least, keys in AT_LEAST.items():
            for key in keys.split():
                self._require(getattr(self, key) >= least, key, f"at least {least}" if least else "0 or more")
        for key, choices in CHOICES.items():
            self._require(getattr(self, key) in choices, key, f"one of {', '.join(choices)}")
        self._require(0 <= self.seed < 2**32, "seed", "from 0 to 4294967295")
        self._require(self.learning_rate > 0, "learning_rate", "above 0")
        self._require(self.timeout > 0, "timeout", "above 0")
        self._require(0 <= self.warmup_ratio <= 1, "warmup_ratio", "from 0 to 1")
        self._require(0 <= self.dropout < 1, "dropout", "from 0 to below 1")
        self._require(self.max_length == 0 or self.max_length >= 3, "max_length", "0, or at least 3")
        trackers_of(self.report_to)
        if self.vocabulary != "":
            parse_vocabulary(self.vocabulary)
        self._check_combinations()
        what = "letters, digits, '.', '_' and '-' only; give --name"
        self._require(re.fullmatch(r"[\w.-]+", self.name) and self.name not in (".", ".."), "name", what)
        what = "another: that directory is shared by all runs; give --name"
        self._require(self.name.lower() not in SHARED, "name", what)
        metrics = self._metrics()
        self._require(self.metric_for_best_model in metrics, "metric_for_best_model", f"one of {', '.join(metrics)}")

    def _require(self, ok: object, key: str, allowed: str) -> None:
        if not ok:
            raise InputError(f"recipe: {key} = {getattr(self, key)!r} is not allowed; it must be {allowed}")

    def _check_combinations(self) -> None:
        """Check fields that depend on others."""
        if self.start_from:
            self._require(self.vocabulary == "", "vocabulary", "empty beside start_from, whose student keeps its own")
            what = "0 beside start_from, whose student keeps its own"
            self._require(not self.intermediate_size, "intermediate_size", what)
        if self.teacher_vectors:
            self._require(self.start_from, "start_from", "the encoder to train, since teacher_vectors give none")
            for key in ("sentences", "general"):
                self._require(not getattr(self, key), key, "empty beside teacher_vectors, which have texts")
            self._require(not self.dimensions, "dimensions", "0 beside teacher_vectors, which have their own")
        else:
            self._require(self.sentences, "sentences", "at least one file, glob or Hub dataset; give --sentences")
        if self.general:
            self._require(self.sampling == "mixed", "sampling", "mixed beside general, which fills up the own text")
        if self.metric_for_best_model == "overlap@10":
            what = "at least 100 to judge by overlap@10"
            self._require(self.evaluation_sentences >= 100, "evaluation_sentences", what)

    def _metrics(self) -> list[str]:
        """The figures that `metric_for_best_model` may name; InputError for two sets that share a figure's name."""
        metrics = ["negative_mse", "overlap@10"]
        for name in self.sts:
            check_set_name(name, "recipe: sts")
            keys = [metric_key(name, kind) for kind in ("spearman_cosine", "pearson_cosine")]
            if keys[0] in metrics:
                raise InputError(f"recipe: sts: two names that both give {keys[0]} in log.jsonl; rename {name!r}")
            metrics += keys
        found = [] if self.teacher_vectors else ["found@10"]  # which needs the teacher itself
        metrics += [f"mean_{kind}" for kind in found] if self.retrieval else []
        for name in self.retrieval:
            check_set_name(name, "recipe: retrieval")
            keys = [metric_key(name, kind) for kind in (*found, "ndcg@10")]
            if set(keys) & set(metrics) or name in self.sts:
                raise InputError(f"recipe: retrieval: the name {name!r} is taken by another set; rename it")
            metrics += keys
        return metrics


def metric_key(sts_name: str, kind: str) -> str:
    """The key of an STS figure in log.jsonl: ("sts-dev", "spearman_cosine") gives "sts_dev_spearman_cosine"."""
    return f"{re.sub(r'[^0-9A-Za-z]', '_', sts_name)}_{kind}"


def parse_vocabulary(text: int | str) -> int | float:
    """The recipe's field: 30000 as a number of pieces, "99.9%" as the share 0.999.

    Raises:
        InputError: neither.
    """
    if isinstance(text, int) or re.fullmatch(r"\d{1,18}", text, re.ASCII):
        number = int(text)
        if number >= 1:
            return number
    share = re.fullmatch(r"(\d+(?:\.\d+)?)%", str(text))
    if share and 0 < float(share[1]) <= 100:
        return float(share[1]) / 100
    raise InputError(
        f"recipe: vocabulary = {text!r} is not allowed; it must be a number of pieces, such as 30000, or a share of "
        "the text's tokens, such as 99.9%"
    )


def check_set_name(name: str, where: str) -> None:
    """Raise InputError, which begins with `where`, if a set's name can't be a key beside the other figures."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{where}: the name {name!r} may hold letters, digits, '.', '_' and '-' only")
    if name in RESERVED:
        raise InputError(f"{where}: the name {name!r} is taken by another figure; choose another")


def teacher_overrides(recipe: Recipe) -> dict[str, Any]:
    """Arguments of `Embedder.load` that replace what the teacher's own files say."""
    pooling = None if recipe.pooling == "teacher" else recipe.pooling
    return {"pooling": pooling, "max_length": recipe.max_length or None}


def overrides_for(teacher: str, recipe: Recipe | None) -> dict[str, Any]:
    """`teacher_overrides` where this is the recipe's teacher; {} for any other."""
    return teacher_overrides(recipe) if recipe is not None and teacher == recipe.teacher else {}


# -- reading and writing ---------------------------------------------------------------------------------------------


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path, a run directory, which has one, or the name of one of ours, such as own-corpus.

    Raises:
        InputError: none of that name; says which there are.
    """
    path = Path(name)
    if path.is_file() or (path / "recipe.toml").is_file():
        return path if path.is_file() else path / "recipe.toml"
    ours = {file.stem: file for file in sorted(RECIPES.glob("*.toml"))}
    if path.parent.name in ("", "recipes") and path.name.removesuffix(".toml") in ours:
        return ours[path.name.removesuffix(".toml")]
    close = difflib.get_close_matches(path.name.removesuffix(".toml"), ours, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    raise InputError(f"{name}: no such recipe{meant}; give a file, or one of {', '.join(ours)}")


def read_recipe(path: str | Path, above: tuple[Path, ...] = ()) -> Recipe:
    """Read a recipe file, on top of its `base` if it has one: a file beside it, or what `find_recipe` finds.

    Each key of the file, and each table such as [sts], replaces the base's. `above` are the recipes on top of this one.

    Raises:
        InputError: no such file, not readable, not TOML, an unknown key, a value of the wrong type, or its own base.
    """
    path = Path(path)
    values = read_toml(path)
    values.pop("versions", None)
    recipe = Recipe()
    if "base" in values:
        base = values.pop("base")
        if not isinstance(base, str):
            raise InputError(f"{path}: base = {base!r:.200} must be of type str")
        above = (*above, path.resolve())
        beside = path.parent / base
        found = beside if beside.is_file() else find_recipe(base)
        if found.resolve() in above:
            raise InputError(f"{path}: base = {base!r} leads back to this recipe")
        recipe = read_recipe(found, above)
        recipe.name = ""
    for key, value in values.items():
        set_field(recipe, key, value, str(path))
    recipe.name = recipe.name or path.stem
    return recipe


def read_toml(path: Path) -> dict[str, Any]:
    """The keys and values of a recipe file, unchecked.

    Raises:
        InputError: no such file, not readable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read as a recipe ({error.strerror})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise InputError(f"{path}: not TOML ({error})") from None


def set_field(recipe: Recipe, key: str, value: Any, where: str) -> None:
    """Set one field, whose value must have the field's type.

    Raises:
        InputError: an unknown key or a wrong type, named with `where`.
    """
    types = get_type_hints(Recipe)
    if key not in types:
        close = difflib.get_close_matches(key, types, n=1)
        raise InputError(f"{where}: unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    if types[key] is float and type(value) is int and abs(value) < 2**53:
        value = float(value)
    fits = {
        str: lambda: isinstance(value, str),
        int: lambda: type(value) is int,
        float: lambda: isinstance(value, float) and math.isfinite(value),
        list[str]: lambda: isinstance(value, list) and all(isinstance(item, str) for item in value),
        dict[str, str]: lambda: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
        int | str: lambda: type(value) is int or isinstance(value, str),
        list[int] | str: lambda: (
            isinstance(value, str) or isinstance(value, list) and all(type(item) is int for item in value)
        ),
    }[types[key]]
    if not fits():
        wanted = types[key].__name__ if isinstance(types[key], type) else types[key]
        raise InputError(f"{where}: {key} = {value!r:.200} must be of type {wanted}")
    try:
        toml_value(value).encode()
    except UnicodeEncodeError:  # a file name in another encoding, which recipe.toml could not hold
        raise InputError(f"{where}: {key} = {ascii(value)} is not UTF-8; rename the file") from None
    setattr(recipe, key, value)


def recipe_text(recipe: Recipe) -> str:
    """The recipe as TOML, with the versions of the packages it ran with."""
    lines = ["# Every resolved setting of this run. Run it again with: python train.py THIS_FILE"]
    for key, value in dataclasses.asdict(recipe).items():
        lines.append(f"{key} = {toml_value(value)}")
    lines += ["", "[versions]", *(f"{toml_value(name)} = {toml_value(number)}" for name, number in versions().items())]
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """The versions of the packages that a run's results depend on."""
    return {name: version(name) for name in PACKAGES}


def toml_value(value: Any) -> str:
    """A value as TOML, whose strings, numbers and lists are JSON's but for DEL, which has to be escaped."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{toml_value(key)} = {toml_value(item)}" for key, item in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
