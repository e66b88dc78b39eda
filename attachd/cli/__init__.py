"""The commands: words in, words out, and the one table of exit codes."""

import asyncio
import json
import os
import sys
from collections.abc import Coroutine
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO, TypeVar

import click

from attachd import __version__, telemetry
from attachd.config import Config, Log, json_schema, load
from attachd.errors import ConfigError, JournalBusy, JournalError
from attachd.model import InboxName, StateName

T = TypeVar("T")


class Exit(IntEnum):
    """What scripts and systemd are told; the numbers above 64 are those of sysexits.h."""

    DONE = 0
    FAILED = 1
    """A delivery or a check failed."""
    USAGE = 2
    """Given by click."""
    UNREACHABLE = 69
    """The command needs the platform, and it does not answer."""
    BUSY = 75
    """Another attachd holds the lock."""
    CONFIG = 78
    """The config cannot be used; nothing was started."""


config_option = click.option(
    "-c",
    "--config",
    "config_file",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration, YAML; config.example.yaml shows every key.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="attachd")
def main() -> None:
    """A file dropped into an inbox folder becomes a Genesys Cloud web messaging conversation with the file attached.

    To have commands and options completed, put this into ~/.bashrc (zsh and fish: put their names for bash):

    \b
        eval "$(_ATTACHD_COMPLETE=bash_source attachd)"
    """


@main.command()
@config_option
def run(config_file: Path) -> None:
    """Watch the inboxes and deliver, in the foreground, until SIGTERM or SIGINT."""
    from attachd.daemon.service import Daemon
    from attachd.sdnotify import Notifier

    settings = _loaded(config_file)
    log = _Log(settings.log)
    try:
        log.open()
    except ConfigError as error:
        _refuse_config(error, "nothing was started")
    daemon = Daemon(settings, config_file, os.environ, reopen_log=log.open)
    with Notifier(os.environ) as notifier:
        run_loop(daemon.run(notifier), problem="nothing was started")


@main.command()
@click.option(
    "-c", "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="The configuration."
)
@click.option("--offline", is_flag=True, help="Ask the platform nothing.")
@click.option(
    "--schema", is_flag=True, help="Print the JSON Schema of the configuration, for editors, and do nothing else."
)
def check(config_file: Path | None, offline: bool, schema: bool) -> None:
    """Find what is wrong before the first file: configuration, folders, credentials."""
    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
        return
    if config_file is None:
        raise click.UsageError("missing option -c/--config FILE (or --schema)")
    from attachd.cli.check import check_all

    settings = _loaded(config_file)
    sys.exit(run_loop(check_all(settings, config_file, offline=offline)))


@main.command()
@config_option
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--inbox", metavar="NAME", help="Whose queue, message and types count. Default: the first inbox.")
@click.option(
    "--message", metavar="TEXT", help="Instead of the inbox's message; $name $inbox $size $received $id stand in."
)
def send(config_file: Path, files: tuple[Path, ...], inbox: str | None, message: str | None) -> None:
    """Send files at once and leave them where they are."""
    from attachd.cli.send import send_all

    settings = _loaded(config_file)
    chosen = next((known for known in settings.inboxes if inbox in (None, known.name)), None)
    if chosen is None:
        names = ", ".join(known.name for known in settings.inboxes)
        raise click.UsageError(f"no inbox is called {inbox!r}; there is: {names}")
    sys.exit(run_loop(send_all(settings, chosen, files, message)))


json_option = click.option("--json", "as_json", is_flag=True, help="For scripts.")


@main.command()
@config_option
@json_option
@click.option("--watch", is_flag=True, help="Show it anew every second, until Ctrl-C.")
def status(config_file: Path, as_json: bool, watch: bool) -> None:
    """Show each inbox and the platform at a glance, whether attachd runs or not."""
    from attachd.cli.status import show_status, watch_status

    settings = _loaded(config_file, to_look=True)
    sys.exit(run_loop((watch_status if watch else show_status)(settings, as_json=as_json)))


