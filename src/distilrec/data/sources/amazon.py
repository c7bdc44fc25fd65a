"""The Amazon review sets of 2014, 2018 and 2023, category by category. No checksums are published."""

from collections.abc import Callable
from typing import Final

from distilrec.data.sources.entries import RemoteFile, Source

_AMAZON_TERMS = (
    "No licence is stated; published for research by the McAuley Lab, UCSD. Cite the paper named on the page."
)
MCAULEY = ("https://mcauleylab.ucsd.edu/public_datasets/data", "https://datarepo.eng.ucsd.edu/mcauley_group/data")
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
    bases = ("https://snap.stanford.edu/data/amazon/productGraph/categoryFiles", f"{MCAULEY[0]}/amazon/categoryFiles")
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
            RemoteFile(reviews, tuple(f"{base}/amazon_v2/categoryFilesSmall/{reviews}" for base in MCAULEY)),
            RemoteFile(meta, tuple(f"{base}/amazon_v2/metaFiles2/{meta}" for base in MCAULEY)),
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
            RemoteFile(ratings, tuple(f"{base}/amazon_2023/benchmark/5core/rating_only/{ratings}" for base in MCAULEY)),
            RemoteFile(meta, tuple(f"{base}/amazon_2023/raw/meta_categories/{meta}" for base in MCAULEY)),
        ),
    )


AMAZON: Final[dict[str, Callable[[str], Source]]] = {
    "amazon-2014": _amazon_2014,
    "amazon-2018": _amazon_2018,
    "amazon-2023": _amazon_2023,
}
