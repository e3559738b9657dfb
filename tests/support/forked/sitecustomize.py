"""On PYTHONPATH, this module lets `tests.support.fork_server` fork Ray's workers. Other programs run unchanged.

The process that Ray has started waits for the forked worker and ends with its exit code.
"""

import os
import sys

WORKERS = ("default_worker.py", "setup_worker.py")  # of Ray


def run_the_next() -> None:
    """Run the `sitecustomize` that this one hides."""
    here = os.path.dirname(__file__)
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        file = os.path.join(folder, "sitecustomize.py")
        if folder and folder != here and os.path.exists(file):
            import runpy

            runpy.run_path(file, run_name="next_sitecustomize")
            return


if __name__ == "sitecustomize":
    if os.path.basename((sys.orig_argv[1:] or [""])[0]) in WORKERS:
        from fork_request import hand_over  # it lies beside this file, whose folder is on PYTHONPATH

        hand_over(sys.orig_argv)
    run_the_next()