@main.command("list")
@config_option
@click.option("--state", type=click.Choice([state.value for state in StateName]), help="Only those in this state.")
@click.option("--inbox", metavar="NAME", help="Only those of this inbox.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=50, show_default=True, metavar="K", help="At most so many."
)
@json_option
def list_(config_file: Path, state: str | None, inbox: str | None, limit: int, as_json: bool) -> None:
    """List deliveries from the journal, newest first."""
    from attachd.cli.listing import list_deliveries

    settings = _loaded(config_file, to_look=True)
    wanted = StateName(state) if state is not None else None
    # Not only inboxes of today's config: the journal remembers others.
    of = InboxName(inbox) if inbox is not None else None
    sys.exit(run_loop(list_deliveries(settings, state=wanted, inbox=of, limit=limit, as_json=as_json)))


@main.command()
@config_option
@click.argument("what", metavar="PATH|ID")
@json_option
def explain(config_file: Path, what: str, as_json: bool) -> None:
    """Say where a file is and why: by the path it has, the path it had in its inbox, or the delivery's id."""
    from attachd.cli.explain import explain_file

    settings = _loaded(config_file, to_look=True)
    sys.exit(run_loop(explain_file(settings, what, as_json=as_json)))


@main.command()
@config_option
@click.argument("what", required=False, metavar="[ID|NAME]")
@click.option("--all", "everything", is_flag=True, help="All of failed/, except what an agent may have already.")
@click.option("--inbox", metavar="NAME", help="Only in this inbox.")
def retry(config_file: Path, what: str | None, everything: bool, inbox: str | None) -> None:
    """Send failed files again: by delivery id, by name in failed/, or all."""
    if (what is None) is not everything:
        raise click.UsageError("say which: a delivery id, a name in failed/, or --all")
    from attachd.cli.retry import retry_files

    settings = _loaded(config_file, to_look=True)
    names = [known.name for known in settings.inboxes]
    if inbox is not None and inbox not in names:
        raise click.UsageError(f"no inbox is called {inbox!r}; there is: {', '.join(names)}")
    sys.exit(run_loop(retry_files(settings, what, InboxName(inbox) if inbox is not None else None)))


@main.command()
@click.option("--port", default=8700, show_default=True, help="0 lets the system choose.")
@click.option(
    "--inbox", default="/srv/attachd/claims", show_default=True, metavar="FOLDER", help="For the printed config."
)
@click.option(
    "--gateway",
    type=click.Choice(["webchat", "webmessaging"]),
    default="webchat",
    show_default=True,
    help="For the printed config; both are spoken.",
)
@click.option("--strict", is_flag=True, help="A storage that refuses unsigned x-amz-* headers, as S3 does.")
@click.option("--s3-endpoint", metavar="URL", help="An S3 server that takes the files instead: scheme, host and port.")
@click.option("--s3-access-key", metavar="ID", envvar="AWS_ACCESS_KEY_ID", show_envvar=True)
@click.option("--s3-secret-key", metavar="KEY", envvar="AWS_SECRET_ACCESS_KEY", show_envvar=True)
@click.option("--s3-bucket", default="attachd-sandbox", show_default=True, help="Made when it is missing.")
@click.option("--s3-region", default="us-east-1", show_default=True)
def sandbox(
    port: int,
    inbox: str,
    gateway: Literal["webchat", "webmessaging"],
    strict: bool,
    s3_endpoint: str | None,
    s3_access_key: str | None,
    s3_secret_key: str | None,
    s3_bucket: str,
    s3_region: str,
) -> None:
    """Run a local platform and print the config that points to it."""
    from attachd.sandbox import S3Endpoint, S3Unusable, Sandbox, SandboxSettings, serve

    s3 = None
    if s3_endpoint is not None:
        if not (s3_access_key and s3_secret_key):
            raise click.UsageError("--s3-endpoint needs --s3-access-key and --s3-secret-key, or their variables")
        try:
            s3 = S3Endpoint(s3_endpoint, s3_access_key, s3_secret_key, s3_bucket, s3_region)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--s3-endpoint") from error

    def announce(running: Sandbox) -> None:
        click.echo(f"# A platform for trying things out, on {running.api_url}; it ends with Ctrl-C.")
        click.echo("# Save what follows as config.yaml, make the folder, then: attachd run -c config.yaml\n")
        click.echo(running.config_yaml(inbox, gateway=gateway))

    async def until_stopped() -> None:
        await serve(SandboxSettings(strict_storage=strict, s3=s3), port, announce, asyncio.Event())

    try:
        run_loop(until_stopped())
    except S3Unusable as error:
        _refuse(str(error), Exit.UNREACHABLE)


