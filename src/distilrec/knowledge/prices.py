"""What a teacher's tokens cost: the settings say it, or the price list of genai-prices, or nobody sends a bill.

The list lies inside the installed package; nothing is fetched. A server whose provider is not in the list is never taken for
the maker of a model with the same name: an unknown price is said, not guessed.
"""

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from distilrec.config import CapSettings, PriceSettings
from distilrec.errors import ConfigError
from distilrec.teachers.backends.base import Backend, Served

_MILLION = 1e6
_PROBE = 1000  # tokens in and out of the request whose price is looked up: prompts here are about that long
_PRIVATE_NAMES = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a million tokens.

    Attributes:
        input_per_million: of prompts.
        output_per_million: of replies.
        source: who says so, for people.
    """

    input_per_million: float
    output_per_million: float
    source: str

    def usd(self, tokens_in: float, tokens_out: float) -> float:
        """Return what so many tokens cost."""
        return (tokens_in * self.input_per_million + tokens_out * self.output_per_million) / _MILLION

    def line(self) -> str:
        """Say it in one line."""
        if self.input_per_million == self.output_per_million == 0:
            return f"tokens cost nothing ({self.source})"
        return (
            f"{self.input_per_million:g} USD for a million tokens in, {self.output_per_million:g} out ({self.source})"
        )


def price_of(model: str, settings: PriceSettings | None, base_url: str | None) -> Price | None:
    """Find the price of a model.

    Args:
        model: its name, as it is asked for.
        settings: `annotate.prices`; they come before everything else.
        base_url: address of the server; "" for a server whose address is not known, None for a model in this process.

    Returns:
        The price, 0 for a server on this machine or a private network and for a model in this process; None if unknown.
    """
    if settings is not None:
        return Price(settings.input_per_million, settings.output_per_million, "annotate.prices")
    listed = _listed(model, base_url)
    if listed is not None:
        return listed
    return Price(0.0, 0.0, "local") if base_url is None or is_private(base_url) else None


def price_of_backend(backend: Backend, settings: PriceSettings | None) -> Price | None:
    """Find the price of a backend's model; a served one's address is the `base_url` of its identity."""
    if settings is None and not isinstance(backend, Served):
        return Price(0.0, 0.0, "local")  # whatever its name, a model in this process sends no bill
    return price_of(backend.model, settings, str(backend.identity().get("base_url") or ""))


def check_price(price: Price | None, caps: CapSettings) -> None:
    """Check that a cap in US dollars can be kept.

    Raises:
        ConfigError: there is one, and the price is not known.
    """
    if caps.usd is not None and price is None:
        raise ConfigError(
            "a cap in US dollars needs the price of the model, which the price list does not know.",
            where="annotate.caps.usd",
            remedy="Set annotate.prices.input_per_million and output_per_million, or cap tokens instead.",
        )


def _listed(model: str, base_url: str | None) -> Price | None:
    from genai_prices import Usage, __version__, calc_price  # takes a third of a second to load, and few verbs need it

    usage = Usage(input_tokens=_PROBE, output_tokens=_PROBE)
    try:
        found = calc_price(usage, model, provider_api_url=base_url) if base_url else calc_price(usage, model)
    except LookupError:
        return None
    scale = _MILLION / _PROBE
    source = f"genai-prices {__version__}, {found.provider.name}"
    return Price(float(found.input_price) * scale, float(found.output_price) * scale, source)


def is_private(base_url: str) -> bool:
    """Return whether an address is this machine's or one of a private network."""
    host = (urlsplit(base_url if "//" in base_url else f"//{base_url}").hostname or "").rstrip(".")
    try:
        return not ip_address(host).is_global
    except ValueError:
        # A name without a dot can only be one of this network.
        return bool(host) and ("." not in host or host.endswith(_PRIVATE_NAMES))
