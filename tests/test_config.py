"""What the operator writes, what attachd reads, and what it says about mistakes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from attachd import config
from attachd.config.models import SkillForm, keys_of
from attachd.config.units import duration_s, size_bytes
from attachd.errors import ConfigError
from attachd.model import Routing, Skill

EXAMPLE = Path(__file__).parent.parent / "config.example.yaml"
ENV = {
    "GENESYS_ENVIRONMENT": "mypurecloud.de",
    "GENESYS_CLIENT_ID": "a-client",
    "GENESYS_CLIENT_SECRET": "from-the-environment",
    "GENESYS_QUEUE_ID": "a-queue",
    "HOME": "/home/op",
}
MINIMAL = "inboxes: [{path: /srv/attachd/claims}]\n"

Load = Callable[..., config.Config]
Refused = Callable[..., list[str]]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(text: str | bytes, **env: str) -> config.Config:
        file = tmp_path / "config.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return config.load(file, ENV | env)

    return load


@pytest.fixture
def refused(load: Load) -> Refused:
    def refused(text: str | bytes, **env: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, **env)
        return caught.value.problems

    return refused


def platform(lines: str) -> str:
    return f"{MINIMAL}platform: {{{lines}}}\n"


def inbox(lines: str) -> str:
    return f"inboxes: [{{path: /srv/attachd/claims, {lines}}}]\n"


# --- what is read


def test_one_path_and_the_environment_are_enough(load):
    """An inbox needs nothing but its path; the rest has defaults or comes from the environment."""
    read = load(MINIMAL)
    assert read.platform.environment == "mypurecloud.de"
    assert read.platform.login_url == "https://login.mypurecloud.de"
    assert read.platform.api_url == "https://api.mypurecloud.de"
    assert read.platform.client_secret.get_secret_value() == "from-the-environment"
    assert read.platform.max_file_size == 10 * 1024 * 1024
    assert read.state_dir == Path("/home/op/.local/state/attachd")
    assert (read.delivery.shutdown_grace_s, read.log.level, read.admin.listen) == (20.0, "info", "127.0.0.1:8722")
    (claims,) = read.inboxes
    assert (claims.name, claims.settle_s, claims.rescan_s, claims.include) == ("claims", 2.0, 60.0, ("*",))
    assert claims.routing == Routing("a-queue", (), {})


def test_every_key_is_read(load):
    """All keys of an inbox arrive with their types and units."""
    read = load(
        """
platform: {environment: x.example, client_id: c, client_secret: s3cret, queue_id: q, proxy: "proxy:3128",
  requests_per_second: 12.5, max_file_size: 25MiB, login_url: "http://127.0.0.1:1/", ca_file: /ca.pem}
