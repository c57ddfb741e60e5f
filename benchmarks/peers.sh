#!/usr/bin/env bash
# The code that the benchmarks compare with, brought beside the checkout and never into it:
#   bash benchmarks/peers.sh [FOLDER]            (default ../peers)
# FOLDER/MoMKD   the released MoMKD, at the commit that tests/model/fixtures/parity_release.json was made with
# into PYTHON's packages (default .venv/bin/python): torch_geometric, einops, einx and tqdm, which the release imports
# MOMKD_URL      another place to clone from, such as a mirror
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-../peers}
python=${PYTHON:-.venv/bin/python}
commit=226ad631d93d50790d9c842e6c5dc3ea641a9ae2

mkdir -p "$folder"
[ -d "$folder/MoMKD" ] || git clone --quiet "${MOMKD_URL:-https://github.com/CAIR-LAB-WFUSM/MoMKD}" "$folder/MoMKD"
git -C "$folder/MoMKD" checkout --quiet --detach "$commit"
"$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt \
  torch_geometric einops==0.8.2 einx==0.4.3 tqdm==4.70.1
echo "Ready: $python -m benchmarks.parity_release --release $folder/MoMKD"
