"""What every test shares: settings of the libraries, and models and data that are made once."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the libraries are imported: no test asks the Hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "TEST_GPU" not in os.environ:  # set by make test-gpu: all other tests compute on the CPU, whatever the machine has
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from hypothesis import HealthCheck, settings
from tiny import make_bert_dir

from shortstack.distillation.command_line import run_command
from shortstack.distillation.run import locked

ROOT = Path(__file__).resolve().parent.parent

calm = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("default", max_examples=50, **calm)
settings.register_profile("long", max_examples=2000, **calm)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

torch.set_num_threads(1)  # more wait for each other where others use the processor, too: ten times slower then


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random teacher like all-MiniLM-L6-v2 in small: 6 layers, 32 dimensions, mean pooling, normalised, 64 tokens."""
    return make_bert_dir(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_cls_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random teacher like mxbai-embed-large-v1 in small: cls pooling, not normalised, a query prompt, in fp16."""
    return make_bert_dir(
        tmp_path_factory.mktemp("models") / "tiny-cls",
        layers=8,
        hidden=48,
        heads=6,
        pooling="cls",
        normalize=False,
        prompts={"query": "find the sentence that is near to: ", "passage": ""},
        dtype="float16",
        seed=1,
    )


@pytest.fixture
def model_copy(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny teacher that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copy"))


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2, fetched if it is not there yet; skips where it can't be."""
    directory = ROOT / "assets" / "all-MiniLM-L6-v2"
    if not (directory / "model.safetensors").exists():
        try:
            from shortstack.distillation.prepare.fetch import prepare

            with locked(ROOT / "build" / "assets.lock"):  # two processes run the tests
                if not (directory / "model.safetensors").exists():
                    prepare(ROOT / "assets")
        except Exception as error:
            pytest.skip(f"{directory} is missing and can't be fetched: {error}")
    return directory


@pytest.fixture(scope="session")
def mpnet_dir() -> Path:
    """all-mpnet-base-v2; skips where it is not there, since it is large."""
    directory = ROOT / "assets" / "all-mpnet-base-v2"
    if not (directory / "model.safetensors").exists():
        pytest.skip(f"{directory} is missing: python -m distillation.prepare --teacher all-mpnet-base-v2")
    return directory


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The STS Benchmark and image captions beside the checkout; skips where they are missing."""
    directory = ROOT.parent / "shared" / "data"
    if not directory.is_dir():
        pytest.skip(f"{directory} is missing: no STS Benchmark and no captions to test with")
    return directory


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a command's `main` with these arguments, as its command line would."""

    def run(main: Callable[[], object], *arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        main()

    return run


@pytest.fixture
def refusal(call: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The same with arguments that are wrong: exit status 2 and one line, which is returned."""

    def run(main: Callable[[], object], *arguments: object) -> str:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_command(lambda: call(main, *arguments))
        (line,) = capfd.readouterr().err.splitlines()
        assert stopped.value.code == 2 and line.startswith("error: ")
        return line

    return run
