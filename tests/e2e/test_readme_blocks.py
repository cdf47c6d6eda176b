"""The convention by which the README's commands are found and run."""

from __future__ import annotations

import pytest

from tests.e2e.readme_blocks import ReadmeMalformed, Step, steps_of


def test_marked_fences_become_steps_in_order() -> None:
    text = """
<!-- file: alpha /etc/repl/repld.toml -->
```toml
[node]
name = "alpha"
```
Prose, and a fence that nobody marked:
```sh
rm -rf everything
```
<!-- run: beta, exit 5 -->
```console
$ replctl promote r0
Cannot promote r0
$ replctl status
```
<!-- crash: alpha -->
<!-- run: alpha -->
```sh
repld --config /etc/repl/repld.toml &
```
"""
    assert steps_of(text) == [
        Step(2, "file", "alpha", '[node]\nname = "alpha"\n', path="/etc/repl/repld.toml"),
        Step(11, "run", "beta", "replctl promote r0\nreplctl status", exit_status=5),
        Step(17, "crash", "alpha"),
        Step(18, "run", "alpha", "repld --config /etc/repl/repld.toml &"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- run: gamma -->\n```sh\ntrue\n```",
        "<!-- run: alpha -->\n\n```sh\ntrue\n```",
        "<!-- run: alpha -->\n```python\ntrue\n```",
        "<!-- run: alpha -->\n```sh\ntrue",
        "<!-- run: alpha exit five -->\n```sh\ntrue\n```",
        "<!-- file: alpha relative.toml -->\n```toml\n```",
        "<!-- run alpha -->\n```sh\ntrue\n```",
        "<!-- run: alpha -->",
    ],
)
def test_malformed_marker_is_an_error_not_ignored(text: str) -> None:
    with pytest.raises(ReadmeMalformed, match="line"):
        steps_of(text)
