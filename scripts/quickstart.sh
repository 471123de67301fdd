#!/usr/bin/env bash
# From a fresh clone to measured scaling laws: installs isoloss, trains the sweep `quick`, and writes its report.
#   scripts/quickstart.sh
# Run it again at any time: it goes on where it was interrupted.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

set_up
isoloss sweep experiment=quick
isoloss analyze sweeps/quick
echo "wall time of this call: $((SECONDS / 60)) min $((SECONDS % 60)) s"
