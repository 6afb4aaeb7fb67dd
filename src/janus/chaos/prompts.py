"""Prompts that come with the suite: four registers of English, which make a router choose differently."""

from __future__ import annotations

DOMAINS: dict[str, tuple[str, ...]] = {
    "presidents": (
        "Tonight, I ask the Congress",
        "The revenues of the Government for the fiscal year",
        "My fellow Americans, the state of our Union is",
        "Our relations with Great Britain",
        "To preserve the peace of the world, we must",
    ),
    "novels": (
        "She could not help smiling at the idea that",
        '"My dear Emma," said Mr. Knightley,',
        "Elizabeth was surprised to see Mr. Darcy",
        "It was a very fine evening, and the two sisters",
        "Mrs. Bennet was delighted with the prospect of",
    ),
    "bible": (
        "And it came to pass",
        "And the LORD spake unto Moses, saying,",
        "The fear of the LORD is",
        "Then Jesus answered and said unto them,",
        "Blessed are they that",
    ),
    "whaling": (
        "The White Whale",
        "Captain Ahab stood upon the deck, and",
        "It was a cold night upon the Pacific, when the Pequod",
        '"There she blows!" cried Stubb,',
        "Of all the harpooneers, Queequeg",
    ),
}
#: One of each register in turn.
MIXED: tuple[str, ...] = tuple(prompt for row in zip(*DOMAINS.values(), strict=True) for prompt in row)

#: What a scenario may name instead of giving prompts of its own.
SETS: dict[str, tuple[str, ...]] = {"mixed": MIXED, **DOMAINS}
