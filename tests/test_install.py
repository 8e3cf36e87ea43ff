"""The installed package: one name in site-packages, beside tools that bring an `evaluate` of their own."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from processes import ENVIRONMENT, LIMIT, ROOT, write_recipe
from tiny import english_sentences

import shortstack
from shortstack.__main__ import COMMANDS

OTHERS = ["setfit==1.2.0", "evaluate==0.4.6"]  # setfit brings Hugging Face's evaluate
HEAVY = ["torch", "transformers", "datasets", "scipy", "matplotlib"]


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if ended.returncode and "Could not find a version" in ended.stderr:
        pytest.skip("the package index can't be reached")
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    found = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    return found or pytest.skip("not a git checkout: what belongs into the wheel is not known")


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools would take up what an earlier build left in the checkout."""
    source, directory = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-deps", "--wheel-dir", str(directory), str(source))
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site-packages with the wheel and the other tools; what they need is the test environment's."""
    directory = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", str(directory), str(wheel), *OTHERS)
    return directory


def python(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a directory of a user's, with the installed packages before all others."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=environment, timeout=LIMIT
    )


def test_the_wheel_holds_every_module_and_recipe_under_one_name(wheel: Path, tracked: list[str]) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    packages = ("model/", "distillation/", "benchmark/", "recipes/")
    expected = {f"shortstack/{name}" for name in tracked if name.startswith(packages)}
    expected |= {f"shortstack/{name}.py" for name in ("train", "evaluate", "bench")}
    expected |= {name for name in tracked if name.startswith("shortstack/")}
    assert names == expected
    assert "shortstack/py.typed" in names


def test_other_tools_modules_and_a_users_own_stay_themselves(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("mine = True\n")
    code = "import model, evaluate, setfit, shortstack.train, shortstack.evaluate; print(model.mine, evaluate.__file__)"
    ended = python(installed, tmp_path, "-c", code)
    assert ended.stdout.split() == ["True", str(installed / "evaluate" / "__init__.py")], ended.stderr


def test_the_first_steps_of_a_run_beside_a_users_model_py(
    installed: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text("raise SystemExit('a module of the user was imported')\n")
    recipe = write_recipe(tmp_path, tiny_model_dir, epochs=1)
    ended = python(installed, tmp_path, "-m", "shortstack", "train", str(recipe))
    assert ended.returncode == 0, ended.stderr
    code = "from shortstack import Embedder; print(Embedder.load('runs/tiny/model').encode('a').shape)"
    assert python(installed, tmp_path, "-c", code).stdout.strip() == "(32,)"


def test_setfit_trains_beside_it(installed: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    texts = english_sentences(16)
    code = f"""
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
model = SetFitModel.from_pretrained({str(tiny_model_dir)!r}, device="cpu")
data = Dataset.from_dict({{"text": {texts!r}, "label": [0, 1] * 8}})
arguments = TrainingArguments(batch_size=8, num_epochs=1, max_steps=2, output_dir="out", report_to="none")
Trainer(model, arguments, train_dataset=data).train()
print(len(model.predict(["a dog"])))
"""
    ended = python(installed, tmp_path, "-c", code)
    assert ended.stdout.strip().endswith("1"), ended.stderr[-2000:]


def test_what_the_base_needs_has_no_torch(wheel: Path) -> None:
    metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("METADATA"))
    lines = zipfile.ZipFile(wheel).read(metadata).decode().splitlines()
    needed = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist")]
    assert sorted(line for line in needed if "extra ==" not in line) == ["numpy", "tokenizers"]
    for name in HEAVY:
        assert any(line.startswith(name) and 'extra == "train"' in line for line in needed), name


def test_what_serves_fits_into_150_megabytes(wheel: Path, tmp_path: Path) -> None:
    """With all that it needs, without bytecode, as the loader of an exported model in a fresh environment."""
    pip("install", "--no-compile", "--only-binary", ":all:", "--target", str(tmp_path), f"{wheel}[serve]")
    sizes = [file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    assert sum(sizes) <= 150e6, f"{sum(sizes) / 1e6:.1f} MB"
    assert not (tmp_path / "torch").exists()
    code = "import shortstack.serve; print(shortstack.serve.installed_engine())"
    ended = python(tmp_path, tmp_path, "-S", "-c", code)  # -S: nothing else is there to import
    assert ended.stdout.strip() == "onnxruntime", ended.stderr


def test_one_command_names_the_others() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shortstack", *arguments], capture_output=True, text=True, cwd=ROOT
        )

    usage = run().stdout
    assert all(f"  {name} " in usage for name in COMMANDS)
    assert run("--version").stdout.strip() == shortstack.__version__
    wrong = run("trian")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: there is no command 'trian'; it is one of prepare, train,")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_a_wrong_flag_are_answered_without_torch(name: str) -> None:
    code = f"""
import sys
from shortstack.__main__ import main
def answer(*arguments):
    sys.argv = ["shortstack", {name!r}, *arguments]
    try:
        main()
    except SystemExit as end:
        print(end.code, *({{"torch", "transformers", "numpy"}} & sys.modules.keys()))
answer("--help")
answer("x", "--hepl")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    lines = ended.stdout.splitlines()
    assert lines[0].startswith(f"usage: shortstack {name} ") and lines[-2:] == ["0", "2"], ended
    assert ended.stderr == "error: there is no flag --hepl; did you mean --help?\n"


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "bench.py"])
def test_a_script_without_its_environment_says_how_to_enter_it(script: str) -> None:
    command = [sys.executable, "-S", str(ROOT / script), *(["x"] if script == "evaluate.py" else [])]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: torch is not installed in ")
    assert "`make install` once, then `source .venv/bin/activate`" in ended.stderr and ended.stderr.count("\n") == 1


def test_without_a_package_a_command_names_the_extra(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    ended = python(installed, tmp_path, "-m", "shortstack", "bench", "x")
    assert ended.returncode == 2
    assert ended.stderr.strip() == "error: torch is not installed; it comes with this package's extra [train]"


def test_attributes_are_those_that_are_named() -> None:
    assert shortstack.Embedder.__name__ == "Embedder"
    with pytest.raises(AttributeError, match="no attribute 'embedder'"):
        shortstack.embedder  # noqa: B018


def names_and_versions(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([^ ;\n]+)", path.read_text(), re.MULTILINE))


@pytest.mark.parametrize("lock", ["requirements-train.lock", "requirements-test.lock"])
def test_every_locked_file_has_its_hash_and_the_version_that_was_tested(lock: str) -> None:
    """`make` installs from the lock files with --require-hashes; torch, whose builds differ, is in none."""
    pinned, locked = names_and_versions(ROOT / "constraints.txt"), names_and_versions(ROOT / lock)
    assert [name for name in pinned if name in locked and locked[name] != pinned[name]] == []
    assert "torch" not in locked and {"transformers", "tokenizers", "safetensors"} <= set(locked)
    for entry in re.split(r"\n(?=[a-z])", (ROOT / lock).read_text().strip()):
        assert "--hash=sha256:" in entry, entry
    commands = re.findall(r"pip install.*", (ROOT / "Makefile").read_text())
    assert any("--require-hashes" in command and lock in command for command in commands)
