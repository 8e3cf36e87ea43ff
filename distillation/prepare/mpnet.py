"""A larger teacher, all-mpnet-base-v2 (12 layers of 768 dimensions): five wheels on PyPI hold its zip file in parts."""

from pathlib import Path

from shortstack.distillation.prepare.fetch import is_whole, put_in_place
from shortstack.distillation.prepare.packages import Package, downloads, get, read_member

NAME = "all-mpnet-base-v2"
PARTS = [
    Package(
        f"{NAME}-pypi-part-{number:03d}==0.0.1", sha256, f"{NAME}-pypi-part_{number:03d}/input/{NAME}.zip.{number:03d}"
    )
    for number, sha256 in enumerate(
        [
            "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
            "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
            "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
            "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
            "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
        ],
        start=1,
    )
]

# The published files of sentence-transformers/all-mpnet-base-v2.
FILES = {
    "1_Pooling/config.json": "a37f83ada23e7887be6b88f4998927dbeac0038af301553c7cd5461413bf1a56",
    "README.md": "a3e99d3235e3c1b4225f4b98892be383f2ed87a50b3a5420ae156e77716182de",
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "cabfacded9272091a06ff595a46ef027a76ddf4ac9e77d0fcf11c605748f1667",
    "special_tokens_map.json": "9ef40e9c160511bf3f46ceb71f1471dafa1e9473d5120bb816c36b2efa75f8ba",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "tokenizer_config.json": "67f2ff7e223518e729869bb3a70f0caf8368fe549383fc11cfe2dfb42fffc268",
    "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
}


def prepare_mpnet(assets: Path) -> None:
    """Put the teacher's files, checked by SHA-256, in place in `assets`; what is already there and correct is kept."""
    directory = assets / NAME
    if is_whole(directory, FILES):
        return
    with downloads(assets) as folder:
        archive = folder / f"{NAME}.zip"
        with archive.open("wb") as joined:
            for part in PARTS:
                joined.write(read_member(get(part, folder), part.folder))
        put_in_place(directory, FILES, archive, f"{NAME}/", NAME)
