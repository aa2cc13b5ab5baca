"""Settings of the App Mesh API."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from runtime import settings_file
from runtime.settings_file import Section, SettingsError, Wrong, split_bind

Number = Annotated[int, Meta(ge=1, le=100_000)]


class Api(Section, frozen=True):
    """The API: where it listens, what it keeps, whose it is, and how much it takes."""

    signing_keys_file: str
    store: Literal["sqlite", "dynamodb"] = "sqlite"
    data_dir: str = ""
    table: str = "headworks-mesh"
    table_region: str = ""
    table_endpoint: str = ""
    bind: str = "127.0.0.1:8470"
    account_id: Annotated[str, Meta(pattern=r"^\d{12}$")] = "000000000000"
    region: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$")] = "us-east-1"
    body_bytes_max: Annotated[int, Meta(ge=1024, le=16_777_216)] = 262_144
    meshes_max: Number = 100
    in_mesh_max: Number = 5_000
    routes_max: Number = 200
    drain_deadline_s: Annotated[float, Meta(gt=0, le=3600)] = 10.0


class Xds(Section, frozen=True):
    """Where proxies are served what the API keeps; nowhere without `bind`."""

    bind: str = ""
    certificate_file: str = ""
    key_file: str = ""
    authority_file: str = ""
    trust_domain: str = ""
    issuer_certificate_file: str = ""
    issuer_key_file: str = ""
    trust_bundle_file: str = ""
    certificate_ttl_s: Annotated[float, Meta(ge=1)] = 3600.0
    endpoints_file: str = ""
    cloud_map_regions: tuple[Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$")], ...] = ()
    cloud_map_endpoint: str = ""
    cloud_map_poll_s: Annotated[float, Meta(ge=0.1)] = 5.0
    streams_max: Number = 5_000
    status_socket: str = "headworks-mesh.sock"


class Log(Section, frozen=True):
    """The log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Settings(Section, frozen=True):
    """The file."""

    api: Api
    xds: Xds = Xds()
    log: Log = Log()


def load(path: Path, overrides: Sequence[str]) -> Settings:
    """Read and check the settings; raises `SettingsError`."""
    return settings_file.load(path, Settings, check=_check, overrides=overrides)


def _check(settings: Settings, wrong: Wrong) -> None:
    for key, bind in (("api.bind", settings.api.bind), ("xds.bind", settings.xds.bind)):
        try:
            if bind or key == "api.bind":
                split_bind(bind)
        except (ValueError, SettingsError) as error:
            raise wrong(key, str(error)) from error
    if settings.api.store == "sqlite" and not settings.api.data_dir:
        raise wrong("api.data_dir", 'is where the store is: set it, or store = "dynamodb"')
    if bool(settings.xds.issuer_certificate_file) != bool(settings.xds.issuer_key_file):
        raise wrong("xds.issuer_key_file", "goes together with issuer_certificate_file")
    files = {name: getattr(settings.xds, name) for name in ("certificate_file", "key_file", "authority_file")}
    if any(files.values()):
        for name, file in files.items():
            if not Path(file).is_file():
                raise wrong(f"xds.{name}", f"there is no file {file!r}: {', '.join(files)} go together")
