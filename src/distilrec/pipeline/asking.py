"""Asking the ranker: hints once, an estimate of what the rest will cost, then a question for each example."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilrec.columns import COST, REPLY, TOKENS_IN, TOKENS_OUT
from distilrec.config import AnnotateSettings
from distilrec.knowledge.ask import ask
from distilrec.knowledge.budget import ATTEMPTS, Estimate, estimate
from distilrec.knowledge.prices import Price, is_private, price_of_backend
from distilrec.knowledge.serving import GAVE_UP
from distilrec.knowledge.store import KnowledgeWriter, writing
from distilrec.pipeline.stage import Stage
from distilrec.progress import say
from distilrec.teachers.backends import open_backend
from distilrec.teachers.backends.base import Backend, BackendError, Prompt, Reply
from distilrec.teachers.ranker import Ranker, RankerSettings, useful_hints

if TYPE_CHECKING:
    from distilrec.pipeline.teaching import Teaching

_HINTS = "hints"


def ask_ranker(teaching: "Teaching", folder: Path, details: dict[str, Any], trained: Stage | None) -> None:
    """Fill a store by asking the ranker's backend; a killed run resumes, and nothing is paid twice."""
    run, settings = teaching.run, _settled(teaching.run.config.annotate, teaching.settings)
    ranker = Ranker(teaching.settings, run.data, teaching.top_items(trained), run.config.seed)
    with _backend(teaching.settings, settings) as backend:
        details = details | {"backend": _identity(backend)}
        price = price_of_backend(backend, settings.prices)
        with writing(folder, run.data, details) as writer:
            if not writer.has_item_vectors and (vectors := teaching.vectors(trained)) is not None:
                writer.put_item_vectors(vectors)
            hints, settings = _hints(ranker, backend, folder, settings, price)
            wanted = teaching.examples()
            examples = np.setdiff1d(wanted, writer.done(), assume_unique=True)
            for line in _estimate(ranker, backend, examples, hints, writer, settings, price, run.config.seed).lines():
                say(f"  {line}")
            questions = ranker.questions(wanted, hints)
            account = ask(questions, len(wanted), backend, ranker.read, writer, settings, price=price)
    for line in account.lines():
        say(f"  {line}")
    if account.stopped_by == GAVE_UP:
        raise BackendError(
            f"{GAVE_UP}; the last: {account.failed[-1].reason}",
            remedy="See to the server and run again: what came is kept.",
        )


def _settled(annotate: AnnotateSettings, ranker: RankerSettings) -> AnnotateSettings:
    """Return the settings with it decided whether unusable replies are asked for again."""
    requests = annotate.requests
    if requests.ask_again is not None:
        return annotate
    again = 0 if ranker.temperature == 0 else 1  # the likeliest reply would be the same one
    return annotate.model_copy(update={"requests": requests.model_copy(update={"ask_again": again})})


@contextmanager
def _backend(settings: RankerSettings, annotate: AnnotateSettings) -> Iterator[Backend]:
    """Open the backend: here, or on Ray workers."""
    here: Callable[[], Any] = partial(open_backend, settings, annotate.requests.timeout_seconds)
    if annotate.engine == "local":
        yield here()
    elif settings.backend == "api":
        say(
            "  engine ray: a server answers many requests at once anyway (annotate.requests.concurrency), so Ray is not used"
        )
        yield here()
    else:
        from distilrec.knowledge.ray_engine import backend_over_ray

        with backend_over_ray(here, annotate.workers) as backend:
            yield backend


def estimate_ranker(teaching: "Teaching", folder: Path | None, trained: Stage | None) -> Estimate:
    """Estimate what asking would cost, without asking anything.

    Args:
        teaching: the run's.
        folder: the store, if there is one; what it holds need not be asked.
        trained: the stage of the recommender.
    """
    run, settings = teaching.run, teaching.run.config.annotate
    ranker = Ranker(teaching.settings, run.data, teaching.top_items(trained), run.config.seed)
    backend = open_backend(teaching.settings, settings.requests.timeout_seconds)
    price = price_of_backend(backend, settings.prices)
    writer = KnowledgeWriter(folder) if folder is not None else None
    examples = teaching.examples()
    if writer is not None:
        examples = np.setdiff1d(examples, writer.done(), assume_unique=True)
        known = KnowledgeWriter(writer.folder / _HINTS)
        if len(known.done()):
            hints = useful_hints(known.stored([REPLY])[REPLY][0] or "")
            return _estimate(ranker, backend, examples, hints, writer, settings, price, run.config.seed)
    most = teaching.settings.hint_tokens if teaching.settings.hints else 0
    found = _estimate(ranker, backend, examples, " hint" * most, writer, settings, price, run.config.seed)
    return _with_hints(found, backend.count_tokens(ranker.summary_question()), most) if most else found


