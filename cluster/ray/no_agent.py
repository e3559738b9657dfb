"""Takes the place of the dashboard agent in a local Ray, which has no dashboard.

A raylet does not start without an agent, and ends when its agent ends. Without a dashboard, Ray's own agent only
records in three files that it serves no ports, but it takes 1.3 seconds of CPU time and 135 MB. This program writes the
same files, and waits until the raylet ends. Usage: `python -P -S no_agent.py SESSION_DIR NODE_ID`.
"""

import os
import sys
import time

NAMES = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")  # of Ray's files
NOT_SERVED = "-1"
_LOOK_S = 1.0


def main(session_dir: str, node_id: str) -> None:
    raylet = os.getppid()
    with open(f"/proc/{raylet}/comm") as file:
        if file.read().strip() != "raylet":  # the raylet ended before this program began
            return
    for name in NAMES:
        path = os.path.join(session_dir, f"{name}_{node_id}")
        with open(f"{path}.part", "w") as file:
            file.write(NOT_SERVED)
        os.replace(f"{path}.part", path)  # Ray reads the file as soon as it is there
    while os.getppid() == raylet:
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
