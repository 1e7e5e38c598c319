"""Announces the sample module as an installed package would: an entry point in a directory on Python's path."""

from pathlib import Path

from testing.live_server import ROOT


def install(
    directory: Path, module: str = "testing.sample_module.module:module", name: str = "sample"
) -> dict[str, str]:
    """Write the metadata of a distribution into `directory`; return the variables with which a server finds it."""
    metadata = directory / f"mlsdm_{name}-1.2.3.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mlsdm-{name}\nVersion: 1.2.3\n")
    (metadata / "entry_points.txt").write_text(f"[mlsdm.modules]\n{name} = {module}\n")
    return {"PYTHONPATH": f"{directory}:{ROOT}", "MLSDM_MODULES__ENABLED": f"openapi,{name}"}
