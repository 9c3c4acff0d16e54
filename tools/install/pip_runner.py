"""Running pip: quiet, but not silent for minutes."""

import queue
import subprocess
import threading
import time
from pathlib import Path

from checks import InstallError

__all__ = ["Pip"]

SHOWN = ("Building wheels", "ERROR", "Successfully uninstalled")
SILENCE_S = 20


class Pip:
    """
    Runs the pip of one Python. All that it says goes to a log; large downloads, builds and errors
    are shown, and a line about the time when nothing else happens.
    """

    def __init__(self, python: Path, log: Path, environment: dict[str, str] | None = None) -> None:
        """
        Args:
            python: the interpreter whose packages pip is to manage.
            log: file that pip's output is added to.
            environment: environment variables of pip; None for our own.
        """
        self.python = python
        self.log = log
        self.environment = environment

    def __call__(self, *arguments: str) -> None:
        """Run pip with these arguments; raise InstallError if it fails."""
        command = [str(self.python), "-m", "pip", *arguments]
        command += ["--no-input", "--disable-pip-version-check"]
        if arguments[0] in ("install", "download"):
            command += ["--progress-bar", "off"]
        with self.log.open("a") as log:
            print(">", *command, file=log, flush=True)
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=self.environment,
            )
            said = self._follow(process, log)
        if process.wait() != 0:
            raise InstallError(
                f"pip did not succeed; the end of what it said (all of it is in {self.log}):\n"
                + "".join(said[-12:])
                + "mend the cause and run the same command again, it goes on where it stopped"
            )

    @staticmethod
    def _follow(process: subprocess.Popen, log) -> list[str]:
        """Pass on what pip says until it closes its output; return its lines."""
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        said, start = [], time.monotonic()
        while True:
            try:
                line = lines.get(timeout=SILENCE_S)
            except queue.Empty:
                print(f"  ... {time.monotonic() - start:.0f} s, still at work", flush=True)
                continue
            if line is None:
                return said
            said.append(line)
            log.write(line)
            log.flush()
            _show(line.strip())


def _show(line: str) -> None:
    if line.startswith("Installing collected packages:"):
        print(f"  Installing {line.count(',') + 1} packages", flush=True)
    elif line.startswith(SHOWN) or (line.startswith("Downloading ") and "MB)" in line):
        print(f"  {line}", flush=True)
