"""The environment of a job's code in the driver and in every worker: working directory and variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.settings import add_to_environment, expand_gpu_memory


@dataclass(frozen=True)
class JobEnvironment:
    """The environment of a job's code.

    Attributes:
        working_dir: the current directory and the first place for imports; None: both stay as they are.
        variables: environment variables. They may be secret and are never shown.
        gpus: the process uses GPUs.
    """

    working_dir: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    gpus: bool = False

    def enter(self) -> None:
        """Give this process the variables and the working directory.

        Raises:
            OSError: there is no such directory. The variables are set nevertheless.
        """
        add_to_environment(self.variables)
        if self.gpus:
            expand_gpu_memory()
        if self.working_dir is None:
            return
        os.chdir(self.working_dir)
        if self.working_dir not in sys.path:
            sys.path.insert(0, self.working_dir)
