"""The public configuration of a deployment, which a client may read before it connects."""

from collections.abc import Callable
from typing import Final

from aiohttp import web

from attachd.sandbox.exchange import Exchange
from attachd.sandbox.reply import Refused, Reply, json_reply
from attachd.sandbox.settings import SandboxSettings

DEPLOYMENT_PATH: Final = "/webdeployments/v1/deployments/{deployment_id}/config.json"


class Deployments:
    def __init__(self, settings: Callable[[], SandboxSettings], authority: str) -> None:
        """`authority`: host and port under which the platform itself is reached."""
        self._settings = settings
        self._authority = authority

    def known(self, deployment_id: str) -> bool:
        settings = self._settings()
        return deployment_id == settings.deployment_id or deployment_id in settings.deployments

    async def config(self, request: web.Request, exchange: Exchange) -> Reply:
        deployment_id = request.match_info["deployment_id"]
        exchange.concerns(queue_id=deployment_id)
        if not self.known(deployment_id):
            raise Refused(404, "not.found", "No deployment with this id.")
        settings = self._settings()
        disconnect = settings.conversation_disconnect
        conversations: dict[str, object] = {
            "messagingEndpoint": f"ws://{self._authority}",
            "autoStart": {"enabled": settings.auto_start},
            "conversationDisconnect": {"enabled": disconnect != "off"}
            | ({"type": disconnect} if disconnect != "off" else {}),
            "conversationClear": {"enabled": settings.conversation_clear},
        }
        modes = [{"fileTypes": list(settings.media_types), "maxFileSizeKB": settings.max_file_size_kb}]
        upload: dict[str, object] = {"modes": modes}
        if settings.enable_attachments != "absent":
            upload["enableAttachments"] = settings.enable_attachments == "yes"
        return json_reply(
            {
                "id": deployment_id,
                "status": settings.deployment_status,
                "apiEndpoint": f"http://{self._authority}",
                "messenger": {"enabled": True, "apps": {"conversations": conversations}, "fileUpload": upload},
                "auth": {"enabled": False, "allowSessionUpgrade": False},
            }
        )
