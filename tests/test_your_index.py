"""docs/your-index.md, run as it is printed: the teacher's index in FAISS, the student's queries without torch."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, RunDirectory, train, write_recipe

COLLECTION = ROOT.parent / "shared" / "data" / "retrieval" / "npl"
PAGE = (ROOT / "docs" / "your-index.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## From beginning to end")[1].split("\n## ")[0]


def block(kind: str, beginning: str) -> str:
    """The code block of the section that begins so."""
    (found,) = [text for text in re.findall(rf"```{kind}\n(.*?)```", SECTION, re.S) if text.startswith(beginning)]
    return str(found)


def run(command: str, cwd: Path) -> str:
    ended = subprocess.run(["bash", "-ec", command], cwd=cwd, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


@pytest.mark.long
def test_the_page_runs_as_printed(tmp_path: Path, minilm_dir: Path) -> None:
    """With a student that was hardly trained: what is tested is the way, not how good it is."""
    if not COLLECTION.is_dir():
        pytest.skip("the NPL collection is not there")
    shutil.copytree(COLLECTION, tmp_path / "npl")
    shutil.copytree(minilm_dir, tmp_path / "assets" / "all-MiniLM-L6-v2")
    recipe = write_recipe(tmp_path, minilm_dir, name="minilm-3", layers=[0, 2, 5], epochs=1)
    assert train(recipe).status == 0 and RunDirectory(tmp_path / "runs" / "minilm-3").path.is_dir()
    for name, kind in (("index.py", "python"), ("search.py", "python")):
        (tmp_path / name).write_text(block(kind, f"# {name}"))
    with_torch = f"export PYTHONPATH={ROOT}; PATH={Path(sys.executable).parent}:$PATH\n"
    run(
        with_torch + block("bash", "cp").replace("python -m distillation", "python -m shortstack.distillation"),
        tmp_path,
    )

    environment = tmp_path / "serving"
    serve = block("bash", "pip").replace("'.[serve]'", f"'{ROOT}[serve]'")
    printed = run(f"{sys.executable} -m venv {environment}\nPATH={environment}/bin:$PATH\n{serve}", tmp_path)
    teacher, student = [line for line in printed.splitlines() if "found@10" in line]
    assert teacher.startswith("teacher: found@10 100.0%") and 0.30 < float(teacher.split("nDCG@10 ")[1][:6]) < 0.55
    assert (
        student.startswith("runs/minilm-3/model: found@10") and float(student.split("found@10 ")[1].split("%")[0]) > 5
    )
    without = f"{environment}/bin/python -c 'import importlib.util as u, sys; sys.exit(bool(u.find_spec(\"torch\")))'"
    run(without, tmp_path)
