"""What a teacher is made from, looked at before anything is trained: a wrong path must not cost an hour of a student's training."""

from typing import TYPE_CHECKING, Any

from distilrec.data.sources import fetch_llm
from distilrec.errors import InputError
from distilrec.files import read_json
from distilrec.pipeline.teacher_training import recommender_trained, trained_files
from distilrec.settings import checked
from distilrec.teachers.backends import open_backend
from distilrec.teachers.llm import check_layers
from distilrec.teachers.text import TextSettings

if TYPE_CHECKING:
    from distilrec.pipeline.teaching import Teaching


def look_beforehand(teaching: "Teaching") -> None:
    """See that the models and files that a run's teacher names can be used, as far as that shows at once.

    Nothing is asked, and nothing is done that the run would not do later: models that are not here yet are fetched. A teacher that
    was asked elsewhere, or gives item vectors alone, needs no training: all that it has to say is read now.

    Raises:
        InputError: no such model, selection, teacher or file, or what is in it does not fit the data.
        ConfigError: more layers than the model has.
        FetchError: a model that is not here, and no network.
    """
    run, settings = teaching.run, teaching.settings
    if run.taught is not None:  # another run's teacher
        return
    _model(settings, where="teacher")
    if run.config.annotate.vectors is not None:
        _model(checked(TextSettings, run.config.annotate.vectors, where="annotate.vectors"), where="annotate.vectors")
    if (folder := getattr(settings, "trained", None)) is not None:
        trained_files(folder)
    if not run.needs:  # nothing is stored: the teacher is measured at most
        return
    if teaching.kind.asked in ("file", "nothing"):
        _ = run.knowledge
    elif run.config.annotate.selection is not None:
        teaching.candidates()


def look_for_key(teaching: "Teaching") -> None:
    """See that there is an API key and a model, where the teacher is a server that still has to be asked about something.

    Whether all answers are stored shows only once the recommender that asks for them is trained: then nothing is looked at.

    Raises:
        BackendError: there is none.
        ConfigError: a setting that the backend has no use for.
    """
    run, settings = teaching.run, teaching.settings
    served = teaching.kind.asked == "prompts" and settings.backend == "api"
    if served and run.taught is None and not recommender_trained(teaching):
        backend: Any = open_backend(settings, run.config.annotate.requests.timeout_seconds)
        backend.look_beforehand()


def _model(settings: Any, *, where: str) -> None:
    """Fetch the language model that settings name, if they do, and see that it has the layers that are asked for."""
    name = getattr(settings, "llm", None)
    if name is None or getattr(settings, "sentence_transformer", None) is not None:
        return
    folder = fetch_llm(name)
    content = read_json(folder / "config.json")
    if not isinstance(content, dict):
        raise InputError(
            "this is no model's configuration.", where=str(folder / "config.json"), remedy="Give a model folder."
        )
    if isinstance(depth := content.get("num_hidden_layers"), int):  # some models of several parts do not say it here
        check_layers(getattr(settings, "layers", None), depth, folder, where)
