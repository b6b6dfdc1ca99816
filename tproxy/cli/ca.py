"""``tproxy ca``: the certificate authority's files, tokens and root, and what a certificate says."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from tproxy.cli import Verbs, ca_state
from tproxy.cli.usage import call, option
from tproxy.core.fields import ConfigError
from tproxy.core.identity import SpiffeId, parse_trust_domain
from tproxy.core.identity_config import parse_seconds

EXAMPLES = """examples:
  tproxy ca init --dir ca --trust-domain cluster.local
  tproxy ca issue --dir ca --namespace shop --service-account web --out web
  tproxy ca issue --dir ca --namespace shop --service-account web --out web --ttl 1h --renew
  tproxy ca token --dir ca --id spiffe://cluster.local/vm/db --ttl 30d --address 10.0.0.7
  tproxy ca rotate --dir ca status
  tproxy ca show web/cert.pem
  tproxy ca show --dir ca"""
INIT = """example:
  tproxy ca init --dir ca --trust-domain cluster.local

exit codes: 0 made, 2 bad input, or DIR holds an authority already"""
MIDDLE = """example:
  tproxy ca intermediate --dir ca

exit codes: 0 replaced, 2 root.key is not there, or is another root's"""
ISSUE = """examples:
  tproxy ca issue --dir ca --namespace shop --service-account web --out web --owner 1337
  tproxy ca issue --dir ca --id spiffe://cluster.local/vm/db --out db --ttl 7d

exit codes: 0 issued, 2 bad input, or --out holds an identity and --renew is missing"""
SHOW = """examples:
  tproxy ca show web/cert.pem                             who it is, until when, who signed it
  tproxy ca show --dir ca                                 where a rotation stands
  tproxy ca show web/cert.pem --json | jq '.[0].serial'

exit codes: 0 shown, 2 bad input"""


def register(verbs: Verbs) -> None:
    """Add the verb and its calls."""
    form = argparse.RawDescriptionHelpFormatter
    parser = verbs.add_parser(
        "ca",
        help="certificate authority: files, tokens, root",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=form,
    )
    calls = parser.add_subparsers(dest="call", metavar="CALL", required=True, help="its own --help says more")
    init = call(calls, "init", "make a root and an intermediate", INIT)
    ca_state.add_dir(init)
    init.add_argument("--trust-domain", required=True, metavar="NAME", help="as in spiffe://NAME/...")
    _key_type(init)
    init.set_defaults(run=run_init)
    middle = call(calls, "intermediate", "replace the intermediate; needs root.key for this moment", MIDDLE)
    ca_state.add_dir(middle)
    _key_type(middle)
    middle.set_defaults(run=run_intermediate)
    issue = call(calls, "issue", "make a workload's certificate and key", ISSUE)
    ca_state.add_dir(issue)
    issue.add_argument("--id", metavar="SPIFFE_ID", help="spiffe://<trust domain>/<path>")
    issue.add_argument("--namespace", metavar="NS", help="with --service-account, instead of --id")
    issue.add_argument("--service-account", metavar="SA", help="with --namespace, instead of --id")
    issue.add_argument("--out", required=True, metavar="DIR", help="gets cert.pem, key.pem and ca.pem")
    issue.add_argument("--ttl", default="24h", metavar="TIME", help="90s, 15m, 24h, 7d (default 24h)")
    issue.add_argument("--renew", action="store_true", help="replace the identity in --out, in one rename")
    issue.add_argument("--owner", metavar="UID[:GID]", help="who may read the key, usually 1337")
    _key_type(issue)
    issue.set_defaults(run=run_issue)
    show = call(calls, "show", "explain certificates, or an authority's state, in words", SHOW)
    show.add_argument("files", nargs="*", metavar="FILE", help="PEM")
    show.add_argument("--dir", metavar="DIR", help="an authority, instead of files")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(run=run_show)
    ca_state.register(calls)


def _key_type(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--key-type", choices=("ecdsa", "rsa"), default="ecdsa", help="P-256 (default) or RSA 2048")


def run_init(args: argparse.Namespace) -> int:
    """Make an authority."""
    from tproxy.control import store
    from tproxy.control.authority import utc_now
    from tproxy.control.explain import explain

    domain = option("--trust-domain", parse_trust_domain, args.trust_domain)
    root = store.create(Path(args.dir), domain, args.key_type)
    print(f"authority of {domain} made in {args.dir}; root {explain(root.certificate, utc_now()).valid}")
    print(f"keep {args.dir}/root.key offline: it is needed only for the next intermediate")
    return 0


def run_intermediate(args: argparse.Namespace) -> int:
    """Replace what signs."""
    from tproxy.control import store
    from tproxy.control.authority import utc_now
    from tproxy.control.explain import explain

    made = store.renew_intermediate(Path(args.dir), args.key_type)
    words = explain(made.certificate, utc_now())
    print(f"intermediate replaced: serial {words.serial}, {words.valid}; root.key may go offline again")
    return 0


def run_issue(args: argparse.Namespace) -> int:
    """Make a workload's identity."""
    from tproxy.control import store
    from tproxy.control.authority import utc_now
    from tproxy.control.explain import explain

    life = timedelta(seconds=option("--ttl", parse_seconds, args.ttl))
    owner = option("--owner", parse_owner, args.owner) if args.owner else None
    workload = _workload(args)
    made = store.issue(Path(args.dir), workload, Path(args.out), life, args.key_type, args.renew, owner)
    words = explain(made, utc_now())
    print(f"{words.who}: serial {words.serial}, {words.valid}; in {args.out}: cert.pem, key.pem, ca.pem")
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Explain every certificate of every file."""
    from tproxy.control.authority import utc_now
    from tproxy.control.explain import certificates, explain

    if bool(args.files) == bool(args.dir):
        raise ConfigError("command line", "FILE", "give either certificates or --dir")
    if args.dir:
        from tproxy.cli.ca_words import words

        said = words(Path(args.dir))
        print(json.dumps(said, indent=2) if args.json else "\n".join(said))
        return 0
    shown = []
    for path in args.files:
        try:
            data = Path(path).read_bytes()
            found = certificates(data)
        except OSError as error:
            raise ConfigError(path, "", f"cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(path, "", f"a certificate in it is damaged: {error}") from error
        if not found:
            raise ConfigError(path, "", "holds no PEM certificate (-----BEGIN CERTIFICATE-----)")
        beside = {"with": "a private key in the same file: keep it from others"} if b"PRIVATE KEY" in data else {}
        shown += [{"file": path, **asdict(explain(one, utc_now())), **beside} for one in found]
    if args.json:
        print(json.dumps(shown, indent=2))
    else:
        print("\n\n".join("\n".join(f"{key:<8} {value}" for key, value in one.items()) for one in shown))
    return 0


def _workload(args: argparse.Namespace) -> SpiffeId:
    pair = (args.namespace, args.service_account)
    if bool(args.id) == any(pair) or (any(pair) and not all(pair)):
        raise ConfigError("command line", "--id", "give either --id, or --namespace and --service-account")
    if args.id:
        return option("--id", SpiffeId.parse, args.id)
    from tproxy.control.authority import trust_domain_of
    from tproxy.control.store import signer

    domain = trust_domain_of(signer(Path(args.dir)).certificate)
    return option("--service-account", lambda _: SpiffeId.workload(domain, *pair), args.service_account)


def parse_owner(text: str) -> tuple[int, int]:
    """``1337`` or ``1337:1337``."""
    found = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text)
    if not found:
        raise ValueError("expected UID or UID:GID, in numbers")
    return int(found[1]), int(found[2] or found[1])
