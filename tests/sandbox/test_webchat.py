"""What the login and the guest API accept, and what each documented mistake is answered with."""

import pytest

from attachd.sandbox import ENHANCED_LIMIT_BYTES, STANDARD_LIMIT_BYTES

from .client import PDF


def refused(answered, status, code, *words):
    """The platform's error form, with its own correlation id inside, and words that tell the mistake."""
    assert answered.status == status, answered.text
    body = answered.json
    assert set(body) == {"message", "code", "status", "contextId", "details", "errors"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["contextId"] == answered.headers["ININ-Correlation-Id"]
    for word in words:
        assert word in body["message"]


async def test_a_file_becomes_a_message(client):
    """The five calls in order end in one message that holds what was sent."""
    answered = await client.deliver("claim.pdf")
    assert answered.status == 200
    body = answered.json
    assert body["status"] == "active"
    assert body["attachments"][0]["downloadUrl"].startswith("http://127.0.0.1:")
    assert "Date" in answered.headers
    assert "ININ-Correlation-Id" in answered.headers
    (message,) = client.sandbox.messages_for("claim.pdf")
    (attachment,) = message.attachments
    assert message.conversation_id == body["conversationId"]
    assert message.guest_id == body["guestId"]
    assert message.queue_id == client.sandbox.queue_id
    assert message.text == "Please review."
    assert message.metadata == {"source": "tests"}
    assert [(skill.skill_id, skill.level) for skill in message.skills] == [("review", 1)]
    assert attachment.attachment_id == body["attachments"][0]["id"]
    assert (attachment.content_type, attachment.size_bytes) == (PDF, 5)
    assert attachment.sha256 == "277089d91c0bdf4f2e6862ba7e4a07605119431f5d13f726dd352b06f1b206a9"
    assert not message.answer_lost


async def test_the_same_attachment_twice_is_two_messages(client):
    """Nothing is de-duplicated, so that a duplicate can be counted."""
    ticket = await client.stored()
    first, second = await client.converse(ticket), await client.converse(ticket)
    assert first.json["conversationId"] == second.json["conversationId"]
    assert len(client.sandbox.messages_for("claim.pdf")) == 2


async def test_a_path_that_does_not_exist(client):
    """Also what the API does not offer is refused in its own form."""
    refused(await client.post("nothing", {}), 404, "not.found")


class TestToken:
    async def test_it_says_how_long_it_lives(self, start):
        """A token comes with its type and its life in seconds."""
        answered = await (await start(token_life_s=600)).ask_token()
        assert (answered.json["token_type"], answered.json["expires_in"]) == ("bearer", 600)

    async def test_each_is_another(self, client):
        """Tokens are random and counted."""
        tokens = {(await client.ask_token()).json["access_token"] for _ in range(3)}
        assert len(tokens) == 3
        assert client.sandbox.ledger.counts["tokens"] == 4

    async def test_wrong_credentials(self, client):
        """A wrong secret is 401 invalid_client, in both of the platform's wordings."""
        answered = await client.ask_token(secret="wrong")
        assert answered.status == 401
        assert answered.json["error"] == "invalid_client"
        assert answered.json["description"] == answered.json["error_description"]

    @pytest.mark.parametrize("header", [None, "Basic %%%", "Basic bm9jb2xvbg==", "Bearer x"])
    async def test_credentials_that_are_none(self, client, header):
        """Without readable Basic credentials nobody is anybody."""
        headers = {"Authorization": header} if header else {}
        url = f"{client.sandbox.login_url}/oauth/token"
        answered = await client.call("POST", url, data={"grant_type": "client_credentials"}, headers=headers)
        assert (answered.status, answered.json["error"]) == (401, "invalid_client")

    async def test_another_grant(self, client):
        """Only client credentials are offered."""
        answered = await client.ask_token(grant="password")
        assert (answered.status, answered.json["error"]) == (400, "unsupported_grant_type")

    async def test_no_grant(self, client):
        """A form without a grant is not a token request."""
        answered = await client.ask_token(grant=None)
        assert (answered.status, answered.json["error"]) == (400, "invalid_request")

    async def test_the_secret_can_change_at_run_time(self, client):
        """After a rotation the old secret is refused and the new one accepted."""
        old = client.sandbox.client_secret
        client.sandbox.change(client_secret="rotated")
        assert (await client.ask_token(secret=old)).status == 401
        assert (await client.ask_token(secret="rotated")).status == 200


class TestAuthentication:
    async def test_without_a_token(self, client):
        """Every call of the guest API wants a bearer token, before it looks at the body."""
        client.token = ""
        for path in ("guest", "guest/x/attachments/upload", "conversations"):
            refused(await client.post(path, b"{"), 401, "authentication.required")

    async def test_with_an_unknown_token(self, client):
        """A token nobody issued is refused."""
        client.token = "made-up"
        refused(await client.guest(), 401, "bad.credentials")

    async def test_with_an_expired_token(self, start, manual):
        """A token is over when its life is."""
        client = await start(manual.clock(), token_life_s=60)
        manual.now_s += 59
        assert (await client.guest()).status == 200
        manual.now_s += 1
        refused(await client.guest(), 401, "bad.credentials")

    async def test_with_a_revoked_token(self, client):
        """A revoked token is refused, a new one works."""
        client.sandbox.revoke_tokens()
        refused(await client.guest(), 401, "bad.credentials")
        await client.log_in()
        assert (await client.guest()).status == 200

    @pytest.mark.parametrize("missing", ["webchat:guest", "webchat:guest:write"])
    async def test_without_a_guest_scope(self, client, missing):
        """The missing scope is named."""
        client.sandbox.change(scopes=list(client.sandbox.settings.scopes - {missing}))
        refused(await client.guest(), 403, "missing.permissions", missing)

    @pytest.mark.parametrize("missing", ["webchat:conversation", "webchat:conversation:write"])
    async def test_without_a_conversation_scope(self, client, missing):
        """The sessions still open, only the message is refused."""
        ticket = await client.stored()
        client.sandbox.change(scopes=list(client.sandbox.settings.scopes - {missing}))
        assert (await client.guest()).status == 200
        refused(await client.converse(ticket), 403, "missing.permissions", missing)


class TestGuest:
    async def test_its_answer(self, client):
        """The session echoes what was asked for and has no conversation yet."""
        body = (await client.guest()).json
        assert body["conversationId"] is None
        assert body["capabilities"] == {"attachments": True, "typing": True}
        assert body["routing"] == {
            "queueId": client.sandbox.queue_id,
            "skills": [{"id": "review", "level": 1}],
        }
        assert body["createdTimestamp"].endswith("Z")

    @pytest.mark.parametrize("capabilities", [{"attachments": False}, {}])
    async def test_without_the_capability(self, client, capabilities):
        """Attachments missing or false are refused at once."""
        refused(await client.guest(capabilities=capabilities), 400, "bad.request", "capabilities.attachments")

    async def test_without_the_capability_where_the_upload_refuses(self, start):
        """The contract allows the refusal to come one call later."""
        client = await start(capability_refused_at="upload")
        body = (await client.guest(capabilities={"typing": True})).json
        assert body["capabilities"]["attachments"] is False
        refused(await client.ask_upload(body["guestId"]), 400, "bad.request", "capabilities.attachments")

    async def test_an_unknown_queue(self, client):
        """A queue that does not exist is refused by name of the field."""
        refused(await client.guest("nowhere"), 400, "bad.request", "routing.queueId")

    async def test_further_queues_can_be_made_known(self, client):
        """Queues can be added at run time."""
        client.sandbox.change(queues=["second"])
        assert (await client.guest("second")).status == 200
        assert (await client.guest()).status == 200

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"capabilities": None}, "capabilities: is missing"),
            ({"capabilities": {"attachments": "yes"}}, "capabilities.attachments: must be true or false"),
            ({"routing": []}, "routing: must be a JSON object"),
            ({"routing": {}}, "routing.queueId: is missing"),
            ({"routing": {"queueId": 7}}, "routing.queueId: must be a string"),
            ({"metadata": "x"}, "metadata: must be a JSON object"),
        ],
    )
    async def test_a_body_of_another_shape(self, client, changes, word):
        """A field that is missing or of the wrong type is named with its path."""
        refused(await client.guest(**changes), 400, "bad.request", word)

    @pytest.mark.parametrize(
        ("skills", "word"),
        [
            ("x", "routing.skills: must be a list"),
            ([{"id": "a"}], "routing.skills[0].level: is missing"),
            ([{"id": "a", "level": True}], "routing.skills[0].level: must be a whole number"),
            ([{"id": "a", "level": 1}, 5], "routing.skills[1]: must be a JSON object"),
        ],
    )
    async def test_skills_of_another_shape(self, client, skills, word):
        """The path leads into lists too."""
        routing = {"queueId": client.sandbox.queue_id, "skills": skills}
        refused(await client.guest(routing=routing), 400, "bad.request", word)

    @pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
    async def test_a_body_that_is_no_json_object(self, client, raw):
        """Malformed JSON is the client's mistake and never a 500."""
        refused(await client.post("guest", raw), 400, "bad.request", "body: ")

    async def test_a_body_beyond_any_request(self, client):
        """A megabyte of JSON is no guest."""
        refused(await client.post("guest", b" " * (1024**2 + 1)), 413, "request.entity.too.large")


