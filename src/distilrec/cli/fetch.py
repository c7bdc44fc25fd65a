"""`distilrec fetch`: public data sets and language models into the cache."""

from typing import Annotated

import typer

from distilrec.data.sources import LLMS, describe, fetch_llm
from distilrec.data.sources import fetch as fetch_data


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Data sets or language models. None: list what there is.")
    ] = None,
    offline: Annotated[bool, typer.Option(help="Use the cache alone.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare checksums of cached files too.")] = False,
) -> None:
    """Fetch public data sets or language models into the cache and print where they lie."""
    if not names:
        print(describe())
        return
    for name in names:
        if name in LLMS:
            print(fetch_llm(name, offline=offline, verify=verify))
            continue
        fetched = fetch_data(name, offline=offline, verify=verify)
        print(f"{fetched.interactions}\n{fetched.items}\nsource: {fetched.source}\nlicence: {fetched.licence}")
