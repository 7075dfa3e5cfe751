"""What is wrong with a model that a hub does not give, in one line that says what to do."""

from __future__ import annotations

from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled


def hub_fault(source: str, error: BaseException) -> str:
    """The reason, from what the hub's library raised: its own texts are of many lines."""
    raised: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in raised:
        raised.append(link)
        link = link.__cause__ or link.__context__
    texts = " ".join(str(one) for one in raised)
    if any(isinstance(one, GatedRepoError) for one in raised) or "gated repo" in texts:
        return (
            f"{source} is gated: accept its licence on its page of the hub, and set HF_TOKEN to a token of "
            "that account"
        )
    unreachable = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
    if any(isinstance(one, unreachable) for one in raised) or "connect to" in texts:
        return (
            "the hub cannot be reached and nothing of it is in the cache; put a copy into a folder, as "
            f"{source} or by the last part of that name, and name the folder by --models"
        )
    return " ".join(str(error).split())
