"""Prices: settings first, then the list, then free of charge at home; what is not known is not guessed."""

import pytest

from distilrec.config import CapSettings, PriceSettings
from distilrec.errors import ConfigError
from distilrec.knowledge.prices import Price, check_price, price_of, price_of_backend
from distilrec.teachers.backends.base import Prompt, Reply

OWN = PriceSettings(input_per_million=1.5, output_per_million=4.0)
OFFICIAL = "https://api.openai.com/v1"


class InProcess:
    model = "gpt-4o-mini"  # a folder may be called anything

    def identity(self) -> dict[str, str]:
        return {"kind": "transformers"}

    def count_tokens(self, prompt: Prompt) -> int:
        return 1

    def count_text(self, text: str) -> int:
        return 1

    def complete(self, prompts: list[Prompt]) -> list[Reply]:
        return []


class Remote(InProcess):
    complete = None  # type: ignore[assignment]

    def __init__(self, base_url: str | None) -> None:
        self.base_url = base_url

    def identity(self) -> dict[str, str]:
        return {"base_url": self.base_url} if self.base_url else {}

    async def ask(self, prompt: Prompt) -> Reply:
        return Reply("", 1, 1)

    async def close(self) -> None: ...


def test_usd_by_hand() -> None:
    assert Price(1.5, 4.0, "").usd(2_000_000, 500_000) == pytest.approx(5.0)
    assert Price(0.15, 0.6, "").usd(1000, 100) == pytest.approx(0.00021)


def test_settings_come_before_the_list_and_before_local() -> None:
    for url in (OFFICIAL, "http://localhost:8000/v1", None):
        price = price_of("gpt-4o-mini", OWN, url)
        assert price == Price(1.5, 4.0, "annotate.prices")
    assert price_of_backend(InProcess(), OWN) == Price(1.5, 4.0, "annotate.prices")


def test_the_list_knows_models_by_provider() -> None:
    price = price_of("gpt-4o-mini", None, OFFICIAL)
    assert price is not None
    assert (price.input_per_million, price.output_per_million) == pytest.approx((0.15, 0.6))
    assert "genai-prices" in price.source and "OpenAI" in price.source
    larger = price_of("gpt-4o", None, OFFICIAL)
    assert larger is not None and larger.input_per_million > price.input_per_million
    assert price_of("gpt-4o-mini", None, None) == price  # no address: the name tells the provider


@pytest.mark.parametrize(
    "url",
    ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:8080/v1", "http://10.1.2.3:8000", "http://192.168.0.7/v1",
     "http://172.16.9.9/v1", "http://vllm:8000/v1", "https://llm.internal/v1", "http://box.local:1/v1", "localhost:8000", "http://0.0.0.0:8000/v1"],
)  # fmt: skip
def test_servers_at_home_send_no_bill(url: str) -> None:
    price = price_of("gpt-4o", None, url)
    assert price == Price(0.0, 0.0, "local")
    assert "nothing" in price.line()


@pytest.mark.parametrize(
    "url",
    [
        "https://my-proxy.example/v1",
        "https://8.8.8.8/v1",
        "https://localhost.example.org/v1",
        "https://10.example.com",
        "",
    ],
)
def test_a_strange_server_is_neither_free_nor_taken_for_the_maker(url: str) -> None:
    assert price_of("no-such-model", None, url) is None
    if url:
        assert price_of("gpt-4o", None, url) is None


def test_an_unknown_model_of_a_known_provider() -> None:
    assert price_of("no-such-model", None, OFFICIAL) is None


def test_backends() -> None:
    assert price_of_backend(InProcess(), None) == Price(0.0, 0.0, "local")
    assert price_of_backend(Remote(OFFICIAL), None) == price_of("gpt-4o-mini", None, OFFICIAL)
    assert price_of_backend(Remote("http://127.0.0.1:1/v1"), None) == Price(0.0, 0.0, "local")
    nameless = Remote(None)
    nameless.model = "no-such-model"
    assert price_of_backend(nameless, None) is None  # served, address unknown: not free


def test_a_cap_in_dollars_needs_a_price() -> None:
    with pytest.raises(ConfigError, match="annotate.prices"):
        check_price(None, CapSettings(usd=1))
    check_price(None, CapSettings(tokens=5))
    check_price(Price(0, 0, "local"), CapSettings(usd=1))
