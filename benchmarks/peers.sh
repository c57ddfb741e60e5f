#!/usr/bin/env bash
# The code that the benchmarks compare with, brought beside the checkout and never into it:
#   bash benchmarks/peers.sh [FOLDER]            (default ../peers; may be run again)
# FOLDER/MoMKD   the released MoMKD, at the commit that tests/model/fixtures/parity_release.json was made with
# FOLDER/CLAM    CLAM, at the commit that was measured
# FOLDER/venv    torchmil, and what the release imports; all else, torch above all, is what PYTHON has
# PYTHON         the product's interpreter (default .venv/bin/python); nothing is installed into it
# MOMKD_URL, CLAM_URL   other places to clone from, such as a mirror
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-../peers}
python=${PYTHON:-.venv/bin/python}

bring() { # name, address, commit, folders that are needed (CLAM's repository also holds whole slides)
  [ -d "$folder/$1" ] || git clone --quiet --no-checkout "$2" "$folder/$1"
  git -C "$folder/$1" sparse-checkout set "${@:4}"
  git -C "$folder/$1" checkout --quiet --detach "$3"
}

mkdir -p "$folder"
bring MoMKD "${MOMKD_URL:-https://github.com/CAIR-LAB-WFUSM/MoMKD}" 226ad631d93d50790d9c842e6c5dc3ea641a9ae2 \
  models utils datasets vq
bring CLAM "${CLAM_URL:-https://github.com/mahmoodlab/CLAM}" 53e2409d4a8189c682c173382964a85f114f923c \
  models utils dataset_modules
[ -x "$folder/venv/bin/python" ] || "$python" -m venv --without-pip "$folder/venv"
"$python" -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
  > "$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/product.pth"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt \
  torchmil==1.0.2 torch_geometric einops==0.8.2 einx==0.4.3 tqdm==4.70.1
echo "Ready: make bench ONLY=train ARGS='--peers $folder'"
