"""``save_pretrained``, ``from_pretrained`` and ``push_to_hub``, by the conventions of huggingface_hub.

Its own ``ModelHubMixin`` writes to the object, and what is shared here is frozen.
"""

from __future__ import annotations

import re
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from hooklearn.types import InputError

CARD = "README.md"
TAGS = ("unlearning", "model-editing", "hooklearn")


class Shareable:
    """Something that lies in a folder, or in a repository on the hub, beside a model card."""

    library: ClassVar[str] = "hooklearn"
    """Which library reads the folder, as the hub's metadata name it."""

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """All files but the card."""

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path) -> Self: ...

    @abstractmethod
    def _facts(self) -> tuple[str, str]:
        """The name of the base model, and the body of the card (markdown): what this is, not how good it is."""

    def save_pretrained(self, save_directory: str | Path, *, card: str | None = None) -> None:
        """Write the files, and a model card that says what they are.

        Args:
            card: text of another card, such as the one that ``analysis.report`` wrote into a run folder; without it a
                card that is there already is kept.
        Raises:
            InputError: the folder cannot be written.
        """
        folder = Path(save_directory).expanduser()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._write(folder)
            if card is not None or not (folder / CARD).exists():
                (folder / CARD).write_text(card or self.card(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{folder}: {error.strerror or error}") from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **download: Any) -> Self:
        """Read a folder, or a repository of the hub that is downloaded first.

        Args:
            download: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` ..., as of
                ``huggingface_hub.snapshot_download``; only for the hub.
        Raises:
            InputError: no such folder or repository, or not what it should hold.
        """
        folder = Path(pretrained_model_name_or_path).expanduser()
        return cls._read(folder if folder.is_dir() else _downloaded(str(pretrained_model_name_or_path), download))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Create the repository where it is not there, upload everything in one commit; returns the commit's address.

        Raises:
            InputError: the hub refused, or cannot be reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        # a base of it is the error of the HTTP library that the hub's client is built on, whichever that is
        refused: Any = (*HfHubHTTPError.__bases__, OSError, HFValidationError)
        with tempfile.TemporaryDirectory(prefix="hooklearn-push-") as scratch:
            self.save_pretrained(Path(scratch) / "files", card=card)
            try:
                api = HfApi(token=token)
                name = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
                commit = api.upload_folder(
                    repo_id=name, repo_type="model", folder_path=Path(scratch) / "files", revision=branch,
                    commit_message=commit_message or f"{type(self).__name__}, with hooklearn", create_pr=create_pr,
                )  # fmt: skip
            except refused as error:
                away = "" if isinstance(error, OSError | ValueError) else "the hub cannot be reached: "
                raise InputError(f"push to {repo_id!r}: {away}{_first_line(error)}") from error
        return str(commit)

    def card(self) -> str:
        """The text of ``README.md``: metadata that the hub reads, then :meth:`_facts`."""
        return model_card(*self._facts(), library=self.library)


def model_card(base: str, body: str, library: str = "hooklearn") -> str:
    """Metadata that the hub reads, and a body in markdown."""
    from huggingface_hub import ModelCard, ModelCardData

    on_hub = base if re.fullmatch(r"\w[\w.-]*/[\w.-]+", base) else None  # as the hub names models
    data = ModelCardData(base_model=on_hub, library_name=library, tags=list(TAGS))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n"))


def quoted(name: str) -> str:
    """A model's name as code in markdown; one that is no plain name is not repeated."""
    return f"`{name}`" if re.fullmatch(r"[\w./ :+-]+", name) else "a local model"


def _downloaded(name: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, **options))
    except (OSError, ValueError, HFValidationError) as error:
        raise InputError(f"{name!r}: no such folder, and not from the hub: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
