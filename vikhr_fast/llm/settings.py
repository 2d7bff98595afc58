"""How an endpoint is asked: the settings that every command which asks one has."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vikhr_fast.config import STRICT


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """A language model behind an OpenAI-compatible endpoint, and how patiently it is asked."""

    __pydantic_config__ = STRICT

    model: str
    """The model's name at the endpoint."""
    base_url: str = "https://api.openai.com/v1"
    """An OpenAI-compatible endpoint."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; an endpoint without keys needs none."""
    concurrency: Annotated[int, Field(strict=True, ge=1, le=1024)] = 8
    """Requests under way at once."""
    requests_per_minute: Annotated[float, Field(strict=True, gt=0)] = 500.0
    """Rate limit."""
    attempts: Annotated[int, Field(strict=True, ge=1)] = 6
    """Tries for an answer before it is given up."""
    timeout_seconds: Annotated[float, Field(strict=True, gt=0)] = 60.0
    """How long to wait for an answer."""
    backoff_seconds: Annotated[float, Field(strict=True, ge=0)] = 1.0
    """About how long to wait before a second try; doubles with each further one, to a minute at most."""
