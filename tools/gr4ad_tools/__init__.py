"""The `gr4ad` command and what it is made of."""

import os

# Processes are forked here only to start another program, which needs none of gRPC's care for forks and its warnings.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# A torch thread that waits for another must not spin: where cores are shared, as by the services of a suite on one
# machine, that costs ten times the work itself.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
