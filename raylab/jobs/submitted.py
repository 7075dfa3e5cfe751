"""python -m raylab.jobs.submitted COMMAND...: inside a submitted job, so that bad input is not tried again.

KubeRay starts a job that FAILED again, on a new cluster, as often as `backoffLimit` says, whatever its exit status. It
takes one that was STOPPED for complete. So where the command ends with status 2, which no repetition mends, this asks
Ray to stop the job it runs in; every other status is handed on. Outside a job it only hands on the status.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

BAD_INPUT = 2
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_STOPS_WITHIN_S = 60.0


def settings() -> dict[str, Any]:
    """What Ray was told when the job of this process was submitted; nothing outside one."""
    return json.loads(os.environ.get(_JOB_CONFIG) or "{}")


def submission() -> str | None:
    """The id of the job that this process runs in; None outside one."""
    return (settings().get("metadata") or {}).get("job_submission_id")


def run(command: list[str]) -> int:
    """The status to end with: the command's own."""
    # Ray signals every process of a job; this one waits for the command, which knows how to end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    status = subprocess.Popen(command, restore_signals=True, preexec_fn=_as_before).wait()
    job = submission()
    if status == BAD_INPUT and job is not None:
        print("this job is stopped and not tried again: its input must be mended", file=sys.stderr)
        sys.stderr.flush()
        _stop(job)
    return status if status >= 0 else 128 - status


def _as_before() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _stop(job: str) -> None:
    """Have Ray stop the job, which ends this process."""
    from ray.job_submission import JobSubmissionClient

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        JobSubmissionClient().stop_job(job)
    except Exception as error:  # its status tells of the bad input then
        print(f"the job could not be stopped ({error})", file=sys.stderr)
        return
    time.sleep(_STOPS_WITHIN_S)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