delivery: {concurrency: 3, on_unknown_outcome: hold, max_attempts: 7, shutdown_grace: 1m30s}
inboxes:
  - {path: /a/b, name: scans, queue_id: own, metadata: {year: 2026, v: 1.10},
     skills: [{id: german, level: 3}, {id: 42}], message: "$name costs $$5 ($size)", include: ["*.pdf"],
     exclude: ["x*"], allow_types: [Image/*], recursive: yes,
     settle: 500ms, watch: polling, rescan: 5m, sent: done/ok/, failed: done/bad}
state_dir: /var/lib/attachd
log: {level: debug, format: json}
admin: {listen: off}
"""
    )
    assert read.platform.login_url == "http://127.0.0.1:1"
    assert read.platform.proxy == "http://proxy:3128"
    assert read.platform.requests_per_second == 12.5
    assert read.delivery == config.DeliveryRules(
        concurrency=3, on_unknown_outcome="hold", max_attempts=7, shutdown_grace_s=90
    )
    (scans,) = read.inboxes
    assert scans.routing == Routing("own", (Skill("german", 3), Skill("42", 1)), {"year": "2026", "v": "1.10"})
    assert (scans.recursive, scans.settle_s, scans.watch, scans.rescan_s) == (True, 0.5, "polling", 300.0)
    assert (scans.sent, scans.failed, scans.allow_types) == ("done/ok", "done/bad", ("image/*",))
    assert read.admin.listen == "off"


def test_plain_values_stay_the_text_they_were_written_as(load):
    """No leading zero is lost, no and off are words, 1:30 is no number."""
    read = load(platform("client_id: 0123, queue_id: 1e3") + "log: {}\n")
    assert (read.platform.client_id, read.platform.queue_id) == ("0123", "1e3")
    metadata = load(inbox("metadata: {no: off, at: 1:30, true: 0x1F}")).inboxes[0].metadata
    assert metadata == {"no": "off", "at": "1:30", "true": "0x1F"}


def test_the_objects_can_be_made_in_code_by_their_names():
    """Code says `settle_s`; what follows from other values is filled in there too."""
    made = config.Inbox(path=Path("/a/scans"), settle_s=0.1, skills=(Skill("x"),))
    assert (made.name, made.settle_s, made.skills) == ("scans", 0.1, (Skill("x", 1),))
    assert config.Platform(environment="x.example").api_url == "https://api.x.example"


def test_a_part_that_inboxes_share_can_be_written_once(load):
    """Anchors and merges work, and the inbox's own keys win."""
    read = load("inboxes:\n  - &one {path: /a, settle: 9s, rescan: 8s}\n  - {<<: *one, path: /b, settle: 1s}\n")
    assert (read.inboxes[1].settle_s, read.inboxes[1].rescan_s) == (1.0, 8.0)


# --- the environment


def test_variables_are_expanded_in_values(load):
    """`${VAR}`, a default for one that is unset or empty, and `$${` for the two characters themselves."""
    read = load(
        inbox('metadata: {a: "${A}", b: "${B:-b}", c: "${C:-}", d: "$${A}", e: "$A"}, message: "${D} $name $${size}"'),
        A="x${B}",
        B="",
        D="Read",
    )
    assert read.inboxes[0].metadata == {"a": "x${B}", "b": "b", "c": "", "d": "${A}", "e": "$A"}
    assert read.inboxes[0].message == "Read $name ${size}"


@pytest.mark.parametrize("value", ["${NOPE}", "a ${EMPTY} b"])
def test_a_variable_that_is_not_set_is_a_problem(refused, value):
    """The line names the key and the variable, and says nothing of what follows from it."""
    (line,) = refused(inbox(f'queue_id: "{value}"'), EMPTY="")
    assert re.match(r"inboxes\[0\]\.queue_id: the environment variable (NOPE|EMPTY) is not set; ", line)


def test_an_empty_environment_variable_counts_as_unset(refused):
    """An empty client id is a missing one."""
    (line,) = refused(MINIMAL, GENESYS_CLIENT_ID="")
    assert line.startswith("platform.client_id: missing; ")


def test_a_mistake_in_the_environment_names_the_variable(refused):
    """The operator would look for it in the file otherwise."""
    (line,) = refused(MINIMAL, GENESYS_ENVIRONMENT="https://mypurecloud.com")
    assert line.startswith("platform.environment: ")
    assert line.endswith("(from $GENESYS_ENVIRONMENT)")


@pytest.mark.parametrize(
    ("env", "state_dir"),
    [
        ({"STATE_DIRECTORY": "/var/lib/attachd:/var/lib/other"}, "/var/lib/attachd"),
        ({"XDG_STATE_HOME": "/x"}, "/x/attachd"),
        ({"XDG_STATE_HOME": "relative"}, "/home/op/.local/state/attachd"),
        ({"STATE_DIRECTORY": ""}, "/home/op/.local/state/attachd"),
    ],
)
def test_the_state_folder_comes_from_systemd_or_the_home_folder(load, env, state_dir):
    """systemd first, then the user's state folder."""
    assert load(MINIMAL, **env).state_dir == Path(state_dir)


# --- the secret


def test_the_secret_comes_from_the_file_first_then_systemd_then_the_environment(load, tmp_path):
    """A newline at the end of a secret file is not part of it."""
    (tmp_path / "client_secret").write_text("from-systemd\n")
    (tmp_path / "own").write_text("from-own-file\r\n")
    credentials = str(tmp_path)

    def secret(text: str, **env: str) -> str:
        return load(text, **env).platform.client_secret.get_secret_value()

    own = f"client_secret_file: {tmp_path}/own"
    assert secret(platform("client_secret: inline-secret"), CREDENTIALS_DIRECTORY=credentials) == "inline-secret"
    assert secret(platform(own), CREDENTIALS_DIRECTORY=credentials) == "from-own-file"
    assert secret(MINIMAL, CREDENTIALS_DIRECTORY=credentials) == "from-systemd"
    assert secret(MINIMAL, CREDENTIALS_DIRECTORY=f"{credentials}/none") == "from-the-environment"


def test_a_secret_file_that_cannot_be_used_is_a_problem(refused, tmp_path):
    """Missing, empty, several lines, not text, or given together with the secret itself."""
    file = tmp_path / "secret"
    entry = platform(f"client_secret_file: {file}")
    assert refused(entry) == [f"platform.client_secret_file: '{file}' cannot be read: No such file or directory"]
    for content, words in (
        (b"\n", "is empty"),
        (b"\xff", "not UTF-8"),
        (b"one-line\ntwo-line", "contains line breaks"),
        (b"x" * 5000, "too large"),
    ):
        file.write_bytes(content)
        (line,) = refused(entry)
        assert words in line
    assert refused(platform("client_secret: s3cret, client_secret_file: /s")) == [
        "platform.client_secret: is given, and client_secret_file too; keep one of them"
    ]


def test_no_secret_at_all_is_one_problem(refused):
    """It says where one may come from."""
    (line,) = refused(MINIMAL, GENESYS_CLIENT_SECRET="")
    assert line.startswith("platform.client_secret: missing; ")


def test_a_secret_shows_in_no_representation(load):
    """Not even that of a proxy with a password."""
    read = load(MINIMAL, HTTPS_PROXY="http://user:proxypass@proxy:3128")
    assert read.platform.proxy_for("https://api.x.example/") == "http://user:proxypass@proxy:3128"
    for shown in (repr(read), str(read), repr(read.platform)):
        assert "from-the-environment" not in shown
        assert "proxypass" not in shown


_SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=20)


@given(secret=_SECRETS, place=st.integers(0, 6))
def test_no_problem_line_ever_shows_the_secret(tmp_path_factory, secret, place):
    """Wherever an operator puts it by mistake, quoted or not, in good YAML or bad."""
    quoted = yaml.safe_dump(secret, width=1000).removesuffix("...\n").strip()
    file = tmp_path_factory.getbasetemp() / "leak.yaml"
    texts = (
        f"platform:\n  client_secret: {secret}\n  gateway: bad\n",
        f"platform:\n  client_secret: {quoted}\n  environment: {quoted}\n  gateway: {quoted}\n  client_id: {quoted}\n",
        f"platform:\n  client_secret: [{quoted}]\n  client_secret_file: {quoted}\n",
        f"platform:\n  client_secret: {quoted}\n  {quoted}: 1\n  api_url: {quoted}\n",
        f"platform: {{proxy: {quoted}}}\ninboxes: [{{path: {quoted}, message: {quoted}, sent: {quoted}}}]\n",
        f"platform:\n  client_secret {secret}\n",
        f"{secret}\nx: {{{secret}\n",
    )
    file.write_text(texts[place])
    env = {"GENESYS_CLIENT_SECRET": secret, "CREDENTIALS_DIRECTORY": "/none"}
    with pytest.raises(ConfigError) as caught:
        config.load(file, env)
    assert caught.value.problems
    assert not any(secret in line for line in caught.value.problems)


# --- mistakes


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(refused):
    """Each line starts with the path of the key; the rules between sections are checked in spite of other mistakes."""
    lines = refused(
        """
platfrm: {}
platform: {environment: "https://login.mypurecloud.com", gatway: webchat, max_file_size: 10M}
delivery: {concurrency: 0, max_attempts: many, shutdown_grace: 1m1h}
inboxes:
  - path: scans
  - {path: /a/b, name: x, settle_s: 3, skills: [german, {id: 3, levl: 2}], recursive: maybe}
  - {path: /a/b/c, name: x, failed: sent, watch: nativ}
state_dir: ~/state
log: {level: INFO}
admin: {listen: "0.0.0.0:80"}
"""
    )
    assert [line.split(": ")[0] for line in lines] == [
        "platfrm",
        "platform.gatway",
        "platform.environment",
        "platform.max_file_size",
        "delivery.concurrency",
        "delivery.max_attempts",
        "delivery.shutdown_grace",
        "inboxes[0].path",
        "inboxes[1].settle_s",
        "inboxes[1].skills[0]",
        "inboxes[1].skills[1].levl",
        "inboxes[1].recursive",
        "inboxes[2].watch",
        "inboxes[2].name",
        "inboxes[2].path",
        "inboxes[2].failed",
        "state_dir",
        "log.level",
        "admin.listen",
    ]
    text = "\n".join(lines)
    assert "did you mean 'platform'?" in text
    assert "did you mean 'settle'?" in text
    assert "did you mean 'level'?" in text
    for jargon in ("pydantic", "_error", "Input", "validat", "errors.", "instance", "type="):
        assert jargon not in text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "the file is empty; config.example.yaml shows what belongs in it"),
        ("# only a comment\n", "the file is empty; config.example.yaml shows what belongs in it"),
        ("- a\n", "the file is not a mapping; it starts with keys such as 'platform:' and 'inboxes:'"),
        (
            "a: b: c\n",
            "line 1, column 5: a second ':' on the line or a wrong indentation; put values with ': ' in quotes",
        ),
        ("a: *.pdf\n", "line 1, column 5: a value that starts with * or & needs quotes"),
        ("a:\n\t- b\n", "line 2, column 1: a tab; indent with spaces"),
        ("a: 'b\n", "line 2, column 1: a quote or bracket is not closed"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: a second document begins; keep everything in one"),
        (b"a: \xff\n", "line 1: is not UTF-8 text; save the file as UTF-8"),
        (b"a: \x07\n", "contains control characters; save the file as plain text"),
        ("[" * 5000, "is nested too deeply; is it the right file?"),
        (b"#" * (1 << 20) + b"\n", "the file is larger than 1 MiB; is it the right one?"),
    ],
)
def test_a_file_that_is_no_config_gets_one_plain_line(refused, text, line):
    """With line and column where there is one, and never the text itself."""
    assert refused(text) == [line]


def test_a_file_that_cannot_be_read_says_so(tmp_path):
    """Missing, or a folder."""
    for path, words in (
        (tmp_path / "none.yaml", "there is no such file"),
        (tmp_path, "cannot be read: Is a directory"),
    ):
        with pytest.raises(ConfigError) as caught:
            config.load(path, ENV)
        assert caught.value.problems[0].startswith(words)
        assert caught.value.source == str(path)


def test_a_key_that_stands_twice_is_a_problem(refused):
    """Both lines are named; YAML itself would silently take the last."""
    assert refused(MINIMAL + "log:\n  level: info\n  level: debug\n") == [
        "log.level: stands twice, on lines 3 and 4; keep one of them"
    ]


@pytest.mark.parametrize("text", ["a: &a [*a]\n", "a: !!python/name:os.system x\n", "? [a]\n: b\n", "<<: 1\n"])
def test_yaml_beyond_plain_values_is_a_problem(refused, text):
    """Loops, tags and keys that are no text do no harm."""
    assert refused(MINIMAL + text)


def test_anchors_that_multiply_end_early(refused):
    """A few lines that stand for billions of values are refused, quickly."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))
    assert any("anchors multiply" in line for line in refused(bomb))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("gateway: webmessaging", "platform.deployment_id: missing; webmessaging needs the id"),
        ("environment: webmessaging.mypurecloud.com", "platform.environment: starts with webmessaging.; leave"),
        ("messaging_url: 'ws://webmessaging.example.com'", "platform.messaging_url: must start with wss://; ws:// is"),
        ("messaging_url: 'https://127.0.0.1'", "platform.messaging_url: must start with wss://"),
        ("messaging_url: 'wss://x/?a=b'", "platform.messaging_url: must be a plain address"),
        ("config_url: 'http://cdn.example.com'", "platform.config_url: must start with https://; http:// is accepted"),
        ("origin: 'https://www.example.com/chat'", "platform.origin: is not an origin"),
        ("origin: 'a b'", "platform.origin: is not an origin"),
        ("upload_hosts: ['https://s3.amazonaws.com']", "platform.upload_hosts[0]: is not a host name"),
        ("environment: api.mypurecloud.com", "platform.environment: starts with api.; leave that away"),
        ("client_id: 'id:secret'", "platform.client_id: contains a colon"),
        ("client_id: [1]", "platform.client_id: must be text"),
        (
            "api_url: 'http://api.example.com'",
            "platform.api_url: must start with https://; http:// is accepted for this",
        ),
        ("api_url: 'http://127.0.0.1.example.com'", "platform.api_url: must start with https://"),
        ("api_url: ftp://x", "platform.api_url: must start with https://"),
        ("api_url: 'https://u:p@x'", "platform.api_url: must be a plain address"),
        ("api_url: 'https://x:99999'", "platform.api_url: is not a URL"),
        ("proxy: 'socks5://x'", "platform.proxy: must be an HTTP proxy"),
        ("ca_file: ca.pem", "platform.ca_file: 'ca.pem' is not absolute"),
        ("requests_per_second: 0", "platform.requests_per_second: must be more than 0"),
        ("requests_per_second: .inf", "platform.requests_per_second: must be a number"),
        ("max_file_size: 0", "platform.max_file_size: must be at least 1"),
        ("no_proxy: [x]", "platform.no_proxy: unknown key"),
    ],
)
def test_a_wrong_platform_is_refused(refused, keys, words):
    """One line per mistake, beginning with its path."""
    assert any(line.startswith(words) for line in refused(platform(keys)))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("message: 'costs $5'", "message: has a $ that starts no placeholder; write $$"),
        ("message: '$nam'", "message: has the unknown placeholder $nam; there are $name, $inbox"),
        ("message: ''", "message: is empty"),
        (f"message: '{'x' * 4097}'", "message: is longer than 4096"),
        ("sent: ../sent", "sent: must be a folder inside"),
        ("sent: /sent", "sent: must be relative"),
        ("sent: .", "sent: must be a folder inside"),
        ("sent: a//b", "sent: must be a folder inside"),
        ("failed: .failed", "failed: must be a folder inside"),
        ("failed: sent/failed", "failed: must be another folder than sent"),
        ("include: []", "include: must have at least one entry"),
        ("include: '*.pdf'", "include: must be a list"),
        ("include: [in/*.pdf]", "include[0]: contains a /"),
        ("include: ['*.{pdf,tif}']", "include[0]: contains {…,…}"),
        ("exclude: ['!x']", "exclude[0]: starts with !"),
        ("allow_types: [pdf]", "allow_types[0]: is not a type"),
        ("allow_types: ['*']", "allow_types[0]: is not a type"),
        ("settle: -1s", "settle: is not a duration"),
        ("rescan: 0", "rescan: must be more than 0"),
        ("name: a/b", "name: must be 1 to 100"),
        ("metadata: {a: [1]}", "metadata.a: must be text"),
        ("metadata: {a: }", "metadata.a: must be text"),
        ("skills: [{level: 1}]", "skills[0].id: missing"),
        ("queue_id: a b", "queue_id: must be one word"),
    ],
)
def test_a_wrong_inbox_is_refused(refused, keys, words):
    """One line, beginning with its path."""
    (line,) = refused(inbox(keys))
    assert line.startswith(f"inboxes[0].{words}")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["/a/b", "/a/b/"], "inboxes[1].path: is the folder of inboxes[0] already"),
        (["/a/b", "/a/b/c"], "inboxes[1].path: lies inside inboxes[0]"),
        (["/a/b/c", "/a/b"], "inboxes[0].path: lies inside inboxes[1]"),
        (["/"], "inboxes[0].path: is the root folder"),
        (["~/scans"], "inboxes[0].path: starts with ~"),
        (["/home/op/.local"], "inboxes[0].path: contains state_dir"),
    ],
)
def test_inboxes_do_not_overlap(refused, paths, words):
    """Neither with each other nor with the state folder: a file must have one owner."""
    entries = "".join(f"  - {{path: {path}, name: i{number}}}\n" for number, path in enumerate(paths))
    assert any(line.startswith(words) for line in refused(f"inboxes:\n{entries}"))


def test_an_inbox_behind_a_link_is_the_folder_itself(refused, tmp_path):
    """Two names of one folder are found out."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (line,) = refused(f"inboxes: [{{path: {tmp_path}/real}}, {{path: {tmp_path}/link}}]")
    assert "is the folder of inboxes[0] already" in line


MESSAGING = "gateway: webmessaging, deployment_id: d-1"


def test_webmessaging_needs_a_deployment_and_nothing_else(load):
    """No client, no secret and no queue; one in the environment is somebody else's and does no harm."""
    read = load(platform(MESSAGING), GENESYS_CLIENT_ID="", GENESYS_CLIENT_SECRET="")
    assert read.platform.messaging_url == "wss://webmessaging.mypurecloud.de"
    assert read.platform.config_url == "https://api-cdn.mypurecloud.de"
    assert read.platform.origin == "https://webmessaging.mypurecloud.de"
    assert read.inboxes[0].routing == Routing(None, (), {})


def test_webmessaging_on_this_machine(load):
    """All three addresses make the environment unnecessary; the origin follows, unless it is given."""
    local = f"{MESSAGING}, api_url: 'http://127.0.0.1:1', messaging_url: 'ws://127.0.0.1:2/', "
    local += "config_url: 'http://localhost:3'"
    read = load(platform(local), GENESYS_ENVIRONMENT="")
    assert (read.platform.messaging_url, read.platform.origin) == ("ws://127.0.0.1:2", "https://127.0.0.1:2")
    for origin in ("https://www.example.com:8443", "webmessaging.mypurecloud.de", "https://[::1]:1"):
        assert load(platform(f"{local}, origin: '{origin}'")).platform.origin == origin


def test_what_webmessaging_would_ignore_is_a_problem(refused):
    """Queues and skills belong to the deployment's flow: each line says so and what to do instead."""
    lines = refused(
        f"platform: {{{MESSAGING}, queue_id: q}}\n"
        "inboxes: [{path: /a, queue_id: q}, {path: /b, skills: [{id: german}]}, {path: /c}]\n"
    )
    assert [line.split(": ")[0] for line in lines] == [
        "platform.queue_id",
        "inboxes[0].queue_id",
        "inboxes[1].skills",
    ]
    assert all("the deployment's inbound message flow routes; remove" in line for line in lines)


def test_metadata_must_fit_into_a_web_message(load, refused):
    """2048 bytes of UTF-8, names and values together; the REST API has no such limit."""
    fits, too_long = "x" * 2045, "é" * 1023
    assert load(f"{platform(MESSAGING)}".replace("claims}", f"claims, metadata: {{key: {fits}}}}}")).inboxes
    (line,) = refused(f"{platform(MESSAGING)}".replace("claims}", f"claims, metadata: {{key: {too_long}}}}}"))
    assert line.startswith("inboxes[0].metadata: has 2049 bytes, names and values together; webmessaging takes at most")
    assert load(inbox(f"metadata: {{key: {too_long}}}")).inboxes


def test_every_inbox_needs_a_queue(refused, load):
    """Its own or the platform's; the line says where to find the id."""
    (line,) = refused(MINIMAL, GENESYS_QUEUE_ID="")
    assert line.startswith("inboxes[0].queue_id: missing; set it, or platform.queue_id, or $GENESYS_QUEUE_ID")
    assert load(inbox("queue_id: own"), GENESYS_QUEUE_ID="").inboxes[0].queue_id == "own"


@pytest.mark.parametrize("text", ["platform: {}\n", "inboxes: []\n", "inboxes: {path: /a}\n", "inboxes: [/a]\n"])
def test_without_inboxes_there_is_nothing_to_do(refused, text):
    """Missing, empty, or not a list of mappings."""
    (line,) = refused(text)
    assert line.startswith("inboxes")


@pytest.mark.parametrize(
    "listen", ["off", "127.0.0.1:8722", "localhost:1", "'[::1]:8722'", "unix:/run/attachd/admin.sock"]
)
def test_the_admin_page_is_local(load, listen):
    """A loopback address, a socket, or nothing."""
    assert load(MINIMAL + f"admin: {{listen: {listen}}}").admin.listen == listen.strip("'")


@pytest.mark.parametrize("listen", ["'8722'", "0.0.0.0:1", "'::1:8722'", "127.0.0.1:0", "unix:x", f"unix:/{'x' * 107}"])
def test_an_admin_page_for_everybody_is_refused(refused, listen):
    """It has no password."""
    (line,) = refused(MINIMAL + f"admin: {{listen: {listen}}}")
    assert line.startswith("admin.listen: ")


# --- the proxy


@pytest.mark.parametrize(
    ("url", "no_proxy", "through"),
    [
        ("https://api.x.example/a", "", True),
        ("http://127.0.0.1:8080/", "", False),
        ("http://localhost/", "", False),
        ("https://[::1]/", "", False),
        ("https://api.x.example/", "*", False),
        ("https://api.x.example/", "x.example", False),
        ("https://api.x.example/", ".x.example, other", False),
        ("https://api.x.example/", "*.x.example", False),
        ("https://notx.example/", "x.example", True),
        ("https://x.example:8443/", "x.example:443", True),
        ("https://x.example/", "x.example:443", False),
        ("https://10.1.2.3/", "10.0.0.0/8", False),
        ("https://11.1.2.3/", "10.0.0.0/8", True),
        ("https://[fd00::1]/", "fd00::/8", False),
        ("https://api.x.example/", "10.0.0.0/8,,", True),
    ],
)
def test_the_proxy_is_for_what_is_elsewhere(load, url, no_proxy, through):
    """Never for this machine, nor for what $NO_PROXY names."""
    read = load(MINIMAL, https_proxy="http://proxy:3128", HTTPS_PROXY="http://other:1", NO_PROXY=no_proxy)
    assert read.platform.proxy_for(url) == ("http://proxy:3128" if through else None)


# --- durations and sizes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20s", 20),
        ("500ms", 0.5),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("2", 2),
        ("0.25", 0.25),
        ("1D 1s", 86401),
    ],
)
def test_durations_are_read_as_people_write_them(text, seconds):
    """Units go from large to small; a bare number is seconds."""
    assert duration_s(text) == seconds


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_duration_is_the_sum_of_its_parts(days, hours, minutes, seconds, milliseconds):
    """Exactly, to the millisecond."""
    total_ms = (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000 + milliseconds
    assert duration_s(f"{days}d{hours}h{minutes}m{seconds}s{milliseconds}ms") == total_ms / 1000


@given(st.text(max_size=12) | st.from_regex(r"[0-9dhms. e+-]{1,12}", fullmatch=True))
def test_any_other_text_is_no_duration(text):
    """It is a finite number of seconds, at least zero, or a ValueError with a remedy."""
    try:
        read, said = duration_s(text), ""
    except ValueError as error:
        read, said = 0.0, str(error)
    assert 0 <= read < float("inf")
    assert said == "" or "write it like" in said


@pytest.mark.parametrize(
    ("text", "size"),
    [("10MiB", 10485760), ("10 mib", 10485760), ("1.5kB", 1500), ("1KiB", 1024), ("1GB", 10**9), ("7", 7), ("7B", 7)],
)
def test_sizes_are_read_as_people_write_them(text, size):
    """kB by 1000, KiB by 1024, a bare number is bytes."""
    assert size_bytes(text) == size


@given(st.text(max_size=12) | st.from_regex(r"[0-9.]{1,8} ?[kKmMgG]?i?[bB]?", fullmatch=True))
def test_any_other_text_is_no_size(text):
    """It is a whole number of bytes, or a ValueError in words."""
    try:
        read, said = size_bytes(text), ""
    except ValueError as error:
        read, said = 0, str(error)
    assert read >= 0
    assert said == "" or re.search("is not a|may mean two things", said)


# --- the example and the schema

_SECTIONS: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (config.Platform, {}),
    (config.DeliveryRules, {}),
    (config.Inbox, {"path": "/srv/attachd/claims"}),
    (config.Log, {}),
    (config.Admin, {}),
]


def test_the_example_is_a_valid_config():
    """With the environment it names and nothing else."""
    needed = {name: ENV[name] for name in ("GENESYS_CLIENT_ID", "GENESYS_QUEUE_ID", "GENESYS_CLIENT_SECRET", "HOME")}
    read = config.load(EXAMPLE, needed)
    assert read.inboxes[0].metadata == {"source": "claims-share"}
    assert read.platform.environment == "mypurecloud.com"


def test_the_example_names_every_key_and_its_default():
    """A commented line shows what counts without it."""
    text = EXAMPLE.read_text()
    derived = ("login_url", "api_url", "messaging_url", "config_url", "origin", "client_secret")
    for key in keys_of(config.Config):
        assert re.search(rf"^(# )?{key}:", text, re.MULTILINE), key
    compared = 0
    for section, needed in _SECTIONS:
        fields = {str(field.validation_alias or name): name for name, field in section.model_fields.items()}
        for key in keys_of(section):
            found = re.search(rf"^ +(# |- )?{key}: (.+)$", text, re.MULTILINE)
            assert found, key
            default = getattr(section.model_validate(needed), fields[key])
            if found[1] == "# " and default not in (None, "") and key not in derived:
                shown = section.model_validate(needed | {key: yaml.load(found[2], Loader=yaml.BaseLoader)})
                assert getattr(shown, fields[key]) == default, key
                compared += 1
    assert compared >= 18


def test_the_schema_describes_every_key_as_it_is_written():
    """Names as in the file, durations and sizes as text, and no key without a description."""
    schema = config.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["inboxes"]
    assert set(schema["properties"]) == set(keys_of(config.Config))
    for section, _ in [*_SECTIONS, (SkillForm, {})]:
        described = schema["$defs"][section.__name__]
        assert described["additionalProperties"] is False
        assert set(described["properties"]) == set(keys_of(section))
        for key, told in described["properties"].items():
            assert told["description"], key
            assert "\n" not in told["description"]
    assert "number" in schema["$defs"]["Inbox"]["properties"]["metadata"]["additionalProperties"]["type"]
    settle = schema["$defs"]["Inbox"]["properties"]["settle"]
    assert {"type": "string"} in settle["anyOf"]
    assert {"type": "string"} in schema["$defs"]["Platform"]["properties"]["max_file_size"]["anyOf"]
