"""To the hub and back, against a stand-in on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import multivae_core as mv
from multivae_core.distributions import Normal
from multivae_core.fusion import ProductConfig, ProductFusion
from multivae_core.posteriors import FactorisedPosterior


class Tiny(mv.MultimodalVAE):
    """A product of experts without a loss."""

    def __init__(self, config: mv.ModelConfig, **networks: Any) -> None:
        super().__init__(config, **networks)
        self.fusion = ProductFusion(ProductConfig(), len(self.modalities), config.latent_dim)

    def posterior(self, batch: mv.Batch) -> FactorisedPosterior:
        encoded = self.run_encoders(batch)["shared"]
        experts = Normal(encoded[:, :, 0], encoded[:, :, 1])
        return FactorisedPosterior({"shared": self.fusion(experts, batch.present)})

    def loss(self, batch: mv.Batch, step: mv.Step) -> mv.LossOutput:
        raise NotImplementedError


def register() -> None:
    mv.register_model(name="tiny_hub", config=mv.ModelConfig)(Tiny)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register()
    yield
    mv.registry.unregister("local/tiny_hub")


def data() -> mv.IncompleteDataset:
    generator = np.random.default_rng(0)
    values = {"table": generator.normal(size=(12, 3)), "flags": generator.random((12, 4)) < 0.5}
    return mv.IncompleteDataset(values)


def create() -> Any:
    return mv.create_model("tiny_hub", data(), latent_dim=3)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as uploading and downloading a small repository needs."""

    repos: dict[str, dict[str, bytes]] = {}
    commit = "0" * 40
    seen: list[str] = []
    asked: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def reply(self, status: int, body: Any = None, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.split("?")[0]
        self.seen.append(path)
        repo = "/".join(path.split("/")[3:5])
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'user')}/{asked['name']}"
            self.repos.setdefault(name, {})
            Hub.asked = asked
            self.reply(200, {"url": f"{self.address}/{name}"})
        elif path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.reply(200, {"files": files})
        elif "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.repos[repo][entry["value"]["path"]] = content
            self.reply(
                200,
                {
                    "commitUrl": f"{self.address}/{repo}/commit/{self.commit}",
                    "commitOid": self.commit,
                    "success": True,
                },
            )
        else:
            self.reply(404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.seen.append(path)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            files = self.repos.get("/".join(parts[2:4]))
            revision = parts[5] if parts[4:5] == ["revision"] else "main"
            if files is None:
                self.reply(404, X_Error_Code="RepoNotFound")
            elif revision not in ("main", "v1", self.commit):
                self.reply(404, X_Error_Code="RevisionNotFound")
            elif "tree" in parts:
                listed = [
                    {
                        "type": "file",
                        "path": name,
                        "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest(),
                    }
                    for name, content in files.items()
                ]
                self.reply(200, json.dumps(listed).encode(), Content_Type="application/json")
            else:
                siblings = [{"rfilename": name} for name in files]
                self.reply(
                    200, {"id": "/".join(parts[2:4]), "sha": self.commit, "siblings": siblings}
                )
            return
        files = self.repos.get("/".join(parts[:2]), {})
        content = files.get("/".join(parts[4:]))
        if content is None:
            self.reply(404, X_Error_Code="EntryNotFound")
            return
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        self.reply(200, content, ETag=tag, X_Repo_Commit=self.commit)


_ON_THE_HUB = """
import sys, importlib.util as u, pytest
tests, folder = sys.argv[1:]
spec = u.spec_from_file_location("tiny", tests)
t = sys.modules["tiny"] = u.module_from_spec(spec)
spec.loader.exec_module(t); t.register()
model = t.mv.load_model(folder)
print(model.push_to_hub("user/tiny", summary={"metrics": {"nll": 1.0}}))
for revision in (None, "v1"):
    again = t.mv.load_model("hub:user/tiny", revision=revision)
    assert (model.embed(t.data()) == again.embed(t.data())).all()
assert again.notes["metrics"] == {"nll": 1.0}
for name, revision in (("user/nothing", None), ("user/tiny", "v2"), ("not a repo", None)):
    with pytest.raises(t.mv.FileFormatError) as info:
        t.mv.load_model(f"hub:{name}", revision=revision)
    print(info.value)
"""


def test_to_the_hub_and_back(tmp_path: Path) -> None:
    create().save(tmp_path / "m")
    Hub.repos, Hub.seen = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        name: value for name, value in os.environ.items() if "proxy" not in name.lower()
    }
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_token_of_nobody",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", _ON_THE_HUB, __file__, str(tmp_path / "m")]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    address, *errors = done.stdout.splitlines()
    assert address == f"{endpoint}/user/tiny/commit/{Hub.commit}"
    assert sorted(Hub.repos["user/tiny"]) == ["README.md", "config.json", "model.safetensors"]
    assert Hub.asked.get("private", Hub.asked.get("visibility") == "private")
    assert errors[0].startswith("the repository 'user/nothing' of the hub cannot be used (")
    assert errors[1].startswith("the repository 'user/tiny' of the hub cannot be used (")
    assert "check its name and revision, the connection, and for private ones" in errors[1]
    assert errors[2].startswith("'not a repo' cannot be the name of a repository")


def test_only_files_of_the_model_are_fetched(monkeypatch: Any, tmp_path: Path) -> None:
    create().save(tmp_path / "m")
    asked: dict[str, Any] = {}

    def snapshot(repo: str, **options: Any) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path / "m")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    mv.load_model("hub:user/tiny", revision="v1")
    assert asked == {
        "repo": "user/tiny",
        "revision": "v1",
        "allow_patterns": ["config.json", "model.safetensors", "README.md"],
    }


def test_the_hub_is_imported_when_it_is_used() -> None:
    code = "import multivae_core.saving, sys; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
