"""A certificate authority of the test's own, by the command ``openssl``: certificates of any name and time."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

_CONFIG = """
[ca]
default_ca = own
[own]
new_certs_dir = {folder}
database = {folder}/index.txt
serial = {folder}/serial
default_md = sha256
unique_subject = no
policy = any
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
[v3_ca]
basicConstraints = critical, CA:true
[server]
subjectAltName = {{}}
"""


class Authority:
    """In a folder of its own. ``file`` holds its certificate."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder, self.file = folder, folder / "ca.crt"
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01\n")
        self._config = _CONFIG.format(folder=folder)
        (folder / "ca.cnf").write_text(self._config.format("DNS:ca"))
        self._key("ca")
        made = ("-x509", "-days", "3650", "-subj", f"/CN={folder.name}", "-extensions", "v3_ca")
        files = ("-config", f"{folder}/ca.cnf", "-key", f"{folder}/ca.key", "-out", str(self.file))
        _openssl("req", "-new", *made, *files)

    def server(self, name: str = "IP:127.0.0.1", since: str = "20200101", until: str = "20990101") -> ssl.SSLContext:
        """What a server shows that has a certificate for this name; dates as YYYYMMDD."""
        at = f"{self._folder}/{name.replace(':', '-')}-{since}-{until}"
        Path(f"{at}.cnf").write_text(self._config.format(name))
        self._key(Path(at).name)
        config = ("-config", f"{at}.cnf")
        _openssl("req", "-new", "-key", f"{at}.key", "-subj", "/CN=server", "-out", f"{at}.csr", *config)
        time = ("-startdate", f"{since}000000Z", "-enddate", f"{until}000000Z")
        signs = ("-cert", str(self.file), "-keyfile", f"{self._folder}/ca.key", "-extensions", "server")
        _openssl("ca", "-batch", "-notext", *config, *signs, *time, "-in", f"{at}.csr", "-out", f"{at}.crt")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{at}.crt", f"{at}.key")
        return context

    def _key(self, name: str) -> None:
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{self._folder}/{name}.key")


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True)
