"""The links of registered instances: the last one counts, and one that takes no messages is ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

from janus.errors import LinkBusy
from janus.messages import PROTOCOL_VERSION, Message
from janus.messages.control import Fatal, Identity
from janus.transport.link import Link
from janus_placement_controller.member_links import MemberLinks


@dataclass(eq=False)
class Noted:
    """A link that notes what is sent, or is busy."""

    incarnation: str
    busy: bool = False
    closed: bool = False
    sent: list[Message] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    @property
    def peer(self) -> Identity:
        name = "expert-0"
        return Identity(protocol=PROTOCOL_VERSION, role="expert", instance=name, node="n", incarnation=self.incarnation)

    def post_message(self, message: Message) -> None:
        if self.busy:
            raise LinkBusy("expert-0", "64 frames are on their way")
        self.sent.append(message)

    def abort(self, reason: str) -> None:
        self.closed = True
        self.ended.append(reason)

    @property
    def link(self) -> Link:
        return cast(Link, self)


MESSAGE = Fatal(problem="stop")


def test_a_link_that_an_instance_registers_over_takes_the_place_of_the_one_before() -> None:
    links, first, second = MemberLinks(), Noted("a"), Noted("b")
    for each in (first, second, second):
        links.register(each.link)
    assert first.ended == ["the instance registered over another link"] and not second.ended
    links.send("expert-0", MESSAGE)
    links.send("expert-0", MESSAGE, incarnation="b")
    links.send("expert-0", MESSAGE, incarnation="a")  # of a process that is gone
    links.send("expert-1", MESSAGE)
    links.send_all(MESSAGE)
    assert (first.sent, second.sent) == ([], [MESSAGE] * 3)
    assert not links.lost(first.link) and "expert-0" in links
    assert links.lost(second.link) and "expert-0" not in links


def test_one_that_takes_no_messages_is_ended_and_one_that_has_ended_is_left_alone() -> None:
    links, link = MemberLinks(), Noted("a", busy=True)
    links.register(link.link)
    links.send_all(MESSAGE)
    links.send_all(MESSAGE)
    assert link.ended == ["Fatal not sent: 64 frames are on their way"]
    links.end("expert-0", "no heartbeat")
    links.end("expert-0", "no heartbeat")
    assert link.ended[1:] == ["no heartbeat"]
