"""A certificate for tests, made by openssl: of the server, and of clients that it demands one of.

Runs in the test's process. It is self-signed, so it is what each side trusts.
"""

import ssl
import subprocess
from pathlib import Path

CERTIFICATE, KEY = "cert.pem", "key.pem"
OPENSSL = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout {KEY}"


def make_certificate(folder: Path, *, days: int = 2) -> None:
    """Put the certificate and its key there, which nobody else may read."""
    argv = [
        *OPENSSL.split(),
        "-days",
        str(days),
        "-out",
        CERTIFICATE,
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    ]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=30)
    (folder / KEY).chmod(0o600)


def client_context(folder: Path, *, certified: bool = True) -> ssl.SSLContext:
    """The context of a client that trusts the certificate, and shows it if `certified`."""
    context = ssl.create_default_context(cafile=str(folder / CERTIFICATE))
    if certified:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context


def server_context(folder: Path = Path()) -> ssl.SSLContext:
    """The context of a server that demands the certificate of its clients."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / CERTIFICATE))
    context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
