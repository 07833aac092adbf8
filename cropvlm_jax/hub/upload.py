# Copyright 2026 The cropvlm_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""Model folders put on the Hugging Face Hub."""

from pathlib import Path

from absl import logging
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from cropvlm_jax.hub.model_card import is_unchanged
from cropvlm_jax.hub.pretrained import CARD


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool | None = None,
    message: str = "Upload model",
    token: str | None = None,
) -> str:
    """Uploads a folder as a model, in one commit.

    A README.md that somebody wrote or changed in the repository stays.

    Args:
        folder: all its files are uploaded.
        repo: "user/name"; made if it is not there.
        private: whether a new repository is private; None is the account's default.
        message: of the commit.
        token: of the account; None takes the environment's HF_TOKEN or the login.

    Returns:
        The address of the repository.

    Raises:
        OSError: the Hub refuses it, or cannot be reached.
        ValueError: `repo` cannot be a name.
    """
    api = HfApi(token=token)
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=[CARD] if _has_own_card(api, address.repo_id) else None,
        )
    except HFValidationError as error:
        raise ValueError(f"{repo!r} cannot be the name of a repository: {error}") from error
    except (LocalTokenNotFoundError, HfHubHTTPError, OSError) as error:
        raise OSError(
            f"{repo!r} was not pushed to the Hugging Face Hub ({error}): log in by `hf auth login` "
            "or set HF_TOKEN to a token that may write there, and try again"
        ) from error
    return str(address)


def _has_own_card(api: HfApi, repo: str) -> bool:
    """Whether a repository has a README.md that is not as an export has written it."""
    if not api.file_exists(repo, CARD):
        return False
    text = Path(api.hf_hub_download(repo, CARD)).read_text(encoding="utf-8")
    if kept := not is_unchanged(text):
        logging.info("%s in %s is not a card that an export wrote: it is kept", CARD, repo)
    return kept
