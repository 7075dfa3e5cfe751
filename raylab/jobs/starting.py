"""What can go wrong before Ray runs, each in one line with what to do; and what a submitted job brings along."""

from __future__ import annotations

import os
import socket

import grpc
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError

from raylab.jobs.submitted import settings

_ANSWER_S = 10.0
# Asked first by Ray's own client, which tries for half a minute and tells of every try.
_FIRST_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"


class ClusterError(RuntimeError):
    """Ray cannot start here, or the cluster cannot be reached."""


def cannot_start(error: Exception) -> ClusterError:
    """In one sentence, with what may help."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said, address = lines[0], os.environ.get("RAY_ADDRESS")
    if "AF_UNIX" in said:
        remedy = (
            "its socket path would be longer than 107 bytes; set RAY_TMPDIR to a shorter folder"
        )
    elif "Version mismatch" in said:
        versions = ", ".join(" ".join(line.split()) for line in lines[1:5])
        remedy = f"the cluster at RAY_ADDRESS={address} has other versions ({versions})"
    elif address:
        remedy = f"no cluster answers at RAY_ADDRESS={address}, or it refuses ({said})"
    elif "timed out" in said:
        remedy = (
            f"{said} The machine may be too busy: run it again, or with fewer processes beside it"
        )
    else:
        remedy = f"{type(error).__name__}: {said}"
    return ClusterError(f"Ray cannot start: {remedy}")


def check_address(address: str) -> None:
    """Refuse an address where no cluster answers or that wants another token: Ray itself tries for minutes.

    Raises:
        ClusterError: says which, and what to do.
    """
    if address == "auto":
        try:
            _ask(canonicalize_bootstrap_address(address) or "", "auto")
        except ConnectionError:
            raise ClusterError(
                "Ray cannot start: RAY_ADDRESS=auto, and no cluster runs on this machine: start one with "
                "'ray start --head', or unset RAY_ADDRESS"
            ) from None
        return
    plain = address.removeprefix("ray://")
    host, _, port = plain.rpartition(":")
    if not host or not port.isdigit():
        return  # "local" and the like
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _unreachable(address, str(reason)) from None
    if plain == address:
        _ask(address, address)


def _unreachable(address: str, reason: str) -> ClusterError:
    return ClusterError(
        f"Ray cannot start: no cluster answers at RAY_ADDRESS={address} ({reason}); name the HOST:PORT of "
        "its head that 'ray start' printed (6379 by default, not the dashboard's 8265)"
    )


def _ask(address: str, named: str) -> None:
    """Ask the head who it is, once, with the token that Ray's own client would send; not over TLS.

    Args:
        named: what RAY_ADDRESS calls it.
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return
    loader = AuthenticationTokenLoader.instance()
    try:
        has_token = loader.has_token()
    except AuthenticationError:  # token mode without a token
        raise _refused(named, False) from None
    headers = loader.get_token_for_http_header() if has_token else {}
    with grpc.insecure_channel(address) as channel:
        question = channel.unary_unary(_FIRST_QUESTION)
        try:
            question(b"", timeout=_ANSWER_S, metadata=tuple(headers.items()))
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
            if code == grpc.StatusCode.UNAUTHENTICATED:
                raise _refused(named, has_token) from None
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise _unreachable(named, "something else than the head of a Ray cluster") from None


def _refused(address: str, has_token: bool) -> ClusterError:
    if has_token:
        said = "refuses the token that is set"
    elif os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        said = "wants a token, and none is set"
    else:
        said = "wants a token, and RAY_AUTH_MODE=token is not set"
    return ClusterError(
        f"Ray cannot start: the cluster at RAY_ADDRESS={address} {said}; set RAY_AUTH_MODE=token, and the "
        "cluster's own token by RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    )


def workers_environment(defaults: dict[str, str]) -> dict[str, str]:
    """The environment variables of workers without those that a submitted job sets itself: the user's count.

    Ray refuses a name that both name, unless it is told which of them counts: ours, then, of those left.
    """
    if not (told := settings()):
        return defaults
    os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    own = set((told.get("runtime_env") or {}).get("env_vars") or {}) - {"PYTHONPATH"}
    return {name: value for name, value in defaults.items() if name not in own}
