"""The links of registered instances: one each, and what is sent over them."""

from __future__ import annotations

from janus.errors import LinkError
from janus.messages import Message
from janus.transport.link import Link


class MemberLinks:
    """By instance name. A link that takes no messages is ended: an instance has to hear of every view."""

    def __init__(self) -> None:
        self._links: dict[str, Link] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._links

    def register(self, link: Link) -> None:
        """``link`` is its instance's from now on; one that it had before is ended."""
        name = link.peer.instance
        old, self._links[name] = self._links.get(name), link
        if old is not None and old is not link:
            old.abort("the instance registered over another link")

    def lost(self, link: Link) -> bool:
        """``link`` has ended; return whether its instance had registered over it last."""
        name = link.peer.instance
        if self._links.get(name) is not link:
            return False
        del self._links[name]
        return True

    def end(self, name: str, why: str) -> None:
        """End the link of ``name``, if it has one."""
        link = self._links.pop(name, None)
        if link is not None:
            link.abort(why)

    def send(self, name: str, message: Message, *, incarnation: str = "") -> None:
        """Send ``message`` to an instance, if it is linked; with ``incarnation``, only if it is that process."""
        link = self._links.get(name)
        if link is not None and incarnation in ("", link.peer.incarnation):
            self._post(link, message)

    def send_all(self, message: Message) -> None:
        """Send ``message`` to every instance that is linked."""
        for link in list(self._links.values()):
            self._post(link, message)

    @staticmethod
    def _post(link: Link, message: Message) -> None:
        if link.closed:
            return
        try:
            link.post_message(message)
        except LinkError as error:
            link.abort(f"{type(message).__name__} not sent: {error.problem}")
