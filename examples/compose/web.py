"""The web process: POST /orders/7 triggers, GET /runs/ID and GET /workers look. It executes nothing."""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shop import app, ship

from holdfast import HoldfastError


class Shop(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        number = int(self.path.removeprefix("/orders/"))
        # The same order again, the same run: whoever got no answer may ask again.
        run = ship.options(idempotency_key=str(number)).trigger(number).wait()
        self.answer(202, {"run": run.id, "disposition": run.disposition})

    def do_GET(self) -> None:
        if self.path == "/workers":
            self.answer(200, [{"host": one.host, "alive": one.is_alive} for one in app.workers().wait()])
        elif run := app.get_run(self.path.removeprefix("/runs/")).wait():
            self.answer(200, {"status": run.status, "output": run.output, "generation": run.generation})
        else:
            self.answer(404, {"error": "no such run"})

    def answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (HoldfastError, ValueError) as error:  # a database that is away is a 503
            self.answer(getattr(error, "status", 400), {"error": str(error)})


def main() -> None:
    server = ThreadingHTTPServer(("", int(os.environ.get("PORT", "8000"))), Shop)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    with app:  # makes the tables where they are missing; starts no worker
        print(f"listening on {server.server_port}", flush=True)
        server.serve_forever()
    server.server_close()


if __name__ == "__main__":
    main()
