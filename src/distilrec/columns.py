"""Every field name of the project, once. Tables, stores and manifests spell their columns through these constants."""

from typing import Final

# interaction tables
USER: Final = "user_id"
ITEM: Final = "item_id"
TIME: Final = "time"
RATING: Final = "rating"
ROW: Final = "_row"  # 1-based line of the source file, for error messages and for stable tie-breaking

# item tables
TITLE: Final = "title"
TEXT: Final = "text"  # title and further text columns, joined for the language model
INDEX: Final = "index"  # 0-based internal id

# knowledge tables
EXAMPLE: Final = "example_id"  # position of the target in the dataset's flat items array
ITEMS: Final = "items"
SCORES: Final = "scores"  # higher = surer, always
TOKENS_IN: Final = "tokens_in"
TOKENS_OUT: Final = "tokens_out"
COST: Final = "cost_usd"
REPLY: Final = "reply"
