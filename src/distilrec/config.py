"""Settings of a run: YAML plus key=value overrides become frozen, typed models.

The settings of a student, a teacher or a method belong to it and stand in its own file (`Settings` of the class); here such
a part is a `Choice`: a name and the rest, which the registry that knows the name turns into the typed settings.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from distilrec.settings import Choice, Settings


class ColumnSettings(Settings):
    """Columns by name; None means: guess and say."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    rating: str | None = None
    item_key: str | None = None
    title: str | None = None
    text: list[str] | None = None


class FilterSettings(Settings):
    """What is dropped from the log before it is split."""

    min_rating: float | None = None
    duplicates: Literal["exact", "first", "last", "none"] = "exact"
    k_core_user: int = Field(5, ge=1)
    k_core_item: int = Field(5, ge=1)
    min_history: int = Field(3, ge=2)


class SessionSettings(Settings):
    """How a user's history is cut into sessions, if at all."""

    by: Literal["none", "gap", "day"] = "none"
    gap_minutes: float = Field(30.0, gt=0)


class SplitSettings(Settings):
    """How examples are shared out among training, validation and test.

    `leave_one_out`: the last item of each history is the test target, the one before it the validation target.
    `global_time`: next-item examples in order of time, cut at `train` and `train + valid`.
    `random_sessions`: whole sessions at random, the last item of each held-out session is its target.
    `last_sessions`: the same, but in order of the time of their first item; the latest sessions are held out.
    """

    kind: Literal["leave_one_out", "global_time", "random_sessions", "last_sessions"] = "leave_one_out"
    train: float | None = Field(None, gt=0, lt=1)
    valid: float | None = Field(None, gt=0, lt=1)

    def shares(self) -> tuple[float, float]:
        """Return the shares of training and validation (defaults: 0.8/0.1 by time, 0.6/0.2 by session)."""
        default = (0.8, 0.1) if self.kind == "global_time" else (0.6, 0.2)
        return (self.train or default[0], self.valid or default[1])

    @model_validator(mode="after")
    def _room_for_test(self) -> "SplitSettings":
        if sum(self.shares()) >= 1:
            raise ValueError("train + valid must stay below 1, so that something is left to test on")
        return self


class DataSettings(Settings):
    """Where the data come from and how they are prepared."""

    source: str | None = None
    interactions: Path | None = None
    items: Path | None = None
    columns: ColumnSettings = ColumnSettings()
    filters: FilterSettings = FilterSettings()
    sessions: SessionSettings = SessionSettings()
    split: SplitSettings = SplitSettings()

    @model_validator(mode="after")
    def _one_origin(self) -> "DataSettings":
        if (self.source is None) == (self.interactions is None):
            raise ValueError("give either source (a public data set) or interactions (a file), not both")
        return self


class LossSettings(Settings):
    """The loss of a target, and the items it is told from.

    `name` null means the student's own (`dro` for DROS, `ce` for the others). `ce` is cross-entropy over the whole catalogue;
    `sampled_softmax`, `bce`, `gbce` and `bpr` compare the target with `negatives` sampled items; `dro` adds to the loss
    `base` the term of DROS over the whole catalogue, times `dro_weight`.
    `sampling`: `uniform`; `popularity` (training counts to the power `popularity_power`); `in_batch` (targets of the same
    batch; `negatives` 0 means all of them). `shared`: one draw for the whole batch, which turns scoring into one product.
    `exclude_history`: an item read by the model is no negative of that history. `log_q`: correct the scores of sampled softmax
    for how likely an item is drawn: of `all` items, as published, or of the `negatives` alone, which estimates `ce`.
    `calibration`: t of gBCE. `dro_beta`: temperature of the DRO term.
    """

    name: Literal["ce", "sampled_softmax", "bce", "gbce", "bpr", "dro"] | None = None
    negatives: int = Field(256, ge=0)
    sampling: Literal["uniform", "popularity", "in_batch"] = "uniform"
    popularity_power: float = Field(1.0, ge=0)
    shared: bool = True
    exclude_history: bool = False
    log_q: Literal["none", "all", "negatives"] = "all"
    calibration: float = Field(0.75, ge=0, le=1)
    base: Literal["ce", "bce", "sampled_softmax"] = "ce"
    dro_weight: float = Field(0.1, ge=0)
    dro_beta: float = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _something_to_compare_with(self) -> "LossSettings":
        if self.negatives == 0 and self.sampling != "in_batch":
            raise ValueError("negatives must be at least 1; 0 means all targets of the batch, with sampling in_batch")
        if self.sampling == "in_batch" and not self.shared:
            raise ValueError("in_batch negatives are shared by the whole batch: leave shared at true")
        return self


