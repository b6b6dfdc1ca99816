"""``tproxy ca token``, ``tokens``, ``rotate``: what changes the authority's state while a server may be running."""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tproxy.cli.usage import call, option
from tproxy.cli.words import when
from tproxy.core.address import parse_address
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId
from tproxy.core.identity_config import parse_seconds

if TYPE_CHECKING:
    from tproxy.control.rotation import Holder, NotYet

Calls: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
TOKEN = """examples:
  tproxy ca token --dir ca --id spiffe://cluster.local/vm/db --ttl 30d > token
  tproxy ca token --dir ca --id spiffe://cluster.local/vm/db --address 10.0.0.7 --uses 1
  tproxy ca token --dir ca --revoke NAME

exit codes: 0 done, 2 bad input, or there is no such token"""
TOKENS = """examples:
  tproxy ca tokens --dir ca
  tproxy ca tokens --dir ca --json | jq '.[].id'

exit codes: 0 listed, 2 bad input"""
ROTATE = """examples:
  tproxy ca rotate --dir ca status        where it stands, and who is waited for
  tproxy ca rotate --dir ca add           the second root into every answer
  tproxy ca rotate --dir ca switch        sign with it, once everybody knows it
  tproxy ca rotate --dir ca drop          forget the first, once nobody lives by it

exit codes: 0 done, 1 too early or out of order: it says why, 2 bad input"""


def register(calls: Calls) -> None:
    """Add the calls to ``tproxy ca``."""
    token = call(calls, "token", "make a join token for a workload outside Kubernetes, or revoke one", TOKEN)
    add_dir(token)
    what = token.add_mutually_exclusive_group(required=True)
    what.add_argument("--id", metavar="SPIFFE_ID", help="who comes with it")
    what.add_argument("--revoke", metavar="NAME", help="the second part of a token, as tproxy ca tokens lists it")
    token.add_argument("--ttl", default="1h", metavar="TIME", help="90s, 15m, 24h, 7d (default 1h)")
    token.add_argument("--address", metavar="IP", help="only from there")
    token.add_argument("--uses", metavar="N", help="so many certificates (default: any number until --ttl)")
    token.set_defaults(run=run_token)
    tokens = call(calls, "tokens", "list join tokens; none can be shown again", TOKENS)
    add_dir(tokens)
    tokens.add_argument("--json", action="store_true", help="as JSON")
    tokens.set_defaults(run=run_tokens)
    rotate = call(calls, "rotate", "replace the root in three steps: add, switch, drop", ROTATE)
    add_dir(rotate)
    rotate.add_argument("step", choices=("add", "switch", "drop", "status"), help="the next step, or where it stands")
    rotate.add_argument("--force", action="store_true", help="although somebody is left behind; it says who")
    rotate.set_defaults(run=run_rotate)


def add_dir(parser: argparse.ArgumentParser) -> None:
    """The option of every call that needs an authority."""
    parser.add_argument("--dir", required=True, metavar="DIR", help="where the authority lives")


def run_token(args: argparse.Namespace) -> int:
    """The token on stdout, everything else on stderr."""
    from tproxy.control import signer, tokens
    from tproxy.control.state import State

    folder = Path(args.dir)
    if args.revoke:
        with closing(State.open(folder)) as state:
            if not tokens.revoke(state, args.revoke):
                known = [token.name for token in tokens.listed(state)]
                raise ConfigError("command line", "--revoke", "there is no token of this name", args.revoke, known)
        print(f"{args.revoke} is revoked; certificates that it fetched live on to their end")
        return 0
    workload = option("--id", SpiffeId.parse, args.id)
    seconds = option("--ttl", parse_seconds, args.ttl)
    address = str(option("--address", parse_address, args.address)) if args.address else ""
    uses = option("--uses", _uses, args.uses) if args.uses else None
    until = int(time.time()) + seconds
    with closing(State.open(folder)) as state:
        domain = signer.load(folder, state).trust_domain
        if workload.trust_domain != domain:
            raise ConfigError("command line", "--id", f"this authority signs for {domain} only", args.id)
        made = tokens.create(state, workload, until, address, uses)
    print(f"for {workload}, until {when(until)}; it is shown this once", file=sys.stderr)
    print(made)
    return 0


def _uses(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1_000_000_000:
        raise ValueError("expected a number from 1")
    return int(text)


def run_tokens(args: argparse.Namespace) -> int:
    """One line for each."""
    from tproxy.control import tokens
    from tproxy.control.state import State

    now = int(time.time())
    with closing(State.open(Path(args.dir))) as state:
        found = tokens.listed(state)
    if args.json:
        shown = [{"name": one.name, "id": one.id, "expires": one.expires, "state": one.in_words(now)} for one in found]
        print(json.dumps(shown, indent=2))
        return 0
    for one in found:
        where = f", only from {one.address}" if one.address else ""
        print(f"{one.name}  {one.in_words(now):<16} until {when(one.expires)}  {one.id}{where}")
    return 0


def run_rotate(args: argparse.Namespace) -> int:
    """Take a step, or say why not; exit code 1 is a step that is refused."""
    from tproxy.cli.ca_words import words
    from tproxy.control import rotation
    from tproxy.control.authority import trust_domain_of
    from tproxy.control.state import State
    from tproxy.control.store import signer

    folder, now = Path(args.dir), int(time.time())
    with closing(State.open(folder)) as state:
        match args.step:
            case "status":
                rotation.publish(folder, state)
            case "add":
                added = rotation.add(folder, state, trust_domain_of(signer(folder).certificate), "ecdsa", now)
                if isinstance(added, rotation.NotYet):
                    return _refused(added)
                print(f"a new root is in {folder}/generation-{added.number}; bundle.pem and every response carry both")
                print("give bundle.pem to whoever verifies the CA itself (identity.istioCa.roots)")
            case step:
                take = rotation.switch if step == "switch" else rotation.drop
                left = take(folder, state, now, args.force)
                if isinstance(left, rotation.NotYet):
                    return _refused(left)
                _left_behind(left)
    print("\n".join(words(folder)))
    return 0


def _refused(answer: NotYet) -> int:
    print(f"tproxy ca rotate: {answer.why}", file=sys.stderr)
    return 1


def _left_behind(left: list[Holder]) -> None:
    for one in left:
        print(f"left behind: {one.id} ({one.holder}), until {when(one.until)}", file=sys.stderr)
