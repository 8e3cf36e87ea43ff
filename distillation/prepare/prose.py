"""English prose out of wiki markup and a dictionary: passages, sentences, clauses and definitions."""

import bz2
import html
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator

from shortstack.distillation import RunError
from shortstack.distillation.data.passages import ESTIMATE, split_sentences

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

OTHER_SCRIPT = re.compile("[^\u0000-\u024f\u2010-\u2026\u20ac\u2212]")  # not Latin letters, common marks, €, −


def articles(dump: bytes) -> Iterator[tuple[str, str]]:
    """Title and wiki text of each article of a compressed XML dump, without redirects and pages of other namespaces."""
    title = namespace = text = ""
    try:
        for _, element in ElementTree.iterparse(io.BytesIO(bz2.decompress(dump))):
            tag = element.tag.rpartition("}")[2]
            if tag == "title":
                title = element.text or ""
            elif tag == "ns":
                namespace = element.text or ""
            elif tag == "text":
                text = element.text or ""
            elif tag == "page":
                if namespace == "0" and not text.lstrip().upper().startswith("#REDIRECT"):
                    yield title, text
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


def passages_of(paragraphs: Iterable[str]) -> list[str]:
    """Paragraphs of two sentences and more, each once: what reads as prose in them, cut where it is too long.

    Long text has to be learnt from long text: without passages a student loses a seventh of search.
    """
    passages: dict[str, None] = {}
    for paragraph in paragraphs:
        sentences = map(balance_quotes, split_sentences(" ".join(paragraph.split())))
        prose = [sentence for sentence in sentences if is_prose(sentence)]
        if len(prose) > 1:
            passages |= dict.fromkeys(ESTIMATE.cut([" ".join(prose)]))
    return list(passages)


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


CLAUSE_BOUNDARY = re.compile(
    r"[,;:()\"]| [–-] |—| (?:and|or|but|which|who|that|because|although|when|while|where|whereas|if|since|so) "
)


def clauses_of(sentences: Iterable[str]) -> list[str]:
    """The parts of sentences between commas and conjunctions, of 4 to 15 words, each once, in order.

    They are short and plain, as most text to be searched or compared is and encyclopedia sentences are not; beside
    these they teach a student more in less time (docs/experiments.md).
    """
    clauses: dict[str, None] = {}
    for sentence in sentences:
        for part in CLAUSE_BOUNDARY.split(sentence):
            part = part.strip(" .,;:()\"'–—-!?")
            if 4 <= len(part.split()) <= 15:
                clauses[f"{part[0].upper()}{part[1:]}."] = None
    return list(clauses)


def definitions_of(lines: Iterable[str]) -> Iterator[str]:
    """The definitions and the example sentences in the lines of a WordNet data file.

    A line ends in its gloss, as in "... | a bird of prey that hunts at night; "an owl hooted in the wood"".
    """
    for line in lines:
        gloss = "" if line.startswith(" ") else line.partition(" | ")[2]  # the licence is indented
        examples = re.findall(r'"([^"]+)"', gloss)
        definition = re.sub(r';?\s*"[^"]*"[^;]*', "", gloss)
        for text in (definition, *examples):
            text = " ".join(text.strip(" ;").split())
            if len(text.split()) > 2:
                yield text
