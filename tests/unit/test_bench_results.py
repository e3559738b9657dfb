"""Only results go to the stdout of a bench."""

from __future__ import annotations

import pytest

from bench.results import other_output_to_stderr, tell


def test_what_libraries_print_goes_to_stderr_and_results_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with other_output_to_stderr():
        print("Setting accelerator to CPU")
        tell({"case": "mixed"})
    out, err = capfd.readouterr()
    assert out == '{"case": "mixed"}\n'
    assert err == "Setting accelerator to CPU\n"
