"""What the environment says about a run: tags from MLFLOW_TAGS, and the commit of the working directory."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Mapping

TAGS_VARIABLE = "MLFLOW_TAGS"
RUN_ID_VARIABLE = "MLFLOW_RUN_ID"
GIT_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


def environment_tags(environ: Mapping[str, str]) -> dict[str, str]:
    """Tags in MLFLOW_TAGS, a JSON object; anything else is ignored with a warning.

    >>> environment_tags({"MLFLOW_TAGS": '{"team": "vision"}'})
    {'team': 'vision'}
    """
    text = environ.get(TAGS_VARIABLE)
    if not text:
        return {}
    try:
        tags = json.loads(text)
    except ValueError:
        tags = None
    if not isinstance(tags, dict):
        logger.warning("%s must be a JSON object of tags, and is ignored", TAGS_VARIABLE)
        return {}
    return {str(key): str(value) for key, value in tags.items()}


def git_tags() -> dict[str, str]:
    """Commit and branch of the working directory; empty outside of a repository.

    MLflow's own tags are about the directory of the command, which is that of the environment.
    """
    commit = _git("rev-parse", "HEAD")
    branch = _git("symbolic-ref", "--short", "-q", "HEAD") if commit else ""
    tags = {"mlflow.source.git.commit": commit, "mlflow.source.git.branch": branch}
    return {key: value for key, value in tags.items() if value}


def _git(*arguments: str) -> str:
    """What a git command prints; empty where it fails."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
