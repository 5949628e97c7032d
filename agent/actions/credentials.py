"""Credentials for an API server: from a kubeconfig, else from the pod's service account. Each error names the file."""

from __future__ import annotations

import os
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from agent.model.errors import CredentialsError


def configure(kubeconfig: str | None) -> Any:
    """The library's Configuration, with the credentials that ``connect`` speaks of. CredentialsError."""
    from kubernetes.client.configuration import Configuration
    from kubernetes.config import incluster_config, kube_config
    from kubernetes.config.config_exception import ConfigException

    configuration: Any = Configuration()
    # The library believes no_proxy alone where both are set. A cluster may set either for every pod: both count.
    configuration.no_proxy = ",".join(value for name, value in os.environ.items() if name.lower() == "no_proxy")
    try:
        if kubeconfig:
            if not any(map(os.path.isfile, kubeconfig.split(os.pathsep))):
                raise CredentialsError(f"--kubeconfig: {kubeconfig} is not a file")
            kube_config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
            if path := _token_file(kubeconfig):
                configuration.refresh_api_key_hook = partial(_read_token, path)
        else:
            incluster_config.load_incluster_config(client_configuration=configuration)
    # The library checks little: a file that is no kubeconfig may end in any of these.
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        where = f"--kubeconfig {kubeconfig}" if kubeconfig else "the pod's service account (or name --kubeconfig)"
        raise CredentialsError(f"no credentials from {where}: {error}".partition("\n")[0]) from error
    return configuration


def _token_file(kubeconfig: str) -> Path | None:
    """The file of the current user's token, if it has one: the library reads it only once.

    Of several files, as ``$KUBECONFIG`` may name, the first one that has a word for something counts, as in kubectl.
    """
    contexts: dict[str, Any] = {}
    users: dict[str, tuple[Path, Any]] = {}
    current = ""
    for path in map(Path, filter(os.path.isfile, kubeconfig.split(os.pathsep))):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        contexts = {one["name"]: one["context"] for one in data.get("contexts") or ()} | contexts
        users = {one["name"]: (path.parent, one["user"]) for one in data.get("users") or ()} | users
        current = current or data.get("current-context") or ""
    folder, user = users.get(contexts[current].get("user"), (Path(), None))
    return folder / user["tokenFile"] if user and user.get("tokenFile") else None


def _read_token(path: Path, configuration: Any) -> None:
    configuration.api_key["BearerToken"] = f"Bearer {path.read_text(encoding='utf-8')}"


def authorization(configuration: Any) -> str:
    """The header's value, read anew each time: the kubelet changes a projected token every hour. CredentialsError."""
    from kubernetes.config.config_exception import ConfigException

    try:
        value = configuration.get_api_key_with_prefix("BearerToken", alias="authorization") or ""
    except (ConfigException, OSError, ValueError) as error:
        raise CredentialsError(f"the token for {configuration.host} can't be read: {error}") from error
    value = str(value).strip()  # a file may end with a newline
    if not (value.isascii() and value.isprintable()):
        raise CredentialsError(f"the token for {configuration.host} must be one line of ASCII")
    return value


def unusable(configuration: Any) -> str:
    """What is wrong with our own files for TLS, and what to do; empty where nothing is."""
    context, ca, certificate = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        configuration.ssl_ca_cert,
        configuration.cert_file,
    )
    try:
        if ca:
            context.load_verify_locations(ca)
    except OSError as error:
        return f"{ca} holds no CA certificate to check {configuration.host} by ({error}): write one into it"
    try:
        if certificate:
            context.load_cert_chain(certificate, configuration.key_file)
    except OSError as error:
        return f"{certificate} holds no client certificate with its key ({error}): write new ones"
    return ""