def _with_hints(found: Estimate, tokens_in: int, tokens_out: int) -> Estimate:
    """Return the estimate with the request for hints in it."""
    usd = None if found.usd is None or found.price is None else found.usd + found.price.usd(tokens_in, tokens_out)
    return replace(
        found,
        tokens_in=found.tokens_in + tokens_in,
        tokens_out=found.tokens_out + tokens_out,
        usd=usd,
        basis=(*found.basis, f"with one request for hints: {tokens_in:,} tokens in, at most {tokens_out:,} out"),
    )


def _estimate(
    ranker: Ranker,
    backend: Backend,
    examples: Any,
    hints: str,
    writer: KnowledgeWriter | None,
    settings: AnnotateSettings,
    price: Price | None,
    seed: int,
) -> Estimate:
    questions = ranker.questions(examples, hints)
    stored = None
    if writer is not None and len(writer.done()):
        stored = writer.stored([TOKENS_IN, TOKENS_OUT, COST, ATTEMPTS])
    ideal = ranker.ideal_reply(questions[0]) if len(questions) else ""
    return estimate(questions, backend, price=price, caps=settings.caps, ideal=ideal, stored=stored, seed=seed)


def _identity(backend: Backend) -> dict[str, Any]:
    """Return what the replies depend on; a server of one's own may move to another port."""
    found = backend.identity()
    return {key: value for key, value in found.items() if key != "base_url" or not is_private(str(value))}


@dataclass(frozen=True, slots=True)
class _HintsQuestion:
    """The one question whose reply are the hints."""

    prompt: Prompt
    example: int = 0


@dataclass(frozen=True, slots=True)
class _AnyText:
    """A reply of which nothing is read: any text will do."""

    usable: bool
    repairs: dict[str, int]

    @property
    def items(self) -> list[int]:
        """Something, if the reply can be used: a row without items counts as unusable."""
        return [0] if self.usable else []


def _text(reply: Reply) -> _AnyText:
    usable = bool(reply.text.strip())
    return _AnyText(usable, {} if usable else {"empty": 1})


def _hints(
    ranker: Ranker, backend: Backend, folder: Path, settings: AnnotateSettings, price: Price | None
) -> tuple[str, AnnotateSettings]:
    """Return the hints, asked for once and then kept like any other reply, and the settings with what they cost off the caps."""
    if not ranker.settings.hints:
        return "", settings
    writer = KnowledgeWriter(folder / _HINTS)
    caps = settings.caps
    alone = settings.model_copy(update={"keep_replies": True, "caps": caps.model_copy(update={"rows": None})})
    reason = ""
    if len(writer.done()) == 0:
        (folder / _HINTS).mkdir(exist_ok=True)
        question = _HintsQuestion(ranker.summary_question())
        say("  asking for hints")
        account = ask([question], 1, backend, lambda _, reply: _text(reply), writer, alone, price=price)
        reason = account.failed[0].reason if account.failed else account.stopped_by or ""
    found = writer.stored([REPLY, TOKENS_IN, TOKENS_OUT, COST])
    if found.height == 0:
        raise BackendError(
            f"no hints came back: {reason.rstrip('.')}.",
            where=str(folder),
            remedy="Run again, raise annotate.caps, or set teacher.hints=false.",
        )
    if not (found[REPLY][0] or "").strip():
        raise BackendError(
            "the hints that came back are empty.",
            where=str(folder / _HINTS),
            remedy="Set teacher.hints=false, or delete this folder to ask for them again.",
        )
    tokens = int(found[TOKENS_IN].sum()) + int(found[TOKENS_OUT].sum())
    left = {
        "tokens": None if caps.tokens is None else max(1, caps.tokens - tokens),
        "usd": None if caps.usd is None else max(1e-12, caps.usd - float(found[COST].sum() or 0.0)),
    }
    hints = useful_hints(found[REPLY][0])
    if not hints:
        say("  the hints that came back repeat one phrase: they are kept, and the questions go without them")
    return hints, settings.model_copy(update={"caps": caps.model_copy(update=left)})
