"""A stand-in for the W&B server on the loopback: it keeps the history lines that a client sends."""

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Answers what `wandb.init`, `run.log` and `wandb sync` ask.

    Args:
        trouble: "500" answers everything with status 500; "hang" never answers; "refuse" rejects
            the key.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, trouble: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.trouble = trouble
        self.history: dict[str, list[dict[str, Any]]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that a GraphQL query gets."""
        name = variables.get("name")
        names = {"id": "1", "name": "anneal", "entity": {"id": "1", "name": "me"}}
        match re.findall(r"(?:query|mutation)\s+(\w+)", query)[0]:
            case "Viewer":
                return {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}"}}
            case "UpsertBucket":
                self.history.setdefault(name, [])
                bucket = {"id": "1", "name": name, "displayName": name, "project": names}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "RunResumeStatus" if name in self.history:
                lines = [json.dumps(line) for line in self.history[name]]
                bucket = {
                    "id": "1",
                    "name": name,
                    "historyLineCount": len(lines),
                    "historyTail": json.dumps(lines[-1:]),
                    "summaryMetrics": lines[-1] if lines else "{}",
                    "logLineCount": 0,
                    "eventsLineCount": 0,
                    "eventsTail": "[]",
                    "config": "{}",
                    "wandbConfig": '{"t": 1}',
                }
                return {"model": names | {"bucket": bucket}}
            case "CreateRunFiles":
                files = [{"name": f, "uploadUrl": f"{self.url}/{f}"} for f in variables["files"]]
                return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}
        return {}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.trouble == "hang":
            time.sleep(60)
        status = {"500": 500, "refuse": 401}.get(self.server.trouble, 200)
        reply: dict[str, Any] = {"errors": [{"message": "the key is not known"}]}
        if status == 200:
            reply = {"data": {}}
            if self.path.endswith("/file_stream"):
                self.keep(self.path.split("/")[-2], json.loads(body))
            elif self.path == "/graphql":
                asked = json.loads(body)
                reply["data"] = self.server.answer(asked["query"], asked.get("variables") or {})
        self.send_response(status)
        self.send_header("Content-Length", str(len(json.dumps(reply))))
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    do_GET = do_PUT = do_POST

    def keep(self, run: str, sent: dict[str, Any]) -> None:
        chunk = (sent.get("files") or {}).get("wandb-history.jsonl")
        if chunk:  # like the real one: written at the offset that the client names
            lines, start = [json.loads(line) for line in chunk["content"]], chunk["offset"]
            self.server.history.setdefault(run, [])[start : start + len(lines)] = lines
