"""Encrypted at rest: the database holds no input, result, error or log line that can be read without the key.

pip install cryptography
python examples/encrypted.py
"""

from __future__ import annotations

import os
import sqlite3
import sys

from cryptography.fernet import Fernet, MultiFernet

from holdfast import Codec, Holdfast, SyncStep


class Encrypted(Codec):
    """Fernet: AES-128 in CBC mode, with an HMAC (github.com/fernet/spec). The first key encrypts, all decrypt."""

    name = "fernet"

    def __init__(self, *keys: str) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def encode(self, text: str) -> str:
        return self._fernet.encrypt(text.encode()).decode()

    def decode(self, text: str) -> str:
        return self._fernet.decrypt(text).decode()


def diagnose(patient: str) -> str:
    return f"{patient} is in good health"


def main(path: str) -> None:
    key = os.environ.get("APP_KEY") or Fernet.generate_key().decode()
    app = Holdfast(f"sqlite:///{path}", codec=Encrypted(key))

    @app.job
    def examine(step: SyncStep, patient: str) -> str:
        step.log.info("examining", patient=patient)
        return step.run("diagnose", diagnose, patient)

    with app:
        run = examine.trigger("Ada Lovelace").wait()
        print("the app reads: ", run.result().wait())
    with sqlite3.connect(path) as database:
        (stored,) = database.execute("select input from holdfast_runs where id = ?", [run.id]).fetchone()
    database.close()
    print("the file holds:", stored[:60], "…")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "encrypted.db")
