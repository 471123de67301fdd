#!/usr/bin/env bash
# The whole test suite, in the environment it makes. Arguments go to pytest.
#   scripts/test.sh [-k NAME ...]
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

set_up dev
exec python -m pytest "$@"
