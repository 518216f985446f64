"""Whether a connection may be unencrypted, by all that libpq goes by: the URL, a service's file, its own variables."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as Malformed
from itertools import zip_longest
from pathlib import Path

from sqlalchemy.engine import URL

_ENCRYPTED = {"require", "verify-ca", "verify-full"}
_VARIABLES = {"host": "PGHOST", "hostaddr": "PGHOSTADDR", "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT"}


def hosts_of(url: URL) -> list[str]:
    """Return the hosts of a URL, those in its query included; none is libpq's default, a Unix socket."""
    return [host for entry in (url.host, *_listed(url, "host")) if entry for host in entry.split(",")]


def may_be_unencrypted(url: URL, environment: Mapping[str, str]) -> tuple[list[str], str] | None:
    """Return the remote hosts that a connection may reach without TLS, and the sslmode in force; None where none is.

    Where a value comes from is libpq's order: the URL, the service that is named, the environment
    (https://www.postgresql.org/docs/current/libpq-envars.html, libpq-pgservice.html).
    """
    named = next(iter(_listed(url, "service")), environment.get("PGSERVICE"))
    service = _service(named, environment) if named else {}
    found = {name: environment.get(variable, "") for name, variable in _VARIABLES.items()} | (service or {})
    for name in _VARIABLES:
        given = ",".join(hosts_of(url) if name == "host" else _listed(url, name))
        found[name] = given or found[name]
    # With its own authorities libpq takes nothing less (since 16).
    mode = found["sslmode"] or ("verify-full" if found["sslrootcert"] == "system" else "prefer")
    if mode in _ENCRYPTED or (environment.get("PGREQUIRESSL") == "1" and not found["sslmode"]):
        return None
    # An address is what is connected to; the host beside it is only the name in a certificate.
    places = zip_longest(found["hostaddr"].split(","), found["host"].split(","), fillvalue="")
    remote = [address or host for address, host in places if not _is_local(address or host)]
    if service is None and not found["host"] and not found["hostaddr"]:
        remote = [f"service {named}"]
    return (remote, mode) if remote else None


def _listed(url: URL, name: str) -> list[str]:
    value = url.query.get(name, ())
    return [value] if isinstance(value, str) else list(value)


def _is_local(host: str) -> bool:
    """Return whether ``host`` is this machine: a socket, which no host is too, or a loopback address."""
    if host.startswith(("/", "@")) or host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _service(name: str, environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return what the files of services have of a service; None where no file that is known here has it."""
    own = environment.get("PGSERVICEFILE") or Path(environment.get("HOME", "/")) / ".pg_service.conf"
    for path in (Path(own), Path(environment.get("PGSYSCONFDIR", "/etc/postgresql-common")) / "pg_service.conf"):
        parser = ConfigParser(
            delimiters="=", comment_prefixes="#", strict=False, allow_no_value=True, interpolation=None
        )
        try:
            parser.read(path, encoding="utf-8")
        except (Malformed, OSError, UnicodeDecodeError):
            continue
        if parser.has_section(name):
            return {option: value or "" for option, value in parser.items(name) if option in _VARIABLES}
    return None
