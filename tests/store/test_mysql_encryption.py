"""A line to MariaDB is encrypted when the server can, and the server is checked when the URL says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import servers
from holdfast.basis.errors import StoreUnavailable
from holdfast.store.mysql import MysqlStore

pytestmark = pytest.mark.sampled("what a server does is the same on every Python")


def certify(folder: Path) -> dict[str, str]:
    """The settings of a server with a certificate that nobody knows, in this folder."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody knows me")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    today = datetime.now(UTC)
    builder = builder.not_valid_before(today - timedelta(days=1)).not_valid_after(today + timedelta(days=2))
    certificate = builder.serial_number(1).sign(key, hashes.SHA256())
    form = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(form))
    (folder / "key.pem").write_bytes(
        key.private_bytes(form, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    return {"ssl-cert": str(folder / "certificate.pem"), "ssl-key": str(folder / "key.pem")}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    if servers.programs("mariadb") is None and os.environ.get("HOLDFAST_TEST_REQUIRE") != "all":
        pytest.skip("NO MariaDB: its programs are not on this machine")
    home = servers.Home()
    try:
        server = servers.started("mariadb", home.path, **certify(home.path))
        yield server.url(server.create_database())
        server.stop("immediate")
    finally:
        home.close()


def test_a_line_is_encrypted_where_the_server_can_although_the_url_says_nothing(url: str) -> None:
    store = MysqlStore(url)
    link = store.connect()
    ((_, cipher),) = link.ask("show status like 'Ssl_cipher'")
    store.disconnect(link)
    assert cipher.startswith("TLS_")


def test_a_server_that_no_authority_knows_is_refused_when_it_is_to_be_checked(url: str) -> None:
    with pytest.raises(StoreUnavailable, match="certificate verify failed"):
        MysqlStore(f"{url}?ssl=true").connect()
