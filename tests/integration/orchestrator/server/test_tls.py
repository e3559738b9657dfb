"""A server that answers by https: its certificate, its clients, and the drivers of its jobs."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from cluster.errors import InputError
from cluster.tls import check_own, trusted
from tests.support.processes import wait_for
from tests.support.server import Server, spec


def certificate(folder: Path, name: str = "own") -> tuple[str, str]:
    """Self-signed, for localhost and 127.0.0.1; paths of the certificate and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*command, *subject, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    return str(cert), str(key)


def test_clients_and_drivers_use_https_and_trust_the_ca_of_the_environment(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    found = Server(tmp_path, ("--tls-cert", cert, "--tls-key", key), {"FLEETUNE_CA_FILE": cert})
    found.trusts = ssl.create_default_context(cafile=cert)
    try:
        found.start()
        assert found.url.startswith("https://127.0.0.1:")
        with found.client() as client:
            sent = client.post("/v1/jobs", json={"specs": [spec("hello", gpus=0, command=["echo", "hello"])]})
            job_id = sent.raise_for_status().json()["jobs"][0]["job_id"]
            ended = ("succeeded", "failed", "cancelled")
            wait_for(lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] in ended, "the job ends", 120.0)
            told = client.get(f"/v1/jobs/{job_id}").json()
        assert (told["state"], told["heard_s"] is not None) == ("succeeded", True)
        listed = found.run("queue", "--all")  # the command finds the server by its record
        assert listed.returncode == 0 and job_id in listed.stdout
        found.environment = {}
        strange = found.run("queue")
        assert strange.returncode != 0 and "Traceback" not in strange.stderr
        assert "its certificate: self-signed certificate. Set FLEETUNE_CA_FILE" in strange.stderr
    finally:
        found.kill()


def test_wrong_certificates_are_told_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path)
    other = certificate(tmp_path, "other")[1]
    empty, locked = tmp_path / "empty.pem", tmp_path / "locked.key"
    empty.write_text("")
    encrypt = ["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:hunter22", "-out", str(locked)]
    subprocess.run(encrypt, check=True, capture_output=True)
    check_own(cert, key)
    gone = str(tmp_path / "gone.pem")
    for wrong, words in (
        ((gone, key), f"--tls-cert {gone} cannot be read: No such file or directory"),
        ((cert, gone), f"--tls-key {gone} cannot be read"),
        ((cert, other), "key values mismatch"),
        ((str(empty), key), "are no certificate with its private key"),
        ((cert, str(locked)), "is encrypted with a password"),
    ):
        with pytest.raises(InputError, match=words):
            check_own(*wrong)
    for path in (gone, str(empty)):
        monkeypatch.setenv("FLEETUNE_CA_FILE", path)
        with pytest.raises(InputError, match="Set FLEETUNE_CA_FILE"):
            trusted()