class TestUpload:
    @pytest.fixture
    async def guest_id(self, client):
        return (await client.guest()).json["guestId"]

    async def test_its_answer(self, client, guest_id):
        """A URL on another host and port, the type verbatim, the life in seconds."""
        body = (await client.ask_upload(guest_id, kind="text/plain; charset=utf-8")).json
        assert body["uploadMethod"] == "PUT"
        assert body["contentType"] == "text/plain; charset=utf-8"
        assert body["expiresIn"] == 300
        assert f"/{guest_id}/{body['attachmentId']}/claim.pdf?X-Amz-" in body["uploadUrl"]
        assert not body["uploadUrl"].startswith(client.sandbox.api_url)

    async def test_an_unknown_guest(self, client):
        """Without a session there is no upload."""
        refused(await client.ask_upload("nobody"), 404, "not.found")

    @pytest.mark.parametrize("limit", [STANDARD_LIMIT_BYTES, ENHANCED_LIMIT_BYTES])
    async def test_the_size_limit(self, start, limit):
        """The limit itself passes, a byte more does not."""
        client = await start(max_file_bytes=limit)
        guest_id = (await client.guest()).json["guestId"]
        assert (await client.ask_upload(guest_id, size=limit)).status == 200
        refused(await client.ask_upload(guest_id, size=limit + 1), 400, "bad.request", "fileSize", str(limit))

    async def test_the_size_limit_as_413(self, start):
        """Some platforms say 413 instead."""
        client = await start(too_large_status=413, max_file_bytes=10)
        guest_id = (await client.guest()).json["guestId"]
        refused(await client.ask_upload(guest_id, size=11), 413, "request.entity.too.large")

    async def test_a_blocked_type(self, client, guest_id):
        """Blocked types are globs on the type without its parameters."""
        client.sandbox.change(blocked_types=["application/x-*"])
        answered = await client.ask_upload(guest_id, kind="application/x-msdownload; a=b")
        refused(answered, 400, "bad.request", "contentType", "application/x-msdownload")
        assert (await client.ask_upload(guest_id)).status == 200

    async def test_only_accepted_types(self, client, guest_id):
        """With a list of accepted types everything else is refused."""
        client.sandbox.change(accepted_types=["image/*"])
        refused(await client.ask_upload(guest_id), 400, "bad.request", "contentType")
        assert (await client.ask_upload(guest_id, kind="image/png")).status == 200

    @pytest.mark.parametrize(
        ("body", "word"),
        [
            ({"name": ""}, "fileName: must not be empty"),
            ({"name": "../etc/passwd"}, "fileName: must be a plain name"),
            ({"name": "\udc80.pdf"}, "fileName: is not valid Unicode"),
            ({"kind": "pdf"}, "contentType: must be a MIME type"),
            ({"kind": "text/plain\nX: y"}, "contentType: must be a MIME type"),
            ({"size": 0}, "fileSize: must be at least 1"),
            ({"size": "5"}, "fileSize: must be a whole number"),
            ({"size": 5.5}, "fileSize: must be a whole number"),
            ({"size": None}, "fileSize: is missing"),
        ],
    )
    async def test_a_declaration_that_cannot_be(self, client, guest_id, body, word):
        """Names, types and sizes are checked before a URL is handed out."""
        refused(await client.ask_upload(guest_id, **body), 400, "bad.request", word)


