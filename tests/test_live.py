"""One document to a real organisation, for whoever has one: an agent will see it. Skipped without its ids.

GENESYS_ENVIRONMENT=mypurecloud.de ATTACHD_LIVE_DEPLOYMENT_ID=... pytest tests/test_live.py
"""

import asyncio
import os
import sys
from pathlib import Path

import pytest
import yaml

ENVIRONMENT = os.environ.get("GENESYS_ENVIRONMENT")
DEPLOYMENT = os.environ.get("ATTACHD_LIVE_DEPLOYMENT_ID")
SAMPLE = Path(__file__).parent.parent / "attachd" / "demo" / "samples" / "claim-form.pdf"


@pytest.mark.skipif(
    not (ENVIRONMENT and DEPLOYMENT),
    reason="needs GENESYS_ENVIRONMENT and ATTACHD_LIVE_DEPLOYMENT_ID of an organisation",
)
async def test_a_real_organisation_takes_a_document(tmp_path: Path) -> None:
    """`check` finds nothing wrong, and `send` returns only after the platform has echoed our attachment."""
    (tmp_path / "inbox").mkdir()
    config = tmp_path / "config.yaml"
    platform = {"gateway": "webmessaging", "environment": ENVIRONMENT, "deployment_id": DEPLOYMENT}
    config.write_text(yaml.safe_dump({"platform": platform, "inboxes": [{"path": str(tmp_path / "inbox")}]}))
    for words in (("check",), ("send", str(SAMPLE))):
        process = await asyncio.create_subprocess_exec(sys.executable, "-m", "attachd", *words, "-c", str(config))
        assert await process.wait() == 0
