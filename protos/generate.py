"""Generate the Python contracts and their descriptor image from the .proto files.

The rules' own file, buf/validate/validate.proto, is not part of the project: its descriptor is taken from the installed
protovalidate package, so the rules that are checked are the rules that were compiled.

Usage: python protos/generate.py     writes protos/gen/python and protos/gen/contracts.binpb (both ignored by git)
"""

from __future__ import annotations

import importlib.resources
import os
import shutil
import sys
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb  # the package has no public accessor for its descriptor

ROOT = Path(__file__).parent
GEN = ROOT / "gen"
PYTHON = GEN / "python"
RULES = GEN / "rules.binpb"
CONTRACTS = GEN / "contracts.binpb"
# Buf's image format marks a file as import by field 8042 (buf_extension) {is_import: true}; protoc does not write it.
IS_IMPORT = bytes([0xD2, 0xF6, 0x03, 0x02, 0x08, 0x01])


def main() -> None:
    """Rewrite everything under protos/gen."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where protoc finds plugins
    shutil.rmtree(GEN, ignore_errors=True)
    PYTHON.mkdir(parents=True)
    well_known = Path(str(importlib.resources.files("grpc_tools"))) / "_proto"
    names = ("descriptor", "duration", "field_mask", "timestamp")
    _protoc(f"-I{well_known}", f"--descriptor_set_out={RULES}", *(f"google/protobuf/{name}.proto" for name in names))
    rules = descriptor_pb2.FileDescriptorSet.FromString(RULES.read_bytes())
    rules.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    RULES.write_bytes(rules.SerializeToString())

    protos = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("gr4ad/**/*.proto"))
    _protoc(
        f"--descriptor_set_in={RULES}",
        f"-I{ROOT}",
        f"--python_out={PYTHON}",
        f"--mypy_out=quiet:{PYTHON}",
        f"--grpc_python_out={PYTHON}",
        f"--mypy_grpc_out=quiet:{PYTHON}",
        f"--descriptor_set_out={CONTRACTS}",
        "--include_imports",
        "--include_source_info",
        *protos,
    )
    image = descriptor_pb2.FileDescriptorSet.FromString(CONTRACTS.read_bytes())
    for file in image.file:
        if not file.name.startswith("gr4ad/"):
            file.MergeFromString(IS_IMPORT)
    CONTRACTS.write_bytes(image.SerializeToString())

    _protoc(
        f"--descriptor_set_in={RULES}",
        f"--python_out={PYTHON}",
        f"--mypy_out=quiet:{PYTHON}",
        "buf/validate/validate.proto",
    )
    for folder in (PYTHON / "gr4ad", *(path for path in (PYTHON / "gr4ad").rglob("*") if path.is_dir())):
        (folder / "__init__.py").touch()
        (folder / "py.typed").touch()


def _protoc(*args: str) -> None:
    if protoc.main(["protoc", *args]) != 0:
        sys.exit("protoc failed: see the messages above")


if __name__ == "__main__":
    main()
