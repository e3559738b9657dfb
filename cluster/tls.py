"""HTTPS: the certificates that clients trust, and the check of a server's certificate."""

from __future__ import annotations

import ssl

from cluster.errors import InputError
from cluster.settings import ca_file


def trusted() -> ssl.SSLContext:
    """Make the context for clients. It trusts FLEETUNE_CA_FILE or SSL_CERT_FILE, or else this machine's certificates.

    Raises:
        InputError: the file cannot be read, or has no certificate.
    """
    path = ca_file()
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # also ssl.SSLError
        raise InputError(
            f"the CA certificates of {path} cannot be read: {_format_error(error)}. Set FLEETUNE_CA_FILE"
        ) from error


def check_own(certificate: str, key: str) -> None:
    """Check that a server can use this certificate and private key. Raises InputError."""

    def no_password() -> str:
        raise InputError(
            f"--tls-key {key} is encrypted with a password: give a key without one (openssl pkey -in {key})"
        )

    for option, path in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise InputError(f"{option} {path} cannot be read: {error.strerror}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, no_password)
    except OSError as error:
        raise InputError(
            f"--tls-cert {certificate} and --tls-key {key} are no certificate with its private key in PEM: "
            f"{_format_error(error)}"
        ) from error


def _format_error(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "no certificate in it").lower().replace("_", " ")
    return error.strerror or str(error)
