#!/usr/bin/env bash
# Make the virtual environment $1 and install this checkout into it: CUDA torch where there is an NVIDIA GPU, else CPU torch.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: deploy/install.sh <folder of the virtual environment>}
python=$(command -v python3.11 || command -v python3) || { echo "error: Python 3.11 or newer is needed (apt-get install python3 python3-venv)" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $python is older than Python 3.11" >&2; exit 2; }
echo "installing into $venv: 1 to 2 minutes with a fast network"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || { echo "error: no venv module (apt-get install python3-venv)" >&2; exit 2; }
"$venv/bin/python" -m pip install --quiet uv || { echo "error: PyPI cannot be reached; check the network or pip's index settings" >&2; exit 5; }
# Compiled here once: where PYTHONDONTWRITEBYTECODE is set every process that imports torch, Ray or MLflow would do it again.
options=(--constraint constraints.txt --compile-bytecode)
if [ -n "${PIP_FIND_LINKS:-}" ]; then
  export UV_FIND_LINKS="$PIP_FIND_LINKS"
elif ! command -v nvidia-smi >/dev/null 2>&1; then
  options+=(--torch-backend cpu)  # PyTorch's own CPU wheels: no CUDA packages
fi
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "${options[@]}" -e '.[dev]' \
  || { echo "error: the installation failed; the lines above name the package (a missing compiler: apt-get install g++)" >&2; exit 5; }
touch "$venv/.installed"
echo "installed: $("$venv/bin/python" -c 'import torch; print("torch", torch.__version__)')"
