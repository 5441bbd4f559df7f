"""Energy that GPUs take while something runs, in joules: their power once a second, added up over time.

Reads `nvidia-smi`, which comes with the driver and is in every container that was given a GPU; there it sees the container's
GPUs, elsewhere those of CUDA_VISIBLE_DEVICES. Power is that of the boards (`power.draw`, averaged by the driver), not of
processors, fans or cooling. Time is the tool's own, for its lines may come late; between two readings the power is taken to
change evenly. Writes nothing. Where the tool is not there or tells no power, nothing is known: `joules` is None, never 0.
"""

import os
import shutil
import subprocess
import threading
from datetime import datetime
from types import TracebackType

_EVERY = 1000  # milliseconds between two readings
_MOMENT = "%Y/%m/%d %H:%M:%S.%f"


class Meter:
    """A context that measures while it is open; `joules` holds afterwards what the GPUs took, or None."""

    def __init__(self, every: int = _EVERY) -> None:
        self.joules: float | None = None
        self._every = every
        self._last: dict[str, tuple[float, float]] = {}  # of each GPU: when it was read, and its watts
        self._tool: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> "Meter":
        program = shutil.which("nvidia-smi")
        if program is not None:
            command = [
                program,
                "--query-gpu=timestamp,index,power.draw",
                "--format=csv,noheader,nounits",
                f"--loop-ms={self._every}",
            ]
            if only := os.environ.get("CUDA_VISIBLE_DEVICES"):
                command.append(f"--id={only}")
            self._tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self._reader = threading.Thread(target=self._read, name="energy", daemon=True)
            self._reader.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        if self._tool is None or self._reader is None:
            return
        self._tool.terminate()
        try:
            self._tool.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._tool.kill()
            self._tool.wait()
        self._reader.join(timeout=5)  # it ends with the output

    def _read(self) -> None:
        assert self._tool is not None and self._tool.stdout is not None
        for line in self._tool.stdout:
            try:
                moment, index, power = line.split(", ")
                now, watts = datetime.strptime(moment, _MOMENT).timestamp(), float(power)
            except ValueError:  # "[N/A]": this GPU tells no power
                continue
            if index in self._last:
                before, watts_before = self._last[index]
                self.joules = (self.joules or 0.0) + (now - before) * (watts + watts_before) / 2
            self._last[index] = now, watts
