"""A hub for the tests: the endpoints that `huggingface_hub` pushes to and loads from, over real HTTP."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_secretsecretsecretsecretsecret"


@dataclass
class Repository:
    """What one repository holds, and every commit that made it."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs"})
    commits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        """The newest commit."""
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    def tags(self) -> list[str]:
        """Tags of the model card's header, as the hub reads them."""
        card = self.files.get("README.md", b"").decode()
        return yaml.safe_load(card.split("---")[1]).get("tags", []) if card.startswith("---") else []


@dataclass
class Hub:
    """The state of the server; `broken` counts down large files that arrive as a lost connection."""

    address: str = ""
    owners: tuple[str, ...] = ("me",)
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    puts: int = 0
    broken: int = 0


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    hub = Hub()

    class Handler(HubHandler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class HubHandler(BaseHTTPRequestHandler):
    """Answers as the hub does."""

    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if not self.allowed():
            return
        if parts == ["api", "whoami-v2"]:
            self.answer({"type": "user", "name": "me", "orgs": []})
        elif parts[:2] == ["api", "models"] and (found := self.repository("/".join(parts[2:4]))):
            name, repository = found
            self.answer(
                {
                    "id": name,
                    "sha": repository.sha,
                    "private": repository.private,
                    "tags": repository.tags(),
                    "siblings": [{"rfilename": file} for file in repository.files],
                }
            )
        elif "resolve" in parts and (found := self.repository("/".join(parts[:2]))):
            content = found[1].files.get("/".join(parts[4:]))
            if content is None:
                self.answer({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})
            else:
                etag = hashlib.sha256(content).hexdigest()
                self.send(content, 200, {"X-Repo-Commit": found[1].sha, "ETag": f'"{etag}"'})
        else:
            self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0].strip("/")
        if not self.allowed():
            return
        if path == "api/repos/create":
            self.create(json.loads(body))
        elif path == "api/validate-yaml":
            header = yaml.safe_load(json.loads(body)["content"].split("---")[1])
            wrong = not str(header.get("license", "")).replace("-", "").replace(".", "").isalnum()
            errors = [{"message": '"license" must be one of [apache-2.0, mit, …]'}] if wrong else []
            self.answer({"errors": errors, "warnings": []}, 400 if wrong else 200)
        elif "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif path.endswith("info/lfs/objects/batch"):
            self.answer(
                {"transfer": "basic", "objects": [self.place(o) for o in json.loads(body)["objects"]]}
            )
        elif "/commit/" in path:
            name = "/".join(path.split("/")[2:4])
            self.commit(name, [json.loads(line) for line in body.splitlines()])
        else:
            self.answer({"error": f"unknown {path}"}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.state.puts += 1
        if self.state.broken:
            self.state.broken -= 1
            self.answer({"error": "no room"}, 507)
            return
        self.state.large[self.path.rsplit("/", 1)[1]] = content
        self.answer({})

    def place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Where a large file goes; nowhere when it is here already."""
        told = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.state.large:
            return told
        return {**told, "actions": {"upload": {"href": f"{self.state.address}/large/{wanted['oid']}"}}}

    def create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] not in self.state.owners:
            self.answer({"error": f"You have no rights in {wanted['organization']}"}, 403)
            return
        self.state.repositories[name] = Repository(wanted.get("visibility") == "private")
        self.answer({"url": f"{self.state.address}/{name}", "name": name})

    def commit(self, name: str, entries: list[dict[str, Any]]) -> None:
        repository = self.state.repositories[name]
        if entries[0]["value"].get("parentCommit", repository.sha) != repository.sha:
            self.answer({"error": "The repository has changed"}, 412)
            return
        for entry in entries[1:]:
            path, value = entry["value"]["path"], entry["value"]
            if entry["key"] == "file":
                repository.files[path] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[path] = self.state.large[value["oid"]]
            else:
                del repository.files[path]
        repository.commits.append(entries[0]["value"])
        self.answer(
            {"commitUrl": f"{self.state.address}/{name}/commit/{repository.sha}", "commitOid": repository.sha}
        )

    def repository(self, name: str) -> tuple[str, Repository] | None:
        """A repository by name."""
        return (name, self.state.repositories[name]) if name in self.state.repositories else None

    def allowed(self) -> bool:
        """Note the request; refuse one without the token."""
        self.state.requests.append(f"{self.command} {self.path}")
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.answer({"error": "Invalid user token"}, 401)
        return False

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send JSON."""
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        """Send anything; of a HEAD request only its headers."""
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