class TrainSettings(Settings):
    """How a model is trained. One loop serves students and teachers.

    `loss`: see `LossSettings`. `accumulate`: batches whose gradients make one step.
    `batch_tokens`: history items in a batch, padding included. `stride`: how far apart the windows start into which a
    history longer than the model's reach is cut; half the reach if not set. `validate_every`: validate after every n-th epoch.
    `patience`: stop after so many validations without a gain.
    `average`: above 0, an exponential moving average of the weights with this decay per step is validated and kept, not the
    weights of the last step, whose quality jumps from epoch to epoch where validation examples are few.
    `validate_users`: validate on so many examples, the same ones each time; all if not set.
    `lazy_rows`: touch only the rows of the item table that a batch needs, in the optimiser too (momentum of the others
    waits); null means where the loss samples its negatives and the method can do without the other rows, as `plain` can.
    `precision`: `auto` is bfloat16 on a GPU that has it, else float32; `bfloat16` on a CPU scores the catalogue of `ce` in
    it and leaves the layers in float32: faster where the processor multiplies it in hardware (`results/training_speed.json`).
    `compile`: torch.compile the student. `refit`: once the best number of epochs is known, train again for as many on
    training and validation targets together; such figures are reported apart.
    """

    loss: LossSettings = LossSettings()
    accumulate: int = Field(1, ge=1)
    epochs: int = Field(100, ge=1)
    patience: int = Field(10, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    clip_norm: float | None = Field(None, gt=0)
    batch_tokens: int = Field(4096, ge=1)
    stride: int | None = Field(None, ge=1)
    validate_every: int = Field(1, ge=1)
    validate_users: int | None = Field(None, ge=1)
    average: float = Field(0.0, ge=0, lt=1)
    lazy_rows: bool | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    refit: bool = False
    select_by: str = "ndcg@10"
    checkpoint_seconds: float = Field(30.0, ge=0)


class CapSettings(Settings):
    """Where an annotation stops in good order; null means no cap. All but `minutes` count what earlier runs stored, too.

    Before a request is sent its cost is estimated and held back, so that requests in flight cannot run past a cap together.
    """

    rows: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    usd: float | None = Field(None, gt=0)
    minutes: float | None = Field(None, gt=0)


class PriceSettings(Settings):
    """US dollars for a million tokens, where the price list does not know the model or is not to be trusted."""

    input_per_million: float = Field(ge=0)
    output_per_million: float = Field(ge=0)


class RequestSettings(Settings):
    """How a server is asked.

    `concurrency`: requests in flight. `per_minute`, `tokens_per_minute`: the server's limits, kept by waiting.
    `retries`: how often a request that failed for a passing reason is sent again, with waits that double from `backoff_seconds`
    up to `longest_wait_seconds`, or as long as the server says. `ask_again`: how often a reply that cannot be used at all is
    asked for anew, which costs again; null means once, or not at all at temperature 0, where the reply would be the same.
    `timeout_seconds`: for one request.
    """

    concurrency: int = Field(8, ge=1)
    per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    retries: int = Field(8, ge=0)
    backoff_seconds: float = Field(1.0, gt=0)
    longest_wait_seconds: float = Field(60.0, gt=0)
    ask_again: int | None = Field(None, ge=0)
    timeout_seconds: float = Field(120.0, gt=0)


class AnnotateSettings(Settings):
    """What the teacher is asked for and how it is stored.

    `examples`: `all` training examples, or the `last` of each history; null means what suits the teacher (`last` for those
    asked one example at a time over a server, else `all`). `sample`: of these, so many, drawn by the run's seed; a larger
    number later keeps the earlier ones. `selection`: a file of example ids, one a line (or of user or session ids, where
    `selection_by` says so), instead. `shard_seconds`: store what is there at least so often; a killed run loses no more than that
    of a local teacher's work, and none of a paid one's. `keep_replies`: store raw replies beside the rows.
    `vectors`: settings of a `text` teacher that reads the item vectors, in place of the teacher's own.
    `folds`: above 1, train so many teachers, each without one part of the histories, and ask each about that part: a teacher knows
    its own training targets by heart, and is less sure of what it has not seen. For teachers trained over the catalogue.
    `engine`: `local`, or `ray` with `workers` of them.
    """

    top_k: int = Field(20, ge=1)
    examples: Literal["all", "last"] | None = None
    sample: int | None = Field(None, ge=1)
    selection: Path | None = None
    selection_by: Literal["example", "user"] = "example"
    batch_tokens: int = Field(4096, ge=1)
    shard_rows: int = Field(20_000, ge=1)
    shard_seconds: float = Field(20.0, gt=0)
    caps: CapSettings = CapSettings()
    requests: RequestSettings = RequestSettings()
    prices: PriceSettings | None = None
    keep_replies: bool = False
    vectors: dict[str, Any] | None = None
    folds: int = Field(1, ge=1)
    engine: Literal["local", "ray"] = "local"
    workers: int = Field(2, ge=1)

    def content(self) -> dict[str, Any]:
        """Return what the stored rows depend on: not how many are asked, how fast, at what price or by whom."""
        return self.model_dump(mode="json", include={"top_k"} if self.folds == 1 else {"top_k", "folds"})


class EvaluateSettings(Settings):
    """How models are measured: full ranking over the catalogue, ties against the target."""

    cutoffs: list[int] = Field([1, 5, 10, 20], min_length=1)
    bootstrap: int = Field(2000, ge=10)
    filter_seen: bool = False
    batch_tokens: int = Field(16_384, ge=1)
    timing_users: int = Field(1000, ge=1)

    @model_validator(mode="after")
    def _positive(self) -> "EvaluateSettings":
        if any(cutoff < 1 for cutoff in self.cutoffs):
            raise ValueError("cutoffs must be at least 1")
        return self


class Config(Settings):
    """A whole run."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(42, ge=0, lt=1 << 62)
    threads: int | None = Field(None, ge=1, le=1024)
    data: DataSettings
    student: Choice = Choice(name="sasrec")
    train: TrainSettings = TrainSettings()
    teacher: Choice = Choice(name="e4srec")
    teach: TrainSettings = TrainSettings()
    annotate: AnnotateSettings = AnnotateSettings()
    method: Choice = Choice(name="dllm2rec")
    distil: TrainSettings | None = None
    evaluate: EvaluateSettings = EvaluateSettings()

    def distil_settings(self) -> TrainSettings:
        """Return how the distilled student is trained: like the plain one, unless told otherwise."""
        return self.distil or self.train
