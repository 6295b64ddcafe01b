"""When a run is better stopped than ended: nothing but one failure, again and again."""

from __future__ import annotations

from collections.abc import Iterable

from preread.batch.schema import Result

ALIKE = 300  # failures; a backend's own retries come before each
SAID = 300  # characters of the reason


class Streak:
    """Requests that failed for one reason since anything else ended: a server that is gone, a key
    that has expired, a quota that is used up. Nobody is helped when 170,000 rows fail, too."""

    def __init__(self, most: int = ALIKE) -> None:
        self._most = most
        self._why, self._alike = "", 0

    def saw(self, ended: Iterable[Result]) -> str:
        """Results as they come. Why the run should stop, "" while it should not."""
        for result in ended:
            self._alike = self._alike + 1 if result.error and result.error == self._why else 1
            self._why = result.error
        if not self._why or self._alike < self._most:
            return ""
        return (
            f"the last {self._alike} requests failed alike ({self._why[:SAID]}); mend that, then "
            "--resume, and --retry-failed for those"
        )
