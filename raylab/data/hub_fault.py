"""What is wrong with a model that a hub does not give, in one line that says what to do."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers, get_session

_CONFIG = "config.json"
_NO_TOKEN, _FORBIDDEN, _NOT_FOUND = 401, 403, 404


class HubError(OSError):
    """A model that the hub does not give; the message says why and what to do."""


def check_hub(source: str) -> None:
    """Ask the hub once whether it gives a model, before its library does, which tries six times in half a minute.

    Nothing is asked of a folder, of what is in the local cache, or offline, where the library itself says so at once.

    Raises:
        HubError: gated, unknown, or the hub cannot be reached.
    """
    if Path(source).is_dir() or source.count("/") > 1 or constants.HF_HUB_OFFLINE:
        return
    if isinstance(try_to_load_from_cache(source, _CONFIG), str):
        return
    headers = build_hf_headers()
    try:
        response = get_session().head(
            hf_hub_url(source, _CONFIG), headers=headers, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except ValueError:  # no name of a repository, which the library says
        return
    except Exception as error:  # of the HTTP library, which the hub's has changed before
        raise HubError(_unreachable(source)) from error
    status, code = response.status_code, response.headers.get("X-Error-Code")
    has_token = "authorization" in headers
    if code == "GatedRepo" or (status == _FORBIDDEN and has_token):
        raise HubError(_gated(source, has_token))
    if status == _NO_TOKEN or code == "RepoNotFound":
        raise HubError(_unknown(source, has_token))
    if status == _NOT_FOUND and code is None:
        raise HubError(_unknown(source, has_token))
    if status >= 500:
        raise HubError(f"the hub answers {status} at present; run the same command again later")


def _gated(source: str, has_token: bool) -> str:
    asks = f"{source} is gated: accept its licence on its page of the hub, and set HF_TOKEN to a token of that account"
    return f"{asks} (the token that is set does not open it)" if has_token else asks


def _unknown(source: str, has_token: bool) -> str:
    other = "another HF_TOKEN" if has_token else "HF_TOKEN set"
    return f"the hub has no model {source}, or gives it only with {other}"


def _unreachable(source: str) -> str:
    return (
        "the hub cannot be reached and nothing of it is in the cache; put a copy into a folder, as "
        f"{source} or by the last part of that name, and name the folder by --models"
    )


def hub_fault(source: str, error: BaseException) -> str:
    """The reason, from what the hub's library raised: its own texts are of many lines."""
    raised: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in raised:
        raised.append(link)
        link = link.__cause__ or link.__context__
    if isinstance(error, HubError):
        return str(error)
    texts = " ".join(str(one) for one in raised)
    if any(isinstance(one, GatedRepoError) for one in raised) or "gated repo" in texts:
        return _gated(source, False)
    unreachable = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)
    if any(isinstance(one, unreachable) for one in raised) or "connect to" in texts:
        return _unreachable(source)
    return " ".join(str(error).split())
