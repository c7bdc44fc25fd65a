"""mlflow as a place for the rows of a comparison, for those who keep their experiments there."""

from collections.abc import Mapping
from typing import Any

from distilrec.compare.findings import name_of
from distilrec.errors import ConfigError


def need_mlflow() -> Any:
    """Return mlflow, or say how to install it."""
    try:
        import mlflow
    except ImportError:
        raise ConfigError("mlflow is not installed.", remedy="Run pip install 'distilrec[mlflow]'.") from None
    return mlflow


def log_rows(content: Mapping[str, Any], address: str) -> None:
    """Log each row as a run: labels and tuned settings as parameters, figures as metrics; one experiment a comparison.

    Args:
        content: of results.json.
        address: of the tracking server or data base, for example sqlite:///mlflow.db.

    Raises:
        ConfigError: mlflow is missing, or does not take the rows there.
    """
    mlflow = need_mlflow()
    try:
        _log(mlflow, content, address)
    except mlflow.MlflowException as error:
        line = str(error).splitlines()[0]
        raise ConfigError(
            f"mlflow: {line}", where=address, remedy="The report is written; give another address and run again."
        ) from None


def _log(mlflow: Any, content: Mapping[str, Any], address: str) -> None:
    mlflow.set_tracking_uri(address)
    mlflow.set_experiment(f"distilrec compare {content['name']}")
    for row in content["rows"]:
        with mlflow.start_run(run_name=f"{row['dataset']}: {name_of(row)}"):
            labels = {key: row[key] for key in ("dataset", "student", "method", "teacher") if row[key] is not None}
            mlflow.log_params({**labels, "seeds": " ".join(map(str, row["seeds"])), **row["values"]})
            found = {name.replace("@", "_at_"): value for name, value in row["metrics"].items()}
            for key in ("parameters", "ms_per_user", "latency_ms", "train_seconds", "teacher_seconds", "usd"):
                if row[key] is not None:
                    found[key] = float(row[key])
            for name, value in row.get("difference", {}).items():
                found[f"gain_{name.replace('@', '_at_')}"] = value
                found[f"p_{name.replace('@', '_at_')}"] = row["p_value"][name]
            mlflow.log_metrics(found)
