# Makes .venv in the repository and installs isoloss into it; sourced by the scripts beside it and by .ci/run.
#   . scripts/setup.sh && set_up [EXTRA]
# Leaves the shell in the repository with .venv's commands first in PATH. Does nothing that an earlier call has done.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# A Python that torch has wheels for.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "isoloss needs Python 3.11 or newer: install it, then run this again" >&2
  return 2
}

# An interrupted or outdated .venv is made anew.
make_venv() {
  local python
  if .venv/bin/python -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    return
  fi
  python=$(find_python)
  echo "making .venv with $("$python" --version)"
  rm -rf .venv
  if "$python" -c 'import ensurepip' 2>/dev/null; then
    "$python" -m venv .venv
  else  # Debian's Python without python3-venv: pip installs itself
    "$python" -m venv --without-pip .venv
    "$python" -m pip --python .venv/bin/python install --quiet pip
  fi
}

torch_requirement() {
  python -c '
import tomllib
names = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]
print(next(name for name in names if name.startswith("torch")))'
}

set_up() {
  local extra=${1:-} wanted quiet=
  make_venv
  PATH="$PWD/.venv/bin:$PATH"
  # The stamps say what was installed: the dependencies as they are written now, from this folder.
  wanted=$(cat pyproject.toml <(pwd) | cksum)
  if [ "$(cat ".venv/installed-$extra" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "installing isoloss into .venv"
  [ -t 1 ] || quiet=--quiet
  # First and alone, so that a build for CPUs that is at hand is preferred.
  python -m pip install $quiet "$(torch_requirement)"
  python -m pip install $quiet --editable ".${extra:+[$extra]}"
  echo "$wanted" | tee ".venv/installed-" ".venv/installed-$extra" >/dev/null
}
