#!/bin/sh
# Checks this bundle and installs it into a new virtual environment, from the files beside it and nothing else:
#
#     sh install.sh FOLDER
#
# PYTHON=/path/to/python sh install.sh FOLDER takes another Python @PYTHON@ than the one that is found by name.
set -eu

stop() {
    printf '%s\n  where: %s\n  fix:   %s\n' "$1" "$2" "$3" >&2
    exit 1
}

[ $# -eq 1 ] || { echo "usage: sh install.sh FOLDER" >&2; exit 2; }
folder=$1
python=${PYTHON:-python@PYTHON@}
bundle=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

[ ! -e "$folder" ] || stop "the folder is there already" "$folder" \
    "name a new one: an installation is never changed, the next version goes beside it"

report=$(cd "$bundle" && sha256sum -c SHA256SUMS 2>&1) || stop "the bundle is damaged" \
    "$(printf '%s\n' "$report" | grep -v ': OK$')" \
    "copy it again, and compare the SHA-256 of the tar file with the sender's"

command -v "$python" >/dev/null 2>&1 || stop "there is no Python @PYTHON@" "$python" \
    "install it with its venv module, or say where it is: PYTHON=/path/to/python sh install.sh FOLDER"
found=$("$python" -c 'import platform, sys; print(
    platform.python_implementation(), ".".join(map(str, sys.version_info[:2])), platform.system(), platform.machine())')
[ "$found" = "CPython @PYTHON@ Linux @MACHINE@" ] || stop \
    "this bundle is for CPython @PYTHON@ on Linux @MACHINE@" "$python is $found" \
    "ask for a bundle for this machine, which \`make bundle PYTHON=…\` makes, or choose another Python with PYTHON=…"
"$python" -c 'import ensurepip, venv' 2>/dev/null || stop "this Python cannot make virtual environments" "$python" \
    "install its venv module, called python@PYTHON@-venv in Debian and Ubuntu"

# What is half made is of no use to anybody, whoever stops it.
trap 'rm -rf -- "$folder"' EXIT
trap 'exit 130' HUP INT TERM
"$python" -m venv "$folder"

# No setting of this machine may add a source of packages; a wheel with another hash than the lock's is refused.
PIP_CONFIG_FILE=/dev/null "$folder/bin/python" -m pip --isolated install --quiet --no-cache-dir \
    --disable-pip-version-check --no-index --find-links "$bundle/wheels" --only-binary :all: --require-hashes \
    --requirement "$bundle/requirements.lock"
trap - EXIT

echo "fedtune $("$folder/bin/fedtune" version) is installed: $folder/bin/fedtune doctor checks this machine"