@main.command()
@click.option("--keep", is_flag=True, help="Keep the folder of the demo and say where it is.")
@click.option("--gateway", type=click.Choice(["webchat", "webmessaging"]), default="webchat", show_default=True)
def demo(keep: bool, gateway: Literal["webchat", "webmessaging"]) -> None:
    """Sandbox, daemon and sample documents, shown live; ends by itself with a summary."""
    from attachd.demo import show

    sys.exit(Exit.DONE if run_loop(show(keep=keep, gateway=gateway)) else Exit.FAILED)


def _loaded(config_file: Path, *, to_look: bool = False) -> Config:
    """The config; `to_look` does without the secret, which systemd gives to the daemon and to no shell."""
    env = dict(os.environ)
    if to_look and not env.get("GENESYS_CLIENT_SECRET"):
        env["GENESYS_CLIENT_SECRET"] = "not-needed-to-look"  # noqa: S105  stands where a secret must
    try:
        settings = load(config_file, env)
    except ConfigError as error:
        _refuse_config(error, "nothing was started")
    telemetry.redact("client secret", settings.platform.client_secret.get_secret_value())
    return settings


class _Log:
    """Where the log goes: standard output, or a file that is opened anew on request, for somebody may rename it."""

    def __init__(self, wanted: Log) -> None:
        self._wanted = wanted
        self._file: TextIO | None = None

    def open(self) -> None:
        """Begin, or begin anew. Raises ConfigError when the file cannot be written; what was open stays in use then."""
        wanted, before = self._wanted, self._file
        if wanted.file is not None:
            try:
                self._file = wanted.file.open("a", encoding="utf-8")
            except OSError as error:
                raise ConfigError("log.file", [f"log.file: cannot write {wanted.file}: {error.strerror}"]) from error
        stream = self._file or sys.stdout
        as_json = wanted.format == "json" or (wanted.format == "auto" and not stream.isatty())
        telemetry.configure(level=wanted.level, json=as_json, stream=stream)
        if before is not None:
            before.close()


def run_loop(work: Coroutine[Any, Any, T], *, problem: str = "nothing was done") -> T:
    """Run a command's coroutine; what an operator can mend is said in words, a bug comes through."""
    try:
        with asyncio.Runner() as runner:
            runner.get_loop().set_exception_handler(telemetry.loop_exception_handler)
            return runner.run(work)
    except KeyboardInterrupt:
        sys.exit(130)
    except ConfigError as error:
        _refuse_config(error, problem)
    except JournalBusy as error:
        _refuse(str(error), Exit.BUSY)
    except JournalError as error:
        _refuse(str(error), Exit.FAILED)
    except ExceptionGroup as group:
        broken, others = group.split(JournalError)
        if broken is None or others is not None:
            raise
        _refuse(f"the journal failed, and without memory nothing may be sent: {_first(broken)}", Exit.FAILED)


def _first(group: BaseException) -> BaseException:
    return _first(group.exceptions[0]) if isinstance(group, BaseExceptionGroup) else group


def _refuse_config(error: ConfigError, consequence: str) -> NoReturn:
    lines = [f"{error}, {consequence}", *(f"  {problem}" for problem in error.problems)]
    _refuse("\n".join(lines), Exit.CONFIG)


def _refuse(text: str, code: Exit) -> NoReturn:
    click.echo(telemetry.without_secrets(text), err=True)
    sys.exit(code)
