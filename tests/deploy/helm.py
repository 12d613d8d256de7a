"""Helm's own code, asked to render and to lint. For the tests it runs as a program of its own:
it is a Go runtime, which takes signal handlers and threads with it into the process.

In: a JSON list of values, one a release. Out: a list of {template: manifest}, or of complaints.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

Values = dict[str, Any]


def rendered(chart: Path, *releases: Values) -> list[dict[str, str] | str]:
    """The manifests of each release, or what Helm has against its values."""
    answer: list[dict[str, str] | str] = _ask("render", chart, releases)
    return answer


def findings(chart: Path) -> list[str]:
    """What `helm lint --strict` has to say of the chart."""
    answer: list[str] = _ask("lint", chart, ())
    return answer


def _ask(what: str, chart: Path, releases: tuple[Values, ...]) -> Any:
    done = subprocess.run(
        [sys.executable, __file__, what, str(chart)],
        input=json.dumps(releases),
        capture_output=True,
        text=True,
        timeout=600,  # this file is a program, too: no other of the tests can be imported
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _main(what: str, chart: str) -> None:
    import helm_python

    if what == "lint":
        said = helm_python.lint(chart, strict=True)
        faults = [m["error"] for m in said["messages"] if m["error"] != "icon is recommended"]
        print(json.dumps(faults + said["errors"]))
        return
    answers: list[dict[str, str] | str] = []
    for values in json.load(sys.stdin):
        try:
            with helm_python.Chart.load(chart) as loaded:
                answers.append(loaded.render(values, name="demo", namespace="default"))
        except helm_python.HelmError as error:
            answers.append(str(error))
    print(json.dumps(answers))


if __name__ == "__main__":
    _main(*sys.argv[1:])
