"""Manifests that hold their own checksum."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vikhr_fast.errors import InputError
from vikhr_fast.io.files import json_text
from vikhr_fast.io.guarded import read_json


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """The checksum of everything in a manifest but the checksum itself."""
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json_text(content, ensure_ascii=True, sort_keys=True).encode("ascii")).hexdigest()


def read_manifest(path: Path, format: str, version: int, advice: str) -> dict[str, Any]:  # noqa: A002  as it is called
    """A manifest of this format and version; InputError, which ends in the advice, where there is no such one."""
    manifest = read_json(path, advice)
    if manifest.get("format") != format:
        raise InputError(f"{path}: not a manifest of {format.removeprefix('vikhr-fast ')}; {advice}")
    if manifest.get("version") != version:
        raise InputError(f"{path}: version {manifest.get('version')}, this program reads {version}; {advice}")
    if manifest.get("sha256") != manifest_sha256(manifest):
        raise InputError(f"{path}: damaged: its checksum does not fit; {advice}")
    return manifest
