"""--push-to-hub, over huggingface_hub's real client with a stub transport under it: no account, no network."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from test_report import make_run

from shortstack.distillation import RunError
from shortstack.distillation.report.__main__ import main, push_to_hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "tiny-2")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[httpx2.Request]]:
    """A Hub that takes everything, as a stub transport under huggingface_hub's own client; gives what was asked of it.

    Only the token "right" may write.
    """
    requests: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        if request.headers.get("authorization") != "Bearer right":
            return httpx2.Response(401, json={"error": "Invalid username or password."})
        if request.url.path.endswith("/repos/create"):
            return httpx2.Response(200, json={"url": "https://huggingface.co/owner/tiny-2", "id": "owner/tiny-2"})
        if "/preupload/" in request.url.path:
            asked = json.loads(request.content)["files"]
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            return httpx2.Response(200, json={"files": files})
        if "/commit/" in request.url.path:
            url = "https://huggingface.co/owner/tiny-2/commit/1"
            return httpx2.Response(200, json={"commitUrl": url, "commitOid": "1", "pullRequestUrl": None})
        if request.url.path.endswith("/validate-yaml"):
            return httpx2.Response(200, json={"errors": [], "warnings": []})
        return httpx2.Response(200, json={"sha": "0", "siblings": [], "id": "owner/tiny-2"})

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "right")
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))
    yield requests
    huggingface_hub.set_client_factory(httpx2.Client)


def committed(requests: list[httpx2.Request]) -> dict[str, str]:
    """The files of the one commit that was sent, by path."""
    (commit,) = [request for request in requests if "/commit/" in request.url.path]
    lines = [json.loads(line)["value"] for line in commit.content.decode().splitlines() if '"key": "file"' in line]
    return {line["path"]: base64.b64decode(line["content"]).decode() for line in lines}


def test_pushed_to_the_hub(
    run: Path, hub: list[httpx2.Request], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(run), "--push-to-hub", "owner/tiny-2"])
    main()
    (creation,) = [json.loads(request.content) for request in hub if request.url.path.endswith("/repos/create")]
    assert (creation["organization"], creation["name"]) == ("owner", "tiny-2")
    files = committed(hub)
    assert files["config.json"] == (run / "model" / "config.json").read_text()
    assert 'SentenceTransformer("owner/tiny-2")' in files["README.md"]
    assert "pushed to https://huggingface.co/owner/tiny-2" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "token"), [("owner/tiny-2", "wrong"), ("no/such/name", "right")])
def test_a_push_that_fails_is_one_line(
    run: Path, hub: list[httpx2.Request], name: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RunError, match=f"{name}: not pushed .*hf auth login"):
        push_to_hub(run, name)
    assert not [request for request in hub if "/commit/" in request.url.path]