class TestConversation:
    async def test_an_unknown_guest(self, client):
        """A message needs a session."""
        ticket = await client.stored()
        refused(await client.converse(ticket, guestId="nobody"), 400, "bad.request", "guestId")

    async def test_an_unknown_attachment(self, client):
        """An attachment nobody declared is refused."""
        ticket = await client.stored()
        answered = await client.converse(ticket, attachments=[ticket.attachment(id="made-up")])
        refused(answered, 400, "bad.request", "attachments[0].id", "made-up")

    async def test_before_the_upload(self, client):
        """The message must wait for the storage."""
        refused(await client.converse(await client.ticket()), 400, "bad.request", "has not been uploaded")

    async def test_an_attachment_of_somebody_else(self, client):
        """Attachments do not travel between sessions."""
        mine, other = await client.stored(), await client.stored()
        answered = await client.converse(mine, attachments=[other.attachment()])
        refused(answered, 400, "bad.request", "belongs to another guest")

    @pytest.mark.parametrize("change", [{"fileName": "b.pdf"}, {"contentType": "text/plain"}, {"fileSize": 6}])
    async def test_other_words_than_at_the_declaration(self, client, change):
        """Name, type and size must be the same as at the upload request."""
        ticket = await client.stored()
        answered = await client.converse(ticket, attachments=[ticket.attachment(**change)])
        refused(answered, 400, "bad.request", f"attachments[0].{next(iter(change))}", "differs")
        assert client.sandbox.messages == []

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"messages": []}, "messages: at least one"),
            ({"messages": [{"type": "image", "text": "x"}]}, "messages[0].type"),
            ({"messages": [{"type": "text"}]}, "messages[0].text: is missing"),
            ({"attachments": {}}, "attachments: must be a list"),
            ({"guestId": None}, "guestId: is missing"),
        ],
    )
    async def test_a_body_of_another_shape(self, client, changes, word):
        """The mistake is named with its path."""
        refused(await client.converse(await client.stored(), **changes), 400, "bad.request", word)


