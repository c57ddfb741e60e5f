"""``momkd-client`` that kills itself, as ``kill -9`` would, when it has worked out its answer to a step of a sum.

    python -m tests.federation.killed_client STEP --site site.yaml

Only for the tests; the marker beside the site's file says that it has happened.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from momkd_fl.cli.client import main
from momkd_fl.federation.sum_site import SumSite


def die_at(step: str) -> None:
    """Wrap the step: its work is done, and nothing of it leaves."""
    join, later = SumSite.join, SumSite.step

    def dying_join(self: SumSite, parcel: Any) -> Any:
        found = join(self, parcel)
        if step == "join" and parcel.body.question == "train":
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    def dying_step(self: SumSite, kind: Any) -> Any:
        work = later(self, kind)

        def answer(parcel: Any) -> Any:
            found = work(parcel)
            if kind.name == step and parcel.round > 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return answer

    SumSite.join, SumSite.step = dying_join, dying_step  # type: ignore[method-assign]


if __name__ == "__main__":
    die_at(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
