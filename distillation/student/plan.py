"""The plan of a student: all that a recipe asks of it, checked before the run begins; and the student made from it.

`plan_student` makes the checks that need no text, before the text is read; `Plan.settled` makes the others.
"""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.distillation.data.corpus import Corpus
from shortstack.distillation.data.labels import Labels
from shortstack.distillation.data.vectors import TeacherVectors
from shortstack.distillation.ranks import Ranks
from shortstack.distillation.recipe import Recipe, teacher_overrides
from shortstack.distillation.student.dimensions import check_dimensions, project_and_keep
from shortstack.distillation.student.head import check_body, fit_head
from shortstack.distillation.student.layers import choose_layers, count_of, search_layers
from shortstack.distillation.student.vocabulary import check_vocabulary, cut_vocabulary, is_cut_of, retokenizer
from shortstack.distillation.student.width import check_width, important_units, keep_units
from shortstack.model import Embedder
from shortstack.model.files import InputError
from shortstack.model.pooling import Pooling

SAMPLE = 16_384  # sentences that a projection is computed on


@dataclass(frozen=True)
class Plan:
    """What kind of student to make.

    Attributes:
        recipe: its settings; once settled, `layers` is a list of numbers.
        teacher: gives the labels.
        start: the model whose layers are copied: the teacher, or the student that `start_from` names.
        vectors: used instead of the teacher's own embeddings; `teacher` is then the same as `start` and only tokenises.
    """

    recipe: Recipe
    teacher: Embedder
    start: Embedder
    vectors: TeacherVectors | None = None

    @property
    def layers(self) -> list[int]:
        """Layers of `start` to keep."""
        assert isinstance(self.recipe.layers, list), "settle the plan first"
        return self.recipe.layers

    def settled(self, corpus: Corpus, ranks: Ranks) -> "Plan":
        """The plan with its layers decided, by search on text where asked for; the teacher is projected too."""
        recipe, start = self.recipe, self.start
        total = start.bert.config.num_hidden_layers
        layers = choose_layers(recipe.layers, total)
        if layers is None:
            count, text = count_of(str(recipe.layers), total), sample_of(corpus, start)
            layers = ranks.from_main("layers", lambda: search_layers(start, text, count))
        if recipe.dimensions and recipe.start_from:
            self.teacher.dense = copy.deepcopy(start.dense)
        elif recipe.dimensions:
            directory = Path(recipe.output) / "labels"
            project_and_keep(self.teacher, corpus, sample_of(corpus, self.teacher), recipe.dimensions, directory, ranks)
        teacher = recipe.teacher if self.vectors is None else "none"
        return dataclasses.replace(self, recipe=dataclasses.replace(recipe, layers=layers, teacher=teacher))

    def history(self) -> dict[str, Any]:
        """How the student was made, to be kept in its directory.

        teacher: the name of the teacher.
        teacher_commit: of its repository on the Hub, if it came from there.
        teacher_layers: which of the teacher's layers it has, also where it was made from another student; None if that
            student does not say.
        projected: whether its dense layer is the teacher's projection to fewer dimensions.
        vocabulary: what was cut from it, if anything.
        """
        if self.vectors is not None:
            return {"teacher": ", ".join(self.recipe.teacher_vectors), "teacher_layers": None}
        total = self.start.bert.config.num_hidden_layers
        earlier: dict[str, Any] = {"teacher_layers": list(range(total))}
        if self.recipe.start_from:
            earlier = self.start.settings.history
        known, layers = earlier.get("teacher_layers"), None
        if isinstance(known, list) and len(known) == total:
            layers = [known[layer] for layer in self.layers]
        own = {"teacher": self.recipe.teacher, "teacher_layers": layers, "projected": self.recipe.dimensions > 0}
        if self.start.settings.commit and not self.recipe.start_from:
            own["teacher_commit"] = self.start.settings.commit
        return earlier | own


