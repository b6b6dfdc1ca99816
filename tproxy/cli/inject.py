"""``tproxy inject``: the webhook's injection, on files."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tproxy.cli import Verbs
from tproxy.core.fields import ConfigError

if TYPE_CHECKING:
    from tproxy.core.inject.injection import Injection

EXAMPLES = """examples:
  tproxy inject -f app.yaml | kubectl apply -f -
  kubectl get deployment web -o yaml | tproxy inject -f - | kubectl apply -f -
  tproxy inject -f base.yaml -f jobs.yaml --settings inject.yaml > injected.yaml
  tproxy inject -f app.yaml --no-native                   clusters before Kubernetes 1.29

Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs, ReplicationControllers, PodTemplates and Lists
of them get a sidecar; every other document is printed as it is, byte by byte. Comments and the order of keys stay.
What a pod's author may say: annotations tproxy.dev/..., docs/injection.md. Remarks go to stderr.

settings (YAML): image, imagePullPolicy, native, secret, roots, namespace, neverIn, oldKernels, token: {audience,
seconds}, resources: {cpu, memory, cpuLimit, memoryLimit}, config: what every sidecar starts from, as in sidecar.yaml

exit codes: 0 done (also if nothing had to be), 1 a pod was refused and nothing is printed, 2 bad input"""


def register(verbs: Verbs) -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "inject",
        help="add the sidecar to pods in files",
        description="Add the sidecar to every pod in these files, as the webhook does it in a cluster.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-f", "--filename", action="append", required=True, metavar="FILE", help="YAML or JSON; - is standard input"
    )
    parser.add_argument("--settings", metavar="FILE", help="YAML: the cluster's settings of injection")
    parser.add_argument("--image", metavar="IMAGE", help="of the sidecar (overrides the settings)")
    parser.add_argument(
        "--native", action=argparse.BooleanOptionalAction, help="sidecar as init container, Kubernetes 1.29 and later"
    )
    parser.set_defaults(run=run)


@dataclass(slots=True)
class Told:
    """What stderr is to say, and whether all went well."""

    refused: bool = False

    def say(self, *parts: str) -> None:
        """One line."""
        print(": ".join(("tproxy inject", *parts)), file=sys.stderr)


def run(args: argparse.Namespace) -> int:
    """Everything is injected before anything is printed: a pipe to kubectl applies all of it or nothing."""
    settings, told = _settings(args), Told()
    out: list[str] = []
    for name in args.filename:
        text = _read(name)
        shown = "stdin" if name == "-" else name
        whole = _json(text, shown, settings, told) if text.lstrip()[:1] == "{" else _yaml(text, shown, settings, told)
        if out and not whole.startswith("---"):
            out.append("---\n")
        out.append(whole if whole.endswith("\n") or not whole else whole + "\n")
    if told.refused:
        return 1
    sys.stdout.write("".join(out))
    return 0


def _settings(args: argparse.Namespace) -> Injection:
    from tproxy.cli.documents import read_yaml
    from tproxy.core.inject.injection import Injection

    settings = Injection.parse(read_yaml(args.settings), args.settings) if args.settings else Injection()
    if args.image is not None:
        settings = replace(settings, image=args.image)
    return settings if args.native is None else replace(settings, native=args.native)


def _read(name: str) -> str:
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(name, "", getattr(error, "strerror", None) or str(error)) from error


def _json(text: str, name: str, settings: Injection, told: Told) -> str:
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        return _yaml(text, name, settings, told)  # a flow mapping, and if it is none, YAML names the line
    except RecursionError as error:
        raise ConfigError(name, "", "is nested too deeply") from error
    operations = list(_operations(document, name, settings, told))
    if not operations:
        return text
    from tproxy.core.inject.jsonpatch import apply

    return json.dumps(apply(document, operations), indent=2, ensure_ascii=False) + "\n"


def _yaml(text: str, name: str, settings: Injection, told: Told) -> str:
    """Document by document; one without a pod is not even parsed and printed again."""
    parts = _documents(text)
    many = sum(1 for _, body in parts if body.strip()) > 1
    out = []
    for index, (marker, body) in enumerate(parts, 1):
        out += [marker, _document(body, f"{name}[{index}]" if many else name, settings, told)]
    return "".join(out)


def _documents(text: str) -> list[tuple[str, str]]:
    """The line that begins a document (``---``, or nothing for the first), and the rest."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if line.startswith("---") and not line[3:].strip(" \t\r\n"):
            before = parts[-1][1]
            if any(word.startswith("%") for word in before):  # directives belong to the marker behind them
                parts[-1] = ("".join((parts[-1][0], *before)) + line, [])
            else:
                parts.append((line, []))
        elif line.startswith("--- "):  # content or a comment behind the marker
            parts.append(("--- ", [line[4:]]))
        else:
            parts[-1][1].append(line)
    return [(marker, "".join(body)) for marker, body in parts]


def _document(body: str, name: str, settings: Injection, told: Told) -> str:
    from tproxy.cli.roundtrip import RoundTrip

    trip = RoundTrip.load(body, name)
    operations = list(_operations(trip.plain, name, settings, told))
    if not operations:
        return body
    if trip.aliased:
        told.say(name, "anchors and aliases are written out, and comments are lost")
    return trip.apply(operations)


def _operations(document: Any, name: str, settings: Injection, told: Told) -> Iterator[dict[str, Any]]:
    """What is to change in one document; the rest goes to stderr."""
    from tproxy.core.inject.jsonpatch import pointer
    from tproxy.core.inject.pod import Patch, Refusal, Skip, inject
    from tproxy.core.inject.workload import places

    for place in places(document):
        pod = place.look(document)
        where = f"{name}: {place}"
        match inject(pod if isinstance(pod, dict) else {"spec": pod}, settings, where):
            case Patch(operations, _, warnings):
                for warning in warnings:
                    told.say(where, "warning", warning)
                at = pointer(place.path)
                yield from ({**operation, "path": at + operation["path"]} for operation in operations)
            case Skip(reason):
                told.say(where, "left alone", reason)
            case Refusal(reason):
                told.say("refused", reason)
                told.refused = True
