"""Labels of a pod as the kubelet writes them into a file of a downwardAPI volume, and anew whenever they change.

>>> pod_labels('app="web"\\ntier="front"\\n', "labels")
{'app': 'web', 'tier': 'front'}

Source: kubernetes ``pkg/fieldpath``, FormatMap: a line ``key="value"`` each, the value quoted as Go's %q.
"""

from __future__ import annotations

import re

from tproxy.core.fields import ConfigError

_LINE = re.compile(r'((?:[a-z0-9][-a-z0-9.]{0,252}/)?[A-Za-z0-9][-_.A-Za-z0-9]{0,62})="([-_.A-Za-z0-9]{0,63})"')


def pod_labels(text: str, where: str) -> dict[str, str]:
    """ConfigError for a line that is no label: half of them would select other policies."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        matched = _LINE.fullmatch(line)
        if matched is None or matched[1] in found:
            raise ConfigError(where, f"line {number}", 'expected key="value", each key once', line)
        found[matched[1]] = matched[2]
    return found
