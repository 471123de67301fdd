#!/usr/bin/env bash
# For a cluster without internet: isoloss and all it needs as wheels in one folder, each in one version.
#   scripts/wheelhouse.sh FOLDER [TORCH]
# TORCH says whose build of torch: cpu, or a CUDA version as in cu126; without it, the one that pip finds by itself.
# Run it where there is internet, with the Python version and the kind of CPU of the cluster, and copy FOLDER there.
# The line it prints at the end installs from it, without any connection, into the environment that is active.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '3,6s/^# //p' "$0"; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
index=()
[ -z "${2:-}" ] || index=(--index-url "https://download.pytorch.org/whl/$2")
[ -z "$(ls "$folder")" ] || { echo "wheelhouse.sh: $folder is not empty; name a new folder" >&2; exit 2; }
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

make_venv
PATH="$PWD/.venv/bin:$PATH"
python -m pip download --quiet --no-deps "${index[@]}" --dest "$folder" "$(torch_requirement)"
# That very build, although another index may offer others.
version=$(basename "$folder"/torch-*.whl | cut -d- -f2)
trap 'rm -rf build' EXIT  # what was removed from the sources since must not be in the next wheel
rm -rf build
python -m pip wheel --quiet --find-links "$folder" --constraint <(echo "torch==${version/\%2B/+}") \
  --wheel-dir "$folder" '.[slurm-hydra]'
echo "$(ls "$folder" | wc -l) wheels, $(du -sm "$folder" | cut -f1) MB. On the cluster:"
echo "  python -m pip install --no-index --find-links $folder 'isoloss[slurm-hydra]'"