class TestQuota:
    async def test_all_three_calls_share_it(self, start, manual):
        """The request beyond the quota is refused with a wait, whichever call it is."""
        client = await start(manual.clock(), requests_per_second=4)
        ticket = await client.stored()  # two token-bearing calls; the PUT takes no place
        assert (await client.converse(ticket)).status == 200
        assert (await client.guest()).status == 200
        for answered in (await client.guest(), await client.ask_upload(ticket.guest_id), await client.converse(ticket)):
            refused(answered, 429, "too.many.requests")
            assert answered.headers["Retry-After"] == "1"

    async def test_it_slides(self, start, manual):
        """No second may hold more, not even one across a boundary; a refused request takes no place."""
        client = await start(manual.clock(), requests_per_second=2)
        statuses = []
        for pause_s in (0.0, 0.9, 0.05, 0.06, 0.1):
            manual.now_s += pause_s
            statuses.append((await client.guest()).status)
        assert statuses == [200, 200, 429, 200, 429]

    async def test_the_wait_as_a_date(self, start, manual):
        """Retry-After may be a date; with the answer's own Date it tells the same wait."""
        client = await start(manual.clock(), requests_per_second=1, retry_after="date")
        await client.guest()
        answered = await client.guest()
        assert answered.headers["Date"] == "Tue, 14 Nov 2023 22:13:20 GMT"
        assert answered.headers["Retry-After"] == "Tue, 14 Nov 2023 22:13:21 GMT"

    async def test_it_can_be_off(self, start, manual):
        """A quota of 0 is none."""
        client = await start(manual.clock(), requests_per_second=0)
        assert [(await client.guest()).status for _ in range(5)] == [200] * 5
