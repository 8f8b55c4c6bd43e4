"""The `gr4ad` command and what it is made of."""

import os

# Processes are forked here only to start another program, which needs none of gRPC's care for forks and its warnings.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
