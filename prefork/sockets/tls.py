"""TLS as a setting: the context of a service, made of files, tried, and replaced as a whole.

Made in the master, before its workers are forked from it: the key is read by nobody else, and all workers resume the
sessions of each. Owns what a connection over TLS does at its end. Imported only where TLS is asked for.
"""

import contextlib
import os
import socket
import ssl
import stat
import time
from calendar import timegm
from typing import Any

from ..errors import ConfigError, reason_of

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_FLIGHTS = 6  # of messages, at most
_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL}


class SecureConnection(ssl.SSLSocket):
    """A connection whose end is told to the client: without that, it could not tell it from a cut (RFC 8446, 6.1)."""

    def shutdown(self, how: int) -> None:
        if how != socket.SHUT_RD:
            timeout = self.gettimeout()
            with contextlib.suppress(OSError, ValueError):
                self.settimeout(0)  # what the client says to it is not waited for
                self.unwrap()
            with contextlib.suppress(OSError):
                self.settimeout(timeout)
        super().shutdown(how)


def context_of(setting: Any) -> ssl.SSLContext:
    """Make the context that these settings describe. Raises ConfigError."""
    certificate, key, authority = (
        os.path.join(setting.working_directory or "", path or "")
        for path in (setting.tls_certificate, setting.tls_key or setting.tls_certificate, setting.tls_client_ca)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = _VERSIONS[setting.tls_minimum_version]
    if setting.tls_alpn is not None:
        _set_alpn(context, setting.tls_alpn)
    _load(context, certificate, key)
    if setting.tls_client_ca is not None:
        with _told("tls_client_ca", authority):
            context.load_verify_locations(authority)
        context.verify_mode = _VERIFY[setting.tls_verify_client]
    return context


def tried(context: Any) -> float:
    """Shake hands with this context, as a client does, in memory; return when its certificate expires.

    Seconds since the epoch; 0 where only clients with a certificate are told. Raises ConfigError when it serves nobody.
    """
    if not isinstance(context, ssl.SSLContext):
        raise ConfigError(f"could not use {context!r}: create_ssl_context() must return an ssl.SSLContext, or None")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        ours = context.wrap_bio(to_server, to_client, server_side=True)
        theirs = client.wrap_bio(to_client, to_server)
        for _ in range(_FLIGHTS):
            if _done(theirs):
                break
            _done(ours)
        der = theirs.getpeercert(binary_form=True)
    except (ssl.SSLError, ValueError) as exc:
        if getattr(exc, "reason", None) == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return 0.0  # TLS 1.2: it wants to know the client first
        raise ConfigError(f"could not use the TLS context, which served nobody in a trial: {_why(exc)}") from None
    return 0.0 if der is None else not_after(der)


def _done(side: ssl.SSLObject) -> bool:
    """Go on with a handshake as far as the other side's messages allow; return whether it is done."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    with _told("tls_certificate", certificate), open(certificate, "rb"):
        pass  # the error of the call below does not say which of the two is missing
    alone = key == certificate
    said = f"the key in tls_certificate {key}" if alone else f"tls_key {key}"
    with _told("tls_key", key):
        mode = stat.S_IMODE(os.stat(key).st_mode)
    if mode & 0o007:
        raise ConfigError(f"could not use {said}: its mode {mode:04o} lets others read or change it")

    def no_password() -> str:
        raise ConfigError(f"could not use {said}: it is encrypted, and nobody is there to be asked")

    with _told("tls_certificate", f"{certificate} with {'the key in it' if alone else said}"):
        context.load_cert_chain(certificate, key, no_password)


@contextlib.contextmanager
def _told(name: str, what: str) -> Any:
    """Raise a ConfigError for what goes wrong inside with this setting."""
    try:
        yield
    except ssl.SSLError as exc:
        raise ConfigError(f"could not use {name} {what}: {_why(exc)}") from None
    except OSError as exc:
        raise ConfigError(f"could not read {name} {what}: {reason_of(exc)}") from None


def _why(exc: Exception) -> str:
    reason = getattr(exc, "reason", None)
    if reason is None and isinstance(exc, ssl.SSLError):
        return "it is not PEM, or something is missing there"  # "PEM lib", says OpenSSL
    return str(reason).lower().replace("_", " ") if reason else str(exc)


def _set_alpn(context: ssl.SSLContext, text: str) -> None:
    names = text.replace(",", " ").split()
    if not names:
        raise ConfigError(f"could not set tls_alpn to {text!r}: it names no protocol")
    try:
        context.set_alpn_protocols(names)
    except (ssl.SSLError, UnicodeEncodeError):
        raise ConfigError(f"could not set tls_alpn to {text!r:.80}: each name has 1 to 255 bytes of ASCII") from None


# --- the date in a certificate ---------------------------------------------------------------------


def not_after(der: bytes) -> float:
    """Return the end of a certificate's validity, in seconds since the epoch, from its DER form (RFC 5280, 4.1)."""
    _, certificate, _ = _element(der)
    _, rest, _ = _element(certificate)  # to be signed
    kind, _, behind = _element(rest)
    if kind == 0xA0:  # the version, which is left out in version 1
        rest = behind
    for _ in range(3):  # serial number, algorithm, issuer
        _, _, rest = _element(rest)
    _, validity, _ = _element(rest)
    _, _, rest = _element(validity)
    kind, text, _ = _element(rest)
    form = "%y%m%d%H%M%SZ" if kind == 0x17 else "%Y%m%d%H%M%SZ"
    return float(timegm(time.strptime(text.decode("ascii"), form)))


def _element(data: bytes) -> tuple[int, bytes, bytes]:
    """Return the tag and the content of the first element, and what comes after it."""
    size, at = data[1], 2
    if size & 0x80:
        at += size & 0x7F
        size = int.from_bytes(data[2:at], "big")
    if at + size > len(data):
        raise ValueError("the certificate is cut off")
    return data[0], data[at : at + size], data[at + size :]
