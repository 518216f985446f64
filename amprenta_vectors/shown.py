"""What of a text from outside is shown: addresses without their secrets, and characters that print."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qsl, urlencode

_OF_A_DATABASE = {"postgres", "postgresql"}
_HARMLESS = set(
    """
    host hostaddr port dbname user service sslmode sslrootcert sslcert sslkey sslcrl sslnegotiation channel_binding
    require_auth gssencmode krbsrvname target_session_attrs load_balance_hosts application_name connect_timeout
    keepalives keepalives_idle keepalives_interval keepalives_count tcp_user_timeout client_encoding passfile
    """.split()  # noqa: SIM905 - a word a parameter
)
"""Parameters of libpq whose values are no secret; ``options`` may set one in the session, so it is not among them."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def show_url(url: str) -> str:
    """Return a URL, or a host as a setting names it, without a secret of any part of it.

    Of a database stay user, host, port, name and the parameters that are known to be harmless, so that the URL still
    leads there; of a service only scheme, host and port. Where it cannot be told what belongs to a password, only the
    scheme stays.
    """
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    if "@" in tail:
        return f"{scheme}{mark}…"
    user, at, host = authority.rpartition("@")
    if scheme.partition("+")[0] not in _OF_A_DATABASE:
        return f"{scheme}{mark}{host}"
    path, _, query = tail.partition("?")
    kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name in _HARMLESS]
    return f"postgresql://{user.partition(':')[0]}{at}{host}{path}" + (f"?{urlencode(kept)}" if kept else "")


def is_address(text: str) -> bool:
    """Return whether ``text`` is a URL or a host of which it can be told what is host, port and password."""
    rest = text.partition("://")[2] if "://" in text else text
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    port = re.search(r":([^\]:]*)$", authority.rpartition("@")[2])
    return "@" not in rest[len(authority) :] and (port is None or port[1].isdecimal() or not port[1])


def show_urls(text: str) -> str:
    """Return what somebody else's library or server said, with each URL that may hold a secret as `show_url` has it."""
    return _URL.sub(lambda found: show_url(found[0]) if "@" in found[0] or "?" in found[0] else found[0], text)


def printable(text: str) -> str:
    """Return ``text`` on one line, every character that does not print as Python would write it in a string."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def to_toml(text: str) -> str:
    """Return a text as a string of TOML, which knows the escapes of JSON and takes no DEL as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