def plan_student(recipe: Recipe, teacher: Embedder, vectors: TeacherVectors | None = None) -> Plan:
    """Check all that a recipe asks of its student and that needs no text.

    `teacher` gives the labels; beside `vectors`, of a teacher that is not at hand, it is the encoder to start from.

    Raises:
        InputError: layers, width, vocabulary or dimensions that the teacher can't give, or a model to start from that
            is not a student of the teacher.
    """
    start = load_start(recipe, teacher) if recipe.start_from and vectors is None else teacher
    layers = choose_layers(recipe.layers, start.bert.config.num_hidden_layers, recipe.start_from or "the teacher")
    if vectors is not None:
        check_body(start, vectors.dimensions, recipe.start_from)
        if layers is None:
            raise InputError(f"layers: {recipe.layers} needs the teacher itself; name the layers, or take even:3")
    if layers == []:
        check_pooling(start)
    if recipe.vocabulary:
        check_vocabulary(teacher, recipe.vocabulary)
    if recipe.intermediate_size:
        if layers == []:
            raise InputError("intermediate_size: a student of no layers has none; leave it out")
        check_width(teacher, recipe.intermediate_size)
    if recipe.dimensions:
        check_dimensions(teacher, recipe.dimensions)
    return Plan(recipe, teacher, start, vectors)


def check_pooling(start: Embedder) -> None:
    """Raise InputError if a student without layers could not tell texts apart: its first token is always the same."""
    if start.settings.pooling is Pooling.CLS:
        raise InputError("layers: none needs a teacher with mean pooling; give --pooling mean, or keep a layer")


def load_start(recipe: Recipe, teacher: Embedder) -> Embedder:
    """The student that `start_from` names, in fp32, whose embeddings must be comparable with the teacher's.

    Raises:
        InputError: no such model; or one with other dimensions, without the teacher's projection, or with a tokenizer
            that is not the teacher's, whole or cut.
    """
    overrides = teacher_overrides(recipe) | {"max_length": teacher.settings.max_length}
    student = Embedder.load(recipe.start_from, teacher.device, "fp32", **overrides)
    where, wanted = f"start_from: {recipe.start_from}", recipe.dimensions or teacher.dimensions
    if student.dimensions != wanted:
        raise InputError(
            f"{where} has {student.dimensions} dimensions, the labels have {wanted}; name a student of this teacher"
            + (f", or give --dimensions {student.dimensions}" if student.dimensions < teacher.dimensions else "")
        )
    if recipe.dimensions and not student.settings.history.get("projected"):
        raise InputError(f"{where} keeps no projection of the teacher to {wanted} dimensions; start from the teacher")
    if not is_cut_of(student, teacher):
        raise InputError(f"{where} has another tokenizer than the teacher; name its own student")
    return student


def make_student(plan: Plan, labels: Labels, corpus: Corpus, ranks: Ranks) -> tuple[Embedder, Labels]:
    """The untrained student of a settled plan, in fp32, and the labels with the student's own tokens."""
    recipe, teacher = plan.recipe, plan.teacher
    student = plan.start.keep_layers(plan.layers)
    student.settings.history = plan.history()
    if not plan.layers:
        student.bert.encoder.requires_grad_(False)  # MPNet's bias of positions, which only attention reads
    if plan.vectors is not None:
        fit_head(student, labels.read([0]), plan.vectors.are_normalised())
    if recipe.dimensions and student.dense is not None:
        student.dense.requires_grad_(False)  # stays the teacher's projection: a later student may start from this one
    if recipe.intermediate_size:
        size = recipe.intermediate_size
        keep_units(student, ranks.from_main("units", lambda: important_units(student, labels.read([0]).tokens, size)))
    if recipe.vocabulary:
        student, cut = cut_vocabulary(student, labels.pieces, recipe.vocabulary)
        student.settings.history |= {"vocabulary": cut}
    if student.bert.config.vocab_size != teacher.bert.config.vocab_size:
        tokens_of_student = retokenizer(teacher, student, corpus, recipe.shard_size)
        labels = dataclasses.replace(labels, retokenize=tokens_of_student)
    student.tokens_per_batch = teacher.tokens_per_batch
    return student, labels


def sample_of(corpus: Corpus, teacher: Embedder) -> list[str]:
    """A random sample of training sentences, prompts included: the first ones, since the corpus is shuffled."""
    return teacher.with_prompts(*corpus.training(0, min(SAMPLE, len(corpus))))
