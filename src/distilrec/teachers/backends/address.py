"""Where a server is, without what must not be shown of it."""

import base64
import ipaddress
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from distilrec.errors import ConfigError
from distilrec.secrets import Secret


class Address:
    """A base_url, taken apart into what may be shown and what may not.

    Attributes:
        shown: scheme, host, port and path.
        local: whether it is on this machine or in a private network.
        query: parameters sent with every request.
        login: user name and password, or None.
        secrets: what of it must not be shown.

    Raises:
        ConfigError: it is no http(s) address.
    """

    def __init__(self, base_url: str) -> None:
        try:
            parts = urlsplit(base_url.strip())
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            parts, port = urlsplit(""), ""
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("base_url must be an address like http://127.0.0.1:8000/v1.", where="base_url")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self.shown = f"{parts.scheme}://{host}{port}{parts.path}".rstrip("/")
        self.local = _is_local(parts.hostname)
        self.query = dict(parse_qsl(parts.query))
        self.login = (unquote(parts.username or ""), unquote(parts.password or "")) if "@" in parts.netloc else None
        texts = [value for name, value in self.query.items() if name != "api-version"]
        if self.login is not None:
            texts += [self.login[1], base64.b64encode(":".join(self.login).encode()).decode()]
        self.secrets = [Secret(text) for text in texts]

    def http(self) -> dict[str, Any]:
        """Return settings of the HTTP client."""
        # A proxy of the environment leads out of the machine or the network; what is inside is reached directly.
        direct = {"http://": None, "https://": None} if self.local else None
        return {"auth": self.login, "mounts": direct}


def _is_local(host: str) -> bool:
    """Whether a host is this machine or in a private network: by its address, or a name without dots."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal"))
    return address.is_private or address.is_loopback or address.is_link_local
