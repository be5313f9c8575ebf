"""``dfo_lora.json``: a run's settings and history, beside its adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integrations.errors import UserError
from integrations.files import replace_file
from integrations.history import History

RUN_FILE = "dfo_lora.json"


@dataclass(frozen=True)
class RunRecord:
    """What is kept of a run beside its deltas.

    Attributes:
        settings: The run's settings by the names of `tune`'s arguments.
        metric: Name of the development score.
        stopped: Why the run ended.
        history: The course of the run.
        lost_workers: Workers that died on the way.
        circumstances: Number type, device, threads and versions.
    """

    settings: Mapping[str, Any]
    metric: str
    stopped: str
    history: History
    lost_workers: int = 0
    circumstances: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the record into a folder that exists."""
        record = {
            "settings": dict(self.settings),
            "circumstances": dict(self.circumstances),
            "metric": self.metric,
            "stopped": self.stopped,
            "lost_workers": self.lost_workers,
            "history": self.history.to_dict(),
        }
        with replace_file(folder / RUN_FILE) as beside:
            beside.write_text(json.dumps(record, indent=1) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord:
        """The record of the run that was saved in a folder.

        Raises:
            UserError: If there is none, or it cannot be read.
        """
        path = Path(folder) / RUN_FILE
        try:
            record = json.loads(path.read_text())
            history = History.from_dict(record["history"])
            if not history.scores:
                raise ValueError("no look at the development set")
            return cls(
                dict(record["settings"]),
                record["metric"],
                record["stopped"],
                history,
                record["lost_workers"],
                record.get("circumstances", {}),
            )
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{str(folder)!r} holds no run: {RUN_FILE} is missing. Pass the folder that "
                "dfo-lora tune or save() wrote."
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read ({type(error).__name__}: {error}); expected the file that "
                "dfo-lora tune or save() wrote."
            ) from None
