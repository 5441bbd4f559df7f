"""The language reference that every Python carries: one document a topic, `pydoc:topics/NAME`.

Reads the package pydoc_data. Writes nothing. Refuses a topic that this Python has not, or has with another text.
"""

import hashlib
from collections.abc import Iterator, Mapping

from tasks.knowledge.sources.base import Item, moved, refuse_huge, unreadable


class PydocTopics:
    """The topics of pydoc. They are in memory anyway, so that a stamp is the digest of the text."""

    prefix = "pydoc:topics/"

    @property
    def ignored(self) -> Mapping[str, int]:
        """Nothing is passed over."""
        return {}

    def list(self) -> Iterator[Item]:
        """Yield every topic."""
        from pydoc_data.topics import topics

        for key in sorted(topics):
            yield self._item(key, topics[key].encode())

    def read(self, item: Item, limit: int) -> bytes:
        """Return one topic. Raises DocumentRefused."""
        from pydoc_data.topics import topics

        key = item.uri.removeprefix(self.prefix)
        if key not in topics:
            raise unreadable(item.uri, "no such topic in this Python")
        refuse_huge(item, limit)
        body: bytes = topics[key].encode()
        found = self._item(key, body)
        if found != item:
            raise moved(item, found.stamp)
        return body

    def _item(self, key: str, body: bytes) -> Item:
        return Item(self.prefix + key, hashlib.sha256(body).hexdigest(), len(body))
