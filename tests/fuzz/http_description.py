"""What the daemons serve over HTTP, against what they say of it at ``/openapi.json``: made-up requests to real daemons.

Errors of the server count only where they are not described: those of the error table are, but for a mistake of ours.
Whether a request that fits the description is accepted is not looked at: names have rules that schemas cannot have.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz.running import Outcome
from tests.globald.test_usage import Globald
from tests.running import SMALL_HOST, Daemon

EXAMPLES = 300
"""Of each call of a long run."""
_SIMULATED = ("--hypervisor", "sim:", "--topology", SMALL_HOST)
_NOT_CHECKED = "not_a_server_error,positive_data_acceptance"
_SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
_REPORTED = 6000
"""Characters of what was found."""


def run(seed: int, examples: int = EXAMPLES) -> Outcome:
    """Both daemons, on simulated VMs. examples: requests of each call, roughly."""
    begin = time.monotonic()
    with Daemon(*_SIMULATED, "--tcp-host", "127.0.0.1", "--tcp-port", "0") as host:
        address = host.wait_for(r" ready .* tcp=(\S+)")[1].removeprefix("tcp:")
        with Globald("--hosts", address) as cluster:
            cluster.wait_for(" learned hosts=1 ")
            with ThreadPoolExecutor() as pool:
                outcomes = list(pool.map(lambda url: check(url, examples, seed), (host.url, cluster.url)))
            logs = host.log + cluster.log
    inputs = sum(inputs for inputs, _ in outcomes)
    report = "\n".join(found for _, found in outcomes if found)
    if unexpected := re.findall(r".*(?:unexpected error|Traceback).*", logs):
        report += "\n".join(unexpected[:10])
    return Outcome(
        name="http",
        inputs=inputs,
        seconds=time.monotonic() - begin,
        found="answers that are not as described" if report else "",
        report=report,
        command=f"{sys.executable} -m tests.fuzz http --seed {seed}",
    )


def check(url: str, examples: int, seed: int) -> tuple[int, str]:
    """How many requests were made, and what was wrong with the answers; empty if nothing was."""
    with tempfile.TemporaryDirectory(prefix="vmstack-fuzz-") as folder:  # it writes files where it runs
        done = subprocess.run(
            [
                str(_SCHEMATHESIS),
                "run",
                f"{url}/openapi.json",
                "--checks=all",
                f"--exclude-checks={_NOT_CHECKED}",
                "--phases=coverage,fuzzing",
                f"--max-examples={examples}",
                "--continue-on-failure",
                "--no-color",
                *([f"--seed={seed}"] if seed else []),
            ],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    made = re.search(r"([0-9]+) generated", done.stdout)
    return int(made[1]) if made else 0, "" if done.returncode == 0 else (done.stdout + done.stderr)[-_REPORTED:]
